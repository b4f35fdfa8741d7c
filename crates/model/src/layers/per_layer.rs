//! A block's last layer in models that give each block an input by token: `back(f(gate x) ∘ p)` (docs/mathematics.md, section 3).
use super::linear::{Changed, deliver, input_of};
use super::{Backward, Forward, Layer, Linear, Part, Visitor};
use crate::needs::LayerNeeds;
use tanglescope_kernels::{Activation, FloatTensor, Kernels};

/// `back(f(gate x) ∘ p)`, p the block's input by token.
#[derive(Clone, Debug)]
pub struct PerLayer<B: Kernels> {
    /// To the width of p.
    pub gate: Linear<B>,
    /// f.
    pub activation: Activation,
    /// Back to the residual stream.
    pub back: Linear<B>,
}

/// What the forward pass leaves; f is computed again in the vjp.
#[derive(Debug)]
pub struct PerLayerTrace<B: Kernels> {
    /// `gate x`, `[N, width]`.
    gate: FloatTensor<B>,
    /// p, `[N, width]`.
    by_token: FloatTensor<B>,
    /// s·x·A of both maps.
    low: [Option<Changed<B>>; 2],
}

impl<B: Kernels> PerLayer<B> {
    pub(crate) fn convert<C: Kernels>(&self, f: &impl Fn(&FloatTensor<B>) -> FloatTensor<C>) -> PerLayer<C> {
        PerLayer { gate: self.gate.convert(f), activation: self.activation, back: self.back.convert(f) }
    }
}

impl<B: Kernels> Layer<B> for PerLayer<B> {
    type Trace = PerLayerTrace<B>;

    const MIXES_ROWS: bool = false;

    fn forward(
        &self,
        x: &FloatTensor<B>,
        onto: Option<FloatTensor<B>>,
        rows: &Forward<'_, B>,
    ) -> (FloatTensor<B>, Self::Trace) {
        let Some(by_token) = rows.by_token.cloned() else { unreachable!("every block has an input by token") };
        let (gate, gate_low) = self.gate.forward(x, None);
        let (y, back_low) = self.back.forward(&B::activate(self.activation, &gate, Some(&by_token)), onto);
        (y, PerLayerTrace { gate, by_token, low: [gate_low, back_low] })
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
        let back = [self.back.cotangent(delta, trace.low[1].as_ref(), needs.hidden, pass)];
        let hidden = || B::activate(self.activation, &trace.gate, Some(&trace.by_token));
        deliver(&back, hidden, rows.here(), pass);
        if !needs.hidden {
            return None;
        }
        let (of_gate, of_token) = B::activate_vjp(
            self.activation,
            &trace.gate,
            Some(&trace.by_token),
            &back[0].input(None),
            &rows.here().index,
        );
        pass.beside.by_token = of_token.map(|of_token| rows.spread::<B>(of_token));
        let gate = [self.gate.cotangent(&of_gate, trace.low[0].as_ref(), needs.input, pass)];
        deliver(&gate, x, rows.here(), pass);
        if needs.input { input_of(&gate, onto) } else { None }
    }

    fn visit(&mut self, f: &mut Visitor<'_, B>) {
        f(Part::Linear(&mut self.gate));
        f(Part::Linear(&mut self.back));
    }
}
