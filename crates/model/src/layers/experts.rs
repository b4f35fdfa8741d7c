//! A feed-forward layer of experts: each row goes through the few that its router chooses, `Σ_j w_j·E_j(x)`, and through a shared
//! one where there is one (docs/mathematics.md, section 3). Rows are gathered by expert and multiplied in stretches.
use super::linear::{Changed, deliver, input_of};
use super::router::{BackwardRoutes, Choices, Routes, Routing};
use super::{Backward, Forward, Layer, Linear, Mlp, MlpTrace, Norm, Part, Vector, Visitor, dims, scaled};
use crate::needs::LayerNeeds;
use crate::sink::Factor;
use tanglescope_kernels::{Activation, FloatTensor, Kernels, RowSet, Stretch, Weight, as_index};

/// `Σ_j w_j·down_j(f(gate_j x) ∘ up_j x)`, plus a shared expert's output.
#[derive(Clone, Debug)]
pub struct Experts<B: Kernels> {
    /// To the logits of the experts.
    pub router: Linear<B>,
    /// How experts are chosen and weighted.
    pub routing: Routing,
    /// What is added to sigmoids where they decide which experts are chosen; no parameter that has a gradient.
    pub correction: Option<Vec<f64>>,
    /// A factor on the weight of each expert.
    pub factors: Option<Vector<B>>,
    /// What router and experts read, where they read the residual stream each through a norm.
    pub norms: Option<Box<ExpertNorms<B>>>,
    /// Gate, up and down of each expert, of one rank where they have adapters.
    pub maps: [Vec<Linear<B>>; 3],
    /// f.
    pub activation: Activation,
    /// Where there is one, `x·σ(α·x)` of gates cut from above times one more than what is cut from both sides, and f plays no part.
    pub clamp: Option<Clamp>,
    /// An expert that every row goes through.
    pub shared: Option<Box<SharedExpert<B>>>,
    /// What an adapter of all experts as one matrix changes of gate and up together, and of down.
    pub fused: [Option<FusedLora<B>>; 2],
}

/// Norms of what router and experts read.
#[derive(Clone, Debug)]
pub struct ExpertNorms<B: Kernels> {
    /// Of what the router reads.
    pub router: Norm<B>,
    /// Factor on that.
    pub router_scale: f64,
    /// Of what the experts read.
    pub experts: Norm<B>,
}

impl<B: Kernels> ExpertNorms<B> {
    /// What the router reads.
    fn of_router(&self, x: &FloatTensor<B>) -> FloatTensor<B> {
        scaled::<B>(self.router.forward(x), self.router_scale)
    }
}

/// gpt-oss's gate: `min(a, limit)·σ(α·min(a, limit))·(clamp(b, ±limit) + 1)`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Clamp {
    /// Where gate and up are cut.
    pub limit: f64,
    /// α.
    pub alpha: f64,
}

impl Clamp {
    /// Bounds of the gate, and of what it is multiplied with.
    fn bounds(self) -> [[f64; 2]; 2] {
        [[f64::NEG_INFINITY, self.limit], [-self.limit, self.limit]]
    }

    /// What `silu` is of, α times the cut gate, and what it is multiplied with, `(cut up + 1)/α`.
    fn cut<B: Kernels>(self, up: &[FloatTensor<B>; 2]) -> [FloatTensor<B>; 2] {
        let [of_gate, of_up] = self.bounds();
        let gate = B::times_number(B::cut(up[0].clone(), of_gate), self.alpha);
        let up = B::add_number(B::cut(up[1].clone(), of_up), 1.0);
        [gate, B::times_number(up, self.alpha.recip())]
    }

    /// Cotangents of gate and up from those of what [`cut`](Self::cut) made of them.
    fn vjp<B: Kernels>(
        self,
        up: &[FloatTensor<B>; 2],
        [da, db]: [FloatTensor<B>; 2],
        index: &[u32],
    ) -> [FloatTensor<B>; 2] {
        let [of_gate, of_up] = self.bounds();
        let da = B::cut_vjp(&up[0], of_gate, B::times_number(da, self.alpha), index);
        [da, B::cut_vjp(&up[1], of_up, B::times_number(db, self.alpha.recip()), index)]
    }
}

/// Low-rank changes that an adapter has for all experts of a layer in one pair of tensors: PEFT's `target_parameters`.
#[derive(Clone, Debug)]
pub struct FusedLora<B: Kernels> {
    /// Path of the module, as the adapter has it.
    pub name: String,
    /// A of each expert as `[in, r]`.
    pub a: Vec<FloatTensor<B>>,
    /// B of each expert as `[r, out]`, for gate and for up, or for down.
    pub b: Vec<Vec<FloatTensor<B>>>,
    /// s.
    pub scale: f64,
}

impl<B: Kernels> FusedLora<B> {
    /// Name of an expert's part of A.
    pub(crate) fn a_name(&self, expert: usize) -> String {
        format!("{}.lora_A.weight#{expert}", self.name)
    }

    /// Name of an expert's part of B, of one of the pieces.
    pub(crate) fn b_name(&self, expert: usize, piece: usize) -> String {
        format!("{}.lora_B.weight#{expert}.{piece}", self.name)
    }

    fn rank(&self) -> usize {
        dims::<B>(&self.a[0])[1]
    }

    /// s·x·A of rows sorted by expert.
    fn low(&self, x: &FloatTensor<B>, offsets: &[usize]) -> FloatTensor<B> {
        let a = stretches(self.a.iter().map(|a| Some((Weight::Plain(a), self.scale))), offsets);
        B::grouped(x, &a, false, self.rank(), None)
    }

    /// Adds low·B of a piece.
    fn onto(&self, piece: usize, low: &FloatTensor<B>, y: FloatTensor<B>, offsets: &[usize]) -> FloatTensor<B> {
        let width = dims::<B>(&y)[1];
        B::grouped(
            low,
            &stretches(self.b[piece].iter().map(|b| Some((Weight::Plain(b), 1.0))), offsets),
            false,
            width,
            Some(y),
        )
    }

    /// s·Σ δ·Bᵀ over the pieces.
    fn low_delta(&self, deltas: &[&FloatTensor<B>], offsets: &[usize]) -> FloatTensor<B> {
        let of = deltas.iter().zip(&self.b).fold(None, |sum, (delta, b)| {
            let b = stretches(b.iter().map(|b| Some((Weight::Plain(b), self.scale))), offsets);
            Some(B::grouped(delta, &b, true, self.rank(), sum))
        });
        of.unwrap_or_else(|| unreachable!("there is a piece"))
    }

    /// Cotangent of the input.
    fn input(&self, low_delta: &FloatTensor<B>, dx: FloatTensor<B>, offsets: &[usize]) -> FloatTensor<B> {
        let width = dims::<B>(&dx)[1];
        B::grouped(
            low_delta,
            &stretches(self.a.iter().map(|a| Some((Weight::Plain(a), 1.0))), offsets),
            true,
            width,
            Some(dx),
        )
    }

    /// Whether a part of it is in scope.
    fn in_scope(&self, pass: &Backward<'_, B>) -> [bool; 2] {
        [pass.scope.contains(&self.a_name(0)), pass.scope.contains(&self.b_name(0, 0))]
    }

    fn convert<C: Kernels>(&self, f: &impl Fn(&FloatTensor<B>) -> FloatTensor<C>) -> FusedLora<C> {
        FusedLora {
            name: self.name.clone(),
            a: self.a.iter().map(f).collect(),
            b: self.b.iter().map(|b| b.iter().map(f).collect()).collect(),
            scale: self.scale,
        }
    }
}

/// `σ(gate x)·mlp(x)`, or `mlp(x)`.
#[derive(Clone, Debug)]
pub struct SharedExpert<B: Kernels> {
    /// The expert.
    pub mlp: Mlp<B>,
    /// To one number a row.
    pub gate: Option<Linear<B>>,
}

/// What the forward pass leaves; f is computed again in the vjp.
#[derive(Debug)]
pub struct ExpertsTrace<B: Kernels> {
    routes: Routes,
    router_low: Option<Changed<B>>,
    /// Gate and up of the rows sorted by expert, `[N·k, width]` each.
    up: [FloatTensor<B>; 2],
    /// s·x·A of gate, up and down, where they have adapters, `[N·k, r]`.
    low: [Option<FloatTensor<B>>; 3],
    /// s·x·A of gate and up together, and of down, where one adapter has all experts.
    fused_low: [Option<FloatTensor<B>>; 2],
    /// Outputs of the experts, `[N·k, hidden]`.
    outputs: FloatTensor<B>,
    shared: Option<SharedTrace<B>>,
}

impl<B: Kernels> ExpertsTrace<B> {
    /// What the router decided.
    pub fn choices(&self) -> Choices {
        self.routes.choices()
    }
}

#[derive(Debug)]
struct SharedTrace<B: Kernels> {
    mlp: MlpTrace<B>,
    gate: Option<GateTrace<B>>,
}

#[derive(Debug)]
struct GateTrace<B: Kernels> {
    low: Option<Changed<B>>,
    /// σ(gate x) of each row.
    open: Vec<f64>,
    /// What it multiplies, `[N, hidden]`.
    output: FloatTensor<B>,
}

/// Rows of a matrix.
fn slice<B: Kernels>(x: &FloatTensor<B>, rows: std::ops::Range<usize>) -> FloatTensor<B> {
    B::gather(x, &rows.map(as_index).collect::<Vec<_>>(), None)
}

/// Inner product of each row of two matrices.
fn row_products<B: Kernels>(a: FloatTensor<B>, b: FloatTensor<B>) -> Vec<f64> {
    let width = dims::<B>(&a)[1];
    let ones = B::upload_like(vec![1.0; width], &[width, 1], &a);
    B::download(&B::matmul(&B::times(a, b), &ones, false, 1.0, None))
}

/// The stretches of rows that some matrices have, where they are there.
fn stretches<'a, B: Kernels>(
    matrices: impl Iterator<Item = Option<(Weight<'a, B>, f64)>>,
    offsets: &[usize],
) -> Vec<Stretch<'a, B>> {
    let of = |(matrix, ends): (Option<(Weight<'a, B>, f64)>, &[usize])| {
        let (w, scale) = matrix?;
        (ends[0] < ends[1]).then(|| Stretch { rows: ends[0]..ends[1], w, scale })
    };
    matrices.zip(offsets.windows(2)).filter_map(of).collect()
}

/// The maps' outputs for rows sorted by expert, and s·x·A where there are adapters.
fn forward<B: Kernels>(
    maps: &[Linear<B>],
    x: &FloatTensor<B>,
    offsets: &[usize],
) -> (FloatTensor<B>, Option<FloatTensor<B>>) {
    let width = maps[0].weight.dims()[1];
    let weights = stretches(maps.iter().map(|map| Some((map.weight.weight(), 1.0))), offsets);
    let mut y = B::grouped(x, &weights, false, width, None);
    let biases: Vec<FloatTensor<B>> =
        maps.iter().filter_map(|map| Some(B::reshape(map.bias.clone()?, [1, width]))).collect();
    if !biases.is_empty() {
        // a bias is a map of the number one
        let rows = dims::<B>(x)[0];
        let ones = B::upload_like(vec![1.0; rows], &[rows, 1], x);
        y = B::grouped(
            &ones,
            &stretches(biases.iter().map(|bias| Some((Weight::Plain(bias), 1.0))), offsets),
            false,
            width,
            Some(y),
        );
    }
    let Some(rank) = rank(maps) else { return (y, None) };
    let a = maps.iter().map(|map| map.lora.as_ref().map(|lora| (Weight::Plain(&lora.a), lora.scale)));
    let low = B::grouped(x, &stretches(a, offsets), false, rank, None);
    let b = maps.iter().map(|map| map.lora.as_ref().map(|lora| (Weight::Plain(&lora.b), 1.0)));
    (B::grouped(&low, &stretches(b, offsets), false, width, Some(y)), Some(low))
}

/// Rank of the experts' adapters.
fn rank<B: Kernels>(maps: &[Linear<B>]) -> Option<usize> {
    maps.iter().find_map(|map| Some(dims::<B>(&map.lora.as_ref()?.a)[1]))
}

/// What the maps' output cotangents become on the way to their input, and to their parameters.
struct Cotangent<'a, B: Kernels> {
    maps: &'a [Linear<B>],
    delta: FloatTensor<B>,
    low: Option<&'a FloatTensor<B>>,
    /// s·δ·Bᵀ.
    low_delta: Option<FloatTensor<B>>,
    offsets: &'a [usize],
}

impl<'a, B: Kernels> Cotangent<'a, B> {
    fn new(
        maps: &'a [Linear<B>],
        delta: FloatTensor<B>,
        low: Option<&'a FloatTensor<B>>,
        (input, offsets): (bool, &'a [usize]),
        pass: &Backward<'_, B>,
    ) -> Self {
        let wanted =
            |map: &Linear<B>| map.lora.as_ref().is_some_and(|lora| input || pass.scope.contains(&lora.a_name()));
        let low_delta = rank(maps).filter(|_| maps.iter().any(wanted)).map(|rank| {
            let b = maps.iter().map(|map| map.lora.as_ref().map(|lora| (Weight::Plain(&lora.b), lora.scale)));
            B::grouped(&delta, &stretches(b, offsets), true, rank, None)
        });
        Self { maps, delta, low, low_delta, offsets }
    }

    /// Cotangent of the input, plus `onto`.
    fn input(&self, onto: Option<FloatTensor<B>>) -> FloatTensor<B> {
        let width = self.maps[0].weight.dims()[0];
        let weights = stretches(self.maps.iter().map(|map| Some((map.weight.weight(), 1.0))), self.offsets);
        let dx = B::grouped(&self.delta, &weights, true, width, onto);
        let Some(low_delta) = &self.low_delta else { return dx };
        let a = self.maps.iter().map(|map| map.lora.as_ref().map(|lora| (Weight::Plain(&lora.a), 1.0)));
        B::grouped(low_delta, &stretches(a, self.offsets), true, width, Some(dx))
    }
}

/// Delivers the parameters of maps of one input, expert by expert: `forward` are the sorted rows of the forward pass.
fn deliver_experts<B: Kernels>(
    maps: &[&Cotangent<'_, B>],
    input: &FloatTensor<B>,
    forward: &Routes,
    backward: &BackwardRoutes,
    pass: &mut Backward<'_, B>,
) {
    let all = pass.rows;
    for expert in 0..backward.offsets.len() - 1 {
        let Some(rows) = rows_of(expert, forward, backward, all.here()) else { continue };
        let (own, inputs) = (backward.of_expert(expert), forward.of_expert(expert));
        let mut found: Vec<(String, FloatTensor<B>)> = Vec::new();
        for of in maps {
            let map = &of.maps[expert];
            if pass.scope.contains(&map.weight_name()) {
                found.push((map.weight_name(), slice::<B>(&of.delta, own.clone())));
            }
            if map.bias.is_some() && pass.scope.contains(&map.bias_name()) {
                pass.sink.vector(&map.bias_name(), &slice::<B>(&of.delta, own.clone()), &rows);
            }
            let Some(lora) = &map.lora else { continue };
            if let Some(low_delta) = of.low_delta.as_ref().filter(|_| pass.scope.contains(&lora.a_name())) {
                found.push((lora.a_name(), slice::<B>(low_delta, own.clone())));
            }
            if let Some(low) = of.low.filter(|_| pass.scope.contains(&lora.b_name())) {
                let delta = slice::<B>(&of.delta, own.clone());
                let factor = Factor { name: lora.b_name(), delta: &delta };
                pass.sink.linear(&slice::<B>(low, inputs.clone()), &[factor], &rows);
            }
        }
        if !found.is_empty() {
            let factors: Vec<Factor<'_, B>> =
                found.iter().map(|(name, delta)| Factor { name: name.clone(), delta }).collect();
            pass.sink.linear(&slice::<B>(input, inputs), &factors, &rows);
        }
    }
}

/// The backward rows of an expert over its own sorted rows; `None` where it has none.
fn rows_of(expert: usize, forward: &Routes, backward: &BackwardRoutes, here: &RowSet) -> Option<RowSet> {
    let (own, first) = (backward.of_expert(expert), as_index(forward.of_expert(expert).start));
    (!own.is_empty()).then(|| RowSet {
        index: backward.places[own.clone()].iter().map(|&place| place - first).collect(),
        offsets: cotangent_offsets(&backward.rows[own], &here.offsets),
        sets: here.sets.clone(),
    })
}

/// Delivers the factors of an adapter of all experts, expert by expert, for the cotangents of its pieces.
fn deliver_fused<B: Kernels>(
    fused: &FusedLora<B>,
    (input, low): (&FloatTensor<B>, &FloatTensor<B>),
    (low_delta, deltas): (&FloatTensor<B>, &[&FloatTensor<B>]),
    (forward, backward): (&Routes, &BackwardRoutes),
    pass: &mut Backward<'_, B>,
) {
    let (all, [wants_a, wants_b]) = (pass.rows, fused.in_scope(pass));
    for expert in 0..fused.a.len() {
        let Some(rows) = rows_of(expert, forward, backward, all.here()) else { continue };
        let (own, inputs) = (backward.of_expert(expert), forward.of_expert(expert));
        if wants_a {
            let delta = slice::<B>(low_delta, own.clone());
            let factor = Factor { name: fused.a_name(expert), delta: &delta };
            pass.sink.linear(&slice::<B>(input, inputs.clone()), &[factor], &rows);
        }
        if wants_b {
            let deltas: Vec<FloatTensor<B>> = deltas.iter().map(|delta| slice::<B>(delta, own.clone())).collect();
            let of = |(piece, delta)| Factor { name: fused.b_name(expert, piece), delta };
            let factors: Vec<Factor<'_, B>> = deltas.iter().enumerate().map(of).collect();
            pass.sink.linear(&slice::<B>(low, inputs), &factors, &rows);
        }
    }
}

/// First of each cotangent's rows among ascending backward rows, and their number.
fn cotangent_offsets(rows: &[u32], offsets: &[usize]) -> Vec<usize> {
    offsets.iter().map(|&offset| rows.partition_point(|&row| (row as usize) < offset)).collect()
}

impl<B: Kernels> Experts<B> {
    /// What the router reads.
    fn of_router(&self, x: &FloatTensor<B>) -> FloatTensor<B> {
        self.norms.as_ref().map_or_else(|| x.clone(), |norms| norms.of_router(x))
    }

    /// What the experts read.
    fn of_experts(&self, x: &FloatTensor<B>) -> FloatTensor<B> {
        self.norms.as_ref().map_or_else(|| x.clone(), |norms| norms.experts.forward(x))
    }

    /// What `down` reads.
    fn activated(&self, up: &[FloatTensor<B>; 2]) -> FloatTensor<B> {
        match self.clamp {
            None => B::activate(self.activation, &up[0], Some(&up[1])),
            Some(clamp) => {
                let [gate, up] = clamp.cut::<B>(up);
                B::activate(Activation::Silu, &gate, Some(&up))
            }
        }
    }

    /// Cotangents of gate and up from that of what `down` reads.
    fn activated_vjp(&self, up: &[FloatTensor<B>; 2], hidden: &FloatTensor<B>, index: &[u32]) -> [FloatTensor<B>; 2] {
        let of = |f, [gate, up]: [&FloatTensor<B>; 2]| {
            let (da, db) = B::activate_vjp(f, gate, Some(up), hidden, index);
            [da, db.unwrap_or_else(|| unreachable!("experts are gated"))]
        };
        match self.clamp {
            None => of(self.activation, up.each_ref()),
            Some(clamp) => clamp.vjp::<B>(up, of(Activation::Silu, clamp.cut::<B>(up).each_ref()), index),
        }
    }

    pub(crate) fn convert<C: Kernels>(&self, f: &impl Fn(&FloatTensor<B>) -> FloatTensor<C>) -> Experts<C> {
        let shared = self.shared.as_ref().map(|shared| {
            let gate = shared.gate.as_ref().map(|gate| gate.convert(f));
            Box::new(SharedExpert { mlp: shared.mlp.convert(f), gate })
        });
        Experts {
            router: self.router.convert(f),
            routing: self.routing,
            correction: self.correction.clone(),
            factors: self.factors.as_ref().map(|factors| factors.convert(f)),
            norms: self.norms.as_ref().map(|norms| {
                let (router, experts) = (norms.router.convert(f), norms.experts.convert(f));
                Box::new(ExpertNorms { router, router_scale: norms.router_scale, experts })
            }),
            maps: self.maps.each_ref().map(|maps| maps.iter().map(|map| map.convert(f)).collect()),
            activation: self.activation,
            clamp: self.clamp,
            shared,
            fused: self.fused.each_ref().map(|fused| fused.as_ref().map(|fused| fused.convert(f))),
        }
    }
}

impl<B: Kernels> SharedExpert<B> {
    fn forward(
        &self,
        x: &FloatTensor<B>,
        onto: Option<FloatTensor<B>>,
        rows: &Forward<'_, B>,
    ) -> (FloatTensor<B>, SharedTrace<B>) {
        let Some(gate) = &self.gate else {
            let (y, mlp) = self.mlp.forward(x, onto, rows);
            return (y, SharedTrace { mlp, gate: None });
        };
        let (output, mlp) = self.mlp.forward(x, None, rows);
        let (z, low) = gate.forward(x, None);
        let open: Vec<f64> = B::download(&z).into_iter().map(|z| 1.0 / (1.0 + (-z).exp())).collect();
        let y = B::gather(&output, &(0..as_index(open.len())).collect::<Vec<_>>(), Some(&open));
        let y = match onto {
            Some(onto) => B::add_scaled(y, &onto, 1.0),
            None => y,
        };
        (y, SharedTrace { mlp, gate: Some(GateTrace { low, open, output }) })
    }

    fn vjp(
        &self,
        trace: &SharedTrace<B>,
        x: &dyn Fn() -> FloatTensor<B>,
        delta: &FloatTensor<B>,
        onto: Option<FloatTensor<B>>,
        needs: LayerNeeds,
        pass: &mut Backward<'_, B>,
    ) -> Option<FloatTensor<B>> {
        let (Some(gate), Some(of_gate)) = (&self.gate, &trace.gate) else {
            return self.mlp.vjp(&trace.mlp, x, delta, onto, needs, pass);
        };
        let rows = pass.rows;
        let index = &rows.here().index;
        let open: Vec<f64> = index.iter().map(|&row| of_gate.open[row as usize]).collect();
        let gated = B::gather(delta, &(0..as_index(open.len())).collect::<Vec<_>>(), Some(&open));
        let through = self.mlp.vjp(&trace.mlp, x, &gated, onto, needs, pass);
        if !needs.hidden {
            return None;
        }
        let products = row_products::<B>(delta.clone(), B::gather(&of_gate.output, index, None));
        let dz: Vec<f64> = products.into_iter().zip(&open).map(|(s, t)| s * t * (1.0 - t)).collect();
        let dz = B::upload_like(dz, &[open.len(), 1], delta);
        let of = [gate.cotangent(&dz, of_gate.low.as_ref(), needs.input, pass)];
        deliver(&of, x, rows.here(), pass);
        if needs.input { input_of(&of, through) } else { None }
    }
}

impl<B: Kernels> Layer<B> for Experts<B> {
    type Trace = ExpertsTrace<B>;

    const MIXES_ROWS: bool = false;

    fn forward(
        &self,
        x: &FloatTensor<B>,
        onto: Option<FloatTensor<B>>,
        rows: &Forward<'_, B>,
    ) -> (FloatTensor<B>, Self::Trace) {
        let (logits, router_low) = self.router.forward(&self.of_router(x), None);
        let factors = self.factors.as_ref().map(|factors| B::download(&factors.values));
        let experts = self.maps[0].len();
        let routes = self.routing.routes(&B::download(&logits), experts, self.correction.as_deref());
        let routes = match factors {
            Some(factors) => routes.times(&factors),
            None => routes,
        };
        let sorted = B::gather(&self.of_experts(x), &routes.rows(), None);
        let [gate, up, down] = &self.maps;
        let (gate, gate_low) = forward(gate, &sorted, routes.offsets());
        let (up, up_low) = forward(up, &sorted, routes.offsets());
        let offsets = routes.offsets();
        // given away, so that what an adapter adds is added in place
        let (up, fused_up) = match &self.fused[0] {
            Some(fused) => {
                let low = fused.low(&sorted, offsets);
                ([fused.onto(0, &low, gate, offsets), fused.onto(1, &low, up, offsets)], Some(low))
            }
            None => ([gate, up], None),
        };
        let hidden = self.activated(&up);
        let (outputs, down_low) = forward(down, &hidden, offsets);
        let (outputs, fused_down) = match &self.fused[1] {
            Some(fused) => {
                let low = fused.low(&hidden, offsets);
                (fused.onto(0, &low, outputs, offsets), Some(low))
            }
            None => (outputs, None),
        };
        let fused_low = [fused_up, fused_down];
        let (mut y, shared) = match &self.shared {
            Some(shared) => {
                let (y, trace) = shared.forward(x, onto, rows);
                (Some(y), Some(trace))
            }
            None => (onto, None),
        };
        for j in 0..self.routing.per_row {
            let (places, weights) = routes.choice(j);
            let part = B::gather(&outputs, &places, Some(&weights));
            y = Some(match y {
                Some(y) => B::add_scaled(y, &part, 1.0),
                None => part,
            });
        }
        let y = y.unwrap_or_else(|| unreachable!("a row has an expert"));
        (y, ExpertsTrace { routes, router_low, up, low: [gate_low, up_low, down_low], fused_low, outputs, shared })
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
        let index = &rows.here().index;
        let shared = match (&self.shared, &trace.shared) {
            (Some(shared), Some(trace)) => shared.vjp(trace, x, delta, onto, needs, pass),
            _ => onto,
        };
        let routes = trace.routes.backward(index);
        let offsets = routes.offsets.as_slice();
        let weighted = B::gather(delta, &routes.rows, Some(&routes.weights));
        let [gate, up, down] = &self.maps;
        let down = Cotangent::new(down, weighted, trace.low[2].as_ref(), (needs.hidden, offsets), pass);
        let wants = |maps: &[Linear<B>], pass: &Backward<'_, B>| maps.iter().any(|map| in_scope(map, pass));
        if wants(&self.maps[2], pass) {
            deliver_experts(&[&down], &self.activated(&trace.up), &trace.routes, &routes, pass);
        }
        let fused_down = self.fused[1].as_ref().zip(trace.fused_low[1].as_ref());
        let fused_down = fused_down.map(|(fused, low)| {
            let low_delta = fused.low_delta(&[&down.delta], offsets);
            if fused.in_scope(pass) != [false; 2] {
                let ways = (&trace.routes, &routes);
                let input = self.activated(&trace.up);
                deliver_fused(fused, (&input, low), (&low_delta, &[&down.delta]), ways, pass);
            }
            (fused, low_delta)
        });
        if !needs.hidden {
            return None;
        }
        let mut hidden = down.input(None);
        if let Some((fused, low_delta)) = &fused_down {
            hidden = fused.input(low_delta, hidden, offsets);
        }
        let [da, db] = self.activated_vjp(&trace.up, &hidden, &routes.places);
        drop(hidden);
        let gate = Cotangent::new(gate, da, trace.low[0].as_ref(), (needs.input, offsets), pass);
        let up = Cotangent::new(up, db, trace.low[1].as_ref(), (needs.input, offsets), pass);
        if wants(&self.maps[0], pass) || wants(&self.maps[1], pass) {
            let sorted = B::gather(&self.of_experts(&x()), &trace.routes.rows(), None);
            deliver_experts(&[&gate, &up], &sorted, &trace.routes, &routes, pass);
        }
        let fused_up = self.fused[0].as_ref().zip(trace.fused_low[0].as_ref());
        let fused_up = fused_up.map(|(fused, low)| {
            let deltas = [&gate.delta, &up.delta];
            let low_delta = fused.low_delta(&deltas, offsets);
            if fused.in_scope(pass) != [false; 2] {
                let sorted = B::gather(&self.of_experts(&x()), &trace.routes.rows(), None);
                deliver_fused(fused, (&sorted, low), (&low_delta, &deltas), (&trace.routes, &routes), pass);
            }
            (fused, low_delta)
        });
        let factors = self.factors.as_ref().filter(|factors| pass.scope.contains(&factors.name));
        if !needs.input && !in_scope(&self.router, pass) && factors.is_none() {
            return None;
        }
        // how each weight changes the output along δ
        let (of_delta, of_output) =
            (B::gather(delta, &routes.rows, None), B::gather(&trace.outputs, &routes.places, None));
        let slopes = row_products::<B>(of_delta, of_output);
        let slopes: Vec<f64> = routes.of_row.iter().map(|&place| slopes[place as usize]).collect();
        let shape = [index.len(), self.maps[0].len()];
        if let Some(factors) = factors {
            let terms = B::upload_like(trace.routes.factor_terms(index, &slopes), &shape, delta);
            factors.deliver(|| terms, rows.here(), pass);
        }
        let dz = B::upload_like(trace.routes.vjp(index, &slopes), &shape, delta);
        let router = [self.router.cotangent(&dz, trace.router_low.as_ref(), needs.input, pass)];
        deliver(&router, || self.of_router(&x()), rows.here(), pass);
        if !needs.input {
            return None;
        }
        let mut sorted = up.input(Some(gate.input(None)));
        if let Some((fused, low_delta)) = &fused_up {
            sorted = fused.input(low_delta, sorted, offsets);
        }
        let k = self.routing.per_row;
        let of_rows = |onto| {
            (0..k).fold(onto, |sum, j| {
                let places: Vec<u32> = routes.of_row.iter().skip(j).step_by(k).copied().collect();
                let part = B::gather(&sorted, &places, None);
                Some(match sum {
                    Some(sum) => B::add_scaled(sum, &part, 1.0),
                    None => part,
                })
            })
        };
        let Some(norms) = &self.norms else { return of_rows(input_of(&router, shared)) };
        let (x, here) = (x(), rows.here());
        let of_router = scaled::<B>(input_of(&router, None)?, norms.router_scale);
        let dx = norms.router.vjp(&x, &of_router, here, shared, pass);
        Some(norms.experts.vjp(&x, &of_rows(None)?, here, Some(dx), pass))
    }

    fn visit(&mut self, f: &mut Visitor<'_, B>) {
        self.norms.iter_mut().for_each(|norms| f(Part::Norm(&mut norms.router)));
        f(Part::Linear(&mut self.router));
        self.factors.iter_mut().for_each(|factors| f(Part::Vector(factors)));
        self.norms.iter_mut().for_each(|norms| f(Part::Norm(&mut norms.experts)));
        let [gate, up, down] = &mut self.maps;
        for ((gate, up), down) in gate.iter_mut().zip(up).zip(down) {
            [gate, up, down].into_iter().for_each(|map| f(Part::Expert(map)));
        }
        f(Part::Fused(&mut self.fused));
        if let Some(shared) = &mut self.shared {
            shared.mlp.visit(f);
            shared.gate.iter_mut().for_each(|gate| f(Part::Linear(gate)));
        }
    }
}

/// Whether a parameter of a map is in scope.
fn in_scope<B: Kernels>(map: &Linear<B>, pass: &Backward<'_, B>) -> bool {
    let of_adapter = map
        .lora
        .as_ref()
        .is_some_and(|lora| pass.scope.contains(&lora.a_name()) || pass.scope.contains(&lora.b_name()));
    let of_bias = map.bias.is_some() && pass.scope.contains(&map.bias_name());
    of_adapter || of_bias || pass.scope.contains(&map.weight_name())
}
