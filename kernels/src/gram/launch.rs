//! How the *gram* reduction is spread over a device.
use super::RowGram;
use super::cube::{PLANES, gram_pairs, gram_pairs_matrix_units};
use super::plan::Plan;
use super::strategy::Strategy;
use crate::on_chip::{array, by_rows, ints, limits, on_devices, rows_as_they_are, width_of};
use crate::pending::Pending;
use crate::product::launch::{product, rows as some_rows, transposed};
use crate::rows::launch::gather;
use crate::{FloatTensor, RowSet, as_index};
use burn_backend::DType;
use burn_cubecl::{CubeRuntime, ops::numeric::mul, tensor::CubeTensor};
use cubecl::prelude::*;

/// Parameters of one input that a launch takes.
const DELTAS: usize = 3;

/// See the trait's `gram_rows`.
pub(crate) fn gram_rows<R: CubeRuntime>(
    x: &CubeTensor<R>,
    deltas: &[&CubeTensor<R>],
    rows: &RowSet,
) -> Vec<Pending<R>> {
    let limits = limits(&x.client, x.dtype);
    let (mut plan, mut out) = (None, Vec::with_capacity(deltas.len()));
    for together in deltas.chunks(DELTAS) {
        let narrowest = together.iter().map(|delta| width_of(*delta)).min().unwrap_or(0);
        match Strategy::choose(rows, [width_of(x), narrowest], &limits) {
            Strategy::Whole => out.extend(together.iter().map(|delta| of_single_rows(x, delta, rows))),
            strategy => {
                let plan = plan.get_or_insert_with(|| Plan::new(rows, Strategy::side()));
                out.extend(of_tiles(x, together, rows, plan, strategy));
            }
        }
    }
    out
}

/// The Grams of up to three parameters of one input, tile by tile.
fn of_tiles<R: CubeRuntime>(
    x: &CubeTensor<R>,
    deltas: &[&CubeTensor<R>],
    rows: &RowSet,
    plan: &Plan,
    strategy: Strategy,
) -> Vec<Pending<R>> {
    let pairs = plan.pairs.len();
    if pairs == 0 {
        return deltas.iter().map(|_| Pending::nothing(rows)).collect();
    }
    let (client, count) = (x.client.clone(), deltas.len());
    let len = count * pairs;
    let sums = client.empty(len * size_of::<f32>());
    let (tasks, places) = (ints(&client, plan.tasks.as_flattened()), ints(&client, plan.pairs.as_flattened()));
    let grid = by_rows(plan.tasks.len());
    // a launch takes three; those that are not there are never read
    let delta = |i: usize| rows_as_they_are(deltas[i.min(count - 1)]).into_tensor_arg();
    let (first, second, third) = (delta(0), delta(1), delta(2));
    let (dtype, target) = (x.dtype.into(), array(sums.clone(), len));
    let input = rows_as_they_are(x).into_tensor_arg();
    match strategy {
        Strategy::MatrixUnits { plane } => {
            let units = CubeDim::new_2d(as_index(plane), as_index(PLANES));
            gram_pairs_matrix_units::launch::<R>(
                &client, grid, units, input, first, second, third, tasks, places, target, count, plane, dtype,
            );
        }
        Strategy::Units(set) => {
            let units = CubeDim::new_1d(as_index(set.units()));
            gram_pairs::launch::<R>(
                &client, grid, units, input, first, second, third, tasks, places, target, set, count, dtype,
            );
        }
        Strategy::Whole => unreachable!("whole row Grams have no tiles"),
    }
    let of_delta = |i: usize| {
        let mut pending = Pending::new(rows, client.clone(), sums.clone(), len);
        plan.entries.iter().enumerate().for_each(|(pair, entry)| pending.add(*entry, i * pairs + pair, 1, 1));
        pending
    };
    (0..count).map(of_delta).collect()
}

/// The Grams of cotangents that have a row each, or none: `x·xᵀ` and `δ·δᵀ` over those rows, entry by entry.
fn of_single_rows<R: CubeRuntime>(x: &CubeTensor<R>, delta: &CubeTensor<R>, rows: &RowSet) -> Pending<R> {
    let mut pending = Pending::nothing(rows);
    for (b, set) in rows.sets.iter().enumerate() {
        let present: Vec<usize> = (0..set.len()).filter(|k| !rows.of(set.start + k).is_empty()).collect();
        let of = rows.of_set(set);
        if present.is_empty() {
            continue;
        }
        let of_rows = |x: &CubeTensor<R>| product(x, &transposed(x), DType::F32);
        let inputs = of_rows(&gather(x, &rows.index[of.clone()], None));
        let products = mul(inputs, of_rows(&some_rows(delta, of)));
        pending = pending.plus(Pending::matrices(rows, &products, b, present));
    }
    pending
}

on_devices! { RowGram, R {
    fn gram_rows(x: &FloatTensor<Self>, deltas: &[&FloatTensor<Self>], rows: &RowSet) -> Vec<Self::Pending> {
        gram_rows(x, deltas, rows)
    }
} }
