//! What can end a training run.
use std::path::{Path, PathBuf};

/// What went wrong.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A number that is NaN or infinite.
    #[error("step {step}, {what}: {problem}")]
    NotFinite {
        /// The step, from 1.
        step: usize,
        /// Which pair, or what else.
        what: String,
        /// What was found, and what to do.
        problem: String,
    },
    /// A checkpoint that cannot be written or read.
    #[error("{}: {problem}", path.display())]
    Checkpoint {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong with it, and what to do.
        problem: String,
    },
    /// The weights in a checkpoint.
    #[error(transparent)]
    Model(#[from] tanglescope_model::Error),
}

/// Results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub(crate) fn checkpoint(path: &Path, problem: impl ToString) -> Self {
        Self::Checkpoint { path: path.to_owned(), problem: problem.to_string() }
    }
}
