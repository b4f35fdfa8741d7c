//! Adam's steps on the CPU: one pass over the four tensors, on all cores.
use super::{Adam, AdamStep};
use crate::Flex;
use crate::host::real::{Real, values, vectorised, with_real};
use burn_flex::FlexTensor;
use rayon::prelude::*;

/// Values of a task.
const TASK: usize = 16 * 1024;

/// See [`Adam::adam_step`].
fn step<E: Real>(x: &mut [E], [m, v]: [&mut [E]; 2], gradient: &[E], of: &AdamStep) {
    let [beta1, beta2, epsilon] = [of.beta1, of.beta2, of.epsilon].map(|x| E::of(f64::from(x)));
    let ([share1, share2], [weight1, weight2]) = (of.shares().map(E::of), of.weights().map(E::of));
    let (rate, kept) = (E::of(of.rate), E::of(1.0 - of.rate * f64::from(of.weight_decay)));
    let parts = x.par_chunks_mut(TASK).zip(m.par_chunks_mut(TASK)).zip(v.par_chunks_mut(TASK));
    parts.zip(gradient.par_chunks(TASK)).for_each(|(((x, m), v), gradient)| {
        vectorised!({
            for (((x, m), v), &g) in x.iter_mut().zip(m).zip(v).zip(gradient) {
                *m = beta1 * *m + share1 * g;
                *v = beta2 * *v + share2 * (g * g);
                let along = (*m / weight1) / ((*v / weight2).sqrt() + epsilon);
                *x = kept * *x - rate * along;
            }
        });
    });
}

impl Adam for Flex {
    fn adam_step(
        x: FlexTensor,
        [m, v]: [FlexTensor; 2],
        gradient: &FlexTensor,
        of: &AdamStep,
    ) -> (FlexTensor, [FlexTensor; 2]) {
        let (mut x, mut m, mut v) = (x, m, v);
        with_real!(gradient, E => {
            let gradient = values::<E>(gradient);
            let n = gradient.len();
            let moments = [&mut m.storage_mut::<E>()[..n], &mut v.storage_mut::<E>()[..n]];
            step(&mut x.storage_mut::<E>()[..n], moments, gradient, of);
        });
        (x, [m, v])
    }
}

#[cfg(test)]
mod tests {
    use super::super::reference;
    use super::*;
    use crate::host::real::matrix;
    use proptest::prelude::*;

    proptest! {
        /// Each side rounds the same six products, sums, quotients and roots of a term once, in an order of its own: 8 ε of the terms' size.
        #[test]
        fn a_step_is_what_its_formula_says(
            n in 1usize..40_000, seed in any::<u32>(), rate in 1e-6f64..0.1, weight_decay in prop::option::of(0f32..0.5),
            (beta1, beta2) in (0f32..0.99, 0f32..0.999), steps in 1usize..2000,
        ) {
            let drawn = |of: usize| (0..n).map(move |i| ((i + 1) as f64 * (f64::from(seed) * 1e-9 + 0.3 + of as f64)).sin());
            let tensor = |of: usize| matrix::<f64>(drawn(of).collect(), [1, n]);
            let second = || matrix::<f64>(drawn(2).map(f64::abs).collect(), [1, n]);
            let step = AdamStep { rate, beta1, beta2, epsilon: 1e-8, weight_decay: weight_decay.unwrap_or(0.0), steps };
            let (x, [m, v]) = Flex::adam_step(tensor(0), [tensor(1), second()], &tensor(3), &step);
            let (want_x, [want_m, want_v]) = reference::adam_step::<Flex>(tensor(0), [tensor(1), second()], &tensor(3), &step);
            let [first, second] = step.weights();
            let of = |x: &FlexTensor| values::<f64>(x).to_vec();
            let [x, m, v, want_x, want_m, want_v] = [&x, &m, &v, &want_x, &want_m, &want_v].map(of);
            let bound = 8.0 * f64::EPSILON;
            for i in 0..n {
                // the terms of m are at most 1 and may cancel
                let most_along = 1.0 / first / ((want_v[i] / second).sqrt() + 1e-8);
                prop_assert!((m[i] - want_m[i]).abs() <= bound);
                prop_assert!((v[i] - want_v[i]).abs() <= bound * want_v[i]);
                prop_assert!((x[i] - want_x[i]).abs() <= bound * (1.0 + 2.0 * rate * most_along));
            }
        }
    }
}
