//! How element-wise functions are spread over a device: a unit a value.
use super::Activate;
use super::cube::{activate_values, activate_values_vjp};
use crate::on_chip::{empty, ints, on_devices, rows_as_they_are, rows_of, width_of};
use crate::{Activation, FloatTensor};
use burn_cubecl::{CubeRuntime, tensor::CubeTensor};
use cubecl::calculate_cube_count_elemwise;
use cubecl::prelude::*;

/// Units of a cube.
const UNITS: u32 = 256;

/// See the trait's `activate`.
pub(crate) fn activate<R: CubeRuntime>(f: Activation, a: &CubeTensor<R>, b: Option<&CubeTensor<R>>) -> CubeTensor<R> {
    let out = empty(a, [rows_of(a), width_of(a)], a.dtype);
    let values = out.meta.num_elements();
    if values == 0 {
        return out;
    }
    let (client, units) = (a.client.clone(), CubeDim::new_1d(UNITS));
    let grid = calculate_cube_count_elemwise(&client, values, units);
    let (left, right) = (rows_as_they_are(a).into_tensor_arg(), rows_as_they_are(b.unwrap_or(a)).into_tensor_arg());
    let target = out.clone().into_tensor_arg();
    activate_values::launch::<R>(&client, grid, units, left, right, target, f, b.is_some(), a.dtype.into());
    out
}

/// See the trait's `activate_vjp`.
pub(crate) fn activate_vjp<R: CubeRuntime>(
    f: Activation,
    a: &CubeTensor<R>,
    b: Option<&CubeTensor<R>>,
    delta: &CubeTensor<R>,
    index: &[u32],
) -> (CubeTensor<R>, Option<CubeTensor<R>>) {
    let shape = [index.len(), width_of(a)];
    let da = empty(a, shape, a.dtype);
    // without a gate nothing is written to the second result, and the first stands in for it
    let db = if b.is_some() { empty(a, shape, a.dtype) } else { da.clone() };
    let values = da.meta.num_elements();
    if values > 0 {
        let (client, units) = (a.client.clone(), CubeDim::new_1d(UNITS));
        let grid = calculate_cube_count_elemwise(&client, values, units);
        let (left, right) = (rows_as_they_are(a).into_tensor_arg(), rows_as_they_are(b.unwrap_or(a)).into_tensor_arg());
        let (delta, rows) = (rows_as_they_are(delta).into_tensor_arg(), ints(&client, index));
        let (first, second) = (da.clone().into_tensor_arg(), db.clone().into_tensor_arg());
        let (gated, dtype) = (b.is_some(), a.dtype.into());
        activate_values_vjp::launch::<R>(
            &client, grid, units, left, right, delta, rows, first, second, f, gated, dtype,
        );
    }
    (da, b.map(|_| db))
}

on_devices! { Activate, R {
    fn activate(f: Activation, a: &FloatTensor<Self>, b: Option<&FloatTensor<Self>>) -> FloatTensor<Self> {
        activate(f, a, b)
    }

    fn activate_vjp(
        f: Activation,
        a: &FloatTensor<Self>,
        b: Option<&FloatTensor<Self>>,
        delta: &FloatTensor<Self>,
        index: &[u32],
    ) -> (FloatTensor<Self>, Option<FloatTensor<Self>>) {
        activate_vjp(f, a, b, delta, index)
    }
} }
