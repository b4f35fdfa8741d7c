//! A feed-forward layer for all rows beside experts, with norms of their own: `norm₁(mlp(norm x)) + norm₂(experts(x))`
//! (docs/mathematics.md, section 3).
use super::{
    Backward, Choices, Experts, ExpertsTrace, Forward, Layer, Mlp, MlpTrace, Norm, Sublayer, SublayerTrace, Visitor,
};
use crate::needs::LayerNeeds;
use tanglescope_kernels::{FloatTensor, Kernels};

/// `norm₁(mlp(norm x)) + norm₂(experts(x))`; the experts normalise what they read themselves.
#[derive(Clone, Debug)]
pub struct MlpAndExperts<B: Kernels> {
    /// The layer for all rows, between its norms.
    pub mlp: Sublayer<B, Mlp<B>>,
    /// The experts, with the norm behind them.
    pub experts: Sublayer<B, Experts<B>>,
}

/// What the forward pass leaves.
#[derive(Debug)]
pub struct MlpAndExpertsTrace<B: Kernels> {
    mlp: SublayerTrace<B, MlpTrace<B>>,
    experts: SublayerTrace<B, ExpertsTrace<B>>,
}

impl<B: Kernels> MlpAndExpertsTrace<B> {
    /// What the router decided.
    pub fn choices(&self) -> Choices {
        self.experts.layer.choices()
    }
}

/// The norm behind a part.
fn after<B: Kernels, L>(of: &Sublayer<B, L>) -> &Norm<B> {
    of.norm_after.as_ref().unwrap_or_else(|| unreachable!("a norm is behind each"))
}

impl<B: Kernels> MlpAndExperts<B> {
    pub(crate) fn convert<C: Kernels>(&self, f: &impl Fn(&FloatTensor<B>) -> FloatTensor<C>) -> MlpAndExperts<C> {
        MlpAndExperts {
            mlp: self.mlp.convert(self.mlp.layer.convert(f), f),
            experts: self.experts.convert(self.experts.layer.convert(f), f),
        }
    }
}

impl<B: Kernels> Layer<B> for MlpAndExperts<B> {
    type Trace = MlpAndExpertsTrace<B>;

    const MIXES_ROWS: bool = false;

    fn forward(
        &self,
        x: &FloatTensor<B>,
        onto: Option<FloatTensor<B>>,
        rows: &Forward<'_, B>,
    ) -> (FloatTensor<B>, Self::Trace) {
        let (y, mlp) = self.mlp.normed(after(&self.mlp), x, rows);
        let (of_experts, experts) = self.experts.normed(after(&self.experts), x, rows);
        let y = B::add_scaled(y, &of_experts, 1.0);
        let y = match onto {
            Some(onto) => B::add_scaled(y, &onto, 1.0),
            None => y,
        };
        (y, MlpAndExpertsTrace { mlp, experts })
    }

    fn vjp(
        &self,
        trace: &Self::Trace,
        _x: &dyn Fn() -> FloatTensor<B>,
        delta: &FloatTensor<B>,
        onto: Option<FloatTensor<B>>,
        needs: LayerNeeds,
        pass: &mut Backward<'_, B>,
    ) -> Option<FloatTensor<B>> {
        let of_mlp = self.mlp.vjp(&trace.mlp, delta.clone(), onto, needs, pass);
        self.experts.vjp(&trace.experts, delta.clone(), of_mlp, needs, pass)
    }

    fn visit(&mut self, f: &mut Visitor<'_, B>) {
        self.mlp.visit(f);
        self.experts.visit(f);
    }
}
