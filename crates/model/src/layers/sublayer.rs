//! What a block is made of: `onto + norm_after(layer(norm(x)))`, and its vjp, whatever the layer is.
use super::{Backward, Forward, Norm, Part, Visitor};
use crate::needs::LayerNeeds;
use tanglescope_kernels::{FloatTensor, Kernels};

/// A mixer of rows, or a feed-forward layer: what stands between a norm and the residual stream.
pub trait Layer<B: Kernels> {
    /// What its forward pass leaves for its vjp.
    type Trace: std::fmt::Debug;

    /// Whether a row of its output depends on other rows of its input, so that below it every row has a cotangent.
    const MIXES_ROWS: bool;

    /// The output for an input `x[N, hidden]`, plus `onto`.
    fn forward(
        &self,
        x: &FloatTensor<B>,
        onto: Option<FloatTensor<B>>,
        rows: &Forward<'_, B>,
    ) -> (FloatTensor<B>, Self::Trace);

    /// Delivers the layer's parameters for the output's cotangent δ, and returns the input's, plus `onto`, where it is needed.
    /// `x` gives the input of the forward pass.
    fn vjp(
        &self,
        trace: &Self::Trace,
        x: &dyn Fn() -> FloatTensor<B>,
        delta: &FloatTensor<B>,
        onto: Option<FloatTensor<B>>,
        needs: LayerNeeds,
        pass: &mut Backward<'_, B>,
    ) -> Option<FloatTensor<B>>;

    /// Shows every linear map and norm, in the order of the forward pass.
    fn visit(&mut self, f: &mut Visitor<'_, B>);
}

/// A layer with the norms around it.
#[derive(Clone, Debug)]
pub struct Sublayer<B: Kernels, L> {
    /// Norm of what the layer reads.
    pub norm: Option<Norm<B>>,
    /// The layer.
    pub layer: L,
    /// Norm of its output.
    pub norm_after: Option<Norm<B>>,
    /// Factor on what it adds.
    pub scale: f64,
}

/// Whether a factor changes something.
fn scales(factor: f64) -> bool {
    factor.to_bits() != 1.0f64.to_bits()
}

/// Rows times a factor, which is one for most models.
pub(crate) fn scaled<B: Kernels>(rows: FloatTensor<B>, factor: f64) -> FloatTensor<B> {
    if scales(factor) { B::times_number(rows, factor) } else { rows }
}

/// What a sublayer's forward pass leaves for its vjp; norms are computed again there.
#[derive(Debug)]
pub struct SublayerTrace<B: Kernels, T> {
    /// What its norm reads, `[N, hidden]`.
    pub(super) x: FloatTensor<B>,
    pub(super) layer: T,
    /// The layer's output, where a norm follows, `[N, hidden]`.
    pub(super) output: Option<FloatTensor<B>>,
}

impl<B: Kernels, L: Layer<B>> Sublayer<B, L> {
    /// `onto + scale·norm_after(layer(norm(x)))`, `[N, hidden]`.
    pub(crate) fn forward(
        &self,
        x: &FloatTensor<B>,
        onto: &FloatTensor<B>,
        rows: &Forward<'_, B>,
    ) -> (FloatTensor<B>, SublayerTrace<B, L::Trace>) {
        let (stream, layer) = match &self.norm_after {
            None if scales(self.scale) => {
                let (output, layer) = self.layer.forward(&self.input(x), None, rows);
                (B::add_scaled(onto.clone(), &output, self.scale), layer)
            }
            None => self.layer.forward(&self.input(x), Some(onto.clone()), rows),
            Some(norm) => {
                let (normed, trace) = self.normed(norm, x, rows);
                return (B::add_scaled(normed, onto, 1.0), trace);
            }
        };
        (stream, SublayerTrace { x: x.clone(), layer, output: None })
    }

    /// `scale·norm_after(layer(norm(x)))`, `[N, hidden]`, for the norm behind the layer.
    pub(crate) fn normed(
        &self,
        after: &Norm<B>,
        x: &FloatTensor<B>,
        rows: &Forward<'_, B>,
    ) -> (FloatTensor<B>, SublayerTrace<B, L::Trace>) {
        let (output, layer) = self.layer.forward(&self.input(x), None, rows);
        let normed = scaled::<B>(after.forward(&output), self.scale);
        (normed, SublayerTrace { x: x.clone(), layer, output: Some(output) })
    }

    /// What the layer reads.
    fn input(&self, x: &FloatTensor<B>) -> FloatTensor<B> {
        self.norm.as_ref().map_or_else(|| x.clone(), |norm| norm.forward(x))
    }

    /// Delivers all parameters for the cotangent δ of the sum, and returns the cotangent of x plus `residual`, which is δ itself
    /// where none is given, where it is needed.
    pub(crate) fn vjp(
        &self,
        trace: &SublayerTrace<B, L::Trace>,
        delta: FloatTensor<B>,
        residual: Option<FloatTensor<B>>,
        needs: LayerNeeds,
        pass: &mut Backward<'_, B>,
    ) -> Option<FloatTensor<B>> {
        if !needs.output {
            return None;
        }
        let rows = pass.rows;
        let scaled = scales(self.scale).then(|| B::times_number(delta.clone(), self.scale));
        let after = self.norm_after.as_ref().zip(trace.output.as_ref());
        let after = after
            .map(|(norm, output)| norm.vjp(output, scaled.as_ref().unwrap_or(&delta), rows.here(), None, pass))
            .or(scaled);
        let x = || self.input(&trace.x);
        // below a layer that mixes rows, every row has a cotangent
        let below = if L::MIXES_ROWS { rows.full } else { rows.here() };
        let spread = |delta| if L::MIXES_ROWS { rows.spread::<B>(delta) } else { delta };
        let Some(norm) = &self.norm else {
            let layer_delta = after.unwrap_or_else(|| delta.clone());
            let onto = needs.stream.then(|| spread(residual.unwrap_or(delta)));
            return self.layer.vjp(&trace.layer, &x, &layer_delta, onto, needs, pass);
        };
        let dx = self.layer.vjp(&trace.layer, &x, after.as_ref().unwrap_or(&delta), None, needs, pass)?;
        drop(after);
        if !needs.stream {
            norm.deliver(&trace.x, &dx, below, pass);
            return None;
        }
        Some(norm.vjp(&trace.x, &dx, below, Some(spread(residual.unwrap_or(delta))), pass))
    }

    /// The same around the layer's copy elsewhere.
    pub(crate) fn convert<C: Kernels, M>(
        &self,
        layer: M,
        f: &impl Fn(&FloatTensor<B>) -> FloatTensor<C>,
    ) -> Sublayer<C, M> {
        let norm = |norm: &Option<Norm<B>>| norm.as_ref().map(|norm| norm.convert(f));
        Sublayer { norm: norm(&self.norm), layer, norm_after: norm(&self.norm_after), scale: self.scale }
    }

    pub(crate) fn visit(&mut self, f: &mut Visitor<'_, B>) {
        self.norm.iter_mut().for_each(|norm| f(Part::Norm(norm)));
        self.layer.visit(f);
        self.norm_after.iter_mut().for_each(|norm| f(Part::Norm(norm)));
    }
}
