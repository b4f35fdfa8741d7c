//! The same composed of burn's operations.
use crate::reference::{host, wrap};
use crate::rows::reference::gather;
use crate::{BlockGram, FloatTensor, RowSet};
use burn_backend::Backend;

/// See [`RowGram::gram_rows`](super::RowGram::gram_rows).
#[must_use]
pub fn gram_rows<B: Backend>(x: &FloatTensor<B>, deltas: &[&FloatTensor<B>], rows: &RowSet) -> Vec<Vec<BlockGram>> {
    let mut out: Vec<Vec<BlockGram>> = deltas.iter().map(|_| Vec::new()).collect();
    for block in &rows.blocks {
        let of = rows.of_block(block);
        if of.is_empty() {
            out.iter_mut().for_each(|out| out.push(vec![0.0; block.len() * block.len()]));
            continue;
        }
        let input = wrap::<B, 2>(&gather::<B>(x, &rows.index[of.clone()], None));
        let xx = input.clone().matmul(input.transpose());
        for (delta, out) in deltas.iter().zip(&mut out) {
            let d = wrap::<B, 2>(delta).slice([of.clone()]);
            let product = host(d.clone().matmul(d.transpose()) * xx.clone());
            let (k, width) = (block.len(), of.len());
            let mut gram = vec![0.0; k * k];
            for i in 0..k {
                for j in 0..k {
                    let (a, b) = (rows.of(block.start + i), rows.of(block.start + j));
                    gram[i * k + j] = a
                        .map(|r| (r - of.start) * width)
                        .map(|r| product[r + b.start - of.start..r + b.end - of.start].iter().sum::<f64>())
                        .sum();
                }
            }
            out.push(gram);
        }
    }
    out
}
