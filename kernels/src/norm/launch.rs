//! How norms are spread over a device: one cube a row.
use super::Norm;
use super::cube::{norm_rows, norm_rows_gain_terms, norm_rows_vjp};
use crate::on_chip::{array, by_rows, contiguous, empty, ints, on_devices, rows_as_they_are, rows_of, width_of};
use crate::{FloatTensor, NormKind, as_index};
use burn_cubecl::{CubeRuntime, tensor::CubeTensor};
use cubecl::prelude::*;

/// Units of a cube for rows of a width: a power of two, so that sums are trees.
fn units(width: usize) -> usize {
    width.next_power_of_two().clamp(32, 256)
}

#[allow(clippy::cast_possible_truncation)]
fn eps(kind: NormKind) -> f32 {
    kind.eps as f32
}

fn vector<R: CubeRuntime>(x: &CubeTensor<R>) -> ArrayArg<R> {
    array(contiguous(x).handle, width_of(x))
}

/// See the trait's `norm`.
pub(crate) fn norm<R: CubeRuntime>(
    x: &CubeTensor<R>,
    gain: &CubeTensor<R>,
    bias: Option<&CubeTensor<R>>,
    kind: NormKind,
) -> CubeTensor<R> {
    let (rows, width, units) = (rows_of(x), width_of(x), units(width_of(x)));
    let y = empty(x, [rows, width], x.dtype);
    if rows == 0 {
        return y;
    }
    norm_rows::launch::<R>(
        &x.client,
        by_rows(rows),
        CubeDim::new_1d(as_index(units)),
        rows_as_they_are(x).into_tensor_arg(),
        vector(gain),
        vector(bias.unwrap_or(gain)),
        y.clone().into_tensor_arg(),
        eps(kind),
        kind.centred,
        bias.is_some(),
        units,
        x.dtype.into(),
    );
    y
}

/// See the trait's `norm_vjp`.
pub(crate) fn norm_vjp<R: CubeRuntime>(
    x: &CubeTensor<R>,
    gain: &CubeTensor<R>,
    kind: NormKind,
    delta: &CubeTensor<R>,
    index: &[u32],
    onto: Option<CubeTensor<R>>,
) -> CubeTensor<R> {
    let (width, units) = (width_of(x), units(width_of(x)));
    let dx = empty(x, [index.len(), width], x.dtype);
    if index.is_empty() {
        return dx;
    }
    let delta = rows_as_they_are(delta);
    norm_rows_vjp::launch::<R>(
        &x.client,
        by_rows(index.len()),
        CubeDim::new_1d(as_index(units)),
        rows_as_they_are(x).into_tensor_arg(),
        vector(gain),
        delta.clone().into_tensor_arg(),
        ints(&x.client, index),
        onto.as_ref().map_or(delta, rows_as_they_are).into_tensor_arg(),
        dx.clone().into_tensor_arg(),
        eps(kind),
        kind.centred,
        onto.is_some(),
        units,
        x.dtype.into(),
    );
    dx
}

/// See the trait's `norm_gain_terms`.
pub(crate) fn norm_gain_terms<R: CubeRuntime>(
    x: &CubeTensor<R>,
    kind: NormKind,
    delta: &CubeTensor<R>,
    index: &[u32],
) -> CubeTensor<R> {
    let (width, units) = (width_of(x), units(width_of(x)));
    let terms = empty(x, [index.len(), width], x.dtype);
    if index.is_empty() {
        return terms;
    }
    norm_rows_gain_terms::launch::<R>(
        &x.client,
        by_rows(index.len()),
        CubeDim::new_1d(as_index(units)),
        rows_as_they_are(x).into_tensor_arg(),
        rows_as_they_are(delta).into_tensor_arg(),
        ints(&x.client, index),
        terms.clone().into_tensor_arg(),
        eps(kind),
        kind.centred,
        units,
        x.dtype.into(),
    );
    terms
}

on_devices! { Norm, R {
    fn norm(
        x: &FloatTensor<Self>,
        gain: &FloatTensor<Self>,
        bias: Option<&FloatTensor<Self>>,
        kind: NormKind,
    ) -> FloatTensor<Self> {
        norm(x, gain, bias, kind)
    }

    fn norm_vjp(
        x: &FloatTensor<Self>,
        gain: &FloatTensor<Self>,
        kind: NormKind,
        delta: &FloatTensor<Self>,
        index: &[u32],
        onto: Option<FloatTensor<Self>>,
    ) -> FloatTensor<Self> {
        norm_vjp(x, gain, kind, delta, index, onto)
    }

    fn norm_gain_terms(
        x: &FloatTensor<Self>,
        kind: NormKind,
        delta: &FloatTensor<Self>,
        index: &[u32],
    ) -> FloatTensor<Self> {
        norm_gain_terms(x, kind, delta, index)
    }
} }
