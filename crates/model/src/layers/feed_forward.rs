//! The layers that act on each row by itself: a new one is a file beside this one, and a variant here.
use super::{Backward, Forward, Layer, Mlp, MlpTrace, Visitor};
use crate::needs::LayerNeeds;
use tanglescope_kernels::{FloatTensor, Kernels};

/// A layer that acts on each row by itself.
#[derive(Clone, Debug)]
pub enum FeedForward<B: Kernels> {
    /// One for all rows.
    Mlp(Mlp<B>),
}

/// What the forward pass of a [`FeedForward`] leaves.
#[derive(Debug)]
pub enum FeedForwardTrace<B: Kernels> {
    /// One for all rows.
    Mlp(MlpTrace<B>),
}

impl<B: Kernels> Layer<B> for FeedForward<B> {
    type Trace = FeedForwardTrace<B>;

    const MIXES_ROWS: bool = false;

    fn forward(
        &self,
        x: &FloatTensor<B>,
        onto: Option<FloatTensor<B>>,
        rows: &Forward<'_, B>,
    ) -> (FloatTensor<B>, Self::Trace) {
        match self {
            Self::Mlp(layer) => {
                let (y, trace) = layer.forward(x, onto, rows);
                (y, FeedForwardTrace::Mlp(trace))
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
            (Self::Mlp(layer), FeedForwardTrace::Mlp(trace)) => layer.vjp(trace, x, delta, onto, needs, pass),
        }
    }

    fn visit(&mut self, f: &mut Visitor<'_, B>) {
        match self {
            Self::Mlp(layer) => layer.visit(f),
        }
    }
}

impl<B: Kernels> FeedForward<B> {
    pub(crate) fn convert<C: Kernels>(&self, f: &impl Fn(&FloatTensor<B>) -> FloatTensor<C>) -> FeedForward<C> {
        match self {
            Self::Mlp(layer) => FeedForward::Mlp(layer.convert(f)),
        }
    }
}
