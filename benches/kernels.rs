//! Every kernel of the CPU at the shapes of SmolLM2-135M (hidden 576, feed-forward 1536, 9 heads over 3 key-value heads
//! of 64, vocabulary 49152), for one pair with a prompt of 200 tokens and two responses of 100: 400 forward rows, 600
//! backward rows. `cargo bench --workspace --bench kernels`; throughput is in floating-point operations a second (elements a
//! second for row-wise maps).
#![allow(missing_docs)] // of what criterion's macros make
use criterion::{BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main, measurement::WallTime};
use std::hint::black_box;
use tanglescope_kernels::{
    Activation, DType, Flex, FlexDevice, FloatTensor, HeadCotangents, Heads, Kernels, NormKind, RowSet, Segment, Span,
    TensorData,
};

const TRUNK: usize = 200;
const SUFFIX: usize = 100;
const FORWARD: usize = TRUNK + 2 * SUFFIX;
const BACKWARD: usize = 2 * (TRUNK + SUFFIX);
const HIDDEN: usize = 576;
const MLP: usize = 1536;
const HEADS: Heads = Heads { heads: 9, kv_heads: 3, head_dim: 64, scale: 0.125, cap: None, window: None };

/// Reproducible values between −1 and 1 without a pattern that a cache could like.
fn values(n: usize) -> Vec<f32> {
    let step = |i: usize| (i.wrapping_mul(0x9E37_79B9) >> 8) & 0xFFFF;
    (0..n).map(|i| step(i) as f32 / 32768.0 - 1.0).collect()
}

fn matrix(rows: usize, columns: usize) -> FloatTensor<Flex> {
    Flex::upload(TensorData::new(values(rows * columns), [rows, columns]), &FlexDevice)
}

fn vector(n: usize) -> FloatTensor<Flex> {
    Flex::upload(TensorData::new(values(n), [n]), &FlexDevice)
}

/// Two cotangents: each the trunk and its own suffix.
fn backward_rows() -> RowSet {
    let row = |r: usize| u32::try_from(r).unwrap_or(u32::MAX);
    let own = |k: usize| (TRUNK + k * SUFFIX..TRUNK + (k + 1) * SUFFIX).map(row);
    let index = (0..2).flat_map(|k| (0..TRUNK).map(row).chain(own(k))).collect();
    RowSet { index, offsets: vec![0, BACKWARD / 2, BACKWARD], blocks: vec![0..2] }
}

fn group<'a>(c: &'a mut Criterion, name: &str, work: usize) -> BenchmarkGroup<'a, WallTime> {
    let mut group = c.benchmark_group(name);
    group.sample_size(20).throughput(Throughput::Elements(work as u64));
    group
}

fn products(c: &mut Criterion) {
    for (name, rows, k, m) in
        [("down_proj", FORWARD, MLP, HIDDEN), ("up_proj", FORWARD, HIDDEN, MLP), ("lora_A", FORWARD, HIDDEN, 16)]
    {
        let (x, w) = (matrix(rows, k), matrix(k, m));
        let (back, stored) = (matrix(rows, m), Flex::cast(w.clone(), DType::BF16));
        let mut group = group(c, &format!("matmul/{name}"), 2 * rows * k * m);
        group.bench_function("f32", |b| b.iter(|| black_box(Flex::matmul(&x, &w, false, 1.0, None))));
        group.bench_function("f32, transposed", |b| b.iter(|| black_box(Flex::matmul(&back, &w, true, 1.0, None))));
        group.bench_function("bf16", |b| b.iter(|| black_box(Flex::matmul(&x, &stored, false, 1.0, None))));
        group.bench_function("bf16, transposed", |b| {
            b.iter(|| black_box(Flex::matmul(&back, &stored, true, 1.0, None)));
        });
    }
    let (x, delta) = (matrix(BACKWARD, HIDDEN), matrix(BACKWARD, HIDDEN));
    let mut group = group(c, "weight_gradient", 2 * BACKWARD / 2 * HIDDEN * HIDDEN);
    group.bench_function("one cotangent", |b| b.iter(|| black_box(Flex::weight_gradient(&x, &delta, 0..BACKWARD / 2))));
}

fn row_wise_maps(c: &mut Criterion) {
    let rows = backward_rows();
    let (x, gain, delta) = (matrix(FORWARD, HIDDEN), vector(HIDDEN), matrix(BACKWARD, HIDDEN));
    for (name, centred) in [("rms_norm", false), ("layer_norm", true)] {
        let kind = NormKind { centred, eps: 1e-5 };
        let mut group = group(c, name, FORWARD * HIDDEN);
        group.bench_function("forward", |b| b.iter(|| black_box(Flex::norm(&x, &gain, None, kind))));
        group.throughput(Throughput::Elements((BACKWARD * HIDDEN) as u64));
        group.bench_function("vjp", |b| {
            b.iter(|| black_box(Flex::norm_vjp(&x, &gain, kind, &delta, &rows.index, None)));
        });
        group.bench_function("gain terms", |b| {
            b.iter(|| black_box(Flex::norm_gain_terms(&x, kind, &delta, &rows.index)));
        });
    }
    let (a, b, delta) = (matrix(FORWARD, MLP), matrix(FORWARD, MLP), matrix(BACKWARD, MLP));
    for (name, f) in [("silu", Activation::Silu), ("gelu_tanh", Activation::GeluTanh), ("gelu", Activation::Gelu)] {
        let mut group = group(c, name, FORWARD * MLP);
        group.bench_function("forward", |bench| bench.iter(|| black_box(Flex::activate(f, &a, Some(&b)))));
        group.throughput(Throughput::Elements((BACKWARD * MLP) as u64));
        group.bench_function("vjp", |bench| {
            bench.iter(|| black_box(Flex::activate_vjp(f, &a, Some(&b), &delta, &rows.index)));
        });
    }
    let (cos, sin) = (matrix(FORWARD, HEADS.head_dim / 2), matrix(FORWARD, HEADS.head_dim / 2));
    let mut group = group(c, "rotary", FORWARD * HIDDEN);
    group.bench_function("forward", |b| {
        b.iter(|| black_box(Flex::rotary(x.clone(), &cos, &sin, None, HEADS.head_dim, false)));
    });
    group.finish();
    let mut group = self::group(c, "rows", BACKWARD * HIDDEN);
    group.bench_function("gather", |b| b.iter(|| black_box(Flex::gather(&x, &rows.index, None))));
    let delta = matrix(BACKWARD, HIDDEN);
    group.bench_function("scatter_add", |b| b.iter(|| black_box(Flex::scatter_add(&delta, &rows.index, FORWARD))));
    group.bench_function("segment_sums", |b| b.iter(|| black_box(Flex::segment_sums(&delta, &rows.offsets))));
}

fn attention(c: &mut Criterion) {
    let kv = HEADS.kv_heads * HEADS.head_dim;
    let (q, k, v) = (matrix(FORWARD, HIDDEN), matrix(FORWARD, kv), matrix(FORWARD, kv));
    let own = |i: usize| TRUNK + i * SUFFIX..TRUNK + (i + 1) * SUFFIX;
    let spans = [
        Span { prefix: 0..0, own: 0..TRUNK },
        Span { prefix: 0..TRUNK, own: own(0) },
        Span { prefix: 0..TRUNK, own: own(1) },
    ];
    // each query times its keys, and its probabilities times their values; half of a square is masked
    let pairs = TRUNK * TRUNK / 2 + 2 * (SUFFIX * TRUNK + SUFFIX * SUFFIX / 2);
    let mut group = group(c, "attention", 4 * pairs * HIDDEN);
    group.bench_function("forward", |b| b.iter(|| black_box(<Flex as Kernels>::attention(&q, &k, &v, &spans, HEADS))));
    let segments = [0, 1].map(|i| Segment { prefix: 0..TRUNK, own: own(i), active_from: 0 });
    let delta = matrix(BACKWARD, HIDDEN);
    let pairs = (TRUNK + SUFFIX) * (TRUNK + SUFFIX);
    group.throughput(Throughput::Elements((10 * pairs * HIDDEN) as u64));
    group.bench_function("vjp", |b| {
        let (out, normaliser) = <Flex as Kernels>::attention(&q, &k, &v, &spans, HEADS);
        b.iter(|| {
            black_box(<Flex as Kernels>::attention_vjp([&q, &k, &v], (&out, &normaliser), &delta, &segments, HEADS))
        });
    });
}

fn head(c: &mut Criterion) {
    let (rows, vocabulary) = (2 * SUFFIX, 49_152);
    let (y, w) = (matrix(rows, HIDDEN), matrix(vocabulary, HIDDEN));
    let stored = Flex::cast(w.clone(), DType::BF16);
    let targets: Vec<u32> = (0..u32::try_from(rows).unwrap_or(u32::MAX)).map(|t| t * 97).collect();
    let mut group = group(c, "head", 4 * rows * HIDDEN * vocabulary);
    group.bench_function("f32", |b| b.iter(|| black_box(Flex::head(&y, &w, &targets, None, None))));
    group.bench_function("bf16", |b| b.iter(|| black_box(Flex::head(&y, &stored, &targets, None, None))));
    group.throughput(Throughput::Elements(((4 * HIDDEN + 2 * rows) * rows * vocabulary) as u64));
    let weights = [0, SUFFIX].map(|first| (first..first + SUFFIX).map(|row| (row, 1.0)).collect());
    let cotangents = HeadCotangents { weights: &weights, blocks: &[0..2], block_rows: &[0..rows] };
    group.bench_function("f32, with its Gram", |b| {
        b.iter(|| black_box(Flex::head(&y, &w, &targets, None, Some(&cotangents))));
    });
}

fn reductions(c: &mut Criterion) {
    let rows = backward_rows();
    for (name, n, m) in
        [("lora_A", HIDDEN, 16), ("lora_B", 16, HIDDEN), ("q_proj", HIDDEN, HIDDEN), ("down_proj", MLP, HIDDEN)]
    {
        let (x, delta) = (matrix(FORWARD, n), matrix(BACKWARD, m));
        let mut group = group(c, &format!("gram/{name}"), (2 * BACKWARD + 6) * m * n);
        group.bench_function("tile", |b| b.iter(|| black_box(Flex::gram_tile(&x, &delta, &rows))));
        group.throughput(Throughput::Elements(
            (BACKWARD * (BACKWARD + 1) * (m + 1) + FORWARD * (FORWARD + 1) * n) as u64,
        ));
        group.bench_function("gram", |b| b.iter(|| black_box(Flex::gram_rows(&x, &[&delta], &rows))));
    }
}

criterion_group!(benches, products, row_wise_maps, attention, head, reductions);
criterion_main!(benches);
