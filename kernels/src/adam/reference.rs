//! The same composed of burn's operations.
use super::AdamStep;
use crate::FloatTensor;
use burn_backend::Backend;

/// See [`Adam::adam_step`](super::Adam::adam_step).
#[must_use]
pub fn adam_step<B: Backend>(
    x: FloatTensor<B>,
    [m, v]: [FloatTensor<B>; 2],
    gradient: &FloatTensor<B>,
    step: &AdamStep,
) -> (FloatTensor<B>, [FloatTensor<B>; 2]) {
    let scaled = |x: FloatTensor<B>, by: f64| B::float_mul_scalar(x, by.into());
    let ([share1, share2], [weight1, weight2]) = (step.shares(), step.weights());
    let m = B::float_add(scaled(m, f64::from(step.beta1)), scaled(gradient.clone(), share1));
    let squares = B::float_mul(gradient.clone(), gradient.clone());
    let v = B::float_add(scaled(v, f64::from(step.beta2)), scaled(squares, share2));
    let below = B::float_sqrt(B::float_div_scalar(v.clone(), weight2.into()));
    let below = B::float_add_scalar(below, f64::from(step.epsilon).into());
    let along = B::float_div(B::float_div_scalar(m.clone(), weight1.into()), below);
    let decayed = scaled(x, 1.0 - step.rate * f64::from(step.weight_decay));
    (B::float_sub(decayed, scaled(along, step.rate)), [m, v])
}
