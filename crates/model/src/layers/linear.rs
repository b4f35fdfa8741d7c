//! `y = x·W + b + s·(x·A)·B`: a linear map, and the low-rank change that an adapter makes to it (Hu et al., arXiv 2106.09685).
//!
//! Its vjp is `dx = δ·Wᵀ + s·(δ·Bᵀ)·Aᵀ`. What it delivers: W meets (x, δ), A meets (x, s·δ·Bᵀ), B meets (s·x·A, δ), and the
//! bias sums δ.
use super::Backward;
use crate::sink::Factor;
use tanglescope_kernels::{FloatTensor, Kernels, RowSet};

/// Name of the weight of a linear map: of its module, or the part of a tensor that it is.
pub(crate) fn weight_of(path: &str) -> String {
    if path.contains('#') { path.to_owned() } else { format!("{path}.weight") }
}

/// Name of the bias of a linear map: of its module, or a part of the tensor of biases beside that of weights.
pub(crate) fn bias_of(path: &str) -> String {
    match path.split_once('#') {
        Some((tensor, part)) => format!("{tensor}_bias#{part}"),
        None => format!("{path}.bias"),
    }
}

/// Name of the tensor that a part is of.
#[must_use]
pub fn whole(name: &str) -> &str {
    name.split_once('#').map_or(name, |(tensor, _)| tensor)
}

/// Learned low-rank change of a linear map: `y += s·B(A x)`, s = α/r or α/√r (PEFT).
#[derive(Clone, Debug)]
pub struct Lora<B: Kernels> {
    /// Name of the module, as the adapter has it.
    pub name: String,
    /// A as `[in, r]`.
    pub a: FloatTensor<B>,
    /// B as `[r, out]`.
    pub b: FloatTensor<B>,
    /// s.
    pub scale: f64,
}

/// `y = x·W + b + s·(x·A)·B`, with W kept as `[in, out]`.
#[derive(Clone, Debug)]
pub struct Linear<B: Kernels> {
    /// Name of the module in the checkpoint, or `tensor#part` where it is a part of a tensor.
    pub name: String,
    /// `[in, out]`.
    pub weight: FloatTensor<B>,
    /// `[out]`.
    pub bias: Option<FloatTensor<B>>,
    /// The adapter's change.
    pub lora: Option<Lora<B>>,
}

impl<B: Kernels> Lora<B> {
    /// Name of the factor A.
    pub(crate) fn a_name(&self) -> String {
        format!("{}.lora_A.weight", self.name)
    }

    /// Name of the factor B.
    pub(crate) fn b_name(&self) -> String {
        format!("{}.lora_B.weight", self.name)
    }

    fn convert<C: Kernels>(&self, f: &impl Fn(&FloatTensor<B>) -> FloatTensor<C>) -> Lora<C> {
        Lora { name: self.name.clone(), a: f(&self.a), b: f(&self.b), scale: self.scale }
    }
}

impl<B: Kernels> Linear<B> {
    /// Name of the weight.
    pub(crate) fn weight_name(&self) -> String {
        weight_of(&self.name)
    }

    /// Name of the bias.
    pub(crate) fn bias_name(&self) -> String {
        bias_of(&self.name)
    }

    /// The output plus `onto`, `[N, out]`, and s·x·A where there is an adapter, `[N, r]`.
    pub(crate) fn forward(
        &self,
        x: &FloatTensor<B>,
        onto: Option<FloatTensor<B>>,
    ) -> (FloatTensor<B>, Option<FloatTensor<B>>) {
        let mut y = B::matmul(x, &self.weight, false, 1.0, onto);
        if let Some(bias) = &self.bias {
            y = B::add_bias(y, bias);
        }
        let Some(lora) = &self.lora else { return (y, None) };
        let low = B::matmul(x, &lora.a, false, lora.scale, None);
        (B::matmul(&low, &lora.b, false, 1.0, Some(y)), Some(low))
    }

    /// What the map's output cotangent δ `[R, out]` becomes on the way to its input, and to its parameters. `low` is s·x·A of
    /// the forward pass; `input` says whether the input's cotangent is wanted.
    pub(crate) fn cotangent<'a>(
        &'a self,
        delta: &'a FloatTensor<B>,
        low: Option<&'a FloatTensor<B>>,
        input: bool,
        pass: &Backward<'_, B>,
    ) -> LinearCotangent<'a, B> {
        let low_delta = self.lora.as_ref().filter(|lora| input || pass.scope.contains(&lora.a_name()));
        let low_delta = low_delta.map(|lora| B::matmul(delta, &lora.b, true, lora.scale, None));
        LinearCotangent { linear: self, delta, low, low_delta }
    }

    pub(crate) fn convert<C: Kernels>(&self, f: &impl Fn(&FloatTensor<B>) -> FloatTensor<C>) -> Linear<C> {
        Linear {
            name: self.name.clone(),
            weight: f(&self.weight),
            bias: self.bias.as_ref().map(f),
            lora: self.lora.as_ref().map(|lora| lora.convert(f)),
        }
    }
}

/// The cotangent of a linear map's output, and through its adapter that of A x.
pub(crate) struct LinearCotangent<'a, B: Kernels> {
    linear: &'a Linear<B>,
    /// `[R, out]`.
    delta: &'a FloatTensor<B>,
    /// s·x·A of the forward pass, `[N, r]`.
    low: Option<&'a FloatTensor<B>>,
    /// s·δ·Bᵀ, `[R, r]`, where A or the input wants it.
    low_delta: Option<FloatTensor<B>>,
}

impl<B: Kernels> LinearCotangent<'_, B> {
    /// Cotangent of the input, plus `onto`: `[R, in]`.
    pub(crate) fn input(&self, onto: Option<FloatTensor<B>>) -> FloatTensor<B> {
        let dx = B::matmul(self.delta, &self.linear.weight, true, 1.0, onto);
        match (&self.linear.lora, &self.low_delta) {
            (Some(lora), Some(low_delta)) => B::matmul(low_delta, &lora.a, true, 1.0, Some(dx)),
            _ => dx,
        }
    }
}

/// Cotangent of the input that some maps share, plus `onto`: `[R, in]`.
pub(crate) fn input_of<B: Kernels>(
    maps: &[LinearCotangent<'_, B>],
    onto: Option<FloatTensor<B>>,
) -> Option<FloatTensor<B>> {
    maps.iter().fold(onto, |sum, map| Some(map.input(sum)))
}

/// Delivers the parameters of linear maps of one input; the input is only computed if a parameter in scope meets it.
pub(crate) fn deliver<B: Kernels>(
    maps: &[LinearCotangent<'_, B>],
    input: impl FnOnce() -> FloatTensor<B>,
    rows: &RowSet,
    pass: &mut Backward<'_, B>,
) {
    let mut factors = Vec::new();
    for map in maps {
        let linear = map.linear;
        if pass.scope.contains(&linear.weight_name()) {
            factors.push(Factor { name: linear.weight_name(), delta: map.delta });
        }
        if let (Some(lora), Some(low)) = (&linear.lora, map.low) {
            if let Some(low_delta) = map.low_delta.as_ref().filter(|_| pass.scope.contains(&lora.a_name())) {
                factors.push(Factor { name: lora.a_name(), delta: low_delta });
            }
            if pass.scope.contains(&lora.b_name()) {
                pass.sink.linear(low, &[Factor { name: lora.b_name(), delta: map.delta }], rows);
            }
        }
        if linear.bias.is_some() && pass.scope.contains(&linear.bias_name()) {
            pass.sink.vector(&linear.bias_name(), map.delta, rows);
        }
    }
    if !factors.is_empty() {
        pass.sink.linear(&input(), &factors, rows);
    }
}
