//! The *gram* reduction on the CPU.
//!
//! Panels of rows of `δ·δᵀ`, each up to its diagonal, are formed in the working type from one factor that is packed once, and multiplied with
//! `x·xᵀ` and summed in f64. Partial results are added in a fixed order, so that two runs give the same bits.
use super::RowGram;
use crate::host::real::{Real, dims, dot_wide, unwritten, values, vectorised, with_real};
use crate::product::cpu::{Target, View, transpose};
use crate::product::packed::{Packed, Part};
use crate::{Flex, Gram, RowSet, cost, tally};
use burn_flex::FlexTensor;
use rayon::prelude::*;
use std::ops::Range;

/// Rows of a panel.
const PANEL: usize = 48;
/// Columns of a panel that are formed at a time: with its rows, what a second-level cache has room for.
const COLUMNS: usize = 512;

/// The columns of a panel of a lower triangle that ends at a row, in stretches.
fn stretches(end: usize) -> impl Iterator<Item = Range<usize>> {
    (0..end).step_by(COLUMNS).map(move |start| start..(start + COLUMNS).min(end))
}

/// `x·xᵀ` over a range of forward rows, lower panels computed and mirrored: `[N, N]`.
fn input_gram<E: Real>(x: &[E], n: usize, range: &Range<usize>) -> Vec<E> {
    let size = range.len();
    let x = View::rows(&x[range.start * n..range.end * n], n);
    let packed = Packed::of(x.transposed(), [n, size]);
    let mut out = unwritten(size * size);
    let target = Target::rows(&mut out, size);
    // the longest panels first, so that no core is left with one at the end
    let starts: Vec<usize> = (0..size).step_by(PANEL).rev().collect();
    starts.into_par_iter().with_max_len(1).for_each(|start| {
        let rows = start..(start + PANEL).min(size);
        for columns in stretches(rows.end) {
            let (height, width) = (rows.len(), columns.len());
            let mut part = vec![E::of(0.0); height * width];
            let (to, left) = (Target::rows(&mut part, width), x.from(start, 0));
            packed.product(
                to,
                height,
                left,
                Part { columns: columns.clone(), diagonal: Some(start), ..packed.whole() },
            );
            for (r, row) in rows.clone().zip(part.chunks_exact(width)) {
                let formed = (r + 1).saturating_sub(columns.start).min(width);
                target.from(r, columns.start).write(0, &row[..formed]);
            }
            // above the diagonal, what is not formed is mirrored
            let mirrored = transpose(&part, width);
            for (c, column) in columns.zip(mirrored.chunks_exact(height)) {
                let below = (c + 1).saturating_sub(start).min(height);
                target.from(c, start + below).write(0, &column[below..]);
            }
        }
    });
    out
}

/// Sums of `(x_r·x_s)(δ_r·δ_s)` for the rows of one panel and all rows up to each of them: `[K, K]`, lower half.
fn panel<E: Real>(
    (delta, packed, m): (&[E], &Packed<E>, usize),
    (xx, range): (&[E], &Range<usize>),
    rows: &RowSet,
    set: &Range<usize>,
    panel: Range<usize>,
) -> Gram {
    let (of_set, k) = (rows.of_set(set), set.len());
    let mut gram = vec![0.0; k * k];
    let first = panel.start - of_set.start;
    let mut dd = vec![E::of(0.0); panel.len() * COLUMNS.min(first + panel.len())];
    for columns in stretches(first + panel.len()) {
        let width = columns.len();
        let left = View::rows(delta, m).from(panel.start, 0);
        let part = Part { columns: columns.clone(), diagonal: Some(first), ..packed.whole() };
        packed.product(Target::rows(&mut dd, width), panel.len(), left, part);
        let columns = of_set.start + columns.start..of_set.start + columns.end;
        let runs: Vec<(usize, Range<usize>)> = set
            .clone()
            .flat_map(|c| rows.runs(c).into_iter().map(move |run| (c - set.start, run)))
            .map(|(c, run)| (c, run.start.max(columns.start)..run.end.min(columns.end)))
            .filter(|(_, run)| !run.is_empty())
            .collect();
        let mut of_row = set.start;
        for (r, dd) in panel.clone().zip(dd.chunks_exact(width)) {
            while rows.of(of_row).end <= r {
                of_row += 1;
            }
            let i = of_row - set.start;
            let xx = &xx[(rows.index[r] as usize - range.start) * range.len()..][..range.len()];
            vectorised!({
                for (j, run) in runs.iter().take_while(|(_, run)| run.start <= r) {
                    let part = run.start..run.end.min(r + 1);
                    let x = rows.index[part.start] as usize - range.start;
                    let d = &dd[part.start - columns.start..part.end - columns.start];
                    let sum = dot_wide(d, &xx[x..x + d.len()]);
                    // within a cotangent each pair of rows stands for both orders
                    gram[i * k + j] += if i == *j { 2.0 * sum } else { sum };
                    if i == *j && part.end == r + 1 {
                        gram[i * k + i] -= d[d.len() - 1].wide() * xx[x + d.len() - 1].wide();
                    }
                }
            });
        }
    }
    gram
}

/// Bytes of `x·xᵀ` of a set up to which sets run side by side: cores do not wait for the last panel of each.
const SIDE_BY_SIDE: usize = 16 << 20;

/// *gram*: `Σ_{r∈i, s∈j} (x_r·x_s)(δ_r·δ_s)` with both row Grams in panels; `x·xᵀ` once for all parameters of an input.
pub fn rows<E: Real>(x: &[E], n: usize, deltas: &[(&[E], usize)], rows: &RowSet) -> Vec<Vec<Gram>> {
    let of_set = |set: &Range<usize>| of_set((x, n), deltas, rows, set);
    let small = |set: &Range<usize>| rows.forward_range(set).len().pow(2) * size_of::<E>() <= SIDE_BY_SIDE;
    let of_sets: Vec<Vec<Gram>> = match rows.sets.iter().all(small) {
        true => rows.sets.par_iter().with_max_len(1).map(of_set).collect(),
        false => rows.sets.iter().map(of_set).collect(),
    };
    (0..deltas.len()).map(|d| of_sets.iter().map(|grams| grams[d].clone()).collect()).collect()
}

/// The same of a set, for each parameter.
fn of_set<E: Real>((x, n): (&[E], usize), deltas: &[(&[E], usize)], rows: &RowSet, set: &Range<usize>) -> Vec<Gram> {
    let range = rows.forward_range(set);
    let xx = input_gram(x, n, &range);
    let of_set = rows.of_set(set);
    let k = set.len();
    let packed = |(delta, m): &(&[E], usize)| {
        let own = View::rows(&delta[of_set.start * m..of_set.end * m], *m);
        Packed::of(own.transposed(), [*m, of_set.len()])
    };
    let packed: Vec<Packed<E>> = deltas.iter().map(packed).collect();
    // the longest panels first, so that no core is left with one at the end
    let tasks: Vec<(usize, Range<usize>)> = of_set
        .clone()
        .step_by(PANEL)
        .rev()
        .flat_map(|start| (0..deltas.len()).map(move |d| (d, start..start + PANEL)))
        .collect();
    let parts: Vec<(usize, Gram)> = tasks
        .into_par_iter()
        .with_max_len(1)
        .map(|(d, range_of)| {
            let (delta, m) = deltas[d];
            let range_of = range_of.start..range_of.end.min(of_set.end);
            (d, panel((delta, &packed[d], m), (&xx, &range), rows, set, range_of))
        })
        .collect();
    let sum = |d: usize| {
        let mut gram = vec![0.0; k * k];
        for (_, part) in parts.iter().filter(|(of, _)| *of == d) {
            gram.iter_mut().zip(part).for_each(|(sum, x)| *sum += x);
        }
        for i in 0..k {
            for j in 0..i {
                gram[j * k + i] = gram[i * k + j];
            }
        }
        gram
    };
    (0..deltas.len()).map(sum).collect()
}

impl RowGram for Flex {
    fn gram_rows(x: &FlexTensor, deltas: &[&FlexTensor], rows: &RowSet) -> Vec<Vec<Gram>> {
        tally::reductions(cost::gram_of_input(dims(x)[1], rows, x.dtype()));
        deltas.iter().for_each(|delta| tally::reductions(cost::gram(dims(delta)[1], rows, x.dtype())));
        with_real!(x, E => {
            let deltas: Vec<(&[E], usize)> = deltas.iter().map(|d| (values(d), dims(d)[1])).collect();
            self::rows(values::<E>(x), dims(x)[1], &deltas, rows)
        })
    }
}
