//! `tanglescope sweep`: every checkpoint of one or more runs, on one or more data sets.
use crate::analysis::{Analysis, Beyond, ReferenceLogps, done, has_followed, identity, lock_file, work};
use crate::checkpoints::{Checkpoint, Kind, Run, named};
use crate::cli::Sweep;
use crate::device::{OnDevice, dtype_name};
use crate::dry_run;
use crate::error::{Error, Result};
use crate::manifest::{self, Identity, Manifest, short, whole};
use crate::objectives::{Asked, Loaded, Reference};
use crate::options::{ModelOptions, Placement, limits, read_data, reading, tokenizer, whole_groups};
use crate::progress::{Amount, Progress};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use tanglescope_data::{Dataset, Reading, Sample, TextTokens};
use tanglescope_gram::Group;
use tanglescope_kernels::Kernels;
use tanglescope_model::{AdapterSource, Decoder, Outline, adapter_hash, content_hash, file_hash};
use tanglescope_objectives::Objective;

/// Runs the command.
pub fn run(args: &Sweep) -> Result<()> {
    start(args, false)
}

/// Runs the command as a part of another, which says what is done.
pub fn quietly(args: &Sweep) -> Result<()> {
    start(args, true)
}

fn start(args: &Sweep, quiet: bool) -> Result<()> {
    let runs: Vec<Run> = args.runs.iter().map(|text| Run::find(text)).collect::<Result<_>>()?;
    let data: Vec<(String, PathBuf)> = args.data.iter().map(|text| named("--data", text)).collect::<Result<_>>()?;
    once("RUN", runs.iter().map(|run| &run.name))?;
    once("--data", data.iter().map(|(name, _)| name))?;
    if args.pairs == Some(0) {
        return Err(Error::option("--pairs 0", "leaves no row"));
    }
    let shard = args.shard.as_deref().map_or(Ok(Shard { number: 1, of: 1 }), Shard::parse)?;
    let options = ModelOptions::of(PathBuf::new(), None, &args.measured)?;
    let sample = args.pairs.map(|rows| Sample { rows, seed: args.measured.seed });
    let reading = Reading { sample, ..reading(&args.rows)? };
    let prepared = prepare(args, &runs, &data, &options, &reading)?;
    if !quiet {
        eprintln!("device: {}, {}", options.device, dtype_name(options.dtype));
    }
    let jobs = shard.of(jobs(&prepared, &args.out));
    let work = Work { args, options: &options, runs: &prepared, shard, jobs: &jobs, quiet };
    if args.dry.dry_run {
        return work.dry_run();
    }
    work.options.device.run(work)
}

/// Refuses a name that occurs twice.
fn once<'a>(option: &str, mut names: impl Iterator<Item = &'a String> + Clone) -> Result<()> {
    let all = names.clone();
    match names.find(|name| all.clone().filter(|other| other == name).count() > 1) {
        None => Ok(()),
        Some(name) => Err(Error::option(option, format!("two are called `{name}`; give one another name: NAME=PATH"))),
    }
}

/// A part of the work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Shard {
    /// Which, from 1.
    number: usize,
    of: usize,
}

impl Shard {
    fn parse(text: &str) -> Result<Self> {
        let parts = text.split_once('/').and_then(|(i, n)| Some((i.parse().ok()?, n.parse().ok()?)));
        match parts {
            Some((number, of)) if 1 <= number && number <= of => Ok(Self { number, of }),
            _ => Err(Error::option(format!("--shard {text}"), "expected I/N with I from 1 to N, such as 1/4")),
        }
    }

    /// Consecutive jobs, so that a checkpoint is loaded by as few shards as can be.
    fn of<T>(self, jobs: Vec<T>) -> Vec<T> {
        let n = jobs.len();
        let bounds = [self.number - 1, self.number].map(|i| i * n / self.of);
        jobs.into_iter().take(bounds[1]).skip(bounds[0]).collect()
    }

    /// Keeps a second process out of this part of the sweep, and all but shards out of the folder.
    fn lock(self, out: &Path) -> Result<Vec<File>> {
        let whole = out.join(".lock");
        if self.of == 1 {
            return Ok(vec![lock_file(&whole, false)?]);
        }
        let own = out.join(format!(".lock-{}-of-{}", self.number, self.of));
        Ok(vec![lock_file(&whole, true)?, lock_file(&own, false)?])
    }
}

/// A run with what its checkpoints share.
struct Prepared<'a> {
    run: &'a Run,
    kind: Kind,
    /// Folder of the model under the adapters.
    base: PathBuf,
    asked: Asked,
    texts: Rc<Texts>,
}

/// Data sets as a model's tokenizer reads them.
struct Texts {
    data: Vec<(String, Dataset)>,
    tokenizer: Option<TextTokens>,
}

/// A checkpoint on a data set.
struct Job<'a> {
    run: &'a Prepared<'a>,
    checkpoint: &'a Checkpoint,
    name: &'a str,
    data: &'a Dataset,
    out: PathBuf,
}

/// Finds out what the runs are, and reads the data for each.
fn prepare<'a>(
    args: &Sweep,
    runs: &'a [Run],
    data: &[(String, PathBuf)],
    template: &ModelOptions,
    reading: &Reading,
) -> Result<Vec<Prepared<'a>>> {
    let mut read: HashMap<PathBuf, Rc<Texts>> = HashMap::new();
    let mut prepared = Vec::new();
    for run in runs {
        let refuse = |problem: &str| Error::option(format!("RUN {}", run.folder.display()), problem);
        let kind = run.checkpoints.iter().find_map(|checkpoint| checkpoint.kind().ok());
        let kind = kind.ok_or_else(|| refuse("no checkpoint has a config.json or an adapter_config.json"))?;
        let base = match kind {
            Kind::Adapter => run.base(args.model.as_deref()).ok_or_else(|| {
                refuse("its checkpoints are adapters, and say of no model in a local folder that it is theirs; add --model")
            })?,
            Kind::Whole => tokenizer_of(args, run).ok_or_else(|| refuse("no checkpoint can be read"))?,
        };
        let texts = match read.get(&base) {
            Some(texts) => Rc::clone(texts),
            None => {
                let description = Outline::read(&base, &AdapterSource::None)?.description;
                let of = |(name, path): &(String, PathBuf)| {
                    Ok((name.clone(), read_data(path, &base, reading, limits(&description))?))
                };
                let data = data.iter().map(of).collect::<Result<_>>()?;
                let texts = Rc::new(Texts { data, tokenizer: tokenizer(&base)? });
                read.insert(base.clone(), Rc::clone(&texts));
                texts
            }
        };
        let adapter = match kind {
            Kind::Adapter => AdapterSource::Saved(run.folder.clone()),
            Kind::Whole => template.adapter.clone(),
        };
        let reference = reference(args, run, &kind)?;
        let asked = Asked::new(
            &args.found.objective,
            reference.as_deref(),
            &ModelOptions { folder: base.clone(), adapter, ..template.clone() },
        )?;
        // a scope that selects nothing is no checkpoint's fault
        let outlines = run.checkpoints.iter().filter_map(|checkpoint| {
            let (folder, adapter) = match kind {
                Kind::Adapter => (&base, AdapterSource::Saved(checkpoint.folder.clone())),
                Kind::Whole => (&checkpoint.folder, template.adapter.clone()),
            };
            Outline::read(folder, &adapter).ok()
        });
        outlines.take(1).try_for_each(|outline| outline.in_scope(&template.scope).map(|_| ()))?;
        prepared.push(Prepared { run, kind, base, asked, texts });
    }
    Ok(prepared)
}

/// The folder whose tokenizer reads the data for a run of whole models.
fn tokenizer_of(args: &Sweep, run: &Run) -> Option<PathBuf> {
    let folders = || {
        let start = run.start.as_ref().map(|start| &start.model);
        args.model.iter().chain(run.checkpoints.iter().map(|c| &c.folder)).chain(start)
    };
    let readable = |folder: &&PathBuf| Outline::read(folder, &AdapterSource::None).is_ok();
    let with_tokenizer = folders().filter(|folder| folder.join("tokenizer.json").is_file()).find(readable);
    with_tokenizer.or_else(|| folders().find(readable)).cloned()
}

/// What stands for `--reference` with a run.
fn reference(args: &Sweep, run: &Run, kind: &Kind) -> Result<Option<String>> {
    let text = |path: &Path| path.display().to_string();
    match (args.reference.as_deref(), kind) {
        (Some("start"), Kind::Adapter) => match run.start.as_ref().and_then(|start| start.adapter.as_ref()) {
            None => Ok(Some("base".to_owned())),
            Some(_) => Err(Error::option(
                "--reference start",
                format!("run `{}` was trained from another adapter, which is no model; say base or a folder", run.name),
            )),
        },
        (Some("start"), Kind::Whole) => {
            let first = run.start.as_ref().map(|start| &start.model).or(run.checkpoints.first().map(|c| &c.folder));
            Ok(first.map(|folder| text(folder)))
        }
        (None, Kind::Whole) => {
            let needed = |name: &String| {
                name == "all" || name.parse().is_ok_and(|objective: Objective| objective.definition().reference)
            };
            let start = run.start.as_ref().filter(|_| args.found.objective.iter().any(needed));
            Ok(start.map(|start| text(&start.model)))
        }
        (given, _) => Ok(given.map(str::to_owned)),
    }
}

/// Everything to do, by run, step and data set.
fn jobs<'a>(runs: &'a [Prepared<'a>], out: &Path) -> Vec<Job<'a>> {
    let of = |run: &'a Prepared<'a>| {
        run.run.checkpoints.iter().flat_map(move |checkpoint| {
            run.texts.data.iter().map(move |(name, data)| Job {
                run,
                checkpoint,
                name,
                data,
                out: out
                    .join(format!("run={}", run.run.name))
                    .join(format!("step={}", checkpoint.step))
                    .join(format!("dataset={name}")),
            })
        })
    };
    runs.iter().flat_map(of).collect()
}

/// manifest.json of a sweep.
#[derive(Debug, Serialize, Deserialize)]
struct SweepManifest {
    tanglescope: String,
    /// What kind of folder this is.
    kind: String,
    command: Vec<String>,
    scope: String,
    dtype: String,
    /// Seed of the sample and of fresh adapters.
    seed: u64,
    /// Rows drawn of each data set.
    pairs: Option<usize>,
    runs: BTreeMap<String, SweptRun>,
    data: BTreeMap<String, SweptData>,
}

#[derive(Debug, Serialize, Deserialize)]
struct SweptRun {
    folder: PathBuf,
    steps: Vec<usize>,
}

#[derive(Debug, Serialize, Deserialize)]
struct SweptData {
    path: PathBuf,
    /// SHA-256 of the file.
    file: String,
    /// The usable rows of the sample.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sample: Option<Vec<SampledRow>>,
}

#[derive(Debug, Serialize, Deserialize)]
struct SampledRow {
    row: u64,
    id: Option<String>,
}

struct Work<'a> {
    args: &'a Sweep,
    options: &'a ModelOptions,
    runs: &'a [Prepared<'a>],
    shard: Shard,
    jobs: &'a [Job<'a>],
    quiet: bool,
}

impl Work<'_> {
    /// Writes the manifest of the sweep, with what an earlier one into the folder has.
    fn manifest(&self) -> Result<()> {
        let Self { args, options, runs, .. } = self;
        // shards write it one after the other
        let turn = args.out.join(".lock-manifest");
        let turn = File::create(&turn).map_err(|e| Error::output(&turn, format!("cannot be written: {e}")))?;
        // a file system without locks has none to wait for
        let _ = turn.lock();
        let mut data = BTreeMap::new();
        for (name, of) in runs.iter().flat_map(|run| &run.texts.data) {
            let row = |pair: tanglescope_data::Pair| SampledRow { row: pair.row, id: pair.id };
            let rows = || of.pairs.iter().map(|pair| pair.map(row)).collect::<tanglescope_data::Result<_>>();
            let sample = args.pairs.map(|_| rows()).transpose()?;
            let files = of.files.iter().map(|file| file_hash(file)).collect::<Result<Vec<_>, _>>()?;
            data.insert(name.clone(), SweptData { path: whole(&of.path), file: files.join("+"), sample });
        }
        let runs = runs.iter().map(|of| {
            let steps = of.run.checkpoints.iter().map(|checkpoint| checkpoint.step).collect();
            (of.run.name.clone(), SweptRun { folder: whole(&of.run.folder), steps })
        });
        let mut new = SweepManifest {
            tanglescope: env!("CARGO_PKG_VERSION").to_owned(),
            kind: "sweep".to_owned(),
            command: std::env::args().collect(),
            scope: options.scope.to_string(),
            dtype: dtype_name(options.dtype).to_owned(),
            seed: args.measured.seed,
            pairs: args.pairs,
            runs: runs.collect(),
            data,
        };
        if let Some(old) = manifest::read::<SweepManifest>(&args.out)? {
            let sample = |of: &SweepManifest| of.pairs.map_or("all".to_owned(), |n| format!("{n}, seed {}", of.seed));
            let mut differs = vec![
                ("scope".to_owned(), old.scope.clone(), new.scope.clone()),
                ("dtype".to_owned(), old.dtype.clone(), new.dtype.clone()),
                ("sample of pairs".to_owned(), sample(&old), sample(&new)),
            ];
            for (name, of) in &old.data {
                if let Some(now) = new.data.get(name) {
                    differs.push((format!("file as data set `{name}`"), of.file.clone(), now.file.clone()));
                }
            }
            if let Some((what, old, new)) = differs.into_iter().find(|(_, old, new)| old != new) {
                return Err(Error::option(
                    format!("--out {}", args.out.display()),
                    format!(
                        "holds a sweep with another {what} ({} there, {} now); choose another folder",
                        short(&old),
                        short(&new)
                    ),
                ));
            }
            for (name, run) in old.runs {
                new.runs.entry(name).or_insert(run);
            }
            for (name, data) in old.data {
                new.data.entry(name).or_insert(data);
            }
        }
        manifest::write_whole(&args.out, &new)
    }

    fn options(&self, job: &Job<'_>) -> ModelOptions {
        match job.run.kind {
            Kind::Adapter => ModelOptions {
                folder: job.run.base.clone(),
                adapter: AdapterSource::Saved(job.checkpoint.folder.clone()),
                ..self.options.clone()
            },
            Kind::Whole => ModelOptions { folder: job.checkpoint.folder.clone(), ..self.options.clone() },
        }
    }

    fn dry_run(&self) -> Result<()> {
        let count = |of: usize, what: &str| format!("{of} {what}{}", if of == 1 { "" } else { "s" });
        for of in self.runs {
            let steps: Vec<String> = of.run.checkpoints.iter().map(|c| c.step.to_string()).collect();
            println!("run             {}: steps {}", of.run.name, steps.join(", "));
        }
        for (name, data) in self.runs.iter().take(1).flat_map(|of| &of.texts.data) {
            println!("data set        {name}: {}", count(data.pairs.len(), "pair"));
        }
        let mut left: Vec<&Job<'_>> = Vec::new();
        for job in self.jobs {
            if done(&job.out, job.data)?.pairs < job.data.pairs.len() {
                left.push(job);
            }
        }
        let all = count(self.jobs.len(), "checkpoint and data set");
        println!("work            {all} together, {} of them left", left.len());
        if let Some(job) = left.first() {
            let options = self.options(job);
            let outline = options.outline()?;
            let scope = outline.in_scope(&options.scope)?;
            let all =
                left.iter().map(|job| whole_groups(&outline.description, job.data)).collect::<Result<Vec<_>>>()?;
            let groups: Vec<Group> = all.into_iter().flatten().collect();
            println!("\nall of it, as if each checkpoint were like the first:");
            let rows = Placement::of(&options, &outline).rows_per_batch(&options, &outline);
            dry_run::report(&options, &outline, &scope, &groups, rows);
        }
        println!("nothing was computed, and nothing written to {}", self.args.out.display());
        Ok(())
    }
}

/// Content hashes of folders that were looked at.
#[derive(Default)]
struct Hashes(HashMap<PathBuf, String>);

impl Hashes {
    fn model(&mut self, folder: &Path) -> Result<String> {
        if let Some(hash) = self.0.get(folder) {
            return Ok(hash.clone());
        }
        let hash = content_hash(folder)?;
        self.0.insert(folder.to_owned(), hash.clone());
        Ok(hash)
    }

    /// What the manifest of a job says, found without loading its model.
    fn identity(&mut self, job: &Job<'_>, options: &ModelOptions) -> Result<Identity> {
        let adapter = match &options.adapter {
            AdapterSource::Saved(folder) => Some(adapter_hash(folder)?),
            _ => None,
        };
        let asked = &job.run.asked;
        let reference = match &asked.reference {
            Reference::None => None,
            Reference::Itself => Some("self".to_owned()),
            Reference::Base => Some("base".to_owned()),
            Reference::Folder(folder) => Some(self.model(folder)?),
        };
        let model = self.model(&options.folder)?;
        Ok(identity(options, [&model, &job.data.content_hash], adapter.as_deref(), reference, asked.contrast()))
    }
}

/// Whether a job was finished as what it is now. Only what has all its parts is looked at by content, which takes reading a
/// whole model; a job of which something is missing is compared when its model is loaded.
fn finished(job: &Job<'_>, options: &ModelOptions, mean: bool, hashes: &mut Hashes) -> Result<bool> {
    let Some(manifest) = Manifest::read(&job.out)? else { return Ok(false) };
    let all = done(&job.out, job.data)?.pairs == job.data.pairs.len();
    if !all || !has_followed(&job.out, job.data, &job.run.asked.objectives, mean) {
        return Ok(false);
    }
    // what cannot be read is said by the loader
    let Ok(identity) = hashes.identity(job, options) else { return Ok(false) };
    manifest.same_run(&identity, &job.out)?;
    let objectives: Vec<String> = job.run.asked.objectives.iter().map(Objective::to_string).collect();
    Ok(objectives.is_empty() || manifest.objectives == objectives)
}

/// A reference that is loaded, what it belongs to, and what is known of it.
struct Held<B: Kernels> {
    base: PathBuf,
    reference: Reference,
    loaded: Loaded<B>,
    memo: ReferenceLogps,
}

impl OnDevice for Work<'_> {
    type Output = ();

    fn run<B: Kernels>(self, device: &B::Device) -> Result<()> {
        let out = &self.args.out;
        std::fs::create_dir_all(out).map_err(|e| Error::output(out, format!("cannot be made: {e}")))?;
        let _locks = self.shard.lock(out)?;
        self.manifest()?;
        let (mut total, mut before) = (Amount::default(), Amount::default());
        for job in self.jobs {
            total.add(work(job.data)?);
            before.add(done(&job.out, job.data)?);
        }
        if before.pairs > 0 && !self.quiet {
            eprintln!("{}: {} of {} pairs are there already", out.display(), before.pairs, total.pairs);
        }
        let mut progress = Progress::new(total, before, self.quiet);
        let mut left_out: Vec<String> = Vec::new();
        let mut hashes = Hashes::default();
        let (mut policy, mut base): (Option<Decoder<B>>, Option<PathBuf>) = (None, None);
        let mut held: Option<Held<B>> = None;
        for jobs in self.jobs.chunk_by(|a, b| std::ptr::eq(a.checkpoint, b.checkpoint)) {
            let (first, options) = (&jobs[0], self.options(&jobs[0]));
            let is_finished = |job| finished(job, &options, self.args.found.mean_gradients, &mut hashes);
            let states: Vec<bool> = jobs.iter().map(is_finished).collect::<Result<_>>()?;
            if states.iter().all(|finished| *finished) {
                continue;
            }
            if base.as_ref() != Some(&options.folder) {
                // before the next one is loaded
                policy = None;
                base = Some(options.folder.clone());
            }
            let loaded = first.checkpoint.kind().and_then(|kind| match kind == first.run.kind {
                true => load(&mut policy, &options, device),
                false => {
                    Err(Error::output(&first.checkpoint.folder, "is another kind of checkpoint than the run's others"))
                }
            });
            let (model, scope) = match loaded.and_then(|model| Ok((model.in_scope(&options.scope)?, model))) {
                Ok((scope, model)) => (model, scope),
                Err(error) => {
                    eprintln!("left out: {error}");
                    left_out.push(format!("run `{}`, step {}", first.run.run.name, first.checkpoint.step));
                    continue;
                }
            };
            let asked = &first.run.asked;
            let shared = (&first.run.base, &asked.reference);
            // the policy as its own reference, or none, is nothing that is kept
            if held.as_ref().is_none_or(|held| (&held.base, &held.reference) != shared) {
                let (base, reference) = (first.run.base.clone(), asked.reference.clone());
                let loaded = reference.load(&options, model)?;
                held = Some(Held { base, reference, loaded, memo: ReferenceLogps::default() });
            }
            let Some(Held { loaded: reference, memo, .. }) = &held else {
                unreachable!("a reference was just put there")
            };
            let tokenizer = first.run.texts.tokenizer.as_ref();
            let beyond = &Beyond { mean: self.args.found.mean_gradients, ..Beyond::default() };
            let analysis = Analysis { options: &options, asked, reference, memo, tokenizer, beyond };
            for (job, _) in jobs.iter().zip(states).filter(|(_, finished)| !finished) {
                progress.about(format!("run {}, step {}, {}: ", job.run.run.name, job.checkpoint.step, job.name));
                match analysis.write(model, &scope, job.data, &job.out, &mut progress) {
                    Ok(_) => {}
                    Err(error @ Error::Failed(_)) => {
                        let at = format!("run `{}`, step {}, {}", job.run.run.name, job.checkpoint.step, job.name);
                        eprintln!("left out: {at}: {error}");
                        left_out.push(at);
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        progress.finish();
        match left_out.len() {
            0 => Ok(()),
            _ => Err(Error::Failed(format!("left out, for reasons above: {}", left_out.join("; ")))),
        }
    }
}

/// Puts the model of a checkpoint in the place of one of the same base; an adapter is put on the base that is there.
fn load<'a, B: Kernels>(
    policy: &'a mut Option<Decoder<B>>,
    options: &ModelOptions,
    device: &B::Device,
) -> Result<&'a mut Decoder<B>> {
    let adapted = match (&*policy, &options.adapter) {
        (Some(before), AdapterSource::Saved(folder)) => before.adapted(folder)?,
        _ => None,
    };
    if adapted.is_none() {
        *policy = None;
    }
    let model = adapted.map_or_else(|| options.load::<B>(options.dtype, device), Ok)?;
    Ok(policy.insert(model))
}
