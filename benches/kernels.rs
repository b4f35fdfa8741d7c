//! Every kernel of the CPU at the shapes of a block of SmolLM2-135M (hidden 576, feed-forward 1536, 9 heads over 3 key-value
//! heads of 64, vocabulary 49152), for one pair with a prompt of 200 tokens and two responses of 100: 400 forward rows, 600
//! backward rows. `cargo bench --workspace --bench kernels`; throughput is in floating-point operations a second, or in bytes
//! for kernels that only move values. `tanglescope bench --kernels-only` times the same cases for any model and device.
#![allow(missing_docs)] // of what criterion's macros make
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use std::hint::black_box;
use tanglescope_kernels::bench::{Shapes, all, matrix};
use tanglescope_kernels::{
    Activation, AttentionSpec, DType, DeltaSpec, Flex, FlexDevice, HeadCotangents, NormKind, Product, RowSet, Rows,
    Segment, Span,
};

const TRUNK: usize = 200;
const SUFFIX: usize = 100;
const FORWARD: usize = TRUNK + 2 * SUFFIX;
const BACKWARD: usize = 2 * (TRUNK + SUFFIX);
const HIDDEN: usize = 576;
const MLP: usize = 1536;
const VOCABULARY: usize = 49_152;

/// Two cotangents: each the trunk and its own suffix.
fn backward_rows() -> RowSet {
    let row = |r: usize| u32::try_from(r).unwrap_or(u32::MAX);
    let index = (0..2).flat_map(|k| (0..TRUNK).chain(suffix(k)).map(row)).collect();
    RowSet { index, offsets: vec![0, BACKWARD / 2, BACKWARD], sets: vec![0..2] }
}

fn suffix(k: usize) -> std::ops::Range<usize> {
    TRUNK + k * SUFFIX..TRUNK + (k + 1) * SUFFIX
}

/// A row-wise case moves values and has no operations worth a count.
fn throughput(operations: f64, bytes: f64) -> Throughput {
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // counts
    if operations > 0.0 { Throughput::Elements(operations as u64) } else { Throughput::Bytes(bytes as u64) }
}

fn kernels(c: &mut Criterion) {
    let rows = backward_rows();
    let spans = [
        Span { prefix: 0..0, own: 0..TRUNK },
        Span { prefix: 0..TRUNK, own: suffix(0) },
        Span { prefix: 0..TRUNK, own: suffix(1) },
    ];
    let segments = [0, 1].map(|k| Segment { prefix: 0..TRUNK, own: suffix(k), active_from: 0 });
    let targets: Vec<u32> = (0..2 * SUFFIX).map(|t| u32::try_from(t * 97).unwrap_or(0)).collect();
    let weights = [0, SUFFIX].map(|first| (first..first + SUFFIX).map(|row| (row, 1.0)).collect());
    let shapes = Shapes {
        dtype: DType::F32,
        hidden: HIDDEN,
        mlp_width: MLP,
        activation: Activation::Silu,
        norm: NormKind { centred: false, eps: 1e-5 },
        attention: AttentionSpec { heads: 9, kv_heads: 3, head_dim: 64, scale: 0.125, cap: None, window: None },
        rotary_pairs: Some(32),
        delta: Some((DeltaSpec { key_heads: 4, value_heads: 8, key_dim: 128, value_dim: 128 }, 4)),
        experts: Some((64, 8, 256)),
        vocabulary: VOCABULARY,
        maps: vec![("q_proj", [HIDDEN, HIDDEN]), ("up_proj", [HIDDEN, MLP]), ("down_proj", [MLP, HIDDEN])],
        lora: Some(([HIDDEN, HIDDEN], 16)),
        forward: FORWARD,
        rows: &rows,
        spans: &spans,
        segments: &segments,
        targets: &targets,
        head: HeadCotangents { weights: &weights, sets: &[0..2] },
    };
    let mut group = c.benchmark_group("kernels");
    group.sample_size(20);
    for cases in all::<Flex>() {
        for mut case in cases(&shapes, &FlexDevice) {
            group.throughput(throughput(case.cost.operations, case.cost.bytes));
            group.bench_function(&case.name, |b| b.iter(|| (case.run)()));
        }
    }
    let (x, delta) = (
        matrix::<Flex>([FORWARD, HIDDEN], DType::F32, &FlexDevice),
        matrix::<Flex>([BACKWARD, HIDDEN], DType::F32, &FlexDevice),
    );
    group.throughput(Throughput::Bytes(4 * (BACKWARD * HIDDEN) as u64));
    group.bench_function("gather", |b| b.iter(|| black_box(Flex::gather(&x, &rows.index, None))));
    group.bench_function("scatter_add", |b| b.iter(|| black_box(Flex::scatter_add(&delta, &rows.index, FORWARD))));
    group.bench_function("segment_sums", |b| b.iter(|| black_box(Flex::segment_sums(&delta, &rows.offsets))));
    group.throughput(Throughput::Elements((BACKWARD * HIDDEN * HIDDEN) as u64));
    group.bench_function("weight_gradient", |b| {
        b.iter(|| black_box(Flex::weight_gradient(&delta, &delta, 0..BACKWARD / 2)));
    });
}

criterion_group!(benches, kernels);
criterion_main!(benches);
