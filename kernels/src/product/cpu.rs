//! Matrix products: the `gemm` crate straight into the result, cut into one task a core.
use super::Product;
use crate::host::real::{Real, dims, in_place, matrix, unwritten, values, vectorised, with_real};
use crate::host::stored::{Stored, widen_stripe};
use crate::{Flex, RowSet, Weight, cost, tally};
use burn_flex::FlexTensor;
use gemm::Parallelism;
use rayon::prelude::*;
use std::ops::Range;

/// A strided matrix for [`gemm`]: first entry, distance of rows, distance of columns.
#[derive(Clone, Copy)]
pub struct View<'a, E> {
    /// Entries from the first one on.
    pub data: &'a [E],
    /// Distance between rows.
    pub row: usize,
    /// Distance between columns.
    pub column: usize,
}

impl<'a, E> View<'a, E> {
    /// A row-major matrix with `width` values a row.
    pub fn rows(data: &'a [E], width: usize) -> Self {
        Self { data, row: width, column: 1 }
    }

    /// The transpose.
    pub fn transposed(self) -> Self {
        Self { data: self.data, row: self.column, column: self.row }
    }

    /// The matrix from a row and a column on.
    pub fn from(self, row: usize, column: usize) -> Self {
        let first = (row * self.row + column * self.column).min(self.data.len());
        Self { data: &self.data[first..], ..self }
    }

    /// Whether a matrix of some dimensions lies within the entries.
    pub fn covers(&self, rows: usize, columns: usize) -> bool {
        rows == 0 || columns == 0 || (rows - 1) * self.row + (columns - 1) * self.column < self.data.len()
    }
}

/// A matrix that a product is written to; tasks write disjoint parts of it.
#[derive(Clone, Copy)]
pub struct Target<E> {
    data: *mut E,
    len: usize,
    row: usize,
    column: usize,
}

// SAFETY: a Target is only a place; `product` checks its bounds, and tasks are given disjoint parts.
#[allow(unsafe_code)]
unsafe impl<E: Send> Send for Target<E> {}
#[allow(unsafe_code)]
unsafe impl<E: Send> Sync for Target<E> {}

impl<E: Real> Target<E> {
    /// A row-major target with `width` values a row.
    pub fn rows(data: &mut [E], width: usize) -> Self {
        Self { data: data.as_mut_ptr(), len: data.len(), row: width, column: 1 }
    }

    /// The part from a row and a column on.
    pub fn from(self, row: usize, column: usize) -> Self {
        let first = (row * self.row + column * self.column).min(self.len);
        Self { data: self.data.wrapping_add(first), len: self.len - first, ..self }
    }

    /// Reads values from a row's first column on.
    #[allow(unsafe_code)]
    pub fn read(self, row: usize, values: &mut [E]) {
        let first = row * self.row;
        assert!(self.column == 1 && first + values.len() <= self.len);
        // SAFETY: the range was checked against the buffer's length, and no other task writes its row.
        unsafe { std::ptr::copy_nonoverlapping(self.data.add(first), values.as_mut_ptr(), values.len()) }
    }

    /// Writes `values` from a row's first column on.
    #[allow(unsafe_code)]
    pub fn write(self, row: usize, values: &[E]) {
        let first = row * self.row;
        assert!(self.column == 1 && first + values.len() <= self.len);
        // SAFETY: the range was checked against the buffer's length, and tasks write disjoint rows.
        unsafe { std::ptr::copy_nonoverlapping(values.as_ptr(), self.data.add(first), values.len()) }
    }
}

/// `target[m, n] = keep·target + scale · a[m, k] · b[k, n]` on the calling thread.
#[allow(unsafe_code, clippy::cast_possible_wrap, clippy::too_many_arguments)]
pub fn product<E: Real>(target: Target<E>, [m, k, n]: [usize; 3], a: View<E>, b: View<E>, scale: f64, keep: bool) {
    assert!(a.covers(m, k) && b.covers(k, n));
    assert!(m == 0 || n == 0 || (m - 1) * target.row + (n - 1) * target.column < target.len);
    // SAFETY: the three matrices lie within their buffers (checked above), and E is f32 or f64.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            target.data,
            target.column as isize,
            target.row as isize,
            keep,
            a.data.as_ptr(),
            a.column as isize,
            a.row as isize,
            b.data.as_ptr(),
            b.column as isize,
            b.row as isize,
            if keep { E::of(1.0) } else { E::of(0.0) },
            E::of(scale),
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}

/// Narrowest stripe of columns that a task is given: narrower ones spend their time packing.
const STRIPE: usize = 96;

/// Where part `i` of `parts` begins: on a multiple of 16, the widest register tile.
fn cut(length: usize, parts: usize, i: usize) -> usize {
    if i == parts { length } else { (length * i / parts).next_multiple_of(16).min(length) }
}

/// [`product`] on all cores. Each task packs its own share of both factors, which `gemm`'s own threads leave to one.
pub fn product_parallel<E: Real>(
    target: Target<E>,
    [m, k, n]: [usize; 3],
    a: View<E>,
    b: View<E>,
    scale: f64,
    keep: bool,
) {
    let threads = rayon::current_num_threads();
    if threads == 1 || m * k * n < 32 * 32 * 32 {
        return product(target, [m, k, n], a, b, scale, keep);
    }
    let columns = threads.min((n / STRIPE).max(1));
    let rows = (threads / columns).min((m / STRIPE).max(1)).max(1);
    (0..rows * columns).into_par_iter().for_each(|task| {
        let (i, j) = (task / columns, task % columns);
        let (r0, r1) = (cut(m, rows, i), cut(m, rows, i + 1));
        let (c0, c1) = (cut(n, columns, j), cut(n, columns, j + 1));
        if r0 < r1 && c0 < c1 {
            let part = [r1 - r0, k, c1 - c0];
            product(target.from(r0, c0), part, a.from(r0, 0), b.from(0, c0), scale, keep);
        }
    });
}

/// The transpose of `x[rows, width]`.
pub fn transpose<E: Real>(x: &[E], width: usize) -> Vec<E> {
    const BAND: usize = 16;
    let rows = x.len() / width;
    let mut out = unwritten(x.len());
    // a band of columns becomes as many rows, square by square, so that a line of the cache is written at once
    out.par_chunks_mut((BAND * rows).max(1)).enumerate().for_each(|(band, out)| {
        let columns = out.len() / rows;
        let row = |r: usize| &x[r * width + band * BAND..][..columns];
        vectorised!({
            let whole = if columns == BAND { rows / BAND * BAND } else { 0 };
            for first in (0..whole).step_by(BAND) {
                let mut square = [[E::of(0.0); BAND]; BAND];
                for (r, line) in square.iter_mut().enumerate() {
                    line.copy_from_slice(row(first + r));
                }
                for c in 0..BAND {
                    let to = &mut out[c * rows + first..][..BAND];
                    for r in 0..BAND {
                        to[r] = square[r][c];
                    }
                }
            }
            for r in whole..rows {
                for (c, &value) in row(r).iter().enumerate() {
                    out[c * rows + r] = value;
                }
            }
        });
    });
    out
}

/// Columns that `gemm` computes together with the widest vectors of f32; a narrower rest runs slower.
const TILE: usize = 64;

/// Columns whose products are summed in the working type where the sum over all of them is kept in f64: a sum of n terms in f32 is off by
/// about √n ε of its terms' size, 4e-6 here.
const PANEL: usize = 4096;

/// Columns of a task of such products.
const TASK: usize = 16 * PANEL;

/// Bytes of widened weights that a task holds at once: a core's share of a third-level cache. Rows are packed again for
/// every stripe, so that few wide stripes beat many that fit a second-level cache.
const WIDENED_BYTES: usize = 4 << 20;

/// `target[rows, m] = keep·target + scale · x[rows, k] · op(w)` with weights that are widened stripe by stripe of columns of `op(w)`: `widen`
/// gives some rows and columns of w.
pub fn product_stripes<E: Real>(
    target: Target<E>,
    [rows, k, m]: [usize; 3],
    x: View<E>,
    widen: &(impl Fn(Range<usize>, Range<usize>) -> Vec<E> + Sync),
    transposed: bool,
    scale: f64,
    keep: bool,
) {
    let threads = rayon::current_num_threads();
    let most = (WIDENED_BYTES / size_of::<E>() / k.max(1) / TILE * TILE).max(TILE);
    // every core has as many, and as wide ones, as the others, unless they would be narrow; of few rows, which are not cut, only as narrow as a tile
    let narrowest = if rows < 2 * TILE { TILE } else { STRIPE };
    let stripes = m.div_ceil(most).next_multiple_of(threads).min(m / narrowest).max(m.div_ceil(most)).max(1);
    // rows are cut too where the stripes alone would not keep every core busy alike
    let alike = (1..threads).find(|parts| (parts * stripes).is_multiple_of(threads)).unwrap_or(threads);
    let parts = alike.min((rows / TILE).max(1));
    (0..parts * stripes).into_par_iter().for_each(|task| {
        let (part, stripe) = (task % parts, task / parts);
        let (r0, r1) = (cut(rows, parts, part), cut(rows, parts, part + 1));
        let columns = cut(m, stripes, stripe)..cut(m, stripes, stripe + 1);
        let shape = [r1 - r0, k, columns.len()];
        let (target, x) = (target.from(r0, columns.start), x.from(r0, 0));
        if transposed {
            let wide = widen(columns, 0..k);
            product(target, shape, x, View::rows(&wide, k).transposed(), scale, keep);
        } else {
            let width = columns.len();
            let wide = widen(0..k, columns);
            product(target, shape, x, View::rows(&wide, width), scale, keep);
        }
    });
}

/// `target[rows, m] = keep·target + scale · x[rows, k] · op(w)`.
pub fn product_stored<E: Real>(
    target: Target<E>,
    shape: [usize; 3],
    x: View<E>,
    w: &Stored<E>,
    transposed: bool,
    scale: f64,
    keep: bool,
) {
    // columns of w
    let width = shape[if transposed { 1 } else { 2 }];
    match w {
        Stored::Working(w) => {
            let b = if transposed { View::rows(w, width).transposed() } else { View::rows(w, width) };
            product_parallel(target, shape, x, b, scale, keep);
        }
        Stored::Narrow(w) => {
            let widen = |rows: Range<usize>, columns: Range<usize>| widen_stripe::<E>(w, width, rows, &columns);
            product_stripes(target, shape, x, &widen, transposed, scale, keep);
        }
        Stored::Coded(w) => {
            let widen = |rows: Range<usize>, columns: Range<usize>| w.widen(rows, &columns);
            product_stripes(target, shape, x, &widen, transposed ^ w.is_transpose(), scale, keep);
        }
    }
}

/// `scale · x · op(w)`, plus `onto` where given, of a matrix w of some dimensions.
pub fn multiply(
    x: &FlexTensor,
    w: &Weight<'_, Flex>,
    of_w: [usize; 2],
    transposed: bool,
    scale: f64,
    onto: Option<FlexTensor>,
) -> FlexTensor {
    let [rows, k] = dims(x);
    let m = of_w[usize::from(!transposed)];
    tally::products(cost::product(rows, k, m, x.dtype()));
    with_real!(x, E => {
        let w = Stored::<E>::of_weight(w);
        let into = |y: &mut [E], keep| {
            let (target, x) = (Target::rows(y, m), View::rows(values::<E>(x), k));
            product_stored(target, [rows, k, m], x, &w, transposed, scale, keep);
        };
        match onto {
            Some(y) => in_place::<E>(y, |y| into(y, true)),
            None => {
                let mut y = unwritten::<E>(rows * m);
                into(&mut y, false);
                matrix(y, [rows, m])
            }
        }
    })
}

impl Product for Flex {
    fn matmul(x: &FlexTensor, w: &FlexTensor, transposed: bool, scale: f64, onto: Option<FlexTensor>) -> FlexTensor {
        multiply(x, &Weight::Plain(w), dims(w), transposed, scale, onto)
    }

    fn weight_gradient(x: &FlexTensor, delta: &FlexTensor, rows: Range<usize>) -> FlexTensor {
        let (n, m) = (dims(x)[1], dims(delta)[1]);
        tally::products(cost::product(n, rows.len(), m, x.dtype()));
        with_real!(x, E => {
            let part = |t: &FlexTensor, width: usize| values::<E>(t)[rows.start * width..rows.end * width].to_vec();
            let (x, delta) = (part(x, n), part(delta, m));
            let mut g = unwritten::<E>(n * m);
            let x = View::rows(&x, n).transposed();
            let delta = View::rows(&delta, m);
            let target = Target::rows(&mut g, m);
            product_parallel(target, [n, rows.len(), m], x, delta, 1.0, false);
            matrix(g, [n, m])
        })
    }

    fn weight_gradients(x: &FlexTensor, delta: &FlexTensor, rows: &RowSet, cotangents: &[usize]) -> FlexTensor {
        let (n, m) = (dims(x)[1], dims(delta)[1]);
        let all: usize = cotangents.iter().map(|&k| rows.of(k).len()).sum();
        tally::products(cost::product(n, all, m, x.dtype()));
        with_real!(x, E => {
            let mut g = vec![E::of(0.0); cotangents.len() * n * m];
            let each = g.par_chunks_mut((n * m).max(1)).zip(cotangents);
            each.for_each(|(g, &k)| {
                for run in rows.runs(k) {
                    let input = View::rows(values::<E>(x), n).from(rows.index[run.start] as usize, 0);
                    let cotangent = View::rows(values::<E>(delta), m).from(run.start, 0);
                    product(Target::rows(g, m), [n, run.len(), m], input.transposed(), cotangent, 1.0, true);
                }
            });
            matrix(g, [cotangents.len(), n * m])
        })
    }

    fn row_products(a: &FlexTensor, b: &FlexTensor) -> Vec<f64> {
        let ([k, n], [l, _]) = (dims(a), dims(b));
        tally::products(cost::product(k, n, l, a.dtype()));
        with_real!(a, E => {
            let (a, b) = (View::rows(values::<E>(a), n), View::rows(values::<E>(b), n));
            // a fixed number of panels a task, so that the order of the sums does not depend on the cores
            let of_task = |first: usize| {
                let (mut sum, mut panel) = (vec![0.0; k * l], vec![E::of(0.0); k * l]);
                for column in (first..(first + TASK).min(n)).step_by(PANEL) {
                    let shape = [k, PANEL.min(n - column), l];
                    let (a, b) = (a.from(0, column), b.from(0, column).transposed());
                    product(Target::rows(&mut panel, l), shape, a, b, 1.0, false);
                    sum.iter_mut().zip(&panel).for_each(|(sum, x)| *sum += x.wide());
                }
                sum
            };
            let firsts: Vec<usize> = (0..n).step_by(TASK).collect();
            let parts: Vec<Vec<f64>> = firsts.into_par_iter().map(of_task).collect();
            let mut sum = vec![0.0; k * l];
            parts.iter().for_each(|part| sum.iter_mut().zip(part).for_each(|(sum, x)| *sum += x));
            sum
        })
    }
}
