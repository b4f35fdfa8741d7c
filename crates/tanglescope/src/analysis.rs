//! The analysis of a loaded model on a data set: records, part by part.
use crate::device::dtype_name;
use crate::error::{Error, Result};
use crate::hub;
use crate::manifest::{Identity, Manifest, Plan, whole};
use crate::objectives::{Asked, Loaded};
use crate::options::{ModelOptions, Placement};
use crate::progress::{Amount, Progress};
use std::cell::RefCell;
use std::collections::HashMap;
use std::fs::File;
use std::ops::Range;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use tanglescope_analytics::groups::{self, GroupResponse, MeasuredGroup};
use tanglescope_analytics::objectives::{self, Measured};
use tanglescope_analytics::probes::{self, ProbeRow};
use tanglescope_analytics::tables::{
    Companions, Contrast, MeanRow, PairLengths, PairRow, ParamRow, ResponseTokens, ResponsesRow,
};
use tanglescope_analytics::{Summary, Table, tables};
use tanglescope_data::{Candidates, Dataset, Pair, PairTokens, TextTokens};
use tanglescope_gram::{
    Cotangent, Group, GroupResult, MeanGradients, grams_of_batches, plan, token_logps_of_batches, total_across,
};
use tanglescope_kernels::Kernels;
use tanglescope_model::architectures::Description;
use tanglescope_model::{AdapterSource, Decoder, InScope, Parameter, text_hash};
use tanglescope_objectives::{GroupObjective, Needs, Objective, PairGram, contrast};

/// Pairs of a part: few enough that little is lost when a run is killed, many enough that batches of like length fill.
const ROWS_PER_PART: usize = 64;

/// The tables whose parts belong together, in the order in which they are written; groups.parquet comes before them.
const PARTS: [&str; 3] = ["params.parquet", "responses.parquet", "pairs.parquet"];

/// What is measured beside pairs of the best and the worst response.
#[derive(Clone, Debug, Default)]
pub struct Beyond {
    /// Every pair of a better and a worse response of a group is a pair.
    pub all_pairs: bool,
    /// Losses on groups.
    pub objectives: Vec<GroupObjective>,
    /// Whether the Gram of the mean gradients is wanted.
    pub mean: bool,
    /// Texts whose change under the pairs' steps is predicted.
    pub probes: Vec<Probe>,
}

/// A text beside the pairs.
#[derive(Clone, Debug, PartialEq)]
pub struct Probe {
    /// Number of its row in its file.
    pub row: u64,
    /// The row's own `id`.
    pub id: Option<String>,
    /// Its tokens, as a group of one.
    pub group: Group,
}

/// A row of the data as it runs: its responses as branches, the best first and the worst second, and the pairs among them.
struct Item {
    row: u64,
    id: Option<String>,
    truncated: usize,
    group: Group,
    /// Which response of the row each branch is.
    responses: Vec<usize>,
    /// Of a group: the score of each branch.
    scores: Option<Vec<Option<f64>>>,
    /// Branches of chosen and rejected, and the pair's number.
    pairs: Vec<([usize; 2], u64)>,
}

impl Item {
    /// `first` is the number of the row's first pair where rows have several.
    fn new(model: &Description, pair: Pair, all_pairs: Option<u64>) -> Self {
        let Pair { row, id, tokens, truncated_tokens: truncated, group } = pair;
        let Some(Candidates { responses, scores, best, worst }) = group else {
            let pairs = vec![([0, 1], all_pairs.unwrap_or(row))];
            let group = Group::of(model, tokens.prompt, vec![tokens.chosen, tokens.rejected]);
            return Self { row, id, truncated, group, responses: vec![0, 1], scores: None, pairs };
        };
        let mut order = vec![best, worst];
        order.extend((0..responses.len()).filter(|k| ![best, worst].contains(k)));
        let of_branch: Vec<Option<f64>> = order.iter().map(|&k| scores.as_ref().map(|scores| scores[k])).collect();
        let pairs = match all_pairs {
            None => vec![([0, 1], row)],
            Some(first) => (0u64..).zip(ordered(&order, &of_branch)).map(|(n, pair)| (pair, first + n)).collect(),
        };
        let branches = order.iter().map(|&k| responses[k].clone()).collect();
        let group = Group::of(model, tokens.prompt, branches);
        Self { row, id, truncated, group, responses: order, scores: Some(of_branch), pairs }
    }

    /// The group as the table has it, its responses in the row's order.
    fn measured(&self, result: &GroupResult, reference: Option<&Vec<Vec<f64>>>) -> MeasuredGroup {
        let (k, total) = (self.responses.len(), result.total());
        let cotangents = total.len().isqrt();
        let mut branch = vec![0; k];
        self.responses.iter().enumerate().for_each(|(at, &response)| branch[response] = at);
        let response = |&at: &usize| GroupResponse {
            score: self.scores.as_ref().and_then(|scores| scores[at]),
            logp: result.logp(at),
            reference: reference.map(|of| of[at].iter().sum()),
            tokens: u32::try_from(self.group.responses[at].len()).unwrap_or(u32::MAX),
        };
        let products = branch.iter().flat_map(|a| branch.iter().map(move |b| (a, b)));
        MeasuredGroup {
            group: self.row,
            id: self.id.clone(),
            responses: branch.iter().map(response).collect(),
            gram: products.map(|(a, b)| total[a * cotangents + b]).collect(),
        }
    }
}

/// Every two branches of which one is better: by score, or by the row's order where it has none.
fn ordered(order: &[usize], scores: &[Option<f64>]) -> Vec<[usize; 2]> {
    let better = |a: usize, b: usize| match (scores[a], scores[b]) {
        (Some(a), Some(b)) => a > b,
        _ => order[a] < order[b],
    };
    let all = (0..order.len()).flat_map(|a| (0..order.len()).map(move |b| [a, b]));
    all.filter(|[a, b]| a != b && better(*a, *b)).collect()
}

/// Rows and columns of a Gram `[K, K]`.
fn part_of(gram: &[f64], which: &[usize]) -> Vec<f64> {
    let k = gram.len().isqrt();
    which.iter().flat_map(|&i| which.iter().map(move |&j| gram[i * k + j])).collect()
}

/// Token log-probabilities of both responses under the reference, pair by pair.
type TokenLogps = Vec<Vec<Vec<f64>>>;

/// What is known of the reference, by the data's hash and the part.
pub type ReferenceLogps = RefCell<HashMap<(String, usize), TokenLogps>>;

/// How models are analysed.
pub struct Analysis<'a, B: Kernels> {
    /// Of the model.
    pub options: &'a ModelOptions,
    /// The objectives.
    pub asked: &'a Asked,
    /// The reference.
    pub reference: &'a Loaded<B>,
    /// What is known of it already.
    pub memo: &'a ReferenceLogps,
    /// Turns ids back into text.
    pub tokenizer: Option<&'a TextTokens>,
    /// What is measured beside pairs.
    pub beyond: &'a Beyond,
}

impl<B: Kernels> Analysis<'_, B> {
    /// Analyses a model on data into a folder, or goes on where an earlier run stopped.
    pub fn write(
        &self,
        model: &mut Decoder<B>,
        scope: &InScope,
        data: &Dataset,
        out: &Path,
        progress: &mut Progress,
    ) -> Result<Summary> {
        let Self { options, asked, reference, memo, tokenizer, beyond } = self;
        std::fs::create_dir_all(out).map_err(|e| Error::output(out, format!("cannot be made: {e}")))?;
        let _lock = lock(out)?;
        let outline = options.outline()?;
        let placement = Placement::of(options, &outline);
        let hashes = [model.content_hash.as_str(), &data.content_hash];
        let reference_identity = reference.identity(&asked.reference);
        let identity = Identity {
            all_pairs: beyond.all_pairs,
            probes: beyond.identity(),
            ..identity(options, hashes, model.adapter_hash.as_deref(), reference_identity, asked.contrast())
        };
        let plan = Plan {
            rows_per_part: ROWS_PER_PART,
            forward_rows_per_batch: placement.rows_per_batch(options, &outline),
            backward_rows_per_pass: None,
            rates: model.rates.into(),
        };
        let manifest = open(out, options, data, identity, plan, &asked.objectives)?;
        model.rates = manifest.plan.rates.into();
        let contrast = manifest.identity.contrast;
        let (plan, at_once) = (manifest.plan, placement.at_once);
        let run = Run { model, scope, reference, memo, data, contrast, plan, at_once, beyond };
        let summary = run.parts(out, &asked.objectives, *tokenizer, progress)?;
        let means = beyond.mean.then(|| Table::create(out, "means.parquet")).transpose()?;
        if let Some(means) = means.filter(|means| !means.has(0)) {
            means.write(0, tables::means(&run.means()?))?;
        }
        Ok(summary)
    }
}

/// Keeps a second process out of the folder until it is dropped.
pub fn lock(out: &Path) -> Result<File> {
    lock_file(&out.join(".lock"), false)
}

/// Takes a lock; a shared one keeps out only those that are not.
pub fn lock_file(path: &Path, shared: bool) -> Result<File> {
    let file = File::create(path).map_err(|e| Error::output(path, format!("cannot be written: {e}")))?;
    match if shared { file.try_lock_shared() } else { file.try_lock() } {
        Err(std::fs::TryLockError::WouldBlock) => {
            Err(Error::output(path.parent().unwrap_or(path), "another run is writing to this folder"))
        }
        // taken, or on a file system without locks
        Ok(()) | Err(std::fs::TryLockError::Error(_)) => Ok(file),
    }
}

/// What decides the rows: `model` and `adapter` are hashes of what the options name.
pub fn identity(
    options: &ModelOptions,
    [model, data]: [&str; 2],
    adapter: Option<&str>,
    reference: Option<String>,
    contrast: bool,
) -> Identity {
    Identity {
        model: model.to_owned(),
        adapter: options.adapter_identity(adapter),
        reference,
        data: data.to_owned(),
        scope: options.scope.to_string(),
        dtype: dtype_name(options.dtype).to_owned(),
        contrast,
        all_pairs: false,
        probes: None,
    }
}

/// The manifest of the folder: the one that is there, if it is of the same run, or a new one.
pub fn open(
    out: &Path,
    options: &ModelOptions,
    data: &Dataset,
    identity: Identity,
    plan: Plan,
    objectives: &[Objective],
) -> Result<Manifest> {
    let (adapter, seed) = match &options.adapter {
        AdapterSource::None => (None, None),
        AdapterSource::Saved(folder) => (Some(folder.clone()), None),
        AdapterSource::Fresh(fresh) => (None, Some(fresh.seed)),
    };
    let device = options.device.to_string();
    let objectives: Vec<String> = objectives.iter().map(Objective::to_string).collect();
    let manifest = match Manifest::read(out)? {
        Some(mut manifest) => {
            // matrices of tokens need none of these: the first run that writes pairs settles them
            if Table::at(out, "pairs.parquet").parts()?.is_empty() {
                let Identity { reference, contrast, probes, .. } = identity.clone();
                manifest.identity = Identity { reference, contrast, probes, ..manifest.identity };
            }
            manifest.same_run(&identity, out)?;
            if !manifest.devices.contains(&device) {
                manifest.devices.push(device);
            }
            if !objectives.is_empty() && manifest.objectives != objectives {
                // made again from pairs.parquet
                Table::create(out, "objectives.parquet")?.clear()?;
                manifest.objectives = objectives;
            }
            manifest
        }
        None => Manifest {
            tanglescope: env!("CARGO_PKG_VERSION").to_owned(),
            command: std::env::args().collect(),
            model: whole(&options.folder),
            hub: [("model", Some(&options.folder)), ("adapter", adapter.as_ref()), ("data", Some(&data.path))]
                .into_iter()
                .filter_map(|(what, path)| Some((what.to_owned(), hub::source(path?)?)))
                .collect(),
            adapter: adapter.as_deref().map(whole),
            data: whole(&data.path),
            pairs: data.pairs.len(),
            skipped: data.skipped.clone(),
            devices: vec![device],
            seed,
            identity,
            plan,
            objectives,
        },
    };
    manifest.write(out)?;
    Ok(manifest)
}

/// A model, and what is measured of it in which portions.
struct Run<'a, B: Kernels> {
    model: &'a Decoder<B>,
    scope: &'a InScope,
    reference: &'a Loaded<B>,
    memo: &'a ReferenceLogps,
    data: &'a Dataset,
    /// Whether gradients over contrast tokens are measured too.
    contrast: bool,
    plan: Plan,
    /// Batches that run side by side.
    at_once: usize,
    beyond: &'a Beyond,
}

/// What a part adds to each table.
#[derive(Default)]
struct Rows {
    pairs: Vec<PairRow>,
    params: Vec<ParamRow>,
    responses: Vec<ResponsesRow>,
    groups: Vec<MeasuredGroup>,
    probes: Vec<ProbeRow>,
}

/// What of an analysis is in a folder already.
pub fn done(out: &Path, data: &Dataset) -> Result<Amount> {
    let tables = PARTS.map(|name| Table::at(out, name));
    let mut done = Amount::default();
    for (part, window) in data.pairs.parts(ROWS_PER_PART).enumerate() {
        if tables.iter().all(|table| table.has(part)) {
            done.add(Amount { pairs: window.len(), rows: rows(&data.pairs.get(window)?) });
        }
    }
    Ok(done)
}

/// Whether what follows from the rows is in a folder too: objectives, and mean gradients where they are wanted.
pub fn has_followed(out: &Path, data: &Dataset, objectives: &[Objective], mean: bool) -> bool {
    let parts = data.pairs.parts(ROWS_PER_PART).count();
    let of_all = objectives.iter().any(|objective| objective.needs() == Needs::Batch);
    let outcomes = Table::at(out, "objectives.parquet");
    let needed = if objectives.is_empty() { 0 } else { parts + usize::from(of_all) };
    (0..needed).all(|part| outcomes.has(part)) && (!mean || Table::at(out, "means.parquet").has(0))
}

/// All that an analysis has to do.
pub fn work(data: &Dataset) -> Result<Amount> {
    let mut work = Amount::default();
    for window in data.pairs.parts(ROWS_PER_PART) {
        work.add(Amount { pairs: window.len(), rows: rows(&data.pairs.get(window)?) });
    }
    Ok(work)
}

impl Beyond {
    /// What stands for the probes.
    fn identity(&self) -> Option<String> {
        let of = |probe: &Probe| format!("{} {:?} {:?}", probe.row, probe.group.prompt, probe.group.responses);
        (!self.probes.is_empty()).then(|| text_hash(&self.probes.iter().map(of).collect::<Vec<_>>().join("\n")))
    }
}

impl<B: Kernels> Run<'_, B> {
    /// Makes every part that is not there yet, and sums up all of them.
    fn parts(
        &self,
        out: &Path,
        objectives: &[Objective],
        tokenizer: Option<&TextTokens>,
        progress: &mut Progress,
    ) -> Result<Summary> {
        let [params, responses, pairs] = PARTS.map(|name| Table::create(out, name));
        let (params, responses, pairs) = (params?, responses?, pairs?);
        let table = |wanted: bool, name: &str| wanted.then(|| Table::create(out, name)).transpose();
        let beyond = self.beyond;
        let groups = table(self.data.groups, "groups.parquet")?;
        let probes = table(!beyond.probes.is_empty(), "probes.parquet")?;
        let outcomes = table(!objectives.is_empty(), "objectives.parquet")?;
        let of_groups = table(groups.is_some() && !beyond.objectives.is_empty(), "group_objectives.parquet")?;
        let of_probes = table(probes.is_some() && outcomes.is_some(), "probe_objectives.parquet")?;
        // contrast tokens have gradients of their own
        let contrast = objectives.iter().filter(|objective| objective.needs() == Needs::Contrast);
        let contrast: Vec<String> = contrast.map(Objective::to_string).collect();
        let mut summary = Summary::default();
        let mut all: Vec<Measured> = Vec::new();
        let windows: Vec<Range<usize>> = self.data.pairs.parts(ROWS_PER_PART).collect();
        let mut first = 0;
        for (part, window) in windows.iter().enumerate() {
            let rows = self.data.pairs.get(window.clone())?;
            let first_pair = beyond.all_pairs.then_some(first);
            let items = items(&self.model.description, rows, first_pair);
            first += items.iter().map(|item| item.pairs.len() as u64).sum::<u64>();
            let tables = [Some(&pairs), Some(&responses), Some(&params), groups.as_ref(), probes.as_ref()];
            if !tables.into_iter().flatten().all(|table| table.has(part)) {
                let rows = self.window(part, &items, tokenizer, progress)?;
                if let Some(groups) = &groups {
                    groups.write(part, groups::table(&rows.groups))?;
                }
                if let Some(probes) = &probes {
                    probes.write(part, probes::table(&rows.probes))?;
                }
                params.write(part, tables::params(&rows.params))?;
                responses.write(part, tables::responses(&rows.responses))?;
                pairs.write(part, tables::pairs(&rows.pairs))?;
            }
            if let (Some(groups), Some(of_groups)) = (&groups, &of_groups) {
                let measured = groups::measured(&groups.read(part)?)?;
                of_groups.write(part, groups::outcomes(&measured, &beyond.objectives))?;
            }
            let of_pairs = pairs.read(part)?;
            summary.add(&of_pairs, &params.read(part)?)?;
            if let Some(outcomes) = &outcomes {
                let measured = objectives::measured(&of_pairs)?;
                if !outcomes.has(part) {
                    outcomes.write(part, objectives::of_pairs(&measured, objectives))?;
                }
                let of_part = outcomes.read(part)?;
                summary.add_objectives(&of_part)?;
                if let (Some(probes), Some(of_probes)) = (&probes, &of_probes) {
                    of_probes.write(part, probes::outcomes(&[probes.read(part)?], &of_part, &contrast)?)?;
                }
                all.extend(measured);
            }
        }
        // objectives of a batch take the whole data as theirs
        if let (Some(outcomes), Some(of_all)) = (&outcomes, objectives::of_all(&all, objectives)) {
            let part = windows.len();
            outcomes.write(part, of_all)?;
            let of_all = outcomes.read(part)?;
            summary.add_objectives(&of_all)?;
            if let (Some(probes), Some(of_probes)) = (&probes, &of_probes) {
                let tables = (0..part).map(|part| probes.read(part)).collect::<Result<Vec<_>, _>>()?;
                of_probes.write(part, probes::outcomes(&tables, &of_all, &contrast)?)?;
            }
        }
        Ok(summary)
    }

    /// The rows of a part, in data order.
    fn window(
        &self,
        part: usize,
        window: &[Item],
        tokenizer: Option<&TextTokens>,
        progress: &mut Progress,
    ) -> Result<Rows> {
        // of each pair, where contrast tokens are asked for
        let masks = |item: &Item| -> Vec<Option<Masks>> {
            let of = |&[chosen, rejected]: &[usize; 2]| {
                self.contrast.then(|| contrast(&item.group.responses[chosen], &item.group.responses[rejected]))
            };
            item.pairs.iter().map(|(pair, _)| of(pair)).collect()
        };
        let masks: Vec<Vec<Option<Masks>>> = window.iter().map(masks).collect();
        let cotangents = window.iter().zip(&masks).map(|(item, masks)| {
            let of_pairs = item.pairs.iter().zip(masks).filter_map(|((pair, _), masks)| Some((pair, masks.as_ref()?)));
            let over =
                of_pairs.flat_map(|(pair, masks)| pair.iter().zip(masks).map(|(&k, mask)| Cotangent::over(k, mask)));
            Cotangent::log_probabilities(&item.group).into_iter().chain(over).collect()
        });
        let cotangents: Vec<Vec<Cotangent>> = cotangents.collect();
        let groups: Vec<&Group> = window.iter().map(|item| &item.group).collect();
        let lengths: Vec<usize> = groups.iter().map(|group| group.forward_rows()).collect();
        let batches = plan::batches(&lengths, self.plan.forward_rows_per_batch);
        let items: Vec<(&Group, &[Cotangent])> =
            groups.iter().zip(&cotangents).map(|(group, cotangents)| (*group, cotangents.as_slice())).collect();
        let progress = Mutex::new(progress);
        let results = grams_of_batches(self.model, self.scope, &items, (&batches, self.at_once), |batch| {
            let mut progress = progress.lock().unwrap_or_else(PoisonError::into_inner);
            progress.add(Amount { pairs: batch.len(), rows: batch.iter().map(|&g| lengths[g]).sum() });
        });
        let reference: Option<Vec<Vec<Vec<f64>>>> = match self.reference {
            Loaded::None => None,
            Loaded::Itself => Some(results.iter().map(|result| result.token_logps.clone()).collect()),
            Loaded::Model(model) => {
                let mut memo = self.memo.borrow_mut();
                let known = memo
                    .entry((self.data.content_hash.clone(), part))
                    .or_insert_with(|| token_logps_of_batches(model, &groups, (&batches, self.at_once), |_| ()));
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
                let pair = OfPair { item, branches: *branches, number: *number, which, reference, masks: contrast };
                let row = self.pair_row(&pair, result);
                let numbers =
                    part_of(&result.total(), &pair.which).into_iter().chain([row.logp_chosen, row.logp_rejected]);
                if !numbers.chain(row.reference.into_iter().flatten()).all(f64::is_finite) {
                    return Err(Error::overflow(item.row, "a log-probability or inner product"));
                }
                rows.pairs.push(row);
                rows.responses.push(pair.responses(result, tokenizer));
                for (parameter, gram) in self.scope.parameters.iter().zip(&result.grams) {
                    rows.params.push(ParamRow {
                        pair: *number,
                        param: parameter.name.clone(),
                        layer: parameter.layer.and_then(|layer| u32::try_from(layer).ok()),
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
    fn means(&self) -> Result<Vec<MeanRow>> {
        eprintln!("mean gradients: a second pass over all pairs");
        let mut sums = MeanGradients::new(self.scope);
        for window in self.data.pairs.parts(ROWS_PER_PART) {
            let items = items(&self.model.description, self.data.pairs.get(window)?, None);
            let lengths: Vec<usize> = items.iter().map(|item| item.group.forward_rows()).collect();
            for batch in plan::batches(&lengths, self.plan.forward_rows_per_batch) {
                sums.add(self.model, &batch.iter().map(|&at| &items[at].group).collect::<Vec<_>>());
            }
        }
        let row = |(parameter, gram): (&Parameter, Vec<f64>)| MeanRow {
            param: parameter.name.clone(),
            layer: parameter.layer.and_then(|layer| u32::try_from(layer).ok()),
            module: parameter.module.clone(),
            pairs: self.data.pairs.len() as u64,
            gram: PairGram::of(&gram),
        };
        Ok(self.scope.parameters.iter().zip(sums.grams()).map(row).collect())
    }

    /// How a row's pairs pull on the probes: a Gram over the branches of both.
    fn probes(&self, item: &Item) -> Vec<ProbeRow> {
        let probes = &self.beyond.probes;
        if probes.is_empty() {
            return Vec::new();
        }
        let groups: Vec<&Group> = std::iter::once(&item.group).chain(probes.iter().map(|probe| &probe.group)).collect();
        let cotangents: Vec<Vec<Cotangent>> = groups.iter().map(|group| Cotangent::log_probabilities(group)).collect();
        let items: Vec<(&Group, &[Cotangent])> =
            groups.iter().zip(&cotangents).map(|(group, cotangents)| (*group, cotangents.as_slice())).collect();
        let (gram, logps) = total_across(self.model, self.scope, &items);
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

    fn pair_row(&self, pair: &OfPair<'_>, result: &GroupResult) -> PairRow {
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let OfPair { item, branches, which, reference, .. } = pair;
        let [w, l] = *branches;
        let total = part_of(&result.total(), which);
        let contrast = reference.zip(pair.masks).map(|(reference, masks)| Contrast {
            logps: masked(&result.token_logps, *branches, masks),
            reference: masked(reference, *branches, masks),
            inner: [[total[8], total[9]], [total[12], total[13]]],
        });
        let (chosen, rejected) = (&item.group.responses[w], &item.group.responses[l]);
        let tokens = PairLengths {
            prompt: count(item.group.prompt.len()),
            chosen: count(chosen.len()),
            rejected: count(rejected.len()),
            trunk: count(result.trunk_tokens),
            truncated: count(item.truncated),
        };
        let gram = PairGram::of(&total);
        let hidden = part_of(&result.companions.hidden, branches);
        let average = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
        let ranks = |k: usize| average(&result.companions.ranks[k].iter().map(|&r| f64::from(r)).collect::<Vec<_>>());
        PairRow {
            pair: pair.number,
            id: item.id.clone(),
            tokens,
            logp_chosen: result.logp(w),
            logp_rejected: result.logp(l),
            reference: reference.map(|of| branches.map(|k| of[k].iter().sum())),
            edit_distance: count(strsim::generic_levenshtein(chosen, rejected)),
            gram,
            companions: Companions {
                hidden: [hidden[0], hidden[1], hidden[3]],
                entropy: branches.map(|k| average(&result.companions.entropies[k])),
                rank: branches.map(ranks),
                last_layer: self.last_layer(result, *branches, gram.wl),
            },
            group: item.scores.as_ref().map(|_| (item.row, branches.map(|k| count(item.responses[k])))),
            contrast,
        }
    }

    /// Part of wl that the last block makes.
    fn last_layer(&self, result: &GroupResult, [w, l]: [usize; 2], wl: f64) -> Option<f64> {
        let last = self.model.description.layers() - 1;
        let of_last = self.scope.parameters.iter().zip(&result.grams).filter(|(p, _)| p.layer == Some(last));
        let parts: Vec<f64> = of_last.map(|(_, gram)| part_of(gram, &[w, l])[1]).collect();
        (!parts.is_empty() && wl != 0.0).then(|| parts.iter().sum::<f64>() / wl)
    }
}

/// A pair of a row, and what is known of it beside the row's results.
struct OfPair<'a> {
    item: &'a Item,
    /// Of chosen and rejected.
    branches: [usize; 2],
    number: u64,
    /// Its cotangents among the row's: of both log-probabilities, and of both sums over contrast tokens.
    which: Vec<usize>,
    reference: Option<&'a Vec<Vec<f64>>>,
    masks: Option<&'a Masks>,
}

impl OfPair<'_> {
    /// Both responses, token by token.
    fn responses(&self, result: &GroupResult, tokenizer: Option<&TextTokens>) -> ResponsesRow {
        let tokens = |k: usize| {
            let ids = &self.item.group.responses[k];
            ResponseTokens {
                ids: ids.clone(),
                text: tokenizer.map(|tokenizer| ids.iter().map(|&id| tokenizer.text(id).unwrap_or_default()).collect()),
                logps: result.token_logps[k].clone(),
                entropies: result.companions.entropies[k].clone(),
                ranks: result.companions.ranks[k].clone(),
            }
        };
        let [chosen, rejected] = self.branches.map(tokens);
        let prompt = tokenizer.map(|tokenizer| tokenizer.join(&self.item.group.prompt));
        ResponsesRow { pair: self.number, prompt, chosen, rejected }
    }
}

/// The rows of a part as they run; `first` is the number of its first pair where rows have several.
fn items(model: &Description, rows: Vec<Pair>, first: Option<u64>) -> Vec<Item> {
    let mut next = first;
    let of = |pair| {
        let item = Item::new(model, pair, next);
        next = next.map(|next| next + item.pairs.len() as u64);
        item
    };
    rows.into_iter().map(of).collect()
}

/// Forward rows of some rows whose responses share a trunk: how much of the work they are.
pub fn rows(pairs: &[Pair]) -> usize {
    let of = |pair: &Pair| {
        let PairTokens { prompt, chosen, rejected } = pair.tokens.clone();
        let responses = pair.group.as_ref().map_or_else(|| vec![chosen, rejected], |group| group.responses.clone());
        Group::new(prompt, responses).forward_rows()
    };
    pairs.iter().map(of).sum()
}

/// The contrast tokens of both responses.
type Masks = [Vec<bool>; 2];

/// Log-probabilities of two branches, summed over the tokens that the masks keep.
fn masked(token_logps: &[Vec<f64>], branches: [usize; 2], masks: &Masks) -> [f64; 2] {
    let sum = |k: usize| -> f64 {
        let kept = token_logps[branches[k]].iter().zip(&masks[k]).filter(|(_, kept)| **kept);
        kept.map(|(logp, _)| logp).sum()
    };
    [sum(0), sum(1)]
}
