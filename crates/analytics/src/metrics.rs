//! What the records of one model on one data set amount to, metric by metric.
use crate::statistics::{Spread, wilson};
use polars_core::prelude::{Column, DataFrame, DataType, PolarsResult};
use polars_lazy::prelude::{Expr, LazyFrame, col, len, lit, min_horizontal, when};
use std::collections::HashMap;
use tanglescope_objectives::Regime;
use tanglescope_records::tables::{self, column, frame};
use tanglescope_records::{Leaf, Records, Result};

/// The metrics of a pair (docs/formats.md says what each is).
pub const METRICS: [&str; 18] = [
    "cosine",
    "wl_over_min",
    "norm_chosen",
    "norm_rejected",
    "norm_ratio",
    "wl",
    "band_low",
    "band_high",
    "logp_chosen",
    "logp_rejected",
    "margin",
    "gain_chosen",
    "gain_rejected",
    "gain_margin",
    "edit_distance",
    "routing_overlap",
    "adam_cosine",
    "adam_norm_ratio",
];

/// Rows of objectives.parquet that are read at once: as many objectives as have them together.
const ROWS_AT_ONCE: usize = 1 << 22;

/// What is known of a pair under an objective.
pub const OUTCOMES: [&str; 6] = ["loss", "d_w", "d_l", "delta_w", "delta_l", "band_slack"];

/// pairs.parquet with every metric of `METRICS` that its columns allow, null where it is not defined, and with
/// `length_difference` (tokens of the chosen response less those of the rejected) and `shared_prefix` (tokens with which both
/// responses begin).
///
/// # Errors
/// Where the schema cannot be read.
pub fn derived(pairs: LazyFrame) -> PolarsResult<LazyFrame> {
    let mut pairs = pairs;
    let schema = pairs.collect_schema()?;
    let has = |name: &str| schema.get(name).is_some();
    let real = |name: &str| col(name).cast(DataType::Float64);
    let smaller = min_horizontal([col("ww"), col("ll")])?;
    let mut new: Vec<Expr> = vec![
        when(smaller.clone().gt(lit(0.0)))
            .then(col("wl") / smaller)
            .otherwise(lit(polars_lazy::prelude::NULL))
            .alias("wl_over_min"),
        col("ww").sqrt().alias("norm_chosen"),
        col("ll").sqrt().alias("norm_rejected"),
        (col("logp_chosen") - col("logp_rejected")).alias("margin"),
        (real("chosen_tokens") - real("rejected_tokens")).alias("length_difference"),
        (real("trunk_tokens") - real("prompt_tokens")).alias("shared_prefix"),
    ];
    if has("ref_logp_chosen") {
        let [chosen, rejected] =
            ["chosen", "rejected"].map(|of| col(format!("logp_{of}")) - col(format!("ref_logp_{of}")));
        new.extend([
            (chosen.clone() - rejected.clone()).alias("gain_margin"),
            chosen.alias("gain_chosen"),
            rejected.alias("gain_rejected"),
        ]);
    }
    Ok(pairs.with_columns(new))
}

/// A column of a query as numbers, row by row, NaN where there is none.
pub(crate) fn values(of: &Records, query: LazyFrame, name: &str) -> Result<Vec<f64>> {
    let rows = of.collect(query.select([col(name).cast(DataType::Float64)]))?;
    let column = rows.column(name).and_then(|column| column.f64()).map_err(|e| of.blame(e))?;
    Ok(column.iter().map(|x| x.unwrap_or(f64::NAN)).collect())
}

/// One column of a query as numbers, and how many of its values are null or NaN.
pub(crate) fn numbers(of: &Records, query: LazyFrame, name: &str) -> Result<(Vec<f64>, usize)> {
    let mut values = values(of, query, name)?;
    let all = values.len();
    values.retain(|x| !x.is_nan());
    let undefined = all - values.len();
    Ok((values, undefined))
}

/// Whose records a row is about.
pub(crate) fn keys(leaf: &Leaf, rows: usize) -> Vec<Column> {
    let every = vec![(); rows];
    vec![
        column("run", &every, |()| leaf.run.clone()),
        column("step", &every, |()| leaf.step),
        column("dataset", &every, |()| leaf.dataset.clone()),
    ]
}

/// The columns of spreads: `count`, `undefined`, `mean`, `q25`, `median`, `q75`, `low`, `high` (docs/formats.md).
pub(crate) fn spread_columns(rows: &[(Option<Spread>, usize)]) -> Vec<Column> {
    let of = |f: fn(&Spread) -> f64| move |r: &(Option<Spread>, usize)| r.0.as_ref().map(f);
    vec![
        column("count", rows, |r| r.0.map_or(0, |s| s.count as u64)),
        column("undefined", rows, |r| r.1 as u64),
        column("mean", rows, of(|s| s.mean)),
        column("q25", rows, of(|s| s.quartiles[0])),
        column("median", rows, of(|s| s.quartiles[1])),
        column("q75", rows, of(|s| s.quartiles[2])),
        column("low", rows, of(|s| s.interval[0])),
        column("high", rows, of(|s| s.interval[1])),
    ]
}

/// One row a metric: where its values lie.
///
/// # Errors
/// Where a part is damaged.
pub fn metrics(leaf: &Leaf) -> Result<DataFrame> {
    let pairs = leaf.pairs()?;
    let mut query = derived(pairs.scan()?).map_err(|e| pairs.blame(e))?;
    let there = pairs.having(&mut query, &METRICS)?;
    let spread = |name: &&str| {
        let (values, undefined) = numbers(&pairs, query.clone(), name)?;
        Ok((Spread::of(values), undefined))
    };
    let spreads: Vec<(Option<Spread>, usize)> = there.iter().map(spread).collect::<Result<_>>()?;
    let names = column("metric", &there, |name| (*name).to_owned());
    Ok(frame(keys(leaf, there.len()).into_iter().chain([names]).chain(spread_columns(&spreads)).collect()))
}

/// Counts of regimes by the values of a column.
fn counts(of: &Records, regime: &str, by: Option<&str>) -> Result<Vec<(String, Vec<usize>)>> {
    let mut names = vec![col(regime)];
    names.extend(by.map(col));
    let mut query = of.scan()?.group_by_stable(names).agg([len().alias("n")]);
    query = query.filter(col(regime).is_not_null());
    let table = of.collect(query)?;
    let read = || -> PolarsResult<Vec<(String, Vec<usize>)>> {
        let (regimes, n) = (table.column(regime)?.str()?, table.column("n")?.cast(&DataType::UInt64)?);
        let (n, by) = (n.u64()?, by.map(|by| table.column(by)?.str().cloned()).transpose()?);
        let mut all: Vec<(String, Vec<usize>)> = Vec::new();
        for row in 0..table.height() {
            let name = by.as_ref().map_or(Some("dpo"), |by| by.get(row)).unwrap_or_default();
            let Some(kind) = regimes.get(row).and_then(Regime::named) else { continue };
            let at = all.iter().position(|(known, _)| known == name).unwrap_or_else(|| {
                all.push((name.to_owned(), vec![0; Regime::ALL.len()]));
                all.len() - 1
            });
            let place = Regime::ALL.iter().position(|other| *other == kind).unwrap_or_default();
            all[at].1[place] += usize::try_from(n.get(row).unwrap_or(0)).unwrap_or(usize::MAX);
        }
        Ok(all)
    };
    read().map_err(|e| of.blame(e))
}

/// One row an objective and regime: how many pairs, their share, and its 95 % interval. Without objectives.parquet it is the
/// regime of `d_w` = `d_l` alone, under the name `dpo`.
///
/// # Errors
/// Where a part is damaged.
pub fn regimes(leaf: &Leaf) -> Result<DataFrame> {
    let counted = match leaf.table(tables::OBJECTIVES)? {
        Some(outcomes) => counts(&outcomes, "regime", Some("objective"))?,
        None => counts(&leaf.pairs()?, "regime_dpo", None)?,
    };
    Ok(regime_rows(leaf, &counted))
}

/// The same in the metric of Adam's step; `None` where it was not measured.
///
/// # Errors
/// Where a part is damaged.
pub fn regimes_in_metric(leaf: &Leaf) -> Result<Option<DataFrame>> {
    let has = |records: &Records, name: &str| -> Result<bool> {
        Ok(!records.having(&mut records.scan()?, &[name])?.is_empty())
    };
    let pairs = leaf.pairs()?;
    if !has(&pairs, "adam_regime_dpo")? {
        return Ok(None);
    }
    let counted = match leaf.table(tables::OBJECTIVES)? {
        Some(outcomes) if has(&outcomes, "adam_regime")? => counts(&outcomes, "adam_regime", Some("objective"))?,
        _ => counts(&pairs, "adam_regime_dpo", None)?,
    };
    Ok(Some(regime_rows(leaf, &counted)))
}

/// Counts of regimes by objective, as rows.
fn regime_rows(leaf: &Leaf, counted: &[(String, Vec<usize>)]) -> DataFrame {
    let rows: Vec<(&str, Regime, usize, usize)> = counted
        .iter()
        .flat_map(|(name, counts)| {
            let all = counts.iter().sum();
            Regime::ALL.into_iter().zip(counts).map(move |(regime, n)| (name.as_str(), regime, *n, all))
        })
        .collect();
    let share = |n: usize, all: usize| n as f64 / all as f64;
    let columns = [
        column("objective", &rows, |r| r.0.to_owned()),
        column("regime", &rows, |r| r.1.name().to_owned()),
        column("count", &rows, |r| r.2 as u64),
        column("share", &rows, |r| share(r.2, r.3)),
        column("low", &rows, |r| wilson(r.2, r.3)[0]),
        column("high", &rows, |r| wilson(r.2, r.3)[1]),
    ];
    frame(keys(leaf, rows.len()).into_iter().chain(columns).collect())
}

/// One row an objective and what is known of pairs under it (`OUTCOMES`); `None` without objectives.parquet.
///
/// # Errors
/// Where a part is damaged.
pub fn outcomes(leaf: &Leaf) -> Result<Option<DataFrame>> {
    let Some(outcomes) = leaf.table(tables::OBJECTIVES)? else { return Ok(None) };
    let counted = counts(&outcomes, "regime", Some("objective"))?;
    let names: Vec<&str> = counted.iter().map(|(name, _)| name.as_str()).collect();
    let pairs = counted.iter().map(|(_, counts)| counts.iter().sum::<usize>()).max().unwrap_or(0);
    let mut rows: Vec<(&str, &str)> = Vec::new();
    let mut spreads = Vec::new();
    for names in names.chunks((ROWS_AT_ONCE / pairs.max(1)).max(1)) {
        let wanted = names.iter().map(|name| col("objective").eq(lit(*name))).reduce(Expr::or);
        let columns: Vec<Expr> = OUTCOMES.iter().map(|name| col(*name)).chain([col("objective")]).collect();
        let query = outcomes.scan()?.filter(wanted.unwrap_or(lit(false))).select(columns);
        let table = outcomes.collect(query)?;
        let mut found = by_objective(&table).map_err(|e| outcomes.blame(e))?;
        for (name, metric) in names.iter().flat_map(|name| OUTCOMES.map(|metric| (*name, metric))) {
            let (values, undefined) = found.remove(&(name, metric)).unwrap_or_default();
            rows.push((name, metric));
            spreads.push((Spread::of(values), undefined));
        }
    }
    let columns = [column("objective", &rows, |r| r.0.to_owned()), column("metric", &rows, |r| r.1.to_owned())];
    Ok(Some(frame(keys(leaf, rows.len()).into_iter().chain(columns).chain(spread_columns(&spreads)).collect())))
}

/// Numbers by objective and metric, and how many values are null or NaN.
type ByObjective<'a> = HashMap<(&'a str, &'static str), (Vec<f64>, usize)>;

fn by_objective(table: &DataFrame) -> PolarsResult<ByObjective<'_>> {
    let mut found = ByObjective::new();
    let names = table.column("objective")?.str()?;
    for metric in OUTCOMES {
        for (name, value) in names.iter().zip(table.column(metric)?.f64()?.iter()) {
            let (values, undefined) = found.entry((name.unwrap_or_default(), metric)).or_default();
            match value.filter(|x| !x.is_nan()) {
                Some(value) => values.push(value),
                None => *undefined += 1,
            }
        }
    }
    Ok(found)
}

/// One row: the metrics that are looked at first, and the shares of regimes when d_w = d_l.
///
/// # Errors
/// Where a part is damaged.
pub fn digest(leaf: &Leaf) -> Result<DataFrame> {
    let pairs = leaf.pairs()?;
    let query = derived(pairs.scan()?).map_err(|e| pairs.blame(e))?;
    let spread = |name: &str| Ok(Spread::of(numbers(&pairs, query.clone(), name)?.0)) as Result<Option<Spread>>;
    let cosine = spread("cosine")?;
    let regimes = counts(&pairs, "regime_dpo", None)?;
    let count: usize = regimes.iter().flat_map(|(_, counts)| counts).sum();
    let mut columns = keys(leaf, 1);
    let real = |name: &str, value: Option<f64>| column(name, &[value], |x| *x);
    columns.push(column("pairs", &[count as u64], |n| *n));
    columns.push(real("cosine", cosine.map(|s| s.quartiles[1])));
    columns.push(real("cosine_low", cosine.map(|s| s.interval[0])));
    columns.push(real("cosine_high", cosine.map(|s| s.interval[1])));
    columns.push(real("cosine_q25", cosine.map(|s| s.quartiles[0])));
    columns.push(real("cosine_q75", cosine.map(|s| s.quartiles[2])));
    for name in ["wl_over_min", "norm_ratio", "logp_chosen", "logp_rejected", "margin"] {
        columns.push(real(name, spread(name)?.map(|s| s.quartiles[1])));
    }
    for (at, regime) in Regime::ALL.iter().enumerate() {
        let n: usize = regimes.iter().map(|(_, counts)| counts[at]).sum();
        columns.push(real(&regime.name().replace('-', "_"), (count > 0).then(|| n as f64 / count as f64)));
    }
    Ok(frame(columns))
}
