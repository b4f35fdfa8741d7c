//! manifest.json of a sweep.
use super::SweepOptions;
use super::jobs::Prepared;
use crate::error::{Error, Result};
use crate::model::Model;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use tanglescope_checkpoint::file_hash;
use tanglescope_data::Pair;
use tanglescope_records::manifest::{self, SampledRow, SweepManifest, SweptData, SweptRun};
use tanglescope_records::{absolute, wait_for_lock};

/// Writes the manifest of a sweep, with what an earlier one into the folder has.
pub fn write(options: &SweepOptions, template: &Model, runs: &[Prepared<'_>]) -> Result<()> {
    let out = &options.out;
    // shards write it one after the other
    let _turn = wait_for_lock(&out.join(".lock-manifest"))?;
    let mut data = BTreeMap::new();
    for (name, of) in runs.iter().flat_map(|run| &run.texts.data) {
        let row = |pair: Pair| SampledRow { row: pair.row, id: pair.id };
        let rows = || of.pairs.iter().map(|pair| pair.map(row)).collect::<tanglescope_data::Result<_>>();
        let sample = options.pairs.map(|_| rows()).transpose()?;
        let hash = |file: &PathBuf| file_hash(file).map_err(tanglescope_model::Error::from);
        let files = of.files.iter().map(hash).collect::<Result<Vec<_>, _>>()?;
        data.insert(name.clone(), SweptData { path: absolute(&of.path), file: files.join("+"), sample });
    }
    let order = runs.iter().map(|of| of.run.name.clone()).collect();
    let runs = runs.iter().map(|of| {
        let steps = of.run.checkpoints.iter().map(|checkpoint| checkpoint.step).collect();
        (of.run.name.clone(), SweptRun { folder: absolute(&of.run.folder), steps })
    });
    let mut now = SweepManifest {
        tanglescope: env!("CARGO_PKG_VERSION").to_owned(),
        kind: "sweep".to_owned(),
        command: options.command.clone(),
        scope: template.scope.to_string(),
        dtype: template.number_type().to_owned(),
        seed: options.measured.seed,
        pairs: options.pairs,
        order,
        runs: runs.collect(),
        data,
    };
    if let Some(there) = manifest::read::<SweepManifest>(out)? {
        if let Some(difference) = there.difference(&now) {
            let text = difference.to_string().replacen("a run", "a sweep", 1);
            return Err(Error::value("out", out.display(), text));
        }
        // those of an earlier call stay in front
        let new = std::mem::replace(&mut now.order, there.order);
        for name in new {
            if !now.order.contains(&name) {
                now.order.push(name);
            }
        }
        for (name, run) in there.runs {
            // revisions of a repository come one at a time
            let of = now.runs.entry(name).or_insert_with(|| run.clone());
            let steps: BTreeSet<usize> = of.steps.iter().copied().chain(run.steps).collect();
            of.steps = steps.into_iter().collect();
        }
        for (name, data) in there.data {
            now.data.entry(name).or_insert(data);
        }
    }
    Ok(manifest::write(out, &now)?)
}
