//! The log-probability head: logits, log-sum-exp, gradient and e·eᵀ in one walk over the vocabulary.
//!
//! The vocabulary is walked in chunks like the keys of a flash attention: for every row a running maximum, the sum of
//! exponentials and Σ exp(z)·w are kept and rescaled when the maximum grows; p·pᵀ of a set of rows is rescaled the
//! same way on both sides. Beside the results, memory is `rows × CHUNK`.
use super::{Figures, Head, Others, head_cost, head_gram_cost};
use crate::host::real::{Real, dot_wide, highest, matrix, unwritten, values, vectorised, with_real};
use crate::host::stored::Stored;
use crate::layout::stretch;
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

/// p·pᵀ of the rows that a set of cotangents weights, chunk by chunk.
struct OfSet<E> {
    /// Those rows.
    rows: Vec<u32>,
    /// `[L, L]`, up to the diagonal.
    sums: Vec<f64>,
    scratch: Vec<E>,
    /// The rows' exponentials of the chunk, where they do not lie side by side.
    copy: Vec<E>,
}

/// Some rows of it, up to the diagonal.
struct Panel<'a, E> {
    /// The set's rows, and their transpose.
    p: (View<'a, E>, &'a Packed<E>),
    /// What the last chunk's rise of each row's maximum multiplied everything before it with.
    rescale: &'a [f64],
    /// First row of the panel, from the set's first on.
    first: usize,
    sums: &'a mut [f64],
    scratch: &'a mut [E],
}

impl<E: Real> OfSet<E> {
    fn new(rows: Vec<u32>) -> Self {
        let size = rows.len() * rows.len();
        Self { rows, sums: vec![0.0; size], scratch: vec![E::of(0.0); size], copy: Vec::new() }
    }

    /// Copies the rows of a chunk where they do not lie side by side.
    fn take(&mut self, p: &[E], columns: usize) {
        self.copy.clear();
        if stretch(&self.rows).is_none() {
            let row = |&row: &u32| &p[row as usize * columns..][..columns];
            self.rows.iter().for_each(|r| self.copy.extend_from_slice(row(r)));
        }
    }

    /// Panels of like height.
    fn panels<'a>(
        &'a mut self,
        p: View<'a, E>,
        columns: usize,
        (packed, rescale): &'a (Packed<E>, Vec<f64>),
    ) -> impl Iterator<Item = Panel<'a, E>> {
        let Self { rows, sums, scratch, copy } = self;
        let p = (view(rows, copy, p, columns), packed);
        let height = PANEL.min(rows.len());
        let parts = sums.chunks_mut(height * rows.len()).zip(scratch.chunks_mut(height * rows.len())).enumerate();
        parts.map(move |(at, (sums, scratch))| Panel { p, rescale, first: at * height, sums, scratch })
    }
}

/// The rows of a set, where they lie or as they were copied.
fn view<'a, E: Real>(rows: &[u32], copy: &'a [E], p: View<'a, E>, columns: usize) -> View<'a, E> {
    if copy.is_empty() { p.from(rows[0] as usize, 0) } else { View::rows(copy, columns) }
}

impl<E: Real> Panel<'_, E> {
    /// Adds the products of a chunk's exponentials and their transpose, after what came before is brought to their maxima.
    fn add(self) {
        let Self { p: (p, packed), rescale, first, sums, scratch } = self;
        let rows = rescale.len();
        let height = sums.len() / rows;
        let width = first + height;
        let part = Part { columns: 0..width, diagonal: Some(first), ..packed.whole() };
        packed.product(Target::rows(scratch, width), height, p.from(first, 0), part);
        for (i, (sums, here)) in sums.chunks_exact_mut(rows).zip(scratch.chunks_exact(width)).enumerate() {
            let of_row = rescale[first + i];
            vectorised!({
                for ((sum, here), of_column) in sums.iter_mut().zip(here).zip(rescale) {
                    *sum = *sum * (of_row * of_column) + here.wide();
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
    of_sets: &[OfSet<E>],
    cotangents: &HeadCotangents<'_>,
) -> Vec<Gram> {
    let targets = rows.targets;
    let of_set = |(OfSet { rows: of, sums, .. }, set): (&OfSet<E>, &Range<usize>)| {
        let width = of.len();
        if width == 0 {
            return vec![0.0; set.len() * set.len()];
        }
        // what each row makes of each target, and the products of the rows
        let some = |values: &[E]| -> Vec<E> {
            of.iter().flat_map(|&r| &values[r as usize * rows.d..][..rows.d]).copied().collect()
        };
        let copies = [rows.y, &rows.of_targets].map(some);
        let [of_rows, of_targets] = copies.each_ref().map(|of| View::rows(of, rows.d));
        let [mut logits, mut inputs] = [0, 1].map(|_| unwritten(width * width));
        for (out, right) in [(&mut logits, of_targets), (&mut inputs, of_rows)] {
            let shape = [width, rows.d, width];
            product_parallel(Target::rows(out, width), shape, of_rows, right.transposed(), 1.0, false);
        }
        // (h_r·h_s)(e_r·e_s), e_r = (1 − p_r[y_r])·onehot − q_r, each e times its slope
        let rest: Vec<f64> = of.iter().map(|&r| figures[r as usize].rest * own[r as usize].1).collect();
        let terms: Vec<f64> = (0..width * width)
            .into_par_iter()
            .map(|at| {
                let (i, j) = (at / width, at % width);
                if j > i {
                    return 0.0;
                }
                let [r, s] = [i, j].map(|at| of[at] as usize);
                let q = |row: usize, i: usize, j: usize| {
                    let (z, slope) = rows.capped(logits[i * width + j].wide());
                    (z - figures[row].log_normaliser).exp() * slope
                };
                let share = |row: usize| figures[row].rest / running[row].sum;
                let own = match targets[r] == targets[s] {
                    true => rest[i] * rest[j],
                    false => -(q(r, i, j) * rest[j] + q(s, j, i) * rest[i]),
                };
                (own + sums[at] * (share(r) * share(s))) * inputs[at].wide()
            })
            .collect();
        let term = |i: usize, j: usize| terms[i.max(j) * width + i.min(j)];
        let place = |&(r, weight): &(usize, f64)| (of.partition_point(|&row| (row as usize) < r), weight);
        let placed = |k: usize| cotangents.weights[k].iter().map(place).collect();
        let weights: Vec<Vec<(usize, f64)>> = set.clone().map(placed).collect();
        let products = weights
            .iter()
            .flat_map(|i| weights.iter().map(move |j| (i, j)))
            .map(|(i, j)| i.iter().map(|&(r, a)| a * j.iter().map(|&(s, c)| c * term(r, s)).sum::<f64>()).sum::<f64>());
        products.collect()
    };
    of_sets.iter().zip(cotangents.sets).map(of_set).collect()
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
    let mut of_sets: Vec<OfSet<E>> =
        cotangents.map(HeadCotangents::set_rows).into_iter().flatten().map(OfSet::new).collect();
    let start =
        Running { top: E::neg_infinity(), sum: 0.0, weighted: 0.0, squares: 0.0, rescale: E::of(1.0), above: 0 };
    let mut running = vec![start; n];
    let mut mean = vec![E::of(0.0); n * d];
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
        let mut weighted: Vec<&mut OfSet<E>> = of_sets.iter_mut().filter(|set| !set.rows.is_empty()).collect();
        let packed = weighted.iter_mut().map(|set| {
            set.take(logits, columns);
            let rows = view(&set.rows, &set.copy, p, columns);
            let rescale = set.rows.iter().map(|&r| running[r as usize].rescale.wide()).collect();
            (Packed::of(rows.transposed(), [columns, set.rows.len()]), rescale)
        });
        let packed: Vec<(Packed<E>, Vec<f64>)> = packed.collect();
        let panels = weighted.into_iter().zip(&packed).flat_map(|(set, packed)| set.panels(p, columns, packed));
        let panels: Vec<Panel<'_, E>> = panels.collect();
        panels.into_par_iter().rev().with_max_len(1).for_each(Panel::add);
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
    let gram = cotangents.map(|cotangents| grams(&rows, &own, (&running, &figures), &of_sets, cotangents));
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
        cotangents.iter().for_each(|c| tally::head(head_gram_cost(c, vocabulary, y.dtype())));
        with_real!(y, E => {
            let (figures, back, gram) =
                walk(values::<E>(y), &Stored::of_weight(w), of_w, targets, cap, cotangents);
            HeadOutput::of(&figures, matrix(back, [targets.len(), d]), gram)
        })
    }
}
