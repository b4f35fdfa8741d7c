//! Learned lengths of a map's columns, with the low-rank change in them (`DoRA`, Liu et al., arXiv 2402.09353):
//! `y = x̂·m + b`, `x̂ = x·V/n`, V = W + s·A·B, n the lengths of V's columns.
//!
//! With c = m/n, everything below meets δ' = c∘δ where a plain adapter meets δ; m meets x̂∘δ. Trainers hold n fixed (section 4.3 of
//! the paper), and stop there. The function's derivative has `∂L/∂V = −V̂·diag(t)` beside, with V̂ = V/n and t = Σ x̂∘δ' over a
//! cotangent's rows. That of A and B is a sum over r rows more for each cotangent: rows of `−s·(V̂·diag(t)·Bᵀ)ᵀ` that meet the
//! columns of one for A, and columns of one that meet rows of `−s·AᵀV̂·diag(t)` for B.
use super::{Matrix, dims};
use crate::sink::LinearRows;
use tanglescope_kernels::{DType, FloatTensor, Kernels, RowSet, TensorMetadata, as_index};

/// What the norms of a `DoRA` adapter's columns are when gradients are taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ColumnNorms {
    /// Numbers that do not depend on the weights, as trainers take them.
    #[default]
    Fixed,
    /// Functions of the weights.
    Differentiated,
}

/// m, and the lengths that it replaces.
#[derive(Clone, Debug)]
pub struct Magnitude<B: Kernels> {
    /// m, `[out]`.
    pub values: FloatTensor<B>,
    /// 1/n, `[out]`.
    per_length: FloatTensor<B>,
}

/// Columns times numbers of their own.
pub(crate) fn columns_times<B: Kernels>(x: &FloatTensor<B>, factors: &FloatTensor<B>) -> FloatTensor<B> {
    let rows: Vec<u32> = (0..as_index(dims::<B>(x)[0])).collect();
    // a convolution of one tap
    B::convolve(x, &B::cast(factors.clone(), x.dtype()), 1, &rows)
}

/// V, in a type that its columns can be summed in.
fn changed<B: Kernels>(weight: &Matrix<B>, [a, b]: [&FloatTensor<B>; 2], scale: f64) -> FloatTensor<B> {
    let dtype = if a.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
    let wide = |x: &FloatTensor<B>| B::cast(x.clone(), dtype);
    B::matmul(&wide(a), &wide(b), false, scale, Some(wide(&weight.numbers(dtype))))
}

/// 1/n, `[out]`.
fn per_length<B: Kernels>(weight: &Matrix<B>, factors: [&FloatTensor<B>; 2], scale: f64) -> FloatTensor<B> {
    let v = changed::<B>(weight, factors, scale);
    let [inputs, outputs] = dims::<B>(&v);
    let squares = B::download(&B::segment_sums(&B::times(v.clone(), v), &[0, inputs]));
    let per_length = squares.into_iter().map(|square| square.sqrt().recip()).collect();
    B::upload_like(per_length, &[outputs], factors[0])
}

impl<B: Kernels> Magnitude<B> {
    /// Of a map and its low-rank change.
    pub fn new(values: FloatTensor<B>, weight: &Matrix<B>, factors: [&FloatTensor<B>; 2], scale: f64) -> Self {
        Self { values, per_length: per_length::<B>(weight, factors, scale) }
    }

    /// Takes the lengths again, of a map that has changed.
    pub(crate) fn renew(&mut self, weight: &Matrix<B>, factors: [&FloatTensor<B>; 2], scale: f64) {
        self.per_length = per_length::<B>(weight, factors, scale);
    }

    /// Whether every column has a length.
    pub(crate) fn is_finite(&self) -> bool {
        B::download(&self.per_length).into_iter().all(f64::is_finite)
    }

    /// x̂, of x·V.
    pub(crate) fn unit(&self, x: &FloatTensor<B>) -> FloatTensor<B> {
        columns_times::<B>(x, &self.per_length)
    }

    /// δ' = m/n∘δ.
    pub(crate) fn below(&self, delta: &FloatTensor<B>) -> FloatTensor<B> {
        columns_times::<B>(delta, &B::times(self.values.clone(), self.per_length.clone()))
    }

    pub(crate) fn convert<C: Kernels>(&self, f: &impl Fn(&FloatTensor<B>) -> FloatTensor<C>) -> Magnitude<C> {
        Magnitude { values: f(&self.values), per_length: f(&self.per_length) }
    }
}

/// x̂∘δ for backward rows δ, `[R, out]`.
pub(crate) fn along_units<B: Kernels>(unit: &FloatTensor<B>, delta: &FloatTensor<B>, rows: &RowSet) -> FloatTensor<B> {
    B::convolve_terms(unit, 1, delta, &rows.index)
}

/// What the norms of the columns add to the derivatives of a map's weights.
pub(crate) struct ThroughNorms<'a, B: Kernels> {
    /// V̂, `[in, out]`.
    v: FloatTensor<B>,
    /// t of each cotangent, `[K, out]`.
    t: FloatTensor<B>,
    /// Whose they are.
    rows: &'a RowSet,
}

/// Ones on the diagonal, some times over: `[times·n, n]`.
fn ones<B: Kernels>(n: usize, times: usize, like: &FloatTensor<B>) -> FloatTensor<B> {
    let one = |at: usize| f64::from(u8::from(at / n % n == at % n));
    B::upload_like((0..times * n * n).map(one).collect(), &[times * n, n], like)
}

impl<'a, B: Kernels> ThroughNorms<'a, B> {
    /// For δ' of some rows.
    pub fn new(
        of: &Magnitude<B>,
        (weight, factors, scale): (&Matrix<B>, [&FloatTensor<B>; 2], f64),
        (unit, below): (&FloatTensor<B>, &FloatTensor<B>),
        rows: &'a RowSet,
    ) -> Self {
        let v = B::cast(changed::<B>(weight, factors, scale), below.dtype());
        let t = B::segment_sums(&along_units::<B>(unit, below, rows), &rows.offsets);
        Self { v: columns_times::<B>(&v, &of.per_length), t: B::cast(t, below.dtype()), rows }
    }

    fn cotangents(&self) -> usize {
        dims::<B>(&self.t)[0]
    }

    /// Each row of a matrix `[n, out]` with each cotangent's t on its columns: `[K·n, out]`.
    fn by_cotangent(&self, rows: &FloatTensor<B>) -> FloatTensor<B> {
        let (n, k) = (dims::<B>(rows)[0], self.cotangents());
        let of = |at: usize| (as_index(at % n), as_index(at / n));
        let (row, cotangent): (Vec<u32>, Vec<u32>) = (0..k * n).map(of).unzip();
        B::times(B::gather(rows, &row, None), B::gather(&self.t, &cotangent, None))
    }

    /// What A meets beside `x` and s·δ'·Bᵀ.
    pub fn of_a(&self, b: &FloatTensor<B>, scale: f64) -> LinearRows<B> {
        let (r, k) = (dims::<B>(b)[0], self.cotangents());
        let inputs = B::matmul(&self.by_cotangent(b), &self.v, true, -scale, None);
        let ones = ones::<B>(r, k, &inputs);
        LinearRows { x: inputs, delta: ones, rows: self.rows.with_each(r, |k, at| k * r + at) }
    }

    /// What B meets beside s·x·A and δ'.
    pub fn of_b(&self, a: &FloatTensor<B>, scale: f64) -> LinearRows<B> {
        let [inputs, r] = dims::<B>(a);
        let low = B::times_number(B::weight_gradient(a, &self.v, 0..inputs), -scale);
        LinearRows { x: ones::<B>(r, 1, a), delta: self.by_cotangent(&low), rows: self.rows.with_each(r, |_, at| at) }
    }

    /// What W meets beside `x` and δ': for each cotangent as much as W has entries.
    pub fn of_weight(&self) -> LinearRows<B> {
        let (inputs, delta) = (dims::<B>(&self.v)[0], B::times_number(self.by_cotangent(&self.v), -1.0));
        LinearRows { x: ones::<B>(inputs, 1, &delta), delta, rows: self.rows.with_each(inputs, |_, at| at) }
    }
}
