//! Attention of a block, and its vjp.
use crate::Kernels;
use crate::bench::{Case, Shapes};
use crate::cost::Cost;

/// See [`crate::bench`].
#[must_use]
pub fn cases<B: Kernels>(shapes: &Shapes<'_>, device: &B::Device) -> Vec<Case> {
    let (spec, forward, backward) = (shapes.attention, shapes.forward, shapes.rows.rows());
    let (width, kv) = (spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim);
    let [q, k, v] = [width, kv, kv].map(|width| shapes.matrix::<B>(forward, width, device));
    let delta = shapes.matrix::<B>(backward, width, device);
    let (spans, segments) = (shapes.spans.to_vec(), shapes.segments.to_vec());
    let bytes = shapes.moved(2 * forward * (width + kv)).bytes;
    let cost = Cost { bytes, ..spec.cost(&spans) };
    let bytes = shapes.moved(backward * (3 * width + 4 * kv)).bytes;
    let cost_vjp = Cost { bytes, ..spec.cost_vjp(&segments) };
    let (out, normaliser) = B::attend(&q, &k, &v, &spans, spec);
    let (q1, k1, v1) = (q.clone(), k.clone(), v.clone());
    vec![
        Case::new("attention", cost, move || drop(B::attend(&q1, &k1, &v1, &spans, spec))),
        Case::new("attention, vjp", cost_vjp, move || {
            drop(B::attend_vjp([&q, &k, &v], (&out, &normaliser), &delta, &segments, spec));
        }),
    ]
}
