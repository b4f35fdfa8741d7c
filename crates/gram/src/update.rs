//! The direction of one training step, and what a step does: passes over all batches of a step.
use crate::batch::Batch;
use crate::pass::{Companions, ForwardPass, GroupResult, results};
use crate::request::Request;
use crate::schedule::{Schedule, Turn};
use crate::sinks::{ByExpert, Detail, GradientSink, GramSink, SumSink, Tee};
use std::collections::HashMap;
use tanglescope_kernels::{FloatTensor, Kernels};
use tanglescope_model::{Decoder, InScope, ParameterKind, Sink};

/// Coefficients of a group's cotangents from something that is known of the group, whose number comes first.
pub type Of<'a, T> = dyn Fn(usize, &T) -> Vec<f64> + Sync + 'a;

/// Where a group's coefficients (one a cotangent) come from, which decides when they are computed.
pub enum Coefficients<'a> {
    /// From the log-probabilities of its branches' tokens: between the forward and the backward pass.
    OfLogps(&'a Of<'a, Vec<Vec<f64>>>),
    /// From its Gram: after the backward pass.
    OfGram(&'a Of<'a, GroupResult>),
}

/// What the batches of a step amount to.
pub struct Update<B: Kernels> {
    /// What was found of each group, in their order; without Grams where they were not asked for.
    pub results: Vec<GroupResult>,
    /// `Σ_groups Σ_k c_k ∂L_k/∂p` of every parameter in scope, in the shape that the model keeps it in.
    pub gradient: HashMap<String, FloatTensor<B>>,
}

/// Sums the weighted gradients of all requests, batch by batch, with every group's Gram from the same pass where it is wanted.
///
/// Coefficients that need a Gram need the gradients a second time: those of low-rank factors are small and are kept, for
/// others the batch is run again. The order of the sums depends on the batches and on how many run side by side alone.
pub fn update<B: Kernels>(
    model: &Decoder<B>,
    scope: &InScope,
    requests: &[Request<'_>],
    schedule: &Schedule,
    coefficients: &Coefficients<'_>,
    grams: bool,
) -> Update<B> {
    let (results, sums) = schedule.run_summed(SumSink::<B>::new, |members, sum, turn| {
        let requests: Vec<&Request<'_>> = members.iter().map(|&member| &requests[member]).collect();
        Step { model, scope, members, requests }.run(sum, coefficients, grams, turn)
    });
    let mut sum = SumSink::<B>::new();
    sums.into_iter().for_each(|lane_sum| sum.add_all(lane_sum.gradient));
    Update { results, gradient: sum.gradient }
}

/// One batch of a step.
struct Step<'a, B: Kernels> {
    model: &'a Decoder<B>,
    scope: &'a InScope,
    members: &'a [usize],
    requests: Vec<&'a Request<'a>>,
}

impl<B: Kernels> Step<'_, B> {
    fn run(
        &self,
        sum: &mut SumSink<B>,
        coefficients: &Coefficients<'_>,
        grams: bool,
        turn: Option<Turn<'_>>,
    ) -> Vec<GroupResult> {
        let batch = Batch::new(self.requests.iter().copied());
        let wants_grams = grams || matches!(coefficients, Coefficients::OfGram(_));
        let forward = ForwardPass::new(self.model, self.scope, &batch, wants_grams);
        let token_logps = forward.token_logps();
        let rates = self.model.rates;
        let mut gram = wants_grams.then(|| GramSink::new(self.scope, &batch.full.sets, rates, Detail::Parameters));
        let results = |token_logps: Vec<Vec<Vec<f64>>>, gram: Option<GramSink<'_, B>>| {
            let none = || (vec![Vec::new(); self.requests.len()], ByExpert::new());
            let grams = gram.map_or_else(none, GramSink::finish_by_expert);
            // training does not use hidden products, entropies or ranks
            let forward = token_logps.into_iter().map(|logps| (logps, Companions::default())).collect();
            results(&self.requests, forward, grams)
        };
        match coefficients {
            Coefficients::OfLogps(of) => {
                let each = self.members.iter().zip(&token_logps).flat_map(|(&member, logps)| of(member, logps));
                sum.weigh(each.collect());
                let mut sinks: Vec<&mut dyn Sink<B>> = vec![sum];
                sinks.extend(gram.as_mut().map(|gram| gram as &mut dyn Sink<B>));
                forward.backward_with(&mut Tee(sinks), turn);
                results(token_logps, gram)
            }
            Coefficients::OfGram(of) => {
                let small = self.scope.parameters.iter().all(|p| p.kind == ParameterKind::Lora);
                let mut kept = small.then(|| GradientSink::<B>::new(batch.weights.len()));
                let mut sinks: Vec<&mut dyn Sink<B>> = Vec::new();
                sinks.extend(gram.as_mut().map(|gram| gram as &mut dyn Sink<B>));
                sinks.extend(kept.as_mut().map(|kept| kept as &mut dyn Sink<B>));
                forward.backward_with(&mut Tee(sinks), turn);
                let results = results(token_logps, gram);
                let each = self.members.iter().zip(&results).flat_map(|(&member, result)| of(member, result));
                let each: Vec<f64> = each.collect();
                match kept {
                    Some(kept) => sum.add_all(kept.combined(&each)),
                    None => {
                        sum.weigh(each);
                        ForwardPass::new(self.model, self.scope, &batch, false).backward(sum);
                    }
                }
                results
            }
        }
    }
}
