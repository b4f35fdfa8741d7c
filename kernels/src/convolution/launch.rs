//! How short convolutions are spread over a device: a unit a value.
use super::Convolve;
use super::cube::{weight_terms, weighted_rows};
use crate::FloatTensor;
use crate::on_chip::{empty, ints, on_devices, rows_as_they_are, rows_of, width_of};
use burn_cubecl::{CubeRuntime, tensor::CubeTensor};
use cubecl::calculate_cube_count_elemwise;
use cubecl::prelude::*;

/// Units of a cube.
const UNITS: u32 = 256;

fn convolve<R: CubeRuntime>(x: &CubeTensor<R>, w: &CubeTensor<R>, taps: usize, sources: &[u32]) -> CubeTensor<R> {
    let out = empty(x, [sources.len() / taps, width_of(x)], x.dtype);
    let values = out.meta.num_elements();
    if values > 0 {
        let (client, units) = (&x.client, CubeDim::new_1d(UNITS));
        weighted_rows::launch::<R>(
            client,
            calculate_cube_count_elemwise(client, values, units),
            units,
            rows_as_they_are(x).into_tensor_arg(),
            rows_as_they_are(w).into_tensor_arg(),
            ints(client, sources),
            out.clone().into_tensor_arg(),
            taps,
            x.dtype.into(),
        );
    }
    out
}

fn terms<R: CubeRuntime>(x: &CubeTensor<R>, taps: usize, delta: &CubeTensor<R>, sources: &[u32]) -> CubeTensor<R> {
    let (rows, width) = (rows_of(delta), width_of(delta));
    let out = empty(x, [rows, width * taps], x.dtype);
    if rows * width > 0 {
        let (client, units) = (&x.client, CubeDim::new_1d(UNITS));
        weight_terms::launch::<R>(
            client,
            calculate_cube_count_elemwise(client, rows * width, units),
            units,
            rows_as_they_are(x).into_tensor_arg(),
            rows_as_they_are(delta).into_tensor_arg(),
            ints(client, sources),
            out.clone().into_tensor_arg(),
            taps,
            x.dtype.into(),
        );
    }
    out
}

on_devices! { Convolve, R {
    fn convolve(x: &FloatTensor<Self>, w: &FloatTensor<Self>, taps: usize, sources: &[u32]) -> FloatTensor<Self> {
        convolve(x, w, taps, sources)
    }

    fn convolve_terms(
        x: &FloatTensor<Self>,
        taps: usize,
        delta: &FloatTensor<Self>,
        sources: &[u32],
    ) -> FloatTensor<Self> {
        terms(x, taps, delta, sources)
    }
} }
