//! The metric of an optimizer's step: inner products ⟨u, v⟩_P = Σ_e P_e u_e v_e with one factor an entry (docs/mathematics.md, section 11).
use std::collections::HashMap;
use tanglescope_kernels::{FloatTensor, Kernels, TensorMetadata};

/// A factor for every entry of the parameters in scope. An optimizer steps along P g where plain descent steps along g, so that a step on one
/// cotangent changes another by their inner product in this metric.
#[derive(Clone, Debug)]
pub struct Metric<B: Kernels> {
    /// √P of every parameter, in the shape that the model keeps it in: in the working type on the CPU, in f32 on a device.
    roots: HashMap<String, FloatTensor<B>>,
}

impl<B: Kernels> Metric<B> {
    /// A metric from √P of every parameter in scope, in the shape that the model keeps it in.
    #[must_use]
    pub fn new(roots: HashMap<String, FloatTensor<B>>) -> Self {
        Self { roots }
    }

    /// √P of a parameter.
    pub(crate) fn roots(&self, name: &str) -> &FloatTensor<B> {
        let known = self.roots.get(name);
        known.unwrap_or_else(|| unreachable!("{name} is in scope, and its metric was read with the scope"))
    }

    /// Gradients of a parameter, a row each, with every entry times √P.
    pub(crate) fn scaled(&self, name: &str, rows: FloatTensor<B>) -> FloatTensor<B> {
        let (shape, roots) = (rows.shape(), self.roots(name).clone());
        // factors reach from 1 to 1e8, beyond what 16 bits hold of a gradient
        let rows = B::cast(rows, roots.dtype());
        let roots = B::reshape(roots, [1, shape[1]]);
        B::times(rows, B::gather(&roots, &vec![0; shape[0]], None))
    }
}
