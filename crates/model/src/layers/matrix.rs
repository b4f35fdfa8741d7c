//! A matrix of weights: numbers, or codes that are widened where they are used.
use super::dims;
use tanglescope_kernels::{Coded, DType, FloatTensor, Kernels, Weight};

/// A matrix of weights.
#[derive(Clone, Debug)]
pub enum Matrix<B: Kernels> {
    /// Numbers, in the model's type or as they are stored.
    Plain(FloatTensor<B>),
    /// Codes of a few bits each, as they are stored.
    Coded(Coded<B>),
}

impl<B: Kernels> Matrix<B> {
    /// Rows and columns.
    #[must_use]
    pub fn dims(&self) -> [usize; 2] {
        match self {
            Self::Plain(numbers) => dims::<B>(numbers),
            Self::Coded(codes) => codes.dims(),
        }
    }

    /// Rows by index, in a number type.
    pub(crate) fn rows(&self, index: &[u32], dtype: DType) -> FloatTensor<B> {
        match self {
            Self::Plain(numbers) => B::cast(B::gather(numbers, index, None), dtype),
            Self::Coded(codes) => B::gather_coded(codes, index, dtype),
        }
    }

    /// As products and the head take it.
    #[must_use]
    pub fn weight(&self) -> Weight<'_, B> {
        match self {
            Self::Plain(numbers) => Weight::Plain(numbers),
            Self::Coded(codes) => Weight::Coded(codes),
        }
    }

    /// Its numbers; those of codes in a number type.
    pub(crate) fn numbers(&self, dtype: DType) -> FloatTensor<B> {
        match self {
            Self::Plain(numbers) => numbers.clone(),
            Self::Coded(codes) => B::widen(codes, dtype),
        }
    }

    /// Its numbers, which it is from now on.
    pub(crate) fn widened(&mut self, dtype: DType) -> &mut FloatTensor<B> {
        if let Self::Coded(codes) = self {
            *self = Self::Plain(B::widen(codes, dtype));
        }
        let Self::Plain(numbers) = self else { unreachable!("codes were widened") };
        numbers
    }

    pub(crate) fn convert<C: Kernels>(&self, f: &impl Fn(&FloatTensor<B>) -> FloatTensor<C>) -> Matrix<C> {
        match self {
            Self::Plain(numbers) => Matrix::Plain(f(numbers)),
            Self::Coded(codes) => Matrix::Coded(codes.convert(f)),
        }
    }
}
