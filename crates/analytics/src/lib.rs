//! What records amount to: medians with intervals, regimes, layers, relations, comparisons. Queries on the tables of
//! `tanglescope_records`; nothing here computes with a model.
mod clusters;
mod comparison;
mod experts;
mod interference;
mod metrics;
mod official;
mod params;
mod relations;
mod spectrum;
pub mod statistics;
mod summary;
mod token_changes;
mod tokens;

pub use clusters::clusters;
pub use comparison::{Comparison, compare};
pub use experts::experts;
pub use interference::{Coefficients, Effects};
pub use metrics::{derived, digest, metrics, outcomes, regimes, regimes_in_metric};
pub use official::official;
pub use params::{By, means, params};
pub use relations::{bins, outliers, relations};
pub use spectrum::Spectrum;
pub use summary::Summary;
pub use tanglescope_records::{Error, Result};
pub use token_changes::token_changes;
pub use tokens::Shares;
