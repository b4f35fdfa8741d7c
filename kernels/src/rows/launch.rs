//! How rows by index and sums over rows are spread over a device.
use super::cube::{gather_rows, sum_members};
use super::{Rows, reference};
use crate::on_chip::{empty, floats, ints, on_devices, rows_as_they_are, width_of};
use crate::product::launch::columns;
use crate::{FloatTensor, as_index};
use burn_backend::{DType, ops::FloatTensorOps};
use burn_cubecl::{CubeRuntime, tensor::CubeTensor};
use cubecl::calculate_cube_count_elemwise;
use cubecl::prelude::*;

/// Units of a cube that each have a value of their own.
const UNITS: u32 = 256;

/// See [`Rows::gather`].
pub(crate) fn gather<R: CubeRuntime>(x: &CubeTensor<R>, from: &[u32], weights: Option<&[f64]>) -> CubeTensor<R> {
    let out = empty(x, [from.len(), width_of(x)], x.dtype);
    let values = out.meta.num_elements();
    if values == 0 {
        return out;
    }
    let (client, units) = (x.client.clone(), CubeDim::new_1d(UNITS));
    let grid = calculate_cube_count_elemwise(&client, values, units);
    let (rows, scale) = (ints(&client, from), floats(&client, weights.unwrap_or_default()));
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
    lists.iter().for_each(|list| starts.push(starts[starts.len() - 1] + as_index(list.len())));
    let (client, units) = (x.client.clone(), CubeDim::new_1d(UNITS));
    let grid = calculate_cube_count_elemwise(&client, values, units);
    let (starts, members) = (ints(&client, &starts), ints(&client, &lists.concat()));
    let (input, target) = (rows_as_they_are(x).into_tensor_arg(), out.clone().into_tensor_arg());
    sum_members::launch::<R>(&client, grid, units, input, starts, members, target, [x.dtype.into(), dtype.into()]);
    out
}

/// See [`Rows::scatter_add`].
pub(crate) fn scatter_add<R: CubeRuntime>(x: &CubeTensor<R>, places: &[u32], rows: usize) -> CubeTensor<R> {
    let mut lists = vec![Vec::new(); rows];
    for (row, &to) in places.iter().enumerate() {
        lists[to as usize].push(as_index(row));
    }
    sums(x, &lists, x.dtype)
}

/// Sums over each cotangent's rows, `[K, m]` in f32.
pub(crate) fn segment_sums<R: CubeRuntime>(x: &CubeTensor<R>, offsets: &[usize]) -> CubeTensor<R> {
    let lists: Vec<Vec<u32>> = offsets.windows(2).map(|ends| (ends[0]..ends[1]).map(as_index).collect()).collect();
    sums(x, &lists, DType::F32)
}

/// See [`Rows::split_columns`].
fn split_columns<R: CubeRuntime>(x: &CubeTensor<R>, widths: &[usize]) -> Vec<CubeTensor<R>> {
    let ends = widths.iter().scan(0, |end, width| {
        *end += width;
        Some(*end - width..*end)
    });
    ends.map(|range| columns(x, range)).collect()
}

on_devices! { Rows, R {
    fn gather(x: &FloatTensor<Self>, index: &[u32], weights: Option<&[f64]>) -> FloatTensor<Self> {
        gather(x, index, weights)
    }

    fn scatter_add(x: &FloatTensor<Self>, index: &[u32], rows: usize) -> FloatTensor<Self> {
        scatter_add(x, index, rows)
    }

    fn place_rows(parts: &[(FloatTensor<Self>, &[u32])], rows: usize) -> FloatTensor<Self> {
        let places: Vec<u32> = parts.iter().flat_map(|(_, places)| places.iter().copied()).collect();
        let all = Self::float_cat(parts.iter().map(|(part, _)| part.clone()).collect(), 0);
        scatter_add(&all, &places, rows)
    }

    fn segment_sums(x: &FloatTensor<Self>, offsets: &[usize]) -> FloatTensor<Self> {
        segment_sums(x, offsets)
    }

    fn split_columns(x: &FloatTensor<Self>, widths: &[usize]) -> Vec<FloatTensor<Self>> {
        split_columns(x, widths)
    }

    fn join_columns(parts: &[FloatTensor<Self>]) -> FloatTensor<Self> {
        reference::join_columns::<Self>(parts)
    }
} }
