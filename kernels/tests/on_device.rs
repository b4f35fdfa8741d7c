//! The device kernels against f64 on the CPU, at random ragged shapes: on lavapipe, Vulkan in software, or, with TANGLESCOPE_VULKAN=any, on the machine's own, and with
//! TANGLESCOPE_VULKAN=none on none; and on CUDA where there is such a device. On the processor as such a device they run once more, in a program of
//! their own, which must find no race, no access out of bounds and no value that nobody wrote; `tests/cuda.sh` does that in more ways.
//!
//! Bounds. A sum of n products in f32 is off by at most n·u·Σ|terms|, u = 2⁻²⁴ (Higham, Accuracy and Stability, §3.1), in
//! whatever order and with or without fused multiply-adds. A *tile* entry is a sum over R rows, its product with another one
//! is summed over 64 values of a unit and 8 levels of a tree: 2R + 72 roundings; of more cotangents than a cube holds, over pieces
//! of at most 1,024 of the m·n values. A *gram* entry is the product of sums over n and m features, summed over 64 values of a
//! unit and 8 levels of a tree: n + m + 72. Across tiles sums are f64. Both get 8 more for the products themselves. For f16 and bf16 the inputs are
//! rounded before both sides start, and sums stay f32.
#[path = "../../tests/support/cuda_on_cpu.rs"]
mod cuda_on_cpu;
#[path = "../../tests/support/lavapipe.rs"]
mod lavapipe;
#[path = "support/mod.rs"]
mod support;

use cuda_on_cpu::{AMPERE, Emulated, HOPPER, faults, libraries};
use lavapipe::use_lavapipe;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use std::collections::BTreeMap;
use std::ops::Range;
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use support::{Random, check_certain_rows, close, codes, expected, expected_in, largest_error, rows, specs};
use tanglescope_kernels::device::{Cuda, Vulkan, cuda_devices, vulkan_devices};
use tanglescope_kernels::{
    Activate, Activation, Arithmetic, Attend, AttentionSpec, Coded, Codes, Convolve, DType, DeltaInputs, DeltaRule,
    DeltaSpec, Flex, FlexDevice, FloatTensor, Grouped, Head, HeadCotangents, Kernels, Memory, Norm, NormKind, Pairs,
    Product, Rotary, RowSet, Rows, Segment, SoftCap, Span, Stretch, TensorData, TensorMetadata, VectorGram, Weight,
    convolution,
};

/// Unit roundoff of f32.
const U: f64 = 5.960_464_477_539_063e-8;

/// Runs a check on every device that can be had. Without one it is left out, but not on CI.
fn on_devices(check: &dyn Check) {
    let without_vulkan = is_once_more();
    if !without_vulkan {
        // a machine's own driver is tested where that is said
        if std::env::var_os("TANGLESCOPE_VULKAN").is_none_or(|choice| choice != "any") {
            use_lavapipe();
        }
        match vulkan_devices() {
            Ok(devices) => check.vulkan(&devices[0].0),
            Err(problem) => {
                assert!(std::env::var_os("CI").is_none(), "{problem}; install libvulkan1 and mesa-vulkan-drivers");
            }
        }
    }
    match cuda_devices() {
        Ok(devices) => check.cuda(&devices[0].0),
        Err(problem) => assert!(!without_vulkan, "no device to test on: {problem}"),
    }
    say_largest();
}

/// A check that is the same on every device.
trait Check {
    fn vulkan(&self, device: &<Vulkan as burn_backend::BackendTypes>::Device);
    fn cuda(&self, device: &<Cuda as burn_backend::BackendTypes>::Device);
}

macro_rules! check {
    ($name:ident, $run:ident) => {
        struct $name;
        impl Check for $name {
            fn vulkan(&self, device: &<Vulkan as burn_backend::BackendTypes>::Device) {
                $run::<Vulkan>(device);
            }
            fn cuda(&self, device: &<Cuda as burn_backend::BackendTypes>::Device) {
                $run::<Cuda>(device);
            }
        }
    };
}

fn up<B: Kernels>(values: &[f64], shape: impl Into<Vec<usize>>, dtype: DType, device: &B::Device) -> FloatTensor<B> {
    B::upload(TensorData::new(values.to_vec(), shape.into()).convert_dtype(dtype), device)
}

fn host(values: &[f64], shape: impl Into<Vec<usize>>) -> FloatTensor<Flex> {
    Flex::upload(TensorData::new(values.to_vec(), shape.into()), &FlexDevice)
}

/// Values as a type holds them.
fn rounded(values: Vec<f64>, dtype: DType) -> Vec<f64> {
    let n = values.len();
    TensorData::new(values, [n]).convert_dtype(dtype).convert::<f64>().into_vec().unwrap()
}

/// Types that a device computes with.
fn types<B: Kernels>(device: &B::Device) -> Vec<DType> {
    [DType::F32, DType::F16, DType::BF16].into_iter().filter(|&dtype| B::supports_dtype(device, dtype)).collect()
}

/// Checks Grams against those of plain loops, within a number of roundings of the sums of absolute values.
#[track_caller]
fn within(got: &[Vec<f64>], want: &[Vec<f64>], sizes: &[Vec<f64>], roundings: f64, dtype: DType) {
    assert_eq!(got.len(), want.len());
    for ((got, want), size) in got.iter().zip(want).zip(sizes) {
        assert_eq!(got.len(), want.len());
        for ((got, want), size) in got.iter().zip(want).zip(size) {
            // NaN fails; a sum of nothing is exact
            assert!((got - want).abs() <= roundings * U * size, "{got} instead of {want}, size {size}");
            if *size > 0.0 {
                found(dtype, (got - want).abs() / size);
            }
        }
    }
}

/// The largest error of each test and type, as a share of the largest value, or of the sum of absolute values.
static LARGEST: Mutex<BTreeMap<(String, String), f64>> = Mutex::new(BTreeMap::new());

fn test() -> String {
    std::thread::current().name().unwrap_or_default().to_owned()
}

fn found(dtype: DType, error: f64) {
    let mut all = LARGEST.lock().unwrap_or_else(PoisonError::into_inner);
    let largest = all.entry((test(), format!("{dtype:?}"))).or_default();
    *largest = largest.max(error);
}

/// Says them, for those who look.
fn say_largest() {
    let all = LARGEST.lock().unwrap_or_else(PoisonError::into_inner);
    for ((of, dtype), error) in all.iter().filter(|((of, _), _)| *of == test()) {
        println!("{of} in {dtype}: off by {error:.1e} at the most");
    }
}

fn absolute(values: &[f64]) -> Vec<f64> {
    values.iter().map(|v| v.abs()).collect()
}

type Shapes = (Vec<(usize, Vec<usize>)>, usize, usize, usize);

fn check_reductions<B: Kernels>(device: &B::Device, seed: u64, (groups, n, m, other): Shapes) {
    let mut random = Random::new(seed);
    let (rows, forward) = rows(&mut random, &groups);
    let (x, delta, second) =
        (random.values(forward * n), random.values(rows.rows() * m), random.values(rows.rows() * other));
    let roots = random.values(n * m);
    for dtype in types::<B>(device) {
        let round = |values: &[f64]| rounded(values.to_vec(), dtype);
        let (x, delta, second) = (round(&x), round(&delta), round(&second));
        let size = |delta: &[f64], m: usize| expected(&absolute(&x), n, &absolute(delta), m, &rows);
        let (wants, sizes) = (
            [expected(&x, n, &delta, m, &rows), expected(&x, n, &second, other, &rows)],
            [size(&delta, m), size(&second, other)],
        );
        let of_host = [x.clone(), delta.clone()];
        let x = up::<B>(&x, [forward, n], dtype, device);
        let (delta, second) =
            (up::<B>(&delta, [rows.rows(), m], dtype, device), up::<B>(&second, [rows.rows(), other], dtype, device));
        // in f32 on a device, whatever the type of the factors
        let up_roots = up::<B>(&roots, [n, m], DType::F32, device);
        let in_metric = expected_in(&of_host[0], n, &of_host[1], m, &rows, &roots);
        let in_metric_size =
            expected_in(&absolute(&of_host[0]), n, &absolute(&of_host[1]), m, &rows, &absolute(&roots));
        let run = || {
            let mut pending = vec![B::gram_tile(&x, &delta, &rows, None)];
            pending.extend(B::gram_rows(&x, &[&delta, &second], &rows));
            pending.push(B::gram_tile(&x, &delta, &rows, Some(&up_roots)));
            B::collect(pending)
        };
        let got = run();
        let tile = (m * n).clamp(72, 1024) as f64;
        within(&got[0], &wants[0], &sizes[0], 2.0 * rows.rows() as f64 + tile + 8.0, dtype);
        within(&got[1], &wants[0], &sizes[0], (n + m) as f64 + 80.0, dtype);
        within(&got[2], &wants[1], &sizes[1], (n + other) as f64 + 80.0, dtype);
        within(&got[3], &in_metric, &in_metric_size, 2.0 * rows.rows() as f64 + tile + 10.0, dtype);
        // the same bits on a second run
        assert_eq!(got, run());
    }
}

/// Codes become the numbers of the formula: to the bit, or to a rounding of f32 where something is taken off, which a fused multiply-add saves.
fn widened_codes<B: Kernels>(device: &B::Device) {
    let mut random = Random::new(17);
    for spec in specs() {
        let (words, values) = codes(&mut random, spec);
        let words = Flex::upload(TensorData::new(words, [spec.words()]), &FlexDevice);
        for (dtype, as_transpose) in types::<B>(device).into_iter().flat_map(|dtype| [(dtype, false), (dtype, true)]) {
            let theirs = Coded::<Flex>::new(words.clone(), spec, as_transpose);
            let coded = theirs.convert(&|x| B::from_host(x, dtype, device));
            let back = coded.convert(&|x| B::to_host(x, dtype));
            let of_host = Flex::download(&Flex::widen(&back, DType::F64));
            assert_eq!(of_host, Flex::download(&Flex::widen(&theirs, DType::F64)));
            let want = rounded(of_host, dtype);
            let numbers = B::widen(&coded, dtype);
            let got = B::download(&numbers);
            if spec.has_least && dtype == DType::F32 {
                let size = values.iter().fold(0.0, |size: f64, x| size.max(x.abs()));
                close(&got, &want, 2.0 * U * size.max(1.0));
            } else if !spec.has_least {
                assert_eq!(got, want);
            }
            let [rows, columns] = coded.dims();
            for transposed in [false, true] {
                let (k, m) = if transposed { (columns, rows) } else { (rows, columns) };
                let x = up::<B>(&rounded(random.values(5 * k), dtype), [5, k], dtype, device);
                let start = up::<B>(&rounded(random.values(5 * m), dtype), [5, m], dtype, device);
                let want = B::matmul(&x, &numbers, transposed, 0.5, Some(start.clone()));
                let got = B::matmul_coded(&x, &coded, transposed, 0.5, Some(start));
                close(&B::download(&got), &B::download(&want), tolerance(dtype));
                // a stretch of rows with codes between two with numbers
                let of = |w: Weight<'_, B>| {
                    let stretch = |rows, w| Stretch { rows, w, scale: 0.5 };
                    let plain = || Weight::Plain(&numbers);
                    let stretches = [stretch(0..1, plain()), stretch(1..3, w), stretch(3..5, plain())];
                    B::download(&B::grouped(&x, &stretches, transposed, m, None))
                };
                close(&of(Weight::Coded(&coded)), &of(Weight::Plain(&numbers)), tolerance(dtype));
            }
            if !as_transpose {
                let index: Vec<u32> = (0..7).map(|_| u32::try_from(random.below(rows)).unwrap()).collect();
                let got = B::gather_coded(&coded, &index, dtype);
                assert_eq!(B::download(&got), B::download(&B::gather(&numbers, &index, None)));
                let y = up::<B>(&rounded(random.values(7 * columns), dtype), [7, columns], dtype, device);
                let head = |w: &Weight<'_, B>| B::head(&y, w, &index, None, None);
                let (got, want) = (head(&Weight::Coded(&coded)), head(&Weight::Plain(&numbers)));
                assert_eq!((got.logp, got.entropy), (want.logp, want.entropy));
                assert_eq!(B::download(&got.back), B::download(&want.back));
            }
        }
    }
}

check!(WidenedCodes, widened_codes);

#[test]
fn codes_are_the_numbers_of_the_formula() {
    on_devices(&WidenedCodes);
}

fn reductions<B: Kernels>(device: &B::Device) {
    let group = (0usize..40, prop::collection::vec(prop_oneof![Just(0usize), 1usize..20, Just(67), Just(7)], 1..6));
    let side = || prop_oneof![Just(1usize), Just(2), Just(13), Just(16), Just(61), 1usize..90];
    let shapes = (any::<u64>(), prop::collection::vec(group, 1..4), side(), side(), side());
    let config = |cases| Config { cases, failure_persistence: None, ..Config::default() };
    let mut runner = match is_once_more() {
        false => TestRunner::new(config(12)),
        // a shape may be a kernel of its own, which takes a second to compile and is kept
        true => TestRunner::new_with_rng(config(6), TestRng::deterministic_rng(RngAlgorithm::ChaCha)),
    };
    let run = |(seed, groups, n, m, other)| {
        check_reductions::<B>(device, seed, (groups, n, m, other));
        Ok(())
    };
    runner.run(&shapes, run).unwrap_or_else(|e| panic!("{e}"));
    // more rows and columns than a tile has, and more cotangents than a cube holds
    check_reductions::<B>(device, 1, (vec![(130, vec![70, 5]), (3, vec![9])], 200, 140, 150));
    check_reductions::<B>(device, 2, (vec![(11, vec![3, 4, 5, 6, 8, 2, 1]), (4, vec![2, 1])], 16, 300, 7));
    // what matrix units take: tiles that are not full, of two cotangents and of more
    check_reductions::<B>(device, 3, (vec![(70, vec![66, 1]), (3, vec![9, 6])], 136, 72, 40));
    check_reductions::<B>(device, 4, (vec![(30, vec![9, 20, 3])], 64, 200, 8));
    single_rows::<B>(device);
    little_is_kept::<B>(device);
}

/// What stays on the device of a reduction are its partial sums: a thousandth of both gradients.
fn little_is_kept<B: Kernels>(device: &B::Device) {
    let rows = RowSet { index: (0..12).chain(0..12).collect(), offsets: vec![0, 12, 24], sets: vec![0..2] };
    let (mut random, side) = (Random::new(6), 1024);
    let x = up::<B>(&random.values(12 * side), [12, side], DType::F32, device);
    let delta = up::<B>(&random.values(24 * side), [24, side], DType::F32, device);
    let gradients = 2 * side * side * 4;
    let (tile, gram) = (B::gram_tile(&x, &delta, &rows, None), B::gram_rows(&x, &[&delta], &rows).remove(0));
    for (name, pending) in [("tile", tile), ("gram", gram)] {
        let kept = B::pending_bytes(&pending);
        println!("{name} of {side} × {side}: {kept} B kept, both gradients are {gradients} B");
        assert!(kept <= gradients / 1000, "{name}: {kept} B");
    }
}

/// Cotangents of a row each, as positions have, some of them without one.
fn single_rows<B: Kernels>(device: &B::Device) {
    let mut random = Random::new(9);
    let (n, m, forward) = (30, 21, 40);
    let present: Vec<usize> = (0..50).filter(|k| k % 7 != 3).collect();
    let index: Vec<u32> = present.iter().map(|_| u32::try_from(random.below(forward)).unwrap()).collect();
    let offsets = (0..=50).map(|k| present.iter().filter(|&&p| p < k).count()).collect();
    let rows = RowSet { index, offsets, sets: vec![0..20, 20..50] };
    let (x, delta) = (random.values(forward * n), random.values(rows.rows() * m));
    let (want, size) = (expected(&x, n, &delta, m, &rows), expected(&absolute(&x), n, &absolute(&delta), m, &rows));
    let run = || {
        let (x, delta) =
            (up::<B>(&x, [forward, n], DType::F32, device), up::<B>(&delta, [rows.rows(), m], DType::F32, device));
        B::collect(B::gram_rows(&x, &[&delta], &rows)).remove(0)
    };
    let got = run();
    // inputs are rounded to f32 first: one more rounding of each factor
    within(&got, &want, &size, (n + m) as f64 + 32.0 + 4.0, DType::F32);
    assert_eq!(got, run());
}

/// What the CPU makes of the same in f64 is the reference here; it has tests of its own against burn's autodiff. 2e-4 of
/// the largest value: sums of up to 10³ terms of like size, each rounded to 6e-8; an exponential's error is 3 + 2|x| units in
/// the last place by Vulkan's rules, 1e-5 at most here. Halves are summed in f32 and rounded where they are stored: results
/// and, in a vjp, what the forward pass stored, at most eight such roundings of the largest value.
fn tolerance(dtype: DType) -> f64 {
    match dtype {
        DType::F16 => 8.0 * 2f64.powi(-11),
        DType::BF16 => 8.0 * 2f64.powi(-8),
        _ => 2e-4,
    }
}

#[track_caller]
fn check(dtype: DType, got: &[f64], want: &[f64]) {
    close(got, want, tolerance(dtype));
    found(dtype, largest_error(got, want));
}

#[track_caller]
fn same<B: Kernels>(got: &FloatTensor<B>, want: &FloatTensor<Flex>) {
    check(got.dtype(), &B::download(got), &Flex::download(want));
}

fn row_wise_maps<B: Kernels>(device: &B::Device) {
    types::<B>(device).into_iter().for_each(|dtype| row_wise_maps_in::<B>(device, dtype));
}

/// One side of a grid has 65,535 workgroups at the most: a workgroup a row of more, and one for every 256 values of more than that many.
fn more_workgroups_than_a_side_has<B: Kernels>(device: &B::Device) {
    let rows = 65_535 + 100;
    let mut random = Random::new(5);
    let (x, gain) = (random.values(rows * 2), random.values(2));
    let (mine, theirs) = (up::<B>(&x, [rows, 2], DType::F32, device), host(&x, [rows, 2]));
    let kind = NormKind { centred: false, eps: 1e-5 };
    let got = B::norm(&mine, &up::<B>(&gain, [2], DType::F32, device), None, kind);
    same::<B>(&got, &Flex::norm(&theirs, &host(&gain, [2]), None, kind));
    // 17 million threads are minutes for a processor in the place of a GPU
    if !is_once_more() {
        let x: Vec<f64> = (0..rows * 256).map(|i| (i % 1013) as f64 / 500.0 - 1.0).collect();
        let (mine, theirs) = (up::<B>(&x, [rows, 256], DType::F32, device), host(&x, [rows, 256]));
        same::<B>(&B::activate(Activation::Silu, &mine, None), &Flex::activate(Activation::Silu, &theirs, None));
    }
}

/// Half of the product of some rows with a matrix.
fn half_of<'a, B: Kernels>((rows, w): (&Range<usize>, &'a FloatTensor<B>)) -> Stretch<'a, B> {
    Stretch { rows: rows.clone(), w: Weight::Plain(w), scale: 0.5 }
}

/// Half of the product of a stretch with the transpose of what lies there.
fn half_of_turned<'a, B: Kernels>((rows, w): (&Range<usize>, &'a FloatTensor<B>)) -> Stretch<'a, B> {
    Stretch { w: Weight::Turned(w), ..half_of((rows, w)) }
}

/// Products of stretches of rows, one of them empty, with matrices `[d, 5]` and with others that lie as `[5, d]`.
fn stretches_of_rows<B: Kernels>(
    (mine, theirs): (&FloatTensor<B>, &FloatTensor<Flex>),
    (plain, host_plain): (Vec<FloatTensor<B>>, Vec<FloatTensor<Flex>>),
    (turned, host_turned): (Vec<FloatTensor<B>>, Vec<FloatTensor<Flex>>),
) {
    let rows = theirs.shape()[0];
    let ranges = [0..rows / 3, rows / 3..rows / 3, rows / 3..rows - rows / 4];
    let stretches: Vec<_> = ranges.iter().zip(&plain).map(half_of::<B>).collect();
    let host_stretches: Vec<_> = ranges.iter().zip(&host_plain).map(half_of::<Flex>).collect();
    let got = B::grouped(mine, &stretches, false, 5, None);
    let want = Flex::grouped(theirs, &host_stretches, false, 5, None);
    same::<B>(&got, &want);
    // added to rows that are there
    let stretches: Vec<_> = ranges.iter().zip(&turned).map(half_of_turned::<B>).collect();
    let host_stretches: Vec<_> = ranges.iter().zip(&host_turned).map(half_of_turned::<Flex>).collect();
    let sums = [got.clone(), got].map(|got| B::grouped(mine, &stretches, false, 5, Some(got)));
    let want = Flex::grouped(theirs, &host_stretches, false, 5, Some(want));
    sums.iter().for_each(|sum| same::<B>(sum, &want));
}

/// Rows of two matrices at places of their own.
fn placed_rows<B: Kernels>((mine, theirs): (&TwoOf<B>, &TwoOf<Flex>), rows: usize) {
    let (below, above): (Vec<u32>, Vec<u32>) =
        (0..2 * u32::try_from(rows).unwrap()).rev().partition(|row| row % 2 == 0);
    let (below, above) = (&below[..rows], &above[..rows]);
    let parts = (mine.0.clone(), mine.1.clone(), theirs.0.clone(), theirs.1.clone());
    let got = B::place_rows(&[(parts.0, above), (parts.1, below)], 2 * rows + 1);
    same::<B>(&got, &Flex::place_rows(&[(parts.2, above), (parts.3, below)], 2 * rows + 1));
}

/// Gradients of some cotangents and their products.
fn gradients_of_cotangents<B: Kernels>(
    (x, delta): (&FloatTensor<B>, &FloatTensor<B>),
    (of_x, of_delta): (&FloatTensor<Flex>, &FloatTensor<Flex>),
    set: &RowSet,
    dtype: DType,
) {
    // the same for each cotangent, of which one has no rows, and products of the gradients
    let got = B::weight_gradients(x, delta, set, &[2, 1, 0]);
    let want = Flex::weight_gradients(of_x, of_delta, set, &[2, 1, 0]);
    same::<B>(&got, &want);
    let (got, want) = (B::row_products(&got, &got), Flex::row_products(&want, &want));
    close(&got, &want, 10.0 * tolerance(dtype));
}

/// A matrix and another.
type TwoOf<B> = (FloatTensor<B>, FloatTensor<B>);

fn row_wise_maps_in<B: Kernels>(device: &B::Device, dtype: DType) {
    for (seed, rows, heads, half) in [(1, 1, 1, 1), (2, 7, 3, 5), (3, 70, 2, 150), (4, 33, 4, 8)] {
        let mut random = Random::new(seed);
        let d = heads * 2 * half;
        let [x, y, gain, bias] = [rows * d, rows * d, d, d].map(|n| rounded(random.values(n), dtype));
        let index: Vec<u32> = (0..=2 * rows).map(|_| u32::try_from(random.below(rows)).unwrap()).collect();
        let [delta, onto] = [0, 1].map(|_| rounded(random.values(index.len() * d), dtype));
        let weights = random.values(index.len());
        let angles = random.values(rows * half);
        let (cos, sin): (Vec<f64>, Vec<f64>) = angles.iter().map(|a| (a.cos(), a.sin())).unzip();
        let [cos, sin] = [cos, sin].map(|of| rounded(of, dtype));
        let (on, off) = (|v: &[f64], s: &[usize]| up::<B>(v, s, dtype, device), |v: &[f64], s: &[usize]| host(v, s));
        let (mine, theirs) = ((on(&x, &[rows, d]), on(&y, &[rows, d])), (off(&x, &[rows, d]), off(&y, &[rows, d])));
        let back = [index.len(), d];
        for centred in [false, true] {
            let kind = NormKind { centred, eps: 1e-5 };
            let (g, b) = (on(&gain, &[d]), on(&bias, &[d]));
            let (fg, fb) = (off(&gain, &[d]), off(&bias, &[d]));
            same::<B>(&B::norm(&mine.0, &g, Some(&b), kind), &Flex::norm(&theirs.0, &fg, Some(&fb), kind));
            same::<B>(&B::norm(&mine.0, &g, None, kind), &Flex::norm(&theirs.0, &fg, None, kind));
            let (md, fd) = (on(&delta, &back), off(&delta, &back));
            // a row of one value has no variance, and its cotangent is what 1/√ε makes of rounding
            if d > 2 {
                let got = B::norm_vjp(&mine.0, &g, kind, &md, &index, Some(on(&onto, &back)));
                same::<B>(&got, &Flex::norm_vjp(&theirs.0, &fg, kind, &fd, &index, Some(off(&onto, &back))));
                let got = B::norm_vjp(&mine.0, &g, kind, &md, &index, None);
                same::<B>(&got, &Flex::norm_vjp(&theirs.0, &fg, kind, &fd, &index, None));
            }
            let got = B::norm_gain_terms(&mine.0, kind, &md, &index);
            same::<B>(&got, &Flex::norm_gain_terms(&theirs.0, kind, &fd, &index));
        }
        let (md, fd) = (on(&delta, &back), off(&delta, &back));
        for f in Activation::ALL {
            for gated in [false, true] {
                let (b, fb) = (gated.then_some(&mine.1), gated.then_some(&theirs.1));
                same::<B>(&B::activate(f, &mine.0, b), &Flex::activate(f, &theirs.0, fb));
                let (da, db) = B::activate_vjp(f, &mine.0, b, &md, &index);
                let (fa, fdb) = Flex::activate_vjp(f, &theirs.0, fb, &fd, &index);
                same::<B>(&da, &fa);
                assert_eq!(db.is_some(), gated);
                if let (Some(db), Some(fdb)) = (db, fdb) {
                    same::<B>(&db, &fdb);
                }
            }
        }
        let (c, s) = (on(&cos, &[rows, half]), on(&sin, &[rows, half]));
        let (fc, fs) = (off(&cos, &[rows, half]), off(&sin, &[rows, half]));
        for pairs in [Pairs::Halves, Pairs::Neighbours] {
            let heads = (2 * half, pairs);
            let rotated = B::rotary(mine.0.clone(), &c, &s, None, heads, false);
            same::<B>(&rotated, &Flex::rotary(theirs.0.clone(), &fc, &fs, None, heads, false));
            let rotated = B::rotary(md.clone(), &c, &s, Some(&index), heads, true);
            same::<B>(&rotated, &Flex::rotary(fd.clone(), &fc, &fs, Some(&index), heads, true));
            // the whole row as one head, of which only a part is rotated
            let rotated = B::rotary(md.clone(), &c, &s, Some(&index), (d, pairs), true);
            same::<B>(&rotated, &Flex::rotary(fd.clone(), &fc, &fs, Some(&index), (d, pairs), true));
        }
        let matrices: Vec<Vec<f64>> = (0..3).map(|_| rounded(random.values(5 * d), dtype)).collect();
        let both = |shape: &[usize]| matrices.iter().map(|w| (on(w, shape), off(w, shape))).unzip();
        stretches_of_rows::<B>((&mine.0, &theirs.0), both(&[d, 5]), both(&[5, d]));
        for bounds in [[-0.5, 0.25], [f64::NEG_INFINITY, 0.5]] {
            same::<B>(&B::cut(mine.0.clone(), bounds), &Flex::cut(theirs.0.clone(), bounds));
            let of_cut = B::cut_vjp(&mine.0, bounds, md.clone(), &index);
            same::<B>(&of_cut, &Flex::cut_vjp(&theirs.0, bounds, fd.clone(), &index));
        }
        same::<B>(&B::gather(&mine.0, &index, Some(&weights)), &Flex::gather(&theirs.0, &index, Some(&weights)));
        same::<B>(&B::scatter_add(&md, &index, rows + 2), &Flex::scatter_add(&fd, &index, rows + 2));
        placed_rows::<B>((&mine, &theirs), rows);
        let cut = [d / 2, d - d / 2];
        let parts = (B::split_columns(&mine.0, &cut), Flex::split_columns(&theirs.0, &cut));
        parts.0.iter().zip(&parts.1).for_each(|(a, b)| same::<B>(a, b));
        same::<B>(&B::join_columns(&parts.0), &theirs.0);
        // vectors and their inner products
        let offsets = vec![0, rows, rows, index.len()];
        let set = RowSet { index: index.clone(), offsets, sets: vec![0..2, 2..3] };
        let (got, want) = (B::collect(vec![B::gram_vectors(&md, &set)]), Flex::gram_vectors(&fd, &set));
        got[0].iter().zip(&want).for_each(|(a, b)| check(dtype, a, b));
        let vectors = [0..rows, rows..2 * rows];
        let (got, want) = (B::collect(vec![B::dots(&md, &vectors, &[0..2])]), Flex::dots(&fd, &vectors, &[0..2]));
        close(&got[0][0], &want[0], tolerance(dtype));
        // products, plain and transposed
        let w = rounded(random.values(d * 11), dtype);
        let (a, b) = (on(&w, &[d, 11]), off(&w, &[d, 11]));
        let start = rounded(random.values(rows * 11), dtype);
        let got = B::matmul(&mine.0, &a, false, 0.5, Some(on(&start, &[rows, 11])));
        same::<B>(&got, &Flex::matmul(&theirs.0, &b, false, 0.5, Some(off(&start, &[rows, 11]))));
        same::<B>(
            &B::matmul(&got, &a, true, 1.0, None),
            &Flex::matmul(&host(&B::download(&got), [rows, 11]), &b, true, 1.0, None),
        );
        let used = rows / 2..rows;
        let got = B::weight_gradient(&mine.0, &mine.1, used.clone());
        same::<B>(&got, &Flex::weight_gradient(&theirs.0, &theirs.1, used));
        gradients_of_cotangents::<B>((&mine.0, &md), (&theirs.0, &fd), &set, dtype);
    }
}

fn attention<B: Kernels>(device: &B::Device) {
    types::<B>(device).into_iter().for_each(|dtype| attention_in::<B>(device, dtype));
}

fn attention_in<B: Kernels>(device: &B::Device, dtype: DType) {
    // trunk, suffixes, key-value heads, query heads each, head_dim
    let shapes = [
        (0, vec![1], 1, 1, 1),
        (5, vec![3, 9], 2, 3, 10),
        (70, vec![66, 1], 1, 2, 64),
        (129, vec![40], 2, 1, 80),
        (3, vec![130, 2, 7], 1, 4, 17),
        (1, vec![64, 65], 1, 1, 128),
        (63, vec![2], 1, 2, 8),
        (129, vec![140], 1, 2, 64),
        (70, vec![66, 1], 1, 2, 128),
        (40, vec![35, 9], 1, 2, 256),
        (70, vec![66, 1], 1, 1, 136),
        (5, vec![33], 1, 1, 24),
    ];
    for (case, (trunk, suffixes, kv_heads, repeat, head_dim)) in shapes.into_iter().enumerate() {
        let mut random = Random::new(case as u64);
        // every other shape with a soft cap and a window
        let (cap, window) = if case % 2 == 1 { (Some(SoftCap(1.5)), Some(4 + 13 * case)) } else { (None, None) };
        let heads = AttentionSpec { heads: kv_heads * repeat, kv_heads, head_dim, scale: 0.3, cap, window };
        let (qw, kw) = (heads.heads * head_dim, kv_heads * head_dim);
        let n = trunk + suffixes.iter().sum::<usize>();
        let (mut spans, mut segments, mut first) = (Vec::new(), Vec::new(), trunk);
        if trunk > 0 {
            spans.push(Span { prefix: 0..0, own: 0..trunk });
            segments.push(Segment { prefix: 0..trunk.div_ceil(2), own: 0..0, active_from: 0 });
        }
        for suffix in suffixes {
            spans.push(Span { prefix: 0..trunk, own: first..first + suffix });
            let active_from = random.below(trunk + suffix);
            segments.push(Segment { prefix: 0..trunk, own: first..first + suffix, active_from });
            first += suffix;
        }
        let [q, mut k, v] = [qw, kw, kw].map(|width| random.values(n * width));
        // scores of each tile of keys far above those of the tile before, so that what is summed has to be brought to them
        if (trunk, head_dim) == (70, 128) {
            k.iter_mut().enumerate().for_each(|(at, k)| *k *= (1 + 8 * (at / kw / 64)) as f64);
        }
        let [q, k, v] = [q, k, v].map(|values| rounded(values, dtype));
        let mut delta = Vec::new();
        for segment in &segments {
            let mut here = random.values(segment.len() * qw);
            here[..segment.active_from * qw].fill(0.0);
            delta.extend(rounded(here, dtype));
        }
        let on = |v: &[f64], width: usize| up::<B>(v, [v.len() / width, width], dtype, device);
        let off = |v: &[f64], width: usize| host(v, [v.len() / width, width]);
        let (mq, mk, mv) = (on(&q, qw), on(&k, kw), on(&v, kw));
        let (fq, fk, fv) = (off(&q, qw), off(&k, kw), off(&v, kw));
        let (out, normaliser) = B::attend(&mq, &mk, &mv, &spans, heads);
        let (want, wanted) = Flex::attend(&fq, &fk, &fv, &spans, heads);
        same::<B>(&out, &want);
        same::<B>(&normaliser, &wanted);
        let got = B::attend_vjp([&mq, &mk, &mv], (&out, &normaliser), &on(&delta, qw), &segments, heads);
        let want = Flex::attend_vjp([&fq, &fk, &fv], (&want, &wanted), &off(&delta, qw), &segments, heads);
        got.iter().zip(&want).for_each(|(got, want)| same::<B>(got, want));
        let again = B::attend_vjp([&mq, &mk, &mv], (&out, &normaliser), &on(&delta, qw), &segments, heads);
        got.iter().zip(&again).for_each(|(a, b)| assert_eq!(B::download(a), B::download(b)));
    }
}

fn delta_rule<B: Kernels>(device: &B::Device) {
    delta_rule_in::<B>(device, B::carried());
}

fn delta_rule_in<B: Kernels>(device: &B::Device, dtype: DType) {
    // trunk, suffixes, key heads, value heads each, key_dim, value_dim, taps
    let shapes = [
        (0, vec![1], 1, 1, 1, 1, 1),
        (5, vec![3, 9], 2, 2, 8, 6, 4),
        (17, vec![6, 1], 1, 2, 70, 20, 3),
        (9, vec![12], 2, 1, 16, 80, 4),
    ];
    for (case, (trunk, suffixes, key_heads, shared, key_dim, value_dim, taps)) in shapes.into_iter().enumerate() {
        let mut random = Random::new(case as u64);
        let spec = DeltaSpec { key_heads, value_heads: key_heads * shared, key_dim, value_dim };
        let (kw, vw, heads) = (key_heads * key_dim, spec.value_heads * value_dim, spec.value_heads);
        let n = trunk + suffixes.iter().sum::<usize>();
        let (mut spans, mut segments, mut first) = (Vec::new(), Vec::new(), trunk);
        if trunk > 0 {
            spans.push(Span { prefix: 0..0, own: 0..trunk });
            segments.push(Segment { prefix: 0..trunk.div_ceil(2), own: 0..0, active_from: 0 });
        }
        for suffix in suffixes {
            spans.push(Span { prefix: 0..trunk, own: first..first + suffix });
            segments.push(Segment { prefix: 0..trunk, own: first..first + suffix.div_ceil(2), active_from: 0 });
            first += suffix;
        }
        let back = segments.iter().map(Segment::len).sum::<usize>();
        let [q, v] = [kw, vw].map(|width| rounded(random.values(n * width), dtype));
        let k = random.values(n * kw).into_iter().map(|x| x / (key_dim as f64).sqrt()).collect();
        let k = rounded(k, dtype);
        let [decay, beta] =
            [-1.0, 1.0].map(|sign| random.values(n * heads).iter().map(|x| sign * x.abs()).collect::<Vec<_>>());
        let [delta, w] = [back * vw, vw * taps].map(|n| rounded(random.values(n), dtype));
        let on = |v: &[f64], width: usize| up::<B>(v, [v.len() / width, width], dtype, device);
        let gate = |v: &[f64]| up::<B>(v, [n, heads], DType::F32, device);
        let off = |v: &[f64], width: usize| host(v, [v.len() / width, width]);
        let (mq, mk, mv, mg, mb) = (on(&q, kw), on(&k, kw), on(&v, vw), gate(&decay), gate(&beta));
        let (fq, fk, fv, fg, fb) = (off(&q, kw), off(&k, kw), off(&v, vw), off(&decay, heads), off(&beta, heads));
        let mine = DeltaInputs { q: &mq, k: &mk, v: &mv, decay: &mg, beta: &mb };
        let theirs = DeltaInputs { q: &fq, k: &fk, v: &fv, decay: &fg, beta: &fb };
        let (out, errors) = B::delta_rule(&mine, &spans, spec);
        let (want, wanted) = Flex::delta_rule(&theirs, &spans, spec);
        same::<B>(&out, &want);
        let of = |x: &FloatTensor<B>| B::download(x);
        close(&of(&errors), &Flex::download(&wanted), tolerance(DType::F32));
        let got = B::delta_rule_vjp(&mine, (&out, &errors), &on(&delta, vw), &segments, spec);
        let want = Flex::delta_rule_vjp(&theirs, (&want, &wanted), &off(&delta, vw), &segments, spec);
        got.iter().zip(&want).for_each(|(got, want)| check(dtype, &of(got), &Flex::download(want)));
        let again = B::delta_rule_vjp(&mine, (&out, &errors), &on(&delta, vw), &segments, spec);
        got.iter().zip(&again).for_each(|(a, b)| assert_eq!(of(a), of(b)));
        let (mw, fw) = (up::<B>(&w, [vw * taps], dtype, device), host(&w, [vw * taps]));
        let before = convolution::rows_before(&spans, n, taps);
        same::<B>(&B::convolve(&mv, &mw, taps, &before), &Flex::convolve(&fv, &fw, taps, &before));
        let behind = convolution::rows_behind(&segments, taps);
        let (mine, theirs) = (on(&delta, vw), off(&delta, vw));
        same::<B>(&B::convolve(&mine, &mw, taps, &behind), &Flex::convolve(&theirs, &fw, taps, &behind));
        let before = convolution::forward_rows_before(&segments, taps);
        let terms = B::convolve_terms(&mv, taps, &mine, &before);
        same::<B>(&terms, &Flex::convolve_terms(&fv, taps, &theirs, &before));
    }
}

fn head<B: Kernels>(device: &B::Device) {
    types::<B>(device).into_iter().for_each(|dtype| head_in::<B>(device, dtype));
    check_certain_rows::<B>(device);
}

fn head_in<B: Kernels>(device: &B::Device, dtype: DType) {
    for (seed, rows, d, vocabulary) in [(1, 1, 1, 1), (2, 5, 3, 70), (3, 37, 24, 1000), (4, 30, 8, 9_000)] {
        let mut random = Random::new(seed);
        let [y, w] = [rows * d, vocabulary * d].map(|n| rounded(random.values(n), dtype));
        let targets: Vec<u32> = (0..rows).map(|_| u32::try_from(random.below(vocabulary)).unwrap()).collect();
        let half = rows / 2;
        let mut weights: Vec<Vec<(usize, f64)>> =
            vec![(0..half).map(|r| (r, 1.0)).collect(), (half..rows).map(|r| (r, 1.0)).collect()];
        for (plain, cap) in [(true, None), (false, Some(SoftCap(2.5)))] {
            if !plain {
                weights[1].iter_mut().for_each(|(r, c)| *c = 0.25 + *r as f64 / 100.0);
                weights[0] = (0..rows).step_by(3).map(|r| (r, -1.5)).collect();
            }
            let cotangents = HeadCotangents { weights: &weights, sets: &[0..2] };
            let (on_y, on_w) = (up::<B>(&y, [rows, d], dtype, device), up::<B>(&w, [vocabulary, d], dtype, device));
            let run = || B::head(&on_y, &Weight::Plain(&on_w), &targets, cap, Some(&cotangents));
            let got = run();
            let (of_y, of_w) = (host(&y, [rows, d]), host(&w, [vocabulary, d]));
            let want = Flex::head(&of_y, &Weight::Plain(&of_w), &targets, cap, Some(&cotangents));
            close(&got.logp, &want.logp, 2e-4);
            close(&got.log_normaliser, &want.log_normaliser, 2e-4);
            close(&got.entropy, &want.entropy, 2e-4);
            close(&got.renyi, &want.renyi, 2e-4);
            close(&got.argmax_mass, &want.argmax_mass, 2e-4);
            assert_eq!(got.rank, want.rank);
            same::<B>(&got.back, &want.back);
            let gram = B::collect(vec![got.gram.unwrap()]);
            // its rows are stored in the type before they are multiplied
            close(&gram[0][0], &want.gram.unwrap()[0], tolerance(dtype));
            // two sets, of which one is filled up to the other; and more cotangents of one row each than are summed one by one
            let apart = [0..half, half..rows];
            let singles: Vec<Vec<(usize, f64)>> =
                (0..rows).map(|r| vec![(r, if plain { 1.0 } else { 0.5 + r as f64 / 50.0 })]).collect();
            let of_sets = HeadCotangents { weights: &singles, sets: &apart };
            let of_all = HeadCotangents { weights: &singles, sets: &[0..rows] };
            for cotangents in [of_sets, of_all] {
                let got = B::head(&on_y, &Weight::Plain(&on_w), &targets, cap, Some(&cotangents)).gram.unwrap();
                let want = Flex::head(&of_y, &Weight::Plain(&of_w), &targets, cap, Some(&cotangents)).gram.unwrap();
                for (got, want) in B::collect(vec![got])[0].iter().zip(&want) {
                    close(got, want, tolerance(dtype));
                }
            }
            // the same bits on a second run
            let again = run();
            assert_eq!((&got.logp, &got.entropy), (&again.logp, &again.entropy));
            assert_eq!(B::download(&got.back), B::download(&again.back));
            assert_eq!(gram, B::collect(vec![again.gram.unwrap()]));
        }
    }
}

/// Whether this is the program that the tests start for CUDA on the processor.
fn is_once_more() -> bool {
    std::env::var("TANGLESCOPE_VULKAN").is_ok_and(|choice| choice == "none")
}

/// The checks of a name, or all of these, on CUDA, on the processor: this program once more, where the only device is one of those.
fn once_more(of: Emulated, name: &str, environment: &[(&str, &str)]) {
    if is_once_more() {
        return;
    }
    let Some(libraries) = libraries() else { return };
    let mut command = Command::new(std::env::current_exe().unwrap());
    of.found_by(
        command.args(["--nocapture", name]).envs(environment.iter().copied()).env("TANGLESCOPE_VULKAN", "none"),
        libraries,
    );
    let output = command.output().unwrap();
    let [stdout, stderr] = [&output.stdout, &output.stderr].map(|of| String::from_utf8_lossy(of).into_owned());
    assert!(output.status.success() && !stdout.contains("running 0 tests"), "{stdout}\n{stderr}");
    assert_eq!(faults(&stderr), Vec::<&str>::new());
}

#[test]
fn on_cuda_on_the_processor() {
    once_more(HOPPER, "", &[]);
}

/// Products by cuBLAS, and threads and blocks in reverse.
#[test]
fn on_cuda_on_the_processor_with_cublas() {
    once_more(Emulated { cublas: true, ..AMPERE }, "", &[]);
}

/// Matrix units that take no factors from registers, as Vulkan's; with more shared memory than such a device has, so that they are taken.
#[test]
fn attention_on_matrix_units_by_way_of_shared_memory() {
    once_more(Emulated { capability: "75", ..HOPPER }, "attention_and_its_vjp", &[("CUDA_ON_CPU_SHARED", "166912")]);
}

/// The shared memory of a GeForce card.
#[test]
fn attention_where_shared_memory_is_small() {
    once_more(AMPERE, "attention_and_its_vjp", &[("CUDA_ON_CPU_SHARED", "101376")]);
}

check!(Reductions, reductions);
check!(RowWise, row_wise_maps);
check!(LargeGrids, more_workgroups_than_a_side_has);
check!(Attention, attention);
check!(HeadOverChunks, head);
check!(OfDelta, delta_rule);

#[test]
fn tile_and_gram_are_the_products_of_whole_gradients_within_the_bounds_of_f32() {
    on_devices(&Reductions);
}

#[test]
fn row_wise_maps_and_their_vjps_are_those_of_the_cpu() {
    on_devices(&RowWise);
}

#[test]
fn grids_are_folded_where_a_side_is_full() {
    on_devices(&LargeGrids);
}

#[test]
fn attention_and_its_vjp_are_those_of_the_cpu() {
    on_devices(&Attention);
}

#[test]
fn the_head_over_chunks_is_the_head_of_the_cpu() {
    on_devices(&HeadOverChunks);
}

#[test]
fn the_delta_rule_and_convolutions_are_those_of_the_cpu() {
    on_devices(&OfDelta);
}
