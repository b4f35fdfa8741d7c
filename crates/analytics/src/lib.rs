//! From Grams to records, and from records to findings: the derived columns of a pair, the tables of a run, and what many
//! records amount to.
mod comparison;
mod error;
pub mod groups;
mod metrics;
pub mod objectives;
mod official;
mod params;
mod parts;
pub mod probes;
mod records;
mod relations;
pub mod statistics;
mod summary;
pub mod tables;
pub mod tokens;
pub mod training;

pub use comparison::{Comparison, compare};
pub use error::{Error, Result};
pub use metrics::{METRICS, OUTCOMES, derived, digest, metrics, outcomes, regimes};
pub use official::official;
pub use params::{By, means, params};
pub use parts::Table;
pub use records::{Leaf, Records, find, find_some};
pub use relations::{bins, outliers, relations};
pub use summary::Summary;
