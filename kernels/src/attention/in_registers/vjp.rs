//! The vjp with factors in registers.
use super::fragments::{Factor, NARROW, Pair, Sums, add_products, columns, left, mix, write, zeros};
use super::{GROUPS, HANDED, NARROWER, PLANE, blocks, rows, units};
use crate::attention::staged::{padded, pieces, stage};
use crate::attention::strategy::Pass;
use crate::attention::task::{BackInputs, SIDE, Scoring, SegmentTile};
use crate::on_chip::{MATRIX_UNIT, Piece, turns};
use cubecl::prelude::Tensor as Matrix;
use cubecl::prelude::*;

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

/// [`crate::attention::cube::attend_vjp_queries()`] with factors in registers. Each plane of a group forms dS of every other 16 keys, and their part of dq.
#[cube(launch)]
pub(in crate::attention) fn attend_vjp_queries<F: Float>(
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

/// [`crate::attention::cube::attend_vjp_keys()`] with factors in registers. Rows are keys, and columns queries; the first plane of a group forms P and dv, the second
/// dS and dk.
#[cube(launch)]
pub(in crate::attention) fn attend_vjp_keys<F: Float>(
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
