//! Element-wise functions of feed-forward layers, with their vjp (docs/mathematics.md, section 3).
//!
//! `h = f(a) ∘ b`: `da = δ ∘ f′(a) ∘ b`, `db = δ ∘ f(a)`.
pub mod bench;
mod cpu;
mod cube;
mod launch;
pub mod reference;

use crate::{Backend, FloatTensor};

/// Element-wise functions of feed-forward layers, under the names of Hugging Face configs, and of gates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Activation {
    /// `silu`, `swish`: x·σ(x).
    Silu,
    /// `gelu_new`, `gelu_pytorch_tanh`, `gelu_fast`: the tanh form of GELU.
    GeluTanh,
    /// `gelu`: x·Φ(x) with the error function.
    Gelu,
    /// `relu`.
    Relu,
    /// `relu2`: the square of `relu`.
    ReluSquared,
    /// σ(x), which opens gates.
    Sigmoid,
    /// ln(1 + eˣ), how fast states decay.
    Softplus,
    /// eˣ.
    Exponential,
}

impl Activation {
    /// Every one.
    pub const ALL: [Self; 8] = [
        Self::Silu,
        Self::GeluTanh,
        Self::Gelu,
        Self::Relu,
        Self::ReluSquared,
        Self::Sigmoid,
        Self::Softplus,
        Self::Exponential,
    ];
}

/// Element-wise functions, gated or not.
pub trait Activate: Backend {
    /// `f(a)`, times `b` for a gated layer.
    fn activate(f: Activation, a: &FloatTensor<Self>, b: Option<&FloatTensor<Self>>) -> FloatTensor<Self>;

    /// Cotangents of `a` and `b` for backward rows δ over forward rows `index`.
    fn activate_vjp(
        f: Activation,
        a: &FloatTensor<Self>,
        b: Option<&FloatTensor<Self>>,
        delta: &FloatTensor<Self>,
        index: &[u32],
    ) -> (FloatTensor<Self>, Option<FloatTensor<Self>>);
}
