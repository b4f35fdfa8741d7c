//! Objectives that are defined on a batch. The coefficients are those of the sum of the batch's losses.
use crate::catalogue::{Hyper, Scalars};
use crate::dual::{Dual, log_sigmoid as ls, sigmoid};
use crate::objective::outcome;
use crate::{Outcome, PairLogps};

/// Positions in ascending order of their values; equal values keep the order of the pairs.
fn ranks(values: &[f64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[a].total_cmp(&values[b]));
    order
}

/// −(1−ε) ln σ(βd) − ε ln σ(−βd), and its slope along d.
fn term(d: f64, h: &Hyper) -> (f64, f64) {
    let u = h["beta"] * Dual::chosen(d);
    let loss = -(1.0 - h["eps"]) * ls(u) - h["eps"] * ls(-u);
    (loss.value, loss.w)
}

/// Differences of the sorted margins of policy and reference; a pair's loss is the term of its policy margin's rank.
pub fn aot(pairs: &[PairLogps], h: &Hyper) -> Vec<Outcome> {
    let s: Vec<Scalars> = pairs.iter().map(Scalars::new).collect();
    let policy: Vec<f64> = s.iter().map(|s| (s.pw - s.pl).value).collect();
    let reference: Vec<f64> = s.iter().map(|s| s.rw - s.rl).collect();
    let mut out = vec![Outcome { loss: 0.0, d_w: 0.0, d_l: 0.0 }; pairs.len()];
    for (p, r) in ranks(&policy).into_iter().zip(ranks(&reference)) {
        let (loss, slope) = term(policy[p] - reference[r], h);
        out[p] = Outcome { loss, d_w: -slope, d_l: -slope };
    }
    out
}

/// Differences of the sorted log-ratios of chosen and rejected responses; a pair's loss is the term of its chosen
/// response's rank.
pub fn aot_unpaired(pairs: &[PairLogps], h: &Hyper) -> Vec<Outcome> {
    let s: Vec<Scalars> = pairs.iter().map(Scalars::new).collect();
    let chosen: Vec<f64> = s.iter().map(|s| s.hw().value).collect();
    let rejected: Vec<f64> = s.iter().map(|s| s.hl().value).collect();
    let mut out = vec![Outcome { loss: 0.0, d_w: 0.0, d_l: 0.0 }; pairs.len()];
    for (w, l) in ranks(&chosen).into_iter().zip(ranks(&rejected)) {
        let (loss, slope) = term(chosen[w] - rejected[l], h);
        out[w].loss = loss;
        out[w].d_w = -slope;
        out[l].d_l = -slope;
    }
    out
}

/// Mean NLL over all chosen tokens of the batch, which is every pair's loss.
pub fn sft(pairs: &[PairLogps], _: &Hyper) -> Vec<Outcome> {
    let tokens: f64 = pairs.iter().map(|pair| f64::from(pair.lengths.chosen)).sum();
    let loss = -pairs.iter().map(|pair| pair.chosen).sum::<f64>() / tokens;
    vec![Outcome { loss, d_w: pairs.len() as f64 / tokens, d_l: 0.0 }; pairs.len()]
}

/// DPO with one β for the batch, from the mean of its reward margins; no gradient flows through β.
pub fn beta_dpo(pairs: &[PairLogps], h: &Hyper) -> Vec<Outcome> {
    let margins: Vec<Dual> = pairs.iter().map(|pair| Scalars::new(pair).margin()).collect();
    let mean = margins.iter().map(|d| h["beta0"] * d.value).sum::<f64>() / margins.len().max(1) as f64;
    let beta = (h["beta0"] * (1.0 + h["alpha"] * (mean - h["M0"]))).max(1e-3);
    margins.into_iter().map(|d| outcome(-ls(beta * d))).collect()
}

/// KTO with one z for the batch, through which no gradient flows; `None` where the log-ratios that z is made of are not known.
pub fn kto(pairs: &[PairLogps], h: &Hyper) -> Option<Vec<Outcome>> {
    let mismatched: Vec<[f64; 2]> = pairs.iter().map(|pair| pair.mismatched).collect::<Option<_>>()?;
    let z = mismatched.iter().flatten().sum::<f64>() / (2 * mismatched.len()).max(1) as f64;
    let z = z.max(0.0);
    let of = |pair| {
        let s = Scalars::new(pair);
        // 1 − s(x) = s(−x)
        h["lam_w"] * sigmoid(h["beta"] * (z - s.hw())) + h["lam_l"] * sigmoid(h["beta"] * (s.hl() - z))
    };
    Some(pairs.iter().map(|pair| outcome(of(pair))).collect())
}
