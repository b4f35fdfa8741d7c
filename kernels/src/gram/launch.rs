//! How the *gram* reduction is spread over a device: both row Grams as products of matrices, the sets of a batch together, and one
//! kernel that multiplies them entry by entry and sums.
use super::RowGram;
use super::cube::{UNITS, sum_products};
use super::plan::{Part, Sums};
use crate::on_chip::{array, by_rows, contiguous, ints, on_devices, width_of};
use crate::pending::Pending;
use crate::product::launch::{product, rows as some_rows, transposed};
use crate::rows::launch::gather;
use crate::{FloatTensor, RowSet, as_index};
use burn_backend::{DType, Shape};
use burn_cubecl::{CubeRuntime, ops::numeric::mul, tensor::CubeTensor};
use cubecl::prelude::*;
use std::ops::Range;

/// Bytes of row Grams that are formed at once.
const BYTES: usize = 64 << 20;

/// Stretches of rows as a batch of matrices, `[B, longest, width]`. Places beyond a stretch's own rows hold one of the tensor's,
/// and what is made of them is not read.
pub(crate) fn batch<R: CubeRuntime>(x: &CubeTensor<R>, stretches: &[Range<usize>]) -> CubeTensor<R> {
    let longest = stretches.iter().map(Range::len).max().unwrap_or(0);
    let follow = stretches.windows(2).all(|two| two[0].end == two[1].start);
    let alike = follow && stretches.iter().all(|stretch| stretch.len() == longest);
    let x = if alike {
        contiguous(&some_rows(x, stretches[0].start..stretches[0].start + stretches.len() * longest))
    } else {
        let place = |stretch: &Range<usize>, i: usize| if i < stretch.len() { stretch.start + i } else { 0 };
        let index: Vec<u32> = stretches.iter().flat_map(|s| (0..longest).map(|i| as_index(place(s, i)))).collect();
        gather(x, &index, None)
    };
    let shape = [stretches.len(), longest, width_of(&x)];
    reshaped(x, shape)
}

/// Values that lie side by side, as a tensor of another shape.
pub(crate) fn reshaped<R: CubeRuntime>(x: CubeTensor<R>, shape: impl Into<Shape>) -> CubeTensor<R> {
    CubeTensor::new_contiguous(x.client, x.device, shape.into(), x.handle, x.dtype)
}

impl Part {
    /// `x·xᵀ` of what each set uses, in f32.
    pub(crate) fn inputs<R: CubeRuntime>(&self, x: &CubeTensor<R>, rows: &RowSet) -> CubeTensor<R> {
        match self {
            Self::Single { set, .. } => {
                let x = gather(x, &rows.index[rows.of_set(&rows.sets[*set])], None);
                product(&x, &transposed(&x), DType::F32)
            }
            Self::Several { .. } => {
                let x = batch(x, &self.forward(rows));
                product(&x, &transposed(&x), DType::F32)
            }
        }
    }

    /// A block of `δ·δᵀ` of each set's rows, in f32.
    pub(crate) fn products<R: CubeRuntime>(
        &self,
        delta: &CubeTensor<R>,
        rows: &RowSet,
        block: &Range<usize>,
    ) -> CubeTensor<R> {
        match self {
            Self::Single { set, .. } => {
                let delta = some_rows(delta, rows.of_set(&rows.sets[*set]));
                product(&delta, &transposed(&delta), DType::F32)
            }
            Self::Several { .. } => {
                let stretches = self.backward(rows);
                let all = batch(delta, &stretches);
                if block.len() == all.meta.shape()[1] {
                    return product(&all, &transposed(&all), DType::F32);
                }
                let first = stretches[0].start;
                let some = batch(delta, &[first + block.start..first + block.end]);
                product(&some, &transposed(&all), DType::F32)
            }
        }
    }

    /// What [`Part::inputs`] and a block of [`Part::products`] come to.
    pub(crate) fn sums<R: CubeRuntime>(
        &self,
        (inputs, products): (&CubeTensor<R>, CubeTensor<R>),
        rows: &RowSet,
        block: &Range<usize>,
    ) -> Pending<R> {
        let sets = match self {
            Self::Single { set, present } => {
                let products = reshaped(products, inputs.meta.shape().clone());
                return Pending::matrices(rows, &mul(products, inputs.clone()), *set, present.clone());
            }
            Self::Several { sets } => sets,
        };
        let sums = Sums::new(rows, sets, block);
        if sums.tasks.is_empty() {
            return Pending::nothing(rows);
        }
        let (client, len) = (inputs.client.clone(), sums.tasks.len());
        let out = client.empty(len * size_of::<f32>());
        sum_products::launch::<R>(
            &client,
            by_rows(len),
            CubeDim::new_1d(as_index(UNITS)),
            inputs.clone().into_tensor_arg(),
            products.into_tensor_arg(),
            ints(&client, &sums.index),
            ints(&client, sums.tasks.as_flattened()),
            array(out.clone(), len),
        );
        let mut pending = Pending::new(rows, client, out, len);
        sums.entries.into_iter().for_each(|(entry, of)| pending.add(entry, of.start, of.len(), 1));
        pending
    }
}

/// The parts of a reduction that have rows at all.
pub(crate) fn parts(rows: &RowSet) -> Vec<Part> {
    let parts = Part::of(rows, BYTES).into_iter();
    parts.filter(|part| part.backward(rows).iter().any(|stretch| !stretch.is_empty())).collect()
}

/// See the trait's `gram_rows`.
pub(crate) fn gram_rows<R: CubeRuntime>(
    x: &CubeTensor<R>,
    deltas: &[&CubeTensor<R>],
    rows: &RowSet,
) -> Vec<Pending<R>> {
    let mut out: Vec<Pending<R>> = deltas.iter().map(|_| Pending::nothing(rows)).collect();
    for part in parts(rows) {
        let inputs = part.inputs(x, rows);
        for block in part.blocks(rows, BYTES) {
            let of = |(delta, pending): (&&CubeTensor<R>, Pending<R>)| {
                pending.plus(part.sums((&inputs, part.products(delta, rows, &block)), rows, &block))
            };
            out = deltas.iter().zip(out).map(of).collect();
        }
    }
    out
}

on_devices! { RowGram, R {
    fn gram_rows(x: &FloatTensor<Self>, deltas: &[&FloatTensor<Self>], rows: &RowSet) -> Vec<Self::Pending> {
        gram_rows(x, deltas, rows)
    }
} }
