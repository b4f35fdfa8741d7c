//! Objectives that change DPO's direction by the size of the two gradients, or by the rejected response's probability.
use crate::catalogue::{Hyper, Scalars, dpo};
use crate::dual::{log_sigmoid, sigmoid_of};
use crate::objective::outcome;
use crate::{Outcome, PairGram, PairLogps};

fn dpo_outcome(pair: &PairLogps, h: &Hyper) -> Outcome {
    outcome(dpo(&Scalars::new(pair), h))
}

/// d_w = βσ(−u)/‖g_w‖, d_l = βσ(−u)/‖g_l‖ (Yuan et al., arXiv 2410.13828, section 5). A gradient of length zero has no
/// direction to follow, and gets 0.
pub fn normalised(pair: &PairLogps, h: &Hyper, gram: &PairGram) -> Outcome {
    let of = dpo_outcome(pair, h);
    let over = |d: f64, square: f64| if square > 0.0 { d / square.sqrt() } else { 0.0 };
    Outcome { d_w: over(of.d_w, gram.ww), d_l: over(of.d_l, gram.ll), ..of }
}

/// d_w·c and d_l/c with ln c = ½(ln(‖g_l‖/‖g_w‖) − ln(d_w/d_l)), and d_w = d_l for DPO (Chen et al., arXiv 2604.18239).
/// Without both gradients nothing is calibrated.
pub fn calibrated(pair: &PairLogps, h: &Hyper, gram: &PairGram) -> Outcome {
    calibrated_by(pair, h, gram.calibration().unwrap_or(0.0))
}

/// [`calibrated`] with a given ln c.
pub fn calibrated_by(pair: &PairLogps, h: &Hyper, ln_c: f64) -> Outcome {
    let (of, c) = (dpo_outcome(pair, h), ln_c.exp());
    Outcome { d_w: of.d_w * c, d_l: of.d_l / c, ..of }
}

/// d_w·c and d_l/c with c² = p_w/p_l, the geometric means of the tokens' probabilities, so that a step's slopes along both probabilities a token
/// are alike: DPO's are as p_l : p_w (after arXiv 2605.28440).
pub fn adadpo(pair: &PairLogps, h: &Hyper) -> Outcome {
    let (of, s) = (dpo_outcome(pair, h), Scalars::new(pair));
    let most = h["clip"].ln().abs();
    let c = (0.5 * (s.aw() - s.al()).value.clamp(-most, most)).exp();
    Outcome { d_w: of.d_w * c, d_l: of.d_l / c, ..of }
}

/// d_l times g = σ(α(p − τ)), p the geometric mean of the rejected tokens' probabilities (arXiv 2605.02626).
pub fn gate_dpo(pair: &PairLogps, h: &Hyper) -> Outcome {
    let of = dpo_outcome(pair, h);
    let p = (pair.rejected / f64::from(pair.lengths.rejected)).exp();
    Outcome { d_l: of.d_l * sigmoid_of(h["alpha"] * (p - h["tau"])), ..of }
}

/// LPO with its gradient stopped in the other response: 4β/(r₁+r₂)·(r₁|h_w − sg(h_l) − 1/(2β)| + r₂|sg(h_w) − h_l − 1/(2β)|)
/// (arXiv 2508.14947, its code), which has LPO's value.
pub fn lpo_ste(pair: &PairLogps, h: &Hyper) -> Outcome {
    lpo(pair, h, h["r1"] / (h["r1"] + h["r2"]))
}

/// [`lpo_ste`] with r₁ = 1 and r₂ = e^(h_l − h_w).
pub fn lpo_dynamic(pair: &PairLogps, h: &Hyper) -> Outcome {
    lpo(pair, h, sigmoid_of(Scalars::new(pair).margin().value))
}

/// LPO's value, with d_w : d_l = `chosen` : 1 − `chosen`.
fn lpo(pair: &PairLogps, h: &Hyper, chosen: f64) -> Outcome {
    let short = 0.5 / h["beta"] - Scalars::new(pair).margin().value;
    let slope = if short == 0.0 { 0.0 } else { 4.0 * h["beta"] * short.signum() };
    Outcome { loss: 4.0 * h["beta"] * short.abs(), d_w: slope * chosen, d_l: slope * (1.0 - chosen) }
}

/// DPO's loss and slopes where the output matrix is moved by ρ along the loss's own gradient, which lies along g_l − g_w there: the margin is less by
/// ρ‖g_w − g_l‖, to first order (arXiv 2603.18258, a batch of one).
pub fn logits_sam(pair: &PairLogps, head: f64, h: &Hyper) -> Outcome {
    outcome(-log_sigmoid(h["beta"] * (Scalars::new(pair).margin() - h["rho"] * head)))
}

/// DPO times the geometric means of p/Σp² over the tokens of both responses, which are held constant (Zhou et al.,
/// arXiv 2406.11827, eq. 2).
pub fn wpo(pair: &PairLogps, renyi: [f64; 2], h: &Hyper) -> Outcome {
    let s = Scalars::new(pair);
    let weight = (s.aw().value + renyi[0] + s.al().value + renyi[1]).exp();
    let Outcome { loss, d_w, d_l } = dpo_outcome(pair, h);
    Outcome { loss: weight * loss, d_w: weight * d_w, d_l: weight * d_l }
}
