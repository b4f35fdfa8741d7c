//! What can be wrong with a checkpoint, said to the user who passed it.
use std::path::{Path, PathBuf};

/// A problem with a file, or with one of its tensors.
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
    /// A tensor is missing, of the wrong shape or type, or not finite.
    #[error("{}: tensor `{tensor}`: {problem}", path.display())]
    Tensor {
        /// The file or folder that should hold it.
        path: PathBuf,
        /// Its name.
        tensor: String,
        /// What was found, what was expected.
        problem: String,
    },
}

/// Results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub(crate) fn file(path: &Path, problem: impl ToString) -> Self {
        Self::File { path: path.to_owned(), problem: problem.to_string() }
    }

    pub(crate) fn tensor(path: &Path, tensor: &str, problem: impl ToString) -> Self {
        Self::Tensor { path: path.to_owned(), tensor: brief(tensor), problem: problem.to_string() }
    }
}

/// A name or a value of a file's, in few characters.
#[must_use]
pub fn brief(text: &str) -> String {
    const MOST: usize = 120;
    match text.char_indices().nth(MOST) {
        None => text.to_owned(),
        Some((at, _)) => format!("{}…", &text[..at]),
    }
}
