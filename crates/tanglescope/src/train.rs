//! `tanglescope train`: steps, records, checkpoints; what it was doing when it was stopped goes on from the last checkpoint.
use crate::analysis::lock;
use crate::cli::{ScheduleName, Train};
use crate::device::{OnDevice, dtype_name};
use crate::dry_run;
use crate::error::{Error, Result};
use crate::manifest::{self, short, whole};
use crate::objectives::{Loaded, Reference};
use crate::options::{ModelOptions, Placement, group, limits, read_data, reading};
use crate::progress::{Amount, Progress};
use crate::rates::StoredRates;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use tanglescope_analytics::{Table, training};
use tanglescope_data::{Form, Pair, Reading, Skipped};
use tanglescope_gram::{Group, plan, token_logps_of_batches};
use tanglescope_kernels::{DType, Flex, FlexDevice, Kernels, TensorData};
use tanglescope_model::architectures::Description;
use tanglescope_model::{
    AdapterSource, Decoder, InScope, Map as LinearMap, Outline, ParameterKind, Scope, content_hash, read_tensors,
    write_tensors,
};
use tanglescope_objectives::Objective;
use tanglescope_train::checkpoint::{self, Place};
use tanglescope_train::{Example, Plan, Prediction, Reference as Logps, Schedule, Settings, StepLog, Trainer};

/// What decides the numbers of a run. A run goes on only as what it was.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Identity {
    /// SHA-256 of the base model's weights and config.
    model: String,
    /// SHA-256 of a saved adapter, or the settings of a fresh one.
    adapter: Option<String>,
    /// SHA-256 of the token ids of the pairs, and of those held out.
    data: String,
    eval_data: Option<String>,
    /// Share of the pairs that is held out.
    eval_fraction: Option<f64>,
    scope: String,
    dtype: String,
    objective: String,
    /// SHA-256 of the reference model, `base`, `self`, or none.
    reference: Option<String>,
    eval_every: usize,
    save_every: usize,
    #[serde(flatten)]
    settings: Settings,
}

/// manifest.json of a run.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Manifest {
    tanglescope: String,
    /// What kind of folder this is.
    kind: String,
    command: Vec<String>,
    model: PathBuf,
    adapter: Option<PathBuf>,
    data: PathBuf,
    pairs: usize,
    held_out: usize,
    skipped: Vec<Skipped>,
    eval_skipped: Vec<Skipped>,
    devices: Vec<String>,
    epochs: f64,
    identity: Identity,
    /// Forward rows that run together, and batches that run side by side.
    forward_rows_per_batch: usize,
    at_once: usize,
    rates: StoredRates,
}

/// The pairs of a run.
struct Examples {
    train: Vec<Example>,
    held_out: Vec<Example>,
    /// Hashes of both.
    data: String,
    eval_data: Option<String>,
    skipped: Vec<Skipped>,
    eval_skipped: Vec<Skipped>,
}

/// Runs the command.
pub fn run(args: &Train) -> Result<()> {
    let (options, objective) = checked(args)?;
    options.announce();
    options.device.run(Work { args, options: &options, objective: &objective, quiet: false })
}

/// Runs the command as a part of another, which says what is done.
pub fn quietly(args: &Train) -> Result<()> {
    let (options, objective) = checked(args)?;
    options.device.run(Work { args, options: &options, objective: &objective, quiet: true })
}

/// Says what the command would do.
pub fn dry_run(args: &Train) -> Result<()> {
    let (options, objective) = checked(args)?;
    options.announce();
    let outline = options.outline()?;
    let scope = outline.in_scope(&options.scope)?;
    let examples = Examples::read(args, &options, &objective, &outline.description)?;
    let settings = settings(args, examples.train.len())?;
    let rows = placement(&options, &outline).rows_per_batch(&options, &outline);
    let groups: Vec<Group> = examples.train.iter().map(|example| example.group.clone()).collect();
    println!("one epoch:");
    dry_run::report(&options, &outline, &scope, &groups, rows);
    let epochs = settings.max_steps as f64 * settings.pairs_per_step() as f64 / groups.len() as f64;
    println!("steps           {} of {} pairs: {epochs:.2} epochs", settings.max_steps, settings.pairs_per_step());
    let held = held_bytes(&options, &outline) as f64 / 2f64.powi(30);
    println!("training holds  at most {held:.2} GiB more: a gradient and two moments of what is trained");
    if objective.definition().reference {
        println!("and a forward pass of the reference over every pair, once");
    }
    println!("held out        {} pairs", examples.held_out.len());
    println!("nothing was computed, and nothing written to {}", args.out.display());
    Ok(())
}

/// Bytes of a gradient and two moments of all that is trained, at most; activations get what is left.
fn held_bytes(options: &ModelOptions, outline: &Outline) -> usize {
    let factors = |map: &LinearMap| map.rank.unwrap_or(0) * (map.shape[0] + map.shape[1]);
    let low_rank: usize = outline.maps.iter().map(factors).sum();
    let (outside, block) = outline.values();
    let all = outside + block * outline.description.layers();
    3 * options.dtype.size() * if matches!(options.scope, Scope::Lora) { low_rank } else { all }
}

/// Where a model is placed that leaves room for what training holds.
fn placement(options: &ModelOptions, outline: &Outline) -> Placement {
    let placement = Placement::of(options, outline);
    let held = held_bytes(options, outline) / placement.at_once;
    Placement { activations: placement.activations.map(|bytes| bytes.saturating_sub(held)), ..placement }
}

/// The objective, and the model to train, where they can be trained.
fn checked(args: &Train) -> Result<(ModelOptions, Objective)> {
    let options = ModelOptions::new(&args.model)?;
    let objective: Objective = args.objective.parse().map_err(|e| Error::option("--objective", e))?;
    checked_numbers(args)?;
    if objective.hyper("ema").is_some_and(|ema| !(0.0..1.0).contains(&ema)) {
        return Err(Error::option(format!("--objective {objective}"), "`ema` is at least 0 and below 1"));
    }
    let has_adapter = options.adapter != AdapterSource::None;
    let low_rank = matches!(options.scope, Scope::Lora | Scope::Trainable);
    let scope = |problem: &str| Err(Error::option(format!("--scope {}", options.scope), problem));
    if matches!(options.scope, Scope::Head) {
        return scope(
            "is the logits part of the output matrix alone, which no checkpoint stores; name it by a pattern",
        );
    }
    if has_adapter && !low_rank {
        return scope(
            "trains weights under an adapter, which neither's checkpoint could hold; merge the adapter first",
        );
    }
    if !matches!(options.dtype, DType::F32 | DType::F64) {
        let dtype = dtype_name(options.dtype);
        return Err(Error::option(format!("--dtype {dtype}"), "steps of training are lost in it; train in f32"));
    }
    Ok((options, objective))
}

fn positive(option: &str, value: usize) -> Result<usize> {
    if value == 0 { Err(Error::option(format!("{option} 0"), "expected at least 1")) } else { Ok(value) }
}

fn at_least_0(option: &str, value: f64) -> Result<f64> {
    match value.is_finite() && value >= 0.0 {
        true => Ok(value),
        false => Err(Error::option(format!("{option} {value}"), "expected a number that is not negative")),
    }
}

fn below_1(option: &str, value: f32) -> Result<f32> {
    match (0.0..1.0).contains(&value) {
        true => Ok(value),
        false => Err(Error::option(format!("{option} {value}"), "expected a number of at least 0 and below 1")),
    }
}

/// Pairs of a step, and all that has to be right before a model is loaded.
fn checked_numbers(args: &Train) -> Result<usize> {
    let (batch_size, accumulate) =
        (positive("--batch-size", args.batch_size)?, positive("--accumulate", args.accumulate)?);
    for (option, value) in [
        ("--learning-rate", args.learning_rate),
        ("--max-grad-norm", args.max_grad_norm),
        ("--mask-learning-rate", args.mask_learning_rate),
        ("--weight-decay", f64::from(args.weight_decay)),
    ] {
        at_least_0(option, value)?;
    }
    below_1("--adam-beta1", args.adam_beta1)?;
    below_1("--adam-beta2", args.adam_beta2)?;
    if !(args.adam_epsilon.is_finite() && args.adam_epsilon > 0.0) {
        return Err(Error::option(format!("--adam-epsilon {}", args.adam_epsilon), "expected a positive number"));
    }
    if !(args.epochs.is_finite() && args.epochs > 0.0) {
        return Err(Error::option(format!("--epochs {}", args.epochs), "expected a positive number"));
    }
    for (option, value) in
        [("--max-steps", args.max_steps), ("--eval-every", args.eval_every), ("--save-every", args.save_every)]
    {
        value.map(|value| positive(option, value)).transpose()?;
    }
    let pairs = batch_size.checked_mul(accumulate);
    pairs.ok_or_else(|| Error::option(format!("--accumulate {accumulate}"), "makes steps of too many pairs"))
}

/// The settings of a run over some pairs, with defaults filled in.
fn settings(args: &Train, pairs: usize) -> Result<Settings> {
    let per_epoch = pairs.div_ceil(checked_numbers(args)?);
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let of_epochs = ((per_epoch as f64 * args.epochs).ceil() as usize).max(1);
    let max_steps = args.max_steps.unwrap_or(of_epochs);
    Ok(Settings {
        learning_rate: args.learning_rate,
        schedule: match args.schedule {
            ScheduleName::Constant => Schedule::Constant,
            ScheduleName::Linear => Schedule::Linear,
            ScheduleName::Cosine => Schedule::Cosine,
        },
        warmup_steps: args.warmup_steps.unwrap_or(max_steps / 10),
        max_steps,
        batch_size: args.batch_size,
        accumulate: args.accumulate,
        beta1: args.adam_beta1,
        beta2: args.adam_beta2,
        epsilon: args.adam_epsilon,
        weight_decay: args.weight_decay,
        max_grad_norm: args.max_grad_norm,
        mask_learning_rate: args.mask_learning_rate,
        seed: args.model.measured.seed,
        gram_every: args.gram_every,
        predict_every: args.predict_every,
    })
}

impl Examples {
    fn read(args: &Train, options: &ModelOptions, objective: &Objective, model: &Description) -> Result<Self> {
        let limits = limits(model);
        let chosen_only = objective.definition().name == "sft";
        let reading = reading(&args.data.rows)?;
        let reading = Reading { form: Form { chosen_only, ..reading.form }, ..reading };
        let example = |pair: Pair| {
            let mut group = group(model, pair.tokens);
            if chosen_only {
                group.responses.truncate(1);
            }
            Example { row: pair.row, group }
        };
        let read = |path: &Path, reading: &Reading| read_data(path, &options.folder, reading, limits);
        let data = read(&args.data.data, &reading)?;
        let mut train: Vec<Example> = data.pairs.all()?.into_iter().map(example).collect();
        let (mut held_out, mut eval_data, mut eval_skipped) = (Vec::new(), None, Vec::new());
        if let Some(path) = &args.eval_data {
            let data = read(path, &Reading { limit: None, ..reading.clone() })?;
            held_out = data.pairs.all()?.into_iter().map(example).collect();
            (eval_data, eval_skipped) = (Some(data.content_hash), data.skipped);
        } else if let Some(share) = args.eval_fraction {
            let bad = |problem: String| Error::option(format!("--eval-fraction {share}"), problem);
            if !(share > 0.0 && share < 1.0) {
                return Err(bad("expected a number between 0 and 1".to_owned()));
            }
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
            let kept = train.len() - (share * train.len() as f64).round() as usize;
            if kept == 0 || kept == train.len() {
                return Err(bad(format!("leaves {kept} of {} pairs to train on", train.len())));
            }
            train.shuffle(&mut ChaCha8Rng::seed_from_u64(args.model.measured.seed));
            held_out = train.split_off(kept);
            held_out.sort_by_key(|example| example.row);
            train.sort_by_key(|example| example.row);
        }
        Ok(Self { train, held_out, data: data.content_hash, eval_data, skipped: data.skipped, eval_skipped })
    }
}

struct Work<'a> {
    args: &'a Train,
    options: &'a ModelOptions,
    objective: &'a Objective,
    quiet: bool,
}

impl OnDevice for Work<'_> {
    type Output = ();

    fn run<B: Kernels>(self, device: &B::Device) -> Result<()> {
        let Self { args, options, objective, quiet } = &self;
        let mut model = options.load::<B>(options.dtype, device)?;
        model.activation_bytes = placement(options, &options.outline()?).activations;
        let scope = model.in_scope(&options.scope)?;
        let examples = Examples::read(args, options, objective, &model.description)?;
        let settings = settings(args, examples.train.len())?;
        let out = &args.out;
        std::fs::create_dir_all(out).map_err(|e| Error::output(out, format!("cannot be made: {e}")))?;
        let _lock = lock(out)?;
        checkpoint::tidy(out)?;
        let reference = reference(args, options, objective)?;
        let manifest = self.manifest(&model, &examples, &settings, &reference)?;
        model.rates = manifest.rates.into();
        let plan = Plan { rows: manifest.forward_rows_per_batch, at_once: manifest.at_once };
        let logps = self.reference_logps(&reference, &model, &examples, plan)?;
        let place = Place { run: out, base: &options.folder, source: &options.adapter };
        let sets = [examples.train.as_slice(), examples.held_out.as_slice()];
        let trainer = Trainer::new(model, &scope, objective, &settings, plan, sets, logps);
        if !*quiet {
            say_parameters(&trainer, &scope);
        }
        let (settings, manifest, examples) = (&settings, &manifest, &examples);
        Run { trainer, settings, place, manifest, examples, quiet: *quiet, history: Vec::new() }.go()
    }
}

/// Says what is trained.
fn say_parameters<B: Kernels>(trainer: &Trainer<'_, B>, scope: &InScope) {
    let values: usize =
        trainer.parameters().values().map(|x| tanglescope_kernels::TensorMetadata::shape(x).num_elements()).sum();
    let base = scope.parameters.iter().any(|p| p.kind == ParameterKind::Base);
    eprintln!(
        "training: {values} values in {} tensors{}",
        scope.parameters.len(),
        if base { "; checkpoints hold the whole model" } else { "; checkpoints hold the adapter" }
    );
}

/// Where reference log-probabilities come from; nowhere for an objective that uses none.
fn reference(args: &Train, options: &ModelOptions, objective: &Objective) -> Result<Reference> {
    if !objective.definition().reference {
        return Ok(Reference::None);
    }
    Ok(match args.reference.as_str() {
        "self" => Reference::Itself,
        "base" if options.adapter == AdapterSource::None => {
            let problem = "there is no adapter, so the base is the model as training starts; say self or a folder";
            return Err(Error::option("--reference base", problem));
        }
        "base" => Reference::Base,
        folder => Reference::Folder(folder.into()),
    })
}

impl Work<'_> {
    /// Token log-probabilities under the reference, of the examples and of those held out: computed once, and kept in the run's
    /// folder.
    fn reference_logps<B: Kernels>(
        &self,
        reference: &Reference,
        model: &Decoder<B>,
        examples: &Examples,
        plan: Plan,
    ) -> Result<Option<[Vec<Logps>; 2]>> {
        const NAME: &str = "reference";
        let out = &self.args.out;
        if *reference == Reference::None {
            return Ok(None);
        }
        let sets = [("examples", &examples.train), ("held_out", &examples.held_out)];
        let tokens = |set: &Vec<Example>| set.iter().flat_map(|e| &e.group.responses).map(Vec::len).sum::<usize>();
        let tensor = |values: Vec<f64>| {
            let shape = [values.len()];
            Flex::upload(TensorData::new(values, shape).convert_dtype(DType::F64), &FlexDevice)
        };
        let used = sets.iter().filter(|(_, set)| !set.is_empty());
        if !out.join(format!("{NAME}.safetensors")).exists() {
            let loaded = reference.load(self.options, model)?;
            if !self.quiet {
                let which =
                    if matches!(loaded, Loaded::Itself) { "the model as training starts" } else { "another model" };
                eprintln!("reference: {which}");
            }
            let model = match &loaded {
                Loaded::Model(model) => model,
                Loaded::Itself | Loaded::None => model,
            };
            let mut tensors = Vec::new();
            let all: usize = used.clone().map(|(_, set)| set.len()).sum();
            let rows: usize = used.clone().flat_map(|(_, set)| set.iter()).map(|e| e.group.forward_rows()).sum();
            let progress = Progress::new(Amount { pairs: all, rows }, Amount::default(), self.quiet);
            let progress = Mutex::new(progress);
            for (name, set) in used.clone() {
                let groups: Vec<&Group> = set.iter().map(|example| &example.group).collect();
                let lengths: Vec<usize> = groups.iter().map(|group| group.forward_rows()).collect();
                let batches = plan::batches(&lengths, plan.rows);
                let logps = token_logps_of_batches(model, &groups, (&batches, plan.at_once), |batch| {
                    let rows = batch.iter().map(|&g| lengths[g]).sum();
                    let mut progress = progress.lock().unwrap_or_else(PoisonError::into_inner);
                    progress.add(Amount { pairs: batch.len(), rows });
                });
                tensors.push(((*name).to_owned(), tensor(logps.into_iter().flatten().flatten().collect())));
            }
            progress.into_inner().unwrap_or_else(PoisonError::into_inner).finish();
            let unfinished = out.join(format!(".{NAME}.unfinished"));
            write_tensors::<Flex>(&unfinished, tensors)?;
            let path = out.join(format!("{NAME}.safetensors"));
            std::fs::rename(&unfinished, &path).map_err(|e| Error::output(&path, e))?;
        }
        let like = used.map(|(name, set)| ((*name).to_owned(), tensor(vec![0.0; tokens(set)]))).collect();
        let mut read = read_tensors::<Flex>(out, NAME, like, &FlexDevice)?;
        Ok(Some(sets.map(|(name, set)| {
            let mut values = read.remove(name).map(|x| Flex::download(&x)).unwrap_or_default().into_iter();
            let of = |r: &Vec<u32>| values.by_ref().take(r.len()).collect();
            let mut of = of;
            set.iter().map(|example| example.group.responses.iter().map(&mut of).collect()).collect()
        })))
    }

    /// The manifest of the folder: the one that is there, if it is of the same run, or a new one.
    fn manifest<B: Kernels>(
        &self,
        model: &Decoder<B>,
        examples: &Examples,
        settings: &Settings,
        reference: &Reference,
    ) -> Result<Manifest> {
        let Self { args, options, objective, .. } = self;
        let tenth = (settings.max_steps / 10).max(1);
        let identity = Identity {
            model: model.content_hash.clone(),
            adapter: options.adapter_identity(model.adapter_hash.as_deref()),
            data: examples.data.clone(),
            eval_data: examples.eval_data.clone(),
            eval_fraction: args.eval_fraction,
            scope: options.scope.to_string(),
            dtype: dtype_name(options.dtype).to_owned(),
            objective: objective.to_string(),
            reference: match reference {
                Reference::None => None,
                Reference::Itself => Some("self".to_owned()),
                Reference::Base => Some("base".to_owned()),
                Reference::Folder(folder) => Some(content_hash(folder)?),
            },
            eval_every: args.eval_every.unwrap_or(tenth),
            save_every: args.save_every.unwrap_or(tenth),
            settings: settings.clone(),
        };
        let device = options.device.to_string();
        let manifest = match manifest::read::<Manifest>(&args.out)? {
            Some(mut manifest) => {
                same_run(&manifest.identity, &identity, &args.out)?;
                if !manifest.devices.contains(&device) {
                    manifest.devices.push(device);
                }
                manifest
            }
            None => {
                let outline = options.outline()?;
                let placement = placement(options, &outline);
                let adapter = match &options.adapter {
                    AdapterSource::Saved(folder) => Some(folder.clone()),
                    _ => None,
                };
                Manifest {
                    tanglescope: env!("CARGO_PKG_VERSION").to_owned(),
                    kind: "train".to_owned(),
                    command: std::env::args().collect(),
                    model: whole(&options.folder),
                    adapter: adapter.as_deref().map(whole),
                    data: whole(&args.data.data),
                    pairs: examples.train.len(),
                    held_out: examples.held_out.len(),
                    skipped: examples.skipped.clone(),
                    eval_skipped: examples.eval_skipped.clone(),
                    devices: vec![device],
                    epochs: args.epochs,
                    identity,
                    forward_rows_per_batch: placement.rows_per_batch(options, &outline),
                    at_once: placement.at_once,
                    rates: model.rates.into(),
                }
            }
        };
        manifest::write_whole(&args.out, &manifest)?;
        Ok(manifest)
    }
}

/// Refuses to go on with a run that was started as another.
fn same_run(old: &Identity, new: &Identity, out: &Path) -> Result<()> {
    let fields = |identity: &Identity| match serde_json::to_value(identity) {
        Ok(Value::Object(fields)) => fields,
        _ => Map::new(),
    };
    let (old, new) = (fields(old), fields(new));
    let said = |value: Option<&Value>| match value {
        Some(Value::String(text)) => short(text).to_owned(),
        Some(Value::Null) | None => "none".to_owned(),
        Some(other) => other.to_string(),
    };
    match new.iter().find(|(key, value)| old.get(*key) != Some(value)) {
        None => Ok(()),
        Some((key, value)) => Err(Error::option(
            format!("--out {}", out.display()),
            format!(
                "holds a run with another {} ({} there, {} now); choose another folder",
                key.replace('_', " "),
                said(old.get(key)),
                said(Some(value))
            ),
        )),
    }
}

/// A run on its way.
struct Run<'a, B: Kernels> {
    trainer: Trainer<'a, B>,
    settings: &'a Settings,
    place: Place<'a>,
    manifest: &'a Manifest,
    examples: &'a Examples,
    quiet: bool,
    /// The log so far.
    history: Vec<Value>,
}

impl<B: Kernels> Run<'_, B> {
    fn go(mut self) -> Result<()> {
        let out = self.place.run;
        let saved = checkpoint::steps(out)?.into_iter().next_back();
        if let Some(step) = saved {
            self.history = checkpoint::restore(&mut self.trainer, &self.place, step)?;
            eprintln!("{}: {step} of {} steps are there already", out.display(), self.settings.max_steps);
        }
        let (steps, predictions) = (Table::create(out, "steps.parquet")?, Table::create(out, "predictions.parquet")?);
        let mut log = Log::open(out, &self.history)?;
        if saved.is_none() {
            self.evaluate(&mut log)?;
            self.save()?;
        }
        let (all, before) = (self.amount(self.settings.max_steps), self.amount(self.trainer.steps()));
        let mut progress = Progress::new(all, before, self.quiet);
        let (mut pairs, mut predicted): (Vec<_>, Vec<Prediction>) = (Vec::new(), Vec::new());
        let max_steps = self.settings.max_steps;
        while self.trainer.steps() < max_steps {
            let step = self.trainer.step()?;
            let number = self.trainer.steps();
            let (before, after) = (self.amount(number - 1), self.amount(number));
            let more = Amount { pairs: after.pairs - before.pairs, rows: after.rows - before.rows };
            progress.about(format!("step {number} of {max_steps}: {}, ", brief(&step.log)));
            progress.add(more);
            self.note(step.log, &mut log)?;
            pairs.extend(step.pairs);
            predicted.extend(step.predictions);
            let last = number == max_steps;
            if number.is_multiple_of(self.manifest.identity.eval_every) || last {
                self.evaluate(&mut log)?;
            }
            if number.is_multiple_of(self.manifest.identity.save_every) || last {
                // before the checkpoint, so that a run that goes on from it has them
                steps.write(number, training::steps(&std::mem::take(&mut pairs)))?;
                if !predicted.is_empty() {
                    predictions.write(number, training::predictions(&std::mem::take(&mut predicted)))?;
                }
                self.save()?;
            }
        }
        progress.finish();
        if !self.quiet {
            println!("{}", checkpoint::folder(out, max_steps).display());
        }
        Ok(())
    }

    /// What some steps from the first on see. Every pair counts as one row: which pairs come when is known only by shuffling
    /// every epoch.
    fn amount(&self, steps: usize) -> Amount {
        let pairs = self.trainer.examples_in(steps);
        Amount { pairs, rows: pairs }
    }

    fn save(&self) -> Result<()> {
        Ok(checkpoint::save(&self.trainer, &self.place, &self.history, self.manifest.epochs)?)
    }

    /// Adds a line to the log.
    fn note(&mut self, found: StepLog, log: &mut Log) -> Result<()> {
        let mut line = Map::new();
        line.insert("step".to_owned(), json!(self.trainer.steps()));
        line.insert("epoch".to_owned(), json!(self.trainer.epoch()));
        line.extend(found.0);
        let line = Value::Object(line);
        log.add(&line)?;
        self.history.push(line);
        Ok(())
    }

    fn evaluate(&mut self, log: &mut Log) -> Result<()> {
        if self.examples.held_out.is_empty() {
            return Ok(());
        }
        let found = self.trainer.evaluate();
        self.note(found, log)
    }
}

/// What of a step's means is shown while it runs.
fn brief(log: &StepLog) -> String {
    let shown = [
        ("loss", "loss"),
        ("logps/chosen", "chosen"),
        ("logps/rejected", "rejected"),
        ("entanglement/cosine", "cosine"),
    ];
    let of = |(key, name): (&str, &str)| Some(format!("{name} {:.4}", log.0.get(key)?.as_f64()?));
    shown.into_iter().filter_map(of).collect::<Vec<_>>().join(", ")
}

/// log.jsonl: what trainer_state.json will hold, line by line as it is found.
struct Log {
    path: PathBuf,
    file: BufWriter<File>,
}

impl Log {
    /// Begins with the lines of an earlier part of the run; lines after its last checkpoint are made again.
    fn open(run: &Path, history: &[Value]) -> Result<Self> {
        let path = run.join("log.jsonl");
        let file = File::create(&path).map_err(|e| Error::output(&path, e))?;
        let mut log = Self { path, file: BufWriter::new(file) };
        history.iter().try_for_each(|line| log.add(line))?;
        Ok(log)
    }

    fn add(&mut self, line: &Value) -> Result<()> {
        let written = writeln!(self.file, "{line}").and_then(|()| self.file.flush());
        written.map_err(|e| Error::output(&self.path, format!("cannot be written: {e}")))
    }
}
