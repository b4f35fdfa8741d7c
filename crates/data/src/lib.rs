//! Preference data: from the files that the field uses to token ids that a model can take.
//!
//! [`Dataset::read`] finds the files of a data set, reads rows in any of the usual formats and layouts one after another
//! ([`parse_row`]), renders chats with the model's own template, tokenises them as a trainer does ([`Recipe`]), checks every row against
//! the model's limits, and keeps what is usable on the disk, so that a data set may be larger than memory.
mod dataset;
mod error;
mod files;
mod guard;
mod layout;
mod preference;
mod recipe;
mod remark;
mod rows;
mod spool;
mod template;
mod tokenizer;
mod tokens;

pub use dataset::{Candidates, Dataset, Limits, Pair, Reading, Sample, Skipped};
pub use error::{Error, Result};
pub use files::wanted;
pub use layout::Mapping;
pub use preference::{Form, Message, Preference, Row, Setting, parse_row};
pub use recipe::{AssistantLast, Eos, ImplicitPrompt, Join, Recipe, RecipeName, Truncate};
pub use spool::Pairs;
pub use template::ChatTemplate;
pub use tokenizer::{TextTokens, has_tokenizer};
pub use tokens::{Cut, PairTokens, Tokens, Unusable};
