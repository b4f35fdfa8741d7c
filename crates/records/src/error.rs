//! What can go wrong with the files of a folder.
use std::path::{Path, PathBuf};

/// A file that cannot be written, read, or used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {problem}", path.display())]
pub struct Error {
    /// The file or folder.
    pub path: PathBuf,
    /// What was found, what was expected, what to do.
    pub problem: String,
}

/// Results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// A problem with a file or folder.
    #[must_use]
    pub fn new(path: &Path, problem: impl ToString) -> Self {
        Self { path: path.to_owned(), problem: problem.to_string() }
    }
}
