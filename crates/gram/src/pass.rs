//! One forward and one backward pass over a batch: log-probabilities, and what a sink makes of the gradients.
use crate::batch::{Batch, Group};
use crate::metric::Metric;
use crate::plan;
use crate::request::Request;
use crate::routed::Routed;
use crate::schedule::{Schedule, Turn, give_on_half_way};
use crate::sinks::{ByExpert, Detail, GramSink, MetricSink, Tee};
use tanglescope_kernels::{FloatTensor, Gram, HeadOutput, Kernels, TensorMetadata};
use tanglescope_model::{BackwardRows, Decoder, HeadRows, InScope, Keep, LogitPart, Predictions, Scores, Sink, Trace};

/// What a forward pass says of the branches of a group beside log-probabilities.
#[derive(Clone, Debug, Default)]
pub struct Companions {
    /// `[B, B]`: inner products of the branches' sums of last hidden states, the head's inputs, over the rows that predict
    /// their tokens (Razin et al., arXiv 2410.08847, definition 2).
    pub hidden: Gram,
    /// Entropy of the prediction of each token, in nats.
    pub entropies: Vec<Vec<f64>>,
    /// Rényi entropy of order 2, −log Σp², of the prediction of each token, in nats.
    pub renyi: Vec<Vec<f64>>,
    /// Probability of the most probable token in the prediction of each token.
    pub argmax_mass: Vec<Vec<f64>>,
    /// Place of each token among all by probability, from 1.
    pub ranks: Vec<Vec<u32>>,
    /// What routers decided, where the model has experts.
    pub routed: Option<Routed>,
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
    pub grams: Vec<Gram>,
    /// Where there is one for each parameter: the K×K Gram of all parameters of an expert together, by block and expert.
    pub experts: Vec<((usize, usize), Gram)>,
    /// K×K Gram over all parameters in a metric, where one was given.
    pub in_metric: Option<Gram>,
}

/// Which Grams a pass is to find.
#[derive(Clone, Debug)]
pub struct Wanted<'a, B: Kernels> {
    /// What is kept of the plain ones.
    pub detail: Detail,
    /// A metric for others beside them.
    pub metric: Option<&'a Metric<B>>,
}

impl<B: Kernels> Wanted<'_, B> {
    /// Plain ones alone.
    #[must_use]
    pub fn plain(detail: Detail) -> Self {
        Self { detail, metric: None }
    }
}

/// The Grams of a batch, on their way through a backward pass.
pub(crate) struct BatchGrams<'a, B: Kernels> {
    plain: GramSink<'a, B>,
    in_metric: Option<MetricSink<'a, B>>,
}

impl<'a, B: Kernels> BatchGrams<'a, B> {
    pub fn new(model: &Decoder<B>, scope: &'a InScope, batch: &Batch, wanted: &Wanted<'a, B>) -> Self {
        let sets = &batch.full.sets;
        let plain = GramSink::new(scope, sets, model.rates, wanted.detail);
        Self { plain, in_metric: wanted.metric.map(|metric| MetricSink::new(metric, sets)) }
    }

    /// Where the pass delivers.
    pub fn sinks(&mut self) -> Vec<&mut dyn Sink<B>> {
        let mut sinks: Vec<&mut dyn Sink<B>> = vec![&mut self.plain];
        sinks.extend(self.in_metric.as_mut().map(|sink| sink as &mut dyn Sink<B>));
        sinks
    }

    /// What the batch found, group by group.
    pub fn results(self, requests: &[&Request<'_>], forward: Vec<(Vec<Vec<f64>>, Companions)>) -> Vec<GroupResult> {
        let in_metric = self.in_metric.map(MetricSink::finish);
        let mut found = results(requests, forward, self.plain.finish_by_expert());
        for (group, gram) in found.iter_mut().zip(in_metric.into_iter().flatten()) {
            group.in_metric = Some(gram);
        }
        found
    }
}

impl GroupResult {
    /// log π(y|x) of a branch.
    #[must_use]
    pub fn logp(&self, branch: usize) -> f64 {
        self.token_logps[branch].iter().sum()
    }

    /// The Gram over all parameters in scope.
    #[must_use]
    pub fn total(&self) -> Gram {
        let mut total = vec![0.0; self.grams.first().map_or(0, Vec::len)];
        for gram in &self.grams {
            total.iter_mut().zip(gram).for_each(|(sum, x)| *sum += x);
        }
        total
    }
}

/// Log-probabilities and Grams of requests, run as one batch.
pub fn grams<B: Kernels>(model: &Decoder<B>, scope: &InScope, requests: &[Request<'_>]) -> Vec<GroupResult> {
    grams_in_batches(
        model,
        scope,
        requests,
        &Schedule::together(requests.len()),
        &Wanted::plain(Detail::Parameters),
        |_| (),
    )
}

/// [`grams`] of all requests, in their order, batch by batch; `done` is told which requests are through. Results do not
/// depend on how many batches run side by side.
pub fn grams_in_batches<B: Kernels>(
    model: &Decoder<B>,
    scope: &InScope,
    requests: &[Request<'_>],
    schedule: &Schedule,
    wanted: &Wanted<'_, B>,
    done: impl Fn(&[usize]) + Sync,
) -> Vec<GroupResult> {
    schedule.run(|members, turn| {
        let requests: Vec<&Request<'_>> = members.iter().map(|&member| &requests[member]).collect();
        let batch = Batch::new(requests.iter().copied());
        let mut grams = BatchGrams::new(model, scope, &batch, wanted);
        let pass = ForwardPass::new(model, scope, &batch, true);
        let forward: Vec<(Vec<Vec<f64>>, Companions)> = pass.token_logps().into_iter().zip(pass.companions()).collect();
        pass.backward_with(&mut Tee(grams.sinks()), turn);
        let found = grams.results(&requests, forward);
        done(members);
        found
    })
}

/// What a batch found, group by group.
pub(crate) fn results(
    requests: &[&Request<'_>],
    forward: Vec<(Vec<Vec<f64>>, Companions)>,
    (grams, experts): (Vec<Vec<Gram>>, ByExpert),
) -> Vec<GroupResult> {
    let all = forward.into_iter().zip(grams).zip(requests).enumerate();
    all.map(|(set, (((token_logps, companions), grams), request))| {
        let trunk_tokens = request.group.trunk_len();
        let experts = experts.iter().map(|(expert, grams)| (*expert, grams[set].clone())).collect();
        GroupResult { trunk_tokens, token_logps, companions, grams, experts, in_metric: None }
    })
    .collect()
}

/// Over the cotangents of all requests, in their order: the Gram of each parameter in scope, in the scope's order, or their
/// sum; and the token log-probabilities of each group's branches.
pub fn grams_across<B: Kernels>(
    model: &Decoder<B>,
    scope: &InScope,
    requests: &[Request<'_>],
    detail: Detail,
) -> (Vec<Gram>, Vec<Vec<Vec<f64>>>) {
    let batch = Batch::new(requests).joined();
    let mut sink = GramSink::new(scope, &batch.full.sets, model.rates, detail);
    let token_logps = run(model, scope, &batch, &mut sink);
    (sink.finish().into_iter().flatten().collect(), token_logps)
}

/// Runs a batch into a sink; returns the token log-probabilities of each group's branches.
pub fn run<B: Kernels>(
    model: &Decoder<B>,
    scope: &InScope,
    batch: &Batch,
    sink: &mut dyn Sink<B>,
) -> Vec<Vec<Vec<f64>>> {
    let pass = ForwardPass::new(model, scope, batch, sink.wants_head_gram());
    let token_logps = pass.token_logps();
    pass.backward(sink);
    token_logps
}

/// A batch between its forward and its backward pass, when its log-probabilities are known and its gradients not yet.
pub(crate) struct ForwardPass<'a, B: Kernels> {
    model: &'a Decoder<B>,
    scope: &'a InScope,
    batch: &'a Batch,
    trace: Trace<B>,
    /// Inputs of the head, `[predictions, hidden]`.
    y: FloatTensor<B>,
    /// Whose product is the logits.
    scores: Scores<B>,
    head: HeadOutput<FloatTensor<B>, B::Pending>,
    /// Gram of the matrix of each part of the logits, where it was wanted, in their order.
    grams: Vec<Option<B::Pending>>,
    /// Cotangents of what B of the output matrix's change reads, where there is one.
    low: Option<FloatTensor<B>>,
}

impl<'a, B: Kernels> ForwardPass<'a, B> {
    /// Runs a batch up to its log-probabilities, with the Gram of the output matrix where that is in scope and its Gram is
    /// wanted.
    pub fn new(model: &'a Decoder<B>, scope: &'a InScope, batch: &'a Batch, head_gram: bool) -> Self {
        let (forward, backward) = (batch.tokens.len(), batch.full.rows());
        let keep = plan::keep(&model.description, model.dtype, forward, backward, model.activation_bytes);
        let trace = model.forward(batch.forward_rows(), keep);
        let y = model.head_inputs(&trace, &batch.predicting);
        let (cotangents, cap) = (batch.head_cotangents(), model.description.logit_cap);
        let wanted = |name: &str| (head_gram && scope.contains(name)).then_some(&cotangents);
        let run = |of: &Scores<B>, wanted| B::head(&of.y, &of.w.weight(), &batch.targets, cap, wanted);
        let scores = model.scores(&y, None);
        let parts = model.logit_parts();
        let (mut head, grams) = match &parts[..] {
            [(_, name)] => {
                let mut head = run(&scores, wanted(name));
                let gram = head.gram.take();
                (head, vec![gram])
            }
            parts => {
                let gram_of = |(part, name): &(LogitPart, &str)| {
                    let wanted = wanted(name)?;
                    run(&model.scores(&y, Some(*part)), Some(wanted)).gram
                };
                (run(&scores, None), parts.iter().map(gram_of).collect())
            }
        };
        let (back, low) = model.head_cotangents(head.back, y.dtype());
        head.back = back;
        Self { model, scope, batch, trace, y, scores, head, grams, low }
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
        let (renyi, masses) = (by_branch(batch, &head.renyi), by_branch(batch, &head.argmax_mass));
        let ranks = by_branch(batch, &head.rank);
        let mut offsets = vec![0];
        offsets.extend(batch.branches.iter().flatten().map(|of| of.end));
        let sums = B::segment_sums(&self.y, &offsets);
        let width = sums.shape()[1];
        let sums = B::download(&sums);
        let mut sums = sums.chunks_exact(width);
        let products = batch.branches.iter().map(|branches| -> Gram {
            let group_sums: Vec<&[f64]> = sums.by_ref().take(branches.len()).collect();
            let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum();
            group_sums.iter().flat_map(|a| group_sums.iter().map(move |b| dot(a, b))).collect()
        });
        let products: Vec<Gram> = products.collect();
        let all = products.into_iter().zip(entropies).zip(renyi).zip(masses).zip(ranks).enumerate();
        let of = |(group, ((((hidden, entropies), renyi), argmax_mass), ranks))| {
            let routed = Routed::of(self.trace.routed(), batch, group, self.model.dtype);
            Companions { hidden, entropies, renyi, argmax_mass, ranks, routed }
        };
        all.map(of).collect()
    }

    /// Carries all cotangents down, into a sink.
    pub fn backward(self, sink: &mut dyn Sink<B>) {
        self.backward_with(sink, None);
    }

    /// The same by a batch that has the turn, which it gives on when half of its time is over.
    pub fn backward_with(self, sink: &mut dyn Sink<B>, turn: Option<Turn<'_>>) {
        let Self { model, scope, batch, trace, y, scores, mut head, grams, low } = self;
        let predictions = Predictions {
            targets: batch.targets.clone(),
            logp: head.logp.clone(),
            log_normaliser: std::mem::take(&mut head.log_normaliser),
            cap: model.description.logit_cap,
        };
        for ((part, name), gram) in model.logit_parts().into_iter().zip(grams) {
            if scope.contains(name) {
                let (y, cotangents) = (&model.logit_inputs(part, &y), batch.head_cotangents());
                sink.head(name, &HeadRows { y, predictions: &predictions, scores: &scores, cotangents }, gram);
            }
        }
        let (of_cotangents, weights) = batch.of_predictions();
        let delta: FloatTensor<B> = B::gather(&head.back, &of_cotangents.index, Some(&weights));
        let read = (&y, low.as_ref());
        let (found, rows) = ((&scores, &predictions), (&of_cotangents, weights.as_slice()));
        let predicted = model.deliver_head(read, found, rows, (scope, &mut *sink));
        drop(scores);
        let rows = BackwardRows { full: &batch.full, segments: &batch.segments, active: Some(&batch.active) };
        let mut passed = give_on_half_way(turn, model.description.layers());
        model.backward(trace, &delta, (batch.forward_rows(), rows), (scope, sink), predicted, &mut passed);
    }
}

/// Token log-probabilities of each group's branches, by a forward pass alone.
pub fn token_logps<B: Kernels>(model: &Decoder<B>, groups: &[&Group]) -> Vec<Vec<Vec<f64>>> {
    let requests: Vec<Request<'_>> = groups.iter().map(|group| Request::forward(group)).collect();
    let batch = Batch::new(&requests);
    let trace = model.forward(batch.forward_rows(), Keep::Nothing);
    let y = model.head_inputs(&trace, &batch.predicting);
    let scores = model.scores(&y, None);
    by_branch(&batch, &B::head(&scores.y, &scores.w.weight(), &batch.targets, model.description.logit_cap, None).logp)
}

/// [`token_logps`] of all groups, in their order, batch by batch; `done` is told which groups are through.
pub fn token_logps_in_batches<B: Kernels>(
    model: &Decoder<B>,
    groups: &[&Group],
    schedule: &Schedule,
    done: impl Fn(&[usize]) + Sync,
) -> Vec<Vec<Vec<f64>>> {
    schedule.run(|members, turn| {
        // a forward pass alone keeps no trace, so the next batch begins at once
        drop(turn);
        let found = token_logps(model, &members.iter().map(|&g| groups[g]).collect::<Vec<_>>());
        done(members);
        found
    })
}

/// Values of predictions by group, branch and token.
fn by_branch<T: Clone>(batch: &Batch, values: &[T]) -> Vec<Vec<Vec<T>>> {
    let of = |branches: &Vec<std::ops::Range<usize>>| branches.iter().map(|r| values[r.clone()].to_vec()).collect();
    batch.branches.iter().map(of).collect()
}
