//! The direction of one training step, and what a step does: passes over all batches of a step.
use crate::batch::{Batch, Cotangent, Group};
use crate::engine::{Companions, ForwardPass, GroupResult, results};
use crate::gradient_sink::GradientSink;
use crate::gram_sink::GramSink;
use crate::sum_sink::SumSink;
use crate::together::Together;
use crate::turn::{Begun, Turn, half_way};
use rayon::prelude::*;
use std::collections::HashMap;
use tanglescope_kernels::{FloatTensor, Kernels};
use tanglescope_model::{Decoder, InScope, ParameterKind, Sink};

/// Coefficients of a group's cotangents from something that is known of the group, whose number comes first.
pub type Of<'a, T> = dyn Fn(usize, &T) -> Vec<f64> + Sync + 'a;

/// When a group's coefficients, one a cotangent, are known.
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

/// Sums the weighted gradients of all groups, batch by batch (each a list of groups), `at_once` of them side by side, with
/// every group's Gram from the same pass where it is wanted.
///
/// Coefficients that need a Gram need the gradients a second time: those of low-rank factors are small and are kept, for
/// others the batch is run again. The order of the sums depends on the batches and on `at_once` alone.
pub fn update<B: Kernels>(
    model: &Decoder<B>,
    scope: &InScope,
    groups: &[(&Group, &[Cotangent])],
    (batches, at_once): (&[Vec<usize>], usize),
    coefficients: &Coefficients<'_>,
    grams: bool,
) -> Update<B> {
    let turn = Turn::default();
    let row = |row: usize| {
        let mut sum = SumSink::<B>::new(scope);
        let mut found = Vec::new();
        for batch in batches.iter().skip(row).step_by(at_once) {
            let begun = (at_once > 1).then(|| turn.take());
            let pass = Pass { model, scope, members: batch, groups };
            found.extend(batch.iter().copied().zip(pass.run(&mut sum, coefficients, grams, begun)));
        }
        (found, sum.gradient)
    };
    let rows: Vec<_> = match at_once {
        // a device orders the work of one thread
        1 => vec![row(0)],
        _ => (0..at_once).into_par_iter().with_max_len(1).map(row).collect(),
    };
    let (mut found, mut sum) = (Vec::with_capacity(groups.len()), SumSink::<B>::new(scope));
    for (results, gradient) in rows {
        found.extend(results);
        sum.add_all(gradient);
    }
    found.sort_by_key(|(member, _)| *member);
    Update { results: found.into_iter().map(|(_, result)| result).collect(), gradient: sum.gradient }
}

/// One batch of a step.
struct Pass<'a, B: Kernels> {
    model: &'a Decoder<B>,
    scope: &'a InScope,
    members: &'a [usize],
    groups: &'a [(&'a Group, &'a [Cotangent])],
}

impl<B: Kernels> Pass<'_, B> {
    fn run(
        &self,
        sum: &mut SumSink<'_, B>,
        coefficients: &Coefficients<'_>,
        grams: bool,
        turn: Option<Begun<'_>>,
    ) -> Vec<GroupResult> {
        let items: Vec<(&Group, &[Cotangent])> = self.members.iter().map(|&g| self.groups[g]).collect();
        let batch = Batch::new(&items);
        let head = self.scope.contains(self.model.head_name());
        let wants_grams = grams || matches!(coefficients, Coefficients::OfGram(_));
        let forward = ForwardPass::new(self.model, &batch, wants_grams && head);
        let token_logps = forward.token_logps();
        let mut gram = wants_grams.then(|| GramSink::new(self.scope, &batch.full.blocks, self.model.rates));
        let turn = turn.map(|turn| (half_way(self.model.description.layers()), turn));
        let results = |token_logps: Vec<Vec<Vec<f64>>>, gram: Option<GramSink<'_, B>>| {
            let grams = gram.map_or_else(|| vec![Vec::new(); items.len()], GramSink::finish);
            // a step looks at nothing else
            let forward = token_logps.into_iter().map(|logps| (logps, Companions::default())).collect();
            results(&items, forward, grams)
        };
        match coefficients {
            Coefficients::OfLogps(of) => {
                let each = self.members.iter().zip(&token_logps).flat_map(|(&member, logps)| of(member, logps));
                sum.weigh(each.collect());
                let mut sinks: Vec<&mut dyn Sink<B>> = vec![sum];
                sinks.extend(gram.as_mut().map(|gram| gram as &mut dyn Sink<B>));
                forward.backward(&mut Together { sinks, turn });
                results(token_logps, gram)
            }
            Coefficients::OfGram(of) => {
                let small = self.scope.parameters.iter().all(|p| p.kind == ParameterKind::Lora);
                let mut kept = small.then(|| GradientSink::<B>::new(self.scope, batch.weights.len()));
                let mut sinks: Vec<&mut dyn Sink<B>> = Vec::new();
                sinks.extend(gram.as_mut().map(|gram| gram as &mut dyn Sink<B>));
                sinks.extend(kept.as_mut().map(|kept| kept as &mut dyn Sink<B>));
                forward.backward(&mut Together { sinks, turn });
                let results = results(token_logps, gram);
                let each = self.members.iter().zip(&results).flat_map(|(&member, result)| of(member, result));
                let each: Vec<f64> = each.collect();
                match kept {
                    Some(kept) => sum.add_all(kept.combined(&each)),
                    None => {
                        sum.weigh(each);
                        ForwardPass::new(self.model, &batch, false).backward(sum);
                    }
                }
                results
            }
        }
    }
}
