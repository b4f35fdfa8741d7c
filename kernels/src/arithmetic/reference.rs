//! The same composed of burn's operations.
use crate::FloatTensor;
use crate::reference::{unwrap, wrap};
use burn_backend::Backend;

/// See [`Arithmetic::add_bias`](super::Arithmetic::add_bias).
#[must_use]
pub fn add_bias<B: Backend>(y: FloatTensor<B>, bias: &FloatTensor<B>) -> FloatTensor<B> {
    unwrap(wrap::<B, 2>(&y) + wrap::<B, 1>(bias).unsqueeze())
}

/// See [`Arithmetic::add_scaled`](super::Arithmetic::add_scaled).
#[must_use]
pub fn add_scaled<B: Backend>(a: FloatTensor<B>, b: &FloatTensor<B>, scale: f64) -> FloatTensor<B> {
    B::float_add(a, B::float_mul_scalar(b.clone(), scale.into()))
}

/// See [`Arithmetic::cut`](super::Arithmetic::cut).
#[must_use]
pub fn cut<B: Backend>(x: FloatTensor<B>, [low, high]: [f64; 2]) -> FloatTensor<B> {
    let below = wrap::<B, 2>(&x).clamp_max(high);
    unwrap(if low.is_finite() { below.clamp_min(low) } else { below })
}

/// See [`Arithmetic::cut_vjp`](super::Arithmetic::cut_vjp), with `x` of each backward row.
#[must_use]
pub fn cut_vjp<B: Backend>(x: &FloatTensor<B>, [low, high]: [f64; 2], delta: &FloatTensor<B>) -> FloatTensor<B> {
    let x = wrap::<B, 2>(x);
    let above = x.clone().greater_elem(high);
    let outside = if low.is_finite() { above.bool_or(x.lower_elem(low)) } else { above };
    unwrap(wrap::<B, 2>(delta).mask_fill(outside, 0.0))
}
