//! Tables as folders of parts, each written whole and then renamed.
use crate::error::{Error, Result};
use crate::whole::write_whole;
use polars_core::prelude::DataFrame;
use polars_io::prelude::{ParallelStrategy, ParquetReader, ParquetWriter, SerReader};
use std::fs::File;
use std::path::{Path, PathBuf};

/// A table of a run: a folder of parts.
#[derive(Clone, Debug)]
pub struct Table {
    folder: PathBuf,
}

impl Table {
    /// The table `name` of a run's folder, which is made; others may be writing parts of it.
    ///
    /// # Errors
    /// Where it cannot be made.
    pub fn create(run: &Path, name: &str) -> Result<Self> {
        let table = Self::at(run, name);
        std::fs::create_dir_all(&table.folder)
            .map_err(|e| Error::new(&table.folder, format!("cannot be made: {e}")))?;
        Ok(table)
    }

    /// The table `name` of a run's folder, which may not be there yet.
    #[must_use]
    pub fn at(run: &Path, name: &str) -> Self {
        Self { folder: run.join(name) }
    }

    fn part(&self, number: usize) -> PathBuf {
        self.folder.join(format!("{number:05}.parquet"))
    }

    /// Takes all parts away.
    ///
    /// # Errors
    /// Where a file cannot be removed.
    pub fn clear(&self) -> Result<()> {
        std::fs::remove_dir_all(&self.folder)
            .and_then(|()| std::fs::create_dir_all(&self.folder))
            .map_err(|e| Error::new(&self.folder, e))
    }

    /// Whether a part is there.
    #[must_use]
    pub fn has(&self, number: usize) -> bool {
        self.part(number).is_file()
    }

    /// Writes a part whole or not at all.
    ///
    /// # Errors
    /// Where the disk is full or the folder not writable; no part is left then.
    pub fn write(&self, number: usize, mut rows: DataFrame) -> Result<()> {
        // in memory first: a writer that fails on the disk says only that it failed
        let (path, mut bytes) = (self.part(number), Vec::new());
        let written = ParquetWriter::new(&mut bytes).finish(&mut rows);
        written.map_err(|e| Error::new(&path, format!("cannot be written: {e}")))?;
        write_whole(&path, &bytes)
    }

    /// Reads a part.
    ///
    /// # Errors
    /// Where it is missing or damaged.
    pub fn read(&self, number: usize) -> Result<DataFrame> {
        read(&self.part(number))
    }

    /// The files of the parts, in order; none where the table is not there.
    ///
    /// # Errors
    /// Where the folder cannot be read.
    pub fn parts(&self) -> Result<Vec<PathBuf>> {
        if !self.folder.is_dir() {
            return Ok(Vec::new());
        }
        let entries = std::fs::read_dir(&self.folder).map_err(|e| Error::new(&self.folder, e))?;
        let paths = entries.flatten().map(|entry| entry.path());
        let mut parts: Vec<PathBuf> = paths.filter(|path| path.extension().is_some_and(|e| e == "parquet")).collect();
        parts.sort();
        Ok(parts)
    }
}

fn damaged(path: &Path, error: impl std::fmt::Display) -> Error {
    Error::new(path, format!("cannot be read; delete it and run the command again to make it anew ({error})"))
}

/// Reads a file of a table.
pub(crate) fn read(path: &Path) -> Result<DataFrame> {
    let file = File::open(path).map_err(|e| Error::new(path, e))?;
    ParquetReader::new(file).finish().map_err(|e| damaged(path, e))
}

/// Some columns of a file of a table, so many rows at a time, read by the thread that asks: several may read at once.
///
/// # Errors
/// Names a file that is damaged.
pub fn batches<'a>(
    path: &'a Path,
    columns: &'a [&str],
    rows: usize,
) -> Result<impl Iterator<Item = Result<DataFrame>> + 'a> {
    let open = move || File::open(path).map_err(|e| Error::new(path, e));
    let all = ParquetReader::new(open()?).num_rows().map_err(|e| damaged(path, e))?;
    Ok((0..all).step_by(rows).map(move |from| {
        let names = columns.iter().map(|name| (*name).to_owned()).collect();
        let reader = ParquetReader::new(open()?).with_columns(Some(names)).with_slice(Some((from, rows)));
        reader.read_parallel(ParallelStrategy::None).finish().map_err(|e| damaged(path, e))
    }))
}
