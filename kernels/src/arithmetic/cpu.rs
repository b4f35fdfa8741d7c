//! Entry by entry on the CPU: vectorised loops on all cores.
use super::Arithmetic;
use crate::Flex;
use crate::host::real::{Real, dims, in_place, values, vectorised, with_real};
use burn_flex::FlexTensor;
use rayon::prelude::*;

impl Arithmetic for Flex {
    fn add_bias(y: FlexTensor, bias: &FlexTensor) -> FlexTensor {
        with_real!(&y, E => {
            let bias = values::<E>(bias);
            in_place::<E>(y, |y| {
                y.par_chunks_mut(bias.len()).with_min_len(16).for_each(|row| {
                    vectorised!(row.iter_mut().zip(bias).for_each(|(y, &b)| *y += b));
                });
            })
        })
    }

    fn add_scaled(a: FlexTensor, b: &FlexTensor, scale: f64) -> FlexTensor {
        with_real!(&a, E => {
            let (b, scale) = (values::<E>(b), E::of(scale));
            in_place::<E>(a, |a| {
                a.par_chunks_mut(4096).zip(b.par_chunks(4096)).for_each(|(a, b)| {
                    vectorised!(a.iter_mut().zip(b).for_each(|(a, &b)| *a += scale * b));
                });
            })
        })
    }

    fn times(a: FlexTensor, b: FlexTensor) -> FlexTensor {
        with_real!(&b, E => {
            let b = values::<E>(&b);
            in_place::<E>(a, |a| {
                a.par_chunks_mut(4096).zip(b.par_chunks(4096)).for_each(|(a, b)| {
                    vectorised!(a.iter_mut().zip(b).for_each(|(a, &b)| *a *= b));
                });
            })
        })
    }

    fn add_number(x: FlexTensor, number: f64) -> FlexTensor {
        with_real!(&x, E => {
            let number = E::of(number);
            in_place::<E>(x, |x| {
                x.par_chunks_mut(4096).for_each(|x| vectorised!(x.iter_mut().for_each(|x| *x += number)));
            })
        })
    }

    fn times_number(x: FlexTensor, number: f64) -> FlexTensor {
        with_real!(&x, E => {
            let number = E::of(number);
            in_place::<E>(x, |x| {
                x.par_chunks_mut(4096).for_each(|x| vectorised!(x.iter_mut().for_each(|x| *x *= number)));
            })
        })
    }

    fn cut(x: FlexTensor, [low, high]: [f64; 2]) -> FlexTensor {
        with_real!(&x, E => {
            in_place::<E>(x, |x| {
                x.par_chunks_mut(4096).for_each(|x| {
                    x.iter_mut().for_each(|x| *x = E::of(x.wide().clamp(low, high)));
                });
            })
        })
    }

    fn cut_vjp(x: &FlexTensor, [low, high]: [f64; 2], delta: FlexTensor, index: &[u32]) -> FlexTensor {
        with_real!(x, E => {
            let (x, width) = (values::<E>(x), dims(x)[1]);
            in_place::<E>(delta, |delta| {
                delta.par_chunks_mut(width).zip(index).with_min_len(16).for_each(|(delta, &row)| {
                    let x = &x[row as usize * width..][..width];
                    let out = delta.iter_mut().zip(x).filter(|(_, x)| !(low..=high).contains(&x.wide()));
                    out.for_each(|(delta, _)| *delta = E::of(0.0));
                });
            })
        })
    }
}
