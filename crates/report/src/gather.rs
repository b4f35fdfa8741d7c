//! What a report shows, gathered from records.
use crate::between::{self, HeatMap};
use crate::columns::append;
use crate::error::Result;
use crate::finding::{Finding, Gathered};
use crate::texts::{self, EXTREMES, Texts};
use crate::training::{self, Training};
use polars_core::prelude::{DataFrame, DataType, NamedFrom, PolarsResult, Series, SortMultipleOptions};
use polars_lazy::prelude::{Expr, LazyFrame, col, len, lit};
use serde::Serialize;
use serde_json::{Map, Value, json};
use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use tanglescope_analytics::{self as analytics, By, derived};
use tanglescope_records::{Leaf, Manifest, Records, find, find_some, tables};

/// Pairs whose numbers are in a report; of more, every n-th is, and the extremes of each model and data set.
const PAIRS: usize = 20_000;

/// The columns of pairs that are shown.
const COLUMNS: [&str; 23] = [
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
    "adam_ww",
    "adam_wl",
    "adam_ll",
    "adam_cosine",
    "adam_norm_ratio",
    "adam_regime_dpo",
];

/// Bytes of a page that is to stay below 10 MB: what tables and pairs leave is for texts and matrices.
const PAGE_BYTES: usize = 8_300_000;

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
    /// What was found, of each run on each data set.
    pub findings: Vec<Finding>,
    /// Models and data sets, as the folders were given, and in each by run, step and data set: the order that `leaf` counts in.
    pub leaves: Vec<Value>,
    /// Tables of what the records amount to, as lists by column. Each has `leaf`.
    pub tables: Map<String, Value>,
    /// Pairs, as lists by column, with `leaf`.
    pub pairs: Map<String, Value>,
    /// Pairs of all records, where not all are shown.
    pub pairs_in_all: usize,
    /// Cosines between pairs, of the records that have them.
    pub heat_maps: Vec<HeatMap>,
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
    /// Where there are neither records nor runs, or a part of a table is damaged.
    pub fn of(folders: &[PathBuf], origin: Origin) -> Result<Self> {
        let leaves = as_given(find_some(folders)?, folders);
        let training = training::gather(folders)?;
        if leaves.is_empty() && training.is_empty() {
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
            ("adam_regimes", gather(&leaves, analytics::regimes_in_metric)?),
            ("batch_sizes", gather(&leaves, |leaf| between::table(leaf, tables::BATCH_SIZES))?),
            ("spectrum", gather(&leaves, |leaf| between::table(leaf, tables::SPECTRUM))?),
        ] {
            tables.insert(name.to_owned(), Value::Object(table));
        }
        let (pairs, pairs_in_all) = pairs(&leaves)?;
        let mut left_out = Vec::new();
        let maps = leaves.iter().enumerate().map(|(number, leaf)| between::heat_map(number, leaf));
        let heat_maps: Vec<HeatMap> = maps.filter_map(Result::transpose).collect::<Result<_>>()?;
        let mapped: Vec<(usize, u64)> =
            heat_maps.iter().flat_map(|map| map.pairs.iter().map(|pair| (map.leaf, *pair))).collect();
        let taken = length(&pairs) + length(&tables);
        let texts = texts::gather(folders, &leaves, &pairs, &mapped, PAGE_BYTES.saturating_sub(taken), &mut left_out)?;
        tables.insert("drags".to_owned(), Value::Object(drags(&leaves, &texts)?));
        let gathered =
            Gathered { leaves: &leaves, tables: &tables, training: &training, texts: &texts, heat_maps: &heat_maps };
        let findings = gathered.findings();
        Ok(Self {
            origin,
            findings,
            leaves: leaves.iter().map(described).collect::<Result<_>>()?,
            tables,
            pairs,
            pairs_in_all,
            heat_maps,
            training,
            texts,
            left_out,
        })
    }
}

/// Records in the order in which a reader was given them: by the folder that they are in, and there by the order of a sweep's runs.
fn as_given(leaves: Vec<Leaf>, folders: &[PathBuf]) -> Vec<Leaf> {
    let whole = |folder: &Path| folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
    let folders: Vec<PathBuf> = folders.iter().map(|folder| whole(folder)).collect();
    let mut orders: HashMap<PathBuf, Vec<String>> = HashMap::new();
    let mut keyed = Vec::new();
    for leaf in leaves {
        let at = whole(&leaf.folder);
        let folder = folders.iter().position(|folder| at.starts_with(folder)).unwrap_or(folders.len());
        let swept =
            at.ancestors().find(|at| at.file_name().is_some_and(|name| name.to_string_lossy().starts_with("run=")));
        let mut place = 0;
        if let Some((run, sweep)) =
            swept.and_then(|run| Some((run.file_name()?.to_string_lossy().into_owned(), run.parent()?)))
        {
            if !orders.contains_key(sweep) {
                // other programs' files may have that name too
                let order = match Manifest::read(sweep) {
                    Ok(Some(Manifest::Sweep(sweep))) => sweep.order,
                    _ => Vec::new(),
                };
                orders.insert(sweep.to_owned(), order);
            }
            place = orders[sweep].iter().position(|name| run.strip_prefix("run=") == Some(name)).unwrap_or(usize::MAX);
        }
        keyed.push(((folder, place), leaf));
    }
    // those of one run stay by step and data set
    keyed.sort_by_key(|(key, _)| *key);
    keyed.into_iter().map(|(_, leaf)| leaf).collect()
}

/// Bytes of a table in the page.
fn length(table: &Map<String, Value>) -> usize {
    serde_json::to_string(table).map_or(0, |text| text.len())
}

/// Who pulls whom, of the pairs whose texts are there.
fn drags(leaves: &[Leaf], texts: &Texts) -> Result<Map<String, Value>> {
    let mut whole = Map::new();
    for (number, leaf) in leaves.iter().enumerate() {
        let of = texts.pairs.keys().filter_map(|key| texts::parse(key)).filter(|(at, _)| *at == number);
        between::drags(number, leaf, &of.map(|(_, pair)| pair).collect(), &mut whole)?;
    }
    Ok(whole)
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
    for (number, (records, leaf)) in records.iter().zip(leaves).enumerate() {
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
        let mut rows = records.collect(query.select(there))?;
        if let Some(effects) = between::effects(leaf)? {
            beside(&mut rows, &effects).map_err(|e| records.blame(e))?;
        }
        append(&mut whole, number, &rows, 1);
    }
    Ok((whole, all))
}

/// Adds to pairs what they get from themselves and from others.
fn beside(rows: &mut DataFrame, effects: &DataFrame) -> PolarsResult<()> {
    let place: HashMap<u64, usize> =
        effects.column("pair")?.u64()?.iter().enumerate().filter_map(|(at, pair)| Some((pair?, at))).collect();
    let pairs: Vec<Option<u64>> = rows.column("pair")?.cast(&DataType::UInt64)?.u64()?.iter().collect();
    for name in ["own_w", "others_w", "harm"] {
        let of = effects.column(name)?.f64()?;
        let values: Vec<Option<f64>> = pairs.iter().map(|pair| of.get(*place.get(&(*pair)?)?)).collect();
        rows.with_column(Series::new(name.into(), values).into())?;
    }
    Ok(())
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
