//! Short convolutions on a device, a unit a value, summed in f32.
// what the macro makes of a kernel's arguments, indices on a device (32 bits there), and kernels read top to bottom
#![allow(
    clippy::trivially_copy_pass_by_ref,
    clippy::used_underscore_binding,
    clippy::cast_possible_truncation,
    clippy::float_cmp,
    clippy::too_many_lines
)]
use super::NO_ROW;
use cubecl::prelude::Tensor as Matrix;
use cubecl::prelude::*;

/// `out[r] = Σ_a w[·, a] ∘ x[sources[r, a]]`.
#[cube(launch)]
pub(super) fn weighted_rows<F: Float>(
    x: &Matrix<F>,
    w: &Matrix<F>,
    sources: &Array<u32>,
    out: &mut Matrix<F>,
    #[comptime] taps: usize,
    #[define(F)] _dtype: StorageType,
) {
    let width = out.shape(1);
    if ABSOLUTE_POS >= out.shape(0) * width {
        terminate!();
    }
    let row = ABSOLUTE_POS / width;
    let column = ABSOLUTE_POS % width;
    let mut sum = 0.0f32;
    #[unroll]
    for a in 0..taps {
        let source = sources[row * taps + a];
        if source != NO_ROW {
            let weight = f32::cast_from(w[column * taps + comptime!(taps - 1 - a)]);
            sum += weight * f32::cast_from(x[source as usize * x.stride(0) + column]);
        }
    }
    out[ABSOLUTE_POS] = F::cast_from(sum);
}

/// `out[r, ·, a] = δ[r] ∘ x[sources[r, a]]`, a unit a value of δ.
#[cube(launch)]
pub(super) fn weight_terms<F: Float>(
    x: &Matrix<F>,
    delta: &Matrix<F>,
    sources: &Array<u32>,
    out: &mut Matrix<F>,
    #[comptime] taps: usize,
    #[define(F)] _dtype: StorageType,
) {
    let width = delta.shape(1);
    if ABSOLUTE_POS >= delta.shape(0) * width {
        terminate!();
    }
    let row = ABSOLUTE_POS / width;
    let column = ABSOLUTE_POS % width;
    let d = f32::cast_from(delta[row * delta.stride(0) + column]);
    #[unroll]
    for a in 0..taps {
        let source = sources[row * taps + a];
        let mut term = 0.0f32;
        if source != NO_ROW {
            term = d * f32::cast_from(x[source as usize * x.stride(0) + column]);
        }
        out[row * width * taps + column * taps + comptime!(taps - 1 - a)] = F::cast_from(term);
    }
}
