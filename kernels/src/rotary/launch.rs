//! How the rotary embedding is spread over a device: a unit a pair of values, or a value that is left.
use super::cube::rotate;
use super::{Pairs, Rotary};
use crate::FloatTensor;
use crate::on_chip::{empty, ints, on_devices, rows_as_they_are, rows_of, width_of};
use burn_cubecl::{CubeRuntime, tensor::CubeTensor};
use cubecl::calculate_cube_count_elemwise;
use cubecl::prelude::*;

/// Units of a cube.
const UNITS: u32 = 256;

/// See the trait's `rotary`.
pub(crate) fn rotary<R: CubeRuntime>(
    x: CubeTensor<R>,
    cos: &CubeTensor<R>,
    sin: &CubeTensor<R>,
    index: Option<&[u32]>,
    (head_dim, pairs): (usize, Pairs),
    inverse: bool,
) -> CubeTensor<R> {
    let out = empty(&x, [rows_of(&x), width_of(&x)], x.dtype);
    let half = width_of(cos);
    let cells = out.meta.num_elements() / head_dim * (head_dim - half);
    if cells == 0 {
        return out;
    }
    let (client, units, dtype) = (x.client.clone(), CubeDim::new_1d(UNITS), x.dtype.into());
    let grid = calculate_cube_count_elemwise(&client, cells, units);
    let rows = ints(&client, index.unwrap_or_default());
    let (cos, sin) = (rows_as_they_are(cos).into_tensor_arg(), rows_as_they_are(sin).into_tensor_arg());
    let (input, target) = (rows_as_they_are(&x).into_tensor_arg(), out.clone().into_tensor_arg());
    let (sign, indexed) = (if inverse { -1.0f32 } else { 1.0 }, index.is_some());
    let neighbours = pairs == Pairs::Neighbours;
    rotate::launch::<R>(
        &client, grid, units, input, cos, sin, rows, target, sign, indexed, neighbours, head_dim, half, dtype,
    );
    out
}

on_devices! { Rotary, R {
    fn rotary(
        x: FloatTensor<Self>,
        cos: &FloatTensor<Self>,
        sin: &FloatTensor<Self>,
        index: Option<&[u32]>,
        heads: (usize, Pairs),
        inverse: bool,
    ) -> FloatTensor<Self> {
        rotary(x, cos, sin, index, heads, inverse)
    }
} }
