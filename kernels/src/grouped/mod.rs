//! Products of stretches of rows, each with a matrix of its own: the rows that go to each expert.
//!
//! `y[r] = x[r]·W_g` for the rows r of stretch g, or `x[r]·W_gᵀ`.
pub mod bench;
mod cpu;
mod launch;
pub mod reference;

use crate::{Backend, FloatTensor, Weight};
use std::ops::Range;

/// Some rows and the matrix that they are multiplied with.
#[derive(Debug)]
pub struct Stretch<'a, B: Backend> {
    /// Rows; stretches do not overlap.
    pub rows: Range<usize>,
    /// `[k, m]`, or `[m, k]` where it is taken transposed.
    pub w: Weight<'a, B>,
    /// Factor on their product.
    pub scale: f64,
}

/// Products of stretches of rows.
pub trait Grouped: Backend {
    /// `scale · x[N, k] · w` of each stretch's rows, `[N, m]`, plus `onto` where given; rows of no stretch are zero, or as in `onto`.
    fn grouped(
        x: &FloatTensor<Self>,
        stretches: &[Stretch<'_, Self>],
        transposed: bool,
        width: usize,
        onto: Option<FloatTensor<Self>>,
    ) -> FloatTensor<Self>;
}
