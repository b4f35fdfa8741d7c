//! The objectives: names, hyper-parameters with defaults, formulas, sources.
use crate::dual::{Dual, log_sigmoid as ls, sigmoid};
use crate::{Outcome, PairGram, PairLogps, batch, gradients};
use std::ops::Index;

/// Hyper-parameters by name.
#[derive(Clone, Debug, PartialEq)]
pub struct Hyper(pub(crate) Vec<(&'static str, f64)>);

impl Hyper {
    /// The value of a key, where there is one of that name.
    pub fn get(&self, key: &str) -> Option<f64> {
        self.0.iter().find(|(name, _)| *name == key).map(|(_, value)| *value)
    }
}

impl Index<&str> for Hyper {
    type Output = f64;

    fn index(&self, key: &str) -> &f64 {
        match self.0.iter().find(|(name, _)| *name == key) {
            Some((_, value)) => value,
            None => unreachable!("formulas use the keys of their definition, which {key} is not"),
        }
    }
}

/// The scalars of a pair, in the letters of the formulas.
pub struct Scalars {
    /// log π of both responses.
    pub pw: Dual,
    pub pl: Dual,
    /// Of the reference, and the lengths in tokens.
    pub rw: f64,
    pub rl: f64,
    pub nw: f64,
    pub nl: f64,
}

impl Scalars {
    /// Without a reference its log-probabilities are 0; only objectives that do not use them run then.
    pub fn new(pair: &PairLogps) -> Self {
        let [rw, rl] = pair.reference.unwrap_or([0.0; 2]);
        let (nw, nl) = (f64::from(pair.lengths.chosen), f64::from(pair.lengths.rejected));
        Self { pw: Dual::chosen(pair.chosen), pl: Dual::rejected(pair.rejected), rw, rl, nw, nl }
    }

    /// Log-ratio of the chosen response to the reference.
    pub fn hw(&self) -> Dual {
        self.pw - self.rw
    }

    /// Log-ratio of the rejected response to the reference.
    pub fn hl(&self) -> Dual {
        self.pl - self.rl
    }

    /// D, the margin of log-ratios.
    pub fn margin(&self) -> Dual {
        self.hw() - self.hl()
    }

    /// log π(chosen) a token.
    pub fn aw(&self) -> Dual {
        self.pw / self.nw
    }

    /// log π(rejected) a token.
    pub fn al(&self) -> Dual {
        self.pl / self.nl
    }
}

/// How an objective's outcome is found.
#[derive(Clone, Copy)]
pub enum Rule {
    /// From the scalars of a pair.
    Pair(fn(&Scalars, &Hyper) -> Dual),
    /// From the scalars of a pair: its direction is not that of a loss's gradient.
    Gradients(fn(&PairLogps, &Hyper) -> Outcome),
    /// The same, from the Gram too.
    Gram(fn(&PairLogps, &Hyper, &PairGram) -> Outcome),
    /// From the scalars of all pairs of a batch.
    Batch(fn(&[PairLogps], &Hyper) -> Vec<Outcome>),
    /// [`Rule::Pair`] on log-probabilities summed over the tokens outside the longest common subsequence.
    Contrast(fn(&Scalars, &Hyper) -> Dual),
    /// [`Rule::Pair`] on log-probabilities in which the tokens beyond the shorter response's length weigh `alpha`.
    Tail(fn(&Scalars, &Hyper) -> Dual),
    /// [`Rule::Pair`] on log-probabilities whose tokens have weights that the data gives.
    Weights(fn(&Scalars, &Hyper) -> Dual),
    /// [`Rule::Pair`] on log-probabilities whose tokens are weighted by a mask that is learned.
    Training(fn(&Scalars, &Hyper) -> Dual),
    /// [`Rule::Pair`] plus the mean NLL of the tokens of prompt and chosen response.
    Text(fn(&Scalars, &Hyper) -> Dual),
    /// From the scalars of a pair and its [Rényi entropies](PairLogps::renyi), chosen first.
    Entropy(fn(&PairLogps, [f64; 2], &Hyper) -> Outcome),
    /// From the scalars of a pair and the [length of g_w − g_l over the output matrix](PairLogps::head).
    Head(fn(&PairLogps, f64, &Hyper) -> Outcome),
    /// From the scalars of all pairs of a batch, whose [mismatched responses](PairLogps::mismatched) are known.
    Mismatched(fn(&[PairLogps], &Hyper) -> Option<Vec<Outcome>>),
}

/// What is known of an objective.
pub struct Definition {
    /// Its name on the command line.
    pub name: &'static str,
    /// Names of its hyper-parameters and their defaults; those without one have to be given.
    pub hyper: &'static [(&'static str, Option<f64>)],
    /// The loss of a pair.
    pub formula: &'static str,
    /// Where it is from.
    pub source: &'static str,
    /// Whether it uses the reference model's log-probabilities.
    pub reference: bool,
    pub(crate) rule: Rule,
}

/// DPO's loss; several objectives change only its gradient.
pub fn dpo(s: &Scalars, h: &Hyper) -> Dual {
    -ls(h["beta"] * s.margin())
}

/// All objectives. In formulas: pw, pl the policy's log-probabilities, rw, rl the reference's, nw, nl lengths in tokens,
/// hw = pw − rw, hl = pl − rl, D = hw − hl, aw = pw/nw, al = pl/nl, s the sigmoid, ls its logarithm.
#[must_use]
pub fn all() -> &'static [Definition] {
    ALL
}

macro_rules! definition {
    ($name:literal, [$($key:ident $(= $default:literal)?),*], $reference:expr, $formula:literal, $source:literal, $rule:expr) => {
        Definition {
            name: $name,
            hyper: &[$((stringify!($key), definition!(@ $($default)?))),*],
            formula: $formula,
            source: $source,
            reference: $reference,
            rule: $rule,
        }
    };
    (@ $default:literal) => { Some($default) };
    (@) => { None };
}

const ALL: &[Definition] = &[
    definition!("dpo", [beta = 0.1], true, "-ls(beta*D)", "Rafailov et al. 2023, arXiv 2305.18290", Rule::Pair(dpo)),
    definition!(
        "cdpo",
        [beta = 0.1, eps = 0.1],
        true,
        "-(1-eps)*ls(beta*D) - eps*ls(-beta*D)",
        "Mitchell 2023, conservative DPO; TRL's label_smoothing",
        Rule::Pair(|s, h| {
            let u = h["beta"] * s.margin();
            -(1.0 - h["eps"]) * ls(u) - h["eps"] * ls(-u)
        })
    ),
    definition!(
        "robust_dpo",
        [beta = 0.1, eps = 0.1],
        true,
        "[-(1-eps)*ls(beta*D) + eps*ls(-beta*D)]/(1-2eps)",
        "Chowdhury et al. 2024, arXiv 2403.00409; TRL robust",
        Rule::Pair(|s, h| {
            let u = h["beta"] * s.margin();
            (-(1.0 - h["eps"]) * ls(u) + h["eps"] * ls(-u)) / (1.0 - 2.0 * h["eps"])
        })
    ),
    definition!(
        "ipo",
        [tau = 0.1],
        true,
        "(D - 1/(2 tau))^2",
        "Azar et al. 2023, arXiv 2310.12036, eq. 17",
        Rule::Pair(|s, h| (s.margin() - 0.5 / h["tau"]).square())
    ),
    definition!(
        "ipo_avg",
        [tau = 0.1],
        true,
        "(hw/nw - hl/nl - 1/(2 tau))^2",
        "TRL ipo (length-normalised)",
        Rule::Pair(|s, h| (s.hw() / s.nw - s.hl() / s.nl - 0.5 / h["tau"]).square())
    ),
    definition!(
        "slic_hf",
        [delta = 1.0, lam = 0.1],
        false,
        "max(0, delta - pw + pl) - lam*pw",
        "Zhao et al. 2023, arXiv 2305.10425",
        Rule::Pair(|s, h| (h["delta"] - s.pw + s.pl).positive_part() - h["lam"] * s.pw)
    ),
    definition!(
        "hinge",
        [beta = 0.1],
        true,
        "max(0, 1 - beta*D)",
        "TRL hinge (SLiC with a reference)",
        Rule::Pair(|s, h| (1.0 - h["beta"] * s.margin()).positive_part())
    ),
    definition!(
        "simpo",
        [beta = 2.0, gamma = 0.5],
        false,
        "-ls(beta*aw - beta*al - gamma)",
        "Meng et al. 2024, arXiv 2405.14734",
        Rule::Pair(|s, h| -ls(h["beta"] * s.aw() - h["beta"] * s.al() - h["gamma"]))
    ),
    definition!(
        "cpo",
        [beta = 0.1, lam = 1.0],
        false,
        "-ls(beta*(pw - pl)) - lam*pw",
        "Xu et al. 2024, arXiv 2401.08417, NLL summed over tokens",
        Rule::Pair(|s, h| -ls(h["beta"] * (s.pw - s.pl)) - h["lam"] * s.pw)
    ),
    definition!(
        "cpo_avg_nll",
        [beta = 0.1, lam = 1.0],
        false,
        "-ls(beta*(pw - pl)) - lam*aw",
        "TRL cpo_trainer (batch of one: token-mean NLL of the response)",
        Rule::Pair(|s, h| -ls(h["beta"] * (s.pw - s.pl)) - h["lam"] * s.aw())
    ),
    definition!(
        "rrhf",
        [lam = 1.0],
        false,
        "max(0, al - aw) - lam*pw",
        "Yuan et al. 2023, arXiv 2304.05302, NLL summed over tokens",
        Rule::Pair(|s, h| (s.al() - s.aw()).positive_part() - h["lam"] * s.pw)
    ),
    definition!(
        "rrhf_avg_nll",
        [lam = 1.0],
        false,
        "max(0, al - aw) - lam*aw",
        "RRHF with a token-mean NLL",
        Rule::Pair(|s, h| (s.al() - s.aw()).positive_part() - h["lam"] * s.aw())
    ),
    definition!(
        "r_dpo",
        [beta = 0.1, alpha = 0.05],
        true,
        "-ls(beta*D + alpha*nw - alpha*nl)",
        "Park et al. 2024, arXiv 2403.19159, eq. 9",
        Rule::Pair(length_regularised)
    ),
    definition!(
        "dpop",
        [beta = 0.3, lam = 5.0],
        true,
        "-ls(beta*(D - lam*max(0, rw - pw)))",
        "Pal et al. 2024, arXiv 2402.13228 (Smaug)",
        Rule::Pair(positive)
    ),
    definition!(
        "kto_pair",
        [beta = 0.1, z = 0.5, lam_w = 1.0, lam_l = 1.33],
        true,
        "lam_w*(1 - s(beta*(hw - z))) + lam_l*(1 - s(beta*(z - hl)))",
        "Ethayarajh et al. 2024, arXiv 2402.01306, z given and constant",
        Rule::Pair(|s, h| {
            // 1 − s(x) = s(−x)
            let (chosen, rejected) = (h["z"] - s.hw(), s.hl() - h["z"]);
            h["lam_w"] * sigmoid(h["beta"] * chosen) + h["lam_l"] * sigmoid(h["beta"] * rejected)
        })
    ),
    definition!(
        "kto",
        [beta = 0.1, lam_w = 1.0, lam_l = 1.0],
        true,
        "lam_w*(1 - s(beta*(hw - z))) + lam_l*(1 - s(beta*(z - hl))), z = max(0, mean of h over the batch, each prompt with the \
         responses of the row before it), held constant",
        "Ethayarajh et al. 2024, arXiv 2402.01306, eq. 7; TRL's KTO",
        Rule::Mismatched(batch::kto)
    ),
    definition!(
        "sppo",
        [beta = 0.1],
        true,
        "(beta*hw - 1/2)^2 + (beta*hl + 1/2)^2",
        "Wu et al. 2024, arXiv 2405.00675, hard labels, as in the table of Yuan et al.",
        Rule::Pair(|s, h| (h["beta"] * s.hw() - 0.5).square() + (h["beta"] * s.hl() + 0.5).square())
    ),
    definition!(
        "sppo_hard_trl",
        [beta = 0.1],
        true,
        "(hw - 1/(2beta))^2 + (hl + 1/(2beta))^2",
        "TRL sppo_hard (sppo / beta^2)",
        Rule::Pair(half_margins)
    ),
    definition!(
        "sppo_official",
        [beta = 0.1],
        true,
        "[(hw - 1/(2beta))^2 + (hl + 1/(2beta))^2]/2",
        "Understand_MarginPO, dpo.py, sppo",
        Rule::Pair(|s, h| half_margins(s, h) / 2.0)
    ),
    definition!(
        "rdpo_official",
        [beta = 0.1, alpha = 0.2],
        true,
        "-ls(beta*D + alpha*(nw - nl))",
        "Understand_MarginPO, dpo.py, rdpo",
        Rule::Pair(length_regularised)
    ),
    definition!(
        "pdpo_official",
        [beta = 0.1, lam = 50.0],
        true,
        "-ls(beta*(D - lam*max(0, rw - pw)))",
        "Understand_MarginPO, dpo.py, pdpo (DPOP)",
        Rule::Pair(positive)
    ),
    definition!(
        "rrhf_official",
        [],
        false,
        "max(0, al - aw)",
        "Understand_MarginPO, cpo.py, rrhf without its NLL term",
        Rule::Pair(|s, _| (s.al() - s.aw()).positive_part())
    ),
    definition!(
        "orpo",
        [lam = 0.1],
        false,
        "-aw - lam*ls(logodds_w - logodds_l), logodds = a - log(1-e^a)",
        "Hong et al. 2024, arXiv 2403.07691; TRL orpo",
        Rule::Pair(|s, h| -s.aw() + odds(s, h))
    ),
    definition!(
        "orpo_trl",
        [lam = 0.1],
        false,
        "orpo's, with the mean NLL of the tokens of prompt and chosen response in place of -aw",
        "TRL's ORPO",
        Rule::Text(odds)
    ),
    definition!(
        "rpo",
        [beta = 0.1, alpha = 1.0],
        true,
        "-ls(beta*D) - alpha*aw",
        "Pang et al. 2024, arXiv 2404.19733; TRL rpo_alpha",
        Rule::Pair(|s, h| dpo(s, h) - h["alpha"] * s.aw())
    ),
    definition!(
        "exo_pair",
        [beta = 0.1, eps = 0.001],
        true,
        "q*(log q - log(1-eps)) + (1-q)*(log(1-q) - log eps), q = s(beta*D)",
        "Ji et al. 2024, arXiv 2402.00856; TRL exo_pair",
        Rule::Pair(|s, h| {
            let u = h["beta"] * s.margin();
            sigmoid(u) * (ls(u) - (-h["eps"]).ln_1p()) + sigmoid(-u) * (ls(-u) - h["eps"].ln())
        })
    ),
    definition!(
        "nca_pair",
        [beta = 0.1],
        true,
        "-ls(beta*hw) - 0.5*ls(-beta*hw) - 0.5*ls(-beta*hl)",
        "Chen et al. 2024, arXiv 2402.05369; TRL nca_pair",
        Rule::Pair(|s, h| {
            let (w, l) = (h["beta"] * s.hw(), h["beta"] * s.hl());
            -ls(w) - 0.5 * ls(-w) - 0.5 * ls(-l)
        })
    ),
    definition!(
        "bco_pair",
        [beta = 0.1, delta = 0.0],
        true,
        "-ls(beta*hw - delta) - ls(-(beta*hl - delta))",
        "Jung et al. 2024, arXiv 2404.04656; TRL bco_pair",
        Rule::Pair(shifted)
    ),
    definition!(
        "bco_pair_delta",
        [beta = 0.1, delta = 0.7],
        true,
        "-ls(beta*hw - delta) - ls(-(beta*hl - delta))",
        "BCO with a given reward shift",
        Rule::Pair(shifted)
    ),
    definition!(
        "apo_zero",
        [beta = 0.1],
        true,
        "1 - s(beta*hw) + s(beta*hl)",
        "D'Oosterlinck et al. 2024, arXiv 2408.06266, eq. 7",
        Rule::Pair(|s, h| sigmoid(-h["beta"] * s.hw()) + sigmoid(h["beta"] * s.hl()))
    ),
    definition!(
        "apo_down",
        [beta = 0.1],
        true,
        "s(beta*hw) + 1 - s(beta*D)",
        "D'Oosterlinck et al. 2024, arXiv 2408.06266, eq. 8",
        Rule::Pair(|s, h| sigmoid(h["beta"] * s.hw()) + sigmoid(-h["beta"] * s.margin()))
    ),
    definition!(
        "aot",
        [beta = 0.1, eps = 0.0],
        true,
        "of a batch: d = sort(pw-pl) - sort(rw-rl); -(1-eps)*ls(beta*d) - eps*ls(-beta*d)",
        "Melnyk et al. 2024, arXiv 2406.05882; TRL aot",
        Rule::Batch(batch::aot)
    ),
    definition!(
        "aot_unpaired",
        [beta = 0.1, eps = 0.0],
        true,
        "of a batch: d = sort(hw) - sort(hl); as aot",
        "Melnyk et al. 2024, arXiv 2406.05882; TRL aot_unpaired",
        Rule::Batch(batch::aot_unpaired)
    ),
    definition!(
        "cal_dpo",
        [beta = 0.1],
        true,
        "-ls(D) + (hw - 1/(2beta))^2 + (hl + 1/(2beta))^2",
        "Xiao et al. 2024, arXiv 2412.14516 (released pseudocode)",
        Rule::Pair(|s, h| -ls(s.margin()) + half_margins(s, h))
    ),
    definition!(
        "beta_dpo",
        [beta0 = 0.1, alpha = 0.6, M0 = 0.3],
        true,
        "of a batch: b = max(1e-3, beta0*(1 + alpha*(mean(beta0*D) - M0))) held constant; -ls(b*D)",
        "Wu et al. 2024, arXiv 2407.08639, batch-level beta without filtering; the floor of 1e-3 is unverified",
        Rule::Batch(batch::beta_dpo)
    ),
    definition!(
        "discopop",
        [beta = 0.1, tau = 0.05],
        true,
        "(1-m)*(-ls(x)) + m*e^-x, x = beta*D, m = s(x/tau)",
        "Lu et al. 2024, arXiv 2406.08414; TRL discopop",
        Rule::Pair(|s, h| {
            let x = h["beta"] * s.margin();
            // m·e^−x with one exponential: for large −x the two factors are 0 and ∞
            sigmoid(-x / h["tau"]) * -ls(x) + (ls(x / h["tau"]) - x).exp()
        })
    ),
    definition!(
        "dpo_norm",
        [beta = 2.0],
        true,
        "-ls(beta*(hw/nw - hl/nl))",
        "TRL sigmoid_norm (length-normalised DPO)",
        Rule::Pair(|s, h| -ls(h["beta"] * (s.hw() / s.nw - s.hl() / s.nl)))
    ),
    definition!(
        "odpo",
        [beta = 0.1, offset = 1.0],
        true,
        "-ls(beta*D - offset)",
        "Amini et al. 2024, arXiv 2402.10571, constant offset",
        Rule::Pair(|s, h| -ls(h["beta"] * s.margin() - h["offset"]))
    ),
    definition!(
        "dpo_shift",
        [beta = 0.1, lam = 0.75],
        true,
        "-ls(beta*(hw - lam*hl))",
        "DPO-Shift 2025, arXiv 2502.07599, constant lam",
        Rule::Pair(|s, h| -ls(h["beta"] * (s.hw() - h["lam"] * s.hl())))
    ),
    definition!("sft", [], false, "-aw", "token-mean NLL of the chosen response", Rule::Pair(|s, _| -s.aw())),
    definition!(
        "sft_batch",
        [],
        false,
        "of a batch: -sum(pw)/sum(nw)",
        "TRL 1.16 sft: mean over all chosen tokens of the batch",
        Rule::Batch(batch::sft)
    ),
    definition!(
        "dpo_forward_kl",
        [beta = 0.1],
        true,
        "-ls(beta*(e^-hl - e^-hw))",
        "Wang et al. 2023, arXiv 2309.16240; TRL 1.16 f_divergence_type forward_kl",
        Rule::Pair(|s, h| -ls(h["beta"] * (exp(-s.hl()) - exp(-s.hw()))))
    ),
    definition!(
        "dpo_js",
        [beta = 0.1],
        true,
        "-ls(beta*(ls(hw) - ls(hl)))",
        "Wang et al. 2023, arXiv 2309.16240; TRL 1.16 f_divergence_type js_divergence",
        Rule::Pair(|s, h| -ls(h["beta"] * (ls(s.hw()) - ls(s.hl()))))
    ),
    definition!(
        "dpo_alpha",
        [beta = 0.1, alpha = 0.5],
        true,
        "-ls(beta*(e^((alpha-1)*hw) - e^((alpha-1)*hl))/(alpha-1)); dpo for alpha = 1",
        "Wang et al. 2023, arXiv 2309.16240; TRL 1.16 f_divergence_type alpha_divergence",
        Rule::Pair(alpha_divergence)
    ),
    definition!(
        "cpo_hinge",
        [beta = 0.1, lam = 1.0],
        false,
        "max(0, 1 - beta*(pw - pl)) - lam*aw",
        "TRL 1.16 experimental CPO, loss_type hinge (batch of one)",
        Rule::Pair(|s, h| (1.0 - h["beta"] * (s.pw - s.pl)).positive_part() - h["lam"] * s.aw())
    ),
    definition!(
        "cpo_ipo",
        [beta = 0.1, lam = 1.0],
        false,
        "(aw - al - 1/(2 beta))^2 - lam*aw",
        "TRL 1.16 experimental CPO, loss_type ipo (batch of one)",
        Rule::Pair(|s, h| (s.aw() - s.al() - 0.5 / h["beta"]).square() - h["lam"] * s.aw())
    ),
    definition!(
        "alphapo",
        [beta = 2.0, gamma = 0.5, alpha = 0.25],
        false,
        "-ls(beta*(r_w - r_l) - gamma), r = (1 - e^(-alpha*a))/alpha",
        "Gupta et al. 2025, arXiv 2501.03884; TRL 1.16 experimental CPO with alpha",
        Rule::Pair(|s, h| {
            let reward = |a: Dual| (1.0 - exp(-h["alpha"] * a)) / h["alpha"];
            -ls(h["beta"] * (reward(s.aw()) - reward(s.al())) - h["gamma"])
        })
    ),
    definition!(
        "lpo",
        [beta = 0.2],
        true,
        "4 beta*|D - 1/(2 beta)|",
        "LPO 2025, arXiv 2508.14947",
        Rule::Pair(|s, h| {
            let off = s.margin() - 0.5 / h["beta"];
            4.0 * h["beta"] * (off.positive_part() + (-off).positive_part())
        })
    ),
    definition!(
        "lpo_ste",
        [beta = 0.2, r1 = 1.0, r2 = 0.8],
        true,
        "4 beta*|D - 1/(2 beta)|, with d_w = 4 beta*r1/(r1+r2)*sign(1/(2 beta) - D), d_l with r2",
        "LPO 2025, arXiv 2508.14947, straight-through form of its code",
        Rule::Gradients(gradients::lpo_ste)
    ),
    definition!(
        "logits_sam",
        [beta = 0.1, rho = 0.05],
        true,
        "-ls(beta*(D - rho*|g_w - g_l| over the output matrix)), the length held constant",
        "arXiv 2603.18258: sharpness-aware step on the output matrix, a batch of one, to first order in rho",
        Rule::Head(gradients::logits_sam)
    ),
    definition!(
        "bdpo",
        [beta = 0.1, lam = 0.5],
        true,
        "-ls(beta*(hw - log(lam*e^hl + 1 - lam)))",
        "Cho et al. 2025, arXiv 2506.12725: the rejected response as a mixture with the reference; lam is ours",
        Rule::Pair(|s, h| {
            // log(1 − λ + λeʰ) = log(1 − λ) − log σ(−h − log(λ/(1 − λ)))
            let (lam, rest) = (h["lam"], 1.0 - h["lam"]);
            let mixed = rest.ln() - ls(-(s.hl() + (lam / rest).ln()));
            -ls(h["beta"] * (s.hw() - mixed))
        })
    ),
    definition!(
        "adadpo",
        [beta = 0.1, clip = 10.0],
        true,
        "DPO's, with d_w*c, d_l/c, c^2 = e^(aw - al) between 1/clip and clip, held constant",
        "after arXiv 2605.28440: slopes along the probabilities a token of both responses alike; the clip is ours",
        Rule::Gradients(gradients::adadpo)
    ),
    definition!(
        "lpo_dynamic",
        [beta = 0.2],
        true,
        "lpo_ste's, with r1 = 1, r2 = e^(hl - hw) held constant",
        "LPO 2025, arXiv 2508.14947, dynamic form of its code",
        Rule::Gradients(gradients::lpo_dynamic)
    ),
    definition!(
        "normalised",
        [beta = 0.1],
        true,
        "DPO's, with d_w = beta*s(-beta*D)/|g_w|, d_l = beta*s(-beta*D)/|g_l|",
        "Yuan et al. 2024, arXiv 2410.13828, section 5: pairwise normalised gradient",
        Rule::Gram(gradients::normalised)
    ),
    definition!(
        "calibrated",
        [beta = 0.1, ema = 0.98],
        true,
        "DPO's, with d_w*c, d_l/c, c = sqrt((|g_l|/|g_w|)/(d_w/d_l)); in training a moving average of log c",
        "Chen et al. 2026, arXiv 2604.18239: reward calibration",
        Rule::Gram(gradients::calibrated)
    ),
    definition!(
        "gate_dpo",
        [beta = 0.1, alpha, tau],
        true,
        "DPO's, with d_l*g, g = s(alpha*(e^al - tau)) held constant",
        "arXiv 2605.02626",
        Rule::Gradients(gradients::gate_dpo)
    ),
    definition!(
        "sparse_hard",
        [beta = 0.1],
        true,
        "-ls(beta*D) over the tokens outside the responses' longest common subsequence",
        "after Yuan et al. 2024, arXiv 2410.13828, section 5: sparse token masking with a given mask",
        Rule::Contrast(dpo)
    ),
    definition!(
        "ld_dpo",
        [beta = 0.1, alpha = 0.5],
        true,
        "-ls(beta*D), the tokens beyond the shorter response's length weighing alpha in D",
        "Liu et al. 2024, arXiv 2409.06411, eq. 9; TRL's ld_alpha",
        Rule::Tail(dpo)
    ),
    definition!(
        "weighted_dpo",
        [beta = 0.1],
        true,
        "-ls(beta*D), every token of the sums in D times its weight in the columns chosen_weights and rejected_weights",
        "token weights from elsewhere: TI-DPO (arXiv 2505.19653), OTPO (ACL 2025), AttentionPO (arXiv 2605.21883)",
        Rule::Weights(dpo)
    ),
    definition!(
        "wpo",
        [beta = 0.1],
        true,
        "-ls(beta*D)*e^(aw + Hw)*e^(al + Hl), the factors held constant, H the mean over tokens of -log sum p^2",
        "Zhou et al. 2024, arXiv 2406.11827, eq. 2; TRL's use_weighting",
        Rule::Entropy(gradients::wpo)
    ),
    definition!(
        "sparse",
        [beta = 0.1, lam],
        true,
        "-ls(beta*D) + lam*sum(m), every token of the sums in D times its mask m in [0, 1], which is learned",
        "our reading of Yuan et al. 2024, arXiv 2410.13828, section 5; for training only",
        Rule::Training(dpo)
    ),
];

/// ORPO's odds-ratio term.
fn odds(s: &Scalars, h: &Hyper) -> Dual {
    let log_odds = |a: Dual| a - a.ln_1m_exp();
    -h["lam"] * ls(log_odds(s.aw()) - log_odds(s.al()))
}

/// DPO's loss of f′(t) = (t^(α−1) − 1)/(α−1) of the ratios in place of their logarithms.
fn alpha_divergence(s: &Scalars, h: &Hyper) -> Dual {
    let power = h["alpha"] - 1.0;
    // TRL's limit
    if power.abs() < 1e-6 {
        return dpo(s, h);
    }
    -ls(h["beta"] * (exp(power * s.hw()) - exp(power * s.hl())) / power)
}

/// eˣ, constant where it would leave what a product of it can hold: TRL clamps there too, at e⁸⁰ in f32.
fn exp(x: Dual) -> Dual {
    const MOST: f64 = 350.0;
    if x.value > MOST { Dual { value: MOST.exp(), w: 0.0, l: 0.0 } } else { x.exp() }
}

/// The log-ratios' squared distances from ±1/(2β).
fn half_margins(s: &Scalars, h: &Hyper) -> Dual {
    let half = 0.5 / h["beta"];
    (s.hw() - half).square() + (s.hl() + half).square()
}

fn length_regularised(s: &Scalars, h: &Hyper) -> Dual {
    -ls(h["beta"] * s.margin() + h["alpha"] * s.nw - h["alpha"] * s.nl)
}

fn positive(s: &Scalars, h: &Hyper) -> Dual {
    -ls(h["beta"] * (s.margin() - h["lam"] * (s.rw - s.pw).positive_part()))
}

fn shifted(s: &Scalars, h: &Hyper) -> Dual {
    -ls(h["beta"] * s.hw() - h["delta"]) - ls(-(h["beta"] * s.hl() - h["delta"]))
}
