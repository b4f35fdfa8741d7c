//! The same composed of burn's operations.
use crate::FloatTensor;
use crate::reference::{unwrap, wrap};
use burn_backend::Backend;
use std::ops::Range;

/// See [`Product::matmul`](super::Product::matmul).
#[must_use]
pub fn matmul<B: Backend>(
    x: &FloatTensor<B>,
    w: &FloatTensor<B>,
    transposed: bool,
    scale: f64,
    onto: Option<FloatTensor<B>>,
) -> FloatTensor<B> {
    let w = wrap::<B, 2>(w);
    let y = wrap::<B, 2>(x).matmul(if transposed { w.transpose() } else { w });
    let y = if scale.to_bits() == 1.0f64.to_bits() { y } else { y * scale };
    unwrap(match onto {
        Some(onto) => wrap(&onto) + y,
        None => y,
    })
}

/// See [`Product::weight_gradient`](super::Product::weight_gradient).
#[must_use]
pub fn weight_gradient<B: Backend>(x: &FloatTensor<B>, delta: &FloatTensor<B>, rows: Range<usize>) -> FloatTensor<B> {
    let part = |t: &FloatTensor<B>| wrap::<B, 2>(t).slice([rows.clone()]);
    unwrap(part(x).transpose().matmul(part(delta)))
}
