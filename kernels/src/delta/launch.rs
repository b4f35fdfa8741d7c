//! How the gated delta rule is spread over a device: a cube a sequence, head and 64 columns or rows of its state.
use super::cube::{adjoint_columns, carry_columns, carry_rows, gate_terms, sums_behind};
use super::{DeltaInputs, DeltaRule, DeltaSpec, trunks};
use crate::on_chip::{array, empty, ints, on_devices, rows_as_they_are, rows_of};
use crate::{FloatTensor, Segment, Span, as_index};
use burn_cubecl::{CubeRuntime, tensor::CubeTensor};
use cubecl::calculate_cube_count_elemwise;
use cubecl::prelude::*;

/// Units of a cube.
const UNITS: usize = 64;

/// A cube for each task, head and block of columns or rows.
fn grid(tasks: usize, heads: usize, values: usize) -> CubeCount {
    CubeCount::Static(as_index(tasks), as_index(heads), as_index(values.div_ceil(UNITS)))
}

fn zeros<R: CubeRuntime>(like: &CubeTensor<R>, shape: [usize; 2]) -> CubeTensor<R> {
    burn_cubecl::ops::numeric::zeros_client(like.client.clone(), like.device.clone(), shape.into(), like.dtype)
}

fn forward<R: CubeRuntime>(
    [q, k, v, decay, beta]: [&CubeTensor<R>; 5],
    spans: &[Span],
    spec: DeltaSpec,
) -> (CubeTensor<R>, CubeTensor<R>) {
    let shape = [rows_of(v), spec.value_heads * spec.value_dim];
    // rows outside every span are zero
    let (out, errors) = (zeros(v, shape), zeros(v, shape));
    // a state is kept at the end of each trunk that others go on from
    let (mut first, mut second, mut kept) = (Vec::new(), Vec::new(), 0);
    for (trunk, suffixes) in trunks(spans) {
        if !suffixes.is_empty() {
            kept += 1;
        }
        let slot = if suffixes.is_empty() { 0 } else { kept };
        first.push([trunk.own.start, trunk.own.len(), 0, slot].map(as_index));
        second.extend(suffixes.iter().map(|own| [own.own.start, own.own.len(), slot, 0].map(as_index)));
    }
    let values = (kept * spec.value_heads * spec.key_dim * spec.value_dim).max(1);
    let states = q.client.empty(values * size_of::<f32>());
    let arg = |x: &CubeTensor<R>| rows_as_they_are(x).into_tensor_arg();
    for tasks in [first, second].into_iter().filter(|tasks| !tasks.is_empty()) {
        carry_columns::launch::<R>(
            &q.client,
            grid(tasks.len(), spec.value_heads, spec.value_dim),
            CubeDim::new_1d(as_index(UNITS)),
            arg(q),
            arg(k),
            arg(v),
            arg(decay),
            arg(beta),
            ints(&q.client, tasks.as_flattened()),
            array(states.clone(), values),
            out.clone().into_tensor_arg(),
            errors.clone().into_tensor_arg(),
            as_index(spec.value_heads),
            spec.shared(),
            spec.key_dim,
            spec.value_dim,
        );
    }
    (out, errors)
}

fn vjp<R: CubeRuntime>(
    [q, k, v, decay, beta]: [&CubeTensor<R>; 5],
    [out, errors, delta]: [&CubeTensor<R>; 3],
    segments: &[Segment],
    spec: DeltaSpec,
) -> [CubeTensor<R>; 5] {
    let (rows, client) = (rows_of(delta), &q.client);
    let (keys, values) = (spec.key_heads * spec.key_dim, spec.value_heads * spec.value_dim);
    let [dq, dk] = [empty(q, [rows, keys], q.dtype), empty(q, [rows, keys], q.dtype)];
    let (dv, du) = (empty(q, [rows, values], q.dtype), empty(q, [rows, values], q.dtype));
    let [dg, dbeta] = [(); 2].map(|()| empty(q, [rows, spec.value_heads], q.dtype));
    if rows > 0 {
        let (mut tasks, mut index, mut first) = (Vec::new(), Vec::with_capacity(rows), 0);
        for segment in segments.iter().filter(|segment| !segment.is_empty()) {
            let (prefix, own) = (&segment.prefix, &segment.own);
            tasks.push([prefix.start, prefix.len(), own.start, first, segment.len()].map(as_index));
            index.extend(prefix.clone().chain(own.clone()).map(as_index));
            first += segment.len();
        }
        let arg = |x: &CubeTensor<R>| rows_as_they_are(x).into_tensor_arg();
        let of_tasks = || ints(client, tasks.as_flattened());
        let units = CubeDim::new_1d(as_index(UNITS));
        adjoint_columns::launch::<R>(
            client,
            grid(tasks.len(), spec.value_heads, spec.value_dim),
            units,
            arg(q),
            arg(k),
            arg(decay),
            arg(beta),
            arg(delta),
            of_tasks(),
            du.clone().into_tensor_arg(),
            spec.shared(),
            spec.key_dim,
            spec.value_dim,
        );
        carry_rows::launch::<R>(
            client,
            grid(tasks.len(), spec.key_heads, spec.key_dim),
            units,
            arg(q),
            arg(k),
            arg(decay),
            arg(beta),
            arg(errors),
            arg(delta),
            arg(&du),
            of_tasks(),
            dq.clone().into_tensor_arg(),
            dk.clone().into_tensor_arg(),
            spec.shared(),
            spec.key_dim,
            spec.value_dim,
        );
        gate_terms::launch::<R>(
            client,
            calculate_cube_count_elemwise(client, rows * spec.value_heads, units),
            units,
            arg(v),
            arg(beta),
            arg(out),
            arg(errors),
            arg(delta),
            arg(&du),
            ints(client, &index),
            dv.clone().into_tensor_arg(),
            dbeta.clone().into_tensor_arg(),
            dg.clone().into_tensor_arg(),
            spec.value_dim,
        );
        sums_behind::launch::<R>(
            client,
            calculate_cube_count_elemwise(client, tasks.len() * spec.value_heads, units),
            units,
            of_tasks(),
            dg.clone().into_tensor_arg(),
            as_index(tasks.len()),
        );
    }
    [dq, dk, dv, dg, dbeta]
}

on_devices! { DeltaRule, R {
    fn delta_rule(
        inputs: &DeltaInputs<'_, Self>,
        spans: &[Span],
        spec: DeltaSpec,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let DeltaInputs { q, k, v, decay, beta } = *inputs;
        forward([q, k, v, decay, beta], spans, spec)
    }

    fn delta_rule_vjp(
        inputs: &DeltaInputs<'_, Self>,
        (out, errors): (&FloatTensor<Self>, &FloatTensor<Self>),
        delta: &FloatTensor<Self>,
        segments: &[Segment],
        spec: DeltaSpec,
    ) -> [FloatTensor<Self>; 5] {
        let DeltaInputs { q, k, v, decay, beta } = *inputs;
        vjp([q, k, v, decay, beta], [out, errors, delta], segments, spec)
    }
} }
