//! What a report shows, gathered from records.
use crate::columns::append;
use crate::error::Result;
use crate::texts::{self, EXTREMES, Texts};
use crate::training::{self, Training};
use polars_core::prelude::{DataFrame, DataType, NamedFrom, Series, SortMultipleOptions};
use polars_lazy::prelude::{Expr, LazyFrame, col, len, lit};
use serde::Serialize;
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;
use std::path::PathBuf;
use tanglescope_analytics::{self as analytics, By, derived};
use tanglescope_records::{Leaf, Manifest, Records, find, find_some};

/// Pairs whose numbers are in a report; of more, every n-th is, and the extremes of each model and data set.
const PAIRS: usize = 20_000;

/// The columns of pairs that are shown.
const COLUMNS: [&str; 17] = [
    "pair",
    "id",
    "prompt_tokens",
    "chosen_tokens",
    "rejected_tokens",
    "edit_distance",
    "logp_chosen",
    "logp_rejected",
    "ref_logp_chosen",
    "ref_logp_rejected",
    "ww",
    "wl",
    "ll",
    "cosine",
    "wl_over_min",
    "norm_ratio",
    "regime_dpo",
];

/// Where a report comes from.
#[derive(Clone, Debug, Serialize)]
pub struct Origin {
    /// Version of the program.
    pub version: String,
    /// The command that made it.
    pub command: Vec<String>,
}

/// Everything that is shown.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Where it comes from.
    pub origin: Origin,
    /// Models and data sets, by run, step and data set: the order that `leaf` counts in.
    pub leaves: Vec<Value>,
    /// Tables of what the records amount to, as lists by column. Each has `leaf`.
    pub tables: Map<String, Value>,
    /// Pairs, as lists by column, with `leaf`.
    pub pairs: Map<String, Value>,
    /// Pairs of all records, where not all are shown.
    pub pairs_in_all: usize,
    /// What training recorded.
    pub training: Vec<Training>,
    /// Texts and matrices of some pairs.
    pub texts: Texts,
    /// What was found in the folders and is not shown.
    #[serde(skip)]
    pub left_out: Vec<String>,
}

impl Report {
    /// Gathers what is shown of some records, of the training runs in `folders`, and of those that a sweep in them was of.
    ///
    /// # Errors
    /// Where there are no records, or a part of a table is damaged.
    pub fn of(folders: &[PathBuf], origin: Origin) -> Result<Self> {
        let leaves = find_some(folders)?;
        if leaves.is_empty() {
            // says which folder has none
            find(folders)?;
        }
        let mut tables = Map::new();
        for (name, table) in [
            ("digest", gather(&leaves, |leaf| analytics::digest(leaf).map(Some))?),
            ("metrics", gather(&leaves, |leaf| analytics::metrics(leaf).map(Some))?),
            ("regimes", gather(&leaves, |leaf| analytics::regimes(leaf).map(Some))?),
            ("outcomes", gather(&leaves, analytics::outcomes)?),
            ("layers", gather(&leaves, |leaf| analytics::params(leaf, By::Layer))?),
            ("modules", gather(&leaves, |leaf| analytics::params(leaf, By::Module))?),
            ("experts", gather(&leaves, analytics::experts)?),
            ("relations", gather(&leaves, |leaf| analytics::relations(leaf).map(Some))?),
            ("bins", gather(&leaves, |leaf| analytics::bins(leaf).map(Some))?),
        ] {
            tables.insert(name.to_owned(), Value::Object(table));
        }
        let (pairs, pairs_in_all) = pairs(&leaves)?;
        let mut left_out = Vec::new();
        let texts = texts::gather(folders, &leaves, &pairs, &mut left_out)?;
        let training = training::gather(folders)?;
        Ok(Self {
            origin,
            leaves: leaves.iter().map(described).collect::<Result<_>>()?,
            tables,
            pairs,
            pairs_in_all,
            training,
            texts,
            left_out,
        })
    }
}

/// A leaf, with what its manifest says is needed to run it again.
fn described(leaf: &Leaf) -> Result<Value> {
    let manifest = Manifest::read(&leaf.folder)?;
    Ok(json!({
        "run": leaf.run,
        "step": leaf.step,
        "dataset": leaf.dataset,
        "folder": leaf.folder,
        "title": leaf.title(),
        "manifest": manifest,
    }))
}

/// A table of every leaf, as lists by column, with the leaf's number in front of each row.
fn gather(
    leaves: &[Leaf],
    table: impl Fn(&Leaf) -> tanglescope_records::Result<Option<DataFrame>>,
) -> Result<Map<String, Value>> {
    let mut whole = Map::new();
    for (number, leaf) in leaves.iter().enumerate() {
        if let Some(rows) = table(leaf)? {
            append(&mut whole, number, &rows, 1);
        }
    }
    Ok(whole)
}

/// The pairs that are shown, and how many there are: all of them, or every n-th, and of each record those at either end of the
/// measures that a reader sorts by.
fn pairs(leaves: &[Leaf]) -> Result<(Map<String, Value>, usize)> {
    let records: Vec<Records> = leaves.iter().map(Leaf::pairs).collect::<tanglescope_records::Result<_>>()?;
    let heights: Vec<usize> = records.iter().map(height).collect::<Result<_>>()?;
    let all: usize = heights.iter().sum();
    let every = all.div_ceil(PAIRS).max(1);
    let mut whole = Map::new();
    for (number, records) in records.iter().enumerate() {
        let mut query = derived(records.scan()?).map_err(|e| records.blame(e))?;
        let schema = query.collect_schema().map_err(|e| records.blame(e))?;
        let there: Vec<Expr> = COLUMNS.into_iter().filter(|name| schema.get(name).is_some()).map(col).collect();
        query = query.with_row_index(PLACE, None);
        if every > 1 {
            let wanted = (col(PLACE) % lit(as_place(every))).eq(lit(0u32));
            let ends: Vec<u32> = ends(records, &query)?.into_iter().collect();
            query =
                query.filter(wanted.or(col(PLACE).is_in(lit(Series::new(PLACE.into(), ends)).implode(true), false)));
        }
        append(&mut whole, number, &records.collect(query.select(there))?, 1);
    }
    Ok((whole, all))
}

/// The name of a column of places, which no records have.
const PLACE: &str = "place";

/// Pairs at each end of a measure that are shown of a record whatever else is.
const ENDS: u32 = 25;

fn as_place(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

/// Rows of a table.
fn height(records: &Records) -> Result<usize> {
    let n = records.collect(records.scan()?.select([len().alias("n").cast(DataType::UInt64)]))?;
    let n = n.column("n").and_then(|n| Ok(n.u64()?.get(0))).map_err(|e| records.blame(e))?.unwrap_or(0);
    Ok(usize::try_from(n).unwrap_or(usize::MAX))
}

/// Places of the pairs at either end of the measures that texts are chosen by.
fn ends(records: &Records, query: &LazyFrame) -> Result<BTreeSet<u32>> {
    let mut places = BTreeSet::new();
    for name in EXTREMES {
        for descending in [false, true] {
            let options = SortMultipleOptions::default().with_order_descending(descending).with_nulls_last(true);
            let few = query.clone().filter(col(name).is_not_null()).sort([name], options).limit(ENDS);
            let few = records.collect(few.select([col(PLACE)]))?;
            let of = few.column(PLACE).and_then(|of| of.u32().cloned()).map_err(|e| records.blame(e))?;
            places.extend(of.iter().flatten());
        }
    }
    Ok(places)
}
