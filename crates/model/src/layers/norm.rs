//! RMS norm and `LayerNorm`: `y = x̂ ∘ g + b`, `x̂ = (x − μ)/√(σ² + ε)`, μ = 0 for the RMS norm (docs/mathematics.md, section 3).
use super::{Backward, dims};
use tanglescope_kernels::{FloatTensor, Kernels, NormKind, RowSet, TensorMetadata};

/// RMS norm or `LayerNorm` with a learned gain, and a bias.
#[derive(Clone, Debug)]
pub struct Norm<B: Kernels> {
    /// Name of the gain in the checkpoint; empty where the norm has no parameters, and its gain is one.
    pub gain_name: String,
    /// `[features]`.
    pub gain: FloatTensor<B>,
    /// `[features]`.
    pub bias: Option<FloatTensor<B>>,
    /// Which norm.
    pub kind: NormKind,
    /// Whether rows are multiplied with one plus the gain.
    pub gain_plus_one: bool,
}

impl<B: Kernels> Norm<B> {
    /// Name of the bias.
    pub(crate) fn bias_name(&self) -> String {
        format!("{}.bias", self.gain_name.trim_end_matches(".weight"))
    }

    /// What normalised rows are multiplied with, in their type.
    fn factor(&self, rows: &FloatTensor<B>) -> FloatTensor<B> {
        let gain = B::cast(self.gain.clone(), rows.dtype());
        if self.gain_plus_one { B::add_number(gain, 1.0) } else { gain }
    }

    /// Normalised rows, `[N, features]`.
    pub(crate) fn forward(&self, x: &FloatTensor<B>) -> FloatTensor<B> {
        B::norm(x, &self.factor(x), self.bias.as_ref(), self.kind)
    }

    /// Delivers gain and bias for backward rows δ, and returns the cotangent of the input plus `onto`, `[R, features]`.
    pub(crate) fn vjp(
        &self,
        x: &FloatTensor<B>,
        delta: &FloatTensor<B>,
        rows: &RowSet,
        onto: Option<FloatTensor<B>>,
        pass: &mut Backward<'_, B>,
    ) -> FloatTensor<B> {
        self.deliver(x, delta, rows, pass);
        B::norm_vjp(x, &self.factor(x), self.kind, delta, &rows.index, onto)
    }

    /// Delivers gain and bias, where nothing below the norm is wanted.
    pub(crate) fn deliver(
        &self,
        x: &FloatTensor<B>,
        delta: &FloatTensor<B>,
        rows: &RowSet,
        pass: &mut Backward<'_, B>,
    ) {
        if pass.scope.contains(&self.gain_name) {
            let terms = B::norm_gain_terms(x, self.kind, delta, &rows.index);
            pass.sink.vector(&self.gain_name, &B::cast(terms, self.gain.dtype()), rows);
        }
        if self.bias.is_some() && pass.scope.contains(&self.bias_name()) {
            pass.sink.vector(&self.bias_name(), delta, rows);
        }
    }

    /// The norm of each stretch of a row as long as the gain: `x[N, parts·features]`, one part a head.
    pub(crate) fn forward_in_parts(&self, x: FloatTensor<B>) -> FloatTensor<B> {
        let ([rows, width], features) = (dims::<B>(&x), self.gain.shape()[0]);
        if width == features {
            return self.forward(&x);
        }
        let parts = B::reshape(x, [rows * width / features, features]);
        B::reshape(self.forward(&parts), [rows, width])
    }

    /// [`vjp`](Self::vjp) of [`forward_in_parts`](Self::forward_in_parts).
    pub(crate) fn vjp_in_parts(
        &self,
        x: &FloatTensor<B>,
        delta: FloatTensor<B>,
        rows: &RowSet,
        pass: &mut Backward<'_, B>,
    ) -> FloatTensor<B> {
        let ([forward, width], features) = (dims::<B>(x), self.gain.shape()[0]);
        let parts = width / features;
        if parts == 1 {
            return self.vjp(x, &delta, rows, None, pass);
        }
        // each part is a row of its own, and of the same cotangent
        let place = |row: u32| (0..parts).map(move |part| tanglescope_kernels::as_index(row as usize * parts + part));
        let part_rows = RowSet {
            index: rows.index.iter().flat_map(|&row| place(row)).collect(),
            offsets: rows.offsets.iter().map(|offset| offset * parts).collect(),
            sets: rows.sets.clone(),
        };
        let x = B::reshape(x.clone(), [forward * parts, features]);
        let delta = B::reshape(delta, [rows.rows() * parts, features]);
        B::reshape(self.vjp(&x, &delta, &part_rows, None, pass), [rows.rows(), width])
    }

    pub(crate) fn convert<C: Kernels>(&self, f: &impl Fn(&FloatTensor<B>) -> FloatTensor<C>) -> Norm<C> {
        let (gain_name, gain, bias) = (self.gain_name.clone(), f(&self.gain), self.bias.as_ref().map(f));
        Norm { gain_name, gain, bias, kind: self.kind, gain_plus_one: self.gain_plus_one }
    }
}
