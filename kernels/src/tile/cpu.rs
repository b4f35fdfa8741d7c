//! The *tile* reduction on the CPU.
//!
//! Inside a tile the products are in the working type; tiles are multiplied and summed in f64. Partial results are
//! added in a fixed order, so that two runs give the same bits.
use super::TileGram;
use super::triangle::{Triangle, factors};
use crate::host::real::{Real, dims, dot_wide, values, vectorised, with_real};
use crate::product::cpu::{Target, View, product};
use crate::{Flex, Gram, RowSet, cost, tally};
use burn_flex::FlexTensor;
use rayon::prelude::*;

/// Bytes of gradient tiles that a task holds at once: what a second-level cache has room for.
const TILE_BYTES: usize = 512 * 1024;

/// Side of the tiles of many cotangents, which do not fit there: a product with less to it runs at a fraction of its rate.
const LEAST_SIDE: usize = 64;

/// Tiles from which on their inner products are taken as one matrix product in f64: two by two they run at a fraction of its rate.
const AS_MATRIX: usize = 8;

/// Entries of each tile that are widened to f64 at a time: those of some dozen tiles stay in a second-level cache.
const WIDE: usize = 1024;

fn add(mut a: Gram, b: &Gram) -> Gram {
    a.iter_mut().zip(b).for_each(|(a, b)| *a += b);
    a
}

/// Sums partial Grams in order.
fn total(parts: Vec<(usize, Gram)>, rows: &RowSet) -> Vec<Gram> {
    let mut out: Vec<Gram> = rows.sets.iter().map(|b| vec![0.0; b.len() * b.len()]).collect();
    for (set, part) in parts {
        out[set] = add(std::mem::take(&mut out[set]), &part);
    }
    out
}

/// Inner products, in f64, of the `k` tiles in `tiles`.
fn products<E: Real>(tiles: &[E], k: usize) -> Gram {
    let size = tiles.len() / k.max(1);
    let mut gram = vec![0.0; k * k];
    if k < AS_MATRIX {
        vectorised!({
            let tile = |of: usize| &tiles[of * size..][..size];
            for p in 0..k {
                (0..=p).for_each(|q| gram[p * k + q] = dot_wide(tile(p), tile(q)));
            }
        });
    } else {
        let mut wide = vec![0.0f64; k * WIDE.min(size)];
        for start in (0..size).step_by(WIDE) {
            let here = WIDE.min(size - start);
            let wide = &mut wide[..k * here];
            for (wide, tile) in wide.chunks_exact_mut(here).zip(tiles.chunks_exact(size)) {
                wide.iter_mut().zip(&tile[start..]).for_each(|(wide, x)| *wide = x.wide());
            }
            let rows = View::rows(wide, here);
            product(Target::rows(&mut gram, k), [k, here, k], rows, rows.transposed(), 1.0, true);
        }
    }
    // a product may round the two triangles apart
    for p in 0..k {
        (0..p).for_each(|q| gram[q * k + p] = gram[p * k + q]);
    }
    gram
}

/// *tile*: `G_k = δ_kᵀ x` tile by tile for all cotangents of a set, reduced to their inner products at once. The inputs of a set may be
/// triangular.
fn tile<E: Real>(
    [x, delta]: [&[E]; 2],
    [stride, m]: [usize; 2],
    rows: &RowSet,
    roots: Option<&[E]>,
    triangles: Option<&[Triangle]>,
) -> Vec<Gram> {
    let mut tasks = Vec::new();
    for (b, set) in rows.sets.iter().enumerate() {
        let n = triangles.map_or(stride, |of| of[b].width);
        let entries = TILE_BYTES / size_of::<E>() / set.len().max(1);
        let wide = if entries > LEAST_SIDE * LEAST_SIDE && triangles.is_none() { 512 } else { LEAST_SIDE };
        let n_step = n.clamp(1, wide);
        let m_step = (entries.max(LEAST_SIDE * LEAST_SIDE) / n_step).clamp(1, m.max(1));
        for i in (0..m).step_by(m_step) {
            for j in (0..n).step_by(n_step) {
                tasks.push((b, i..(i + m_step).min(m), j..(j + n_step).min(n)));
            }
        }
    }
    let parts: Vec<(usize, Gram)> = tasks
        .into_par_iter()
        .map(|(b, i, j)| {
            let set = &rows.sets[b];
            let (k, size) = (set.len(), i.len() * j.len());
            let mut tiles = vec![E::of(0.0); k * size];
            for (c, tile) in set.clone().zip(tiles.chunks_exact_mut(size)) {
                for mut run in rows.runs(c) {
                    if let Some(triangles) = triangles {
                        // rows above the tile's first column are zero there
                        let above = triangles[b].first + j.start;
                        run.start += above.saturating_sub(rows.index[run.start] as usize).min(run.len());
                        if run.is_empty() {
                            continue;
                        }
                    }
                    // x's columns are the tile's rows: the wider side is then contiguous in the product's target
                    let shape = [j.len(), run.len(), i.len()];
                    let input = View::rows(x, stride).from(rows.index[run.start] as usize, j.start);
                    let cotangent = View::rows(delta, m).from(run.start, i.start);
                    product(Target::rows(tile, i.len()), shape, input.transposed(), cotangent, 1.0, true);
                }
                if let Some(roots) = roots {
                    for (row, column) in tile.chunks_exact_mut(i.len()).zip(j.clone()) {
                        let roots = &roots[column * m + i.start..][..i.len()];
                        row.iter_mut().zip(roots).for_each(|(g, root)| *g = *g * *root);
                    }
                }
            }
            (b, products(&tiles, k))
        })
        .collect();
    total(parts, rows)
}

impl TileGram for Flex {
    fn gram_tile(x: &FlexTensor, delta: &FlexTensor, rows: &RowSet, roots: Option<&FlexTensor>) -> Vec<Gram> {
        let shape = [dims(x)[1], dims(delta)[1]];
        tally::reductions(cost::tile(shape[0], shape[1], rows, x.dtype()));
        with_real!(x, E => tile([values::<E>(x), values(delta)], shape, rows, roots.map(values), None))
    }

    fn gram_triangle(x: &FlexTensor, deltas: &[&FlexTensor], rows: &RowSet) -> Vec<Vec<Gram>> {
        let n = dims(x)[1];
        tally::reductions(cost::triangle_of_input(n, rows));
        deltas.iter().for_each(|delta| tally::reductions(cost::triangle(n, dims(delta)[1], rows, x.dtype())));
        with_real!(x, E => {
            let (l, stride, triangles) = factors(values::<E>(x), n, rows);
            let of = |delta: &&FlexTensor| tile([&l, values(delta)], [stride, dims(delta)[1]], rows, None, Some(&triangles));
            deltas.iter().map(of).collect()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::products;
    use proptest::prelude::*;

    proptest! {
        /// Both sides round each sum of n products in f64, in their own order: n ε Σ|x y| for each.
        #[test]
        fn products_of_few_and_of_many_tiles_are_plain_sums(k in 1usize..20, size in 1usize..2500, seed in any::<u32>()) {
            let entry = |at: usize| ((at as f32 + 1.0) * (seed as f32 * 1e-9 + 0.7)).sin();
            let tiles: Vec<f32> = (0..k * size).map(entry).collect();
            let gram = products(&tiles, k);
            for (at, got) in gram.iter().enumerate() {
                let (p, q) = (&tiles[at / k * size..][..size], &tiles[at % k * size..][..size]);
                let terms = || p.iter().zip(q).map(|(&x, &y)| f64::from(x) * f64::from(y));
                let bound = 2.0 * size as f64 * f64::EPSILON * terms().map(f64::abs).sum::<f64>();
                prop_assert!((got - terms().sum::<f64>()).abs() <= bound, "{at}: {got} {}", terms().sum::<f64>());
                prop_assert_eq!(got.to_bits(), gram[at % k * k + at / k].to_bits());
            }
        }
    }
}
