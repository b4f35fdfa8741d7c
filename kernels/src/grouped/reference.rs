//! The same composed of burn's operations and some product of two matrices.
use super::Stretch;
use crate::FloatTensor;
use crate::reference::{unwrap, wrap};
use burn_backend::Backend;

/// See [`Grouped::grouped`](super::Grouped::grouped).
#[must_use]
pub fn grouped<B: Backend>(
    x: &FloatTensor<B>,
    stretches: &[Stretch<'_, B>],
    width: usize,
    onto: Option<FloatTensor<B>>,
    product: impl Fn(&FloatTensor<B>, &Stretch<'_, B>) -> FloatTensor<B>,
) -> FloatTensor<B> {
    let rows = wrap::<B, 2>(x);
    let mut y = match &onto {
        Some(onto) => wrap::<B, 2>(onto),
        None => burn_tensor::Tensor::zeros([rows.dims()[0], width], (&rows.device(), rows.dtype())),
    };
    for of in stretches.iter().filter(|of| !of.rows.is_empty()) {
        let here = product(&unwrap(rows.clone().slice([of.rows.clone()])), of);
        let sum = y.clone().slice([of.rows.clone()]) + wrap::<B, 2>(&here);
        y = y.slice_assign([of.rows.clone(), 0..width], sum);
    }
    unwrap(y)
}
