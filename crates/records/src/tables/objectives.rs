//! objectives.parquet: what every objective would do to every pair, from the rows of pairs.parquet.
use crate::error::{Error, Result};
use crate::tables::pairs::{CONTRAST, Contrast};
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
    /// Sums over contrast tokens, where they were measured.
    pub contrast: Option<Contrast>,
}

/// An objective's row for a pair.
struct Row {
    pair: u64,
    objective: String,
    outcome: Outcome,
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
    let contrast = optional(&CONTRAST)?;
    let row = |(i, pair): (usize, u64)| Measured {
        pair,
        logps: PairLogps {
            chosen: chosen[i],
            rejected: rejected[i],
            reference: reference.as_ref().map(|r| [r[0][i], r[1][i]]),
            lengths: Lengths { chosen: chosen_tokens[i], rejected: rejected_tokens[i] },
        },
        gram: PairGram { ww: ww[i], wl: wl[i], ll: ll[i] },
        contrast: contrast.as_ref().map(|c| Contrast::of(std::array::from_fn(|at| c[at][i]))),
    };
    Ok(numbers.iter().flatten().enumerate().map(row).collect())
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
        }
    }

    /// The row of coefficients of g_w and g_l.
    fn of(measured: &Measured, objective: &Objective, outcome: Outcome, rounding: Rounding) -> Self {
        let (gram, Outcome { d_w, d_l, .. }) = (measured.gram, outcome);
        let (changes, slack) = (gram.changes(d_w, d_l), gram.band_slack(d_w, d_l));
        Self::new(measured.pair, objective, outcome, changes, slack, rounding)
    }

    /// The row of coefficients of the gradients over contrast tokens. The band is one of g_w and g_l, and says nothing here.
    fn of_contrast(
        measured: &Measured,
        contrast: &Contrast,
        objective: &Objective,
        outcome: Outcome,
        rounding: Rounding,
    ) -> Self {
        let Outcome { d_w, d_l, .. } = outcome;
        let [[w_w, w_l], [l_w, l_l]] = contrast.inner;
        let changes = [[d_w * w_w, d_l * l_w], [d_w * w_l, d_l * l_l]];
        Self::new(measured.pair, objective, outcome, changes, None, rounding)
    }
}

fn table(rows: &[Row]) -> DataFrame {
    frame(vec![
        column("pair", rows, |r| r.pair),
        column("objective", rows, |r| r.objective.clone()),
        column("loss", rows, |r| r.outcome.loss),
        column("d_w", rows, |r| r.outcome.d_w),
        column("d_l", rows, |r| r.outcome.d_l),
        column("delta_w", rows, |r| r.step[0]),
        column("delta_l", rows, |r| r.step[1]),
        column("regime", rows, |r| r.regime.name().to_owned()),
        column("band_slack", rows, |r| r.band_slack),
    ])
}

/// The rows of objectives that look at one pair at a time: pair by pair, in the objectives' order.
#[must_use]
pub fn of_pairs(pairs: &[Measured], objectives: &[Objective], rounding: Rounding) -> DataFrame {
    let rows = pairs.iter().flat_map(|m| {
        objectives.iter().filter_map(move |objective| match (objective.needs(), &m.contrast) {
            (Needs::Contrast, Some(contrast)) => {
                let sums = PairLogps {
                    chosen: contrast.logps[0],
                    rejected: contrast.logps[1],
                    reference: Some(contrast.reference),
                    ..m.logps
                };
                Some(Row::of_contrast(m, contrast, objective, objective.of_masked(&sums)?, rounding))
            }
            _ => Some(Row::of(m, objective, objective.of_pair(&m.logps, &m.gram)?, rounding)),
        })
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
