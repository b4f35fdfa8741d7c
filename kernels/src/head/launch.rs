//! The head on a device: one walk over the vocabulary, products by a library, what lies between them by our kernels.
use super::cube::{FIGURES, UNITS, finish, take_chunk, target_logits};
use super::gram::Walk;
use super::{Figures, Head, Others};
use crate::codes::launch::{Chosen, numbers};
use crate::on_chip::{array, by_rows, empty, ints, on_devices, rows_as_they_are, rows_of, width_of};
use crate::pending::Pending;
use crate::product::launch::{product, product_onto, rows, transposed};
use crate::{CodeSpec, FloatTensor, HeadCotangents, HeadOutput, SoftCap, Weight, as_index};
use burn_backend::DType;
use burn_cubecl::{CubeRuntime, tensor::CubeTensor};
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
    let bound = SoftCap::bound(cap);
    let (n, d, vocabulary) = (rows_of(y), width_of(y), w.rows());
    let client = y.client.clone();
    let back = empty(y, [n, d], y.dtype);
    if n == 0 {
        return output(&[], back, cotangents.map(|c| Pending::nothing(&c.rows())));
    }
    let figures = client.empty(n * FIGURES * size_of::<f32>());
    let of_rows = || array(figures.clone(), n * FIGURES);
    let mut mean = empty(y, [n, d], DType::F32);
    let mut gram = cotangents.map(Walk::new);
    let step = chunk_tokens(n);
    let chunks = || (0..vocabulary).step_by(step).map(|first| first..(first + step).min(vocabulary));
    let cells = CubeDim::new_1d(as_index(UNITS));
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
            mean.clone().into_tensor_arg(),
            p.clone().into_tensor_arg(),
            as_index(chunk.start),
            bound,
            chunk.start == 0,
            cap.is_some(),
            y.dtype.into(),
        );
        mean = if chunk.start == 0 { product(&p, &part, DType::F32) } else { product_onto(&p, &part, mean) };
        gram.iter_mut().for_each(|gram| gram.add(&p, &of_rows));
    }
    finish::launch::<R>(
        &client,
        calculate_cube_count_elemwise(&client, n * d, cells),
        cells,
        of_targets.clone().into_tensor_arg(),
        ints(&client, &places),
        mean.into_tensor_arg(),
        of_rows(),
        back.clone().into_tensor_arg(),
        bound,
        cap.is_some(),
        y.dtype.into(),
    );
    let gram = gram.map(|gram| gram.finish(y, (&of_targets, &places), targets, &of_rows, cap));
    let read = client.read(vec![figures.clone()]);
    output(&bytemuck::pod_collect_to_vec(&read[0]), back, gram)
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
