//! Attention sinks: a score for each head that no value belongs to, so that a row's weights sum to less than one (Xiao et al.,
//! arXiv 2309.17453; gpt-oss).
//!
//! With `l = ln Σ exp` of a row's scores, the weights are those without a sink times `f = σ(l − sink)`, or `exp(s − l')` with
//! `l' = l + ln(1 + e^(sink − l))`: with l' for l and `o' = f·o` for o, the cotangents of q, k and v are those without a sink. Of the sink it is
//! `−f(1 − f)·δ·o`.
use super::{Backward, Vector, dims};
use tanglescope_kernels::{Activation, FloatTensor, Kernels, RowSet, TensorMetadata};

/// A score for each head.
#[derive(Clone, Debug)]
pub struct Sinks<B: Kernels> {
    /// `[heads]`.
    pub scores: Vector<B>,
}

/// What the forward pass leaves.
#[derive(Debug)]
pub(crate) struct SinksTrace<B: Kernels> {
    /// l less the sink, at each value of a head, `[N, heads·head_dim]`.
    above: FloatTensor<B>,
    /// o, without sinks.
    attended: FloatTensor<B>,
}

/// Ones where a value is of a head: `[heads, heads·head_dim]`.
fn of_heads<B: Kernels>(heads: usize, width: usize, like: &FloatTensor<B>) -> FloatTensor<B> {
    let one = |at: usize| f64::from(u8::from(at % width / (width / heads) == at / width));
    B::upload_like((0..heads * width).map(one).collect(), &[heads, width], like)
}

impl<B: Kernels> Sinks<B> {
    /// o' and l', from o and l, `[N, heads]`.
    pub(crate) fn forward(
        &self,
        attended: FloatTensor<B>,
        normaliser: &FloatTensor<B>,
    ) -> ([FloatTensor<B>; 2], SinksTrace<B>) {
        let [_, heads] = dims::<B>(normaliser);
        let width = dims::<B>(&attended)[1];
        let scores = B::cast(B::times_number(self.scores.values.clone(), -1.0), normaliser.dtype());
        let above = B::add_bias(normaliser.clone(), &scores);
        let below = B::times_number(above.clone(), -1.0);
        let all = B::add_scaled(B::activate(Activation::Softplus, &below, None), normaliser, 1.0);
        let spread = B::matmul(&above, &of_heads::<B>(heads, width, normaliser), false, 1.0, None);
        let above = B::cast(spread, attended.dtype());
        let output = B::activate(Activation::Sigmoid, &above, Some(&attended));
        ([output, all], SinksTrace { above, attended })
    }

    /// Delivers the sinks for the cotangent of o'. `rows` are δ's.
    pub(crate) fn deliver(
        &self,
        trace: &SinksTrace<B>,
        delta: &FloatTensor<B>,
        rows: &RowSet,
        pass: &mut Backward<'_, B>,
    ) {
        let terms = || {
            let (above, attended) = (&trace.above, Some(&trace.attended));
            let of_above = B::activate_vjp(Activation::Sigmoid, above, attended, delta, &rows.index).0;
            let (heads, width) = (self.scores.values.shape()[0], dims::<B>(delta)[1]);
            B::matmul(&of_above, &of_heads::<B>(heads, width, delta), true, -1.0, None)
        };
        self.scores.deliver(terms, rows, pass);
    }

    pub(crate) fn convert<C: Kernels>(&self, f: &impl Fn(&FloatTensor<B>) -> FloatTensor<C>) -> Sinks<C> {
        Sinks { scores: self.scores.convert(f) }
    }
}
