//! The head, with the Gram of the output matrix and without, and with the matrix as it is stored.
use super::head_cost;
use crate::bench::{Case, Shapes};
use crate::{DType, HeadCotangents, Kernels, Weight, cost};

/// See [`crate::bench`].
#[must_use]
pub fn cases<B: Kernels>(shapes: &Shapes<'_>, device: &B::Device) -> Vec<Case> {
    let (d, vocabulary, dtype) = (shapes.hidden, shapes.vocabulary, shapes.dtype);
    let (predictions, targets) = (shapes.targets.len(), shapes.targets.to_vec());
    let (y, w) = (shapes.matrix::<B>(predictions, d, device), shapes.matrix::<B>(vocabulary, d, device));
    let logits = head_cost(predictions, d, vocabulary, dtype);
    let products = shapes.head.set_rows().into_iter().map(|r| cost::product(r.len(), vocabulary, r.len(), dtype));
    let with_gram = products.fold(logits, |sum, cost| sum + cost);
    let (weights, sets) = (shapes.head.weights.to_vec(), shapes.head.sets.to_vec());
    let mut cases = Vec::new();
    if B::takes_stored(DType::BF16) && dtype != DType::BF16 {
        let (y, stored, targets) = (y.clone(), B::cast(w.clone(), DType::BF16), targets.clone());
        cases.push(Case::new("head, bf16", logits, move || {
            drop(B::head(&y, &Weight::Plain(&stored), &targets, None, None));
        }));
    }
    let (y1, w1, targets1) = (y.clone(), w.clone(), targets.clone());
    cases.push(Case::new("head", logits, move || drop(B::head(&y1, &Weight::Plain(&w1), &targets1, None, None))));
    cases.push(Case::new("head, with its Gram", with_gram, move || {
        let cotangents = HeadCotangents { weights: &weights, sets: &sets };
        drop(B::head(&y, &Weight::Plain(&w), &targets, None, Some(&cotangents)));
    }));
    cases
}
