//! Rotary position embedding: the halves of every head, or of its first values, turned by the row's angles.
use crate::host::real::{Real, vectorised};
use rayon::prelude::*;

/// Rotates in place; the inverse rotation is the vjp.
pub fn rotate<E: Real>(
    x: &mut [E],
    width: usize,
    [head_dim, half]: [usize; 2],
    (cos, sin): (&[E], &[E]),
    index: Option<&[u32]>,
    inverse: bool,
) {
    let sign = if inverse { E::of(-1.0) } else { E::of(1.0) };
    x.par_chunks_mut(width).enumerate().with_min_len(16).for_each(|(r, row)| {
        let at = index.map_or(r, |index| index[r] as usize) * half;
        let (cos, sin) = (&cos[at..][..half], &sin[at..][..half]);
        vectorised!({
            for head in row.chunks_exact_mut(head_dim) {
                let (low, high) = head.split_at_mut(half);
                let high = &mut high[..half];
                for i in 0..half {
                    let (a, b, s) = (low[i], high[i], sin[i] * sign);
                    low[i] = a * cos[i] - b * s;
                    high[i] = b * cos[i] + a * s;
                }
            }
        });
    });
}
