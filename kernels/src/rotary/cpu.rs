//! Rotary position embedding: the halves of every head, or of its first values, rotated by the row's angles.
use super::{Pairs, Rotary};
use crate::Flex;
use crate::host::real::{Real, dims, in_place, values, vectorised, with_real};
use burn_flex::FlexTensor;
use rayon::prelude::*;

/// Rotates in place; the inverse rotation is the vjp.
pub fn rotate<E: Real>(
    x: &mut [E],
    width: usize,
    ([head_dim, half], pairs): ([usize; 2], Pairs),
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
                if pairs == Pairs::Neighbours {
                    for (i, pair) in head.chunks_exact_mut(2).take(half).enumerate() {
                        let (a, b, s) = (pair[0], pair[1], sin[i] * sign);
                        pair[0] = a * cos[i] - b * s;
                        pair[1] = b * cos[i] + a * s;
                    }
                    continue;
                }
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

impl Rotary for Flex {
    fn rotary(
        x: FlexTensor,
        cos: &FlexTensor,
        sin: &FlexTensor,
        index: Option<&[u32]>,
        (head_dim, pairs): (usize, Pairs),
        inverse: bool,
    ) -> FlexTensor {
        let width = dims(&x)[1];
        with_real!(&x, E => {
            let (angles, half) = ((values::<E>(cos), values::<E>(sin)), dims(cos)[1]);
            in_place::<E>(x, |x| rotate(x, width, ([head_dim, half], pairs), angles, index, inverse))
        })
    }
}
