//! Tanglescope measures *gradient entanglement* in preference-tuned language models: for every preference pair, how the
//! gradients of log π(chosen) and log π(rejected) pull on each other, and what every margin-based objective would therefore do
//! to both probabilities (Yuan et al., ICLR 2025, arXiv 2410.13828).
//!
//! | call | what it does |
//! |---|---|
//! | [`analyze()`] | log-probabilities and inner products of every pair |
//! | [`inspect()`] | what a folder is, and what of it can be measured |
//! | [`tokens()`] | inner products of the gradients of single response tokens |
//! | [`interference()`] | inner products of the gradients of different pairs |
//! | [`sweep()`] | every checkpoint of runs on data sets |
//! | [`train()`] | training on any objective, with every step's entanglement |
//! | [`summarize()`] | what records amount to, as one table |
//! | [`report()`] | one page for everything that records hold |
//! | [`watch()`] | the same, shown while the records are written |
//! | [`verify()`] | gradients and steps against differences, on your own model and data |
//! | [`bench()`] | how fast this machine is at it |
//! | [`devices()`] | what it can run on |
//!
//! Every call takes options, typed and with the defaults of the command line, and a [`Listener`] that is told how far it is, what
//! it left out and what it fell back to; `&()` listens to nothing. Nothing is printed. Results are folders of parquet tables
//! (docs/formats.md), which a call that is killed goes on with, and are returned as data frames.
//!
//! ```
//! use tanglescope::{AnalyzeOptions, DataOptions, ModelOptions, RowOptions, analyze};
//!
//! # let demo = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("demo");
//! # let folder = tempfile::tempdir()?;
//! # let out = folder.path().join("out");
//! // a Hugging Face folder, pairs of texts, and where the results go
//! let rows = RowOptions { limit: Some(3), ..RowOptions::default() };
//! let data = DataOptions { rows, ..DataOptions::new(demo.join("single.jsonl")) };
//! let found = analyze(&AnalyzeOptions::new(ModelOptions::new(&demo), data, out), &())?;
//!
//! let pairs = found.records.pairs()?;
//! let cosine = pairs.column("cosine")?.f64()?;
//! assert_eq!(cosine.len(), 3);
//! assert!(cosine.iter().flatten().all(|cosine| (-1.0..=1.0).contains(&cosine)));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
mod analyze;
mod bench;
mod crew;
mod data;
mod device;
mod error;
mod estimate;
mod folder;
mod inspect;
mod interference;
mod listener;
mod loaded;
mod measure;
mod metric;
mod model;
mod options;
mod placement;
mod rates;
mod records;
mod reference;
mod report;
mod rows;
mod shard;
mod summarize;
mod sweep;
mod token_rows;
mod tokens;
mod train;
mod verify;
mod watch;

pub use analyze::{Analysis, AnalyzeOptions, analyze};
pub use bench::{BenchOptions, BenchReport, KernelTime, PassTime, ShapeName, bench};
pub use device::{DeviceName, DeviceReport, Devices, Numbers, Precision, device_in_use, devices};
pub use error::{Error, Result};
pub use estimate::Estimate;
pub use inspect::{AdapterFound, Inspection, ModelFound, PairCost, RunFound, inspect};
pub use interference::{
    Batches, BetweenMeasures, Interference, InterferenceEstimate, InterferenceOptions, interference,
};
pub use listener::{Amount, Listener};
pub use loaded::{LoadedModel, ResponseGram};
pub use metric::MetricChoice;
pub use options::{
    DataOptions, Derivative, Destination, Measured, ModelOptions, ObjectiveChoice, PairMeasures, ReferenceModel,
    RowOptions, TokenMeasures,
};
pub use placement::Placement;
pub use records::Folder;
pub use report::{ReportFormat, ReportOptions, report};
pub use rows::{Lengths, RowToken, RowTokens, Rows, RowsOptions, rows};
pub use shard::Shard;
pub use summarize::{SummarizeOptions, SummaryBy, SummaryKind, summarize};
pub use sweep::{
    KeptModels, RunFolder, SweepEstimate, SweepOptions, SweepOutcome, checkpoints, named, sweep, sweep_keeping,
};
pub use token_rows::TokenRows;
pub use tokens::{TokenProducts, TokensEstimate, TokensOptions, tokens};
pub use train::{TrainEstimate, TrainOptions, TrainOutcome, train};
pub use verify::{Check, Verification, VerifyOptions, verify};
pub use watch::{WatchOptions, watch};

pub use chrono::NaiveDate;
pub use polars_core::prelude::DataFrame;
pub use tanglescope_analytics::{Shares, Spectrum, Summary};
pub use tanglescope_data::{AssistantLast, Eos, ImplicitPrompt, Join, Mapping, Recipe, RecipeName, Truncate};
pub use tanglescope_model::{HeldModel, Scope, Stop};
pub use tanglescope_objectives::{GroupObjective, Objective};
pub use tanglescope_records::Schedule;
