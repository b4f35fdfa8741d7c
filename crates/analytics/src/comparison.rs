//! The same pairs in two sets of records.
use crate::error::{Error, Result};
use crate::metrics::{METRICS, derived, spread_columns};
use crate::records::Leaf;
use crate::statistics::{Spread, median, sign_test};
use crate::tables::{column, frame};
use polars_core::prelude::{DataFrame, DataType, PolarsResult};
use polars_lazy::prelude::col;
use std::collections::HashMap;

/// What became of some pairs between two checkpoints; the earlier one comes first.
#[derive(Clone, Debug, PartialEq)]
pub struct Comparison {
    /// Median cosine of the pairs that have one.
    pub cosine: [f64; 2],
    /// Mean log π(chosen).
    pub chosen: [f64; 2],
    /// Mean log π(rejected).
    pub rejected: [f64; 2],
    /// Share of pairs whose log π(chosen) is lower at the later one.
    pub chosen_fell: f64,
}

impl Comparison {
    /// Compares the pairs that are in both.
    ///
    /// # Errors
    /// Where a part is damaged, or no pair is in both.
    pub fn of(before: &Leaf, after: &Leaf) -> Result<Self> {
        let both = Matched::of(before, after)?;
        let side = |of: &Both, side: usize| of.iter().map(|pair| pair[side]).collect::<Vec<f64>>();
        let mean = |of: Vec<f64>| of.iter().sum::<f64>() / of.len() as f64;
        let (cosine, chosen, rejected) =
            (both.metric("cosine"), both.metric("logp_chosen"), both.metric("logp_rejected"));
        let fell = chosen.iter().filter(|[before, after]| after < before).count();
        Ok(Self {
            cosine: [0, 1].map(|at| median(side(&cosine, at))),
            chosen: [0, 1].map(|at| mean(side(&chosen, at))),
            rejected: [0, 1].map(|at| mean(side(&rejected, at))),
            chosen_fell: fell as f64 / chosen.len() as f64,
        })
    }
}

/// Values of a metric by pair: both sides' in the order of the first side's rows.
type Both = Vec<[f64; 2]>;

/// One row a metric: the means `before` and `after`; the differences of pairs, second less first (columns of a spread); and
/// `rises`, `falls` and `p`, that of the sign test.
///
/// # Errors
/// Where a part is damaged, or no pair is in both.
pub fn compare(before: &Leaf, after: &Leaf) -> Result<DataFrame> {
    let matched = Matched::of(before, after)?;
    let shared: Vec<&str> = METRICS.iter().map(|m| m.0).filter(|m| matched.has(m)).collect();
    let compared: Vec<Both> = shared.iter().map(|metric| matched.metric(metric)).collect();
    let spreads: Vec<(Option<Spread>, usize)> = compared
        .iter()
        .map(|both| {
            // two infinite values have no difference
            let differences: Vec<f64> = both.iter().map(|[a, b]| b - a).filter(|x| !x.is_nan()).collect();
            let undefined = matched.rows.len() - differences.len();
            (Spread::of(differences), undefined)
        })
        .collect();
    let count = |both: &Both, f: fn(&[f64; 2]) -> bool| both.iter().filter(|pair| f(pair)).count();
    let rises = |both: &Both| count(both, |[a, b]| b > a);
    let falls = |both: &Both| count(both, |[a, b]| b < a);
    let mean = |both: &Both, side: usize| {
        (!both.is_empty()).then(|| both.iter().map(|pair| pair[side]).sum::<f64>() / both.len() as f64)
    };
    let every = vec![(); shared.len()];
    let mut columns = vec![
        column("before_records", &every, |()| before.title()),
        column("after_records", &every, |()| after.title()),
        column("metric", &shared, |name| (*name).to_owned()),
        column("before", &compared, |both| mean(both, 0)),
        column("after", &compared, |both| mean(both, 1)),
    ];
    columns.extend(spread_columns(&spreads));
    columns.extend([
        column("rises", &compared, |both| rises(both) as u64),
        column("falls", &compared, |both| falls(both) as u64),
        column("p", &compared, |both| sign_test(rises(both), falls(both))),
    ]);
    Ok(frame(columns))
}

/// Numbers of some pairs, and their metrics, NaN where one is not defined.
struct Values {
    pairs: Vec<u64>,
    metrics: HashMap<&'static str, Vec<f64>>,
}

/// The pairs that are in two sets of records.
struct Matched {
    sides: [Values; 2],
    /// Where each pair is on both sides.
    rows: Vec<(usize, usize)>,
}

impl Matched {
    fn of(before: &Leaf, after: &Leaf) -> Result<Self> {
        let sides = [values(before)?, values(after)?];
        let place: HashMap<u64, usize> = sides[1].pairs.iter().enumerate().map(|(at, pair)| (*pair, at)).collect();
        let first = sides[0].pairs.iter().enumerate();
        let rows: Vec<(usize, usize)> = first.filter_map(|(at, pair)| Some((at, *place.get(pair)?))).collect();
        if rows.is_empty() {
            return Err(Error::new(&after.folder, format!("has no pair that {} has", before.folder.display())));
        }
        Ok(Self { sides, rows })
    }

    fn has(&self, metric: &str) -> bool {
        self.sides.iter().all(|side| side.metrics.contains_key(metric))
    }

    /// Values of both sides where both are defined.
    fn metric(&self, metric: &str) -> Both {
        let of = |side: usize, at: usize| self.sides[side].metrics[metric][at];
        let all = self.rows.iter().map(|&(a, b)| [of(0, a), of(1, b)]);
        all.filter(|[a, b]| !a.is_nan() && !b.is_nan()).collect()
    }
}

/// The metrics that are there.
fn values(leaf: &Leaf) -> Result<Values> {
    let pairs = leaf.pairs()?;
    let mut query = derived(pairs.scan()?).map_err(|e| pairs.blame(e))?;
    let schema = query.collect_schema().map_err(|e| pairs.blame(e))?;
    let there: Vec<&'static str> = METRICS.iter().map(|m| m.0).filter(|name| schema.get(name).is_some()).collect();
    let columns = there.iter().map(|name| col(*name).cast(DataType::Float64));
    let table = pairs.collect(query.select(columns.chain([col("pair").cast(DataType::UInt64)]).collect::<Vec<_>>()))?;
    let read = || -> PolarsResult<Values> {
        let of = |name: &&'static str| -> PolarsResult<(&'static str, Vec<f64>)> {
            Ok((*name, table.column(name)?.f64()?.iter().map(|x| x.unwrap_or(f64::NAN)).collect()))
        };
        Ok(Values {
            pairs: table.column("pair")?.u64()?.iter().flatten().collect(),
            metrics: there.iter().map(of).collect::<PolarsResult<_>>()?,
        })
    };
    read().map_err(|e| pairs.blame(e))
}
