//! An objective with its hyper-parameters, as `name:key=value,…`, or a sum of them, as `name:…,weight=…+name:…,weight=…`.
use crate::catalogue::{Definition, Hyper, Rule, Scalars, all};
use crate::dual::Dual;
use crate::error::{Error, Result};
use crate::{ChosenText, Outcome, PairGram, PairLogps, gradients, hyper};
use std::fmt;
use std::str::FromStr;

/// An objective that was asked for.
#[derive(Clone)]
pub struct Objective {
    given: String,
    /// One, or the terms of a sum.
    terms: Vec<Term>,
}

/// A loss, with its weight in a sum.
#[derive(Clone)]
struct Term {
    weight: f64,
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
    /// [`PairLogps::renyi`]: [`Objective::of_pair`].
    Entropy,
    /// [`PairLogps::head`]: [`Objective::of_pair`].
    Head,
    /// All pairs of a batch: [`Objective::of_batch`].
    Batch,
    /// All pairs of a batch, with [`PairLogps::mismatched`]: [`Objective::of_batch`].
    Mismatched,
    /// Log-probabilities over contrast tokens, and their gradients: [`Objective::of_masked`].
    Contrast,
    /// Log-probabilities over the tokens up to the shorter response's length, and their gradients: [`Objective::of_masked`].
    Tail,
    /// Log-probabilities over tokens with weights that the data gives, and their gradients: [`Objective::of_masked`].
    Weights,
    /// Prompt and chosen response as one text, and its gradient: [`Objective::of_text`].
    Text,
    /// A training run, which learns the mask of [`Objective::of_masked`].
    Training,
}

/// Loss and coefficients from a loss with its slopes.
pub fn outcome(loss: Dual) -> Outcome {
    Outcome { loss: loss.value, d_w: -loss.w, d_l: loss.l }
}

impl Term {
    fn of_pair(&self, pair: &PairLogps, gram: &PairGram) -> Option<Outcome> {
        match self.definition.rule {
            Rule::Pair(loss) => Some(outcome(loss(&Scalars::new(pair), &self.hyper))),
            Rule::Gradients(rule) => Some(rule(pair, &self.hyper)),
            Rule::Gram(rule) => Some(rule(pair, &self.hyper, gram)),
            Rule::Entropy(rule) => Some(rule(pair, pair.renyi?, &self.hyper)),
            Rule::Head(rule) => Some(rule(pair, pair.head?, &self.hyper)),
            _ => None,
        }
    }

    fn of_batch(&self, pairs: &[PairLogps]) -> Option<Vec<Outcome>> {
        match self.definition.rule {
            Rule::Batch(rule) => Some(rule(pairs, &self.hyper)),
            Rule::Mismatched(rule) => rule(pairs, &self.hyper),
            _ => pairs.iter().map(|pair| self.of_pair(pair, &PairGram::default())).collect(),
        }
    }

    fn needs(&self) -> Needs {
        match self.definition.rule {
            Rule::Pair(_) | Rule::Gradients(_) => Needs::Pair,
            Rule::Gram(_) => Needs::Gram,
            Rule::Entropy(_) => Needs::Entropy,
            Rule::Head(_) => Needs::Head,
            Rule::Batch(_) => Needs::Batch,
            Rule::Mismatched(_) => Needs::Mismatched,
            Rule::Contrast(_) => Needs::Contrast,
            Rule::Tail(_) => Needs::Tail,
            Rule::Weights(_) => Needs::Weights,
            Rule::Text(_) => Needs::Text,
            Rule::Training(_) => Needs::Training,
        }
    }

    fn times(&self, of: Outcome) -> Outcome {
        Outcome { loss: self.weight * of.loss, d_w: self.weight * of.d_w, d_l: self.weight * of.d_l }
    }
}

fn plus(a: Outcome, b: Outcome) -> Outcome {
    Outcome { loss: a.loss + b.loss, d_w: a.d_w + b.d_w, d_l: a.d_l + b.d_l }
}

impl Objective {
    /// As it was written.
    #[must_use]
    pub fn given(&self) -> &str {
        &self.given
    }

    /// What is known of it: of each of its terms.
    pub fn definitions(&self) -> impl Iterator<Item = &'static Definition> {
        self.terms.iter().map(|term| term.definition)
    }

    /// Whether it uses the reference model's log-probabilities.
    #[must_use]
    pub fn uses_reference(&self) -> bool {
        self.definitions().any(|definition| definition.reference)
    }

    /// What it has to be given.
    #[must_use]
    pub fn needs(&self) -> Needs {
        // a sum has terms of these kinds alone
        let first = [Needs::Mismatched, Needs::Batch, Needs::Entropy];
        let needs: Vec<Needs> = self.terms.iter().map(Term::needs).collect();
        first.into_iter().find(|first| needs.contains(first)).unwrap_or(needs[0])
    }

    /// Why it cannot be trained on, where it cannot.
    #[must_use]
    pub fn not_for_training(&self) -> Option<&'static str> {
        let why = |needs| match needs {
            Needs::Entropy => Some("weighs pairs by entropies, which training does not form"),
            Needs::Head => Some("perturbs the output matrix, whose own Gram training does not form"),
            Needs::Mismatched => {
                Some("pairs prompts with other rows' responses, which training does not; kto_pair takes z as given")
            }
            Needs::Text => Some("follows the gradient of the prompt too, which training does not form; orpo does not"),
            _ => None,
        };
        self.terms.iter().find_map(|term| why(term.needs()))
    }

    /// Loss and coefficients of a pair; `None` where the objective [needs](Self::needs) something else.
    ///
    /// Without a reference, an objective that uses one is wrong: see [`Definition::reference`].
    #[must_use]
    pub fn of_pair(&self, pair: &PairLogps, gram: &PairGram) -> Option<Outcome> {
        let terms = self.terms.iter().map(|term| Some(term.times(term.of_pair(pair, gram)?)));
        terms.reduce(|a, b| Some(plus(a?, b?)))?
    }

    /// Loss and coefficients of every pair of a batch, the coefficients being those of the sum of losses; `None` where the
    /// objective is not one of batches.
    #[must_use]
    pub fn of_batch(&self, pairs: &[PairLogps]) -> Option<Vec<Outcome>> {
        if !matches!(self.needs(), Needs::Batch | Needs::Mismatched) {
            return None;
        }
        let mut sum = vec![Outcome { loss: 0.0, d_w: 0.0, d_l: 0.0 }; pairs.len()];
        for term in &self.terms {
            sum.iter_mut().zip(term.of_batch(pairs)?).for_each(|(sum, of)| *sum = plus(*sum, term.times(of)));
        }
        Some(sum)
    }

    /// Loss and coefficients of the gradients of masked sums, from log-probabilities summed under the mask: over contrast
    /// tokens, with [less weight](Self::tail) on a tail, with weights of the data, or under a mask that training learns; `None` where the objective has no mask.
    #[must_use]
    pub fn of_masked(&self, masked: &PairLogps) -> Option<Outcome> {
        let term = self.alone()?;
        match term.definition.rule {
            Rule::Contrast(loss) | Rule::Tail(loss) | Rule::Weights(loss) | Rule::Training(loss) => {
                Some(outcome(loss(&Scalars::new(masked), &term.hyper)))
            }
            _ => None,
        }
    }

    /// Weight of the tokens beyond the shorter response's length, where that is not one.
    #[must_use]
    pub fn tail(&self) -> Option<f64> {
        (self.needs() == Needs::Tail).then(|| self.hyper("alpha"))?
    }

    /// Loss and coefficients of a pair, and the coefficient of the gradient of its prompt and chosen response's
    /// log-probability; `None` where the objective has no such term.
    #[must_use]
    pub fn of_text(&self, pair: &PairLogps, text: &ChosenText) -> Option<(Outcome, f64)> {
        let term = self.alone()?;
        match term.definition.rule {
            Rule::Text(loss) => {
                let of = outcome(loss(&Scalars::new(pair), &term.hyper));
                Some((Outcome { loss: of.loss - text.logp / text.tokens, ..of }, 1.0 / text.tokens))
            }
            _ => None,
        }
    }

    /// Loss and coefficients of a pair calibrated by ln c, a moving average of [`PairGram::calibration`]; `None` where the objective
    /// calibrates nothing.
    #[must_use]
    pub fn of_calibrated(&self, pair: &PairLogps, ln_c: f64) -> Option<Outcome> {
        let term = self.alone()?;
        term.hyper.get("ema").map(|_| gradients::calibrated_by(pair, &term.hyper, ln_c))
    }

    /// A hyper-parameter, of the first term that has one of that name.
    #[must_use]
    pub fn hyper(&self, key: &str) -> Option<f64> {
        self.terms.iter().find_map(|term| term.hyper.get(key))
    }

    fn alone(&self) -> Option<&Term> {
        match self.terms.as_slice() {
            [term] => Some(term),
            _ => None,
        }
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
                _ if matches!(definition.rule, Rule::Head(_)) => {
                    left_out.push((
                        definition.name,
                        "needs the output matrix in scope by itself; name it to use it".to_owned(),
                    ));
                }
                _ if matches!(definition.rule, Rule::Weights(_)) => {
                    left_out.push((
                        definition.name,
                        "needs weights of tokens from the data; name it to use them".to_owned(),
                    ));
                }
                Ok(objective) if reference || !definition.reference => usable.push(objective),
                Ok(_) => left_out.push((definition.name, "needs a reference".to_owned())),
                Err(error) => left_out.push((definition.name, error.problem)),
            }
        }
        (usable, left_out)
    }
}

/// The terms of a sum: a name begins after a `+`, which a number's exponent does not.
fn terms(given: &str) -> Vec<&str> {
    let starts = given.match_indices('+').map(|(at, _)| at);
    let starts = starts.filter(|at| given[at + 1..].starts_with(|c: char| c.is_ascii_alphabetic()));
    let mut ends: Vec<usize> = starts.collect();
    ends.push(given.len());
    let mut from = 0;
    let of = |end: usize| {
        let term = &given[from..end];
        from = end + 1;
        term
    };
    ends.into_iter().map(of).collect()
}

impl FromStr for Objective {
    type Err = Error;

    fn from_str(given: &str) -> Result<Self> {
        let refuse = |problem: String| Error { given: given.to_owned(), problem };
        let of = |one: &str| -> Result<Term> {
            let (name, _) = hyper::split(one);
            let Some(definition) = all().iter().find(|definition| definition.name == name) else {
                let names: Vec<&str> = all().iter().map(|definition| definition.name).collect();
                return Err(refuse(format!("there is no `{name}`; there are {}", hyper::list(&names))));
            };
            let mut keys = definition.hyper.to_vec();
            keys.push(("weight", Some(1.0)));
            let mut values = hyper::values(one, &keys)?;
            let weight = values.pop().map_or(1.0, |(_, weight)| weight);
            Ok(Term { weight, definition, hyper: Hyper(values) })
        };
        let terms: Vec<Term> = terms(given).into_iter().map(of).collect::<Result<_>>()?;
        let sums = [Needs::Pair, Needs::Entropy, Needs::Batch, Needs::Mismatched];
        // a lone term whose weight is one is no sum
        let sum = terms.len() > 1 || terms[0].weight.to_bits() != 1.0f64.to_bits();
        if let Some(term) = terms.iter().find(|term| sum && !sums.contains(&term.needs())) {
            return Err(refuse(format!(
                "`{}` moves other gradients than those of log π(chosen) and log π(rejected), or by their size, so it has no place in a \
                 sum and no weight",
                term.definition.name
            )));
        }
        Ok(Self { given: given.to_owned(), terms })
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
        assert!(problem("cdpo:tau=1").contains("its keys are beta, eps and weight"), "{}", problem("cdpo:tau=1"));
        assert!(problem("sft:beta=1").contains("its keys are weight"));
        assert!(problem("dpo:beta").contains("key=value"));
        assert!(problem("dpo:beta=x").contains("expected a number"));
        assert!(problem("dpo:beta=nan").contains("expected a number"));
        assert!(problem("dpo:beta=1,beta=2").contains("twice"));
        assert!(problem("gate_dpo:alpha=1").contains("tau"), "{}", problem("gate_dpo:alpha=1"));
    }

    #[test]
    fn settings_replace_defaults() {
        let objective: Objective = "kto_pair:z=2,lam_l=3".parse().unwrap();
        assert_eq!(objective.terms[0].hyper.0, [("beta", 0.1), ("z", 2.0), ("lam_w", 1.0), ("lam_l", 3.0)]);
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
