//! What the blocks of some models read of each token beside the residual stream: `p = (norm(W x/√d) + √m·table[token])/√2`, a
//! stretch of m values for each block (docs/mathematics.md, section 3).
use super::linear::{Changed, deliver, input_of};
use super::{Backward, Linear, Norm, dims, scaled};
use crate::sink::{Embedding, TableRows};
use tanglescope_kernels::{FloatTensor, Kernels, TensorMetadata};

/// `p = (norm(W x/√d) + √m·table[token])/√2`: x is the scaled embedding of the token, and the norm is of each block's stretch.
#[derive(Clone, Debug)]
pub struct PerLayerInputs<B: Kernels> {
    /// `[tokens, blocks·m]`.
    pub table: Embedding<B>,
    /// W, from d to blocks·m values.
    pub projection: Linear<B>,
    /// The norm, of m values.
    pub norm: Norm<B>,
}

/// What the forward pass leaves for the vjp.
#[derive(Debug)]
pub struct PerLayerInputsTrace<B: Kernels> {
    /// W x/√d, `[N, blocks·m]`.
    projected: FloatTensor<B>,
    /// s·x·A of W.
    low: Option<Changed<B>>,
}

impl<B: Kernels> PerLayerInputs<B> {
    /// 1/√d, √m and 1/√2.
    fn factors(&self) -> [f64; 3] {
        let (d, m) = (self.projection.weight.dims()[0], self.width());
        [(d as f64).sqrt().recip(), (m as f64).sqrt(), std::f64::consts::FRAC_1_SQRT_2]
    }

    /// m.
    fn width(&self) -> usize {
        self.norm.gain.shape()[0]
    }

    /// Every block's input, `[N, m]` each, from the embedding's rows `x[N, d]` and the table's.
    pub(crate) fn forward(
        &self,
        x: &FloatTensor<B>,
        of_table: FloatTensor<B>,
    ) -> (Vec<FloatTensor<B>>, PerLayerInputsTrace<B>) {
        let [of_projection, of_token, half] = self.factors();
        let (projected, low) = self.projection.forward(x, None);
        let projected = B::times_number(projected, of_projection);
        let sum = B::add_scaled(self.norm.forward_in_parts(projected.clone()), &of_table, of_token);
        let width = self.width();
        let blocks = dims::<B>(&sum)[1] / width;
        let inputs = B::split_columns(&B::times_number(sum, half), &vec![width; blocks]);
        (inputs, PerLayerInputsTrace { projected, low })
    }

    /// Delivers all parameters for the cotangents of every block's input, `[R, m]` each, and returns that of x plus `onto`, where `input`
    /// wants it. `trained` leaves the rows of a padding token out of the table's cotangents.
    pub(crate) fn vjp(
        &self,
        trace: &PerLayerInputsTrace<B>,
        (x, ids): (&dyn Fn() -> FloatTensor<B>, &[u32]),
        deltas: &[FloatTensor<B>],
        (onto, input): (Option<FloatTensor<B>>, bool),
        trained: &dyn Fn(&FloatTensor<B>) -> Option<FloatTensor<B>>,
        pass: &mut Backward<'_, B>,
    ) -> Option<FloatTensor<B>> {
        let [of_projection, of_token, half] = self.factors();
        let rows = pass.rows.full;
        let delta = B::times_number(B::join_columns(deltas), half);
        if pass.scope.contains(&self.table.name) {
            let delta = scaled::<B>(delta.clone(), of_token);
            let trained = trained(&delta);
            let taken = TableRows { delta: &delta, trained: trained.as_ref().unwrap_or(&delta), ids };
            pass.sink.embedding(&self.table, &taken, rows);
        }
        let delta = self.norm.vjp_in_parts(&trace.projected, delta, rows, pass);
        let delta = B::times_number(delta, of_projection);
        let projection = [self.projection.cotangent(&delta, trace.low.as_ref(), input, pass)];
        deliver(&projection, x, rows, pass);
        if input { input_of(&projection, onto) } else { None }
    }
}
