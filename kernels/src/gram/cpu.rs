//! The *gram* reduction on the CPU.
//!
//! Panels of rows of `δ·δᵀ`, each up to its diagonal, are formed in the working type, and multiplied with `x·xᵀ` and summed
//! in f64. Partial results are added in a fixed order, so that two runs give the same bits.
use super::RowGram;
use crate::host::real::{Real, dims, dot_wide, unwritten, values, vectorised, with_real};
use crate::product::cpu::{Target, View, product, transpose};
use crate::{Flex, Gram, RowSet, cost, tally};
use burn_flex::FlexTensor;
use rayon::prelude::*;
use std::ops::Range;

/// Rows of a panel. A product packs its wide side once for each panel.
const PANEL: usize = 192;
/// Rows that the square on a panel's diagonal is cut into, of whose upper half little is then formed.
const STEP: usize = 64;
/// Columns of a panel that are formed at a time: with its rows, what a second-level cache has room for.
const COLUMNS: usize = 512;

/// The parts of a panel of a lower triangle, rows and columns: everything left of its square at once, in stretches, and
/// the square step by step.
fn parts(panel: &Range<usize>, first: usize) -> Vec<(Range<usize>, Range<usize>)> {
    let stretch = |rows: Range<usize>, columns: Range<usize>| {
        let end = columns.end;
        columns.step_by(COLUMNS).map(move |start| (rows.clone(), start..(start + COLUMNS).min(end)))
    };
    let steps = panel.clone().step_by(STEP).map(|start| start..(start + STEP).min(panel.end));
    let square = steps.flat_map(|rows| stretch(rows.clone(), panel.start..rows.end));
    stretch(panel.clone(), first..panel.start).chain(square).collect()
}

/// `x·xᵀ` over a range of forward rows, lower panels computed and mirrored: `[N, N]`.
fn input_gram<E: Real>(x: &[E], n: usize, range: &Range<usize>) -> Vec<E> {
    let size = range.len();
    let transposed = transpose(&x[range.start * n..range.end * n], n);
    let mut out = unwritten(size * size);
    let target = Target::rows(&mut out, size);
    // the longest panels first, so that no core is left with one at the end
    let starts: Vec<usize> = (0..size).step_by(PANEL).rev().collect();
    starts.into_par_iter().with_max_len(1).for_each(|start| {
        for (rows, columns) in parts(&(start..(start + PANEL).min(size)), 0) {
            let left = View::rows(x, n).from(range.start + rows.start, 0);
            let right = View::rows(&transposed, size).from(0, columns.start);
            let (height, width) = (rows.len(), columns.len());
            let mut part = unwritten(height * width);
            product(Target::rows(&mut part, width), [height, n, width], left, right, 1.0, false);
            for (r, row) in part.chunks_exact(width).enumerate() {
                target.from(rows.start + r, columns.start).write(0, row);
            }
            // above the diagonal, what is not formed is mirrored
            let below = columns.start..columns.end.min(rows.start);
            let mirrored = transpose(&part, width);
            for (c, column) in below.zip(mirrored.chunks_exact(height)) {
                target.from(c, rows.start).write(0, column);
            }
        }
    });
    out
}

/// Sums of `(x_r·x_s)(δ_r·δ_s)` for the rows of one panel and all rows up to each of them: `[K, K]`, lower half.
fn panel<E: Real>(
    (delta, transposed, m): (&[E], &[E], usize),
    (xx, range): (&[E], &Range<usize>),
    rows: &RowSet,
    set: &Range<usize>,
    panel: Range<usize>,
) -> Gram {
    let (of_set, k) = (rows.of_set(set), set.len());
    let mut gram = vec![0.0; k * k];
    let mut dd = unwritten(panel.len() * COLUMNS.min(panel.end - of_set.start));
    for (rows_of, columns) in parts(&panel, of_set.start) {
        let width = columns.len();
        let left = View::rows(delta, m).from(rows_of.start, 0);
        let right = View::rows(transposed, of_set.len()).from(0, columns.start - of_set.start);
        product(Target::rows(&mut dd, width), [rows_of.len(), m, width], left, right, 1.0, false);
        let runs: Vec<(usize, Range<usize>)> = set
            .clone()
            .flat_map(|c| rows.runs(c).into_iter().map(move |run| (c - set.start, run)))
            .map(|(c, run)| (c, run.start.max(columns.start)..run.end.min(columns.end)))
            .filter(|(_, run)| !run.is_empty())
            .collect();
        let mut of_row = set.start;
        for (r, dd) in rows_of.zip(dd.chunks_exact(width)) {
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

/// *gram*: `Σ_{r∈i, s∈j} (x_r·x_s)(δ_r·δ_s)` with both row Grams in panels; `x·xᵀ` once for all parameters of an input.
pub fn rows<E: Real>(x: &[E], n: usize, deltas: &[(&[E], usize)], rows: &RowSet) -> Vec<Vec<Gram>> {
    let mut out: Vec<Vec<Gram>> = deltas.iter().map(|_| Vec::new()).collect();
    for set in &rows.sets {
        let range = rows.forward_range(set);
        let xx = input_gram(x, n, &range);
        let of_set = rows.of_set(set);
        let k = set.len();
        let transposed: Vec<Vec<E>> =
            deltas.iter().map(|(delta, m)| transpose(&delta[of_set.start * m..of_set.end * m], *m)).collect();
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
                (d, panel((delta, &transposed[d], m), (&xx, &range), rows, set, range_of))
            })
            .collect();
        for (d, out) in out.iter_mut().enumerate() {
            let mut gram = vec![0.0; k * k];
            for (_, part) in parts.iter().filter(|(of, _)| *of == d) {
                gram.iter_mut().zip(part).for_each(|(sum, x)| *sum += x);
            }
            for i in 0..k {
                for j in 0..i {
                    gram[j * k + i] = gram[i * k + j];
                }
            }
            out.push(gram);
        }
    }
    out
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
