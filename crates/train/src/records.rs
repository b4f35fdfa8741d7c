//! What a run says about its steps.
use serde_json::{Map, Value, json};
use tanglescope_objectives::{Outcome, PairGram, Regime};

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
    /// What the pair's own Gram says of its share of a plain gradient step: the learning rate times the clipping over the
    /// number of pairs, times what a unit step on the pair alone does. `None` where no Gram was recorded.
    pub own: Option<[f64; 2]>,
}

/// A line of the log, under the names that TRL uses where it has them.
#[derive(Clone, Debug, PartialEq)]
pub struct StepLog(pub Map<String, Value>);

/// Means over held-out pairs, under TRL's names.
pub type Evaluation = StepLog;

fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let values: Vec<f64> = values.collect();
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

/// Means over some pairs; `beta` scales rewards.
pub(crate) fn means(pairs: &[PairStep], beta: f64, prefix: &str) -> Map<String, Value> {
    let mut log = Map::new();
    let mut add = |name: &str, value: Option<f64>| {
        if let Some(value) = value {
            log.insert(format!("{prefix}{name}"), json!(value));
        }
    };
    add("loss", mean(pairs.iter().map(|p| p.outcome.loss)));
    add("logps/chosen", mean(pairs.iter().map(|p| p.logp_chosen)));
    add("logps/rejected", mean(pairs.iter().filter_map(|p| p.logp_rejected)));
    // implicit rewards: β times the log-ratio, or the log-probability where there is no reference
    let rewards: Vec<[f64; 2]> = pairs
        .iter()
        .filter_map(|p| {
            let [rw, rl] = p.reference.unwrap_or([0.0; 2]);
            Some([beta * (p.logp_chosen - rw), beta * (p.logp_rejected? - rl)])
        })
        .collect();
    add("rewards/chosen", mean(rewards.iter().map(|r| r[0])));
    add("rewards/rejected", mean(rewards.iter().map(|r| r[1])));
    add("rewards/margins", mean(rewards.iter().map(|r| r[0] - r[1])));
    add("rewards/accuracies", mean(rewards.iter().map(|r| f64::from(u8::from(r[0] > r[1])))));
    let grams: Vec<PairGram> = pairs.iter().filter_map(|p| p.gram).collect();
    add("entanglement/ww", mean(grams.iter().map(|g| g.ww)));
    add("entanglement/wl", mean(grams.iter().map(|g| g.wl)));
    add("entanglement/ll", mean(grams.iter().map(|g| g.ll)));
    add("entanglement/cosine", mean(grams.iter().filter_map(PairGram::cosine)));
    for regime in Regime::ALL {
        let regimes = pairs.iter().filter_map(|p| p.changes).map(Regime::of);
        add(&format!("regime/{}", regime.name()), mean(regimes.map(|is| f64::from(u8::from(is == regime)))));
    }
    log
}

/// Means of predictions: `change/batch/chosen/predicted` and so on.
pub(crate) fn prediction_means(predictions: &[Prediction]) -> Map<String, Value> {
    let mut log = Map::new();
    for (split, of) in [(Split::Batch, "batch"), (Split::HeldOut, "held_out")] {
        for (branch, name) in ["chosen", "rejected"].into_iter().enumerate() {
            for (kind, values) in
                [("predicted", |p: &Prediction| &p.predicted), ("measured", |p: &Prediction| &p.measured)]
                    as [(&str, fn(&Prediction) -> &Vec<f64>); 2]
            {
                let all = predictions.iter().filter(|p| p.split == split);
                if let Some(value) = mean(all.filter_map(|p| values(p).get(branch).copied())) {
                    log.insert(format!("change/{of}/{name}/{kind}"), json!(value));
                }
            }
        }
    }
    log
}
