//! Value, d_w and d_l of every objective against values of float64 automatic differentiation, and the coefficients against
//! differences.
use proptest::prelude::*;
use serde_json::Value;
use tanglescope_objectives::{
    ChosenText, GroupObjective, Lengths, Needs, Objective, Outcome, PairGram, PairLogps, ResponseMeasure, all,
};

fn golden() -> Value {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/losses.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn cases(golden: &Value) -> Vec<PairLogps> {
    let of = |case: &Value| {
        let number = |key: &str| case[key].as_f64().unwrap();
        let tokens = |key: &str| u32::try_from(case[key].as_u64().unwrap()).unwrap();
        let lengths = Lengths { chosen: tokens("nw"), rejected: tokens("nl") };
        PairLogps {
            chosen: number("pw"),
            rejected: number("pl"),
            reference: Some([number("rw"), number("rl")]),
            lengths,
            ..PairLogps::default()
        }
    };
    golden["cases"].as_array().unwrap().iter().map(of).collect()
}

fn close(got: f64, want: f64) -> bool {
    (got - want).abs() <= 1e-12 * want.abs() + 1e-20
}

const GRAM: PairGram = PairGram { ww: 4.0, wl: 1.0, ll: 9.0 };

#[test]
fn every_golden_objective_agrees() {
    let golden = golden();
    let cases = cases(&golden);
    let losses = golden["losses"].as_object().unwrap();
    assert_eq!(losses.len(), 38);
    for (name, want) in losses {
        let objective: Objective = name.parse().unwrap();
        let keys = objective.definitions().flat_map(|definition| definition.hyper);
        let defaults = keys.map(|(key, value)| ((*key).to_owned(), value.unwrap().into()));
        assert_eq!(want["hyper"], Value::Object(defaults.collect()), "{name}");
        let outcomes: Vec<Outcome> = match objective.needs() {
            Needs::Batch => objective.of_batch(&cases).unwrap(),
            _ => cases.iter().map(|case| objective.of_pair(case, &GRAM).unwrap()).collect(),
        };
        let numbers =
            |key: &str| -> Vec<f64> { want[key].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect() };
        let mut losses: Vec<f64> = outcomes.iter().map(|o| o.loss).collect();
        let mut wanted = numbers("loss");
        if name.starts_with("aot") {
            // listed by rank there, by pair here
            losses.sort_by(f64::total_cmp);
            wanted.sort_by(f64::total_cmp);
        }
        for (i, (got, want)) in losses.iter().zip(wanted).enumerate() {
            assert!(close(*got, want), "{name}, case {i}: loss {got:e}, expected {want:e}");
        }
        for (i, (got, (d_w, d_l))) in outcomes.iter().zip(numbers("d_w").into_iter().zip(numbers("d_l"))).enumerate() {
            assert!(close(got.d_w, d_w), "{name}, case {i}: d_w {:e}, expected {d_w:e}", got.d_w);
            assert!(close(got.d_l, d_l), "{name}, case {i}: d_l {:e}, expected {d_l:e}", got.d_l);
        }
    }
}

/// Objectives that have exponentials of log-ratios in them, whose slopes change too fast for differences where those are large.
const STEEP: [&str; 3] = ["dpo_forward_kl", "dpo_alpha", "alphapo"];

/// Objectives whose coefficients are slopes of their loss.
fn with_slopes() -> Vec<Objective> {
    let objectives = all().iter().filter_map(|definition| definition.name.parse::<Objective>().ok());
    let without = ["normalised", "calibrated", "sparse", "lpo_ste", "lpo_dynamic", "adadpo"];
    let sums = ["dpo:weight=0.3+sft:weight=2", "wpo+nca_pair:weight=1e+0"].map(|sum| sum.parse().unwrap());
    let of_pair = |o: &Objective| !matches!(o.needs(), Needs::Batch | Needs::Mismatched);
    objectives.filter(|o| !without.contains(&o.given()) && of_pair(o)).chain(sums).collect()
}

/// Coefficients against central differences of the loss, as far as [`coefficients_are_the_slopes_of_the_loss`] says.
fn check_slopes(objective: &Objective, pair: &PairLogps) -> Result<(), TestCaseError> {
    let step = 1e-4;
    let pair = &PairLogps { renyi: Some([0.5, 0.25]), ..*pair };
    // what wpo holds constant stays: log π and the entropy add up in its weight
    let (nw, nl) = (f64::from(pair.lengths.chosen), f64::from(pair.lengths.rejected));
    let loss = |dw: f64, dl: f64| {
        let renyi = pair.renyi.map(|[w, l]| [w - dw / nw, l - dl / nl]);
        of(objective, &PairLogps { chosen: pair.chosen + dw, rejected: pair.rejected + dl, renyi, ..*pair }).loss
    };
    let here = of(objective, pair);
    let d_w = -(loss(step, 0.0) - loss(-step, 0.0)) / (2.0 * step);
    let d_l = (loss(0.0, step) - loss(0.0, -step)) / (2.0 * step);
    let scale = 1.0 + here.d_w.abs() + here.d_l.abs() + 1e-5 * here.loss.abs();
    prop_assert!((d_w - here.d_w).abs() <= 1e-6 * scale, "{objective}: d_w {} against {d_w}", here.d_w);
    prop_assert!((d_l - here.d_l).abs() <= 1e-6 * scale, "{objective}: d_l {} against {d_l}", here.d_l);
    Ok(())
}

fn of(objective: &Objective, pair: &PairLogps) -> Outcome {
    let pair = &PairLogps { renyi: pair.renyi.or(Some([0.5, 0.25])), head: Some(3.0), ..*pair };
    let of_text = || Some(objective.of_text(pair, &TEXT)?.0);
    objective.of_pair(pair, &GRAM).or_else(|| objective.of_masked(pair)).or_else(of_text).unwrap()
}

const TEXT: ChosenText = ChosenText { logp: -50.0, tokens: 40.0 };

proptest! {
    /// Central differences of step 1e-4 are off by the third derivative times 1e-8/6 and by rounding, 1e-16·|ℓ|/1e-4:
    /// with |ℓ| up to 1e5 (squared log-ratios over β²) below 1e-6 relative to 1 + |d| + 1e-11·|ℓ|/1e-6.
    #[test]
    fn coefficients_are_the_slopes_of_the_loss(
        w in 0.5f64..120.0, l in 0.5f64..120.0, rw in 0.5f64..120.0, rl in 0.5f64..120.0, nw in 1u32..80, nl in 1u32..80,
    ) {
        let lengths = Lengths { chosen: nw, rejected: nl };
        let pair = PairLogps { chosen: -w, rejected: -l, reference: Some([-rw, -rl]), lengths, ..PairLogps::default() };
        // away from the kinks, where there is no slope
        prop_assume!((w - rw).abs() > 1e-3 && (1.0 - 0.1 * (rw - w - rl + l)).abs() > 1e-3 && (1.0 + w - l).abs() > 1e-3);
        prop_assume!((w / f64::from(nw) - l / f64::from(nl)).abs() > 1e-2);
        // cpo_hinge and lpo
        prop_assume!((1.0 - 0.1 * (l - w)).abs() > 1e-3 && (rw - w - rl + l - 2.5).abs() > 1e-3);
        for objective in with_slopes().iter().filter(|objective| !STEEP.contains(&objective.given())) {
            check_slopes(objective, &pair)?;
        }
    }

    /// The same where exponentials of log-ratios are below e³, and their third derivatives with them.
    #[test]
    fn coefficients_of_steep_losses_are_their_slopes(
        w in 1.0f64..3.0, l in 1.0f64..3.0, rw in 1.0f64..3.0, rl in 1.0f64..3.0, nw in 1u32..8, nl in 1u32..8,
    ) {
        let lengths = Lengths { chosen: nw, rejected: nl };
        let pair = PairLogps { chosen: -w, rejected: -l, reference: Some([-rw, -rl]), lengths, ..PairLogps::default() };
        for name in STEEP {
            check_slopes(&name.parse().unwrap(), &pair)?;
        }
    }

    #[test]
    fn extreme_margins_do_not_overflow(up in any::<bool>(), base in 1.0f64..2000.0, nw in 1u32..400, nl in 1u32..400) {
        let margin: f64 = if up { 1000.0 } else { -1000.0 };
        let lengths = Lengths { chosen: nw, rejected: nl };
        // a margin of ±1,000 at β = 1, and the same at every other place where one enters
        let pair = PairLogps {
            chosen: -base + margin.min(0.0),
            rejected: -base - margin.max(0.0),
            reference: Some([-base, -base]),
            lengths,
            mismatched: Some([1000.0, -1000.0]),
            ..PairLogps::default()
        };
        for definition in all() {
            let settings = if definition.hyper.iter().any(|(key, _)| *key == "beta") { ":beta=1" } else { "" };
            let Ok(objective) = format!("{}{settings}", definition.name).parse::<Objective>() else { continue };
            let outcomes = match objective.needs() {
                Needs::Batch | Needs::Mismatched => objective.of_batch(&[pair, pair]).unwrap(),
                Needs::Training => continue,
                _ => vec![of(&objective, &pair)],
            };
            for Outcome { loss, d_w, d_l } in outcomes {
                prop_assert!(loss.is_finite() && d_w.is_finite() && d_l.is_finite(), "{objective}: {loss} {d_w} {d_l}");
            }
        }
    }

    /// The normalised gradient sits in the middle of the band (Yuan et al., section 5), the calibrated one as well.
    #[test]
    fn remedies_are_at_the_centre_of_the_band(
        ww in 1e-3f64..1e3, ll in 1e-3f64..1e3, cosine in 0.01f64..0.99, chosen in -90.0f64..-1.0, rejected in -90.0f64..-1.0,
    ) {
        let lengths = Lengths { chosen: 7, rejected: 9 };
        let pair = PairLogps { chosen, rejected, reference: Some([-30.0, -40.0]), lengths, ..PairLogps::default() };
        let gram = PairGram { ww, wl: cosine * (ww * ll).sqrt(), ll };
        for name in ["normalised", "calibrated"] {
            let outcome = name.parse::<Objective>().unwrap().of_pair(&pair, &gram).unwrap();
            let slack = gram.band_slack(outcome.d_w, outcome.d_l).unwrap();
            prop_assert!((slack + cosine.ln()).abs() < 1e-9, "{name}: {slack}");
        }
        let dpo = "dpo".parse::<Objective>().unwrap().of_pair(&pair, &gram).unwrap();
        let calibrated = "calibrated".parse::<Objective>().unwrap().of_pair(&pair, &gram).unwrap();
        // what is calibrated keeps the product of the coefficients
        prop_assert!((calibrated.d_w * calibrated.d_l / (dpo.d_w * dpo.d_l) - 1.0).abs() < 1e-9);
    }
}

#[test]
fn a_gradient_of_length_zero_is_not_followed() {
    let lengths = Lengths { chosen: 1, rejected: 1 };
    let pair =
        PairLogps { chosen: -1.0, rejected: -2.0, reference: Some([-1.0, -1.0]), lengths, ..PairLogps::default() };
    let gram = PairGram { ww: 0.0, wl: 0.0, ll: 4.0 };
    let normalised = "normalised".parse::<Objective>().unwrap().of_pair(&pair, &gram).unwrap();
    assert_eq!(normalised.d_w.to_bits(), 0);
    assert!(normalised.d_l > 0.0);
    let dpo = "dpo".parse::<Objective>().unwrap().of_pair(&pair, &gram).unwrap();
    assert_eq!("calibrated".parse::<Objective>().unwrap().of_pair(&pair, &gram).unwrap(), dpo);
}

/// What adadpo and lpo_dynamic change of a loss's slopes, and that both coefficients of adadpo weigh probabilities alike.
#[test]
fn slopes_that_are_balanced_are_by_their_own_definition() {
    let lengths = Lengths { chosen: 4, rejected: 8 };
    let pair =
        PairLogps { chosen: -2.0, rejected: -10.0, reference: Some([-3.0, -9.5]), lengths, ..PairLogps::default() };
    let outcome = |name: &str| of(&name.parse().unwrap(), &pair);
    let (dpo, ada) = (outcome("dpo"), outcome("adadpo"));
    assert_eq!(ada.loss.to_bits(), dpo.loss.to_bits());
    // ∂ℓ/∂p = (∂ℓ/∂log p)/p, p a token's geometric mean
    let (p_w, p_l) = ((-2.0f64 / 4.0).exp(), (-10.0f64 / 8.0).exp());
    assert!((ada.d_w / p_w / (ada.d_l / p_l) - 1.0).abs() < 1e-12);
    assert!((ada.d_w * ada.d_l / (dpo.d_w * dpo.d_l) - 1.0).abs() < 1e-12);
    // the ratio of the coefficients is within the clip
    let clipped = outcome("adadpo:clip=2");
    assert!((clipped.d_w / clipped.d_l - 2.0).abs() < 1e-12);
    // r₁ = 1, r₂ = e^(h_l − h_w) with h_w = 1 and h_l = −0.5
    let sam = outcome("logits_sam:rho=0.5");
    // the margin of 1.5 less 0.5·3, the length that all cases here have
    assert!((sam.loss - 2.0f64.ln()).abs() < 1e-15 && (sam.d_w - 0.05).abs() < 1e-15);
    let (lpo, dynamic) = (outcome("lpo"), outcome("lpo_dynamic"));
    assert_eq!(dynamic.loss.to_bits(), lpo.loss.to_bits());
    assert!((dynamic.d_l / dynamic.d_w / (-1.5f64).exp() - 1.0).abs() < 1e-12);
    assert!((dynamic.d_w + dynamic.d_l - lpo.d_w).abs() < 1e-12);
}

#[test]
fn the_gate_closes_on_improbable_rejected_responses() {
    let objective: Objective = "gate_dpo:alpha=50,tau=0.2".parse().unwrap();
    let dpo: Objective = "dpo".parse().unwrap();
    let lengths = Lengths { chosen: 2, rejected: 4 };
    let pair = |rejected: f64| PairLogps {
        chosen: -3.0,
        rejected,
        reference: Some([-3.0, -5.0]),
        lengths,
        ..PairLogps::default()
    };
    for (rejected, gate) in [(-0.4f64, 1.0), (-400.0, (-10.0f64).exp())] {
        let (got, of_dpo) = (of(&objective, &pair(rejected)), of(&dpo, &pair(rejected)));
        assert_eq!([got.loss, got.d_w].map(f64::to_bits), [of_dpo.loss, of_dpo.d_w].map(f64::to_bits));
        // σ(50·(0.9 − 0.2)) rounds to 1; σ(−10) is e⁻¹⁰ to 5e-5
        assert!((got.d_l / of_dpo.d_l / gate - 1.0).abs() < 1e-3, "{} {}", got.d_l, of_dpo.d_l);
    }
}

/// Losses of TRL 1.16 that losses.json lacks, by trl_losses.py.
#[test]
fn losses_of_trl_agree() {
    #[derive(serde::Deserialize)]
    struct Stored {
        cases: Vec<(f64, f64, f64, f64, u32, u32)>,
        renyi: Vec<[f64; 2]>,
        mismatched: Vec<[f64; 2]>,
        losses: std::collections::BTreeMap<String, Vec<[f64; 3]>>,
        /// Loss, d_w, d_l, and the coefficient of the text's log-probability.
        orpo_trl: Vec<[f64; 4]>,
        text: (f64, f64),
        /// By name: coefficients of gold, chosen and rejected, which are the first three cases' chosen responses.
        triples: std::collections::BTreeMap<String, [f64; 3]>,
    }
    let stored: Stored = serde_json::from_str(include_str!("trl_losses.json")).unwrap();
    let beside = stored.renyi.iter().zip(&stored.mismatched);
    let pair = |(&(chosen, rejected, rw, rl, nw, nl), (renyi, mismatched)): (&(f64, f64, f64, f64, u32, u32), _)| {
        let (renyi, mismatched): (&[f64; 2], &[f64; 2]) = (renyi, mismatched);
        let lengths = Lengths { chosen: nw, rejected: nl };
        let (renyi, mismatched) = (Some(*renyi), Some(*mismatched));
        PairLogps { chosen, rejected, reference: Some([rw, rl]), lengths, renyi, mismatched, head: None }
    };
    let cases: Vec<PairLogps> = stored.cases.iter().zip(beside).map(pair).collect();
    for (name, want) in stored.losses {
        let objective: Objective = name.parse().unwrap();
        let got = match objective.needs() {
            Needs::Batch | Needs::Mismatched => objective.of_batch(&cases).unwrap(),
            _ => cases.iter().map(|case| of(&objective, case)).collect(),
        };
        for (got, [loss, d_w, d_l]) in got.iter().zip(want) {
            let all = [(got.loss, loss), (got.d_w, d_w), (got.d_l, d_l)];
            assert!(all.iter().all(|(got, want)| close(*got, *want)), "{name}: {all:?}");
        }
    }
    let orpo: Objective = "orpo_trl".parse().unwrap();
    let text = ChosenText { logp: stored.text.0, tokens: stored.text.1 };
    for (case, want) in cases.iter().zip(stored.orpo_trl) {
        let (of, d_text) = orpo.of_text(case, &text).unwrap();
        let got = [of.loss, of.d_w, of.d_l, d_text];
        assert!(got.iter().zip(want).all(|(got, want)| close(*got, want)), "{got:?} {want:?}");
    }
    let score = [1.0, 3.0, 2.0];
    let response = |at: usize| {
        let (logp, tokens) = (cases[at].chosen, cases[at].lengths.chosen);
        ResponseMeasure { score: score[at], logp, reference: None, tokens }
    };
    let group = [2, 0, 1].map(response);
    for (name, [gold, w, l]) in stored.triples {
        // scores put the cases 1, 2, 0 in order
        let got = name.parse::<GroupObjective>().unwrap().weights(&group).unwrap();
        assert!(got.iter().zip([w, l, gold]).all(|(got, want)| close(*got, want)), "{name}: {got:?}");
        assert_eq!(name.parse::<GroupObjective>().unwrap().weights(&group[..2]), None);
    }
}

#[test]
fn sums_are_read_and_what_does_not_add_up_is_refused() {
    let sum: Objective = "dpo:beta=0.2,weight=0.8+sft_batch:weight=0.2".parse().unwrap();
    assert_eq!((sum.needs(), sum.hyper("beta"), sum.uses_reference()), (Needs::Batch, Some(0.2), true));
    assert!("dpo:beta=1e+1".parse::<Objective>().is_ok_and(|one| one.hyper("beta") == Some(10.0)));
    let refused = |given: &str| given.parse::<Objective>().unwrap_err().to_string();
    assert!(refused("dpo+sparse_hard").contains("`sparse_hard` moves other gradients"));
    assert!(refused("normalised:weight=0.5").contains("no weight"));
    assert!(refused("dpo:weight=0").contains("a positive number"));
    assert!(refused("dpo+nosuch").contains("there is no `nosuch`"));
}

#[test]
fn settings_outside_their_range_are_refused() {
    let expected = |given: &str| given.parse::<Objective>().unwrap_err().to_string();
    assert!(expected("dpo:beta=0").contains("a positive number"));
    assert!(expected("dpo:beta=-1").contains("a positive number"));
    assert!(expected("ipo:tau=0").contains("a positive number"));
    assert!(expected("exo_pair:eps=0").contains("between 0 and 1"));
    assert!(expected("robust_dpo:eps=0.5").contains("less than 0.5"));
    assert!("gate_dpo:alpha=1,tau=0".parse::<Objective>().is_ok());
}
