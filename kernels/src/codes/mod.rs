//! Matrices of weights that stay codes of a few bits in memory, and are widened where a product uses them.
//!
//! `w = round(table[code]·factor·second) − least`, in f32 from left to right: all ways of quantising that checkpoints are stored in. A factor is
//! of neighbouring codes of a row. A map's rows of codes are its outputs, so that the map, which is kept as `[inputs, outputs]`, is their transpose; a
//! table's rows of codes are its rows.
//!
//! On the processor codes are widened in stripes that fit a cache, as [bfloat16](crate::Memory::takes_stored) is. On a device a whole matrix is
//! widened into memory that is given back behind the product: products there are by libraries that take numbers only, and the codes of a matrix
//! are read once for thousands of operations on each.
pub mod bench;
pub(crate) mod cpu;
mod cube;
pub(crate) mod launch;

use crate::{Backend, DType, FloatTensor, Product, Shape, TensorMetadata};

/// What numbers stand at which of the words of a matrix: codes of all rows, factors of their blocks, what is taken off those, the table.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CodeSpec {
    /// Rows of codes.
    pub rows: usize,
    /// Codes of a row, which fill whole words.
    pub columns: usize,
    /// Bits of a code, 4 or 8, from the lowest of a word on.
    pub bits: usize,
    /// Codes of a row that share a factor; the last ones may be fewer.
    pub block: usize,
    /// Whether something is taken off the values of each block.
    pub has_least: bool,
    /// A factor on all values.
    pub second: f32,
    /// The type that products are rounded to: F32, BF16 or F16.
    pub rounded: DType,
}

impl CodeSpec {
    /// Codes of a word.
    pub(crate) fn of_word(self) -> usize {
        32 / self.bits
    }

    /// Blocks of a row.
    pub(crate) fn across(self) -> usize {
        self.columns.div_ceil(self.block)
    }

    /// Where factors begin, what is taken off, and the table.
    pub(crate) fn places(self) -> [usize; 3] {
        let (factors, blocks) = (self.rows * self.columns / self.of_word(), self.rows * self.across());
        let least = factors + blocks;
        [factors, least, least + if self.has_least { blocks } else { 0 }]
    }

    /// Number of words.
    #[must_use]
    pub fn words(self) -> usize {
        self.places()[2] + (1 << self.bits)
    }
}

/// A matrix of weights as codes.
#[derive(Clone, Debug)]
pub struct Coded<B: Backend> {
    /// Codes and numbers, `[words]`, in [words](DType::U32) that no backend converts.
    words: FloatTensor<B>,
    /// What they are.
    spec: CodeSpec,
    /// Whether the matrix is the transpose of the codes.
    transposed: bool,
}

impl<B: Backend> Coded<B> {
    /// The matrix that codes stand for, or its transpose.
    ///
    /// # Panics
    /// Where the words are not as many as `spec` says.
    #[must_use]
    pub fn new(words: FloatTensor<B>, spec: CodeSpec, transposed: bool) -> Self {
        assert!(words.dtype() == DType::U32 && words.shape() == Shape::new([spec.words()]));
        Self { words, spec, transposed }
    }

    /// Rows and columns.
    #[must_use]
    pub fn dims(&self) -> [usize; 2] {
        let CodeSpec { rows, columns, .. } = self.spec;
        if self.transposed { [columns, rows] } else { [rows, columns] }
    }

    /// Codes and numbers.
    pub(crate) fn words(&self) -> &FloatTensor<B> {
        &self.words
    }

    /// What the words of a table are, whose rows are taken by themselves.
    ///
    /// # Panics
    /// Where the matrix is the transpose of its codes.
    pub(crate) fn table(&self) -> CodeSpec {
        assert!(!self.transposed, "rows of a matrix whose codes lie column by column");
        self.spec
    }

    /// The same elsewhere.
    #[must_use]
    pub fn convert<C: Backend>(&self, f: &impl Fn(&FloatTensor<B>) -> FloatTensor<C>) -> Coded<C> {
        Coded::new(f(&self.words), self.spec, self.transposed)
    }
}

/// A matrix that rows are multiplied with.
#[derive(Clone, Debug)]
pub enum Weight<'a, B: Backend> {
    /// Of numbers, in the type of the rows or as [stored](crate::Memory::takes_stored).
    Plain(&'a FloatTensor<B>),
    /// The transpose of such numbers.
    Turned(&'a FloatTensor<B>),
    /// As codes.
    Coded(&'a Coded<B>),
}

impl<'a, B: Backend> Weight<'a, B> {
    /// The matrix as its numbers lie, with whether a product takes the transpose of that.
    pub(crate) fn as_it_lies(&self, transposed: bool) -> (Weight<'a, B>, bool) {
        match self {
            Self::Turned(w) => (Self::Plain(w), !transposed),
            other => (other.clone(), transposed),
        }
    }

    /// Rows and columns of a table, whose rows are taken by themselves.
    ///
    /// # Panics
    /// Where it is the transpose of what lies in memory.
    pub(crate) fn table(&self) -> [usize; 2] {
        match self {
            Self::Plain(w) => w.shape().dims(),
            Self::Turned(_) => unreachable!("rows of a matrix that lies column by column"),
            Self::Coded(w) => [w.table().rows, w.table().columns],
        }
    }
}

/// Products with matrices of codes.
pub trait Codes: Product {
    /// The matrix in a number type.
    fn widen(w: &Coded<Self>, dtype: DType) -> FloatTensor<Self>;

    /// Rows of a matrix that is no transpose of its codes, by index, in a number type: `[index.len(), columns]`.
    fn gather_coded(w: &Coded<Self>, index: &[u32], dtype: DType) -> FloatTensor<Self>;

    /// [`matmul`](Product::matmul) with a matrix of codes.
    fn matmul_coded(
        x: &FloatTensor<Self>,
        w: &Coded<Self>,
        transposed: bool,
        scale: f64,
        onto: Option<FloatTensor<Self>>,
    ) -> FloatTensor<Self>;

    /// [`matmul`](Product::matmul) with a matrix of either kind.
    fn matmul_with(
        x: &FloatTensor<Self>,
        w: &Weight<'_, Self>,
        transposed: bool,
        scale: f64,
        onto: Option<FloatTensor<Self>>,
    ) -> FloatTensor<Self> {
        match w {
            Weight::Plain(w) => Self::matmul(x, w, transposed, scale, onto),
            Weight::Turned(w) => Self::matmul(x, w, !transposed, scale, onto),
            Weight::Coded(w) => Self::matmul_coded(x, w, transposed, scale, onto),
        }
    }
}
