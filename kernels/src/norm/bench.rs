//! The norm before a layer, its vjp, and the terms of its gain.
use crate::Kernels;
use crate::bench::{Case, Shapes};

/// See [`crate::bench`].
#[must_use]
pub fn cases<B: Kernels>(shapes: &Shapes<'_>, device: &B::Device) -> Vec<Case> {
    let (d, forward, backward, kind) = (shapes.hidden, shapes.forward, shapes.rows.rows(), shapes.norm);
    let (x, delta) = (shapes.matrix::<B>(forward, d, device), shapes.matrix::<B>(backward, d, device));
    let gain = B::reshape(shapes.matrix::<B>(1, d, device), [d]);
    let index = shapes.rows.index.clone();
    let case = |name: &str, values: usize, run: Box<dyn FnMut()>| Case::new(name, shapes.moved(values), run);
    let (x1, gain1, x2, delta2, index2) = (x.clone(), gain.clone(), x.clone(), delta.clone(), index.clone());
    vec![
        case("norm", 2 * forward * d, Box::new(move || drop(B::norm(&x1, &gain1, None, kind)))),
        case(
            "norm, vjp",
            3 * backward * d,
            Box::new(move || drop(B::norm_vjp(&x2, &gain, kind, &delta2, &index2, None))),
        ),
        case(
            "norm, gain terms",
            3 * backward * d,
            Box::new(move || drop(B::norm_gain_terms(&x, kind, &delta, &index))),
        ),
    ]
}
