//! The rotary embedding of a block's queries.
use crate::Kernels;
use crate::bench::{Case, Shapes};

/// See [`crate::bench`].
#[must_use]
pub fn cases<B: Kernels>(shapes: &Shapes<'_>, device: &B::Device) -> Vec<Case> {
    let Some(pairs) = shapes.rotary_pairs else { return Vec::new() };
    let (forward, head_dim) = (shapes.forward, shapes.attention.head_dim);
    let width = shapes.attention.heads * head_dim;
    let q = shapes.matrix::<B>(forward, width, device);
    let [cos, sin] = [0, 1].map(|_| shapes.matrix::<B>(forward, pairs, device));
    let run = move || drop(B::rotary(q.clone(), &cos, &sin, None, (head_dim, super::Pairs::Halves), false));
    vec![Case::new("rotary", shapes.moved(2 * forward * width), run)]
}
