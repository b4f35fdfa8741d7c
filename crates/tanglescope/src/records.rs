//! The tables of a folder as data frames.
use crate::error::{Error, Result};
use polars_core::prelude::DataFrame;
use std::path::{Path, PathBuf};
use tanglescope_analytics::Summary;
use tanglescope_records::{Leaf, Table, tables};

/// Makes a folder that results go into, and those above it.
pub(crate) fn make_folder(folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder).map_err(|e| Error::output(folder, format!("cannot be made: {e}")))
}

/// A folder of records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Folder {
    /// Where it is.
    pub path: PathBuf,
}

impl Folder {
    /// The records of a folder.
    #[must_use]
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned() }
    }

    /// A table by its name, such as `objectives.parquet`; `None` where it was not written.
    ///
    /// # Errors
    /// Where a part is damaged.
    pub fn table(&self, name: &str) -> Result<Option<DataFrame>> {
        let leaf = Leaf { run: String::new(), step: None, dataset: String::new(), folder: self.path.clone() };
        let Some(records) = leaf.table(name)? else { return Ok(None) };
        Ok(Some(records.collect(records.scan()?)?))
    }

    /// pairs.parquet: a row a pair. Empty where nothing was measured.
    ///
    /// # Errors
    /// Where a part is damaged.
    pub fn pairs(&self) -> Result<DataFrame> {
        Ok(self.table(tables::PAIRS)?.unwrap_or_default())
    }

    /// params.parquet: a row a pair and parameter tensor. Empty where nothing was measured.
    ///
    /// # Errors
    /// Where a part is damaged.
    pub fn params(&self) -> Result<DataFrame> {
        Ok(self.table(tables::PARAMS)?.unwrap_or_default())
    }

    /// What an analysis found, in a few lines.
    ///
    /// # Errors
    /// Where a part is missing or damaged.
    pub fn summary(&self) -> Result<Summary> {
        let [pairs, params, objectives] =
            [tables::PAIRS, tables::PARAMS, tables::OBJECTIVES].map(|name| Table::at(&self.path, name));
        let mut summary = Summary::default();
        for part in 0..pairs.parts()?.len() {
            summary.add(&pairs.read(part)?, &params.read(part)?)?;
        }
        for part in 0..objectives.parts()?.len() {
            summary.add_objectives(&objectives.read(part)?)?;
        }
        Ok(summary)
    }

    /// tokens.parquet: a row a pair and entry of its matrices. Empty where nothing was measured.
    ///
    /// # Errors
    /// Where a part is damaged.
    pub fn tokens(&self) -> Result<DataFrame> {
        Ok(self.table(tables::TOKENS)?.unwrap_or_default())
    }
}
