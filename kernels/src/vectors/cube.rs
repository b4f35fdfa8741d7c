//! Inner products of vectors on a device, each sum in a fixed order.
// what the macro makes of a kernel's arguments, indices on a device (32 bits there), and kernels read top to bottom
#![allow(
    clippy::trivially_copy_pass_by_ref,
    clippy::used_underscore_binding,
    clippy::cast_possible_truncation,
    clippy::float_cmp,
    clippy::too_many_lines
)]
use crate::on_chip::cube_sum;
use cubecl::prelude::*;

/// Inner products of stretches of values: a task is the first value of one vector, of another, and their length; the grid
/// is `(pieces, tasks)`, and `out` is `[tasks, pieces]`.
#[cube(launch)]
pub(super) fn dot_pieces<F: Float>(
    x: &Array<F>,
    tasks: &Array<u32>,
    out: &mut Array<f32>,
    #[comptime] piece: usize,
    #[comptime] units: usize,
    #[define(F)] _dtype: StorageType,
) {
    let task = (CUBE_POS_Y + CUBE_POS_Z * CUBE_COUNT_Y) as usize;
    if task * 3 >= tasks.len() {
        terminate!();
    }
    let a = tasks[task * 3] as usize;
    let b = tasks[task * 3 + 1] as usize;
    let len = tasks[task * 3 + 2] as usize;
    let start = CUBE_POS_X as usize * piece;
    let mut at = start + UNIT_POS as usize;
    let mut sum = 0.0f32;
    while at < start + piece {
        if at < len {
            sum += f32::cast_from(x[a + at]) * f32::cast_from(x[b + at]);
        }
        at += units;
    }
    let mut scratch = SharedMemory::<f32>::new(units);
    let total = cube_sum(sum, &mut scratch, units);
    if UNIT_POS == 0 {
        out[task * CUBE_COUNT_X as usize + CUBE_POS_X as usize] = total;
    }
}
