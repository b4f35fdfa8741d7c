//! What the kernels' tests share: reproducible values, batches of ragged groups, and the reductions by plain loops.
#![allow(dead_code)] // each test binary uses a part
use half::{bf16, f16};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};
use tanglescope_kernels::{
    CodeSpec, DType, Flex, FlexDevice, Head, HeadCotangents, Kernels, Memory, RowSet, TensorData, Weight, as_index,
};

/// Reproducible standard normal numbers.
pub struct Random(ChaCha8Rng);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(ChaCha8Rng::seed_from_u64(seed))
    }

    pub fn values(&mut self, n: usize) -> Vec<f64> {
        // rounded to f32, so that both number types start from the same values
        (0..n).map(|_| StandardNormal.sample(&mut self.0)).map(|x: f32| f64::from(x)).collect()
    }

    pub fn below(&mut self, n: usize) -> usize {
        use rand::Rng;
        self.0.random_range(0..n)
    }
}

/// Blocks of groups: each with a trunk and some cotangents that reach into suffixes of their own. Returns the number
/// of forward rows too.
pub fn rows(random: &mut Random, groups: &[(usize, Vec<usize>)]) -> (RowSet, usize) {
    let mut rows = RowSet { offsets: vec![0], ..RowSet::default() };
    let mut forward = 0;
    for (trunk, suffixes) in groups {
        let start = forward;
        forward += trunk;
        let first = rows.cotangents();
        for suffix in suffixes {
            // with a gap, so that the rows of one cotangent are not all consecutive
            let own = forward..forward + suffix;
            forward += suffix + 1;
            let used = (start..start + trunk - random.below(*trunk + usize::from(*trunk == 0))).chain(own);
            // now and then a cotangent of zero, which has no rows
            let used = used.filter(|_| *suffix != 7);
            rows.index.extend(used.map(|row| u32::try_from(row).unwrap()));
            rows.offsets.push(rows.index.len());
        }
        rows.sets.push(first..rows.cotangents());
    }
    (rows, forward)
}

/// ⟨Σ δxᵀ, Σ δxᵀ⟩ by plain loops.
pub fn expected(x: &[f64], n: usize, delta: &[f64], m: usize, rows: &RowSet) -> Vec<Vec<f64>> {
    expected_in(x, n, delta, m, rows, &vec![1.0; n * m])
}

/// The same of gradients whose entries are multiplied with `roots[n, m]`.
pub fn expected_in(x: &[f64], n: usize, delta: &[f64], m: usize, rows: &RowSet, roots: &[f64]) -> Vec<Vec<f64>> {
    let gradient = |k: usize| {
        let mut g = vec![0.0; n * m];
        for r in rows.of(k) {
            let input = &x[rows.index[r] as usize * n..][..n];
            for (i, d) in delta[r * m..][..m].iter().enumerate() {
                g[i * n..][..n].iter_mut().zip(input).for_each(|(g, x)| *g += d * x);
            }
        }
        g.iter_mut().enumerate().for_each(|(at, g)| *g *= roots[at % n * m + at / n]);
        g
    };
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let of_set = |set: &std::ops::Range<usize>| {
        let gradients: Vec<Vec<f64>> = set.clone().map(gradient).collect();
        gradients.iter().flat_map(|a| gradients.iter().map(move |b| dot(a, b))).collect()
    };
    rows.sets.iter().map(of_set).collect()
}

/// Fails where a result is off by more than a share of the largest value expected. Inputs are of size one, and what
/// remains of them after cancelling is off by a share of that.
#[track_caller]
pub fn close(got: &[f64], want: &[f64], tolerance: f64) {
    let error = largest_error(got, want);
    // written so that NaN fails
    assert!(error <= tolerance, "off by {error} of the largest value, expected at most {tolerance}");
}

/// The largest error, as a share of the largest value expected; NaN where there is one.
#[track_caller]
pub fn largest_error(got: &[f64], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len());
    let size = want.iter().fold(1.0f64, |a, b| a.max(b.abs()));
    let errors = got.iter().zip(want).map(|(got, want)| (got - want).abs() / size);
    errors.fold(0.0, |a: f64, b| if a >= b || a.is_nan() { a } else { b })
}

/// The head in f32 on a device against f64 where rows are all but certain of their targets: 1 − p is some 1e-5. Logits of 18 are off by 18 roundings of f32
/// from 64 terms each, so that odds are off by 64·18·2⁻²⁴ = 7e-5 of themselves at most, and products of two by twice that.
pub fn check_certain_rows<B: Kernels>(device: &B::Device) {
    let (rows, d, vocabulary) = (7, 64, 300);
    let mut random = Random::new(21);
    let w = random.values(vocabulary * d);
    let targets: Vec<usize> = (0..rows).map(|r| if r == 6 { 0 } else { 40 * r }).collect();
    // along the target's row of the output matrix, whose logit is 18
    let y: Vec<f64> = targets
        .iter()
        .flat_map(|t| {
            let own = &w[t * d..][..d];
            let square: f64 = own.iter().map(|x| x * x).sum();
            own.iter().map(move |x| 18.0 * x / square)
        })
        .collect();
    let ids: Vec<u32> = targets.iter().map(|&t| as_index(t)).collect();
    let weights: Vec<Vec<(usize, f64)>> = (0..rows).map(|r| vec![(r, 1.0)]).collect();
    let all = HeadCotangents { weights: &weights, sets: &[0..rows] };
    let data = |values: &[f64], shape, dtype| TensorData::new(values.to_vec(), shape).convert_dtype(dtype);
    let up = |values, shape| B::upload(data(values, shape, DType::F32), device);
    let host = |values, shape| Flex::upload(data(values, shape, DType::F32).convert_dtype(DType::F64), &FlexDevice);
    let got = B::head(&up(&y, [rows, d]), &Weight::Plain(&up(&w, [vocabulary, d])), &ids, None, Some(&all));
    let want = Flex::head(&host(&y, [rows, d]), &Weight::Plain(&host(&w, [vocabulary, d])), &ids, None, Some(&all));
    let near = |got: f64, want: f64, size: f64| {
        assert!((got - want).abs() <= 1.5e-4 * size, "{got}, expected {want} to 1.5e-4 of {size}");
    };
    for (got, want) in got.logp.iter().zip(&want.logp) {
        assert!((-1e-3..-1e-7).contains(want));
        near(*got, *want, want.abs());
    }
    let (back, of_back) = (B::download(&got.back), Flex::download(&want.back));
    for (got, want) in back.chunks(d).zip(of_back.chunks(d)) {
        let size = want.iter().fold(0.0, |size: f64, x| size.max(x.abs()));
        got.iter().zip(want).for_each(|(got, want)| near(*got, *want, size));
    }
    let (got, want) = (&B::collect(vec![got.gram.unwrap()])[0][0], &want.gram.unwrap()[0]);
    for (at, (got, want_here)) in got.iter().zip(want).enumerate() {
        let (i, j) = (at / rows, at % rows);
        near(*got, *want_here, (want[i * rows + i] * want[j * rows + j]).sqrt());
    }
}

/// Rows of a row-major matrix.
pub fn rows_of(values: &[f64], width: usize, index: impl IntoIterator<Item = usize>) -> Vec<f64> {
    index.into_iter().flat_map(|row| values[row * width..][..width].to_vec()).collect()
}

/// Words of a matrix of codes without a pattern, and its values `[rows, columns]` by the formula.
#[allow(clippy::cast_possible_truncation)] // numbers were made in f32; codes are of 8 bits
pub fn codes(random: &mut Random, spec: CodeSpec) -> (Vec<u32>, Vec<f64>) {
    let number = |random: &mut Random| random.values(1)[0] as f32;
    let (codes, across) = (1 << spec.bits, spec.columns.div_ceil(spec.block));
    let code: Vec<usize> = (0..spec.rows * spec.columns).map(|_| random.below(codes)).collect();
    let factors: Vec<f32> = (0..spec.rows * across).map(|_| number(random)).collect();
    let least: Vec<f32> = (0..if spec.has_least { factors.len() } else { 0 }).map(|_| number(random)).collect();
    let table: Vec<f32> = (0..codes).map(|_| number(random)).collect();
    let packed = |codes: &[usize]| codes.iter().rev().fold(0u32, |word, code| word << spec.bits | *code as u32);
    let mut words: Vec<u32> = code.chunks(32 / spec.bits).map(packed).collect();
    words.extend(factors.iter().chain(&least).chain(&table).map(|x| x.to_bits()));
    let value = |at: usize| {
        let block = at / spec.columns * across + at % spec.columns / spec.block;
        let product = table[code[at]] * factors[block] * spec.second;
        let rounded = match spec.rounded {
            DType::BF16 => bf16::from_f32(product).to_f32(),
            DType::F16 => f16::from_f32(product).to_f32(),
            _ => product,
        };
        f64::from(if spec.has_least { rounded - least[block] } else { rounded })
    };
    (words, (0..spec.rows * spec.columns).map(value).collect())
}

/// Matrices of codes of every kind: few bits and more, blocks that do not fill a row, and what some have beside.
pub fn specs() -> Vec<CodeSpec> {
    let plain =
        CodeSpec { rows: 70, columns: 136, bits: 4, block: 64, has_least: false, second: 1.0, rounded: DType::F32 };
    vec![
        CodeSpec { rounded: DType::BF16, ..plain },
        CodeSpec { rounded: DType::F16, block: 8, ..plain },
        CodeSpec { has_least: true, block: 32, ..plain },
        CodeSpec { bits: 8, columns: 132, block: 132, second: 7.874_016e-3, ..plain },
        CodeSpec { bits: 8, rows: 3, columns: 260, block: 128, ..plain },
        CodeSpec { rows: 1, columns: 8, block: 8, ..plain },
    ]
}
