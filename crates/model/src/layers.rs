//! The layers of a decoder, each with its forward pass, its vector–Jacobian product, and what it hands to a sink
//! (docs/mathematics.md, sections 3 and 4).
//!
//! Rows of the forward pass are `N`, backward rows `R`; a [`RowSet`] maps each backward row to the forward row whose
//! activations it uses. A layer keeps nothing itself: its forward pass returns what its vjp needs.
use crate::sink::{Factor, Sink};
use tanglescope_kernels::{Activation, FloatTensor, Heads, Kernels, NormKind, RowSet, Segment, Span};

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

impl<B: Kernels> Lora<B> {
    /// Name of the factor A.
    #[must_use]
    pub fn a_name(&self) -> String {
        format!("{}.lora_A.weight", self.name)
    }

    /// Name of the factor B.
    #[must_use]
    pub fn b_name(&self) -> String {
        format!("{}.lora_B.weight", self.name)
    }
}

/// `y = x·W + b + s·(x·A)·B`, with W kept as `[in, out]`.
#[derive(Clone, Debug)]
pub struct Linear<B: Kernels> {
    /// Name of the module in the checkpoint.
    pub name: String,
    /// `[in, out]`.
    pub weight: FloatTensor<B>,
    /// `[out]`.
    pub bias: Option<FloatTensor<B>>,
    /// The adapter's change.
    pub lora: Option<Lora<B>>,
}

/// The cotangent of a linear map's output, and through its adapter that of A x.
struct Back<'a, B: Kernels> {
    linear: &'a Linear<B>,
    /// `[R, out]`.
    delta: &'a FloatTensor<B>,
    /// s·δ·Bᵀ, `[R, r]`.
    low: Option<FloatTensor<B>>,
    /// s·x·A of the forward pass, `[N, r]`.
    u: Option<&'a FloatTensor<B>>,
}

impl<B: Kernels> Linear<B> {
    /// Name of the weight.
    #[must_use]
    pub fn weight_name(&self) -> String {
        format!("{}.weight", self.name)
    }

    /// Name of the bias.
    #[must_use]
    pub fn bias_name(&self) -> String {
        format!("{}.bias", self.name)
    }

    /// The output plus `onto`, and s·x·A where there is an adapter.
    fn forward(&self, x: &FloatTensor<B>, onto: Option<FloatTensor<B>>) -> (FloatTensor<B>, Option<FloatTensor<B>>) {
        let mut y = B::matmul(x, &self.weight, false, 1.0, onto);
        if let Some(bias) = &self.bias {
            y = B::add_bias(y, bias);
        }
        let Some(lora) = &self.lora else { return (y, None) };
        let u = B::matmul(x, &lora.a, false, lora.scale, None);
        (B::matmul(&u, &lora.b, false, 1.0, Some(y)), Some(u))
    }

    fn wanted(&self, wants: &dyn Fn(&str) -> bool) -> bool {
        wants(&self.weight_name())
            || self.bias.is_some() && wants(&self.bias_name())
            || self.lora.as_ref().is_some_and(|lora| wants(&lora.a_name()) || wants(&lora.b_name()))
    }

    fn back<'a>(&'a self, delta: &'a FloatTensor<B>, u: Option<&'a FloatTensor<B>>) -> Back<'a, B> {
        let low = self.lora.as_ref().map(|lora| B::matmul(delta, &lora.b, true, lora.scale, None));
        Back { linear: self, delta, low, u }
    }
}

impl<B: Kernels> Back<'_, B> {
    /// Cotangent of the input, plus `onto`.
    fn input(&self, onto: Option<FloatTensor<B>>) -> FloatTensor<B> {
        let dx = B::matmul(self.delta, &self.linear.weight, true, 1.0, onto);
        match (&self.linear.lora, &self.low) {
            (Some(lora), Some(low)) => B::matmul(low, &lora.a, true, 1.0, Some(dx)),
            _ => dx,
        }
    }
}

/// Hands linear maps of one input to the sink; the input is only computed if the sink wants a parameter that meets it.
fn report<B: Kernels>(
    maps: &[&Back<'_, B>],
    input: impl FnOnce() -> FloatTensor<B>,
    rows: &RowSet,
    sink: &mut dyn Sink<B>,
) {
    let mut of_input = Vec::new();
    for map in maps {
        let linear = map.linear;
        if sink.wants(&linear.weight_name()) {
            of_input.push(Factor { name: linear.weight_name(), delta: map.delta });
        }
        if let (Some(lora), Some(low), Some(u)) = (&linear.lora, &map.low, map.u) {
            if sink.wants(&lora.a_name()) {
                of_input.push(Factor { name: lora.a_name(), delta: low });
            }
            if sink.wants(&lora.b_name()) {
                sink.linear(u, &[Factor { name: lora.b_name(), delta: map.delta }], rows);
            }
        }
        if linear.bias.is_some() && sink.wants(&linear.bias_name()) {
            sink.vector(&linear.bias_name(), map.delta, rows);
        }
    }
    if !of_input.is_empty() {
        sink.linear(&input(), &of_input, rows);
    }
}

/// RMS norm or `LayerNorm` with a learned gain, and a bias.
#[derive(Clone, Debug)]
pub struct Norm<B: Kernels> {
    /// Name of the module in the checkpoint.
    pub name: String,
    /// `[features]`.
    pub gain: FloatTensor<B>,
    /// `[features]`.
    pub bias: Option<FloatTensor<B>>,
    /// Which norm.
    pub kind: NormKind,
}

impl<B: Kernels> Norm<B> {
    /// Name of the gain.
    #[must_use]
    pub fn gain_name(&self) -> String {
        format!("{}.weight", self.name)
    }

    /// Name of the bias.
    #[must_use]
    pub fn bias_name(&self) -> String {
        format!("{}.bias", self.name)
    }

    pub(crate) fn forward(&self, x: &FloatTensor<B>) -> FloatTensor<B> {
        B::norm(x, &self.gain, self.bias.as_ref(), self.kind)
    }

    pub(crate) fn wanted(&self, wants: &dyn Fn(&str) -> bool) -> bool {
        wants(&self.gain_name()) || self.bias.is_some() && wants(&self.bias_name())
    }

    /// Cotangent of the input for backward rows δ, plus `onto`.
    pub(crate) fn vjp(
        &self,
        x: &FloatTensor<B>,
        delta: &FloatTensor<B>,
        rows: &RowSet,
        onto: Option<FloatTensor<B>>,
        sink: &mut dyn Sink<B>,
    ) -> FloatTensor<B> {
        if sink.wants(&self.gain_name()) {
            sink.vector(&self.gain_name(), &B::norm_gain_terms(x, self.kind, delta, &rows.index), rows);
        }
        if self.bias.is_some() && sink.wants(&self.bias_name()) {
            sink.vector(&self.bias_name(), delta, rows);
        }
        B::norm_vjp(x, &self.gain, self.kind, delta, &rows.index, onto)
    }
}

/// Projections to queries, keys and values.
#[derive(Clone, Debug)]
pub enum QkvProjection<B: Kernels> {
    /// Three matrices: q, k, v.
    Separate(Box<[Linear<B>; 3]>),
    /// One matrix whose columns are queries, then keys, then values.
    Fused(Box<Linear<B>>),
}

impl<B: Kernels> QkvProjection<B> {
    pub(crate) fn maps(&self) -> &[Linear<B>] {
        match self {
            Self::Separate(maps) => maps.as_slice(),
            Self::Fused(map) => std::slice::from_ref(&**map),
        }
    }

    pub(crate) fn maps_mut(&mut self) -> &mut [Linear<B>] {
        match self {
            Self::Separate(maps) => maps.as_mut_slice(),
            Self::Fused(map) => std::slice::from_mut(&mut **map),
        }
    }
}

/// cos and sin of the forward rows' rotary angles, `[N, head_dim/2]` each.
pub type Angles<B> = (FloatTensor<B>, FloatTensor<B>);

impl<B: Kernels> Lora<B> {
    fn convert<C: Kernels>(&self, f: &impl Fn(&FloatTensor<B>) -> FloatTensor<C>) -> Lora<C> {
        Lora { name: self.name.clone(), a: f(&self.a), b: f(&self.b), scale: self.scale }
    }
}

impl<B: Kernels> Linear<B> {
    fn convert<C: Kernels>(&self, f: &impl Fn(&FloatTensor<B>) -> FloatTensor<C>) -> Linear<C> {
        Linear {
            name: self.name.clone(),
            weight: f(&self.weight),
            bias: self.bias.as_ref().map(f),
            lora: self.lora.as_ref().map(|lora| lora.convert(f)),
        }
    }
}

impl<B: Kernels> Norm<B> {
    fn convert<C: Kernels>(&self, f: &impl Fn(&FloatTensor<B>) -> FloatTensor<C>) -> Norm<C> {
        Norm { name: self.name.clone(), gain: f(&self.gain), bias: self.bias.as_ref().map(f), kind: self.kind }
    }
}

/// One block: `x₂ = x + o(attention(norm x))`, `x' = x₂ + mlp(norm x₂)`.
#[derive(Clone, Debug)]
pub struct Block<B: Kernels> {
    /// Norm before attention.
    pub attention_norm: Norm<B>,
    /// Projections to queries, keys and values.
    pub qkv: QkvProjection<B>,
    /// Projection of the attention output.
    pub o: Linear<B>,
    /// Heads of attention.
    pub heads: Heads,
    /// Norm before the feed-forward layer.
    pub mlp_norm: Norm<B>,
    /// Gate of a gated feed-forward layer: `down(f(gate x) ∘ up x)`.
    pub gate: Option<Linear<B>>,
    /// `down(f(up x))` where there is no gate.
    pub up: Linear<B>,
    /// Back to the residual stream.
    pub down: Linear<B>,
    /// f.
    pub activation: Activation,
}

/// What a block's forward pass leaves for its vjp; norms and f are computed again there.
#[derive(Debug)]
pub struct BlockTrace<B: Kernels> {
    x: FloatTensor<B>,
    qkv: [FloatTensor<B>; 3],
    qkv_low: Vec<Option<FloatTensor<B>>>,
    attended: FloatTensor<B>,
    /// log Σ exp of each row's attention scores, `[N, heads]`.
    normaliser: FloatTensor<B>,
    o_low: Option<FloatTensor<B>>,
    middle: FloatTensor<B>,
    gate: Option<(FloatTensor<B>, Option<FloatTensor<B>>)>,
    up: (FloatTensor<B>, Option<FloatTensor<B>>),
    down_low: Option<FloatTensor<B>>,
}

/// Rows of a backward pass at one block.
#[derive(Clone, Copy, Debug)]
pub struct BackwardRows<'a> {
    /// All rows that the cotangents reach.
    pub full: &'a RowSet,
    /// Their segments in attention; `active_from` is where `active` begins, or 0.
    pub segments: &'a [Segment],
    /// At the top block: the rows whose cotangent is not exactly zero.
    pub active: Option<&'a RowSet>,
}

impl<B: Kernels> Block<B> {
    /// The same block with its tensors elsewhere.
    pub(crate) fn convert<C: Kernels>(&self, f: &impl Fn(&FloatTensor<B>) -> FloatTensor<C>) -> Block<C> {
        Block {
            attention_norm: self.attention_norm.convert(f),
            qkv: match &self.qkv {
                QkvProjection::Separate(maps) => {
                    QkvProjection::Separate(Box::new(maps.each_ref().map(|map| map.convert(f))))
                }
                QkvProjection::Fused(map) => QkvProjection::Fused(Box::new(map.convert(f))),
            },
            o: self.o.convert(f),
            heads: self.heads,
            mlp_norm: self.mlp_norm.convert(f),
            gate: self.gate.as_ref().map(|gate| gate.convert(f)),
            up: self.up.convert(f),
            down: self.down.convert(f),
            activation: self.activation,
        }
    }

    /// Every linear map.
    pub(crate) fn maps_mut(&mut self) -> impl Iterator<Item = &mut Linear<B>> {
        let attention = self.qkv.maps_mut().iter_mut().chain([&mut self.o]);
        attention.chain(self.gate.as_mut()).chain([&mut self.up, &mut self.down])
    }

    /// Forward pass over rows `x[N, d]`; without a trace nothing is kept.
    pub fn forward(
        &self,
        x: FloatTensor<B>,
        spans: &[Span],
        angles: Option<&Angles<B>>,
        keep: bool,
    ) -> (FloatTensor<B>, Option<BlockTrace<B>>) {
        let normal = self.attention_norm.forward(&x);
        let (mut projected, qkv_low): (Vec<_>, Vec<_>) =
            self.qkv.maps().iter().map(|map| map.forward(&normal, None)).unzip();
        drop(normal);
        let h = self.heads.head_dim;
        if let QkvProjection::Fused(_) = self.qkv {
            let kv = self.heads.kv_heads * h;
            projected = B::split_columns(&projected[0], &[self.heads.heads * h, kv, kv]);
        }
        let [mut q, mut k, v]: [FloatTensor<B>; 3] = match projected.try_into() {
            Ok(qkv) => qkv,
            Err(_) => unreachable!("the projections are queries, keys and values"),
        };
        if let Some((cos, sin)) = angles {
            q = B::rotary(q, cos, sin, None, h, false);
            k = B::rotary(k, cos, sin, None, h, false);
        }
        let (attended, normaliser) = <B as Kernels>::attention(&q, &k, &v, spans, self.heads);
        let (middle, o_low) = self.o.forward(&attended, Some(x.clone()));
        let normal = self.mlp_norm.forward(&middle);
        let gate = self.gate.as_ref().map(|gate| gate.forward(&normal, None));
        let up = self.up.forward(&normal, None);
        drop(normal);
        let (y, down_low) = self.down.forward(&self.activated(gate.as_ref(), &up), Some(middle.clone()));
        let trace = keep.then(|| BlockTrace {
            x,
            qkv: [q, k, v],
            qkv_low,
            attended,
            normaliser,
            o_low,
            middle,
            gate,
            up,
            down_low,
        });
        (y, trace)
    }

    fn activated(
        &self,
        gate: Option<&(FloatTensor<B>, Option<FloatTensor<B>>)>,
        up: &(FloatTensor<B>, Option<FloatTensor<B>>),
    ) -> FloatTensor<B> {
        match gate {
            Some((gate, _)) => B::activate(self.activation, gate, Some(&up.0)),
            None => B::activate(self.activation, &up.0, None),
        }
    }

    /// Whether a parameter of this block is wanted.
    pub fn wanted(&self, wants: &dyn Fn(&str) -> bool) -> bool {
        self.attention_wanted(wants)
            || self.mlp_norm.wanted(wants)
            || self.gate.as_ref().is_some_and(|gate| gate.wanted(wants))
            || self.up.wanted(wants)
            || self.down.wanted(wants)
    }

    fn attention_wanted(&self, wants: &dyn Fn(&str) -> bool) -> bool {
        self.attention_norm.wanted(wants) || self.qkv.maps().iter().any(|map| map.wanted(wants)) || self.o.wanted(wants)
    }

    /// Cotangent of the block's input, or `None` where nothing below it is wanted.
    ///
    /// `delta` holds the rows of `rows.active` where given, of `rows.full` otherwise; the result those of `rows.full`.
    pub fn vjp(
        &self,
        trace: BlockTrace<B>,
        delta: FloatTensor<B>,
        rows: BackwardRows<'_>,
        angles: Option<&Angles<B>>,
        below: bool,
        sink: &mut dyn Sink<B>,
    ) -> Option<FloatTensor<B>> {
        let here = rows.active.unwrap_or(rows.full);
        let delta =
            self.mlp_vjp(&trace, delta, here, below || self.attention_wanted(&|name| sink.wants(name)), sink)?;

        let o = self.o.back(&delta, trace.o_low.as_ref());
        report(&[&o], || trace.attended.clone(), here, sink);
        let of_qkv = self.attention_norm.wanted(&|name| sink.wants(name))
            || self.qkv.maps().iter().any(|map| map.wanted(&|name| sink.wants(name)));
        if !below && !of_qkv {
            return None;
        }
        let mut attended = o.input(None);
        let mut delta = delta;
        if let Some(active) = rows.active {
            let places = places(rows.full, active);
            attended = B::scatter_add(&attended, &places, rows.full.rows());
            delta = B::scatter_add(&delta, &places, rows.full.rows());
        }
        let [q, k, v] = &trace.qkv;
        let forward = (&trace.attended, &trace.normaliser);
        let [mut dq, mut dk, dv] = B::attention_vjp([q, k, v], forward, &attended, rows.segments, self.heads);
        drop(attended);
        if let Some((cos, sin)) = angles {
            let index = Some(rows.full.index.as_slice());
            dq = B::rotary(dq, cos, sin, index, self.heads.head_dim, true);
            dk = B::rotary(dk, cos, sin, index, self.heads.head_dim, true);
        }
        let deltas = match self.qkv {
            QkvProjection::Separate(_) => vec![dq, dk, dv],
            QkvProjection::Fused(_) => vec![B::join_columns(&[dq, dk, dv])],
        };
        let backs: Vec<Back<'_, B>> = (self.qkv.maps().iter().zip(&deltas).zip(&trace.qkv_low))
            .map(|((map, delta), low)| map.back(delta, low.as_ref()))
            .collect();
        let all: Vec<&Back<'_, B>> = backs.iter().collect();
        report(&all, || self.attention_norm.forward(&trace.x), rows.full, sink);
        if !below && !self.attention_norm.wanted(&|name| sink.wants(name)) {
            return None;
        }
        let normal = backs.iter().fold(None, |sum, back| Some(back.input(sum)))?;
        let delta = self.attention_norm.vjp(&trace.x, &normal, rows.full, Some(delta), sink);
        below.then_some(delta)
    }

    fn mlp_vjp(
        &self,
        trace: &BlockTrace<B>,
        delta: FloatTensor<B>,
        rows: &RowSet,
        below: bool,
        sink: &mut dyn Sink<B>,
    ) -> Option<FloatTensor<B>> {
        let down = self.down.back(&delta, trace.down_low.as_ref());
        report(&[&down], || self.activated(trace.gate.as_ref(), &trace.up), rows, sink);
        let inner = self.mlp_norm.wanted(&|name| sink.wants(name))
            || self.up.wanted(&|name| sink.wants(name))
            || self.gate.as_ref().is_some_and(|gate| gate.wanted(&|name| sink.wants(name)));
        if !below && !inner {
            return None;
        }
        let product = down.input(None);
        let (up, up_low) = &trace.up;
        let normal = if let (Some(gate), Some((a, gate_low))) = (&self.gate, &trace.gate) {
            let (da, db) = B::activate_vjp(self.activation, a, Some(up), &product, &rows.index);
            drop(product);
            let db = db?;
            let (gate, up) = (gate.back(&da, gate_low.as_ref()), self.up.back(&db, up_low.as_ref()));
            report(&[&gate, &up], || self.mlp_norm.forward(&trace.middle), rows, sink);
            up.input(Some(gate.input(None)))
        } else {
            let (da, _) = B::activate_vjp(self.activation, up, None, &product, &rows.index);
            let up = self.up.back(&da, up_low.as_ref());
            report(&[&up], || self.mlp_norm.forward(&trace.middle), rows, sink);
            up.input(None)
        };
        Some(self.mlp_norm.vjp(&trace.middle, &normal, rows, Some(delta), sink))
    }
}

/// Row of `full` of each row of `active`, whose cotangents are the ends of the same cotangents' rows.
fn places(full: &RowSet, active: &RowSet) -> Vec<u32> {
    (0..full.cotangents())
        .flat_map(|k| {
            let (all, part) = (full.of(k), active.of(k));
            all.end - part.len()..all.end
        })
        .map(|row| u32::try_from(row).unwrap_or(u32::MAX))
        .collect()
}
