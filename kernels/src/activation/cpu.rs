//! Element-wise functions of feed-forward layers, one loop each (docs/mathematics.md, section 3).
use super::Activate;
use crate::host::real::{Real, dims, matrix, unwritten, values, vectorised, with_real};
use crate::{Activation, Flex};
use burn_flex::FlexTensor;
use rayon::prelude::*;

/// f(x) and f′(x).
#[inline(always)]
fn value_and_slope<E: Real>(f: Activation, x: E) -> (E, E) {
    let (half, one) = (E::of(0.5), E::of(1.0));
    match f {
        Activation::Silu => {
            let s = one / (one + (-x).exp_fast());
            (x * s, s * (one + x * (one - s)))
        }
        Activation::GeluTanh => {
            // ½x(1 + tanh u) = x·σ(2u), u = √(2/π)(x + 0.044715 x³)
            let (c, b) = (E::of((2.0 / std::f64::consts::PI).sqrt()), E::of(0.044_715));
            let u2 = E::of(2.0) * c * (x + b * x * x * x);
            let s = one / (one + (-u2).exp_fast());
            let du2 = E::of(2.0) * c * (one + E::of(3.0) * b * x * x);
            (x * s, s + x * s * (one - s) * du2)
        }
        Activation::Gelu => {
            let phi = half * (one + (x * E::of(std::f64::consts::FRAC_1_SQRT_2)).erf());
            let density = E::of(1.0 / (2.0 * std::f64::consts::PI).sqrt()) * (-half * x * x).exp_fast();
            (x * phi, phi + x * density)
        }
        Activation::ReluSquared => {
            let on = if x > E::of(0.0) { x } else { E::of(0.0) };
            (on * on, on + on)
        }
        Activation::Sigmoid => {
            let s = one / (one + (-x).exp_fast());
            (s, s * (one - s))
        }
        Activation::Softplus => {
            // ln(1 + eˣ) = max(x, 0) + ln(1 + e^−|x|)
            let on = if x > E::of(0.0) { x } else { E::of(0.0) };
            (on + (-x.abs()).exp_fast().ln_1p(), one / (one + (-x).exp_fast()))
        }
        Activation::Exponential => {
            let y = x.exp_fast();
            (y, y)
        }
        Activation::Relu => {
            if x > E::of(0.0) {
                (x, one)
            } else {
                (E::of(0.0), E::of(0.0))
            }
        }
    }
}

/// One loop for each function, so that the choice is made outside of it.
macro_rules! for_each_function {
    ($f:expr, $name:ident => $body:expr) => {
        match $f {
            Activation::Silu => {
                const $name: Activation = Activation::Silu;
                $body
            }
            Activation::GeluTanh => {
                const $name: Activation = Activation::GeluTanh;
                $body
            }
            Activation::Gelu => {
                const $name: Activation = Activation::Gelu;
                $body
            }
            Activation::Relu => {
                const $name: Activation = Activation::Relu;
                $body
            }
            Activation::ReluSquared => {
                const $name: Activation = Activation::ReluSquared;
                $body
            }
            Activation::Sigmoid => {
                const $name: Activation = Activation::Sigmoid;
                $body
            }
            Activation::Softplus => {
                const $name: Activation = Activation::Softplus;
                $body
            }
            Activation::Exponential => {
                const $name: Activation = Activation::Exponential;
                $body
            }
        }
    };
}

/// `f(a)`, times `b` where given.
pub fn forward<E: Real>(f: Activation, a: &[E], b: Option<&[E]>, width: usize) -> Vec<E> {
    let mut h = unwritten(a.len());
    h.par_chunks_mut(width).enumerate().with_min_len(16).for_each(|(row, h)| {
        let a = &a[row * width..][..width];
        let b = b.map(|b| &b[row * width..][..width]);
        vectorised!({
            for_each_function!(f, F => {
                for i in 0..width {
                    h[i] = value_and_slope(F, a[i]).0;
                }
            });
            if let Some(b) = b {
                for i in 0..width {
                    h[i] = h[i] * b[i];
                }
            }
        });
    });
    h
}

/// Cotangents of a and b: δ∘b∘f′(a) and δ∘f(a).
pub fn vjp<E: Real>(
    f: Activation,
    a: &[E],
    b: Option<&[E]>,
    delta: &[E],
    index: &[u32],
    width: usize,
) -> (Vec<E>, Option<Vec<E>>) {
    let mut da = unwritten(delta.len());
    let Some(b) = b else {
        da.par_chunks_mut(width).zip(delta.par_chunks(width)).zip(index).with_min_len(16).for_each(
            |((da, delta), &row)| {
                let a = &a[row as usize * width..][..width];
                vectorised!({
                    for_each_function!(f, F => {
                        for i in 0..width {
                            da[i] = delta[i] * value_and_slope(F, a[i]).1;
                        }
                    });
                });
            },
        );
        return (da, None);
    };
    let mut db = unwritten(delta.len());
    da.par_chunks_mut(width)
        .zip(db.par_chunks_mut(width))
        .zip(delta.par_chunks(width))
        .zip(index)
        .with_min_len(16)
        .for_each(|(((da, db), delta), &row)| {
            let a = &a[row as usize * width..][..width];
            let b = &b[row as usize * width..][..width];
            vectorised!({
                for_each_function!(f, F => {
                    for i in 0..width {
                        let (value, slope) = value_and_slope(F, a[i]);
                        da[i] = delta[i] * b[i] * slope;
                        db[i] = delta[i] * value;
                    }
                });
            });
        });
    (da, Some(db))
}

impl Activate for Flex {
    fn activate(f: Activation, a: &FlexTensor, b: Option<&FlexTensor>) -> FlexTensor {
        with_real!(a, E => {
            matrix(forward(f, values::<E>(a), b.map(values::<E>), dims(a)[1]), dims(a))
        })
    }

    fn activate_vjp(
        f: Activation,
        a: &FlexTensor,
        b: Option<&FlexTensor>,
        delta: &FlexTensor,
        index: &[u32],
    ) -> (FlexTensor, Option<FlexTensor>) {
        with_real!(a, E => {
            let b = b.map(values::<E>);
            let (da, db) = vjp(f, values::<E>(a), b, values(delta), index, dims(a)[1]);
            (matrix(da, dims(delta)), db.map(|db| matrix(db, dims(delta))))
        })
    }
}
