//! A matrix of weights: numbers, or codes that are widened where they are used.
use super::dims;
use tanglescope_kernels::{Coded, DType, FloatTensor, Kernels, Weight};

/// A matrix of weights.
#[derive(Clone, Debug)]
pub enum Matrix<B: Kernels> {
    /// Numbers, in the model's type or as they are stored.
    Plain(FloatTensor<B>),
    /// The transpose of such numbers: those of another library's memory, which has them so.
    Turned(FloatTensor<B>),
    /// Codes of a few bits each, as they are stored.
    Coded(Coded<B>),
}

impl<B: Kernels> Matrix<B> {
    /// Rows and columns.
    #[must_use]
    pub fn dims(&self) -> [usize; 2] {
        match self {
            Self::Plain(numbers) => dims::<B>(numbers),
            Self::Turned(numbers) => {
                let [columns, rows] = dims::<B>(numbers);
                [rows, columns]
            }
            Self::Coded(codes) => codes.dims(),
        }
    }

    /// Rows by index, in a number type.
    pub(crate) fn rows(&self, index: &[u32], dtype: DType) -> FloatTensor<B> {
        match self {
            Self::Plain(_) | Self::Turned(_) => B::cast(B::gather(&self.numbers(dtype), index, None), dtype),
            Self::Coded(codes) => B::gather_coded(codes, index, dtype),
        }
    }

    /// As products and the head take it.
    #[must_use]
    pub fn weight(&self) -> Weight<'_, B> {
        match self {
            Self::Plain(numbers) => Weight::Plain(numbers),
            Self::Turned(numbers) => Weight::Turned(numbers),
            Self::Coded(codes) => Weight::Coded(codes),
        }
    }

    /// Its numbers; those of codes in a number type.
    pub(crate) fn numbers(&self, dtype: DType) -> FloatTensor<B> {
        match self {
            Self::Plain(numbers) => numbers.clone(),
            Self::Turned(numbers) => B::turned(numbers),
            Self::Coded(codes) => B::widen(codes, dtype),
        }
    }

    /// Its numbers, which it is from now on.
    pub(crate) fn widened(&mut self, dtype: DType) -> &mut FloatTensor<B> {
        if !matches!(self, Self::Plain(_)) {
            *self = Self::Plain(self.numbers(dtype));
        }
        let Self::Plain(numbers) = self else { unreachable!("it was made so") };
        numbers
    }

    pub(crate) fn convert<C: Kernels>(&self, f: &impl Fn(&FloatTensor<B>) -> FloatTensor<C>) -> Matrix<C> {
        match self {
            Self::Plain(numbers) => Matrix::Plain(f(numbers)),
            Self::Turned(numbers) => Matrix::Turned(f(numbers)),
            Self::Coded(codes) => Matrix::Coded(codes.convert(f)),
        }
    }
}
