//! Training: steps, records, checkpoints; what it was doing when it was stopped goes on from the last checkpoint.
mod examples;
mod log;
mod manifest;
mod reference;
mod training_loop;

use crate::device::OnDevice;
use crate::error::{Error, Result};
use crate::estimate::{Estimate, Planned};
use crate::listener::Listener;
use crate::model::Model;
use crate::options::{DataOptions, ModelOptions, ReferenceModel};
use crate::placement::Placement;
use crate::rates;
use crate::records::make_folder;
use crate::reference::{Reference, no_base};
use examples::Examples;
use std::path::PathBuf;
use tanglescope_gram::Group;
use tanglescope_kernels::{Kernels, TensorMetadata};
use tanglescope_model::{AdapterSource, InScope, Map as LinearMap, Outline, Parameter, ParameterKind, Scope};
use tanglescope_objectives::Objective;
use tanglescope_records::{Schedule, Settings, lock};
use tanglescope_train::checkpoint::{self, CheckpointPaths};
use tanglescope_train::{StepPlan, Trainer};
use training_loop::TrainingLoop;

/// Options of [`train`].
#[derive(Clone, Debug)]
pub struct TrainOptions {
    /// The model.
    pub model: ModelOptions,
    /// The pairs.
    pub data: DataOptions,
    /// Folder of the run; an unfinished run in it goes on from its last checkpoint.
    pub out: PathBuf,
    /// The loss.
    pub objective: Objective,
    /// Reference model of objectives that use one.
    pub reference: ReferenceModel,
    /// Times that every pair is seen.
    pub epochs: f64,
    /// Steps of the run, whatever the epochs.
    pub max_steps: Option<usize>,
    /// Pairs of a batch.
    pub batch_size: usize,
    /// Batches of a step.
    pub accumulate: usize,
    /// Largest learning rate.
    pub learning_rate: f64,
    /// How the learning rate moves after the warm-up.
    pub schedule: Schedule,
    /// Steps over which the learning rate rises from 0; a tenth of the run where none is given.
    pub warmup_steps: Option<usize>,
    /// AdamW's decay of the first moment.
    pub adam_beta1: f32,
    /// AdamW's decay of the second moment.
    pub adam_beta2: f32,
    /// AdamW's ε.
    pub adam_epsilon: f32,
    /// AdamW's weight decay, on matrices.
    pub weight_decay: f32,
    /// Longest gradient; longer ones are scaled down to it. 0: none is.
    pub max_grad_norm: f64,
    /// Learning rate of the masks of objective `sparse`.
    pub mask_learning_rate: f64,
    /// Pairs that are held out, for evaluation.
    pub eval_data: Option<PathBuf>,
    /// Share of the pairs that is held out, chosen by the seed.
    pub eval_fraction: Option<f64>,
    /// Steps between evaluations of the pairs that are held out; a tenth of the run where none is given.
    pub eval_every: Option<usize>,
    /// Steps between checkpoints; the first and the last step have one in any case. A tenth of the run where none is given.
    pub save_every: Option<usize>,
    /// Steps between records of every pair's inner products; 0 for none.
    pub gram_every: usize,
    /// Steps between predictions of what a step does to the log-probabilities of its pairs and of pairs held out, beside what it
    /// does; 0 for none.
    pub predict_every: usize,
    /// The command line, for the manifest.
    pub command: Vec<String>,
}

impl TrainOptions {
    /// A model on pairs, with all defaults.
    #[must_use]
    pub fn new(model: ModelOptions, data: DataOptions, out: impl Into<PathBuf>, objective: Objective) -> Self {
        Self {
            model,
            data,
            out: out.into(),
            objective,
            reference: ReferenceModel::Itself,
            epochs: 1.0,
            max_steps: None,
            batch_size: 8,
            accumulate: 1,
            learning_rate: 1e-5,
            schedule: Schedule::Linear,
            warmup_steps: None,
            adam_beta1: 0.9,
            adam_beta2: 0.999,
            adam_epsilon: 1e-8,
            weight_decay: 0.0,
            max_grad_norm: 1.0,
            mask_learning_rate: 1.0,
            eval_data: None,
            eval_fraction: None,
            eval_every: None,
            save_every: None,
            gram_every: 1,
            predict_every: 0,
            command: Vec::new(),
        }
    }
}

/// What a training run would take.
#[derive(Clone, Debug)]
pub struct TrainEstimate {
    /// One epoch.
    pub epoch: Estimate,
    /// Steps of the run.
    pub steps: usize,
    /// Pairs of a step.
    pub pairs_per_step: usize,
    /// Times that every pair is seen.
    pub epochs: f64,
    /// Bytes that training holds at most: a gradient and two moments of what is trained.
    pub held_bytes: usize,
    /// Whether a forward pass of the reference over every pair comes to it.
    pub reference: bool,
    /// Pairs that are held out.
    pub held_out: usize,
}

/// What [`train`] left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrainOutcome {
    /// The last checkpoint.
    pub checkpoint: PathBuf,
}

/// Trains on any objective: checkpoints that transformers and PEFT load, and records of every step.
///
/// # Errors
/// Where an option, the model, the adapter, a row or the folder cannot be used, the device fails, or a number overflows. The
/// checkpoints up to there stay, and a second call goes on from the last one.
pub fn train(options: &TrainOptions, listener: &dyn Listener) -> Result<TrainOutcome> {
    let model = options.checked()?;
    model.announce(listener);
    model.device.run(TrainingOnDevice { options, model: &model, listener })
}

impl TrainOptions {
    /// What the call would do, without loading the model.
    ///
    /// # Errors
    /// As [`train`] before it computes.
    pub fn estimate(&self, listener: &dyn Listener) -> Result<TrainEstimate> {
        let model = self.checked()?;
        model.announce(listener);
        let planned = Planned::new(&model)?;
        let examples = Examples::read(self, &model, &planned.outline.description, listener)?;
        let settings = self.settings(examples.train.len())?;
        let outline = &planned.outline;
        let rows = for_training(planned.placement, &model, outline).rows_per_batch(&model, outline);
        let groups: Vec<Group> = examples.train.iter().map(|example| example.group.clone()).collect();
        Ok(TrainEstimate {
            epoch: planned.groups(&groups, rows),
            steps: settings.max_steps,
            pairs_per_step: settings.pairs_per_step(),
            epochs: settings.max_steps as f64 * settings.pairs_per_step() as f64 / groups.len() as f64,
            held_bytes: held_bytes(&planned.placement, &model, outline),
            reference: self.objective.uses_reference(),
            held_out: examples.held_out.len(),
        })
    }

    /// The model to train, where all options can be used.
    fn checked(&self) -> Result<Model> {
        let model = Model::new(&self.model)?.on_one_device()?;
        self.pairs_per_step()?;
        let objective = &self.objective;
        if let Some(problem) = objective.not_for_training() {
            return Err(Error::value("objective", objective, problem));
        }
        if objective.hyper("ema").is_some_and(|ema| !(0.0..1.0).contains(&ema)) {
            return Err(Error::value("objective", objective, "`ema` is at least 0 and below 1"));
        }
        let has_adapter = model.adapter != AdapterSource::None;
        if has_adapter && !model.outline()?.fused.is_empty() {
            let problem =
                "changes all experts of a layer as one matrix (target_parameters), which cannot be trained here yet";
            return Err(Error::value("adapter", model.adapter_folder().unwrap_or(&model.folder).display(), problem));
        }
        let low_rank = matches!(model.scope, Scope::Lora | Scope::Trainable);
        let scope = |problem: &str| Err(Error::value("scope", &model.scope, problem));
        if matches!(model.scope, Scope::Head) {
            return scope(
                "is the logits part of the output matrix alone, which no checkpoint stores; name it by a pattern",
            );
        }
        if has_adapter && !low_rank {
            return scope(
                "trains weights under an adapter, which neither's checkpoint could hold; merge the adapter first",
            );
        }
        match model.number_type() {
            "f32" | "f64" => Ok(model),
            "tf32" => Err(Error::option("tf32", "steps are taken with products in f32; leave it out")),
            other => Err(Error::value("dtype", other, "steps of training are lost in it; train in f32")),
        }
    }

    /// Pairs of a step, and all numbers that have to be right before a model is loaded.
    fn pairs_per_step(&self) -> Result<usize> {
        let (batch_size, accumulate) =
            (positive("batch_size", self.batch_size)?, positive("accumulate", self.accumulate)?);
        for (option, value) in [
            ("learning_rate", self.learning_rate),
            ("max_grad_norm", self.max_grad_norm),
            ("mask_learning_rate", self.mask_learning_rate),
            ("weight_decay", f64::from(self.weight_decay)),
        ] {
            at_least_0(option, value)?;
        }
        below_1("adam_beta1", self.adam_beta1)?;
        below_1("adam_beta2", self.adam_beta2)?;
        if !(self.adam_epsilon.is_finite() && self.adam_epsilon > 0.0) {
            return Err(Error::value("adam_epsilon", self.adam_epsilon, "expected a positive number"));
        }
        if !(self.epochs.is_finite() && self.epochs > 0.0) {
            return Err(Error::value("epochs", self.epochs, "expected a positive number"));
        }
        for (option, value) in
            [("max_steps", self.max_steps), ("eval_every", self.eval_every), ("save_every", self.save_every)]
        {
            value.map(|value| positive(option, value)).transpose()?;
        }
        let pairs = batch_size.checked_mul(accumulate);
        pairs.ok_or_else(|| Error::value("accumulate", accumulate, "makes steps of too many pairs"))
    }

    /// The settings of a run over some pairs, with defaults filled in.
    fn settings(&self, pairs: usize) -> Result<Settings> {
        let per_epoch = pairs.div_ceil(self.pairs_per_step()?);
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let epoch_steps = ((per_epoch as f64 * self.epochs).ceil() as usize).max(1);
        let max_steps = self.max_steps.unwrap_or(epoch_steps);
        Ok(Settings {
            learning_rate: self.learning_rate,
            schedule: self.schedule,
            warmup_steps: self.warmup_steps.unwrap_or(max_steps / 10),
            max_steps,
            batch_size: self.batch_size,
            accumulate: self.accumulate,
            beta1: self.adam_beta1,
            beta2: self.adam_beta2,
            epsilon: self.adam_epsilon,
            weight_decay: self.weight_decay,
            max_grad_norm: self.max_grad_norm,
            mask_learning_rate: self.mask_learning_rate,
            seed: self.model.measured.seed,
            gram_every: self.gram_every,
            predict_every: self.predict_every,
        })
    }

    /// Where reference log-probabilities come from; nowhere for an objective that uses none.
    fn reference(&self, model: &Model) -> Result<Reference> {
        if !self.objective.uses_reference() {
            return Ok(Reference::None);
        }
        match &self.reference {
            ReferenceModel::Itself => Ok(Reference::Itself),
            ReferenceModel::Base if model.adapter == AdapterSource::None => Err(no_base()),
            ReferenceModel::Base => Ok(Reference::Base),
            ReferenceModel::Start => {
                Err(Error::value("reference", "start", "is self here: the model as training starts"))
            }
            ReferenceModel::Folder(folder) => Ok(Reference::of(folder)),
            ReferenceModel::Held(held) => Ok(Reference::Held(held.clone())),
        }
    }
}

fn positive(option: &'static str, value: usize) -> Result<usize> {
    if value == 0 { Err(Error::value(option, 0, "expected at least 1")) } else { Ok(value) }
}

fn at_least_0(option: &'static str, value: f64) -> Result<f64> {
    match value.is_finite() && value >= 0.0 {
        true => Ok(value),
        false => Err(Error::value(option, value, "expected a number that is not negative")),
    }
}

fn below_1(option: &'static str, value: f32) -> Result<f32> {
    match (0.0..1.0).contains(&value) {
        true => Ok(value),
        false => Err(Error::value(option, value, "expected a number of at least 0 and below 1")),
    }
}

/// Bytes of a gradient and two moments of all that is trained, at most, and of the numbers that weights become which are held as less.
fn held_bytes(placement: &Placement, model: &Model, outline: &Outline) -> usize {
    if matches!(model.scope, Scope::Lora) {
        let factors = |map: &LinearMap| map.rank.unwrap_or(0) * (map.shape[0] + map.shape[1]);
        return 3 * model.dtype.size() * outline.maps.iter().map(factors).sum::<usize>();
    }
    let all = outline.values().all(outline.description.layers()) * model.dtype.size();
    3 * all + all.saturating_sub(placement.held)
}

/// A placement that leaves room for what training holds; activations get what is left.
fn for_training(placement: Placement, model: &Model, outline: &Outline) -> Placement {
    let held = held_bytes(&placement, model, outline) / placement.at_once;
    Placement { activations: placement.activations.map(|bytes| bytes.saturating_sub(held)), ..placement }
}

/// What of a run is done on one device.
struct TrainingOnDevice<'a> {
    options: &'a TrainOptions,
    model: &'a Model,
    listener: &'a dyn Listener,
}

impl OnDevice for TrainingOnDevice<'_> {
    type Output = TrainOutcome;

    fn run<B: Kernels>(self, device: &B::Device) -> Result<TrainOutcome> {
        let Self { options, model: asked, listener } = self;
        let mut model = asked.load::<B>(asked.dtype, device, listener)?;
        let outline = asked.outline()?;
        let placement = Placement::of_loaded(asked, &outline, &model);
        model.activation_bytes = for_training(placement, asked, &outline).activations;
        let scope = model.in_scope(&asked.scope)?;
        let examples = Examples::read(options, asked, &model.description, listener)?;
        let settings = options.settings(examples.train.len())?;
        let out = &options.out;
        make_folder(out)?;
        let _lock = lock(out)?;
        checkpoint::tidy(out)?;
        let reference = options.reference(asked)?;
        let manifest = manifest::open(options, asked, &model, &examples, &settings, &reference)?;
        model.rates = rates::read(manifest.rates);
        let plan = StepPlan { rows: manifest.forward_rows_per_batch, at_once: manifest.at_once };
        let logps = reference::logps(out, asked, &reference, &model, &examples, plan, listener)?;
        let paths = CheckpointPaths { run: out, base: &asked.folder, source: &asked.adapter };
        let sets = [examples.train.as_slice(), examples.held_out.as_slice()];
        let trainer = Trainer::new(model, &scope, &options.objective, &settings, plan, sets, logps);
        note_parameters(&trainer, &scope, listener);
        let held_out = !examples.held_out.is_empty();
        let run = TrainingLoop {
            trainer,
            settings: &settings,
            paths,
            manifest: &manifest,
            held_out,
            listener,
            history: Vec::new(),
        };
        Ok(TrainOutcome { checkpoint: run.go()? })
    }
}

/// Says what is trained.
fn note_parameters<B: Kernels>(trainer: &Trainer<'_, B>, scope: &InScope, listener: &dyn Listener) {
    let values: usize = trainer.parameters().values().map(|x| x.shape().num_elements()).sum();
    let base = scope.parameters.iter().any(|p| p.kind == ParameterKind::Base);
    listener.note(&format!(
        "training: {values} values in {} tensors{}",
        scope.parameters.len(),
        if base { "; checkpoints hold the whole model" } else { "; checkpoints hold the adapter" }
    ));
    let of_expert = |p: &Parameter| p.kind == ParameterKind::Lora && scope.expert_of(&p.name).is_some();
    if scope.parameters.iter().any(of_expert) {
        listener.note(
            "checkpoints have factors for each expert by itself, as PEFT had them before experts were one matrix; PEFT 0.21 with \
             transformers 5 loads such an adapter without them, and does not say so",
        );
    }
}
