//! From what was written to what is meant: names become folders of this machine, texts become types.
use crate::cli::{
    AnalysisMeasures, Analyze, Bench, BetweenMeasures, Compat, DataArgs, Derivative, Interference, Measured, Metric,
    ModelArgs, ModelMeasures, OnBadRow, PairMeasures, Precision, Report, ReportFormat, RowArgs, Rows, ScheduleName,
    ShapeName, Summarize, SummaryBy, Sweep, TokenArgs, Tokens, Train, Verify,
};
use crate::error::{Error, Result};
use crate::hub::{self, RepositoryKind};
use std::path::{Path, PathBuf};
use tanglescope::{
    self as library, Eos, Objective, ObjectiveChoice, Recipe, RecipeName, ReferenceModel, SummaryKind, Truncate,
};

/// The command line, for manifests.
#[must_use]
pub fn command() -> Vec<String> {
    std::env::args_os().map(|word| word.to_string_lossy().into_owned()).collect()
}

/// A model, fetched where it is on the hub.
///
/// # Errors
/// Where an option cannot be used, or a name leads nowhere.
pub fn model(args: &ModelArgs) -> Result<library::ModelOptions> {
    let model = hub::resolve(&args.model, RepositoryKind::Model)?;
    let adapter = args.adapter.as_deref().map(|adapter| hub::resolve(adapter, RepositoryKind::Adapter)).transpose()?;
    Ok(library::ModelOptions { model, adapter, measured: measured(&args.measured)? })
}

fn precision(precision: Precision) -> library::Precision {
    match precision {
        Precision::F32 => library::Precision::F32,
        Precision::F64 => library::Precision::F64,
        Precision::Bf16 => library::Precision::Bf16,
        Precision::F16 => library::Precision::F16,
    }
}

/// The precision where products of f32 may round.
fn of_products(dtype: Precision, tf32: bool) -> Result<library::Precision> {
    match (dtype, tf32) {
        (Precision::F32, true) => Ok(library::Precision::Tf32),
        (_, true) => {
            Err(Error::Input("--tf32: it rounds factors of f32; leave it out, or take --dtype f32".to_owned()))
        }
        _ => Ok(precision(dtype)),
    }
}

fn metric(metric: Metric) -> library::MetricChoice {
    match metric {
        Metric::Gradient => library::MetricChoice::Gradient,
        Metric::Adam => library::MetricChoice::Adam,
    }
}

/// The device that a name is of.
///
/// # Errors
/// Where it is none.
pub fn device(name: Option<&str>) -> Result<Option<library::DeviceName>> {
    Ok(name.map(str::parse).transpose()?)
}

fn scope(text: &str) -> Result<library::Scope> {
    Ok(text.parse::<library::Scope>().map_err(library::Error::from)?)
}

fn derivative(of: Derivative) -> library::Derivative {
    match of {
        Derivative::Trainer => library::Derivative::Trainer,
        Derivative::Exact => library::Derivative::Exact,
    }
}

/// What of a model is measured.
///
/// # Errors
/// Where an option cannot be used.
pub fn measured(args: &Measured) -> Result<library::Measured> {
    Ok(library::Measured {
        scope: scope(&args.scope)?,
        lora_r: args.lora_r,
        lora_alpha: args.lora_alpha,
        lora_targets: args.lora_targets.clone(),
        seed: args.seed,
        padding_row: derivative(args.padding_row),
        dora_norm: derivative(args.dora_norm),
        dtype: of_products(args.dtype, args.tf32)?,
        device: device(args.device.as_deref())?,
        memory: args.memory,
    })
}

fn rows(args: &RowArgs) -> library::RowOptions {
    library::RowOptions {
        split: args.split.clone(),
        columns: args.columns.clone().unwrap_or_default(),
        limit: args.limit,
        chat: args.tokens.chat || args.tokens.tokenize == RecipeName::LlamaFactory,
        recipe: recipe(&args.tokens),
        limit_ids: args.tokens.max_length.is_some() || args.tokens.max_prompt_length.is_some(),
        date: args.tokens.date,
        skip_bad_rows: args.on_bad_row == OnBadRow::Skip,
    }
}

fn recipe(args: &TokenArgs) -> Recipe {
    let of = args.tokenize.recipe();
    Recipe {
        join: args.join.unwrap_or(of.join),
        eos: args.eos.or(args.append_eos.then_some(Eos::Id)).unwrap_or(of.eos),
        add_special_tokens: args.add_special_tokens.unwrap_or(of.add_special_tokens),
        implicit_prompt: args.implicit_prompt.unwrap_or(of.implicit_prompt),
        assistant_last: args.assistant_last.unwrap_or(of.assistant_last),
        max_prompt_length: args.max_prompt_length.map_or(of.max_prompt_length, |most| most.0),
        max_length: args.max_length.map_or(of.max_length, |most| most.0),
        truncate: args.truncate.or(args.truncate_prompt.then_some(Truncate::Prompt)).unwrap_or(of.truncate),
    }
}

/// Preference data, fetched where it is on the hub.
///
/// # Errors
/// Where a name leads nowhere.
pub fn data(args: &DataArgs) -> Result<library::DataOptions> {
    let data = hub::resolve(&args.data, data_kind(&args.rows))?;
    Ok(library::DataOptions { data, called: None, rows: rows(&args.rows) })
}

fn data_kind(rows: &RowArgs) -> RepositoryKind<'_> {
    RepositoryKind::Data(rows.split.as_deref())
}

fn objective(name: &str) -> Result<Objective> {
    name.parse().map_err(|e| Error::Input(format!("--objective: {e}")))
}

fn objectives(args: &PairMeasures) -> Result<Vec<ObjectiveChoice>> {
    let choice = |name: &String| match name.as_str() {
        "all" => Ok(ObjectiveChoice::All),
        name => objective(name).map(ObjectiveChoice::One),
    };
    args.objective.iter().map(choice).collect()
}

fn reference(text: &str) -> Result<ReferenceModel> {
    Ok(match text {
        "self" => ReferenceModel::Itself,
        "base" => ReferenceModel::Base,
        folder => ReferenceModel::Folder(hub::resolve(Path::new(folder), RepositoryKind::Model)?),
    })
}

/// What `analyze` is to find of every pair.
///
/// # Errors
/// Where an objective is none, or a name leads nowhere.
pub fn pair_measures(args: &AnalysisMeasures) -> Result<library::PairMeasures> {
    let group_objective = |name: &String| name.parse().map_err(|e| Error::Input(format!("--group-objective: {e}")));
    Ok(library::PairMeasures {
        all_pairs: args.all_pairs,
        group_objectives: args.group_objective.iter().map(group_objective).collect::<Result<_>>()?,
        probe: args.probe.as_deref().map(|path| hub::resolve(path, RepositoryKind::Data(None))).transpose()?,
        ..model_measures(&args.of_pairs)?
    })
}

fn shard(of: Option<&str>) -> Result<library::Shard> {
    Ok(of.map_or(Ok(library::Shard::WHOLE), str::parse)?)
}

/// Where results go: a folder, and which part of the work is this call's.
///
/// # Errors
/// Where the part is none.
pub fn destination(out: &Path, part: Option<&str>) -> Result<library::Destination> {
    Ok(library::Destination { out: out.to_owned(), shard: shard(part)?, command: command() })
}

/// What `interference` is to find of every two pairs.
///
/// # Errors
/// Where a name leads nowhere.
pub fn between(args: &BetweenMeasures, split: Option<&str>) -> Result<library::BetweenMeasures> {
    Ok(library::BetweenMeasures {
        pairs: args.pairs.clone(),
        against: args.against.as_deref().map(|path| hub::resolve(path, RepositoryKind::Data(split))).transpose()?,
        by_layer: args.by_layer,
        keep: args.keep.map(precision),
        batches: match (&args.batches, args.batch_size) {
            (Some(path), _) => library::Batches::read(path)?,
            (None, Some(size)) => library::Batches::Drawn(size as usize),
            (None, None) => library::Batches::None,
        },
    })
}

/// What `analyze` and `interference` are to find of every pair.
///
/// # Errors
/// Where an objective is none, or a name leads nowhere.
pub fn model_measures(args: &ModelMeasures) -> Result<library::PairMeasures> {
    Ok(library::PairMeasures {
        objectives: objectives(&args.found)?,
        reference: args.reference.as_deref().map(reference).transpose()?,
        metric: metric(args.found.metric),
        optimizer: args.optimizer.clone(),
        mean_gradients: args.found.mean_gradients,
        ..library::PairMeasures::default()
    })
}

/// Options of `interference`.
///
/// # Errors
/// Where an option cannot be used, or a name leads nowhere.
pub fn interference(args: &Interference) -> Result<library::InterferenceOptions> {
    Ok(library::InterferenceOptions {
        model: model(&args.model)?,
        data: data(&args.data)?,
        measures: model_measures(&args.measures.of_pairs)?,
        between: between(&args.measures.between, args.data.rows.split.as_deref())?,
        to: destination(&args.out, args.shard.as_deref())?,
    })
}

/// Options of `analyze`.
///
/// # Errors
/// Where an option cannot be used, or a name leads nowhere.
pub fn analyze(args: &Analyze) -> Result<library::AnalyzeOptions> {
    Ok(library::AnalyzeOptions {
        model: model(&args.model)?,
        data: data(&args.data)?,
        measures: pair_measures(&args.measures)?,
        to: destination(&args.out, args.shard.as_deref())?,
    })
}

/// Options of `tokens`.
///
/// # Errors
/// Where an option cannot be used, or a name leads nowhere.
pub fn tokens(args: &Tokens) -> Result<library::TokensOptions> {
    Ok(library::TokensOptions {
        model: model(&args.model)?,
        data: data(&args.data)?,
        measures: library::TokenMeasures { npy: args.npy, positions: args.positions },
        to: destination(&args.out, args.shard.as_deref())?,
    })
}

/// Options of `rows`.
///
/// # Errors
/// Where an option cannot be used, or a name leads nowhere.
pub fn rows_of(args: &Rows) -> Result<library::RowsOptions> {
    Ok(library::RowsOptions {
        model: hub::resolve(&args.model, RepositoryKind::Model)?,
        adapter: args.adapter.as_deref().map(|adapter| hub::resolve(adapter, RepositoryKind::Adapter)).transpose()?,
        data: data(&args.data)?,
        show: args.show,
        out: args.out.clone(),
    })
}

/// The run that a text is: a folder, or NAME=FOLDER.
///
/// # Errors
/// Where it gives no name that a folder can have.
pub fn run(text: &str) -> Result<library::RunFolder> {
    let (name, folder) = library::named("runs", text)?;
    // a path that gives the name itself is a checkpoint of its parent, where it is one
    let name = (folder != Path::new(text)).then_some(name);
    Ok(library::RunFolder { name, folder, step: None })
}

/// Options of `sweep`.
///
/// # Errors
/// Where an option cannot be used, or a name leads nowhere.
pub fn sweep(args: &Sweep) -> Result<library::SweepOptions> {
    let of_data = |text: &String| -> Result<(String, PathBuf)> {
        let (name, path) = library::named("data", text)?;
        Ok((name, hub::resolve(&path, data_kind(&args.rows))?))
    };
    Ok(library::SweepOptions {
        runs: args.runs.iter().map(|text| run(text)).collect::<Result<_>>()?,
        data: args.data.iter().map(of_data).collect::<Result<_>>()?,
        out: args.out.clone(),
        model: args.model.as_deref().map(|model| hub::resolve(model, RepositoryKind::Model)).transpose()?,
        measured: measured(&args.measured)?,
        rows: rows(&args.rows),
        pairs: args.pairs,
        objectives: objectives(&args.found)?,
        metric: metric(args.found.metric),
        mean_gradients: args.found.mean_gradients,
        reference: match args.reference.as_deref() {
            Some("start") => Some(ReferenceModel::Start),
            other => other.map(reference).transpose()?,
        },
        shard: shard(args.shard.as_deref())?,
        command: command(),
    })
}

/// Options of `train`.
///
/// # Errors
/// Where an option cannot be used, or a name leads nowhere.
pub fn train(args: &Train) -> Result<library::TrainOptions> {
    let data_of = |path: &PathBuf| hub::resolve(path, data_kind(&args.data.rows));
    Ok(library::TrainOptions {
        model: model(&args.model)?,
        data: data(&args.data)?,
        out: args.out.clone(),
        objective: objective(&args.objective)?,
        reference: reference(&args.reference)?,
        epochs: args.epochs,
        max_steps: args.max_steps,
        batch_size: args.batch_size,
        accumulate: args.accumulate,
        learning_rate: args.learning_rate,
        schedule: match args.schedule {
            ScheduleName::Constant => library::Schedule::Constant,
            ScheduleName::Linear => library::Schedule::Linear,
            ScheduleName::Cosine => library::Schedule::Cosine,
        },
        warmup_steps: args.warmup_steps,
        adam_beta1: args.adam_beta1,
        adam_beta2: args.adam_beta2,
        adam_epsilon: args.adam_epsilon,
        weight_decay: args.weight_decay,
        max_grad_norm: args.max_grad_norm,
        mask_learning_rate: args.mask_learning_rate,
        eval_data: args.eval_data.as_ref().map(data_of).transpose()?,
        eval_fraction: args.eval_fraction,
        eval_every: args.eval_every,
        save_every: args.save_every,
        gram_every: args.gram_every,
        predict_every: args.predict_every,
        command: command(),
    })
}

/// Options of `verify`.
///
/// # Errors
/// Where an option cannot be used, or a name leads nowhere.
pub fn verify(args: &Verify) -> Result<library::VerifyOptions> {
    Ok(library::VerifyOptions {
        model: model(&args.model)?,
        data: data(&args.data)?,
        pairs: args.pairs,
        objectives: args.objective.iter().map(|name| objective(name)).collect::<Result<_>>()?,
    })
}

/// Options of `bench`.
///
/// # Errors
/// Where an option cannot be used, or a name leads nowhere.
pub fn bench(args: &Bench) -> Result<library::BenchOptions> {
    Ok(library::BenchOptions {
        model: args.model.as_deref().map(|model| hub::resolve(model, RepositoryKind::Model)).transpose()?,
        shape: match args.shape {
            ShapeName::Demo => library::ShapeName::Demo,
            ShapeName::SmolLm2 => library::ShapeName::SmolLm2,
            ShapeName::Llama1b => library::ShapeName::Llama1b,
            ShapeName::Llama8b => library::ShapeName::Llama8b,
        },
        layers: args.layers,
        measured: library::Measured {
            scope: scope(&args.scope)?,
            lora_r: args.lora_r,
            lora_targets: args.lora_targets.clone(),
            dtype: of_products(args.dtype, args.tf32)?,
            device: device(args.device.as_deref())?,
            memory: args.memory,
            ..library::Measured::default()
        },
        prompt: args.prompt,
        response: args.response,
        pairs: args.pairs,
        repeats: args.repeats,
        kernels: !args.pass_only,
        pass: !args.kernels_only,
    })
}

/// Options of `summarize`.
#[must_use]
pub fn summarize(args: &Summarize) -> library::SummarizeOptions {
    let by = match args.by {
        SummaryBy::Run => library::SummaryBy::Run,
        SummaryBy::Metric => library::SummaryBy::Metric,
        SummaryBy::Regime => library::SummaryBy::Regime,
        SummaryBy::Objective => library::SummaryBy::Objective,
        SummaryBy::Layer => library::SummaryBy::Layer,
        SummaryBy::Module => library::SummaryBy::Module,
        SummaryBy::Expert => library::SummaryBy::Expert,
        SummaryBy::Mean => library::SummaryBy::Mean,
        SummaryBy::Relation => library::SummaryBy::Relation,
        SummaryBy::Bin => library::SummaryBy::Bin,
        SummaryBy::Outlier => library::SummaryBy::Outlier,
        SummaryBy::Token => library::SummaryBy::Token,
    };
    let kind = match (args.compat, &args.against) {
        (Some(Compat::Official), _) => SummaryKind::Official,
        (None, Some(other)) => SummaryKind::Against(other.clone()),
        (None, None) => SummaryKind::By(by),
    };
    library::SummarizeOptions { folders: args.folders.clone(), kind }
}

/// Where a report goes.
#[derive(Clone, Debug)]
pub enum ReportTo {
    /// Into a file.
    File(library::ReportOptions),
    /// To a browser, while records are written.
    Watched(library::WatchOptions),
}

/// Options of `report`.
///
/// # Errors
/// Where it is not said where it goes.
pub fn report(args: &Report) -> Result<ReportTo> {
    let (folders, command) = (args.folders.clone(), command());
    match (args.watch, &args.out) {
        (Some(port), _) => Ok(ReportTo::Watched(library::WatchOptions { folders, port, command })),
        (None, Some(out)) => {
            let format = match args.format {
                ReportFormat::Html => library::ReportFormat::Html,
                ReportFormat::Md => library::ReportFormat::Markdown,
            };
            Ok(ReportTo::File(library::ReportOptions { folders, out: out.clone(), format, command }))
        }
        (None, None) => Err(Error::Input("a report needs --out or --watch".to_owned())),
    }
}
