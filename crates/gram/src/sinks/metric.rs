//! The sink that reduces every parameter to inner products in the metric of an optimizer's step (docs/mathematics.md, section 11).
use crate::metric::Metric;
use crate::sinks::rows::RowSink;
use std::ops::Range;
use tanglescope_kernels::{FloatTensor, Gram, Kernels, RowSet, TensorMetadata};
use tanglescope_model::{Embedding, Factor, HeadRows, Sink, TableRows};

/// Σ over all parameters of ⟨∂L_i/∂p, ∂L_j/∂p⟩_P, for every set of cotangents. Linear maps go through the *tile* reduction, which alone can
/// carry a factor an entry; of vectors, tables and the output matrix the gradients are formed.
pub(crate) struct MetricSink<'a, B: Kernels> {
    metric: &'a Metric<B>,
    sets: Vec<Range<usize>>,
    pending: Vec<B::Pending>,
    rows: RowSink<'a, B>,
}

impl<'a, B: Kernels> MetricSink<'a, B> {
    /// A sink for some sets of a batch's cotangents.
    pub fn new(metric: &'a Metric<B>, sets: &[Range<usize>]) -> Self {
        let cotangents = sets.last().map_or(0, |set| set.end);
        let rows = RowSink::new((0..cotangents).collect(), Some(metric));
        Self { metric, sets: sets.to_vec(), pending: Vec::new(), rows }
    }

    /// The Gram of every set.
    pub fn finish(self) -> Vec<Gram> {
        let Self { sets, mut pending, rows, .. } = self;
        for rows in rows.finish().into_values() {
            let vectors: Vec<Range<usize>> = (0..rows.shape()[0]).map(|k| k..k + 1).collect();
            pending.push(B::dots(&rows, &vectors, &sets));
        }
        let mut sums: Vec<Gram> = sets.iter().map(|set| vec![0.0; set.len() * set.len()]).collect();
        for grams in B::collect(pending) {
            let both = sums.iter_mut().zip(grams);
            both.for_each(|(sum, gram)| sum.iter_mut().zip(gram).for_each(|(sum, x)| *sum += x));
        }
        sums
    }
}

impl<B: Kernels> Sink<B> for MetricSink<'_, B> {
    fn linear(&mut self, x: &FloatTensor<B>, factors: &[Factor<'_, B>], rows: &RowSet) {
        for factor in factors {
            self.pending.push(B::gram_tile(x, factor.delta, rows, Some(self.metric.roots(&factor.name))));
        }
    }

    fn vector(&mut self, name: &str, terms: &FloatTensor<B>, rows: &RowSet) {
        self.rows.vector(name, terms, rows);
    }

    fn wants_head_gram(&self) -> bool {
        false
    }

    fn head(&mut self, name: &str, head: &HeadRows<'_, B>, gram: Option<B::Pending>) {
        self.rows.head(name, head, gram);
    }

    fn embedding(&mut self, table: &Embedding<B>, taken: &TableRows<'_, B>, rows: &RowSet) {
        self.rows.embedding(table, taken, rows);
    }
}
