//! Softmax attention over trunk and suffixes, and its vjp for many cotangents (docs/mathematics.md, section 3).
//!
//! One task a span (or cotangent) and key-value head; queries in tiles, each looking only at the columns that its
//! rows may see, so that the score matrix never exceeds `BACK × keys` a task.
use super::Attend;
use crate::host::real::{Real, dims, dot, exponentiate, highest, matrix, unwritten, values, vectorised, with_real};
use crate::product::cpu::{Target, View};
use crate::product::packed::{Packed, Part, ROWS};
use crate::{AttentionSpec, Flex, Segment, SoftCap, Span, tally};
use burn_flex::FlexTensor;
use rayon::prelude::*;
use std::ops::Range;

/// Query rows a tile of the forward pass, at the most.
const QUERIES: usize = 4 * ROWS;

/// Query rows a tile of the vjp, at the most: its sums over queries are long enough that reading and writing them is little beside.
const BACK: usize = 8 * ROWS;

/// Tiles of a stretch of queries: alike, and of whole tiles of products but for the last.
fn tiles(queries: Range<usize>, most: usize) -> impl Iterator<Item = Range<usize>> {
    let number = queries.len().div_ceil(most).max(1);
    let height = queries.len().div_ceil(number).next_multiple_of(ROWS).max(1);
    queries.clone().step_by(height).map(move |start| start..(start + height).min(queries.end))
}

/// The row at a place of two stretches of rows, one after the other.
fn row_at(rows: [&Range<usize>; 2], place: usize) -> usize {
    let first = rows[0].len();
    if place < first { rows[0].start + place } else { rows[1].start + place - first }
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
    for ((i, row), figures) in scores.chunks_exact_mut(columns).enumerate().zip(figures) {
        let range = seen(spec, first + i, from, columns);
        soft_cap(&mut row[range.clone()], spec);
        let top = highest(&row[range.clone()], E::neg_infinity());
        *figures = (top, exponentiate(&mut row[range.clone()], top));
        row[..range.start].fill(E::of(0.0));
        row[range.end..].fill(E::of(0.0));
    }
}

/// Turns scores and dP into P and dS of the columns that each row sees; the others become zero. Of each row there is log Σ exp of its scores, and δ·o.
#[inline(always)]
fn back<E: Real>(
    (p, ds): (&mut [E], &mut [E]),
    columns: usize,
    spec: &AttentionSpec,
    [first, from]: [usize; 2],
    of_rows: &[(E, E)],
) {
    let scale = E::of(spec.scale);
    let rows = p.chunks_exact_mut(columns).zip(ds.chunks_exact_mut(columns));
    for ((i, (p, ds)), &(normaliser, product)) in rows.enumerate().zip(of_rows) {
        let range = seen(spec, first + i, from, columns);
        for x in [&mut *p, &mut *ds] {
            x[..range.start].fill(E::of(0.0));
            x[range.end..].fill(E::of(0.0));
        }
        let (p, ds) = (&mut p[range.clone()], &mut ds[range]);
        let product = match spec.cap {
            None => product,
            Some(SoftCap(cap)) => {
                let (cap, inverse, one) = (E::of(cap), E::of(1.0 / cap), E::of(1.0));
                for (s, ds) in p.iter_mut().zip(ds.iter_mut()) {
                    let t = (*s * inverse).tanh_fast();
                    *s = t * cap;
                    *ds = (*ds - product) * (one - t * t);
                }
                E::of(0.0)
            }
        };
        exponentiate(p, normaliser);
        ds.iter_mut().zip(&*p).for_each(|(ds, &p)| *ds = p * (*ds - product) * scale);
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
        let row = |position| row_at([&span.prefix, &span.own], position);
        let [of_keys, of_values] = [k, v].map(|x| View::rows(x, kw).from(0, g * h));
        let keys = Packed::picked(of_keys, true, [h, positions], row);
        let values = Packed::picked(of_values, false, [positions, h], row);
        let width = keys.width();
        let mut scores = unwritten(QUERIES.min(span.own.len()) * positions.next_multiple_of(width));
        let mut mixed = vec![E::of(0.0); QUERIES * h];
        for head in g * repeat..(g + 1) * repeat {
            for tile in tiles(0..span.own.len(), QUERIES) {
                let (n, start) = (tile.len(), trunk + tile.start);
                // a column is a position less that of the block of the first that any of the queries sees
                let from = spec.first_seen(start) / width * width;
                let end = (start + n).next_multiple_of(width);
                let columns = end - from;
                let scores = &mut scores[..n * columns];
                let first = span.own.start + tile.start;
                let queries = View::rows(q, qw).from(first, head * h);
                let seen = Part { columns: from..end, scale, diagonal: Some(start), ..keys.whole() };
                keys.product(Target::rows(scores, columns), n, queries, seen);
                let mut figures = [(E::of(0.0), E::of(0.0)); QUERIES];
                vectorised!(exponentials(scores, columns, &spec, [start, from], &mut figures));
                for rows in (0..n).step_by(ROWS) {
                    let many = ROWS.min(n - rows);
                    let p = View::rows(scores, columns).from(rows, 0);
                    let seen = Part { inner: from..start + rows + many, ..values.whole() };
                    values.product(Target::rows(&mut mixed[rows * h..], h), many, p, seen);
                }
                // a row of the result is shorter than one of probabilities, so that the sum is divided out here
                vectorised!(for (mixed, (_, sum)) in mixed.chunks_exact_mut(h).zip(&figures[..n]) {
                    let inverse = E::of(1.0) / *sum;
                    mixed.iter_mut().for_each(|x| *x = *x * inverse);
                });
                for (row, (mixed, &(top, sum))) in (first..).zip(mixed.chunks_exact(h).zip(&figures[..n])) {
                    target.from(row, head * h).write(0, mixed);
                    normalisers.from(row, head).write(0, &[top + sum.ln()]);
                }
            }
        }
    });
    (out, normaliser)
}

/// A key-value head of a segment in the vjp.
struct Backward<'a, E> {
    /// Forward rows of q and of the output.
    rows: [&'a [E]; 2],
    normaliser: &'a [E],
    delta: &'a [E],
    spec: AttentionSpec,
    /// The segment's first backward row.
    offset: usize,
    /// The segment's keys as they are and transposed, and its values transposed.
    keys: Packed<E>,
    transposed: [Packed<E>; 2],
    /// Cotangents of the segment's keys and values.
    sums: [Target<E>; 2],
}

impl<E: Real> Backward<'_, E> {
    /// Adds to the sums what a tile of queries in a head gives, and writes its dq. `first` is the forward row of its first query; `p` and `ds` are room
    /// for its scores.
    fn tile(&self, head: usize, tile: &Range<usize>, first: usize, [p, ds]: [&mut [E]; 2], dq: Target<E>) {
        let Self { keys, transposed: [keys_transposed, values_transposed], spec, .. } = self;
        let AttentionSpec { heads, head_dim: h, scale, .. } = *spec;
        let (qw, width) = (heads * h, keys_transposed.width());
        let (n, start) = (tile.len(), tile.start);
        let from = spec.first_seen(start) / width * width;
        let end = tile.end.next_multiple_of(width);
        let columns = end - from;
        let (p, ds) = (&mut p[..n * columns], &mut ds[..n * columns]);
        let [q_rows, o_rows] = self.rows.map(|x| View::rows(x, qw).from(first, head * h));
        let d_rows = View::rows(self.delta, qw).from(self.offset + start, head * h);
        let seen = Part { columns: from..end, diagonal: Some(start), ..keys_transposed.whole() };
        keys_transposed.product(Target::rows(p, columns), n, q_rows, Part { scale, ..seen.clone() });
        values_transposed.product(Target::rows(ds, columns), n, d_rows, seen);
        let mut of_rows = [(E::of(0.0), E::of(0.0)); BACK];
        vectorised!(for (i, of_row) in of_rows[..n].iter_mut().enumerate() {
            let [o, d] = [o_rows, d_rows].map(|x| &x.data[i * qw..][..h]);
            *of_row = (self.normaliser[(first + i) * heads + head], dot(d, o));
        });
        vectorised!(back((p, ds), columns, spec, [start, from], &of_rows[..n]));
        let (q_packed, d_packed) = (Packed::of(q_rows, [n, h]), Packed::of(d_rows, [n, h]));
        let (p, ds) = (View::rows(p, columns), View::rows(ds, columns));
        for rows in (0..n).step_by(ROWS) {
            let many = ROWS.min(n - rows);
            let seen = Part { inner: from..start + rows + many, ..keys.whole() };
            keys.product(dq.from(start + rows, 0), many, ds.from(rows, 0), seen);
        }
        for key in (from..tile.end).step_by(ROWS) {
            let many = ROWS.min(tile.end - key);
            // queries before a key do not see it
            let unseen = key.saturating_sub(start);
            for (sum, (left, right)) in self.sums.iter().zip([(ds, &q_packed), (p, &d_packed)]) {
                let left = left.from(unseen, key - from).transposed();
                let part = Part { inner: unseen..n, add: true, ..right.whole() };
                right.product(sum.from(key, 0), many, left, part);
            }
        }
    }
}

/// Cotangents of q, k, v.
///
/// With P = softmax(s·QKᵀ): dV = Pᵀ dO, dP = dO Vᵀ, dS = s·P∘(dP − δ·o), dQ = dS K, dK = dSᵀ Q; where scores are
/// softly capped, dS is multiplied with the slope of the cap.
pub fn vjp<E: Real>(
    (q, k, v): (&[E], &[E], &[E]),
    (out, normaliser): (&[E], &[E]),
    delta: &[E],
    segments: &[Segment],
    spec: AttentionSpec,
) -> [Vec<E>; 3] {
    let AttentionSpec { heads: n_heads, kv_heads, head_dim: h, .. } = spec;
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
        let row = |position| row_at([&segment.prefix, &segment.own], position);
        let [of_keys, of_values] = [k, v].map(|x| View::rows(x, kw).from(0, g * h));
        let keys = Packed::picked(of_keys, false, [n, h], row);
        let transposed = [of_keys, of_values].map(|x| Packed::picked(x, true, [h, n], row));
        let zeros = vec![E::of(0.0); h];
        let sums = [targets[1], targets[2]].map(|target| target.from(offset, g * h));
        for row in 0..n {
            sums.iter().for_each(|sum| sum.write(row, &zeros));
        }
        let [mut p, mut ds] = [(); 2].map(|()| unwritten(BACK.min(n) * n.next_multiple_of(keys.width())));
        let task = Backward { rows: [q, out], normaliser, delta, spec, offset, keys, transposed, sums };
        let trunk = segment.prefix.len();
        // queries of a tile lie in one stretch of forward rows
        let of_trunk =
            tiles(segment.active_from.min(trunk)..trunk, BACK).map(|tile| (segment.prefix.start + tile.start, tile));
        let of_own =
            tiles(segment.active_from.max(trunk)..n, BACK).map(|tile| (segment.own.start + tile.start - trunk, tile));
        let queries: Vec<(usize, Range<usize>)> = of_trunk.chain(of_own).collect();
        for head in g * repeat..(g + 1) * repeat {
            let dq = targets[0].from(offset, head * h);
            (0..segment.active_from).for_each(|row| dq.write(row, &zeros));
            for (first, tile) in &queries {
                task.tile(head, tile, *first, [&mut p, &mut ds], dq);
            }
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
        (out, normaliser): (&FlexTensor, &FlexTensor),
        delta: &FlexTensor,
        segments: &[Segment],
        spec: AttentionSpec,
    ) -> [FlexTensor; 3] {
        let rows = dims(delta)[0];
        tally::attention(spec.cost_vjp(segments));
        with_real!(q, E => {
            let qkv = (values::<E>(q), values::<E>(k), values::<E>(v));
            let [dq, dk, dv] = vjp(qkv, (values(out), values(normaliser)), values(delta), segments, spec);
            let kv = spec.kv_heads * spec.head_dim;
            [matrix(dq, [rows, spec.heads * spec.head_dim]), matrix(dk, [rows, kv]), matrix(dv, [rows, kv])]
        })
    }
}
