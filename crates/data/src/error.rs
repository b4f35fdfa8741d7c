//! What can be wrong with preference data, said to the user who passed it.
use std::path::{Path, PathBuf};

/// A problem with a file, or with one of its rows.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file is missing, unreadable, or not what it should be.
    #[error("{}: {problem}", path.display())]
    File {
        /// The file or folder.
        path: PathBuf,
        /// What was found, what was expected, what to do.
        problem: String,
    },
    /// Rows cannot be kept on the disk while they are used.
    #[error("{}: {problem}", path.display())]
    Spool {
        /// The folder for temporary files.
        path: PathBuf,
        /// Why.
        problem: String,
    },
    /// A row cannot be used.
    #[error("{}: row {row}: {problem}", path.display())]
    Row {
        /// The file.
        path: PathBuf,
        /// Number of the row, from 0.
        row: u64,
        /// What was found, what was expected.
        problem: String,
    },
}

/// Results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// The same under the name that a file in passing is known by.
    #[must_use]
    pub fn called(mut self, file: &Path, name: &Path) -> Self {
        match &mut self {
            Self::File { path, .. } | Self::Row { path, .. } if path == file => name.clone_into(path),
            _ => {}
        }
        self
    }

    pub(crate) fn file(path: &Path, problem: impl ToString) -> Self {
        Self::File { path: path.to_owned(), problem: problem.to_string() }
    }
}
