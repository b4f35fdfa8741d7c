//! RMS norm and `LayerNorm` over rows, with their vjp (docs/mathematics.md, section 3).
pub(crate) mod cpu;
mod cube;
mod launch;

pub(crate) use launch::{norm, norm_gain_terms, norm_vjp};
