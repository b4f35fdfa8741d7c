//! Attention on CUDA's matrix units, for f16 and bf16, with factors and sums in registers whose places are known (`ldmatrix`, `mma.sync`): what one product
//! leaves is masked, taken the exponential of and handed to the next without a way through shared memory, as FlashAttention-2 does (Dao 2023,
//! arXiv 2307.08691).
//!
//! A plane has 16 rows of a tile, or 32, and all its columns. Of sums of 16 × 8 a unit has two neighbouring columns, from twice its number in its four on,
//! of two rows: a quarter of its plane's number, and 8 below (PTX ISA, "Matrix fragments for mma.m16n8k16").
// what the macro makes of a kernel's arguments, indices on a device (32 bits there), and kernels read top to bottom
#![allow(
    clippy::trivially_copy_pass_by_ref,
    clippy::used_underscore_binding,
    clippy::cast_possible_truncation,
    clippy::float_cmp,
    clippy::manual_is_multiple_of,
    clippy::too_many_lines
)]
use super::staged::{RISE, padded, pieces, stage};
use super::strategy::Pass;
use super::task::{BackInputs, Inputs, SIDE, Scoring, SegmentTile, SpanTile, UNSEEN};
use crate::on_chip::{MATRIX_UNIT, Piece, WIDE, turns};
use cubecl::cmma::{MatrixIdent, MmaDefinition};
use cubecl::prelude::Tensor as Matrix;
use cubecl::prelude::*;

/// Planes of a cube, one below the other.
pub(super) const PLANES: usize = 4;
/// Units of a plane.
pub(super) const PLANE: usize = 32;
/// Units of a cube.
pub(super) const UNITS: usize = PLANE * PLANES;
/// Columns of the sums of one instruction.
const NARROW: usize = 8;
/// What a row's sums are relative to before it has seen a key: an unseen key's score is far below it.
const NOTHING: f32 = UNSEEN / 2.0;

/// Two neighbouring values of a row.
type Pair<F> = Vector<F, Const<2>>;
/// Sums of 16 rows, 8 columns each: of a unit, two columns of both of its rows.
type Sums = Sequence<Array<Pair<f32>>>;
/// A factor of 16 × 16.
type Factor<F> = Array<Pair<F>>;

/// Rows of a tile where a plane has a number of blocks of 16 rows.
pub(super) const fn rows(blocks: usize) -> usize {
    PLANES * MATRIX_UNIT * blocks
}

/// Columns of scores that a plane has at a time where there are two kinds of them, in the vjp, or a soft cap takes registers too.
const NARROWER: usize = 32;

/// Columns of scores that a plane has at a time in the forward pass.
const fn columns_at_once(capped: bool) -> usize {
    if capped { NARROWER } else { SIDE }
}

/// Whether a unit's registers hold its share of a plane's sums: four of a block for every 8 values of a head, 128 at the most.
pub(super) const fn fits(head_dim: usize, blocks: usize) -> bool {
    blocks * padded(head_dim) <= 2 * BOTH
}

/// Widest head of which a unit holds sums of keys and of values, of a block.
pub(super) const BOTH: usize = 128;

/// Blocks of 16 keys of a plane, where there are as many of queries and sums of both.
pub(super) const fn blocks_of_keys(head_dim: usize, blocks: usize) -> usize {
    if blocks * padded(head_dim) <= BOTH { blocks } else { 1 }
}

/// Bytes of shared memory of a pass over a head: queries, and in the vjp cotangents, of a tile; keys and values of another.
pub(super) const fn shared_bytes(pass: Pass, head_dim: usize, blocks: usize) -> usize {
    let (of_queries, of_rows) = match pass {
        Pass::Forward => (1, 0),
        Pass::Back => (2, 2 * SIDE * 4),
    };
    (of_queries * rows(blocks) + 2 * SIDE) * pieces(head_dim) * WIDE * 2 + of_rows
}

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
fn left<F: Float>(staged: &SharedMemory<Piece<F>>, row: usize, along: usize, #[comptime] head_dim: usize) -> Factor<F> {
    let unit = UNIT_POS_X as usize;
    squares::<F>(staged, row + unit % 16, along + unit / 16 * WIDE, false, head_dim)
}

/// Two right factors, one after the other: 16 values of 16 staged rows, which are columns.
#[cube]
fn columns<F: Float>(
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
fn add_products<F: Float>(left: &Factor<F>, right: &Factor<F>, sums: &mut Sums, #[comptime] first: usize) {
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
fn zeros(#[comptime] count: usize) -> Sums {
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

/// `a·bᵀ` of a plane's rows and some of the staged columns, over a head's values.
#[cube]
fn scores<F: Float>(
    a: &SharedMemory<Piece<F>>,
    b: &SharedMemory<Piece<F>>,
    row: usize,
    column: usize,
    #[comptime] blocks: usize,
    #[comptime] width: usize,
    #[comptime] head_dim: usize,
) -> Sums {
    let mut sums = zeros(comptime!(blocks * width / NARROW));
    for k in 0..turns(comptime!(padded(head_dim) / MATRIX_UNIT), UNITS) {
        let along = k * MATRIX_UNIT;
        let mut factors = Sequence::<Factor<F>>::new();
        #[unroll]
        for block in 0..blocks {
            factors.push(left::<F>(a, row + comptime!(block * MATRIX_UNIT), along, head_dim));
        }
        #[unroll]
        for at in 0..comptime!(width / MATRIX_UNIT) {
            let right = columns::<F>(b, column + comptime!(at * MATRIX_UNIT), along, head_dim);
            #[unroll]
            for block in 0..blocks {
                add_products::<F>(factors.index(block), &right, &mut sums, comptime!(block * width / NARROW + 2 * at));
            }
        }
    }
    sums
}

/// `sums += weights·rows` of a plane's weights, whose columns are staged rows from one on.
#[cube]
fn mix<F: Float>(
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

/// Factors of rows that stay as they are.
#[cube]
fn ones(#[comptime] blocks: usize) -> Array<f32> {
    let mut ones = Array::<f32>::new(comptime!(2 * blocks));
    #[unroll]
    for at in 0..comptime!(2 * blocks) {
        ones[at] = 1.0f32;
    }
    ones
}

/// Writes a plane's rows of a head's values, each row multiplied with a factor.
#[cube]
fn write<F: Float>(
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

/// [`super::cube::attend()`] with factors in registers.
#[cube(launch)]
pub(super) fn attend<F: Float>(
    inputs: &Inputs<Piece<F>>,
    tasks: &Array<u32>,
    out: &mut Matrix<Pair<F>>,
    normaliser: &mut Matrix<f32>,
    scoring: Scoring,
    #[comptime] head_dim: usize,
    #[comptime] repeat: usize,
    #[comptime] blocks: usize,
    #[define(F)] _dtype: StorageType,
) {
    let width = comptime!(columns_at_once(scoring.capped));
    let tile = SpanTile::read(tasks);
    let head = CUBE_POS_Y as usize;
    let of_query = head * head_dim;
    let of_key = head / repeat * head_dim;
    let unit = UNIT_POS_X as usize;
    let staged = comptime!(SIDE * pieces(head_dim));
    let mut queries = SharedMemory::<Piece<F>>::new_aligned(comptime!(rows(blocks) * pieces(head_dim)), 16usize);
    let mut keys = SharedMemory::<Piece<F>>::new_aligned(staged, 16usize);
    let mut values = SharedMemory::<Piece<F>>::new_aligned(staged, 16usize);
    stage::<F>(
        &inputs.q,
        &mut queries,
        tile.first,
        tile.end,
        tile.queries(),
        of_query,
        comptime!(rows(blocks)),
        head_dim,
        UNITS,
    );
    let row = UNIT_POS_Y as usize * comptime!(MATRIX_UNIT * blocks);
    // the position of a unit's first row
    let query = tile.rows.prefix_len + tile.first + row + unit / 4;
    let last = tile.rows.prefix_len + tile.end;
    let mut sums = zeros(comptime!(blocks * padded(head_dim) / NARROW));
    // what a row's sums are relative to, and its own part of Σ exp(score − top)
    let mut top = Array::<f32>::new(comptime!(2 * blocks));
    let mut total = Array::<f32>::new(comptime!(2 * blocks));
    #[unroll]
    for at in 0..comptime!(2 * blocks) {
        top[at] = NOTHING;
        total[at] = 0.0f32;
    }
    let mut key = scoring.first_tile(tile.rows.prefix_len + tile.first);
    while key < last {
        stage::<F>(&inputs.k, &mut keys, key, last, tile.rows, of_key, SIDE, head_dim, UNITS);
        stage::<F>(&inputs.v, &mut values, key, last, tile.rows, of_key, SIDE, head_dim, UNITS);
        sync_cube();
        // all keys of the tile are seen by all queries
        let whole =
            key + SIDE <= min(last, tile.rows.prefix_len + tile.first + 1) && scoring.end_of_queries(key) >= last;
        for part in 0..turns(comptime!(SIDE / width), UNITS) {
            // a plane whose rows are all before the keys, or beyond the last, has none to see
            let above = tile.rows.prefix_len + tile.first + row;
            if key + part * width < above + comptime!(MATRIX_UNIT * blocks) && above < last {
                let mut s = scores::<F>(&queries, &keys, row, part * width, blocks, width, head_dim);
                #[unroll]
                for at in 0..comptime!(2 * blocks) {
                    let of_row = query + comptime!(at / 2 * MATRIX_UNIT + at % 2 * 8);
                    let mut high = UNSEEN.runtime();
                    #[unroll]
                    for j in 0..comptime!(width / NARROW) {
                        let sum = s.index_mut(comptime!(at / 2 * width / NARROW + j));
                        let mut pair = sum[comptime!(at % 2)];
                        #[unroll]
                        for c in 0..2usize {
                            let column = key + part * width + unit % 4 * 2 + comptime!(j * NARROW + c);
                            let score = scoring.score(pair[c]);
                            let seen = whole || (scoring.sees(of_row, column) && column < last);
                            pair[c] = select(seen, score, UNSEEN);
                            high = max(high, pair[c]);
                        }
                        sum[comptime!(at % 2)] = pair;
                    }
                    high = max(high, plane_shuffle_xor(high, 1u32));
                    high = max(high, plane_shuffle_xor(high, 2u32));
                    if high > top[at] + RISE {
                        let factor = (top[at] - high).exp();
                        top[at] = high;
                        total[at] *= factor;
                        #[unroll]
                        for j in 0..comptime!(padded(head_dim) / NARROW) {
                            let sum = sums.index_mut(comptime!(at / 2 * padded(head_dim) / NARROW + j));
                            sum[comptime!(at % 2)] = sum[comptime!(at % 2)] * Pair::<f32>::new(factor);
                        }
                    }
                    #[unroll]
                    for j in 0..comptime!(width / NARROW) {
                        let sum = s.index_mut(comptime!(at / 2 * width / NARROW + j));
                        let mut pair = sum[comptime!(at % 2)];
                        #[unroll]
                        for c in 0..2usize {
                            pair[c] = (pair[c] - top[at]).exp();
                            total[at] += pair[c];
                        }
                        sum[comptime!(at % 2)] = pair;
                    }
                }
                mix::<F>(&s, &values, &mut sums, part * width, blocks, width, head_dim);
            }
        }
        sync_cube();
        key += SIDE;
    }
    #[unroll]
    for at in 0..comptime!(2 * blocks) {
        let mut sum = total[at];
        sum += plane_shuffle_xor(sum, 1u32);
        sum += plane_shuffle_xor(sum, 2u32);
        let of_row = tile.first + row + unit / 4 + comptime!(at / 2 * MATRIX_UNIT + at % 2 * 8);
        if unit % 4 == 0 && of_row < tile.end {
            normaliser[(tile.rows.own + of_row) * normaliser.stride(0) + head] = top[at] + sum.ln();
        }
        // no key is seen by queries that are beyond the last
        total[at] = select(sum > 0.0f32, 1.0f32 / sum, 1.0f32);
    }
    write::<F>(
        &sums,
        &total,
        out,
        tile.rows.own + tile.first + row,
        tile.rows.own + tile.end,
        of_query,
        blocks,
        head_dim,
    );
}

/// [`super::cube::attend_vjp_queries()`] with factors in registers.
#[cube(launch)]
pub(super) fn attend_vjp_queries<F: Float>(
    inputs: &BackInputs<Piece<F>>,
    tasks: &Array<u32>,
    dq: &mut Matrix<Pair<F>>,
    scoring: Scoring,
    #[comptime] head_dim: usize,
    #[comptime] repeat: usize,
    #[comptime] blocks: usize,
    #[define(F)] _dtype: StorageType,
) {
    let width = comptime!(NARROWER);
    let tile = SegmentTile::read(tasks);
    let head = CUBE_POS_Y as usize;
    let first = tile.first;
    let of_query = head * head_dim;
    let of_key = head / repeat * head_dim;
    let unit = UNIT_POS_X as usize;
    let ours = comptime!(rows(blocks) * pieces(head_dim));
    let staged = comptime!(SIDE * pieces(head_dim));
    let mut queries = SharedMemory::<Piece<F>>::new_aligned(ours, 16usize);
    let mut deltas = SharedMemory::<Piece<F>>::new_aligned(ours, 16usize);
    let mut keys = SharedMemory::<Piece<F>>::new_aligned(staged, 16usize);
    let mut values = SharedMemory::<Piece<F>>::new_aligned(staged, 16usize);
    stage::<F>(
        &inputs.q,
        &mut queries,
        first,
        tile.count,
        tile.rows,
        of_query,
        comptime!(rows(blocks)),
        head_dim,
        UNITS,
    );
    stage::<F>(
        &inputs.delta,
        &mut deltas,
        first,
        tile.count,
        tile.backward(),
        of_query,
        comptime!(rows(blocks)),
        head_dim,
        UNITS,
    );
    let row = UNIT_POS_Y as usize * comptime!(MATRIX_UNIT * blocks);
    let query = first + row + unit / 4;
    let mut normal = Array::<f32>::new(comptime!(2 * blocks));
    let mut product = Array::<f32>::new(comptime!(2 * blocks));
    let ones = ones(blocks);
    #[unroll]
    for at in 0..comptime!(2 * blocks) {
        let local = query + comptime!(at / 2 * MATRIX_UNIT + at % 2 * 8);
        let (of_normaliser, of_products) = inputs.of_row(&tile, local, head);
        normal[at] = of_normaliser;
        product[at] = of_products;
    }
    let mut sums = zeros(comptime!(blocks * padded(head_dim) / NARROW));
    let end = min(first + comptime!(rows(blocks)), tile.count);
    let mut key = scoring.first_tile(first);
    // the cotangent of rows before the first active one is zero
    while key < select(end > tile.active, end, 0usize) {
        stage::<F>(&inputs.k, &mut keys, key, tile.count, tile.rows, of_key, SIDE, head_dim, UNITS);
        stage::<F>(&inputs.v, &mut values, key, tile.count, tile.rows, of_key, SIDE, head_dim, UNITS);
        sync_cube();
        for part in 0..turns(comptime!(SIDE / width), UNITS) {
            let above = first + row;
            if key + part * width < above + comptime!(MATRIX_UNIT * blocks) && above < tile.count {
                let s = scores::<F>(&queries, &keys, row, part * width, blocks, width, head_dim);
                let mut ds = scores::<F>(&deltas, &values, row, part * width, blocks, width, head_dim);
                #[unroll]
                for at in 0..comptime!(2 * blocks) {
                    let local = query + comptime!(at / 2 * MATRIX_UNIT + at % 2 * 8);
                    #[unroll]
                    for j in 0..comptime!(width / NARROW) {
                        let score = s.index(comptime!(at / 2 * width / NARROW + j))[comptime!(at % 2)];
                        let sum = ds.index_mut(comptime!(at / 2 * width / NARROW + j));
                        let mut pair = sum[comptime!(at % 2)];
                        #[unroll]
                        for c in 0..2usize {
                            let column = key + part * width + unit % 4 * 2 + comptime!(j * NARROW + c);
                            let seen = scoring.sees(local, column) && local < tile.count;
                            let (_, back) = scoring.back(score[c], pair[c], normal[at], product[at], seen);
                            pair[c] = back;
                        }
                        sum[comptime!(at % 2)] = pair;
                    }
                }
                mix::<F>(&ds, &keys, &mut sums, part * width, blocks, width, head_dim);
            }
        }
        sync_cube();
        key += SIDE;
    }
    write::<F>(&sums, &ones, dq, tile.offset + first + row, tile.offset + end, of_query, blocks, head_dim);
}

/// [`super::cube::attend_vjp_keys()`] with factors in registers: dk, dv, or both where there are registers for both sums. Rows are keys, and columns queries.
#[cube(launch)]
pub(super) fn attend_vjp_keys<F: Float>(
    inputs: &BackInputs<Piece<F>>,
    tasks: &Array<u32>,
    dk: &mut Matrix<Pair<F>>,
    dv: &mut Matrix<Pair<F>>,
    scoring: Scoring,
    #[comptime] head_dim: usize,
    #[comptime] repeat: usize,
    #[comptime] blocks: usize,
    #[comptime] with_k: bool,
    #[comptime] with_v: bool,
    #[define(F)] _dtype: StorageType,
) {
    let width = comptime!(NARROWER);
    let tile = SegmentTile::read(tasks);
    let group = CUBE_POS_Y as usize;
    let first = tile.first;
    let of_key = group * head_dim;
    let unit = UNIT_POS_X as usize;
    let staged = comptime!(SIDE * pieces(head_dim));
    let mut queries = SharedMemory::<Piece<F>>::new_aligned(staged, 16usize);
    let mut deltas = SharedMemory::<Piece<F>>::new_aligned(staged, 16usize);
    let ours = comptime!(rows(blocks) * pieces(head_dim));
    let mut keys = SharedMemory::<Piece<F>>::new_aligned(ours, 16usize);
    let mut values = SharedMemory::<Piece<F>>::new_aligned(ours, 16usize);
    let mut normal = SharedMemory::<f32>::new(SIDE);
    let mut product = SharedMemory::<f32>::new(SIDE);
    stage::<F>(&inputs.k, &mut keys, first, tile.count, tile.rows, of_key, comptime!(rows(blocks)), head_dim, UNITS);
    stage::<F>(&inputs.v, &mut values, first, tile.count, tile.rows, of_key, comptime!(rows(blocks)), head_dim, UNITS);
    let row = UNIT_POS_Y as usize * comptime!(MATRIX_UNIT * blocks);
    let mut of_k = zeros(comptime!(if with_k { blocks * padded(head_dim) / NARROW } else { 0usize }));
    let mut of_v = zeros(comptime!(if with_v { blocks * padded(head_dim) / NARROW } else { 0usize }));
    for h in 0..repeat {
        let head = group * repeat + h;
        let mut query = max(first, tile.active / SIDE * SIDE);
        while query < min(tile.count, scoring.end_of_queries(first + comptime!(rows(blocks) - 1))) {
            stage::<F>(&inputs.q, &mut queries, query, tile.count, tile.rows, head * head_dim, SIDE, head_dim, UNITS);
            stage::<F>(
                &inputs.delta,
                &mut deltas,
                query,
                tile.count,
                tile.backward(),
                head * head_dim,
                SIDE,
                head_dim,
                UNITS,
            );
            let at = UNIT_POS as usize;
            let local = query + at;
            if at < SIDE {
                let (of_normaliser, of_products) = inputs.of_row(&tile, local, head);
                normal[at] = of_normaliser;
                product[at] = of_products;
            }
            sync_cube();
            for part in 0..turns(comptime!(SIDE / width), UNITS) {
                if query + (part + 1) * width > first + row && first + row < tile.count {
                    let mut p = scores::<F>(&keys, &queries, row, part * width, blocks, width, head_dim);
                    let mut ds = if comptime!(with_k) {
                        scores::<F>(&values, &deltas, row, part * width, blocks, width, head_dim)
                    } else {
                        zeros(0usize)
                    };
                    #[unroll]
                    for at in 0..comptime!(blocks * width / NARROW) {
                        #[unroll]
                        for half in 0..2usize {
                            let block = comptime!(at * NARROW / width);
                            let key = first + row + unit / 4 + comptime!(block * MATRIX_UNIT + half * 8);
                            let mut weights = p.index(at)[half];
                            let mut back = Pair::<f32>::new(0.0f32);
                            if comptime!(with_k) {
                                back = ds.index(at)[half];
                            }
                            #[unroll]
                            for c in 0..2usize {
                                let column = part * width + unit % 4 * 2 + comptime!(at * NARROW % width + c);
                                let local = query + column;
                                let seen = scoring.sees(local, key) && local < tile.count;
                                let (weight, of_score) =
                                    scoring.back(weights[c], back[c], normal[column], product[column], seen);
                                weights[c] = weight;
                                back[c] = of_score;
                            }
                            if comptime!(with_v) {
                                let to = p.index_mut(at);
                                to[half] = weights;
                            }
                            if comptime!(with_k) {
                                let to = ds.index_mut(at);
                                to[half] = back;
                            }
                        }
                    }
                    if comptime!(with_v) {
                        mix::<F>(&p, &deltas, &mut of_v, part * width, blocks, width, head_dim);
                    }
                    if comptime!(with_k) {
                        mix::<F>(&ds, &queries, &mut of_k, part * width, blocks, width, head_dim);
                    }
                }
            }
            sync_cube();
            query += SIDE;
        }
    }
    let ones = ones(blocks);
    let end = tile.offset + min(first + comptime!(rows(blocks)), tile.count);
    if comptime!(with_k) {
        write::<F>(&of_k, &ones, dk, tile.offset + first + row, end, of_key, blocks, head_dim);
    }
    if comptime!(with_v) {
        write::<F>(&of_v, &ones, dv, tile.offset + first + row, end, of_key, blocks, head_dim);
    }
}
