//! The gated unit of a feed-forward layer, and its vjp.
use crate::Kernels;
use crate::bench::{Case, Shapes};

/// See [`crate::bench`].
#[must_use]
pub fn cases<B: Kernels>(shapes: &Shapes<'_>, device: &B::Device) -> Vec<Case> {
    let (width, forward, backward, f) = (shapes.mlp_width, shapes.forward, shapes.rows.rows(), shapes.activation);
    let [a, b] = [0, 1].map(|_| shapes.matrix::<B>(forward, width, device));
    let (delta, index) = (shapes.matrix::<B>(backward, width, device), shapes.rows.index.clone());
    let (a1, b1) = (a.clone(), b.clone());
    vec![
        Case::new("gated unit", shapes.moved(3 * forward * width), move || drop(B::activate(f, &a1, Some(&b1)))),
        Case::new("gated unit, vjp", shapes.moved(5 * backward * width), move || {
            drop(B::activate_vjp(f, &a, Some(&b), &delta, &index));
        }),
    ]
}
