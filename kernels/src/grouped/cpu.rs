//! Stretch by stretch on the CPU: on all cores within each, and several at once.
use super::{Grouped, Stretch};
use crate::host::real::{Real, dims, in_place, matrix, values, with_real};
use crate::host::stored::Stored;
use crate::product::cpu::{Target, View, product_stored};
use crate::{Flex, cost, tally};
use burn_flex::FlexTensor;
use rayon::prelude::*;

impl Grouped for Flex {
    fn grouped(
        x: &FlexTensor,
        stretches: &[Stretch<'_, Self>],
        transposed: bool,
        width: usize,
        onto: Option<FlexTensor>,
    ) -> FlexTensor {
        let [rows, k] = dims(x);
        stretches.iter().for_each(|of| tally::products(cost::product(of.rows.len(), k, width, x.dtype())));
        with_real!(x, E => {
            let x = values::<E>(x);
            let multiply = |y: &mut [E]| {
                let target = Target::rows(y, width);
                // stretches are disjoint, and so are the rows that their tasks write
                stretches.par_iter().with_max_len(1).for_each(|of| {
                    let (shape, first) = ([of.rows.len(), k, width], of.rows.start);
                    let (x, target) = (View::rows(&x[first * k..of.rows.end * k], k), target.from(first, 0));
                    let (w, transposed) = of.w.as_it_lies(transposed);
                    product_stored(target, shape, x, &Stored::of_weight(&w), transposed, of.scale, true);
                });
            };
            match onto {
                Some(y) => in_place::<E>(y, multiply),
                None => {
                    let mut y = vec![E::of(0.0); rows * width];
                    multiply(&mut y);
                    matrix(y, [rows, width])
                }
            }
        })
    }
}
