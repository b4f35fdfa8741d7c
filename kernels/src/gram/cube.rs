//! The *gram* reduction on a device: row Grams of inputs and cotangents multiplied entry by entry and summed.
// what the macro makes of a kernel's arguments, indices on a device (32 bits there), and kernels read top to bottom
#![allow(
    clippy::trivially_copy_pass_by_ref,
    clippy::used_underscore_binding,
    clippy::cast_possible_truncation,
    clippy::float_cmp
)]
use crate::on_chip::cube_sum;
use cubecl::prelude::Tensor as Matrix;
use cubecl::prelude::*;

/// Units of a cube.
pub(super) const UNITS: usize = 256;
/// Rows of a task.
pub(super) const ROWS: usize = 16;
/// Columns of a task: four a unit.
pub(super) const COLUMNS: usize = 1024;

/// Sums `Σ (x_r·x_s)(δ_r·δ_s)` over a task's rows and columns, one cube a task.
///
/// `xx[sets, N, N]`, `dd[sets, R, R]`; a task is a set, its rows of `dd` from one to another, its columns likewise, and where in
/// `index` the forward rows of its rows and of its columns begin.
#[cube(launch)]
pub(super) fn sum_products(
    xx: &Matrix<f32>,
    dd: &Matrix<f32>,
    index: &Array<u32>,
    tasks: &Array<u32>,
    out: &mut Array<f32>,
) {
    let number = (CUBE_POS_X + CUBE_POS_Y * CUBE_COUNT_X) as usize;
    let task = number * 7;
    if task >= tasks.len() {
        terminate!();
    }
    let mut scratch = SharedMemory::<f32>::new(UNITS);
    let set = tasks[task] as usize;
    let last_row = tasks[task + 2] as usize;
    let last_column = tasks[task + 4] as usize;
    let of_rows = tasks[task + 5] as usize;
    let of_columns = tasks[task + 6] as usize;
    let mut sum = 0.0f32;
    let mut column = tasks[task + 3] as usize + UNIT_POS as usize;
    while column < last_column {
        let input = set * xx.stride(0) + index[of_columns + column] as usize;
        let product = set * dd.stride(0) + column;
        let mut row = tasks[task + 1] as usize;
        while row < last_row {
            sum += dd[product + row * dd.stride(1)] * xx[input + index[of_rows + row] as usize * xx.stride(1)];
            row += 1;
        }
        column += UNITS;
    }
    let total = cube_sum(sum, &mut scratch, UNITS);
    if UNIT_POS == 0 {
        out[number] = total;
    }
}
