//! steps.parquet and predictions.parquet: what a training run records of its steps.
use crate::error::{Error, Result};
use crate::tables::{column, frame};
use polars_core::prelude::{DataFrame, PolarsResult};
use std::path::Path;
use tanglescope_objectives::{Outcome, PairGram, Regime, Rounding};

/// A pair as one step saw it, before the step was taken.
#[derive(Clone, Debug, PartialEq)]
pub struct PairStep {
    /// The step, from 1.
    pub step: usize,
    /// Number of the row in the data.
    pub pair: u64,
    /// log π(chosen).
    pub logp_chosen: f64,
    /// log π(rejected); `None` for an objective of the chosen response alone.
    pub logp_rejected: Option<f64>,
    /// The reference's, chosen first.
    pub reference: Option<[f64; 2]>,
    /// Loss and coefficients.
    pub outcome: Outcome,
    /// Where it was recorded.
    pub gram: Option<PairGram>,
    /// Beside the Gram: what a unit step on this pair's loss alone changes log π(chosen) and log π(rejected) by, each as the
    /// difference of two terms, the pull of the chosen and of the rejected response's gradient.
    pub changes: Option<[[f64; 2]; 2]>,
}

/// Which pairs a prediction is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// The pairs of the step.
    Batch,
    /// Pairs that no step trains on.
    HeldOut,
}

/// What a step did to a pair's log-probabilities, chosen first, and what was predicted.
#[derive(Clone, Debug, PartialEq)]
pub struct Prediction {
    /// The step, from 1.
    pub step: usize,
    /// Which pairs.
    pub split: Split,
    /// Number of the row in its data.
    pub pair: u64,
    /// ⟨∂L/∂θ, Δθ⟩ for the step that was taken.
    pub predicted: Vec<f64>,
    /// log π after the step less log π before.
    pub measured: Vec<f64>,
    /// The part of `predicted` that the pair's own gradient makes, in Adam's metric of the step; `None` where groups are larger than pairs.
    pub own: Option<Vec<f64>>,
    /// The part of the other pairs of the batch.
    pub others: Option<Vec<f64>>,
    /// The part of earlier batches, by the first moments.
    pub momentum: Vec<f64>,
    /// The part of weight decay.
    pub decay: Vec<f64>,
    /// What the pair's own Gram says of its share of a plain gradient step: the learning rate times the clipping over the
    /// number of pairs, times what a unit step on the pair alone does. `None` where no Gram was recorded.
    pub own_gram: Option<[f64; 2]>,
}

fn number(n: usize) -> u64 {
    n as u64
}

/// steps.parquet: one row a step and pair that it trained on.
#[must_use]
pub fn steps(rows: &[PairStep], rounding: Rounding) -> DataFrame {
    let change = |r: &PairStep, branch: usize| r.changes.map(|changes| changes[branch][0] - changes[branch][1]);
    frame(vec![
        column("step", rows, |r| number(r.step)),
        column("pair", rows, |r| r.pair),
        column("logp_chosen", rows, |r| r.logp_chosen),
        column("logp_rejected", rows, |r| r.logp_rejected),
        column("ref_logp_chosen", rows, |r| r.reference.map(|of| of[0])),
        column("ref_logp_rejected", rows, |r| r.reference.map(|of| of[1])),
        column("loss", rows, |r| r.outcome.loss),
        column("d_w", rows, |r| r.outcome.d_w),
        column("d_l", rows, |r| r.outcome.d_l),
        column("ww", rows, |r| r.gram.map(|g| g.ww)),
        column("wl", rows, |r| r.gram.map(|g| g.wl)),
        column("ll", rows, |r| r.gram.map(|g| g.ll)),
        column("cosine", rows, |r| r.gram.and_then(|g| g.cosine())),
        column("delta_w", rows, |r| change(r, 0)),
        column("delta_l", rows, |r| change(r, 1)),
        column("regime", rows, |r| r.changes.map(|changes| Regime::of(changes, rounding).name().to_owned())),
    ])
}

/// Step and pair of the rows of steps.parquet.
///
/// # Errors
/// Where a column is missing or of another type.
pub fn batches(steps: &DataFrame) -> Result<Vec<(u64, u64)>> {
    let of = |name: &str| -> PolarsResult<Vec<u64>> { Ok(steps.column(name)?.u64()?.iter().flatten().collect()) };
    let both = of("step").and_then(|step| Ok(step.into_iter().zip(of("pair")?).collect()));
    both.map_err(|e| Error::new(Path::new("steps.parquet"), e))
}

/// predictions.parquet: one row a pair and response whose change was predicted and measured.
#[must_use]
pub fn predictions(rows: &[Prediction]) -> DataFrame {
    let each: Vec<(&Prediction, usize)> =
        rows.iter().flat_map(|r| (0..r.measured.len()).map(move |k| (r, k))).collect();
    let split = |split: Split| match split {
        Split::Batch => "batch",
        Split::HeldOut => "held_out",
    };
    frame(vec![
        column("step", &each, |(r, _)| number(r.step)),
        column("split", &each, |(r, _)| split(r.split).to_owned()),
        column("pair", &each, |(r, _)| r.pair),
        column("branch", &each, |(_, k)| ["w", "l"][*k].to_owned()),
        column("predicted", &each, |(r, k)| r.predicted[*k]),
        column("measured", &each, |(r, k)| r.measured[*k]),
        column("own", &each, |(r, k)| r.own.as_ref().map(|own| own[*k])),
        column("others", &each, |(r, k)| r.others.as_ref().map(|others| others[*k])),
        column("momentum", &each, |(r, k)| r.momentum[*k]),
        column("decay", &each, |(r, k)| r.decay[*k]),
        column("own_gram", &each, |(r, k)| r.own_gram.map(|own| own[*k])),
    ])
}
