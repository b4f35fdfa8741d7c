//! Rotary position embedding: pairs of values of every head rotated by the row's angles (docs/mathematics.md, section 3).
//!
//! `(a, b) ↦ (a cos θ − b sin θ, b cos θ + a sin θ)`; its vjp is the rotation back.
pub mod bench;
mod cpu;
mod cube;
mod launch;
pub mod reference;

use crate::{Backend, FloatTensor};

/// Which values of a head are rotated together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pairs {
    /// One of the first half and the one as far into the second.
    Halves,
    /// Neighbours.
    Neighbours,
}

/// Rotation of pairs of values.
pub trait Rotary: Backend {
    /// Rotates the pairs among the first `2·a` values of every head of `x[N, heads·h]` by the angles of its row, or back
    /// when `inverse` (which is also the vjp), and leaves the others. `heads` is `h`, and which values are pairs. `cos`, `sin` are `[forward rows, a]`; `index` maps
    /// rows of `x` to theirs.
    fn rotary(
        x: FloatTensor<Self>,
        cos: &FloatTensor<Self>,
        sin: &FloatTensor<Self>,
        index: Option<&[u32]>,
        heads: (usize, Pairs),
        inverse: bool,
    ) -> FloatTensor<Self>;
}
