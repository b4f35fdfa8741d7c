//! Preference losses as pure functions: the value, and the weights of the two gradients of a pair in a descent step.
//!
//! Every pairwise loss ℓ(log π(chosen), log π(rejected)) has −∇ℓ = d_w g_w − d_l g_l with d_w = −∂ℓ/∂log π(chosen) and
//! d_l = ∂ℓ/∂log π(rejected). [`Objective`] parses `name:key=value,…` and gives loss, d_w and d_l; [`PairGram`] says what a
//! step along that direction does to both log-probabilities (docs/mathematics.md, sections 1 and 7).
//!
//! ```
//! use tanglescope_objectives::{Lengths, Objective, PairGram, PairLogps, Regime, Rounding};
//! let dpo: Objective = "dpo:beta=0.1".parse().unwrap();
//! let lengths = Lengths { chosen: 32, rejected: 45 };
//! let pair = PairLogps { chosen: -41.25, rejected: -63.5, reference: Some([-40.0, -60.0]), lengths, ..Default::default() };
//! let gram = PairGram { ww: 4.0, wl: 5.0, ll: 9.0 };
//! let outcome = dpo.of_pair(&pair, &gram).unwrap();
//! assert_eq!(outcome.d_w, outcome.d_l);
//! // both fall, although the loss wants the chosen response up
//! assert_eq!(gram.regime(outcome.d_w, outcome.d_l, Rounding::F64), Regime::BothDown);
//! ```
mod batch;
mod catalogue;
mod contrast;
mod dual;
mod entanglement;
mod error;
mod gradients;
mod group;
mod hyper;
mod objective;

pub use catalogue::{Definition, all};
pub use contrast::contrast;
pub use entanglement::{PairGram, Regime, Rounding};
pub use error::{Error, Result};
pub use group::{GroupObjective, ResponseMeasure, predicted};
pub use objective::{Needs, Objective};

/// Tokens of both responses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lengths {
    /// Of the chosen response.
    pub chosen: u32,
    /// Of the rejected response.
    pub rejected: u32,
}

/// What an objective sees of a pair: log-probabilities summed over the tokens of a response, in nats.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PairLogps {
    /// log π(chosen).
    pub chosen: f64,
    /// log π(rejected).
    pub rejected: f64,
    /// The same under the reference model, chosen first.
    pub reference: Option<[f64; 2]>,
    /// Lengths of the responses.
    pub lengths: Lengths,
    /// Mean Rényi entropy of order 2 (−log Σp², in nats) of the predictions of each response's tokens: for `wpo`.
    pub renyi: Option<[f64; 2]>,
    /// ‖g_w − g_l‖ over the output matrix alone: for `logits_sam`.
    pub head: Option<f64>,
    /// log π − log π_ref of both responses of another row after this pair's prompt: for `kto`.
    pub mismatched: Option<[f64; 2]>,
}

/// A pair's prompt and chosen response as one text: for `orpo_trl`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ChosenText {
    /// Log-probability of all its tokens but the first.
    pub logp: f64,
    /// Their number.
    pub tokens: f64,
}

/// What an objective makes of a pair.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Outcome {
    /// ℓ.
    pub loss: f64,
    /// −∂ℓ/∂log π(chosen): the weight of g_w in a descent step, positive where it raises log π(chosen).
    pub d_w: f64,
    /// ∂ℓ/∂log π(rejected): the weight of −g_l in a descent step, positive where it lowers log π(rejected).
    pub d_l: f64,
}
