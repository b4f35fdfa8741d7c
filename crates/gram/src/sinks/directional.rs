//! The sink of predictions: what a given step does to each cotangent's log-probability, to first order.
use crate::batch::{Batch, Group};
use crate::pass::ForwardPass;
use crate::request::Request;
use crate::sinks::{Tee, head_in_chunks};
use std::collections::HashMap;
use tanglescope_kernels::{FloatTensor, Kernels, RowSet, TensorMetadata};
use tanglescope_model::{Decoder, Embedding, Factor, HeadRows, InScope, Sink, TableRows};

/// `Σ_p ⟨∂L_k/∂p, Δp⟩` of every cotangent k, for a step Δp of parameters in scope; those without one stay where they are.
pub struct DirectionalSink<'a, B: Kernels> {
    step: &'a HashMap<String, FloatTensor<B>>,
    /// The sum of each cotangent.
    pub changes: Vec<f64>,
}

impl<'a, B: Kernels> DirectionalSink<'a, B> {
    /// A sink for a number of cotangents; the step has each parameter in the shape that the model keeps it in.
    #[must_use]
    pub fn new(step: &'a HashMap<String, FloatTensor<B>>, cotangents: usize) -> Self {
        Self { step, changes: vec![0.0; cotangents] }
    }

    /// First-order change of log π of every branch of every group by each of some steps, batch by batch: by group, step and branch.
    pub fn of_groups(
        model: &Decoder<B>,
        scope: &InScope,
        groups: &[&Group],
        batches: &[Vec<usize>],
        steps: &'a [&'a HashMap<String, FloatTensor<B>>],
    ) -> Vec<Vec<Vec<f64>>> {
        let requests = Request::all(groups.iter().copied());
        let mut out = vec![Vec::new(); groups.len()];
        for members in batches {
            let batch = Batch::new(members.iter().map(|&g| &requests[g]));
            let mut sinks: Vec<Self> = steps.iter().map(|step| Self::new(step, batch.weights.len())).collect();
            let each = sinks.iter_mut().map(|sink| sink as &mut dyn Sink<B>).collect();
            ForwardPass::new(model, scope, &batch, false).backward(&mut Tee(each));
            for sink in sinks {
                let mut changes = sink.changes.into_iter();
                for &g in members {
                    out[g].push(changes.by_ref().take(requests[g].cotangents.len()).collect());
                }
            }
        }
        out
    }

    /// Adds `Σ_r a_r · b_r` over the rows of each cotangent.
    fn add_products(&mut self, a: FloatTensor<B>, b: FloatTensor<B>, offsets: &[usize]) {
        let sums = B::segment_sums(&B::times(a, b), offsets);
        let width = sums.shape()[1];
        for (change, sums) in self.changes.iter_mut().zip(B::download(&sums).chunks_exact(width)) {
            *change += sums.iter().sum::<f64>();
        }
    }
}

impl<B: Kernels> Sink<B> for DirectionalSink<'_, B> {
    fn linear(&mut self, x: &FloatTensor<B>, factors: &[Factor<'_, B>], rows: &RowSet) {
        for factor in factors {
            let Some(step) = self.step.get(&factor.name) else { continue };
            let moved = B::matmul(x, step, false, 1.0, None);
            self.add_products(B::gather(&moved, &rows.index, None), factor.delta.clone(), &rows.offsets);
        }
    }

    fn vector(&mut self, name: &str, terms: &FloatTensor<B>, rows: &RowSet) {
        let Some(step) = self.step.get(name) else { return };
        let width = step.shape()[0];
        let row = B::reshape(step.clone(), [1, width]);
        self.add_products(terms.clone(), B::gather(&row, &vec![0; rows.rows()], None), &rows.offsets);
    }

    fn wants_head_gram(&self) -> bool {
        false
    }

    fn head(&mut self, name: &str, head: &HeadRows<'_, B>, _gram: Option<B::Pending>) {
        let Some(step) = self.step.get(name) else { return };
        let vocabulary = head.scores.w.dims()[0];
        let step = &B::reshape(step.clone(), [vocabulary, head.y.shape()[1]]);
        // Δ log p(target) of each row: Σ_v e_v Δz_v, Δz = y·Δᵀ
        let rows: Vec<usize> = (0..head.predictions.targets.len()).collect();
        let chunk_changes = head_in_chunks(head, &rows, |rows, y, logits| -> Vec<f64> {
            let changes = B::download(&B::matmul(y, step, true, 1.0, None));
            let both = logits.chunks_exact(vocabulary).zip(changes.chunks_exact(vocabulary));
            let of_row = |(&row, (logits, changes)): (&usize, (&[f64], &[f64]))| {
                let terms = logits.iter().zip(changes).enumerate();
                terms.map(|(token, (&z, change))| head.predictions.cotangent(row, token, z) * change).sum()
            };
            rows.iter().zip(both).map(of_row).collect()
        });
        let of_row: Vec<f64> = chunk_changes.into_iter().flatten().collect();
        for (change, weights) in self.changes.iter_mut().zip(head.cotangents.weights) {
            *change += weights.iter().map(|(row, weight)| weight * of_row[*row]).sum::<f64>();
        }
    }

    fn embedding(&mut self, table: &Embedding<B>, taken: &TableRows<'_, B>, rows: &RowSet) {
        let TableRows { delta, ids, .. } = *taken;
        let of_rows: Vec<u32> = rows.index.iter().map(|&row| ids[row as usize]).collect();
        let Some(step) = self.step.get(&table.name) else { return };
        self.add_products(B::gather(step, &of_rows, None), delta.clone(), &rows.offsets);
    }
}
