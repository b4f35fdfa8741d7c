//! How the *tile* reduction is spread over a device.
use super::cube::{PLANES, tile_gram, tile_gram_matrix_units};
use super::strategy::Strategy;
use super::{TileGram, many};
use crate::on_chip::{
    Limits, array, contiguous, floats, ints, limits, loads_wide, on_devices, rows_as_they_are, width_of,
};
use crate::pending::{Entry, Pending};
use crate::{FloatTensor, RowSet, as_index};
use burn_backend::DType;
use burn_cubecl::{CubeRuntime, kernel::cast, tensor::CubeTensor};
use cubecl::prelude::*;
use std::ops::Range;

/// The cotangents of a set whose gradients one cube multiplies.
struct Task {
    set: usize,
    cotangents: Range<usize>,
}

/// What decides how tiles are multiplied, beside their shape.
struct Of {
    /// Whether rows can be loaded wide.
    wide: bool,
    limits: Limits,
}

/// See the trait's `gram_tile`.
fn gram_tile<R: CubeRuntime>(
    x: &CubeTensor<R>,
    delta: &CubeTensor<R>,
    rows: &RowSet,
    roots: Option<&CubeTensor<R>>,
) -> Pending<R> {
    let task = |(set, cotangents): (usize, &Range<usize>)| Task { set, cotangents: cotangents.clone() };
    let tasks = rows.sets.iter().enumerate().map(task);
    let (x, delta) = (&rows_as_they_are(x), &rows_as_they_are(delta));
    let (n, m) = (width_of(x), width_of(delta));
    let of = Of { wide: loads_wide(m, &[delta]) && loads_wide(n, &[x]), limits: limits(&x.client, delta.dtype) };
    // gradients of more cotangents than a cube holds are formed in device memory
    let most = Strategy::most_held([m, n], of.wide, &of.limits);
    let (few, many): (Vec<Task>, Vec<Task>) = tasks.partition(|task| task.cotangents.len() <= most);
    let roots = roots.map(|roots| contiguous(&cast(roots.clone(), DType::F32)));
    let pending = held([x, delta], rows, &few, &of, roots.as_ref());
    many.iter().fold(pending, |pending, task| pending.plus(many::gram([x, delta], rows, task.set, roots.as_ref())))
}

/// The sets whose gradient tiles a cube holds.
fn held<R: CubeRuntime>(
    [x, delta]: [&CubeTensor<R>; 2],
    rows: &RowSet,
    tasks: &[Task],
    of: &Of,
    roots: Option<&CubeTensor<R>>,
) -> Pending<R> {
    let (n, m) = (width_of(x), width_of(delta));
    let held = match tasks.iter().map(|task| task.cotangents.len()).max() {
        None | Some(0) => return Pending::nothing(rows),
        Some(most) => most.next_power_of_two(),
    };
    let (x, delta, client) = (x.clone(), delta.clone(), x.client.clone());
    let ranges: Vec<u32> = tasks
        .iter()
        .flat_map(|task| {
            let of = |k: usize| if k < task.cotangents.end { rows.of(k) } else { 0..0 };
            (task.cotangents.start..task.cotangents.start + held).map(of)
        })
        .flat_map(|range| [as_index(range.start), as_index(range.end)])
        .collect();
    let strategy = Strategy::choose([m, n], held, of.wide, &of.limits);
    let [side_m, side_n] = strategy.tile();
    let (tiles_m, tiles_n, pairs) = (m.div_ceil(side_m), n.div_ceil(side_n), held * (held + 1) / 2);
    let len = tasks.len() * tiles_m * tiles_n * pairs;
    let partials = client.empty(len * size_of::<f32>());
    let grid = CubeCount::Static(as_index(tiles_n), as_index(tiles_m), as_index(tasks.len()));
    let (index, ranges) = (ints(&client, &rows.index), ints(&client, &ranges));
    let (dtype, out, scaled) = (x.dtype.into(), array(partials.clone(), len), roots.is_some());
    let roots = roots.map_or_else(|| floats(&client, &[]), |roots| array(roots.handle.clone(), n * m));
    let (x, delta) = (x.into_tensor_arg(), delta.into_tensor_arg());
    match strategy {
        Strategy::MatrixUnits { plane } => {
            let units = CubeDim::new_2d(as_index(plane), as_index(PLANES));
            tile_gram_matrix_units::launch::<R>(
                &client, grid, units, x, delta, index, ranges, roots, out, held, plane, scaled, dtype,
            );
        }
        Strategy::Units(set) => {
            let units = CubeDim::new_1d(as_index(set.units()));
            tile_gram::launch::<R>(&client, grid, units, x, delta, index, ranges, roots, out, set, held, scaled, dtype);
        }
    }
    // partial sums of a task lie together, tile after tile
    let tiles = tiles_m * tiles_n;
    let mut pending = Pending::new(rows, client, partials, len);
    for (t, task) in tasks.iter().enumerate() {
        for i in 0..task.cotangents.len() {
            for j in 0..=i {
                let entry = Entry { set: task.set, i, j, weight: if i == j { 1.0 } else { 2.0 } };
                pending.add(entry, t * tiles * pairs + i * (i + 1) / 2 + j, tiles, pairs);
            }
        }
    }
    pending
}

on_devices! { TileGram, R {
    fn gram_tile(
        x: &FloatTensor<Self>,
        delta: &FloatTensor<Self>,
        rows: &RowSet,
        roots: Option<&FloatTensor<Self>>,
    ) -> Self::Pending {
        gram_tile(x, delta, rows, roots)
    }
} }
