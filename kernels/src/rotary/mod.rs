//! Rotary position embedding: the halves of every head rotated by the row's angles (docs/mathematics.md, section 3).
//!
//! `(a, b) ↦ (a cos θ − b sin θ, b cos θ + a sin θ)`; its vjp is the rotation back.
pub mod bench;
mod cpu;
mod cube;
mod launch;
pub mod reference;

use crate::{Backend, FloatTensor};

/// Rotation of pairs of values.
pub trait Rotary: Backend {
    /// Rotates the two halves of the first `2·a` values of every head of `x[N, heads·h]` by the angles of its row, or back
    /// when `inverse` (which is also the vjp), and leaves the others. `cos`, `sin` are `[forward rows, a]`; `index` maps
    /// rows of `x` to theirs.
    fn rotary(
        x: FloatTensor<Self>,
        cos: &FloatTensor<Self>,
        sin: &FloatTensor<Self>,
        index: Option<&[u32]>,
        head_dim: usize,
        inverse: bool,
    ) -> FloatTensor<Self>;
}
