//! What the gradients of a backward pass become, one sink a file: inner products ([`GramSink`]), one weighted sum
//! ([`SumSink`]), the gradients themselves ([`GradientSink`], or [`RowSink`] as rows of matrices), their products with a given step ([`DirectionalSink`]); and
//! several of these in one pass ([`Tee`]).
mod directional;
mod gradient;
mod gram;
mod metric;
mod rows;
mod sum;
mod tee;

pub use directional::DirectionalSink;
pub use gradient::GradientSink;
pub use gram::Detail;
pub(crate) use gram::{ByExpert, GramSink};
pub(crate) use metric::MetricSink;
pub(crate) use rows::RowSink;
pub(crate) use sum::SumSink;
pub(crate) use tee::Tee;

use std::ops::Range;
use tanglescope_kernels::{FloatTensor, Kernels, TensorMetadata, as_index};
use tanglescope_model::HeadRows;

/// Rows of logits that exist together.
const HEAD_ROWS: usize = 256;

/// Rows of the head in chunks, at least one: `chunk` is given the numbers of some rows, the inputs of the output matrix there,
/// and its logits, row by row.
fn head_in_chunks<B: Kernels, T>(
    head: &HeadRows<'_, B>,
    rows: &[usize],
    mut chunk: impl FnMut(&[usize], &FloatTensor<B>, Vec<f64>) -> T,
) -> Vec<T> {
    let of_rows = |rows: &[usize]| {
        let places: Vec<u32> = rows.iter().map(|&row| as_index(row)).collect();
        chunk(rows, &B::gather(head.y, &places, None), B::download(&head.scores.logits(&places)))
    };
    let (first, rest) = rows.split_at(rows.len().min(HEAD_ROWS));
    std::iter::once(first).chain(rest.chunks(HEAD_ROWS)).map(of_rows).collect()
}

/// A sum that is there or not, plus one more term.
fn plus<B: Kernels>(sum: Option<FloatTensor<B>>, term: FloatTensor<B>) -> FloatTensor<B> {
    match sum {
        None => term,
        Some(sum) => B::add_scaled(sum, &term, 1.0),
    }
}

/// Columns of a matrix.
fn width<B: Kernels>(x: &FloatTensor<B>) -> usize {
    x.shape()[1]
}

fn indices(range: Range<usize>) -> Vec<u32> {
    range.map(as_index).collect()
}
