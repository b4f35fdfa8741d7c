//! From log-probabilities to the coefficients of a step: what an objective asks of each pair's gradients.
use crate::masks::Masks;
use std::collections::HashMap;
use tanglescope_gram::{Cotangent, Group};
use tanglescope_objectives::{Lengths, Needs, Objective, Outcome, PairGram, PairLogps, contrast};

/// A pair to train on.
#[derive(Clone, Debug, PartialEq)]
pub struct Example {
    /// Number of the row in the data.
    pub row: u64,
    /// Prompt and responses, the chosen one first; for an objective of the chosen response alone there is no other.
    pub group: Group,
    /// Weights of the tokens of both responses, where the row has them.
    pub weights: Option<[Vec<f64>; 2]>,
}

/// Token log-probabilities of an example's branches under the reference.
pub type Reference = Vec<Vec<f64>>;

/// What decides the coefficients, beside the log-probabilities.
pub struct Signal<'a> {
    pub objective: &'a Objective,
    /// Of every example, where there is a reference.
    pub reference: Option<&'a [Reference]>,
    /// Those whose numbers are asked about.
    pub examples: &'a [Example],
    /// Of objective `sparse`.
    pub masks: Option<&'a Masks>,
    /// The moving average of ln c, once there is one.
    pub calibration: Option<f64>,
}

/// Outcomes of the pairs of a step whose objective is defined on batches, by example.
pub type BatchOutcomes = HashMap<usize, Outcome>;

impl Signal<'_> {
    /// The weights of an example's tokens in a masked objective.
    fn mask(&self, example: usize, group: &Group) -> Option<[Vec<f64>; 2]> {
        match self.objective.needs() {
            Needs::Training => self.masks.map(|masks| masks.0[example].clone()),
            Needs::Contrast => {
                let kept = contrast(&group.responses[0], &group.responses[1]);
                Some(kept.map(|mask| mask.into_iter().map(|kept| f64::from(u8::from(kept))).collect()))
            }
            Needs::Weights => self.examples[example].weights.clone(),
            Needs::Tail => {
                let alpha = self.objective.tail()?;
                let lengths = [0, 1].map(|k| group.responses[k].len());
                let weights = |tokens: usize| {
                    let weight = |at: usize| if at < lengths[0].min(lengths[1]) { 1.0 } else { alpha };
                    (0..tokens).map(weight).collect()
                };
                Some(lengths.map(weights))
            }
            _ => None,
        }
    }

    /// The cotangents of an example: log π of every branch where `whole` sums are wanted, and then the masked sums of an
    /// objective that has a mask.
    pub fn cotangents(&self, example: usize, group: &Group, whole: bool) -> Vec<Cotangent> {
        let masked = self.mask(example, group);
        let mut out = match &masked {
            Some(_) if !whole => Vec::new(),
            _ => Cotangent::log_probabilities(group),
        };
        let masks = masked.into_iter().flatten().enumerate();
        out.extend(masks.map(|(branch, weights)| Cotangent { branch, weights }));
        out
    }

    /// Coefficients of the cotangents above for a loss that is divided by the pairs of a step.
    pub fn coefficients(outcome: Outcome, branches: usize, cotangents: usize, pairs: usize) -> Vec<f64> {
        let of_last = [outcome.d_w / pairs as f64, -outcome.d_l / pairs as f64];
        // the last ones are those that the objective moves
        let mut out = vec![0.0; cotangents - branches];
        out.extend(&of_last[..branches]);
        out
    }

    /// Log-probabilities of an example summed over all tokens.
    pub fn sums(&self, example: usize, token_logps: &[Vec<f64>]) -> PairLogps {
        let sum = |logps: &[Vec<f64>]| [0, 1].map(|k| logps.get(k).map_or(0.0, |of| of.iter().sum()));
        let [chosen, rejected] = sum(token_logps);
        let reference = self.reference.map(|all| sum(&all[example]));
        PairLogps { chosen, rejected, reference, lengths: lengths(token_logps), ..PairLogps::default() }
    }

    /// Loss and coefficients of an example.
    ///
    /// `of_batch` holds those of objectives that are defined on batches; `gram` is needed by those that use it.
    pub fn outcome(
        &self,
        example: usize,
        group: &Group,
        token_logps: &[Vec<f64>],
        of_batch: Option<&BatchOutcomes>,
        gram: Option<&PairGram>,
    ) -> Outcome {
        if let Some(outcome) = of_batch.and_then(|of| of.get(&example)) {
            return *outcome;
        }
        let pair = self.sums(example, token_logps);
        if let Some(masks) = self.mask(example, group) {
            let sum = |logps: &[Vec<f64>]| {
                [0, 1].map(|k| logps[k].iter().zip(&masks[k]).map(|(logp, weight)| logp * weight).sum())
            };
            let [chosen, rejected] = sum(token_logps);
            let reference = self.reference.map(|all| sum(&all[example]));
            let outcome = self.objective.of_masked(&PairLogps { chosen, rejected, reference, ..pair });
            let outcome =
                outcome.unwrap_or_else(|| unreachable!("objectives with a mask are objectives of masked sums"));
            let lam = self.objective.hyper("lam").filter(|_| self.objective.needs() == Needs::Training);
            let sparsity = lam.unwrap_or(0.0) * self.masks.map_or(0.0, |masks| masks.size(example));
            return Outcome { loss: outcome.loss + sparsity, ..outcome };
        }
        if let Some(outcome) = self.calibration.and_then(|ln_c| self.objective.of_calibrated(&pair, ln_c)) {
            return outcome;
        }
        let outcome = self.objective.of_pair(&pair, gram.unwrap_or(&PairGram::default()));
        outcome.unwrap_or_else(|| unreachable!("{} is an objective of a pair", self.objective))
    }

    /// The log-ratios of an example's tokens.
    pub fn ratios(&self, example: usize, token_logps: &[Vec<f64>]) -> Option<[Vec<f64>; 2]> {
        let reference = &self.reference?[example];
        Some([0, 1].map(|k| token_logps[k].iter().zip(&reference[k]).map(|(p, r)| p - r).collect()))
    }
}

fn lengths(token_logps: &[Vec<f64>]) -> Lengths {
    let tokens = |k: usize| token_logps.get(k).map_or(1, |of| u32::try_from(of.len()).unwrap_or(u32::MAX));
    Lengths { chosen: tokens(0), rejected: tokens(1) }
}
