//! The same composed of burn's operations, row by row of one sequence.
use super::{DeltaInputs, DeltaSpec};
use crate::FloatTensor;
use crate::reference::{unwrap, wrap};
use burn_backend::Backend;
use burn_tensor::Tensor;

/// o of [`DeltaRule::delta_rule`](super::DeltaRule::delta_rule) for the rows of one sequence.
#[must_use]
pub fn delta_rule<B: Backend>(inputs: &DeltaInputs<'_, B>, spec: DeltaSpec) -> FloatTensor<B> {
    let DeltaInputs { q, k, v, decay, beta } = *inputs;
    let [q, k, v, decay, beta] = [q, k, v, decay, beta].map(wrap::<B, 2>);
    let (rows, dk, dv) = (v.dims()[0], spec.key_dim, spec.value_dim);
    let heads = (0..spec.value_heads).map(|head| {
        let key_head = head / spec.shared();
        let mut state = Tensor::<B, 2>::zeros([dk, dv], (&v.device(), v.dtype()));
        let outputs = (0..rows).map(|t| {
            let of_key = |x: &Tensor<B, 2>| x.clone().slice([t..t + 1, key_head * dk..(key_head + 1) * dk]);
            let gate = |x: &Tensor<B, 2>| x.clone().slice([t..t + 1, head..head + 1]);
            state = state.clone() * gate(&decay).exp();
            let error = v.clone().slice([t..t + 1, head * dv..(head + 1) * dv]) - of_key(&k).matmul(state.clone());
            state = state.clone() + of_key(&k).transpose().matmul(error * gate(&beta));
            of_key(&q).matmul(state.clone())
        });
        let outputs = outputs.collect::<Vec<_>>();
        Tensor::cat(outputs, 0)
    });
    unwrap(Tensor::cat(heads.collect(), 1))
}
