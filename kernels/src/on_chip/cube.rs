//! The on-chip part: products of staged tiles, and sums over the units of a cube.
// what the macro makes of a kernel's arguments, indices on a device (32 bits there), and kernels read top to bottom
#![allow(
    clippy::trivially_copy_pass_by_ref,
    clippy::used_underscore_binding,
    clippy::cast_possible_truncation,
    clippy::float_cmp,
    clippy::too_many_lines
)]
use super::Tile;
use cubecl::prelude::*;

/// The soft cap `c·tanh(x/c)` on a score or a logit; far out, where some drivers' tanh overflows, the bound itself.
#[cube]
pub(crate) fn soft_cap(value: f32, cap: f32, #[comptime] capped: bool) -> f32 {
    let mut out = value;
    if comptime!(capped) {
        out = clamp(value / cap, -15.0f32, 15.0f32).tanh() * cap;
    }
    out
}

/// Slope of [`soft_cap()`] where it has a value.
#[cube]
pub(crate) fn soft_cap_slope(value: f32, cap: f32, #[comptime] capped: bool) -> f32 {
    let mut out = 1.0f32;
    if comptime!(capped) {
        out = 1.0f32 - value / cap * (value / cap);
    }
    out
}

/// A number of turns that a device's compiler does not know, so that it leaves the loop one: unrolled, a unit's registers would be those of all its
/// turns, up to 255 where 128 do, and half as many cubes would run at once. `units` is how many the cube is launched with.
#[cube]
pub(crate) fn turns(#[comptime] number: usize, #[comptime] units: usize) -> usize {
    CUBE_DIM as usize / units * number
}

/// `acc[first + (i, j)] += Σ_k a[k, i]·b[k, j]` over the staged entries of the contracted axis, in f32.
///
/// `a` is read at `a_first + k·a_step + i·a_along`, `b` at `k·n + j`.
#[cube]
pub(crate) fn multiply(
    a: &SharedMemory<f32>,
    b: &SharedMemory<f32>,
    acc: &mut Array<f32>,
    um: usize,
    un: usize,
    a_first: usize,
    #[comptime] tile: Tile,
    #[comptime] first: usize,
    #[comptime] a_step: usize,
    #[comptime] a_along: usize,
) {
    // four turns at a time: a driver that is a program leaves a kernel after 65,535 turns of all its loops together
    // (llvmpipe), and whole loops unrolled take minutes to compile
    for turn in 0..comptime!(tile.step / TURNS) {
        #[unroll]
        for part in 0..TURNS {
            let k = turn * TURNS + part;
            multiply_one(a, b, acc, um, un, a_first, k, tile, first, a_step, a_along);
        }
    }
}

/// Entries of the contracted axis that are taken without a loop.
const TURNS: usize = 4;

/// One entry of the contracted axis of [`multiply()`].
#[cube]
fn multiply_one(
    a: &SharedMemory<f32>,
    b: &SharedMemory<f32>,
    acc: &mut Array<f32>,
    um: usize,
    un: usize,
    a_first: usize,
    k: usize,
    #[comptime] tile: Tile,
    #[comptime] first: usize,
    #[comptime] a_step: usize,
    #[comptime] a_along: usize,
) {
    let mut left = Array::<f32>::new(comptime!(tile.per_m));
    let mut right = Array::<f32>::new(comptime!(tile.per_n));
    #[unroll]
    for i in 0..comptime!(tile.per_m) {
        left[i] = a[a_first + k * a_step + (um + i * comptime!(tile.units_m)) * a_along];
    }
    #[unroll]
    for j in 0..comptime!(tile.per_n) {
        right[j] = b[k * comptime!(tile.n()) + un + j * comptime!(tile.units_n)];
    }
    #[unroll]
    for i in 0..comptime!(tile.per_m) {
        #[unroll]
        for j in 0..comptime!(tile.per_n) {
            acc[comptime!(first + i * tile.per_n + j)] += left[i] * right[j];
        }
    }
}

/// The sum of one value a unit, at every unit, in a fixed order. `units` is a power of two.
#[cube]
pub(crate) fn cube_sum(value: f32, scratch: &mut SharedMemory<f32>, #[comptime] units: usize) -> f32 {
    let unit = UNIT_POS as usize;
    scratch[unit] = value;
    sync_cube();
    let mut half = comptime!(units / 2).runtime();
    while half > 0 {
        if unit < half {
            let other = scratch[unit + half];
            scratch[unit] += other;
        }
        sync_cube();
        half /= 2;
    }
    let sum = scratch[0];
    sync_cube();
    sum
}
