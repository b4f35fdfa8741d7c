//! Rows by index and sums over rows on a device, each sum in a fixed order.
// what the macro makes of a kernel's arguments, indices on a device (32 bits there), and kernels read top to bottom
#![allow(
    clippy::trivially_copy_pass_by_ref,
    clippy::used_underscore_binding,
    clippy::cast_possible_truncation,
    clippy::float_cmp,
    clippy::too_many_lines
)]
use cubecl::prelude::Tensor as Matrix;
use cubecl::prelude::*;

/// `out[i] = weights[i]·x[index[i]]`; `out[rows, width]` without gaps, a unit a value.
#[cube(launch)]
pub(super) fn gather_rows<F: Float>(
    x: &Matrix<F>,
    index: &Array<u32>,
    weights: &Array<f32>,
    out: &mut Matrix<F>,
    #[comptime] weighted: bool,
    #[define(F)] _dtype: StorageType,
) {
    let width = out.shape(1);
    if ABSOLUTE_POS >= out.shape(0) * width {
        terminate!();
    }
    let row = ABSOLUTE_POS / width;
    let column = ABSOLUTE_POS % width;
    let value = x[index[row] as usize * x.stride(0) + column];
    if comptime!(weighted) {
        out[ABSOLUTE_POS] = F::cast_from(weights[row] * f32::cast_from(value));
    } else {
        out[ABSOLUTE_POS] = value;
    }
}

/// `out[i] = Σ x[members[starts[i]..starts[i + 1]]]`, in the order of the members; a unit a value.
#[cube(launch)]
pub(super) fn sum_members<F: Float, O: Float>(
    x: &Matrix<F>,
    starts: &Array<u32>,
    members: &Array<u32>,
    out: &mut Matrix<O>,
    #[define(F, O)] _dtypes: [StorageType; 2],
) {
    let width = out.shape(1);
    if ABSOLUTE_POS >= out.shape(0) * width {
        terminate!();
    }
    let row = ABSOLUTE_POS / width;
    let column = ABSOLUTE_POS % width;
    let mut sum = 0.0f32;
    for at in starts[row]..starts[row + 1] {
        sum += f32::cast_from(x[members[at as usize] as usize * x.stride(0) + column]);
    }
    out[ABSOLUTE_POS] = O::cast_from(sum);
}
