//! The same composed of burn's operations, for one sequence.
use crate::FloatTensor;
use crate::reference::{unwrap, wrap};
use burn_backend::Backend;
use burn_tensor::Tensor;

/// [`Convolve::convolve`](super::Convolve::convolve) of the rows of one sequence.
#[must_use]
pub fn convolve<B: Backend>(x: &FloatTensor<B>, w: &FloatTensor<B>, taps: usize) -> FloatTensor<B> {
    let x = wrap::<B, 2>(x);
    let [rows, width] = x.dims();
    let w = wrap::<B, 1>(w).reshape([width, taps]).transpose();
    let padding = Tensor::zeros([taps - 1, width], (&x.device(), x.dtype()));
    let padded = Tensor::cat(vec![padding, x], 0);
    let tap = |j: usize| padded.clone().slice([j..j + rows, 0..width]) * w.clone().slice([j..j + 1, 0..width]);
    unwrap((1..taps).fold(tap(0), |sum, j| sum + tap(j)))
}
