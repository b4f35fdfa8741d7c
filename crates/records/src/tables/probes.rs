//! probes.parquet: how pairs pull on texts that are not of them, and what steps on objectives would do to those.
use crate::error::{Error, Result};
use crate::tables::{column, frame};
use polars_core::prelude::{DataFrame, PolarsResult};
use std::collections::HashMap;
use std::path::Path;

/// A pair and a probe.
#[derive(Clone, Debug, PartialEq)]
pub struct ProbeRow {
    /// Number of the pair.
    pub pair: u64,
    /// Number of the probe's row in its file.
    pub probe: u64,
    /// The probe's own `id`.
    pub id: Option<String>,
    /// Its log-probability.
    pub logp: f64,
    /// Inner products of its gradient with those of the pair's chosen and rejected response.
    pub inner: [f64; 2],
    /// Inner product of its gradient with itself.
    pub square: f64,
}

/// probes.parquet.
#[must_use]
pub fn table(rows: &[ProbeRow]) -> DataFrame {
    frame(vec![
        column("pair", rows, |r| r.pair),
        column("probe", rows, |r| r.probe),
        column("id", rows, |r| r.id.clone()),
        column("logp", rows, |r| r.logp),
        column("inner_chosen", rows, |r| r.inner[0]),
        column("inner_rejected", rows, |r| r.inner[1]),
        column("square", rows, |r| r.square),
    ])
}

/// `probe_objectives.parquet`: per unit of step on an objective on a pair, the predicted change of each probe's log-probability,
/// `d_w⟨g_p, g_w⟩ − d_l⟨g_p, g_l⟩`. `probes` are rows of probes.parquet, `outcomes` of objectives.parquet; `leave_out` are objectives
/// that follow other gradients than those of the two log-probabilities.
///
/// # Errors
/// Where a column is missing or of another type.
pub fn outcomes(probes: &[DataFrame], outcomes: &DataFrame, leave_out: &[String]) -> Result<DataFrame> {
    combine(probes, outcomes, leave_out).map_err(|e| Error::new(Path::new("probes.parquet"), e))
}

fn combine(probes: &[DataFrame], outcomes: &DataFrame, leave_out: &[String]) -> PolarsResult<DataFrame> {
    let reals = |table: &DataFrame, name: &str| -> PolarsResult<Vec<f64>> {
        Ok(table.column(name)?.f64()?.iter().map(|x| x.unwrap_or(f64::NAN)).collect())
    };
    let numbers = |table: &DataFrame, name: &str| -> PolarsResult<Vec<u64>> {
        Ok(table.column(name)?.u64()?.iter().flatten().collect())
    };
    let mut inner_by_pair: HashMap<u64, Vec<(u64, [f64; 2])>> = HashMap::new();
    for table in probes {
        let inner = [reals(table, "inner_chosen")?, reals(table, "inner_rejected")?];
        for (row, (pair, probe)) in numbers(table, "pair")?.into_iter().zip(numbers(table, "probe")?).enumerate() {
            inner_by_pair.entry(pair).or_default().push((probe, [inner[0][row], inner[1][row]]));
        }
    }
    let (d_w, d_l) = (reals(outcomes, "d_w")?, reals(outcomes, "d_l")?);
    let names = outcomes.column("objective")?.str()?;
    let mut rows: Vec<(u64, u64, String, f64)> = Vec::new();
    for (row, (pair, name)) in numbers(outcomes, "pair")?.into_iter().zip(names.iter()).enumerate() {
        let name = name.unwrap_or_default();
        if leave_out.iter().any(|left| left == name) {
            continue;
        }
        let probes = inner_by_pair.get(&pair).into_iter().flatten();
        rows.extend(probes.map(|(probe, [w, l])| (pair, *probe, name.to_owned(), d_w[row] * w - d_l[row] * l)));
    }
    Ok(frame(vec![
        column("pair", &rows, |r| r.0),
        column("probe", &rows, |r| r.1),
        column("objective", &rows, |r| r.2.clone()),
        column("delta", &rows, |r| r.3),
    ]))
}
