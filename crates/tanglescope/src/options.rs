//! What calls are given: which model, which data, and how. Every type has the defaults that the command line has.
use crate::device::{DeviceName, Precision};
use crate::metric::MetricChoice;
use crate::shard::Shard;
use chrono::NaiveDate;
use std::path::PathBuf;
use std::sync::Arc;
use tanglescope_data::{Mapping, Reading, Recipe};
use tanglescope_model::{HeldModel, Scope};
use tanglescope_objectives::{GroupObjective, Objective};

/// A model, and what of it is measured.
#[derive(Clone, Debug)]
pub struct ModelOptions {
    /// Folder of a Hugging Face model: config.json, safetensors, tokenizer.json.
    pub model: PathBuf,
    /// Folder of a PEFT LoRA adapter.
    pub adapter: Option<PathBuf>,
    /// What of it is measured.
    pub measured: Measured,
}

impl ModelOptions {
    /// A model by itself, measured through a fresh adapter in f32 on the best device.
    #[must_use]
    pub fn new(model: impl Into<PathBuf>) -> Self {
        Self { model: model.into(), adapter: None, measured: Measured::default() }
    }
}

/// What of a model is measured, in which precision, and where.
#[derive(Clone, Debug)]
pub struct Measured {
    /// Which parameters.
    pub scope: Scope,
    /// Rank of the fresh adapter that scope `lora` uses where none is given.
    pub lora_r: usize,
    /// α of the fresh adapter: its factor is α/r. Twice the rank where none is given.
    pub lora_alpha: Option<f64>,
    /// Modules of the fresh adapter; the projections of attention where empty.
    pub lora_targets: Vec<String>,
    /// Seed of the fresh adapter, of samples, and of the order of training.
    pub seed: u64,
    /// Whether the embedding's row of the padding token is trained by its places in a sequence.
    pub padding_row: Derivative,
    /// Whether gradients go through the norms of columns of a `DoRA` adapter.
    pub dora_norm: Derivative,
    /// Number type of weights and activations.
    pub dtype: Precision,
    /// Where it runs; the best device present where none is given.
    pub device: Option<DeviceName>,
    /// GiB that weights and activations may take together. Beyond it activations are computed again, and weights are copied to the device one
    /// transformer block at a time, or on the CPU read from the model's files. What is free where none is given.
    pub memory: Option<f64>,
}

/// Which derivative is taken where trainers take one that is not the function's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Derivative {
    /// The trainers': torch's `nn.Embedding` with `padding_idx` has nothing for the places of that token in a sequence, which chats often
    /// end their turns with; PEFT holds the norms of `DoRA`'s columns fixed.
    Trainer,
    /// That of the function.
    Exact,
}

impl Default for Measured {
    fn default() -> Self {
        Self {
            scope: Scope::Lora,
            lora_r: 16,
            lora_alpha: None,
            lora_targets: Vec::new(),
            seed: 0,
            padding_row: Derivative::Trainer,
            dora_norm: Derivative::Trainer,
            dtype: Precision::F32,
            device: None,
            memory: None,
        }
    }
}

/// Preference data, and how its rows become tokens.
#[derive(Clone, Debug)]
pub struct DataOptions {
    /// JSONL, JSON, CSV, parquet or arrow: a file or a folder of files.
    pub data: PathBuf,
    /// What manifests and complaints call it, where the file is there only in passing.
    pub called: Option<String>,
    /// How rows become tokens.
    pub rows: RowOptions,
}

impl DataOptions {
    /// All rows of a data set.
    #[must_use]
    pub fn new(data: impl Into<PathBuf>) -> Self {
        Self { data: data.into(), called: None, rows: RowOptions::default() }
    }
}

/// How rows become tokens.
#[derive(Clone, Debug, Default)]
pub struct RowOptions {
    /// Part of a data set that has several; `train` where none is given.
    pub split: Option<String>,
    /// Where the usual columns are; recognised by their names where none are given.
    pub columns: Mapping,
    /// Only the first rows.
    pub limit: Option<usize>,
    /// Render plain-text rows with the chat template, as a user and an assistant turn.
    pub chat: bool,
    /// How texts become tokens: as TRL makes them where nothing else is asked for.
    pub recipe: Recipe,
    /// Whether the recipe's limits on lengths hold for rows of token ids too.
    pub limit_ids: bool,
    /// The day that chat templates are told; today where none is given.
    pub date: Option<NaiveDate>,
    /// Leave bad rows out, and say so; without it the first one is an error.
    pub skip_bad_rows: bool,
}

impl RowOptions {
    /// The same for the reader of data.
    pub(crate) fn reading(&self) -> Reading {
        Reading {
            chat: self.chat,
            chosen_only: false,
            recipe: self.recipe,
            limit_ids: self.limit_ids,
            date: self.date,
            skip_bad_rows: self.skip_bad_rows,
            limit: self.limit,
            sample: None,
            split: self.split.clone(),
            columns: self.columns.clone(),
        }
    }
}

/// What one step on a loss would do to every pair.
#[derive(Clone, Debug)]
pub enum ObjectiveChoice {
    /// Every objective that can be used; those that cannot are told to the listener.
    All,
    /// One.
    One(Objective),
}

/// What of every pair is measured beside its two gradients.
#[derive(Clone, Debug, Default)]
pub struct PairMeasures {
    /// What one step on a loss would do to every pair.
    pub objectives: Vec<ObjectiveChoice>,
    /// Reference model of objectives that use one; the base under a saved adapter, the policy itself under a fresh one, else
    /// none.
    pub reference: Option<ReferenceModel>,
    /// Also in the metric of an optimizer's step.
    pub metric: MetricChoice,
    /// The optimizer's state, a file or a checkpoint's folder; that of the adapter or the model where none is given.
    pub optimizer: Option<PathBuf>,
    /// Also the Gram of the mean gradients over all pairs, by a second pass whose sums are as large as the scope.
    pub mean_gradients: bool,
    /// Of rows with more than two responses, every pair of a better and a worse one, not only the best and the worst.
    pub all_pairs: bool,
    /// What one step on a loss over groups would do to every response.
    pub group_objectives: Vec<GroupObjective>,
    /// Texts beside the pairs, rows of `prompt` and `completion`, whose predicted change under every pair's step is wanted.
    pub probe: Option<PathBuf>,
}

/// What of single tokens is measured beside their products.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TokenMeasures {
    /// Also write the matrices as NumPy arrays: npy/PAIR-wl.npy, -ww.npy, -ll.npy.
    pub npy: bool,
    /// Also take wl apart by the positions at which parameters are used, prompt included, which needs no pass a token.
    pub positions: bool,
}

/// Where a call's results go.
#[derive(Clone, Debug)]
pub struct Destination {
    /// Folder for them; an unfinished call in it goes on where it stopped.
    pub out: PathBuf,
    /// Which part of the work; the parts may run at once, anywhere, and come to the same bytes as one call.
    pub shard: Shard,
    /// The command line, for the manifest.
    pub command: Vec<String>,
}

impl Destination {
    /// All of the work, into a folder.
    #[must_use]
    pub fn new(out: impl Into<PathBuf>) -> Self {
        Self { out: out.into(), shard: Shard::WHOLE, command: Vec::new() }
    }
}

/// The reference model of objectives that use one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReferenceModel {
    /// The policy is its own reference, as at the start of training.
    Itself,
    /// The model without its adapter.
    Base,
    /// Of a sweep: the model that the run was trained from.
    Start,
    /// The model of a folder.
    Folder(PathBuf),
    /// A model whose weights another library holds in memory.
    Held(Arc<HeldModel>),
}
