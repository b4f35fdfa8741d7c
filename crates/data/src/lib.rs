//! Preference data: from the files that the field uses to token ids that a model can take.
//!
//! [`Dataset::read`] reads JSONL rows in any of the usual forms ([`Preference`]), renders chats with the model's own
//! template, tokenises prompt and response apart, and checks every row against the model's limits.
mod dataset;
mod error;
mod preference;
mod rows;
mod template;
mod tokens;

pub use dataset::{Dataset, Limits, Pair, Reading, Sample, Skipped};
pub use error::{Error, Result};
pub use preference::{Form, Message, Preference, parse_row};
pub use template::ChatTemplate;
pub use tokens::{PairTokens, TextTokens};
