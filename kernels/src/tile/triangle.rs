//! Triangular factors of inputs on the CPU: `x = L·Q`, Q with orthonormal rows. `δᵀx` and `δᵀL` then have the same inner products, and L is no wider
//! than a set has rows, with zeros above its diagonal.
//!
//! By Householder's reflections in f64 (Golub and Van Loan, Matrix Computations, section 5.2): each row of L is off by some n roundings of f64 of its
//! length, also where it is a sum of earlier ones, and by that of the working type where it is stored.
use crate::RowSet;
use crate::host::real::Real;
use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::qr::no_pivoting::factor::{qr_in_place, qr_in_place_scratch, recommended_block_size};
use faer::{Mat, MatMut, Par};
use rayon::prelude::*;

/// Where the factor of a set's inputs is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Triangle {
    /// Its first row, as forward rows are counted.
    pub first: usize,
    /// Its columns.
    pub width: usize,
}

/// The factors of all sets' inputs as one matrix with as many rows as x, its width, and where each is.
pub(super) fn factors<E: Real>(x: &[E], n: usize, rows: &RowSet) -> (Vec<E>, usize, Vec<Triangle>) {
    let ranges: Vec<_> = rows.sets.iter().map(|set| rows.forward_range(set)).collect();
    let triangles: Vec<Triangle> =
        ranges.iter().map(|range| Triangle { first: range.start, width: range.len().min(n) }).collect();
    let stride = triangles.iter().map(|of| of.width).max().unwrap_or(0);
    let found: Vec<Vec<f64>> = ranges
        .par_iter()
        .map(|range| {
            let mut values: Vec<f64> = x[range.start * n..range.end * n].iter().map(|v| v.wide()).collect();
            triangular(&mut values, [n, range.len()]);
            values
        })
        .collect();
    let mut l = vec![E::of(0.0); x.len() / n.max(1) * stride];
    for (range, of) in ranges.iter().zip(found) {
        for (row, values) in of.chunks_exact(n.max(1)).enumerate() {
            let width = values.len().min(row + 1);
            let to = &mut l[(range.start + row) * stride..][..width];
            to.iter_mut().zip(values).for_each(|(to, &value)| *to = E::of(value));
        }
    }
    (l, stride, triangles)
}

/// Leaves R of a matrix `[n, rows]`, column by column, on and above its diagonal.
fn triangular(values: &mut [f64], [n, rows]: [usize; 2]) {
    let size = n.min(rows);
    if size == 0 {
        return;
    }
    let block = recommended_block_size::<f64>(n, rows);
    // one thread, so that the bits do not depend on how many there are
    let par = Par::Seq;
    let mut reflections = Mat::zeros(block, size);
    let mut scratch = MemBuffer::new(qr_in_place_scratch::<f64>(n, rows, block, par, faer::Spec::default()));
    let columns = MatMut::from_column_major_slice_mut(values, n, rows);
    qr_in_place(columns, reflections.as_mut(), par, MemStack::new(&mut scratch), faer::Spec::default());
}
