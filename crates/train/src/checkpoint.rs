//! Checkpoints: folders that transformers and PEFT load, with what a run needs to go on beside the weights.
//!
//! `RUN/checkpoint-N` holds the adapter or the model, `optimizer.safetensors`, `trainer_state.json`, and `masks.safetensors`
//! under objective `sparse`. A checkpoint is written into a hidden folder, flushed to the disk, and renamed, so that what has
//! its name is whole.
use crate::error::{Error, Result};
use crate::masks::Masks;
use crate::trainer::Trainer;
use serde_json::{Map, Value, json};
use std::fs::File;
use std::path::{Path, PathBuf};
use tanglescope_kernels::{DType, Flex, FlexDevice, FloatTensor, Kernels, Memory, TensorData};
use tanglescope_model::{AdapterSource, read_tensors, write_tensors};

const STATE: &str = "trainer_state.json";

/// Where a run's checkpoints come from and go to.
#[derive(Clone, Debug)]
pub struct CheckpointPaths<'a> {
    /// The run's folder.
    pub run: &'a Path,
    /// The folder that the model was loaded from.
    pub base: &'a Path,
    /// Its adapter.
    pub source: &'a AdapterSource,
}

/// Steps of the checkpoints in a run's folder, in order.
///
/// # Errors
/// Where the folder cannot be read.
pub fn steps(run: &Path) -> Result<Vec<usize>> {
    let entries = match std::fs::read_dir(run) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(Error::checkpoint(run, e)),
    };
    let step = |entry: std::fs::DirEntry| entry.file_name().to_str()?.strip_prefix("checkpoint-")?.parse().ok();
    let mut steps: Vec<usize> = entries.filter_map(|entry| step(entry.ok()?)).collect();
    steps.sort_unstable();
    Ok(steps)
}

/// The step that a checkpoint's folder is of.
///
/// # Errors
/// Where its trainer_state.json cannot be read, or says none.
pub fn step_of(folder: &Path) -> Result<usize> {
    let file = folder.join(STATE);
    let text = std::fs::read(&file).map_err(|e| Error::checkpoint(&file, e))?;
    let state: Value =
        serde_json::from_slice(&text).map_err(|e| Error::checkpoint(&file, format!("not a trainer's state: {e}")))?;
    let step = state.get("global_step").and_then(Value::as_u64).and_then(|step| usize::try_from(step).ok());
    step.ok_or_else(|| Error::checkpoint(&file, "no `global_step`"))
}

/// Takes away what a run left that was stopped while it saved.
///
/// # Errors
/// Where it cannot be removed.
pub fn tidy(run: &Path) -> Result<()> {
    for entry in std::fs::read_dir(run).map_err(|e| Error::checkpoint(run, e))?.flatten() {
        if entry.file_name().to_string_lossy().starts_with(".checkpoint-") {
            std::fs::remove_dir_all(entry.path()).map_err(|e| Error::checkpoint(&entry.path(), e))?;
        }
    }
    Ok(())
}

/// The folder of a checkpoint.
#[must_use]
pub fn folder(run: &Path, step: usize) -> PathBuf {
    run.join(format!("checkpoint-{step}"))
}

/// Writes the state of a run, whole or not at all; `history` is the log so far.
///
/// # Errors
/// Where a file cannot be written; what was written of this checkpoint is taken away, and earlier ones are untouched.
pub fn save<B: Kernels>(
    trainer: &Trainer<'_, B>,
    paths: &CheckpointPaths<'_>,
    history: &[Value],
    epochs: f64,
) -> Result<()> {
    let CheckpointPaths { run, base, source } = paths;
    let path = folder(run, trainer.steps);
    let refuse = |problem: std::io::Error| Error::checkpoint(&path, format!("cannot be written: {problem}"));
    let unfinished = tempfile::Builder::new().prefix(".checkpoint-").tempdir_in(run).map_err(refuse)?;
    let at = unfinished.path();
    trainer.model.save(base, source, at)?;
    write_tensors::<B>(&at.join("optimizer.safetensors"), trainer.optimizer.tensors())?;
    if let Some(masks) = &trainer.masks {
        write_tensors::<Flex>(&at.join("masks.safetensors"), mask_tensors(masks))?;
    }
    let state = json!({
        "best_metric": null,
        "best_model_checkpoint": null,
        "epoch": trainer.epoch(),
        "global_step": trainer.steps,
        "is_hyper_param_search": false,
        "is_local_process_zero": true,
        "is_world_process_zero": true,
        "log_history": history,
        "max_steps": trainer.max_steps(),
        "num_train_epochs": epochs,
        "calibration": trainer.calibration,
    });
    let text = serde_json::to_string_pretty(&state).map_err(|e| Error::checkpoint(&path, e))?;
    std::fs::write(at.join(STATE), text + "\n").map_err(refuse)?;
    for entry in std::fs::read_dir(at).map_err(refuse)? {
        File::open(entry.map_err(refuse)?.path()).and_then(|file| file.sync_all()).map_err(refuse)?;
    }
    // folders made by others for a while are readable by their owner alone
    #[cfg(unix)]
    std::fs::set_permissions(at, std::os::unix::fs::PermissionsExt::from_mode(0o755)).map_err(refuse)?;
    File::open(at).and_then(|folder| folder.sync_all()).map_err(refuse)?;
    if path.exists() {
        std::fs::remove_dir_all(&path).map_err(refuse)?;
    }
    std::fs::rename(at, &path).map_err(refuse)?;
    File::open(run).and_then(|folder| folder.sync_all()).map_err(refuse)
}

/// Brings a run to the state of its checkpoint; returns the log up to it.
///
/// # Errors
/// Where a file is missing or damaged.
pub fn restore<B: Kernels>(
    trainer: &mut Trainer<'_, B>,
    paths: &CheckpointPaths<'_>,
    step: usize,
) -> Result<Vec<Value>> {
    let path = folder(paths.run, step);
    trainer.model.restore(paths.source, &path)?;
    let device = trainer.model.device.clone();
    // before the first step there are no moments
    if step > 0 {
        let moments = read_tensors::<B>(&path, "optimizer", trainer.moments_like(), &device)?;
        trainer.optimizer.restore(step, moments);
    }
    if let Some(masks) = &mut trainer.masks {
        let mut read = read_tensors::<Flex>(&path, "masks", mask_tensors(masks), &FlexDevice)?;
        for (name, branch) in MASKS {
            let mut values = read.remove(name).map(|x| Flex::download(&x)).unwrap_or_default().into_iter();
            masks.0.iter_mut().for_each(|of| of[branch].iter_mut().for_each(|m| *m = values.next().unwrap_or(1.0)));
        }
    }
    let file = path.join(STATE);
    let text = std::fs::read(&file).map_err(|e| Error::checkpoint(&file, e))?;
    let mut state: Map<String, Value> =
        serde_json::from_slice(&text).map_err(|e| Error::checkpoint(&file, format!("not a trainer's state: {e}")))?;
    if state.get("global_step").and_then(Value::as_u64) != Some(step as u64) {
        return Err(Error::checkpoint(&file, format!("`global_step` is not {step}, as the folder's name says")));
    }
    trainer.calibration = state.get("calibration").and_then(Value::as_f64);
    trainer.steps = step;
    match state.remove("log_history") {
        Some(Value::Array(history)) => Ok(history),
        _ => Err(Error::checkpoint(&file, "no `log_history`")),
    }
}

/// Names of the mask tensors, and their branches.
const MASKS: [(&str, usize); 2] = [("chosen", 0), ("rejected", 1)];

/// The masks of all examples end to end, one tensor a branch.
fn mask_tensors(masks: &Masks) -> Vec<(String, FloatTensor<Flex>)> {
    let of = |(name, branch): (&str, usize)| {
        let values: Vec<f64> = masks.0.iter().flat_map(|of| of[branch].iter().copied()).collect();
        let shape = [values.len()];
        (name.to_owned(), Flex::upload(TensorData::new(values, shape).convert_dtype(DType::F64), &FlexDevice))
    };
    MASKS.into_iter().map(of).collect()
}
