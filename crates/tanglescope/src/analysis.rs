//! The analysis of a loaded model on a data set: records, part by part.
use crate::error::{Error, Result};
use crate::manifest::{Identity, Manifest, Plan};
use crate::objectives::{Asked, Loaded};
use crate::options::{ModelOptions, Placement, dtype_name, group};
use crate::progress::{Amount, Progress};
use std::cell::RefCell;
use std::collections::HashMap;
use std::fs::File;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use tanglescope_analytics::objectives::{self, Measured};
use tanglescope_analytics::tables::{Contrast, PairLengths, PairRow, ParamRow, ResponseTokens, ResponsesRow};
use tanglescope_analytics::{Summary, Table, tables};
use tanglescope_data::{Dataset, Pair, PairTokens, TextTokens};
use tanglescope_gram::{Cotangent, Group, GroupResult, grams_of_batches, plan, token_logps_of_batches};
use tanglescope_kernels::Kernels;
use tanglescope_model::{AdapterSource, Decoder, InScope};
use tanglescope_objectives::{Objective, PairGram, contrast};

/// Pairs of a part: few enough that little is lost when a run is killed, many enough that batches of like length fill.
const ROWS_PER_PART: usize = 64;

/// The tables whose parts belong together.
const PARTS: [&str; 3] = ["params.parquet", "responses.parquet", "pairs.parquet"];

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
        let Self { options, asked, reference, memo, tokenizer } = self;
        std::fs::create_dir_all(out).map_err(|e| Error::output(out, format!("cannot be made: {e}")))?;
        let _lock = lock(out)?;
        let outline = options.outline()?;
        let placement = Placement::of(options, &outline);
        let hashes = [model.content_hash.as_str(), &data.content_hash];
        let reference_identity = reference.identity(&asked.reference);
        let identity = identity(options, hashes, model.adapter_hash.as_deref(), reference_identity, asked.contrast());
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
        let run = Run { model, scope, reference, memo, data, contrast, plan, at_once };
        run.parts(out, &asked.objectives, *tokenizer, progress)
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
            model: options.folder.clone(),
            adapter,
            data: data.path.clone(),
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
}

/// What a part adds to each table.
struct Rows {
    pairs: Vec<PairRow>,
    params: Vec<ParamRow>,
    responses: Vec<ResponsesRow>,
}

/// Parts of a data set.
pub fn windows(data: &Dataset) -> Vec<&[Pair]> {
    data.pairs.chunks(ROWS_PER_PART).collect()
}

/// What of an analysis is in a folder already.
pub fn done(out: &Path, data: &Dataset) -> Amount {
    let tables = PARTS.map(|name| Table::at(out, name));
    let mut done = Amount::default();
    for (part, window) in windows(data).into_iter().enumerate() {
        if tables.iter().all(|table| table.has(part)) {
            done.add(Amount { pairs: window.len(), rows: rows(window) });
        }
    }
    done
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
        let outcomes = if objectives.is_empty() { None } else { Some(Table::create(out, "objectives.parquet")?) };
        let mut summary = Summary::default();
        let mut all: Vec<Measured> = Vec::new();
        let windows = windows(self.data);
        for (part, window) in windows.iter().enumerate() {
            if ![&pairs, &responses, &params].iter().all(|table| table.has(part)) {
                let rows = self.window(part, window, tokenizer, progress)?;
                params.write(part, tables::params(&rows.params))?;
                responses.write(part, tables::responses(&rows.responses))?;
                pairs.write(part, tables::pairs(&rows.pairs))?;
            }
            let of_pairs = pairs.read(part)?;
            summary.add(&of_pairs, &params.read(part)?)?;
            if let Some(outcomes) = &outcomes {
                let measured = objectives::measured(&of_pairs)?;
                if !outcomes.has(part) {
                    outcomes.write(part, objectives::of_pairs(&measured, objectives))?;
                }
                summary.add_objectives(&outcomes.read(part)?)?;
                all.extend(measured);
            }
        }
        // objectives of a batch take the whole data as theirs
        if let (Some(outcomes), Some(of_all)) = (&outcomes, objectives::of_all(&all, objectives)) {
            outcomes.write(windows.len(), of_all)?;
            summary.add_objectives(&outcomes.read(windows.len())?)?;
        }
        Ok(summary)
    }

    /// The rows of a part, in data order.
    fn window(
        &self,
        part: usize,
        window: &[Pair],
        tokenizer: Option<&TextTokens>,
        progress: &mut Progress,
    ) -> Result<Rows> {
        let groups: Vec<Group> =
            window.iter().map(|pair| group(&self.model.description, pair.tokens.clone())).collect();
        let masks: Vec<Option<Masks>> = groups
            .iter()
            .map(|group| self.contrast.then(|| contrast(&group.responses[0], &group.responses[1])))
            .collect();
        let cotangents = groups.iter().zip(&masks).map(|(group, masks)| {
            let over = |masks: &Masks| masks.iter().enumerate().map(|(k, mask)| Cotangent::over(k, mask)).collect();
            let contrast: Vec<Cotangent> = masks.as_ref().map(over).unwrap_or_default();
            Cotangent::log_probabilities(group).into_iter().chain(contrast).collect()
        });
        let cotangents: Vec<Vec<Cotangent>> = cotangents.collect();
        let lengths: Vec<usize> = groups.iter().map(Group::forward_rows).collect();
        let batches = plan::batches(&lengths, self.plan.forward_rows_per_batch);
        let items: Vec<(&Group, &[Cotangent])> =
            groups.iter().zip(&cotangents).map(|(group, cotangents)| (group, cotangents.as_slice())).collect();
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
                let known = memo.entry((self.data.content_hash.clone(), part)).or_insert_with(|| {
                    let groups: Vec<&Group> = groups.iter().collect();
                    token_logps_of_batches(model, &groups, (&batches, self.at_once), |_| ())
                });
                Some(known.clone())
            }
        };
        let mut rows = Rows { pairs: Vec::new(), params: Vec::new(), responses: Vec::new() };
        for (at, (pair, result)) in window.iter().zip(&results).enumerate() {
            let reference = reference.as_ref().map(|all| &all[at]);
            let row = pair_row(pair, result, reference, masks[at].as_ref());
            let numbers = result.total().into_iter().chain([row.logp_chosen, row.logp_rejected]);
            if !numbers.chain(row.reference.into_iter().flatten()).all(f64::is_finite) {
                let problem = "a log-probability or inner product is not finite: the model overflows this number type";
                return Err(Error::Failed(format!("row {}: {problem}; --dtype f64 may hold it", pair.row)));
            }
            rows.pairs.push(row);
            rows.responses.push(responses_row(pair, result, tokenizer));
            for (parameter, gram) in self.scope.parameters.iter().zip(&result.grams) {
                rows.params.push(ParamRow {
                    pair: pair.row,
                    param: parameter.name.clone(),
                    layer: parameter.layer.and_then(|layer| u32::try_from(layer).ok()),
                    module: parameter.module.clone(),
                    gram: PairGram::of(gram),
                });
            }
        }
        Ok(rows)
    }
}

/// Forward rows of some pairs whose responses share a trunk: how much of the work they are.
pub fn rows(pairs: &[Pair]) -> usize {
    let of = |PairTokens { prompt, chosen, rejected }: PairTokens| Group::new(prompt, vec![chosen, rejected]);
    pairs.iter().map(|pair| of(pair.tokens.clone()).forward_rows()).sum()
}

/// The contrast tokens of both responses.
type Masks = [Vec<bool>; 2];

/// Log-probabilities of both responses, summed over the tokens that `mask` keeps.
fn masked(token_logps: &[Vec<f64>], masks: &Masks) -> [f64; 2] {
    [0, 1].map(|k| token_logps[k].iter().zip(&masks[k]).filter(|(_, kept)| **kept).map(|(logp, _)| logp).sum())
}

fn pair_row(pair: &Pair, result: &GroupResult, reference: Option<&Vec<Vec<f64>>>, masks: Option<&Masks>) -> PairRow {
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let total = result.total();
    let contrast = reference.zip(masks).map(|(reference, masks)| Contrast {
        logps: masked(&result.token_logps, masks),
        reference: masked(reference, masks),
        inner: [[total[8], total[9]], [total[12], total[13]]],
    });
    PairRow {
        pair: pair.row,
        id: pair.id.clone(),
        tokens: PairLengths {
            prompt: count(pair.tokens.prompt.len()),
            chosen: count(pair.tokens.chosen.len()),
            rejected: count(pair.tokens.rejected.len()),
            trunk: count(result.trunk_tokens),
            truncated: count(pair.truncated_tokens),
        },
        logp_chosen: result.logp(0),
        logp_rejected: result.logp(1),
        reference: reference.map(|of| [of[0].iter().sum(), of[1].iter().sum()]),
        edit_distance: count(strsim::generic_levenshtein(&pair.tokens.chosen, &pair.tokens.rejected)),
        gram: PairGram::of(&total),
        contrast,
    }
}

/// A pair's responses, token by token.
fn responses_row(pair: &Pair, result: &GroupResult, tokenizer: Option<&TextTokens>) -> ResponsesRow {
    let tokens = |k: usize, ids: &[u32]| ResponseTokens {
        ids: ids.to_vec(),
        text: tokenizer.map(|tokenizer| ids.iter().map(|&id| tokenizer.text(id).unwrap_or_default()).collect()),
        logps: result.token_logps[k].clone(),
    };
    ResponsesRow {
        pair: pair.row,
        prompt: tokenizer.map(|tokenizer| tokenizer.join(&pair.tokens.prompt)),
        chosen: tokens(0, &pair.tokens.chosen),
        rejected: tokens(1, &pair.tokens.rejected),
    }
}
