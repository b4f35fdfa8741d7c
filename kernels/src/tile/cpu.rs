//! The *tile* reduction on the CPU.
//!
//! Inside a tile the products are in the working type; tiles are multiplied and summed in f64. Partial results are
//! added in a fixed order, so that two runs give the same bits.
use crate::host::real::{Real, dot_wide, dots_wide, vectorised};
use crate::product::cpu::{Target, View, product};
use crate::{BlockGram, RowSet};
use rayon::prelude::*;

/// Bytes of gradient tiles that a task holds at once: what a second-level cache has room for.
const TILE_BYTES: usize = 512 * 1024;

/// Side of the tiles of many cotangents, which do not fit there: a product with less to it runs at a fraction of its rate.
const LEAST_SIDE: usize = 64;

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
        let entries = TILE_BYTES / size_of::<E>() / block.len().max(1);
        let wide = if entries > LEAST_SIDE * LEAST_SIDE { 512 } else { LEAST_SIDE };
        let n_step = n.min(wide);
        let m_step = (entries.max(LEAST_SIDE * LEAST_SIDE) / n_step).clamp(1, m.max(1));
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
            vectorised!({
                let tile = |of: usize| &tiles[of * size..][..size];
                for p in 0..k {
                    let whole = (p + 1) / 4 * 4;
                    for q in (0..whole).step_by(4) {
                        let four = dots_wide(tile(p), [tile(q), tile(q + 1), tile(q + 2), tile(q + 3)]);
                        gram[p * k + q..][..4].copy_from_slice(&four);
                    }
                    (whole..=p).for_each(|q| gram[p * k + q] = dot_wide(tile(p), tile(q)));
                    (0..p).for_each(|q| gram[q * k + p] = gram[p * k + q]);
                }
            });
            (b, gram)
        })
        .collect();
    total(parts, rows)
}
