//! Queries, keys and values by way of latents (multi-head latent attention; DeepSeek-AI, arXiv 2405.04434): `q = q_b norm(q_a x)`,
//! `[k, v] = kv_b norm(c)` with `[c, r] = kv_a x`, where r is a part of every head's key.
use super::linear::{Changed, deliver, input_of};
use super::projection::Low;
use super::{Backward, Linear, Norm, Part, Pieces, Projection, Visitor, dims};
use crate::needs::LayerNeeds;
use tanglescope_kernels::{FloatTensor, Kernels, as_index};

/// How wide the parts of a head are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LatentDims {
    /// Values of a query or key that rotate.
    pub rotary: usize,
    /// Those that do not.
    pub plain: usize,
    /// Values of a value.
    pub value: usize,
}

impl LatentDims {
    /// Width of heads that hold queries and keys as well as values, with zeros behind what is narrower.
    #[must_use]
    pub fn head(self) -> usize {
        (self.rotary + self.plain).max(self.value)
    }
}

/// Maps to queries, keys and values by way of latents.
#[derive(Clone, Debug)]
pub struct Latent<B: Kernels> {
    /// To the latent of queries, or to queries, and to that of keys and values with the shared part of keys.
    pub down: Projection<B>,
    /// From the latent of queries, where there is one.
    pub q: Option<(Norm<B>, Linear<B>)>,
    /// From that of keys and values.
    pub kv: (Norm<B>, Linear<B>),
    /// Widths.
    pub dims: LatentDims,
}

/// What the forward pass leaves.
#[derive(Debug)]
pub(crate) struct LatentTrace<B: Kernels> {
    down_low: Low<B>,
    /// Latents before their norms, and what the change of what reads them leaves.
    q: Option<(FloatTensor<B>, Option<Changed<B>>)>,
    kv: (FloatTensor<B>, Option<Changed<B>>),
}

/// Each head's part of pieces side by side, zeros behind them: `[N, heads·width]`.
fn heads_of<B: Kernels>(pieces: &[(&FloatTensor<B>, usize)], width: usize) -> FloatTensor<B> {
    let [rows, first] = dims::<B>(pieces[0].0);
    let heads = first / pieces[0].1;
    let by_head = |(piece, width): &(&FloatTensor<B>, usize)| B::reshape((*piece).clone(), [rows * heads, *width]);
    let mut parts: Vec<FloatTensor<B>> = pieces.iter().map(by_head).collect();
    let left = width - pieces.iter().map(|(_, width)| width).sum::<usize>();
    if left > 0 {
        parts.push(B::upload_like(vec![0.0; rows * heads * left], &[rows * heads, left], pieces[0].0));
    }
    B::reshape(B::join_columns(&parts), [rows, heads * width])
}

/// The first parts of each head, of some widths: `[N, heads·width]` each.
fn parts_of<B: Kernels>(x: &FloatTensor<B>, widths: &[usize], width: usize) -> Vec<FloatTensor<B>> {
    let left = width - widths.iter().sum::<usize>();
    let all: Vec<usize> = widths.iter().copied().chain((left > 0).then_some(left)).collect();
    let mut parts = Pieces::ByHead(all).split::<B>(x.clone());
    parts.truncate(widths.len());
    parts
}

/// Values of heads, without the zeros behind them.
pub(crate) fn narrowed<B: Kernels>(x: &FloatTensor<B>, of: LatentDims) -> FloatTensor<B> {
    let first = parts_of::<B>(x, &[of.value], of.head()).pop();
    first.unwrap_or_else(|| unreachable!("a head has values"))
}

/// The vjp of [`narrowed`].
pub(crate) fn widened<B: Kernels>(delta: &FloatTensor<B>, of: LatentDims) -> FloatTensor<B> {
    heads_of::<B>(&[(delta, of.value)], of.head())
}

impl<B: Kernels> Latent<B> {
    /// Rows that have each row's shared part once for each head.
    fn repeated(rows: usize, heads: usize) -> Vec<u32> {
        (0..rows).flat_map(|row| std::iter::repeat_n(as_index(row), heads)).collect()
    }

    fn heads(&self, x: &FloatTensor<B>) -> usize {
        dims::<B>(x)[1] / (self.dims.plain + self.dims.value)
    }

    /// Queries, keys and values, and what the vjp needs.
    pub(crate) fn forward(&self, x: &FloatTensor<B>) -> (Vec<FloatTensor<B>>, LatentTrace<B>) {
        let LatentDims { rotary, plain, value } = self.dims;
        let width = self.dims.head();
        let (pieces, down_low) = self.down.forward(x);
        let [q, latent, shared]: [FloatTensor<B>; 3] = match pieces.try_into() {
            Ok(pieces) => pieces,
            Err(_) => unreachable!("the first maps have three pieces"),
        };
        let (q, of_q) = match &self.q {
            Some((norm, map)) => {
                let (y, low) = map.forward(&norm.forward(&q), None);
                (y, Some((q, low)))
            }
            None => (q, None),
        };
        let parts = Pieces::ByHead(vec![plain, rotary]).split::<B>(q);
        let q = heads_of::<B>(&[(&parts[1], rotary), (&parts[0], plain)], width);
        let (kv, low) = self.kv.1.forward(&self.kv.0.forward(&latent), None);
        let (rows, heads) = (dims::<B>(x)[0], self.heads(&kv));
        let parts = Pieces::ByHead(vec![plain, value]).split::<B>(kv);
        let shared = B::gather(&shared, &Self::repeated(rows, heads), None);
        let shared = B::reshape(shared, [rows, heads * rotary]);
        let k = heads_of::<B>(&[(&shared, rotary), (&parts[0], plain)], width);
        let v = heads_of::<B>(&[(&parts[1], value)], width);
        (vec![q, k, v], LatentTrace { down_low, q: of_q, kv: (latent, low) })
    }

    /// See [`Layer::vjp`](super::Layer::vjp); `deltas` are the cotangents of queries, keys and values.
    pub(crate) fn vjp(
        &self,
        trace: &LatentTrace<B>,
        x: &dyn Fn() -> FloatTensor<B>,
        deltas: &[FloatTensor<B>; 3],
        onto: Option<FloatTensor<B>>,
        needs: LayerNeeds,
        pass: &mut Backward<'_, B>,
    ) -> Option<FloatTensor<B>> {
        let (LatentDims { rotary, plain, value }, width) = (self.dims, self.dims.head());
        let rows = pass.rows.full;
        let [dq, dk, dv] = deltas;
        let parts = parts_of::<B>(dk, &[rotary, plain], width);
        let of_value = narrowed::<B>(dv, self.dims);
        let dkv = Pieces::ByHead(vec![plain, value]).join::<B>(vec![parts[1].clone(), of_value]);
        let heads = self.heads(&dkv);
        let by_head = B::reshape(parts[0].clone(), [rows.rows() * heads, rotary]);
        let shared = B::scatter_add(&by_head, &Self::repeated(rows.rows(), heads), rows.rows());
        let parts = parts_of::<B>(dq, &[rotary, plain], width);
        let mut dq = Pieces::ByHead(vec![plain, rotary]).join::<B>(vec![parts[1].clone(), parts[0].clone()]);
        if let (Some((norm, map)), Some((latent, low))) = (&self.q, &trace.q) {
            let of = [map.cotangent(&dq, low.as_ref(), needs.latent, pass)];
            deliver(&of, || norm.forward(latent), rows, pass);
            let below = needs.latent.then(|| of[0].input(None));
            dq = match below {
                Some(below) => norm.vjp(latent, &below, rows, None, pass),
                None => dq,
            };
        }
        let (norm, map) = &self.kv;
        let (latent, low) = &trace.kv;
        let of = [map.cotangent(&dkv, low.as_ref(), needs.latent, pass)];
        deliver(&of, || norm.forward(latent), rows, pass);
        if !needs.latent {
            return None;
        }
        let below = norm.vjp(latent, &of[0].input(None), rows, None, pass);
        let deltas = self.down.joined(vec![dq, below, shared]);
        let down = self.down.cotangents(&deltas, &trace.down_low, needs.input, pass);
        deliver(&down, x, rows, pass);
        if needs.input { input_of(&down, onto) } else { None }
    }

    pub(crate) fn visit(&mut self, f: &mut Visitor<'_, B>) {
        self.down.visit(f);
        for (norm, map) in self.q.iter_mut().chain([&mut self.kv]) {
            f(Part::Norm(norm));
            f(Part::Linear(map));
        }
    }

    pub(crate) fn convert<C: Kernels>(&self, f: &impl Fn(&FloatTensor<B>) -> FloatTensor<C>) -> Latent<C> {
        let both = |(norm, map): &(Norm<B>, Linear<B>)| (norm.convert(f), map.convert(f));
        Latent { down: self.down.convert(f), q: self.q.as_ref().map(both), kv: both(&self.kv), dims: self.dims }
    }
}
