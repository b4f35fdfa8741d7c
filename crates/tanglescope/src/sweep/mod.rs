//! Every checkpoint of one or more runs, on one or more data sets.
mod finished;
mod jobs;
mod manifest;
mod runs;
pub(crate) mod trainers;

pub use runs::named;

use crate::crew::{Member, together};
use crate::data::{reading, whole_groups};
use crate::device::{Device, OnDevice, names};
use crate::error::{Error, Result};
use crate::estimate::{Estimate, Planned};
use crate::listener::{Amount, Listener, begin};
use crate::measure::{Extras, Measurement, ReferenceLogps, done, work};
use crate::metric::{self, MetricChoice};
use crate::model::Model;
use crate::options::{Destination, Measured, ObjectiveChoice, ReferenceModel, RowOptions};
use crate::records::make_folder;
use crate::reference::{LoadedReference, Reference};
use crate::shard::Shard;
use finished::{Hashes, finished};
use jobs::{Job, Prepared, jobs, prepare};
pub(crate) use runs::{Checkpoint, CheckpointKind, Run};
use std::any::Any;
use std::path::PathBuf;
use tanglescope_data::{Reading, Sample};
use tanglescope_gram::Group;
use tanglescope_kernels::Kernels;
use tanglescope_model::{AdapterSource, Decoder};

/// Options of [`sweep`].
#[derive(Clone, Debug)]
pub struct SweepOptions {
    /// Folders of checkpoints as trainers leave them (docs/formats.md), or single checkpoints; adapters and whole models.
    pub runs: Vec<RunFolder>,
    /// Preference data by name.
    pub data: Vec<(String, PathBuf)>,
    /// Folder for the results, in run=…/step=…/dataset=… folders; what is there already is not done again.
    pub out: PathBuf,
    /// Model that training started from: the one under the adapters, or the reference of whole models; the one that the run's manifest.json or
    /// the adapter names where none is given.
    pub model: Option<PathBuf>,
    /// What of the models is measured.
    pub measured: Measured,
    /// How rows become tokens.
    pub rows: RowOptions,
    /// Only so many rows of each data set, drawn with the seed; manifest.json lists them with their ids.
    pub pairs: Option<usize>,
    /// What one step on a loss would do to every pair.
    pub objectives: Vec<ObjectiveChoice>,
    /// Also in the metric of the optimizer's step, by the state that each checkpoint has.
    pub metric: MetricChoice,
    /// Also the Gram of the mean gradients over all pairs.
    pub mean_gradients: bool,
    /// Reference model of objectives that use one; the base under adapters, the start for runs of `train`, else none.
    pub reference: Option<ReferenceModel>,
    /// Which part of the work; the parts may run at once, anywhere, and into one folder.
    pub shard: Shard,
    /// The command line, for the manifest.
    pub command: Vec<String>,
}

impl SweepOptions {
    /// The metric of a checkpoint: before the first step there is none.
    fn metric_of(&self, step: usize) -> MetricChoice {
        if step == 0 { MetricChoice::Gradient } else { self.metric }
    }

    /// Runs on data sets, each called by its folder or file, with all defaults.
    ///
    /// # Errors
    /// Where a path gives no name that a folder can have.
    pub fn new(runs: &[PathBuf], data: &[PathBuf], out: impl Into<PathBuf>) -> Result<Self> {
        let of_data = |path: &PathBuf| Ok((runs::name_of("data", path)?, path.clone()));
        Ok(Self {
            runs: runs.iter().map(|run| RunFolder { name: None, folder: run.clone(), step: None }).collect(),
            data: data.iter().map(of_data).collect::<Result<_>>()?,
            out: out.into(),
            model: None,
            measured: Measured::default(),
            rows: RowOptions::default(),
            pairs: None,
            objectives: Vec::new(),
            metric: MetricChoice::Gradient,
            mean_gradients: false,
            reference: None,
            shard: Shard::WHOLE,
            command: Vec::new(),
        })
    }
}

/// A run, or a checkpoint of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunFolder {
    /// What the run is called; by its folder where nothing is given.
    pub name: Option<String>,
    /// Where it is.
    pub folder: PathBuf,
    /// The step of a checkpoint by itself, whatever its folder is called.
    pub step: Option<usize>,
}

/// What a sweep would do.
#[derive(Clone, Debug)]
pub struct SweepEstimate {
    /// Name and steps of each run.
    pub runs: Vec<(String, Vec<usize>)>,
    /// Name and pairs of each data set.
    pub data: Vec<(String, usize)>,
    /// Checkpoints and data sets together.
    pub jobs: usize,
    /// Those that are not there yet.
    pub left: usize,
    /// All that is left, as if each checkpoint were like the first.
    pub passes: Option<Estimate>,
}

/// What [`sweep`] did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SweepOutcome {
    /// The folder of the results.
    pub out: PathBuf,
    /// Checkpoints, and checkpoints on data sets, that could not be measured; why was told to the listener.
    pub left_out: Vec<String>,
}

/// Measures every checkpoint of the runs on every data set.
///
/// # Errors
/// Where an option, a run, a row or the folder cannot be used. A checkpoint that cannot be measured is no error: it is left out.
pub fn sweep(options: &SweepOptions, listener: &dyn Listener) -> Result<SweepOutcome> {
    sweep_keeping(options, &mut KeptModels::default(), listener)
}

/// Models that stay loaded from one sweep to the next: the base under the adapters, and the reference.
#[derive(Default)]
pub struct KeptModels(Vec<KeptOnDevice>);

/// What stays on a device, and what of it is chosen when it is loaded.
type KeptOnDevice = Option<(String, Box<dyn Any + Send>)>;

/// [`sweep`] of several calls for checkpoints of one base, which is loaded by the first of them.
///
/// # Errors
/// As there.
pub fn sweep_keeping(options: &SweepOptions, kept: &mut KeptModels, listener: &dyn Listener) -> Result<SweepOutcome> {
    let left_out = prepared(options, listener, |template, runs, jobs| {
        let out = &options.out;
        make_folder(out)?;
        let _locks = options.shard.lock(out)?;
        manifest::write(options, template, runs)?;
        kept.0.resize_with(template.devices.len(), || None);
        let seats = template.devices.iter().zip(&mut kept.0).collect();
        together(seats, listener, |(device, kept): (&Device, _), member| {
            let template = &template.on(device);
            device.run(SweepOnDevice { options, template, jobs, kept, member })
        })
    })?;
    Ok(SweepOutcome { out: options.out.clone(), left_out })
}

/// The checkpoints of a run: its name, and the step and folder of each.
///
/// # Errors
/// Where it is no run.
pub fn checkpoints(run: &RunFolder) -> Result<(String, Vec<(usize, PathBuf)>)> {
    let run = Run::of(run)?;
    Ok((run.name, run.checkpoints.into_iter().map(|of| (of.step, of.folder)).collect()))
}

/// Finds the runs, reads the data, and hands on the jobs of this part of the work.
fn prepared<T>(
    options: &SweepOptions,
    listener: &dyn Listener,
    work: impl FnOnce(&Model, &[Prepared<'_>], &[Job<'_>]) -> Result<T>,
) -> Result<T> {
    let runs: Vec<Run> = options.runs.iter().map(Run::of).collect::<Result<_>>()?;
    once("runs", runs.iter().map(|run| &run.name))?;
    once("data", options.data.iter().map(|(name, _)| name))?;
    if options.pairs == Some(0) {
        return Err(Error::value("pairs", 0, "leaves no row"));
    }
    let template = Model::of(PathBuf::new(), None, &options.measured)?;
    let sample = options.pairs.map(|rows| Sample { rows, seed: options.measured.seed });
    let reading = Reading { sample, ..reading(&options.rows)? };
    let prepared = prepare(options, &runs, &template, &reading, listener)?;
    listener.note(&format!("device: {}, {}", names(&template.devices), template.number_type()));
    for run in &runs {
        if let Some(trainer) = run.trainer {
            let (number, pattern) = (run.checkpoints.len(), trainer.pattern());
            listener.note(&format!("run {}: {number} checkpoints, {pattern} as of {}", run.name, trainer.name));
        }
    }
    let jobs = options.shard.part(jobs(&prepared, &options.out));
    work(&template, &prepared, &jobs)
}

impl SweepOptions {
    /// What the call would do, without loading a model.
    ///
    /// # Errors
    /// As [`sweep`] before it computes.
    pub fn estimate(&self, listener: &dyn Listener) -> Result<SweepEstimate> {
        prepared(self, listener, |template, runs, jobs| {
            let steps = |of: &Prepared<'_>| of.run.checkpoints.iter().map(|c| c.step).collect();
            let mut left: Vec<&Job<'_>> = Vec::new();
            for job in jobs {
                if !finished::has_everything(job, self.mean_gradients)? {
                    left.push(job);
                }
            }
            let passes = left.first().map(|job| -> Result<Estimate> {
                let model = job.model(template);
                let planned = Planned::new(&model)?;
                let description = &planned.outline.description;
                let all = left.iter().map(|job| whole_groups(description, job.data)).collect::<Result<Vec<_>>>()?;
                let groups: Vec<Group> = all.into_iter().flatten().collect();
                Ok(planned.groups(&groups, planned.placement.rows_per_batch(&model, &planned.outline)))
            });
            let data = runs.first().map_or(&[][..], |of| &of.texts.data);
            Ok(SweepEstimate {
                runs: runs.iter().map(|of| (of.run.name.clone(), steps(of))).collect(),
                data: data.iter().map(|(name, data)| (name.clone(), data.pairs.len())).collect(),
                jobs: jobs.len(),
                left: left.len(),
                passes: passes.transpose()?,
            })
        })
    }
}

/// Refuses a name that occurs twice.
fn once<'a>(option: &'static str, mut names: impl Iterator<Item = &'a String> + Clone) -> Result<()> {
    let all = names.clone();
    match names.find(|name| all.clone().filter(|other| other == name).count() > 1) {
        None => Ok(()),
        Some(name) => Err(Error::option(option, format!("two are called `{name}`; give one another name: NAME=PATH"))),
    }
}

/// A reference that is loaded, what it belongs to, and what is known of it.
struct HeldReference<B: Kernels> {
    base: PathBuf,
    reference: Reference,
    loaded: LoadedReference<B>,
    memo: ReferenceLogps,
}

/// What of a sweep is done on one device.
struct SweepOnDevice<'a> {
    options: &'a SweepOptions,
    template: &'a Model,
    jobs: &'a [Job<'a>],
    kept: &'a mut KeptOnDevice,
    member: &'a Member<'a>,
}

/// The models that jobs after each other share.
struct Models<B: Kernels> {
    policy: Option<Decoder<B>>,
    base: Option<PathBuf>,
    reference: Option<HeldReference<B>>,
}

impl OnDevice for SweepOnDevice<'_> {
    type Output = Option<Vec<String>>;

    fn run<B: Kernels>(self, device: &B::Device) -> Result<Option<Vec<String>>> {
        let Self { options, member, .. } = self;
        let (out, listener) = (&options.out, member.listener);
        let amounts = || {
            let (mut total, mut before) = (Amount::default(), Amount::default());
            for job in self.jobs {
                total.add(work(job.data, Shard::WHOLE)?);
                before.add(done(&job.out, job.data, Shard::WHOLE)?);
            }
            Ok((total, before))
        };
        let (total, before) = member.agree("amounts", amounts)?;
        begin(listener, out, total, before);
        let (mut left_out, mut hashes) = (Vec::new(), Hashes::default());
        // what of a model is chosen when it is loaded
        let Model { device: on, memory, padding_row, dora_norm, .. } = self.template;
        let dtype = self.template.number_type();
        let settings = format!("{dtype} {on} {memory:?} {padding_row:?} {dora_norm:?}");
        let fits = |(of, models): (String, Box<dyn Any + Send>)| (of == settings).then_some(models);
        let before = self.kept.take().and_then(fits).and_then(|models| models.downcast::<Models<B>>().ok());
        let mut models = before.map_or_else(Models::<B>::default, |models| *models);
        for jobs in self.jobs.chunk_by(|a, b| std::ptr::eq(a.checkpoint, b.checkpoint)) {
            let asked = jobs[0].model(self.template);
            let wanted = (options.metric_of(jobs[0].checkpoint.step), options.mean_gradients);
            let is_finished = |job| finished(job, &asked, wanted, &mut hashes);
            // of a job that one of them has begun the others do a part too
            let name = format!("{}: state", jobs[0].out.display());
            let states: Vec<bool> = member.agree(&name, || jobs.iter().map(is_finished).collect())?;
            jobs.iter()
                .zip(&states)
                .filter(|(_, finished)| **finished)
                .for_each(|(job, _)| listener.completed(&job.out));
            let left: Vec<&Job<'_>> =
                jobs.iter().zip(states).filter(|(_, finished)| !finished).map(|(job, _)| job).collect();
            if !left.is_empty() {
                left_out.extend(self.checkpoint(&left, &asked, &mut models, device)?);
            }
        }
        listener.end();
        *self.kept = Some((settings, Box::new(models)));
        Ok(Some(left_out))
    }
}

impl<B: Kernels> Default for Models<B> {
    fn default() -> Self {
        Self { policy: None, base: None, reference: None }
    }
}

impl SweepOnDevice<'_> {
    /// Measures one checkpoint on data sets; returns what was left out, for reasons that the listener was told.
    fn checkpoint<B: Kernels>(
        &self,
        jobs: &[&Job<'_>],
        asked: &Model,
        models: &mut Models<B>,
        device: &B::Device,
    ) -> Result<Vec<String>> {
        let Self { options, member, .. } = self;
        let listener = member.listener;
        let (run, checkpoint) = (jobs[0].run, jobs[0].checkpoint);
        if models.base.as_ref() != Some(&asked.folder) {
            // before the next one is loaded
            models.policy = None;
            models.base = Some(asked.folder.clone());
        }
        let loaded = checkpoint.kind().and_then(|kind| match kind == run.kind {
            true => load(&mut models.policy, asked, device, listener),
            false => Err(Error::output(&checkpoint.folder, "is another kind of checkpoint than the run's others")),
        });
        let (model, scope) = match loaded.and_then(|model| Ok((model.in_scope(&asked.scope)?, model))) {
            Ok((scope, model)) => (model, scope),
            Err(error) => {
                listener.left_out(&format!("left out: {error}"));
                return Ok(vec![format!("run `{}`, step {}", run.run.name, checkpoint.step)]);
            }
        };
        let shared = (&run.base, &run.objectives.reference);
        // the reference is loaded again only where base or reference differ from the last job's
        if models.reference.as_ref().is_none_or(|held| (&held.base, &held.reference) != shared) {
            let (base, reference) = (run.base.clone(), run.objectives.reference.clone());
            let loaded = reference.load(asked, model, listener)?;
            models.reference = Some(HeldReference { base, reference, loaded, memo: ReferenceLogps::default() });
        }
        let Some(HeldReference { loaded: reference, memo, .. }) = &models.reference else {
            unreachable!("a reference was just put there")
        };
        let metric = options.metric_of(checkpoint.step);
        if metric != options.metric {
            let at = format!("run `{}`, step {}", run.run.name, checkpoint.step);
            listener.left_out(&format!(
                "{at}: no optimizer has seen a gradient yet, so that there are plain products alone"
            ));
        }
        let metric = match metric::load((metric, None), asked, model, &scope, listener) {
            Ok(metric) => metric,
            Err(error) => {
                listener.left_out(&format!("left out: {error}"));
                return Ok(vec![format!("run `{}`, step {}", run.run.name, checkpoint.step)]);
            }
        };
        let measurement = Measurement {
            asked,
            objectives: &run.objectives,
            reference,
            metric: metric.as_ref(),
            memo,
            tokenizer: run.texts.tokenizer.as_ref(),
            extras: &Extras { mean_gradients: options.mean_gradients, ..Extras::default() },
            member,
        };
        let mut left_out = Vec::new();
        for job in jobs {
            let at = |name: String| format!("{name}, step {}, {}", checkpoint.step, job.name);
            listener.about(&format!("{}: ", at(format!("run {}", run.run.name))));
            let to = Destination { out: job.out.clone(), shard: Shard::WHOLE, command: options.command.clone() };
            match measurement.write(model, &scope, job.data, &to) {
                Ok(_) => listener.completed(&job.out),
                Err(error @ Error::Failed(_)) => {
                    let at = at(format!("run `{}`", run.run.name));
                    listener.left_out(&format!("left out: {at}: {error}"));
                    left_out.push(at);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(left_out)
    }
}

/// Puts the model of a checkpoint in the place of one of the same base; an adapter is put on the base that is there.
fn load<'a, B: Kernels>(
    policy: &'a mut Option<Decoder<B>>,
    asked: &Model,
    device: &B::Device,
    listener: &dyn Listener,
) -> Result<&'a mut Decoder<B>> {
    let adapted = match (&*policy, &asked.adapter) {
        (Some(before), AdapterSource::Saved(_)) => before.under(&asked.adapter)?,
        _ => None,
    };
    if adapted.is_none() {
        *policy = None;
    }
    let model = adapted.map_or_else(|| asked.load::<B>(asked.dtype, device, listener), Ok)?;
    Ok(policy.insert(model))
}
