//! The same composed of burn's operations.
use crate::reference::{unwrap, wrap};
use crate::{Activation, FloatTensor};
use burn_backend::Backend;
use burn_tensor::{Tensor, activation};

/// f(x) and f′(x).
fn value_and_slope<B: Backend>(f: Activation, x: Tensor<B, 2>) -> [Tensor<B, 2>; 2] {
    match f {
        Activation::Silu => {
            let s = activation::sigmoid(x.clone());
            let slope = s.clone() * (x.clone() * s.clone().neg().add_scalar(1.0)).add_scalar(1.0);
            [x * s, slope]
        }
        Activation::GeluTanh => {
            let c = 2.0 * (2.0 / std::f64::consts::PI).sqrt();
            let square = x.clone() * x.clone();
            let s = activation::sigmoid(x.clone() * square.clone().mul_scalar(0.044_715 * c).add_scalar(c));
            let du = square.mul_scalar(3.0 * 0.044_715 * c).add_scalar(c);
            let value = x * s.clone();
            [value.clone(), s.clone() + value * s.neg().add_scalar(1.0) * du]
        }
        Activation::Gelu => {
            let phi = x.clone().mul_scalar(std::f64::consts::FRAC_1_SQRT_2).erf().add_scalar(1.0).mul_scalar(0.5);
            let density =
                (x.clone() * x.clone()).mul_scalar(-0.5).exp().mul_scalar(1.0 / (2.0 * std::f64::consts::PI).sqrt());
            [x.clone() * phi.clone(), phi + x * density]
        }
        Activation::ReluSquared => {
            let on = x.clone().clamp_min(0.0);
            [on.clone() * on.clone(), on * 2.0]
        }
        Activation::Sigmoid => {
            let s = activation::sigmoid(x);
            [s.clone(), s.clone() * s.neg().add_scalar(1.0)]
        }
        Activation::Softplus => [activation::softplus(x.clone(), 1.0), activation::sigmoid(x)],
        Activation::Exponential => [x.clone().exp(), x.exp()],
        Activation::Relu => {
            let (zeros, off) = (x.zeros_like(), x.clone().lower_equal_elem(0.0));
            let ones = x.ones_like().mask_where(off.clone(), zeros.clone());
            [x.mask_where(off, zeros), ones]
        }
    }
}

/// See [`Activate::activate`](super::Activate::activate).
#[must_use]
pub fn activate<B: Backend>(f: Activation, a: &FloatTensor<B>, b: Option<&FloatTensor<B>>) -> FloatTensor<B> {
    let [h, _] = value_and_slope(f, wrap::<B, 2>(a));
    unwrap(match b {
        Some(b) => h * wrap(b),
        None => h,
    })
}
