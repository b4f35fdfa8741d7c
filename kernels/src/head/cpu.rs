//! The log-probability head: logits, log-sum-exp, gradient and e·eᵀ in one walk over the vocabulary.
//!
//! The vocabulary is walked in chunks like the keys of a flash attention: for every row a running maximum, the sum of
//! exponentials and Σ exp(z)·w are kept and rescaled when the maximum grows; p·pᵀ of a set of rows is rescaled the
//! same way on both sides. Beside the results, memory is `rows × CHUNK`.
use super::{Figures, Head, Others, head_cost, head_gram_cost};
use crate::host::real::{Real, dot_wide, highest, matrix, unwritten, values, vectorised, with_real};
use crate::host::stored::Stored;
use crate::product::cpu::{Target, View, product_parallel};
use crate::product::packed::{Packed, Part};
use crate::{Flex, FloatTensor, Gram, HeadCotangents, HeadOutput, SoftCap, Weight, tally};
use burn_flex::FlexTensor;
use rayon::prelude::*;
use std::ops::Range;

/// Tokens a chunk.
const CHUNK: usize = 2048;

/// A target's logit while its row is walked: its exponential is zero, beside any others.
const LEFT_OUT: f64 = -1e30;

/// A row's running figures of what is not its target, relative to the highest logit so far.
#[derive(Clone, Copy)]
struct Running<E> {
    top: E,
    /// Σ exp(z − top).
    sum: f64,
    /// Σ exp(z − top)·(z − top).
    weighted: f64,
    /// Σ exp(z − top)².
    squares: f64,
    /// What the last chunk's rise of the maximum multiplied everything before it with.
    rescale: E,
    /// Tokens above the target.
    above: u32,
}

impl<E: Real> Running<E> {
    /// What all chunks come to.
    fn others(&self) -> Others {
        let Self { sum, weighted, squares, above, .. } = *self;
        Others { top: self.top.wide(), sum, weighted, squares, above }
    }

    /// Counts the logits of a chunk that are above the target's.
    #[inline(always)]
    fn count(&mut self, z: &[E], target: E) {
        self.above += z.iter().fold(0, |sum, &z| sum + u32::from(z > target));
    }

    /// Takes a chunk of logits in, and turns them into exponentials.
    #[inline(always)]
    fn take(&mut self, z: &mut [E]) {
        const LANES: usize = 16;
        let high = highest(z, self.top);
        let [mut sums, mut weighted, mut squares] = [[E::of(0.0); LANES]; 3];
        let (body, tail) = z.as_chunks_mut::<LANES>();
        for part in body {
            for i in 0..LANES {
                let d = part[i] - high;
                let e = d.exp_fast();
                part[i] = e;
                sums[i] += e;
                weighted[i] += e * d;
                squares[i] += e * e;
            }
        }
        for (i, z) in tail.iter_mut().enumerate() {
            let d = *z - high;
            *z = d.exp_fast();
            sums[i] += *z;
            weighted[i] += *z * d;
            squares[i] += *z * *z;
        }
        let total = |lanes: [E; LANES]| lanes.iter().map(|x| x.wide()).sum::<f64>();
        // before the first chunk there is no maximum to fall behind
        let (fall, rescale) =
            if self.sum > 0.0 { ((self.top - high).wide(), (self.top - high).exp_fast()) } else { (0.0, E::of(1.0)) };
        self.rescale = rescale;
        self.weighted = (self.weighted + self.sum * fall) * rescale.wide() + total(weighted);
        self.sum = self.sum * rescale.wide() + total(sums);
        self.squares = self.squares * rescale.wide() * rescale.wide() + total(squares);
        self.top = high;
    }
}

/// Caps rows of logits softly where there is a cap, and leaves its slope at each.
fn cap_rows<E: Real>(logits: &mut [E], slopes: &mut [E], columns: usize, cap: Option<SoftCap>) {
    let Some(SoftCap(cap)) = cap else { return };
    let (cap, inverse, one) = (E::of(cap), E::of(1.0 / cap), E::of(1.0));
    logits.par_chunks_mut(columns).zip(slopes.par_chunks_mut(columns)).for_each(|(z, slopes)| {
        vectorised!({
            for (z, slope) in z.iter_mut().zip(slopes) {
                let t = (*z * inverse).tanh_fast();
                *z = t * cap;
                *slope = one - t * t;
            }
        });
    });
}

/// Values times slopes, where there are any.
fn multiply<E: Real>(values: &mut [E], slopes: &[E]) {
    values.par_chunks_mut(CHUNK).zip(slopes.par_chunks(CHUNK)).for_each(|(values, slopes)| {
        vectorised!(values.iter_mut().zip(slopes).for_each(|(value, &slope)| *value = *value * slope));
    });
}

/// Most rows of a panel of p·pᵀ.
const PANEL: usize = 48;

/// Some rows of a set's p·pᵀ, up to the diagonal.
struct Panel<'a, E> {
    /// First row of the set, and its rows.
    set: (usize, usize),
    /// Their transpose.
    packed: &'a Packed<E>,
    /// First row of the panel, from the set's first on.
    first: usize,
    sums: &'a mut [f64],
    scratch: &'a mut [E],
}

/// The panels of all sets, of like height within each.
fn panels<'a, E>(
    sets: &[Range<usize>],
    packed: &'a [Packed<E>],
    sums: &'a mut [Vec<f64>],
    scratch: &'a mut [Vec<E>],
) -> Vec<Panel<'a, E>> {
    let of_sets = sets.iter().zip(packed).zip(sums.iter_mut().zip(scratch)).filter(|((set, _), _)| !set.is_empty());
    let panels = of_sets.flat_map(|((set, packed), (sums, scratch))| {
        let rows = set.len();
        let height = PANEL.min(rows);
        let parts = sums.chunks_mut(height * rows).zip(scratch.chunks_mut(height * rows)).enumerate();
        parts.map(move |(at, (sums, scratch))| Panel {
            set: (set.start, rows),
            packed,
            first: at * height,
            sums,
            scratch,
        })
    });
    panels.collect()
}

impl<E: Real> Panel<'_, E> {
    /// Adds the products of a chunk's exponentials `p` and their transpose, after what came before is brought to their maxima.
    fn add(self, p: View<E>, running: &[Running<E>]) {
        let Self { set: (start, rows), packed, first, sums, scratch } = self;
        let height = sums.len() / rows;
        let width = first + height;
        let part = Part { columns: 0..width, diagonal: Some(first), ..packed.whole() };
        packed.product(Target::rows(scratch, width), height, p.from(start + first, 0), part);
        let running = &running[start..start + rows];
        for (i, (sums, here)) in sums.chunks_exact_mut(rows).zip(scratch.chunks_exact(width)).enumerate() {
            let of_row = running[first + i].rescale.wide();
            vectorised!({
                for ((sum, here), of_column) in sums.iter_mut().zip(here).zip(running) {
                    *sum = *sum * (of_row * of_column.rescale.wide()) + here.wide();
                }
            });
        }
    }
}

/// Grams of the output matrix for each set of cotangents, from `products`, the lower half of q·qᵀ over the vocabulary before it is brought to
/// probabilities; q is p without the row's target.
fn grams<E: Real>(
    rows: &Rows<'_, E>,
    own: &[(f64, f64)],
    (running, figures): (&[Running<E>], &[Figures]),
    products: &[Vec<f64>],
    cotangents: &HeadCotangents<'_>,
) -> Vec<Gram> {
    let (sets, targets) = (cotangents.set_rows, rows.targets);
    let of_set = |b: usize| {
        let (of, width) = (&sets[b], sets[b].len());
        // what each row makes of each target, and the products of the rows
        let first = of.start * rows.d;
        let [of_rows, of_targets] = [rows.y, &rows.of_targets].map(|of| View::rows(&of[first..], rows.d));
        let [mut logits, mut inputs] = [0, 1].map(|_| unwritten(width * width));
        for (out, right) in [(&mut logits, of_targets), (&mut inputs, of_rows)] {
            let shape = [width, rows.d, width];
            product_parallel(Target::rows(out, width), shape, of_rows, right.transposed(), 1.0, false);
        }
        // (h_r·h_s)(e_r·e_s), e_r = (1 − p_r[y_r])·onehot − q_r, each e times its slope
        let rest: Vec<f64> = of.clone().map(|r| figures[r].rest * own[r].1).collect();
        let terms: Vec<f64> = (0..width * width)
            .into_par_iter()
            .map(|at| {
                let (r, s) = (of.start + at / width, of.start + at % width);
                if s > r {
                    return 0.0;
                }
                let q = |i: usize, j: usize| {
                    let (z, slope) = rows.capped(logits[(i - of.start) * width + j - of.start].wide());
                    (z - figures[i].log_normaliser).exp() * slope
                };
                let [rest_r, rest_s] = [r, s].map(|row| rest[row - of.start]);
                let share = |row: usize| figures[row].rest / running[row].sum;
                let own = match targets[r] == targets[s] {
                    true => rest_r * rest_s,
                    false => -(q(r, s) * rest_s + q(s, r) * rest_r),
                };
                (own + products[b][at] * (share(r) * share(s))) * inputs[at].wide()
            })
            .collect();
        let term = |r: usize, s: usize| terms[(r.max(s) - of.start) * width + r.min(s) - of.start];
        let set = cotangents.sets[b].clone();
        let products = set.clone().flat_map(|i| set.clone().map(move |j| (i, j))).map(|(i, j)| {
            let (i, j) = (&cotangents.weights[i], &cotangents.weights[j]);
            i.iter().map(|&(r, a)| a * j.iter().map(|&(s, c)| c * term(r, s)).sum::<f64>()).sum::<f64>()
        });
        products.collect()
    };
    (0..sets.len()).map(of_set).collect()
}

/// The head's rows and what they predict.
struct Rows<'a, E> {
    y: &'a [E],
    targets: &'a [u32],
    /// The target's row of the output matrix, for each row.
    of_targets: Vec<E>,
    d: usize,
    cap: Option<SoftCap>,
}

impl<E: Real> Rows<'_, E> {
    fn target(&self, r: usize) -> &[E] {
        &self.of_targets[r * self.d..][..self.d]
    }

    /// A row's own target: its capped logit, and the slope of the cap there.
    fn own(&self, r: usize) -> (f64, f64) {
        self.capped(dot_wide(&self.y[r * self.d..][..self.d], self.target(r)))
    }

    /// A logit under its cap, and the slope of the cap there.
    fn capped(&self, z: f64) -> (f64, f64) {
        self.cap.map_or((z, 1.0), |cap| (cap.capped(z), cap.slope(cap.capped(z))))
    }
}

/// See [`Head::head`]: figures of each row, ∂ log p(target) / ∂ hidden row, and the Grams of the output matrix.
fn walk<E: Real>(
    y: &[E],
    w: &Stored<E>,
    [vocabulary, d]: [usize; 2],
    targets: &[u32],
    cap: Option<SoftCap>,
    cotangents: Option<&HeadCotangents<'_>>,
) -> (Vec<Figures>, Vec<E>, Option<Vec<Gram>>) {
    let n = targets.len();
    let sets = cotangents.map_or(&[][..], |c| c.set_rows);
    let start =
        Running { top: E::neg_infinity(), sum: 0.0, weighted: 0.0, squares: 0.0, rescale: E::of(1.0), above: 0 };
    let mut running = vec![start; n];
    let mut mean = vec![E::of(0.0); n * d];
    let mut products: Vec<Vec<f64>> = sets.iter().map(|b| vec![0.0; b.len() * b.len()]).collect();
    let mut scratch: Vec<Vec<E>> = sets.iter().map(|b| vec![E::of(0.0); b.len() * b.len()]).collect();
    let mut logits = vec![E::of(0.0); n * CHUNK.min(vocabulary)];
    // slopes of the soft cap, where there is one
    let mut slopes = vec![E::of(0.0); if cap.is_some() { logits.len() } else { 0 }];
    let rows = Rows { y, targets, of_targets: w.gather(targets, d), d, cap };
    let own: Vec<(f64, f64)> = (0..n).into_par_iter().map(|r| rows.own(r)).collect();
    for start in (0..vocabulary).step_by(CHUNK) {
        let columns = CHUNK.min(vocabulary - start);
        let logits = &mut logits[..n * columns];
        let chunk = w.rows(start..start + columns, d);
        let chunk = View::rows(&chunk, d);
        let shape = [n, d, columns];
        product_parallel(Target::rows(logits, columns), shape, View::rows(y, d), chunk.transposed(), 1.0, false);
        cap_rows(logits, &mut slopes, columns, cap);
        logits.par_chunks_mut(columns).zip(&mut running).zip(mean.par_chunks_mut(d)).enumerate().for_each(
            |(row, ((z, running), mean))| {
                let here = (targets[row] as usize).checked_sub(start).filter(|at| *at < columns);
                vectorised!({
                    if let Some(here) = here {
                        z[here] = E::of(LEFT_OUT);
                    }
                    running.count(z, E::of(own[row].0));
                    running.take(z);
                    if running.rescale < E::of(1.0) {
                        for m in mean {
                            *m = *m * running.rescale;
                        }
                    }
                });
            },
        );
        // from here on q·slope: what a logit before the cap does
        multiply(logits, &slopes);
        let p = View::rows(logits, columns);
        product_parallel(Target::rows(&mut mean, d), [n, columns, d], p, chunk, 1.0, true);
        if !sets.is_empty() {
            let of_set = |set: &Range<usize>| Packed::of(p.from(set.start, 0).transposed(), [columns, set.len()]);
            let packed: Vec<Packed<E>> = sets.iter().map(of_set).collect();
            let panels = panels(sets, &packed, &mut products, &mut scratch);
            panels.into_par_iter().rev().with_max_len(1).for_each(|panel| panel.add(p, &running));
        }
    }
    let mut back = mean;
    let figures: Vec<Figures> = running.iter().zip(&own).map(|(running, own)| running.others().with(own.0)).collect();
    back.par_chunks_mut(d).enumerate().for_each(|(r, back)| {
        let (rest, target) = (figures[r].rest, rows.target(r));
        let (share, slope) = (E::of(rest / running[r].sum), E::of(rest * own[r].1));
        for i in 0..d {
            back[i] = target[i] * slope - back[i] * share;
        }
    });
    let gram = cotangents.map(|cotangents| grams(&rows, &own, (&running, &figures), &products, cotangents));
    (figures, back, gram)
}

impl Head for Flex {
    fn head(
        y: &FlexTensor,
        w: &Weight<'_, Self>,
        targets: &[u32],
        cap: Option<SoftCap>,
        cotangents: Option<&HeadCotangents<'_>>,
    ) -> HeadOutput<FloatTensor<Self>, Vec<Gram>> {
        let of_w = w.table();
        let [vocabulary, d] = of_w;
        tally::head(head_cost(targets.len(), d, vocabulary, y.dtype()));
        cotangents.iter().for_each(|c| tally::head(head_gram_cost(c.set_rows, vocabulary, y.dtype())));
        with_real!(y, E => {
            let (figures, back, gram) =
                walk(values::<E>(y), &Stored::of_weight(w), of_w, targets, cap, cotangents);
            HeadOutput::of(&figures, matrix(back, [targets.len(), d]), gram)
        })
    }
}
