//! The *tile* reduction: gradients `G_k = δ_kᵀ x` tile by tile for all cotangents of a set, reduced to their inner
//! products before the next tile (docs/mathematics.md, section 4).
pub mod bench;
mod cpu;
mod cube;
pub(crate) mod launch;
mod many;
pub mod reference;
mod strategy;

use crate::{FloatTensor, Grams, RowSet};

/// The *tile* reduction of linear maps.
pub trait TileGram: Grams {
    /// The *tile* reduction: Grams of `Σ_r δ_k[r] x[index[r]]ᵀ` for every set of cotangents; each entry of a gradient first times that of
    /// `roots[n, m]` where given, so that entry e counts `roots[e]²` times: the metric of an optimizer's step.
    fn gram_tile(
        x: &FloatTensor<Self>,
        delta: &FloatTensor<Self>,
        rows: &RowSet,
        roots: Option<&FloatTensor<Self>>,
    ) -> Self::Pending;
}
