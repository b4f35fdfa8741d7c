//! How the *gram* reduction is spread over a device.
use super::cube::{PLANES, SIDE, gram_pairs, gram_pairs_matrix_units};
use super::plan::Plan;
use crate::RowSet;
use crate::blocks::{Block, array, as_u32, by_rows, ints, limits, rows_as_they_are, width_of};
use crate::pending::Pending;
use crate::product::{product, rows as some_rows, turned};
use crate::sums::gather;
use burn_backend::DType;
use burn_cubecl::{CubeRuntime, ops::numeric::mul, tensor::CubeTensor};
use cubecl::prelude::*;

/// Tiles of 64 × 64 rows.
const BLOCK: Block = Block { units_m: 16, units_n: 16, per_m: 4, per_n: 4, step: 16 };

/// Parameters of one input that a launch takes.
const DELTAS: usize = 3;

/// Cotangents of a block from which on, where none has more than a row, both row Grams are formed whole.
const WHOLE: usize = 16;

/// See [`crate::Kernels::gram_rows`].
pub(crate) fn gram_rows<R: CubeRuntime>(
    x: &CubeTensor<R>,
    deltas: &[&CubeTensor<R>],
    rows: &RowSet,
) -> Vec<Pending<R>> {
    if rows.blocks.iter().all(|block| block.len() > WHOLE && block.clone().all(|k| rows.of(k).len() <= 1)) {
        return deltas.iter().map(|delta| of_single_rows(x, delta, rows)).collect();
    }
    let plan = Plan::new(rows, SIDE.min(BLOCK.m()));
    let pairs = plan.pairs.len();
    if pairs == 0 {
        return deltas.iter().map(|_| Pending::nothing(rows)).collect();
    }
    let (x, client) = (rows_as_they_are(x), x.client.clone());
    let limits = limits(&client, x.dtype);
    let mut out = Vec::with_capacity(deltas.len());
    for together in deltas.chunks(DELTAS) {
        let wide = together.iter().all(|delta| width_of(*delta) >= SIDE / 2) && width_of(&x) >= SIDE / 2;
        let matrix_units = limits.matrix_units.filter(|plane| wide && plane * PLANES <= limits.units);
        let len = together.len() * pairs;
        let sums = client.empty(len * size_of::<f32>());
        let (tasks, places) = (ints(&client, plan.tasks.as_flattened()), ints(&client, plan.pairs.as_flattened()));
        let grid = by_rows(plan.tasks.len());
        // a launch takes three; those that are not there are never read
        let delta = |i: usize| rows_as_they_are(together[i.min(together.len() - 1)]).into_tensor_arg();
        let (first, second, third) = (delta(0), delta(1), delta(2));
        let (dtype, target) = (x.dtype.into(), array(sums.clone(), len));
        let input = x.clone().into_tensor_arg();
        let count = together.len();
        match matrix_units {
            Some(plane) => {
                let units = CubeDim::new_2d(as_u32(plane), as_u32(PLANES));
                gram_pairs_matrix_units::launch::<R>(
                    &client, grid, units, input, first, second, third, tasks, places, target, count, plane, dtype,
                );
            }
            None => {
                let units = CubeDim::new_1d(as_u32(BLOCK.units()));
                gram_pairs::launch::<R>(
                    &client, grid, units, input, first, second, third, tasks, places, target, BLOCK, count, dtype,
                );
            }
        }
        for i in 0..count {
            let mut pending = Pending::new(rows, client.clone(), sums.clone(), len);
            for (pair, entry) in plan.entries.iter().enumerate() {
                let at = i * pairs + pair;
                pending.add(*entry, at, 1, 1);
            }
            out.push(pending);
        }
    }
    out
}

/// The Grams of cotangents that have a row each, or none: `x·xᵀ` and `δ·δᵀ` over those rows, entry by entry.
fn of_single_rows<R: CubeRuntime>(x: &CubeTensor<R>, delta: &CubeTensor<R>, rows: &RowSet) -> Pending<R> {
    let mut pending = Pending::nothing(rows);
    for (b, block) in rows.blocks.iter().enumerate() {
        let present: Vec<usize> = (0..block.len()).filter(|k| !rows.of(block.start + k).is_empty()).collect();
        let of = rows.of_block(block);
        if present.is_empty() {
            continue;
        }
        let of_rows = |x: &CubeTensor<R>| product(x, &turned(x), DType::F32);
        let inputs = of_rows(&gather(x, &rows.index[of.clone()], None));
        let products = mul(inputs, of_rows(&some_rows(delta, of)));
        pending = pending.plus(Pending::matrices(rows, &products, b, present));
    }
    pending
}
