//! The *tile* reduction: gradients `G_k = δ_kᵀ x` tile by tile for all cotangents of a block, reduced to their inner
//! products before the next tile (docs/mathematics.md, section 4).
pub(crate) mod cpu;
mod cube;
mod launch;
mod many;

pub(crate) use launch::gram_tile;
