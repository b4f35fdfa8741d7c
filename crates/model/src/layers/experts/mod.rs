//! A feed-forward layer of experts: each row goes through the few that its router chooses, `Σ_j w_j·E_j(x)`, and through a shared
//! one where there is one (docs/mathematics.md, section 3). Rows are gathered by expert and multiplied in stretches.
mod clamp;
mod fused;
mod maps;
mod shared;

pub use clamp::Clamp;
pub use fused::FusedLora;
pub use shared::SharedExpert;

use super::linear::{Changed, deliver, input_of};
use super::router::{Choices, Routes, Routing};
use super::{Backward, Forward, Layer, Linear, Norm, Part, Vector, Visitor, scaled};
use crate::needs::LayerNeeds;
use fused::deliver_fused;
use maps::{Cotangent, deliver_experts, forward, in_scope, row_products};
use shared::SharedTrace;
use std::cell::LazyCell;
use tanglescope_kernels::{Activation, FloatTensor, Kernels};

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
        // what maps read is formed again once, where something of them is in scope
        let of_down = LazyCell::new(|| self.activated(&trace.up));
        if wants(&self.maps[2], pass) {
            deliver_experts(&[&down], &of_down, &trace.routes, &routes, pass);
        }
        let fused_down = self.fused[1].as_ref().zip(trace.fused_low[1].as_ref());
        let fused_down = fused_down.map(|(fused, low)| {
            let low_delta = fused.low_delta(&[&down.delta], offsets);
            if fused.in_scope(pass) != [false; 2] {
                let ways = (&trace.routes, &routes);
                deliver_fused(fused, (&of_down, low), (&low_delta, &[&down.delta]), ways, pass);
            }
            (fused, low_delta)
        });
        drop(of_down);
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
        let sorted = LazyCell::new(|| B::gather(&self.of_experts(&x()), &trace.routes.rows(), None));
        if wants(&self.maps[0], pass) || wants(&self.maps[1], pass) {
            deliver_experts(&[&gate, &up], &sorted, &trace.routes, &routes, pass);
        }
        let fused_up = self.fused[0].as_ref().zip(trace.fused_low[0].as_ref());
        let fused_up = fused_up.map(|(fused, low)| {
            let deltas = [&gate.delta, &up.delta];
            let low_delta = fused.low_delta(&deltas, offsets);
            if fused.in_scope(pass) != [false; 2] {
                deliver_fused(fused, (&sorted, low), (&low_delta, &deltas), (&trace.routes, &routes), pass);
            }
            (fused, low_delta)
        });
        drop(sorted);
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
