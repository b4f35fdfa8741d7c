//! How rows by index and sums over rows are spread over a device.
use super::cube::{dot_pieces, gather_rows, sum_members};
use crate::RowSet;
use crate::blocks::{alone, array, as_u32, empty, floats, ints, rows_as_they_are, rows_of, width_of};
use crate::pending::{Entry, Pending};
use burn_backend::DType;
use burn_cubecl::{CubeRuntime, tensor::CubeTensor};
use cubecl::calculate_cube_count_elemwise;
use cubecl::prelude::*;
use std::ops::Range;

/// Units of a cube that each have a value of their own.
const UNITS: u32 = 256;

/// See [`crate::Kernels::gather`].
pub(crate) fn gather<R: CubeRuntime>(x: &CubeTensor<R>, index: &[u32], weights: Option<&[f64]>) -> CubeTensor<R> {
    let out = empty(x, [index.len(), width_of(x)], x.dtype);
    let values = out.meta.num_elements();
    if values == 0 {
        return out;
    }
    let (client, units) = (x.client.clone(), CubeDim::new_1d(UNITS));
    let grid = calculate_cube_count_elemwise(&client, values, units);
    let (rows, scale) = (ints(&client, index), floats(&client, weights.unwrap_or_default()));
    let (input, target) = (rows_as_they_are(x).into_tensor_arg(), out.clone().into_tensor_arg());
    gather_rows::launch::<R>(&client, grid, units, input, rows, scale, target, weights.is_some(), x.dtype.into());
    out
}

/// Sums of the members of each row of the result.
fn sums<R: CubeRuntime>(x: &CubeTensor<R>, lists: &[Vec<u32>], dtype: DType) -> CubeTensor<R> {
    let out = empty(x, [lists.len(), width_of(x)], dtype);
    let values = out.meta.num_elements();
    if values == 0 {
        return out;
    }
    let mut starts = vec![0];
    lists.iter().for_each(|list| starts.push(starts[starts.len() - 1] + as_u32(list.len())));
    let (client, units) = (x.client.clone(), CubeDim::new_1d(UNITS));
    let grid = calculate_cube_count_elemwise(&client, values, units);
    let (starts, members) = (ints(&client, &starts), ints(&client, &lists.concat()));
    let (input, target) = (rows_as_they_are(x).into_tensor_arg(), out.clone().into_tensor_arg());
    sum_members::launch::<R>(&client, grid, units, input, starts, members, target, [x.dtype.into(), dtype.into()]);
    out
}

/// See [`crate::Kernels::scatter_add`].
pub(crate) fn scatter_add<R: CubeRuntime>(x: &CubeTensor<R>, index: &[u32], rows: usize) -> CubeTensor<R> {
    let mut lists = vec![Vec::new(); rows];
    for (row, &to) in index.iter().enumerate() {
        lists[to as usize].push(as_u32(row));
    }
    sums(x, &lists, x.dtype)
}

/// Sums over each cotangent's rows, `[K, m]` in f32.
fn cotangent_sums<R: CubeRuntime>(x: &CubeTensor<R>, offsets: &[usize]) -> CubeTensor<R> {
    let lists: Vec<Vec<u32>> = offsets.windows(2).map(|ends| (ends[0]..ends[1]).map(as_u32).collect()).collect();
    sums(x, &lists, DType::F32)
}

/// See [`crate::Kernels::segment_sums`].
pub(crate) fn segment_sums<R: CubeRuntime>(x: &CubeTensor<R>, offsets: &[usize]) -> CubeTensor<R> {
    cotangent_sums(x, offsets)
}

/// See [`crate::Kernels::gram_vectors`].
pub(crate) fn gram_vectors<R: CubeRuntime>(terms: &CubeTensor<R>, rows: &RowSet) -> Pending<R> {
    let sums = cotangent_sums(terms, &rows.offsets);
    let vectors: Vec<Range<usize>> = (0..rows.cotangents()).map(|k| k..k + 1).collect();
    dots(&sums, &vectors, &rows.blocks)
}

/// See [`crate::Kernels::dots`].
pub(crate) fn dots<R: CubeRuntime>(x: &CubeTensor<R>, vectors: &[Range<usize>], blocks: &[Range<usize>]) -> Pending<R> {
    const PIECE: usize = 8192;
    let width = width_of(x);
    let (mut tasks, mut entries) = (Vec::new(), Vec::new());
    for (b, block) in blocks.iter().enumerate() {
        for i in block.clone() {
            for j in block.start..=i {
                let len = vectors[i].len() * width;
                tasks.push([vectors[i].start * width, vectors[j].start * width, len].map(as_u32));
                let weight = if i == j { 1.0 } else { 2.0 };
                entries.push(Entry { block: b, i: i - block.start, j: j - block.start, weight });
            }
        }
    }
    let pieces = vectors.iter().map(|v| (v.len() * width).div_ceil(PIECE)).max().unwrap_or(0);
    let rows = RowSet { blocks: blocks.to_vec(), ..RowSet::default() };
    if pieces == 0 || tasks.is_empty() {
        return Pending::nothing(&rows);
    }
    let client = x.client.clone();
    let len = tasks.len() * pieces;
    let out = client.empty(len * size_of::<f32>());
    let y = tasks.len().min(65_535);
    let grid = CubeCount::Static(as_u32(pieces), as_u32(y), as_u32(tasks.len().div_ceil(y)));
    let values = rows_of(x) * width;
    let input = array(alone(x).handle, values);
    let (places, target) = (ints(&client, tasks.as_flattened()), array(out.clone(), len));
    let units = CubeDim::new_1d(UNITS);
    dot_pieces::launch::<R>(&client, grid, units, input, places, target, PIECE, UNITS as usize, x.dtype.into());
    let mut pending = Pending::new(&rows, client, out, len);
    for (t, entry) in entries.into_iter().enumerate() {
        pending.add(entry, t * pieces, pieces, 1);
    }
    pending
}
