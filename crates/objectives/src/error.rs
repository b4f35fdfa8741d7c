//! What can be wrong with an objective as it was written.

/// An objective that cannot be used.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("objective `{given}`: {problem}")]
pub struct Error {
    /// As it was written.
    pub given: String,
    /// What is wrong with it, and what would be right.
    pub problem: String,
}

/// Results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;
