//! Rotary position embedding on a device, a unit a pair of values.
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

/// `out = x` with the two halves of every head turned by the angles of the row, or of forward row `index[row]`.
#[cube(launch)]
pub(super) fn rotate<F: Float>(
    x: &Matrix<F>,
    cos: &Matrix<F>,
    sin: &Matrix<F>,
    index: &Array<u32>,
    out: &mut Matrix<F>,
    sign: f32,
    #[comptime] indexed: bool,
    #[comptime] head_dim: usize,
    #[define(F)] _dtype: StorageType,
) {
    let half = comptime!(head_dim / 2);
    let pairs = out.shape(1) / 2;
    if ABSOLUTE_POS >= out.shape(0) * pairs {
        terminate!();
    }
    let row = ABSOLUTE_POS / pairs;
    let pair = ABSOLUTE_POS % pairs;
    let i = pair % half;
    let low = pair / half * head_dim + i;
    let mut angle = row;
    if comptime!(indexed) {
        angle = index[row] as usize;
    }
    let c = f32::cast_from(cos[angle * cos.stride(0) + i]);
    let s = f32::cast_from(sin[angle * sin.stride(0) + i]) * sign;
    let a = f32::cast_from(x[row * x.stride(0) + low]);
    let b = f32::cast_from(x[row * x.stride(0) + low + half]);
    out[row * out.stride(0) + low] = F::cast_from(a * c - b * s);
    out[row * out.stride(0) + low + half] = F::cast_from(b * c + a * s);
}
