//! The same composed of burn's operations.
use crate::FloatTensor;
use crate::reference::{floats, host, int, unwrap, wrap};
use burn_backend::Backend;
use burn_tensor::Tensor;

/// See [`Rows::gather`](super::Rows::gather).
#[must_use]
pub fn gather<B: Backend>(x: &FloatTensor<B>, index: &[u32], weights: Option<&[f64]>) -> FloatTensor<B> {
    let x = wrap::<B, 2>(x);
    let (device, dtype) = (x.device(), x.dtype());
    let rows = x.select(0, int(index, &device));
    unwrap(match weights {
        Some(w) => rows * floats(w.to_vec(), [w.len(), 1], dtype, &device),
        None => rows,
    })
}

/// See [`Rows::scatter_add`](super::Rows::scatter_add).
#[must_use]
pub fn scatter_add<B: Backend>(x: &FloatTensor<B>, index: &[u32], rows: usize) -> FloatTensor<B> {
    // a product with a 0/1 matrix: atomic adds would sum in an order that changes from run to run
    let x = wrap::<B, 2>(x);
    let mut places = vec![0.0; rows * index.len()];
    for (column, &row) in index.iter().enumerate() {
        places[row as usize * index.len() + column] = 1.0;
    }
    let (device, dtype) = (x.device(), x.dtype());
    unwrap(floats::<B, 2>(places, [rows, index.len()], dtype, &device).matmul(x))
}

/// See [`Rows::segment_sums`](super::Rows::segment_sums).
#[must_use]
pub fn segment_sums<B: Backend>(x: &FloatTensor<B>, offsets: &[usize]) -> Vec<Vec<f64>> {
    let x = wrap::<B, 2>(x);
    let sum = |ends: &[usize]| match ends[0] == ends[1] {
        true => vec![0.0; x.dims()[1]],
        false => host(x.clone().slice([ends[0]..ends[1]]).sum_dim(0)),
    };
    offsets.windows(2).map(sum).collect()
}

/// See [`Rows::split_columns`](super::Rows::split_columns).
#[must_use]
pub fn split_columns<B: Backend>(x: &FloatTensor<B>, widths: &[usize]) -> Vec<FloatTensor<B>> {
    let x = wrap::<B, 2>(x);
    let mut start = 0;
    widths
        .iter()
        .map(|w| {
            start += w;
            unwrap(x.clone().slice([0..x.dims()[0], start - w..start]))
        })
        .collect()
}

/// See [`Rows::join_columns`](super::Rows::join_columns).
#[must_use]
pub fn join_columns<B: Backend>(parts: &[FloatTensor<B>]) -> FloatTensor<B> {
    unwrap(Tensor::cat(parts.iter().map(wrap::<B, 2>).collect(), 1))
}
