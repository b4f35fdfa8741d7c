//! Sums and products entry by entry.
mod cpu;
mod launch;
pub mod reference;

use crate::{Backend, FloatTensor};

/// Entry by entry, over tensors of equal shapes, or a tensor and a number.
pub trait Arithmetic: Backend {
    /// Adds a vector `[m]` to every row of `y[N, m]`.
    fn add_bias(y: FloatTensor<Self>, bias: &FloatTensor<Self>) -> FloatTensor<Self>;

    /// `a + scale·b`, of equal shapes.
    fn add_scaled(a: FloatTensor<Self>, b: &FloatTensor<Self>, scale: f64) -> FloatTensor<Self>;

    /// `a ∘ b`, of equal shapes.
    fn times(a: FloatTensor<Self>, b: FloatTensor<Self>) -> FloatTensor<Self>;

    /// `x + number`.
    fn add_number(x: FloatTensor<Self>, number: f64) -> FloatTensor<Self>;

    /// `number · x`.
    fn times_number(x: FloatTensor<Self>, number: f64) -> FloatTensor<Self>;

    /// `x` cut at the lower and the upper of two bounds, of which the lower may be infinite.
    fn cut(x: FloatTensor<Self>, bounds: [f64; 2]) -> FloatTensor<Self>;

    /// Cotangent of what was cut, for backward rows δ over forward rows `index`: δ where x is within the bounds, 0 elsewhere.
    fn cut_vjp(x: &FloatTensor<Self>, bounds: [f64; 2], delta: FloatTensor<Self>, index: &[u32]) -> FloatTensor<Self>;
}
