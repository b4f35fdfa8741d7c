//! How attention is spread over a device: one cube a tile of 64 rows, or 128, and head.
use super::Attend;
use super::cube::{TILE, TOGETHER, attend, attend_vjp_keys, attend_vjp_queries, row_products};
use super::in_registers::{self, PLANE};
use super::matrix_units::{self, PLANES};
use super::strategy::{Pass, Strategy};
use super::task::{BackInputsLaunch, InputsLaunch, OF_SEGMENT, OF_SPAN, ScoringLaunch};
use crate::on_chip::{by_rows, empty, ints, limits, loads_wide, on_devices, rows_as_they_are, rows_of, width_of};
use crate::{AttentionSpec, FloatTensor, Segment, SoftCap, Span, as_index};
use burn_backend::DType;
use burn_cubecl::{CubeRuntime, tensor::CubeTensor};
use cubecl::prelude::*;

/// Positions that a query sees where there is no window: more than any sequence has, and no sum with them overflows.
const NO_WINDOW: usize = 1 << 30;

/// How products become scores and weights, as kernels take it.
#[allow(clippy::cast_possible_truncation)]
fn scoring<R: CubeRuntime>(spec: AttentionSpec) -> ScoringLaunch<R> {
    let window = as_index(spec.window.unwrap_or(NO_WINDOW).min(NO_WINDOW));
    ScoringLaunch::new(spec.scale as f32, SoftCap::bound(spec.cap), window, spec.cap.is_some())
}

/// The units of a cube.
fn units_of(strategy: Strategy, pass: Pass) -> CubeDim {
    match strategy {
        Strategy::Units => CubeDim::new_1d(as_index(TILE.units())),
        Strategy::MatrixUnits { plane } => CubeDim::new_2d(as_index(plane), as_index(PLANES)),
        Strategy::InRegisters => CubeDim::new_2d(as_index(PLANE), as_index(in_registers::planes(pass))),
    }
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
    let (client, dtype, h, repeat) = (&q.client, q.dtype.into(), spec.head_dim, spec.heads / spec.kv_heads);
    let [q, k, v] = [q, k, v].map(rows_as_they_are);
    let strategy = Strategy::choose(Pass::Forward, h, loads_wide(h, &[&q, &k, &v]), &limits(client, q.dtype));
    let mut tasks: Vec<[u32; OF_SPAN]> = Vec::new();
    for span in spans {
        for first in (0..span.own.len()).step_by(strategy.rows(h)) {
            let end = (first + strategy.rows(h)).min(span.own.len());
            tasks.push([span.prefix.start, span.prefix.len(), span.own.start, first, end].map(as_index));
        }
    }
    if tasks.is_empty() {
        return (out, normaliser);
    }
    let grid = CubeCount::Static(as_index(tasks.len()), as_index(spec.heads), 1);
    let [q, k, v] = [q, k, v].map(CubeTensor::into_tensor_arg);
    let tasks = ints(client, tasks.as_flattened());
    let (target, normal) = (out.clone().into_tensor_arg(), normaliser.clone().into_tensor_arg());
    let (units, scoring) = (units_of(strategy, Pass::Forward), scoring(spec));
    match strategy {
        Strategy::Units => {
            let inputs = InputsLaunch::new(q, k, v);
            attend::launch::<R>(client, grid, units, inputs, tasks, target, normal, scoring, h, repeat, dtype);
        }
        Strategy::MatrixUnits { plane } => {
            let inputs = InputsLaunch::new(q, k, v);
            matrix_units::attend::launch::<R>(
                client, grid, units, inputs, tasks, target, normal, scoring, h, repeat, plane, dtype,
            );
        }
        Strategy::InRegisters => {
            let inputs = InputsLaunch::new(q, k, v);
            in_registers::attend::launch::<R>(
                client, grid, units, inputs, tasks, target, normal, scoring, h, repeat, dtype,
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
    let (rows, h) = (rows_of(delta), spec.head_dim);
    let (wide, narrow) = (spec.heads * h, spec.kv_heads * h);
    let results = [wide, narrow, narrow].map(|width| empty(q, [rows, width], q.dtype));
    if rows == 0 {
        return results;
    }
    let index: Vec<u32> =
        segments.iter().flat_map(|segment| segment.prefix.clone().chain(segment.own.clone())).map(as_index).collect();
    let products = of_rows(delta, out, &index, spec);
    let inputs = [q, k, v, delta].map(rows_as_they_are);
    let wide = loads_wide(h, &inputs.each_ref());
    let strategy = Strategy::choose(Pass::Back, h, wide, &limits(&q.client, q.dtype));
    let back = Back { inputs, normaliser, products, segments, spec, strategy };
    back.queries(&results[0]);
    back.keys(&results[1], &results[2]);
    results
}

/// `δ·o` of every backward row in every head, `[R, heads]`.
fn of_rows<R: CubeRuntime>(
    delta: &CubeTensor<R>,
    out: &CubeTensor<R>,
    index: &[u32],
    spec: AttentionSpec,
) -> CubeTensor<R> {
    let products = empty(delta, [index.len(), spec.heads], DType::F32);
    let units = TILE.units();
    row_products::launch::<R>(
        &delta.client,
        by_rows((index.len() * spec.heads).div_ceil(units / TOGETHER)),
        CubeDim::new_1d(as_index(units)),
        rows_as_they_are(delta).into_tensor_arg(),
        rows_as_they_are(out).into_tensor_arg(),
        ints(&delta.client, index),
        products.clone().into_tensor_arg(),
        spec.head_dim,
        delta.dtype.into(),
    );
    products
}

/// What both kernels of the vjp read.
struct Back<'a, R: CubeRuntime> {
    /// q, k, v and δ.
    inputs: [CubeTensor<R>; 4],
    normaliser: &'a CubeTensor<R>,
    products: CubeTensor<R>,
    segments: &'a [Segment],
    spec: AttentionSpec,
    strategy: Strategy,
}

impl<R: CubeRuntime> Back<'_, R> {
    fn queries(&self, dq: &CubeTensor<R>) {
        let ((client, dtype), spec) = (self.on(), self.spec);
        let (h, repeat) = (spec.head_dim, spec.heads / spec.kv_heads);
        let (grid, tiles) = self.tiles(spec.heads);
        let (units, scoring) = (units_of(self.strategy, Pass::Back), scoring(spec));
        let dq = dq.clone().into_tensor_arg();
        match self.strategy {
            Strategy::Units => {
                let inputs = self.arguments();
                attend_vjp_queries::launch::<R>(client, grid, units, inputs, tiles, dq, scoring, h, repeat, dtype);
            }
            Strategy::MatrixUnits { plane } => {
                let inputs = self.arguments();
                matrix_units::attend_vjp_queries::launch::<R>(
                    client, grid, units, inputs, tiles, dq, scoring, h, repeat, plane, dtype,
                );
            }
            Strategy::InRegisters => {
                let inputs = self.arguments();
                in_registers::attend_vjp_queries::launch::<R>(
                    client, grid, units, inputs, tiles, dq, scoring, h, repeat, dtype,
                );
            }
        }
    }

    fn keys(&self, dk: &CubeTensor<R>, dv: &CubeTensor<R>) {
        let ((client, dtype), spec) = (self.on(), self.spec);
        let (h, repeat) = (spec.head_dim, spec.heads / spec.kv_heads);
        let (grid, tiles) = self.tiles(spec.kv_heads);
        let (units, scoring) = (units_of(self.strategy, Pass::Back), scoring(spec));
        let (dk, dv) = (dk.clone().into_tensor_arg(), dv.clone().into_tensor_arg());
        match self.strategy {
            Strategy::Units => {
                let inputs = self.arguments();
                attend_vjp_keys::launch::<R>(client, grid, units, inputs, tiles, dk, dv, scoring, h, repeat, dtype);
            }
            Strategy::MatrixUnits { plane } => {
                let inputs = self.arguments();
                matrix_units::attend_vjp_keys::launch::<R>(
                    client, grid, units, inputs, tiles, dk, dv, scoring, h, repeat, plane, dtype,
                );
            }
            Strategy::InRegisters => {
                let inputs = self.arguments();
                in_registers::attend_vjp_keys::launch::<R>(
                    client, grid, units, inputs, tiles, dk, dv, scoring, h, repeat, dtype,
                );
            }
        }
    }

    fn on(&self) -> (&ComputeClient<R>, StorageType) {
        (&self.products.client, self.inputs[0].dtype.into())
    }

    /// Tiles of the segments' rows, be they queries or keys, and a grid of a cube for each in each head.
    fn tiles(&self, heads: usize) -> (CubeCount, ArrayArg<R>) {
        let side = self.strategy.rows(self.spec.head_dim);
        let (mut tiles, mut offset) = (Vec::<[u32; OF_SEGMENT]>::new(), 0);
        for segment in self.segments {
            let (prefix, own, len) = (&segment.prefix, &segment.own, segment.len());
            for first in (0..len).step_by(side) {
                let numbers = [prefix.start, prefix.len(), own.start, offset, len, segment.active_from, first];
                tiles.push(numbers.map(as_index));
            }
            offset += len;
        }
        let grid = CubeCount::Static(as_index(tiles.len()), as_index(heads), 1);
        (grid, ints(&self.products.client, tiles.as_flattened()))
    }

    fn arguments<T: CubePrimitive>(&self) -> BackInputsLaunch<T, R> {
        let [q, k, v, delta] = self.inputs.each_ref();
        let [q, k, v, delta, normaliser, products] =
            [q, k, v, delta, self.normaliser, &self.products].map(|x| rows_as_they_are(x).into_tensor_arg());
        BackInputsLaunch::new(q, k, v, delta, normaliser, products)
    }
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
