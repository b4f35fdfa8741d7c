//! The sink that keeps whole gradients, one a cotangent: for training parameters of low rank, whose Gram they give too, and for checks against differences.
use crate::sinks::head_in_chunks;
use std::collections::HashMap;
use tanglescope_kernels::{FloatTensor, Kernels, RowSet, TensorMetadata, as_index};
use tanglescope_model::{Embedding, Factor, HeadRows, Sink, TableRows};

/// ∂L_k/∂p of every parameter in scope, in the shape that the model keeps it in.
pub struct GradientSink<B: Kernels> {
    cotangents: usize,
    /// For each parameter, one gradient a cotangent.
    pub gradients: HashMap<String, Vec<FloatTensor<B>>>,
}

impl<B: Kernels> GradientSink<B> {
    /// A sink for a number of cotangents.
    #[must_use]
    pub fn new(cotangents: usize) -> Self {
        Self { cotangents, gradients: HashMap::new() }
    }

    /// `Σ_k c_k ∂L_k/∂p` of every parameter.
    #[must_use]
    pub fn combined(&self, coefficients: &[f64]) -> HashMap<String, FloatTensor<B>> {
        let of = |gradients: &Vec<FloatTensor<B>>| {
            let zero = B::add_scaled(gradients[0].clone(), &gradients[0], -1.0);
            gradients.iter().zip(coefficients).fold(zero, |sum, (gradient, &c)| B::add_scaled(sum, gradient, c))
        };
        self.gradients.iter().map(|(name, gradients)| (name.clone(), of(gradients))).collect()
    }

    fn add(&mut self, name: &str, gradients: Vec<FloatTensor<B>>) {
        let sum = match self.gradients.remove(name) {
            None => gradients,
            Some(sum) => sum.into_iter().zip(&gradients).map(|(sum, g)| B::add_scaled(sum, g, 1.0)).collect(),
        };
        self.gradients.insert(name.to_owned(), sum);
    }
}

/// `Σ_r c_r e_r y_rᵀ` of the output matrix, or of the logits' bias, over some rows and their weights, e the one-hot target less the probabilities.
pub(crate) fn head_gradient<B: Kernels>(
    name: &str,
    head: &HeadRows<'_, B>,
    weights: &[(usize, f64)],
) -> FloatTensor<B> {
    let vocabulary = head.scores.w.dims()[0];
    let rows: Vec<usize> = weights.iter().map(|(row, _)| *row).collect();
    let mut weights = weights.iter().map(|(_, weight)| *weight);
    let parts = head_in_chunks(head, &rows, |rows, y, mut e| {
        for (row, &r) in e.chunks_exact_mut(vocabulary).zip(rows) {
            let c = weights.next().unwrap_or(0.0);
            let cells = row.iter_mut().enumerate();
            cells.for_each(|(token, z)| *z = c * head.predictions.cotangent(r, token, *z));
        }
        let e = B::upload_like(e, &[rows.len(), vocabulary], y);
        B::weight_gradient(&e, y, 0..rows.len())
    });
    let sum = parts.into_iter().reduce(|sum, part| B::add_scaled(sum, &part, 1.0));
    let sum = sum.unwrap_or_else(|| unreachable!("there is at least one chunk"));
    // a bias is a vector
    if name.rsplit('.').next() == Some("bias") { B::reshape(sum, [vocabulary]) } else { sum }
}

/// The gradient of a table of embeddings along a cotangent: its rows' δ, summed by token.
pub(super) fn embedding_gradient<B: Kernels>(
    table: &Embedding<B>,
    taken: &TableRows<'_, B>,
    rows: &RowSet,
    cotangent: usize,
) -> FloatTensor<B> {
    let own: Vec<u32> = rows.of(cotangent).map(as_index).collect();
    let places: Vec<u32> = rows.index[rows.of(cotangent)].iter().map(|&row| taken.ids[row as usize]).collect();
    B::scatter_add(&B::gather(taken.trained, &own, None), &places, table.table.dims()[0])
}

impl<B: Kernels> Sink<B> for GradientSink<B> {
    fn linear(&mut self, x: &FloatTensor<B>, factors: &[Factor<'_, B>], rows: &RowSet) {
        let inputs = B::gather(x, &rows.index, None);
        for factor in factors {
            let of = |k| B::weight_gradient(&inputs, factor.delta, rows.of(k));
            self.add(&factor.name, (0..self.cotangents).map(of).collect());
        }
    }

    fn vector(&mut self, name: &str, terms: &FloatTensor<B>, rows: &RowSet) {
        let sums = B::segment_sums(terms, &rows.offsets);
        let width = sums.shape()[1];
        let of = |k: usize| {
            let sum = B::gather(&sums, &[as_index(k)], None);
            B::reshape(sum, [width])
        };
        self.add(name, (0..self.cotangents).map(of).collect());
    }

    fn wants_head_gram(&self) -> bool {
        false
    }

    fn head(&mut self, name: &str, head: &HeadRows<'_, B>, _gram: Option<B::Pending>) {
        self.add(name, head.cotangents.weights.iter().map(|weights| head_gradient(name, head, weights)).collect());
    }

    fn embedding(&mut self, table: &Embedding<B>, taken: &TableRows<'_, B>, rows: &RowSet) {
        let of = |k| embedding_gradient(table, taken, rows, k);
        self.add(&table.name, (0..self.cotangents).map(of).collect());
    }
}
