//! What training runs recorded of their own steps.
use crate::columns::append;
use crate::error::Result;
use polars_core::prelude::DataType;
use polars_lazy::prelude::{col, lit, when};
use serde::Serialize;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tanglescope_records::{Leaf, Manifest, Records, TrainingManifest, folders_with, tables};

/// Points of predicted against measured changes that are shown of a run.
const POINTS: usize = 4000;

/// A run's own records.
#[derive(Clone, Debug, Serialize)]
pub struct Training {
    /// The run.
    pub run: String,
    /// The objective that it was trained on.
    pub objective: String,
    /// What is needed to train it again.
    pub manifest: Option<TrainingManifest>,
    /// Step by step, as lists by column: means over the step's pairs.
    pub steps: Map<String, Value>,
    /// Changes of log-probabilities that were predicted, and that were measured, as lists by column.
    pub predictions: Map<String, Value>,
}

/// The runs in some folders, and those that sweeps there were of, under the names that the sweeps gave them.
pub(crate) fn gather(folders: &[PathBuf]) -> Result<Vec<Training>> {
    let whole = |folder: &Path| folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
    let mut runs: BTreeMap<PathBuf, String> = BTreeMap::new();
    for folder in folders_with(folders, tables::STEPS)?.iter().map(|folder| whole(folder)) {
        let name = folder.file_name().map_or(String::new(), |name| name.to_string_lossy().into_owned());
        runs.insert(folder, name);
    }
    for folder in folders_with(folders, "manifest.json")? {
        // other programs' files may have that name too
        let Ok(Some(Manifest::Sweep(sweep))) = Manifest::read(&folder) else { continue };
        let swept = sweep.runs.into_iter().filter(|(_, run)| run.folder.join(tables::STEPS).is_dir());
        runs.extend(swept.map(|(name, run)| (whole(&run.folder), name)));
    }
    let mut runs: Vec<(String, PathBuf)> = runs.into_iter().map(|(folder, name)| (name, folder)).collect();
    runs.sort();
    runs.iter().map(|(name, folder)| Training::of(name, folder)).collect()
}

impl Training {
    /// Whether a record's run is this one: a path may stand in front of a run's name, to tell it from another one.
    pub(crate) fn is(&self, run: &str) -> bool {
        run == self.run || run.ends_with(&format!("/{}", self.run))
    }

    /// Pairs of a step.
    pub(crate) fn batch_size(&self) -> Option<u64> {
        Some(self.manifest.as_ref()?.identity.settings.pairs_per_step() as u64)
    }

    fn of(run: &str, folder: &Path) -> Result<Self> {
        let leaf = Leaf { run: run.to_owned(), step: None, dataset: String::new(), folder: folder.to_owned() };
        let manifest = match Manifest::read(folder)? {
            Some(Manifest::Training(manifest)) => Some(*manifest),
            _ => None,
        };
        let objective = manifest.as_ref().map_or_else(String::new, |manifest| manifest.identity.objective.clone());
        let steps = leaf.table(tables::STEPS)?.map(|records| steps(&records)).transpose()?;
        let predictions = leaf.table(tables::PREDICTIONS)?.map(|records| predictions(&records)).transpose()?;
        let (steps, predictions) = (steps.unwrap_or_default(), predictions.unwrap_or_default());
        Ok(Self { run: run.to_owned(), objective, manifest, steps, predictions })
    }
}

/// Means over the pairs of each step, and the medians of the ratio of coefficients and of the band that it should be in.
fn steps(records: &Records) -> Result<Map<String, Value>> {
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
            col("loss").mean(),
            col("cosine").mean(),
            col("ratio").median(),
            col("band_low").median(),
            col("band_high").median(),
        ])
        .with_columns([col("step").alias("at")]);
    let mut whole = Map::new();
    append(&mut whole, 0, &records.collect(rows)?, 1);
    Ok(whole)
}

fn predictions(records: &Records) -> Result<Map<String, Value>> {
    let columns = ["step", "split", "branch", "predicted", "measured", "own", "others", "momentum", "decay"];
    let mut query = records.scan()?;
    let schema = query.collect_schema().map_err(|e| records.blame(e))?;
    // runs of earlier versions have no parts
    let there: Vec<_> = columns.into_iter().filter(|name| schema.get(name).is_some()).map(col).collect();
    let rows = records.collect(query.select(there).with_columns([col("step").alias("at")]))?;
    let every = rows.height().div_ceil(POINTS).max(1);
    let mut whole = Map::new();
    append(&mut whole, 0, &rows, every);
    Ok(whole)
}
