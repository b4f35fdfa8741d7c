//! What commands print on standard output, for people.
use serde_json::json;
use std::path::Path;
use tanglescope::{
    BenchReport, Devices, Estimate, PassTime, SweepEstimate, TokensEstimate, TrainEstimate, Verification,
};
use tanglescope_objectives::{Definition, all};

fn gib(bytes: usize) -> f64 {
    bytes as f64 / 2f64.powi(30)
}

/// Where a dry run would have written.
pub fn nothing_written(out: &Path) {
    println!("nothing was computed, and nothing written to {}", out.display());
}

/// What a pass would take; `rows` says of what kind the most rows of it are.
fn estimate(of: &Estimate, passes: &str, rows: &str) {
    println!("device          {}, {}", of.device, of.dtype);
    println!(
        "groups          {} rows, {} prompt and {} response tokens",
        of.groups, of.prompt_tokens, of.response_tokens
    );
    let most = format!("{passes} of at most {} {rows} rows", of.rows_per_pass);
    println!("rows            {} forward, {} backward, in {} {most}", of.forward_rows, of.backward_rows, of.passes);
    println!("parameters      {} tensors in scope `{}`", of.parameters, of.scope);
    println!("operations      {:.3e}", of.count.total().operations);
    for (stage, cost) in [
        ("forward", of.count.forward),
        ("backward", of.count.backward),
        ("attention", of.count.attention),
        ("head", of.count.head),
        ("reductions", of.count.reductions),
    ] {
        println!("  {stage:<13} {:.3e}", cost.operations);
    }
    println!(
        "weights         {:.2} GiB, {} of {} blocks {}",
        gib(of.placement.weights),
        of.placement.resident,
        of.layers,
        if of.device.starts_with("cpu") { "in memory" } else { "stay on the device" }
    );
    println!(
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
    println!(
        "time            {} at the least, {how} ({:.0} GFLOP/s, {:.0} GB/s)",
        duration(of.seconds),
        of.rates.operations / 1e9,
        of.rates.bytes / 1e9
    );
}

/// What passes over groups would take.
pub fn batches(of: &Estimate) {
    estimate(of, "batches", "forward");
}

/// What token-level matrices would take.
pub fn tokens(of: &TokensEstimate) {
    println!("entries         {} inner products", of.entries);
    println!("                {} of {} pairs are put together from several passes", of.in_parts, of.passes.groups);
    estimate(&of.passes, "passes", "backward");
}

/// What a sweep would take.
pub fn sweep(of: &SweepEstimate) {
    let count = |of: usize, what: &str| format!("{of} {what}{}", if of == 1 { "" } else { "s" });
    for (run, steps) in &of.runs {
        let steps: Vec<String> = steps.iter().map(ToString::to_string).collect();
        println!("run             {run}: steps {}", steps.join(", "));
    }
    for (name, pairs) in &of.data {
        println!("data set        {name}: {}", count(*pairs, "pair"));
    }
    let jobs = count(of.jobs, "checkpoint and data set");
    println!("work            {jobs} together, {} of them left", of.left);
    if let Some(passes) = &of.passes {
        println!("\nall of it, as if each checkpoint were like the first:");
        batches(passes);
    }
}

/// What a training run would take.
pub fn train(of: &TrainEstimate) {
    println!("one epoch:");
    batches(&of.epoch);
    println!("steps           {} of {} pairs: {:.2} epochs", of.steps, of.pairs_per_step, of.epochs);
    println!(
        "training holds  at most {:.2} GiB more: a gradient and two moments of what is trained",
        gib(of.held_bytes)
    );
    if of.reference {
        println!("and a forward pass of the reference over every pair, once");
    }
    println!("held out        {} pairs", of.held_out);
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
pub fn verification(of: &Verification, json: bool) {
    let (made, failed) = (of.checks.len(), of.failed());
    if json {
        println!("{:#}", json!({"made": made, "failed": failed, "checks": of.checks}));
    } else {
        println!("{} of {made} checks passed", made - failed);
    }
}

/// The devices of this machine.
pub fn devices(of: &Devices, json: bool) {
    if json {
        println!("{:#}", json!(of));
        return;
    }
    for device in &of.devices {
        let memory = device.memory_bytes.map(|bytes| format!("{:.1} GiB, ", gib(bytes))).unwrap_or_default();
        println!("{}: {memory}{}; {}", device.shown, device.dtypes.join(" "), device.features.join("; "));
    }
    of.missing.iter().for_each(|problem| println!("{problem}"));
    println!("used without --device: {}", of.default);
}

/// The catalogue of objectives.
pub fn objectives(json: bool) {
    if json {
        let of = |of: &Definition| {
            let keys = of.hyper.iter().map(|(key, default)| (*key, *default));
            let keys = keys.collect::<std::collections::BTreeMap<_, _>>();
            json!({"name": of.name, "keys": keys, "reference": of.reference, "formula": of.formula, "source": of.source})
        };
        println!("{:#}", json!(all().iter().map(of).collect::<Vec<_>>()));
        return;
    }
    println!(
        "s is the sigmoid, ls its logarithm; pw, pl are log-probabilities of the chosen and the rejected response, rw,"
    );
    println!(
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
        println!(
            "\n{}{colon}{keys}{reference}\n    {}\n    {}",
            definition.name, definition.formula, definition.source
        );
    }
}

/// What `bench` measured.
pub fn bench(report: &BenchReport) {
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
    let PassTime { scope, layers, pairs, prompt_tokens, response_tokens, .. } = pass;
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
