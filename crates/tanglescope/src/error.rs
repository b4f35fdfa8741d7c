//! What ends a call, said to the user. An option is written as "option `name`", or "option `name` = value".
use std::path::{Path, PathBuf};

/// What ended a call.
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
    Records(#[from] tanglescope_records::Error),
    /// A report.
    #[error(transparent)]
    Report(#[from] tanglescope_report::Error),
    /// A training run.
    #[error(transparent)]
    Train(#[from] tanglescope_train::Error),
    /// An option that cannot be used as it was given.
    #[error("option `{option}`{}: {problem}", value.as_ref().map_or(String::new(), |value| format!(" = {value}")))]
    Option {
        /// The field of the options.
        option: &'static str,
        /// Its value, where it has one that is read.
        value: Option<String>,
        /// What is wrong with it, and what to do.
        problem: String,
    },
    /// A file or folder that cannot be written, or belongs to another run.
    #[error("{}: {problem}", path.display())]
    Output {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong with it, and what to do.
        problem: String,
    },
    /// A device that is not there, lacks its driver, or failed.
    #[error("option `device` = {device}: {problem}")]
    Device {
        /// As it was asked for.
        device: String,
        /// What is missing, and what to do.
        problem: String,
    },
    /// The listener wanted the call to end.
    #[error("stopped; what is written stays, and the same call goes on from there")]
    Stopped,
    /// Work that did not end well: numbers that overflowed, checks that failed, parts that were left out.
    #[error("{0}")]
    Failed(String),
}

/// Results of the library.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An option that cannot be used.
    pub(crate) fn option(option: &'static str, problem: impl ToString) -> Self {
        Self::Option { option, value: None, problem: problem.to_string() }
    }

    /// A value of an option that cannot be used.
    pub(crate) fn value(option: &'static str, value: impl ToString, problem: impl ToString) -> Self {
        Self::Option { option, value: Some(value.to_string()), problem: problem.to_string() }
    }

    /// A file or folder of results that cannot be used.
    pub(crate) fn output(path: &Path, problem: impl ToString) -> Self {
        Self::Output { path: path.to_owned(), problem: problem.to_string() }
    }

    /// A number of a row that its type does not hold.
    pub(crate) fn overflow(row: u64, what: &str) -> Self {
        Self::Failed(format!(
            "row {row}: {what} is not finite: the model overflows this number type; option `dtype` = f32, or f64 with \
             option `device` = cpu, may hold it"
        ))
    }

    /// What an objective needs and does not have.
    pub(crate) fn no_reference(option: &'static str, objective: &str) -> Self {
        Self::value(
            option,
            objective,
            "uses a reference model, and there is none; add option `reference` = FOLDER, or self",
        )
    }

    /// Whether it lies in what was given to the call, and not in what happened on the way.
    #[must_use]
    pub fn is_bad_input(&self) -> bool {
        match self {
            Self::Option { .. } => true,
            Self::Model(error) => !matches!(error, tanglescope_model::Error::Output { .. }),
            Self::Data(error) => !matches!(error, tanglescope_data::Error::Spool { .. }),
            Self::Records(error) | Self::Report(tanglescope_report::Error::Records(error)) => error.given,
            _ => false,
        }
    }
}
