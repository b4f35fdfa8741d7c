//! What a sweep has to do: checkpoints, data sets, and what they share.
use super::SweepOptions;
use super::runs::{Checkpoint, CheckpointKind, Run};
use crate::data;
use crate::error::{Error, Result};
use crate::listener::Listener;
use crate::model::Model;
use crate::options::{ObjectiveChoice, ReferenceModel};
use crate::reference::Objectives;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tanglescope_data::{Dataset, Reading, TextTokens};
use tanglescope_model::{AdapterSource, Outline};

/// A run with what its checkpoints share.
pub struct Prepared<'a> {
    /// Its checkpoints.
    pub run: &'a Run,
    /// What they are.
    pub kind: CheckpointKind,
    /// Folder of the model under the adapters.
    pub base: PathBuf,
    /// What is measured.
    pub objectives: Objectives,
    /// The data.
    pub texts: Arc<Texts>,
}

/// Data sets as a model's tokenizer reads them.
pub struct Texts {
    /// By name.
    pub data: Vec<(String, Dataset)>,
    /// The tokenizer, where the model has one.
    pub tokenizer: Option<TextTokens>,
}

/// A checkpoint on a data set.
pub struct Job<'a> {
    /// The run.
    pub run: &'a Prepared<'a>,
    /// The checkpoint.
    pub checkpoint: &'a Checkpoint,
    /// Name of the data set.
    pub name: &'a str,
    /// The data set.
    pub data: &'a Dataset,
    /// Folder of the results.
    pub out: PathBuf,
}

/// Finds out what the runs are, and reads the data for each.
pub fn prepare<'a>(
    options: &SweepOptions,
    runs: &'a [Run],
    template: &Model,
    reading: &Reading,
    listener: &dyn Listener,
) -> Result<Vec<Prepared<'a>>> {
    let mut known: HashMap<(PathBuf, String), Arc<Texts>> = HashMap::new();
    let mut prepared = Vec::new();
    for run in runs {
        let refuse = |problem: &str| Error::value("runs", run.folder.display(), problem);
        let kind = run.checkpoints.iter().find_map(|checkpoint| checkpoint.kind().ok());
        let kind = kind.ok_or_else(|| refuse("no checkpoint has a config.json or an adapter_config.json"))?;
        let base = match kind {
            CheckpointKind::Adapter => run.base(options.model.as_deref()).ok_or_else(|| {
                refuse("its checkpoints are adapters, and say of no model in a local folder that it is theirs; add option `model`")
            })?,
            CheckpointKind::Whole => tokenizer_of(options, run).ok_or_else(|| refuse("no checkpoint can be read"))?,
        };
        // a checkpoint's own tokenizer and chat template come first, and are the same in all of a run
        let folders = match kind {
            CheckpointKind::Adapter => vec![own(run), base.clone()],
            CheckpointKind::Whole => vec![base.clone()],
        };
        let made_by = data::tokenizer_hash(&folders)?;
        for checkpoint in &run.checkpoints {
            if data::tokenizer_hash(&[checkpoint.folder.clone(), base.clone()])? != made_by {
                let problem =
                    "its tokenizer or chat template is not that of the run's other checkpoints; sweep it by itself";
                return Err(Error::value("runs", checkpoint.folder.display(), problem));
            }
        }
        let texts = match known.get(&(base.clone(), made_by.clone())) {
            Some(texts) => Arc::clone(texts),
            None => {
                let description = Outline::read(&base, &AdapterSource::None)?.description;
                let folders: Vec<&Path> = folders.iter().map(PathBuf::as_path).collect();
                let of = |(name, path): &(String, PathBuf)| {
                    Ok((name.clone(), data::read(path, &folders, reading, &description, listener)?))
                };
                let data = options.data.iter().map(of).collect::<Result<_>>()?;
                let texts = Arc::new(Texts { data, tokenizer: data::tokenizer(&folders)? });
                known.insert((base.clone(), made_by), Arc::clone(&texts));
                texts
            }
        };
        let adapter = match kind {
            CheckpointKind::Adapter => AdapterSource::Saved(own(run)),
            // a fresh adapter on a checkpoint says nothing of where training started: the checkpoint is not its own reference
            CheckpointKind::Whole => AdapterSource::None,
        };
        let reference = reference(options, run, &kind);
        let policy = Model { folder: base.clone(), adapter, ..template.clone() };
        let objectives = Objectives::new(&options.objectives, reference.as_ref(), &policy, listener)?;
        // a scope that selects nothing is no checkpoint's fault
        let outlines = run.checkpoints.iter().filter_map(|checkpoint| {
            let (folder, adapter) = match kind {
                CheckpointKind::Adapter => (&base, AdapterSource::Saved(checkpoint.folder.clone())),
                CheckpointKind::Whole => (&checkpoint.folder, template.adapter.clone()),
            };
            Outline::read(folder, &adapter).ok()
        });
        outlines.take(1).try_for_each(|outline| outline.in_scope(&template.scope).map(|_| ()))?;
        prepared.push(Prepared { run, kind, base, objectives, texts });
    }
    Ok(prepared)
}

/// The last checkpoint of a run of adapters that is one.
fn own(run: &Run) -> PathBuf {
    let mut adapters =
        run.checkpoints.iter().filter(|checkpoint| checkpoint.kind().is_ok_and(|kind| kind == CheckpointKind::Adapter));
    adapters.next_back().map_or(run.folder.clone(), |checkpoint| checkpoint.folder.clone())
}

/// The folder whose tokenizer reads the data for a run of whole models.
fn tokenizer_of(options: &SweepOptions, run: &Run) -> Option<PathBuf> {
    let folders = || {
        let start = run.start.as_ref().map(|start| &start.model);
        run.checkpoints.iter().map(|c| &c.folder).chain(&options.model).chain(start)
    };
    let readable = |folder: &&PathBuf| Outline::read(folder, &AdapterSource::None).is_ok();
    let with_tokenizer = folders().filter(|folder| folder.join("tokenizer.json").is_file()).find(readable);
    with_tokenizer.or_else(|| folders().find(readable)).cloned()
}

/// The reference of a run.
fn reference(options: &SweepOptions, run: &Run, kind: &CheckpointKind) -> Option<ReferenceModel> {
    let start = run.start.as_ref();
    // a run of whole models says nothing of it where another program made it
    let trained_from = options.model.as_ref().or(start.map(|start| &start.model));
    let needed = |choice: &ObjectiveChoice| match choice {
        ObjectiveChoice::All => true,
        ObjectiveChoice::One(objective) => objective.uses_reference(),
    };
    match (&options.reference, kind) {
        (Some(ReferenceModel::Start), CheckpointKind::Adapter) => {
            let adapter = start.and_then(|start| start.adapter.clone());
            Some(adapter.map_or(ReferenceModel::Base, ReferenceModel::Folder))
        }
        (Some(ReferenceModel::Start), CheckpointKind::Whole) => {
            let first = trained_from.or(run.checkpoints.first().map(|c| &c.folder));
            first.cloned().map(ReferenceModel::Folder)
        }
        (None, kind) if options.objectives.iter().any(needed) => match kind {
            CheckpointKind::Whole => trained_from.cloned().map(ReferenceModel::Folder),
            CheckpointKind::Adapter => start.and_then(|start| start.adapter.clone()).map(ReferenceModel::Folder),
        },
        (given, _) => given.clone(),
    }
}

/// Everything to do, by run, step and data set.
pub fn jobs<'a>(runs: &'a [Prepared<'a>], out: &Path) -> Vec<Job<'a>> {
    let of = |run: &'a Prepared<'a>| {
        run.run.checkpoints.iter().flat_map(move |checkpoint| {
            run.texts.data.iter().map(move |(name, data)| Job {
                run,
                checkpoint,
                name,
                data,
                out: out
                    .join(format!("run={}", run.run.name))
                    .join(format!("step={}", checkpoint.step))
                    .join(format!("dataset={name}")),
            })
        })
    };
    runs.iter().flat_map(of).collect()
}

impl Job<'_> {
    /// The checkpoint as a model, measured as `template` says.
    pub fn model(&self, template: &Model) -> Model {
        let folder = self.checkpoint.folder.clone();
        match self.run.kind {
            CheckpointKind::Adapter => {
                let adapter = AdapterSource::Saved(folder);
                Model { folder: self.run.base.clone(), adapter, ..template.clone() }
            }
            CheckpointKind::Whole => Model { folder, ..template.clone() },
        }
    }
}
