//! The measurement of a loaded model on a data set: records, part by part.
mod extras;
mod items;
mod pair;
mod part;
mod stages;

pub use extras::{Extras, Probe};
pub use items::Item;
use pair::is_output_matrix;
pub use part::Setup;
pub use stages::{Measured, ROWS_PER_PART, done, has_followed, work};

use crate::crew::Member;
use crate::data;
use crate::error::{Error, Result};
use crate::listener::Listener;
use crate::metric::LoadedMetric;
use crate::model::Model;
use crate::options::Destination;
use crate::placement::Placement;
use crate::rates;
use crate::records::make_folder;
use crate::reference::{LoadedReference, Objectives};
use crate::shard::Shard;
use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap};
use std::path::Path;
use tanglescope_analytics::Summary;
use tanglescope_data::{Dataset, TextTokens};
use tanglescope_kernels::Kernels;
use tanglescope_model::{AdapterSource, Decoder, InScope};
use tanglescope_objectives::Needs;
use tanglescope_records::identity::difference;
use tanglescope_records::manifest::{self, AnalysisIdentity, AnalysisManifest, BatchPlan, Beside, hub_source};
use tanglescope_records::{Table, absolute, tables};

/// Token log-probabilities of all responses under the reference, row by row.
pub(crate) type TokenLogps = Vec<Vec<Vec<f64>>>;

/// What is known of the reference, by the data's hash and the part.
pub type ReferenceLogps = RefCell<HashMap<(String, usize), TokenLogps>>;

/// How models are measured.
pub struct Measurement<'a, B: Kernels> {
    /// The model as it was asked for.
    pub asked: &'a Model,
    /// The objectives.
    pub objectives: &'a Objectives,
    /// The reference.
    pub reference: &'a LoadedReference<B>,
    /// A metric that products are taken in too.
    pub metric: Option<&'a LoadedMetric<B>>,
    /// What is known of it already.
    pub memo: &'a ReferenceLogps,
    /// Turns ids back into text.
    pub tokenizer: Option<&'a TextTokens>,
    /// What is measured beside pairs.
    pub extras: &'a Extras,
    /// Shares the work with others, and is told how far it is.
    pub member: &'a Member<'a>,
}

impl<B: Kernels> Measurement<'_, B> {
    /// Measures a model on data into a folder, or goes on where an earlier call stopped; the summary comes from the member that ends it.
    pub fn write(
        &self,
        model: &mut Decoder<B>,
        scope: &InScope,
        data: &Dataset,
        to: &Destination,
    ) -> Result<Option<Summary>> {
        alone_in(self.member, to, || {
            let placement = Placement::of_loaded(self.asked, &self.asked.outline()?, model);
            let opened = self.open(model, data, to, placement)?;
            self.finish(&self.setup(opened, model, scope, data), to)
        })
    }

    /// Opens a folder for the measurement of a model, which is somewhere, on data, and lets the model multiply as the folder's plan says.
    pub fn open(
        &self,
        model: &mut Decoder<B>,
        data: &Dataset,
        to: &Destination,
        placement: Placement,
    ) -> Result<Opened> {
        let Self { asked, objectives, reference, extras, .. } = self;
        if objectives.beside().weights {
            data.need_weights()?;
        }
        let head = objectives.objectives.iter().find(|objective| objective.needs() == Needs::Head);
        if let Some(objective) = head
            && !model.in_scope(&asked.scope)?.parameters.iter().any(is_output_matrix)
        {
            let problem = "perturbs the output matrix, which is not in scope by itself: expected a scope such as `full` and a model whose output matrix is not its embedding";
            return Err(Error::value("objectives", objective, problem));
        }
        let outline = asked.outline()?;
        let reference_identity = objectives.reference.identity(|_| match reference {
            LoadedReference::Model(model) => Ok(model.content_hash.clone()),
            LoadedReference::None | LoadedReference::Itself => unreachable!("a folder's model is loaded"),
        })?;
        let identity = AnalysisIdentity {
            all_pairs: extras.all_pairs,
            probes: extras.probes_identity(),
            metric: self.metric.map(|metric| metric.identity.clone()),
            ..identity(
                asked,
                data,
                [Some(&model.content_hash), model.adapter_hash.as_ref()],
                reference_identity,
                objectives.beside(),
            )?
        };
        let plan = BatchPlan {
            rows_per_part: stages::ROWS_PER_PART,
            forward_rows_per_batch: placement.rows_per_batch(asked, &outline),
            backward_rows_per_pass: None,
            rates: rates::stored(model.rates),
        };
        let manifest = open(to, (asked, &model.quantised), data, identity, plan, &objectives.names())?;
        model.rates = rates::read(manifest.plan.rates);
        Ok(Opened { beside: manifest.identity.beside, plan: manifest.plan, at_once: placement.at_once })
    }

    /// The measurement of a model on data as its folder was opened.
    pub fn setup<'a>(
        &'a self,
        Opened { beside, plan, at_once }: Opened,
        model: &'a Decoder<B>,
        scope: &'a InScope,
        data: &'a Dataset,
    ) -> Setup<'a, B> {
        Setup { of: self, model, scope, data, beside, plan, at_once }
    }

    /// Measures what is not there yet, and makes what follows from it.
    pub fn finish(&self, setup: &Setup<'_, B>, to: &Destination) -> Result<Option<Summary>> {
        stages::run(setup, to, || self.means(setup, to))
    }

    /// The mean gradients, where they are wanted and not there yet.
    fn means(&self, setup: &Setup<'_, B>, to: &Destination) -> Result<()> {
        if !self.extras.mean_gradients {
            return Ok(());
        }
        if !to.shard.is_whole() {
            self.listener().left_out(
                "mean gradients: are of all pairs; the same call without option `shard` adds them once every shard is done",
            );
            return Ok(());
        }
        let means = Table::create(&to.out, tables::MEANS)?;
        let missing = || Ok(if means.has(0) { Vec::new() } else { vec![0] });
        self.member
            .each(&stage(to, "means"), missing, |part| Ok(means.write(part, tables::params::means(&setup.means()?))?))
    }

    /// Is told how far it is.
    pub fn listener(&self) -> &dyn Listener {
        self.member.listener
    }
}

/// A folder that is open for a measurement.
#[derive(Clone, Copy, Debug)]
pub struct Opened {
    beside: Beside,
    plan: BatchPlan,
    at_once: usize,
}

/// What a stage of the work into a folder is called among those who share it.
pub fn stage(to: &Destination, what: &str) -> String {
    format!("{}: {what}", to.out.display())
}

/// Makes a folder and keeps other processes out of it, until the call ends.
pub fn keep_out(member: &Member<'_>, to: &Destination) -> Result<()> {
    let Destination { out, shard, .. } = to;
    member.hold(&stage(to, "lock"), || {
        make_folder(out)?;
        shard.lock(out)
    })
}

/// Does work into a folder, which is made, and keeps other processes out of it until the work is done.
pub fn alone_in<T>(member: &Member<'_>, to: &Destination, work: impl FnOnce() -> Result<T>) -> Result<T> {
    keep_out(member, to)?;
    let done = work()?;
    // what ends one of them may leave others at work
    member.let_go(&stage(to, "lock"));
    Ok(done)
}

/// What decides the rows: `model` and `adapter` are hashes of what is asked for.
pub fn identity(
    asked: &Model,
    data: &Dataset,
    [model, adapter]: [Option<&String>; 2],
    reference: Option<String>,
    beside: Beside,
) -> Result<AnalysisIdentity> {
    Ok(AnalysisIdentity {
        model: model.cloned().unwrap_or_default(),
        adapter: asked.adapter_identity(adapter.map(String::as_str)),
        reference,
        tokenize: data.tokenize.clone(),
        data: data.content_hash.clone(),
        scope: asked.scope.to_string(),
        padding_row: asked.padding_token()?,
        through_dora_norm: asked.through_dora_norm()?,
        dtype: asked.number_type().to_owned(),
        beside,
        all_pairs: false,
        probes: None,
        metric: None,
    })
}

/// Refuses to go on with a run of another identity.
pub fn same_run(there: &AnalysisManifest, now: &AnalysisIdentity, out: &Path) -> Result<()> {
    match difference(&there.identity, now) {
        None => Ok(()),
        Some(difference) => Err(Error::value("out", out.display(), difference)),
    }
}

/// The manifest of the folder: the one that is there, if it is of the same run, or a new one.
pub fn open(
    Destination { out, command, .. }: &Destination,
    (asked, quantised): (&Model, &BTreeSet<&'static str>),
    data: &Dataset,
    identity: AnalysisIdentity,
    plan: BatchPlan,
    objectives: &[String],
) -> Result<AnalysisManifest> {
    // the first shard's plan is that of all
    let _turn = Shard::turn(out)?;
    let seed = match &asked.adapter {
        AdapterSource::Fresh(fresh) => Some(fresh.seed),
        AdapterSource::None | AdapterSource::Saved(_) => None,
    };
    let (adapter, device) = (asked.adapter_folder(), asked.device.recorded());
    let manifest = match manifest::read::<AnalysisManifest>(out)? {
        Some(mut manifest) => {
            // a folder of `tokens` leaves reference, what objectives ask for, probes and metric open; the first analysis sets them
            if Table::at(out, tables::PAIRS).parts()?.is_empty() {
                let AnalysisIdentity { reference, beside, probes, metric, .. } = identity.clone();
                manifest.identity = AnalysisIdentity { reference, beside, probes, metric, ..manifest.identity };
            }
            same_run(&manifest, &identity, out)?;
            if !manifest.devices.contains(&device) {
                manifest.devices.push(device);
            }
            if !objectives.is_empty() && manifest.objectives != objectives {
                // made again from pairs.parquet
                Table::create(out, tables::OBJECTIVES)?.clear()?;
                manifest.objectives = objectives.to_vec();
            }
            manifest
        }
        None => {
            manifest::refuse_orphans(out)?;
            AnalysisManifest {
                tanglescope: env!("CARGO_PKG_VERSION").to_owned(),
                command: command.clone(),
                model: asked.called(),
                hub: [
                    ("model", asked.held.is_none().then_some(asked.folder.as_path())),
                    ("adapter", adapter),
                    ("data", Some(data.path.as_path())),
                ]
                .into_iter()
                .filter_map(|(what, path)| Some((what.to_owned(), hub_source(path?)?)))
                .collect(),
                adapter: adapter.map(absolute),
                quantised: quantised.iter().map(|&way| way.to_owned()).collect(),
                data: absolute(&data.path),
                pairs: data.pairs.len(),
                skipped: data::skipped(data),
                devices: vec![device],
                seed,
                identity,
                plan,
                objectives: objectives.to_vec(),
                interference: None,
            }
        }
    };
    manifest::write(out, &manifest)?;
    Ok(manifest)
}
