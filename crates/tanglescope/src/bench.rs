//! `tanglescope bench`: a device's rates as they are now, each kernel against the roofline that those give, and the pass.
use crate::cli::{Bench, Format, ShapeName};
use crate::device::{OnDevice, dtype_name};
use crate::dry_run;
use crate::error::{Error, Result};
use crate::options::{ModelOptions, Placement};
use crate::rates;
use serde::Serialize;
use std::path::Path;
use std::time::Instant;
use tanglescope_gram::{Batch, Cotangent, Group, count, grams_of_batches, plan};
use tanglescope_kernels::cost::{self, Cost, Rates};
use tanglescope_kernels::{DType, FloatTensor, HeadCotangents, Kernels, NormKind, TensorData};
use tanglescope_model::architectures::{self, Description};
use tanglescope_model::{Config, Decoder, InScope, Outline, Reads};

/// Runs the command.
pub fn run(args: &Bench) -> Result<()> {
    for (name, value) in
        [("--prompt", args.prompt), ("--response", args.response), ("--pairs", args.pairs), ("--repeats", args.repeats)]
    {
        if value == 0 {
            return Err(Error::option(format!("{name} 0"), "expected a positive number"));
        }
    }
    let options = ModelOptions::bench(args)?;
    options.announce();
    let mut description = match &args.model {
        Some(_) => options.outline()?.description,
        None => preset(args.shape)?,
    };
    if let Some(layers) = args.layers {
        if args.model.is_some() || layers == 0 {
            return Err(Error::option(
                format!("--layers {layers}"),
                "cuts or lengthens a --shape; expected at least 1",
            ));
        }
        description.blocks = (0..layers).map(|layer| description.blocks[layer % description.layers()]).collect();
    }
    let outline = Outline::new(description, &options.adapter)?;
    let scope = outline.in_scope(&options.scope)?;
    let groups = groups(args, &outline.description);
    if args.dry.dry_run {
        let rows = Placement::of(&options, &outline).rows_per_batch(&options, &outline);
        dry_run::report(&options, &outline, &scope, &groups, rows);
        println!("{} times, after once to warm up, and every kernel by itself", args.repeats);
        return Ok(());
    }
    options.device.run(Work { args, options: &options, outline, scope, groups })
}

/// The dimensions of a known model.
fn preset(shape: ShapeName) -> Result<Description> {
    let (name, text) = match shape {
        ShapeName::Demo => ("demo", include_str!("../demo/config.json").to_owned()),
        ShapeName::SmolLm2 => ("smollm2-135m", llama(49_152, 576, 30, [9, 3], 1536, true)),
        ShapeName::Llama1b => ("llama-3.2-1b", llama(128_256, 2048, 16, [32, 8], 8192, true)),
        ShapeName::Llama8b => ("llama-3-8b", llama(128_256, 4096, 32, [32, 8], 14_336, false)),
    };
    Ok(architectures::describe(&Config::parse(Path::new(name), text.as_bytes())?)?)
}

fn llama(vocabulary: usize, hidden: usize, layers: usize, heads: [usize; 2], mlp: usize, tied: bool) -> String {
    serde_json::json!({
        "model_type": "llama", "vocab_size": vocabulary, "hidden_size": hidden, "num_hidden_layers": layers,
        "num_attention_heads": heads[0], "num_key_value_heads": heads[1], "intermediate_size": mlp,
        "max_position_embeddings": 131_072, "rope_theta": 500_000.0, "rms_norm_eps": 1e-5, "hidden_act": "silu",
        "tie_word_embeddings": tied,
    })
    .to_string()
}

/// Pairs of tokens without a pattern.
fn groups(args: &Bench, of: &Description) -> Vec<Group> {
    let mut state = 1u64;
    let mut tokens = |n: usize| -> Vec<u32> {
        let mut token = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            u32::try_from((state >> 33) % of.vocabulary as u64).unwrap_or(0)
        };
        (0..n).map(|_| token()).collect()
    };
    let response = args.response;
    (0..args.pairs).map(|_| Group::of(of, tokens(args.prompt), vec![tokens(response), tokens(response)])).collect()
}

/// A kernel's measurement.
#[derive(Serialize)]
struct Kernel {
    name: String,
    seconds: f64,
    operations: f64,
    bytes: f64,
    /// Seconds that the device's rates allow, over those that it took.
    share_of_roofline: f64,
}

/// All measurements.
#[derive(Serialize)]
struct Report {
    device: String,
    dtype: &'static str,
    product_operations_per_second: f64,
    copy_bytes_per_second: f64,
    kernels: Vec<Kernel>,
    pass: Option<Pass>,
}

/// The measurement of the pass.
#[derive(Serialize)]
struct Pass {
    scope: String,
    layers: usize,
    pairs: usize,
    prompt_tokens: usize,
    response_tokens: usize,
    /// Of every run after the first.
    seconds: Vec<f64>,
    pairs_per_second: f64,
    tokens_per_second: f64,
    operations_per_pair: f64,
    /// Counted operations a second, over the rate of matrix products.
    efficiency: f64,
    /// Peak of the process on the CPU; what the device had in use after the pass elsewhere.
    memory_bytes: Option<u64>,
}

struct Work<'a> {
    args: &'a Bench,
    options: &'a ModelOptions,
    outline: Outline,
    scope: InScope,
    groups: Vec<Group>,
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

impl OnDevice for Work<'_> {
    type Output = ();

    fn run<B: Kernels>(self, device: &B::Device) -> Result<()> {
        let dtype = self.options.dtype;
        let size = match &self.options.device {
            device if device.is_cpu() => Size::Processor,
            device if device.is_software() => Size::Program,
            _ => Size::Gpu,
        };
        let rates = measure_rates::<B>(dtype, device, size);
        let kept = rates::keep(&self.options.device, dtype, rates);
        let kernels = if self.args.pass_only { Vec::new() } else { self.kernels::<B>(device, &rates) };
        let pass = if self.args.kernels_only { None } else { Some(self.pass::<B>(device, &rates)?) };
        let report = Report {
            device: self.options.device.to_string(),
            dtype: dtype_name(dtype),
            product_operations_per_second: rates.operations,
            copy_bytes_per_second: rates.bytes,
            kernels,
            pass,
        };
        match self.args.format {
            Format::Json => println!("{:#}", serde_json::json!(report)),
            Format::Table => print(&report),
        }
        match kept {
            Ok(Some(path)) => eprintln!("rates kept in {}", path.display()),
            Ok(None) => {}
            // what was measured is printed whether or not the next run can know of it
            Err(problem) => eprintln!("rates not kept: {problem}"),
        }
        Ok(())
    }
}

/// Values of a matrix without a pattern.
fn matrix<B: Kernels>(rows: usize, columns: usize, dtype: DType, device: &B::Device) -> FloatTensor<B> {
    let value = |i: usize| ((i.wrapping_mul(0x9E37_79B9) >> 8) & 0xFFFF) as f32 / 32768.0 - 1.0;
    let values: Vec<f32> = (0..rows * columns).map(value).collect();
    B::upload(TensorData::new(values, [rows, columns]).convert_dtype(dtype), device)
}

/// How much work it takes to see a device's rates.
#[derive(Clone, Copy)]
enum Size {
    /// A program that plays a GPU.
    Program,
    Processor,
    Gpu,
}

/// The rates of matrix products and of copies, as they are now.
fn measure_rates<B: Kernels>(dtype: DType, device: &B::Device, size: Size) -> Rates {
    // products of [n, n]; copies of rows of 4096 values, on processors and GPUs more than any cache holds
    let (n, rows) = match size {
        Size::Program => (128, 256),
        Size::Processor => (1024, 16_384),
        Size::Gpu => (4096, 65_536),
    };
    let (a, b) = (matrix::<B>(n, n, dtype, device), matrix::<B>(n, n, dtype, device));
    let seconds = best::<B>(device, || drop(B::matmul(&a, &b, false, 1.0, None)));
    let operations = cost::product(n, n, n, dtype).operations / seconds;
    let width = 4096;
    let x = matrix::<B>(rows, width, dtype, device);
    let index: Vec<u32> = (0..u32::try_from(rows).unwrap_or(0)).collect();
    let seconds = best::<B>(device, || drop(B::gather(&x, &index, None)));
    Rates { operations, bytes: 2.0 * (rows * width * dtype.size()) as f64 / seconds }
}

impl Work<'_> {
    /// The groups as one batch with the cotangents of their log-probabilities.
    fn batch(&self) -> Batch {
        let cotangents: Vec<Vec<Cotangent>> = self.groups.iter().map(Cotangent::log_probabilities).collect();
        let items: Vec<(&Group, &[Cotangent])> =
            self.groups.iter().zip(&cotangents).map(|(group, c)| (group, c.as_slice())).collect();
        Batch::new(&items)
    }

    /// Every kernel at the shapes of one block.
    fn kernels<B: Kernels>(&self, device: &B::Device, rates: &Rates) -> Vec<Kernel> {
        let (of, dtype, batch) = (&self.outline.description, self.options.dtype, self.batch());
        let (forward, rows) = (batch.tokens.len(), &batch.full);
        let backward = rows.rows();
        let size = dtype.size() as f64;
        let mut out = Vec::new();
        let mut add = |name: &str, cost: Cost, call: &mut dyn FnMut()| {
            let seconds = best::<B>(device, call);
            let share_of_roofline = rates.seconds(cost) / seconds;
            let Cost { operations, bytes } = cost;
            out.push(Kernel { name: name.to_owned(), seconds, operations, bytes, share_of_roofline });
        };
        let new = |rows: usize, columns: usize| matrix::<B>(rows, columns, dtype, device);
        let vector = |n: usize| {
            let shape = [n];
            B::upload(TensorData::ones::<f32, _>(shape).convert_dtype(dtype), device)
        };
        let maps = || self.outline.maps.iter().filter(|map| map.layer == 0);
        let mut seen = Vec::new();
        for map in maps() {
            let [n, m] = map.shape;
            if seen.contains(&[n, m]) {
                continue;
            }
            seen.push([n, m]);
            let (x, w, delta) = (new(forward, n), new(n, m), new(backward, m));
            let label = map.path.rsplit('.').next().unwrap_or(&map.path);
            let cost = cost::product(forward, n, m, dtype);
            add(&format!("product {label}"), cost, &mut || drop(B::matmul(&x, &w, false, 1.0, None)));
            let cost = cost::product(backward, m, n, dtype);
            add(&format!("product {label}, turned"), cost, &mut || drop(B::matmul(&delta, &w, true, 1.0, None)));
            let cost = cost::tile(n, m, rows, dtype);
            add(&format!("tile {label}"), cost, &mut || drop(B::gram_tile(&x, &delta, rows)));
            let cost = cost::gram(m, rows, dtype) + cost::gram_of_input(n, rows, dtype);
            add(&format!("gram {label}"), cost, &mut || drop(B::gram_rows(&x, &[&delta], rows)));
        }
        if let Some(map) = maps().find(|map| map.rank.is_some()) {
            let ([n, m], r) = (map.shape, map.rank.unwrap_or(1));
            let (x, low) = (new(forward, n), new(backward, r));
            add("tile lora_A", cost::tile(n, r, rows, dtype), &mut || drop(B::gram_tile(&x, &low, rows)));
            let (u, delta) = (new(forward, r), new(backward, m));
            add("tile lora_B", cost::tile(r, m, rows, dtype), &mut || drop(B::gram_tile(&u, &delta, rows)));
        }
        let moved = |reads: usize, writes: usize| Cost { operations: 0.0, bytes: (reads + writes) as f64 * size };
        let d = of.hidden;
        let (x, gain, delta) = (new(forward, d), vector(d), new(backward, d));
        let kind = NormKind { centred: of.norm.centred, eps: of.norm.eps };
        add("norm", moved(forward * d, forward * d), &mut || drop(B::norm(&x, &gain, None, kind)));
        let index = rows.index.as_slice();
        add("norm, vjp", moved(2 * backward * d, backward * d), &mut || {
            drop(B::norm_vjp(&x, &gain, kind, &delta, index, None));
        });
        let inner = of.mlp_width;
        let (a, b, delta) = (new(forward, inner), new(forward, inner), new(backward, inner));
        add("gated unit", moved(2 * forward * inner, forward * inner), &mut || {
            drop(B::activate(of.activation, &a, Some(&b)));
        });
        add("gated unit, vjp", moved(3 * backward * inner, 2 * backward * inner), &mut || {
            drop(B::activate_vjp(of.activation, &a, Some(&b), &delta, index));
        });
        let (width, kv) = (of.heads.heads * of.heads.head_dim, of.heads.kv_heads * of.heads.head_dim);
        let (q, k, v, delta) = (new(forward, width), new(forward, kv), new(forward, kv), new(backward, width));
        if let Some(rope) = of.ropes.first() {
            let half = rope.pairs;
            let (cos, sin) = (new(forward, half), new(forward, half));
            add("rotary", moved(forward * width, forward * width), &mut || {
                drop(B::rotary(q.clone(), &cos, &sin, None, of.heads.head_dim, false));
            });
        }
        let pairs = |n: usize, before: usize| n as f64 * before as f64 + n as f64 * (n as f64 + 1.0) / 2.0;
        let of_spans: f64 = batch.spans.iter().map(|span| pairs(span.own.len(), span.prefix.len())).sum();
        let of_segments: f64 = batch.segments.iter().map(|segment| pairs(segment.len(), 0)).sum();
        let traffic = moved(forward * (width + 2 * kv), forward * width);
        let cost = Cost { operations: 4.0 * of_spans * width as f64, ..traffic };
        add("attention", cost, &mut || drop(<B as Kernels>::attention(&q, &k, &v, &batch.spans, of.heads)));
        let (mixed, normaliser) = <B as Kernels>::attention(&q, &k, &v, &batch.spans, of.heads);
        let traffic = moved(backward * (2 * width + 2 * kv), backward * (width + 2 * kv));
        let cost = Cost { operations: 10.0 * of_segments * width as f64, ..traffic };
        add("attention, vjp", cost, &mut || {
            drop(B::attention_vjp([&q, &k, &v], (&mixed, &normaliser), &delta, &batch.segments, of.heads));
        });
        let predictions = batch.targets.len();
        let (y, w) = (new(predictions, d), new(of.vocabulary, d));
        let logits = cost::product(predictions, d, of.vocabulary, dtype) * 2.0;
        add("head", logits, &mut || drop(B::head(&y, &w, &batch.targets, None, None)));
        let cotangents =
            HeadCotangents { weights: &batch.weights, blocks: &rows.blocks, block_rows: &batch.predictions };
        let products = batch.predictions.iter().map(|r| cost::product(r.len(), of.vocabulary, r.len(), dtype));
        add("head, with its Gram", products.fold(logits, |sum, cost| sum + cost), &mut || {
            drop(B::head(&y, &w, &batch.targets, None, Some(&cotangents)));
        });
        debug_assert!(maps().any(|map| map.reads == Reads::Mixed));
        out
    }

    /// The whole pass over all groups, in batches as `analyze` would make them.
    fn pass<B: Kernels>(&self, device: &B::Device, rates: &Rates) -> Result<Pass> {
        let (options, dtype) = (self.options, self.options.dtype);
        let placement = Placement::of(options, &self.outline);
        let mut model: Decoder<B> = match &self.args.model {
            Some(_) => options.load(dtype, device)?,
            None => {
                let description = self.outline.description.clone();
                Decoder::synthetic(description, &options.adapter, dtype, device, placement.resident)?
            }
        };
        model.rates = *rates;
        model.activation_bytes = placement.activations;
        let scope = model.in_scope(&options.scope)?;
        let cotangents: Vec<Vec<Cotangent>> = self.groups.iter().map(Cotangent::log_probabilities).collect();
        let lengths: Vec<usize> = self.groups.iter().map(Group::forward_rows).collect();
        let batches = plan::batches(&lengths, placement.rows_per_batch(options, &self.outline));
        let mut operations = 0.0;
        let all: Vec<(&Group, &[Cotangent])> =
            self.groups.iter().zip(&cotangents).map(|(group, cotangents)| (group, cotangents.as_slice())).collect();
        for batch in &batches {
            let batch = Batch::new(&batch.iter().map(|&g| all[g]).collect::<Vec<_>>());
            operations += count(&self.outline, &self.scope, &batch, dtype, rates).total().operations;
        }
        let run = || {
            let start = Instant::now();
            let results = grams_of_batches(&model, &scope, &all, (&batches, placement.at_once), |_| ());
            debug_assert_eq!(results.len(), self.groups.len());
            start.elapsed().as_secs_f64()
        };
        run();
        let seconds: Vec<f64> = (0..self.args.repeats).map(|_| run()).collect();
        let mut sorted = seconds.clone();
        sorted.sort_by(f64::total_cmp);
        let median = sorted[sorted.len() / 2];
        let pairs = self.groups.len();
        let tokens: usize =
            self.groups.iter().map(|g| g.prompt.len() + g.responses.iter().map(Vec::len).sum::<usize>()).sum();
        Ok(Pass {
            scope: options.scope.to_string(),
            layers: self.outline.description.layers(),
            pairs,
            prompt_tokens: self.args.prompt,
            response_tokens: self.args.response,
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

fn print(report: &Report) {
    println!("{}, {}", report.device, report.dtype);
    println!(
        "products {:.1} GFLOP/s, copies {:.1} GB/s\n",
        report.product_operations_per_second / 1e9,
        report.copy_bytes_per_second / 1e9
    );
    if !report.kernels.is_empty() {
        println!("{:<30} {:>10} {:>10} {:>8} {:>9}", "kernel", "ms", "GFLOP/s", "GB/s", "roofline");
    }
    for kernel in &report.kernels {
        let rate = |amount: f64| amount / kernel.seconds / 1e9;
        println!(
            "{:<30} {:>10.3} {:>10.1} {:>8.1} {:>8.0}%",
            kernel.name,
            kernel.seconds * 1e3,
            rate(kernel.operations),
            rate(kernel.bytes),
            100.0 * kernel.share_of_roofline
        );
    }
    let Some(pass) = &report.pass else { return };
    let Pass { scope, layers, pairs, prompt_tokens, response_tokens, .. } = pass;
    println!(
        "\npass: {pairs} pairs of {prompt_tokens} + {response_tokens} + {response_tokens} tokens, {layers} blocks, scope {scope}"
    );
    println!(
        "{:.2} pairs/s, {:.0} tokens/s, {:.1} GFLOP a pair, {:.0}% of the rate of products",
        pass.pairs_per_second,
        pass.tokens_per_second,
        pass.operations_per_pair / 1e9,
        100.0 * pass.efficiency
    );
    if let Some(bytes) = pass.memory_bytes {
        println!("memory {:.2} GiB", bytes as f64 / 2f64.powi(30));
    }
}
