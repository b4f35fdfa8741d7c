//! log.jsonl of a run.
use crate::error::{Error, Result};
use serde_json::Value;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

/// log.jsonl: what trainer_state.json will hold, line by line as it is found.
pub struct Log {
    path: PathBuf,
    file: BufWriter<File>,
}

impl Log {
    /// Begins with the lines of an earlier part of the run; lines after its last checkpoint are made again.
    pub fn open(run: &Path, history: &[Value]) -> Result<Self> {
        let path = run.join("log.jsonl");
        let file = File::create(&path).map_err(|e| Error::output(&path, e))?;
        let mut log = Self { path, file: BufWriter::new(file) };
        history.iter().try_for_each(|line| log.add(line))?;
        Ok(log)
    }

    /// Adds a line.
    pub fn add(&mut self, line: &Value) -> Result<()> {
        let written = writeln!(self.file, "{line}").and_then(|()| self.file.flush());
        written.map_err(|e| Error::output(&self.path, format!("cannot be written: {e}")))
    }
}
