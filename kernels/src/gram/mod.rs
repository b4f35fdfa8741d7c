//! The *gram* reduction: `Σ_{r∈i, s∈j} (x_r·x_s)(δ_r·δ_s)`, both row Grams multiplied entry by entry
//! (docs/mathematics.md, section 4).
pub mod bench;
mod cpu;
mod cube;
pub(crate) mod launch;
pub(crate) mod plan;
pub mod reference;

use crate::{FloatTensor, Grams, RowSet};

/// The *gram* reduction of linear maps.
pub trait RowGram: Grams {
    /// The *gram* reduction, one result for each of several parameters that share their input.
    fn gram_rows(x: &FloatTensor<Self>, deltas: &[&FloatTensor<Self>], rows: &RowSet) -> Vec<Self::Pending>;
}
