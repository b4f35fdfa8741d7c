//! Entry by entry on a device, by burn's operations.
use super::{Arithmetic, reference};
use crate::on_chip::on_devices;
use crate::{FloatTensor, Rows};
use burn_backend::ops::FloatTensorOps;

on_devices! { Arithmetic, R {
    fn add_bias(y: FloatTensor<Self>, bias: &FloatTensor<Self>) -> FloatTensor<Self> {
        reference::add_bias::<Self>(y, bias)
    }

    fn add_scaled(a: FloatTensor<Self>, b: &FloatTensor<Self>, scale: f64) -> FloatTensor<Self> {
        reference::add_scaled::<Self>(a, b, scale)
    }

    fn times(a: FloatTensor<Self>, b: FloatTensor<Self>) -> FloatTensor<Self> {
        Self::float_mul(a, b)
    }

    fn add_number(x: FloatTensor<Self>, number: f64) -> FloatTensor<Self> {
        Self::float_add_scalar(x, number.into())
    }

    fn times_number(x: FloatTensor<Self>, number: f64) -> FloatTensor<Self> {
        Self::float_mul_scalar(x, number.into())
    }

    fn cut(x: FloatTensor<Self>, [low, high]: [f64; 2]) -> FloatTensor<Self> {
        reference::cut::<Self>(x, [low, high])
    }

    fn cut_vjp(x: &FloatTensor<Self>, [low, high]: [f64; 2], delta: FloatTensor<Self>, index: &[u32]) -> FloatTensor<Self> {
        reference::cut_vjp::<Self>(&Self::gather(x, index, None), [low, high], &delta)
    }
} }
