//! The gated delta rule over trunk and suffixes, and its vjp for many cotangents (docs/mathematics.md, section 3).
//!
//! A head carries a state `S[key_dim, value_dim]`: `S'ₜ = e^{gₜ} Sₜ₋₁`, `eₜ = vₜ − S'ₜᵀ kₜ`, `Sₜ = S'ₜ + βₜ kₜ eₜᵀ`, `oₜ = Sₜᵀ qₜ`
//! (Yang et al., arXiv 2412.06464). With the adjoint state `Gₜ = ∂/∂Sₜ`, which a cotangent δ of o carries from its last row to its first,
//! and `uₜ = βₜ eₜ`:
//!
//! - `Gₜ = e^{gₜ₊₁} (Gₜ₊₁ − βₜ₊₁ kₜ₊₁ duₜ₊₁ᵀ) + qₜ δₜᵀ`, `duₜ = Gₜᵀ kₜ`;
//! - `dqₜ = Sₜ δₜ`, `dkₜ = Gₜ uₜ − βₜ S'ₜ duₜ`, `dvₜ = βₜ duₜ`, `dβₜ = duₜ·eₜ`;
//! - `dgₜ = ⟨∂/∂S'ₜ, S'ₜ⟩ = dgₜ₊₁ + δₜ·oₜ − dvₜ·vₜ`, from `⟨Gₜ, Sₜ⟩ = dgₜ₊₁ + δₜ·oₜ`.
//!
//! The forward pass keeps e, so that the vjp carries S and G through their rows once each, and no state is kept at all.
pub mod bench;
mod cpu;
mod cube;
mod launch;
pub mod reference;

use crate::cost::Cost;
use crate::{Backend, FloatTensor, Segment, Span};

/// Heads of the rule; rows hold `key_heads × key_dim` queries and keys, and `value_heads × value_dim` values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeltaSpec {
    /// Heads of queries and keys.
    pub key_heads: usize,
    /// Heads of values, each with a state; as many neighbours share a key head.
    pub value_heads: usize,
    /// Values of a query and of a key.
    pub key_dim: usize,
    /// Values of a value.
    pub value_dim: usize,
}

impl DeltaSpec {
    /// Value heads of a key head.
    pub(crate) fn shared(self) -> usize {
        self.value_heads / self.key_heads
    }

    /// Operations of the forward pass over rows: for each value of a state its decay, its write, and two reads.
    #[must_use]
    pub fn cost(&self, spans: &[Span]) -> Cost {
        self.of_rows(7.0, spans.iter().map(|span| span.own.len()).sum())
    }

    /// Operations of the vjp: the decays and writes of state and adjoint, and the reads of k, u, δ and du.
    #[must_use]
    pub fn cost_vjp(&self, segments: &[Segment]) -> Cost {
        self.of_rows(16.0, segments.iter().map(Segment::len).sum())
    }

    fn of_rows(&self, operations: f64, rows: usize) -> Cost {
        let values = (rows * self.value_heads) as f64 * (self.key_dim * self.value_dim) as f64;
        Cost { operations: operations * values, bytes: 0.0 }
    }
}

/// What the rule reads of its rows, in the type that [states are carried in](crate::Memory::carried).
#[derive(Debug)]
pub struct DeltaInputs<'a, B: Backend> {
    /// Queries, `[N, key_heads·key_dim]`.
    pub q: &'a FloatTensor<B>,
    /// Keys, `[N, key_heads·key_dim]`.
    pub k: &'a FloatTensor<B>,
    /// Values, `[N, value_heads·value_dim]`.
    pub v: &'a FloatTensor<B>,
    /// g, at most 0, `[N, value_heads]`.
    pub decay: &'a FloatTensor<B>,
    /// β, `[N, value_heads]`.
    pub beta: &'a FloatTensor<B>,
}

/// The gated delta rule.
pub trait DeltaRule: Backend {
    /// o and e, `[N, value_heads·value_dim]` each; rows outside every span are zero. A prefix is the own rows of another span.
    fn delta_rule(
        inputs: &DeltaInputs<'_, Self>,
        spans: &[Span],
        spec: DeltaSpec,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    /// Cotangents of q, k, v, g and β for backward rows δ, one segment a cotangent, from what the forward pass returned.
    fn delta_rule_vjp(
        inputs: &DeltaInputs<'_, Self>,
        forward: (&FloatTensor<Self>, &FloatTensor<Self>),
        delta: &FloatTensor<Self>,
        segments: &[Segment],
        spec: DeltaSpec,
    ) -> [FloatTensor<Self>; 5];
}

/// The spans that begin a sequence, each with those that go on from its end.
fn trunks(spans: &[Span]) -> Vec<(&Span, Vec<&Span>)> {
    let goes_on =
        |trunk: &Span| spans.iter().filter(|span| !span.prefix.is_empty() && span.prefix == trunk.own).collect();
    spans.iter().filter(|span| span.prefix.is_empty()).map(|trunk| (trunk, goes_on(trunk))).collect()
}
