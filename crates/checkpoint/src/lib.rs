//! Checkpoints as files have them: names, shapes and values of tensors, in every format that trainers leave, plain or quantised.
//!
//! ```text
//! folder → files → tensors by name → values in the number type and the order that a model keeps
//! ```
//!
//! Files are not trusted: nothing in them is run, and what is not understood is named.
mod error;
mod gguf;
mod hash;
mod layout;
mod number;
mod optimizer;
mod quantised;
mod stored;
mod tensors;
mod torch;

pub use error::{Error, Result, brief};
pub use gguf::GgufTokenizer;
pub use hash::{file_hash, hex, text_hash};
pub use layout::Layout;
pub use number::{Float, Number};
pub use optimizer::{AdamGroup, SecondMoments};
pub use quantised::Codes;
pub use stored::{Held, Stored};
pub use tensors::{Tensors, file_names, gguf_config, gguf_tokenizer, shards};
