//! The same pairs in two sets of records.
use crate::metrics::{METRICS, derived, spread_columns};
use crate::statistics::{Spread, median, sign_test};
use polars_core::prelude::{DataFrame, DataType, PolarsResult};
use polars_lazy::prelude::{LazyFrame, col};
use tanglescope_records::tables::{column, frame};
use tanglescope_records::{Error, Leaf, Records, Result};

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
        let metric = |name: &str| both.metric(name).map(Option::unwrap_or_default);
        let side = |of: &Both, side: usize| of.iter().map(|pair| pair[side]).collect::<Vec<f64>>();
        let mean = |of: Vec<f64>| of.iter().sum::<f64>() / of.len() as f64;
        let (cosine, chosen, rejected) = (metric("cosine")?, metric("logp_chosen")?, metric("logp_rejected")?);
        let fell = chosen.iter().filter(|[before, after]| after < before).count();
        Ok(Self {
            cosine: [0, 1].map(|at| median(side(&cosine, at))),
            chosen: [0, 1].map(|at| mean(side(&chosen, at))),
            rejected: [0, 1].map(|at| mean(side(&rejected, at))),
            chosen_fell: fell as f64 / chosen.len() as f64,
        })
    }
}

/// Values of a metric by pair: both sides' in the order of pairs.
type Both = Vec<[f64; 2]>;

/// One row a metric: the means `before` and `after`; the differences of pairs, second less first (columns of a spread); and
/// `rises`, `falls` and `p`, that of the sign test.
///
/// Pairs are matched by their number. One metric is held at a time.
///
/// # Errors
/// Where a part is damaged, no pair is in both, or a pair has another id in each.
pub fn compare(before: &Leaf, after: &Leaf) -> Result<DataFrame> {
    let matched = Matched::of(before, after)?;
    let mut rows: Vec<Row> = Vec::new();
    for name in METRICS {
        if let Some(both) = matched.metric(name)? {
            rows.push(Row::of(name, &both, matched.rows.len()));
        }
    }
    let spreads: Vec<(Option<Spread>, usize)> = rows.iter().map(|row| (row.spread, row.undefined)).collect();
    let mut columns = vec![
        column("before_records", &rows, |_| before.title()),
        column("after_records", &rows, |_| after.title()),
        column("metric", &rows, |row| row.metric.to_owned()),
        column("before", &rows, |row| row.means.map(|of| of[0])),
        column("after", &rows, |row| row.means.map(|of| of[1])),
    ];
    columns.extend(spread_columns(&spreads));
    columns.extend([
        column("rises", &rows, |row| row.rises as u64),
        column("falls", &rows, |row| row.falls as u64),
        column("p", &rows, |row| sign_test(row.rises, row.falls)),
    ]);
    Ok(frame(columns))
}

/// What became of a metric.
struct Row {
    metric: &'static str,
    /// Of both sides, over pairs that have the metric on both.
    means: Option<[f64; 2]>,
    /// Of the differences.
    spread: Option<Spread>,
    undefined: usize,
    rises: usize,
    falls: usize,
}

impl Row {
    fn of(metric: &'static str, both: &Both, pairs: usize) -> Self {
        let mean = |side: usize| both.iter().map(|pair| pair[side]).sum::<f64>() / both.len() as f64;
        // two infinite values have no difference
        let differences: Vec<f64> = both.iter().map(|[a, b]| b - a).filter(|x| !x.is_nan()).collect();
        Self {
            metric,
            means: (!both.is_empty()).then(|| [0, 1].map(mean)),
            undefined: pairs - differences.len(),
            spread: Spread::of(differences),
            rises: both.iter().filter(|[a, b]| b > a).count(),
            falls: both.iter().filter(|[a, b]| b < a).count(),
        }
    }
}

/// The pairs of some records.
struct Side {
    records: Records,
    /// With every metric that they have.
    query: LazyFrame,
    pairs: Vec<u64>,
    ids: Vec<Option<String>>,
}

impl Side {
    fn of(leaf: &Leaf) -> Result<Self> {
        let records = leaf.pairs()?;
        let query = derived(records.scan()?).map_err(|e| records.blame(e))?;
        let table = query.clone().select([col("pair").cast(DataType::UInt64), col("id").cast(DataType::String)]);
        let table = records.collect(table)?;
        let read = || -> PolarsResult<(Vec<u64>, Vec<Option<String>>)> {
            let ids = table.column("id")?;
            // a column of nothing but nulls would be held as a text a row
            let ids = if ids.null_count() == ids.len() {
                Vec::new()
            } else {
                ids.str()?.iter().map(|id| id.map(str::to_owned)).collect()
            };
            Ok((table.column("pair")?.u64()?.iter().flatten().collect(), ids))
        };
        let (pairs, ids) = read().map_err(|e| records.blame(e))?;
        Ok(Self { records, query, pairs, ids })
    }

    fn id(&self, at: usize) -> Option<&str> {
        self.ids.get(at)?.as_deref()
    }

    /// Places of the pairs, by their numbers.
    fn order(&self) -> Vec<u32> {
        let mut order: Vec<u32> = (0..).take(self.pairs.len()).collect();
        order.sort_by_key(|&at| self.pairs[at as usize]);
        order
    }

    /// A metric of every pair, NaN where it is not defined; `None` where these records have no such column.
    fn metric(&self, name: &str) -> Result<Option<Vec<f64>>> {
        let mut query = self.query.clone();
        if self.records.having(&mut query, &[name])?.is_empty() {
            return Ok(None);
        }
        let table = self.records.collect(query.select([col(name).cast(DataType::Float64)]))?;
        let values = table.column(name).and_then(|of| of.f64()).map_err(|e| self.records.blame(e))?;
        Ok(Some(values.iter().map(|x| x.unwrap_or(f64::NAN)).collect()))
    }
}

/// The pairs that are in two sets of records.
struct Matched {
    sides: [Side; 2],
    /// Where each pair is on both sides.
    rows: Vec<[u32; 2]>,
}

impl Matched {
    fn of(before: &Leaf, after: &Leaf) -> Result<Self> {
        let mut sides = [Side::of(before)?, Side::of(after)?];
        let [first, second] = [sides[0].order(), sides[1].order()];
        let number = |side: usize, at: u32| sides[side].pairs[at as usize];
        let mut others = second.into_iter().peekable();
        let mut rows = Vec::new();
        for at in first {
            let pair = number(0, at);
            while others.next_if(|&other| number(1, other) < pair).is_some() {}
            rows.extend(others.next_if(|&other| number(1, other) == pair).map(|other| [at, other]));
        }
        if rows.is_empty() {
            return Err(Error::new(&after.folder, format!("has no pair that {} has", before.folder.display())));
        }
        for &[a, b] in &rows {
            if let (Some(first), Some(second)) = (sides[0].id(a as usize), sides[1].id(b as usize))
                && first != second
            {
                let problem = format!(
                    "pair {} is `{second}`, and `{first}` in {}: these are not the same pairs",
                    number(0, a),
                    before.folder.display()
                );
                return Err(Error::new(&after.folder, problem));
            }
        }
        // what places were found by is not needed while metrics are held
        for side in &mut sides {
            (side.pairs, side.ids) = Default::default();
        }
        Ok(Self { sides, rows })
    }

    /// Values of both sides where both are defined; `None` where a side has no such column.
    fn metric(&self, name: &str) -> Result<Option<Both>> {
        let (Some(before), Some(after)) = (self.sides[0].metric(name)?, self.sides[1].metric(name)?) else {
            return Ok(None);
        };
        let all = self.rows.iter().map(|&[a, b]| [before[a as usize], after[b as usize]]);
        Ok(Some(all.filter(|[a, b]| !a.is_nan() && !b.is_nan()).collect()))
    }
}
