//! The *tile* reduction on a device: tiles of all held cotangents' gradients in registers, multiplied and summed on chip.
// what the macro makes of a kernel's arguments, indices on a device (32 bits there), and kernels read top to bottom
#![allow(
    clippy::trivially_copy_pass_by_ref,
    clippy::used_underscore_binding,
    clippy::cast_possible_truncation,
    clippy::float_cmp,
    clippy::too_many_lines
)]
use crate::on_chip::{MATRIX_UNIT, Piece, Tile, WIDE, cube_sum, multiply};
use cubecl::prelude::Tensor as Matrix;
use cubecl::prelude::*;

/// Products of the gradients `Σ_r δ[r]ᵀ x[index[r]]` of the cotangents that a task holds, over one tile a cube.
///
/// `x[N, n]`, `delta[R, m]`; a task is `held` ranges of rows, `[begin, end)` each; the grid is `(n tiles, m tiles, tasks)`
/// and `out` is `[tasks, m tiles, n tiles, held(held + 1)/2]`: pairs (0,0), (1,0), (1,1), (2,0) …
/// Where `scaled`, an entry of a gradient is first multiplied with that of `roots[n, m]`.
#[cube(launch)]
pub(super) fn tile_gram<F: Float>(
    x: &Matrix<F>,
    delta: &Matrix<F>,
    index: &Array<u32>,
    tasks: &Array<u32>,
    roots: &Array<f32>,
    out: &mut Array<f32>,
    #[comptime] tile: Tile,
    #[comptime] held: usize,
    #[comptime] scaled: bool,
    #[define(F)] _dtype: StorageType,
) {
    let (n, m) = (x.shape(1), delta.shape(1));
    let (x_row, delta_row) = (x.stride(0), delta.stride(0));
    let unit = UNIT_POS as usize;
    let um = unit / comptime!(tile.units_n);
    let un = unit % comptime!(tile.units_n);
    let i0 = CUBE_POS_Y as usize * comptime!(tile.m());
    let j0 = CUBE_POS_X as usize * comptime!(tile.n());
    let task = CUBE_POS_Z as usize;
    let mut a = SharedMemory::<f32>::new(comptime!(tile.step * tile.m()));
    let mut b = SharedMemory::<f32>::new(comptime!(tile.step * tile.n()));
    let mut acc = Array::<f32>::new(comptime!(held * tile.per_unit()));
    #[unroll]
    for e in 0..comptime!(held * tile.per_unit()) {
        acc[e] = 0.0;
    }
    #[unroll]
    for c in 0..held {
        let mut row = tasks[(task * held + c) * 2] as usize;
        let end = tasks[(task * held + c) * 2 + 1] as usize;
        while row < end {
            #[unroll]
            for turn in 0..comptime!((tile.step * tile.m()).div_ceil(tile.units())) {
                let at = unit + comptime!(turn * tile.units());
                let r = row + at / comptime!(tile.m());
                let i = i0 + at % comptime!(tile.m());
                let mut value = 0.0f32;
                if r < end && i < m {
                    value = f32::cast_from(delta[r * delta_row + i]);
                }
                if at < comptime!(tile.step * tile.m()) {
                    a[at] = value;
                }
            }
            #[unroll]
            for turn in 0..comptime!((tile.step * tile.n()).div_ceil(tile.units())) {
                let at = unit + comptime!(turn * tile.units());
                let r = row + at / comptime!(tile.n());
                let j = j0 + at % comptime!(tile.n());
                let mut value = 0.0f32;
                if r < end && j < n {
                    value = f32::cast_from(x[index[r] as usize * x_row + j]);
                }
                if at < comptime!(tile.step * tile.n()) {
                    b[at] = value;
                }
            }
            sync_cube();
            multiply(
                &a,
                &b,
                &mut acc,
                um,
                un,
                0usize,
                tile,
                comptime!(c * tile.per_unit()),
                comptime!(tile.m()),
                1usize,
            );
            sync_cube();
            row += comptime!(tile.step);
        }
    }
    if comptime!(scaled) {
        #[unroll]
        for e in 0..comptime!(tile.per_unit()) {
            let i = i0 + um + comptime!(e / tile.per_n * tile.units_m);
            let j = j0 + un + comptime!(e % tile.per_n * tile.units_n);
            let mut root = 0.0f32;
            if i < m && j < n {
                root = roots[j * m + i];
            }
            #[unroll]
            for c in 0..held {
                acc[comptime!(c * tile.per_unit() + e)] *= root;
            }
        }
    }
    let mut scratch = SharedMemory::<f32>::new(comptime!(tile.units()));
    let cube = (task * CUBE_COUNT_Y as usize + CUBE_POS_Y as usize) * CUBE_COUNT_X as usize + CUBE_POS_X as usize;
    #[unroll]
    for p in 0..held {
        #[unroll]
        for q in 0..comptime!(p + 1) {
            let mut sum = 0.0f32;
            #[unroll]
            for e in 0..comptime!(tile.per_unit()) {
                sum += acc[comptime!(p * tile.per_unit() + e)] * acc[comptime!(q * tile.per_unit() + e)];
            }
            let total = cube_sum(sum, &mut scratch, comptime!(tile.units()));
            if unit == 0 {
                out[cube * comptime!(held * (held + 1) / 2) + comptime!(p * (p + 1) / 2 + q)] = total;
            }
        }
    }
}

/// Multiplies gradients in rows of `width`, entry `i·n + j` of a row with `roots[j, first + i]` of `roots[n, m]`.
#[cube(launch)]
pub(super) fn scale_panel(
    gradients: &mut Array<f32>,
    roots: &Array<f32>,
    n: usize,
    m: usize,
    first: usize,
    width: usize,
) {
    if ABSOLUTE_POS < gradients.len() {
        let at = ABSOLUTE_POS % width;
        let i = first + at / n;
        // what follows the last entry of a row is zero
        if i < m {
            gradients[ABSOLUTE_POS] *= roots[at % n * m + i];
        }
    }
}

/// Rows that are staged at a time for matrix units.
const STEP: usize = 32;
/// Side of a cube's tile on matrix units: 4 × 2 planes, each with 2 × 4 of their tiles.
pub(super) const SIDE: usize = 128;
/// Planes of a cube on matrix units.
pub(super) const PLANES: usize = 8;
/// Pieces from one staged row to the next: rows begin in different banks.
const PIECES: usize = SIDE / WIDE + 1;

/// Bytes of shared memory for some cotangents held at once.
pub(super) const fn shared_bytes(held: usize) -> usize {
    2 * STEP * PIECES * WIDE * 2 + PLANES * held * MATRIX_UNIT * MATRIX_UNIT * 4 + 1024
}

/// A factor of 16 × 16 from a staged piece on.
#[cube]
fn factor<F: Float>(
    staged: &SharedMemory<Piece<F>>,
    from: usize,
    #[comptime] ident: cmma::MatrixIdent,
    #[comptime] layout: cmma::MatrixLayout,
) -> cmma::Matrix<F> {
    let factor = cmma::Matrix::<F>::from_value(ident, MATRIX_UNIT, MATRIX_UNIT, MATRIX_UNIT, layout, F::new(0.0));
    cmma::load(&factor, &staged.slice(from, comptime!(STEP * PIECES)), comptime!((PIECES * WIDE) as u32));
    factor
}

/// The same on matrix units, for f16 and bf16: tiles of 128 × 128 in f32 accumulators.
#[cube(launch)]
pub(super) fn tile_gram_matrix_units<F: Float>(
    x: &Matrix<Piece<F>>,
    delta: &Matrix<Piece<F>>,
    index: &Array<u32>,
    tasks: &Array<u32>,
    roots: &Array<f32>,
    out: &mut Array<f32>,
    #[comptime] held: usize,
    #[comptime] plane: usize,
    #[comptime] scaled: bool,
    #[define(F)] _dtype: StorageType,
) {
    let (n, m) = (x.shape(1), delta.shape(1));
    let (x_row, delta_row) = (x.stride(0), delta.stride(0));
    let unit = UNIT_POS as usize;
    let i0 = CUBE_POS_Y as usize * SIDE;
    let j0 = CUBE_POS_X as usize * SIDE;
    let task = CUBE_POS_Z as usize;
    let this = UNIT_POS_Y as usize;
    let down = this / 2 * 32;
    let right = this % 2 * 64;
    let mut a = SharedMemory::<Piece<F>>::new_aligned(comptime!(STEP * PIECES), 32usize);
    let mut b = SharedMemory::<Piece<F>>::new_aligned(comptime!(STEP * PIECES), 32usize);
    let mut acc = Sequence::<cmma::Matrix<f32>>::new();
    #[unroll]
    for _ in 0..comptime!(held * 8) {
        acc.push(cmma::Matrix::<f32>::from_value(
            cmma::MatrixIdent::Accumulator,
            MATRIX_UNIT,
            MATRIX_UNIT,
            MATRIX_UNIT,
            cmma::MatrixLayout::Undefined,
            0.0f32,
        ));
    }
    #[unroll]
    for c in 0..held {
        let mut row = tasks[(task * held + c) * 2] as usize;
        let end = tasks[(task * held + c) * 2 + 1] as usize;
        while row < end {
            #[unroll]
            for turn in 0..comptime!(STEP * SIDE / WIDE / (plane * PLANES)) {
                let at = unit + comptime!(turn * plane * PLANES);
                let of = at / comptime!(SIDE / WIDE);
                let piece = at % comptime!(SIDE / WIDE);
                let i = i0 + piece * WIDE;
                let j = j0 + piece * WIDE;
                let mut left = Piece::<F>::new(F::new(0.0));
                let mut up = Piece::<F>::new(F::new(0.0));
                if row + of < end {
                    if i < m {
                        left = delta[((row + of) * delta_row + i) / WIDE];
                    }
                    if j < n {
                        up = x[(index[row + of] as usize * x_row + j) / WIDE];
                    }
                }
                a[of * PIECES + piece] = left;
                b[of * PIECES + piece] = up;
            }
            sync_cube();
            for k in 0..comptime!(STEP / MATRIX_UNIT) {
                let first = k * comptime!(MATRIX_UNIT * PIECES);
                let mut left = Sequence::<cmma::Matrix<F>>::new();
                #[unroll]
                for i in 0..2usize {
                    // δᵀ: its columns are rows of the staged tile
                    let from = first + (down + comptime!(i * MATRIX_UNIT)) / WIDE;
                    left.push(factor::<F>(&a, from, cmma::MatrixIdent::A, cmma::MatrixLayout::ColMajor));
                }
                #[unroll]
                for j in 0..4usize {
                    let from = first + (right + comptime!(j * MATRIX_UNIT)) / WIDE;
                    let up = factor::<F>(&b, from, cmma::MatrixIdent::B, cmma::MatrixLayout::RowMajor);
                    #[unroll]
                    for i in 0..2usize {
                        let sum = acc.index(comptime!(c * 8 + i * 4 + j));
                        cmma::execute::<F, F, f32, f32>(left.index(i), &up, sum, sum);
                    }
                }
            }
            sync_cube();
            row += STEP;
        }
    }
    let tile = comptime!(MATRIX_UNIT * MATRIX_UNIT);
    let mut values = SharedMemory::<f32>::new_aligned(comptime!(PLANES * held * tile), 32usize);
    let mut sums = Array::<f32>::new(comptime!(held * (held + 1) / 2));
    #[unroll]
    for pair in 0..comptime!(held * (held + 1) / 2) {
        sums[pair] = 0.0;
    }
    let own = this * comptime!(held * tile);
    #[unroll]
    for e in 0..8usize {
        #[unroll]
        for c in 0..held {
            let from = own + comptime!(c * tile);
            cmma::store(
                &mut values.slice_mut(from, from + tile),
                acc.index(comptime!(c * 8 + e)),
                comptime!(MATRIX_UNIT as u32),
                cmma::MatrixLayout::RowMajor,
            );
        }
        sync_cube();
        if comptime!(scaled) {
            let mut at = UNIT_POS_X as usize;
            while at < tile {
                let i = i0 + down + comptime!(e / 4 * MATRIX_UNIT) + at / MATRIX_UNIT;
                let j = j0 + right + comptime!(e % 4 * MATRIX_UNIT) + at % MATRIX_UNIT;
                let mut root = 0.0f32;
                if i < m && j < n {
                    root = roots[j * m + i];
                }
                #[unroll]
                for c in 0..held {
                    values[own + comptime!(c * tile) + at] *= root;
                }
                at += plane;
            }
        }
        #[unroll]
        for p in 0..held {
            #[unroll]
            for q in 0..comptime!(p + 1) {
                let mut at = UNIT_POS_X as usize;
                while at < tile {
                    sums[comptime!(p * (p + 1) / 2 + q)] +=
                        values[own + comptime!(p * tile) + at] * values[own + comptime!(q * tile) + at];
                    at += plane;
                }
            }
        }
        sync_cube();
    }
    let mut scratch = SharedMemory::<f32>::new(comptime!(plane * PLANES));
    let cube = (task * CUBE_COUNT_Y as usize + CUBE_POS_Y as usize) * CUBE_COUNT_X as usize + CUBE_POS_X as usize;
    #[unroll]
    for pair in 0..comptime!(held * (held + 1) / 2) {
        let total = cube_sum(sums[pair], &mut scratch, comptime!(plane * PLANES));
        if unit == 0 {
            out[cube * comptime!(held * (held + 1) / 2) + pair] = total;
        }
    }
}
