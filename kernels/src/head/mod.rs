//! The log-probability head: log p of targets and entropy by an online log-sum-exp over chunks of the vocabulary, its vjp, and
//! the Gram of the output matrix (docs/mathematics.md, sections 3 and 4).
//!
//! `∂ log p(target)/∂y = (onehot − p)·W`; `⟨e_r y_rᵀ, e_s y_sᵀ⟩ = (e_r·e_s)(y_r·y_s)` with `e = onehot − p`.
pub mod bench;
mod cpu;
mod cube;
mod gram;
mod launch;

use crate::cost::{self, Cost};
use crate::{DType, FloatTensor, Grams, HeadCotangents, SoftCap, Weight};

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

/// What a walk over the vocabulary finds of the tokens that are not a row's target, relative to the highest of their logits. The target is left out
/// of every sum: `1 − p(target)` by a subtraction would have no digit right where p is near one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Others {
    /// The highest of their logits.
    pub top: f64,
    /// Σ exp(z − top).
    pub sum: f64,
    /// Σ exp(z − top)·(z − top).
    pub weighted: f64,
    /// Σ exp(z − top)².
    pub squares: f64,
    /// How many are above the target.
    pub above: u32,
}

/// What a row predicts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Figures {
    pub logp: f64,
    pub log_normaliser: f64,
    pub entropy: f64,
    pub renyi: f64,
    pub argmax_mass: f64,
    pub rank: u32,
    /// 1 − p(target).
    pub rest: f64,
}

impl Others {
    /// With the target's own logit.
    pub fn with(self, own: f64) -> Figures {
        let others = self.top + self.sum.ln();
        // log of the odds against the target
        let against = others - own;
        let beside = (-against.abs()).exp().ln_1p();
        let logp = -(against.max(0.0) + beside);
        let (p, rest) = (logp.exp(), 1.0 / (1.0 + (-against).exp()));
        // of the others among themselves
        let entropy = self.sum.ln() - self.weighted / self.sum;
        let of_rest = if rest > 0.0 { rest * (entropy - rest.ln()) } else { 0.0 };
        let of_target = if p > 0.0 { -p * logp } else { 0.0 };
        let share = rest / self.sum;
        Figures {
            logp,
            log_normaliser: others.max(own) + beside,
            entropy: of_rest + of_target,
            renyi: -(p * p + share * share * self.squares).ln(),
            argmax_mass: p.max(share),
            rank: self.above + 1,
            rest,
        }
    }
}

impl<T, P> HeadOutput<T, P> {
    /// Of all rows.
    pub(crate) fn of(rows: &[Figures], back: T, gram: Option<P>) -> Self {
        let all = |of: fn(&Figures) -> f64| rows.iter().map(of).collect();
        Self {
            logp: all(|row| row.logp),
            log_normaliser: all(|row| row.log_normaliser),
            entropy: all(|row| row.entropy),
            renyi: all(|row| row.renyi),
            argmax_mass: all(|row| row.argmax_mass),
            rank: rows.iter().map(|row| row.rank).collect(),
            back,
            gram,
        }
    }
}

/// Products of the head: logits of `rows` rows and their gradient.
#[must_use]
pub fn head_cost(rows: usize, hidden: usize, vocabulary: usize, dtype: DType) -> Cost {
    cost::product(rows, hidden, vocabulary, dtype) * 2.0
}

/// Products of the output matrix's Gram, p·pᵀ up to its diagonal, for the rows that each set of cotangents weights.
#[must_use]
pub fn head_gram_cost(cotangents: &HeadCotangents<'_>, vocabulary: usize, dtype: DType) -> Cost {
    let of_set = |rows: Vec<u32>| cost::product(rows.len(), vocabulary, rows.len() + 1, dtype) * 0.5;
    cotangents.set_rows().into_iter().map(of_set).fold(Cost::default(), |sum, cost| sum + cost)
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
