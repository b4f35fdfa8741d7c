//! The sink that forms the gradients of some cotangents whole, as rows of matrices: for products between groups of different batches.
use crate::metric::Metric;
use crate::sinks::gradient::{embedding_gradient, head_gradient};
use crate::sinks::plus;
use std::collections::BTreeMap;
use tanglescope_kernels::{FloatTensor, Kernels, RowSet, TensorMetadata, as_index};
use tanglescope_model::{Embedding, Factor, HeadRows, Sink, TableRows};

/// ∂L_k/∂p of some cotangents k for every parameter in scope: a row each, `[kept, entries of p]`, in a metric where one is given.
pub(crate) struct RowSink<'a, B: Kernels> {
    kept: Vec<usize>,
    metric: Option<&'a Metric<B>>,
    found: BTreeMap<String, FloatTensor<B>>,
}

impl<'a, B: Kernels> RowSink<'a, B> {
    /// A sink for some of a batch's cotangents, by number.
    pub fn new(kept: Vec<usize>, metric: Option<&'a Metric<B>>) -> Self {
        Self { kept, metric, found: BTreeMap::new() }
    }

    /// The gradients by parameter; of one that is in parts, by part.
    pub fn finish(self) -> BTreeMap<String, FloatTensor<B>> {
        let Self { metric, found, .. } = self;
        let of = |(name, rows): (String, FloatTensor<B>)| {
            let rows = metric.map_or_else(|| rows.clone(), |metric| metric.scaled(&name, rows.clone()));
            (name, rows)
        };
        found.into_iter().map(of).collect()
    }

    fn add(&mut self, name: &str, rows: FloatTensor<B>) {
        let sum = plus::<B>(self.found.remove(name), rows);
        self.found.insert(name.to_owned(), sum);
    }

    /// The same from a gradient of each cotangent in the shape of its parameter.
    fn add_each(&mut self, name: &str, of: impl Fn(usize) -> FloatTensor<B>) {
        let places: Vec<[u32; 1]> = (0..self.kept.len()).map(|row| [as_index(row)]).collect();
        let row = |(&k, place): (&usize, &'_ [u32; 1])| {
            let gradient = of(k);
            let entries = gradient.shape().num_elements();
            (B::reshape(gradient, [1, entries]), *place)
        };
        let rows: Vec<(FloatTensor<B>, [u32; 1])> = self.kept.iter().zip(&places).map(row).collect();
        let parts: Vec<(FloatTensor<B>, &[u32])> = rows.iter().map(|(row, at)| (row.clone(), &at[..])).collect();
        if !parts.is_empty() {
            self.add(name, B::place_rows(&parts, parts.len()));
        }
    }
}

impl<B: Kernels> Sink<B> for RowSink<'_, B> {
    fn linear(&mut self, x: &FloatTensor<B>, factors: &[Factor<'_, B>], rows: &RowSet) {
        for factor in factors {
            self.add(&factor.name, B::weight_gradients(x, factor.delta, rows, &self.kept));
        }
    }

    fn vector(&mut self, name: &str, terms: &FloatTensor<B>, rows: &RowSet) {
        let kept: Vec<u32> = self.kept.iter().map(|&k| as_index(k)).collect();
        let sums = B::gather(&B::segment_sums(terms, &rows.offsets), &kept, None);
        self.add(name, B::cast(sums, terms.dtype()));
    }

    fn wants_head_gram(&self) -> bool {
        false
    }

    fn head(&mut self, name: &str, head: &HeadRows<'_, B>, _gram: Option<B::Pending>) {
        self.add_each(name, |k| head_gradient(name, head, &head.cotangents.weights[k]));
    }

    fn embedding(&mut self, table: &Embedding<B>, taken: &TableRows<'_, B>, rows: &RowSet) {
        self.add_each(&table.name, |k| embedding_gradient(table, taken, rows, k));
    }
}
