//! One forward and one backward pass over a batch: log-probabilities, and what a sink makes of the gradients.
use crate::batch::{Batch, Cotangent, Group};
use crate::gram_sink::{Detail, GramSink};
use crate::plan;
use crate::turn::{Begun, Turn, half_way};
use rayon::prelude::*;
use std::sync::{Mutex, PoisonError};
use tanglescope_kernels::{BlockGram, FloatTensor, HeadOutput, Kernels, TensorMetadata};
use tanglescope_model::{BackwardRows, Decoder, HeadRows, InScope, Keep, Predictions, Sink, Trace};

/// What a forward pass says of the branches of a group beside log-probabilities.
#[derive(Clone, Debug, Default)]
pub struct Companions {
    /// `[B, B]`: inner products of the branches' sums of last hidden states, the head's inputs, over the rows that predict
    /// their tokens (Razin et al., arXiv 2410.08847, definition 2).
    pub hidden: BlockGram,
    /// Entropy of the prediction of each token, in nats.
    pub entropies: Vec<Vec<f64>>,
    /// Place of each token among all by probability, from 1.
    pub ranks: Vec<Vec<u32>>,
}

/// What a run finds about one group.
#[derive(Clone, Debug)]
pub struct GroupResult {
    /// Tokens of the shared trunk.
    pub trunk_tokens: usize,
    /// Log-probability of each token of each branch's response.
    pub token_logps: Vec<Vec<f64>>,
    /// What the forward pass says beside that.
    pub companions: Companions,
    /// K×K Gram of each parameter in scope, in the scope's order; or one, their sum, where no more was asked for.
    pub grams: Vec<BlockGram>,
}

impl GroupResult {
    /// log π(y|x) of a branch.
    #[must_use]
    pub fn logp(&self, branch: usize) -> f64 {
        self.token_logps[branch].iter().sum()
    }

    /// The Gram over all parameters in scope.
    #[must_use]
    pub fn total(&self) -> BlockGram {
        let mut total = vec![0.0; self.grams.first().map_or(0, Vec::len)];
        for gram in &self.grams {
            total.iter_mut().zip(gram).for_each(|(sum, x)| *sum += x);
        }
        total
    }
}

/// Log-probabilities and Grams of groups, each with its own list of cotangents, run as one batch.
pub fn grams<B: Kernels>(model: &Decoder<B>, scope: &InScope, groups: &[(&Group, &[Cotangent])]) -> Vec<GroupResult> {
    grams_in_turn(model, scope, groups, None, Detail::Parameters)
}

/// [`grams`] of all groups, in their order, batch by batch (each a list of groups), `at_once` of them side by side; `done`
/// is told which groups are through.
///
/// Results do not depend on `at_once`. On a processor, batches side by side keep every core busy: the parallel loops of
/// one batch are a few hundred microseconds long, and a core that has done its share of one would wait for the others.
pub fn grams_of_batches<B: Kernels>(
    model: &Decoder<B>,
    scope: &InScope,
    groups: &[(&Group, &[Cotangent])],
    plan: (&[Vec<usize>], usize),
    done: impl Fn(&[usize]) + Sync,
) -> Vec<GroupResult> {
    in_detail(model, scope, groups, plan, Detail::Parameters, done)
}

/// [`grams_of_batches`] where each group's Grams are summed over the parameters as they are found: of many cotangents the
/// Grams of all parameters would fill the memory.
pub(crate) fn totals_of_batches<B: Kernels>(
    model: &Decoder<B>,
    scope: &InScope,
    groups: &[(&Group, &[Cotangent])],
    plan: (&[Vec<usize>], usize),
    done: impl Fn(&[usize]) + Sync,
) -> Vec<GroupResult> {
    in_detail(model, scope, groups, plan, Detail::Total, done)
}

fn in_detail<B: Kernels>(
    model: &Decoder<B>,
    scope: &InScope,
    groups: &[(&Group, &[Cotangent])],
    (batches, at_once): (&[Vec<usize>], usize),
    detail: Detail,
    done: impl Fn(&[usize]) + Sync,
) -> Vec<GroupResult> {
    side_by_side(batches, at_once, |batch, turn| {
        let items: Vec<(&Group, &[Cotangent])> = batch.iter().map(|&g| groups[g]).collect();
        let found = grams_in_turn(model, scope, &items, turn, detail);
        done(batch);
        found
    })
}

/// What `run` finds for the members of all batches, in the members' order.
fn side_by_side<R: Send>(
    batches: &[Vec<usize>],
    at_once: usize,
    run: impl Fn(&[usize], Option<Begun<'_>>) -> Vec<R> + Sync,
) -> Vec<R> {
    let of = |batch: &Vec<usize>, turn| batch.iter().copied().zip(run(batch, turn)).collect::<Vec<_>>();
    let mut found: Vec<(usize, R)> = if at_once == 1 {
        // a device orders the work of one thread
        batches.iter().flat_map(|batch| of(batch, None)).collect()
    } else {
        let (turn, left) = (Turn::default(), Mutex::new(batches.iter()));
        let next = || left.lock().unwrap_or_else(PoisonError::into_inner).next();
        let row = |_| {
            let mut found = Vec::new();
            loop {
                let begun = turn.take();
                let Some(batch) = next() else { return found };
                found.extend(of(batch, Some(begun)));
            }
        };
        (0..at_once).into_par_iter().with_max_len(1).flat_map_iter(row).collect()
    };
    found.sort_by_key(|(member, _)| *member);
    found.into_iter().map(|(_, result)| result).collect()
}

/// [`grams`] of a batch that has the turn to begin, which it gives on when half of its time is over.
fn grams_in_turn<B: Kernels>(
    model: &Decoder<B>,
    scope: &InScope,
    groups: &[(&Group, &[Cotangent])],
    turn: Option<Begun<'_>>,
    detail: Detail,
) -> Vec<GroupResult> {
    let batch = Batch::new(groups);
    let mut sink = GramSink::new(scope, &batch.full.blocks, model.rates).keeping(detail);
    sink.turn = turn.map(|turn| (half_way(model.description.layers()), turn));
    let pass = ForwardPass::new(model, &batch, sink.wants(model.head_name()) && sink.wants_head_gram());
    let forward: Vec<(Vec<Vec<f64>>, Companions)> = pass.token_logps().into_iter().zip(pass.companions()).collect();
    pass.backward(&mut sink);
    results(groups, forward, sink.finish())
}

/// What a batch found, group by group.
pub(crate) fn results(
    groups: &[(&Group, &[Cotangent])],
    forward: Vec<(Vec<Vec<f64>>, Companions)>,
    grams: Vec<Vec<BlockGram>>,
) -> Vec<GroupResult> {
    let all = forward.into_iter().zip(grams).zip(groups);
    all.map(|(((token_logps, companions), grams), (group, _))| {
        let trunk_tokens = group.trunk_len();
        GroupResult { trunk_tokens, token_logps, companions, grams }
    })
    .collect()
}

/// Gram of each parameter in scope, in the scope's order, over the cotangents of all groups, in their order.
pub fn grams_across<B: Kernels>(
    model: &Decoder<B>,
    scope: &InScope,
    groups: &[(&Group, &[Cotangent])],
) -> Vec<BlockGram> {
    let batch = Batch::new(groups).joined();
    let mut sink = GramSink::new(scope, &batch.full.blocks, model.rates);
    run(model, &batch, &mut sink);
    sink.finish().into_iter().flatten().collect()
}

/// The Gram over all parameters in scope and the cotangents of all groups, and the token log-probabilities of each group's
/// branches.
pub fn total_across<B: Kernels>(
    model: &Decoder<B>,
    scope: &InScope,
    groups: &[(&Group, &[Cotangent])],
) -> (BlockGram, Vec<Vec<Vec<f64>>>) {
    let batch = Batch::new(groups).joined();
    let mut sink = GramSink::new(scope, &batch.full.blocks, model.rates).keeping(Detail::Total);
    let token_logps = run(model, &batch, &mut sink);
    (sink.finish().into_iter().flatten().next().unwrap_or_default(), token_logps)
}

/// Runs a batch into a sink; returns the token log-probabilities of each group's branches.
pub fn run<B: Kernels>(model: &Decoder<B>, batch: &Batch, sink: &mut dyn Sink<B>) -> Vec<Vec<Vec<f64>>> {
    let pass = ForwardPass::new(model, batch, sink.wants(model.head_name()) && sink.wants_head_gram());
    let token_logps = pass.token_logps();
    pass.backward(sink);
    token_logps
}

/// A batch between its forward and its backward pass, when its log-probabilities are known and its gradients not yet.
pub struct ForwardPass<'a, B: Kernels> {
    model: &'a Decoder<B>,
    batch: &'a Batch,
    trace: Trace<B>,
    /// Inputs of the head, `[predictions, hidden]`.
    y: FloatTensor<B>,
    head: HeadOutput<FloatTensor<B>, B::Pending>,
}

impl<'a, B: Kernels> ForwardPass<'a, B> {
    /// Runs a batch up to its log-probabilities, with the output matrix's Gram where it is wanted.
    pub fn new(model: &'a Decoder<B>, batch: &'a Batch, wants_head_gram: bool) -> Self {
        let (forward, backward) = (batch.tokens.len(), batch.full.rows());
        let keep = plan::keep(&model.description, model.dtype, forward, backward, model.activation_bytes);
        let trace = model.forward(batch.forward_rows(), keep);
        let y = model.head_inputs(&trace, &batch.predicting);
        let cotangents = batch.head_cotangents();
        let head = B::head(
            &y,
            model.head(),
            &batch.targets,
            model.description.logit_cap,
            wants_head_gram.then_some(&cotangents),
        );
        Self { model, batch, trace, y, head }
    }

    /// Log-probability of each token of each group's branches.
    #[must_use]
    pub fn token_logps(&self) -> Vec<Vec<Vec<f64>>> {
        by_branch(self.batch, &self.head.logp)
    }

    /// What else the forward pass says of each group.
    #[must_use]
    pub fn companions(&self) -> Vec<Companions> {
        let Self { batch, head, .. } = self;
        let entropies = by_branch(batch, &head.entropy);
        let ranks = by_branch(batch, &head.rank);
        let mut offsets = vec![0];
        offsets.extend(batch.branches.iter().flatten().map(|of| of.end));
        let sums = B::segment_sums(&self.y, &offsets);
        let width = sums.shape()[1];
        let sums = B::download(&sums);
        let mut sums = sums.chunks_exact(width);
        let products = batch.branches.iter().map(|branches| -> BlockGram {
            let of_group: Vec<&[f64]> = sums.by_ref().take(branches.len()).collect();
            let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum();
            of_group.iter().flat_map(|a| of_group.iter().map(move |b| dot(a, b))).collect()
        });
        let products: Vec<BlockGram> = products.collect();
        let all = products.into_iter().zip(entropies).zip(ranks);
        all.map(|((hidden, entropies), ranks)| Companions { hidden, entropies, ranks }).collect()
    }

    /// Carries all cotangents down, into a sink.
    pub fn backward(self, sink: &mut dyn Sink<B>) {
        let Self { model, batch, trace, y, mut head } = self;
        let name = model.head_name();
        if sink.wants(name) {
            let predictions = Predictions {
                targets: batch.targets.clone(),
                log_normaliser: head.log_normaliser.clone(),
                cap: model.description.logit_cap,
            };
            let cotangents = batch.head_cotangents();
            let rows = HeadRows { y: &y, predictions: &predictions, w: model.head(), cotangents };
            sink.head(name, &rows, head.gram.take());
        }
        let (source, weight): (Vec<u32>, Vec<f64>) = batch.sources.iter().copied().unzip();
        let delta: FloatTensor<B> = B::gather(&head.back, &source, Some(&weight));
        let rows = BackwardRows { full: &batch.full, segments: &batch.segments, active: Some(&batch.active) };
        model.backward(trace, &delta, &batch.tokens, &batch.positions, rows, sink);
    }
}

/// Token log-probabilities of each group's branches, by a forward pass alone.
pub fn token_logps<B: Kernels>(model: &Decoder<B>, groups: &[&Group]) -> Vec<Vec<Vec<f64>>> {
    let groups: Vec<(&Group, &[Cotangent])> = groups.iter().map(|group| (*group, &[] as &[Cotangent])).collect();
    let batch = Batch::new(&groups);
    let trace = model.forward(batch.forward_rows(), Keep::Nothing);
    let y = model.head_inputs(&trace, &batch.predicting);
    by_branch(&batch, &B::head(&y, model.head(), &batch.targets, model.description.logit_cap, None).logp)
}

/// [`token_logps`] of all groups, in their order, batch by batch, `at_once` of them side by side; `done` is told which groups
/// are through.
pub fn token_logps_of_batches<B: Kernels>(
    model: &Decoder<B>,
    groups: &[&Group],
    (batches, at_once): (&[Vec<usize>], usize),
    done: impl Fn(&[usize]) + Sync,
) -> Vec<Vec<Vec<f64>>> {
    side_by_side(batches, at_once, |batch, turn| {
        // nothing is kept, so that the next one may begin
        drop(turn);
        let found = token_logps(model, &batch.iter().map(|&g| groups[g]).collect::<Vec<_>>());
        done(batch);
        found
    })
}

/// Values of predictions by group, branch and token.
fn by_branch<T: Clone>(batch: &Batch, values: &[T]) -> Vec<Vec<Vec<T>>> {
    let of = |branches: &Vec<std::ops::Range<usize>>| branches.iter().map(|r| values[r.clone()].to_vec()).collect();
    batch.branches.iter().map(of).collect()
}
