//! What commands print on standard output, for people, and what of it goes to programs.
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use tanglescope::{
    BenchReport, Devices, Estimate, Inspection, InterferenceEstimate, Lengths, PassTime, RowToken, SweepEstimate,
    TokensEstimate, TrainEstimate, Verification,
};
use tanglescope_objectives::{Definition, all};

/// Adds a line to a text.
macro_rules! line {
    ($out:expr, $($part:tt)*) => {
        $out.push_str(&format!("{}\n", format_args!($($part)*)))
    };
}
pub(crate) use line;

fn gib(bytes: usize) -> f64 {
    bytes as f64 / 2f64.powi(30)
}

/// Where a dry run would have written.
pub fn nothing_written(out: &mut String, folder: &Path) {
    line!(out, "nothing was computed, and nothing written to {}", folder.display());
}

/// What a pass would take; `rows` says of what kind the most rows of it are.
fn estimate(out: &mut String, of: &Estimate, passes: &str, rows: &str) {
    line!(out, "device          {}, {}", of.device, of.dtype);
    line!(
        out,
        "groups          {} rows, {} prompt and {} response tokens",
        of.groups,
        of.prompt_tokens,
        of.response_tokens
    );
    let most = format!("{passes} of at most {} {rows} rows", of.rows_per_pass);
    line!(out, "rows            {} forward, {} backward, in {} {most}", of.forward_rows, of.backward_rows, of.passes);
    line!(out, "parameters      {} tensors in scope `{}`", of.parameters, of.scope);
    line!(out, "operations      {:.3e}", of.count.total().operations);
    for (stage, cost) in [
        ("forward", of.count.forward),
        ("backward", of.count.backward),
        ("attention", of.count.attention),
        ("head", of.count.head),
        ("reductions", of.count.reductions),
    ] {
        line!(out, "  {stage:<13} {:.3e}", cost.operations);
    }
    let placement = &of.placement;
    let blocks = [
        (placement.places.device, if of.device.starts_with("cpu") { "in memory" } else { "on the device" }),
        (placement.places.host, "in the host's memory"),
        (placement.in_files(of.layers), "read from the files when they are used"),
    ];
    let blocks = blocks.iter().filter(|(number, _)| *number > 0);
    let blocks: Vec<String> =
        blocks.map(|(number, place)| format!("{number} of {} blocks {place}", of.layers)).collect();
    let held = match placement.held < placement.weights {
        true => format!(" ({:.2} GiB at a time)", gib(placement.held)),
        false => String::new(),
    };
    line!(out, "weights         {:.2} GiB{held}, {}", gib(placement.weights), blocks.join(", "));
    line!(
        out,
        "activations     {:.2} GiB at the most, {} of {} blocks keep theirs",
        gib(of.activation_bytes),
        of.kept_layers,
        of.layers
    );
    let how = if of.measured {
        "at the rates that `bench` measured"
    } else {
        "at assumed rates; `tanglescope bench` measures them"
    };
    line!(
        out,
        "time            {} at the least, {how} ({:.0} GFLOP/s, {:.0} GB/s)",
        duration(of.seconds),
        of.rates.operations / 1e9,
        of.rates.bytes / 1e9
    );
}

/// What a pass would take, for programs.
#[must_use]
pub fn estimate_json(of: &Estimate) -> Value {
    let stages = [
        ("forward", of.count.forward),
        ("backward", of.count.backward),
        ("attention", of.count.attention),
        ("head", of.count.head),
        ("reductions", of.count.reductions),
    ];
    let operations: BTreeMap<&str, f64> = stages.into_iter().map(|(stage, cost)| (stage, cost.operations)).collect();
    json!({
        "device": of.device, "dtype": of.dtype, "groups": of.groups, "prompt_tokens": of.prompt_tokens,
        "response_tokens": of.response_tokens, "forward_rows": of.forward_rows, "backward_rows": of.backward_rows,
        "passes": of.passes, "rows_per_pass": of.rows_per_pass, "parameters": of.parameters, "scope": of.scope,
        "operations": of.count.total().operations, "operations_by_stage": operations, "weight_bytes": of.placement.weights,
        "resident_blocks": of.placement.places.device, "host_blocks": of.placement.places.host,
        "file_blocks": of.placement.in_files(of.layers), "held_weight_bytes": of.placement.held,
        "blocks": of.layers, "kept_blocks": of.kept_layers,
        "activation_bytes": of.activation_bytes, "operations_per_second": of.rates.operations,
        "bytes_per_second": of.rates.bytes, "rates_measured": of.measured, "seconds": of.seconds,
    })
}

/// What token-level matrices would take, for programs.
#[must_use]
pub fn tokens_json(of: &TokensEstimate) -> Value {
    json!({"entries": of.entries, "in_parts": of.in_parts, "passes": estimate_json(&of.passes)})
}

/// What the products between pairs would take, for programs.
#[must_use]
pub fn interference_json(of: &InterferenceEstimate) -> Value {
    json!({
        "entries": of.entries, "gradients": of.gradients, "bytes": of.bytes, "room": of.room, "products": of.products,
        "operations": of.operations, "passes": estimate_json(&of.passes),
    })
}

/// What a sweep would take, for programs.
pub fn sweep_json(of: &SweepEstimate) -> Value {
    let runs: BTreeMap<&String, &Vec<usize>> = of.runs.iter().map(|(run, steps)| (run, steps)).collect();
    let data: BTreeMap<&String, usize> = of.data.iter().map(|(name, pairs)| (name, *pairs)).collect();
    json!({"runs": runs, "data": data, "jobs": of.jobs, "left": of.left, "passes": of.passes.as_ref().map(estimate_json)})
}

/// What a training run would take, for programs.
#[must_use]
pub fn train_json(of: &TrainEstimate) -> Value {
    json!({
        "epoch": estimate_json(&of.epoch), "steps": of.steps, "pairs_per_step": of.pairs_per_step, "epochs": of.epochs,
        "held_bytes": of.held_bytes, "reference": of.reference, "held_out": of.held_out,
    })
}

/// What passes over groups would take.
pub fn batches(out: &mut String, of: &Estimate) {
    estimate(out, of, "batches", "forward");
}

/// What token-level matrices would take.
pub fn tokens(out: &mut String, of: &TokensEstimate) {
    line!(out, "entries         {} inner products", of.entries);
    line!(out, "                {} of {} pairs are put together from several passes", of.in_parts, of.passes.groups);
    estimate(out, &of.passes, "passes", "backward");
}

/// What the products between pairs would take.
pub fn interference(out: &mut String, of: &InterferenceEstimate) {
    let gib = |bytes: usize| bytes as f64 / f64::from(1 << 30);
    line!(out, "gradients       {} of {} entries", of.gradients, of.entries);
    line!(out, "                {:.2} GiB, of which {:.2} fit into memory", gib(of.bytes), gib(of.room));
    line!(out, "products        {}: {:.3e} operations", of.products, of.operations);
    estimate(out, &of.passes, "batches", "forward");
}

/// The tokens of rows, for reading.
pub struct Rows<'a>(pub &'a tanglescope::Rows);

impl fmt::Display for Rows<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for row in &self.0.shown {
            let id = row.id.as_ref().map_or(String::new(), |id| format!(", id {id}"));
            writeln!(f, "row {}{id}", row.row)?;
            branch(f, "prompt", &row.prompt, row.prompt_cut)?;
            for (k, (tokens, cut)) in row.responses.iter().zip(&row.responses_cut).enumerate() {
                let name = match (row.responses.len(), k) {
                    (2, 0) => "chosen".to_owned(),
                    (2, _) => "rejected".to_owned(),
                    (_, k) => format!("response {k}"),
                };
                branch(f, &name, tokens, *cut)?;
            }
            writeln!(f)?;
        }
        let lengths = |of: &Lengths| format!("{} to {} tokens, median {}", of.least, of.most, of.median);
        let Self(found) = self;
        writeln!(f, "rows            {}", found.rows)?;
        writeln!(f, "prompts         {}", lengths(&found.prompt))?;
        writeln!(f, "responses       {}", lengths(&found.response))?;
        writeln!(f, "cut             {}", found.cut)?;
        writeln!(f, "left out        {}", found.skipped.len())?;
        writeln!(f, "tokenize        {}", found.tokenize.as_deref().unwrap_or("no row is text"))
    }
}

/// A prompt or a response: its length, and its tokens between bars.
fn branch(f: &mut fmt::Formatter<'_>, name: &str, tokens: &[RowToken], cut: usize) -> fmt::Result {
    let cut = if cut > 0 { format!(", {cut} more were cut") } else { String::new() };
    let shown = |token: &RowToken| {
        let text = token.text.as_ref().map_or(token.id.to_string(), |text| text.escape_debug().to_string());
        text.replace("\\'", "'").replace("\\\"", "\"")
    };
    let text = tokens.iter().map(shown).collect::<Vec<_>>().join("│");
    writeln!(f, "  {name} ({} tokens{cut})\n    {text}", tokens.len())
}

/// What a sweep would take.
pub fn sweep(out: &mut String, of: &SweepEstimate) {
    let count = |of: usize, what: &str| format!("{of} {what}{}", if of == 1 { "" } else { "s" });
    for (run, steps) in &of.runs {
        let steps: Vec<String> = steps.iter().map(ToString::to_string).collect();
        line!(out, "run             {run}: steps {}", steps.join(", "));
    }
    for (name, pairs) in &of.data {
        line!(out, "data set        {name}: {}", count(*pairs, "pair"));
    }
    let jobs = count(of.jobs, "checkpoint and data set");
    line!(out, "work            {jobs} together, {} of them left", of.left);
    if let Some(passes) = &of.passes {
        line!(out, "\nall of it, as if each checkpoint were like the first:");
        batches(out, passes);
    }
}

/// What a training run would take.
pub fn train(out: &mut String, of: &TrainEstimate) {
    line!(out, "one epoch:");
    batches(out, &of.epoch);
    line!(out, "steps           {} of {} pairs: {:.2} epochs", of.steps, of.pairs_per_step, of.epochs);
    line!(
        out,
        "training holds  at most {:.2} GiB more: a gradient and two moments of what is trained",
        gib(of.held_bytes)
    );
    if of.reference {
        line!(out, "and a forward pass of the reference over every pair, once");
    }
    line!(out, "held out        {} pairs", of.held_out);
}

/// A time for reading.
fn duration(seconds: f64) -> String {
    match seconds {
        s if s < 1.0 => format!("{:.0} ms", s * 1e3),
        s if s < 120.0 => format!("{s:.1} s"),
        s if s < 7200.0 => format!("{:.1} min", s / 60.0),
        s => format!("{:.1} h", s / 3600.0),
    }
}

/// How many checks passed, and for programs each of them; those for people were printed as they were made.
pub fn verification(out: &mut String, of: &Verification, json: bool) {
    let (made, failed) = (of.checks.len(), of.failed());
    if json {
        line!(out, "{:#}", json!({"made": made, "failed": failed, "checks": of.checks}));
    } else {
        line!(out, "{} of {made} checks passed", made - failed);
    }
}

/// The devices of this machine.
pub fn devices(out: &mut String, of: &Devices, json: bool) {
    if json {
        line!(out, "{:#}", json!(of));
        return;
    }
    for device in &of.devices {
        let memory = device.memory_bytes.map(|bytes| format!("{:.1} GiB, ", gib(bytes))).unwrap_or_default();
        line!(out, "{}: {memory}{}; {}", device.shown, device.dtypes.join(" "), device.features.join("; "));
    }
    for problem in &of.missing {
        line!(out, "{problem}");
    }
    line!(out, "used without --device: {}", of.default);
}

/// What a path is.
pub fn inspection(out: &mut String, of: &Inspection, json: bool) {
    if json {
        line!(out, "{:#}", json!(of));
        return;
    }
    line!(out, "{}: {}", of.path.display(), of.what);
    if let Some(model) = &of.model {
        let experts = model.experts.map_or_else(String::new, |experts| format!(", {experts} experts"));
        line!(
            out,
            "model       {}: {} blocks of width {}{experts}, {} tokens, {} positions",
            model.model_type,
            model.layers,
            model.hidden,
            model.vocabulary,
            model.max_positions
        );
        let stored = model.stored.iter().map(|(kind, tensors)| format!("{tensors} tensors of {kind}"));
        line!(out, "weights     {} values: {}", model.parameters, stored.collect::<Vec<_>>().join(", "));
        let tokenizer = if model.tokenizer { "there" } else { "none" };
        let template = if model.chat_template { ", with a chat template" } else { "" };
        line!(out, "tokenizer   {tokenizer}{template}");
    }
    if let Some(adapter) = &of.adapter {
        let base = adapter.base.as_deref().unwrap_or("none named");
        let here = if adapter.base_is_here { "" } else { ", which is no folder of a model here: give it with --model" };
        line!(out, "base        {base}{here}");
        let maps = adapter.maps.map_or_else(String::new, |maps| format!(", which change {maps} linear maps"));
        line!(out, "factors     {} tensors{maps}", adapter.tensors);
        if !adapter.kinds.is_empty() {
            line!(out, "beside      {}", adapter.kinds.join(", "));
        }
    }
    if let Some(run) = &of.run {
        let steps = run.steps.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        line!(out, "run         of {}", run.trainer);
        line!(out, "steps       {steps}: {} adapters, {} whole models", run.adapters, run.steps.len() - run.adapters);
    }
    for problem in &of.refused {
        line!(out, "refused     {problem}");
    }
    if !of.costs.is_empty() {
        line!(out, "a pair of 512 tokens takes at the least:");
    }
    let width = of.costs.iter().map(|cost| cost.device.chars().count()).max().unwrap_or(0);
    for cost in &of.costs {
        let rates = if cost.measured { "measured" } else { "typical; `bench` measures them" };
        line!(
            out,
            "  {:<width$} {:<4} scope {:<5} {:>8.2} GiB of weights, {:>6.2} GiB of activations, {:>9.3} s (rates: {rates})",
            cost.device,
            cost.dtype,
            cost.scope,
            cost.weights_gib,
            cost.activations_gib,
            cost.seconds
        );
    }
}

/// The catalogue of objectives.
pub fn objectives(out: &mut String, json: bool) {
    if json {
        let of = |of: &Definition| {
            let keys = of.hyper.iter().map(|(key, default)| (*key, *default));
            let keys = keys.collect::<std::collections::BTreeMap<_, _>>();
            json!({"name": of.name, "keys": keys, "reference": of.reference, "formula": of.formula, "source": of.source})
        };
        line!(out, "{:#}", json!(all().iter().map(of).collect::<Vec<_>>()));
        return;
    }
    line!(
        out,
        "s is the sigmoid, ls its logarithm; pw, pl are log-probabilities of the chosen and the rejected response, rw,"
    );
    line!(
        out,
        "rl those of the reference, nw, nl lengths in tokens; hw = pw - rw, hl = pl - rl, D = hw - hl, aw = pw/nw, al = pl/nl"
    );
    for definition in all() {
        let keys = definition.hyper.iter().map(|(key, default)| match default {
            Some(default) => format!("{key}={default}"),
            None => format!("{key}=…"),
        });
        let keys = keys.collect::<Vec<_>>().join(",");
        let colon = if keys.is_empty() { "" } else { ":" };
        let reference = if definition.reference { "" } else { " (no reference)" };
        line!(
            out,
            "\n{}{colon}{keys}{reference}\n    {}\n    {}",
            definition.name,
            definition.formula,
            definition.source
        );
    }
}

/// What `bench` measured.
pub fn bench(out: &mut String, report: &BenchReport) {
    line!(out, "{}, {}", report.device, report.dtype);
    line!(
        out,
        "products {:.1} GFLOP/s, copies {:.1} GB/s\n",
        report.product_operations_per_second / 1e9,
        report.copy_bytes_per_second / 1e9
    );
    if !report.kernels.is_empty() {
        line!(out, "{:<30} {:>10} {:>10} {:>8} {:>9}", "kernel", "ms", "GFLOP/s", "GB/s", "roofline");
    }
    for kernel in &report.kernels {
        let rate = |amount: f64| amount / kernel.seconds / 1e9;
        line!(
            out,
            "{:<30} {:>10.3} {:>10.1} {:>8.1} {:>8.0}%",
            kernel.name,
            kernel.seconds * 1e3,
            rate(kernel.operations),
            rate(kernel.bytes),
            100.0 * kernel.share_of_roofline
        );
    }
    let Some(pass) = &report.pass else { return };
    let PassTime { scope, layers, pairs, prompt_tokens, response_tokens, .. } = pass;
    line!(
        out,
        "\npass: {pairs} pairs of {prompt_tokens} + {response_tokens} + {response_tokens} tokens, {layers} blocks, scope {scope}"
    );
    line!(
        out,
        "{:.2} pairs/s, {:.0} tokens/s, {:.1} GFLOP a pair, {:.0}% of the rate of products",
        pass.pairs_per_second,
        pass.tokens_per_second,
        pass.operations_per_pair / 1e9,
        100.0 * pass.efficiency
    );
    if let Some(bytes) = pass.memory_bytes {
        line!(out, "memory {:.2} GiB", bytes as f64 / 2f64.powi(30));
    }
}
