//! How a caller learns what a long call is doing.
use crate::verify::Check;
use std::path::Path;
use tanglescope_model::Stop;

/// Pairs, and the forward rows that they take: pairs run in the order of their length, so that rows tell the time left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amount {
    /// Pairs.
    pub pairs: usize,
    /// Their forward rows.
    pub rows: usize,
}

impl Amount {
    /// Adds to it.
    pub fn add(&mut self, more: Self) {
        self.pairs += more.pairs;
        self.rows += more.rows;
    }
}

/// Is told what a call is doing. Each method does nothing unless it is implemented, and may be called from several threads.
pub trait Listener: Sync {
    /// Work of a known amount begins, of which some was done by an earlier call.
    fn begin(&self, _total: Amount, _before: Amount) {}

    /// Names the work that later `advance` calls belong to.
    fn about(&self, _what: &str) {}

    /// Some of the work is done.
    fn advance(&self, _more: Amount) {}

    /// The work that began last is done.
    fn end(&self) {}

    /// What is used: a device, a reference, the parameters that are trained.
    fn note(&self, _what: &str) {}

    /// What of an earlier call is gone on with.
    fn resumed(&self, _what: &str) {}

    /// What is not part of the results: rows, objectives, parts of a model, checkpoints.
    fn left_out(&self, _what: &str) {}

    /// What is done in another way than the fastest or the first.
    fn fell_back(&self, _what: &str) {}

    /// Memory is short: blocks are read from files whenever they are used. An allocator that keeps what was freed should give it back.
    fn short_of_memory(&self) {}

    /// The records of a checkpoint on a data set are whole, by this call or an earlier one.
    fn completed(&self, _records: &Path) {}

    /// A check of `verify`, as it is made.
    fn checked(&self, _check: &Check) {}

    /// What ends the call where it is [asked](Stop::ask) for: before the next transformer block of a pass, and whenever some of the work is done.
    /// The call then ends with [`Error::Stopped`](crate::Error::Stopped); what was written stays, and a second call goes on from there.
    fn stop(&self) -> Option<&Stop> {
        None
    }
}

/// Some of the work is done.
pub(crate) fn advance(listener: &dyn Listener, more: Amount) {
    listener.advance(more);
    if let Some(stop) = listener.stop() {
        stop.end_if_asked();
    }
}

/// Begins work into a folder, and tells how much of it an earlier call did, where it did some.
pub(crate) fn begin(listener: &dyn Listener, out: &Path, total: Amount, before: Amount) {
    if before.pairs > 0 {
        let (done, all) = (before.pairs, total.pairs);
        listener.resumed(&format!("{}: {done} of {all} pairs are there already", out.display()));
    }
    listener.begin(total, before);
}

/// Listens to nothing.
impl Listener for () {}
