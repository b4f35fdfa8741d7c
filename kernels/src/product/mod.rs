//! Matrix products: those of weights, and those that other kernels are made of.
pub mod bench;
pub(crate) mod cpu;
pub(crate) mod cublas;
pub(crate) mod launch;
pub mod reference;

use crate::{Backend, FloatTensor};
use std::ops::Range;

/// Products of matrices.
pub trait Product: Backend {
    /// `scale · x[N, k] · w`, plus `onto` where given; `w` is `[k, m]`, or `[m, k]` when `transposed`, in the type of `x`
    /// or as [stored](crate::Memory::takes_stored).
    fn matmul(
        x: &FloatTensor<Self>,
        w: &FloatTensor<Self>,
        transposed: bool,
        scale: f64,
        onto: Option<FloatTensor<Self>>,
    ) -> FloatTensor<Self>;

    /// `xᵀ[n, rows] · δ[rows, m]`: the gradient of a weight stored `[n, m]`, over the given rows of both.
    fn weight_gradient(x: &FloatTensor<Self>, delta: &FloatTensor<Self>, rows: Range<usize>) -> FloatTensor<Self>;
}
