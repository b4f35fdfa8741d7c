//! Gradients of log-probabilities that are kept, so that those of one group meet those of any other (docs/mathematics.md, section 11).
use crate::batch::Batch;
use crate::metric::Metric;
use crate::pass::{BatchGrams, Companions, ForwardPass, GroupResult, Wanted, results};
use crate::request::Request;
use crate::schedule::Schedule;
use crate::sinks::{ByExpert, Detail, RowSink, Tee};
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use tanglescope_kernels::{DType, FloatTensor, Kernels, as_index};
use tanglescope_model::{Decoder, InScope, Sink};

/// Gradients of some log-probabilities: a row each for every parameter in scope.
#[derive(Clone, Debug)]
pub struct Gradients<B: Kernels> {
    rows: usize,
    /// `[rows, entries]` of every parameter, or part of one, that some cotangent reached.
    by_parameter: BTreeMap<String, FloatTensor<B>>,
}

/// In what form gradients are kept.
#[derive(Clone, Debug)]
pub struct Kept<'a, B: Kernels> {
    /// The metric that their products are taken in.
    pub metric: Option<&'a Metric<B>>,
    /// The number type that they are kept in.
    pub dtype: DType,
}

/// The gradients of some of a batch's cotangents, and which rows they are of all.
struct OfBatch<B: Kernels> {
    places: Vec<u32>,
    found: BTreeMap<String, FloatTensor<B>>,
}

impl<B: Kernels> Gradients<B> {
    /// Forms the gradients of the first cotangents of each request, one a response, in the requests' order, batch by batch; with the Grams of all
    /// cotangents of each request from the same pass where `grams` says so, bit for bit those of [`grams_in_batches`](crate::grams_in_batches).
    /// `done` is told which requests are through.
    pub fn form(
        model: &Decoder<B>,
        scope: &InScope,
        requests: &[Request<'_>],
        kept: &Kept<'_, B>,
        schedule: &Schedule,
        grams: bool,
        done: impl Fn(&[usize]) + Sync,
    ) -> (Vec<GroupResult>, Self) {
        let responses: Vec<usize> = requests.iter().map(|request| request.group.responses.len()).collect();
        let firsts: Vec<usize> =
            responses.iter().scan(0, |next, count| Some(std::mem::replace(next, *next + count))).collect();
        let formed = Mutex::new(Vec::new());
        let found = schedule.run(|members, turn| {
            let own: Vec<&Request<'_>> = members.iter().map(|&member| &requests[member]).collect();
            let batch = Batch::new(own.iter().copied());
            let (mut cotangents, mut places, mut first) = (Vec::new(), Vec::new(), 0);
            for (&member, request) in members.iter().zip(&own) {
                cotangents.extend(first..first + responses[member]);
                places.extend((firsts[member]..firsts[member] + responses[member]).map(as_index));
                first += request.cotangents.len();
            }
            let mut rows = RowSink::new(cotangents, kept.metric);
            let wanted = Wanted { detail: Detail::Parameters, metric: kept.metric };
            let mut of_grams = grams.then(|| BatchGrams::new(model, scope, &batch, &wanted));
            let pass = ForwardPass::new(model, scope, &batch, grams);
            let token_logps = pass.token_logps();
            let companions = if grams { pass.companions() } else { vec![Companions::default(); own.len()] };
            let mut sinks: Vec<&mut dyn Sink<B>> = of_grams.as_mut().map_or_else(Vec::new, BatchGrams::sinks);
            sinks.push(&mut rows);
            pass.backward_with(&mut Tee(sinks), turn);
            let of_batch = OfBatch { places, found: rows.finish() };
            formed.lock().unwrap_or_else(PoisonError::into_inner).push(of_batch);
            let forward = token_logps.into_iter().zip(companions).collect();
            let found = match of_grams {
                Some(grams) => grams.results(&own, forward),
                None => results(&own, forward, (vec![Vec::new(); own.len()], ByExpert::new())),
            };
            done(members);
            found
        });
        let formed = formed.into_inner().unwrap_or_else(PoisonError::into_inner);
        (found, Self::joined(formed, responses.iter().sum(), kept.dtype))
    }

    /// The rows of all batches, at their places.
    fn joined(mut batches: Vec<OfBatch<B>>, rows: usize, dtype: DType) -> Self {
        let mut names: Vec<String> = batches.iter().flat_map(|batch| batch.found.keys().cloned()).collect();
        names.sort();
        names.dedup();
        let joined = |name: String| {
            let parts = batches.iter_mut().filter_map(|batch| Some((batch.found.remove(&name)?, &batch.places[..])));
            let parts: Vec<(FloatTensor<B>, &[u32])> = parts.collect();
            (name, B::cast(B::place_rows(&parts, rows), dtype))
        };
        Self { rows, by_parameter: names.into_iter().map(joined).collect() }
    }

    /// Gradients that were kept elsewhere: `[rows, entries]` of every parameter.
    #[must_use]
    pub fn from_parts(rows: usize, by_parameter: BTreeMap<String, FloatTensor<B>>) -> Self {
        Self { rows, by_parameter }
    }

    /// `[rows, entries]` of every parameter, or part of one, by name.
    #[must_use]
    pub fn by_parameter(&self) -> &BTreeMap<String, FloatTensor<B>> {
        &self.by_parameter
    }

    /// Inner products of every row with every row of others, `[rows, others.rows]`, by the block of the parameters, those outside of blocks first;
    /// in the type `dtype` inside panels of columns, in f64 across them.
    #[must_use]
    pub fn products(&self, others: &Self, scope: &InScope, dtype: DType) -> BTreeMap<Option<usize>, Vec<f64>> {
        let of = |(name, own): (&String, &FloatTensor<B>)| {
            let other = others.by_parameter.get(name)?;
            let working = |rows: &FloatTensor<B>| B::cast(rows.clone(), dtype);
            Some((scope.layer_of(name), B::row_products(&working(own), &working(other))))
        };
        // a device orders the work of one thread
        let each: Vec<Option<(Option<usize>, Vec<f64>)>> = match B::is_host() {
            true => self.by_parameter.par_iter().map(of).collect(),
            false => self.by_parameter.iter().map(of).collect(),
        };
        let mut sums: BTreeMap<Option<usize>, Vec<f64>> = BTreeMap::new();
        for (layer, products) in each.into_iter().flatten() {
            let sum = sums.entry(layer).or_insert_with(|| vec![0.0; self.rows * others.rows]);
            sum.iter_mut().zip(&products).for_each(|(sum, x)| *sum += x);
        }
        sums
    }
}
