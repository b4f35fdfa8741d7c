//! Softmax attention over trunk and suffixes, and its vjp for many cotangents (docs/mathematics.md, section 3).
//!
//! `o = P v`, `P = softmax(s·q kᵀ)` over the keys that a query sees. With `dP = δ vᵀ`: `dv = Pᵀ δ`,
//! `dS = s·P ∘ (dP − rowsum(dP ∘ P))`, `dq = dS k`, `dk = dSᵀ q`; under a soft cap dS is multiplied with its slope.
pub mod bench;
mod cpu;
mod cube;
mod in_registers;
mod launch;
mod matrix_units;
pub mod reference;
mod staged;
mod strategy;
mod task;

use crate::cost::Cost;
use crate::{Backend, FloatTensor, Segment, SoftCap, Span};

/// An attention layer; rows hold `heads × head_dim` values, keys and values `kv_heads × head_dim`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionSpec {
    /// Query heads.
    pub heads: usize,
    /// Key-value heads; divides `heads`.
    pub kv_heads: usize,
    /// Values a head.
    pub head_dim: usize,
    /// Factor on q·k before the softmax.
    pub scale: f64,
    /// A soft cap on the scaled scores.
    pub cap: Option<SoftCap>,
    /// How many positions a query sees, its own included; all before it where there is no window.
    pub window: Option<usize>,
}

impl AttentionSpec {
    /// First of the positions that the query at a position sees.
    pub(crate) fn first_seen(&self, position: usize) -> usize {
        self.window.map_or(0, |window| (position + 1).saturating_sub(window))
    }

    /// Pairs of a query and a key that it sees, for `queries` positions after `before` others.
    #[must_use]
    pub fn pairs(&self, queries: usize, before: usize) -> f64 {
        match self.window {
            None => queries as f64 * before as f64 + queries as f64 * (queries as f64 + 1.0) / 2.0,
            Some(window) => (before + 1..=before + queries).map(|seen| seen.min(window) as f64).sum(),
        }
    }

    /// Operations of the forward pass: `q·kᵀ` and `p·v`.
    #[must_use]
    pub fn cost(&self, spans: &[Span]) -> Cost {
        let pairs: f64 = spans.iter().map(|span| self.pairs(span.own.len(), span.prefix.len())).sum();
        Cost { operations: 4.0 * pairs * (self.heads * self.head_dim) as f64, bytes: 0.0 }
    }

    /// Operations of the vjp: `q·kᵀ` again, `δ·vᵀ`, and the products for dq, dk and dv, of the queries from the first active one on.
    #[must_use]
    pub fn cost_vjp(&self, segments: &[Segment]) -> Cost {
        let seen = |segment: &Segment| self.pairs(segment.len() - segment.active_from, segment.active_from);
        let pairs: f64 = segments.iter().map(seen).sum();
        Cost { operations: 10.0 * pairs * (self.heads * self.head_dim) as f64, bytes: 0.0 }
    }
}

/// Attention of queries to keys.
pub trait Attend: Backend {
    /// Softmax attention over the spans, `[N, heads·head_dim]`, and log Σ exp of each row's scores, `[N, heads]`; rows outside
    /// every span are zero.
    fn attend(
        q: &FloatTensor<Self>,
        k: &FloatTensor<Self>,
        v: &FloatTensor<Self>,
        spans: &[Span],
        spec: AttentionSpec,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    /// Cotangents of q, k, v for backward rows δ, one causal segment a cotangent, from what the forward pass returned.
    fn attend_vjp(
        qkv: [&FloatTensor<Self>; 3],
        forward: (&FloatTensor<Self>, &FloatTensor<Self>),
        delta: &FloatTensor<Self>,
        segments: &[Segment],
        spec: AttentionSpec,
    ) -> [FloatTensor<Self>; 3];
}
