//! Grams of sets of cotangents, some of whose sums may still be on a device.
use crate::on_chip::on_devices;
use crate::{Backend, Flex, Pending};

/// K×K inner products of one set of cotangents, row-major, summed in f64.
pub type Gram = Vec<f64>;

/// Where the Gram reductions leave their results.
pub trait Grams: Backend {
    /// Grams of every set of cotangents, which may still be sums in the device's memory.
    type Pending: std::fmt::Debug;

    /// Waits for the device, and sums up what is pending in f64: `[item][set]`.
    fn collect(pending: Vec<Self::Pending>) -> Vec<Vec<Gram>>;

    /// Bytes that a pending result keeps on the device.
    fn pending_bytes(pending: &Self::Pending) -> usize;
}

impl Grams for Flex {
    type Pending = Vec<Gram>;

    fn collect(pending: Vec<Self::Pending>) -> Vec<Vec<Gram>> {
        pending
    }

    fn pending_bytes(_pending: &Self::Pending) -> usize {
        0
    }
}

on_devices! { Grams, R {
    type Pending = Pending<R>;

    fn collect(pending: Vec<Self::Pending>) -> Vec<Vec<Gram>> {
        pending.into_iter().map(Pending::collect).collect()
    }

    fn pending_bytes(pending: &Self::Pending) -> usize {
        pending.bytes()
    }
} }
