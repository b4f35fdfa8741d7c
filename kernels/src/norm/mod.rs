//! RMS norm and `LayerNorm` over rows, with their vjp (docs/mathematics.md, section 3).
//!
//! `y = x̂ ∘ g + b`, `x̂ = (x − μ)/√(σ² + ε)`; with `u = δ ∘ g`, `dx = (u − mean(u) − x̂ · mean(u ∘ x̂))/√(σ² + ε)`, and `mean(u)`
//! left out for the RMS norm.
pub mod bench;
mod cpu;
mod cube;
mod launch;
pub mod reference;

use crate::{Backend, FloatTensor};

/// A row-wise normalisation: `y = x̂·gain + bias`, `x̂ = (x − μ)/√(σ² + ε)`, with μ = 0 for the RMS norm.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NormKind {
    /// Whether the mean is taken off first (`LayerNorm`) or not (RMS norm).
    pub centred: bool,
    /// ε under the root.
    pub eps: f64,
}

/// Norms of rows.
pub trait Norm: Backend {
    /// Normalised rows times `gain`, plus `bias`.
    fn norm(
        x: &FloatTensor<Self>,
        gain: &FloatTensor<Self>,
        bias: Option<&FloatTensor<Self>>,
        kind: NormKind,
    ) -> FloatTensor<Self>;

    /// Cotangent of the norm's input for backward rows δ over forward rows `x[index]`, plus `onto` where given.
    fn norm_vjp(
        x: &FloatTensor<Self>,
        gain: &FloatTensor<Self>,
        kind: NormKind,
        delta: &FloatTensor<Self>,
        index: &[u32],
        onto: Option<FloatTensor<Self>>,
    ) -> FloatTensor<Self>;

    /// `δ ∘ x̂[index]`, whose sums over a cotangent's rows are the gradient of the gain.
    fn norm_gain_terms(
        x: &FloatTensor<Self>,
        kind: NormKind,
        delta: &FloatTensor<Self>,
        index: &[u32],
    ) -> FloatTensor<Self>;
}
