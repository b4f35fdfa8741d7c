//! The gated delta rule on a device, in f32: a unit carries a column of a head's state, or a row of it, through all rows, so that
//! no unit waits for another.
// what the macro makes of a kernel's arguments, indices on a device (32 bits there), and kernels read top to bottom
#![allow(
    clippy::trivially_copy_pass_by_ref,
    clippy::used_underscore_binding,
    clippy::cast_possible_truncation,
    clippy::float_cmp,
    clippy::too_many_lines
)]
use cubecl::prelude::Tensor as Matrix;
use cubecl::prelude::*;

/// A value of a matrix.
#[cube]
fn at(x: &Matrix<f32>, row: usize, column: usize) -> f32 {
    x[row * x.stride(0) + column]
}

/// Forward row of a segment's row.
#[cube]
fn row_of(t: usize, prefix: usize, prefix_len: usize, own: usize) -> usize {
    select(t < prefix_len, prefix + t, own + t - min(t, prefix_len))
}

/// o and e, a unit a column of a head's state; begins with a kept state and keeps the last where a task asks for it.
#[cube(launch)]
pub(super) fn carry_columns(
    q: &Matrix<f32>,
    k: &Matrix<f32>,
    v: &Matrix<f32>,
    decay: &Matrix<f32>,
    beta: &Matrix<f32>,
    tasks: &Array<u32>,
    states: &mut Array<f32>,
    out: &mut Matrix<f32>,
    errors: &mut Matrix<f32>,
    heads: u32,
    #[comptime] shared: usize,
    #[comptime] key_dim: usize,
    #[comptime] value_dim: usize,
) {
    let task = CUBE_POS_X as usize * 4;
    let head = CUBE_POS_Y as usize;
    let j = CUBE_POS_Z as usize * CUBE_DIM as usize + UNIT_POS as usize;
    if j >= value_dim {
        terminate!();
    }
    let first = tasks[task] as usize;
    let len = tasks[task + 1] as usize;
    let from = tasks[task + 2] as usize;
    let to = tasks[task + 3] as usize;
    let of_key = head / shared * key_dim;
    let column = head * value_dim + j;
    let mut s = Array::<f32>::new(key_dim);
    for i in 0..key_dim {
        s[i] = 0.0;
        if from > 0 {
            s[i] = states[(((from - 1) * heads as usize + head) * key_dim + i) * value_dim + j];
        }
    }
    for t in 0..len {
        let row = first + t;
        let kept = at(decay, row, head).exp();
        let mut by_key = 0.0f32;
        for i in 0..key_dim {
            s[i] *= kept;
            by_key += at(k, row, of_key + i) * s[i];
        }
        let error = at(v, row, column) - by_key;
        let u = at(beta, row, head) * error;
        let mut o = 0.0f32;
        for i in 0..key_dim {
            s[i] += at(k, row, of_key + i) * u;
            o += at(q, row, of_key + i) * s[i];
        }
        out[row * out.stride(0) + column] = o;
        errors[row * errors.stride(0) + column] = error;
    }
    if to > 0 {
        for i in 0..key_dim {
            states[(((to - 1) * heads as usize + head) * key_dim + i) * value_dim + j] = s[i];
        }
    }
}

/// du, a unit a column of a head's adjoint state.
#[cube(launch)]
pub(super) fn adjoint_columns(
    q: &Matrix<f32>,
    k: &Matrix<f32>,
    decay: &Matrix<f32>,
    beta: &Matrix<f32>,
    delta: &Matrix<f32>,
    tasks: &Array<u32>,
    du: &mut Matrix<f32>,
    #[comptime] shared: usize,
    #[comptime] key_dim: usize,
    #[comptime] value_dim: usize,
) {
    let task = CUBE_POS_X as usize * 5;
    let head = CUBE_POS_Y as usize;
    let j = CUBE_POS_Z as usize * CUBE_DIM as usize + UNIT_POS as usize;
    if j >= value_dim {
        terminate!();
    }
    let prefix = tasks[task] as usize;
    let prefix_len = tasks[task + 1] as usize;
    let own = tasks[task + 2] as usize;
    let first = tasks[task + 3] as usize;
    let len = tasks[task + 4] as usize;
    let of_key = head / shared * key_dim;
    let column = head * value_dim + j;
    let mut g = Array::<f32>::new(key_dim);
    for i in 0..key_dim {
        g[i] = 0.0;
    }
    // of the row above: e^g, and what it takes from the adjoint along its key
    let mut kept = 0.0f32;
    let mut taken = 0.0f32;
    let mut above = 0usize;
    for step in 0..len {
        let t = len - 1 - step;
        let row = row_of(t, prefix, prefix_len, own);
        if step == 0 {
            above = row;
        }
        let d = at(delta, first + t, column);
        let mut sum = 0.0f32;
        for i in 0..key_dim {
            g[i] = kept * (g[i] - taken * at(k, above, of_key + i)) + at(q, row, of_key + i) * d;
            sum += at(k, row, of_key + i) * g[i];
        }
        du[(first + t) * du.stride(0) + column] = sum;
        kept = at(decay, row, head).exp();
        taken = at(beta, row, head) * sum;
        above = row;
    }
}

/// dq and dk, a unit a row of the states and adjoint states of the value heads that share a key head.
#[cube(launch)]
pub(super) fn carry_rows(
    q: &Matrix<f32>,
    k: &Matrix<f32>,
    decay: &Matrix<f32>,
    beta: &Matrix<f32>,
    errors: &Matrix<f32>,
    delta: &Matrix<f32>,
    du: &Matrix<f32>,
    tasks: &Array<u32>,
    dq: &mut Matrix<f32>,
    dk: &mut Matrix<f32>,
    #[comptime] shared: usize,
    #[comptime] key_dim: usize,
    #[comptime] value_dim: usize,
) {
    let task = CUBE_POS_X as usize * 5;
    let key_head = CUBE_POS_Y as usize;
    let i = CUBE_POS_Z as usize * CUBE_DIM as usize + UNIT_POS as usize;
    if i >= key_dim {
        terminate!();
    }
    let prefix = tasks[task] as usize;
    let prefix_len = tasks[task + 1] as usize;
    let own = tasks[task + 2] as usize;
    let first = tasks[task + 3] as usize;
    let len = tasks[task + 4] as usize;
    let column = key_head * key_dim + i;
    let mut s = Array::<f32>::new(value_dim);
    for of_head in 0..shared {
        let head = key_head * shared + of_head;
        let values = head * value_dim;
        for j in 0..value_dim {
            s[j] = 0.0;
        }
        // of the row below: what it wrote along its key
        let mut written = 0.0f32;
        let mut below = 0usize;
        for t in 0..len {
            let row = row_of(t, prefix, prefix_len, own);
            if t == 0 {
                below = row;
            }
            let back = first + t;
            let kept = at(decay, row, head).exp();
            let share = at(beta, row, head);
            let mut by_delta = 0.0f32;
            let mut by_du = 0.0f32;
            let mut read = 0.0f32;
            for j in 0..value_dim {
                s[j] = kept * (s[j] + written * at(errors, below, values + j));
                let d = at(delta, back, values + j);
                by_delta += s[j] * d;
                by_du += s[j] * at(du, back, values + j);
                read += at(errors, row, values + j) * d;
            }
            let key = at(k, row, column);
            let mut sum_q = by_delta + key * share * read;
            let mut sum_k = -share * by_du;
            if of_head > 0 {
                sum_q += dq[back * dq.stride(0) + column];
                sum_k += dk[back * dk.stride(0) + column];
            }
            dq[back * dq.stride(0) + column] = sum_q;
            dk[back * dk.stride(0) + column] = sum_k;
            written = share * key;
            below = row;
        }
        for j in 0..value_dim {
            s[j] = 0.0;
        }
        // of the row above: e^g, and what it takes from the adjoint along its du
        let mut kept = 0.0f32;
        let mut taken = 0.0f32;
        let mut above = first;
        for step in 0..len {
            let t = len - 1 - step;
            let row = row_of(t, prefix, prefix_len, own);
            let back = first + t;
            let query = at(q, row, column);
            let mut by_error = 0.0f32;
            for j in 0..value_dim {
                s[j] = kept * (s[j] - taken * at(du, above, values + j)) + query * at(delta, back, values + j);
                by_error += s[j] * at(errors, row, values + j);
            }
            let share = at(beta, row, head);
            dk[back * dk.stride(0) + column] += share * by_error;
            kept = at(decay, row, head).exp();
            taken = share * at(k, row, column);
            above = back;
        }
    }
}

/// dv, dβ, and `δ·o − dv·v`, a unit a backward row and head.
#[cube(launch)]
pub(super) fn gate_terms(
    v: &Matrix<f32>,
    beta: &Matrix<f32>,
    out: &Matrix<f32>,
    errors: &Matrix<f32>,
    delta: &Matrix<f32>,
    du: &Matrix<f32>,
    index: &Array<u32>,
    dv: &mut Matrix<f32>,
    dbeta: &mut Matrix<f32>,
    terms: &mut Matrix<f32>,
    #[comptime] value_dim: usize,
) {
    let heads = terms.shape(1);
    if ABSOLUTE_POS >= terms.shape(0) * heads {
        terminate!();
    }
    let back = ABSOLUTE_POS / heads;
    let head = ABSOLUTE_POS % heads;
    let row = index[back] as usize;
    let share = at(beta, row, head);
    let mut of_beta = 0.0f32;
    let mut term = 0.0f32;
    for j in 0..value_dim {
        let column = head * value_dim + j;
        let d = at(du, back, column);
        of_beta += d * at(errors, row, column);
        term += at(delta, back, column) * at(out, row, column) - share * d * at(v, row, column);
        dv[back * dv.stride(0) + column] = share * d;
    }
    dbeta[ABSOLUTE_POS] = of_beta;
    terms[ABSOLUTE_POS] = term;
}

/// Sums of the terms from each row of a segment to its last, in place; a unit a segment and head.
#[cube(launch)]
pub(super) fn sums_behind(tasks: &Array<u32>, terms: &mut Matrix<f32>, segments: u32) {
    let heads = terms.shape(1);
    if ABSOLUTE_POS >= segments as usize * heads {
        terminate!();
    }
    let task = ABSOLUTE_POS / heads * 5;
    let head = ABSOLUTE_POS % heads;
    let first = tasks[task + 3] as usize;
    let len = tasks[task + 4] as usize;
    let mut sum = 0.0f32;
    for step in 0..len {
        let place = (first + len - 1 - step) * heads + head;
        sum += terms[place];
        terms[place] = sum;
    }
}
