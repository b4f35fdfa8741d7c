//! The two exact Gram reductions of a linear map (docs/mathematics.md, section 4).
//!
//! Inside a tile the products are in the working type; tiles are multiplied and summed in f64. Partial results are
//! added in a fixed order, so that two runs give the same bits.
use super::product::{Target, View, product, transpose};
use super::real::{Real, dot_wide, vectorised};
use crate::{BlockGram, RowSet};
use rayon::prelude::*;
use std::ops::Range;

/// Bytes of gradient tiles that a task holds at once: what a second-level cache has room for.
const TILE_BYTES: usize = 512 * 1024;
/// Rows and columns of a tile of the row Gram matrices.
const ROWS: usize = 128;

fn add(mut a: BlockGram, b: &BlockGram) -> BlockGram {
    a.iter_mut().zip(b).for_each(|(a, b)| *a += b);
    a
}

/// Sums partial Grams in order.
fn total(parts: Vec<(usize, BlockGram)>, rows: &RowSet) -> Vec<BlockGram> {
    let mut out: Vec<BlockGram> = rows.blocks.iter().map(|b| vec![0.0; b.len() * b.len()]).collect();
    for (block, part) in parts {
        out[block] = add(std::mem::take(&mut out[block]), &part);
    }
    out
}

/// *tile*: `G_k = δ_kᵀ x` tile by tile for all cotangents of a block, reduced to their inner products at once.
pub fn tile<E: Real>(x: &[E], n: usize, delta: &[E], m: usize, rows: &RowSet) -> Vec<BlockGram> {
    let mut tasks = Vec::new();
    for (b, block) in rows.blocks.iter().enumerate() {
        let entries = (TILE_BYTES / size_of::<E>() / block.len().max(1)).max(1024);
        let n_step = n.min(512).min(entries);
        let m_step = (entries / n_step).clamp(1, m.max(1));
        for i in (0..m).step_by(m_step) {
            for j in (0..n).step_by(n_step) {
                tasks.push((b, i..(i + m_step).min(m), j..(j + n_step).min(n)));
            }
        }
    }
    let parts: Vec<(usize, BlockGram)> = tasks
        .into_par_iter()
        .map(|(b, i, j)| {
            let block = &rows.blocks[b];
            let (k, size) = (block.len(), i.len() * j.len());
            let mut tiles = vec![E::of(0.0); k * size];
            for (c, tile) in block.clone().zip(tiles.chunks_exact_mut(size)) {
                for run in rows.runs(c) {
                    // x's columns are the tile's rows: the wider side is then contiguous in the product's target
                    let shape = [j.len(), run.len(), i.len()];
                    let input = View::rows(x, n).from(rows.index[run.start] as usize, j.start);
                    let cotangent = View::rows(delta, m).from(run.start, i.start);
                    product(Target::rows(tile, i.len()), shape, input.transposed(), cotangent, 1.0, true);
                }
            }
            let mut gram = vec![0.0; k * k];
            vectorised(|| {
                for p in 0..k {
                    for q in 0..=p {
                        let (a, b) = (&tiles[p * size..][..size], &tiles[q * size..][..size]);
                        gram[p * k + q] = dot_wide(a, b);
                        gram[q * k + p] = gram[p * k + q];
                    }
                }
            });
            (b, gram)
        })
        .collect();
    total(parts, rows)
}

/// A stretch of backward rows of one cotangent over consecutive forward rows, at most [`ROWS`] long.
struct Piece {
    cotangent: usize,
    rows: Range<usize>,
}

fn pieces(rows: &RowSet, block: &Range<usize>) -> Vec<Piece> {
    let mut out = Vec::new();
    for cotangent in block.clone() {
        for run in rows.runs(cotangent) {
            for start in run.clone().step_by(ROWS) {
                out.push(Piece { cotangent, rows: start..(start + ROWS).min(run.end) });
            }
        }
    }
    out
}

/// `x·xᵀ` over a range of forward rows, lower tiles computed and mirrored: `[N, N]`.
fn input_gram<E: Real>(x: &[E], n: usize, range: &Range<usize>) -> Vec<E> {
    let size = range.len();
    let turned = transpose(&x[range.start * n..range.end * n], n);
    let mut out = vec![E::of(0.0); size * size];
    let target = Target::rows(&mut out, size);
    let starts: Vec<usize> = (0..size).step_by(ROWS).collect();
    let tasks: Vec<(usize, usize)> =
        starts.iter().flat_map(|&i| starts.iter().filter(move |&&j| j <= i).map(move |&j| (i, j))).collect();
    tasks.into_par_iter().for_each(|(i, j)| {
        let (a, b) = (ROWS.min(size - i), ROWS.min(size - j));
        let rows = View::rows(x, n).from(range.start + i, 0);
        let columns = View::rows(&turned, size).from(0, j);
        let mut lower = vec![E::of(0.0); a * b];
        product(Target::rows(&mut lower, b), [a, n, b], rows, columns, 1.0, false);
        for (r, row) in lower.chunks_exact(b).enumerate() {
            target.from(i + r, j).write(0, row);
        }
        if i != j {
            let mut column = vec![E::of(0.0); a];
            for c in 0..b {
                column.iter_mut().zip(lower.iter().skip(c).step_by(b)).for_each(|(to, &from)| *to = from);
                target.from(j + c, i).write(0, &column);
            }
        }
    });
    out
}

/// *gram*: `Σ_{r∈i, s∈j} (x_r·x_s)(δ_r·δ_s)` with both row Grams in tiles; `x·xᵀ` once for all parameters of an input.
pub fn rows<E: Real>(x: &[E], n: usize, deltas: &[(&[E], usize)], rows: &RowSet) -> Vec<Vec<BlockGram>> {
    let mut out: Vec<Vec<BlockGram>> = deltas.iter().map(|_| Vec::new()).collect();
    for block in &rows.blocks {
        let range = rows.forward_range(block);
        let xx = input_gram(x, n, &range);
        let pieces = pieces(rows, block);
        let tasks: Vec<(&Piece, &Piece)> = (0..pieces.len())
            .flat_map(|i| (0..=i).map(move |j| (i, j)))
            .map(|(i, j)| (&pieces[i], &pieces[j]))
            .collect();
        let k = block.len();
        for (&(delta, m), out) in deltas.iter().zip(&mut out) {
            let of_block = rows.of_block(block);
            let turned = transpose(&delta[of_block.start * m..of_block.end * m], m);
            let parts: Vec<(usize, usize, f64)> = tasks
                .par_iter()
                .map(|(a, b)| {
                    let (p, q) = (a.rows.len(), b.rows.len());
                    let mut dd = vec![E::of(0.0); p * q];
                    let left = View::rows(delta, m).from(a.rows.start, 0);
                    let right = View::rows(&turned, of_block.len()).from(0, b.rows.start - of_block.start);
                    product(Target::rows(&mut dd, q), [p, m, q], left, right, 1.0, false);
                    let first = |piece: &Piece| rows.index[piece.rows.start] as usize - range.start;
                    let (i, j) = (first(a), first(b));
                    let sum = vectorised(|| {
                        (0..p).map(|r| dot_wide(&dd[r * q..][..q], &xx[(i + r) * range.len() + j..][..q])).sum()
                    });
                    let same = std::ptr::eq(*a, *b);
                    (a.cotangent - block.start, b.cotangent - block.start, if same { sum } else { 2.0 * sum })
                })
                .collect();
            let mut gram = vec![0.0; k * k];
            for (i, j, sum) in parts {
                // an off-diagonal pair of pieces stands for both orders: within one cotangent both add to [i, i];
                // between two, one to [i, j] and one to [j, i]
                if i == j {
                    gram[i * k + i] += sum;
                } else {
                    gram[i * k + j] += sum / 2.0;
                    gram[j * k + i] += sum / 2.0;
                }
            }
            out.push(gram);
        }
    }
    out
}
