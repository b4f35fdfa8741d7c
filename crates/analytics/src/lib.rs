//! From Grams to records: the derived columns of a pair, the tables of a run, and its summary.
mod comparison;
mod error;
pub mod objectives;
mod parts;
mod summary;
pub mod tables;
pub mod tokens;
pub mod training;

pub use comparison::Comparison;
pub use error::{Error, Result};
pub use parts::Table;
pub use summary::Summary;
