//! Runs of checkpoints: folders as training programs leave them, with whole models or adapters in them.
use super::RunFolder;
use super::trainers::{self, Trainer};
use crate::error::{Error, Result};
use std::path::{Path, PathBuf};
use tanglescope_model::base_named_by;
use tanglescope_records::{Manifest, absolute};

/// A training run.
#[derive(Clone, Debug)]
pub struct Run {
    /// What it is called in results.
    pub name: String,
    /// Its folder.
    pub folder: PathBuf,
    /// By step.
    pub checkpoints: Vec<Checkpoint>,
    /// Who lays out runs so; nobody for a checkpoint by itself.
    pub trainer: Option<&'static Trainer>,
    /// What training started from, where the run's manifest.json says so.
    pub start: Option<Start>,
}

/// What a run was trained from.
#[derive(Clone, Debug)]
pub struct Start {
    /// Folder of the model.
    pub model: PathBuf,
    /// Folder of the adapter that was trained on.
    pub adapter: Option<PathBuf>,
}

/// A checkpoint of a run.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    /// Steps that it was trained for.
    pub step: usize,
    /// Its folder.
    pub folder: PathBuf,
}

/// What a checkpoint is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CheckpointKind {
    /// A Hugging Face model.
    Whole,
    /// A PEFT adapter.
    Adapter,
}

/// The name that a path gives, without the endings of data files.
pub fn name_of(option: &'static str, path: &Path) -> Result<String> {
    // `.` and `..` have a name only as what they stand for
    let file = path.file_name().map(ToOwned::to_owned);
    let file = file.or_else(|| Some(path.canonicalize().ok()?.file_name()?.to_owned()));
    let file = file.map(|file| file.to_string_lossy().into_owned()).unwrap_or_default();
    let ends = [".gz", ".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".feather"];
    let name = ends.iter().fold(file.as_str(), |name, end| name.strip_suffix(end).unwrap_or(name));
    checked(option, path.display(), name.to_owned())
}

/// A name that a folder can have.
fn checked(option: &'static str, given: impl ToString, name: String) -> Result<String> {
    if name.is_empty() || name.starts_with('.') || name.contains(['/', '\\', '=']) {
        let problem = "has no name that a folder can have; give it one: NAME=PATH, without `/`, `=` and a dot in front";
        return Err(Error::value(option, given, problem));
    }
    Ok(name)
}

/// A name and a path of text: `NAME=PATH`, or a path that gives the name itself.
///
/// # Errors
/// Where neither gives a name that a folder can have.
pub fn named(option: &'static str, text: &str) -> Result<(String, PathBuf)> {
    let path = Path::new(text);
    match text.split_once('=') {
        Some((name, rest)) if !name.contains(['/', '\\']) && !path.exists() => {
            Ok((checked(option, text, name.to_owned())?, PathBuf::from(rest)))
        }
        _ => Ok((name_of(option, path)?, path.to_owned())),
    }
}

impl Checkpoint {
    /// What it is, by the config that it has.
    pub fn kind(&self) -> Result<CheckpointKind> {
        if self.folder.join("adapter_config.json").is_file() {
            return Ok(CheckpointKind::Adapter);
        }
        if self.folder.join("config.json").is_file() {
            return Ok(CheckpointKind::Whole);
        }
        Err(Error::output(&self.folder, "has neither config.json nor adapter_config.json"))
    }
}

impl Run {
    /// What is in a folder: a run, or the checkpoint of a step.
    pub fn of(given: &RunFolder) -> Result<Self> {
        let RunFolder { name, folder, step } = given;
        let Some(step) = *step else { return Self::find(name.as_deref(), folder) };
        let name = match name {
            Some(name) => checked("runs", name, name.clone())?,
            None => name_of("runs", folder)?,
        };
        let checkpoints = vec![Checkpoint { step, folder: folder.clone() }];
        Ok(Self { name, folder: folder.clone(), checkpoints, trainer: None, start: None })
    }

    /// Finds a run's checkpoints; a checkpoint by itself is a run of one.
    pub fn find(name: Option<&str>, folder: &Path) -> Result<Self> {
        let given = name.map_or_else(|| name_of("runs", folder), |name| checked("runs", name, name.to_owned()));
        let (mut name, folder) = (given?, folder.to_owned());
        let refuse = |problem: String| Err(Error::value("runs", folder.display(), problem));
        if !folder.is_dir() {
            return refuse("no such folder".to_owned());
        }
        let (trainer, mut checkpoints) = match trainers::checkpoints(&folder)? {
            Some((trainer, checkpoints)) => (Some(trainer), checkpoints),
            None => (None, Vec::new()),
        };
        let mut manifest_at = folder.clone();
        if checkpoints.is_empty() {
            let whole = absolute(&folder);
            let own = trainers::step_of(&name);
            let alone = Checkpoint { step: own.unwrap_or(0), folder: folder.clone() };
            if alone.kind().is_err() {
                return refuse(format!(
                    "has no folders of checkpoints ({}), and is no checkpoint itself (config.json or adapter_config.json)",
                    trainers::patterns()
                ));
            }
            if let (Some(_), Some(parent)) = (own, whole.parent()) {
                parent.clone_into(&mut manifest_at);
                name = parent.file_name().map_or(name, |of| of.to_string_lossy().into_owned());
            }
            checkpoints.push(alone);
        }
        let start = start(&manifest_at);
        Ok(Self { name, folder, checkpoints, trainer, start })
    }

    /// The model under the run's adapters.
    pub fn base(&self, given: Option<&Path>) -> Option<PathBuf> {
        given
            .map(Path::to_owned)
            .or_else(|| self.start.as_ref().map(|start| start.model.clone()))
            .or_else(|| self.checkpoints.iter().find_map(|checkpoint| base_named_by(&checkpoint.folder)))
    }
}

/// What the manifest of `train` says that a run started from.
fn start(run: &Path) -> Option<Start> {
    // other programs' files may have that name too
    let Ok(Some(Manifest::Training(manifest))) = Manifest::read(run) else { return None };
    let (model, adapter) = (manifest.model, manifest.adapter);
    model.join("config.json").is_file().then_some(Start { model, adapter })
}

#[cfg(test)]
mod tests {
    use super::{Run, named};

    #[test]
    fn names_come_from_the_path_or_before_the_equals_sign() {
        let name = |text: &str| named("data", text).map(|(name, path)| (name, path.display().to_string()));
        assert_eq!(name("a/hh-mild.jsonl.gz").unwrap(), ("hh-mild".to_owned(), "a/hh-mild.jsonl.gz".to_owned()));
        assert_eq!(name("mild=a/x.jsonl").unwrap(), ("mild".to_owned(), "a/x.jsonl".to_owned()));
        assert_eq!(name("runs/dpo/").unwrap().0, "dpo");
        assert_eq!(name("a/long.parquet").unwrap().0, "long");
        for bad in ["=x", ".hidden=x", "a/b=c.jsonl"] {
            assert!(name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn checkpoints_are_ordered_by_step_and_one_alone_is_a_run() {
        let folder = tempfile::tempdir().unwrap();
        let run = folder.path().join("dpo");
        for step in [100, 20, 3] {
            let at = run.join(format!("checkpoint-{step}"));
            std::fs::create_dir_all(&at).unwrap();
            std::fs::write(at.join("config.json"), "{}").unwrap();
        }
        std::fs::create_dir(run.join("checkpoint-last")).unwrap();
        let found = Run::find(None, &run).unwrap();
        assert_eq!(found.checkpoints.iter().map(|c| c.step).collect::<Vec<_>>(), [3, 20, 100]);
        let alone = Run::find(None, &run.join("checkpoint-20")).unwrap();
        assert_eq!((alone.name.as_str(), alone.checkpoints.len(), alone.checkpoints[0].step), ("dpo", 1, 20));
        assert!(Run::find(None, &run.join("checkpoint-last")).unwrap_err().to_string().contains("config.json"));
    }
}
