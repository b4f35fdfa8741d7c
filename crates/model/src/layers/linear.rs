//! `y = x·W + b + s·(x·A)·B`: a linear map, and the low-rank change that an adapter makes to it (Hu et al., arXiv 2106.09685).
//!
//! Its vjp is `dx = δ·Wᵀ + s·(δ·Bᵀ)·Aᵀ`. What it delivers: W meets (x, δ), A meets (x, s·δ·Bᵀ), B meets (s·x·A, δ), and the
//! bias sums δ.
use super::magnitude::{ColumnNorms, Magnitude, ThroughNorms, along_units, columns_times};
use super::{Backward, Matrix};
use crate::sink::{Factor, LinearRows};
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
    /// Learned lengths of the changed map's columns.
    pub magnitude: Option<Magnitude<B>>,
}

/// What an adapter's change of a map leaves in the forward pass.
#[derive(Debug)]
pub(crate) struct Changed<B: Kernels> {
    /// s·x·A, `[N, r]`.
    low: FloatTensor<B>,
    /// x̂ where columns have learned lengths, `[N, out]`.
    unit: Option<FloatTensor<B>>,
}

/// `y = x·W + b + s·(x·A)·B`, with W kept as `[in, out]`.
#[derive(Clone, Debug)]
pub struct Linear<B: Kernels> {
    /// Name of the module in the checkpoint, or `tensor#part` where it is a part of a tensor.
    pub name: String,
    /// `[in, out]`.
    pub weight: Matrix<B>,
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

    /// Name of the lengths.
    pub(crate) fn magnitude_name(&self) -> String {
        format!("{}.lora_magnitude_vector", self.name)
    }

    fn convert<C: Kernels>(&self, f: &impl Fn(&FloatTensor<B>) -> FloatTensor<C>) -> Lora<C> {
        let magnitude = self.magnitude.as_ref().map(|magnitude| magnitude.convert(f));
        Lora { name: self.name.clone(), a: f(&self.a), b: f(&self.b), scale: self.scale, magnitude }
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

    /// The output plus `onto`, `[N, out]`, and what an adapter's change leaves.
    pub(crate) fn forward(
        &self,
        x: &FloatTensor<B>,
        onto: Option<FloatTensor<B>>,
    ) -> (FloatTensor<B>, Option<Changed<B>>) {
        if let Some((lora, magnitude)) = self.lora.as_ref().and_then(|lora| lora.magnitude.as_ref().map(|m| (lora, m)))
        {
            let low = B::matmul(x, &lora.a, false, lora.scale, None);
            let plain = B::matmul_with(x, &self.weight.weight(), false, 1.0, None);
            let unit = magnitude.unit(&B::matmul(&low, &lora.b, false, 1.0, Some(plain)));
            let mut y = columns_times::<B>(&unit, &magnitude.values);
            if let Some(onto) = onto {
                y = B::add_scaled(y, &onto, 1.0);
            }
            return (self.biased(y), Some(Changed { low, unit: Some(unit) }));
        }
        let y = self.biased(B::matmul_with(x, &self.weight.weight(), false, 1.0, onto));
        let Some(lora) = &self.lora else { return (y, None) };
        let low = B::matmul(x, &lora.a, false, lora.scale, None);
        (B::matmul(&low, &lora.b, false, 1.0, Some(y)), Some(Changed { low, unit: None }))
    }

    fn biased(&self, y: FloatTensor<B>) -> FloatTensor<B> {
        match &self.bias {
            Some(bias) => B::add_bias(y, bias),
            None => y,
        }
    }

    /// What the map's output cotangent δ `[R, out]` becomes on the way to its input, and to its parameters. `changed` is of the
    /// forward pass; `input` says whether the input's cotangent is wanted.
    pub(crate) fn cotangent<'a>(
        &'a self,
        delta: &'a FloatTensor<B>,
        changed: Option<&'a Changed<B>>,
        input: bool,
        pass: &Backward<'_, B>,
    ) -> LinearCotangent<'a, B> {
        let magnitude = self.lora.as_ref().and_then(|lora| lora.magnitude.as_ref());
        let below = magnitude.map(|magnitude| magnitude.below(delta));
        let low_delta = self.lora.as_ref().filter(|lora| input || pass.scope.contains(&lora.a_name()));
        let low_delta =
            low_delta.map(|lora| B::matmul(below.as_ref().unwrap_or(delta), &lora.b, true, lora.scale, None));
        LinearCotangent { linear: self, delta, below, changed, low_delta }
    }

    pub(crate) fn convert<C: Kernels>(&self, f: &impl Fn(&FloatTensor<B>) -> FloatTensor<C>) -> Linear<C> {
        Linear {
            name: self.name.clone(),
            weight: self.weight.convert(f),
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
    /// δ', where columns have learned lengths.
    below: Option<FloatTensor<B>>,
    /// What the adapter's change left in the forward pass.
    changed: Option<&'a Changed<B>>,
    /// s·δ·Bᵀ, `[R, r]`, where A or the input wants it.
    low_delta: Option<FloatTensor<B>>,
}

impl<B: Kernels> LinearCotangent<'_, B> {
    /// What the weights meet.
    fn below(&self) -> &FloatTensor<B> {
        self.below.as_ref().unwrap_or(self.delta)
    }

    /// Cotangent of the input, plus `onto`: `[R, in]`.
    pub(crate) fn input(&self, onto: Option<FloatTensor<B>>) -> FloatTensor<B> {
        let dx = B::matmul_with(self.below(), &self.linear.weight.weight(), true, 1.0, onto);
        match (&self.linear.lora, &self.low_delta) {
            (Some(lora), Some(low_delta)) => B::matmul(low_delta, &lora.a, true, 1.0, Some(dx)),
            _ => dx,
        }
    }

    /// Whether the norms of the map's columns are functions of the weights.
    fn through_norms(&self, pass: &Backward<'_, B>) -> bool {
        self.below.is_some() && pass.column_norms == ColumnNorms::Differentiated
    }

    /// Delivers all that there is of a map whose columns have learned lengths, the norms' part included.
    fn deliver_with_norms(&self, x: &FloatTensor<B>, rows: &RowSet, pass: &mut Backward<'_, B>) {
        let linear = self.linear;
        let (Some(lora), Some(Changed { low, unit: Some(unit) })) = (&linear.lora, self.changed) else { return };
        let Some(magnitude) = &lora.magnitude else { return };
        let below = self.below();
        let factors = [&lora.a, &lora.b];
        let norms = ThroughNorms::new(magnitude, (&linear.weight, factors, lora.scale), (unit, below), rows);
        let met = |x: &FloatTensor<B>, delta: &FloatTensor<B>| LinearRows {
            x: x.clone(),
            delta: delta.clone(),
            rows: rows.clone(),
        };
        if pass.scope.contains(&linear.weight_name()) {
            met(x, below).and(&norms.of_weight()).deliver(&linear.weight_name(), pass.sink);
        }
        if let Some(low_delta) = self.low_delta.as_ref().filter(|_| pass.scope.contains(&lora.a_name())) {
            met(x, low_delta).and(&norms.of_a(&lora.b, lora.scale)).deliver(&lora.a_name(), pass.sink);
        }
        if pass.scope.contains(&lora.b_name()) {
            met(low, below).and(&norms.of_b(&lora.a, lora.scale)).deliver(&lora.b_name(), pass.sink);
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
    let mut with_norms = Vec::new();
    for map in maps {
        let linear = map.linear;
        if map.through_norms(pass) {
            with_norms.push(map);
        } else {
            if pass.scope.contains(&linear.weight_name()) {
                factors.push(Factor { name: linear.weight_name(), delta: map.below() });
            }
            if let (Some(lora), Some(Changed { low, .. })) = (&linear.lora, map.changed) {
                if let Some(low_delta) = map.low_delta.as_ref().filter(|_| pass.scope.contains(&lora.a_name())) {
                    factors.push(Factor { name: lora.a_name(), delta: low_delta });
                }
                if pass.scope.contains(&lora.b_name()) {
                    pass.sink.linear(low, &[Factor { name: lora.b_name(), delta: map.below() }], rows);
                }
            }
        }
        if let (Some(lora), Some(unit)) = (&linear.lora, map.changed.and_then(|changed| changed.unit.as_ref()))
            && pass.scope.contains(&lora.magnitude_name())
        {
            pass.sink.vector(&lora.magnitude_name(), &along_units::<B>(unit, map.delta, rows), rows);
        }
        if linear.bias.is_some() && pass.scope.contains(&linear.bias_name()) {
            pass.sink.vector(&linear.bias_name(), map.delta, rows);
        }
    }
    let wanted = |map: &&LinearCotangent<'_, B>| {
        let lora = map.linear.lora.iter().flat_map(|lora| [lora.a_name(), lora.b_name()]);
        lora.chain([map.linear.weight_name()]).any(|name| pass.scope.contains(&name))
    };
    with_norms.retain(wanted);
    if factors.is_empty() && with_norms.is_empty() {
        return;
    }
    let x = input();
    if !factors.is_empty() {
        pass.sink.linear(&x, &factors, rows);
    }
    with_norms.into_iter().for_each(|map| map.deliver_with_norms(&x, rows, pass));
}
