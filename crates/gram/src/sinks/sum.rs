//! The sink of training: one weighted sum of all cotangents' gradients (docs/mathematics.md, section 8).
use crate::sinks::gradient::head_gradient;
use crate::sinks::plus;
use std::collections::HashMap;
use tanglescope_kernels::{FloatTensor, Kernels, RowSet, TensorMetadata, as_index};
use tanglescope_model::{Embedding, Factor, HeadRows, Sink, TableRows};

/// `Σ_k c_k ∂L_k/∂p` of every parameter in scope, over every batch that is run into it. No gradient of a single cotangent
/// is formed: δ of each row is scaled and summed over the copies of its forward row, before the one product with x.
pub struct SumSink<B: Kernels> {
    coefficients: Vec<f64>,
    /// The sums, in the shape that the model keeps each parameter in; none where all coefficients were zero.
    pub gradient: HashMap<String, FloatTensor<B>>,
}

impl<B: Kernels> SumSink<B> {
    /// An empty sum.
    #[must_use]
    pub fn new() -> Self {
        Self { coefficients: Vec::new(), gradient: HashMap::new() }
    }

    /// Sets the coefficient of each cotangent of the batch that is run next.
    pub fn weigh(&mut self, coefficients: Vec<f64>) {
        self.coefficients = coefficients;
    }

    /// Adds gradients that were summed elsewhere.
    pub fn add_all(&mut self, gradient: HashMap<String, FloatTensor<B>>) {
        for (name, gradient) in gradient {
            self.add(&name, gradient);
        }
    }

    fn add(&mut self, name: &str, gradient: FloatTensor<B>) {
        let sum = plus::<B>(self.gradient.remove(name), gradient);
        self.gradient.insert(name.to_owned(), sum);
    }

    /// The backward rows whose cotangent has a coefficient that is not zero, and that coefficient.
    fn weighted(&self, rows: &RowSet) -> (Vec<u32>, Vec<f64>) {
        let weighted = self.coefficients.iter().enumerate().filter(|(_, c)| **c != 0.0);
        weighted.flat_map(|(k, c)| rows.of(k).map(move |row| (as_index(row), *c))).unzip()
    }
}

impl<B: Kernels> Sink<B> for SumSink<B> {
    fn linear(&mut self, x: &FloatTensor<B>, factors: &[Factor<'_, B>], rows: &RowSet) {
        let (own, weights) = self.weighted(rows);
        if own.is_empty() {
            return;
        }
        let forward: Vec<u32> = own.iter().map(|&row| rows.index[row as usize]).collect();
        let n = x.shape()[0];
        for factor in factors {
            let delta = B::scatter_add(&B::gather(factor.delta, &own, Some(&weights)), &forward, n);
            self.add(&factor.name, B::weight_gradient(x, &delta, 0..n));
        }
    }

    fn vector(&mut self, name: &str, terms: &FloatTensor<B>, rows: &RowSet) {
        let (own, weights) = self.weighted(rows);
        if own.is_empty() {
            return;
        }
        let sum = B::segment_sums(&B::gather(terms, &own, Some(&weights)), &[0, own.len()]);
        let width = sum.shape()[1];
        self.add(name, B::reshape(sum, [width]));
    }

    fn wants_head_gram(&self) -> bool {
        false
    }

    fn head(&mut self, name: &str, head: &HeadRows<'_, B>, _gram: Option<B::Pending>) {
        let cotangents = head.cotangents.weights.iter().zip(&self.coefficients).filter(|(_, c)| **c != 0.0);
        let weights: Vec<(usize, f64)> =
            cotangents.flat_map(|(weights, c)| weights.iter().map(move |(row, w)| (*row, c * w))).collect();
        if !weights.is_empty() {
            self.add(name, head_gradient(name, head, &weights));
        }
    }

    fn embedding(&mut self, table: &Embedding<B>, taken: &TableRows<'_, B>, rows: &RowSet) {
        let TableRows { trained: delta, ids, .. } = *taken;
        let (own, weights) = self.weighted(rows);
        if own.is_empty() {
            return;
        }
        let places: Vec<u32> = own.iter().map(|&row| ids[rows.index[row as usize] as usize]).collect();
        let gradient = B::scatter_add(&B::gather(delta, &own, Some(&weights)), &places, table.table.dims()[0]);
        self.add(&table.name, gradient);
    }
}
