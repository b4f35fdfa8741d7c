//! Products with a right factor that is packed once and used by many.
//!
//! `gemm` packs both factors anew in each call: of a narrow product, as those of a panel of a triangle or of a tile of queries are, that takes
//! a quarter to a third of the time. Here the right factor is packed in blocks of as many columns as registers hold, and the left one read as it lies.
use super::cpu::{Target, View};
use crate::host::real::{Real, unwritten};
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;
use std::marker::PhantomData;
use std::ops::Range;

/// Vectors of a block's row.
const VECTORS: usize = 2;

/// Rows of the result that are summed together, and whose sums, with a row of a block and a value of the left factor, are in 32 registers for
/// vectors; half of them where there are 16.
pub const ROWS: usize = 12;

/// Rows that are summed together of those that are left over, as long as there are so many; the last few go one by one, at half the rate.
const FEWER: usize = 4;

/// Values that a task packs at the least.
const TASK: usize = 32 * 1024;

/// The right factor of products, `[inner, columns]`.
pub struct Packed<E> {
    /// Blocks of columns, each `[inner, width]`; the last is filled up with zeros.
    values: Vec<E>,
    inner: usize,
    columns: usize,
    width: usize,
}

/// Columns of a block on this processor.
struct Width<E>(PhantomData<E>);

impl<E: Real> WithSimd for Width<E> {
    type Output = usize;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> usize {
        width::<E, S>()
    }
}

#[inline(always)]
fn width<E: Real, S: Simd>() -> usize {
    VECTORS * size_of::<E::Vector<S>>() / size_of::<E>()
}

/// Packs columns of a matrix, whose rows or columns lie side by side, into a block.
fn pack<E: Real>(from: View<E>, columns: Range<usize>, to: &mut [E], width: usize) {
    /// Rows that are packed together, so that lines of the cache are read and written whole.
    const BAND: usize = 64;
    /// Columns that are read side by side, so that as many lines are on their way at a time: 0.55 ns a value where it was 0.97 one by one.
    const TOGETHER: usize = 8;
    let many = columns.len();
    if many < width {
        to.fill(E::of(0.0));
    }
    if from.column == 1 {
        for (row, to) in to.chunks_exact_mut(width).enumerate() {
            to[..many].copy_from_slice(&from.data[row * from.row + columns.start..][..many]);
        }
        return;
    }
    assert_eq!(from.row, 1);
    for (band, to) in to.chunks_mut(BAND * width).enumerate() {
        let rows = to.len() / width;
        let of = |place: usize| &from.data[(columns.start + place) * from.column + band * BAND..][..rows];
        let whole = many / TOGETHER * TOGETHER;
        for first in (0..whole).step_by(TOGETHER) {
            let values: [&[E]; TOGETHER] = std::array::from_fn(|i| of(first + i));
            for (row, to) in to.chunks_exact_mut(width).enumerate() {
                to[first..first + TOGETHER].copy_from_slice(&values.map(|column| column[row]));
            }
        }
        for place in whole..many {
            for (row, &value) in of(place).iter().enumerate() {
                to[row * width + place] = value;
            }
        }
    }
}

impl<E: Real> Packed<E> {
    /// A matrix of some dimensions, whose rows or columns lie side by side.
    pub fn of(matrix: View<E>, [inner, columns]: [usize; 2]) -> Self {
        assert!(matrix.covers(inner, columns));
        let width = Arch::new().dispatch(Width::<E>(PhantomData));
        let mut values = unwritten(inner * columns.next_multiple_of(width));
        let block = (inner * width).max(1);
        values.par_chunks_mut(block).enumerate().with_min_len(TASK.div_ceil(block)).for_each(|(at, to)| {
            pack(matrix, at * width..((at + 1) * width).min(columns), to, width);
        });
        Self { values, inner, columns, width }
    }

    /// Columns of a block: products begin at multiples of it.
    pub fn width(&self) -> usize {
        self.width
    }

    /// All of it, as it is.
    pub fn whole(&self) -> Part {
        Part { inner: 0..self.inner, columns: 0..self.columns, scale: 1.0, diagonal: None }
    }

    /// `target[rows, columns] = scale · left[rows, inner] · self[inner, columns]` on the calling thread, in the order of `inner`.
    ///
    /// # Panics
    /// Where a range, a row of `left` or `target` is beyond what there is, or columns do not begin with a block.
    pub fn product(&self, target: Target<E>, rows: usize, left: View<E>, part: Part) {
        let Part { inner, columns, .. } = &part;
        assert!(left.column == 1 && left.covers(rows, inner.len()));
        assert!(inner.end <= self.inner && columns.end <= self.columns && columns.start.is_multiple_of(self.width));
        Arch::new().dispatch(Product { of: self, target, rows, left, part });
    }
}

/// What of a packed matrix is multiplied, and how.
pub struct Part {
    /// Its rows; as many values of each row of the left factor from the first on.
    pub inner: Range<usize>,
    /// Its columns, from the first of a block on; written from the target's first column on.
    pub columns: Range<usize>,
    /// Factor of the result.
    pub scale: f64,
    /// Row r is only wanted up to the column `diagonal + r`; what is beyond is left as it is, or written too.
    pub diagonal: Option<usize>,
}

/// A call of [`Packed::product`].
struct Product<'a, E> {
    of: &'a Packed<E>,
    target: Target<E>,
    rows: usize,
    left: View<'a, E>,
    part: Part,
}

impl<E: Real> WithSimd for Product<'_, E> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        if S::REGISTER_COUNT >= 32 { self.run::<S, ROWS>(simd) } else { self.run::<S, { ROWS / 2 }>(simd) }
    }
}

impl<E: Real> Product<'_, E> {
    /// Block by block, since a block stays in the nearest caches, and the rows that want it.
    #[inline(always)]
    fn run<S: Simd, const HEIGHT: usize>(&self, simd: S) {
        let (width, packed, part) = (width::<E, S>(), self.of, &self.part);
        for first in part.columns.clone().step_by(width) {
            let block = &packed.values[first * packed.inner..][..packed.inner * width];
            let block = &block[part.inner.start * width..part.inner.end * width];
            let target = self.target.from(0, first - part.columns.start);
            let used = width.min(part.columns.end - first);
            let wanted = part.diagonal.map_or(0, |diagonal| first.saturating_sub(diagonal));
            let mut row = wanted / HEIGHT * HEIGHT;
            row = self.tiles::<S, HEIGHT>(simd, row, first, block, target, used);
            row = self.tiles::<S, FEWER>(simd, row, first, block, target, used);
            self.tiles::<S, 1>(simd, row, first, block, target, used);
        }
    }

    /// As many rows of a block as make whole tiles, and the row after them. A tile that wants no more is given half a block; one of rows that want
    /// nothing of it, none.
    #[inline(always)]
    fn tiles<S: Simd, const HEIGHT: usize>(
        &self,
        simd: S,
        mut row: usize,
        first: usize,
        block: &[E],
        target: Target<E>,
        used: usize,
    ) -> usize {
        let half = width::<E, S>() / VECTORS;
        while row + HEIGHT <= self.rows {
            let seen =
                self.part.diagonal.map_or(used, |diagonal| used.min((diagonal + row + HEIGHT).saturating_sub(first)));
            match seen {
                0 => {}
                _ if seen <= half => self.tile::<S, HEIGHT, 1>(simd, row, block, target, used.min(half)),
                _ => self.tile::<S, HEIGHT, VECTORS>(simd, row, block, target, used),
            }
            row += HEIGHT;
        }
        row
    }

    /// Some rows of a block of the result, whose sums stay in registers.
    #[inline(always)]
    #[allow(unsafe_code)]
    fn tile<S: Simd, const HEIGHT: usize, const WIDE: usize>(
        &self,
        simd: S,
        row: usize,
        block: &[E],
        target: Target<E>,
        used: usize,
    ) {
        let (width, length, zero) = (width::<E, S>(), self.part.inner.len(), E::spread(simd, E::of(0.0)));
        let left: [&[E]; HEIGHT] = std::array::from_fn(|r| &self.left.data[(row + r) * self.left.row..][..length]);
        let mut sums = [[zero; WIDE]; HEIGHT];
        // a check in the loop would keep the sums in memory for where it fails
        assert!(block.len() == length * width);
        for at in 0..length {
            // SAFETY: the block has `length` rows, and each of the left factor's as many values.
            let right = E::vectors::<S>(unsafe { block.get_unchecked(at * width..(at + 1) * width) });
            for r in 0..HEIGHT {
                // SAFETY: as above.
                let left = E::spread(simd, unsafe { *left[r].get_unchecked(at) });
                for v in 0..WIDE {
                    sums[r][v] = E::fused(simd, left, right[v], sums[r][v]);
                }
            }
        }
        let scale = E::spread(simd, E::of(self.part.scale));
        for (r, sums) in sums.iter().enumerate() {
            let scaled = sums.map(|sum| E::fused(simd, sum, scale, zero));
            let cells: &[E] = bytemuck::cast_slice(&scaled);
            // a length that the compiler knows is written by two instructions
            match used == width / VECTORS * WIDE {
                true => target.write(row + r, &cells[..width / VECTORS * WIDE]),
                false => target.write(row + r, &cells[..used]),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Values that f32 holds exactly, as it does their products and the sums of a few hundred: any order of sums gives the same.
    fn whole_numbers<E: Real>(len: usize, seed: usize) -> Vec<E> {
        (0..len).map(|at| E::of(((at * 7919 + seed * 104_729) % 31) as f64 - 15.0)).collect()
    }

    /// A product of whole numbers against its definition, and what lies beside its columns against what was there.
    fn check<E: Real>(
        [rows, inner, columns, first, seed]: [usize; 5],
        stretch: &Range<usize>,
        transposed: bool,
        diagonal: Option<usize>,
    ) -> Result<(), TestCaseError> {
        /// Columns of the target that belong to others.
        const SPARE: usize = 40;
        let length = stretch.len();
        let (a, b) = (whole_numbers::<E>(rows * length, seed), whole_numbers::<E>(inner * columns, seed + 1));
        let right = if transposed { View::rows(&b, inner).transposed() } else { View::rows(&b, columns) };
        let packed = Packed::of(right, [inner, columns]);
        let first = (first * packed.width()).min(columns / packed.width() * packed.width());
        let width = columns - first;
        let mut out = vec![E::of(f64::NAN); rows * (width + SPARE)];
        let left = View::rows(&a, length);
        let part = Part { inner: stretch.clone(), columns: first..columns, scale: 0.5, diagonal };
        packed.product(Target::rows(&mut out, width + SPARE), rows, left, part);
        for (r, out) in out.chunks_exact(width + SPARE).enumerate() {
            for c in (first..columns).filter(|c| diagonal.is_none_or(|diagonal| *c <= diagonal + r)) {
                let entry = |k: usize| if transposed { b[c * inner + k] } else { b[k * columns + c] };
                let want: f64 =
                    stretch.clone().map(|k| a[r * length + k - stretch.start].wide() * entry(k).wide()).sum();
                let got = out[c - first].wide();
                prop_assert!((got - 0.5 * want).abs() < f64::MIN_POSITIVE, "row {r} column {c}: {got}, {want}");
            }
            prop_assert!(out[width..].iter().all(|x| x.wide().is_nan()), "row {r} is written beyond its columns");
        }
        Ok(())
    }

    proptest! {
        #[test]
        fn a_packed_product_is_the_product(
            rows in 0usize..40, inner in 1usize..50, columns in 1usize..90, seed in 0usize..100, transposed: bool,
            (from, to) in (0usize..50, 0usize..50), first in 0usize..3, diagonal in prop::option::of(0usize..60),
        ) {
            let stretch = from.min(to).min(inner)..from.max(to).min(inner);
            let sizes = [rows, inner, columns, first, seed];
            check::<f32>(sizes, &stretch, transposed, diagonal)?;
            check::<f64>(sizes, &stretch, transposed, diagonal)?;
        }
    }
}
