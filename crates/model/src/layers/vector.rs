//! Numbers that are neither a norm's nor a map's: sinks of attention, rates of decay, taps of convolutions.
use super::Backward;
use tanglescope_kernels::{FloatTensor, Kernels, RowSet};

/// A vector of such numbers.
#[derive(Clone, Debug)]
pub struct Vector<B: Kernels> {
    /// Name of the tensor in the checkpoint.
    pub name: String,
    /// Its values, in the order of the checkpoint.
    pub values: FloatTensor<B>,
}

impl<B: Kernels> Vector<B> {
    /// Delivers it where it is in scope: `terms` are computed of each backward row, and their sums are its gradient.
    pub(crate) fn deliver(&self, terms: impl FnOnce() -> FloatTensor<B>, rows: &RowSet, pass: &mut Backward<'_, B>) {
        if pass.scope.contains(&self.name) {
            pass.sink.vector(&self.name, &terms(), rows);
        }
    }

    pub(crate) fn convert<C: Kernels>(&self, f: &impl Fn(&FloatTensor<B>) -> FloatTensor<C>) -> Vector<C> {
        Vector { name: self.name.clone(), values: f(&self.values) }
    }
}
