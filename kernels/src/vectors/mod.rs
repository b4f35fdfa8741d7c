//! Grams of vector parameters, of embeddings, and of whatever is a stretch of rows: inner products of vectors.
//!
//! `Gram[i, j] = v_i · v_j` for the vectors of each set.
mod cpu;
mod cube;
mod launch;

use crate::{FloatTensor, Grams, RowSet};
use std::ops::Range;

/// Inner products of vectors.
pub trait VectorGram: Grams {
    /// Grams of vector parameters: of the sums of `terms[R, m]` over each cotangent's rows.
    fn gram_vectors(terms: &FloatTensor<Self>, rows: &RowSet) -> Self::Pending;

    /// Inner products of each set's vectors; vector k is rows `vectors[k]` of `x`, as many for all of a set.
    fn dots(x: &FloatTensor<Self>, vectors: &[Range<usize>], sets: &[Range<usize>]) -> Self::Pending;
}
