//! The layers that let rows see each other: a new one is a file beside this one, and a variant here.
use super::{Attention, AttentionTrace, Backward, Forward, Layer, Visitor};
use crate::needs::LayerNeeds;
use tanglescope_kernels::{FloatTensor, Kernels};

/// A layer that lets rows see each other.
#[derive(Clone, Debug)]
pub enum Mixer<B: Kernels> {
    /// Softmax attention.
    Attention(Attention<B>),
}

/// What the forward pass of a [`Mixer`] leaves.
#[derive(Debug)]
pub enum MixerTrace<B: Kernels> {
    /// Softmax attention.
    Attention(AttentionTrace<B>),
}

impl<B: Kernels> Layer<B> for Mixer<B> {
    type Trace = MixerTrace<B>;

    const MIXES_ROWS: bool = true;

    fn forward(
        &self,
        x: &FloatTensor<B>,
        onto: Option<FloatTensor<B>>,
        rows: &Forward<'_, B>,
    ) -> (FloatTensor<B>, Self::Trace) {
        match self {
            Self::Attention(layer) => {
                let (y, trace) = layer.forward(x, onto, rows);
                (y, MixerTrace::Attention(trace))
            }
        }
    }

    fn vjp(
        &self,
        trace: &Self::Trace,
        x: &dyn Fn() -> FloatTensor<B>,
        delta: &FloatTensor<B>,
        onto: Option<FloatTensor<B>>,
        needs: LayerNeeds,
        pass: &mut Backward<'_, B>,
    ) -> Option<FloatTensor<B>> {
        match (self, trace) {
            (Self::Attention(layer), MixerTrace::Attention(trace)) => layer.vjp(trace, x, delta, onto, needs, pass),
        }
    }

    fn visit(&mut self, f: &mut Visitor<'_, B>) {
        match self {
            Self::Attention(layer) => layer.visit(f),
        }
    }
}

impl<B: Kernels> Mixer<B> {
    pub(crate) fn convert<C: Kernels>(&self, f: &impl Fn(&FloatTensor<B>) -> FloatTensor<C>) -> Mixer<C> {
        match self {
            Self::Attention(layer) => Mixer::Attention(layer.convert(f)),
        }
    }
}
