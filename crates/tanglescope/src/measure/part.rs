//! One part of a measurement: its rows, and what is beside them.
use super::items::{Item, part_of};
use super::pair::{Masks, MeasuredPair};
use super::stages::ROWS_PER_PART;
use super::{Measurement, Probe, TokenLogps};
use crate::error::{Error, Result};
use crate::listener::Amount;
use crate::reference::LoadedReference;
use tanglescope_data::Dataset;
use tanglescope_gram::{
    Cotangent, Detail, Group, MeanGradients, Request, batches_of, grams_across, grams_in_batches,
    token_logps_in_batches,
};
use tanglescope_kernels::{Kernels, as_index};
use tanglescope_model::{Decoder, InScope, Parameter};
use tanglescope_objectives::{PairGram, contrast};
use tanglescope_records::manifest::BatchPlan;
use tanglescope_records::tables::groups::MeasuredGroup;
use tanglescope_records::tables::pairs::PairRow;
use tanglescope_records::tables::params::{MeanRow, ParamRow};
use tanglescope_records::tables::probes::ProbeRow;
use tanglescope_records::tables::responses::ResponsesRow;

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
    /// Whether gradients over contrast tokens are measured too.
    pub contrast: bool,
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
    /// Of responses.parquet.
    pub responses: Vec<ResponsesRow>,
    /// Of groups.parquet.
    pub groups: Vec<MeasuredGroup>,
    /// Of probes.parquet.
    pub probes: Vec<ProbeRow>,
}

impl<B: Kernels> Setup<'_, B> {
    /// The rows of a part, in data order.
    pub fn window<'a>(&self, part: usize, window: &'a [Item]) -> Result<Rows> {
        // contrast masks, one for each pair of an item
        let masks = |item: &Item| -> Vec<Option<Masks>> {
            let of = |&[chosen, rejected]: &[usize; 2]| {
                self.contrast.then(|| contrast(&item.group.responses[chosen], &item.group.responses[rejected]))
            };
            item.pairs.iter().map(|(pair, _)| of(pair)).collect()
        };
        let masks: Vec<Vec<Option<Masks>>> = window.iter().map(masks).collect();
        let request = |(item, masks): (&'a Item, &Vec<Option<Masks>>)| {
            let pair_masks =
                item.pairs.iter().zip(masks).filter_map(|((pair, _), masks)| Some((pair, masks.as_ref()?)));
            let over =
                pair_masks.flat_map(|(pair, masks)| pair.iter().zip(masks).map(|(&k, mask)| Cotangent::over(k, mask)));
            let cotangents = Cotangent::log_probabilities(&item.group).into_iter().chain(over).collect();
            Request { group: &item.group, cotangents }
        };
        let requests: Vec<Request<'_>> = window.iter().zip(&masks).map(request).collect();
        let schedule =
            batches_of(requests.iter().map(|request| request.group), self.plan.forward_rows_per_batch, self.at_once);
        let results = grams_in_batches(self.model, self.scope, &requests, &schedule, Detail::Parameters, |batch| {
            let rows = batch.iter().map(|&g| requests[g].group.forward_rows()).sum();
            self.of.listener.advance(Amount { pairs: batch.len(), rows });
        });
        let groups: Vec<&Group> = window.iter().map(|item| &item.group).collect();
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
        let mut rows = Rows::default();
        for (at, (item, result)) in window.iter().zip(&results).enumerate() {
            let reference = reference.as_ref().map(|all| &all[at]);
            if self.data.groups {
                rows.groups.push(item.measured(result, reference));
            }
            for (n, (branches, number)) in item.pairs.iter().enumerate() {
                let contrast = masks[at][n].as_ref();
                let first = item.group.responses.len() + 2 * n;
                let mut which = branches.to_vec();
                which.extend(contrast.iter().flat_map(|_| [first, first + 1]));
                let pair =
                    MeasuredPair { item, branches: *branches, number: *number, which, reference, masks: contrast };
                let row = pair.row(result, self.scope, self.model.description.layers() - 1);
                let numbers =
                    part_of(&result.total(), &pair.which).into_iter().chain([row.logp_chosen, row.logp_rejected]);
                if !numbers.chain(row.reference.into_iter().flatten()).all(f64::is_finite) {
                    return Err(Error::overflow(item.row, "a log-probability or inner product"));
                }
                rows.pairs.push(row);
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
        self.of.listener.note("mean gradients: a second pass over all pairs");
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
