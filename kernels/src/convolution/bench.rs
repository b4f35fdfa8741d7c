//! The short convolution of a block's queries, keys and values.
use super::rows_before;
use crate::Kernels;
use crate::bench::{Case, Shapes};

/// See [`crate::bench`].
#[must_use]
pub fn cases<B: Kernels>(shapes: &Shapes<'_>, device: &B::Device) -> Vec<Case> {
    let Some((spec, taps)) = shapes.delta else { return Vec::new() };
    let width = 2 * spec.key_heads * spec.key_dim + spec.value_heads * spec.value_dim;
    let (x, w) = (shapes.matrix::<B>(shapes.forward, width, device), shapes.matrix::<B>(1, width * taps, device));
    let w = B::reshape(w, [width * taps]);
    let sources = rows_before(shapes.spans, shapes.forward, taps);
    let run = move || drop(B::convolve(&x, &w, taps, &sources));
    vec![Case::new("convolution", shapes.moved(2 * shapes.forward * width), run)]
}
