//! Norms on a device, one cube a row, in f32.
// what the macro makes of a kernel's arguments, indices on a device (32 bits there), and kernels read top to bottom
#![allow(
    clippy::trivially_copy_pass_by_ref,
    clippy::used_underscore_binding,
    clippy::cast_possible_truncation,
    clippy::float_cmp,
    clippy::too_many_lines
)]
use crate::on_chip::cube_sum;
use cubecl::prelude::Tensor as Matrix;
use cubecl::prelude::*;

/// μ of a row, 0 where the norm takes no mean off.
#[cube]
fn mean<F: Float>(
    x: &Matrix<F>,
    first: usize,
    scratch: &mut SharedMemory<f32>,
    #[comptime] centred: bool,
    #[comptime] units: usize,
) -> f32 {
    let mut result = 0.0f32;
    if comptime!(centred) {
        let width = x.shape(1);
        let mut sum = 0.0f32;
        let mut at = UNIT_POS as usize;
        while at < width {
            sum += f32::cast_from(x[first + at]);
            at += units;
        }
        result = cube_sum(sum, scratch, units) / f32::cast_from(width);
    }
    result
}

/// 1/√(σ² + ε) of a row.
#[cube]
fn inverse<F: Float>(
    x: &Matrix<F>,
    first: usize,
    mean: f32,
    eps: f32,
    scratch: &mut SharedMemory<f32>,
    #[comptime] units: usize,
) -> f32 {
    let width = x.shape(1);
    let mut sum = 0.0f32;
    let mut at = UNIT_POS as usize;
    while at < width {
        let value = f32::cast_from(x[first + at]) - mean;
        sum += value * value;
        at += units;
    }
    let square = cube_sum(sum, scratch, units);
    1.0f32 / (square / f32::cast_from(width) + eps).sqrt()
}

/// `y = x̂·gain + bias`.
#[cube(launch)]
pub(super) fn norm_rows<F: Float>(
    x: &Matrix<F>,
    gain: &Array<F>,
    bias: &Array<F>,
    y: &mut Matrix<F>,
    eps: f32,
    #[comptime] centred: bool,
    #[comptime] biased: bool,
    #[comptime] units: usize,
    #[define(F)] _dtype: StorageType,
) {
    let row = (CUBE_POS_X + CUBE_POS_Y * CUBE_COUNT_X) as usize;
    if row >= y.shape(0) {
        terminate!();
    }
    let width = x.shape(1);
    let first = row * x.stride(0);
    let mut scratch = SharedMemory::<f32>::new(units);
    let mu = mean::<F>(x, first, &mut scratch, centred, units);
    let r = inverse::<F>(x, first, mu, eps, &mut scratch, units);
    let mut at = UNIT_POS as usize;
    while at < width {
        let mut value = (f32::cast_from(x[first + at]) - mu) * r * f32::cast_from(gain[at]);
        if comptime!(biased) {
            value += f32::cast_from(bias[at]);
        }
        y[row * y.stride(0) + at] = F::cast_from(value);
        at += units;
    }
}

/// `dx = onto + r·(g − mean(g) − x̂·mean(g∘x̂))`, g = δ∘gain, x of the forward row `index[row]`; no mean(g) for the RMS norm.
#[cube(launch)]
pub(super) fn norm_rows_vjp<F: Float>(
    x: &Matrix<F>,
    gain: &Array<F>,
    delta: &Matrix<F>,
    index: &Array<u32>,
    onto: &Matrix<F>,
    dx: &mut Matrix<F>,
    eps: f32,
    #[comptime] centred: bool,
    #[comptime] adds: bool,
    #[comptime] units: usize,
    #[define(F)] _dtype: StorageType,
) {
    let row = (CUBE_POS_X + CUBE_POS_Y * CUBE_COUNT_X) as usize;
    if row >= dx.shape(0) {
        terminate!();
    }
    let width = x.shape(1);
    let first = index[row] as usize * x.stride(0);
    let mut scratch = SharedMemory::<f32>::new(units);
    let mu = mean::<F>(x, first, &mut scratch, centred, units);
    let r = inverse::<F>(x, first, mu, eps, &mut scratch, units);
    let mut along = 0.0f32;
    let mut flat = 0.0f32;
    let mut at = UNIT_POS as usize;
    while at < width {
        let g = f32::cast_from(delta[row * delta.stride(0) + at]) * f32::cast_from(gain[at]);
        along += g * (f32::cast_from(x[first + at]) - mu) * r;
        flat += g;
        at += units;
    }
    let size = f32::cast_from(width);
    let of_normal = cube_sum(along, &mut scratch, units) / size;
    let mut of_all = 0.0f32;
    if comptime!(centred) {
        of_all = cube_sum(flat, &mut scratch, units) / size;
    }
    at = UNIT_POS as usize;
    while at < width {
        let g = f32::cast_from(delta[row * delta.stride(0) + at]) * f32::cast_from(gain[at]);
        let normal = (f32::cast_from(x[first + at]) - mu) * r;
        let mut value = r * (g - of_all - normal * of_normal);
        if comptime!(adds) {
            value += f32::cast_from(onto[row * onto.stride(0) + at]);
        }
        dx[row * dx.stride(0) + at] = F::cast_from(value);
        at += units;
    }
}

/// `δ ∘ x̂[index]`.
#[cube(launch)]
pub(super) fn norm_rows_gain_terms<F: Float>(
    x: &Matrix<F>,
    delta: &Matrix<F>,
    index: &Array<u32>,
    terms: &mut Matrix<F>,
    eps: f32,
    #[comptime] centred: bool,
    #[comptime] units: usize,
    #[define(F)] _dtype: StorageType,
) {
    let row = (CUBE_POS_X + CUBE_POS_Y * CUBE_COUNT_X) as usize;
    if row >= terms.shape(0) {
        terminate!();
    }
    let width = x.shape(1);
    let first = index[row] as usize * x.stride(0);
    let mut scratch = SharedMemory::<f32>::new(units);
    let mu = mean::<F>(x, first, &mut scratch, centred, units);
    let r = inverse::<F>(x, first, mu, eps, &mut scratch, units);
    let mut at = UNIT_POS as usize;
    while at < width {
        let normal = (f32::cast_from(x[first + at]) - mu) * r;
        terms[row * terms.stride(0) + at] = F::cast_from(f32::cast_from(delta[row * delta.stride(0) + at]) * normal);
        at += units;
    }
}
