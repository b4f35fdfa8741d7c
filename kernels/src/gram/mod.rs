//! The *gram* reduction: `Σ_{r∈i, s∈j} (x_r·x_s)(δ_r·δ_s)`, both row Grams in tiles multiplied in place
//! (docs/mathematics.md, section 4).
pub(crate) mod cpu;
mod cube;
mod launch;
mod plan;

pub(crate) use launch::gram_rows;
