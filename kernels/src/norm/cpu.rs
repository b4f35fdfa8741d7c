//! RMS norm and `LayerNorm` over rows, with their vjp (docs/mathematics.md, section 3).
use super::Norm;
use crate::host::real::{Real, dims, dot, in_place, matrix, sum, unwritten, values, vectorised, with_real};
use crate::{Flex, NormKind};
use burn_flex::FlexTensor;
use rayon::prelude::*;

/// μ and 1/√(σ² + ε) of a row.
#[inline(always)]
fn statistics<E: Real>(x: &[E], kind: NormKind) -> (E, E) {
    let n = x.len() as f64;
    let (mut mean, mut square) = (0.0, 0.0);
    if kind.centred {
        mean = x.iter().map(|v| v.wide()).sum::<f64>() / n;
        square += x.iter().map(|v| (v.wide() - mean).powi(2)).sum::<f64>();
    } else {
        square += dot(x, x).wide();
    }
    (E::of(mean), E::of(1.0 / (square / n + kind.eps).sqrt()))
}

/// `x̂·gain + bias`.
pub fn forward<E: Real>(x: &[E], gain: &[E], bias: Option<&[E]>, kind: NormKind) -> Vec<E> {
    let d = gain.len();
    let mut y = unwritten(x.len());
    y.par_chunks_mut(d).zip(x.par_chunks(d)).with_min_len(16).for_each(|(y, x)| {
        vectorised!({
            let (mean, inverse) = statistics(x, kind);
            for i in 0..d {
                y[i] = (x[i] - mean) * inverse * gain[i];
            }
            if let Some(bias) = bias {
                for i in 0..d {
                    y[i] += bias[i];
                }
            }
        });
    });
    y
}

/// Adds to `dx` the cotangent `r·(g − mean(g) − x̂·mean(g∘x̂))`, g = δ∘gain (no mean(g) for the RMS norm).
pub fn vjp<E: Real>(x: &[E], gain: &[E], kind: NormKind, delta: &[E], index: &[u32], dx: &mut [E]) {
    let d = gain.len();
    let scale = E::of(1.0 / d as f64);
    dx.par_chunks_mut(d).zip(delta.par_chunks(d)).zip(index).with_min_len(16).for_each(|((dx, delta), &row)| {
        let x = &x[row as usize * d..][..d];
        vectorised!({
            let (mean, inverse) = statistics(x, kind);
            let mut g = [E::of(0.0); 512];
            // g∘x̂ and g, summed piece by piece so that the pieces stay in the first cache
            let (mut along, mut flat) = (E::of(0.0), E::of(0.0));
            for start in (0..d).step_by(512) {
                let end = (start + 512).min(d);
                let g = &mut g[..end - start];
                for i in 0..g.len() {
                    g[i] = delta[start + i] * gain[start + i];
                }
                along += dot(g, &x[start..end]);
                if kind.centred {
                    flat += sum(g);
                }
            }
            let along = (along - mean * flat) * inverse * scale;
            let flat = flat * scale;
            for i in 0..d {
                let normal = (x[i] - mean) * inverse;
                dx[i] += inverse * (delta[i] * gain[i] - flat - normal * along);
            }
        });
    });
}

/// `δ ∘ x̂[index]`.
pub fn gain_terms<E: Real>(x: &[E], d: usize, kind: NormKind, delta: &[E], index: &[u32]) -> Vec<E> {
    let mut terms = unwritten(delta.len());
    terms.par_chunks_mut(d).zip(delta.par_chunks(d)).zip(index).with_min_len(16).for_each(|((terms, delta), &row)| {
        let x = &x[row as usize * d..][..d];
        vectorised!({
            let (mean, inverse) = statistics(x, kind);
            for i in 0..d {
                terms[i] = delta[i] * (x[i] - mean) * inverse;
            }
        });
    });
    terms
}

impl Norm for Flex {
    fn norm(x: &FlexTensor, gain: &FlexTensor, bias: Option<&FlexTensor>, kind: NormKind) -> FlexTensor {
        with_real!(x, E => {
            let bias = bias.map(values::<E>);
            matrix(forward(values::<E>(x), values(gain), bias, kind), dims(x))
        })
    }

    fn norm_vjp(
        x: &FlexTensor,
        gain: &FlexTensor,
        kind: NormKind,
        delta: &FlexTensor,
        index: &[u32],
        onto: Option<FlexTensor>,
    ) -> FlexTensor {
        with_real!(x, E => {
            let d = values::<E>(delta);
            let onto = onto.unwrap_or_else(|| matrix(vec![E::of(0.0); d.len()], dims(delta)));
            in_place::<E>(onto, |dx| vjp(values::<E>(x), values(gain), kind, d, index, dx))
        })
    }

    fn norm_gain_terms(x: &FlexTensor, kind: NormKind, delta: &FlexTensor, index: &[u32]) -> FlexTensor {
        let width = dims(x)[1];
        with_real!(x, E => {
            matrix(gain_terms(values::<E>(x), width, kind, values(delta), index), dims(delta))
        })
    }
}
