//! The log-probability head: log p of targets and entropy by an online log-sum-exp over chunks of the vocabulary, its vjp, and
//! the Gram of the output matrix (docs/mathematics.md, sections 3 and 4).
//!
//! `∂ log p(target)/∂y = (onehot − p)·W`; `⟨e_r y_rᵀ, e_s y_sᵀ⟩ = (e_r·e_s)(y_r·y_s)` with `e = onehot − p`.
pub mod bench;
mod cpu;
mod cube;
mod launch;

use crate::cost::{self, Cost};
use crate::{DType, FloatTensor, Grams, HeadCotangents, SoftCap, Weight};
use std::ops::Range;

/// What the log-probability head returns for `n` rows.
#[derive(Clone, Debug)]
pub struct HeadOutput<T, P> {
    /// log p(target) of each row, `[n]`.
    pub logp: Vec<f64>,
    /// log Σ exp(logits) of each row, `[n]`.
    pub log_normaliser: Vec<f64>,
    /// Entropy of each row's distribution in nats, `[n]`.
    pub entropy: Vec<f64>,
    /// Rényi entropy of order 2 of each row's distribution, −log Σp², in nats, `[n]`.
    pub renyi: Vec<f64>,
    /// Probability of each row's most probable token, `[n]`.
    pub argmax_mass: Vec<f64>,
    /// Place of the target among all tokens by probability, from 1, `[n]`; equals come after it.
    pub rank: Vec<u32>,
    /// ∂ log p(target) / ∂ hidden row, `[n, d]`.
    pub back: T,
    /// Gram of the output matrix for each set of cotangents, where asked for.
    pub gram: Option<P>,
}

/// Products of the head: logits of `rows` rows and their gradient.
#[must_use]
pub fn head_cost(rows: usize, hidden: usize, vocabulary: usize, dtype: DType) -> Cost {
    cost::product(rows, hidden, vocabulary, dtype) * 2.0
}

/// Products of the output matrix's Gram, p·pᵀ up to its diagonal, for the rows of each set of cotangents.
#[must_use]
pub fn head_gram_cost(sets: &[Range<usize>], vocabulary: usize, dtype: DType) -> Cost {
    let of_set = |rows: &Range<usize>| cost::product(rows.len(), vocabulary, rows.len() + 1, dtype) * 0.5;
    sets.iter().map(of_set).fold(Cost::default(), |sum, cost| sum + cost)
}

/// The head of a language model.
pub trait Head: Grams {
    /// Log-probability of each row's target under logits `y · wᵀ`, softly capped where a cap is given, its gradient, and the
    /// Gram of `w` where asked for.
    /// The vocabulary (rows of `w[V, d]`) is walked in chunks;
    /// logits of all rows and all tokens never exist together.
    fn head(
        y: &FloatTensor<Self>,
        w: &Weight<'_, Self>,
        targets: &[u32],
        cap: Option<SoftCap>,
        cotangents: Option<&HeadCotangents<'_>>,
    ) -> HeadOutput<FloatTensor<Self>, Self::Pending>;
}
