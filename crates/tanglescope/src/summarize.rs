//! What records amount to, as one table.
use crate::error::{Error, Result};
use crate::folder::{Kind, expect};
use crate::listener::Listener;
use polars_core::prelude::DataFrame;
use std::path::{Path, PathBuf};
use tanglescope_analytics::{self as analytics, By};
use tanglescope_records::manifest::AnalysisManifest;
use tanglescope_records::{Leaf, Manifest, find};

/// What a summary has a row for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SummaryBy {
    /// Each model and data set.
    Run,
    /// Each metric: count, mean, quartiles, median with its 95 % interval.
    Metric,
    /// Each objective and regime: the share of pairs with its 95 % interval.
    Regime,
    /// Each objective and what it would do: loss, coefficients, predicted changes, band slack.
    Objective,
    /// Each layer: the cosine of its part of the gradients, and its share of wl.
    Layer,
    /// Each module of each layer.
    Module,
    /// Each expert of a block with experts: rows that went to it, and its share of wl.
    Expert,
    /// The Gram of the mean gradients over all pairs, where the run recorded it.
    Mean,
    /// Each measure of entanglement and property of the pairs: Spearman's correlation with its 95 % interval.
    Relation,
    /// Each measure of entanglement and tenth of the pairs by a property.
    Bin,
    /// The pairs that are farthest from the others.
    Outlier,
    /// Each response token: what one step on each objective does to it.
    Token,
}

/// What a summary is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SummaryKind {
    /// A row for each of something.
    By(SummaryBy),
    /// A comparison with other records, pair by pair: differences, rises, falls, sign test. Records of the same data set belong
    /// together, and where there are several, those of the same step.
    Against(PathBuf),
    /// The columns of the published repository's analysis/grad_plot.py, with its slip.
    Official,
}

/// Options of [`summarize`].
#[derive(Clone, Debug)]
pub struct SummarizeOptions {
    /// Folders of records, of [`analyze`](crate::analyze()) or [`sweep`](crate::sweep()).
    pub folders: Vec<PathBuf>,
    /// What it is.
    pub kind: SummaryKind,
}

impl SummarizeOptions {
    /// A row a model and data set.
    #[must_use]
    pub fn new(folders: &[PathBuf]) -> Self {
        Self { folders: folders.to_vec(), kind: SummaryKind::By(SummaryBy::Run) }
    }
}

/// Says what records amount to.
///
/// # Errors
/// Where a folder has no records, a part of them is damaged, or records do not belong together.
pub fn summarize(options: &SummarizeOptions, listener: &dyn Listener) -> Result<DataFrame> {
    let leaves = records(&options.folders)?;
    match &options.kind {
        SummaryKind::By(by) => summary(&leaves, *by, listener),
        SummaryKind::Against(other) => against(&leaves, other, listener),
        SummaryKind::Official => official(&leaves),
    }
}

/// The records of folders that were named; one without any is bad input.
fn records(folders: &[PathBuf]) -> Result<Vec<Leaf>> {
    find(folders).map_err(|e| {
        let elsewhere = folders.iter().find_map(|folder| expect(Kind::Records, "folders", folder).err());
        elsewhere.unwrap_or_else(|| Error::option("folders", e))
    })
}

/// The published script's columns, which say of a row only its step.
fn official(leaves: &[Leaf]) -> Result<DataFrame> {
    let differs = |of: fn(&Leaf) -> &str| leaves.iter().any(|leaf| of(leaf) != of(&leaves[0]));
    let what = if differs(|leaf| &leaf.run) { Some("runs") } else { None };
    match what.or(differs(|leaf| &leaf.dataset).then_some("data sets")) {
        None => Ok(analytics::official(leaves)?),
        Some(what) => {
            let problem = format!(
                "these are records of several {what}, and its rows say only their step; name the folders of one"
            );
            Err(Error::value("compat", "official", problem))
        }
    }
}

/// The rows of all records under each other.
fn summary(leaves: &[Leaf], by: SummaryBy, listener: &dyn Listener) -> Result<DataFrame> {
    let of = |leaf: &Leaf| -> Result<Option<DataFrame>> {
        Ok(match by {
            SummaryBy::Run => Some(analytics::digest(leaf)?),
            SummaryBy::Metric => Some(analytics::metrics(leaf)?),
            SummaryBy::Regime => Some(analytics::regimes(leaf)?),
            SummaryBy::Objective => analytics::outcomes(leaf)?,
            SummaryBy::Layer => analytics::params(leaf, By::Layer)?,
            SummaryBy::Module => analytics::params(leaf, By::Module)?,
            SummaryBy::Expert => analytics::experts(leaf)?,
            SummaryBy::Mean => analytics::means(leaf)?,
            SummaryBy::Relation => Some(analytics::relations(leaf)?),
            SummaryBy::Bin => Some(analytics::bins(leaf)?),
            SummaryBy::Outlier => Some(analytics::outliers(leaf)?),
            SummaryBy::Token => analytics::token_changes(leaf)?,
        })
    };
    let missing = match by {
        SummaryBy::Layer | SummaryBy::Module => "params.parquet",
        SummaryBy::Expert => "routing.parquet, which models with experts have",
        SummaryBy::Mean => "means.parquet; analyze and sweep write it with option `mean_gradients`",
        SummaryBy::Token => {
            "tokens.parquet beside objectives.parquet; analyze with objectives and tokens write them into one folder"
        }
        _ => "objectives.parquet; analyze with option `objective` writes it",
    };
    let mut tables = Vec::new();
    for leaf in leaves {
        match of(leaf)? {
            Some(rows) => tables.push(rows),
            None => listener.left_out(&format!("{}: has no {missing}", leaf.folder.display())),
        }
    }
    stacked(tables)?.ok_or_else(|| Error::Failed("there is nothing to summarize".to_owned()))
}

/// The rows of tables under each other; `None` of no table.
fn stacked(tables: Vec<DataFrame>) -> Result<Option<DataFrame>> {
    let mut tables = tables.into_iter();
    let Some(mut whole) = tables.next() else { return Ok(None) };
    for rows in tables {
        whole.vstack_mut(&rows).map_err(|e| Error::Failed(e.to_string()))?;
    }
    Ok(Some(whole))
}

/// Comparisons of records that belong together, with what is compared in front: two records alone, whatever they are of, and of
/// more those of the same data set and step.
fn against(leaves: &[Leaf], other: &Path, listener: &dyn Listener) -> Result<DataFrame> {
    let others = records(&[other.to_owned()])?;
    let mut tables = Vec::new();
    for leaf in leaves {
        let same_data: Vec<&Leaf> = others.iter().filter(|other| other.dataset == leaf.dataset).collect();
        let same_step: Vec<&Leaf> = same_data.iter().copied().filter(|other| other.step == leaf.step).collect();
        let alone = others.iter().filter(|_| leaves.len() == 1 && others.len() == 1).collect::<Vec<_>>();
        let before = match (alone.as_slice(), same_data.as_slice(), same_step.as_slice()) {
            ([one], ..) | (_, [one], _) | (.., [one]) => one,
            (.., []) => continue,
            _ => {
                let problem = format!("has several records that belong to {}; name the folder of one", leaf.title());
                return Err(Error::value("against", other.display(), problem));
            }
        };
        same_rows(before, leaf, listener)?;
        tables.push(analytics::compare(before, leaf)?);
    }
    let none = "has no records of the same data set and step";
    stacked(tables)?.ok_or_else(|| Error::value("against", other.display(), none))
}

/// Refuses records whose pairs are counted in two ways, and says where equal numbers may be of other texts.
fn same_rows(before: &Leaf, after: &Leaf, listener: &dyn Listener) -> Result<()> {
    let (Some(first), Some(second)) = (manifest(before)?, manifest(after)?) else {
        return Ok(());
    };
    let (first, second) = (first.identity, second.identity);
    if first.all_pairs != second.all_pairs {
        let problem =
            "has all pairs of each group, and the other only the best against the worst: their numbers differ";
        let all = if first.all_pairs { before } else { after };
        return Err(Error::output(&all.folder, problem));
    }
    if first.data != second.data {
        listener.note(&format!(
            "{} and {}: not the same token ids; pairs are matched by row number, and refused where their ids differ",
            before.folder.display(),
            after.folder.display()
        ));
    }
    Ok(())
}

/// The manifest of an analysis.
fn manifest(leaf: &Leaf) -> Result<Option<AnalysisManifest>> {
    Ok(match Manifest::read(&leaf.folder)? {
        Some(Manifest::Analysis(manifest)) => Some(*manifest),
        _ => None,
    })
}
