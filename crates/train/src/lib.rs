//! Training on any objective, with the engine's one backward pass: the update is `Σ_pairs d_w g_w − d_l g_l`, and the Gram of
//! every pair comes from the same pass (docs/mathematics.md, section 8).
//!
//! A [`Trainer`] takes [`step`](Trainer::step)s, says what it sees on the way as [`PairStep`](tanglescope_records::tables::training::PairStep)s and [`Prediction`](tanglescope_records::tables::training::Prediction)s of
//! `tanglescope_records`, and saves and resumes [`checkpoint`]s, on the CPU to the bit.
pub mod checkpoint;
mod error;
mod log;
mod masks;
mod optimizer;
mod order;
mod signal;
mod trainer;

pub use error::{Error, Result};
pub use log::StepLog;
pub use order::batches_of_epoch;
pub use signal::{Example, Reference};
pub use trainer::{Step, StepPlan, Trainer};
