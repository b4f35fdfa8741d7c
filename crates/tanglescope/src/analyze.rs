//! Every pair's entanglement.
use crate::crew::Member;
use crate::data::{read, reading, whole_groups};
use crate::error::{Error, Result};
use crate::estimate::{Estimate, Planned};
use crate::listener::{Listener, begin};
use crate::loaded::{LoadedModel, OnCrew};
use crate::measure::{Extras, Measurement, Probe, ReferenceLogps, done, stage, work};
use crate::metric::{self, LoadedMetric};
use crate::model::Model;
use crate::options::{DataOptions, Destination, ModelOptions, PairMeasures};
use crate::records::Folder;
use crate::reference::{Objectives, Reference};
use crate::token_rows::TokenRows;
use std::path::{Path, PathBuf};
use tanglescope_analytics::Summary;
use tanglescope_data::{Pair, Reading};
use tanglescope_gram::Group;
use tanglescope_kernels::Kernels;
use tanglescope_model::architectures::Description;
use tanglescope_model::{Decoder, InScope};

/// Options of [`analyze`].
#[derive(Clone, Debug)]
pub struct AnalyzeOptions {
    /// The model.
    pub model: ModelOptions,
    /// The data.
    pub data: DataOptions,
    /// What is measured.
    pub measures: PairMeasures,
    /// Where the results go.
    pub to: Destination,
}

impl AnalyzeOptions {
    /// A model on data, with all defaults.
    #[must_use]
    pub fn new(model: ModelOptions, data: DataOptions, out: impl Into<PathBuf>) -> Self {
        Self { model, data, measures: PairMeasures::default(), to: Destination::new(out) }
    }

    /// What the call would do, without loading the model, and whether a pass of a reference over the same rows comes to it.
    ///
    /// # Errors
    /// As [`analyze`] before it computes.
    pub fn estimate(&self, listener: &dyn Listener) -> Result<(Estimate, bool)> {
        let model = Model::new(&self.model)?;
        let objectives = self.measures.checked(&model, listener)?;
        model.announce(listener);
        let planned = Planned::new(&model)?;
        let description = &planned.outline.description;
        let data =
            read(&self.data.data, &model.tokenizer_folders(), &reading(&self.data.rows)?, description, listener)?;
        let groups = whole_groups(description, &data)?;
        let rows = planned.placement.rows_per_batch(&model, &planned.outline);
        let reference = objectives.reference.is_another();
        Ok((planned.groups(&groups, rows), reference))
    }
}

impl PairMeasures {
    /// What they ask for of a model; refuses what it cannot give.
    pub(crate) fn checked(&self, model: &Model, listener: &dyn Listener) -> Result<Objectives> {
        let objectives = Objectives::new(&self.objectives, self.reference.as_ref(), model, listener)?;
        let without = objectives.reference == Reference::None;
        match self.group_objectives.iter().find(|o| without && o.needs_reference()) {
            Some(objective) => Err(Error::no_reference("group_objectives", &objective.to_string())),
            None => Ok(objectives),
        }
    }

    /// The metric that products are taken in too.
    pub(crate) fn metric<B: Kernels>(
        &self,
        asked: &Model,
        model: &Decoder<B>,
        scope: &InScope,
        listener: &dyn Listener,
    ) -> Result<Option<LoadedMetric<B>>> {
        metric::load((self.metric, self.optimizer.as_deref()), asked, model, scope, listener)
    }

    /// What is measured beside pairs of the best and the worst response; probes are read as the rows were.
    pub(crate) fn extras(&self, rows: &TokenRows, of: &Description, listener: &dyn Listener) -> Result<Extras> {
        let probes = match &self.probe {
            None => Vec::new(),
            Some(path) => {
                let reading = Reading { chosen_only: true, limit: None, split: None, ..reading(&rows.options)? };
                let folders: Vec<&Path> = rows.folders.iter().map(PathBuf::as_path).collect();
                let data = read(path, &folders, &reading, of, listener)?;
                let probe = |pair: Pair| Probe {
                    row: pair.row,
                    id: pair.id,
                    group: Group::of(of, pair.tokens.prompt, vec![pair.tokens.chosen]),
                };
                data.pairs.all()?.into_iter().map(probe).collect()
            }
        };
        Ok(Extras {
            all_pairs: self.all_pairs,
            objectives: self.group_objectives.clone(),
            mean_gradients: self.mean_gradients,
            probes,
        })
    }
}

/// What [`analyze`] found.
#[derive(Clone, Debug)]
pub struct Analysis {
    /// In a few lines.
    pub summary: Summary,
    /// All of it.
    pub records: Folder,
}

/// Measures every pair of a data set: log-probabilities, inner products of their gradients, and what losses make of them.
///
/// # Errors
/// Where an option, the model, the adapter, a row or the folder cannot be used, the device fails, or a number overflows. What
/// was written stays, and a second call goes on from there.
pub fn analyze(options: &AnalyzeOptions, listener: &dyn Listener) -> Result<Analysis> {
    let AnalyzeOptions { model, data, measures, to } = options;
    // what cannot be measured is refused before the weights are read
    measures.checked(&Model::new(model)?, &())?;
    let mut model = LoadedModel::load(model, listener)?;
    let rows = model.rows(data, listener)?;
    model.analyze(&rows, measures, to, listener)
}

impl LoadedModel {
    /// Measures every pair of some rows into a folder, as [`analyze`] does.
    ///
    /// # Errors
    /// As there.
    pub fn analyze(
        &mut self,
        rows: &TokenRows,
        measures: &PairMeasures,
        to: &Destination,
        listener: &dyn Listener,
    ) -> Result<Analysis> {
        let asked = self.asked.clone();
        let objectives = measures.checked(&asked, listener)?;
        let summary = self.share(&AnalysisOnModel { rows, measures, objectives, to }, listener)?;
        Ok(Analysis { summary, records: Folder::new(&to.out) })
    }
}

struct AnalysisOnModel<'a> {
    rows: &'a TokenRows,
    measures: &'a PairMeasures,
    objectives: Objectives,
    to: &'a Destination,
}

impl OnCrew for AnalysisOnModel<'_> {
    type Output = Summary;

    fn run<B: Kernels>(&self, asked: &Model, member: &Member<'_>, model: &mut Decoder<B>) -> Result<Option<Summary>> {
        let (Self { rows, measures, objectives, to }, listener) = (self, member.listener);
        rows.check(&model.description)?;
        let scope = model.in_scope(&asked.scope)?;
        let reference = objectives.reference.load(asked, model, listener)?;
        let metric = measures.metric(asked, model, &scope, listener)?;
        let data = &rows.data;
        let before = member.agree(&stage(to, "before"), || done(&to.out, data, to.shard))?;
        let extras = measures.extras(rows, &model.description, listener)?;
        begin(listener, &to.out, work(data, to.shard)?, before);
        let measurement = Measurement {
            asked,
            objectives,
            reference: &reference,
            metric: metric.as_ref(),
            memo: &ReferenceLogps::default(),
            tokenizer: rows.tokenizer.as_ref(),
            extras: &extras,
            member,
        };
        let summary = measurement.write(model, &scope, data, to)?;
        listener.end();
        Ok(summary)
    }
}
