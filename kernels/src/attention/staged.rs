//! Rows of a head in shared memory, for matrix units.
// what the macro makes of a kernel's arguments, and indices on a device (32 bits there)
#![allow(clippy::trivially_copy_pass_by_ref, clippy::used_underscore_binding, clippy::cast_possible_truncation)]
use super::task::Rows;
use crate::on_chip::{MATRIX_UNIT, Piece, WIDE};
use cubecl::prelude::Tensor as Matrix;
use cubecl::prelude::*;

/// How far above what a row's sums are relative to a score may be: exp(8) is 2,981, where f16 holds 65,504.
pub(super) const RISE: f32 = 8.0;

/// Values of a head in shared memory: a whole number of matrix units.
pub(super) const fn padded(head_dim: usize) -> usize {
    head_dim.next_multiple_of(MATRIX_UNIT)
}

/// Pieces from one row of a head to the next in shared memory: an odd number, so that eight rows begin in different banks.
pub(super) const fn pieces(head_dim: usize) -> usize {
    padded(head_dim) / WIDE + 1
}

/// Stages a head's values of some rows, zero where there is none, from a staged row on.
#[cube]
pub(super) fn stage<F: Float>(
    x: &Matrix<Piece<F>>,
    staged: &mut SharedMemory<Piece<F>>,
    first: usize,
    end: usize,
    rows: Rows,
    column: usize,
    #[comptime] to: usize,
    #[comptime] count: usize,
    #[comptime] head_dim: usize,
    #[comptime] units: usize,
) {
    let per_row = comptime!(padded(head_dim) / WIDE);
    #[unroll]
    for turn in 0..comptime!((count * padded(head_dim) / WIDE).div_ceil(units)) {
        let at = UNIT_POS as usize + comptime!(turn * units);
        let row = at / per_row;
        let piece = at % per_row;
        let local = first + row;
        if row < count {
            let mut value = Piece::<F>::new(F::new(0.0));
            if local < end && piece * WIDE < head_dim {
                value = x[(rows.at(local) * x.stride(0) + column) / WIDE + piece];
            }
            staged[(row + to) * comptime!(pieces(head_dim)) + piece] = value;
        }
    }
}
