//! What a report shows, gathered from records.
use crate::between::{self, Effects, HeatMap};
use crate::columns::append;
use crate::error::Result;
use crate::finding::{Finding, Gathered};
use crate::sweeps::{Sweeps, whole};
use crate::texts::{self, EXTREMES, Texts};
use crate::training::{self, Training};
use polars_core::prelude::{DataFrame, DataType, NamedFrom, PolarsResult, Series, SortMultipleOptions};
use polars_lazy::prelude::{Expr, LazyFrame, col, len, lit};
use serde::Serialize;
use serde_json::{Map, Value, json};
use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;
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
        let leaves = find_some(folders)?;
        let sweeps = Sweeps::of(folders, &leaves)?;
        let leaves = as_given(leaves, folders, &sweeps);
        let training = training::gather(folders, &leaves, &sweeps)?;
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
        let effects = leaves.iter().map(between::effects).collect::<Result<Vec<_>>>()?;
        let (pairs, pairs_in_all) = pairs(&leaves, &effects)?;
        let mut left_out = Vec::new();
        let heat_maps = between::heat_maps(&leaves)?;
        let described = leaves.iter().map(described).collect::<Result<Vec<_>>>()?;
        let mapped: Vec<(usize, u64)> =
            heat_maps.iter().flat_map(|map| map.pairs.iter().map(|pair| (map.leaf, *pair))).collect();
        let taken = length(&pairs) + length(&tables) + length(&heat_maps) + length(&training) + length(&described);
        let texts = texts::gather(folders, &leaves, &pairs, &mapped, PAGE_BYTES.saturating_sub(taken), &mut left_out)?;
        tables.insert("drags".to_owned(), Value::Object(drags(&leaves, &texts)?));
        let gathered =
            Gathered { leaves: &leaves, tables: &tables, training: &training, texts: &texts, effects: &effects };
        let findings = gathered.findings();
        Ok(Self {
            origin,
            findings,
            leaves: described,
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

/// Records in the order in which a reader was given their runs: by the folder that a run is in first, and there by the order of a
/// sweep's runs. Those of a run stay by step and data set, whichever folder each is in.
fn as_given(mut leaves: Vec<Leaf>, folders: &[PathBuf], sweeps: &Sweeps) -> Vec<Leaf> {
    let folders: Vec<PathBuf> = folders.iter().map(|folder| whole(folder)).collect();
    let mut ranks: HashMap<String, (usize, usize)> = HashMap::new();
    for leaf in &leaves {
        let at = whole(&leaf.folder);
        let folder = folders.iter().position(|folder| at.starts_with(folder)).unwrap_or(folders.len());
        let rank = (folder, sweeps.place(leaf));
        ranks.entry(leaf.run.clone()).and_modify(|least| *least = rank.min(*least)).or_insert(rank);
    }
    leaves.sort_by(|a, b| (ranks[&a.run], a).cmp(&(ranks[&b.run], b)));
    leaves
}

/// Bytes that something takes in the page.
fn length(part: &impl Serialize) -> usize {
    serde_json::to_string(part).map_or(0, |text| text.len())
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
fn pairs(leaves: &[Leaf], effects: &[Option<Effects>]) -> Result<(Map<String, Value>, usize)> {
    let records: Vec<Records> = leaves.iter().map(Leaf::pairs).collect::<tanglescope_records::Result<_>>()?;
    let heights: Vec<usize> = records.iter().map(height).collect::<Result<_>>()?;
    let all: usize = heights.iter().sum();
    let every = all.div_ceil(PAIRS).max(1);
    let mut whole = Map::new();
    for (number, (records, effects)) in records.iter().zip(effects).enumerate() {
        let mut query = derived(records.scan()?).map_err(|e| records.blame(e))?;
        let there: Vec<Expr> = records.having(&mut query, &COLUMNS)?.into_iter().map(col).collect();
        query = query.with_row_index(PLACE, None);
        if every > 1 {
            let wanted = (col(PLACE) % lit(as_place(every))).eq(lit(0u32));
            let ends: Vec<u32> = ends(records, &query)?.into_iter().collect();
            query =
                query.filter(wanted.or(col(PLACE).is_in(lit(Series::new(PLACE.into(), ends)).implode(true), false)));
        }
        let mut rows = records.collect(query.select(there))?;
        if let Some(effects) = effects {
            beside(&mut rows, effects).map_err(|e| records.blame(e))?;
        }
        append(&mut whole, number, &rows, 1);
    }
    Ok((whole, all))
}

/// Adds to pairs what they get from themselves and from others.
fn beside(rows: &mut DataFrame, effects: &Effects) -> PolarsResult<()> {
    let pairs: Vec<Option<u64>> = rows.column("pair")?.cast(&DataType::UInt64)?.u64()?.iter().collect();
    for (at, name) in Effects::NAMES.into_iter().enumerate() {
        let values: Vec<Option<f64>> = pairs.iter().map(|pair| effects.of(*pair.as_ref()?)?[at]).collect();
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

#[cfg(test)]
mod tests {
    use super::{Sweeps, as_given, find_some};
    use crate::training::gather;
    use polars_core::df;
    use std::path::{Path, PathBuf};
    use tanglescope_records::tables::{self, training};
    use tanglescope_records::{Leaf, Table};

    fn records(folder: &Path) -> PathBuf {
        std::fs::create_dir_all(folder).unwrap();
        let table = Table::create(folder, tables::PAIRS).unwrap();
        table.write(0, df!("pair" => [0u64]).unwrap()).unwrap();
        folder.to_owned()
    }

    fn given(folders: &[PathBuf]) -> Vec<Leaf> {
        let leaves = find_some(folders).unwrap();
        let sweeps = Sweeps::of(folders, &leaves).unwrap();
        as_given(leaves, folders, &sweeps)
    }

    #[test]
    fn runs_are_as_they_were_given_and_their_steps_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| records(&folder.path().join(name));
        // as a shell lists checkpoints: by name
        let mut folders: Vec<PathBuf> = ["0", "1000", "200"].map(|step| at(&format!("run=b/step={step}"))).into();
        folders.push(at("run=a/step=7"));
        folders.push(at("run=b/step=30"));
        let order: Vec<(String, u64)> =
            given(&folders).into_iter().map(|leaf| (leaf.run, leaf.step.unwrap())).collect();
        let want = [("b", 0), ("b", 30), ("b", 200), ("b", 1000), ("a", 7)];
        assert_eq!(order, want.map(|(run, step)| (run.to_owned(), step)));
    }

    #[test]
    fn records_know_the_run_that_they_are_of_by_its_folder() {
        let folder = tempfile::tempdir().unwrap();
        let trained = |name: &str, objective: usize| {
            let at = folder.path().join(name);
            std::fs::create_dir_all(&at).unwrap();
            let steps = Table::create(&at, tables::STEPS).unwrap();
            let row = training::PairStep {
                step: 1,
                pair: 0,
                logp_chosen: -(objective as f64),
                logp_rejected: None,
                reference: None,
                outcome: tanglescope_objectives::Outcome { loss: 0.5, d_w: 1.0, d_l: 0.0 },
                gram: None,
                changes: None,
            };
            steps.write(0, training::steps(&[row], tanglescope_objectives::Rounding::of("f64"))).unwrap();
            at
        };
        let (x, y) = (trained("x/dpo", 1), trained("y/dpo", 2));
        let sweep = folder.path().join("sweep");
        let leaf = records(&sweep.join("run=dpo/step=1/dataset=d"));
        let manifest = serde_json::json!({
            "tanglescope": "0", "kind": "sweep", "command": [], "scope": "lora", "dtype": "f64", "seed": 0, "pairs": null,
            "order": ["dpo"], "runs": {"dpo": {"folder": y, "steps": [1]}}, "data": {},
        });
        std::fs::write(sweep.join("manifest.json"), manifest.to_string()).unwrap();
        let told = |folders: &[PathBuf]| -> Vec<(String, usize, Option<[f64; 2]>)> {
            let leaves = given(folders);
            let all = gather(folders, &leaves, &Sweeps::of(folders, &leaves).unwrap()).unwrap();
            all.into_iter().map(|run| (run.run, run.leaves.len(), run.ends.chosen)).collect()
        };
        let [of_x, of_y] = [-1.0, -2.0].map(|logp| Some([logp, logp]));
        // both are called dpo
        let want = [("x/dpo".to_owned(), 0, of_x), ("y/dpo".to_owned(), 1, of_y)];
        assert_eq!(told(&[x.clone(), sweep.clone()]), want);
        // a checkpoint's folder alone, in the sweep whose manifest says where the run is
        assert_eq!(told(std::slice::from_ref(&leaf)), [("dpo".to_owned(), 1, of_y)]);
        // the run that was swept recorded nothing itself: another one of its name is not it
        let elsewhere = serde_json::json!({"folder": sweep, "steps": [1]});
        let mut of_other = manifest.clone();
        of_other["runs"]["dpo"] = elsewhere;
        std::fs::write(sweep.join("manifest.json"), of_other.to_string()).unwrap();
        assert_eq!(told(&[y.clone(), leaf.clone()]), [("dpo (training)".to_owned(), 0, of_y)]);
        // without the manifest the name tells, where one run only has it
        std::fs::remove_file(sweep.join("manifest.json")).unwrap();
        assert_eq!(told(&[y.clone(), leaf.clone()]), [("dpo".to_owned(), 1, of_y)]);
        let unlinked = told(&[x, y, leaf.clone()]);
        assert!(unlinked.iter().all(|run| run.1 == 0), "{unlinked:?}");
        // two folders beside each other that two sweeps call the same
        for (at, of) in [("one", "x/dpo"), ("two", "x/ipo")] {
            let run = trained(of, 1);
            let at = folder.path().join("named").join(at);
            std::fs::create_dir_all(&at).unwrap();
            let mut manifest = manifest.clone();
            manifest["runs"]["dpo"]["folder"] = serde_json::json!(run);
            std::fs::write(at.join("manifest.json"), manifest.to_string()).unwrap();
        }
        let both = told(&[folder.path().join("named")]);
        assert!(both.len() == 2 && both[0].0 != both[1].0, "{both:?}");
        std::fs::remove_dir_all(folder.path().join("x/ipo")).unwrap();
        // records of something else that has the run's name
        let (other, run) = (records(&folder.path().join("other/dpo")), folder.path().join("x"));
        assert_eq!(told(&[other, run]), [("dpo (training)".to_owned(), 0, of_x)]);
    }
}
