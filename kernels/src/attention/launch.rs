//! How attention is spread over a device: one cube a tile of 64 rows and head.
use super::Attend;
use super::cube::{SIDE, TILE, attend, attend_vjp_keys, attend_vjp_queries, row_products};
use crate::on_chip::{empty, ints, on_devices, rows_as_they_are, rows_of, width_of};
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
    if !tasks.is_empty() {
        attend::launch::<R>(
            &q.client,
            CubeCount::Static(as_index(tasks.len()), as_index(spec.heads), 1),
            CubeDim::new_1d(as_index(TILE.units())),
            rows_as_they_are(q).into_tensor_arg(),
            rows_as_they_are(k).into_tensor_arg(),
            rows_as_they_are(v).into_tensor_arg(),
            ints(&q.client, tasks.as_flattened()),
            out.clone().into_tensor_arg(),
            normaliser.clone().into_tensor_arg(),
            scale,
            cap,
            window,
            spec.head_dim,
            spec.heads / spec.kv_heads,
            spec.cap.is_some(),
            q.dtype.into(),
        );
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
    let [dq, dk, dv] = &results;
    let repeat = spec.heads / spec.kv_heads;
    let (scale, cap, window) = scores(spec);
    attend_vjp_queries::launch::<R>(
        client,
        CubeCount::Static(as_index(tasks.len()), as_index(spec.heads), 1),
        units,
        arg(q),
        arg(k),
        arg(v),
        arg(delta),
        arg(normaliser),
        arg(&products),
        ints(client, tasks.as_flattened()),
        dq.clone().into_tensor_arg(),
        scale,
        cap,
        window,
        h,
        repeat,
        spec.cap.is_some(),
        q.dtype.into(),
    );
    attend_vjp_keys::launch::<R>(
        client,
        CubeCount::Static(as_index(tasks.len()), as_index(spec.kv_heads), 1),
        units,
        arg(q),
        arg(k),
        arg(v),
        arg(delta),
        arg(normaliser),
        arg(&products),
        ints(client, tasks.as_flattened()),
        dk.clone().into_tensor_arg(),
        dv.clone().into_tensor_arg(),
        scale,
        cap,
        window,
        h,
        repeat,
        spec.cap.is_some(),
        q.dtype.into(),
    );
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
