//! The *gram* reduction on a device: a tile of `x·xᵀ` in registers, and tiles of `δ·δᵀ` multiplied with it on chip.
// what the macro makes of a kernel's arguments, indices on a device (32 bits there), and kernels read top to bottom
#![allow(
    clippy::trivially_copy_pass_by_ref,
    clippy::used_underscore_binding,
    clippy::cast_possible_truncation,
    clippy::float_cmp,
    clippy::too_many_lines
)]
use crate::on_chip::{MATRIX_UNIT, Tile, cube_sum, multiply};
use cubecl::prelude::Tensor as Matrix;
use cubecl::prelude::*;

/// Stages `step` columns of the tile's rows, transposed: `staged[k·side + i] = rows[first + i, column + k]`, zero outside of
/// `[low, high)` and of the matrix.
#[cube]
fn stage<F: Float>(
    rows: &Matrix<F>,
    staged: &mut SharedMemory<f32>,
    low: usize,
    high: usize,
    offset: usize,
    column: usize,
    #[comptime] side: usize,
    #[comptime] tile: Tile,
) {
    let width = rows.shape(1);
    let stride = rows.stride(0);
    #[unroll]
    for turn in 0..comptime!(side * tile.step / tile.units()) {
        let at = UNIT_POS as usize + comptime!(turn * tile.units());
        // neighbouring units read neighbouring columns
        let i = at / comptime!(tile.step);
        let k = at % comptime!(tile.step);
        let mut value = 0.0f32;
        if i >= low && i < high && column + k < width {
            value = f32::cast_from(rows[(offset + i - low) * stride + column + k]);
        }
        staged[k * side + i] = value;
    }
}

/// `acc = a·bᵀ` for rows `a_offset …` of one matrix and `b_offset …` of the same, at places `low..high` of the tile.
#[cube]
fn products<F: Float>(
    rows: &Matrix<F>,
    a: &mut SharedMemory<f32>,
    b: &mut SharedMemory<f32>,
    acc: &mut Array<f32>,
    a_low: usize,
    a_high: usize,
    a_offset: usize,
    b_low: usize,
    b_high: usize,
    b_offset: usize,
    #[comptime] tile: Tile,
) {
    let um = UNIT_POS as usize / comptime!(tile.units_n);
    let un = UNIT_POS as usize % comptime!(tile.units_n);
    #[unroll]
    for e in 0..comptime!(tile.per_unit()) {
        acc[e] = 0.0;
    }
    let width = rows.shape(1);
    let mut column = 0usize;
    while column < width {
        stage::<F>(rows, a, a_low, a_high, a_offset, column, comptime!(tile.m()), tile);
        stage::<F>(rows, b, b_low, b_high, b_offset, column, comptime!(tile.n()), tile);
        sync_cube();
        multiply(a, b, acc, um, un, 0usize, tile, 0usize, comptime!(tile.m()), 1usize);
        sync_cube();
        column += comptime!(tile.step);
    }
}

/// Sums `Σ (x_r·x_s)(δ_r·δ_s)` of a task's pairs of copies (see [`super::plan::Plan`]), for up to three δ of one x.
///
/// `x[N, n]`, `delta[R, m]`; one cube a task; `out` is `[deltas, pairs]`.
#[cube(launch)]
pub(super) fn gram_pairs<F: Float>(
    x: &Matrix<F>,
    first: &Matrix<F>,
    second: &Matrix<F>,
    third: &Matrix<F>,
    tasks: &Array<u32>,
    pairs: &Array<u32>,
    out: &mut Array<f32>,
    #[comptime] tile: Tile,
    #[comptime] deltas: usize,
    #[define(F)] _dtype: StorageType,
) {
    let task = (CUBE_POS_X + CUBE_POS_Y * CUBE_COUNT_X) as usize;
    if task * 6 >= tasks.len() {
        terminate!();
    }
    let mut a = SharedMemory::<f32>::new(comptime!(tile.step * tile.m()));
    let mut b = SharedMemory::<f32>::new(comptime!(tile.step * tile.n()));
    let mut scratch = SharedMemory::<f32>::new(comptime!(tile.units()));
    let mut xx = Array::<f32>::new(comptime!(tile.per_unit()));
    let mut dd = Array::<f32>::new(comptime!(tile.per_unit()));
    let a0 = tasks[task * 6] as usize;
    let a1 = tasks[task * 6 + 1] as usize;
    let b0 = tasks[task * 6 + 2] as usize;
    let b1 = tasks[task * 6 + 3] as usize;
    products::<F>(x, &mut a, &mut b, &mut xx, 0usize, a1 - a0, a0, 0usize, b1 - b0, b0, tile);
    let count = pairs.len() / 6;
    let mut pair = tasks[task * 6 + 4] as usize;
    let end = tasks[task * 6 + 5] as usize;
    while pair < end {
        let a_low = pairs[pair * 6] as usize - a0;
        let a_high = pairs[pair * 6 + 1] as usize - a0;
        let a_row = pairs[pair * 6 + 2] as usize;
        let b_low = pairs[pair * 6 + 3] as usize - b0;
        let b_high = pairs[pair * 6 + 4] as usize - b0;
        let b_row = pairs[pair * 6 + 5] as usize;
        #[unroll]
        for d in 0..deltas {
            if comptime!(d == 0) {
                products::<F>(first, &mut a, &mut b, &mut dd, a_low, a_high, a_row, b_low, b_high, b_row, tile);
            } else if comptime!(d == 1) {
                products::<F>(second, &mut a, &mut b, &mut dd, a_low, a_high, a_row, b_low, b_high, b_row, tile);
            } else {
                products::<F>(third, &mut a, &mut b, &mut dd, a_low, a_high, a_row, b_low, b_high, b_row, tile);
            }
            let mut sum = 0.0f32;
            #[unroll]
            for e in 0..comptime!(tile.per_unit()) {
                sum += xx[e] * dd[e];
            }
            let total = cube_sum(sum, &mut scratch, comptime!(tile.units()));
            if UNIT_POS == 0 {
                out[d * count + pair] = total;
            }
        }
        pair += 1;
    }
}

/// Columns that are staged at a time for matrix units.
const STEP: usize = 32;
/// Side of a cube's tile on matrix units: 2 × 2 planes, each with 2 × 2 of their tiles.
pub(super) const SIDE: usize = 64;
/// Planes of a cube on matrix units.
pub(super) const PLANES: usize = 4;

#[cube]
fn stage_as_stored<F: Float>(
    rows: &Matrix<F>,
    staged: &mut SharedMemory<F>,
    low: usize,
    high: usize,
    offset: usize,
    column: usize,
    #[comptime] plane: usize,
) {
    let width = rows.shape(1);
    let stride = rows.stride(0);
    let mut at = UNIT_POS as usize;
    while at < comptime!(SIDE * STEP) {
        let i = at / STEP;
        let k = at % STEP;
        let mut value = F::new(0.0);
        if i >= low && i < high && column + k < width {
            value = rows[(offset + i - low) * stride + column + k];
        }
        staged[at] = value;
        at += comptime!(plane * PLANES);
    }
}

#[cube]
fn products_matrix_units<F: Float>(
    rows: &Matrix<F>,
    a: &mut SharedMemory<F>,
    b: &mut SharedMemory<F>,
    acc: &Sequence<cmma::Matrix<f32>>,
    a_low: usize,
    a_high: usize,
    a_offset: usize,
    b_low: usize,
    b_high: usize,
    b_offset: usize,
    #[comptime] plane: usize,
) {
    let down = UNIT_POS_Y as usize / 2 * 32;
    let right = UNIT_POS_Y as usize % 2 * 32;
    #[unroll]
    for e in 0..4usize {
        cmma::fill(acc.index(e), 0.0f32);
    }
    let width = rows.shape(1);
    let mut column = 0usize;
    while column < width {
        stage_as_stored::<F>(rows, a, a_low, a_high, a_offset, column, plane);
        stage_as_stored::<F>(rows, b, b_low, b_high, b_offset, column, plane);
        sync_cube();
        #[unroll]
        for k in 0..comptime!(STEP / MATRIX_UNIT) {
            #[unroll]
            for i in 0..2usize {
                let from = (down + comptime!(i * MATRIX_UNIT)) * STEP + comptime!(k * MATRIX_UNIT);
                let left = cmma::Matrix::<F>::from_slice(
                    cmma::MatrixIdent::A,
                    MATRIX_UNIT,
                    MATRIX_UNIT,
                    MATRIX_UNIT,
                    cmma::MatrixLayout::RowMajor,
                    &a.slice(from, comptime!(SIDE * STEP)),
                    comptime!(STEP as u32),
                );
                #[unroll]
                for j in 0..2usize {
                    let from = (right + comptime!(j * MATRIX_UNIT)) * STEP + comptime!(k * MATRIX_UNIT);
                    // bᵀ: its columns are rows of the staged tile
                    let up = cmma::Matrix::<F>::from_slice(
                        cmma::MatrixIdent::B,
                        MATRIX_UNIT,
                        MATRIX_UNIT,
                        MATRIX_UNIT,
                        cmma::MatrixLayout::ColMajor,
                        &b.slice(from, comptime!(SIDE * STEP)),
                        comptime!(STEP as u32),
                    );
                    let sum = acc.index(comptime!(i * 2 + j));
                    cmma::execute::<F, F, f32, f32>(&left, &up, sum, sum);
                }
            }
        }
        sync_cube();
        column += STEP;
    }
}

/// Writes a plane's four tiles to shared memory.
#[cube]
fn put(acc: &Sequence<cmma::Matrix<f32>>, values: &mut SharedMemory<f32>) {
    let tile = comptime!(MATRIX_UNIT * MATRIX_UNIT);
    #[unroll]
    for e in 0..4usize {
        let from =
            UNIT_POS_Y as usize * comptime!(4 * MATRIX_UNIT * MATRIX_UNIT) + comptime!(e * MATRIX_UNIT * MATRIX_UNIT);
        cmma::store(
            &mut values.slice_mut(from, from + tile),
            acc.index(e),
            comptime!(MATRIX_UNIT as u32),
            cmma::MatrixLayout::RowMajor,
        );
    }
    sync_cube();
}

/// [`gram_pairs()`] on matrix units, for f16 and bf16: tiles of 64 × 64 in f32 accumulators.
#[cube(launch)]
pub(super) fn gram_pairs_matrix_units<F: Float>(
    x: &Matrix<F>,
    first: &Matrix<F>,
    second: &Matrix<F>,
    third: &Matrix<F>,
    tasks: &Array<u32>,
    pairs: &Array<u32>,
    out: &mut Array<f32>,
    #[comptime] deltas: usize,
    #[comptime] plane: usize,
    #[define(F)] _dtype: StorageType,
) {
    let task = (CUBE_POS_X + CUBE_POS_Y * CUBE_COUNT_X) as usize;
    if task * 6 >= tasks.len() {
        terminate!();
    }
    let mut a = SharedMemory::<F>::new_aligned(comptime!(SIDE * STEP), 32usize);
    let mut b = SharedMemory::<F>::new_aligned(comptime!(SIDE * STEP), 32usize);
    let mut values = SharedMemory::<f32>::new_aligned(comptime!(SIDE * SIDE), 32usize);
    let mut scratch = SharedMemory::<f32>::new(comptime!(plane * PLANES));
    let per_unit = comptime!(SIDE * SIDE / (plane * PLANES));
    let mut xx = Array::<f32>::new(per_unit);
    let mut acc = Sequence::<cmma::Matrix<f32>>::new();
    #[unroll]
    for _ in 0..4usize {
        acc.push(cmma::Matrix::<f32>::from_value(
            cmma::MatrixIdent::Accumulator,
            MATRIX_UNIT,
            MATRIX_UNIT,
            MATRIX_UNIT,
            cmma::MatrixLayout::Undefined,
            0.0f32,
        ));
    }
    let unit = UNIT_POS as usize;
    let a0 = tasks[task * 6] as usize;
    let a1 = tasks[task * 6 + 1] as usize;
    let b0 = tasks[task * 6 + 2] as usize;
    let b1 = tasks[task * 6 + 3] as usize;
    products_matrix_units::<F>(x, &mut a, &mut b, &acc, 0usize, a1 - a0, a0, 0usize, b1 - b0, b0, plane);
    put(&acc, &mut values);
    #[unroll]
    for e in 0..per_unit {
        xx[e] = values[unit + comptime!(e * plane * PLANES)];
    }
    sync_cube();
    let count = pairs.len() / 6;
    let mut pair = tasks[task * 6 + 4] as usize;
    let end = tasks[task * 6 + 5] as usize;
    while pair < end {
        let a_low = pairs[pair * 6] as usize - a0;
        let a_high = pairs[pair * 6 + 1] as usize - a0;
        let a_row = pairs[pair * 6 + 2] as usize;
        let b_low = pairs[pair * 6 + 3] as usize - b0;
        let b_high = pairs[pair * 6 + 4] as usize - b0;
        let b_row = pairs[pair * 6 + 5] as usize;
        #[unroll]
        for d in 0..deltas {
            if comptime!(d == 0) {
                products_matrix_units::<F>(
                    first, &mut a, &mut b, &acc, a_low, a_high, a_row, b_low, b_high, b_row, plane,
                );
            } else if comptime!(d == 1) {
                products_matrix_units::<F>(
                    second, &mut a, &mut b, &acc, a_low, a_high, a_row, b_low, b_high, b_row, plane,
                );
            } else {
                products_matrix_units::<F>(
                    third, &mut a, &mut b, &acc, a_low, a_high, a_row, b_low, b_high, b_row, plane,
                );
            }
            put(&acc, &mut values);
            let mut sum = 0.0f32;
            #[unroll]
            for e in 0..per_unit {
                sum += xx[e] * values[unit + comptime!(e * plane * PLANES)];
            }
            let total = cube_sum(sum, &mut scratch, comptime!(plane * PLANES));
            if unit == 0 {
                out[d * count + pair] = total;
            }
        }
        pair += 1;
    }
}
