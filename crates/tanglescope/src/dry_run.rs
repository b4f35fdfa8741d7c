//! What a run would do, said before anything is loaded.
use crate::device::dtype_name;
use crate::options::{ModelOptions, Placement};
use crate::rates;
use tanglescope_gram::{Batch, Cotangent, Count, Group, count, plan, token_passes};
use tanglescope_model::{InScope, Outline};

/// Prints what a pass over some groups takes. `rows_per_batch` is the most forward rows of a batch.
pub fn report(options: &ModelOptions, outline: &Outline, scope: &InScope, groups: &[Group], rows_per_batch: usize) {
    let lengths: Vec<usize> = groups.iter().map(Group::forward_rows).collect();
    let batches = plan::batches(&lengths, rows_per_batch).into_iter().map(|batch| {
        let cotangents: Vec<Vec<Cotangent>> = batch.iter().map(|&g| Cotangent::log_probabilities(&groups[g])).collect();
        let items: Vec<(&Group, &[Cotangent])> =
            batch.iter().zip(&cotangents).map(|(&g, c)| (&groups[g], c.as_slice())).collect();
        Batch::new(&items)
    });
    counted(options, outline, scope, groups, batches, &format!("batches of at most {rows_per_batch} forward rows"));
}

/// Prints what the matrices of tokens of some groups take, in passes of at most `most` backward rows.
pub fn report_tokens(options: &ModelOptions, outline: &Outline, scope: &InScope, groups: &[Group], most: usize) {
    let passes = groups.iter().flat_map(|group| {
        token_passes(group, most).into_iter().map(move |cotangents| Batch::new(&[(group, &cotangents)]))
    });
    counted(options, outline, scope, groups, passes, &format!("passes of at most {most} backward rows"));
}

/// Prints what some batches take.
fn counted(
    options: &ModelOptions,
    outline: &Outline,
    scope: &InScope,
    groups: &[Group],
    batches: impl Iterator<Item = Batch>,
    portions: &str,
) {
    let (dtype, of) = (options.dtype, &outline.description);
    let (rates, measured) = rates::of(&options.device, dtype);
    let (mut total, mut rows, mut widest, mut n) = (Count::default(), [0, 0], [0, 0], 0);
    for batch in batches {
        total = total.plus(&count(outline, scope, &batch, dtype, &rates));
        let of = [batch.tokens.len(), batch.full.rows()];
        (rows, widest) = ([0, 1].map(|i| rows[i] + of[i]), [0, 1].map(|i| widest[i].max(of[i])));
        n += 1;
    }
    let tokens = |f: fn(&Group) -> usize| groups.iter().map(f).sum::<usize>();
    let gib = |bytes: usize| bytes as f64 / 2f64.powi(30);
    let placement = Placement::of(options, outline);
    println!("device          {}, {}", options.device, dtype_name(dtype));
    println!(
        "groups          {} rows, {} prompt and {} response tokens",
        groups.len(),
        tokens(|g| g.prompt.len()),
        tokens(|g| g.responses.iter().map(Vec::len).sum())
    );
    println!("rows            {} forward, {} backward, in {n} {portions}", rows[0], rows[1]);
    println!("parameters      {} tensors in scope `{}`", scope.parameters.len(), options.scope);
    println!("operations      {:.3e}", total.total().operations);
    for (stage, cost) in [
        ("forward", total.forward),
        ("backward", total.backward),
        ("attention", total.attention),
        ("head", total.head),
        ("reductions", total.reductions),
    ] {
        println!("  {stage:<13} {:.3e}", cost.operations);
    }
    println!(
        "weights         {:.2} GiB, {} of {} blocks {}",
        gib(placement.weights),
        placement.resident,
        of.layers(),
        if options.device.is_cpu() { "in memory" } else { "stay on the device" }
    );
    let tanglescope_model::Keep::Top(kept) = plan::keep(of, dtype, widest[0], widest[1], placement.activations) else {
        unreachable!("a run keeps some of its blocks")
    };
    let per_row = plan::least_bytes_per_row(of, dtype);
    let all = plan::bytes_per_row(of, dtype);
    let forward = widest[0] * (per_row + (all - per_row) * kept / of.layers().max(1));
    // the backward rows of two cotangents are counted with the forward rows that they copy
    let activations = forward + widest[1].saturating_sub(2 * widest[0]) * plan::bytes_per_backward_row(of, dtype);
    println!("activations     {:.2} GiB at the most, {kept} of {} blocks keep theirs", gib(activations), of.layers());
    let how = if measured {
        "at the rates that `bench` measured"
    } else {
        "at assumed rates; `tanglescope bench` measures them"
    };
    println!(
        "time            {} at the least, {how} ({:.0} GFLOP/s, {:.0} GB/s)",
        duration(total.seconds(&rates)),
        rates.operations / 1e9,
        rates.bytes / 1e9
    );
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
