//! Attention on a device, in f32: tiles of 64 queries by 64 keys that never leave the chip.
//!
//! The forward pass keeps a running maximum and sum a row, as flash attention does, and leaves log Σ exp of each row's
//! scores; the vjp forms probabilities from that again, tile by tile. Each result has one cube, so sums have an order.
// what the macro makes of a kernel's arguments, indices on a device (32 bits there), and kernels read top to bottom
#![allow(
    clippy::trivially_copy_pass_by_ref,
    clippy::used_underscore_binding,
    clippy::cast_possible_truncation,
    clippy::float_cmp,
    clippy::manual_is_multiple_of,
    clippy::too_many_lines
)]
use super::task::{BackInputs, Inputs, Rows, SIDE, Scoring, SegmentTile, SpanTile, UNSEEN};
use crate::on_chip::{Tile, multiply};
use cubecl::prelude::Tensor as Matrix;
use cubecl::prelude::*;

/// A row of scores in shared memory; one more than the keys, so that rows begin in different banks.
const ROW: usize = SIDE + 1;
/// How a cube shares a tile of scores, and each 64 features of a head.
pub(super) const TILE: Tile = Tile { units_m: 16, units_n: 16, per_m: 4, per_n: 4, step: 16 };

/// Stages features of rows: 16 of 64 rows, transposed, `staged[k·64 + i] = x[row(first + i), column + k]`, or 64 of 16 rows as they lie,
/// `staged[k·64 + j] = x[row(first + k), column + j]`.
#[cube]
fn stage<F: Float>(
    x: &Matrix<F>,
    staged: &mut SharedMemory<f32>,
    first: usize,
    end: usize,
    rows: Rows,
    column: usize,
    last_column: usize,
    #[comptime] transposed: bool,
) {
    let features = comptime!(if transposed { TILE.step } else { SIDE });
    #[unroll]
    for turn in 0..comptime!(SIDE * TILE.step / TILE.units()) {
        let at = UNIT_POS as usize + comptime!(turn * TILE.units());
        let row = at / features;
        let feature = at % features;
        let mut value = 0.0f32;
        if first + row < end && column + feature < last_column {
            value = f32::cast_from(x[rows.at(first + row) * x.stride(0) + column + feature]);
        }
        let place = if comptime!(transposed) { feature * SIDE + row } else { at };
        staged[place] = value;
    }
}

/// `acc = a·bᵀ` over the features of one head, for 64 rows of each.
#[cube]
fn scores<F: Float>(
    a: &Matrix<F>,
    a_first: usize,
    a_end: usize,
    a_rows: Rows,
    a_column: usize,
    b: &Matrix<F>,
    b_first: usize,
    b_end: usize,
    b_rows: Rows,
    b_column: usize,
    left: &mut SharedMemory<f32>,
    right: &mut SharedMemory<f32>,
    acc: &mut Array<f32>,
    #[comptime] head_dim: usize,
) {
    let um = UNIT_POS as usize / comptime!(TILE.units_n);
    let un = UNIT_POS as usize % comptime!(TILE.units_n);
    #[unroll]
    for e in 0..comptime!(TILE.per_unit()) {
        acc[e] = 0.0;
    }
    for step in 0..comptime!(head_dim.div_ceil(TILE.step)) {
        let feature = step * comptime!(TILE.step);
        stage::<F>(a, left, a_first, a_end, a_rows, a_column + feature, a_column + head_dim, true);
        stage::<F>(b, right, b_first, b_end, b_rows, b_column + feature, b_column + head_dim, true);
        sync_cube();
        multiply(left, right, acc, um, un, 0usize, TILE, 0usize, SIDE, 1usize);
        sync_cube();
    }
}

/// `acc[chunk] += weights·rows`, weights `[64, 64]` in shared memory, for every 64 features of a head.
#[cube]
fn mix<F: Float>(
    weights: &SharedMemory<f32>,
    x: &Matrix<F>,
    first: usize,
    end: usize,
    rows: Rows,
    column: usize,
    staged: &mut SharedMemory<f32>,
    acc: &mut Array<f32>,
    #[comptime] head_dim: usize,
    #[comptime] transposed: bool,
) {
    let um = UNIT_POS as usize / comptime!(TILE.units_n);
    let un = UNIT_POS as usize % comptime!(TILE.units_n);
    let (step, along) = comptime!(if transposed { (ROW, 1) } else { (1, ROW) });
    #[unroll]
    for chunk in 0..comptime!(head_dim.div_ceil(SIDE)) {
        for part in 0..comptime!(SIDE / TILE.step) {
            let k = part * comptime!(TILE.step);
            let from = column + comptime!(chunk * SIDE);
            stage::<F>(x, staged, first + k, end, rows, from, column + head_dim, false);
            sync_cube();
            multiply(weights, staged, acc, um, un, k * step, TILE, comptime!(chunk * TILE.per_unit()), step, along);
            sync_cube();
        }
    }
}

/// Attention of one tile of a span's queries in one head. The grid is `(tasks, heads)`.
///
/// `out` is as q; `normaliser[N, heads]` is log Σ exp of a row's scores.
#[cube(launch)]
pub(super) fn attend<F: Float>(
    inputs: &Inputs<F>,
    tasks: &Array<u32>,
    out: &mut Matrix<F>,
    normaliser: &mut Matrix<f32>,
    scoring: Scoring,
    #[comptime] head_dim: usize,
    #[comptime] repeat: usize,
    #[define(F)] _dtype: StorageType,
) {
    let tile = SpanTile::read(tasks);
    let head = CUBE_POS_Y as usize;
    let of_query = head * head_dim;
    let of_key = head / repeat * head_dim;
    let unit = UNIT_POS as usize;
    let um = unit / comptime!(TILE.units_n);
    let un = unit % comptime!(TILE.units_n);
    let mut left = SharedMemory::<f32>::new(comptime!(SIDE * TILE.step));
    let mut right = SharedMemory::<f32>::new(comptime!(SIDE * TILE.step));
    let mut p = SharedMemory::<f32>::new(comptime!(SIDE * ROW));
    let mut top = SharedMemory::<f32>::new(SIDE);
    let mut sum = SharedMemory::<f32>::new(SIDE);
    let mut rescale = SharedMemory::<f32>::new(SIDE);
    let mut partial = SharedMemory::<f32>::new(comptime!(TILE.units()));
    let mut s = Array::<f32>::new(comptime!(TILE.per_unit()));
    let mut acc = Array::<f32>::new(comptime!(head_dim.div_ceil(SIDE) * TILE.per_unit()));
    #[unroll]
    for e in 0..comptime!(head_dim.div_ceil(SIDE) * TILE.per_unit()) {
        acc[e] = 0.0;
    }
    if unit < SIDE {
        top[unit] = UNSEEN;
        sum[unit] = 0.0;
    }
    sync_cube();
    let keys = tile.rows.prefix_len + tile.end;
    let mut key = scoring.first_tile(tile.rows.prefix_len + tile.first);
    while key < keys {
        scores::<F>(
            &inputs.q,
            tile.first,
            tile.end,
            tile.queries(),
            of_query,
            &inputs.k,
            key,
            keys,
            tile.rows,
            of_key,
            &mut left,
            &mut right,
            &mut s,
            head_dim,
        );
        #[unroll]
        for i in 0..comptime!(TILE.per_m) {
            #[unroll]
            for j in 0..comptime!(TILE.per_n) {
                let row = um + comptime!(i * TILE.units_m);
                let column = un + comptime!(j * TILE.units_n);
                let query = tile.rows.prefix_len + tile.first + row;
                let seen = scoring.sees(query, key + column) && key + column < keys;
                let score = scoring.score(s[comptime!(i * TILE.per_n + j)]);
                p[row * ROW + column] = select(seen, score, UNSEEN);
            }
        }
        sync_cube();
        // four units a row: the maximum, then exponentials and their sum
        let row = unit / 4;
        let part = unit % 4;
        let mut high = UNSEEN.runtime();
        for t in 0..comptime!(SIDE / 4) {
            high = max(high, p[row * ROW + part + t * 4]);
        }
        partial[unit] = high;
        sync_cube();
        let of_row = row * 4;
        let before = top[row];
        let now =
            max(max(max(partial[of_row], partial[of_row + 1]), max(partial[of_row + 2], partial[of_row + 3])), before);
        sync_cube();
        let mut here = 0.0f32;
        for t in 0..comptime!(SIDE / 4) {
            let at = row * ROW + part + t * 4;
            let e = (p[at] - now).exp();
            p[at] = e;
            here += e;
        }
        partial[unit] = here;
        sync_cube();
        if part == 0 {
            let factor = (before - now).exp();
            top[row] = now;
            rescale[row] = factor;
            sum[row] =
                sum[row] * factor + partial[of_row] + partial[of_row + 1] + partial[of_row + 2] + partial[of_row + 3];
        }
        sync_cube();
        #[unroll]
        for chunk in 0..comptime!(head_dim.div_ceil(SIDE)) {
            #[unroll]
            for i in 0..comptime!(TILE.per_m) {
                let factor = rescale[um + comptime!(i * TILE.units_m)];
                #[unroll]
                for j in 0..comptime!(TILE.per_n) {
                    acc[comptime!(chunk * TILE.per_unit() + i * TILE.per_n + j)] *= factor;
                }
            }
        }
        mix::<F>(&p, &inputs.v, key, keys, tile.rows, of_key, &mut right, &mut acc, head_dim, false);
        key += SIDE;
    }
    #[unroll]
    for i in 0..comptime!(TILE.per_m) {
        let row = um + comptime!(i * TILE.units_m);
        if tile.first + row < tile.end {
            let inverse = 1.0f32 / sum[row];
            #[unroll]
            for chunk in 0..comptime!(head_dim.div_ceil(SIDE)) {
                #[unroll]
                for j in 0..comptime!(TILE.per_n) {
                    let feature = un + comptime!(chunk * SIDE + j * TILE.units_n);
                    if feature < head_dim {
                        out[(tile.rows.own + tile.first + row) * out.stride(0) + of_query + feature] =
                            F::cast_from(acc[comptime!(chunk * TILE.per_unit() + i * TILE.per_n + j)] * inverse);
                    }
                }
            }
            if un == 0 {
                normaliser[(tile.rows.own + tile.first + row) * normaliser.stride(0) + head] = top[row] + sum[row].ln();
            }
        }
    }
}

/// Units that share a value of [`row_products()`].
pub(super) const TOGETHER: usize = 16;

/// `δ·o` of every backward row in every head: `[R, heads]`, some units a value.
#[cube(launch)]
pub(super) fn row_products<F: Float>(
    delta: &Matrix<F>,
    out: &Matrix<F>,
    index: &Array<u32>,
    products: &mut Matrix<f32>,
    #[comptime] head_dim: usize,
    #[define(F)] _dtype: StorageType,
) {
    let heads = products.shape(1);
    let mut parts = SharedMemory::<f32>::new(comptime!(TILE.units()));
    let unit = UNIT_POS as usize;
    let number = (CUBE_POS_X + CUBE_POS_Y * CUBE_COUNT_X) as usize;
    let value = number * comptime!(TILE.units() / TOGETHER) + unit / TOGETHER;
    let row = value / heads;
    let head = value % heads;
    let mut sum = 0.0f32;
    if row < products.shape(0) {
        let a = row * delta.stride(0) + head * head_dim;
        let b = index[row] as usize * out.stride(0) + head * head_dim;
        let mut i = unit % TOGETHER;
        while i < head_dim {
            sum += f32::cast_from(delta[a + i]) * f32::cast_from(out[b + i]);
            i += TOGETHER;
        }
    }
    parts[unit] = sum;
    sync_cube();
    if unit % TOGETHER == 0 && row < products.shape(0) {
        let mut total = 0.0f32;
        #[unroll]
        for part in 0..TOGETHER {
            total += parts[unit + part];
        }
        products[row * products.stride(0) + head] = total;
    }
}

/// P and dS = s·P∘(dP − δ·o) of one tile of queries and keys of a segment, left in `p` and `ds` of each unit.
#[cube]
fn tile_back<F: Float>(
    inputs: &BackInputs<F>,
    tile: SegmentTile,
    query: usize,
    key: usize,
    head: usize,
    scoring: Scoring,
    left: &mut SharedMemory<f32>,
    right: &mut SharedMemory<f32>,
    p: &mut Array<f32>,
    ds: &mut Array<f32>,
    #[comptime] head_dim: usize,
    #[comptime] repeat: usize,
) {
    let um = UNIT_POS as usize / comptime!(TILE.units_n);
    let un = UNIT_POS as usize % comptime!(TILE.units_n);
    let of_query = head * head_dim;
    let of_key = head / repeat * head_dim;
    scores::<F>(
        &inputs.q, query, tile.count, tile.rows, of_query, &inputs.k, key, tile.count, tile.rows, of_key, left, right,
        p, head_dim,
    );
    scores::<F>(
        &inputs.delta,
        query,
        tile.count,
        tile.backward(),
        of_query,
        &inputs.v,
        key,
        tile.count,
        tile.rows,
        of_key,
        left,
        right,
        ds,
        head_dim,
    );
    #[unroll]
    for i in 0..comptime!(TILE.per_m) {
        let local = query + um + comptime!(i * TILE.units_m);
        let (normal, product) = inputs.of_row(&tile, local, head);
        #[unroll]
        for j in 0..comptime!(TILE.per_n) {
            let column = key + un + comptime!(j * TILE.units_n);
            let e = comptime!(i * TILE.per_n + j);
            let seen = scoring.sees(local, column) && local < tile.count;
            let (weight, back) = scoring.back(p[e], ds[e], normal, product, seen);
            p[e] = weight;
            ds[e] = back;
        }
    }
}

/// Writes a unit's values of a tile to shared memory.
#[cube]
fn put(values: &Array<f32>, tile: &mut SharedMemory<f32>) {
    let um = UNIT_POS as usize / comptime!(TILE.units_n);
    let un = UNIT_POS as usize % comptime!(TILE.units_n);
    #[unroll]
    for i in 0..comptime!(TILE.per_m) {
        #[unroll]
        for j in 0..comptime!(TILE.per_n) {
            tile[(um + comptime!(i * TILE.units_m)) * ROW + un + comptime!(j * TILE.units_n)] =
                values[comptime!(i * TILE.per_n + j)];
        }
    }
    sync_cube();
}

/// Writes 64 rows of a head's cotangent.
#[cube]
fn write<F: Float>(
    acc: &Array<f32>,
    out: &mut Matrix<F>,
    first: usize,
    end: usize,
    column: usize,
    #[comptime] head_dim: usize,
) {
    let um = UNIT_POS as usize / comptime!(TILE.units_n);
    let un = UNIT_POS as usize % comptime!(TILE.units_n);
    #[unroll]
    for i in 0..comptime!(TILE.per_m) {
        let row = first + um + comptime!(i * TILE.units_m);
        #[unroll]
        for chunk in 0..comptime!(head_dim.div_ceil(SIDE)) {
            #[unroll]
            for j in 0..comptime!(TILE.per_n) {
                let feature = un + comptime!(chunk * SIDE + j * TILE.units_n);
                if row < end && feature < head_dim {
                    out[row * out.stride(0) + column + feature] =
                        F::cast_from(acc[comptime!(chunk * TILE.per_unit() + i * TILE.per_n + j)]);
                }
            }
        }
    }
}

/// dQ = dS·K of one tile of a segment's queries in one head. The grid is `(tasks, heads)`.
#[cube(launch)]
pub(super) fn attend_vjp_queries<F: Float>(
    inputs: &BackInputs<F>,
    tasks: &Array<u32>,
    dq: &mut Matrix<F>,
    scoring: Scoring,
    #[comptime] head_dim: usize,
    #[comptime] repeat: usize,
    #[define(F)] _dtype: StorageType,
) {
    let tile = SegmentTile::read(tasks);
    let head = CUBE_POS_Y as usize;
    let mut left = SharedMemory::<f32>::new(comptime!(SIDE * TILE.step));
    let mut right = SharedMemory::<f32>::new(comptime!(SIDE * TILE.step));
    let mut weights = SharedMemory::<f32>::new(comptime!(SIDE * ROW));
    let mut p = Array::<f32>::new(comptime!(TILE.per_unit()));
    let mut ds = Array::<f32>::new(comptime!(TILE.per_unit()));
    let mut acc = Array::<f32>::new(comptime!(head_dim.div_ceil(SIDE) * TILE.per_unit()));
    #[unroll]
    for e in 0..comptime!(head_dim.div_ceil(SIDE) * TILE.per_unit()) {
        acc[e] = 0.0;
    }
    let query = tile.first;
    let end = min(query + SIDE, tile.count);
    let mut key = scoring.first_tile(query);
    // the cotangent of rows before the first active one is zero
    while key < select(end > tile.active, end, 0usize) {
        tile_back::<F>(
            inputs, tile, query, key, head, scoring, &mut left, &mut right, &mut p, &mut ds, head_dim, repeat,
        );
        put(&ds, &mut weights);
        mix::<F>(
            &weights,
            &inputs.k,
            key,
            tile.count,
            tile.rows,
            head / repeat * head_dim,
            &mut right,
            &mut acc,
            head_dim,
            false,
        );
        key += SIDE;
    }
    write::<F>(&acc, dq, tile.offset + query, tile.offset + end, head * head_dim, head_dim);
}

/// dV = Pᵀδ and dK = dSᵀQ of one tile of a segment's keys in one key-value head. The grid is
/// `(tasks, key-value heads)`.
#[cube(launch)]
pub(super) fn attend_vjp_keys<F: Float>(
    inputs: &BackInputs<F>,
    tasks: &Array<u32>,
    dk: &mut Matrix<F>,
    dv: &mut Matrix<F>,
    scoring: Scoring,
    #[comptime] head_dim: usize,
    #[comptime] repeat: usize,
    #[define(F)] _dtype: StorageType,
) {
    let tile = SegmentTile::read(tasks);
    let group = CUBE_POS_Y as usize;
    let mut left = SharedMemory::<f32>::new(comptime!(SIDE * TILE.step));
    let mut right = SharedMemory::<f32>::new(comptime!(SIDE * TILE.step));
    let mut weights = SharedMemory::<f32>::new(comptime!(SIDE * ROW));
    let mut p = Array::<f32>::new(comptime!(TILE.per_unit()));
    let mut ds = Array::<f32>::new(comptime!(TILE.per_unit()));
    let mut of_k = Array::<f32>::new(comptime!(head_dim.div_ceil(SIDE) * TILE.per_unit()));
    let mut of_v = Array::<f32>::new(comptime!(head_dim.div_ceil(SIDE) * TILE.per_unit()));
    #[unroll]
    for e in 0..comptime!(head_dim.div_ceil(SIDE) * TILE.per_unit()) {
        of_k[e] = 0.0;
        of_v[e] = 0.0;
    }
    let key = tile.first;
    for h in 0..repeat {
        let head = group * repeat + h;
        let mut query = max(key, tile.active / SIDE * SIDE);
        while query < min(tile.count, scoring.end_of_queries(key + SIDE - 1)) {
            tile_back::<F>(
                inputs, tile, query, key, head, scoring, &mut left, &mut right, &mut p, &mut ds, head_dim, repeat,
            );
            put(&p, &mut weights);
            mix::<F>(
                &weights,
                &inputs.delta,
                query,
                tile.count,
                tile.backward(),
                head * head_dim,
                &mut right,
                &mut of_v,
                head_dim,
                true,
            );
            put(&ds, &mut weights);
            mix::<F>(
                &weights,
                &inputs.q,
                query,
                tile.count,
                tile.rows,
                head * head_dim,
                &mut right,
                &mut of_k,
                head_dim,
                true,
            );
            query += SIDE;
        }
    }
    let end = tile.offset + min(key + SIDE, tile.count);
    write::<F>(&of_k, dk, tile.offset + key, end, group * head_dim, head_dim);
    write::<F>(&of_v, dv, tile.offset + key, end, group * head_dim, head_dim);
}
