//! What entanglement goes with, and which pairs stand out.
use crate::metrics::{derived, keys, numbers, spread_columns, values};
use crate::statistics::{Ranks, Spread, median, spearman};
use polars_core::prelude::{DataFrame, DataType, PolarsResult};
use polars_lazy::prelude::{col, lit};
use rayon::prelude::{IndexedParallelIterator, IntoParallelIterator, ParallelIterator, ParallelSliceMut};
use tanglescope_records::tables::{column, frame};
use tanglescope_records::{Leaf, Result};

/// Measures of entanglement.
const OF: [&str; 3] = ["cosine", "wl_over_min", "norm_ratio"];

/// What they are compared with.
const AGAINST: [&str; 11] = [
    "length_difference",
    "chosen_tokens",
    "rejected_tokens",
    "prompt_tokens",
    "shared_prefix",
    "edit_distance",
    "logp_chosen",
    "logp_rejected",
    "margin",
    "ches",
    "ches_by_length",
];

/// Pairs that stand out by each metric.
const OUTLIERS: usize = 10;

/// One row a measure of entanglement and a property of the pair: Spearman's correlation over the pairs, with its 95 % interval.
///
/// # Errors
/// Where a part is damaged.
pub fn relations(leaf: &Leaf) -> Result<DataFrame> {
    let pairs = leaf.pairs()?;
    let mut query = derived(pairs.scan()?).map_err(|e| pairs.blame(e))?;
    let there = pairs.having(&mut query, &AGAINST)?;
    let ranks = |name: &str| -> Result<Ranks> {
        let found = Ranks::of(values(&pairs, query.clone(), name)?);
        found.ok_or_else(|| pairs.blame("these records have more pairs than ranks are counted for, 2³¹ − 1"))
    };
    let measures = OF.iter().map(|name| ranks(name)).collect::<Result<Vec<Ranks>>>()?;
    // one property at a time, for its ranks take the memory of the column
    let with_measures = |against: &&str| -> Result<Vec<(usize, Option<[f64; 3]>)>> {
        let property = ranks(against)?;
        Ok(measures.iter().map(|measure| spearman(measure, &property)).collect())
    };
    let found = there.iter().map(with_measures).collect::<Result<Vec<_>>>()?;
    let places = (0..OF.len()).flat_map(|of| (0..there.len()).map(move |against| (of, against)));
    let rows: Vec<(&str, &str, usize, Option<[f64; 3]>)> =
        places.map(|(of, against)| (OF[of], there[against], found[against][of].0, found[against][of].1)).collect();
    let columns = [
        column("metric", &rows, |r| r.0.to_owned()),
        column("against", &rows, |r| r.1.to_owned()),
        column("count", &rows, |r| r.2 as u64),
        column("spearman", &rows, |r| r.3.map(|s| s[0])),
        column("low", &rows, |r| r.3.map(|s| s[1])),
        column("high", &rows, |r| r.3.map(|s| s[2])),
    ];
    Ok(frame(keys(leaf, rows.len()).into_iter().chain(columns).collect()))
}

/// Parts that the pairs are cut into by a property; fewer where it has few values.
const BINS: usize = 10;

/// One row a measure of entanglement, property, and tenth of the pairs by that property: `bin` (from 1), `from` and `to` (the
/// least and greatest value in it), and where the measure lies over its pairs (columns of a spread).
///
/// Bins end at the values that numpy calls the inverted CDF at tenths, so that pairs of one value are in one bin.
///
/// # Errors
/// Where a part is damaged.
pub fn bins(leaf: &Leaf) -> Result<DataFrame> {
    let pairs = leaf.pairs()?;
    let mut query = derived(pairs.scan()?).map_err(|e| pairs.blame(e))?;
    let there = pairs.having(&mut query, &AGAINST)?;
    let mut rows: Vec<(&str, &str, u32, [f64; 2])> = Vec::new();
    let mut spreads: Vec<(Option<Spread>, usize)> = Vec::new();
    let measures = OF.iter().map(|name| values(&pairs, query.clone(), name)).collect::<Result<Vec<_>>>()?;
    for against in there {
        let property = values(&pairs, query.clone(), against)?;
        let mut sorted: Vec<f64> = property.iter().copied().filter(|at| !at.is_nan()).collect();
        sorted.par_sort_unstable_by(f64::total_cmp);
        let bins = cut(&sorted);
        drop(sorted);
        for (of, measure) in OF.into_iter().zip(&measures) {
            rows.extend((1..).zip(&bins).map(|(number, bin)| (of, against, number, [bin.from, bin.to])));
            spreads.extend(of_bins(measure, &property, &bins));
        }
    }
    let columns = [
        column("metric", &rows, |r| r.0.to_owned()),
        column("against", &rows, |r| r.1.to_owned()),
        column("bin", &rows, |r| r.2),
        column("from", &rows, |r| r.3[0]),
        column("to", &rows, |r| r.3[1]),
    ];
    Ok(frame(keys(leaf, rows.len()).into_iter().chain(columns).chain(spread_columns(&spreads)).collect()))
}

/// Pairs whose property is between two values, both of which are among them.
struct Bin {
    from: f64,
    to: f64,
    pairs: usize,
}

/// The bins of sorted values.
fn cut(sorted: &[f64]) -> Vec<Bin> {
    let n = sorted.len();
    let mut ends: Vec<f64> = (1..=BINS.min(n)).map(|k| sorted[(k * n).div_ceil(BINS.min(n)) - 1] + 0.0).collect();
    ends.dedup();
    let mut first = 0;
    let bin = |to| {
        let from = sorted[first];
        let behind = sorted.partition_point(|x| *x <= to);
        let pairs = behind - first;
        first = behind;
        Bin { from, to, pairs }
    };
    ends.into_iter().map(bin).collect()
}

/// Where a measure lies in each bin of a property, and how many pairs of the bin have none.
fn of_bins(measure: &[f64], property: &[f64], bins: &[Bin]) -> Vec<(Option<Spread>, usize)> {
    let mut values: Vec<Vec<f64>> = bins.iter().map(|bin| Vec::with_capacity(bin.pairs)).collect();
    for (x, at) in measure.iter().zip(property).filter(|(x, at)| !x.is_nan() && !at.is_nan()) {
        values[bins.partition_point(|bin| bin.to < *at)].push(*x);
    }
    let spread = |(values, bin): (Vec<f64>, &Bin)| {
        let undefined = bin.pairs - values.len();
        (Spread::of(values), undefined)
    };
    values.into_par_iter().zip(bins).map(spread).collect()
}

/// Number, `id` and value of some pairs.
fn farthest(table: &DataFrame, metric: &str) -> PolarsResult<Vec<(u64, Option<String>, f64)>> {
    let (pair, id) = (table.column("pair")?.u64()?, table.column("id")?.str()?);
    let values = table.column(metric)?.f64()?;
    let row = |((pair, id), x): ((Option<u64>, Option<&str>), Option<f64>)| Some((pair?, id.map(str::to_owned), x?));
    Ok(pair.iter().zip(id.iter()).zip(values.iter()).filter_map(row).collect())
}

/// The pairs that are farthest from the others, metric by metric: `distance` is (value − median) / (1.4826 · median absolute
/// deviation), which is a number of standard deviations where values are normal.
///
/// # Errors
/// Where a part is damaged.
pub fn outliers(leaf: &Leaf) -> Result<DataFrame> {
    let pairs = leaf.pairs()?;
    let query = derived(pairs.scan()?).map_err(|e| pairs.blame(e))?;
    let mut rows: Vec<(u64, Option<String>, &str, f64, f64)> = Vec::new();
    for metric in OF {
        let (values, _) = numbers(&pairs, query.clone(), metric)?;
        let middle = median(values.clone());
        let mut distances: Vec<f64> = values.into_iter().map(|x| (x - middle).abs()).collect();
        let deviation = 1.4826 * median(distances.clone());
        if deviation.is_nan() || deviation <= 0.0 {
            continue;
        }
        let rank = distances.len().saturating_sub(OUTLIERS).min(distances.len() - 1);
        let (_, least, _) = distances.select_nth_unstable_by(rank, f64::total_cmp);
        let value = || col(metric).cast(DataType::Float64);
        let far = value().lt_eq(lit(middle - *least)).or(value().gt_eq(lit(middle + *least)));
        let columns = [col("pair").cast(DataType::UInt64), col("id").cast(DataType::String), value()];
        // comparisons take NaN for the largest of all
        let table = pairs.collect(query.clone().filter(far.and(value().is_not_nan())).select(columns))?;
        let mut found = farthest(&table, metric).map_err(|e| pairs.blame(e))?;
        let distance = |x: f64| (x - middle) / deviation;
        found.sort_by(|a, b| distance(b.2).abs().total_cmp(&distance(a.2).abs()).then(a.0.cmp(&b.0)));
        rows.extend(found.into_iter().take(OUTLIERS).map(|(pair, id, x)| (pair, id, metric, x, distance(x))));
    }
    let columns = [
        column("pair", &rows, |r| r.0),
        column("id", &rows, |r| r.1.clone()),
        column("metric", &rows, |r| r.2.to_owned()),
        column("value", &rows, |r| r.3),
        column("distance", &rows, |r| r.4),
    ];
    Ok(frame(keys(leaf, rows.len()).into_iter().chain(columns).collect()))
}
