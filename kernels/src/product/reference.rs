//! The same composed of burn's operations.
use crate::reference::{unwrap, wrap};
use crate::{FloatTensor, Memory, RowSet};
use burn_backend::Backend;
use burn_tensor::Tensor;
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

/// See [`Product::weight_gradients`](super::Product::weight_gradients).
#[must_use]
pub fn weight_gradients<B: Memory>(
    x: &FloatTensor<B>,
    delta: &FloatTensor<B>,
    rows: &RowSet,
    cotangents: &[usize],
) -> FloatTensor<B> {
    let [n, m] = [wrap::<B, 2>(x).dims()[1], wrap::<B, 2>(delta).dims()[1]];
    let of = |&k: &usize| {
        let inputs = rows.index[rows.of(k)].iter().map(|&row| wrap::<B, 2>(x).slice([row as usize..row as usize + 1]));
        let inputs = unwrap(Tensor::cat(inputs.collect(), 0));
        let own = unwrap(wrap::<B, 2>(delta).slice([rows.of(k)]));
        wrap::<B, 2>(&weight_gradient::<B>(&inputs, &own, 0..rows.of(k).len())).reshape([1, n * m])
    };
    unwrap(Tensor::cat(cotangents.iter().map(of).collect(), 0))
}

/// See [`Product::row_products`](super::Product::row_products).
#[must_use]
pub fn row_products<B: Memory>(a: &FloatTensor<B>, b: &FloatTensor<B>) -> Vec<f64> {
    B::download(&unwrap(wrap::<B, 2>(a).matmul(wrap::<B, 2>(b).transpose())))
}
