//! The head on a device: products by cubek, what lies between them by our kernels.
//!
//! One walk over the vocabulary for log-probabilities and the gradient; where the output matrix is in scope a second one
//! forms e = onehot − p chunk by chunk, sums its products of rows, and hands them to the *gram* reduction.
use super::cube::{FIGURES, UNITS, add_chunk, cotangents_of_chunk, finish, take_chunk, target_logits};
use super::{Figures, Head, Others};
use crate::codes::launch::{Chosen, numbers};
use crate::gram::{self, plan::Part};
use crate::on_chip::{array, by_rows, empty, ints, on_devices, rows_as_they_are, rows_of, width_of};
use crate::pending::Pending;
use crate::product::launch::{product, rows, transposed};
use crate::rows::launch::gather;
use crate::{CodeSpec, FloatTensor, HeadCotangents, HeadOutput, SoftCap, Weight, as_index};
use burn_backend::DType;
use burn_cubecl::{CubeRuntime, ops::numeric::add, tensor::CubeTensor};
use cubecl::calculate_cube_count_elemwise;
use cubecl::prelude::*;
use std::ops::Range;

/// Values of a chunk of logits: 32 MiB in f32, whatever the vocabulary and the number of rows; more leave a GPU's cache.
const CHUNK_VALUES: usize = 8 << 20;

/// Most tokens of a chunk: more would not make its products any faster.
const CHUNK_TOKENS: usize = 8192;

/// Tokens of a chunk for `n` rows.
fn chunk_tokens(n: usize) -> usize {
    (CHUNK_VALUES / n.max(1)).clamp(64, CHUNK_TOKENS) / 64 * 64
}

/// The output matrix on a device.
pub(crate) enum Table<'a, R: CubeRuntime> {
    Plain(&'a CubeTensor<R>),
    Coded(&'a CubeTensor<R>, CodeSpec),
}

impl<R: CubeRuntime> Table<'_, R> {
    fn rows(&self) -> usize {
        match self {
            Self::Plain(w) => rows_of(w),
            Self::Coded(_, spec) => spec.rows,
        }
    }

    /// Rows of a chunk of the vocabulary.
    fn chunk(&self, tokens: Range<usize>, dtype: DType) -> CubeTensor<R> {
        match self {
            Self::Plain(w) => rows(w, tokens),
            Self::Coded(words, spec) => numbers(words, *spec, &Chosen::Range(tokens), dtype),
        }
    }

    /// A matrix with the rows of targets, and where in it they are.
    fn of_targets(&self, targets: &[u32], dtype: DType) -> (CubeTensor<R>, Vec<u32>) {
        match self {
            Self::Plain(w) => (rows_as_they_are(w), targets.to_vec()),
            Self::Coded(words, spec) => {
                let own = numbers(words, *spec, &Chosen::Index(targets), dtype);
                (own, (0..as_index(targets.len())).collect())
            }
        }
    }
}

/// See [`Head::head`].
pub(crate) fn head<R: CubeRuntime>(
    y: &CubeTensor<R>,
    w: &Table<'_, R>,
    targets: &[u32],
    cap: Option<SoftCap>,
    cotangents: Option<&HeadCotangents<'_>>,
) -> HeadOutput<CubeTensor<R>, Pending<R>> {
    #[allow(clippy::cast_possible_truncation)]
    let bound = cap.map_or(1.0, |cap| cap.0 as f32);
    let (n, d, vocabulary) = (rows_of(y), width_of(y), w.rows());
    let client = y.client.clone();
    let back = empty(y, [n, d], y.dtype);
    if n == 0 {
        return output(&[], back, cotangents.map(|c| Pending::nothing(&c.rows())));
    }
    let figures = client.empty(n * FIGURES * size_of::<f32>());
    let of_rows = || array(figures.clone(), n * FIGURES);
    let mean = empty(y, [n, d], DType::F32);
    let step = chunk_tokens(n);
    let chunks = || (0..vocabulary).step_by(step).map(|first| first..(first + step).min(vocabulary));
    let cells = CubeDim::new_1d(as_index(UNITS));
    let grid = |values: usize| calculate_cube_count_elemwise(&client, values, cells);
    let own = client.empty(n * size_of::<f32>());
    let (of_targets, places) = w.of_targets(targets, y.dtype);
    target_logits::launch::<R>(
        &client,
        by_rows(n),
        cells,
        rows_as_they_are(y).into_tensor_arg(),
        of_targets.clone().into_tensor_arg(),
        ints(&client, &places),
        array(own.clone(), n),
        y.dtype.into(),
    );
    for chunk in chunks() {
        let part = w.chunk(chunk.clone(), y.dtype);
        let logits = product(y, &transposed(&part), DType::F32);
        let p = empty(y, [n, chunk.len()], y.dtype);
        take_chunk::launch::<R>(
            &client,
            by_rows(n),
            cells,
            logits.into_tensor_arg(),
            ints(&client, targets),
            array(own.clone(), n),
            of_rows(),
            p.clone().into_tensor_arg(),
            as_index(chunk.start),
            bound,
            chunk.start == 0,
            cap.is_some(),
            y.dtype.into(),
        );
        let here = product(&p, &part, DType::F32);
        let (sum, here) = (mean.clone().into_tensor_arg(), here.into_tensor_arg());
        add_chunk::launch::<R>(&client, grid(n * d), cells, sum, here, of_rows(), chunk.start == 0);
    }
    finish::launch::<R>(
        &client,
        grid(n * d),
        cells,
        of_targets.into_tensor_arg(),
        ints(&client, &places),
        mean.into_tensor_arg(),
        of_rows(),
        back.clone().into_tensor_arg(),
        bound,
        cap.is_some(),
        y.dtype.into(),
    );
    let products = |cotangents: &HeadCotangents<'_>| {
        let cotangents_of = |chunk: &Range<usize>| {
            let logits = product(y, &transposed(&w.chunk(chunk.clone(), y.dtype)), DType::F32);
            let e = empty(y, [n, chunk.len()], y.dtype);
            cotangents_of_chunk::launch::<R>(
                &client,
                grid(n * chunk.len()),
                cells,
                logits.into_tensor_arg(),
                ints(&client, targets),
                of_rows(),
                e.clone().into_tensor_arg(),
                as_index(chunk.start),
                bound,
                cap.is_some(),
                y.dtype.into(),
            );
            e
        };
        row_gram(y, cotangents, chunks().map(|chunk| cotangents_of(&chunk)))
    };
    let gram = cotangents.map(products);
    let read = client.read(vec![figures.clone()]);
    output(&bytemuck::pod_collect_to_vec(&read[0]), back, gram)
}

/// The *gram* reduction of the output matrix, whose cotangents `e` come chunk by chunk of the vocabulary.
fn row_gram<R: CubeRuntime>(
    y: &CubeTensor<R>,
    cotangents: &HeadCotangents<'_>,
    chunks: impl Iterator<Item = CubeTensor<R>>,
) -> Pending<R> {
    let (set, sources, weights) = (cotangents.rows(), cotangents.sources(), cotangents.weights());
    // every row once, in order, weighted one: e is the cotangent as it is
    let plain = sources.iter().enumerate().all(|(i, &s)| i == s as usize)
        && weights.iter().all(|c| c.to_bits() == 1.0f64.to_bits());
    let parts = gram::launch::parts(&set);
    let inputs: Vec<CubeTensor<R>> = parts.iter().map(|part| part.inputs(y, &set)).collect();
    let mut products: Vec<Option<CubeTensor<R>>> = vec![None; parts.len()];
    for e in chunks {
        let e = if plain { e } else { gather(&e, &sources, Some(&weights)) };
        for (part, sum) in parts.iter().zip(&mut products) {
            let here = part.products(&e, &set, &part.rows(&set));
            *sum = Some(match sum.take() {
                Some(sum) => add(sum, here),
                None => here,
            });
        }
    }
    let of = |((part, inputs), products): ((&Part, &CubeTensor<R>), Option<CubeTensor<R>>)| {
        products.map(|products| part.sums((inputs, products), &set, &part.rows(&set)))
    };
    parts.iter().zip(&inputs).zip(products).filter_map(of).fold(Pending::nothing(&set), Pending::plus)
}

/// What the rows' final figures say.
fn output<T, P>(figures: &[f32], back: T, gram: Option<P>) -> HeadOutput<T, P> {
    let of_row = |of_row: &[f32]| {
        let [top, sum, weighted, own, squares] = [0, 1, 2, 3, 6].map(|i| f64::from(of_row[i]));
        // a whole number, exact in f32 up to 2²⁴ tokens
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::float_cmp)]
        let above = of_row[5] as u32;
        // of a vocabulary of one
        let sum = if sum == 0.0 { 1.0 } else { sum };
        Others { top, sum, weighted, squares, above }.with(own)
    };
    let rows: Vec<Figures> = figures.chunks_exact(FIGURES).map(of_row).collect();
    HeadOutput::of(&rows, back, gram)
}

on_devices! { Head, R {
    fn head(
        y: &FloatTensor<Self>,
        w: &Weight<'_, Self>,
        targets: &[u32],
        cap: Option<SoftCap>,
        cotangents: Option<&HeadCotangents<'_>>,
    ) -> HeadOutput<FloatTensor<Self>, Self::Pending> {
        let table = match w {
            Weight::Plain(w) | Weight::Turned(w) => Table::Plain(w),
            Weight::Coded(w) => Table::Coded(w.words(), w.table()),
        };
        head(y, &table, targets, cap, cotangents)
    }
} }
