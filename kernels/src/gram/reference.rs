//! The same composed of burn's operations.
use crate::reference::{host, wrap};
use crate::rows::reference::gather;
use crate::{FloatTensor, Gram, RowSet};
use burn_backend::Backend;

/// See [`RowGram::gram_rows`](super::RowGram::gram_rows).
#[must_use]
pub fn gram_rows<B: Backend>(x: &FloatTensor<B>, deltas: &[&FloatTensor<B>], rows: &RowSet) -> Vec<Vec<Gram>> {
    let mut out: Vec<Vec<Gram>> = deltas.iter().map(|_| Vec::new()).collect();
    for set in &rows.sets {
        let of = rows.of_set(set);
        if of.is_empty() {
            out.iter_mut().for_each(|out| out.push(vec![0.0; set.len() * set.len()]));
            continue;
        }
        let input = wrap::<B, 2>(&gather::<B>(x, &rows.index[of.clone()], None));
        let xx = input.clone().matmul(input.transpose());
        for (delta, out) in deltas.iter().zip(&mut out) {
            let d = wrap::<B, 2>(delta).slice([of.clone()]);
            let product = host(d.clone().matmul(d.transpose()) * xx.clone());
            let (k, width) = (set.len(), of.len());
            let mut gram = vec![0.0; k * k];
            for i in 0..k {
                for j in 0..k {
                    let (a, b) = (rows.of(set.start + i), rows.of(set.start + j));
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
