//! Every pair's entanglement.
use crate::data::{read, reading, tokenizer, whole_groups};
use crate::device::OnDevice;
use crate::error::{Error, Result};
use crate::estimate::{Estimate, Planned};
use crate::listener::{Listener, begin};
use crate::measure::{Extras, Measurement, Probe, ReferenceLogps, done, work};
use crate::model::Model;
use crate::options::{DataOptions, ModelOptions, ObjectiveChoice, ReferenceModel};
use crate::records::Folder;
use crate::reference::{Objectives, Reference};
use std::path::PathBuf;
use tanglescope_analytics::Summary;
use tanglescope_data::{Pair, Reading};
use tanglescope_gram::Group;
use tanglescope_kernels::Kernels;
use tanglescope_model::architectures::Description;
use tanglescope_objectives::GroupObjective;

/// Options of [`analyze`].
#[derive(Clone, Debug)]
pub struct AnalyzeOptions {
    /// The model.
    pub model: ModelOptions,
    /// The data.
    pub data: DataOptions,
    /// Folder for the results; an unfinished run in it goes on where it stopped.
    pub out: PathBuf,
    /// What one step on a loss would do to every pair.
    pub objectives: Vec<ObjectiveChoice>,
    /// Reference model of objectives that use one; the base under a saved adapter, the policy itself under a fresh one, else
    /// none.
    pub reference: Option<ReferenceModel>,
    /// Also the Gram of the mean gradients over all pairs, by a second pass whose sums are as large as the scope.
    pub mean_gradients: bool,
    /// Of rows with more than two responses, every pair of a better and a worse one, not only the best and the worst.
    pub all_pairs: bool,
    /// What one step on a loss over groups would do to every response.
    pub group_objectives: Vec<GroupObjective>,
    /// Texts beside the pairs, rows of `prompt` and `completion`, whose predicted change under every pair's step is wanted.
    pub probe: Option<PathBuf>,
    /// The command line, for the manifest.
    pub command: Vec<String>,
}

impl AnalyzeOptions {
    /// A model on data, with all defaults.
    #[must_use]
    pub fn new(model: ModelOptions, data: DataOptions, out: impl Into<PathBuf>) -> Self {
        Self {
            model,
            data,
            out: out.into(),
            objectives: Vec::new(),
            reference: None,
            mean_gradients: false,
            all_pairs: false,
            group_objectives: Vec::new(),
            probe: None,
            command: Vec::new(),
        }
    }

    fn checked(&self, listener: &dyn Listener) -> Result<(Model, Objectives)> {
        let model = Model::new(&self.model)?;
        let objectives = Objectives::new(&self.objectives, self.reference.as_ref(), &model, listener)?;
        let without = objectives.reference == Reference::None;
        if let Some(objective) = self.group_objectives.iter().find(|o| without && o.needs_reference()) {
            return Err(Error::no_reference("group_objectives", &objective.to_string()));
        }
        model.announce(listener);
        Ok((model, objectives))
    }

    /// What the call would do, without loading the model, and whether a pass of a reference over the same rows comes to it.
    ///
    /// # Errors
    /// As [`analyze`] before it computes.
    pub fn estimate(&self, listener: &dyn Listener) -> Result<(Estimate, bool)> {
        let (model, objectives) = self.checked(listener)?;
        let planned = Planned::new(&model)?;
        let description = &planned.outline.description;
        let data =
            read(&self.data.data, &model.tokenizer_folders(), &reading(&self.data.rows)?, description, listener)?;
        let groups = whole_groups(description, &data)?;
        let rows = planned.placement.rows_per_batch(&model, &planned.outline);
        let reference = objectives.reference.is_another();
        Ok((planned.groups(&groups, rows), reference))
    }

    /// What is measured beside pairs of the best and the worst response.
    fn extras(&self, model: &Model, of: &Description, listener: &dyn Listener) -> Result<Extras> {
        let probes = match &self.probe {
            None => Vec::new(),
            Some(path) => {
                let reading = reading(&self.data.rows)?;
                let reading = Reading { chosen_only: true, limit: None, split: None, ..reading };
                let data = read(path, &model.tokenizer_folders(), &reading, of, listener)?;
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
    let (model, objectives) = options.checked(listener)?;
    let work = AnalysisOnDevice { options, model: &model, objectives: &objectives, listener };
    let summary = model.device.run(work)?;
    Ok(Analysis { summary, records: Folder::new(&options.out) })
}

struct AnalysisOnDevice<'a> {
    options: &'a AnalyzeOptions,
    model: &'a Model,
    objectives: &'a Objectives,
    listener: &'a dyn Listener,
}

impl OnDevice for AnalysisOnDevice<'_> {
    type Output = Summary;

    fn run<B: Kernels>(self, device: &B::Device) -> Result<Summary> {
        let Self { options, model: asked, objectives, listener } = self;
        let mut model = asked.load::<B>(asked.dtype, device, listener)?;
        let scope = model.in_scope(&asked.scope)?;
        let rows = reading(&options.data.rows)?;
        let data = read(&options.data.data, &asked.tokenizer_folders(), &rows, &model.description, listener)?;
        let reference = objectives.reference.load(asked, &model, listener)?;
        let tokenizer = tokenizer(&asked.tokenizer_folders())?;
        let before = done(&options.out, &data)?;
        let extras = options.extras(asked, &model.description, listener)?;
        begin(listener, &options.out, work(&data)?, before);
        let measurement = Measurement {
            asked,
            objectives,
            reference: &reference,
            memo: &ReferenceLogps::default(),
            tokenizer: tokenizer.as_ref(),
            extras: &extras,
            command: &options.command,
            listener,
        };
        let summary = measurement.write(&mut model, &scope, &data, &options.out)?;
        listener.end();
        Ok(summary)
    }
}
