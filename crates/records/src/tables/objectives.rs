//! objectives.parquet: what every objective would do to every pair, from the rows of pairs.parquet.
use crate::error::{Error, Result};
use crate::tables::pairs::{CONTRAST, IN_METRIC, MISMATCHED, PUBLIC, PartSums, TEXT, TextSums, WEIGHTED};
use crate::tables::{column, frame};
use polars_core::prelude::{DataFrame, PolarsResult};
use std::path::Path;
use tanglescope_objectives::{Lengths, Needs, Objective, Outcome, PairGram, PairLogps, Regime, Rounding};

/// What objectives see of a row of pairs.parquet.
#[derive(Clone, Copy, Debug)]
pub struct Measured {
    /// Number of the row in the data.
    pub pair: u64,
    /// Log-probabilities and lengths.
    pub logps: PairLogps,
    /// Inner products of the gradients.
    pub gram: PairGram,
    /// The same in the metric of Adam's step, where it was measured.
    pub in_metric: Option<PairGram>,
    /// Sums over contrast tokens, where they were measured.
    pub contrast: Option<PartSums>,
    /// Sums over the tokens up to the shorter response's length, where they were measured.
    pub public: Option<PartSums>,
    /// Sums over all tokens with weights that the data gives.
    pub weighted: Option<PartSums>,
    /// Prompt and chosen response as one text, where it was measured.
    pub text: Option<TextSums>,
}

/// An objective's row for a pair.
struct Row {
    pair: u64,
    objective: String,
    outcome: Outcome,
    step: [f64; 2],
    regime: Regime,
    band_slack: Option<f64>,
    in_metric: Option<InMetric>,
}

/// What a step in the metric of Adam's would do.
#[derive(Clone, Copy)]
struct InMetric {
    step: [f64; 2],
    regime: Regime,
    band_slack: Option<f64>,
}

/// Reads rows of pairs.parquet.
///
/// # Errors
/// Where a column is missing or of another type.
pub fn measured(pairs: &DataFrame) -> Result<Vec<Measured>> {
    read(pairs).map_err(|e| Error::new(Path::new("pairs.parquet"), e))
}

fn read(pairs: &DataFrame) -> PolarsResult<Vec<Measured>> {
    let reals = |name: &str| -> PolarsResult<Vec<f64>> {
        Ok(pairs.column(name)?.f64()?.iter().map(|x| x.unwrap_or(f64::NAN)).collect())
    };
    let counts = |name: &str| -> PolarsResult<Vec<u32>> { Ok(pairs.column(name)?.u32()?.iter().flatten().collect()) };
    let optional = |names: &[&str]| -> PolarsResult<Option<Vec<Vec<f64>>>> {
        names
            .iter()
            .all(|name| pairs.column(name).is_ok())
            .then(|| names.iter().map(|name| reals(name)).collect())
            .transpose()
    };
    let numbers = pairs.column("pair")?.u64()?;
    let (chosen, rejected) = (reals("logp_chosen")?, reals("logp_rejected")?);
    let (chosen_tokens, rejected_tokens) = (counts("chosen_tokens")?, counts("rejected_tokens")?);
    let (ww, wl, ll) = (reals("ww")?, reals("wl")?, reals("ll")?);
    let reference = optional(&["ref_logp_chosen", "ref_logp_rejected"])?;
    let renyi = optional(&["renyi_chosen", "renyi_rejected"])?;
    let mismatched = optional(&MISMATCHED)?;
    let head = reals("head_differential").ok();
    let in_metric = optional(&IN_METRIC)?;
    let (contrast, public, text) = (optional(&CONTRAST)?, optional(&PUBLIC)?, optional(&TEXT)?);
    let weighted = optional(&WEIGHTED)?;
    let row = |(i, pair): (usize, u64)| Measured {
        pair,
        logps: PairLogps {
            chosen: chosen[i],
            rejected: rejected[i],
            reference: at(reference.as_ref(), i),
            lengths: Lengths { chosen: chosen_tokens[i], rejected: rejected_tokens[i] },
            renyi: at(renyi.as_ref(), i),
            mismatched: at(mismatched.as_ref(), i),
            head: head.as_ref().map(|head| head[i]).filter(|head| !head.is_nan()),
        },
        gram: PairGram { ww: ww[i], wl: wl[i], ll: ll[i] },
        in_metric: at(in_metric.as_ref(), i).map(|[ww, wl, ll]| PairGram { ww, wl, ll }),
        contrast: at(contrast.as_ref(), i).map(PartSums::of),
        public: at(public.as_ref(), i).map(PartSums::of),
        weighted: at(weighted.as_ref(), i).map(PartSums::of),
        text: at(text.as_ref(), i).map(TextSums::of),
    };
    Ok(numbers.iter().flatten().enumerate().map(row).collect())
}

/// The values of a row of some columns.
fn at<const N: usize>(columns: Option<&Vec<Vec<f64>>>, row: usize) -> Option<[f64; N]> {
    columns.map(|columns| std::array::from_fn(|column| columns[column][row]))
}

impl Row {
    /// The row of an outcome and of the terms of both changes.
    fn new(
        pair: u64,
        objective: &Objective,
        outcome: Outcome,
        changes: [[f64; 2]; 2],
        band_slack: Option<f64>,
        rounding: Rounding,
    ) -> Self {
        Self {
            pair,
            objective: objective.given().to_owned(),
            outcome,
            step: changes.map(|[a, b]| a - b),
            regime: Regime::of(changes, rounding),
            band_slack,
            in_metric: None,
        }
    }

    /// The row of coefficients of g_w and g_l.
    fn of(measured: &Measured, objective: &Objective, outcome: Outcome, rounding: Rounding) -> Self {
        let (gram, Outcome { d_w, d_l, .. }) = (measured.gram, outcome);
        let (changes, slack) = (gram.changes(d_w, d_l), gram.band_slack(d_w, d_l));
        let in_metric = measured.in_metric.map(|gram| {
            let changes = gram.changes(d_w, d_l);
            let (step, regime) = (changes.map(|[a, b]| a - b), Regime::of(changes, rounding));
            InMetric { step, regime, band_slack: gram.band_slack(d_w, d_l) }
        });
        Self { in_metric, ..Self::new(measured.pair, objective, outcome, changes, slack, rounding) }
    }

    /// The row of coefficients of gradients over some of the tokens. The band is one of g_w and g_l, and says nothing here.
    fn of_part(measured: &Measured, part: &PartSums, objective: &Objective, rounding: Rounding) -> Option<Self> {
        let [chosen, rejected] = part.logps;
        let sums = PairLogps { chosen, rejected, reference: Some(part.reference), ..measured.logps };
        let outcome = objective.of_masked(&sums)?;
        let Outcome { d_w, d_l, .. } = outcome;
        let [[w_w, w_l], [l_w, l_l]] = part.inner;
        let changes = [[d_w * w_w, d_l * l_w], [d_w * w_l, d_l * l_l]];
        Some(Self::new(measured.pair, objective, outcome, changes, None, rounding))
    }

    /// The row of coefficients of g_w, g_l and the gradient of prompt and chosen response.
    fn of_text(measured: &Measured, text: &TextSums, objective: &Objective, rounding: Rounding) -> Option<Self> {
        let (outcome, d_text) = objective.of_text(&measured.logps, &text.text)?;
        let changes = measured.gram.changes(outcome.d_w, outcome.d_l);
        let with_text = |k: usize| [changes[k][0] + d_text * text.inner[k], changes[k][1]];
        Some(Self::new(measured.pair, objective, outcome, [0, 1].map(with_text), None, rounding))
    }
}

/// All tokens, those beyond the shorter response's length with weight α.
fn with_tail(measured: &Measured, public: &PartSums, alpha: f64) -> PartSums {
    let (logps, gram) = (&measured.logps, &measured.gram);
    let mix = |all: f64, public: f64| alpha * all + (1.0 - alpha) * public;
    let pair = |all: [f64; 2], public: [f64; 2]| [mix(all[0], public[0]), mix(all[1], public[1])];
    PartSums {
        logps: pair([logps.chosen, logps.rejected], public.logps),
        reference: pair(logps.reference.unwrap_or_default(), public.reference),
        inner: [pair([gram.ww, gram.wl], public.inner[0]), pair([gram.wl, gram.ll], public.inner[1])],
    }
}

fn table(rows: &[Row]) -> DataFrame {
    let mut columns = vec![
        column("pair", rows, |r| r.pair),
        column("objective", rows, |r| r.objective.clone()),
        column("loss", rows, |r| r.outcome.loss),
        column("d_w", rows, |r| r.outcome.d_w),
        column("d_l", rows, |r| r.outcome.d_l),
        column("delta_w", rows, |r| r.step[0]),
        column("delta_l", rows, |r| r.step[1]),
        column("regime", rows, |r| r.regime.name().to_owned()),
        column("band_slack", rows, |r| r.band_slack),
    ];
    // null for objectives that follow other gradients than those of both log-probabilities
    if rows.iter().any(|r| r.in_metric.is_some()) {
        columns.extend([
            column("adam_delta_w", rows, |r| r.in_metric.map(|of| of.step[0])),
            column("adam_delta_l", rows, |r| r.in_metric.map(|of| of.step[1])),
            column("adam_regime", rows, |r| r.in_metric.map(|of| of.regime.name().to_owned())),
            column("adam_band_slack", rows, |r| r.in_metric.and_then(|of| of.band_slack)),
        ]);
    }
    frame(columns)
}

/// The rows of objectives that look at one pair at a time: pair by pair, in the objectives' order.
#[must_use]
pub fn of_pairs(pairs: &[Measured], objectives: &[Objective], rounding: Rounding) -> DataFrame {
    let rows = pairs.iter().flat_map(|m| {
        let of = move |objective: &Objective| match objective.needs() {
            Needs::Contrast => Row::of_part(m, &m.contrast?, objective, rounding),
            Needs::Tail => Row::of_part(m, &with_tail(m, &m.public?, objective.tail()?), objective, rounding),
            Needs::Weights => Row::of_part(m, &m.weighted?, objective, rounding),
            Needs::Text => Row::of_text(m, &m.text?, objective, rounding),
            _ => Some(Row::of(m, objective, objective.of_pair(&m.logps, &m.gram)?, rounding)),
        };
        objectives.iter().filter_map(of)
    });
    table(&rows.collect::<Vec<_>>())
}

/// The rows of objectives that are defined on all pairs together, in the objectives' order; `None` where there is none.
#[must_use]
pub fn of_all(pairs: &[Measured], objectives: &[Objective], rounding: Rounding) -> Option<DataFrame> {
    let logps: Vec<PairLogps> = pairs.iter().map(|m| m.logps).collect();
    let mut rows = Vec::new();
    for objective in objectives {
        let outcomes = objective.of_batch(&logps).unwrap_or_default();
        rows.extend(pairs.iter().zip(outcomes).map(|(m, outcome)| Row::of(m, objective, outcome, rounding)));
    }
    (!rows.is_empty()).then(|| table(&rows))
}
