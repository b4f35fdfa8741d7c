//! The loop's body: one step, one evaluation, one prediction.
use crate::error::{Error, Result};
use crate::log::{StepLog, means, prediction_means};
use crate::masks::Masks;
use crate::optimizer::{Moving, Optimizer, Taken, matrix, squared_norm};
use crate::order;
use crate::signal::{BatchOutcomes, Example, Reference, Signal};
use serde_json::json;
use std::collections::HashMap;
use tanglescope_gram::{
    Coefficients, Cotangent, Detail, DirectionalSink, Group, GroupResult, Metric, Request, Schedule, Update, Wanted,
    batches_of, grams_in_batches, token_logps_in_batches, update,
};
use tanglescope_kernels::{FloatTensor, Kernels};
use tanglescope_model::{Decoder, InScope};
use tanglescope_objectives::{Needs, Objective, Outcome, PairGram, Rounding};
use tanglescope_records::Settings;
use tanglescope_records::tables::training::{PairStep, Prediction, Split};

/// How work is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepPlan {
    /// Forward rows that run together.
    pub rows: usize,
    /// Batches that run side by side.
    pub at_once: usize,
}

/// What a step leaves.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// Every pair as the step saw it.
    pub pairs: Vec<PairStep>,
    /// Predicted and measured changes, where the step was one of those.
    pub predictions: Vec<Prediction>,
    /// The means.
    pub log: StepLog,
}

/// A model before a step, and what the step is made of.
struct Before<B: Kernels> {
    model: Decoder<B>,
    gradient: HashMap<String, FloatTensor<B>>,
    first_moments: HashMap<String, FloatTensor<B>>,
    /// Of each of its groups: the gradients that the objective moves along, and those of both log-probabilities.
    cotangents: Vec<Vec<Cotangent>>,
}

/// A model in training.
pub struct Trainer<'a, B: Kernels> {
    /// The model as it is after the steps so far; all parameters in scope are in its number type.
    pub model: Decoder<B>,
    scope: &'a InScope,
    objective: &'a Objective,
    settings: &'a Settings,
    plan: StepPlan,
    examples: &'a [Example],
    held_out: &'a [Example],
    /// Of the examples, then of those held out.
    reference: Option<[Vec<Reference>; 2]>,
    pub(crate) optimizer: Optimizer<B>,
    pub(crate) masks: Option<Masks>,
    pub(crate) calibration: Option<f64>,
    /// Of the number type.
    rounding: Rounding,
    /// Steps taken.
    pub(crate) steps: usize,
}

impl<'a, B: Kernels> Trainer<'a, B> {
    /// A run before its first step. `reference` holds token log-probabilities of the examples and of those held out.
    #[must_use]
    pub fn new(
        mut model: Decoder<B>,
        scope: &'a InScope,
        objective: &'a Objective,
        settings: &'a Settings,
        plan: StepPlan,
        [examples, held_out]: [&'a [Example]; 2],
        reference: Option<[Vec<Reference>; 2]>,
    ) -> Self {
        let dtype = model.dtype;
        model.visit(&|name| scope.contains(name), &mut |name, _, tensor| {
            if scope.contains(name) {
                *tensor = B::cast(tensor.clone(), dtype);
            }
        });
        let lengths = |example: &Example| [0, 1].map(|k| example.group.responses.get(k).map_or(0, Vec::len));
        let masks = (objective.needs() == Needs::Training).then(|| Masks::ones(examples.iter().map(lengths)));
        let optimizer = Optimizer::new(settings);
        Self {
            model,
            scope,
            objective,
            settings,
            plan,
            examples,
            held_out,
            reference,
            optimizer,
            masks,
            calibration: None,
            rounding: Rounding::of(dtype.name()),
            steps: 0,
        }
    }

    /// Steps taken so far.
    #[must_use]
    pub fn steps(&self) -> usize {
        self.steps
    }

    /// Examples seen, in epochs.
    #[must_use]
    pub fn epoch(&self) -> f64 {
        let per_epoch = order::steps_per_epoch(self.examples.len(), self.settings.pairs_per_step());
        self.steps as f64 / per_epoch as f64
    }

    /// Numbers of the examples that a step, counted from 0, trains on.
    pub(crate) fn examples_of(&self, step: usize) -> Vec<usize> {
        order::of_step(step, self.examples.len(), self.settings.pairs_per_step(), self.settings.seed)
    }

    /// Examples that a number of steps from the first on see.
    #[must_use]
    pub fn examples_in(&self, steps: usize) -> usize {
        let (examples, per_step) = (self.examples.len(), self.settings.pairs_per_step());
        let per_epoch = order::steps_per_epoch(examples, per_step);
        steps / per_epoch * examples + examples.min(steps % per_epoch * per_step)
    }

    /// Steps of the whole run.
    pub(crate) fn max_steps(&self) -> usize {
        self.settings.max_steps
    }

    fn schedule(&self, groups: &[&Group]) -> Schedule {
        batches_of(groups.iter().copied(), self.plan.rows, self.plan.at_once)
    }

    fn signal(&self) -> Signal<'_> {
        Signal {
            objective: self.objective,
            reference: self.reference.as_ref().map(|of| of[0].as_slice()),
            examples: self.examples,
            masks: self.masks.as_ref(),
            calibration: self.calibration,
        }
    }

    /// Takes the next step.
    ///
    /// # Errors
    /// Where a pair's loss or coefficients, the gradient's length, or the parameters' after the step is NaN or infinite.
    pub fn step(&mut self) -> Result<Step> {
        let (settings, number) = (self.settings, self.steps + 1);
        let chosen = self.examples_of(self.steps);
        let due = |every: usize| every > 0 && (number % every == 0 || number == 1);
        let groups: Vec<&Group> = chosen.iter().map(|&e| &self.examples[e].group).collect();
        let pairs_of_two = groups.iter().all(|group| group.responses.len() == 2);
        let grams = pairs_of_two && due(settings.gram_every);
        let schedule = self.schedule(&groups);
        let of_batch = self.of_batch(&chosen, &groups, &schedule);
        let mut update = self.direction(&chosen, &groups, &schedule, of_batch.as_ref(), grams);
        let pairs = self.pair_steps(&chosen, &update.results, of_batch.as_ref(), grams)?;
        let norm = squared_norm::<B>(&update.gradient).sqrt();
        if !norm.is_finite() {
            return Err(self.not_finite("all pairs", format!("the gradient's length is {norm}")));
        }
        let clip = if settings.max_grad_norm > 0.0 { (settings.max_grad_norm / (norm + 1e-6)).min(1.0) } else { 1.0 };
        let rate = settings.rate(self.steps);
        // optimizers go against the gradient of the loss, and the engine gives the direction that lowers it
        let gradient = std::mem::take(&mut update.gradient);
        let gradient: HashMap<String, FloatTensor<B>> =
            gradient.into_iter().map(|(name, g)| (name, B::times_number(g, -clip))).collect();
        let before = due(settings.predict_every).then(|| Before {
            model: self.model.clone(),
            gradient: gradient.clone(),
            first_moments: self.optimizer.first_moments(),
            cotangents: chosen
                .iter()
                .zip(&groups)
                .map(|(&e, group)| self.signal().cotangents(e, group, true))
                .collect(),
        });
        self.move_along(gradient, rate);
        let size = squared_norm::<B>(&self.parameters()).sqrt();
        if !size.is_finite() {
            return Err(self.not_finite("all pairs", format!("the parameters' length after the step is {size}")));
        }
        self.learn(&chosen, &pairs, &update.results);
        self.steps = number;
        let predictions = before.map_or_else(Vec::new, |before| {
            self.predictions(&before, (&chosen, &pairs), (rate, clip / chosen.len() as f64))
        });
        let mut log = means(&pairs, self.beta(), self.rounding, "");
        log.insert("grad_norm".to_owned(), json!(norm));
        log.insert("learning_rate".to_owned(), json!(rate));
        log.extend(prediction_means(&predictions));
        Ok(Step { pairs, predictions, log: StepLog(log) })
    }

    /// What rewards are scaled by: the objective's β.
    fn beta(&self) -> f64 {
        ["beta", "beta0"].into_iter().find_map(|key| self.objective.hyper(key)).unwrap_or(1.0)
    }

    /// Outcomes of an objective that is defined on batches: log-probabilities of all pairs come before any coefficient.
    fn of_batch(&self, chosen: &[usize], groups: &[&Group], schedule: &Schedule) -> Option<BatchOutcomes> {
        if self.objective.needs() != Needs::Batch {
            return None;
        }
        let token_logps = token_logps_in_batches(&self.model, groups, schedule, |_| ());
        let signal = self.signal();
        let sums: Vec<_> = chosen.iter().zip(&token_logps).map(|(&e, logps)| signal.sums(e, logps)).collect();
        let size = self.settings.batch_size;
        let outcomes = sums.chunks(size).flat_map(|sums| self.objective.of_batch(sums).unwrap_or_default());
        Some(chosen.iter().copied().zip(outcomes).collect())
    }

    /// `Σ (d_w g_w − d_l g_l)` over the pairs of a step, divided by their number.
    fn direction(
        &self,
        chosen: &[usize],
        groups: &[&'a Group],
        schedule: &Schedule,
        of_batch: Option<&BatchOutcomes>,
        grams: bool,
    ) -> Update<B> {
        let signal = self.signal();
        let request =
            |(&e, group): (&usize, &&'a Group)| Request { group, cotangents: signal.cotangents(e, group, grams) };
        let requests: Vec<Request<'_>> = chosen.iter().zip(groups).map(request).collect();
        let coefficients = |g: usize, token_logps: &[Vec<f64>], gram: Option<&PairGram>| {
            let outcome = signal.outcome(chosen[g], groups[g], token_logps, of_batch, gram);
            Signal::coefficients(outcome, groups[g].responses.len(), requests[g].cotangents.len(), chosen.len())
        };
        let of_logps = |g: usize, token_logps: &Vec<Vec<f64>>| coefficients(g, token_logps, None);
        let squares =
            |g: usize, result: &GroupResult| coefficients(g, &result.token_logps, Some(&PairGram::of(&result.total())));
        let needs_gram = self.objective.needs() == Needs::Gram;
        let when = match self.calibration {
            None if needs_gram => Coefficients::OfGram(&squares),
            // a moving average is known beforehand
            _ => Coefficients::OfLogps(&of_logps),
        };
        update(&self.model, self.scope, &requests, schedule, &when, grams || needs_gram)
    }

    fn pair_steps(
        &self,
        chosen: &[usize],
        results: &[GroupResult],
        of_batch: Option<&BatchOutcomes>,
        grams: bool,
    ) -> Result<Vec<PairStep>> {
        let signal = self.signal();
        let mut out = Vec::with_capacity(chosen.len());
        for (&e, result) in chosen.iter().zip(results) {
            let example = &self.examples[e];
            let gram = (!result.grams.is_empty()).then(|| PairGram::of(&result.total()));
            let outcome = signal.outcome(e, &example.group, &result.token_logps, of_batch, gram.as_ref());
            let sums = signal.sums(e, &result.token_logps);
            let squares = gram.map_or([0.0; 2], |gram| [gram.ww, gram.ll]);
            for (name, value) in [
                ("log π(chosen)", sums.chosen),
                ("log π(rejected)", sums.rejected),
                ("loss", outcome.loss),
                ("d_w", outcome.d_w),
                ("d_l", outcome.d_l),
                ("‖g_w‖²", squares[0]),
                ("‖g_l‖²", squares[1]),
            ] {
                if !value.is_finite() {
                    return Err(self.not_finite(&format!("row {}", example.row), format!("{name} is {value}")));
                }
            }
            out.push(PairStep {
                step: self.steps + 1,
                pair: example.row,
                logp_chosen: sums.chosen,
                logp_rejected: (example.group.responses.len() == 2).then_some(sums.rejected),
                reference: sums.reference,
                outcome,
                gram: gram.filter(|_| grams),
                changes: if grams { gram.map(|gram| changes(&outcome, &gram, &result.total())) } else { None },
            });
        }
        Ok(out)
    }

    fn not_finite(&self, what: &str, found: String) -> Error {
        let problem = format!(
            "{found}; the run has stopped, and its checkpoints up to here are kept. A lower option `learning_rate` or \
             option `max_grad_norm`, or option `dtype` = f64, may help, into another option `out`"
        );
        Error::NotFinite { step: self.steps + 1, what: what.to_owned(), problem }
    }

    /// Moves every parameter in scope against the gradient of the loss.
    fn move_along(&mut self, mut gradient: HashMap<String, FloatTensor<B>>, rate: f64) {
        let parameters = self.parameters().into_iter();
        let moving = parameters.map(|(name, x)| Moving { gradient: gradient.remove(&name), name, x }).collect();
        let moved = self.optimizer.step(moving, rate, self.plan.at_once > 1);
        let mut moved: HashMap<String, FloatTensor<B>> = moved.into_iter().collect();
        let scope = self.scope;
        self.model.visit(&|name| scope.contains(name), &mut |name, _, tensor| {
            if let Some(moved) = moved.remove(name) {
                *tensor = moved;
            }
        });
    }

    /// What is learned beside the model: masks, and the moving average of the calibration.
    fn learn(&mut self, chosen: &[usize], pairs: &[PairStep], results: &[GroupResult]) {
        let (rate, lam) = (self.settings.mask_learning_rate, self.objective.hyper("lam").unwrap_or(0.0));
        if let Some(mut masks) = self.masks.take() {
            for ((&e, pair), result) in chosen.iter().zip(pairs).zip(results) {
                if let Some(ratios) = self.signal().ratios(e, &result.token_logps) {
                    masks.step(e, [pair.outcome.d_w, pair.outcome.d_l], &ratios, lam, rate);
                }
            }
            self.masks = Some(masks);
        }
        if let (Needs::Gram, Some(decay)) = (self.objective.needs(), self.objective.hyper("ema")) {
            let found: Vec<f64> = results.iter().filter_map(|r| PairGram::of(&r.total()).calibration()).collect();
            if !found.is_empty() {
                let mean = found.iter().sum::<f64>() / found.len() as f64;
                self.calibration = Some(self.calibration.map_or(mean, |old| decay * old + (1.0 - decay) * mean));
            }
        }
    }

    /// What pairs of a step do to themselves, in Adam's metric of that step: the changes of both log-probabilities that their own part of the
    /// gradient makes, for each unit of what P g is multiplied with.
    fn own_changes(
        &self,
        before: &Before<B>,
        pairs: (&[usize], &[PairStep]),
        roots: HashMap<String, FloatTensor<B>>,
    ) -> Vec<Option<[f64; 2]>> {
        let Before { model, cotangents, .. } = before;
        let groups: Vec<&Group> = pairs.0.iter().map(|&e| &self.examples[e].group).collect();
        if groups.iter().any(|group| group.responses.len() != 2) {
            return vec![None; groups.len()];
        }
        let request =
            |(group, cotangents): (&&'a Group, &Vec<Cotangent>)| Request { group, cotangents: cotangents.clone() };
        let requests: Vec<Request<'_>> = groups.iter().zip(cotangents).map(request).collect();
        let metric = Metric::new(roots);
        let wanted = Wanted { detail: Detail::Total, metric: Some(&metric) };
        let found = grams_in_batches(model, self.scope, &requests, &self.schedule(&groups), &wanted, |_| ());
        let own = |(pair, result): (&PairStep, &GroupResult)| {
            let total = result.in_metric.as_ref()?;
            Some(changes(&pair.outcome, &PairGram::of(total), total).map(|[a, b]| a - b))
        };
        pairs.1.iter().zip(&found).map(own).collect()
    }

    /// Predicted and measured changes by the step from `before` to the model as it is, on the step's pairs and on as many
    /// that are held out; `share` is what a pair's gradient was multiplied with in the step's.
    fn predictions(
        &self,
        before: &Before<B>,
        (chosen, pairs): (&[usize], &[PairStep]),
        (rate, share): (f64, f64),
    ) -> Vec<Prediction> {
        let Before { model, gradient, first_moments, .. } = before;
        let old_parameters = parameters(model, self.scope);
        let taken = Taken { settings: self.settings, rate, parameters: &old_parameters, gradient, first_moments };
        let parts = self.optimizer.take_apart(&taken);
        let mut own_in_metric = self.own_changes(before, (chosen, pairs), parts.roots).into_iter();
        let before = model;
        let mut old = old_parameters;
        let moved = self.parameters().into_iter();
        let step: HashMap<String, FloatTensor<B>> = moved
            .filter_map(|(name, new)| {
                let old = old.remove(&name)?;
                Some((name, B::add_scaled(new, &old, -1.0)))
            })
            .collect();
        let held_out = &self.held_out[..self.held_out.len().min(self.settings.pairs_per_step())];
        let batch = chosen.iter().map(|&e| (Split::Batch, &self.examples[e]));
        let all: Vec<(Split, &Example)> =
            batch.chain(held_out.iter().map(|example| (Split::HeldOut, example))).collect();
        let groups: Vec<&Group> = all.iter().map(|(_, example)| &example.group).collect();
        let schedule = self.schedule(&groups);
        let steps = [&step, &parts.gradient, &parts.momentum, &parts.decay];
        let predicted = DirectionalSink::of_groups(before, self.scope, &groups, &schedule.batches, &steps);
        let logps = |model: &Decoder<B>| token_logps_in_batches(model, &groups, &schedule, |_| ());
        let (old, new) = (logps(before), logps(&self.model));
        let own = |pair: &PairStep| pair.changes.map(|changes| changes.map(|[a, b]| rate * share * (a - b)));
        let mut own_grams = pairs.iter().map(own);
        let sum = |of: &Vec<f64>| of.iter().sum::<f64>();
        let changes =
            old.iter().zip(&new).map(|(old, new)| old.iter().zip(new).map(|(o, n)| sum(n) - sum(o)).collect());
        let found = all.iter().zip(predicted).zip(changes);
        found
            .map(|(((split, example), mut predicted), measured)| {
                let (decay, momentum, by_gradient) = (predicted.pop(), predicted.pop(), predicted.pop());
                let by_gradient = by_gradient.unwrap_or_default();
                // a pair that is held out has no part in the step
                let own = match split {
                    Split::HeldOut => Some(vec![0.0; by_gradient.len()]),
                    Split::Batch => {
                        let changes = own_in_metric.next().flatten();
                        changes.map(|of| of.map(|change| parts.of_gradient * share * change).to_vec())
                    }
                };
                let others = own.as_ref().map(|own| by_gradient.iter().zip(own).map(|(all, own)| all - own).collect());
                Prediction {
                    step: self.steps,
                    split: *split,
                    pair: example.row,
                    predicted: predicted.pop().unwrap_or_default(),
                    measured,
                    own,
                    others,
                    momentum: momentum.unwrap_or_default(),
                    decay: decay.unwrap_or_default(),
                    own_gram: own_grams.next().flatten(),
                }
            })
            .collect()
    }

    /// Means over all examples that are held out, by forward passes alone.
    #[must_use]
    pub fn evaluate(&self) -> StepLog {
        let groups: Vec<&Group> = self.held_out.iter().map(|example| &example.group).collect();
        let schedule = self.schedule(&groups);
        let token_logps = token_logps_in_batches(&self.model, &groups, &schedule, |_| ());
        // a mask that was learned belongs to the examples, so those held out have none: all ones
        let ones = Masks::ones(token_logps.iter().map(|of| [0, 1].map(|k| of.get(k).map_or(0, Vec::len))));
        let signal = Signal {
            reference: self.reference.as_ref().map(|of| of[1].as_slice()),
            examples: self.held_out,
            masks: Some(&ones),
            ..self.signal()
        };
        let sums: Vec<_> = token_logps.iter().enumerate().map(|(e, logps)| signal.sums(e, logps)).collect();
        let batches = sums.chunks(self.settings.batch_size).map(|sums| self.objective.of_batch(sums));
        let of_batch = batches.collect::<Option<Vec<_>>>().map(|of| of.into_iter().flatten().enumerate().collect());
        let pairs: Vec<PairStep> = self
            .held_out
            .iter()
            .enumerate()
            .map(|(e, example)| PairStep {
                step: self.steps,
                pair: example.row,
                logp_chosen: sums[e].chosen,
                logp_rejected: (example.group.responses.len() == 2).then_some(sums[e].rejected),
                reference: sums[e].reference,
                outcome: signal.outcome(e, &example.group, &token_logps[e], of_batch.as_ref(), None),
                gram: None,
                changes: None,
            })
            .collect();
        StepLog(means(&pairs, self.beta(), self.rounding, "eval_"))
    }

    /// The parameters in scope, by name.
    #[must_use]
    pub fn parameters(&self) -> HashMap<String, FloatTensor<B>> {
        parameters(&self.model, self.scope)
    }

    /// Shapes of the optimizer's tensors, once there are any.
    pub(crate) fn moments_like(&self) -> Vec<(String, FloatTensor<B>)> {
        let both = |(name, x): (String, FloatTensor<B>)| {
            let x = matrix::<B>(&x);
            ["moment_1", "moment_2"].map(|moment| (format!("{moment}.{name}"), x.clone()))
        };
        self.parameters().into_iter().flat_map(both).collect()
    }
}

/// What a unit step on an outcome changes both log-probabilities by. Where the objective moves masked sums, the Gram's last two
/// cotangents of four are theirs, and the step goes along their gradients.
fn changes(outcome: &Outcome, gram: &PairGram, total: &[f64]) -> [[f64; 2]; 2] {
    let Outcome { d_w, d_l, .. } = *outcome;
    match total.len() {
        16 => [[d_w * total[8], d_l * total[12]], [d_w * total[9], d_l * total[13]]],
        _ => gram.changes(d_w, d_l),
    }
}

/// The parameters of a model that are in scope, by name.
fn parameters<B: Kernels>(model: &Decoder<B>, scope: &InScope) -> HashMap<String, FloatTensor<B>> {
    let mut out = HashMap::new();
    model.clone().visit(&|name| scope.contains(name), &mut |name, _, tensor| {
        if scope.contains(name) {
            out.insert(name.to_owned(), tensor.clone());
        }
    });
    out
}
