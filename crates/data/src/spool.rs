//! The usable rows of a data set, on the disk: a data set may be larger than memory.
use crate::dataset::Pair;
use crate::error::{Error, Result};
use std::fs::File;
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

/// Rows that are read together where all are wanted.
const PAIRS_AT_ONCE: usize = 256;

/// Usable rows, in order, in a file without a name that goes with the process.
#[derive(Debug)]
pub struct Pairs {
    file: Mutex<File>,
    /// First byte of each row, and the end of the last.
    offsets: Vec<u64>,
}

/// Rows on their way to the disk.
pub(crate) struct Spool {
    file: BufWriter<File>,
    offsets: Vec<u64>,
}

fn refuse(e: impl std::fmt::Display) -> Error {
    let problem = format!("tokens of the rows do not fit there: {e}; TMPDIR names another place");
    Error::Spool { path: std::env::temp_dir(), problem }
}

impl Spool {
    pub fn new() -> Result<Self> {
        let file = BufWriter::with_capacity(1 << 20, tempfile::tempfile().map_err(refuse)?);
        Ok(Self { file, offsets: vec![0] })
    }

    pub fn add(&mut self, pair: &Pair) -> Result<()> {
        let bytes = postcard::to_stdvec(pair).map_err(refuse)?;
        self.file.write_all(&bytes).map_err(refuse)?;
        self.offsets.push(self.offsets[self.offsets.len() - 1] + bytes.len() as u64);
        Ok(())
    }

    pub fn finish(self) -> Result<Pairs> {
        let file = self.file.into_inner().map_err(refuse)?;
        Ok(Pairs { file: Mutex::new(file), offsets: self.offsets })
    }
}

impl Pairs {
    /// Number of rows.
    #[must_use]
    pub fn len(&self) -> usize {
        self.offsets.len() - 1
    }

    /// Whether there is no row; no data set is read that way.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Some rows, by their place among the usable ones; fewer where there are no more.
    ///
    /// # Errors
    /// Where they cannot be read back.
    pub fn get(&self, rows: Range<usize>) -> Result<Vec<Pair>> {
        let rows = rows.start.min(self.len())..rows.end.min(self.len());
        let (from, to) = (self.offsets[rows.start], self.offsets[rows.end]);
        let mut bytes = vec![0; usize::try_from(to - from).map_err(refuse)?];
        {
            let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
            file.seek(SeekFrom::Start(from)).and_then(|_| file.read_exact(&mut bytes)).map_err(refuse)?;
        }
        let at = |row: usize| usize::try_from(self.offsets[row] - from).unwrap_or(usize::MAX);
        rows.map(|row| postcard::from_bytes(&bytes[at(row)..at(row + 1)]).map_err(refuse)).collect()
    }

    /// Parts of so many rows each.
    pub fn parts(&self, rows: usize) -> impl Iterator<Item = Range<usize>> + use<> {
        let all = self.len();
        (0..all).step_by(rows).map(move |from| from..(from + rows).min(all))
    }

    /// Every row, one after another.
    pub fn iter(&self) -> impl Iterator<Item = Result<Pair>> + '_ {
        self.parts(PAIRS_AT_ONCE).flat_map(|part| match self.get(part) {
            Ok(rows) => rows.into_iter().map(Ok).collect::<Vec<_>>(),
            Err(error) => vec![Err(error)],
        })
    }

    /// All rows, in memory.
    ///
    /// # Errors
    /// Where they cannot be read back.
    pub fn all(&self) -> Result<Vec<Pair>> {
        self.get(0..self.len())
    }
}

/// Says that there is no row.
pub(crate) fn nothing(path: &Path) -> Error {
    Error::file(path, "has no rows")
}
