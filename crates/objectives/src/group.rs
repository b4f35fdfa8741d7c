//! Objectives on groups of more than two responses: each is a weight for every response's gradient, `−∇ℓ = Σ_k d_k g_k`
//! (docs/mathematics.md, section 10).
use crate::dual::sigmoid_of;
use crate::error::{Error, Result};
use crate::hyper;
use std::fmt;
use std::str::FromStr;

/// What a group objective sees of a response.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ResponseMeasure {
    /// How good it is.
    pub score: f64,
    /// log π(y|x).
    pub logp: f64,
    /// The same under the reference model.
    pub reference: Option<f64>,
    /// Tokens.
    pub tokens: u32,
}

/// A loss on groups, with its hyper-parameters.
#[derive(Clone, Debug, PartialEq)]
pub enum GroupObjective {
    /// Advantages over the group's mean in units of its deviation, a token's share each: `d_k = (s_k − s̄)/(σ + ε)/(K·|y_k|)`,
    /// GRPO at the policy that sampled (Shao et al., arXiv 2402.03300, eq. 3).
    Grpo {
        /// ε.
        eps: f64,
    },
    /// `d_k = (s_k − s̄)/K` (Liu et al., arXiv 2503.20783).
    DrGrpo,
    /// `d_k = (s_k − mean of the other scores)/K` (Ahmadian et al., arXiv 2402.14740).
    Rloo,
    /// DPO over a ranking: `ℓ = −Σ_k log(exp βh_k / Σ_{j not before k} exp βh_j)` in the order of scores, `h = log π − log π_ref`
    /// (Rafailov et al., arXiv 2305.18290, appendix A.3).
    PlackettLuce {
        /// β.
        beta: f64,
    },
    /// `ℓ = −Σ_k softmax(s/τ)_k log softmax(βh)_k` (Liu et al., arXiv 2402.01878, with the scores as labels).
    ListNet {
        /// β.
        beta: f64,
        /// τ.
        tau: f64,
    },
    /// The best response is gold, the next two are chosen and rejected: `ℓ = −log σ(β(log π_w − log π_l)) − α log π_gold/|y_gold|`
    /// (Saeidi et al., arXiv 2405.16681; TRL's TPO). Others are left alone.
    Tpo {
        /// β.
        beta: f64,
        /// α.
        alpha: f64,
    },
    /// The same with mean log-probabilities of chosen and rejected tokens, and a margin: `−log σ(β(a_w − a_l) − γ)` (TRL's `tpo-l`).
    TpoL {
        /// β.
        beta: f64,
        /// γ.
        gamma: f64,
        /// α.
        alpha: f64,
    },
}

/// Names with their hyper-parameters and defaults.
const NAMES: [(&str, &hyper::Keys); 7] = [
    ("grpo", &[("eps", Some(1e-4))]),
    ("dr_grpo", &[]),
    ("rloo", &[]),
    ("plackett_luce", &[("beta", Some(0.1))]),
    ("listnet", &[("beta", Some(0.1)), ("tau", Some(1.0))]),
    ("tpo", &[("beta", Some(0.01)), ("alpha", Some(1.0))]),
    ("tpo_l", &[("beta", Some(0.01)), ("gamma", Some(0.5)), ("alpha", Some(1.0))]),
];

impl FromStr for GroupObjective {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let refuse = |problem: String| Error { given: text.to_owned(), problem };
        let (name, _) = hyper::split(text);
        let Some((_, keys)) = NAMES.iter().find(|(known, _)| *known == name) else {
            let known = NAMES.map(|(name, _)| name).join(", ");
            return Err(refuse(format!("no objective on groups; they are {known}")));
        };
        let found = hyper::values(text, keys)?;
        let outside = |(key, value): &&(&str, f64)| *value < 0.0 || *value == 0.0 && !["alpha", "gamma"].contains(key);
        if let Some((key, value)) = found.iter().find(outside) {
            return Err(refuse(format!("`{key}` is `{value}`, expected a positive number")));
        }
        let values: Vec<f64> = found.into_iter().map(|(_, value)| value).collect();
        Ok(match name {
            "grpo" => Self::Grpo { eps: values[0] },
            "dr_grpo" => Self::DrGrpo,
            "rloo" => Self::Rloo,
            "plackett_luce" => Self::PlackettLuce { beta: values[0] },
            "listnet" => Self::ListNet { beta: values[0], tau: values[1] },
            "tpo" => Self::Tpo { beta: values[0], alpha: values[1] },
            _ => Self::TpoL { beta: values[0], gamma: values[1], alpha: values[2] },
        })
    }
}

impl fmt::Display for GroupObjective {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Grpo { eps } => write!(f, "grpo:eps={eps}"),
            Self::DrGrpo => f.write_str("dr_grpo"),
            Self::Rloo => f.write_str("rloo"),
            Self::PlackettLuce { beta } => write!(f, "plackett_luce:beta={beta}"),
            Self::ListNet { beta, tau } => write!(f, "listnet:beta={beta},tau={tau}"),
            Self::Tpo { beta, alpha } => write!(f, "tpo:beta={beta},alpha={alpha}"),
            Self::TpoL { beta, gamma, alpha } => write!(f, "tpo_l:beta={beta},gamma={gamma},alpha={alpha}"),
        }
    }
}

/// Probabilities of some numbers.
fn softmax(x: &[f64]) -> Vec<f64> {
    let top = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let e: Vec<f64> = x.iter().map(|x| (x - top).exp()).collect();
    let sum: f64 = e.iter().sum();
    e.into_iter().map(|e| e / sum).collect()
}

fn mean(x: impl ExactSizeIterator<Item = f64>) -> f64 {
    let n = x.len() as f64;
    x.sum::<f64>() / n
}

impl GroupObjective {
    /// Whether it uses a reference model.
    #[must_use]
    pub fn needs_reference(&self) -> bool {
        matches!(self, Self::PlackettLuce { .. } | Self::ListNet { .. })
    }

    /// d of each response; `None` where a reference is needed and there is none, or more responses than there are.
    #[must_use]
    pub fn weights(&self, group: &[ResponseMeasure]) -> Option<Vec<f64>> {
        let k = group.len() as f64;
        let average = mean(group.iter().map(|of| of.score));
        let centred = || group.iter().map(|of| of.score - average);
        Some(match self {
            Self::Grpo { eps } => {
                // the deviation of a sample, as trainers take it
                let deviation = (centred().map(|x| x * x).sum::<f64>() / (k - 1.0)).sqrt();
                let advantage = |(of, x): (&ResponseMeasure, f64)| x / (deviation + eps) / (k * f64::from(of.tokens));
                group.iter().zip(centred()).map(advantage).collect()
            }
            Self::DrGrpo => centred().map(|x| x / k).collect(),
            // s_k − (K s̄ − s_k)/(K − 1) = K (s_k − s̄)/(K − 1)
            Self::Rloo => centred().map(|x| x / (k - 1.0)).collect(),
            Self::PlackettLuce { beta } => {
                let scaled = scaled(group, *beta)?;
                let order = by_score(group);
                let mut d = vec![0.0; group.len()];
                for at in 0..order.len() {
                    let left = &order[at..];
                    let p = softmax(&left.iter().map(|&j| scaled[j]).collect::<Vec<_>>());
                    d[left[0]] += beta;
                    left.iter().zip(p).for_each(|(&j, p)| d[j] -= beta * p);
                }
                d
            }
            Self::ListNet { beta, tau } => {
                let p = softmax(&scaled(group, *beta)?);
                let labels = softmax(&group.iter().map(|of| of.score / tau).collect::<Vec<_>>());
                labels.into_iter().zip(p).map(|(label, p)| beta * (label - p)).collect()
            }
            Self::Tpo { beta, alpha } => triple(group, *beta, *alpha, |of| of.logp, |_| 1.0, 0.0)?,
            Self::TpoL { beta, gamma, alpha } => {
                let tokens = |of: &ResponseMeasure| f64::from(of.tokens);
                triple(group, *beta, *alpha, |of| of.logp / tokens(of), tokens, *gamma)?
            }
        })
    }
}

/// Responses, the best first; equal ones keep their order.
fn by_score(group: &[ResponseMeasure]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..group.len()).collect();
    order.sort_by(|&a, &b| group[b].score.total_cmp(&group[a].score));
    order
}

/// d of gold, chosen and rejected under `−log σ(β(r_w − r_l) − γ) − α log π_gold/|y_gold|`, where r is `reward` and log π over it
/// `per`; `None` where there are fewer than three.
fn triple(
    group: &[ResponseMeasure],
    beta: f64,
    alpha: f64,
    reward: impl Fn(&ResponseMeasure) -> f64,
    per: impl Fn(&ResponseMeasure) -> f64,
    gamma: f64,
) -> Option<Vec<f64>> {
    let [gold, w, l, ..] = by_score(group)[..] else { return None };
    let slope = beta * sigmoid_of(gamma - beta * (reward(&group[w]) - reward(&group[l])));
    let mut d = vec![0.0; group.len()];
    d[gold] = alpha / f64::from(group[gold].tokens);
    d[w] = slope / per(&group[w]);
    d[l] = -slope / per(&group[l]);
    Some(d)
}

/// βh of each response.
fn scaled(group: &[ResponseMeasure], beta: f64) -> Option<Vec<f64>> {
    group.iter().map(|of| Some(beta * (of.logp - of.reference?))).collect()
}

/// Predicted change of each response's log-probability per unit of step: `Gram · d`, `gram[K, K]`.
#[must_use]
pub fn predicted(gram: &[f64], d: &[f64]) -> Vec<f64> {
    gram.chunks_exact(d.len()).map(|row| row.iter().zip(d).map(|(g, d)| g * d).sum()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// ℓ of the two that have a loss of their own, written again.
    fn loss(objective: &GroupObjective, group: &[ResponseMeasure]) -> f64 {
        let h = |beta: f64| group.iter().map(|of| beta * (of.logp - of.reference.unwrap())).collect::<Vec<f64>>();
        match objective {
            GroupObjective::PlackettLuce { beta } => {
                let h = h(*beta);
                let order = by_score(group);
                (0..order.len())
                    .map(|at| order[at..].iter().map(|&j| h[j].exp()).sum::<f64>().ln() - h[order[at]])
                    .sum()
            }
            GroupObjective::ListNet { beta, tau } => {
                let h = h(*beta);
                let total = h.iter().map(|h| h.exp()).sum::<f64>().ln();
                let labels: Vec<f64> = group.iter().map(|of| (of.score / tau).exp()).collect();
                let sum: f64 = labels.iter().sum();
                labels.iter().zip(&h).map(|(label, h)| label / sum * (total - h)).sum()
            }
            _ => unreachable!("advantages are constants"),
        }
    }

    fn groups() -> impl Strategy<Value = Vec<ResponseMeasure>> {
        let of = (-3.0f64..3.0, -40.0f64..0.0, -40.0f64..0.0, 1u32..50);
        let of = of.prop_map(|(score, logp, reference, tokens)| ResponseMeasure {
            score,
            logp,
            reference: Some(reference),
            tokens,
        });
        proptest::collection::vec(of, 2..7)
    }

    proptest! {
        /// Central differences of 1e-5: their error is of the order of its square, and of 1e-16 over it.
        #[test]
        fn weights_are_slopes_of_the_loss(group in groups(), beta in 0.05f64..0.5) {
            for objective in [GroupObjective::PlackettLuce { beta }, GroupObjective::ListNet { beta, tau: 0.7 }] {
                let d = objective.weights(&group).unwrap();
                for k in 0..group.len() {
                    let at = |step: f64| {
                        let mut moved = group.clone();
                        moved[k].logp += step;
                        loss(&objective, &moved)
                    };
                    let slope = (at(1e-5) - at(-1e-5)) / 2e-5;
                    prop_assert!((d[k] + slope).abs() <= 1e-7, "{objective} {k}: {} {slope}", d[k]);
                }
            }
        }

        /// Advantages sum to zero, and follow the scores.
        #[test]
        fn advantages_are_relative(group in groups()) {
            for objective in [GroupObjective::DrGrpo, GroupObjective::Rloo] {
                let d = objective.weights(&group).unwrap();
                prop_assert!(d.iter().sum::<f64>().abs() <= 1e-12);
            }
            let d = GroupObjective::Grpo { eps: 1e-4 }.weights(&group).unwrap();
            let sum: f64 = d.iter().zip(&group).map(|(d, of)| d * f64::from(of.tokens)).sum();
            prop_assert!(sum.abs() <= 1e-9);
        }
    }

    #[test]
    fn names_are_read_back_and_bad_ones_refused() {
        for name in [
            "grpo:eps=0.01",
            "dr_grpo",
            "rloo",
            "plackett_luce:beta=0.2",
            "listnet:beta=0.3,tau=2",
            "tpo:beta=0.1,alpha=0",
            "tpo_l:beta=2,gamma=0.5,alpha=1",
        ] {
            assert_eq!(name.parse::<GroupObjective>().unwrap().to_string(), name);
        }
        for (name, told) in
            [("dpo", "no objective on groups"), ("grpo:beta=1", "has no `beta`"), ("grpo:eps=-1", "from 0 to 1")]
        {
            let message = name.parse::<GroupObjective>().unwrap_err().to_string();
            assert!(message.contains(told), "{message}");
        }
    }

    #[test]
    fn a_prediction_is_the_gram_times_the_weights() {
        assert_eq!(predicted(&[2.0, 1.0, 1.0, 3.0], &[1.0, -1.0]), [1.0, -2.0]);
    }
}
