//! The feed-forward layer: `down(f(gate x) ∘ up x)`, or `down(f(up x))` (docs/mathematics.md, section 3).
use super::linear::{Changed, deliver, input_of};
use super::projection::Low;
use super::{Backward, Forward, Layer, Linear, Part, Projection, Visitor};
use crate::needs::LayerNeeds;
use tanglescope_kernels::{Activation, FloatTensor, Kernels};

/// `down(f(gate x) ∘ up x)` of two pieces, or `down(f(up x))` of one.
#[derive(Clone, Debug)]
pub struct Mlp<B: Kernels> {
    /// To gate and up, or to up.
    pub up: Projection<B>,
    /// Back to the residual stream.
    pub down: Linear<B>,
    /// f.
    pub activation: Activation,
}

/// What the forward pass leaves; f is computed again in the vjp.
#[derive(Debug)]
pub struct MlpTrace<B: Kernels> {
    /// Gate and up, or up: `[N, width]` each.
    up: Vec<FloatTensor<B>>,
    up_low: Low<B>,
    down_low: Option<Changed<B>>,
}

impl<B: Kernels> Mlp<B> {
    /// What `down` reads, from gate and up or from up alone.
    fn activated(&self, up: &[FloatTensor<B>]) -> FloatTensor<B> {
        B::activate(self.activation, &up[0], up.get(1))
    }

    pub(crate) fn convert<C: Kernels>(&self, f: &impl Fn(&FloatTensor<B>) -> FloatTensor<C>) -> Mlp<C> {
        Mlp { up: self.up.convert(f), down: self.down.convert(f), activation: self.activation }
    }
}

impl<B: Kernels> Layer<B> for Mlp<B> {
    type Trace = MlpTrace<B>;

    const MIXES_ROWS: bool = false;

    fn forward(
        &self,
        x: &FloatTensor<B>,
        onto: Option<FloatTensor<B>>,
        _rows: &Forward<'_, B>,
    ) -> (FloatTensor<B>, Self::Trace) {
        let (up, up_low) = self.up.forward(x);
        let (y, down_low) = self.down.forward(&self.activated(&up), onto);
        (y, MlpTrace { up, up_low, down_low })
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
        let rows = pass.rows;
        let down = [self.down.cotangent(delta, trace.down_low.as_ref(), needs.hidden, pass)];
        deliver(&down, || self.activated(&trace.up), rows.here(), pass);
        if !needs.hidden {
            return None;
        }
        let hidden = down[0].input(None);
        let (gate, up) = (&trace.up[0], trace.up.get(1));
        let (da, db) = B::activate_vjp(self.activation, gate, up, &hidden, &rows.here().index);
        drop(hidden);
        let deltas = self.up.joined(std::iter::once(da).chain(db).collect());
        let up = self.up.cotangents(&deltas, &trace.up_low, needs.input, pass);
        deliver(&up, x, rows.here(), pass);
        if needs.input { input_of(&up, onto) } else { None }
    }

    fn visit(&mut self, f: &mut Visitor<'_, B>) {
        self.up.visit(f);
        f(Part::Linear(&mut self.down));
    }
}
