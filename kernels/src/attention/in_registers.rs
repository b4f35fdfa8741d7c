//! Attention on CUDA's matrix units, for f16 and bf16, with factors and sums in registers whose places are known (`ldmatrix`, `mma.sync`): what one product
//! leaves is masked, taken the exponential of and is a factor of the next, as in FlashAttention-2 (Dao 2023, arXiv 2307.08691).
//!
//! A plane has 32 rows of a tile, or 16; in the forward pass all its columns, and shared memory is for what is loaded alone. Of sums of 16 × 8 a unit has two neighbouring columns, from twice its number in its four on,
//! of two rows: a quarter of its plane's number, and 8 below (PTX ISA, "Matrix fragments for mma.m16n8k16").
//!
//! In the vjp two planes share these rows. One multiplies queries with keys, the other cotangents with values: each keeps its left factor in registers for
//! as long as the tile lasts, and they hand each other what comes out, in places that are a unit's own.
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

/// Groups of a tile's rows, one below the other: of a plane each, of two planes in the vjp.
const GROUPS: usize = 4;
/// Units of a plane.
pub(super) const PLANE: usize = 32;
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

/// Planes of a cube.
pub(super) const fn planes(pass: Pass) -> usize {
    match pass {
        Pass::Forward => GROUPS,
        Pass::Back => 2 * GROUPS,
    }
}

/// Units of a cube.
pub(super) const fn units(pass: Pass) -> usize {
    PLANE * planes(pass)
}

/// Widest head: a unit's share of its group's sums takes 128 registers, and of the factors that are kept in the vjp 64.
pub(super) const WIDEST: usize = 256;

/// Blocks of 16 rows of a group: the more, the more products a loaded factor goes into.
const fn blocks(head_dim: usize) -> usize {
    if 2 * padded(head_dim) <= WIDEST { 2 } else { 1 }
}

/// Rows of a tile.
pub(super) const fn rows(head_dim: usize) -> usize {
    GROUPS * MATRIX_UNIT * blocks(head_dim)
}

/// Columns of scores that a group has at a time in the vjp, or where a soft cap takes registers too.
const NARROWER: usize = 32;

/// Columns of scores that a plane has at a time in the forward pass.
const fn columns_at_once(capped: bool) -> usize {
    if capped { NARROWER } else { SIDE }
}

/// Pairs of values that the planes of the vjp have room to hand each other: a tile's scores, of which each part has places of its own, since it is written
/// while the one before is read; or half of the sums.
const HANDED: usize = GROUPS * 2 * MATRIX_UNIT * SIDE / 2;

/// Bytes of shared memory of a pass over a head: queries of a tile, keys and values of another; in the vjp rows of two matrices, what is handed over, and
/// figures of rows.
pub(super) const fn shared_bytes(pass: Pass, head_dim: usize) -> usize {
    let (rows, bytes) = match pass {
        Pass::Forward => (rows(head_dim) + 2 * SIDE, 0),
        Pass::Back => (2 * SIDE, HANDED * 8 + 2 * rows(head_dim) * 4),
    };
    rows * pieces(head_dim) * WIDE * 2 + bytes
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
    for k in 0..turns(comptime!(padded(head_dim) / MATRIX_UNIT), comptime!(units(Pass::Forward))) {
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
    #[define(F)] _dtype: StorageType,
) {
    let blocks = comptime!(blocks(head_dim));
    let width = comptime!(columns_at_once(scoring.capped));
    let tile = SpanTile::read(tasks);
    let head = CUBE_POS_Y as usize;
    let of_query = head * head_dim;
    let of_key = head / repeat * head_dim;
    let unit = UNIT_POS_X as usize;
    let staged = comptime!(SIDE * pieces(head_dim));
    let ours = comptime!(rows(head_dim));
    let mut queries = SharedMemory::<Piece<F>>::new_aligned(comptime!(ours * pieces(head_dim)), 16usize);
    let mut keys = SharedMemory::<Piece<F>>::new_aligned(staged, 16usize);
    let mut values = SharedMemory::<Piece<F>>::new_aligned(staged, 16usize);
    let units = comptime!(units(Pass::Forward));
    stage::<F>(&inputs.q, &mut queries, tile.first, tile.end, tile.queries(), of_query, 0usize, ours, head_dim, units);
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
        stage::<F>(&inputs.k, &mut keys, key, last, tile.rows, of_key, 0usize, SIDE, head_dim, units);
        stage::<F>(&inputs.v, &mut values, key, last, tile.rows, of_key, 0usize, SIDE, head_dim, units);
        sync_cube();
        // all keys of the tile are seen by all queries
        let whole =
            key + SIDE <= min(last, tile.rows.prefix_len + tile.first + 1) && scoring.end_of_queries(key) >= last;
        for part in 0..turns(comptime!(SIDE / width), units) {
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

/// Rows that the planes of a group in the vjp take, the first plane and the second.
#[derive(Clone, Copy)]
enum Sides {
    /// Queries, and their cotangents.
    Queries,
    /// Keys, and values.
    Keys,
}

/// First row of a plane's group in the vjp, in its tile.
#[cube]
fn group_row(#[comptime] head_dim: usize) -> usize {
    UNIT_POS_Y as usize / 2 * comptime!(MATRIX_UNIT * blocks(head_dim))
}

/// Which plane of its group in the vjp this is: 0, which multiplies queries with keys, or 1, which multiplies cotangents with values.
#[cube]
fn plane_of_group() -> usize {
    UNIT_POS_Y as usize % 2
}

/// Stages 64 rows of the first planes' matrix, and behind them as many of the second planes'.
#[cube]
fn stage_both<F: Float>(
    inputs: &BackInputs<Piece<F>>,
    tile: &SegmentTile,
    staged: &mut SharedMemory<Piece<F>>,
    first: usize,
    column: usize,
    #[comptime] sides: Sides,
    #[comptime] head_dim: usize,
) {
    let units = comptime!(units(Pass::Back));
    match sides {
        Sides::Queries => {
            stage::<F>(&inputs.q, staged, first, tile.count, tile.rows, column, 0usize, SIDE, head_dim, units);
            stage::<F>(&inputs.delta, staged, first, tile.count, tile.backward(), column, SIDE, SIDE, head_dim, units);
        }
        Sides::Keys => {
            stage::<F>(&inputs.k, staged, first, tile.count, tile.rows, column, 0usize, SIDE, head_dim, units);
            stage::<F>(&inputs.v, staged, first, tile.count, tile.rows, column, SIDE, SIDE, head_dim, units);
        }
    }
}

/// Left factors of a tile's rows, a plane's own. Of every 16 values there is one for each block.
#[cube]
fn kept<F: Float>(
    inputs: &BackInputs<Piece<F>>,
    tile: &SegmentTile,
    staged: &mut SharedMemory<Piece<F>>,
    column: usize,
    #[comptime] sides: Sides,
    #[comptime] head_dim: usize,
) -> Sequence<Factor<F>> {
    let blocks = comptime!(blocks(head_dim));
    let row = group_row(head_dim);
    let from = plane_of_group() * SIDE + row % SIDE;
    let mut factors = Sequence::<Factor<F>>::new();
    #[unroll]
    for _ in 0..comptime!(padded(head_dim) / MATRIX_UNIT * blocks) {
        factors.push(Array::<Pair<F>>::new(4usize));
    }
    #[unroll]
    for round in 0..comptime!(rows(head_dim) / SIDE) {
        stage_both::<F>(inputs, tile, staged, tile.first + comptime!(round * SIDE), column, sides, head_dim);
        sync_cube();
        if row / SIDE == round {
            #[unroll]
            for k in 0..comptime!(padded(head_dim) / MATRIX_UNIT) {
                #[unroll]
                for block in 0..blocks {
                    let along = comptime!(k * MATRIX_UNIT).runtime();
                    let loaded = left::<F>(staged, from + comptime!(block * MATRIX_UNIT), along, head_dim);
                    let factor = factors.index_mut(comptime!(k * blocks + block));
                    #[unroll]
                    for at in 0..4usize {
                        factor[at] = loaded[at];
                    }
                }
            }
        }
        sync_cube();
    }
    factors
}

/// Adds kept rows times 16 staged ones to some of the scores that a plane has at a time.
#[cube]
fn add_scores<F: Float>(
    factors: &Sequence<Factor<F>>,
    staged: &SharedMemory<Piece<F>>,
    scores: &mut Sums,
    row: usize,
    #[comptime] column: usize,
    #[comptime] width: usize,
    #[comptime] head_dim: usize,
) {
    let blocks = comptime!(blocks(head_dim));
    #[unroll]
    for k in 0..comptime!(padded(head_dim) / MATRIX_UNIT) {
        let right = columns::<F>(staged, row, comptime!(k * MATRIX_UNIT).runtime(), head_dim);
        #[unroll]
        for block in 0..blocks {
            let factor = factors.index(comptime!(k * blocks + block));
            add_products::<F>(factor, &right, scores, comptime!((block * width + column) / NARROW));
        }
    }
}

/// Where one of the pairs lies that a unit hands over at a time, or those at its place in the other plane of its group.
#[cube]
fn handed_at(time: usize, #[comptime] at: usize, #[comptime] pairs: usize) -> usize {
    let group = UNIT_POS_Y as usize / 2;
    ((time * GROUPS + group) * pairs + at) * PLANE + UNIT_POS_X as usize
}

/// [`super::cube::attend_vjp_queries()`] with factors in registers. Each plane of a group forms dS of every other 16 keys, and their part of dq.
#[cube(launch)]
pub(super) fn attend_vjp_queries<F: Float>(
    inputs: &BackInputs<Piece<F>>,
    tasks: &Array<u32>,
    dq: &mut Matrix<Pair<F>>,
    scoring: Scoring,
    #[comptime] head_dim: usize,
    #[comptime] repeat: usize,
    #[define(F)] _dtype: StorageType,
) {
    let blocks = comptime!(blocks(head_dim));
    let tile = SegmentTile::read(tasks);
    let head = CUBE_POS_Y as usize;
    let first = tile.first;
    let of_query = head * head_dim;
    let of_key = head / repeat * head_dim;
    let unit = UNIT_POS_X as usize;
    let second = plane_of_group();
    let mut staged = SharedMemory::<Piece<F>>::new_aligned(comptime!(2 * SIDE * pieces(head_dim)), 16usize);
    let mut handed = SharedMemory::<Pair<f32>>::new(HANDED);
    let mut normal = SharedMemory::<f32>::new(comptime!(rows(head_dim)));
    let mut product = SharedMemory::<f32>::new(comptime!(rows(head_dim)));
    let at = UNIT_POS as usize;
    if at < comptime!(rows(head_dim)) {
        let (of_normaliser, of_products) = inputs.of_row(&tile, first + at, head);
        normal[at] = of_normaliser;
        product[at] = of_products;
    }
    let factors = kept::<F>(inputs, &tile, &mut staged, of_query, Sides::Queries, head_dim);
    let row = group_row(head_dim);
    let unit_row = row + unit / 4;
    let mut sums = zeros(comptime!(blocks * padded(head_dim) / NARROW));
    let end = min(first + comptime!(rows(head_dim)), tile.count);
    let mut key = scoring.first_tile(first);
    // the cotangent of rows before the first active one is zero
    while key < select(end > tile.active, end, 0usize) {
        stage_both::<F>(inputs, &tile, &mut staged, key, of_key, Sides::Keys, head_dim);
        sync_cube();
        for part in 0..turns(comptime!(SIDE / NARROWER), comptime!(units(Pass::Back))) {
            let column = part * NARROWER;
            let works = key + column < first + row + comptime!(MATRIX_UNIT * blocks) && first + row < tile.count;
            // of the plane's own 16 keys: slopes of the first plane, dP − δ·o of the second, and dS, their product
            let mut ds = zeros(comptime!(2 * blocks));
            if works {
                // first those of the other's keys, which are handed over
                #[unroll]
                for turn in 0..2usize {
                    let mut s = zeros(comptime!(2 * blocks));
                    let of_keys = column + (second + comptime!(1 - turn)) % 2 * MATRIX_UNIT;
                    add_scores::<F>(&factors, &staged, &mut s, second * SIDE + of_keys, 0usize, MATRIX_UNIT, head_dim);
                    if second == 0 {
                        #[unroll]
                        for at in 0..comptime!(4 * blocks) {
                            let of_row = unit_row + comptime!(at / 4 * MATRIX_UNIT + at % 2 * 8);
                            let sum = s.index_mut(comptime!(at / 2));
                            let mut pair = sum[comptime!(at % 2)];
                            #[unroll]
                            for c in 0..2usize {
                                let of_key = key + of_keys + unit % 4 * 2 + comptime!(at / 2 % 2 * NARROW + c);
                                let seen = scoring.sees(first + of_row, of_key) && first + of_row < tile.count;
                                let (_, slope) = scoring.weight_and_slope(pair[c], normal[of_row], seen);
                                pair[c] = slope;
                            }
                            sum[comptime!(at % 2)] = pair;
                        }
                    } else {
                        #[unroll]
                        for at in 0..comptime!(4 * blocks) {
                            let of_row = unit_row + comptime!(at / 4 * MATRIX_UNIT + at % 2 * 8);
                            let sum = s.index_mut(comptime!(at / 2));
                            sum[comptime!(at % 2)] -= Pair::<f32>::new(product[of_row]);
                        }
                    }
                    #[unroll]
                    for at in 0..comptime!(4 * blocks) {
                        let pair = s.index(comptime!(at / 2))[comptime!(at % 2)];
                        if comptime!(turn == 0) {
                            handed[handed_at(2 * part + second, at, comptime!(4 * blocks))] = pair;
                        } else {
                            let own = ds.index_mut(comptime!(at / 2));
                            own[comptime!(at % 2)] = pair;
                        }
                    }
                }
            }
            sync_cube();
            if works {
                #[unroll]
                for at in 0..comptime!(4 * blocks) {
                    let sum = ds.index_mut(comptime!(at / 2));
                    sum[comptime!(at % 2)] *= handed[handed_at(2 * part + 1 - second, at, comptime!(4 * blocks))];
                }
                mix::<F>(&ds, &staged, &mut sums, column + second * MATRIX_UNIT, blocks, MATRIX_UNIT, head_dim);
            }
        }
        sync_cube();
        key += SIDE;
    }
    // the first plane adds the sums of the second to its own, in two turns
    let pairs = comptime!(blocks * padded(head_dim) / NARROW);
    #[unroll]
    for turn in 0..2usize {
        #[unroll]
        for at in 0..pairs {
            let sum = sums.index(comptime!(pairs / 2 * turn + at / 2));
            if second == 1 {
                handed[handed_at(0usize, at, pairs)] = sum[comptime!(at % 2)];
            }
        }
        sync_cube();
        #[unroll]
        for at in 0..pairs {
            let sum = sums.index_mut(comptime!(pairs / 2 * turn + at / 2));
            if second == 0 {
                sum[comptime!(at % 2)] += handed[handed_at(0usize, at, pairs)];
            }
        }
        sync_cube();
    }
    if second == 0 {
        let ones = ones(blocks);
        write::<F>(&sums, &ones, dq, tile.offset + first + row, tile.offset + end, of_query, blocks, head_dim);
    }
}

/// [`super::cube::attend_vjp_keys()`] with factors in registers. Rows are keys, and columns queries; the first plane of a group forms P and dv, the second
/// dS and dk.
#[cube(launch)]
pub(super) fn attend_vjp_keys<F: Float>(
    inputs: &BackInputs<Piece<F>>,
    tasks: &Array<u32>,
    dk: &mut Matrix<Pair<F>>,
    dv: &mut Matrix<Pair<F>>,
    scoring: Scoring,
    #[comptime] head_dim: usize,
    #[comptime] repeat: usize,
    #[define(F)] _dtype: StorageType,
) {
    let blocks = comptime!(blocks(head_dim));
    let tile = SegmentTile::read(tasks);
    let group = CUBE_POS_Y as usize;
    let first = tile.first;
    let of_key = group * head_dim;
    let unit = UNIT_POS_X as usize;
    let second = plane_of_group();
    let mut staged = SharedMemory::<Piece<F>>::new_aligned(comptime!(2 * SIDE * pieces(head_dim)), 16usize);
    let mut handed = SharedMemory::<Pair<f32>>::new(HANDED);
    let mut normal = SharedMemory::<f32>::new(SIDE);
    let mut product = SharedMemory::<f32>::new(SIDE);
    let factors = kept::<F>(inputs, &tile, &mut staged, of_key, Sides::Keys, head_dim);
    let row = group_row(head_dim);
    let mut sums = zeros(comptime!(blocks * padded(head_dim) / NARROW));
    for h in 0..repeat {
        let head = group * repeat + h;
        let of_query = head * head_dim;
        let mut query = max(first, tile.active / SIDE * SIDE);
        while query < min(tile.count, scoring.end_of_queries(first + comptime!(rows(head_dim) - 1))) {
            stage_both::<F>(inputs, &tile, &mut staged, query, of_query, Sides::Queries, head_dim);
            let at = UNIT_POS as usize;
            if at < SIDE {
                let (of_normaliser, of_products) = inputs.of_row(&tile, query + at, head);
                normal[at] = of_normaliser;
                product[at] = of_products;
            }
            sync_cube();
            for part in 0..turns(comptime!(SIDE / NARROWER), comptime!(units(Pass::Back))) {
                let column = part * NARROWER;
                let works = query + column + NARROWER > first + row && first + row < tile.count;
                let from = second * SIDE + column;
                // P of the first plane; dP of the second, then dS
                let mut weights = zeros(comptime!(4 * blocks));
                if works {
                    #[unroll]
                    for turn in 0..comptime!(NARROWER / MATRIX_UNIT) {
                        let along = comptime!(turn * MATRIX_UNIT);
                        add_scores::<F>(&factors, &staged, &mut weights, from + along, along, NARROWER, head_dim);
                    }
                    if second == 0 {
                        #[unroll]
                        for at in 0..comptime!(8 * blocks) {
                            let (block, sum, half) = comptime!((at / 8, at / 2 % 4, at % 2));
                            let key = first + row + unit / 4 + comptime!(block * MATRIX_UNIT + half * 8);
                            let to = weights.index_mut(comptime!(at / 2));
                            let mut pair = to[half];
                            let mut slopes = Pair::<f32>::new(0.0f32);
                            #[unroll]
                            for c in 0..2usize {
                                let of_column = column + unit % 4 * 2 + comptime!(sum * NARROW + c);
                                let local = query + of_column;
                                let seen = scoring.sees(local, key) && local < tile.count;
                                let (weight, slope) = scoring.weight_and_slope(pair[c], normal[of_column], seen);
                                pair[c] = weight;
                                slopes[c] = slope;
                            }
                            to[half] = pair;
                            handed[handed_at(part, at, comptime!(8 * blocks))] = slopes;
                        }
                    }
                }
                sync_cube();
                if works {
                    if second == 1 {
                        #[unroll]
                        for at in 0..comptime!(8 * blocks) {
                            let slopes = handed[handed_at(part, at, comptime!(8 * blocks))];
                            let to = weights.index_mut(comptime!(at / 2));
                            let mut pair = to[comptime!(at % 2)];
                            #[unroll]
                            for c in 0..2usize {
                                let of_column = column + unit % 4 * 2 + comptime!(at / 2 % 4 * NARROW + c);
                                pair[c] = slopes[c] * (pair[c] - product[of_column]);
                            }
                            to[comptime!(at % 2)] = pair;
                        }
                    }
                    // cotangents for P, queries for dS
                    let of_factor = SIDE - second * SIDE + column;
                    mix::<F>(&weights, &staged, &mut sums, of_factor, blocks, NARROWER, head_dim);
                }
            }
            sync_cube();
            query += SIDE;
        }
    }
    let ones = ones(blocks);
    let to = tile.offset + first + row;
    let end = tile.offset + min(first + comptime!(rows(head_dim)), tile.count);
    if second == 0 {
        write::<F>(&sums, &ones, dv, to, end, of_key, blocks, head_dim);
    } else {
        write::<F>(&sums, &ones, dk, to, end, of_key, blocks, head_dim);
    }
}
