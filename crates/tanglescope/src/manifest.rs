//! manifest.json: what a results folder was made from, and by what plan, so that a run can go on.
use crate::error::{Error, Result};
use crate::output;
use crate::rates::StoredRates;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tanglescope_data::Skipped;

/// What decides the rows of a results folder. Folders whose identity differs do not mix.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// SHA-256 of the base model's weights and config.
    pub model: String,
    /// SHA-256 of a saved adapter, or the settings of a fresh one.
    pub adapter: Option<String>,
    /// SHA-256 of the reference model's weights and config, `base` under an adapter, or `self`.
    #[serde(default)]
    pub reference: Option<String>,
    /// SHA-256 of the token ids of all rows.
    pub data: String,
    /// The scope as given.
    pub scope: String,
    /// Number type.
    pub dtype: String,
    /// Whether gradients over contrast tokens are measured too.
    #[serde(default)]
    pub contrast: bool,
    /// Whether every pair of a better and a worse response of a group is a pair.
    #[serde(default)]
    pub all_pairs: bool,
    /// SHA-256 of the probes.
    #[serde(default)]
    pub probes: Option<String>,
}

/// How rows are cut into parts and batches.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// Consecutive usable rows of a part.
    pub rows_per_part: usize,
    /// Forward rows of a batch.
    pub forward_rows_per_batch: usize,
    /// Backward rows of a pass over single tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backward_rows_per_pass: Option<usize>,
    /// Rates of the device that decided between the Gram reductions of each map.
    pub rates: StoredRates,
}

/// The whole file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of the program.
    pub tanglescope: String,
    /// The command line.
    pub command: Vec<String>,
    /// Folder of the model.
    pub model: PathBuf,
    /// Folder of the adapter.
    pub adapter: Option<PathBuf>,
    /// The data file.
    pub data: PathBuf,
    /// What came from the hub: repository and commit of the model, the adapter and the data.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub hub: BTreeMap<String, String>,
    /// Usable rows.
    pub pairs: usize,
    /// Rows that were left out, and why.
    pub skipped: Vec<Skipped>,
    /// Devices that rows were computed on.
    pub devices: Vec<String>,
    /// Seed of a fresh adapter.
    pub seed: Option<u64>,
    /// What decides the rows.
    pub identity: Identity,
    /// How they are cut.
    pub plan: Plan,
    /// The objectives of objectives.parquet, as they were given.
    #[serde(default)]
    pub objectives: Vec<String>,
}

/// The name of the file.
const NAME: &str = "manifest.json";

impl Manifest {
    /// The manifest of a folder, if it has one.
    pub fn read(folder: &Path) -> Result<Option<Self>> {
        read(folder)
    }

    /// Writes it whole.
    pub fn write(&self, folder: &Path) -> Result<()> {
        write_whole(folder, self)
    }

    /// Refuses to go on with a run of another identity.
    pub fn same_run(&self, identity: &Identity, folder: &Path) -> Result<()> {
        let (old, new) = (&self.identity, identity);
        let none = "none".to_owned();
        let (all, best) = ("all pairs".to_owned(), "best and worst".to_owned());
        let choice = |of: &Identity| if of.all_pairs { &all } else { &best };
        let pairs = [
            ("model", &old.model, &new.model),
            ("adapter", old.adapter.as_ref().unwrap_or(&none), new.adapter.as_ref().unwrap_or(&none)),
            ("reference", old.reference.as_ref().unwrap_or(&none), new.reference.as_ref().unwrap_or(&none)),
            ("data or tokenisation", &old.data, &new.data),
            ("scope", &old.scope, &new.scope),
            ("dtype", &old.dtype, &new.dtype),
            ("choice of pairs of a group", choice(old), choice(new)),
            ("probe file", old.probes.as_ref().unwrap_or(&none), new.probes.as_ref().unwrap_or(&none)),
        ];
        match pairs.iter().find(|(_, old, new)| old != new) {
            None if new.contrast && !old.contrast => Err(Error::option(
                format!("--out {}", folder.display()),
                "holds a run that did not measure contrast tokens, which an objective needs; choose another folder",
            )),
            None => Ok(()),
            Some((what, old, new)) => Err(Error::option(
                format!("--out {}", folder.display()),
                format!(
                    "holds a run with another {what} ({} there, {} now); choose another folder",
                    short(old),
                    short(new)
                ),
            )),
        }
    }
}

/// The manifest of a folder, if it has one.
pub fn read<T: DeserializeOwned>(folder: &Path) -> Result<Option<T>> {
    let path = folder.join(NAME);
    match std::fs::read(&path) {
        Ok(text) => serde_json::from_slice(&text).map(Some).map_err(|e| {
            Error::output(&path, format!("not a manifest of this kind of run ({e}); choose another --out"))
        }),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::output(&path, e)),
    }
}

/// Writes a folder's manifest whole or not at all.
pub fn write_whole(folder: &Path, manifest: &impl Serialize) -> Result<()> {
    let path = folder.join(NAME);
    let mut text = serde_json::to_vec_pretty(manifest).map_err(|e| Error::output(&path, e))?;
    text.push(b'\n');
    output::write_whole(&path, &text)
}

/// A path that stands for the same from wherever it is read.
pub fn whole(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

/// The beginning of a hash, or the whole of anything shorter.
pub fn short(text: &str) -> &str {
    if text.len() > 40 { text.get(..12).unwrap_or(text) } else { text }
}
