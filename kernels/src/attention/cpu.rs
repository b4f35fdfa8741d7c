//! Softmax attention over trunk and suffixes, and its vjp for many cotangents (docs/mathematics.md, section 3).
//!
//! One task a span (or cotangent) and key-value head; queries in tiles, each looking only at the columns that its
//! rows may see, so that the score matrix never exceeds `BLOCK × keys` a task.
use super::Attend;
use crate::host::real::{Real, dims, dot, exponentiate, highest, matrix, unwritten, values, vectorised, with_real};
use crate::product::cpu::{Target, View, product};
use crate::product::packed::{Packed, Part, ROWS};
use crate::{AttentionSpec, Flex, Segment, SoftCap, Span, tally};
use burn_flex::FlexTensor;
use rayon::prelude::*;
use std::ops::Range;

/// Query rows a tile of the vjp.
const BLOCK: usize = 64;

/// Query rows a tile.
const QUERIES: usize = 4 * ROWS;

/// The columns of one head, for two stretches of rows, copied side by side: `[rows, head_dim]`.
fn pack<E: Real>(x: &[E], width: usize, head: usize, h: usize, rows: [&Range<usize>; 2]) -> Vec<E> {
    let mut out = Vec::with_capacity((rows[0].len() + rows[1].len()) * h);
    for r in rows.into_iter().flat_map(Clone::clone) {
        out.extend_from_slice(&x[r * width + head * h..][..h]);
    }
    out
}

/// The columns that query `first + i` of a tile sees, where the tile's first column is position `from`.
#[inline(always)]
fn seen(spec: &AttentionSpec, position: usize, from: usize, columns: usize) -> Range<usize> {
    spec.first_seen(position).saturating_sub(from)..(position + 1 - from).min(columns)
}

/// Caps scores softly where attention does.
#[inline(always)]
fn soft_cap<E: Real>(scores: &mut [E], spec: &AttentionSpec) {
    if let Some(SoftCap(cap)) = spec.cap {
        let (cap, inverse) = (E::of(cap), E::of(1.0 / cap));
        for s in scores {
            *s = (*s * inverse).tanh_fast() * cap;
        }
    }
}

/// Turns scores into exp(s − the row's highest) of the columns that each row sees; the others become zero. Leaves that highest and the sum
/// of each row. Row i is the query at position `first + i`, column j the key at position `from + j`.
#[inline(always)]
fn exponentials<E: Real>(
    scores: &mut [E],
    columns: usize,
    spec: &AttentionSpec,
    [first, from]: [usize; 2],
    figures: &mut [(E, E)],
) {
    soft_cap(scores, spec);
    for ((i, row), figures) in scores.chunks_exact_mut(columns).enumerate().zip(figures) {
        let range = seen(spec, first + i, from, columns);
        let top = highest(&row[range.clone()], E::neg_infinity());
        *figures = (top, exponentiate(&mut row[range.clone()], top));
        row[..range.start].fill(E::of(0.0));
        row[range.end..].fill(E::of(0.0));
    }
}

/// Turns scores into the probabilities that the forward pass had.
#[inline(always)]
fn probabilities<E: Real>(
    scores: &mut [E],
    columns: usize,
    spec: &AttentionSpec,
    [first, from]: [usize; 2],
    normaliser: &[E],
) {
    for ((i, row), &normaliser) in scores.chunks_exact_mut(columns).enumerate().zip(normaliser) {
        let range = seen(spec, first + i, from, columns);
        exponentiate(&mut row[range.clone()], normaliser);
        row[..range.start].fill(E::of(0.0));
        row[range.end..].fill(E::of(0.0));
    }
}

/// Attention output `[rows, heads·h]` and log Σ exp of each row's scores, `[rows, heads]`; rows outside every span are zero.
pub fn forward<E: Real>(
    (q, k, v): (&[E], &[E], &[E]),
    rows: usize,
    spans: &[Span],
    spec: AttentionSpec,
) -> (Vec<E>, Vec<E>) {
    let AttentionSpec { heads: n_heads, kv_heads, head_dim: h, scale, .. } = spec;
    let repeat = n_heads / kv_heads;
    let (qw, kw) = (n_heads * h, kv_heads * h);
    let covered: usize = spans.iter().map(|s| s.own.len()).sum();
    let mut out = if covered == rows { unwritten(rows * qw) } else { vec![E::of(0.0); rows * qw] };
    let target = Target::rows(&mut out, qw);
    let mut normaliser = vec![E::of(0.0); rows * n_heads];
    let normalisers = Target::rows(&mut normaliser, n_heads);
    let tasks: Vec<(&Span, usize)> = spans.iter().flat_map(|s| (0..kv_heads).map(move |g| (s, g))).collect();
    tasks.into_par_iter().for_each(|(span, g)| {
        let trunk = span.prefix.len();
        let positions = trunk + span.own.len();
        let stretches = [&span.prefix, &span.own];
        let keys = Packed::of(View::rows(&pack(k, kw, g, h, stretches), h).transposed(), [h, positions]);
        let values = Packed::of(View::rows(&pack(v, kw, g, h, stretches), h), [positions, h]);
        let mut scores = vec![E::of(0.0); QUERIES.min(span.own.len()) * positions];
        let mut mixed = vec![E::of(0.0); ROWS * h];
        for head in g * repeat..(g + 1) * repeat {
            for start in (0..span.own.len()).step_by(QUERIES) {
                let n = QUERIES.min(span.own.len() - start);
                // a column is a position less that of the block of the first that any of the queries sees
                let (from, end) = (spec.first_seen(trunk + start) / keys.width() * keys.width(), trunk + start + n);
                let columns = end - from;
                let scores = &mut scores[..n * columns];
                let first = span.own.start + start;
                let queries = View::rows(q, qw).from(first, head * h);
                let to = Target::rows(scores, columns);
                let seen = Part { columns: from..end, scale, diagonal: Some(trunk + start), ..keys.whole() };
                keys.product(to, n, queries, seen);
                let mut figures = [(E::of(0.0), E::of(0.0)); QUERIES];
                vectorised!(exponentials(scores, columns, &spec, [trunk + start, from], &mut figures));
                for rows in (0..n).step_by(ROWS) {
                    let many = ROWS.min(n - rows);
                    let p = View::rows(scores, columns).from(rows, 0);
                    let seen = Part { inner: from..trunk + start + rows + many, ..values.whole() };
                    values.product(Target::rows(&mut mixed, h), many, p, seen);
                    // a row of the result is shorter than one of probabilities, so that the sum is divided out here
                    for (row, mixed) in (rows..rows + many).zip(mixed.chunks_exact_mut(h)) {
                        let (top, sum) = figures[row];
                        let inverse = E::of(1.0) / sum;
                        vectorised!(mixed.iter_mut().for_each(|x| *x = *x * inverse));
                        target.from(first + row, head * h).write(0, mixed);
                        normalisers.from(first + row, head).write(0, &[top + sum.ln()]);
                    }
                }
            }
        }
    });
    (out, normaliser)
}

/// Cotangents of q, k, v.
///
/// With P = softmax(s·QKᵀ): dV = Pᵀ dO, dP = dO Vᵀ, dS = s·P∘(dP − rowsum(dP∘P)), dQ = dS K, dK = dSᵀ Q; where scores are
/// softly capped, dS is multiplied with the slope of the cap.
pub fn vjp<E: Real>(
    (q, k, v): (&[E], &[E], &[E]),
    normaliser: &[E],
    delta: &[E],
    segments: &[Segment],
    spec: AttentionSpec,
) -> [Vec<E>; 3] {
    let AttentionSpec { heads: n_heads, kv_heads, head_dim: h, scale, .. } = spec;
    let repeat = n_heads / kv_heads;
    let (qw, kw) = (n_heads * h, kv_heads * h);
    let rows: usize = segments.iter().map(Segment::len).sum();
    let (mut dq, mut dk, mut dv) = (unwritten(rows * qw), unwritten(rows * kw), unwritten(rows * kw));
    let targets = [Target::rows(&mut dq, qw), Target::rows(&mut dk, kw), Target::rows(&mut dv, kw)];
    let mut tasks: Vec<(&Segment, usize, usize)> = Vec::with_capacity(segments.len() * kv_heads);
    let mut offset = 0;
    for segment in segments {
        tasks.extend((0..kv_heads).map(|g| (segment, offset, g)));
        offset += segment.len();
    }
    tasks.into_par_iter().for_each(|(segment, offset, g)| {
        let n = segment.len();
        let of_rows = [&segment.prefix, &segment.own];
        let keys = pack(k, kw, g, h, of_rows);
        let values = pack(v, kw, g, h, of_rows);
        let zero = E::of(0.0);
        let (mut dk_sum, mut dv_sum) = (vec![zero; n * h], vec![zero; n * h]);
        let (mut p, mut dp, mut slopes): (Vec<E>, Vec<E>, Vec<E>) = (Vec::new(), Vec::new(), Vec::new());
        for head in g * repeat..(g + 1) * repeat {
            let queries = pack(q, qw, head, h, of_rows);
            let normaliser = pack(normaliser, n_heads, head, 1, of_rows);
            let dq_head = targets[0].from(offset, head * h);
            for row in 0..segment.active_from {
                dq_head.write(row, &vec![zero; h]);
            }
            for start in (segment.active_from..n).step_by(BLOCK) {
                let m = BLOCK.min(n - start);
                let from = spec.first_seen(start);
                let columns = start + m - from;
                p.clear();
                p.resize(m * columns, zero);
                dp.clear();
                dp.resize(m * columns, zero);
                let shape = [m, h, columns];
                let q_rows = View::rows(&queries, h).from(start, 0);
                let d_rows = View::rows(delta, qw).from(offset + start, head * h);
                let (k_all, v_all) = (View::rows(&keys, h).from(from, 0), View::rows(&values, h).from(from, 0));
                product(Target::rows(&mut p, columns), shape, q_rows, k_all.transposed(), scale, false);
                product(Target::rows(&mut dp, columns), shape, d_rows, v_all.transposed(), 1.0, false);
                vectorised!({
                    soft_cap(&mut p, &spec);
                    slopes.clear();
                    if let Some(SoftCap(cap)) = spec.cap {
                        let inverse = E::of(1.0 / cap);
                        slopes.extend(p.iter().map(|&s| E::of(1.0) - s * inverse * s * inverse));
                    }
                    probabilities(&mut p, columns, &spec, [start, from], &normaliser[start..start + m]);
                    let factor = E::of(scale);
                    for (p, dp) in p.chunks_exact(columns).zip(dp.chunks_exact_mut(columns)) {
                        let mean = dot(p, dp);
                        for i in 0..columns {
                            dp[i] = p[i] * (dp[i] - mean) * factor;
                        }
                    }
                    dp.iter_mut().zip(&slopes).for_each(|(ds, &slope)| *ds = *ds * slope);
                });
                let (p, ds) = (View::rows(&p, columns), View::rows(&dp, columns));
                let back = [columns, m, h];
                let (dk_here, dv_here) =
                    (Target::rows(&mut dk_sum, h).from(from, 0), Target::rows(&mut dv_sum, h).from(from, 0));
                product(dv_here, back, p.transposed(), d_rows, 1.0, true);
                product(dk_here, back, ds.transposed(), q_rows, 1.0, true);
                product(dq_head.from(start, 0), [m, columns, h], ds, k_all, 1.0, false);
            }
        }
        for (row, (dk, dv)) in dk_sum.chunks_exact(h).zip(dv_sum.chunks_exact(h)).enumerate() {
            targets[1].from(offset, g * h).write(row, dk);
            targets[2].from(offset, g * h).write(row, dv);
        }
    });
    [dq, dk, dv]
}

impl Attend for Flex {
    fn attend(
        q: &FlexTensor,
        k: &FlexTensor,
        v: &FlexTensor,
        spans: &[Span],
        spec: AttentionSpec,
    ) -> (FlexTensor, FlexTensor) {
        let rows = dims(q)[0];
        tally::attention(spec.cost(spans));
        with_real!(q, E => {
            let qkv = (values::<E>(q), values::<E>(k), values::<E>(v));
            let (out, normaliser) = forward(qkv, rows, spans, spec);
            (matrix(out, dims(q)), matrix(normaliser, [rows, spec.heads]))
        })
    }

    fn attend_vjp(
        [q, k, v]: [&FlexTensor; 3],
        (_, normaliser): (&FlexTensor, &FlexTensor),
        delta: &FlexTensor,
        segments: &[Segment],
        spec: AttentionSpec,
    ) -> [FlexTensor; 3] {
        let rows = dims(delta)[0];
        tally::attention(spec.cost_vjp(segments));
        with_real!(q, E => {
            let qkv = (values::<E>(q), values::<E>(k), values::<E>(v));
            let [dq, dk, dv] = vjp(qkv, values(normaliser), values(delta), segments, spec);
            let kv = spec.kv_heads * spec.head_dim;
            [matrix(dq, [rows, spec.heads * spec.head_dim]), matrix(dk, [rows, kv]), matrix(dv, [rows, kv])]
        })
    }
}
