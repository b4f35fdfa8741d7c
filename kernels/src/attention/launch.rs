//! How attention is spread over a device: one cube a tile of 64 rows and head.
use super::Attend;
use super::cube::{SIDE, TILE, attend, attend_vjp_keys, attend_vjp_queries, row_products};
use super::matrix_units::{self, PLANES};
use super::strategy::{Strategy, loads_wide};
use crate::on_chip::{empty, ints, limits, on_devices, rows_as_they_are, rows_of, width_of};
use crate::{AttentionSpec, FloatTensor, Segment, Span, as_index};
use burn_backend::DType;
use burn_cubecl::{CubeRuntime, tensor::CubeTensor};
use cubecl::calculate_cube_count_elemwise;
use cubecl::prelude::*;

/// Positions that a query sees where there is no window: more than any sequence has, and no sum with them overflows.
const NO_WINDOW: usize = 1 << 30;

/// Scale, soft cap and window of scores, as kernels take them.
#[allow(clippy::cast_possible_truncation)]
fn scores(spec: AttentionSpec) -> (f32, f32, u32) {
    let cap = spec.cap.map_or(1.0, |cap| cap.0 as f32);
    (spec.scale as f32, cap, as_index(spec.window.unwrap_or(NO_WINDOW).min(NO_WINDOW)))
}

/// See [`Attend::attend`].
pub(crate) fn attention<R: CubeRuntime>(
    q: &CubeTensor<R>,
    k: &CubeTensor<R>,
    v: &CubeTensor<R>,
    spans: &[Span],
    spec: AttentionSpec,
) -> (CubeTensor<R>, CubeTensor<R>) {
    let rows = rows_of(q);
    let (scale, cap, window) = scores(spec);
    // rows outside every span are zero
    let covered: usize = spans.iter().map(|span| span.own.len()).sum();
    let out = match covered == rows {
        true => empty(q, [rows, width_of(q)], q.dtype),
        false => burn_cubecl::ops::numeric::zeros_client(
            q.client.clone(),
            q.device.clone(),
            [rows, width_of(q)].into(),
            q.dtype,
        ),
    };
    let normaliser = empty(q, [rows, spec.heads], DType::F32);
    let mut tasks = Vec::new();
    for span in spans {
        for first in (0..span.own.len()).step_by(SIDE) {
            let end = (first + SIDE).min(span.own.len());
            tasks.push([span.prefix.start, span.prefix.len(), span.own.start, first, end].map(as_index));
        }
    }
    if tasks.is_empty() {
        return (out, normaliser);
    }
    let (client, dtype, h, repeat) = (&q.client, q.dtype.into(), spec.head_dim, spec.heads / spec.kv_heads);
    let [q, k, v] = [q, k, v].map(rows_as_they_are);
    let strategy = Strategy::choose(h, loads_wide(h, &[&q, &k, &v]), &limits(client, q.dtype));
    let grid = CubeCount::Static(as_index(tasks.len()), as_index(spec.heads), 1);
    let [q, k, v] = [q, k, v].map(CubeTensor::into_tensor_arg);
    let tasks = ints(client, tasks.as_flattened());
    let (target, normal) = (out.clone().into_tensor_arg(), normaliser.clone().into_tensor_arg());
    let capped = spec.cap.is_some();
    match strategy {
        Strategy::Units => {
            let units = CubeDim::new_1d(as_index(TILE.units()));
            attend::launch::<R>(
                client, grid, units, q, k, v, tasks, target, normal, scale, cap, window, h, repeat, capped, dtype,
            );
        }
        Strategy::MatrixUnits { plane } => {
            let units = CubeDim::new_2d(as_index(plane), as_index(PLANES));
            matrix_units::attend::launch::<R>(
                client, grid, units, q, k, v, tasks, target, normal, scale, cap, window, h, repeat, capped, plane,
                dtype,
            );
        }
    }
    (out, normaliser)
}

/// See [`Attend::attend_vjp`].
pub(crate) fn attention_vjp<R: CubeRuntime>(
    [q, k, v]: [&CubeTensor<R>; 3],
    (out, normaliser): (&CubeTensor<R>, &CubeTensor<R>),
    delta: &CubeTensor<R>,
    segments: &[Segment],
    spec: AttentionSpec,
) -> [CubeTensor<R>; 3] {
    let (client, rows, h) = (&q.client, rows_of(delta), spec.head_dim);
    let (wide, narrow) = (spec.heads * h, spec.kv_heads * h);
    let results = [wide, narrow, narrow].map(|width| empty(q, [rows, width], q.dtype));
    if rows == 0 {
        return results;
    }
    let (mut tasks, mut index, mut offset) = (Vec::new(), Vec::with_capacity(rows), 0);
    for segment in segments {
        for first in (0..segment.len()).step_by(SIDE) {
            let (prefix, own) = (&segment.prefix, &segment.own);
            let numbers = [prefix.start, prefix.len(), own.start, offset, segment.len(), segment.active_from, first];
            tasks.push(numbers.map(as_index));
        }
        index.extend(segment.prefix.clone().chain(segment.own.clone()).map(as_index));
        offset += segment.len();
    }
    let arg = |x: &CubeTensor<R>| rows_as_they_are(x).into_tensor_arg();
    let products = empty(q, [rows, spec.heads], DType::F32);
    let units = CubeDim::new_1d(as_index(TILE.units()));
    row_products::launch::<R>(
        client,
        calculate_cube_count_elemwise(client, rows * spec.heads, units),
        units,
        arg(delta),
        arg(out),
        ints(client, &index),
        products.clone().into_tensor_arg(),
        h,
        q.dtype.into(),
    );
    let [dq, dk, dv] = results.clone().map(CubeTensor::into_tensor_arg);
    let (repeat, capped, dtype) = (spec.heads / spec.kv_heads, spec.cap.is_some(), q.dtype.into());
    let (scale, cap, window) = scores(spec);
    let inputs = [q, k, v, delta].map(rows_as_they_are);
    let strategy = Strategy::choose(h, loads_wide(h, &inputs.each_ref()), &limits(client, q.dtype));
    let [q, k, v, delta] = inputs.each_ref().map(|x| x.clone().into_tensor_arg());
    let [q1, k1, v1, delta1] = inputs.map(CubeTensor::into_tensor_arg);
    let (normal, normal1) = (arg(normaliser), arg(normaliser));
    let (products, products1) = (arg(&products), arg(&products));
    let grid = |heads: usize| CubeCount::Static(as_index(tasks.len()), as_index(heads), 1);
    let (of_queries, of_keys) = (grid(spec.heads), grid(spec.kv_heads));
    let tiles = || ints(client, tasks.as_flattened());
    match strategy {
        Strategy::Units => {
            attend_vjp_queries::launch::<R>(
                client,
                of_queries,
                units,
                q,
                k,
                v,
                delta,
                normal,
                products,
                tiles(),
                dq,
                scale,
                cap,
                window,
                h,
                repeat,
                capped,
                dtype,
            );
            attend_vjp_keys::launch::<R>(
                client,
                of_keys,
                units,
                q1,
                k1,
                v1,
                delta1,
                normal1,
                products1,
                tiles(),
                dk,
                dv,
                scale,
                cap,
                window,
                h,
                repeat,
                capped,
                dtype,
            );
        }
        Strategy::MatrixUnits { plane } => {
            let units = CubeDim::new_2d(as_index(plane), as_index(PLANES));
            matrix_units::attend_vjp_queries::launch::<R>(
                client,
                of_queries,
                units,
                q,
                k,
                v,
                delta,
                normal,
                products,
                tiles(),
                dq,
                scale,
                cap,
                window,
                h,
                repeat,
                capped,
                plane,
                dtype,
            );
            matrix_units::attend_vjp_keys::launch::<R>(
                client,
                of_keys,
                units,
                q1,
                k1,
                v1,
                delta1,
                normal1,
                products1,
                tiles(),
                dk,
                dv,
                scale,
                cap,
                window,
                h,
                repeat,
                capped,
                plane,
                dtype,
            );
        }
    }
    results
}

on_devices! { Attend, R {
    fn attend(
        q: &FloatTensor<Self>,
        k: &FloatTensor<Self>,
        v: &FloatTensor<Self>,
        spans: &[Span],
        spec: AttentionSpec,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        attention(q, k, v, spans, spec)
    }

    fn attend_vjp(
        qkv: [&FloatTensor<Self>; 3],
        forward: (&FloatTensor<Self>, &FloatTensor<Self>),
        delta: &FloatTensor<Self>,
        segments: &[Segment],
        spec: AttentionSpec,
    ) -> [FloatTensor<Self>; 3] {
        attention_vjp(qkv, forward, delta, segments, spec)
    }
} }
