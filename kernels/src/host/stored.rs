//! Weights in the type that they are stored in: bf16 checkpoints take half the memory, and are widened, which is exact,
//! piece by piece where a product uses them.
use crate::codes::cpu::Stripes;
use crate::host::real::{Real, unwritten, values, vectorised};
use crate::{Flex, Weight};
use burn_flex::FlexTensor;
use half::bf16;
use rayon::prelude::*;
use std::borrow::Cow;
use std::ops::Range;

/// A row-major matrix of weights.
pub enum Stored<'a, E> {
    /// In the type that is computed with.
    Working(&'a [E]),
    /// As checkpoints have it.
    Narrow(&'a [bf16]),
    /// As codes, or their transpose.
    Coded(Stripes<'a>),
}

/// Widens values in order; compiled for vectors, since the shift has no branch (weights are finite).
#[inline(always)]
fn widen<E: Real>(from: &[bf16], to: &mut [E]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to = E::of(f64::from(f32::from_bits(u32::from(from.to_bits()) << 16)));
    }
}

impl<'a, E: Real> Stored<'a, E> {
    /// The values of a tensor.
    pub fn of(x: &'a FlexTensor) -> Self {
        match burn_backend::TensorMetadata::dtype(x) {
            burn_backend::DType::BF16 => Self::Narrow(x.storage()),
            _ => Self::Working(values(x)),
        }
    }

    /// A matrix as it lies.
    pub fn of_weight(w: &'a Weight<'_, Flex>) -> Self {
        match w {
            Weight::Plain(x) | Weight::Turned(x) => Self::of(x),
            Weight::Coded(x) => Self::Coded(Stripes::of(x)),
        }
    }

    /// Rows of a matrix `width` wide, on all cores; of codes, their own.
    pub fn rows(&self, rows: Range<usize>, width: usize) -> Cow<'_, [E]> {
        let range = rows.start * width..rows.end * width;
        match self {
            Self::Coded(x) => {
                let mut out = unwritten(range.len());
                let each = out.par_chunks_mut(width).zip(rows).with_min_len(16);
                each.for_each(|(to, row)| x.widen_into(row..row + 1, &(0..width), to));
                Cow::Owned(out)
            }
            Self::Working(x) => Cow::Borrowed(&x[range]),
            Self::Narrow(x) => {
                let mut out = unwritten(range.len());
                out.par_chunks_mut(16 * 1024)
                    .zip(x[range].par_chunks(16 * 1024))
                    .for_each(|(to, from)| vectorised!(widen(from, to)));
                Cow::Owned(out)
            }
        }
    }

    /// Rows of a matrix by index; of codes, their own.
    pub fn gather(&self, index: &[u32], width: usize) -> Vec<E> {
        let mut out = unwritten(index.len() * width);
        out.par_chunks_mut(width).zip(index).with_min_len(16).for_each(|(to, &row)| {
            let range = row as usize * width..(row as usize + 1) * width;
            match self {
                Self::Working(x) => to.copy_from_slice(&x[range]),
                Self::Narrow(x) => vectorised!(widen(&x[range], to)),
                Self::Coded(x) => x.widen_into(row as usize..row as usize + 1, &(0..width), to),
            }
        });
        out
    }
}

/// Rows `rows` and columns `columns` of a narrow matrix `width` wide.
pub fn widen_stripe<E: Real>(x: &[bf16], width: usize, rows: Range<usize>, columns: &Range<usize>) -> Vec<E> {
    let mut out = unwritten(rows.len() * columns.len());
    vectorised!({
        for (to, row) in out.chunks_exact_mut(columns.len().max(1)).zip(rows) {
            widen(&x[row * width..][columns.clone()], to);
        }
    });
    out
}
