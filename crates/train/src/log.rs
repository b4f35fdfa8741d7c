//! The log of a run: means over the pairs of a step, or over those held out.
use serde_json::{Map, Value, json};
use tanglescope_objectives::{PairGram, Regime, Rounding};
use tanglescope_records::tables::training::{PairStep, Prediction, Split};

/// A line of the log, under the names that TRL uses where it has them.
#[derive(Clone, Debug, PartialEq)]
pub struct StepLog(pub Map<String, Value>);

fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let values: Vec<f64> = values.collect();
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

/// Means over some pairs; `beta` scales rewards.
pub(crate) fn means(pairs: &[PairStep], beta: f64, rounding: Rounding, prefix: &str) -> Map<String, Value> {
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
        let regimes = pairs.iter().filter_map(|p| p.changes).map(|changes| Regime::of(changes, rounding));
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
