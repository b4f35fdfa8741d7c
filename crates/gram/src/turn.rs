//! Whose turn it is to begin a batch.
//!
//! What a batch keeps grows through its forward pass and shrinks through its backward pass. Batches that run side by
//! side therefore begin apart from each other: a batch has the turn until half of its time is over, when the next one
//! begins, so that two of them take little more memory than one.
use std::sync::atomic::{AtomicBool, Ordering};

/// A turn that one batch has at a time.
#[derive(Default)]
pub struct Turn(AtomicBool);

/// Has the turn until it is dropped.
pub struct Begun<'a>(&'a Turn);

impl Turn {
    /// Waits for the turn; the waiting core of the pool works on the loops of the batches that run.
    pub fn take(&self) -> Begun<'_> {
        while self.0.swap(true, Ordering::Acquire) {
            if rayon::yield_now() != Some(rayon::Yield::Executed) {
                std::thread::yield_now();
            }
        }
        Begun(self)
    }
}

impl Drop for Begun<'_> {
    fn drop(&mut self) {
        self.0.0.store(false, Ordering::Release);
    }
}

/// The block at which a backward pass is half of a batch's time from its end: a forward pass takes a third of the time, and a
/// quarter of the backward pass as much as half of that.
pub(crate) fn half_way(layers: usize) -> usize {
    layers * 3 / 4
}
