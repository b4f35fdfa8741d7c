//! Matrix products: those of weights, and those that other kernels are made of.
pub mod bench;
pub(crate) mod cpu;
pub(crate) mod cublas;
pub(crate) mod launch;
pub(crate) mod packed;
pub mod reference;

use crate::{Backend, FloatTensor, RowSet};
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

    /// The gradient `Σ_r x[index[r]]ᵀ δ[r]` of a weight stored `[n, m]` for each of some cotangents, `[cotangents.len(), n·m]`.
    fn weight_gradients(
        x: &FloatTensor<Self>,
        delta: &FloatTensor<Self>,
        rows: &RowSet,
        cotangents: &[usize],
    ) -> FloatTensor<Self>;

    /// `a[K, n] · b[L, n]ᵀ` on the host, `[K, L]` row by row: inside a panel of columns in the working type, across panels in f64. A panel is
    /// of 4,096 columns on the CPU, and 65,536 on a device.
    fn row_products(a: &FloatTensor<Self>, b: &FloatTensor<Self>) -> Vec<f64>;
}
