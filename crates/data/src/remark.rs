//! What the user of a data set should know of rows that can be used.
use crate::recipe::{AssistantLast, Join};

/// Something about a row.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Remark {
    /// Its prompt is cut.
    PromptCut,
    /// A response is cut.
    ResponseCut,
    /// Its ids are taken as they are, though they are longer than the recipe's limit.
    LongIds(usize),
    /// It has texts beside ids.
    IdsBesideText,
    /// Its prompt ends with the assistant's turn.
    AssistantLast(AssistantLast),
    /// The prompt by itself has other tokens at its end than before a response.
    Boundary(Join),
    /// The prompt shares no token with the texts, all of which begin with the same one.
    FirstToken,
    /// The prompt shares no token with the texts, which begin with several.
    NothingShared,
    /// The recipe ends responses with EOS, and nothing names it.
    NoEos,
    /// The template writes the day.
    Date,
    /// Contents in parts became text, for a template that reads text.
    PartsJoined,
    /// Contents that are text became parts, for a template that reads parts.
    TextInParts,
    /// A column that trainers use, and that is not read.
    Unread(String),
}

impl Remark {
    /// It, of so many rows, the first of which has a number.
    pub(crate) fn of_rows(&self, rows: usize, first: u64) -> String {
        let of = match rows {
            1 => format!("row {first}:"),
            _ => format!("{rows} rows, the first of them {first}:"),
        };
        match self {
            Self::PromptCut => format!("{of} the prompt was cut on the left"),
            Self::ResponseCut => format!("{of} a response was cut at its end"),
            Self::LongIds(most) => {
                format!(
                    "{of} ids are taken as they are, longer than the recipe's {most}; option `max_length` cuts them"
                )
            }
            Self::IdsBesideText => format!("{of} token ids and text; the ids are used"),
            Self::AssistantLast(how) => {
                let what = match how {
                    AssistantLast::NewTurn => "a new turn of the assistant follows, as in TRL 1",
                    AssistantLast::Continue => "the response goes on with it",
                    AssistantLast::Open => "what closes it is scored with the response, as in TRL before 0.29",
                };
                format!("{of} the prompt ends with the assistant: {what} (option `assistant_last`)")
            }
            Self::Boundary(Join::TogetherByLength | Join::WithoutPadding) => format!(
                "{of} the prompt's last tokens are not those that it has before a response; they stand before it all the same"
            ),
            Self::Boundary(_) => format!(
                "{of} the prompt's last tokens are not those that it has before a response; the response begins where they part"
            ),
            Self::FirstToken => format!(
                "{of} prompt and response begin with one token of both, which nothing predicts; it is not scored, as in TRL"
            ),
            Self::NothingShared => format!(
                "{of} the first token of prompt and response depends on the response; they are tokenised apart (TRL leaves it unscored)"
            ),
            Self::NoEos => format!(
                "{of} responses end without EOS, which neither tokenizer_config.json, special_tokens_map.json nor config.json names"
            ),
            Self::Date => {
                "the chat template writes today's date, so tokens differ tomorrow; option `date` pins it".to_owned()
            }
            Self::PartsJoined => format!("{of} contents in parts were joined to text, which the chat template reads"),
            Self::TextInParts => format!("{of} contents became lists of one text part, which the chat template reads"),
            Self::Unread(column) => format!("column `{column}` is not read"),
        }
    }
}
