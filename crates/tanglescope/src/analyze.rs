//! `tanglescope analyze`: every pair's entanglement, part by part.
use crate::cli::Analyze;
use crate::device::OnDevice;
use crate::dry_run;
use crate::error::{Error, Result};
use crate::manifest::{Identity, Manifest, Plan};
use crate::objectives::{Asked, Loaded, Reference};
use crate::options::{ModelOptions, Placement, dtype_name, group, limits, reading};
use crate::progress::{Amount, Progress};
use std::fs::File;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use tanglescope_analytics::objectives::{self, Measured};
use tanglescope_analytics::tables::{Contrast, PairLengths, PairRow, ParamRow};
use tanglescope_analytics::{Summary, Table, tables};
use tanglescope_data::{Dataset, Pair};
use tanglescope_gram::{Cotangent, Group, GroupResult, grams_of_batches, plan, token_logps_of_batches};
use tanglescope_kernels::Kernels;
use tanglescope_model::{AdapterSource, Decoder, InScope};
use tanglescope_objectives::{Objective, PairGram, contrast};

/// Pairs of a part: few enough that little is lost when a run is killed, many enough that batches of like length fill.
const ROWS_PER_PART: usize = 64;

/// Runs the command, and returns what it found.
pub fn run(args: &Analyze) -> Result<Summary> {
    let options = ModelOptions::new(&args.model)?;
    let asked = Asked::new(args, &options)?;
    options.announce();
    options.device.run(Work { args, options: &options, asked: &asked, quiet: false })
}

/// Runs the command as a part of another, which says what is done.
pub fn quietly(args: &Analyze) -> Result<Summary> {
    let options = ModelOptions::new(&args.model)?;
    let asked = Asked::new(args, &options)?;
    options.device.run(Work { args, options: &options, asked: &asked, quiet: true })
}

/// Says what the command would do.
pub fn dry_run(args: &Analyze) -> Result<()> {
    let options = ModelOptions::new(&args.model)?;
    let asked = Asked::new(args, &options)?;
    options.announce();
    let outline = options.outline()?;
    let scope = outline.in_scope(&options.scope)?;
    let limits = limits(&outline.description);
    let data = Dataset::read(&args.data.data, &options.folder, &reading(&args.data)?, limits)?;
    let groups: Vec<Group> = data.pairs.into_iter().map(|pair| group(pair.tokens)).collect();
    let rows = Placement::of(&options, &outline).rows_per_batch(&options, &outline);
    dry_run::report(&options, &outline, &scope, &groups, rows);
    if matches!(asked.reference, Reference::Base | Reference::Folder(_)) {
        println!("and a forward pass of the reference over the same rows");
    }
    println!("nothing was computed, and nothing written to {}", args.out.display());
    Ok(())
}

struct Work<'a> {
    args: &'a Analyze,
    options: &'a ModelOptions,
    asked: &'a Asked,
    quiet: bool,
}

impl OnDevice for Work<'_> {
    type Output = Result<Summary>;

    fn run<B: Kernels>(self, device: &B::Device) -> Result<Summary> {
        let Self { args, options, asked, quiet } = self;
        let mut model = options.load::<B>(options.dtype, device)?;
        let scope = model.in_scope(&options.scope)?;
        let data = Dataset::read(&args.data.data, &options.folder, &reading(&args.data)?, limits(&model.description))?;
        for skipped in &data.skipped {
            eprintln!("{}: row {} left out: {}", data.path.display(), skipped.row, skipped.problem);
        }
        let truncated = data.pairs.iter().filter(|pair| pair.truncated_tokens > 0).count();
        if truncated > 0 {
            eprintln!("{truncated} prompts were cut from the left; column truncated_tokens says by how much");
        }
        let out = &args.out;
        std::fs::create_dir_all(out).map_err(|e| Error::output(out, format!("cannot be made: {e}")))?;
        let _lock = lock(out)?;
        let outline = options.outline()?;
        let placement = Placement::of(options, &outline);
        let reference = asked.reference.load(options, &model)?;
        let identity = identity(options, &model, &data, asked, &reference);
        let plan = Plan {
            rows_per_part: ROWS_PER_PART,
            forward_rows_per_batch: placement.rows_per_batch(options, &outline),
            backward_rows_per_pass: None,
            rates: model.rates.into(),
        };
        let manifest = open(out, options, &data, identity, plan, &asked.objectives)?;
        model.rates = manifest.plan.rates.into();
        let run = Run {
            model: &model,
            scope: &scope,
            reference,
            contrast: manifest.identity.contrast,
            objectives: &asked.objectives,
            plan: manifest.plan,
            at_once: placement.at_once,
            quiet,
        };
        run.parts(&data, out)
    }
}

/// Keeps a second process out of the folder until it is dropped.
pub fn lock(out: &Path) -> Result<File> {
    let path = out.join(".lock");
    let file = File::create(&path).map_err(|e| Error::output(&path, format!("cannot be written: {e}")))?;
    match file.try_lock() {
        Err(std::fs::TryLockError::WouldBlock) => Err(Error::output(out, "another run is writing to this folder")),
        // taken, or on a file system without locks
        Ok(()) | Err(std::fs::TryLockError::Error(_)) => Ok(file),
    }
}

/// What decides the rows.
pub fn identity<B: Kernels>(
    options: &ModelOptions,
    model: &Decoder<B>,
    data: &Dataset,
    asked: &Asked,
    reference: &Loaded<B>,
) -> Identity {
    Identity {
        model: model.content_hash.clone(),
        adapter: options.adapter_identity(model),
        reference: reference.identity(&asked.reference),
        data: data.content_hash.clone(),
        scope: options.scope.to_string(),
        dtype: dtype_name(options.dtype).to_owned(),
        contrast: asked.contrast(),
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
    reference: Loaded<B>,
    /// Whether gradients over contrast tokens are measured too.
    contrast: bool,
    objectives: &'a [Objective],
    plan: Plan,
    /// Batches that run side by side.
    at_once: usize,
    quiet: bool,
}

impl<B: Kernels> Run<'_, B> {
    /// Makes every part that is not there yet, and sums up all of them.
    fn parts(&self, data: &Dataset, out: &Path) -> Result<Summary> {
        let (pairs, params) = (Table::create(out, "pairs.parquet")?, Table::create(out, "params.parquet")?);
        let outcomes = if self.objectives.is_empty() { None } else { Some(Table::create(out, "objectives.parquet")?) };
        let windows: Vec<&[Pair]> = data.pairs.chunks(self.plan.rows_per_part).collect();
        // pairs.parquet is written last, so its part says that both are there
        let is_done = |part: usize| pairs.has(part) && params.has(part);
        let mut before = Amount::default();
        for (_, window) in windows.iter().enumerate().filter(|(part, _)| is_done(*part)) {
            before.pairs += window.len();
            before.rows += rows(window);
        }
        if before.pairs > 0 {
            eprintln!("{}: {} of {} pairs are there already", out.display(), before.pairs, data.pairs.len());
        }
        let total = Amount { pairs: data.pairs.len(), rows: rows(&data.pairs) };
        let mut progress = Progress::new(total, before, self.quiet);
        let mut summary = Summary::default();
        let mut all: Vec<Measured> = Vec::new();
        for (part, window) in windows.iter().enumerate() {
            if !is_done(part) {
                let (pair_rows, param_rows) = self.window(window, &mut progress)?;
                params.write(part, tables::params(&param_rows))?;
                pairs.write(part, tables::pairs(&pair_rows))?;
            }
            let of_pairs = pairs.read(part)?;
            summary.add(&of_pairs, &params.read(part)?)?;
            if let Some(outcomes) = &outcomes {
                let measured = objectives::measured(&of_pairs)?;
                if !outcomes.has(part) {
                    outcomes.write(part, objectives::of_pairs(&measured, self.objectives))?;
                }
                summary.add_objectives(&outcomes.read(part)?)?;
                all.extend(measured);
            }
        }
        progress.finish();
        // objectives of a batch take the whole data as theirs
        if let (Some(outcomes), Some(of_all)) = (&outcomes, objectives::of_all(&all, self.objectives)) {
            outcomes.write(windows.len(), of_all)?;
            summary.add_objectives(&outcomes.read(windows.len())?)?;
        }
        Ok(summary)
    }

    /// The rows of a part, in data order.
    fn window(&self, window: &[Pair], progress: &mut Progress) -> Result<(Vec<PairRow>, Vec<ParamRow>)> {
        let groups: Vec<Group> = window.iter().map(|pair| group(pair.tokens.clone())).collect();
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
        let reference: Option<Vec<Vec<Vec<f64>>>> = match &self.reference {
            Loaded::None => None,
            Loaded::Itself => Some(results.iter().map(|result| result.token_logps.clone()).collect()),
            Loaded::Model(model) => {
                let groups: Vec<&Group> = groups.iter().collect();
                Some(token_logps_of_batches(model, &groups, (&batches, self.at_once), |_| ()))
            }
        };
        let mut pair_rows = Vec::with_capacity(window.len());
        let mut param_rows = Vec::with_capacity(window.len() * self.scope.parameters.len());
        for (at, (pair, result)) in window.iter().zip(&results).enumerate() {
            let reference = reference.as_ref().map(|all| &all[at]);
            let row = pair_row(pair, result, reference, masks[at].as_ref());
            let numbers = result.total().into_iter().chain([row.logp_chosen, row.logp_rejected]);
            if !numbers.chain(row.reference.into_iter().flatten()).all(f64::is_finite) {
                let problem = "a log-probability or inner product is not finite: the model overflows this number type";
                return Err(Error::Failed(format!("row {}: {problem}; --dtype f64 may hold it", pair.row)));
            }
            pair_rows.push(row);
            for (parameter, gram) in self.scope.parameters.iter().zip(&result.grams) {
                param_rows.push(ParamRow {
                    pair: pair.row,
                    param: parameter.name.clone(),
                    layer: parameter.layer.and_then(|layer| u32::try_from(layer).ok()),
                    module: parameter.module.clone(),
                    gram: PairGram::of(gram),
                });
            }
        }
        Ok((pair_rows, param_rows))
    }
}

/// Forward rows of some pairs.
fn rows(pairs: &[Pair]) -> usize {
    pairs.iter().map(|pair| group(pair.tokens.clone()).forward_rows()).sum()
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
        gram: PairGram::of(&total),
        contrast,
    }
}
