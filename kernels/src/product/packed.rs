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

/// Packs columns of picked rows into a block.
struct CopyRows<'a, E, P> {
    rows: View<'a, E>,
    columns: Range<usize>,
    to: &'a mut [E],
    place: P,
}

impl<E: Real, P: Fn(usize) -> usize> WithSimd for CopyRows<'_, E, P> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let (Self { rows, columns, to, place }, width) = (self, width::<E, S>());
        for (row, to) in to.chunks_exact_mut(width).enumerate() {
            let from = &rows.data[place(row) * rows.row + columns.start..][..columns.len()];
            // a length that the compiler knows is copied by two instructions
            match from.len() == width {
                true => to[..width].copy_from_slice(&from[..width]),
                false => to[..from.len()].copy_from_slice(from),
            }
        }
    }
}

/// Packs columns of the transpose of picked rows into a block. Compiled for the widest vectors, this takes 0.28 ns a value in place of 0.17: they
/// are put together from values that lie apart.
fn transpose<E: Real>(
    rows: View<E>,
    columns: Range<usize>,
    to: &mut [E],
    width: usize,
    place: impl Fn(usize) -> usize,
) {
    /// Values of a row that are packed together, so that lines of the cache are read and written whole.
    const BAND: usize = 64;
    /// Rows that are read side by side, so that as many lines are on their way at a time: half of the time of one by one.
    const TOGETHER: usize = 8;
    for (band, to) in to.chunks_mut(BAND * width).enumerate() {
        let length = to.len() / width;
        let of = |at: usize| &rows.data[place(columns.start + at) * rows.row + band * BAND..][..length];
        let whole = columns.len() / TOGETHER * TOGETHER;
        for first in (0..whole).step_by(TOGETHER) {
            let values: [&[E]; TOGETHER] = std::array::from_fn(|i| of(first + i));
            for (at, to) in to.chunks_exact_mut(width).enumerate() {
                to[first..first + TOGETHER].copy_from_slice(&values.map(|row| row[at]));
            }
        }
        for last in whole..columns.len() {
            for (at, &value) in of(last).iter().enumerate() {
                to[at * width + last] = value;
            }
        }
    }
}

impl<E: Real> Packed<E> {
    /// A matrix of some dimensions, whose rows or columns lie side by side.
    pub fn of(matrix: View<E>, shape: [usize; 2]) -> Self {
        let transposed = matrix.column != 1;
        Self::picked(if transposed { matrix.transposed() } else { matrix }, transposed, shape, |at| at)
    }

    /// Rows of a matrix, the one that `place` says at each place, or the transpose of that; `shape` is the result's.
    pub fn picked(
        rows: View<E>,
        transposed: bool,
        [inner, columns]: [usize; 2],
        place: impl Fn(usize) -> usize + Copy + Sync,
    ) -> Self {
        assert_eq!(rows.column, 1);
        let width = Arch::new().dispatch(Width::<E>(PhantomData));
        let mut values = unwritten(inner * columns.next_multiple_of(width));
        let block = (inner * width).max(1);
        values.par_chunks_mut(block).enumerate().with_min_len(TASK.div_ceil(block)).for_each(|(at, to)| {
            let columns = at * width..((at + 1) * width).min(columns);
            if columns.len() < width {
                to.fill(E::of(0.0));
            }
            match transposed {
                true => transpose(rows, columns, to, width, place),
                false => Arch::new().dispatch(CopyRows { rows, columns, to, place }),
            }
        });
        Self { values, inner, columns, width }
    }

    /// Columns of a block: products begin at multiples of it, and are written fastest where they end at one, be it beyond the last column, where all
    /// is zero.
    pub fn width(&self) -> usize {
        self.width
    }

    /// All of it, as it is.
    pub fn whole(&self) -> Part {
        Part { inner: 0..self.inner, columns: 0..self.columns, scale: 1.0, diagonal: None, add: false }
    }

    /// `target[rows, columns] = scale · left[rows, inner] · self[inner, columns]` on the calling thread, in the order of `inner`. Rows or columns
    /// of the left factor lie side by side.
    ///
    /// # Panics
    /// Where a range, a row of `left` or `target` is beyond what there is, or columns do not begin with a block.
    pub fn product(&self, target: Target<E>, rows: usize, left: View<E>, part: Part) {
        let Part { inner, columns, .. } = &part;
        assert!((left.column == 1 || left.row == 1) && left.covers(rows, inner.len()));
        assert!(inner.end <= self.inner && columns.start.is_multiple_of(self.width));
        assert!(columns.end <= self.columns.next_multiple_of(self.width));
        Arch::new().dispatch(Product { of: self, target, rows, left, part });
    }
}

/// What of a packed matrix is multiplied, and how.
#[derive(Clone)]
pub struct Part {
    /// Its rows; as many values of each row of the left factor from the first on.
    pub inner: Range<usize>,
    /// Its columns, from the first of a block on; written from the target's first column on.
    pub columns: Range<usize>,
    /// Factor of the result.
    pub scale: f64,
    /// Row r is only wanted up to the column `diagonal + r`; what is beyond is left as it is, or written too.
    pub diagonal: Option<usize>,
    /// Whether the result is added to what the target has.
    pub add: bool,
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
        match (S::REGISTER_COUNT >= 32, self.left.column == 1) {
            (true, true) => self.run::<S, ROWS, false>(simd),
            (true, false) => self.run::<S, ROWS, true>(simd),
            (false, true) => self.run::<S, { ROWS / 2 }, false>(simd),
            (false, false) => self.run::<S, { ROWS / 2 }, true>(simd),
        }
    }
}

impl<E: Real> Product<'_, E> {
    /// Block by block, since a block stays in the nearest caches, and the rows that want it.
    #[inline(always)]
    fn run<S: Simd, const HEIGHT: usize, const COLUMNS: bool>(&self, simd: S) {
        let (width, packed, part) = (width::<E, S>(), self.of, &self.part);
        for first in part.columns.clone().step_by(width) {
            let block = &packed.values[first * packed.inner..][..packed.inner * width];
            let block = &block[part.inner.start * width..part.inner.end * width];
            let target = self.target.from(0, first - part.columns.start);
            let used = width.min(part.columns.end - first);
            let mut row = self.tiles::<S, HEIGHT, COLUMNS>(simd, 0, first, block, target, used);
            row = self.tiles::<S, FEWER, COLUMNS>(simd, row, first, block, target, used);
            self.tiles::<S, 1, COLUMNS>(simd, row, first, block, target, used);
        }
    }

    /// As many rows of a block as make whole tiles, and the row after them. A tile that wants no more is given half a block; one of rows that want
    /// nothing of it, none.
    #[inline(always)]
    fn tiles<S: Simd, const HEIGHT: usize, const COLUMNS: bool>(
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
                _ if seen <= half => self.tile::<S, HEIGHT, 1, COLUMNS>(simd, row, block, target, used.min(half)),
                _ => self.tile::<S, HEIGHT, VECTORS, COLUMNS>(simd, row, block, target, used),
            }
            row += HEIGHT;
        }
        row
    }

    /// Some rows of a block of the result, whose sums stay in registers. `COLUMNS` says whether columns of the left factor lie side by side.
    #[inline(always)]
    #[allow(unsafe_code)]
    fn tile<S: Simd, const HEIGHT: usize, const WIDE: usize, const COLUMNS: bool>(
        &self,
        simd: S,
        row: usize,
        block: &[E],
        target: Target<E>,
        used: usize,
    ) {
        let (width, length, zero) = (width::<E, S>(), self.part.inner.len(), E::spread(simd, E::of(0.0)));
        // stretches of the left factor, and the distance from one to the next: its rows, or all that there is of it
        let (step, all) =
            (self.left.column, &self.left.data[if COLUMNS { row.min(self.left.data.len()) } else { 0 }..]);
        let stretches: [&[E]; HEIGHT] = match COLUMNS {
            true => [all; HEIGHT],
            false => std::array::from_fn(|r| &all[(row + r) * self.left.row..][..length]),
        };
        let mut sums = [[zero; WIDE]; HEIGHT];
        // a check in the loop would keep the sums in memory for where it fails
        assert!(
            block.len() == length * width && (!COLUMNS || length == 0 || (length - 1) * step + HEIGHT <= all.len())
        );
        for at in 0..length {
            // SAFETY: the block has `length` rows, and each of the left factor's as many values.
            let right = E::vectors::<S>(unsafe { block.get_unchecked(at * width..(at + 1) * width) });
            for r in 0..HEIGHT {
                // SAFETY: as above, and of columns as long as was checked.
                let left = E::spread(simd, unsafe {
                    *if COLUMNS { all.get_unchecked(at * step + r) } else { stretches[r].get_unchecked(at) }
                });
                for v in 0..WIDE {
                    sums[r][v] = E::fused(simd, left, right[v], sums[r][v]);
                }
            }
        }
        // a loop of few instructions is unrolled, and the sums are in registers up to here: they would be in memory if rows were written in it
        let scale = E::spread(simd, E::of(self.part.scale));
        let mut scaled = [[zero; WIDE]; HEIGHT];
        for r in 0..HEIGHT {
            for v in 0..WIDE {
                scaled[r][v] = E::fused(simd, sums[r][v], scale, zero);
            }
        }
        for (r, values) in scaled.iter_mut().enumerate() {
            // a length that the compiler knows is copied by two instructions
            let whole = width / VECTORS * WIDE;
            match used == whole {
                true => self.put::<S, WIDE>(simd, target, row + r, values, whole),
                false => self.put::<S, WIDE>(simd, target, row + r, values, used),
            }
        }
    }

    /// Writes values of a row of the result, or adds them to what is there.
    #[inline(always)]
    fn put<S: Simd, const WIDE: usize>(
        &self,
        simd: S,
        target: Target<E>,
        row: usize,
        values: &mut [E::Vector<S>; WIDE],
        used: usize,
    ) {
        if self.part.add {
            let mut before = [E::spread(simd, E::of(0.0)); WIDE];
            target.read(row, &mut bytemuck::cast_slice_mut(&mut before)[..used]);
            for v in 0..WIDE {
                values[v] = E::fused(simd, values[v], E::spread(simd, E::of(1.0)), before[v]);
            }
        }
        target.write(row, &bytemuck::cast_slice(values)[..used]);
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

    /// What a case varies beside sizes.
    #[derive(Clone, Debug)]
    struct Way {
        /// Whether columns of the left and of the right factor lie side by side.
        columns: [bool; 2],
        /// Whether rows (or columns) of the right factor are picked last to first.
        reversed: bool,
        /// Whether the product ends with a block.
        beyond: bool,
        add: bool,
        diagonal: Option<usize>,
    }

    /// A product of whole numbers against its definition, and what lies beside its columns against what was there.
    fn check<E: Real>(
        [rows, inner, columns, first, seed]: [usize; 5],
        stretch: &Range<usize>,
        way: &Way,
    ) -> Result<(), TestCaseError> {
        /// Columns of the target that belong to others.
        const SPARE: usize = 40;
        let length = stretch.len();
        let (a, b) = (whole_numbers::<E>(rows * length, seed), whole_numbers::<E>(inner * columns, seed + 1));
        let left = if way.columns[0] { View::rows(&a, rows).transposed() } else { View::rows(&a, length) };
        let (values, picked) = if way.columns[1] { (inner, columns) } else { (columns, inner) };
        let place = |at: usize| if way.reversed { picked - 1 - at } else { at };
        let packed = Packed::picked(View::rows(&b, values), way.columns[1], [inner, columns], place);
        let first = (first * packed.width()).min(columns / packed.width() * packed.width());
        let end = if way.beyond { columns.next_multiple_of(packed.width()) } else { columns };
        let width = end - first;
        let mut out = vec![E::of(f64::NAN); rows * (width + SPARE)];
        if way.add {
            out.chunks_exact_mut(width + SPARE).for_each(|row| row[..width].fill(E::of(1.0)));
        }
        let Way { add, diagonal, .. } = *way;
        let part = Part { inner: stretch.clone(), columns: first..end, scale: 0.5, diagonal, add };
        packed.product(Target::rows(&mut out, width + SPARE), rows, left, part);
        for (r, out) in out.chunks_exact(width + SPARE).enumerate() {
            for c in (first..end).filter(|c| diagonal.is_none_or(|diagonal| *c <= diagonal + r)) {
                let of_left = |k: usize| a[if way.columns[0] { k * rows + r } else { r * length + k }];
                let of_right = |k: usize| match way.columns[1] {
                    true => b[place(c) * inner + k],
                    false => b[place(k) * columns + c],
                };
                let products = stretch.clone().map(|k| of_left(k - stretch.start).wide() * of_right(k).wide());
                let want = if c < columns { 0.5 * products.sum::<f64>() } else { 0.0 } + f64::from(u8::from(add));
                let got = out[c - first].wide();
                prop_assert!((got - want).abs() < f64::MIN_POSITIVE, "row {r} column {c}: {got}, {want}");
            }
            prop_assert!(out[width..].iter().all(|x| x.wide().is_nan()), "row {r} is written beyond its columns");
        }
        Ok(())
    }

    proptest! {
        #[test]
        fn a_packed_product_is_the_product(
            rows in 0usize..40, inner in 1usize..50, columns in 1usize..90, seed in 0usize..100,
            (from, to) in (0usize..50, 0usize..50), first in 0usize..3, lie: [bool; 2], reversed: bool, beyond: bool, add: bool,
            diagonal in prop::option::of(0usize..60),
        ) {
            let stretch = from.min(to).min(inner)..from.max(to).min(inner);
            let sizes = [rows, inner, columns, first, seed];
            let way = Way { columns: lie, reversed, beyond, add, diagonal };
            check::<f32>(sizes, &stretch, &way)?;
            check::<f64>(sizes, &stretch, &way)?;
        }
    }
}
