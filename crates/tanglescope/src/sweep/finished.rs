//! Which jobs of a sweep are done.
use super::jobs::Job;
use crate::error::Result;
use crate::measure::{done, has_followed, identity, same_run};
use crate::metric::{self, MetricChoice};
use crate::model::Model;
use crate::shard::Shard;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use tanglescope_model::{AdapterSource, adapter_hash, content_hash};
use tanglescope_records::manifest::{self, AnalysisIdentity, AnalysisManifest};

/// Content hashes of folders that were looked at.
#[derive(Default)]
pub struct Hashes(HashMap<PathBuf, String>);

impl Hashes {
    fn model(&mut self, folder: &Path) -> Result<String> {
        if let Some(hash) = self.0.get(folder) {
            return Ok(hash.clone());
        }
        let hash = content_hash(folder)?;
        self.0.insert(folder.to_owned(), hash.clone());
        Ok(hash)
    }

    /// What the manifest of a job says, found without loading its model.
    fn identity(&mut self, job: &Job<'_>, asked: &Model, metric: MetricChoice) -> Result<AnalysisIdentity> {
        let adapter = match &asked.adapter {
            AdapterSource::Saved(folder) => Some(adapter_hash(folder)?),
            _ => None,
        };
        let objectives = &job.run.objectives;
        let reference = objectives.reference.identity(|folder| self.model(folder))?;
        let model = self.model(&asked.folder)?;
        let hashes = [Some(&model), adapter.as_ref()];
        let identity = identity(asked, job.data, hashes, reference, objectives.beside())?;
        Ok(AnalysisIdentity { metric: metric::identity((metric, None), asked)?, ..identity })
    }
}

/// Whether every part that a job makes is there, whatever it was made of.
pub fn has_everything(job: &Job<'_>, mean: bool) -> Result<bool> {
    let all = done(&job.out, job.data, Shard::WHOLE)?.pairs == job.data.pairs.len();
    Ok(all && has_followed(&job.out, job.data, &job.run.objectives.objectives, mean))
}

/// Whether a job was finished as what it is now. Only what has all its parts is looked at by content, which takes reading a
/// whole model; a job of which something is missing is compared when its model is loaded.
pub fn finished(
    job: &Job<'_>,
    asked: &Model,
    (metric, mean): (MetricChoice, bool),
    hashes: &mut Hashes,
) -> Result<bool> {
    let Some(manifest) = manifest::read::<AnalysisManifest>(&job.out)? else { return Ok(false) };
    if !has_everything(job, mean)? {
        return Ok(false);
    }
    // read errors are reported when the job's model is loaded
    let Ok(identity) = hashes.identity(job, asked, metric) else { return Ok(false) };
    same_run(&manifest, &identity, &job.out)?;
    let objectives = job.run.objectives.names();
    Ok(objectives.is_empty() || manifest.objectives == objectives)
}
