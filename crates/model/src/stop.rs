//! How a long pass is ended from another thread.
use std::panic::resume_unwind;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A wish that what is being computed ends. Its clones are of the same wish.
#[derive(Clone, Debug, Default)]
pub struct Stop(Arc<AtomicBool>);

/// What ends the work of a call that is to end, as the payload of a panic: batches run on several threads, which all come here.
#[derive(Debug)]
pub struct Stopped;

impl Stop {
    /// Asks for an end.
    pub fn ask(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether an end was asked for.
    #[must_use]
    pub fn is_asked(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Ends the work where that was asked for, with [`Stopped`] as the payload of a panic that says nothing.
    pub fn end_if_asked(&self) {
        if self.is_asked() {
            resume_unwind(Box::new(Stopped));
        }
    }
}
