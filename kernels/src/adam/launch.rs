//! Adam's steps on a device, by burn's operations.
use super::{Adam, AdamStep, reference};
use crate::FloatTensor;
use crate::on_chip::on_devices;

on_devices! { Adam, R {
    fn adam_step(
        x: FloatTensor<Self>,
        moments: [FloatTensor<Self>; 2],
        gradient: &FloatTensor<Self>,
        step: &AdamStep,
    ) -> (FloatTensor<Self>, [FloatTensor<Self>; 2]) {
        reference::adam_step::<Self>(x, moments, gradient, step)
    }
} }
