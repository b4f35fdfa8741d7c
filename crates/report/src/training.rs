//! What training runs recorded of their own steps.
use crate::columns::append;
use crate::error::Result;
use crate::sweeps::{Sweeps, swept, whole};
use polars_core::prelude::{DataFrame, DataType, PolarsResult};
use polars_lazy::prelude::{IntoLazy, col, lit, when};
use serde::Serialize;
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use tanglescope_records::{Leaf, Manifest, Records, TrainingManifest, folders_with, tables, tell_apart};

/// Pairs of steps whose predicted and measured changes are shown of a run; of more, as many, evenly.
const POINTS: usize = 2000;

/// Steps that are shown of a run; of more, every n-th.
const STEPS: usize = 1000;

/// Runs of which as much is shown; each of more has less.
const RUNS: usize = 2;

/// What a predicted change is the sum of.
const PARTS: [&str; 4] = ["own", "others", "momentum", "decay"];

/// A run's own records.
#[derive(Clone, Debug, Serialize)]
pub struct Training {
    /// The run.
    pub run: String,
    /// Numbers of the records that are of its checkpoints.
    pub leaves: Vec<usize>,
    /// The objective that it was trained on.
    pub objective: String,
    /// What is needed to train it again.
    pub manifest: Option<TrainingManifest>,
    /// Step by step, as lists by column: means over the step's pairs.
    pub steps: Map<String, Value>,
    /// Steps of all, where not all are shown.
    pub steps_in_all: usize,
    /// Changes of log-probabilities that were predicted, and that were measured, as lists by column.
    pub predictions: Map<String, Value>,
    /// Changes of all, where not all are shown.
    pub predictions_in_all: usize,
    /// Of the steps that were taken apart, means over the step's own pairs, as lists by column: `at`, `branch`, the parts and `measured`.
    pub parts: Map<String, Value>,
    /// Where the run began and where it is.
    #[serde(skip)]
    pub(crate) ends: Ends,
    /// Changes of chosen responses of the steps' own pairs.
    #[serde(skip)]
    pub(crate) apart: Apart,
}

/// Means over the first and the last tenth of the steps, since each has pairs of its own; `None` where nothing was recorded.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Ends {
    pub steps: usize,
    /// Steps of a mean.
    pub few: usize,
    pub chosen: Option<[f64; 2]>,
    pub rejected: Option<[f64; 2]>,
}

/// What changes of log π(chosen) of a step's own pairs were made of, over all that were taken apart.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Apart {
    /// Changes that were measured and are not zero.
    pub count: usize,
    /// Those below zero.
    pub fell: usize,
    /// Sum of those below zero.
    pub change: f64,
    /// To first order, of those below zero: by the pair itself, by the others of its batch, by momentum, by decay.
    pub by: [f64; 4],
    /// How often the sign of the first part, of the first two, and of all is that of the change.
    pub right: [usize; 3],
}

/// The runs in some folders, and those that sweeps there were of, under the names that the sweeps gave them.
pub(crate) fn gather(folders: &[PathBuf], leaves: &[Leaf], sweeps: &Sweeps) -> Result<Vec<Training>> {
    let last = |folder: &Path| folder.file_name().map_or(String::new(), |name| name.to_string_lossy().into_owned());
    let own = folders_with(folders, tables::STEPS)?;
    let mut runs: BTreeMap<PathBuf, String> =
        own.iter().map(|at| whole(at)).map(|at| (at.clone(), last(&at))).collect();
    runs.extend(sweeps.trained().map(|(folder, name)| (folder, name.to_owned())));
    let place = |folder: &Path| -> Vec<String> {
        let parents = folder.parent().unwrap_or(folder).iter().skip(1);
        parents.map(|name| name.to_string_lossy().into_owned()).collect()
    };
    let named: Vec<_> = runs.iter().map(|(folder, name)| (name.clone(), place(folder), ())).collect();
    // of a sweep that has no manifest any more, or whose runs were moved, the run of that name where there is one only
    let by_name = |leaf: &Leaf| -> Option<&PathBuf> {
        let (_, run) = swept(leaf)?;
        let mut of = runs.keys().filter(|folder| last(folder) == run);
        of.next().filter(|_| of.next().is_none())
    };
    let folder_of = |leaf: &Leaf| match sweeps.run_folder(leaf) {
        Some(folder) if runs.contains_key(&folder) => Some(folder),
        // it is where the sweep found it, and has no records of its own
        Some(folder) if folder.exists() => None,
        _ => by_name(leaf).cloned(),
    };
    let homes: Vec<Option<PathBuf>> = leaves.iter().map(folder_of).collect();
    let measured: BTreeSet<&str> = leaves.iter().map(|leaf| leaf.run.as_str()).collect();
    let told = tell_apart(&named);
    let mut all = Vec::new();
    for (folder, name) in runs.keys().zip(&told) {
        let is_alone = told.iter().filter(|other| *other == name).count() == 1;
        // sweeps may call two folders beside each other the same
        let mut name = if is_alone { name.clone() } else { folder.display().to_string() };
        let of: Vec<usize> = (0..leaves.len()).filter(|&leaf| homes[leaf].as_ref() == Some(folder)).collect();
        // records of something else may have its name
        while of.is_empty() && measured.contains(name.as_str()) {
            name.push_str(" (training)");
        }
        all.push(Training::of(name, of, folder, runs.len())?);
    }
    all.sort_by(|a, b| a.run.cmp(&b.run));
    Ok(all)
}

impl Training {
    /// Pairs of a step.
    pub(crate) fn batch_size(&self) -> Option<u64> {
        Some(self.manifest.as_ref()?.identity.settings.pairs_per_step() as u64)
    }

    fn of(run: String, leaves: Vec<usize>, folder: &Path, runs: usize) -> Result<Self> {
        let manifest = match Manifest::read(folder)? {
            Some(Manifest::Training(manifest)) => Some(*manifest),
            _ => None,
        };
        let objective = manifest.as_ref().map_or_else(String::new, |manifest| manifest.identity.objective.clone());
        let mut of = Self {
            run,
            leaves,
            objective,
            manifest,
            steps: Map::new(),
            steps_in_all: 0,
            predictions: Map::new(),
            predictions_in_all: 0,
            parts: Map::new(),
            ends: Ends::default(),
            apart: Apart::default(),
        };
        let leaf = Leaf { run: String::new(), step: None, dataset: String::new(), folder: folder.to_owned() };
        if let Some(records) = leaf.table(tables::STEPS)? {
            of.read_steps(&records, runs)?;
        }
        if let Some(records) = leaf.table(tables::PREDICTIONS)? {
            of.read_predictions(&records, runs)?;
        }
        Ok(of)
    }

    /// Means over the pairs of each step, and the medians of the ratio of coefficients and of the band that it should be in.
    fn read_steps(&mut self, records: &Records, runs: usize) -> Result<()> {
        let null = || lit(polars_lazy::prelude::NULL).cast(DataType::Float64);
        let (ww, ll, cosine) = (col("ww"), col("ll"), col("cosine"));
        let ratio = when(col("d_l").neq(lit(0.0))).then(col("d_w") / col("d_l")).otherwise(null());
        let norms = (ll / ww).sqrt();
        let banded = |edge| when(cosine.clone().gt(lit(0.0))).then(edge).otherwise(null());
        let rows = records
            .scan()?
            .with_columns([
                ratio.alias("ratio"),
                banded(cosine.clone() * norms.clone()).alias("band_low"),
                banded(norms / cosine.clone()).alias("band_high"),
            ])
            .group_by_stable([col("step")])
            .agg([
                col("logp_chosen").mean(),
                col("logp_rejected").mean(),
                (col("logp_chosen") - col("logp_rejected")).mean().alias("margin"),
                col("loss").mean(),
                col("cosine").mean(),
                col("ratio").median(),
                col("band_low").median(),
                col("band_high").median(),
            ])
            .with_columns([col("step").alias("at")]);
        let rows = records.collect(rows)?;
        self.steps_in_all = rows.height();
        self.ends = Ends::of(&rows).map_err(|e| records.blame(e))?;
        append(&mut self.steps, 0, &rows, rows.height().div_ceil(of_each(STEPS, runs)).max(1));
        Ok(())
    }

    fn read_predictions(&mut self, records: &Records, runs: usize) -> Result<()> {
        let mut query = records.scan()?;
        let mut wanted = vec!["step", "split", "pair", "branch", "predicted", "measured"];
        // runs of earlier versions have no parts
        let parts = records.having(&mut query, &PARTS)?;
        let is_apart = parts.len() == PARTS.len();
        wanted.extend(parts);
        let there = wanted.iter().map(|name| col(*name)).chain([col("step").alias("at")]).collect::<Vec<_>>();
        let rows = records.collect(query.select(there))?;
        self.predictions_in_all = rows.height();
        let shown = thinned(&rows, of_each(POINTS, runs)).map_err(|e| records.blame(e))?;
        append(&mut self.predictions, 0, &shown, 1);
        if !is_apart {
            return Ok(());
        }
        self.apart = Apart::of(&rows).map_err(|e| records.blame(e))?;
        let means = PARTS.into_iter().chain(["measured"]).map(|name| col(name).mean()).collect::<Vec<_>>();
        let of_batch = rows.lazy().filter(col("split").eq(lit("batch")).and(col("own").is_not_null()));
        let means = of_batch.group_by_stable([col("step"), col("branch")]).agg(means);
        let means = records.collect(means.with_columns([col("step").alias("at")]))?;
        let steps = means.column("step").and_then(|steps| steps.u64().cloned()).map_err(|e| records.blame(e))?;
        let numbers: Vec<u64> = steps.iter().flatten().collect::<BTreeSet<_>>().into_iter().collect();
        let kept: BTreeSet<u64> =
            numbers.iter().copied().step_by(numbers.len().div_ceil(of_each(STEPS, runs)).max(1)).collect();
        let kept = steps.iter().map(|step| step.is_some_and(|step| kept.contains(&step))).collect();
        append(&mut self.parts, 0, &means.filter(&kept).map_err(|e| records.blame(e))?, 1);
        Ok(())
    }
}

/// What is shown of each of some runs, where so much is shown of one.
fn of_each(one: usize, runs: usize) -> usize {
    (RUNS * one / runs.max(RUNS)).max(1)
}

/// Both responses of the pairs of steps that are shown.
fn thinned(rows: &DataFrame, most: usize) -> PolarsResult<DataFrame> {
    let (steps, pairs) = (rows.column("step")?.u64()?, rows.column("pair")?.u64()?);
    let splits = rows.column("split")?.str()?;
    let mut places = HashMap::new();
    let mut of_rows = Vec::with_capacity(rows.height());
    for ((step, pair), split) in steps.iter().zip(pairs.iter()).zip(splits.iter()) {
        let next = places.len();
        of_rows.push(*places.entry((step, pair, split)).or_insert(next));
    }
    // evenly, and with no period in common with batches, of which every n-th pair would always be the same one
    let golden = f64::midpoint(5f64.sqrt(), -1.0);
    let share = most as f64 / places.len().max(1) as f64;
    rows.filter(&of_rows.into_iter().map(|place| (place as f64 * golden).fract() < share).collect())
}

impl Ends {
    fn of(rows: &DataFrame) -> PolarsResult<Self> {
        let (steps, few) = (rows.height(), rows.height().div_ceil(10));
        let ends = |name: &str| -> PolarsResult<Option<[f64; 2]>> {
            let column = rows.column(name)?.f64()?;
            let mean = |of: std::ops::Range<usize>| {
                let values: Option<Vec<f64>> = of.map(|row| column.get(row).filter(|x| x.is_finite())).collect();
                values.filter(|values| !values.is_empty()).map(|values| values.iter().sum::<f64>() / few as f64)
            };
            Ok(mean(0..few).zip(mean(steps - few..steps)).map(|(first, last)| [first, last]))
        };
        Ok(Self { steps, few, chosen: ends("logp_chosen")?, rejected: ends("logp_rejected")? })
    }
}

impl Apart {
    fn of(rows: &DataFrame) -> PolarsResult<Self> {
        let (split, branch) = (rows.column("split")?.str()?, rows.column("branch")?.str()?);
        let measured = rows.column("measured")?.f64()?;
        let parts = PARTS.map(|name| rows.column(name).and_then(|part| part.f64().cloned()));
        let [own, others, momentum, decay] = parts;
        let parts = [own?, others?, momentum?, decay?];
        let mut of = Self::default();
        for row in 0..rows.height() {
            let values: Option<Vec<f64>> = parts.iter().map(|part| part.get(row)).collect();
            // of a step of rate zero there is nothing to tell
            let change = measured.get(row).filter(|change| *change != 0.0);
            let (Some(values), Some(change)) = (values, change) else { continue };
            if split.get(row) != Some("batch") || branch.get(row) != Some("w") {
                continue;
            }
            of.count += 1;
            for (right, parts) in of.right.iter_mut().zip([1, 2, 4]) {
                *right += usize::from(values[..parts].iter().sum::<f64>() * change > 0.0);
            }
            if change < 0.0 {
                of.fell += 1;
                of.change += change;
                of.by.iter_mut().zip(&values).for_each(|(by, value)| *by += value);
            }
        }
        Ok(of)
    }
}

#[cfg(test)]
mod tests {
    use super::{POINTS, STEPS, Training};
    use tanglescope_records::tables::training::{Prediction, Split, predictions};
    use tanglescope_records::{Table, tables};

    #[test]
    fn sums_are_of_all_changes_and_points_keep_both_responses() {
        let folder = tempfile::tempdir().unwrap();
        // four pairs a step; of those that fall, −3 is made of 1 − 0.5 − 4 + 0.5
        let (steps, pairs) = (2000, 4);
        let row = |step: usize, pair: u64| Prediction {
            step,
            split: if pair == 3 { Split::HeldOut } else { Split::Batch },
            pair,
            predicted: vec![-3.0, -2.0],
            // the first pair rises, where its own part and all parts say fall
            measured: vec![if pair == 0 { 1.0 } else { -3.0 }, 0.25],
            own: Some(vec![1.0, 2.0]),
            others: Some(vec![-0.5, 0.0]),
            momentum: vec![-4.0, 0.0],
            decay: vec![0.5, 0.0],
            own_gram: None,
        };
        let rows: Vec<Prediction> = (1..=steps).flat_map(|step| (0..pairs).map(move |pair| row(step, pair))).collect();
        let table = Table::create(folder.path(), tables::PREDICTIONS).unwrap();
        table.write(0, predictions(&rows)).unwrap();
        let of = Training::of("run".to_owned(), Vec::new(), folder.path(), 2).unwrap();

        let (n, sums) = (steps as f64, of.apart);
        assert_eq!((sums.count, sums.fell, sums.change), (3 * steps, 2 * steps, -6.0 * n));
        // sums of halves, which f64 has exactly
        assert_eq!(sums.by.map(f64::to_bits), [2.0 * n, -n, -8.0 * n, n].map(f64::to_bits));
        assert_eq!(sums.right, [steps, steps, 2 * steps]);
        let column = |name: &str| of.predictions[name].as_array().unwrap().clone();
        let branches = column("branch");
        let count = |branch: &str| branches.iter().filter(|of| *of == branch).count();
        assert!(count("w") == count("l") && count("w").abs_diff(POINTS) <= 2, "{}", count("w"));
        let held_out = column("split").iter().filter(|of| *of == "held_out").count();
        assert!((2 * count("w") / 4).abs_diff(held_out) <= 8, "a quarter of the pairs: {held_out}");
        assert_eq!(of.predictions_in_all, 2 * 4 * steps);
        let one_of_four = Training::of("run".to_owned(), Vec::new(), folder.path(), 4).unwrap();
        assert!(one_of_four.predictions["at"].as_array().unwrap().len().abs_diff(POINTS) <= 4);
        assert_eq!(one_of_four.parts["at"].as_array().unwrap().len(), STEPS);
        // however many runs there are, each has something
        let one_of_many = Training::of("run".to_owned(), Vec::new(), folder.path(), 100_000).unwrap();
        assert!(!one_of_many.parts["at"].as_array().unwrap().is_empty());
        // means of a step are of its own pairs
        let part = |name: &str| of.parts[name].as_array().unwrap().clone();
        let (branch, measured) = (part("branch"), part("measured"));
        assert_eq!(measured.len(), 2 * STEPS);
        for (branch, measured) in branch.iter().zip(&measured) {
            let want = if branch == "w" { -5.0 / 3.0 } else { 0.25 };
            assert!((measured.as_f64().unwrap() - want).abs() < 1e-14);
        }
    }
}
