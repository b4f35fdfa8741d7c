//! The gated delta rule on the CPU: one task a trunk (or cotangent), head, and 32 columns of its state, which fit the nearest cache.
use super::{DeltaInputs, DeltaRule, DeltaSpec, trunks};
use crate::host::real::{Real, dims, dot, matrix, unwritten, values, vectorised, with_real};
use crate::product::cpu::Target;
use crate::{Flex, Segment, Span, tally};
use burn_flex::FlexTensor;
use rayon::prelude::*;
use std::ops::Range;

/// Columns of a state that are carried together.
const WIDTH: usize = 32;

/// A row of some columns of a state, zero beyond the head.
type Columns<E> = [E; WIDTH];

/// Σ a·b.
#[inline(always)]
fn inner<E: Real>(a: &Columns<E>, b: &Columns<E>) -> E {
    let mut sums = [E::of(0.0); 8];
    for part in 0..WIDTH / 8 {
        for lane in 0..8 {
            sums[lane] += a[part * 8 + lane] * b[part * 8 + lane];
        }
    }
    (sums[0] + sums[4]) + (sums[1] + sums[5]) + ((sums[2] + sums[6]) + (sums[3] + sums[7]))
}

/// What the tasks read.
#[derive(Clone, Copy)]
struct Rows<'a, E> {
    q: &'a [E],
    k: &'a [E],
    v: &'a [E],
    decay: &'a [E],
    beta: &'a [E],
    spec: DeltaSpec,
}

impl<'a, E: Real> Rows<'a, E> {
    fn of(inputs: &DeltaInputs<'a, Flex>, spec: DeltaSpec) -> Self {
        let [q, k, v, decay, beta] = [inputs.q, inputs.k, inputs.v, inputs.decay, inputs.beta].map(values::<E>);
        Self { q, k, v, decay, beta, spec }
    }

    /// The part of a row of queries or keys that a value head reads.
    fn keys(&self, of: &'a [E], row: usize, key_head: usize) -> &'a [E] {
        let d = self.spec.key_dim;
        &of[row * self.spec.key_heads * d + key_head * d..][..d]
    }

    /// e^g and β of a row.
    #[inline(always)]
    fn gates(&self, row: usize, head: usize) -> (E, E) {
        let at = row * self.spec.value_heads + head;
        (self.decay[at].exp_fast(), self.beta[at])
    }

    /// Some columns of a row of values, or of something of their shape.
    #[inline(always)]
    fn columns(&self, of: &[E], row: usize, head: usize, block: usize) -> Columns<E> {
        let range = self.block(head, block);
        let mut out = [E::of(0.0); WIDTH];
        out[..range.len()].copy_from_slice(&of[row * self.spec.value_heads * self.spec.value_dim..][range]);
        out
    }

    /// Where those columns are in a row.
    fn block(&self, head: usize, block: usize) -> Range<usize> {
        let (first, width) = (block * WIDTH, self.spec.value_dim);
        head * width + first..head * width + (first + WIDTH).min(width)
    }

    /// Writes some columns of a row.
    fn write(&self, target: Target<E>, row: usize, head: usize, block: usize, columns: &Columns<E>) {
        let range = self.block(head, block);
        target.from(row, range.start).write(0, &columns[..range.len()]);
    }

    fn blocks(&self) -> usize {
        self.spec.value_dim.div_ceil(WIDTH)
    }
}

/// Some columns of a state before its last write, `S = factor·rows + key·uᵀ`: the next read makes it, so that a row is one pass.
#[derive(Clone)]
struct State<'a, E> {
    rows: Vec<Columns<E>>,
    factor: E,
    key: &'a [E],
    u: Columns<E>,
}

impl<'a, E: Real> State<'a, E> {
    fn new(key: &'a [E]) -> Self {
        let zero = [E::of(0.0); WIDTH];
        Self { rows: vec![zero; key.len()], factor: E::of(1.0), key, u: zero }
    }

    /// `Sᵀk` and `Sᵀq`.
    #[inline(always)]
    fn read(&mut self, k: &[E], q: &[E]) -> [Columns<E>; 2] {
        let (factor, u) = (self.factor, self.u);
        let (mut by_key, mut by_query) = ([E::of(0.0); WIDTH], [E::of(0.0); WIDTH]);
        for (row, ((&last, &k), &q)) in self.rows.iter_mut().zip(self.key.iter().zip(k).zip(q)) {
            for j in 0..WIDTH {
                let s = factor * row[j] + last * u[j];
                row[j] = s;
                by_key[j] += k * s;
                by_query[j] += q * s;
            }
        }
        [by_key, by_query]
    }

    /// Carries the state over some rows, and hands on what each read and was off by.
    fn carry(
        &mut self,
        of: Rows<'a, E>,
        (head, block): (usize, usize),
        rows: Range<usize>,
        mut out: impl FnMut(usize, &Columns<E>, &Columns<E>),
    ) {
        let key_head = head / of.spec.shared();
        for row in rows {
            let (k, q) = (of.keys(of.k, row, key_head), of.keys(of.q, row, key_head));
            let ((decay, beta), v) = (of.gates(row, head), of.columns(of.v, row, head, block));
            let (mut o, mut e) = ([E::of(0.0); WIDTH], [E::of(0.0); WIDTH]);
            vectorised!({
                let [by_key, by_query] = self.read(k, q);
                let overlap = dot(q, k);
                for j in 0..WIDTH {
                    e[j] = v[j] - decay * by_key[j];
                    self.u[j] = beta * e[j];
                    o[j] = decay * by_query[j] + overlap * self.u[j];
                }
            });
            (self.factor, self.key) = (decay, k);
            out(row, &o, &e);
        }
    }
}

fn forward<E: Real>(of: Rows<'_, E>, rows: usize, spans: &[Span]) -> [Vec<E>; 2] {
    let width = of.spec.value_heads * of.spec.value_dim;
    let (mut outputs, mut errors) = (vec![E::of(0.0); rows * width], vec![E::of(0.0); rows * width]);
    let targets = (Target::rows(&mut outputs, width), Target::rows(&mut errors, width));
    let places: Vec<(usize, usize)> =
        (0..of.spec.value_heads).flat_map(|head| (0..of.blocks()).map(move |block| (head, block))).collect();
    let trunks = trunks(spans);
    let tasks = trunks.iter().flat_map(|trunk| places.iter().map(move |place| (trunk, *place))).collect::<Vec<_>>();
    tasks.into_par_iter().for_each(|((trunk, suffixes), place)| {
        if trunk.own.is_empty() {
            return;
        }
        let write = |row: usize, o: &Columns<E>, e: &Columns<E>| {
            of.write(targets.0, row, place.0, place.1, o);
            of.write(targets.1, row, place.0, place.1, e);
        };
        let mut state = State::new(of.keys(of.k, trunk.own.start, place.0 / of.spec.shared()));
        state.carry(of, place, trunk.own.clone(), &write);
        for suffix in suffixes {
            state.clone().carry(of, place, suffix.own.clone(), &write);
        }
    });
    [outputs, errors]
}

/// What a cotangent's rows of one key head are multiplied with.
struct Segments<'a, E> {
    of: Rows<'a, E>,
    outputs: &'a [E],
    errors: &'a [E],
    delta: &'a [E],
    /// Forward row of each row.
    rows: Vec<usize>,
    /// First backward row.
    first: usize,
    key_head: usize,
    /// dq and dk, `[rows, key_dim]` each.
    dq: Vec<E>,
    dk: Vec<E>,
}

impl<E: Real> Segments<'_, E> {
    /// Adds some columns of a value head to dq and dk, writes those of dv, and adds to dβ and to `δ·o − dv·v` of each row.
    fn columns(&mut self, head: usize, block: usize, dv: Target<E>, (dbeta, dg): (&mut [E], &mut [E])) {
        let (of, n) = (self.of, self.rows.len());
        let backward = |t: usize| of.columns(self.delta, self.first + t, head, block);
        let errors = |t: usize| of.columns(self.errors, self.rows[t], head, block);
        let gates: Vec<(E, E)> = self.rows.iter().map(|&row| of.gates(row, head)).collect();
        let keys = |t: usize| of.keys(of.k, self.rows[t], self.key_head);
        let queries = |t: usize| of.keys(of.q, self.rows[t], self.key_head);
        let d = of.spec.key_dim;
        let zero = [E::of(0.0); WIDTH];
        // the adjoint state, before what the row above takes from it
        let mut adjoint = vec![zero; d];
        let mut all_du = vec![zero; n];
        for t in (0..n).rev() {
            let (delta, mut u, q, k) = (backward(t), errors(t), queries(t), keys(t));
            let above = (t + 1 < n).then(|| (gates[t + 1], keys(t + 1), all_du[t + 1]));
            let ((decay, beta_above), k_above, du_above) = above.unwrap_or(((E::of(0.0), E::of(0.0)), k, zero));
            let dk = &mut self.dk[t * d..][..d];
            let mut du = zero;
            vectorised!({
                u.iter_mut().for_each(|u| *u = *u * gates[t].1);
                for i in 0..d {
                    let (row, written, q, k) = (&mut adjoint[i], beta_above * k_above[i], q[i], k[i]);
                    for j in 0..WIDTH {
                        let g = decay * (row[j] - written * du_above[j]) + q * delta[j];
                        row[j] = g;
                        du[j] += k * g;
                    }
                    dk[i] += inner(row, &u);
                }
            });
            all_du[t] = du;
        }
        let mut state = adjoint;
        state.fill(zero);
        let (mut u, mut key) = (zero, keys(0));
        for t in 0..n {
            let (delta, e, k, (decay, beta)) = (backward(t), errors(t), keys(t), gates[t]);
            let (o, v) =
                (of.columns(self.outputs, self.rows[t], head, block), of.columns(of.v, self.rows[t], head, block));
            let (dq, dk, du) = (&mut self.dq[t * d..][..d], &mut self.dk[t * d..][..d], all_du[t]);
            let mut of_values = du;
            vectorised!({
                for i in 0..d {
                    let (row, last) = (&mut state[i], key[i]);
                    for j in 0..WIDTH {
                        row[j] = decay * (row[j] + last * u[j]);
                    }
                    dq[i] += inner(row, &delta);
                    dk[i] = dk[i] - beta * inner(row, &du);
                }
                for j in 0..WIDTH {
                    u[j] = beta * e[j];
                    of_values[j] = beta * du[j];
                }
                let read = inner(&u, &delta);
                for i in 0..d {
                    dq[i] += k[i] * read;
                }
                dbeta[t] += inner(&du, &e);
                dg[t] += inner(&delta, &o) - inner(&of_values, &v);
            });
            of.write(dv, self.first + t, head, block, &of_values);
            key = k;
        }
    }
}

fn vjp<E: Real>(of: Rows<'_, E>, [outputs, errors, delta]: [&[E]; 3], segments: &[Segment]) -> [Vec<E>; 5] {
    let DeltaSpec { key_heads, value_heads, key_dim, value_dim } = of.spec;
    let rows: usize = segments.iter().map(Segment::len).sum();
    let widths = [key_heads * key_dim, key_heads * key_dim, value_heads * value_dim, value_heads, value_heads];
    let mut results = widths.map(|width| unwritten::<E>(rows * width));
    let [dq, dk, dv, dg, dbeta] = &mut results;
    let [dq, dk, dv, dg, dbeta] =
        [(dq, 0), (dk, 1), (dv, 2), (dg, 3), (dbeta, 4)].map(|(out, i)| Target::rows(out, widths[i]));
    let firsts = segments.iter().scan(0, |next, segment| {
        *next += segment.len();
        Some(*next - segment.len())
    });
    let tasks: Vec<(&Segment, usize, usize)> = segments
        .iter()
        .zip(firsts)
        .filter(|(segment, _)| !segment.is_empty())
        .flat_map(|(segment, first)| (0..key_heads).map(move |key_head| (segment, first, key_head)))
        .collect();
    tasks.into_par_iter().for_each(|(segment, first, key_head)| {
        let rows: Vec<usize> = segment.prefix.clone().chain(segment.own.clone()).collect();
        let n = rows.len();
        let zeros = || vec![E::of(0.0); n * key_dim];
        let mut sums = Segments { of, outputs, errors, delta, rows, first, key_head, dq: zeros(), dk: zeros() };
        let shared = of.spec.shared();
        for head in key_head * shared..(key_head + 1) * shared {
            let (mut of_beta, mut of_decay) = (vec![E::of(0.0); n], vec![E::of(0.0); n]);
            (0..of.blocks()).for_each(|block| sums.columns(head, block, dv, (&mut of_beta, &mut of_decay)));
            let mut after = E::of(0.0);
            for t in (0..n).rev() {
                after += of_decay[t];
                dg.from(first + t, head).write(0, &[after]);
                dbeta.from(first + t, head).write(0, &[of_beta[t]]);
            }
        }
        for (t, (q, k)) in sums.dq.chunks_exact(key_dim).zip(sums.dk.chunks_exact(key_dim)).enumerate() {
            dq.from(first + t, key_head * key_dim).write(0, q);
            dk.from(first + t, key_head * key_dim).write(0, k);
        }
    });
    results
}

impl DeltaRule for Flex {
    fn delta_rule(inputs: &DeltaInputs<'_, Self>, spans: &[Span], spec: DeltaSpec) -> (FlexTensor, FlexTensor) {
        tally::attention(spec.cost(spans));
        with_real!(inputs.q, E => {
            let [rows, width] = dims(inputs.v);
            let [outputs, errors] = forward(Rows::<E>::of(inputs, spec), rows, spans);
            (matrix(outputs, [rows, width]), matrix(errors, [rows, width]))
        })
    }

    fn delta_rule_vjp(
        inputs: &DeltaInputs<'_, Self>,
        (outputs, errors): (&FlexTensor, &FlexTensor),
        delta: &FlexTensor,
        segments: &[Segment],
        spec: DeltaSpec,
    ) -> [FlexTensor; 5] {
        tally::attention(spec.cost_vjp(segments));
        with_real!(inputs.q, E => {
            let rows = dims(delta)[0];
            let forward = [outputs, errors, delta].map(values::<E>);
            vjp(Rows::<E>::of(inputs, spec), forward, segments).map(|values| {
                let width = values.len() / rows.max(1);
                matrix(values, [rows, width])
            })
        })
    }
}
