//! Softmax attention over trunk and suffixes: projections, norms of queries and keys, rotary positions, and the output
//! projection around the attention kernel, with sinks and output gates (docs/mathematics.md, section 3).
use super::latent::{LatentTrace, narrowed, widened};
use super::linear::{Changed, deliver, input_of};
use super::projection::Low;
use super::sinks::SinksTrace;
use super::{Backward, Forward, Latent, LatentDims, Layer, Linear, Norm, Part, Projection, Sinks, Visitor, sums};
use crate::needs::LayerNeeds;
use tanglescope_kernels::{Activation, AttentionSpec, FloatTensor, Kernels, Pairs};

/// `o(softmax(s·q·kᵀ)·v)`, or `o(σ(gate) ∘ softmax(s·q·kᵀ)·v)`, q, k, v and the gate projections of the input or of latents.
#[derive(Clone, Debug)]
pub struct Attention<B: Kernels> {
    /// Where queries, keys and values come from.
    pub source: Source<B>,
    /// Whether there are.
    pub gated: bool,
    /// Norm of queries, over each stretch of a row as long as its gain.
    pub query_norm: Option<Box<Norm<B>>>,
    /// Norm of keys, over each stretch of a row as long as its gain.
    pub key_norm: Option<Box<Norm<B>>>,
    /// Norm of the values of each head, without a gain.
    pub value_norm: Option<Box<Norm<B>>>,
    /// Whether keys, before their norm, are the values too.
    pub keys_are_values: bool,
    /// Whether keys and values are those of another block, as it attends to them.
    pub borrows: bool,
    /// What queries, keys and values are cut at, after the norms.
    pub bound: Option<f64>,
    /// A score for each head that no value belongs to.
    pub sinks: Option<Sinks<B>>,
    /// Projection of the attention output.
    pub o: Linear<B>,
    /// Its heads, scale, soft cap and window.
    pub spec: AttentionSpec,
    /// Which of the model's rotary embeddings queries have, and which keys; none where positions are learned, or there are none.
    pub rope: Option<[usize; 2]>,
    /// Which values of a head are rotated together.
    pub rotated: Pairs,
}

/// Where queries, keys and values come from.
#[derive(Clone, Debug)]
pub enum Source<B: Kernels> {
    /// Projections of the input, to queries, to gates where there are any, to keys and to values.
    Input(Projection<B>),
    /// Projections of latents.
    Latent(Box<Latent<B>>),
}

/// What the forward pass of a source leaves.
#[derive(Debug)]
enum SourceTrace<B: Kernels> {
    Input(Low<B>),
    Latent(LatentTrace<B>),
}

impl<B: Kernels> Source<B> {
    fn forward(&self, x: &FloatTensor<B>) -> (Vec<FloatTensor<B>>, SourceTrace<B>) {
        match self {
            Self::Input(of) => {
                let (pieces, low) = of.forward(x);
                (pieces, SourceTrace::Input(low))
            }
            Self::Latent(of) => {
                let (pieces, trace) = of.forward(x);
                (pieces, SourceTrace::Latent(trace))
            }
        }
    }

    /// See [`Layer::vjp`]; `deltas` are the cotangents of what the forward pass gave.
    fn vjp(
        &self,
        trace: &SourceTrace<B>,
        x: &dyn Fn() -> FloatTensor<B>,
        deltas: Vec<FloatTensor<B>>,
        onto: Option<FloatTensor<B>>,
        needs: LayerNeeds,
        pass: &mut Backward<'_, B>,
    ) -> Option<FloatTensor<B>> {
        match (self, trace) {
            (Self::Input(of), SourceTrace::Input(low)) => {
                let deltas = of.joined(deltas);
                let maps = of.cotangents(&deltas, low, needs.input, pass);
                deliver(&maps, x, pass.rows.full, pass);
                if needs.input { input_of(&maps, onto) } else { None }
            }
            (Self::Latent(of), SourceTrace::Latent(trace)) => match deltas.try_into() {
                Ok(deltas) => of.vjp(trace, x, &deltas, onto, needs, pass),
                Err(_) => unreachable!("latents give queries, keys and values"),
            },
            _ => unreachable!("a trace is of the source that left it"),
        }
    }

    fn values(&self) -> Option<LatentDims> {
        match self {
            Self::Latent(of) => Some(of.dims).filter(|of| of.value < of.head()),
            Self::Input(_) => None,
        }
    }
}

/// What attention's forward pass leaves.
#[derive(Debug)]
pub struct AttentionTrace<B: Kernels> {
    /// Queries, keys and values before their norms, where they have any.
    projected: [Option<FloatTensor<B>>; 3],
    /// Queries, keys and values before they were cut.
    uncut: Option<[FloatTensor<B>; 3]>,
    pub(super) qkv: [FloatTensor<B>; 3],
    source: SourceTrace<B>,
    /// `[N, heads·head_dim]`, with sinks and without gates.
    attended: FloatTensor<B>,
    sinks: Option<SinksTrace<B>>,
    /// What the attention output is multiplied with, before σ.
    gate: Option<FloatTensor<B>>,
    /// log Σ exp of each row's attention scores, its sink's among them, `[N, heads]`.
    normaliser: FloatTensor<B>,
    o_low: Option<Changed<B>>,
}

impl<B: Kernels> Layer<B> for Attention<B> {
    type Trace = AttentionTrace<B>;

    const MIXES_ROWS: bool = true;

    fn forward(
        &self,
        x: &FloatTensor<B>,
        onto: Option<FloatTensor<B>>,
        rows: &Forward<'_, B>,
    ) -> (FloatTensor<B>, Self::Trace) {
        let (mut pieces, source) = self.source.forward(x);
        let gate = self.gated.then(|| pieces.remove(1));
        if self.keys_are_values {
            pieces.push(pieces[1].clone());
        }
        if self.borrows {
            pieces.extend(rows.lent.into_iter().flatten().cloned());
        }
        let [mut q, mut k, mut v]: [FloatTensor<B>; 3] = match pieces.try_into() {
            Ok(qkv) => qkv,
            Err(_) => unreachable!("the projections are queries, keys and values"),
        };
        let before = [(&self.query_norm, &mut q), (&self.key_norm, &mut k), (&self.value_norm, &mut v)];
        let projected = before.map(|(norm, x)| {
            let norm = norm.as_ref()?;
            let normed = norm.forward_in_parts(x.clone());
            Some(std::mem::replace(x, normed))
        });
        let uncut = self.bound.map(|bound| {
            let before = [q.clone(), k.clone(), v.clone()];
            [q, k, v] = before.clone().map(|x| B::cut(x, [-bound, bound]));
            before
        });
        if let Some([of_q, of_k]) = self.rope.map(|rope| rope.map(|of| &rows.angles[of])) {
            q = B::rotary(q, &of_q.0, &of_q.1, None, (self.spec.head_dim, self.rotated), false);
            if !self.borrows {
                k = B::rotary(k, &of_k.0, &of_k.1, None, (self.spec.head_dim, self.rotated), false);
            }
        }
        let (mut attended, mut normaliser) = B::attend(&q, &k, &v, rows.spans, self.spec);
        let mut sinks = None;
        if let Some(of) = &self.sinks {
            let (with_sinks, trace) = of.forward(attended, &normaliser);
            ([attended, normaliser], sinks) = (with_sinks, Some(trace));
        }
        let (y, o_low) = self.o.forward(&self.output(&attended, gate.as_ref()), onto);
        let qkv = [q, k, v];
        (y, AttentionTrace { projected, uncut, qkv, source, attended, sinks, gate, normaliser, o_low })
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
        deliver(&o, || self.output(&trace.attended, trace.gate.as_ref()), rows.here(), pass);
        if !needs.hidden {
            return None;
        }
        let (mut attended, mut of_gate) = (o[0].input(None), None);
        if let Some(of) = self.source.values() {
            attended = widened::<B>(&attended, of);
        }
        if let Some(gate) = &trace.gate {
            let index = &rows.here().index;
            let (of, through) = B::activate_vjp(Activation::Sigmoid, gate, Some(&trace.attended), &attended, index);
            attended = through.unwrap_or_else(|| unreachable!("a product has two cotangents"));
            of_gate = Some(rows.spread::<B>(of));
        }
        if let (Some(sinks), Some(trace)) = (&self.sinks, &trace.sinks) {
            sinks.deliver(trace, &attended, rows.here(), pass);
        }
        let attended = rows.spread::<B>(attended);
        let [q, k, v] = &trace.qkv;
        let forward = (&trace.attended, &trace.normaliser);
        let [mut dq, mut dk, mut dv] = B::attend_vjp([q, k, v], forward, &attended, rows.segments, self.spec);
        drop(attended);
        if let Some(of_borrowers) = pass.beside.of_borrowers.take() {
            [dk, dv] = sums::<B>([dk, dv], &of_borrowers);
        }
        if let Some([of_q, of_k]) = self.rope.map(|rope| rope.map(|of| &pass.angles[of])) {
            let index = Some(rows.full.index.as_slice());
            dq = B::rotary(dq, &of_q.0, &of_q.1, index, (self.spec.head_dim, self.rotated), true);
            if !self.borrows {
                dk = B::rotary(dk, &of_k.0, &of_k.1, index, (self.spec.head_dim, self.rotated), true);
            }
        }
        if let (Some(bound), Some([q, k, v])) = (self.bound, &trace.uncut) {
            let index = rows.full.index.as_slice();
            let cut = |x, delta| B::cut_vjp(x, [-bound, bound], delta, index);
            (dq, dk, dv) = (cut(q, dq), cut(k, dk), cut(v, dv));
        }
        let mut before = |norm: &Option<Box<Norm<B>>>, x: &Option<FloatTensor<B>>, delta| match (norm, x) {
            (Some(norm), Some(x)) => norm.vjp_in_parts(x, delta, rows.full, pass),
            _ => delta,
        };
        let [q, k, v] = &trace.projected;
        dq = before(&self.query_norm, q, dq);
        (dk, dv) = (before(&self.key_norm, k, dk), before(&self.value_norm, v, dv));
        let of_own = match (self.borrows, self.keys_are_values) {
            (true, _) => {
                pass.beside.to_lender = Some([dk, dv]);
                vec![]
            }
            (false, true) => vec![B::add_scaled(dk, &dv, 1.0)],
            (false, false) => vec![dk, dv],
        };
        let deltas = std::iter::once(dq).chain(of_gate).chain(of_own).collect();
        self.source.vjp(&trace.source, x, deltas, onto, needs, pass)
    }

    fn visit(&mut self, f: &mut Visitor<'_, B>) {
        match &mut self.source {
            Source::Input(of) => of.visit(f),
            Source::Latent(of) => of.visit(f),
        }
        [&mut self.query_norm, &mut self.key_norm].into_iter().flatten().for_each(|norm| f(Part::Norm(norm)));
        self.sinks.iter_mut().for_each(|sinks| f(Part::Vector(&mut sinks.scores)));
        f(Part::Linear(&mut self.o));
    }
}

impl<B: Kernels> Attention<B> {
    /// What the output projection reads.
    fn output(&self, attended: &FloatTensor<B>, gate: Option<&FloatTensor<B>>) -> FloatTensor<B> {
        match (gate, self.source.values()) {
            (Some(gate), _) => B::activate(Activation::Sigmoid, gate, Some(attended)),
            (None, Some(of)) => narrowed::<B>(attended, of),
            (None, None) => attended.clone(),
        }
    }

    pub(crate) fn convert<C: Kernels>(&self, f: &impl Fn(&FloatTensor<B>) -> FloatTensor<C>) -> Attention<C> {
        let norm = |norm: &Option<Box<Norm<B>>>| norm.as_ref().map(|norm| Box::new(norm.convert(f)));
        Attention {
            source: match &self.source {
                Source::Input(of) => Source::Input(of.convert(f)),
                Source::Latent(of) => Source::Latent(Box::new(of.convert(f))),
            },
            gated: self.gated,
            sinks: self.sinks.as_ref().map(|sinks| sinks.convert(f)),
            query_norm: norm(&self.query_norm),
            key_norm: norm(&self.key_norm),
            value_norm: norm(&self.value_norm),
            keys_are_values: self.keys_are_values,
            borrows: self.borrows,
            o: self.o.convert(f),
            bound: self.bound,
            spec: self.spec,
            rope: self.rope,
            rotated: self.rotated,
        }
    }
}
