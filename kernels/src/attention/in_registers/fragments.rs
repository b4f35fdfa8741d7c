//! Squares of values as matrix units take them from registers and leave them there.
use crate::attention::staged::{padded, pieces};
use crate::on_chip::{MATRIX_UNIT, Piece, WIDE};
use cubecl::cmma::{MatrixIdent, MmaDefinition};
use cubecl::prelude::Tensor as Matrix;
use cubecl::prelude::*;

/// Columns of the sums of one instruction.
pub(super) const NARROW: usize = 8;

/// Two neighbouring values of a row.
pub(super) type Pair<F> = Vector<F, Const<2>>;
/// Sums of 16 rows, 8 columns each: of a unit, two columns of both of its rows.
pub(super) type Sums = Sequence<Array<Pair<f32>>>;
/// A factor of 16 × 16.
pub(super) type Factor<F> = Array<Pair<F>>;

/// Four squares of 8 × 8 values, of which each unit names a row: of one that is transposed a unit gets two neighbours of a column.
#[cube]
fn squares<F: Float>(
    staged: &SharedMemory<Piece<F>>,
    row: usize,
    column: usize,
    #[comptime] transposed: bool,
    #[comptime] head_dim: usize,
) -> Factor<F> {
    let from = row * comptime!(pieces(head_dim)) + column / WIDE;
    let product = MmaDefinition::<F, F, f32>::new(MATRIX_UNIT, NARROW, MATRIX_UNIT);
    product.load_matrix::<Piece<F>, Const<2>>(&staged.slice(from, from + 1), MatrixIdent::A, 4usize, transposed)
}

/// A left factor: 16 staged rows, 16 of their values.
#[cube]
pub(super) fn left<F: Float>(
    staged: &SharedMemory<Piece<F>>,
    row: usize,
    along: usize,
    #[comptime] head_dim: usize,
) -> Factor<F> {
    let unit = UNIT_POS_X as usize;
    squares::<F>(staged, row + unit % 16, along + unit / 16 * WIDE, false, head_dim)
}

/// Two right factors, one after the other: 16 values of 16 staged rows, which are columns.
#[cube]
pub(super) fn columns<F: Float>(
    staged: &SharedMemory<Piece<F>>,
    row: usize,
    along: usize,
    #[comptime] head_dim: usize,
) -> Factor<F> {
    let unit = UNIT_POS_X as usize;
    squares::<F>(staged, row + unit % 8 + unit / 16 * 8, along + unit / 8 % 2 * WIDE, false, head_dim)
}

/// Two right factors, one after the other: 16 staged rows, 16 of their values, which are columns.
#[cube]
fn rows_of<F: Float>(
    staged: &SharedMemory<Piece<F>>,
    along: usize,
    column: usize,
    #[comptime] head_dim: usize,
) -> Factor<F> {
    let unit = UNIT_POS_X as usize;
    squares::<F>(staged, along + unit % 16, column + unit / 16 * WIDE, true, head_dim)
}

/// Adds a left factor times two right ones to sums of 16 × 16.
#[cube]
pub(super) fn add_products<F: Float>(left: &Factor<F>, right: &Factor<F>, sums: &mut Sums, #[comptime] first: usize) {
    let product = MmaDefinition::<F, F, f32>::new(MATRIX_UNIT, NARROW, MATRIX_UNIT);
    #[unroll]
    for half in 0..2usize {
        let mut one = Array::<Pair<F>>::new(2usize);
        one[0] = right[comptime!(2 * half)];
        one[1] = right[comptime!(2 * half + 1)];
        product.execute_inplace(left, &one, sums.index_mut(comptime!(first + half)));
    }
}

#[cube]
pub(super) fn zeros(#[comptime] count: usize) -> Sums {
    let mut sums = Sums::new();
    #[unroll]
    for _ in 0..count {
        let mut sum = Array::<Pair<f32>>::new(2usize);
        sum[0] = Pair::<f32>::new(0.0f32);
        sum[1] = Pair::<f32>::new(0.0f32);
        sums.push(sum);
    }
    sums
}

/// `sums += weights·rows` of a plane's weights, whose columns are staged rows from one on.
#[cube]
pub(super) fn mix<F: Float>(
    weights: &Sums,
    staged: &SharedMemory<Piece<F>>,
    sums: &mut Sums,
    row: usize,
    #[comptime] blocks: usize,
    #[comptime] width: usize,
    #[comptime] head_dim: usize,
) {
    #[unroll]
    for k in 0..comptime!(width / MATRIX_UNIT) {
        let mut factors = Sequence::<Factor<F>>::new();
        #[unroll]
        for block in 0..blocks {
            let mut factor = Array::<Pair<F>>::new(4usize);
            #[unroll]
            for half in 0..2usize {
                let of = weights.index(comptime!(block * width / NARROW + 2 * k + half));
                factor[comptime!(2 * half)] = Pair::<F>::cast_from(of[0]);
                factor[comptime!(2 * half + 1)] = Pair::<F>::cast_from(of[1]);
            }
            factors.push(factor);
        }
        #[unroll]
        for at in 0..comptime!(padded(head_dim) / MATRIX_UNIT) {
            let right =
                rows_of::<F>(staged, row + comptime!(k * MATRIX_UNIT), comptime!(at * MATRIX_UNIT).runtime(), head_dim);
            #[unroll]
            for block in 0..blocks {
                add_products::<F>(
                    factors.index(block),
                    &right,
                    sums,
                    comptime!(block * padded(head_dim) / NARROW + 2 * at),
                );
            }
        }
    }
}

/// Writes a plane's rows of a head's values, each row multiplied with a factor.
#[cube]
pub(super) fn write<F: Float>(
    sums: &Sums,
    factors: &Array<f32>,
    out: &mut Matrix<Pair<F>>,
    first: usize,
    end: usize,
    column: usize,
    #[comptime] blocks: usize,
    #[comptime] head_dim: usize,
) {
    let unit = UNIT_POS_X as usize;
    #[unroll]
    for block in 0..blocks {
        #[unroll]
        for half in 0..2usize {
            let row = first + unit / 4 + comptime!(block * MATRIX_UNIT + half * 8);
            let factor = Pair::<f32>::new(factors[comptime!(2 * block + half)]);
            if row < end {
                #[unroll]
                for at in 0..comptime!(padded(head_dim) / NARROW) {
                    let feature = comptime!(at * NARROW) + unit % 4 * 2;
                    if feature < head_dim {
                        let sum = sums.index(comptime!(block * padded(head_dim) / NARROW + at))[half] * factor;
                        out[(row * out.stride(0) + column + feature) / 2] = Pair::<F>::cast_from(sum);
                    }
                }
            }
        }
    }
}
