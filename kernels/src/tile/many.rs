//! The *tile* reduction of more cotangents than a cube holds: gradients panel by panel in device memory, and their inner
//! products as one product of matrices.
//!
//! A sum over a panel's entries is cut into pieces of [`PIECE`] in f32; pieces are summed in f64.
use super::cube::scale_panel;
use crate::RowSet;
use crate::on_chip::{array, width_of};
use crate::pending::Pending;
use crate::product::launch::{columns, product, product_into, rows as some_rows, transposed};
use crate::rows::launch::gather;
use burn_backend::{DType, Shape};
use burn_cubecl::{CubeRuntime, kernel::into_contiguous, ops::numeric::zeros_client, tensor::CubeTensor};
use cubecl::calculate_cube_count_elemwise;
use cubecl::prelude::*;
use std::ops::Range;

/// Entries of the gradients whose products are summed in f32.
const PIECE: usize = 1024;

/// Units of a cube that each have a value of their own.
const UNITS: u32 = 256;

/// Bytes of the gradients of all cotangents that are held at once.
const PANEL_BYTES: usize = 128 << 20;

/// The inner products of the gradients of a set's cotangents.
pub(super) fn gram<R: CubeRuntime>(
    [x, delta]: [&CubeTensor<R>; 2],
    rows: &RowSet,
    set: usize,
    roots: Option<&CubeTensor<R>>,
) -> Pending<R> {
    let (n, m) = (width_of(x), width_of(delta));
    let cotangents = rows.sets[set].clone();
    let step = (PANEL_BYTES / size_of::<f32>() / cotangents.len() / n.max(1)).clamp(1, m.max(1));
    let inputs: Vec<CubeTensor<R>> = cotangents.clone().map(|k| used(x, rows, k)).collect();
    let mut pending = Pending::nothing(rows);
    for first in (0..m).step_by(step) {
        let delta = columns(delta, first..(first + step).min(m));
        let gradients = panel(&inputs, &delta, rows, &cotangents);
        if let Some(roots) = roots {
            scale(&gradients, roots, first);
        }
        let pieces = pieces(&gradients);
        let products = product(&pieces, &transposed(&pieces), DType::F32);
        pending = pending.plus(Pending::matrices(rows, &products, set, (0..cotangents.len()).collect()));
    }
    pending
}

/// The rows of x that a cotangent's rows use.
fn used<R: CubeRuntime>(x: &CubeTensor<R>, rows: &RowSet, k: usize) -> CubeTensor<R> {
    let of = rows.of(k);
    match rows.runs(k).as_slice() {
        [_] => {
            let first = rows.index[of.start] as usize;
            some_rows(x, first..first + of.len())
        }
        _ => gather(x, &rows.index[of], None),
    }
}

/// Gradients `[K, m·n]` of a parameter's columns `[m, n]`, with zeros up to a whole number of pieces.
fn panel<R: CubeRuntime>(
    inputs: &[CubeTensor<R>],
    delta: &CubeTensor<R>,
    rows: &RowSet,
    cotangents: &Range<usize>,
) -> CubeTensor<R> {
    let (n, m) = (width_of(&inputs[0]), width_of(delta));
    let width = (m * n).next_multiple_of(PIECE);
    let shape = Shape::from([cotangents.len(), width]);
    let all = zeros_client(delta.client.clone(), delta.device.clone(), shape, DType::F32);
    for (at, (k, x)) in cotangents.clone().zip(inputs).enumerate() {
        let of = rows.of(k);
        if of.is_empty() {
            continue;
        }
        // a gradient's place in the panel; pieces are longer than any device's alignment
        let bytes = |values: usize| (values * size_of::<f32>()) as u64;
        let after = (cotangents.len() - at) * width - m * n;
        let handle = all.handle.clone().offset_start(bytes(at * width)).offset_end(bytes(after));
        let (client, device) = (all.client.clone(), all.device.clone());
        let place = CubeTensor::new_contiguous(client, device, Shape::from([m, n]), handle, DType::F32);
        product_into(&transposed(&some_rows(delta, of)), x, &place);
    }
    all
}

/// Multiplies each entry of a panel's gradients with that of `roots[n, m]`, of which the panel has the columns from `first` on.
fn scale<R: CubeRuntime>(gradients: &CubeTensor<R>, roots: &CubeTensor<R>, first: usize) {
    let ([n, m], [k, width]) =
        ([roots.meta.shape()[0], width_of(roots)], [gradients.meta.shape()[0], width_of(gradients)]);
    let (client, units) = (gradients.client.clone(), CubeDim::new_1d(UNITS));
    let grid = calculate_cube_count_elemwise(&client, k * width, units);
    let (all, factors) = (array(gradients.handle.clone(), k * width), array(roots.handle.clone(), n * m));
    scale_panel::launch::<R>(&client, grid, units, all, factors, n, m, first, width);
}

/// `[pieces, K, PIECE]` of `[K, pieces·PIECE]`.
fn pieces<R: CubeRuntime>(gradients: &CubeTensor<R>) -> CubeTensor<R> {
    let (k, width) = (gradients.meta.shape()[0], width_of(gradients));
    let shape = Shape::from([k, width / PIECE, PIECE]);
    let (client, device) = (gradients.client.clone(), gradients.device.clone());
    let mut cut = CubeTensor::new_contiguous(client, device, shape, gradients.handle.clone(), gradients.dtype);
    cut.meta.swap(0, 1);
    into_contiguous(cut)
}
