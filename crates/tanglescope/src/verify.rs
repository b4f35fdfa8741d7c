//! Checks of a model and data: gradients against differences in f64, real steps against what the Gram says of them, the working
//! precision against that one.
use crate::data::{group, read, reading};
use crate::device::{OnDevice, dtype_name};
use crate::error::{Error, Result};
use crate::estimate::{Estimate, Planned};
use crate::listener::Listener;
use crate::model::Model;
use crate::options::{DataOptions, Derivative, ModelOptions};
use crate::reference::measurable;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};
use std::collections::HashMap;
use tanglescope_gram::{Batch, GradientSink, Group, GroupResult, Request, grams, run as run_batch, token_logps};
use tanglescope_kernels::{
    DType, Flex, FlexDevice, FloatTensor, Kernels, Memory, TensorData, TensorMetadata, as_index,
};
use tanglescope_model::{Decoder, InScope};
use tanglescope_objectives::{Lengths, Needs, Objective, Outcome, PairGram, PairLogps};

/// Options of [`verify`].
#[derive(Clone, Debug)]
pub struct VerifyOptions {
    /// The model.
    pub model: ModelOptions,
    /// The data.
    pub data: DataOptions,
    /// Pairs to check.
    pub pairs: usize,
    /// Losses whose real steps are checked against what the Gram says they do; the policy is its own reference.
    pub objectives: Vec<Objective>,
}

impl VerifyOptions {
    /// A model on data, with all defaults: two pairs, and dpo, simpo, cpo and normalised.
    #[must_use]
    pub fn new(model: ModelOptions, data: DataOptions) -> Self {
        let objective = |name: &str| name.parse().unwrap_or_else(|_| unreachable!("{name} is in the catalogue"));
        Self { model, data, pairs: 2, objectives: ["dpo", "simpo", "cpo", "normalised"].map(objective).to_vec() }
    }

    fn checked(&self, listener: &dyn Listener) -> Result<Model> {
        if self.pairs == 0 {
            return Err(Error::value("pairs", 0, "leaves nothing to check"));
        }
        // differences are those of the function
        let model = Model {
            padding_row: Derivative::Exact,
            dora_norm: Derivative::Exact,
            ..Model::new(&self.model)?.on_one_device()?
        };
        self.objectives.iter().try_for_each(check_pairwise)?;
        model.announce(listener);
        Ok(model)
    }

    /// What the call would do, without loading the model, and the forward passes of each response of a pair in f64 that come to
    /// it.
    ///
    /// # Errors
    /// As [`verify`] before it computes.
    pub fn estimate(&self, listener: &dyn Listener) -> Result<(Estimate, usize)> {
        let model = self.checked(listener)?;
        let planned = Planned::new(&model)?;
        let description = &planned.outline.description;
        let data =
            read(&self.data.data, &model.tokenizer_folders(), &reading(&self.data.rows)?, description, listener)?;
        let pairs = data.pairs.get(0..self.pairs)?.into_iter();
        let groups: Vec<Group> = pairs.map(|pair| group(description, pair.tokens)).collect();
        Ok((planned.groups(&groups, 1), 13 + 3 * self.objectives.len()))
    }
}

/// A comparison of two numbers that should be the same.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Check {
    /// What is compared.
    pub what: String,
    /// What was found.
    pub got: f64,
    /// What should be.
    pub expected: f64,
    /// Their difference, relative to the size of what is compared.
    pub error: f64,
    /// Largest error that arithmetic explains.
    pub tolerance: f64,
    /// Whether the error is not larger.
    pub passed: bool,
}

/// What [`verify`] found.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Verification {
    /// In the order in which they were made.
    pub checks: Vec<Check>,
}

impl Verification {
    /// How many checks failed.
    #[must_use]
    pub fn failed(&self) -> usize {
        self.checks.iter().filter(|check| !check.passed).count()
    }
}

/// How differences are taken in a number type, and how far they may be off.
struct Arithmetic {
    dtype: DType,
    /// Change of log π that a step along a gradient aims at.
    change: f64,
    /// Error of a difference, relative to the gradient's length.
    tolerance: f64,
}

/// The five-point difference is off by the fifth derivative times step⁴ / 30, relative 1e-3⁴ ≈ 1e-12, and by the
/// rounding of four log-probabilities: some 1e-15 · |log π| · √depth / change ≈ 1e-15 · 1e3 · 10 / 1e-3 = 1e-8.
const F64: Arithmetic = Arithmetic { dtype: DType::F64, change: 1e-3, tolerance: 1e-6 };

/// The same with 6e-8 in place of 1e-16: 6e-8 · 1e2 · 10 / 1e-1 ≈ 1e-3 to 1e-2, with a step a hundred times as long.
const F32: Arithmetic = Arithmetic { dtype: DType::F32, change: 1e-1, tolerance: 5e-2 };

/// Error of a Gram in a working precision relative to √(ww·ll). f32: 10 ε times a depth of about 100 operations. Halves
/// round every activation: √depth · ε is 1 % (f16) and 8 % (bf16) for single values, and their roundings do not add up in a
/// product of gradients, so that these tell a wrong kernel from a rounded one, and no more. Factors in tf32 have as many bits as f16.
fn working_tolerance(number_type: &str) -> f64 {
    match number_type {
        "f16" | "tf32" => 5e-2,
        "bf16" => 2e-1,
        _ => 1e-4,
    }
}

/// Checks the engine on a model and data.
///
/// # Errors
/// Where an option, the model, the adapter or a row cannot be used, or the device fails. A check that fails is no error.
pub fn verify(options: &VerifyOptions, listener: &dyn Listener) -> Result<Verification> {
    let model = options.checked(listener)?;
    let outline = model.outline()?;
    let values = outline.values().all(outline.description.layers()) as u64;
    let mut system = sysinfo::System::new();
    system.refresh_memory();
    // 8 bytes a value; the model, a moved copy, two gradients, and as much again in passing
    let needed = values.saturating_mul(8 * 6);
    let exact = if needed < system.available_memory() {
        F64
    } else {
        let gib = needed as f64 / 2f64.powi(30);
        listener.fell_back(&format!("memory: f64 would need about {gib:.0} GiB, so differences are taken in f32"));
        F32
    };
    let mut checks = Checks { listener, made: Verification::default() };
    let reference = differences(options, &model, &exact, &mut checks)?;
    let working = model.device.run(Working { options, model: &model, listener })?;
    for (i, (got, want)) in working.iter().zip(&reference).enumerate() {
        let (got, want) = (got.total(), want.total());
        let size = (want[0] * want[3]).sqrt();
        for (at, what) in [(0, "ww"), (1, "wl"), (3, "ll")] {
            let name = format!("pair {i}: {what} in {} against {}", model.number_type(), dtype_name(exact.dtype));
            checks.add(&name, got[at], want[at], size, working_tolerance(model.number_type()));
        }
    }
    Ok(checks.made)
}

/// Comparisons, told as they are made.
struct Checks<'a> {
    listener: &'a dyn Listener,
    made: Verification,
}

impl Checks<'_> {
    /// Compares two numbers relative to a size.
    fn add(&mut self, what: &str, got: f64, expected: f64, size: f64, tolerance: f64) {
        let error = if size > 0.0 { (got - expected).abs() / size } else { (got - expected).abs() };
        // a NaN fails
        let passed = error <= tolerance;
        let check = Check { what: what.to_owned(), got, expected, error, tolerance, passed };
        self.listener.checked(&check);
        self.made.checks.push(check);
    }
}

/// Model, scope and the first groups of the data.
fn load<B: Kernels>(
    options: &VerifyOptions,
    asked: &Model,
    dtype: DType,
    device: &B::Device,
    listener: &dyn Listener,
) -> Result<(Decoder<B>, InScope, Vec<Group>)> {
    let model = asked.load::<B>(dtype, device, listener)?;
    let scope = model.in_scope(&asked.scope)?;
    let rows = reading(&options.data.rows)?;
    let data = read(&options.data.data, &asked.tokenizer_folders(), &rows, &model.description, listener)?;
    let pairs = data.pairs.get(0..options.pairs)?.into_iter();
    let groups = pairs.map(|pair| group(&model.description, pair.tokens)).collect();
    Ok((model, scope, groups))
}

/// Grams one pair at a time, so that long data needs no more memory than its longest pair.
fn results<B: Kernels>(model: &Decoder<B>, scope: &InScope, groups: &[Group]) -> Vec<GroupResult> {
    groups.iter().flat_map(|group| grams(model, scope, &[Request::log_probabilities(group)])).collect()
}

/// The Grams in the working precision, on the device.
struct Working<'a> {
    options: &'a VerifyOptions,
    model: &'a Model,
    listener: &'a dyn Listener,
}

impl OnDevice for Working<'_> {
    type Output = Vec<GroupResult>;

    fn run<B: Kernels>(self, device: &B::Device) -> Result<Self::Output> {
        let (model, scope, groups) = load::<B>(self.options, self.model, self.model.dtype, device, self.listener)?;
        Ok(results(&model, &scope, &groups))
    }
}

/// Log-probabilities along lines against the Gram; returns the Grams.
fn differences(
    options: &VerifyOptions,
    asked: &Model,
    arithmetic: &Arithmetic,
    checks: &mut Checks<'_>,
) -> Result<Vec<GroupResult>> {
    let (model, scope, groups) = load::<Flex>(options, asked, arithmetic.dtype, &FlexDevice, checks.listener)?;
    let reference = results(&model, &scope, &groups);
    for (i, (group, result)) in groups.iter().zip(&reference).enumerate() {
        let forward = logps(&model, group);
        for (branch, name) in ["chosen", "rejected"].into_iter().enumerate() {
            let (got, want) = (result.logp(branch), forward[branch]);
            checks.add(
                &format!("pair {i}: logp_{name} of the pair against its branch alone"),
                got,
                want,
                want.abs(),
                arithmetic.tolerance,
            );
        }
        let batch = Batch::new(&[Request::log_probabilities(group)]);
        let mut sink = GradientSink::<Flex>::new(2);
        run_batch(&model, &scope, &batch, &mut sink);
        let total = result.total();
        let lengths = [total[0].sqrt(), total[3].sqrt()];
        for (branch, name) in ["g_w", "g_l"].into_iter().enumerate() {
            let length = lengths[branch];
            if length == 0.0 {
                checks.listener.left_out(&format!("pair {i}: {name} is zero"));
                continue;
            }
            let direction = direction_of(&sink, branch);
            // along g/‖g‖ log π changes by ‖g‖ times the step
            let step = arithmetic.change / (length * length);
            let scales = lengths.map(|other| length * other);
            let wants = [total[2 * branch], total[2 * branch + 1]];
            let agree = |slopes: &[f64; 2]| agrees(slopes, wants, scales, arithmetic.tolerance);
            let slopes = within_a_piece(step, agree, |step| slopes(&model, &scope, &direction, step, group));
            for (other, of) in ["g_w", "g_l"].into_iter().enumerate() {
                let want = total[2 * branch + other];
                let what = format!("pair {i}: ⟨{name}, {of}⟩ against the difference along {name}");
                checks.add(&what, want, slopes[other], length * lengths[other], arithmetic.tolerance);
            }
        }
        for objective in &options.objectives {
            let gram = PairGram::of(&total);
            let Outcome { d_w, d_l, .. } = outcome(objective, group, result, &gram);
            let changes = gram.changes(d_w, d_l);
            let most = changes.iter().flatten().fold(0.0, |most: f64, term| most.max(term.abs()));
            let direction = sink.combined(&[d_w, -d_l]);
            let found =
                if most > 0.0 { limit(&model, &scope, &direction, arithmetic.change / most, group) } else { [0.0; 2] };
            for (k, name) in ["chosen", "rejected"].into_iter().enumerate() {
                let [a, b] = changes[k];
                let what = format!("pair {i}: change of logp_{name} by a step on {objective}, per unit of step");
                checks.add(&what, a - b, found[k], a.abs() + b.abs(), arithmetic.tolerance);
            }
        }
        let random = random_direction(&model, &scope, i as u64);
        let (norm, along) = (size(&random), dots(&sink, &random));
        let expected = lengths[0].max(lengths[1]) * norm / (parameters(&random) as f64).sqrt();
        if expected > 0.0 {
            let agree = |slopes: &[f64; 2]| agrees(slopes, [along[0], along[1]], [expected; 2], arithmetic.tolerance);
            let step = arithmetic.change / expected;
            let slopes = within_a_piece(step, agree, |step| slopes(&model, &scope, &random, step, group));
            for (branch, name) in ["g_w", "g_l"].into_iter().enumerate() {
                let what = format!("pair {i}: ⟨{name}, random direction⟩ against the difference along it");
                checks.add(&what, along[branch], slopes[branch], expected, arithmetic.tolerance);
            }
        }
    }
    Ok(reference)
}

/// log π of both branches, each run alone, without a shared trunk.
fn logps(model: &Decoder<Flex>, group: &Group) -> [f64; 2] {
    [0, 1].map(|branch| {
        let alone = Group { responses: vec![group.responses[branch].clone()], ..group.clone() };
        token_logps(model, &[&alone])[0][0].iter().sum()
    })
}

/// Whether differences are what is wanted of them.
fn agrees(found: &[f64; 2], wants: [f64; 2], scales: [f64; 2], tolerance: f64) -> bool {
    (0..2).all(|k| (found[k] - wants[k]).abs() <= tolerance * scales[k])
}

/// Differences with a step; where they do not agree, with a tenth and a hundredth of it. A bound, a ReLU's kink or another choice of a
/// router within the step makes a difference that is no derivative, and the shorter the step the rarer it is; what a wrong gradient
/// is off by, no step makes smaller.
fn within_a_piece(step: f64, agree: impl Fn(&[f64; 2]) -> bool, slopes: impl Fn(f64) -> [f64; 2]) -> [f64; 2] {
    let first = slopes(step);
    if agree(&first) {
        return first;
    }
    [step / 10.0, step / 100.0].into_iter().map(slopes).find(agree).unwrap_or(first)
}

/// d log π / d step along a direction: the five-point central difference.
fn slopes(
    model: &Decoder<Flex>,
    scope: &InScope,
    direction: &HashMap<String, FloatTensor<Flex>>,
    step: f64,
    group: &Group,
) -> [f64; 2] {
    let at = |steps: f64| logps(&model.moved(scope, direction, steps * step), group);
    let (m2, m1, p1, p2) = (at(-2.0), at(-1.0), at(1.0), at(2.0));
    [0, 1].map(|b| (8.0 * (p1[b] - m1[b]) - (p2[b] - m2[b])) / (12.0 * step))
}

/// Refuses an objective that is not one of a pair.
fn check_pairwise(objective: &Objective) -> Result<()> {
    measurable(objective, true)?;
    if matches!(objective.needs(), Needs::Pair | Needs::Gram) {
        return Ok(());
    }
    let problem = "is no loss of a pair's two log-probabilities; choose one that is";
    Err(Error::value("objectives", objective, problem))
}

/// What an objective makes of a pair whose policy is its own reference.
fn outcome(objective: &Objective, group: &Group, result: &GroupResult, gram: &PairGram) -> Outcome {
    let tokens = |k: usize| as_index(group.responses[k].len());
    let (chosen, rejected) = (result.logp(0), result.logp(1));
    let lengths = Lengths { chosen: tokens(0), rejected: tokens(1) };
    let pair = PairLogps { chosen, rejected, reference: Some([chosen, rejected]), lengths, ..PairLogps::default() };
    objective.of_pair(&pair, gram).unwrap_or_else(|| unreachable!("{objective} is a loss of a pair"))
}

/// Change of both log-probabilities by a step along a direction, per unit of step, in the limit of small steps: from steps
/// of three sizes, `eta` and its halves. What one step measures is off by cη + c′η² + O(η³); the combination leaves O(η³).
fn limit(
    model: &Decoder<Flex>,
    scope: &InScope,
    direction: &HashMap<String, FloatTensor<Flex>>,
    eta: f64,
    group: &Group,
) -> [f64; 2] {
    let before = logps(model, group);
    let measured = |eta: f64| {
        let after = logps(&model.moved(scope, direction, eta), group);
        [0, 1].map(|k| (after[k] - before[k]) / eta)
    };
    let [a, b, c] = [eta, eta / 2.0, eta / 4.0].map(measured);
    [0, 1].map(|k| (a[k] - 6.0 * b[k] + 8.0 * c[k]) / 3.0)
}

fn direction_of(sink: &GradientSink<Flex>, branch: usize) -> HashMap<String, FloatTensor<Flex>> {
    sink.gradients.iter().map(|(name, gradients)| (name.clone(), gradients[branch].clone())).collect()
}

fn random_direction(model: &Decoder<Flex>, scope: &InScope, seed: u64) -> HashMap<String, FloatTensor<Flex>> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut out = HashMap::new();
    model.clone().visit(&|name| scope.contains(name), &mut |name, _, tensor| {
        if scope.contains(name) {
            let shape = tensor.shape();
            let values: Vec<f64> = (0..shape.num_elements()).map(|_| StandardNormal.sample(&mut random)).collect();
            let data = TensorData::new(values, shape).convert_dtype(model.dtype);
            out.insert(name.to_owned(), Flex::upload(data, &FlexDevice));
        }
    });
    out
}

fn parameters(direction: &HashMap<String, FloatTensor<Flex>>) -> usize {
    direction.values().map(|tensor| tensor.shape().num_elements()).sum()
}

fn size(direction: &HashMap<String, FloatTensor<Flex>>) -> f64 {
    direction.values().map(|t| Flex::download(t).iter().map(|x| x * x).sum::<f64>()).sum::<f64>().sqrt()
}

/// ⟨g_w, direction⟩ and ⟨g_l, direction⟩.
fn dots(sink: &GradientSink<Flex>, direction: &HashMap<String, FloatTensor<Flex>>) -> [f64; 2] {
    [0, 1].map(|branch| {
        let names = sink.gradients.iter();
        names
            .map(|(name, gradients)| {
                let (g, d) = (Flex::download(&gradients[branch]), Flex::download(&direction[name]));
                g.iter().zip(&d).map(|(g, d)| g * d).sum::<f64>()
            })
            .sum()
    })
}
