//! A device's rates as they are now, each kernel against the roofline that those give, and the pass.
mod shapes;

pub use shapes::ShapeName;

use crate::device::{OnDevice, Precision};
use crate::error::{Error, Result};
use crate::estimate::{Estimate, Planned};
use crate::listener::Listener;
use crate::model::Model;
use crate::options::Measured;
use crate::rates;
use serde::Serialize;
use std::path::PathBuf;
use std::time::Instant;
use tanglescope_gram::{Batch, Detail, Group, Request, Wanted, batches_of, count, grams_in_batches};
use tanglescope_kernels::bench::{Case, Shapes, all, matrix};
use tanglescope_kernels::cost::{self, Cost, Rates};
use tanglescope_kernels::{DType, HeadCotangents, Kernels, Segment, as_index};
use tanglescope_model::architectures::Description;
use tanglescope_model::{Decoder, MOST_LAYERS, Outline};

/// Options of [`bench()`].
#[derive(Clone, Debug)]
pub struct BenchOptions {
    /// Folder of a Hugging Face model whose weights are used.
    pub model: Option<PathBuf>,
    /// A known shape with made-up weights, where there is no model.
    pub shape: ShapeName,
    /// Only so many blocks of the shape, or more than it has.
    pub layers: Option<usize>,
    /// What of the model is measured, and where; the adapter is always a fresh one.
    pub measured: Measured,
    /// Tokens of each prompt.
    pub prompt: usize,
    /// Tokens of each response.
    pub response: usize,
    /// Pairs of a pass.
    pub pairs: usize,
    /// Times that the pass is run after once to warm up.
    pub repeats: usize,
    /// Measure each kernel.
    pub kernels: bool,
    /// Measure the pass.
    pub pass: bool,
}

impl Default for BenchOptions {
    fn default() -> Self {
        Self {
            model: None,
            shape: ShapeName::SmolLm2,
            layers: None,
            measured: Measured { dtype: Precision::F32, ..Measured::default() },
            prompt: 200,
            response: 100,
            pairs: 4,
            repeats: 3,
            kernels: true,
            pass: true,
        }
    }
}

/// A kernel's measurement.
#[derive(Clone, Debug, Serialize)]
pub struct KernelTime {
    /// The kernel, and what it is of.
    pub name: String,
    /// The best of some calls.
    pub seconds: f64,
    /// Floating-point operations.
    pub operations: f64,
    /// Bytes read and written.
    pub bytes: f64,
    /// Seconds that the device's rates allow, over those that it took.
    pub share_of_roofline: f64,
}

/// The measurement of the pass.
#[derive(Clone, Debug, Serialize)]
pub struct PassTime {
    /// The scope as given.
    pub scope: String,
    /// Transformer blocks.
    pub layers: usize,
    /// Pairs of a run.
    pub pairs: usize,
    /// Tokens of each prompt.
    pub prompt_tokens: usize,
    /// Tokens of each response.
    pub response_tokens: usize,
    /// Of every run after the first.
    pub seconds: Vec<f64>,
    /// At the median.
    pub pairs_per_second: f64,
    /// At the median.
    pub tokens_per_second: f64,
    /// Counted operations.
    pub operations_per_pair: f64,
    /// Counted operations a second, over the rate of matrix products.
    pub efficiency: f64,
    /// Peak of the process on the CPU; what the device had in use after the pass elsewhere.
    pub memory_bytes: Option<u64>,
}

/// All measurements.
#[derive(Clone, Debug, Serialize)]
pub struct BenchReport {
    /// Where.
    pub device: String,
    /// Number type.
    pub dtype: &'static str,
    /// Of matrix products.
    pub product_operations_per_second: f64,
    /// Of copies.
    pub copy_bytes_per_second: f64,
    /// Each kernel, where they were asked for.
    pub kernels: Vec<KernelTime>,
    /// The pass, where it was asked for.
    pub pass: Option<PassTime>,
}

/// What is measured, before it is.
struct Subject {
    model: Model,
    outline: Outline,
    groups: Vec<Group>,
}

impl BenchOptions {
    fn subject(&self, listener: &dyn Listener) -> Result<Subject> {
        for (name, value) in
            [("prompt", self.prompt), ("response", self.response), ("pairs", self.pairs), ("repeats", self.repeats)]
        {
            if value == 0 {
                return Err(Error::value(name, 0, "expected a positive number"));
            }
        }
        let model = Model::of(self.model.clone().unwrap_or_default(), None, &self.measured)?.on_one_device()?;
        model.announce(listener);
        let mut description: Description = match &self.model {
            Some(_) => model.outline()?.description,
            None => shapes::description(self.shape)?,
        };
        if let Some(layers) = self.layers {
            if self.model.is_some() || layers == 0 || layers > MOST_LAYERS {
                let problem = format!("cuts or lengthens option `shape`; expected 1 to {MOST_LAYERS}");
                return Err(Error::value("layers", layers, problem));
            }
            description.blocks = (0..layers).map(|layer| description.blocks[layer % description.layers()]).collect();
        }
        let outline = Outline::new(description, &model.adapter)?;
        let groups = shapes::groups(&outline.description, [self.pairs, self.prompt, self.response]);
        Ok(Subject { model, outline, groups })
    }

    /// What one pass would take.
    ///
    /// # Errors
    /// As [`bench()`] before it computes.
    pub fn estimate(&self, listener: &dyn Listener) -> Result<Estimate> {
        let Subject { model, outline, groups } = self.subject(listener)?;
        let planned = Planned::of(&model, outline)?;
        let rows = planned.placement.rows_per_batch(&model, &planned.outline);
        Ok(planned.groups(&groups, rows))
    }
}

/// Measures a device, and keeps its rates for later calls on this machine.
///
/// # Errors
/// Where an option or the model cannot be used, or the device fails.
pub fn bench(options: &BenchOptions, listener: &dyn Listener) -> Result<BenchReport> {
    let Subject { model, outline, groups } = options.subject(listener)?;
    let planned = Planned::of(&model, outline)?;
    model.device.run(BenchOnDevice { options, model: &model, planned, groups, listener })
}

struct BenchOnDevice<'a> {
    options: &'a BenchOptions,
    model: &'a Model,
    planned: Planned<'a>,
    groups: Vec<Group>,
    listener: &'a dyn Listener,
}

/// Seconds of a call: the best of some after one to warm up, until a fifth of a second has gone by.
fn best<B: Kernels>(device: &B::Device, mut call: impl FnMut()) -> f64 {
    call();
    B::wait(device);
    let (start, mut best) = (Instant::now(), f64::INFINITY);
    for done in 0..100 {
        let here = Instant::now();
        call();
        B::wait(device);
        best = best.min(here.elapsed().as_secs_f64());
        if done >= 2 && start.elapsed().as_secs_f64() > 0.2 {
            break;
        }
    }
    best
}

impl OnDevice for BenchOnDevice<'_> {
    type Output = BenchReport;

    fn run<B: Kernels>(self, device: &B::Device) -> Result<BenchReport> {
        let Self { options, model, listener, .. } = &self;
        let dtype = model.dtype;
        let size = match &model.device {
            device if device.is_cpu() => Size::Processor,
            device if device.is_software() => Size::Software,
            _ => Size::Gpu,
        };
        let rates = measure_rates::<B>(dtype, device, size);
        let kept = rates::keep(&model.device, dtype, rates);
        let kernels = if options.kernels { self.kernels::<B>(device, &rates) } else { Vec::new() };
        let pass = if options.pass { Some(self.pass::<B>(device, &rates)?) } else { None };
        match kept {
            Ok(Some(path)) => listener.note(&format!("rates kept in {}", path.display())),
            Ok(None) => {}
            // a rates cache that cannot be written does not fail the call
            Err(problem) => listener.left_out(&format!("rates not kept: {problem}")),
        }
        Ok(BenchReport {
            device: model.device.to_string(),
            dtype: model.number_type(),
            product_operations_per_second: rates.operations,
            copy_bytes_per_second: rates.bytes,
            kernels,
            pass,
        })
    }
}

/// Size of the products and copies that rates are measured with.
#[derive(Clone, Copy)]
enum Size {
    /// A software driver.
    Software,
    Processor,
    Gpu,
}

/// The rates of matrix products and of copies, as they are now.
fn measure_rates<B: Kernels>(dtype: DType, device: &B::Device, size: Size) -> Rates {
    // products of [n, n]; copies of rows of 4096 values, on processors and GPUs more than any cache holds
    let (n, rows) = match size {
        Size::Software => (128, 256),
        Size::Processor => (1024, 16_384),
        Size::Gpu => (4096, 65_536),
    };
    let (a, b) = (matrix::<B>([n, n], dtype, device), matrix::<B>([n, n], dtype, device));
    let seconds = best::<B>(device, || drop(B::matmul(&a, &b, false, 1.0, None)));
    let operations = cost::product(n, n, n, dtype).operations / seconds;
    let width = 4096;
    let x = matrix::<B>([rows, width], dtype, device);
    let index: Vec<u32> = (0..as_index(rows)).collect();
    let seconds = best::<B>(device, || drop(B::gather(&x, &index, None)));
    Rates { operations, bytes: 2.0 * (rows * width * dtype.size()) as f64 / seconds, triangles: B::is_host() }
}

impl BenchOnDevice<'_> {
    /// Every kernel at the shapes of one block.
    fn kernels<B: Kernels>(&self, device: &B::Device, rates: &Rates) -> Vec<KernelTime> {
        let outline = &self.planned.outline;
        let (of, batch) = (&outline.description, Batch::new(&Request::all(&self.groups)));
        let mut maps: Vec<(&str, [usize; 2])> = Vec::new();
        for map in outline.maps.iter().filter(|map| map.layer == Some(0)) {
            if maps.iter().all(|(_, shape)| *shape != map.shape) {
                maps.push((map.path.rsplit('.').next().unwrap_or(&map.path), map.shape));
            }
        }
        let lora = outline.maps.iter().find_map(|map| Some((map.shape, map.rank?)));
        let rows = &batch.full;
        // as in all blocks but the top one
        let segments: Vec<Segment> = batch.segments.iter().map(Segment::filled).collect();
        let shapes = Shapes {
            dtype: self.model.dtype,
            hidden: of.hidden,
            mlp_width: of.mlp_width,
            activation: of.activation,
            norm: of.norm,
            attention: of.attention_of(0),
            rotary_pairs: of.ropes.first().map(|rope| rope.pairs),
            delta: of.delta.as_ref().map(|delta| (delta.spec, delta.taps)),
            experts: of.experts.as_ref().map(|of| (of.number, of.routing.per_row, of.width)),
            vocabulary: of.vocabulary,
            maps,
            lora,
            forward: batch.tokens.len(),
            rows,
            spans: &batch.spans,
            segments: &segments,
            targets: &batch.targets,
            head: HeadCotangents { weights: &batch.weights, sets: &rows.sets },
        };
        let time = |Case { name, cost, mut run }: Case| {
            let seconds = best::<B>(device, &mut run);
            let Cost { operations, bytes } = cost;
            KernelTime { name, seconds, operations, bytes, share_of_roofline: rates.seconds(cost) / seconds }
        };
        all::<B>().iter().flat_map(|cases| cases(&shapes, device).into_iter().map(time)).collect()
    }

    /// The whole pass over all groups, in batches as `analyze` would make them.
    fn pass<B: Kernels>(&self, device: &B::Device, rates: &Rates) -> Result<PassTime> {
        let (asked, dtype) = (self.model, self.model.dtype);
        let placement = self.planned.placement;
        let outline = &self.planned.outline;
        let mut model: Decoder<B> = match &self.options.model {
            Some(_) => asked.load(dtype, device, self.listener)?,
            None => {
                let description = outline.description.clone();
                Decoder::synthetic(description, &asked.adapter, dtype, device, placement.places)?
            }
        };
        model.rates = *rates;
        model.activation_bytes = placement.activations;
        let scope = model.in_scope(&asked.scope)?;
        let requests = Request::all(&self.groups);
        let schedule = batches_of(
            requests.iter().map(|request| request.group),
            placement.rows_per_batch(asked, outline),
            placement.at_once,
        );
        let mut operations = 0.0;
        for members in &schedule.batches {
            let batch = Batch::new(members.iter().map(|&g| &requests[g]));
            operations += count(outline, &self.planned.scope, &batch, dtype, rates).total().operations;
        }
        let run = || {
            let start = Instant::now();
            drop(grams_in_batches(&model, &scope, &requests, &schedule, &Wanted::plain(Detail::Parameters), |_| ()));
            start.elapsed().as_secs_f64()
        };
        run();
        let seconds: Vec<f64> = (0..self.options.repeats).map(|_| run()).collect();
        let mut sorted = seconds.clone();
        sorted.sort_by(f64::total_cmp);
        let median = sorted[sorted.len() / 2];
        let pairs = self.groups.len();
        let tokens: usize =
            self.groups.iter().map(|g| g.prompt.len() + g.responses.iter().map(Vec::len).sum::<usize>()).sum();
        Ok(PassTime {
            scope: asked.scope.to_string(),
            layers: outline.description.layers(),
            pairs,
            prompt_tokens: self.options.prompt,
            response_tokens: self.options.response,
            pairs_per_second: pairs as f64 / median,
            tokens_per_second: tokens as f64 / median,
            operations_per_pair: operations / pairs as f64,
            efficiency: operations / median / rates.operations,
            memory_bytes: B::memory_in_use(device).map(|(_, reserved)| reserved).or_else(peak_of_process),
            seconds,
        })
    }
}

/// The most memory that this process has held, where the system says.
fn peak_of_process() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().trim_end_matches("kB").trim().parse().ok()?;
    Some(kib * 1024)
}
