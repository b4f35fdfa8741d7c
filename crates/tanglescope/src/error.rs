//! Errors of the command line, and the exit codes that they end in.
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// What ended a command.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The model folder, the adapter or the scope.
    #[error(transparent)]
    Model(#[from] tanglescope_model::Error),
    /// The preference data.
    #[error(transparent)]
    Data(#[from] tanglescope_data::Error),
    /// The results.
    #[error(transparent)]
    Results(#[from] tanglescope_analytics::Error),
    /// A report.
    #[error(transparent)]
    Report(#[from] tanglescope_report::Error),
    /// A training run.
    #[error(transparent)]
    Train(#[from] tanglescope_train::Error),
    /// An option that cannot be used as it was given.
    #[error("{option}: {problem}")]
    Option {
        /// The option and its value.
        option: String,
        /// What is wrong with it, and what to do.
        problem: String,
    },
    /// A folder that belongs to another run, or a file that cannot be written.
    #[error("{}: {problem}", path.display())]
    Output {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong with it, and what to do.
        problem: String,
    },
    /// A device that is not there, or lacks its driver.
    #[error("--device {device}: {problem}")]
    Device {
        /// As it was asked for.
        device: String,
        /// What is missing, and what to do.
        problem: String,
    },
    /// A check that did not pass.
    #[error("{0}")]
    Failed(String),
}

/// Results of the command line.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An option that cannot be used.
    pub fn option(option: impl ToString, problem: impl ToString) -> Self {
        Self::Option { option: option.to_string(), problem: problem.to_string() }
    }

    /// A file or folder of results that cannot be used.
    pub fn output(path: &Path, problem: impl ToString) -> Self {
        Self::Output { path: path.to_owned(), problem: problem.to_string() }
    }

    /// A number of a row that its type does not hold.
    pub fn overflow(row: u64, what: &str) -> Self {
        Self::Failed(format!(
            "row {row}: {what} is not finite: the model overflows this number type; --dtype f32, or f64 with --device cpu, \
             may hold it"
        ))
    }

    /// What an objective needs and does not have.
    pub fn no_reference(option: &str, objective: &str) -> Self {
        Self::option(
            format!("{option} {objective}"),
            "uses a reference model, and there is none; add --reference FOLDER, or self",
        )
    }

    /// 2 for bad input, 1 for anything else.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Model(_) | Self::Data(_) | Self::Option { .. } => ExitCode::from(2),
            Self::Results(_)
            | Self::Report(_)
            | Self::Train(_)
            | Self::Output { .. }
            | Self::Device { .. }
            | Self::Failed(_) => ExitCode::from(1),
        }
    }
}
