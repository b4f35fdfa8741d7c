//! Rotary position embedding on a device, a unit a pair of values, or a value that is left as it is.
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

/// `out = x` with the pairs among the first `2·half` values of every head rotated by the angles of the row, or of forward
/// row `index[row]`.
#[cube(launch)]
pub(super) fn rotate<F: Float>(
    x: &Matrix<F>,
    cos: &Matrix<F>,
    sin: &Matrix<F>,
    index: &Array<u32>,
    out: &mut Matrix<F>,
    sign: f32,
    #[comptime] indexed: bool,
    #[comptime] neighbours: bool,
    #[comptime] head_dim: usize,
    #[comptime] half: usize,
    #[define(F)] _dtype: StorageType,
) {
    let of_head = comptime!(head_dim - half);
    let units = out.shape(1) / head_dim * of_head;
    if ABSOLUTE_POS >= out.shape(0) * units {
        terminate!();
    }
    let row = ABSOLUTE_POS / units;
    let i = ABSOLUTE_POS % units % of_head;
    let head = ABSOLUTE_POS % units / of_head * head_dim;
    if i < half {
        let mut low = head + i;
        let mut high = head + i + half;
        if comptime!(neighbours) {
            low = head + 2 * i;
            high = low + 1;
        }
        let mut angle = row;
        if comptime!(indexed) {
            angle = index[row] as usize;
        }
        let c = f32::cast_from(cos[angle * cos.stride(0) + i]);
        let s = f32::cast_from(sin[angle * sin.stride(0) + i]) * sign;
        let a = f32::cast_from(x[row * x.stride(0) + low]);
        let b = f32::cast_from(x[row * x.stride(0) + high]);
        out[row * out.stride(0) + low] = F::cast_from(a * c - b * s);
        out[row * out.stride(0) + high] = F::cast_from(b * c + a * s);
    } else {
        out[row * out.stride(0) + head + i + half] = x[row * x.stride(0) + head + i + half];
    }
}
