//! Attention on a device's matrix units, for f16 and bf16: tiles of 64 queries by 64 keys, products summed in f32.
//!
//! A tile's scores pass through shared memory, where units mask them and take exponentials; probabilities and dS are then rounded to
//! the working type, as matrix units take them. Sums in matrix units cannot be scaled row by row but by way of shared memory; so the forward pass
//! leaves a row's sums relative to an earlier maximum as long as no score is far above it.
// what the macro makes of a kernel's arguments, indices on a device (32 bits there), and kernels read top to bottom
#![allow(
    clippy::trivially_copy_pass_by_ref,
    clippy::used_underscore_binding,
    clippy::cast_possible_truncation,
    clippy::float_cmp,
    clippy::too_many_lines
)]
use super::staged::{RISE, padded, pieces, stage};
use super::task::{BackInputs, Inputs, SIDE, Scoring, SegmentTile, SpanTile, UNSEEN};
use crate::on_chip::{MATRIX_UNIT, Piece, WIDE, turns};
use cubecl::cmma::{self, MatrixIdent, MatrixLayout};
use cubecl::prelude::Tensor as Matrix;
use cubecl::prelude::*;

/// Planes of a cube: four rows of tiles, two columns.
pub(super) const PLANES: usize = 8;
/// Units of a cube: four share each row of a tile.
pub(super) const UNITS: usize = SIDE * SHARE;
/// A row of scores in shared memory: rows begin in different banks, and where matrix units can begin.
const SCORES: usize = SIDE + 4;
/// The same of probabilities.
const WEIGHTS: usize = SIDE + WIDE;
/// Units that share a row of a tile.
const SHARE: usize = 4;

/// Bytes of shared memory of the kernel that needs most.
pub(super) const fn shared_bytes(head_dim: usize) -> usize {
    let staged = 4 * SIDE * pieces(head_dim) * WIDE * 2;
    staged + 2 * SIDE * SCORES * 4 + 2 * SIDE * WEIGHTS * 2 + 1024
}

/// A factor of 16 × 16 from staged rows.
#[cube]
fn staged_factor<F: Float>(
    staged: &SharedMemory<Piece<F>>,
    row: usize,
    column: usize,
    #[comptime] ident: MatrixIdent,
    #[comptime] layout: MatrixLayout,
    #[comptime] head_dim: usize,
) -> cmma::Matrix<F> {
    let width = comptime!(pieces(head_dim));
    let from = row * width + column / WIDE;
    let factor = cmma::Matrix::<F>::from_value(ident, MATRIX_UNIT, MATRIX_UNIT, MATRIX_UNIT, layout, F::new(0.0));
    cmma::load(&factor, &staged.slice(from, comptime!(SIDE * width)), comptime!((width * WIDE) as u32));
    factor
}

/// `factor[16, 16]` of a tile of weights, from a row and a column on, or of its transpose.
#[cube]
fn weight_factor<F: Float>(
    weights: &SharedMemory<F>,
    row: usize,
    column: usize,
    #[comptime] layout: MatrixLayout,
) -> cmma::Matrix<F> {
    cmma::Matrix::<F>::from_slice(
        MatrixIdent::A,
        MATRIX_UNIT,
        MATRIX_UNIT,
        MATRIX_UNIT,
        layout,
        &weights.slice(row * WEIGHTS + column, comptime!(SIDE * WEIGHTS)),
        comptime!(WEIGHTS as u32),
    )
}

#[cube]
fn zeros(#[comptime] count: usize) -> Sequence<cmma::Matrix<f32>> {
    let mut sums = Sequence::<cmma::Matrix<f32>>::new();
    #[unroll]
    for _ in 0..count {
        sums.push(cmma::Matrix::<f32>::from_value(
            MatrixIdent::Accumulator,
            MATRIX_UNIT,
            MATRIX_UNIT,
            MATRIX_UNIT,
            MatrixLayout::Undefined,
            0.0f32,
        ));
    }
    sums
}

/// `scores = a·bᵀ` over a head's values of 64 staged rows each; a plane has 16 rows and 32 columns.
#[cube]
fn scores<F: Float>(
    a: &SharedMemory<Piece<F>>,
    b: &SharedMemory<Piece<F>>,
    out: &mut SharedMemory<f32>,
    #[comptime] head_dim: usize,
) {
    let down = UNIT_POS_Y as usize / 2 * MATRIX_UNIT;
    let right = UNIT_POS_Y as usize % 2 * comptime!(SIDE / 2);
    let sums = zeros(2usize);
    for k in 0..turns(comptime!(padded(head_dim) / MATRIX_UNIT), UNITS) {
        let along = k * MATRIX_UNIT;
        let left = staged_factor::<F>(a, down, along, MatrixIdent::A, MatrixLayout::RowMajor, head_dim);
        #[unroll]
        for j in 0..2usize {
            let row = right + comptime!(j * MATRIX_UNIT);
            let up = staged_factor::<F>(b, row, along, MatrixIdent::B, MatrixLayout::ColMajor, head_dim);
            cmma::execute::<F, F, f32, f32>(&left, &up, sums.index(j), sums.index(j));
        }
    }
    #[unroll]
    for j in 0..2usize {
        let from = down * SCORES + right + comptime!(j * MATRIX_UNIT);
        cmma::store(
            &mut out.slice_mut(from, comptime!(SIDE * SCORES)),
            sums.index(j),
            comptime!(SCORES as u32),
            MatrixLayout::RowMajor,
        );
    }
}

/// `sums += weights·rows`, or `weightsᵀ·rows`: a plane has 16 rows and half of the head's values.
#[cube]
fn mix<F: Float>(
    weights: &SharedMemory<F>,
    staged: &SharedMemory<Piece<F>>,
    sums: &Sequence<cmma::Matrix<f32>>,
    #[comptime] transposed: bool,
    #[comptime] head_dim: usize,
) {
    let down = UNIT_POS_Y as usize / 2 * MATRIX_UNIT;
    let first = UNIT_POS_Y as usize % 2;
    for k in 0..turns(comptime!(SIDE / MATRIX_UNIT), UNITS) {
        let along = k * MATRIX_UNIT;
        let left = if comptime!(transposed) {
            weight_factor::<F>(weights, along, down, MatrixLayout::ColMajor)
        } else {
            weight_factor::<F>(weights, down, along, MatrixLayout::RowMajor)
        };
        #[unroll]
        for j in 0..comptime!(columns(head_dim)) {
            // every other one, so that both planes of a row have as many; the last may be one that the other has
            let column = min(first + comptime!(j * 2), comptime!(padded(head_dim) / MATRIX_UNIT - 1)) * MATRIX_UNIT;
            let up = staged_factor::<F>(staged, along, column, MatrixIdent::B, MatrixLayout::RowMajor, head_dim);
            cmma::execute::<F, F, f32, f32>(&left, &up, sums.index(j), sums.index(j));
        }
    }
}

/// Columns of 16 values that a plane sums.
const fn columns(head_dim: usize) -> usize {
    (padded(head_dim) / MATRIX_UNIT).div_ceil(2)
}

/// Writes a cube's 64 rows of a head's values, 64 values at a time through shared memory.
#[cube]
fn write<F: Float>(
    sums: &Sequence<cmma::Matrix<f32>>,
    values: &mut SharedMemory<f32>,
    out: &mut Matrix<F>,
    first: usize,
    end: usize,
    column: usize,
    #[comptime] head_dim: usize,
    #[comptime] plane: usize,
) {
    let down = UNIT_POS_Y as usize / 2 * MATRIX_UNIT;
    let right = UNIT_POS_Y as usize % 2 * MATRIX_UNIT;
    #[unroll]
    for chunk in 0..comptime!(columns(head_dim).div_ceil(2)) {
        sync_cube();
        #[unroll]
        for part in 0..comptime!(if columns(head_dim) - chunk * 2 > 1 { 2usize } else { 1usize }) {
            let from = down * SCORES + right + comptime!(part * 2 * MATRIX_UNIT);
            cmma::store(
                &mut values.slice_mut(from, comptime!(SIDE * SCORES)),
                sums.index(comptime!(chunk * 2 + part)),
                comptime!(SCORES as u32),
                MatrixLayout::RowMajor,
            );
        }
        sync_cube();
        let mut at = UNIT_POS as usize;
        while at < comptime!(SIDE * SIDE) {
            let row = first + at / SIDE;
            let feature = comptime!(chunk * SIDE) + at % SIDE;
            if row < end && feature < head_dim {
                out[row * out.stride(0) + column + feature] = F::cast_from(values[at / SIDE * SCORES + at % SIDE]);
            }
            at += comptime!(plane * PLANES);
        }
    }
}

/// Multiplies a plane's sums with a factor a row, at most one, by way of shared memory; nothing happens where all of its rows' are one.
#[cube]
fn rescale(
    sums: &Sequence<cmma::Matrix<f32>>,
    values: &mut SharedMemory<f32>,
    factors: &SharedMemory<f32>,
    #[comptime] head_dim: usize,
) {
    let down = UNIT_POS_Y as usize / 2 * MATRIX_UNIT;
    // where no other plane writes
    let from = down * SCORES + UNIT_POS_Y as usize % 2 * MATRIX_UNIT;
    let mut least = 1.0f32;
    for row in 0..turns(MATRIX_UNIT, UNITS) {
        least = min(least, factors[down + row]);
    }
    if least < 1.0f32 {
        #[unroll]
        for j in 0..comptime!(columns(head_dim)) {
            cmma::store(
                &mut values.slice_mut(from, comptime!(SIDE * SCORES)),
                sums.index(j),
                comptime!(SCORES as u32),
                MatrixLayout::RowMajor,
            );
            sync_plane();
            let mut at = UNIT_POS_X as usize;
            while at < comptime!(MATRIX_UNIT * MATRIX_UNIT) {
                let row = at / MATRIX_UNIT;
                values[from + row * SCORES + at % MATRIX_UNIT] *= factors[down + row];
                at += CUBE_DIM_X as usize;
            }
            sync_plane();
            cmma::load_with_layout(
                sums.index(j),
                &values.slice(from, comptime!(SIDE * SCORES)),
                comptime!(SCORES as u32),
                MatrixLayout::RowMajor,
            );
            sync_plane();
        }
    }
}

/// [`super::cube::attend()`] on matrix units.
#[cube(launch)]
pub(super) fn attend<F: Float>(
    inputs: &Inputs<Piece<F>>,
    tasks: &Array<u32>,
    out: &mut Matrix<F>,
    normaliser: &mut Matrix<f32>,
    scoring: Scoring,
    #[comptime] head_dim: usize,
    #[comptime] repeat: usize,
    #[comptime] plane: usize,
    #[define(F)] _dtype: StorageType,
) {
    let tile = SpanTile::read(tasks);
    let head = CUBE_POS_Y as usize;
    let of_query = head * head_dim;
    let of_key = head / repeat * head_dim;
    let unit = UNIT_POS as usize;
    let staged = comptime!(SIDE * pieces(head_dim));
    let mut queries = SharedMemory::<Piece<F>>::new_aligned(staged, 32usize);
    let mut keys = SharedMemory::<Piece<F>>::new_aligned(staged, 32usize);
    let mut s = SharedMemory::<f32>::new_aligned(comptime!(SIDE * SCORES), 32usize);
    let mut p = SharedMemory::<F>::new_aligned(comptime!(SIDE * WEIGHTS), 32usize);
    let mut partial = SharedMemory::<f32>::new(comptime!(plane * PLANES));
    let mut factors = SharedMemory::<f32>::new(SIDE);
    stage::<F>(&inputs.q, &mut queries, tile.first, tile.end, tile.queries(), of_query, 0usize, SIDE, head_dim, UNITS);
    let row = unit / SHARE;
    let part = unit % SHARE;
    let of_row = row * SHARE;
    let query = tile.rows.prefix_len + tile.first + row;
    let last = tile.rows.prefix_len + tile.end;
    let start = scoring.first_tile(tile.rows.prefix_len + tile.first);
    let sums = zeros(comptime!(columns(head_dim)));
    // what a row's sums are relative to, and its own part of Σ exp(score − top)
    let mut top = UNSEEN.runtime();
    let mut sum = 0.0f32;
    let mut key = start;
    while key < last {
        stage::<F>(&inputs.k, &mut keys, key, last, tile.rows, of_key, 0usize, SIDE, head_dim, UNITS);
        sync_cube();
        scores::<F>(&queries, &keys, &mut s, head_dim);
        sync_cube();
        stage::<F>(&inputs.v, &mut keys, key, last, tile.rows, of_key, 0usize, SIDE, head_dim, UNITS);
        let mut high = UNSEEN.runtime();
        #[unroll]
        for t in 0..comptime!(SIDE / SHARE) {
            let column = part + comptime!(t * SHARE);
            let seen = scoring.sees(query, key + column) && key + column < last;
            let score = scoring.score(s[row * SCORES + column]);
            high = max(high, select(seen, score, UNSEEN));
        }
        partial[unit] = high;
        sync_cube();
        let now = max(max(partial[of_row], partial[of_row + 1]), max(partial[of_row + 2], partial[of_row + 3]));
        let risen = select(now > top + RISE, now, top);
        let factor = (top - risen).exp();
        top = risen;
        let mut here = 0.0f32;
        #[unroll]
        for t in 0..comptime!(SIDE / SHARE) {
            let column = part + comptime!(t * SHARE);
            let seen = scoring.sees(query, key + column) && key + column < last;
            let score = scoring.score(s[row * SCORES + column]);
            let weight = (select(seen, score - top, UNSEEN)).exp();
            here += weight;
            p[row * WEIGHTS + column] = F::cast_from(weight);
        }
        sum = sum * factor + here;
        if part == 0 {
            // nothing is summed before the first tile
            factors[row] = select(key > start, factor, 1.0f32);
        }
        sync_cube();
        rescale(&sums, &mut s, &factors, head_dim);
        mix::<F>(&p, &keys, &sums, false, head_dim);
        sync_cube();
        key += SIDE;
    }
    partial[unit] = sum;
    sync_cube();
    let total = partial[of_row] + partial[of_row + 1] + partial[of_row + 2] + partial[of_row + 3];
    if part == 0 {
        // no key is seen by queries that are beyond the last
        factors[row] = select(total > 0.0f32, 1.0f32 / total, 1.0f32);
    }
    sync_cube();
    rescale(&sums, &mut s, &factors, head_dim);
    write::<F>(&sums, &mut s, out, tile.rows.own + tile.first, tile.rows.own + tile.end, of_query, head_dim, plane);
    if part == 0 && tile.first + row < tile.end {
        normaliser[(tile.rows.own + tile.first + row) * normaliser.stride(0) + head] = top + total.ln();
    }
}

/// P and dS = s·P∘(dP − δ·o) of a tile from its scores and dP, as weights.
#[cube]
fn weights_back<F: Float>(
    s: &SharedMemory<f32>,
    dp: &SharedMemory<f32>,
    p: &mut SharedMemory<F>,
    ds: &mut SharedMemory<F>,
    inputs: &BackInputs<Piece<F>>,
    tile: SegmentTile,
    query: usize,
    key: usize,
    head: usize,
    scoring: Scoring,
    #[comptime] keep: bool,
) {
    let row = UNIT_POS as usize / SHARE;
    let part = UNIT_POS as usize % SHARE;
    let local = query + row;
    let (normal, product) = inputs.of_row(&tile, local, head);
    #[unroll]
    for t in 0..comptime!(SIDE / SHARE) {
        let at = part + comptime!(t * SHARE);
        let seen = scoring.sees(local, key + at) && local < tile.count;
        let (weight, back) = scoring.back(s[row * SCORES + at], dp[row * SCORES + at], normal, product, seen);
        if comptime!(keep) {
            p[row * WEIGHTS + at] = F::cast_from(weight);
        }
        ds[row * WEIGHTS + at] = F::cast_from(back);
    }
}

/// [`super::cube::attend_vjp_queries()`] on matrix units.
#[cube(launch)]
pub(super) fn attend_vjp_queries<F: Float>(
    inputs: &BackInputs<Piece<F>>,
    tasks: &Array<u32>,
    dq: &mut Matrix<F>,
    scoring: Scoring,
    #[comptime] head_dim: usize,
    #[comptime] repeat: usize,
    #[comptime] plane: usize,
    #[define(F)] _dtype: StorageType,
) {
    let tile = SegmentTile::read(tasks);
    let head = CUBE_POS_Y as usize;
    let of_query = head * head_dim;
    let of_key = head / repeat * head_dim;
    let staged = comptime!(SIDE * pieces(head_dim));
    let mut queries = SharedMemory::<Piece<F>>::new_aligned(staged, 32usize);
    let mut deltas = SharedMemory::<Piece<F>>::new_aligned(staged, 32usize);
    let mut keys = SharedMemory::<Piece<F>>::new_aligned(staged, 32usize);
    let mut values = SharedMemory::<Piece<F>>::new_aligned(staged, 32usize);
    let mut s = SharedMemory::<f32>::new_aligned(comptime!(SIDE * SCORES), 32usize);
    let mut dp = SharedMemory::<f32>::new_aligned(comptime!(SIDE * SCORES), 32usize);
    // probabilities are not kept here, and have no place of their own
    let mut ds = SharedMemory::<F>::new_aligned(comptime!(SIDE * WEIGHTS), 32usize);
    let mut none = SharedMemory::<F>::new(1usize);
    let query = tile.first;
    stage::<F>(&inputs.q, &mut queries, query, tile.count, tile.rows, of_query, 0usize, SIDE, head_dim, UNITS);
    stage::<F>(&inputs.delta, &mut deltas, query, tile.count, tile.backward(), of_query, 0usize, SIDE, head_dim, UNITS);
    let sums = zeros(comptime!(columns(head_dim)));
    let end = min(query + SIDE, tile.count);
    let mut key = scoring.first_tile(query);
    // the cotangent of rows before the first active one is zero
    while key < select(end > tile.active, end, 0usize) {
        stage::<F>(&inputs.k, &mut keys, key, tile.count, tile.rows, of_key, 0usize, SIDE, head_dim, UNITS);
        stage::<F>(&inputs.v, &mut values, key, tile.count, tile.rows, of_key, 0usize, SIDE, head_dim, UNITS);
        sync_cube();
        scores::<F>(&queries, &keys, &mut s, head_dim);
        scores::<F>(&deltas, &values, &mut dp, head_dim);
        sync_cube();
        weights_back::<F>(&s, &dp, &mut none, &mut ds, inputs, tile, query, key, head, scoring, false);
        sync_cube();
        mix::<F>(&ds, &keys, &sums, false, head_dim);
        sync_cube();
        key += SIDE;
    }
    write::<F>(&sums, &mut s, dq, tile.offset + query, tile.offset + end, of_query, head_dim, plane);
}

/// [`super::cube::attend_vjp_keys()`] on matrix units.
#[cube(launch)]
pub(super) fn attend_vjp_keys<F: Float>(
    inputs: &BackInputs<Piece<F>>,
    tasks: &Array<u32>,
    dk: &mut Matrix<F>,
    dv: &mut Matrix<F>,
    scoring: Scoring,
    #[comptime] head_dim: usize,
    #[comptime] repeat: usize,
    #[comptime] plane: usize,
    #[define(F)] _dtype: StorageType,
) {
    let tile = SegmentTile::read(tasks);
    let group = CUBE_POS_Y as usize;
    let of_key = group * head_dim;
    let staged = comptime!(SIDE * pieces(head_dim));
    let mut queries = SharedMemory::<Piece<F>>::new_aligned(staged, 32usize);
    let mut deltas = SharedMemory::<Piece<F>>::new_aligned(staged, 32usize);
    let mut keys = SharedMemory::<Piece<F>>::new_aligned(staged, 32usize);
    let mut values = SharedMemory::<Piece<F>>::new_aligned(staged, 32usize);
    let mut s = SharedMemory::<f32>::new_aligned(comptime!(SIDE * SCORES), 32usize);
    let mut dp = SharedMemory::<f32>::new_aligned(comptime!(SIDE * SCORES), 32usize);
    let mut p = SharedMemory::<F>::new_aligned(comptime!(SIDE * WEIGHTS), 32usize);
    let mut ds = SharedMemory::<F>::new_aligned(comptime!(SIDE * WEIGHTS), 32usize);
    let key = tile.first;
    stage::<F>(&inputs.k, &mut keys, key, tile.count, tile.rows, of_key, 0usize, SIDE, head_dim, UNITS);
    stage::<F>(&inputs.v, &mut values, key, tile.count, tile.rows, of_key, 0usize, SIDE, head_dim, UNITS);
    let of_k = zeros(comptime!(columns(head_dim)));
    let of_v = zeros(comptime!(columns(head_dim)));
    for h in 0..repeat {
        let head = group * repeat + h;
        let mut query = max(key, tile.active / SIDE * SIDE);
        while query < min(tile.count, scoring.end_of_queries(key + SIDE - 1)) {
            stage::<F>(
                &inputs.q,
                &mut queries,
                query,
                tile.count,
                tile.rows,
                head * head_dim,
                0usize,
                SIDE,
                head_dim,
                UNITS,
            );
            stage::<F>(
                &inputs.delta,
                &mut deltas,
                query,
                tile.count,
                tile.backward(),
                head * head_dim,
                0usize,
                SIDE,
                head_dim,
                UNITS,
            );
            sync_cube();
            scores::<F>(&queries, &keys, &mut s, head_dim);
            scores::<F>(&deltas, &values, &mut dp, head_dim);
            sync_cube();
            weights_back::<F>(&s, &dp, &mut p, &mut ds, inputs, tile, query, key, head, scoring, true);
            sync_cube();
            mix::<F>(&p, &deltas, &of_v, true, head_dim);
            mix::<F>(&ds, &queries, &of_k, true, head_dim);
            sync_cube();
            query += SIDE;
        }
    }
    let end = tile.offset + min(key + SIDE, tile.count);
    write::<F>(&of_k, &mut s, dk, tile.offset + key, end, of_key, head_dim, plane);
    write::<F>(&of_v, &mut s, dv, tile.offset + key, end, of_key, head_dim, plane);
}
