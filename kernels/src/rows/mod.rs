//! Rows by index, sums over rows, and columns cut and joined (docs/mathematics.md, section 2).
mod cpu;
pub(crate) mod cube;
pub(crate) mod launch;
pub mod reference;

pub(crate) use cpu::sums;

use crate::{Backend, FloatTensor};

/// Gathers and scatters of rows, sums over them, and pieces of columns.
pub trait Rows: Backend {
    /// Rows of `x` by index, each times its weight where weights are given: `[index.len(), features]`. Without weights
    /// `x` may be as [stored](crate::Memory::takes_stored), and so is the result.
    fn gather(x: &FloatTensor<Self>, index: &[u32], weights: Option<&[f64]>) -> FloatTensor<Self>;

    /// Zeros `[rows, features]` with row r of `x` added to row `index[r]`.
    fn scatter_add(x: &FloatTensor<Self>, index: &[u32], rows: usize) -> FloatTensor<Self>;

    /// Zeros `[rows, features]` with the rows of some matrices at places of their own: row r of a part is row `places[r]` of the result.
    fn place_rows(parts: &[(FloatTensor<Self>, &[u32])], rows: usize) -> FloatTensor<Self>;

    /// Sums of `x[R, m]` over each cotangent's rows: `[K, m]`, in f32 on a device.
    fn segment_sums(x: &FloatTensor<Self>, offsets: &[usize]) -> FloatTensor<Self>;

    /// Columns of `x` cut into pieces of the given widths.
    fn split_columns(x: &FloatTensor<Self>, widths: &[usize]) -> Vec<FloatTensor<Self>>;

    /// Matrices of equally many rows side by side.
    fn join_columns(parts: &[FloatTensor<Self>]) -> FloatTensor<Self>;
}
