//! Rows of preference data, as they are measured.
use crate::call::{listener, run};
use crate::errors::{Failure, raised, refused};
use clap::Parser;
use pyo3::prelude::*;
use std::path::PathBuf;
use std::sync::Arc;
use tanglescope::TokenRows;
use tanglescope_cli::{cli, options};

/// Words of the command line that say which data, and how it becomes tokens.
#[derive(Parser)]
#[command(no_binary_name = true, disable_help_flag = true)]
pub struct DataWords {
    #[command(flatten)]
    data: cli::DataArgs,
}

impl DataWords {
    /// The data that some words are of.
    pub fn options(words: Vec<String>, called: Option<String>) -> Result<tanglescope::DataOptions, Failure> {
        let data = options::data(&Self::try_parse_from(words).map_err(|e| refused(&e))?.data)?;
        Ok(tanglescope::DataOptions { called, ..data })
    }
}

/// Rows of preference data as token ids.
#[pyclass(frozen, module = "tanglescope._native")]
pub struct Rows {
    pub rows: Arc<TokenRows>,
}

impl Rows {
    pub fn new(rows: TokenRows) -> Self {
        Self { rows: Arc::new(rows) }
    }
}

#[pymethods]
impl Rows {
    /// Reads the data that some words are of; the tokenizer is the first that the folders have.
    #[staticmethod]
    fn read(
        py: Python<'_>,
        words: Vec<String>,
        folders: Vec<PathBuf>,
        called: Option<String>,
        progress: &Bound<'_, PyAny>,
    ) -> PyResult<Self> {
        let rows = run(py, listener(progress), |telling| {
            Ok(TokenRows::read(&DataWords::options(words, called)?, &folders, telling)?)
        })?;
        Ok(Self::new(rows))
    }

    fn __len__(&self) -> usize {
        self.rows.len()
    }

    /// A row as JSON, with the texts of its tokens.
    fn row(&self, py: Python<'_>, at: usize) -> PyResult<String> {
        let row = self.rows.row(at).map_err(|e| raised(py, &e.into()))?;
        Ok(serde_json::json!(row).to_string())
    }

    /// Prompt and responses of a row, by ids.
    fn ids(&self, py: Python<'_>, at: usize) -> PyResult<(Vec<u32>, Vec<Vec<u32>>)> {
        let row = self.rows.row(at).map_err(|e| raised(py, &e.into()))?;
        let ids = |tokens: &[tanglescope::RowToken]| tokens.iter().map(|token| token.id).collect();
        Ok((ids(&row.prompt), row.responses.iter().map(|tokens| ids(tokens)).collect()))
    }

    /// Writes the ids of all rows as JSON lines.
    fn write_ids(&self, py: Python<'_>, path: PathBuf) -> PyResult<()> {
        py.detach(|| self.rows.write_ids(&path)).map_err(|e| raised(py, &e.into()))
    }

    /// Some of the rows, by their places.
    fn select(&self, py: Python<'_>, places: Vec<usize>) -> PyResult<Self> {
        let rows = self.rows.select(&places).map_err(|e| raised(py, &e.into()))?;
        Ok(Self { rows: Arc::new(rows) })
    }

    /// Rows that were left out: number and reason.
    #[getter]
    fn dropped(&self) -> Vec<(u64, String)> {
        self.rows.skipped().iter().map(|skipped| (skipped.row, skipped.problem.clone())).collect()
    }

    #[getter]
    fn notes(&self) -> Vec<String> {
        self.rows.notes().cloned().collect()
    }

    #[getter]
    fn tokenize(&self) -> Option<&str> {
        self.rows.tokenize()
    }

    #[getter]
    fn content_hash(&self) -> &str {
        self.rows.content_hash()
    }
}
