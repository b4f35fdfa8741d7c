//! How codes become numbers on a device.
use super::cube::{Rounding, widen_codes};
use super::{CodeSpec, Coded, Codes};
use crate::on_chip::{array, contiguous, empty, ints, on_devices};
use crate::product::launch::transposed;
use crate::{Backend, DType, FloatTensor, Product};
use burn_cubecl::{CubeRuntime, tensor::CubeTensor};
use cubecl::calculate_cube_count_elemwise;
use cubecl::prelude::*;
use std::ops::Range;

/// Units of a cube that each have a value of their own.
const UNITS: u32 = 256;

/// Which rows of codes become numbers.
pub(crate) enum Chosen<'a> {
    /// Some that follow each other.
    Range(Range<usize>),
    /// By index.
    Index(&'a [u32]),
}

/// Rows of codes as numbers, `[rows, columns]`.
pub(crate) fn numbers<R: CubeRuntime>(
    words: &CubeTensor<R>,
    spec: CodeSpec,
    chosen: &Chosen<'_>,
    dtype: DType,
) -> CubeTensor<R> {
    let (first, rows, index) = match chosen {
        Chosen::Range(rows) => (rows.start, rows.len(), None),
        Chosen::Index(index) => (0, index.len(), Some(*index)),
    };
    let out = empty(words, [rows, spec.columns], dtype);
    if rows == 0 {
        return out;
    }
    let (client, units) = (&words.client, CubeDim::new_1d(UNITS));
    let [factors, least, table] = spec.places();
    widen_codes::launch::<R>(
        client,
        calculate_cube_count_elemwise(client, out.meta.num_elements(), units),
        units,
        array(contiguous(words).handle, spec.words()),
        ints(client, index.unwrap_or_default()),
        out.clone().into_tensor_arg(),
        first,
        spec.block,
        spec.across(),
        factors,
        least,
        table,
        spec.second,
        index.is_some(),
        spec.bits,
        spec.has_least,
        match spec.rounded {
            DType::BF16 => Rounding::Bf16,
            DType::F16 => Rounding::F16,
            _ => Rounding::None,
        },
        dtype.into(),
    );
    out
}

/// The matrix as numbers; as a view where it is the transpose of the codes.
pub(crate) fn matrix<R, B>(w: &Coded<B>, dtype: DType) -> CubeTensor<R>
where
    R: CubeRuntime,
    B: Backend<FloatTensorPrimitive = CubeTensor<R>>,
{
    let all = numbers(&w.words, w.spec, &Chosen::Range(0..w.spec.rows), dtype);
    if w.transposed { transposed(&all) } else { all }
}

on_devices! { Codes, R {
    fn widen(w: &Coded<Self>, dtype: DType) -> FloatTensor<Self> {
        contiguous(&matrix(w, dtype))
    }

    fn gather_coded(w: &Coded<Self>, index: &[u32], dtype: DType) -> FloatTensor<Self> {
        numbers(&w.words, w.table(), &Chosen::Index(index), dtype)
    }

    fn matmul_coded(
        x: &FloatTensor<Self>,
        w: &Coded<Self>,
        transposed: bool,
        scale: f64,
        onto: Option<FloatTensor<Self>>,
    ) -> FloatTensor<Self> {
        Self::matmul(x, &matrix(w, x.dtype), transposed, scale, onto)
    }
} }
