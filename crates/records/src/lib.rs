//! What Tanglescope's folders hold: which manifests say what they were made from, which tables are in them, how a file is
//! written whole or not at all, and how records are found (docs/formats.md).
//!
//! Writers and readers of a folder both go through the types of this crate, so that a field that one of them renames does not
//! compile in the other. Nothing here computes with a model.
mod error;
mod find;
pub mod identity;
mod lock;
pub mod manifest;
mod parts;
mod settings;
pub mod tables;
mod whole;

pub use error::{Error, Result};
pub use find::{Leaf, Records, absolute, find, find_some, folders_with, tell_apart};
pub use identity::{Difference, Identity};
pub use lock::{lock, lock_file, wait_for_lock};
pub use manifest::{AnalysisManifest, Manifest, SweepManifest, TrainingManifest};
pub use parts::{Table, batches};
pub use settings::{Schedule, Settings};
pub use whole::{write_whole, write_with};
