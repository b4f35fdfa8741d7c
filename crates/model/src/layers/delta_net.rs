//! Gated DeltaNet: projections, a short convolution, the gated delta rule, and a gated norm (docs/mathematics.md, section 3; Yang et
//! al., arXiv 2412.06464).
//!
//! q, k, v go through a causal convolution and `silu`; q and k are made as long as one; a head's state decays by
//! `g = −e^A·ln(1 + e^(a + b))` and takes up `β = σ(b')` of what it is off by; `y = o(silu(z) ∘ norm(rule(q, k, v, g, β)))`.
use super::linear::{Changed, deliver, input_of};
use super::projection::Low;
use super::{Backward, Forward, Layer, Linear, Norm, Part, Projection, Vector, Visitor, dims};
use crate::needs::LayerNeeds;
use tanglescope_kernels::{Activation, DeltaInputs, DeltaSpec, FloatTensor, Kernels, TensorMetadata, convolution};

/// `o(silu(z) ∘ norm(rule(…)))`.
#[derive(Clone, Debug)]
pub struct DeltaNet<B: Kernels> {
    /// Projections to queries, keys, values, output gates z, uptakes b', and decays a, in this order.
    pub inputs: Projection<B>,
    /// Taps of queries, keys and values, in this order of channels, each channel's together.
    pub convolution: Vector<B>,
    /// f, after the convolution.
    pub activation: Activation,
    /// A, `[value_heads]`.
    pub decay_rate: Vector<B>,
    /// b, `[value_heads]`.
    pub decay_bias: Vector<B>,
    /// Norms without parameters that make queries and keys as long as one, and queries `1/√key_dim`.
    pub unit: [Norm<B>; 2],
    /// The heads.
    pub spec: DeltaSpec,
    /// Norm of each head's output.
    pub norm: Norm<B>,
    /// Back to the residual stream.
    pub o: Linear<B>,
}

/// What the forward pass leaves; what is cheap is computed again in the vjp.
#[derive(Debug)]
pub struct DeltaNetTrace<B: Kernels> {
    low: Low<B>,
    /// Queries, keys and values before the convolution, `[N, channels]`.
    mixed: FloatTensor<B>,
    /// After it; this and what follows in the type that states are carried in.
    convolved: FloatTensor<B>,
    gates: Gates<B>,
    /// What the rule put out, and was off by, `[N, value_heads·value_dim]`.
    output: FloatTensor<B>,
    errors: FloatTensor<B>,
    /// As projected.
    z: FloatTensor<B>,
    o_low: Option<Changed<B>>,
}

/// Decays and uptakes of each row and head, `[N, value_heads]`.
#[derive(Debug)]
struct Gates<B: Kernels> {
    /// b'.
    uptake: FloatTensor<B>,
    /// a + b.
    speed: FloatTensor<B>,
    /// −e^A, in each row.
    rates: FloatTensor<B>,
    decay: FloatTensor<B>,
    beta: FloatTensor<B>,
}

/// In the type that states are carried in: the first outputs of a row are nearly zero before their norm, which makes roundings large.
fn wide<B: Kernels>(x: FloatTensor<B>) -> FloatTensor<B> {
    B::cast(x, B::carried())
}

impl<B: Kernels> DeltaNet<B> {
    /// Taps of each channel.
    fn taps(&self) -> usize {
        self.convolution.values.shape()[0] / self.widths().iter().sum::<usize>()
    }

    /// Widths of queries, keys and values.
    fn widths(&self) -> [usize; 3] {
        let keys = self.spec.key_heads * self.spec.key_dim;
        [keys, keys, self.spec.value_heads * self.spec.value_dim]
    }

    /// A vector as equal rows.
    fn rows_of(values: &FloatTensor<B>, rows: usize) -> FloatTensor<B> {
        let row = B::reshape(values.clone(), [1, values.shape()[0]]);
        B::gather(&row, &vec![0; rows], None)
    }

    fn gates(&self, uptake: FloatTensor<B>, speed: FloatTensor<B>) -> Gates<B> {
        let (uptake, speed) = (wide::<B>(uptake), wide::<B>(speed));
        let speed = B::add_bias(speed, &wide::<B>(self.decay_bias.values.clone()));
        let rate = wide::<B>(self.decay_rate.values.clone());
        let rate = B::activate(Activation::Exponential, &B::reshape(rate, [1, self.spec.value_heads]), None);
        let rate = B::reshape(B::times_number(rate, -1.0), [self.spec.value_heads]);
        let rates = Self::rows_of(&rate, dims::<B>(&speed)[0]);
        let decay = B::activate(Activation::Softplus, &speed, Some(&rates));
        let beta = B::activate(Activation::Sigmoid, &uptake, None);
        Gates { uptake, speed, rates, decay, beta }
    }

    /// Queries, keys and values after the convolution, and queries and keys of their lengths.
    fn heads(&self, convolved: &FloatTensor<B>) -> ([FloatTensor<B>; 3], [FloatTensor<B>; 2]) {
        let active = B::activate(self.activation, convolved, None);
        let [q, k, v]: [FloatTensor<B>; 3] = match B::split_columns(&active, &self.widths()).try_into() {
            Ok(heads) => heads,
            Err(_) => unreachable!("three widths are three pieces"),
        };
        let unit = [self.unit[0].forward_in_parts(q.clone()), self.unit[1].forward_in_parts(k.clone())];
        ([q, k, v], unit)
    }

    /// What the output projection reads.
    fn gated(&self, trace: &DeltaNetTrace<B>) -> FloatTensor<B> {
        let normed = self.norm.forward_in_parts(trace.output.clone());
        B::cast(B::activate(Activation::Silu, &wide::<B>(trace.z.clone()), Some(&normed)), trace.z.dtype())
    }

    pub(crate) fn convert<C: Kernels>(&self, f: &impl Fn(&FloatTensor<B>) -> FloatTensor<C>) -> DeltaNet<C> {
        DeltaNet {
            inputs: self.inputs.convert(f),
            convolution: self.convolution.convert(f),
            activation: self.activation,
            decay_rate: self.decay_rate.convert(f),
            decay_bias: self.decay_bias.convert(f),
            unit: self.unit.each_ref().map(|norm| norm.convert(f)),
            spec: self.spec,
            norm: self.norm.convert(f),
            o: self.o.convert(f),
        }
    }
}

impl<B: Kernels> Layer<B> for DeltaNet<B> {
    type Trace = DeltaNetTrace<B>;

    const MIXES_ROWS: bool = true;

    fn forward(
        &self,
        x: &FloatTensor<B>,
        onto: Option<FloatTensor<B>>,
        rows: &Forward<'_, B>,
    ) -> (FloatTensor<B>, Self::Trace) {
        let (pieces, low) = self.inputs.forward(x);
        let [q, k, v, z, uptake, speed]: [FloatTensor<B>; 6] = match pieces.try_into() {
            Ok(pieces) => pieces,
            Err(_) => unreachable!("the projections are six"),
        };
        let mixed = B::join_columns(&[q, k, v]);
        let taps = self.taps();
        let before = convolution::rows_before(rows.spans, dims::<B>(x)[0], taps);
        let convolved =
            B::convolve(&wide::<B>(mixed.clone()), &wide::<B>(self.convolution.values.clone()), taps, &before);
        let ([_, _, v], [q, k]) = self.heads(&convolved);
        let gates = self.gates(uptake, speed);
        let inputs = DeltaInputs { q: &q, k: &k, v: &v, decay: &gates.decay, beta: &gates.beta };
        let (output, errors) = B::delta_rule(&inputs, rows.spans, self.spec);
        let mut trace = DeltaNetTrace { low, mixed, convolved, z, gates, output, errors, o_low: None };
        let (y, o_low) = self.o.forward(&self.gated(&trace), onto);
        trace.o_low = o_low;
        (y, trace)
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
        let o = [self.o.cotangent(delta, trace.o_low.as_ref(), needs.hidden, pass)];
        deliver(&o, || self.gated(trace), rows.here(), pass);
        if !needs.hidden {
            return None;
        }
        let both = |(of, through): (FloatTensor<B>, Option<FloatTensor<B>>)| {
            (of, through.unwrap_or_else(|| unreachable!("a product has two cotangents")))
        };
        let (normed, hidden) = (self.norm.forward_in_parts(trace.output.clone()), wide::<B>(o[0].input(None)));
        let (z, index) = (wide::<B>(trace.z.clone()), rows.here().index.as_slice());
        let (dz, normed) = both(B::activate_vjp(Activation::Silu, &z, Some(&normed), &hidden, index));
        drop((hidden, z));
        let output = self.norm.vjp_in_parts(&trace.output, normed, rows.here(), pass);
        let (dz, output) = (rows.spread::<B>(dz), rows.spread::<B>(output));
        let ([q, k, v], [unit_q, unit_k]) = self.heads(&trace.convolved);
        let gates = &trace.gates;
        let inputs = DeltaInputs { q: &unit_q, k: &unit_k, v: &v, decay: &gates.decay, beta: &gates.beta };
        let forward = (&trace.output, &trace.errors);
        let [dq, dk, dv, ddecay, dbeta] = B::delta_rule_vjp(&inputs, forward, &output, rows.segments, self.spec);
        let (index, dtype) = (rows.full.index.as_slice(), delta.dtype());
        let (dspeed, drates) =
            both(B::activate_vjp(Activation::Softplus, &gates.speed, Some(&gates.rates), &ddecay, index));
        // ∂(−e^A)/∂A is −e^A again
        let of_rate = || B::cast(B::times(drates, B::gather(&gates.rates, index, None)), dtype);
        self.decay_rate.deliver(of_rate, rows.full, pass);
        let dspeed = B::cast(dspeed, dtype);
        self.decay_bias.deliver(|| dspeed.clone(), rows.full, pass);
        let duptake = B::activate_vjp(Activation::Sigmoid, &gates.uptake, None, &dbeta, index).0;
        let dq = self.unit[0].vjp_in_parts(&q, dq, rows.full, pass);
        let dk = self.unit[1].vjp_in_parts(&k, dk, rows.full, pass);
        let active = B::join_columns(&[dq, dk, dv]);
        let convolved = B::activate_vjp(self.activation, &trace.convolved, None, &active, index).0;
        let (taps, segments) = (self.taps(), rows.segments);
        let of_taps = || {
            let before = convolution::forward_rows_before(segments, taps);
            B::cast(B::convolve_terms(&wide::<B>(trace.mixed.clone()), taps, &convolved, &before), dtype)
        };
        self.convolution.deliver(of_taps, rows.full, pass);
        let behind = convolution::rows_behind(segments, taps);
        let mixed = B::convolve(&convolved, &wide::<B>(self.convolution.values.clone()), taps, &behind);
        let mut pieces = B::split_columns(&B::cast(mixed, dtype), &self.widths());
        pieces.extend([B::cast(dz, dtype), B::cast(duptake, dtype), dspeed]);
        let deltas = self.inputs.joined(pieces);
        let maps = self.inputs.cotangents(&deltas, &trace.low, needs.input, pass);
        deliver(&maps, x, rows.full, pass);
        if needs.input { input_of(&maps, onto) } else { None }
    }

    fn visit(&mut self, f: &mut Visitor<'_, B>) {
        self.inputs.visit(f);
        for vector in [&mut self.convolution, &mut self.decay_bias, &mut self.decay_rate] {
            f(Part::Vector(vector));
        }
        f(Part::Norm(&mut self.norm));
        f(Part::Linear(&mut self.o));
    }
}
