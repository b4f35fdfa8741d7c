//! The forward pass with factors in registers.
use super::fragments::{Factor, NARROW, Pair, Sums, add_products, columns, left, mix, write, zeros};
use super::{NARROWER, blocks, rows, units};
use crate::attention::staged::{RISE, padded, pieces, stage};
use crate::attention::strategy::Pass;
use crate::attention::task::{Inputs, SIDE, Scoring, SpanTile, UNSEEN};
use crate::on_chip::{MATRIX_UNIT, Piece, turns};
use cubecl::prelude::Tensor as Matrix;
use cubecl::prelude::*;

/// What a row's sums are relative to before it has seen a key: an unseen key's score is far below it.
const NOTHING: f32 = UNSEEN / 2.0;

/// Columns of scores that a plane has at a time in the forward pass.
const fn columns_at_once(capped: bool) -> usize {
    if capped { NARROWER } else { SIDE }
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

/// [`crate::attention::cube::attend()`] with factors in registers.
#[cube(launch)]
pub(in crate::attention) fn attend<F: Float>(
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
