//! An objective with its hyper-parameters, as `name:key=value,…`.
use crate::catalogue::{Definition, Hyper, Rule, Scalars, all};
use crate::dual::Dual;
use crate::error::{Error, Result};
use crate::{Outcome, PairGram, PairLogps, gradients, hyper};
use std::fmt;
use std::str::FromStr;

/// An objective that was asked for.
#[derive(Clone)]
pub struct Objective {
    given: String,
    definition: &'static Definition,
    hyper: Hyper,
}

/// What an objective has to be given, beside the log-probabilities of a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needs {
    /// Nothing: [`Objective::of_pair`].
    Pair,
    /// The Gram that every pass finds: [`Objective::of_pair`].
    Gram,
    /// All pairs of a batch: [`Objective::of_batch`].
    Batch,
    /// Log-probabilities over contrast tokens, and their gradients: [`Objective::of_masked`].
    Contrast,
    /// A training run, which learns the mask of [`Objective::of_masked`].
    Training,
}

/// Loss and coefficients from a loss with its slopes.
pub fn outcome(loss: Dual) -> Outcome {
    Outcome { loss: loss.value, d_w: -loss.w, d_l: loss.l }
}

impl Objective {
    /// As it was written.
    #[must_use]
    pub fn given(&self) -> &str {
        &self.given
    }

    /// What is known of it.
    #[must_use]
    pub fn definition(&self) -> &'static Definition {
        self.definition
    }

    /// What it has to be given.
    #[must_use]
    pub fn needs(&self) -> Needs {
        match self.definition.rule {
            Rule::Pair(_) | Rule::Gradients(_) => Needs::Pair,
            Rule::Gram(_) => Needs::Gram,
            Rule::Batch(_) => Needs::Batch,
            Rule::Contrast(_) => Needs::Contrast,
            Rule::Training(_) => Needs::Training,
        }
    }

    /// Loss and coefficients of a pair; `None` where the objective [needs](Self::needs) something else.
    ///
    /// Without a reference, an objective that uses one is wrong: see [`Definition::reference`].
    #[must_use]
    pub fn of_pair(&self, pair: &PairLogps, gram: &PairGram) -> Option<Outcome> {
        match self.definition.rule {
            Rule::Pair(loss) => Some(outcome(loss(&Scalars::new(pair), &self.hyper))),
            Rule::Gradients(rule) => Some(rule(pair, &self.hyper)),
            Rule::Gram(rule) => Some(rule(pair, &self.hyper, gram)),
            Rule::Batch(_) | Rule::Contrast(_) | Rule::Training(_) => None,
        }
    }

    /// Loss and coefficients of every pair of a batch, the coefficients being those of the sum of losses; `None` where the
    /// objective is not one of batches.
    #[must_use]
    pub fn of_batch(&self, pairs: &[PairLogps]) -> Option<Vec<Outcome>> {
        match self.definition.rule {
            Rule::Batch(rule) => Some(rule(pairs, &self.hyper)),
            _ => None,
        }
    }

    /// Loss and coefficients of the gradients of masked sums, from log-probabilities summed under the mask: over contrast
    /// tokens, or under a mask that training learns; `None` where the objective has no mask.
    #[must_use]
    pub fn of_masked(&self, masked: &PairLogps) -> Option<Outcome> {
        match self.definition.rule {
            Rule::Contrast(loss) | Rule::Training(loss) => Some(outcome(loss(&Scalars::new(masked), &self.hyper))),
            _ => None,
        }
    }

    /// Loss and coefficients of a pair calibrated by ln c, a moving average of [`PairGram::calibration`]; `None` where the objective
    /// calibrates nothing.
    #[must_use]
    pub fn of_calibrated(&self, pair: &PairLogps, ln_c: f64) -> Option<Outcome> {
        self.hyper("ema").map(|_| gradients::calibrated_by(pair, &self.hyper, ln_c))
    }

    /// A hyper-parameter, where the objective has one of that name.
    #[must_use]
    pub fn hyper(&self, key: &str) -> Option<f64> {
        self.hyper.0.iter().find(|(name, _)| *name == key).map(|(_, value)| *value)
    }

    /// Every objective with its defaults that can be used in an analysis, and the names of the others with the reason why not.
    #[must_use]
    pub fn every(reference: bool) -> (Vec<Self>, Vec<(&'static str, String)>) {
        let (mut usable, mut left_out) = (Vec::new(), Vec::new());
        for definition in all() {
            match definition.name.parse::<Self>() {
                _ if matches!(definition.rule, Rule::Training(_)) => {
                    left_out.push((definition.name, "for training only".to_owned()));
                }
                Ok(objective) if reference || !objective.definition.reference => usable.push(objective),
                Ok(_) => left_out.push((definition.name, "needs a reference".to_owned())),
                Err(error) => left_out.push((definition.name, error.problem)),
            }
        }
        (usable, left_out)
    }
}

impl FromStr for Objective {
    type Err = Error;

    fn from_str(given: &str) -> Result<Self> {
        let refuse = |problem: String| Error { given: given.to_owned(), problem };
        let (name, _) = hyper::split(given);
        let Some(definition) = all().iter().find(|definition| definition.name == name) else {
            let names: Vec<&str> = all().iter().map(|definition| definition.name).collect();
            return Err(refuse(format!("there is no `{name}`; there are {}", hyper::list(&names))));
        };
        let hyper = Hyper(hyper::values(given, definition.hyper)?);
        Ok(Self { given: given.to_owned(), definition, hyper })
    }
}

impl fmt::Display for Objective {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.given)
    }
}

impl fmt::Debug for Objective {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Objective({})", self.given)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(given: &str) -> String {
        given.parse::<Objective>().unwrap_err().to_string()
    }

    #[test]
    fn unknown_names_and_keys_say_what_there_is() {
        assert!(problem("dpoo").contains("dpo, cdpo, robust_dpo"), "{}", problem("dpoo"));
        assert!(problem("cdpo:tau=1").contains("its keys are beta and eps"), "{}", problem("cdpo:tau=1"));
        assert!(problem("sft:beta=1").contains("its keys are none"));
        assert!(problem("dpo:beta").contains("key=value"));
        assert!(problem("dpo:beta=x").contains("expected a number"));
        assert!(problem("dpo:beta=nan").contains("expected a number"));
        assert!(problem("dpo:beta=1,beta=2").contains("twice"));
        assert!(problem("gate_dpo:alpha=1").contains("tau"), "{}", problem("gate_dpo:alpha=1"));
    }

    #[test]
    fn settings_replace_defaults() {
        let objective: Objective = "kto_pair:z=2,lam_l=3".parse().unwrap();
        assert_eq!(objective.hyper.0, [("beta", 0.1), ("z", 2.0), ("lam_w", 1.0), ("lam_l", 3.0)]);
        assert_eq!(objective.to_string(), "kto_pair:z=2,lam_l=3");
    }

    #[test]
    fn every_objective_is_used_or_left_out_with_a_reason() {
        for reference in [true, false] {
            let (usable, left_out) = Objective::every(reference);
            assert_eq!(usable.len() + left_out.len(), all().len());
            assert!(left_out.iter().any(|(name, _)| *name == "sparse"));
            assert_eq!(usable.iter().any(|objective| objective.given() == "dpo"), reference);
        }
    }
}
