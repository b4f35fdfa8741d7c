//! Element-wise functions of feed-forward layers on a device, a unit a value, in f32.
// what the macro makes of a kernel's arguments, indices on a device (32 bits there), and kernels read top to bottom
#![allow(
    clippy::trivially_copy_pass_by_ref,
    clippy::used_underscore_binding,
    clippy::cast_possible_truncation,
    clippy::float_cmp,
    clippy::too_many_lines
)]
use crate::Activation;
use cubecl::prelude::Tensor as Matrix;
use cubecl::prelude::*;

#[cube]
fn sigmoid(x: f32) -> f32 {
    1.0f32 / (1.0f32 + (-x).exp())
}

/// f(x).
#[cube]
fn value(x: f32, #[comptime] f: Activation) -> f32 {
    let mut y = x.max(0.0f32);
    if comptime!(f == Activation::Silu) {
        y = x * sigmoid(x);
    } else if comptime!(f == Activation::GeluTanh) {
        // ½x(1 + tanh u) = x·σ(2u), u = √(2/π)(x + 0.044715 x³)
        y = x * sigmoid(1.595_769f32 * (x + 0.044_715f32 * x * x * x));
    } else if comptime!(f == Activation::ReluSquared) {
        y = y * y;
    } else if comptime!(f == Activation::Sigmoid) {
        y = sigmoid(x);
    } else if comptime!(f == Activation::Softplus) {
        // ln(1 + eˣ) = max(x, 0) + ln(1 + e^−|x|)
        y += (-x.abs()).exp().log1p();
    } else if comptime!(f == Activation::Exponential) {
        y = x.exp();
    } else if comptime!(f == Activation::Gelu) {
        y = x * 0.5f32 * (1.0f32 + Erf::erf(x * std::f32::consts::FRAC_1_SQRT_2));
    }
    y
}

/// f′(x).
#[cube]
fn slope(x: f32, #[comptime] f: Activation) -> f32 {
    let mut y = select(x > 0.0f32, 1.0f32, 0.0f32);
    if comptime!(f == Activation::Silu) {
        let s = sigmoid(x);
        y = s * (1.0f32 + x * (1.0f32 - s));
    } else if comptime!(f == Activation::GeluTanh) {
        let s = sigmoid(1.595_769f32 * (x + 0.044_715f32 * x * x * x));
        y = s + x * s * (1.0f32 - s) * 1.595_769f32 * (1.0f32 + 0.134_145f32 * x * x);
    } else if comptime!(f == Activation::ReluSquared) {
        y = 2.0f32 * x.max(0.0f32);
    } else if comptime!(f == Activation::Sigmoid) {
        let s = sigmoid(x);
        y = s * (1.0f32 - s);
    } else if comptime!(f == Activation::Softplus) {
        y = sigmoid(x);
    } else if comptime!(f == Activation::Exponential) {
        y = x.exp();
    } else if comptime!(f == Activation::Gelu) {
        let phi = 0.5f32 * (1.0f32 + Erf::erf(x * std::f32::consts::FRAC_1_SQRT_2));
        y = phi + x * 0.398_942_3f32 * (-0.5f32 * x * x).exp();
    }
    y
}

/// `f(a)`, times `b` for a gated layer.
#[cube(launch)]
pub(super) fn activate_values<F: Float>(
    a: &Matrix<F>,
    b: &Matrix<F>,
    out: &mut Matrix<F>,
    #[comptime] f: Activation,
    #[comptime] gated: bool,
    #[define(F)] _dtype: StorageType,
) {
    let width = out.shape(1);
    if ABSOLUTE_POS >= out.shape(0) * width {
        terminate!();
    }
    let row = ABSOLUTE_POS / width;
    let column = ABSOLUTE_POS % width;
    let mut y = value(f32::cast_from(a[row * a.stride(0) + column]), f);
    if comptime!(gated) {
        y *= f32::cast_from(b[row * b.stride(0) + column]);
    }
    out[ABSOLUTE_POS] = F::cast_from(y);
}

/// Cotangents of a and b: δ∘b∘f′(a) and δ∘f(a), over forward rows `index`.
#[cube(launch)]
pub(super) fn activate_values_vjp<F: Float>(
    a: &Matrix<F>,
    b: &Matrix<F>,
    delta: &Matrix<F>,
    index: &Array<u32>,
    da: &mut Matrix<F>,
    db: &mut Matrix<F>,
    #[comptime] f: Activation,
    #[comptime] gated: bool,
    #[define(F)] _dtype: StorageType,
) {
    let width = da.shape(1);
    if ABSOLUTE_POS >= da.shape(0) * width {
        terminate!();
    }
    let row = ABSOLUTE_POS / width;
    let column = ABSOLUTE_POS % width;
    let from = index[row] as usize;
    let x = f32::cast_from(a[from * a.stride(0) + column]);
    let d = f32::cast_from(delta[row * delta.stride(0) + column]);
    if comptime!(gated) {
        da[ABSOLUTE_POS] = F::cast_from(d * f32::cast_from(b[from * b.stride(0) + column]) * slope(x, f));
        db[ABSOLUTE_POS] = F::cast_from(d * value(x, f));
    } else {
        da[ABSOLUTE_POS] = F::cast_from(d * slope(x, f));
    }
}
