//! A transformer block: `x += mixer(norm(x)); x += mlp(norm(x))`, and the mirror image.
use super::{
    Backward, Choices, FeedForward, FeedForwardTrace, Forward, Layer, Mixer, MixerTrace, Norm, PerLayer, PerLayerTrace,
    Sublayer, SublayerTrace, Visitor, scaled,
};
use crate::needs::BlockNeeds;
use tanglescope_kernels::{FloatTensor, Kernels};

/// One block: `x₂ = x + mixer(norm x)`, `x' = x₂ + mlp(norm x₂)`, with a norm after each layer where there is one, or
/// `x' = x + mixer(norm x) + mlp(norm x)` where the two are parallel, with a norm each or one for both; behind them what the block
/// reads of each token, where it does.
#[derive(Clone, Debug)]
pub struct Block<B: Kernels> {
    /// Attention, with the norms around it.
    pub mixer: Sublayer<B, Mixer<B>>,
    /// The feed-forward layer, with the norms around it.
    pub mlp: Sublayer<B, FeedForward<B>>,
    /// What the block reads of each token beside the residual stream, with the norm behind it.
    pub per_layer: Option<Box<Sublayer<B, PerLayer<B>>>>,
    /// Whether the feed-forward layer reads the block's input.
    pub parallel: bool,
    /// Factor on the output; no parameter that has a gradient.
    pub scale: f64,
}

/// What a block's forward pass leaves for its vjp.
#[derive(Debug)]
pub struct BlockTrace<B: Kernels> {
    mixer: SublayerTrace<B, MixerTrace<B>>,
    mlp: SublayerTrace<B, FeedForwardTrace<B>>,
    per_layer: Option<SublayerTrace<B, PerLayerTrace<B>>>,
}

impl<B: Kernels> BlockTrace<B> {
    /// What the block's router decided, where it has one.
    pub fn choices(&self) -> Option<Choices> {
        match &self.mlp.layer {
            FeedForwardTrace::Experts(trace) => Some(trace.choices()),
            FeedForwardTrace::MlpAndExperts(trace) => Some(trace.choices()),
            FeedForwardTrace::Mlp(_) => None,
        }
    }

    /// Keys and values as they are attended to, where the mixer is attention.
    pub fn keys_and_values(&self) -> Option<[FloatTensor<B>; 2]> {
        match &self.mixer.layer {
            MixerTrace::Attention(trace) => Some([trace.qkv[1].clone(), trace.qkv[2].clone()]),
            MixerTrace::DeltaNet(_) => None,
        }
    }
}

impl<B: Kernels> Block<B> {
    /// Forward pass over rows `x[N, hidden]`.
    pub fn forward(&self, x: &FloatTensor<B>, rows: &Forward<'_, B>) -> (FloatTensor<B>, BlockTrace<B>) {
        let (mut y, mut trace) = self.sum(x, rows);
        if let Some(of) = &self.per_layer {
            let (sum, of_token) = of.forward(&y, &y, rows);
            (y, trace.per_layer) = (sum, Some(of_token));
        }
        (scaled::<B>(y, self.scale), trace)
    }

    /// The residual stream and what both layers add to it.
    fn sum(&self, x: &FloatTensor<B>, rows: &Forward<'_, B>) -> (FloatTensor<B>, BlockTrace<B>) {
        if let Some(norm) = self.shared_norm() {
            let normed = norm.forward(x);
            let (middle, mixer) = self.mixer.layer.forward(&normed, Some(x.clone()), rows);
            let (y, mlp) = self.mlp.layer.forward(&normed, Some(middle), rows);
            let mixer = SublayerTrace { x: x.clone(), layer: mixer, output: None };
            let mlp = SublayerTrace { x: x.clone(), layer: mlp, output: None };
            return (y, BlockTrace { mixer, mlp, per_layer: None });
        }
        let (middle, mixer) = self.mixer.forward(x, x, rows);
        let (y, mlp) = self.mlp.forward(if self.parallel { x } else { &middle }, &middle, rows);
        (y, BlockTrace { mixer, mlp, per_layer: None })
    }

    /// Cotangent of the block's input, `[R, hidden]` over the rows of `pass.rows.full`, or `None` where nothing below it is
    /// needed; delivers every parameter in scope. `delta` holds the rows of `pass.rows.here()`.
    pub fn vjp(
        &self,
        mut trace: BlockTrace<B>,
        delta: FloatTensor<B>,
        needs: BlockNeeds,
        pass: &mut Backward<'_, B>,
    ) -> Option<FloatTensor<B>> {
        let mut delta = scaled::<B>(delta, self.scale);
        if let (Some(of), Some(trace)) = (&self.per_layer, trace.per_layer.take()) {
            delta = of.vjp(&trace, delta, None, needs.per_layer, pass)?;
        }
        if let Some(norm) = self.shared_norm() {
            return self.vjp_of_shared(norm, &trace, delta, needs, pass);
        }
        if self.parallel {
            // both layers have the cotangent of the block's output
            let residual = self.mlp.vjp(&trace.mlp, delta.clone(), None, needs.mlp, pass);
            drop(trace.mlp);
            return self.mixer.vjp(&trace.mixer, delta, residual, needs.mixer, pass);
        }
        let delta = self.mlp.vjp(&trace.mlp, delta, None, needs.mlp, pass)?;
        drop(trace.mlp);
        self.mixer.vjp(&trace.mixer, delta, None, needs.mixer, pass)
    }

    /// The norm that both layers read, where they stand side by side and share one.
    fn shared_norm(&self) -> Option<&Norm<B>> {
        self.mixer.norm.as_ref().filter(|_| self.parallel && self.mlp.norm.is_none())
    }

    /// [`vjp`](Self::vjp) where both layers read one norm, whose cotangent is the sum of theirs.
    fn vjp_of_shared(
        &self,
        norm: &Norm<B>,
        trace: &BlockTrace<B>,
        delta: FloatTensor<B>,
        needs: BlockNeeds,
        pass: &mut Backward<'_, B>,
    ) -> Option<FloatTensor<B>> {
        let rows = pass.rows;
        let input = || norm.forward(&trace.mixer.x);
        let of_mlp = match needs.mlp.output {
            true => self.mlp.layer.vjp(&trace.mlp.layer, &input, &delta, None, needs.mlp, pass),
            false => None,
        };
        if !needs.mixer.output {
            return None;
        }
        let onto = of_mlp.filter(|_| needs.mixer.input).map(|of_mlp| rows.spread::<B>(of_mlp));
        let below = self.mixer.layer.vjp(&trace.mixer.layer, &input, &delta, onto, needs.mixer, pass)?;
        if !needs.mixer.stream {
            norm.deliver(&trace.mixer.x, &below, rows.full, pass);
            return None;
        }
        Some(norm.vjp(&trace.mixer.x, &below, rows.full, Some(rows.spread::<B>(delta)), pass))
    }

    /// Shows every linear map and norm, in the order of the forward pass.
    pub(crate) fn visit(&mut self, f: &mut Visitor<'_, B>) {
        self.mixer.visit(f);
        self.mlp.visit(f);
        self.per_layer.iter_mut().for_each(|of| of.visit(f));
    }

    /// The same block with its tensors elsewhere.
    pub(crate) fn convert<C: Kernels>(&self, f: &impl Fn(&FloatTensor<B>) -> FloatTensor<C>) -> Block<C> {
        let Self { mixer, mlp, per_layer, parallel, scale } = self;
        Block {
            mixer: mixer.convert(mixer.layer.convert(f), f),
            mlp: mlp.convert(mlp.layer.convert(f), f),
            per_layer: per_layer.as_ref().map(|of| Box::new(of.convert(of.layer.convert(f), f))),
            parallel: *parallel,
            scale: *scale,
        }
    }
}
