//! The log-probability head: logits, log-sum-exp, gradient and e·eᵀ in one walk over the vocabulary.
//!
//! The vocabulary is walked in chunks like the keys of a flash attention: for every row a running maximum, the sum of
//! exponentials and Σ exp(z)·w are kept and rescaled when the maximum grows; p·pᵀ of a block of rows is rescaled the
//! same way on both sides. Beside the results, memory is `rows × CHUNK`.
use super::product::{Target, View, product, product_parallel};
use super::real::{Real, dot, dot_wide, vectorised};
use super::stored::Stored;
use rayon::prelude::*;
use std::ops::Range;

/// Tokens a chunk.
const CHUNK: usize = 2048;

/// What the walk returns; `back` is `[n, d]`.
pub struct Walk<E> {
    pub logp: Vec<f64>,
    pub log_normaliser: Vec<f64>,
    pub back: Vec<E>,
    pub products: Vec<Vec<f64>>,
}

/// See [`crate::Kernels::head`].
pub fn walk<E: Real>(y: &[E], w: Stored<E>, d: usize, targets: &[u32], blocks: &[Range<usize>]) -> Walk<E> {
    let n = targets.len();
    let vocabulary = w.len() / d;
    let mut top = vec![E::neg_infinity(); n];
    let mut sum = vec![0.0f64; n];
    let mut rescale = vec![E::of(1.0); n];
    let mut mean = vec![E::of(0.0); n * d];
    let mut products: Vec<Vec<f64>> = blocks.iter().map(|b| vec![0.0; b.len() * b.len()]).collect();
    let mut scratch: Vec<Vec<E>> = blocks.iter().map(|b| vec![E::of(0.0); b.len() * b.len()]).collect();
    let mut logits = vec![E::of(0.0); n * CHUNK.min(vocabulary)];
    for start in (0..vocabulary).step_by(CHUNK) {
        let columns = CHUNK.min(vocabulary - start);
        let logits = &mut logits[..n * columns];
        let chunk = w.rows(start..start + columns, d);
        let chunk = View::rows(&chunk, d);
        let shape = [n, d, columns];
        product_parallel(Target::rows(logits, columns), shape, View::rows(y, d), chunk.transposed(), 1.0, false);
        logits
            .par_chunks_mut(columns)
            .zip(&mut top)
            .zip(&mut sum)
            .zip(&mut rescale)
            .zip(mean.par_chunks_mut(d))
            .for_each(|((((z, top), sum), rescale), mean)| {
                vectorised(|| {
                    let high = z.iter().fold(*top, |a, &b| if b > a { b } else { a });
                    *rescale = (*top - high).exp_fast();
                    *top = high;
                    for z in z.iter_mut() {
                        *z = (*z - high).exp_fast();
                    }
                    let ones = [E::of(1.0); 64];
                    let here: f64 = z.chunks(64).map(|c| dot(c, &ones[..c.len()]).wide()).sum();
                    *sum = *sum * rescale.wide() + here;
                    if *rescale < E::of(1.0) {
                        for m in mean {
                            *m = *m * *rescale;
                        }
                    }
                });
            });
        let p = View::rows(logits, columns);
        product_parallel(Target::rows(&mut mean, d), [n, columns, d], p, chunk, 1.0, true);
        let rescale = &rescale;
        blocks.par_iter().zip(&mut products).zip(&mut scratch).for_each(|((block, sums), here)| {
            let b = block.len();
            let rows = p.from(block.start, 0);
            product(Target::rows(here, b), [b, columns, b], rows, rows.transposed(), 1.0, false);
            for i in 0..b {
                for j in 0..b {
                    let scale = rescale[block.start + i].wide() * rescale[block.start + j].wide();
                    sums[i * b + j] = sums[i * b + j] * scale + here[i * b + j].wide();
                }
            }
        });
    }
    let mut back = mean;
    let log_normaliser: Vec<f64> = top.iter().zip(&sum).map(|(t, s)| t.wide() + s.ln()).collect();
    // the target of row j as seen from row i
    let of_targets = w.gather(targets, d);
    let of_target = |i: usize, j: usize| dot_wide(&y[i * d..][..d], &of_targets[j * d..][..d]) - log_normaliser[i];
    let logp: Vec<f64> = (0..n).into_par_iter().map(|r| of_target(r, r)).collect();
    back.par_chunks_mut(d).enumerate().for_each(|(r, back)| {
        let inverse = E::of(1.0 / sum[r]);
        let target = &of_targets[r * d..][..d];
        for i in 0..d {
            back[i] = target[i] - back[i] * inverse;
        }
    });
    // e_r·e_s = [y_r = y_s] − p_r[y_s] − p_s[y_r] + p_r·p_s
    blocks.par_iter().zip(&mut products).for_each(|(block, products)| {
        let b = block.len();
        let cross: Vec<f64> =
            (0..b * b).map(|at| of_target(block.start + at / b, block.start + at % b).exp()).collect();
        for i in 0..b {
            for j in 0..b {
                let (r, s) = (block.start + i, block.start + j);
                let same = f64::from(u8::from(targets[r] == targets[s]));
                let both = products[i * b + j] / (sum[r] * sum[s]);
                products[i * b + j] = same - cross[i * b + j] - cross[j * b + i] + both;
            }
        }
    });
    Walk { logp, log_normaliser, back, products }
}
