//! The layers of a decoder, each with its forward pass, its vector–Jacobian product, and what it hands to a sink
//! (docs/mathematics.md, sections 3 and 4).
//!
//! Rows of the forward pass are `N`, backward rows `R`; a [`RowSet`] maps each backward row to the forward row whose
//! activations it uses. A layer keeps nothing itself: its forward pass returns what its vjp needs.
use crate::sink::{Factor, Sink};
use tanglescope_kernels::{Activation, FloatTensor, Heads, Kernels, NormKind, RowSet, Segment, Span, TensorMetadata};

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
    /// Whether rows are multiplied with one plus the gain.
    pub gain_plus_one: bool,
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

    /// What normalised rows are multiplied with.
    fn factor(&self) -> FloatTensor<B> {
        let gain = self.gain.clone();
        if self.gain_plus_one { B::float_add_scalar(gain, 1.0f64.into()) } else { gain }
    }

    pub(crate) fn forward(&self, x: &FloatTensor<B>) -> FloatTensor<B> {
        B::norm(x, &self.factor(), self.bias.as_ref(), self.kind)
    }

    /// The norm of each stretch of a row as long as the gain.
    fn forward_in_parts(&self, x: FloatTensor<B>) -> FloatTensor<B> {
        let ([rows, width], features) = (matrix::<B>(&x), self.gain.shape()[0]);
        if width == features {
            return self.forward(&x);
        }
        let parts = B::float_reshape(x, [rows * width / features, features].into());
        B::float_reshape(self.forward(&parts), [rows, width].into())
    }

    /// [`vjp`](Self::vjp) of [`forward_in_parts`](Self::forward_in_parts).
    fn vjp_in_parts(
        &self,
        x: &FloatTensor<B>,
        delta: FloatTensor<B>,
        rows: &RowSet,
        sink: &mut dyn Sink<B>,
    ) -> FloatTensor<B> {
        let ([forward, width], features) = (matrix::<B>(x), self.gain.shape()[0]);
        let parts = width / features;
        if parts == 1 {
            return self.vjp(x, &delta, rows, None, sink);
        }
        // each part is a row of its own, and of the same cotangent
        let place =
            |row: u32| (0..parts).map(move |part| u32::try_from(row as usize * parts + part).unwrap_or(u32::MAX));
        let of_parts = RowSet {
            index: rows.index.iter().flat_map(|&row| place(row)).collect(),
            offsets: rows.offsets.iter().map(|offset| offset * parts).collect(),
            blocks: rows.blocks.clone(),
        };
        let x = B::float_reshape(x.clone(), [forward * parts, features].into());
        let delta = B::float_reshape(delta, [rows.rows() * parts, features].into());
        B::float_reshape(self.vjp(&x, &delta, &of_parts, None, sink), [rows.rows(), width].into())
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
        B::norm_vjp(x, &self.factor(), self.kind, delta, &rows.index, onto)
    }
}

/// Rows and columns.
fn matrix<B: Kernels>(x: &FloatTensor<B>) -> [usize; 2] {
    let shape = x.shape();
    [shape[0], shape[1]]
}

/// Linear maps of one input whose outputs are pieces: queries, keys and values, or gate and up.
#[derive(Clone, Debug)]
pub struct Projection<B: Kernels> {
    /// A map a piece, or one.
    pub maps: Vec<Linear<B>>,
    /// How the pieces lie in the maps' outputs.
    pub pieces: Pieces,
}

/// How the pieces of a projection lie in the outputs of its maps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pieces {
    /// Each is the output of a map.
    Separate,
    /// Columns of one map's output, of these widths.
    Columns(Vec<usize>),
    /// One head's part of every piece, `head_dim` columns each, then the next head's.
    ByHead {
        /// Number of pieces.
        pieces: usize,
        /// Columns of one head in one piece.
        head_dim: usize,
    },
}

impl<B: Kernels> Projection<B> {
    /// The pieces, and s·x·A of each map that has an adapter.
    fn forward(&self, x: &FloatTensor<B>) -> (Vec<FloatTensor<B>>, Vec<Option<FloatTensor<B>>>) {
        let (outputs, low): (Vec<_>, Vec<_>) = self.maps.iter().map(|map| map.forward(x, None)).unzip();
        let pieces = match &self.pieces {
            Pieces::Separate => outputs,
            Pieces::Columns(widths) => B::split_columns(&outputs[0], widths),
            Pieces::ByHead { pieces, head_dim } => {
                let [rows, width] = matrix::<B>(&outputs[0]);
                let heads = width / (pieces * head_dim);
                let by_head = B::float_reshape(outputs[0].clone(), [rows * heads, pieces * head_dim].into());
                let split = B::split_columns(&by_head, &vec![*head_dim; *pieces]).into_iter();
                split.map(|piece| B::float_reshape(piece, [rows, heads * head_dim].into())).collect()
            }
        };
        (pieces, low)
    }

    /// Cotangents of the maps' outputs from those of the pieces.
    fn joined(&self, pieces: Vec<FloatTensor<B>>) -> Vec<FloatTensor<B>> {
        match &self.pieces {
            Pieces::Separate => pieces,
            Pieces::Columns(_) => vec![B::join_columns(&pieces)],
            Pieces::ByHead { head_dim, .. } => {
                let [rows, width] = matrix::<B>(&pieces[0]);
                let (heads, number) = (width / head_dim, pieces.len());
                let by_head = pieces.into_iter().map(|p| B::float_reshape(p, [rows * heads, *head_dim].into()));
                let joined = B::join_columns(&by_head.collect::<Vec<_>>());
                vec![B::float_reshape(joined, [rows, number * width].into())]
            }
        }
    }

    fn wanted(&self, wants: &dyn Fn(&str) -> bool) -> bool {
        self.maps.iter().any(|map| map.wanted(wants))
    }

    /// Cotangent of what the projection's norm reads, or of its own input where it has none, plus the residual's; `None` where
    /// nothing further down is wanted.
    #[allow(clippy::too_many_arguments)] // what both projections of a block share
    fn vjp(
        &self,
        norm: Option<&Norm<B>>,
        x: &FloatTensor<B>,
        pieces: Vec<FloatTensor<B>>,
        low: &[Option<FloatTensor<B>>],
        rows: &RowSet,
        residual: Option<FloatTensor<B>>,
        below: bool,
        sink: &mut dyn Sink<B>,
    ) -> Option<FloatTensor<B>> {
        let deltas = self.joined(pieces);
        let backs: Vec<Back<'_, B>> =
            self.maps.iter().zip(&deltas).zip(low).map(|((map, delta), low)| map.back(delta, low.as_ref())).collect();
        report(&backs.iter().collect::<Vec<_>>(), || normalised(norm, x), rows, sink);
        if !below && !norm.is_some_and(|norm| norm.wanted(&|name| sink.wants(name))) {
            return None;
        }
        match norm {
            Some(norm) => {
                let delta = backs.iter().fold(None, |sum, back| Some(back.input(sum)))?;
                Some(norm.vjp(x, &delta, rows, residual, sink))
            }
            None => backs.iter().fold(residual, |sum, back| Some(back.input(sum))),
        }
    }
}

/// What a projection reads: rows of the residual stream, normalised where there is a norm before it.
fn normalised<B: Kernels>(norm: Option<&Norm<B>>, x: &FloatTensor<B>) -> FloatTensor<B> {
    norm.map_or_else(|| x.clone(), |norm| norm.forward(x))
}

/// The residual stream with a layer's output added, and the output itself where a norm follows it.
fn added<B: Kernels>(
    map: &Linear<B>,
    norm: Option<&Norm<B>>,
    input: &FloatTensor<B>,
    residual: &FloatTensor<B>,
) -> Added<B> {
    let onto = if norm.is_none() { Some(residual.clone()) } else { None };
    let (y, low) = map.forward(input, onto);
    match norm {
        None => Added { stream: y, low, output: None },
        Some(norm) => Added { stream: B::add_scaled(norm.forward(&y), residual, 1.0), low, output: Some(y) },
    }
}

/// What [`added`] returns.
struct Added<B: Kernels> {
    stream: FloatTensor<B>,
    low: Option<FloatTensor<B>>,
    output: Option<FloatTensor<B>>,
}

/// Cotangent of a layer's output from that of the stream it was added to, where a norm lies between.
fn through<B: Kernels>(
    norm: Option<&Norm<B>>,
    output: Option<&FloatTensor<B>>,
    delta: &FloatTensor<B>,
    rows: &RowSet,
    sink: &mut dyn Sink<B>,
) -> Option<FloatTensor<B>> {
    Some(norm?.vjp(output?, delta, rows, None, sink))
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
        let (name, gain, bias) = (self.name.clone(), f(&self.gain), self.bias.as_ref().map(f));
        Norm { name, gain, bias, kind: self.kind, gain_plus_one: self.gain_plus_one }
    }
}

impl<B: Kernels> Projection<B> {
    fn convert<C: Kernels>(&self, f: &impl Fn(&FloatTensor<B>) -> FloatTensor<C>) -> Projection<C> {
        Projection { maps: self.maps.iter().map(|map| map.convert(f)).collect(), pieces: self.pieces.clone() }
    }
}

/// One block: `x₂ = x + o(attention(norm x))`, `x' = x₂ + mlp(norm x₂)`, with a norm after attention and feed-forward layer
/// where there is one, or `x' = x + o(attention(norm x)) + mlp(norm x)` where the two are parallel.
#[derive(Clone, Debug)]
pub struct Block<B: Kernels> {
    /// Norm before attention.
    pub attention_norm: Option<Norm<B>>,
    /// Projections to queries, keys and values.
    pub qkv: Projection<B>,
    /// Norms of queries and of keys, over each stretch of a row as long as their gain.
    pub query_key_norms: Option<Box<[Norm<B>; 2]>>,
    /// Projection of the attention output.
    pub o: Linear<B>,
    /// Norm of the projected attention output.
    pub after_attention: Option<Norm<B>>,
    /// Heads of attention.
    pub heads: Heads,
    /// Which of the model's rotary embeddings.
    pub rope: Option<usize>,
    /// Norm before the feed-forward layer.
    pub mlp_norm: Option<Norm<B>>,
    /// `down(f(gate x) ∘ up x)` of two pieces, or `down(f(up x))` of one.
    pub up: Projection<B>,
    /// Back to the residual stream.
    pub down: Linear<B>,
    /// Norm of the feed-forward layer's output.
    pub after_mlp: Option<Norm<B>>,
    /// f.
    pub activation: Activation,
    /// Whether the feed-forward layer reads the block's input.
    pub parallel: bool,
}

/// What a block's forward pass leaves for its vjp; norms and f are computed again there.
#[derive(Debug)]
pub struct BlockTrace<B: Kernels> {
    x: FloatTensor<B>,
    /// Queries and keys before their norms, where they have any.
    projected: Option<[FloatTensor<B>; 2]>,
    qkv: [FloatTensor<B>; 3],
    qkv_low: Vec<Option<FloatTensor<B>>>,
    attended: FloatTensor<B>,
    /// log Σ exp of each row's attention scores, `[N, heads]`.
    normaliser: FloatTensor<B>,
    o_low: Option<FloatTensor<B>>,
    /// Output of o, where a norm follows.
    mixed: Option<FloatTensor<B>>,
    /// What the feed-forward layer's norm reads.
    middle: FloatTensor<B>,
    /// Gate and up, or up.
    up: Vec<FloatTensor<B>>,
    up_low: Vec<Option<FloatTensor<B>>>,
    down_low: Option<FloatTensor<B>>,
    /// Output of down, where a norm follows.
    fed: Option<FloatTensor<B>>,
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
        let norm = |norm: &Option<Norm<B>>| norm.as_ref().map(|norm| norm.convert(f));
        Block {
            attention_norm: norm(&self.attention_norm),
            qkv: self.qkv.convert(f),
            query_key_norms: self
                .query_key_norms
                .as_ref()
                .map(|norms| Box::new(norms.each_ref().map(|norm| norm.convert(f)))),
            o: self.o.convert(f),
            after_attention: norm(&self.after_attention),
            heads: self.heads,
            rope: self.rope,
            mlp_norm: norm(&self.mlp_norm),
            up: self.up.convert(f),
            down: self.down.convert(f),
            after_mlp: norm(&self.after_mlp),
            activation: self.activation,
            parallel: self.parallel,
        }
    }

    /// Every linear map.
    pub(crate) fn maps_mut(&mut self) -> impl Iterator<Item = &mut Linear<B>> {
        let attention = self.qkv.maps.iter_mut().chain([&mut self.o]);
        attention.chain(&mut self.up.maps).chain([&mut self.down])
    }

    /// Forward pass over rows `x[N, d]`, with the model's rotary angles; without a trace nothing is kept.
    pub fn forward(
        &self,
        x: FloatTensor<B>,
        spans: &[Span],
        angles: &[Angles<B>],
        keep: bool,
    ) -> (FloatTensor<B>, Option<BlockTrace<B>>) {
        let (pieces, qkv_low) = self.qkv.forward(&normalised(self.attention_norm.as_ref(), &x));
        let [mut q, mut k, v]: [FloatTensor<B>; 3] = match pieces.try_into() {
            Ok(qkv) => qkv,
            Err(_) => unreachable!("the projections are queries, keys and values"),
        };
        let projected = self.query_key_norms.as_ref().map(|norms| {
            let before = [q.clone(), k.clone()];
            (q, k) = (norms[0].forward_in_parts(q.clone()), norms[1].forward_in_parts(k.clone()));
            before
        });
        if let Some((cos, sin)) = self.rope.map(|rope| &angles[rope]) {
            q = B::rotary(q, cos, sin, None, self.heads.head_dim, false);
            k = B::rotary(k, cos, sin, None, self.heads.head_dim, false);
        }
        let (attended, normaliser) = <B as Kernels>::attention(&q, &k, &v, spans, self.heads);
        let mixed = added(&self.o, self.after_attention.as_ref(), &attended, &x);
        let middle = if self.parallel { x.clone() } else { mixed.stream.clone() };
        let (up, up_low) = self.up.forward(&normalised(self.mlp_norm.as_ref(), &middle));
        let fed = added(&self.down, self.after_mlp.as_ref(), &self.activated(&up), &mixed.stream);
        let trace = keep.then(|| BlockTrace {
            x,
            projected,
            qkv: [q, k, v],
            qkv_low,
            attended,
            normaliser,
            o_low: mixed.low,
            mixed: mixed.output,
            middle,
            up,
            up_low,
            down_low: fed.low,
            fed: fed.output,
        });
        (fed.stream, trace)
    }

    /// What `down` reads, from gate and up or from up alone.
    fn activated(&self, up: &[FloatTensor<B>]) -> FloatTensor<B> {
        B::activate(self.activation, &up[0], up.get(1))
    }

    /// Whether a parameter of this block is wanted.
    pub fn wanted(&self, wants: &dyn Fn(&str) -> bool) -> bool {
        let norms = [&self.mlp_norm, &self.after_mlp];
        self.attention_wanted(wants)
            || norms.into_iter().flatten().any(|norm| norm.wanted(wants))
            || self.up.wanted(wants)
            || self.down.wanted(wants)
    }

    fn attention_wanted(&self, wants: &dyn Fn(&str) -> bool) -> bool {
        let norms = [&self.attention_norm, &self.after_attention];
        norms.into_iter().flatten().any(|norm| norm.wanted(wants)) || self.qkv_wanted(wants) || self.o.wanted(wants)
    }

    fn qkv_wanted(&self, wants: &dyn Fn(&str) -> bool) -> bool {
        self.attention_norm.as_ref().is_some_and(|norm| norm.wanted(wants))
            || self.query_key_norms.iter().flat_map(|norms| norms.iter()).any(|norm| norm.wanted(wants))
            || self.qkv.wanted(wants)
    }

    /// Cotangent of the block's input, or `None` where nothing below it is wanted.
    ///
    /// `delta` holds the rows of `rows.active` where given, of `rows.full` otherwise; the result those of `rows.full`.
    pub fn vjp(
        &self,
        trace: BlockTrace<B>,
        delta: FloatTensor<B>,
        rows: BackwardRows<'_>,
        angles: &[Angles<B>],
        below: bool,
        sink: &mut dyn Sink<B>,
    ) -> Option<FloatTensor<B>> {
        let here = rows.active.unwrap_or(rows.full);
        let attention = below || self.attention_wanted(&|name| sink.wants(name));
        // where attention and feed-forward layer are parallel, both have the cotangent of the block's output
        let output = self.parallel.then(|| delta.clone());
        let mut residual = self.mlp_vjp(&trace, delta, here, if self.parallel { below } else { attention }, sink);
        if !attention {
            return None;
        }
        let of_sum = output.as_ref().or(residual.as_ref())?;
        let mixed = through(self.after_attention.as_ref(), trace.mixed.as_ref(), of_sum, here, sink);
        let o = self.o.back(mixed.as_ref().unwrap_or(of_sum), trace.o_low.as_ref());
        report(&[&o], || trace.attended.clone(), here, sink);
        if !below && !self.qkv_wanted(&|name| sink.wants(name)) {
            return None;
        }
        let mut attended = o.input(None);
        if let Some(active) = rows.active {
            let places = places(rows.full, active);
            attended = B::scatter_add(&attended, &places, rows.full.rows());
            residual = residual.map(|residual| B::scatter_add(&residual, &places, rows.full.rows()));
        }
        let [q, k, v] = &trace.qkv;
        let forward = (&trace.attended, &trace.normaliser);
        let [mut dq, mut dk, dv] = B::attention_vjp([q, k, v], forward, &attended, rows.segments, self.heads);
        drop(attended);
        if let Some((cos, sin)) = self.rope.map(|rope| &angles[rope]) {
            let index = Some(rows.full.index.as_slice());
            dq = B::rotary(dq, cos, sin, index, self.heads.head_dim, true);
            dk = B::rotary(dk, cos, sin, index, self.heads.head_dim, true);
        }
        if let (Some(norms), Some([q, k])) = (&self.query_key_norms, &trace.projected) {
            dq = norms[0].vjp_in_parts(q, dq, rows.full, sink);
            dk = norms[1].vjp_in_parts(k, dk, rows.full, sink);
        }
        let (norm, low) = (self.attention_norm.as_ref(), &trace.qkv_low);
        let delta = self.qkv.vjp(norm, &trace.x, vec![dq, dk, dv], low, rows.full, residual, below, sink)?;
        below.then_some(delta)
    }

    /// Cotangent of what the feed-forward layer reads, plus that of its output; `None` where nothing below is wanted.
    fn mlp_vjp(
        &self,
        trace: &BlockTrace<B>,
        delta: FloatTensor<B>,
        rows: &RowSet,
        below: bool,
        sink: &mut dyn Sink<B>,
    ) -> Option<FloatTensor<B>> {
        let fed = through(self.after_mlp.as_ref(), trace.fed.as_ref(), &delta, rows, sink);
        let down = self.down.back(fed.as_ref().unwrap_or(&delta), trace.down_low.as_ref());
        report(&[&down], || self.activated(&trace.up), rows, sink);
        let inner = self.mlp_norm.as_ref().is_some_and(|norm| norm.wanted(&|name| sink.wants(name)))
            || self.up.wanted(&|name| sink.wants(name));
        if !below && !inner {
            return None;
        }
        let product = down.input(None);
        let (da, db) = B::activate_vjp(self.activation, &trace.up[0], trace.up.get(1), &product, &rows.index);
        drop(product);
        let (norm, low, pieces) = (self.mlp_norm.as_ref(), &trace.up_low, std::iter::once(da).chain(db).collect());
        self.up.vjp(norm, &trace.middle, pieces, low, rows, Some(delta), below, sink)
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
