//! How inner products of vectors are spread over a device: a cube a piece of a pair.
use super::VectorGram;
use super::cube::dot_pieces;
use crate::on_chip::{array, contiguous, ints, on_devices, rows_of, width_of};
use crate::pending::{Entry, Pending};
use crate::rows::launch::segment_sums;
use crate::{FloatTensor, RowSet, as_index};
use burn_cubecl::{CubeRuntime, tensor::CubeTensor};
use cubecl::prelude::*;
use std::ops::Range;

/// Units of a cube that each have a value of their own.
const UNITS: u32 = 256;

/// See [`VectorGram::gram_vectors`].
pub(crate) fn gram_vectors<R: CubeRuntime>(terms: &CubeTensor<R>, rows: &RowSet) -> Pending<R> {
    let sums = segment_sums(terms, &rows.offsets);
    let vectors: Vec<Range<usize>> = (0..rows.cotangents()).map(|k| k..k + 1).collect();
    dots(&sums, &vectors, &rows.sets)
}

/// See [`VectorGram::dots`].
pub(crate) fn dots<R: CubeRuntime>(x: &CubeTensor<R>, vectors: &[Range<usize>], sets: &[Range<usize>]) -> Pending<R> {
    const PIECE: usize = 8192;
    let width = width_of(x);
    let (mut tasks, mut entries) = (Vec::new(), Vec::new());
    for (b, set) in sets.iter().enumerate() {
        for i in set.clone() {
            for j in set.start..=i {
                let len = vectors[i].len() * width;
                tasks.push([vectors[i].start * width, vectors[j].start * width, len].map(as_index));
                let weight = if i == j { 1.0 } else { 2.0 };
                entries.push(Entry { set: b, i: i - set.start, j: j - set.start, weight });
            }
        }
    }
    let pieces = vectors.iter().map(|v| (v.len() * width).div_ceil(PIECE)).max().unwrap_or(0);
    let rows = RowSet { sets: sets.to_vec(), ..RowSet::default() };
    if pieces == 0 || tasks.is_empty() {
        return Pending::nothing(&rows);
    }
    let client = x.client.clone();
    let len = tasks.len() * pieces;
    let out = client.empty(len * size_of::<f32>());
    let y = tasks.len().min(65_535);
    let grid = CubeCount::Static(as_index(pieces), as_index(y), as_index(tasks.len().div_ceil(y)));
    let values = rows_of(x) * width;
    let input = array(contiguous(x).handle, values);
    let (places, target) = (ints(&client, tasks.as_flattened()), array(out.clone(), len));
    let units = CubeDim::new_1d(UNITS);
    dot_pieces::launch::<R>(&client, grid, units, input, places, target, PIECE, UNITS as usize, x.dtype.into());
    let mut pending = Pending::new(&rows, client, out, len);
    for (t, entry) in entries.into_iter().enumerate() {
        pending.add(entry, t * pieces, pieces, 1);
    }
    pending
}

on_devices! { VectorGram, R {
    fn gram_vectors(terms: &FloatTensor<Self>, rows: &RowSet) -> Self::Pending {
        gram_vectors(terms, rows)
    }

    fn dots(x: &FloatTensor<Self>, vectors: &[Range<usize>], sets: &[Range<usize>]) -> Self::Pending {
        dots(x, vectors, sets)
    }
} }
