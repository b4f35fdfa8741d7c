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
    /// Whether it was given to the call, and is not what the call takes.
    pub given: bool,
}

/// Results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// A problem with a file or folder.
    #[must_use]
    pub fn new(path: &Path, problem: impl ToString) -> Self {
        Self { path: path.to_owned(), problem: problem.to_string(), given: false }
    }

    /// A file or folder that was given, and is not what is taken.
    #[must_use]
    pub fn given(path: &Path, problem: impl ToString) -> Self {
        Self { given: true, ..Self::new(path, problem) }
    }
}
