//! One part of a measurement: its rows, and what is beside them.
use super::items::{Item, part_of};
use super::pair::{Masks, MeasuredPair};
use super::stages::ROWS_PER_PART;
use super::{Measurement, Probe, TokenLogps};
use crate::error::{Error, Result};
use crate::listener::{Amount, Listener, advance};
use crate::reference::LoadedReference;
use tanglescope_data::Dataset;
use tanglescope_gram::{
    Cotangent, Detail, Gradients, Group, GroupResult, Kept, MeanGradients, Metric, Request, Schedule, Wanted,
    batches_of, grams_across, grams_in_batches, token_logps_in_batches,
};
use tanglescope_kernels::{Kernels, as_index};
use tanglescope_model::{Decoder, InScope, Parameter};
use tanglescope_objectives::{ChosenText, PairGram, contrast};
use tanglescope_records::manifest::{BatchPlan, Beside};
use tanglescope_records::tables::groups::MeasuredGroup;
use tanglescope_records::tables::pairs::{PairRow, TextSums};
use tanglescope_records::tables::params::{MeanRow, ParamRow};
use tanglescope_records::tables::probes::ProbeRow;
use tanglescope_records::tables::responses::ResponsesRow;
use tanglescope_records::tables::routing::RoutingRow;

/// A model on a data set.
pub struct Setup<'a, B: Kernels> {
    /// How it is measured.
    pub of: &'a Measurement<'a, B>,
    /// The model.
    pub model: &'a Decoder<B>,
    /// What of it.
    pub scope: &'a InScope,
    /// The data.
    pub data: &'a Dataset,
    /// What is measured because an objective asks for it.
    pub beside: Beside,
    /// How rows are cut.
    pub plan: BatchPlan,
    /// Batches that run side by side.
    pub at_once: usize,
}

/// What a part adds to each table.
#[derive(Default)]
pub struct Rows {
    /// Of pairs.parquet.
    pub pairs: Vec<PairRow>,
    /// Of params.parquet.
    pub params: Vec<ParamRow>,
    /// Of routing.parquet.
    pub routing: Vec<RoutingRow>,
    /// Of responses.parquet.
    pub responses: Vec<ResponsesRow>,
    /// Of groups.parquet.
    pub groups: Vec<MeasuredGroup>,
    /// Of probes.parquet.
    pub probes: Vec<ProbeRow>,
}

impl<B: Kernels> Setup<'_, B> {
    /// The rows of a part, in data order.
    pub fn window(&self, part: usize, window: &[Item]) -> Result<Rows> {
        let masks = self.masks(window);
        let requests = Self::requests(window, &masks);
        let schedule = self.schedule(&requests);
        let done = advances(self.of.listener(), &requests);
        let wanted = Wanted { detail: Detail::Parameters, metric: self.metric() };
        let results = grams_in_batches(self.model, self.scope, &requests, &schedule, &wanted, done);
        self.rows(part, window, &masks, &results)
    }

    /// The same, and the gradients of all responses of the part.
    pub fn window_with(&self, part: usize, window: &[Item], kept: &Kept<'_, B>) -> Result<(Rows, Gradients<B>)> {
        let (results, gradients) = self.form(window, kept, true);
        Ok((self.rows(part, window, &self.masks(window), &results)?, gradients))
    }

    /// The gradients of all responses of some items, with the bits that [`window_with`](Self::window_with) gives for the same.
    pub fn gradients(&self, window: &[Item], kept: &Kept<'_, B>) -> Gradients<B> {
        self.form(window, kept, false).1
    }

    fn form(&self, window: &[Item], kept: &Kept<'_, B>, grams: bool) -> (Vec<GroupResult>, Gradients<B>) {
        let masks = self.masks(window);
        let requests = Self::requests(window, &masks);
        let schedule = self.schedule(&requests);
        let done = advances(self.of.listener(), &requests);
        Gradients::form(self.model, self.scope, &requests, kept, &schedule, grams, done)
    }

    /// The metric that products are taken in too.
    pub fn metric(&self) -> Option<&Metric<B>> {
        self.of.metric.map(|of| &of.metric)
    }

    /// Masks of the parts of responses that are summed apart, for each pair of an item.
    fn masks(&self, window: &[Item]) -> Vec<Vec<Vec<Masks>>> {
        let masks = |item: &Item| -> Vec<Vec<Masks>> {
            item.pairs.iter().map(|(pair, _)| parts(item, *pair, self.beside)).collect()
        };
        window.iter().map(masks).collect()
    }

    /// Of each item, the log-probabilities of its responses, and the sums over those parts.
    fn requests<'a>(window: &'a [Item], masks: &[Vec<Vec<Masks>>]) -> Vec<Request<'a>> {
        let request = |(item, masks): (&'a Item, &Vec<Vec<Masks>>)| {
            let of_pairs = item.pairs.iter().zip(masks);
            let of_parts = of_pairs.flat_map(|((pair, _), parts)| parts.iter().map(move |masks| (pair, masks)));
            let over = of_parts.flat_map(|(pair, masks)| {
                pair.iter().zip(masks).map(|(&k, mask)| Cotangent { branch: k, weights: mask.clone() })
            });
            let cotangents = Cotangent::log_probabilities(&item.group).into_iter().chain(over).collect();
            Request { group: &item.group, cotangents }
        };
        window.iter().zip(masks).map(request).collect()
    }

    fn schedule(&self, requests: &[Request<'_>]) -> Schedule {
        batches_of(requests.iter().map(|request| request.group), self.plan.forward_rows_per_batch, self.at_once)
    }

    /// The rows of a part from what was found of its items.
    fn rows(&self, part: usize, window: &[Item], masks: &[Vec<Vec<Masks>>], results: &[GroupResult]) -> Result<Rows> {
        let groups: Vec<&Group> = window.iter().map(|item| &item.group).collect();
        let schedule = batches_of(groups.iter().copied(), self.plan.forward_rows_per_batch, self.at_once);
        let reference: Option<TokenLogps> = match self.of.reference {
            LoadedReference::None => None,
            LoadedReference::Itself => Some(results.iter().map(|result| result.token_logps.clone()).collect()),
            LoadedReference::Model(model) => {
                let mut memo = self.of.memo.borrow_mut();
                let known = memo
                    .entry((self.data.content_hash.clone(), part))
                    .or_insert_with(|| token_logps_in_batches(model, &groups, &schedule, |_| ()));
                Some(known.clone())
            }
        };
        let mismatched = self.mismatched(part, window)?;
        let mut rows = Rows::default();
        for (at, (item, result)) in window.iter().zip(results).enumerate() {
            let reference = reference.as_ref().map(|all| &all[at]);
            if self.data.groups {
                rows.groups.push(item.measured(result, reference));
            }
            for (n, (branches, number)) in item.pairs.iter().enumerate() {
                let masks = &masks[at][n];
                // every pair of an item has as many parts
                let first = item.group.responses.len() + 2 * masks.len() * n;
                let mut which = branches.to_vec();
                which.extend(first..first + 2 * masks.len());
                let (text, mismatched) = (self.text(item, *branches), mismatched.as_ref().map(|all| all[at]));
                let pair = MeasuredPair {
                    item,
                    branches: *branches,
                    number: *number,
                    which,
                    reference,
                    beside: self.beside,
                    masks,
                    text,
                    mismatched,
                };
                let row = pair.row(result, self.scope, self.model.description.layers() - 1);
                let numbers =
                    part_of(&result.total(), &pair.which).into_iter().chain([row.logp_chosen, row.logp_rejected]);
                let of_metric = row.in_metric.into_iter().flat_map(|PairGram { ww, wl, ll }| [ww, wl, ll]);
                if !numbers.chain(row.reference.into_iter().flatten()).chain(of_metric).all(f64::is_finite) {
                    return Err(Error::overflow(item.row, "a log-probability or inner product"));
                }
                rows.pairs.push(row);
                rows.routing.extend(pair.routing(result));
                rows.responses.push(pair.responses(result, self.of.tokenizer));
                for (parameter, gram) in self.scope.parameters.iter().zip(&result.grams) {
                    rows.params.push(ParamRow {
                        pair: *number,
                        param: parameter.name.clone(),
                        layer: parameter.layer.map(as_index),
                        module: parameter.module.clone(),
                        gram: PairGram::of(&part_of(gram, branches)),
                    });
                }
            }
            rows.probes.extend(self.probes(item));
        }
        Ok(rows)
    }

    /// The Gram of the mean gradients over all pairs of the best and the worst response, parameter by parameter.
    pub fn means(&self) -> Result<Vec<MeanRow>> {
        self.of.listener().note("mean gradients: a second pass over all pairs");
        let mut sums = MeanGradients::new(self.scope);
        for window in self.data.pairs.parts(ROWS_PER_PART) {
            let items = Item::all(&self.model.description, self.data.pairs.get(window)?, None);
            let groups = items.iter().map(|item| &item.group);
            for batch in batches_of(groups, self.plan.forward_rows_per_batch, 1).batches {
                sums.add(self.model, &batch.iter().map(|&at| &items[at].group).collect::<Vec<_>>());
            }
        }
        let row = |(parameter, gram): (&Parameter, Vec<f64>)| MeanRow {
            param: parameter.name.clone(),
            layer: parameter.layer.map(as_index),
            module: parameter.module.clone(),
            pairs: self.data.pairs.len() as u64,
            gram: PairGram::of(&gram),
        };
        Ok(self.scope.parameters.iter().zip(sums.grams()).map(row).collect())
    }

    /// A pair's prompt and chosen response as one text, and its gradient against those of both responses.
    fn text(&self, item: &Item, branches: [usize; 2]) -> Option<TextSums> {
        let mut tokens = self.beside.text.then(|| item.group.prompt.clone())?;
        let [chosen, _] = branches;
        tokens.extend(&item.group.responses[chosen]);
        let rest = tokens.split_off(1);
        let text = Group::of(&self.model.description, tokens, vec![rest]);
        let (grams, logps) = grams_across(self.model, self.scope, &Request::all([&item.group, &text]), Detail::Total);
        let (gram, k) = (&grams[0], item.group.responses.len());
        let inner = branches.map(|branch| gram[k * (k + 1) + branch]);
        let of = &logps[1][0];
        Some(TextSums { text: ChosenText { logp: of.iter().sum(), tokens: of.len() as f64 }, inner })
    }

    /// log π − log π_ref of the best and the worst response of the row before after each prompt; the row before the first is
    /// the last. What does not fit in the model's positions is cut.
    fn mismatched(&self, part: usize, window: &[Item]) -> Result<Option<Vec<[f64; 2]>>> {
        if !self.beside.mismatched {
            return Ok(None);
        }
        let first = part * ROWS_PER_PART;
        let before = first.checked_sub(1).unwrap_or(self.data.pairs.len() - 1);
        let description = &self.model.description;
        let before = Item::all(description, self.data.pairs.get(before..before + 1)?, None);
        let of = |(item, before): (&Item, &Item)| {
            let room = description.max_positions + 1 - item.group.prompt.len();
            let cut = |response: &Vec<u32>| response[..response.len().min(room)].to_vec();
            Group::of(description, item.group.prompt.clone(), before.group.responses[..2].iter().map(cut).collect())
        };
        let groups: Vec<Group> = window.iter().zip(before.iter().chain(window)).map(of).collect();
        let groups: Vec<&Group> = groups.iter().collect();
        let schedule = batches_of(groups.iter().copied(), self.plan.forward_rows_per_batch, self.at_once);
        let sums = |model: &Decoder<B>| -> TokenLogps { token_logps_in_batches(model, &groups, &schedule, |_| ()) };
        let policy = sums(self.model);
        let reference = match self.of.reference {
            LoadedReference::Model(model) => {
                let mut memo = self.of.memo.borrow_mut();
                let key = (format!("{}, mismatched", self.data.content_hash), part);
                memo.entry(key).or_insert_with(|| sums(model)).clone()
            }
            LoadedReference::None | LoadedReference::Itself => policy.clone(),
        };
        let sum = |of: &[f64]| of.iter().sum::<f64>();
        let ratios = policy.iter().zip(&reference).map(|(p, r)| [0, 1].map(|k| sum(&p[k]) - sum(&r[k])));
        Ok(Some(ratios.collect()))
    }

    /// How a row's pairs pull on the probes: a Gram over the branches of both.
    fn probes(&self, item: &Item) -> Vec<ProbeRow> {
        let probes = &self.of.extras.probes;
        if probes.is_empty() {
            return Vec::new();
        }
        let groups = std::iter::once(&item.group).chain(probes.iter().map(|probe| &probe.group));
        let (grams, logps) = grams_across(self.model, self.scope, &Request::all(groups), Detail::Total);
        let gram = grams.into_iter().next().unwrap_or_default();
        let (first, k) = (item.group.responses.len(), gram.len().isqrt());
        let of = |(n, probe): (usize, &Probe)| {
            let row = &gram[(first + n) * k..(first + n + 1) * k];
            let (logp, square) = (logps[1 + n][0].iter().sum(), row[first + n]);
            let of_pair = move |(branches, pair): &([usize; 2], u64)| ProbeRow {
                pair: *pair,
                probe: probe.row,
                id: probe.id.clone(),
                logp,
                inner: branches.map(|branch| row[branch]),
                square,
            };
            item.pairs.iter().map(of_pair).collect::<Vec<_>>()
        };
        probes.iter().enumerate().flat_map(of).collect()
    }
}

/// Tells a listener that some requests are through.
fn advances<'a>(listener: &'a dyn Listener, requests: &'a [Request<'_>]) -> impl Fn(&[usize]) + Sync + 'a {
    move |batch| {
        let rows = batch.iter().map(|&g| requests[g].group.forward_rows()).sum();
        advance(listener, Amount { pairs: batch.len(), rows });
    }
}

/// The weights with which tokens of both responses are summed apart: contrast tokens, then those up to the shorter response's length, then the data's own.
fn parts(item: &Item, pair: [usize; 2], beside: Beside) -> Vec<Masks> {
    let [chosen, rejected] = pair.map(|k| &item.group.responses[k]);
    let shorter = chosen.len().min(rejected.len());
    let weigh = |kept: Vec<bool>| kept.into_iter().map(|kept| f64::from(u8::from(kept))).collect();
    let public = || [chosen, rejected].map(|of| (0..of.len()).map(|at| f64::from(u8::from(at < shorter))).collect());
    let contrast = beside.contrast.then(|| contrast(chosen, rejected).map(weigh));
    let weights = beside.weights.then(|| item.weights.clone()).flatten();
    contrast.into_iter().chain(beside.public.then(public)).chain(weights).collect()
}
