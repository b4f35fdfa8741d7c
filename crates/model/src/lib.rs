//! The models that Tanglescope measures: Hugging Face configs and weights, LoRA adapters, and a decoder whose layers
//! carry their own vector–Jacobian products.
//!
//! A [`Decoder`] runs one forward pass over the rows of a batch and one backward pass for many cotangents, and delivers
//! what it finds at each parameter to a [`Sink`].
pub mod adapter;
pub mod architectures;
mod assemble;
mod config;
mod decoder;
mod error;
pub mod layers;
mod load;
mod needs;
mod outline;
mod parameters;
mod residency;
mod rope;
mod save;
mod scope;
mod sink;
mod stop;
mod tables;
mod weights;

pub use adapter::{
    AdapterSource, FreshLora, LowRank, OwnTokens, TablesOutline, adapter_hash, adapter_kinds, base_name, base_named_by,
};
pub use architectures::Reads;
pub use config::{Config, MOST_LAYERS};
pub use decoder::{Decoder, ForwardRows, Keep, LogitPart, TokensPredicted, Trace};
pub use error::{Error, Result};
pub use layers::{BackwardRows, Choices, ColumnNorms};
pub use needs::{BlockNeeds, LayerNeeds, Needs};
pub use outline::{Map, Outline, Values};
pub use parameters::NamedVisitor;
pub use residency::{Places, stopped_by};
pub use rope::Rope;
pub use save::{read_all_tensors, read_tensors, write_tensors};
pub use scope::{InScope, Location, Parameter, ParameterKind, Scope};
pub use sink::{Embedding, Factor, HeadRows, Predictions, Scores, Sink, TableRows};
pub use stop::{Stop, Stopped};
pub use weights::{HeldModel, bytes_per_value, content_hash};
