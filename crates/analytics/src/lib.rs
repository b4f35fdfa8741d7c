//! From Grams to records: the derived columns of a pair, the tables of a run, and its summary.
mod entanglement;
mod error;
mod parts;
mod summary;
pub mod tables;

pub use entanglement::{PairGram, Regime};
pub use error::{Error, Result};
pub use parts::Table;
pub use summary::Summary;
