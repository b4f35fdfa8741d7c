//! One chunk of the vocabulary on a device, one cube a row, in f32.
// what the macro makes of a kernel's arguments, indices on a device (32 bits there), and kernels read top to bottom
#![allow(
    clippy::trivially_copy_pass_by_ref,
    clippy::used_underscore_binding,
    clippy::cast_possible_truncation,
    clippy::float_cmp,
    clippy::too_many_lines
)]
use crate::on_chip::{cube_sum, soft_cap, soft_cap_slope};
use cubecl::prelude::Tensor as Matrix;
use cubecl::prelude::*;

/// Units of a cube.
pub(super) const UNITS: usize = 256;
/// Figures of a row: see [`take_chunk()`].
pub(super) const FIGURES: usize = 7;

/// `y_r · W[target of r]`: each row's own logit; a cube a row.
#[cube(launch)]
pub(super) fn target_logits<F: Float>(
    y: &Matrix<F>,
    w: &Matrix<F>,
    targets: &Array<u32>,
    logits: &mut Array<f32>,
    #[define(F)] _dtype: StorageType,
) {
    let row = (CUBE_POS_X + CUBE_POS_Y * CUBE_COUNT_X) as usize;
    if row >= y.shape(0) {
        terminate!();
    }
    let mut scratch = SharedMemory::<f32>::new(UNITS);
    let of_row = row * y.stride(0);
    let of_token = targets[row] as usize * w.stride(0);
    let mut sum = 0.0f32;
    let mut at = UNIT_POS as usize;
    while at < y.shape(1) {
        sum += f32::cast_from(y[of_row + at]) * f32::cast_from(w[of_token + at]);
        at += UNITS;
    }
    let logit = cube_sum(sum, &mut scratch, UNITS);
    if UNIT_POS == 0 {
        logits[row] = logit;
    }
}

/// Takes a chunk of logits `[n, C]` into each row's running figures, and leaves `exp(z − maximum)`, times the slope
/// of the soft cap, in `p[n, C]`: zero for the row's target, which is in no sum. `mean[n, d]`, what `p·W` of the chunks before comes to, is
/// brought to the new maximum.
///
/// `figures[n, FIGURES]`: maximum, Σ exp(z − maximum), Σ exp(z − maximum)·(z − maximum), the target's logit, the factor that
/// what came before this chunk has to be multiplied with, the tokens above the target, and Σ exp(z − maximum)². The sum is zero where
/// there is no other token.
#[cube(launch)]
pub(super) fn take_chunk<F: Float>(
    logits: &Matrix<f32>,
    targets: &Array<u32>,
    target_logits: &Array<f32>,
    figures: &mut Array<f32>,
    mean: &mut Matrix<f32>,
    p: &mut Matrix<F>,
    first: u32,
    cap: f32,
    #[comptime] start: bool,
    #[comptime] capped: bool,
    #[define(F)] _dtype: StorageType,
) {
    let row = (CUBE_POS_X + CUBE_POS_Y * CUBE_COUNT_X) as usize;
    if row >= logits.shape(0) {
        terminate!();
    }
    let unit = UNIT_POS as usize;
    let columns = logits.shape(1);
    let from = row * logits.stride(0);
    let mut scratch = SharedMemory::<f32>::new(UNITS);
    let target = targets[row];
    let mut high = f32::min_value();
    let mut at = unit;
    while at < columns {
        let z = soft_cap(logits[from + at], cap, capped);
        high = max(high, select(first + at as u32 == target, f32::min_value(), z));
        at += UNITS;
    }
    scratch[unit] = high;
    sync_cube();
    let mut half = comptime!(UNITS / 2).runtime();
    while half > 0 {
        if unit < half {
            scratch[unit] = max(scratch[unit], scratch[unit + half]);
        }
        sync_cube();
        half /= 2;
    }
    let here = scratch[0];
    sync_cube();
    let mut before = here;
    let mut sum_before = 0.0f32;
    let mut weighted_before = 0.0f32;
    if comptime!(!start) {
        before = figures[row * FIGURES];
        sum_before = figures[row * FIGURES + 1];
        weighted_before = figures[row * FIGURES + 2];
    }
    let top = max(here, before);
    let mut sum = 0.0f32;
    let mut weighted = 0.0f32;
    let mut squares = 0.0f32;
    let mut above = 0.0f32;
    let target_logit = soft_cap(target_logits[row], cap, capped);
    at = unit;
    while at < columns {
        let z = soft_cap(logits[from + at], cap, capped);
        let own = first + at as u32 == target;
        above += select(z > target_logit && !own, 1.0f32, 0.0f32);
        let d = select(own, 0.0f32, z - top);
        let e = select(own, 0.0f32, d.exp());
        p[row * p.stride(0) + at] = F::cast_from(e * soft_cap_slope(z, cap, capped));
        sum += e;
        weighted += e * d;
        squares += e * e;
        at += UNITS;
    }
    let all = cube_sum(sum, &mut scratch, UNITS);
    let all_weighted = cube_sum(weighted, &mut scratch, UNITS);
    let all_squares = cube_sum(squares, &mut scratch, UNITS);
    let all_above = cube_sum(above, &mut scratch, UNITS);
    let factor = (before - top).exp();
    // one at the start, where nothing is in `mean` yet
    if factor < 1.0f32 {
        at = unit;
        while at < mean.shape(1) {
            mean[row * mean.stride(0) + at] *= factor;
            at += UNITS;
        }
    }
    if unit == 0 {
        figures[row * FIGURES] = top;
        figures[row * FIGURES + 1] = sum_before * factor + all;
        figures[row * FIGURES + 2] = (weighted_before + sum_before * (before - top)) * factor + all_weighted;
        figures[row * FIGURES + 4] = factor;
        let mut above_before = 0.0f32;
        let mut squares_before = 0.0f32;
        if comptime!(!start) {
            above_before = figures[row * FIGURES + 5];
            squares_before = figures[row * FIGURES + 6];
        }
        figures[row * FIGURES + 5] = above_before + all_above;
        figures[row * FIGURES + 6] = squares_before * factor * factor + all_squares;
        figures[row * FIGURES + 3] = target_logit;
    }
}

/// Σ exp(z − maximum) of a row, from its final figures; one where there is no other token.
#[cube]
fn sum_of_others(figures: &Array<f32>, row: usize) -> f32 {
    let sum = figures[row * FIGURES + 1];
    select(sum == 0.0f32, 1.0f32, sum)
}

/// 1 − p of a row's target, from its final figures.
#[cube]
fn rest(figures: &Array<f32>, row: usize) -> f32 {
    let against = figures[row * FIGURES] + sum_of_others(figures, row).ln() - figures[row * FIGURES + 3];
    1.0f32 / (1.0f32 + (-against).exp())
}

/// `W[target]`, times the slope of its soft cap, less `mean/Σ`, all times 1 − p(target): the gradient of log p(target) in the input; a unit a
/// value.
#[cube(launch)]
pub(super) fn finish<F: Float>(
    w: &Matrix<F>,
    targets: &Array<u32>,
    mean: &Matrix<f32>,
    figures: &Array<f32>,
    back: &mut Matrix<F>,
    cap: f32,
    #[comptime] capped: bool,
    #[define(F)] _dtype: StorageType,
) {
    let width = back.shape(1);
    if ABSOLUTE_POS >= back.shape(0) * width {
        terminate!();
    }
    let row = ABSOLUTE_POS / width;
    let column = ABSOLUTE_POS % width;
    let of_target = f32::cast_from(w[targets[row] as usize * w.stride(0) + column]);
    let of_target = of_target * soft_cap_slope(figures[row * FIGURES + 3], cap, capped);
    let of_others = mean[row * mean.stride(0) + column] / sum_of_others(figures, row);
    back[ABSOLUTE_POS] = F::cast_from(rest(figures, row) * (of_target - of_others));
}

/// Brings products of rows of the chunks before, `sums[B, L, L]`, to the maxima that the last chunk left; a unit a value. `rows[B·L]` are
/// the head's rows.
#[cube(launch)]
pub(super) fn rescale_products(sums: &mut Matrix<f32>, figures: &Array<f32>, rows: &Array<u32>) {
    let side = sums.shape(2);
    if ABSOLUTE_POS >= sums.shape(0) * side * side {
        terminate!();
    }
    let row = ABSOLUTE_POS / side;
    let column = row / side * side + ABSOLUTE_POS % side;
    let factor = figures[rows[row] as usize * FIGURES + 4] * figures[rows[column] as usize * FIGURES + 4];
    if factor < 1.0f32 {
        sums[row / side * sums.stride(0) + row % side * sums.stride(1) + ABSOLUTE_POS % side] *= factor;
    }
}

/// What a row makes of a token that is not its target, from the token's logit, times the slope of the soft cap.
#[cube]
fn other(logit: f32, figures: &Array<f32>, row: usize, cap: f32, #[comptime] capped: bool) -> f32 {
    let z = soft_cap(logit, cap, capped);
    let share = rest(figures, row) / sum_of_others(figures, row);
    share * (z - figures[row * FIGURES]).exp() * soft_cap_slope(z, cap, capped)
}

/// `w_r·w_s·(e_r·e_s)` of every two backward rows of each set, `out[B, R, R]`, with `e_r = ((1 − p_r[y_r])·onehot − q_r)·slope`; a unit a value.
///
/// `sums[B, L, L]` are products of rows of q over the vocabulary, before they are brought to probabilities; `logits[B, L, L]` what each row makes
/// of each row's target; `rows[B·R]`, `places[B·R]` and `weights[B·R]` the head's row behind each backward row, its place among the L of its set,
/// and its weight.
#[cube(launch)]
pub(super) fn cotangent_products(
    sums: &Matrix<f32>,
    logits: &Matrix<f32>,
    targets: &Array<u32>,
    figures: &Array<f32>,
    rows: &Array<u32>,
    places: &Array<u32>,
    weights: &Array<f32>,
    out: &mut Matrix<f32>,
    cap: f32,
    #[comptime] capped: bool,
) {
    let many = out.shape(2);
    if ABSOLUTE_POS >= out.shape(0) * many * many {
        terminate!();
    }
    let row = ABSOLUTE_POS / many;
    let set = row / many;
    let column = set * many + ABSOLUTE_POS % many;
    let r = rows[row] as usize;
    let s = rows[column] as usize;
    let i = places[row] as usize;
    let j = places[column] as usize;
    let along = set * logits.stride(0) + i * logits.stride(1) + j;
    let across = set * logits.stride(0) + j * logits.stride(1) + i;
    let sum = sums[set * sums.stride(0) + i * sums.stride(1) + j];
    let rest_r = rest(figures, r) * soft_cap_slope(figures[r * FIGURES + 3], cap, capped);
    let rest_s = rest(figures, s) * soft_cap_slope(figures[s * FIGURES + 3], cap, capped);
    let mut of_targets = rest_r * rest_s;
    if targets[r] != targets[s] {
        let of_r = other(logits[along], figures, r, cap, capped);
        let of_s = other(logits[across], figures, s, cap, capped);
        of_targets = -(of_r * rest_s + of_s * rest_r);
    }
    let shares = rest(figures, r) / sum_of_others(figures, r) * (rest(figures, s) / sum_of_others(figures, s));
    out[ABSOLUTE_POS] = weights[row] * weights[column] * (of_targets + sum * shares);
}
