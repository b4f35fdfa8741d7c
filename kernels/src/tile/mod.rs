//! The *tile* reduction: gradients `G_k = δ_kᵀ x` tile by tile for all cotangents of a set, reduced to their inner
//! products before the next tile (docs/mathematics.md, section 4).
pub mod bench;
mod cpu;
mod cube;
pub(crate) mod launch;
mod many;
pub mod reference;
mod strategy;
mod triangle;

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

    /// The *triangle* reduction of maps that share inputs, where no forward row is in two sets: the same Grams, by *tile* over the triangular
    /// factor of each set's inputs where there is a way to it.
    fn gram_triangle(x: &FloatTensor<Self>, deltas: &[&FloatTensor<Self>], rows: &RowSet) -> Vec<Self::Pending> {
        deltas.iter().map(|delta| Self::gram_tile(x, delta, rows, None)).collect()
    }
}
