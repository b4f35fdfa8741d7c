//! Products at the shapes of a block's maps, forward and back, with weights in the working type and as they are stored.
use crate::bench::{Case, Shapes};
use crate::{DType, Kernels, cost};

/// See [`crate::bench`].
#[must_use]
pub fn cases<B: Kernels>(shapes: &Shapes<'_>, device: &B::Device) -> Vec<Case> {
    let (dtype, forward, backward) = (shapes.dtype, shapes.forward, shapes.rows.rows());
    let mut cases = Vec::new();
    for &(name, [n, m]) in &shapes.maps {
        let (x, delta) = (shapes.matrix::<B>(forward, n, device), shapes.matrix::<B>(backward, m, device));
        let w = shapes.matrix::<B>(n, m, device);
        let stored = (B::takes_stored(DType::BF16) && dtype != DType::BF16).then(|| B::cast(w.clone(), DType::BF16));
        for (kind, w) in [("", Some(w)), (", bf16", stored)] {
            let Some(w) = w else { continue };
            let (x, delta, again) = (x.clone(), delta.clone(), w.clone());
            let run = move || drop(B::matmul(&x, &w, false, 1.0, None));
            cases.push(Case::new(format!("product {name}{kind}"), cost::product(forward, n, m, dtype), run));
            let run = move || drop(B::matmul(&delta, &again, true, 1.0, None));
            let cost = cost::product(backward, m, n, dtype);
            cases.push(Case::new(format!("product {name}{kind}, transposed"), cost, run));
        }
    }
    cases
}
