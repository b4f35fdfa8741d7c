//! The same composed of burn's operations.
use crate::reference::{host, wrap};
use crate::rows::reference::gather;
use crate::{FloatTensor, Gram, RowSet};
use burn_backend::Backend;
use burn_tensor::Tensor;

fn pairwise_products<B: Backend>(gradients: &[Option<Tensor<B, 2>>]) -> Gram {
    let k = gradients.len();
    let mut gram = vec![0.0; k * k];
    for i in 0..k {
        for j in 0..=i {
            let (Some(a), Some(b)) = (&gradients[i], &gradients[j]) else { continue };
            // row sums on the device, the sum of rows in f64
            let sum = host((a.clone() * b.clone()).sum_dim(1)).iter().sum();
            gram[i * k + j] = sum;
            gram[j * k + i] = sum;
        }
    }
    gram
}

/// See [`TileGram::gram_tile`](super::TileGram::gram_tile).
#[must_use]
pub fn gram_tile<B: Backend>(
    x: &FloatTensor<B>,
    delta: &FloatTensor<B>,
    rows: &RowSet,
    roots: Option<&FloatTensor<B>>,
) -> Vec<Gram> {
    rows.sets
        .iter()
        .map(|set| {
            // a cotangent of zero has no rows
            let gradients: Vec<Option<Tensor<B, 2>>> = set
                .clone()
                .map(|k| {
                    let of = rows.of(k);
                    (!of.is_empty()).then(|| {
                        let input = wrap::<B, 2>(&gather::<B>(x, &rows.index[of.clone()], None));
                        let gradient = input.transpose().matmul(wrap::<B, 2>(delta).slice([of]));
                        match roots {
                            Some(roots) => gradient * wrap(roots),
                            None => gradient,
                        }
                    })
                })
                .collect();
            pairwise_products(&gradients)
        })
        .collect()
}
