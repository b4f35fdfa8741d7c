//! The same composed of burn's operations.
use crate::reference::{floats, unwrap, wrap};
use crate::{AttentionSpec, FloatTensor, Segment, SoftCap, Span};
use burn_backend::Backend;
use burn_tensor::{Tensor, activation};
use std::ops::Range;

/// Rows of two ranges of a `[rows, heads·h]` matrix as `[heads, rows, h]`, key-value heads repeated for their queries.
fn by_head<B: Backend>(x: &FloatTensor<B>, rows: [&Range<usize>; 2], h: usize, repeat: usize) -> Tensor<B, 3> {
    let x = wrap::<B, 2>(x);
    let parts: Vec<Tensor<B, 2>> =
        rows.into_iter().filter(|r| !r.is_empty()).map(|r| x.clone().slice([r.clone()])).collect();
    let x = Tensor::cat(parts, 0);
    let [n, width] = x.dims();
    let x = x.reshape([n, width / h, h]).swap_dims(0, 1);
    if repeat == 1 {
        return x;
    }
    x.reshape([width / h, 1, n, h]).repeat_dim(1, repeat).reshape([width / h * repeat, n, h])
}

/// Causal softmax of scores `[heads, queries, keys]`, and the slope of their soft cap; query i sees keys up to
/// `keys − queries + i`, within the window.
fn probabilities<B: Backend>(
    q: Tensor<B, 3>,
    k: Tensor<B, 3>,
    spec: AttentionSpec,
) -> (Tensor<B, 3>, Option<Tensor<B, 3>>) {
    let scores = q.matmul(k.swap_dims(1, 2)) * spec.scale;
    let (scores, slope) = match spec.cap {
        None => (scores, None),
        Some(SoftCap(cap)) => {
            // burn's own tanh on the CPU is right to 1e-8 only
            let t = activation::sigmoid(scores * (2.0 / cap)) * 2.0 - 1.0;
            (t.clone() * cap, Some((t.clone() * t).neg().add_scalar(1.0)))
        }
    };
    let [_, queries, keys] = scores.dims();
    let (device, dtype) = (scores.device(), scores.dtype());
    // finite, so that no backend computes ∞ − ∞; e^-1e4 is zero in every type
    let unseen = |at: usize| {
        let (position, key) = (keys - queries + at / keys, at % keys);
        key > position || key < spec.first_seen(position)
    };
    let mask = (0..queries * keys).map(|at| if unseen(at) { -1.0e4 } else { 0.0 }).collect();
    (activation::softmax(scores + floats(mask, [1, queries, keys], dtype, &device), 2), slope)
}

/// See [`Attend::attend`](super::Attend::attend).
#[must_use]
pub fn attend<B: Backend>(
    q: &FloatTensor<B>,
    k: &FloatTensor<B>,
    v: &FloatTensor<B>,
    spans: &[Span],
    spec: AttentionSpec,
) -> FloatTensor<B> {
    let h = spec.head_dim;
    let repeat = spec.heads / spec.kv_heads;
    let mut out = wrap::<B, 2>(q).zeros_like();
    let width = spec.heads * h;
    for span in spans.iter().filter(|s| !s.own.is_empty()) {
        let rows = [&span.prefix, &span.own];
        let query = by_head::<B>(q, [&(0..0), &span.own], h, 1);
        let (p, _) = probabilities(query, by_head(k, rows, h, repeat), spec);
        let o = p.matmul(by_head(v, rows, h, repeat)).swap_dims(0, 1).reshape([span.own.len(), width]);
        out = out.slice_assign([span.own.clone(), 0..width], o);
    }
    unwrap(out)
}

/// See [`Attend::attend_vjp`](super::Attend::attend_vjp).
#[must_use]
pub fn attend_vjp<B: Backend>(
    q: &FloatTensor<B>,
    k: &FloatTensor<B>,
    v: &FloatTensor<B>,
    delta: &FloatTensor<B>,
    segments: &[Segment],
    spec: AttentionSpec,
) -> [FloatTensor<B>; 3] {
    let (h, repeat) = (spec.head_dim, spec.heads / spec.kv_heads);
    let mut parts: [Vec<Tensor<B, 2>>; 3] = [Vec::new(), Vec::new(), Vec::new()];
    let mut offset = 0;
    for segment in segments.iter().filter(|s| !s.is_empty()) {
        let n = segment.len();
        let rows = [&segment.prefix, &segment.own];
        let d = by_head::<B>(delta, [&(0..0), &(offset..offset + n)], h, 1);
        let (query, key, value) =
            (by_head::<B>(q, rows, h, 1), by_head::<B>(k, rows, h, repeat), by_head::<B>(v, rows, h, repeat));
        let (p, slope) = probabilities(query.clone(), key.clone(), spec);
        let dp = d.clone().matmul(value.swap_dims(1, 2));
        let ds = p.clone() * (dp.clone() - (dp * p.clone()).sum_dim(2)) * spec.scale;
        let ds = slope.map_or(ds.clone(), |slope| ds * slope);
        // query heads back onto their key-value head
        let share = |y: Tensor<B, 3>| {
            let y = y.reshape([spec.kv_heads, repeat, n, h]).sum_dim(1).reshape([spec.kv_heads, n, h]);
            y.swap_dims(0, 1).reshape([n, spec.kv_heads * h])
        };
        parts[0].push(ds.clone().matmul(key).swap_dims(0, 1).reshape([n, spec.heads * h]));
        parts[1].push(share(ds.swap_dims(1, 2).matmul(query)));
        parts[2].push(share(p.swap_dims(1, 2).matmul(d)));
        offset += n;
    }
    parts.map(|p| unwrap(Tensor::cat(p, 0)))
}
