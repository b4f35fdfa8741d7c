//! What a path is, for those who gave it in the wrong place.
use crate::error::{Error, Result};
use crate::sweep::trainers;
use std::io::ErrorKind;
use std::path::Path;
use tanglescope_records::{Manifest, tables};

/// What options ask a path for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Of a model.
    Model,
    /// Of an adapter.
    Adapter,
    /// Of preference data.
    Data,
    /// Of records.
    Records,
}

/// Ours and other programs'.
const TRAINING_RUN: &str = "a training run: sweep measures its checkpoints, and each of them is a model or an adapter";

/// What a path is, and where it goes; `None` where nothing tells.
pub fn what_is(path: &Path) -> Option<(Option<Kind>, &'static str)> {
    let has = |name: &str| path.join(name).exists();
    let begins = |start: &str| {
        let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
        entries.into_iter().any(|entry| entry.file_name().to_string_lossy().starts_with(start))
    };
    if path.is_file() {
        let name = path.file_name()?.to_string_lossy().to_lowercase();
        let ends = |ends: &[&str]| ends.iter().any(|end| name.ends_with(end));
        return if ends(&[".safetensors", ".gguf", ".bin", ".pt", ".pth"]) {
            Some((None, "a file of weights; its folder is asked for"))
        } else if ends(&[".jsonl", ".json", ".csv", ".parquet", ".arrow", ".jsonl.gz"]) {
            Some((Some(Kind::Data), "a file of data, for option `data`"))
        } else {
            Some((None, "a file, and no folder"))
        };
    }
    match Manifest::read(path) {
        Ok(Some(Manifest::Training(_))) => {
            return Some((None, TRAINING_RUN));
        }
        Ok(Some(Manifest::Sweep(_))) => {
            return Some((Some(Kind::Records), "a folder of sweep, for summarize and report"));
        }
        Ok(Some(Manifest::Analysis(_))) if has(tables::PAIRS) => {
            return Some((Some(Kind::Records), "a folder of analyze, for summarize and report"));
        }
        Ok(Some(Manifest::Analysis(_))) => {
            return Some((
                None,
                "a folder of tokens alone, for report beside a folder of analyze; analyze into the same folder adds it",
            ));
        }
        _ => {}
    }
    if has("adapter_config.json") {
        return Some((Some(Kind::Adapter), "a PEFT adapter, for option `adapter`; its base is option `model`"));
    }
    let is_gguf = |entry: std::fs::DirEntry| entry.path().extension().is_some_and(|end| end == "gguf");
    if has("config.json") || std::fs::read_dir(path).into_iter().flatten().flatten().any(is_gguf) {
        return Some((Some(Kind::Model), "a model, for option `model`"));
    }
    if trainers::checkpoints(path).is_ok_and(|found| found.is_some()) {
        return Some((None, TRAINING_RUN));
    }
    if has("dataset_info.json") || has("dataset_dict.json") || has("state.json") {
        return Some((Some(Kind::Data), "a data set, for option `data`"));
    }
    if begins("model.safetensors") || begins("pytorch_model") {
        return Some((None, "a folder of weights without their config.json; copy it there"));
    }
    None
}

/// Refuses a path that is something else than an option asks for, and says what it is and where it goes.
pub fn expect(kind: Kind, option: &'static str, path: &Path) -> Result<()> {
    match path.metadata() {
        Err(e) if e.kind() == ErrorKind::NotFound => {
            let problem = if kind == Kind::Data { "no such file or folder" } else { "no such folder" };
            return Err(Error::value(option, path.display(), problem));
        }
        Err(e) => return Err(Error::value(option, path.display(), e)),
        Ok(of) if !of.is_file() && !of.is_dir() => {
            return Err(Error::value(option, path.display(), "is a device or a pipe, and no file or folder"));
        }
        Ok(_) => {}
    }
    match what_is(path) {
        Some((Some(found), _)) if found == kind => Ok(()),
        // data is found by the names of files, and may lie beside others
        Some((None, _)) | None if kind == Kind::Data => Ok(()),
        Some((_, what)) => Err(Error::value(option, path.display(), format!("is {what}"))),
        None => Ok(()),
    }
}
