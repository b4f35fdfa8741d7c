//! How the *tile* reduction is spread over a device.
use super::cube::{PLANES, SIDE, tile_gram, tile_gram_matrix_units};
use crate::RowSet;
use crate::blocks::{Block, array, as_u32, ints, limits, rows_as_they_are, width_of};
use crate::pending::{Entry, Pending};
use burn_cubecl::{CubeRuntime, tensor::CubeTensor};
use cubecl::prelude::*;
use std::collections::HashSet;

/// Cotangents that a cube holds at once. More are multiplied two and two at a time.
const HELD: usize = 4;

/// The cotangents whose gradients one cube multiplies.
struct Task {
    cotangents: Vec<usize>,
    /// Pairs of places among them that count here, and where their product belongs.
    entries: Vec<(usize, usize, Entry)>,
}

/// Every pair of a block's cotangents in exactly one task.
fn tasks(rows: &RowSet) -> Vec<Task> {
    let mut out = Vec::new();
    for (b, block) in rows.blocks.iter().enumerate() {
        let all: Vec<usize> = block.clone().collect();
        let together: Vec<Vec<usize>> = if all.len() <= HELD {
            vec![all]
        } else {
            let twos: Vec<&[usize]> = all.chunks(HELD / 2).collect();
            (1..twos.len())
                .flat_map(|i| (0..i).map(move |j| (j, i)))
                .map(|(j, i)| [twos[j], twos[i]].concat())
                .collect()
        };
        let mut seen = HashSet::new();
        for cotangents in together {
            let mut entries = Vec::new();
            for (p, &i) in cotangents.iter().enumerate() {
                for (q, &j) in cotangents.iter().enumerate().take(p + 1) {
                    if seen.insert((i, j)) {
                        let (i, j) = (i - block.start, j - block.start);
                        entries.push((p, q, Entry { block: b, i, j, weight: if i == j { 1.0 } else { 2.0 } }));
                    }
                }
            }
            out.push(Task { cotangents, entries });
        }
    }
    out
}

/// Tiles for a gradient `[m, n]`: square ones, or long ones where one side is a low rank. A program that plays a GPU takes
/// minutes to compile what many registers are unrolled to.
fn block(m: usize, n: usize, held: usize, hardware: bool) -> Block {
    let wide = if held <= 2 && hardware { 8 } else { 4 };
    let (per_m, per_n) = match (m, n) {
        (0..=16, _) => (1, wide),
        (_, 0..=16) => (wide, 1),
        (0..=64, _) | (_, 0..=64) => (4, 4),
        _ => (wide.min(4 * (m / 64)), wide.min(4 * (n / 64))),
    };
    Block { units_m: 16, units_n: 16, per_m, per_n, step: 8 }
}

/// See [`crate::Kernels::gram_tile`].
pub(crate) fn gram_tile<R: CubeRuntime>(x: &CubeTensor<R>, delta: &CubeTensor<R>, rows: &RowSet) -> Pending<R> {
    let (n, m) = (width_of(x), width_of(delta));
    let tasks = tasks(rows);
    let held = match tasks.iter().map(|task| task.cotangents.len()).max() {
        None | Some(0) => return Pending::nothing(rows),
        Some(most) => most.next_power_of_two(),
    };
    let (x, delta, client) = (rows_as_they_are(x), rows_as_they_are(delta), x.client.clone());
    let ranges: Vec<u32> = tasks
        .iter()
        .flat_map(|task| (0..held).map(|c| task.cotangents.get(c).map_or(0..0, |&k| rows.of(k))))
        .flat_map(|range| [as_u32(range.start), as_u32(range.end)])
        .collect();
    let limits = limits(&client, delta.dtype);
    let matrix_units =
        limits.matrix_units.filter(|plane| plane * PLANES <= limits.units && m >= SIDE / 2 && n >= SIDE / 2);
    let block = block(m, n, held, limits.hardware);
    let (side_m, side_n) = if matrix_units.is_some() { (SIDE, SIDE) } else { (block.m(), block.n()) };
    let (tiles_m, tiles_n, pairs) = (m.div_ceil(side_m), n.div_ceil(side_n), held * (held + 1) / 2);
    let len = tasks.len() * tiles_m * tiles_n * pairs;
    let partials = client.empty(len * size_of::<f32>());
    let grid = CubeCount::Static(as_u32(tiles_n), as_u32(tiles_m), as_u32(tasks.len()));
    let (index, ranges) = (ints(&client, &rows.index), ints(&client, &ranges));
    let (dtype, out) = (x.dtype.into(), array(partials.clone(), len));
    let (x, delta) = (x.into_tensor_arg(), delta.into_tensor_arg());
    match matrix_units {
        Some(plane) => {
            let units = CubeDim::new_2d(as_u32(plane), as_u32(PLANES));
            tile_gram_matrix_units::launch::<R>(&client, grid, units, x, delta, index, ranges, out, held, plane, dtype);
        }
        None => {
            let units = CubeDim::new_1d(as_u32(block.units()));
            tile_gram::launch::<R>(&client, grid, units, x, delta, index, ranges, out, block, held, dtype);
        }
    }
    // partial sums of a task lie together, tile after tile
    let tiles = tiles_m * tiles_n;
    let mut pending = Pending::new(rows, client, partials, len);
    for (t, task) in tasks.iter().enumerate() {
        for &(p, q, entry) in &task.entries {
            let first = t * tiles * pairs + p * (p + 1) / 2 + q;
            pending.add(entry, first, tiles, pairs);
        }
    }
    pending
}
