//! The sink of predictions: what a given step does to each cotangent's log-probability, to first order.
use crate::batch::{Batch, Cotangent, Group, as_row};
use crate::engine::ForwardPass;
use std::collections::HashMap;
use tanglescope_kernels::{FloatTensor, Kernels, RowSet, TensorMetadata};
use tanglescope_model::{Decoder, Embedding, Factor, HeadRows, InScope, Sink};

/// Rows of logits that exist together.
const HEAD_ROWS: usize = 256;

/// `Σ_p ⟨∂L_k/∂p, Δp⟩` of every cotangent k, for a step Δp of every parameter in scope.
pub struct AlongSink<'a, B: Kernels> {
    scope: &'a InScope,
    step: &'a HashMap<String, FloatTensor<B>>,
    /// The sum of each cotangent.
    pub changes: Vec<f64>,
}

impl<'a, B: Kernels> AlongSink<'a, B> {
    /// A sink for a number of cotangents; the step has each parameter in the shape that the model keeps it in.
    #[must_use]
    pub fn new(scope: &'a InScope, step: &'a HashMap<String, FloatTensor<B>>, cotangents: usize) -> Self {
        Self { scope, step, changes: vec![0.0; cotangents] }
    }

    /// First-order change of log π of every branch of every group by the step, batch by batch.
    pub fn of_groups(
        model: &Decoder<B>,
        scope: &'a InScope,
        groups: &[&Group],
        batches: &[Vec<usize>],
        step: &'a HashMap<String, FloatTensor<B>>,
    ) -> Vec<Vec<f64>> {
        let mut out = vec![Vec::new(); groups.len()];
        for batch in batches {
            let cotangents: Vec<Vec<Cotangent>> =
                batch.iter().map(|&g| Cotangent::log_probabilities(groups[g])).collect();
            let items: Vec<(&Group, &[Cotangent])> =
                batch.iter().zip(&cotangents).map(|(&g, cotangents)| (groups[g], cotangents.as_slice())).collect();
            let rows = Batch::new(&items);
            let mut sink = Self::new(scope, step, rows.weights.len());
            ForwardPass::new(model, &rows, false).backward(&mut sink);
            let mut changes = sink.changes.into_iter();
            for (&g, cotangents) in batch.iter().zip(&cotangents) {
                out[g] = changes.by_ref().take(cotangents.len()).collect();
            }
        }
        out
    }

    /// Adds `Σ_r a_r · b_r` over the rows of each cotangent.
    fn add_products(&mut self, a: FloatTensor<B>, b: FloatTensor<B>, offsets: &[usize]) {
        let sums = B::segment_sums(&B::float_mul(a, b), offsets);
        let width = sums.shape()[1];
        for (change, sums) in self.changes.iter_mut().zip(B::download(&sums).chunks_exact(width)) {
            *change += sums.iter().sum::<f64>();
        }
    }
}

impl<B: Kernels> Sink<B> for AlongSink<'_, B> {
    fn wants(&self, name: &str) -> bool {
        self.scope.contains(name)
    }

    fn head_only(&self) -> bool {
        self.scope.head_only()
    }

    fn linear(&mut self, x: &FloatTensor<B>, factors: &[Factor<'_, B>], rows: &RowSet) {
        for factor in factors {
            let moved = B::matmul(x, &self.step[&factor.name], false, 1.0, None);
            self.add_products(B::gather(&moved, &rows.index, None), factor.delta.clone(), &rows.offsets);
        }
    }

    fn vector(&mut self, name: &str, terms: &FloatTensor<B>, rows: &RowSet) {
        let step = &self.step[name];
        let width = step.shape()[0];
        let row = B::float_reshape(step.clone(), [1, width].into());
        self.add_products(terms.clone(), B::gather(&row, &vec![0; rows.rows()], None), &rows.offsets);
    }

    fn wants_head_gram(&self) -> bool {
        false
    }

    fn head(&mut self, name: &str, head: &HeadRows<'_, B>, _gram: Option<B::Pending>) {
        let (vocabulary, step) = (head.w.shape()[0], &self.step[name]);
        // Δ log p(target) of each row: Σ_v e_v Δz_v, Δz = y·Δᵀ
        let number = head.predictions.targets.len();
        let mut of_row = Vec::with_capacity(number);
        for first in (0..number).step_by(HEAD_ROWS) {
            let rows = first..number.min(first + HEAD_ROWS);
            let y = B::gather(head.y, &rows.clone().map(as_row).collect::<Vec<_>>(), None);
            let logits = B::download(&B::matmul(&y, head.w, true, 1.0, None));
            let changes = B::download(&B::matmul(&y, step, true, 1.0, None));
            let both = logits.chunks_exact(vocabulary).zip(changes.chunks_exact(vocabulary));
            of_row.extend(rows.zip(both).map(|(row, (logits, changes))| -> f64 {
                let terms = logits.iter().zip(changes).enumerate();
                terms.map(|(token, (&z, change))| head.predictions.cotangent(row, token, z) * change).sum()
            }));
        }
        for (change, weights) in self.changes.iter_mut().zip(head.cotangents.weights) {
            *change += weights.iter().map(|(row, weight)| weight * of_row[*row]).sum::<f64>();
        }
    }

    fn embedding(&mut self, table: &Embedding<B>, delta: &FloatTensor<B>, ids: &[u32], rows: &RowSet) {
        let of_rows: Vec<u32> = rows.index.iter().map(|&row| ids[row as usize]).collect();
        let step = B::gather(&self.step[&table.name], &of_rows, None);
        self.add_products(step, delta.clone(), &rows.offsets);
    }
}
