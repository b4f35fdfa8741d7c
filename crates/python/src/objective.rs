//! Objectives by themselves: loss and coefficients, without a model.
use crate::errors::{Failure, raised};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use tanglescope_objectives::{self as objectives, Lengths, Needs, PairGram, PairLogps};

/// A preference loss with its hyper-parameters.
#[pyclass(frozen, module = "tanglescope._native")]
pub struct Objective {
    objective: objectives::Objective,
}

/// Loss, d_w and d_l of every pair.
type Outcomes = (Vec<f64>, Vec<f64>, Vec<f64>);

fn refuse(problem: impl Into<String>) -> PyErr {
    PyValueError::new_err(problem.into())
}

#[pymethods]
impl Objective {
    /// The objective that a text is, such as `dpo:beta=0.1`.
    #[new]
    fn new(py: Python<'_>, given: &str) -> PyResult<Self> {
        let parsed = given.parse::<objectives::Objective>();
        let objective = parsed.map_err(|e| raised(py, &Failure::Input(e.to_string())))?;
        Ok(Self { objective })
    }

    #[getter]
    fn given(&self) -> &str {
        self.objective.given()
    }

    /// Whether it uses the reference model's log-probabilities.
    #[getter]
    fn uses_reference(&self) -> bool {
        self.objective.uses_reference()
    }

    /// What it has to be given beside the log-probabilities of a pair.
    #[getter]
    fn needs(&self) -> &'static str {
        match self.objective.needs() {
            Needs::Pair => "pair",
            Needs::Gram => "gram",
            Needs::Entropy => "entropy",
            Needs::Head => "head",
            Needs::Batch => "batch",
            Needs::Mismatched => "mismatched",
            Needs::Contrast => "contrast",
            Needs::Tail => "tail",
            Needs::Weights => "weights",
            Needs::Text => "text",
            Needs::Training => "training",
        }
    }

    /// Loss and coefficients of pairs, all lists being of one length: log π of both responses, the same under the reference, lengths in tokens,
    /// and the inner products of both gradients where the objective needs them.
    fn outcomes(
        &self,
        logp: [Vec<f64>; 2],
        reference: Option<[Vec<f64>; 2]>,
        tokens: [Vec<u32>; 2],
        gram: Option<[Vec<f64>; 3]>,
    ) -> PyResult<Outcomes> {
        let n = logp[0].len();
        let of_reference = reference.iter().flatten().map(Vec::len);
        let of_gram = gram.iter().flatten().map(Vec::len);
        let lengths = [logp[1].len(), tokens[0].len(), tokens[1].len()];
        if lengths.into_iter().chain(of_reference).chain(of_gram).any(|other| other != n) {
            return Err(refuse("the values are not of as many pairs each"));
        }
        let given = self.objective.given();
        if self.objective.uses_reference() && reference.is_none() {
            return Err(refuse(format!("`{given}` uses a reference: give ref_w and ref_l")));
        }
        let pair = |i: usize| PairLogps {
            chosen: logp[0][i],
            rejected: logp[1][i],
            reference: reference.as_ref().map(|of| [of[0][i], of[1][i]]),
            lengths: Lengths { chosen: tokens[0][i], rejected: tokens[1][i] },
            ..PairLogps::default()
        };
        let pairs: Vec<PairLogps> = (0..n).map(pair).collect();
        let outcomes = match (self.objective.needs(), &gram) {
            (Needs::Pair, _) => pairs.iter().map(|p| self.objective.of_pair(p, &PairGram::default())).collect(),
            (Needs::Gram, Some([ww, wl, ll])) => {
                let gram = |i: usize| PairGram { ww: ww[i], wl: wl[i], ll: ll[i] };
                pairs.iter().enumerate().map(|(i, p)| self.objective.of_pair(p, &gram(i))).collect()
            }
            (Needs::Gram, None) => {
                return Err(refuse(format!("`{given}` uses the gradients' inner products: give ww, wl and ll")));
            }
            (Needs::Batch, _) => self.objective.of_batch(&pairs),
            _ => None,
        };
        let Some(outcomes) = outcomes else {
            let problem = format!(
                "`{given}` needs more of a pair than log-probabilities and lengths ({}); analyze measures it",
                self.needs()
            );
            return Err(refuse(problem));
        };
        let all = |of: fn(&objectives::Outcome) -> f64| outcomes.iter().map(of).collect();
        Ok((all(|o| o.loss), all(|o| o.d_w), all(|o| o.d_l)))
    }
}
