//! Inner products between the gradients of all pairs of a data set, and of two data sets: what a step on one pair does to another.
mod follow;
mod kept;
mod rounds;
mod tiles;
mod windows;

use crate::crew::Member;
use crate::data::{read, reading, whole_groups};
use crate::device::Precision;
use crate::error::{Error, Result};
use crate::estimate::{Estimate, Planned};
use crate::listener::{Listener, begin};
use crate::loaded::{LoadedModel, OnCrew};
use crate::measure::{Extras, Measurement, ReferenceLogps, done, keep_out, stage, work};
use crate::model::Model;
use crate::options::{DataOptions, Destination, ModelOptions, PairMeasures};
use crate::placement::Placement;
use crate::records::Folder;
use crate::reference::{LoadedReference, Objectives, Reference};
use crate::token_rows::TokenRows;
pub use follow::Batches;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use tanglescope_analytics::{Spectrum, Summary};
use tanglescope_gram::Group;
use tanglescope_kernels::Kernels;
use tanglescope_model::Decoder;
use windows::{Between, Side};

/// Folder of the second data set's own records, inside that of the results.
pub(crate) const AGAINST: &str = "against";

/// Options of [`interference`].
#[derive(Clone, Debug)]
pub struct InterferenceOptions {
    /// The model.
    pub model: ModelOptions,
    /// The data.
    pub data: DataOptions,
    /// What of every pair is measured beside.
    pub measures: PairMeasures,
    /// What is measured between pairs.
    pub between: BetweenMeasures,
    /// Where the results go, which may be where an analysis of the same is.
    pub to: Destination,
}

/// What is measured between pairs.
#[derive(Clone, Debug, Default)]
pub struct BetweenMeasures {
    /// Only the pairs of these rows.
    pub pairs: Option<Vec<u64>>,
    /// A second data set, read as the first: how its pairs and those of the first meet, in place of those of the first among each other.
    pub against: Option<PathBuf>,
    /// Also by transformer block.
    pub by_layer: bool,
    /// The number type that gradients are kept in; the working type where none is given.
    pub keep: Option<Precision>,
    /// The batches that steps on objectives are predicted of.
    pub batches: Batches,
}

impl InterferenceOptions {
    /// A model on data, with all defaults.
    #[must_use]
    pub fn new(model: ModelOptions, data: DataOptions, out: impl Into<PathBuf>) -> Self {
        let (measures, between) = (PairMeasures::default(), BetweenMeasures::default());
        Self { model, data, measures, between, to: Destination::new(out) }
    }

    /// What the call would do, without loading the model.
    ///
    /// # Errors
    /// As [`interference`] before it computes.
    pub fn estimate(&self, listener: &dyn Listener) -> Result<InterferenceEstimate> {
        let model = Model::new(&self.model)?;
        self.measures.checked(&model, listener)?;
        model.announce(listener);
        let planned = Planned::new(&model)?;
        let description = &planned.outline.description;
        let (reading, folders) = (reading(&self.data.rows)?, model.tokenizer_folders());
        let groups = |path: &Path| whole_groups(description, &read(path, &folders, &reading, description, listener)?);
        let own = groups(&self.data.data)?;
        let other = self.between.against.as_deref().map(groups).transpose()?.unwrap_or_default();
        let responses = |groups: &[Group]| groups.iter().map(|group| group.responses.len()).sum::<usize>();
        let (a, b) = (responses(&own), responses(&other));
        let products = if other.is_empty() { a * (a + 1) / 2 } else { a * b };
        let entries = planned.outline.entries(&planned.scope);
        let gradients = a + b;
        let all: Vec<Group> = own.into_iter().chain(other).collect();
        let placement = planned.placement.beside_gradients();
        let rows = placement.rows_per_batch(&model, &planned.outline);
        let dtype = self.between.keep.map_or(model.dtype, Precision::dtype);
        Ok(InterferenceEstimate {
            passes: planned.groups(&all, rows),
            entries,
            gradients,
            bytes: gradients * entries * dtype.size(),
            room: placement.left_for_gradients(&model, &planned.outline, rows),
            products,
            operations: 2.0 * products as f64 * entries as f64,
        })
    }
}

/// What the products between pairs would take.
#[derive(Clone, Debug)]
pub struct InterferenceEstimate {
    /// The passes that form the gradients once.
    pub passes: Estimate,
    /// Entries of a gradient.
    pub entries: usize,
    /// Gradients: one a response.
    pub gradients: usize,
    /// Bytes that all of them take.
    pub bytes: usize,
    /// Bytes of memory that there are for them; beyond it they are kept in files, or formed again.
    pub room: usize,
    /// Inner products.
    pub products: usize,
    /// Floating-point operations of these.
    pub operations: f64,
}

/// What [`interference`] found.
#[derive(Clone, Debug)]
pub struct Interference {
    /// Of the pairs by themselves, in a few lines.
    pub summary: Summary,
    /// In how many directions the gradients go; `None` of a shard whose others are not done, or of two data sets.
    pub spectrum: Option<Spectrum>,
    /// All of it.
    pub records: Folder,
}

/// Measures the inner products between the gradients of all pairs of a data set: their exact Gram, no projection of it.
///
/// # Errors
/// As [`analyze`](crate::analyze()); and where the gradients of two pairs do not fit into memory together.
pub fn interference(options: &InterferenceOptions, listener: &dyn Listener) -> Result<Interference> {
    let InterferenceOptions { model, data, measures, between, to } = options;
    // what cannot be measured is refused before the weights are read
    measures.checked(&Model::new(model)?, &())?;
    let mut model = LoadedModel::load(model, listener)?;
    let rows = model.rows(data, listener)?;
    model.interference(&rows, measures, between, to, listener)
}

impl LoadedModel {
    /// Measures the products between the gradients of all pairs of some rows into a folder, as [`interference`] does.
    ///
    /// # Errors
    /// As there.
    pub fn interference(
        &mut self,
        rows: &TokenRows,
        measures: &PairMeasures,
        between: &BetweenMeasures,
        to: &Destination,
        listener: &dyn Listener,
    ) -> Result<Interference> {
        let asked = self.asked.clone();
        if measures.all_pairs {
            let problem = "is of analyses; between rows, all responses of a group meet all of another";
            return Err(Error::option("all_pairs", problem));
        }
        let objectives = measures.checked(&asked, listener)?;
        let selected = between.pairs.as_ref().map(|numbers| rows.of_numbers(numbers)).transpose()?;
        let rows = selected.as_ref().unwrap_or(rows);
        let seed = self.measured_seed();
        let summary = Mutex::default();
        let work = InterferenceOnModel { rows, measures, between, seed, objectives, to, summary };
        let found = self.share(&work, listener)?;
        let summary = work.summary.into_inner().unwrap_or_else(PoisonError::into_inner);
        Ok(Interference { summary, ..found })
    }
}

struct InterferenceOnModel<'a> {
    rows: &'a TokenRows,
    measures: &'a PairMeasures,
    between: &'a BetweenMeasures,
    seed: u64,
    objectives: Objectives,
    to: &'a Destination,
    /// Of the pairs by themselves, from the member that summed them up.
    summary: Mutex<Summary>,
}

impl OnCrew for InterferenceOnModel<'_> {
    type Output = Interference;

    fn run<B: Kernels>(
        &self,
        asked: &Model,
        member: &Member<'_>,
        model: &mut Decoder<B>,
    ) -> Result<Option<Interference>> {
        let (Self { rows, measures, between, seed, objectives, to, .. }, listener) = (self, member.listener);
        rows.check(&model.description)?;
        let scope = model.in_scope(&asked.scope)?;
        let reference = objectives.reference.load(asked, model, listener)?;
        let metric = measures.metric(asked, model, &scope, listener)?;
        let extras = measures.extras(rows, &model.description, listener)?;
        let memo = ReferenceLogps::default();
        let measurement = Measurement {
            asked,
            objectives,
            reference: &reference,
            metric: metric.as_ref(),
            memo: &memo,
            tokenizer: rows.tokenizer.as_ref(),
            extras: &extras,
            member,
        };
        keep_out(member, to)?;
        let placement = Placement::of_loaded(asked, &asked.outline()?, model).beside_gradients();
        let own = measurement.open(model, &rows.data, to, placement)?;
        let other = between.against.as_ref().map(|path| {
            let folders: Vec<&Path> = rows.folders.iter().map(PathBuf::as_path).collect();
            read(path, &folders, &reading(&rows.options)?, &model.description, listener)
        });
        let other = other.transpose()?;
        let nothing = Objectives { objectives: Vec::new(), reference: Reference::None };
        let (no_extras, no_reference) = (Extras::default(), LoadedReference::None);
        let of_other = Measurement {
            objectives: &nothing,
            reference: &no_reference,
            tokenizer: rows.tokenizer.as_ref(),
            extras: &no_extras,
            ..measurement
        };
        let other = match &other {
            None => None,
            Some(other) => {
                let to = follow::against(to);
                keep_out(member, &to)?;
                Some((of_other.open(model, other, &to, placement)?, other, to))
            }
        };
        let model = &*model;
        let setup = measurement.setup(own, model, &scope, &rows.data);
        let other_setup = other.as_ref().map(|(opened, data, _)| of_other.setup(*opened, model, &scope, data));
        let mut sides = vec![Side { setup: &setup, to }];
        sides.extend(other.iter().zip(&other_setup).map(|((.., to), setup)| Side { setup, to }));
        let measured = Between::new(&sides, between, placement)?;
        measured.measure()?;
        for (at, side) in sides.iter().enumerate() {
            if let Some(summary) = finish(side)?.filter(|_| at == 0) {
                *self.summary.lock().unwrap_or_else(PoisonError::into_inner) = summary;
            }
        }
        member.once(&stage(to, "effects"), || {
            let spectrum = measured.follow(&objectives.objectives, &between.batches, *seed, to)?;
            Ok(Interference { summary: Summary::default(), spectrum, records: Folder::new(&to.out) })
        })
    }
}

/// Measures what of a data set's own pairs is not there yet, and makes what follows from it.
fn finish<B: Kernels>(Side { setup, to }: &Side<'_, B>) -> Result<Option<Summary>> {
    let amounts = || Ok((work(setup.data, to.shard)?, done(&to.out, setup.data, to.shard)?));
    let (all, before) = setup.of.member.agree(&stage(to, "before"), amounts)?;
    if before == all {
        return setup.of.finish(setup, to);
    }
    begin(setup.of.listener(), &to.out, all, before);
    let summary = setup.of.finish(setup, to)?;
    setup.of.listener().end();
    Ok(summary)
}
