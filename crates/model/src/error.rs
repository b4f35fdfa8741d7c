//! What can be wrong with a model folder or an adapter, said to the user who passed it.
use std::path::{Path, PathBuf};
pub(crate) use tanglescope_checkpoint::brief;

/// A problem with a file, a key of a config, a tensor, or a scope.
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
    /// A file of a checkpoint cannot be written.
    #[error("{}: cannot be written: {problem}", path.display())]
    Output {
        /// The file.
        path: PathBuf,
        /// Why.
        problem: String,
    },
    /// A config key has a value that this engine does not compute.
    #[error("{}: `{key}`: {problem}", path.display())]
    Key {
        /// The config file.
        path: PathBuf,
        /// The key.
        key: String,
        /// What was found, what was expected, what to do.
        problem: String,
    },
    /// A tensor is missing, left over, of the wrong shape or type, or not finite.
    #[error("{}: tensor `{tensor}`: {problem}", path.display())]
    Tensor {
        /// The file or folder that should hold it.
        path: PathBuf,
        /// Its name.
        tensor: String,
        /// What was found, what was expected.
        problem: String,
    },
    /// An option of the adapter that does not fit the model.
    #[error("option `{option}`: {problem}")]
    Option {
        /// Which.
        option: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// A scope that selects nothing, or cannot be read.
    #[error("option `scope` = {scope}: {problem}")]
    Scope {
        /// The scope as given.
        scope: String,
        /// Why it cannot be used.
        problem: String,
    },
}

/// Results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl From<tanglescope_checkpoint::Error> for Error {
    fn from(error: tanglescope_checkpoint::Error) -> Self {
        match error {
            tanglescope_checkpoint::Error::File { path, problem } => Self::File { path, problem },
            tanglescope_checkpoint::Error::Tensor { path, tensor, problem } => Self::Tensor { path, tensor, problem },
        }
    }
}

impl Error {
    pub(crate) fn file(path: &Path, problem: impl ToString) -> Self {
        Self::File { path: path.to_owned(), problem: problem.to_string() }
    }

    pub(crate) fn output(path: &Path, problem: impl ToString) -> Self {
        Self::Output { path: path.to_owned(), problem: problem.to_string() }
    }

    pub(crate) fn key(path: &Path, key: &str, problem: impl ToString) -> Self {
        Self::Key { path: path.to_owned(), key: key.to_owned(), problem: problem.to_string() }
    }

    pub(crate) fn tensor(path: &Path, tensor: &str, problem: impl ToString) -> Self {
        Self::Tensor { path: path.to_owned(), tensor: brief(tensor), problem: problem.to_string() }
    }
}

/// What is wrong with a regular expression, in one line: the last of the parser's message, below its drawing.
pub(crate) fn pattern_problem(error: &impl std::fmt::Display) -> String {
    let text = error.to_string();
    let last = text.lines().last().unwrap_or_default();
    last.strip_prefix("error: ").unwrap_or(last).to_owned()
}
