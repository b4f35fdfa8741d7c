//! How texts become the tokens that a trainer makes of them: named recipes, each a small value.
//!
//! | recipe | source |
//! |---|---|
//! | `trl` | TRL 1.10 to 1.16, `DPOTrainer._prepare_dataset` and `DataCollatorForPreference` |
//! | `trl-0.29` | TRL 0.29 to 1.9, the same functions |
//! | `trl-0.24` | TRL 0.13 to 0.24, `DPOTrainer.tokenize_row` and `data_utils.maybe_apply_chat_template` |
//! | `openrlhf` | OpenRLHF 0.9, `openrlhf/datasets/reward_dataset.py` with `is_dpo` |
//! | `llama-factory` | LLaMA-Factory 0.9, `data/processor/pairwise.py` and `processor_utils.infer_seqlen` |
//! | `official` | Understand_MarginPO, `analysis/grad_plot.py`, whose prompts are as long as their ids that are not padding |
//! | `apart` | prompt and response by themselves, nothing added, nothing cut |
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::fmt;
use std::str::FromStr;

/// A choice of a recipe's: an enum whose values have the names that users write.
macro_rules! choice {
    ($(#[$doc:meta])* $choice:ident { $($(#[$of:meta])* $name:literal => $value:ident),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
        pub enum $choice {
            $($(#[$of])* #[serde(rename = $name)] $value),+
        }

        impl $choice {
            /// What its values are called.
            pub const NAMES: &[&str] = &[$($name),+];
        }

        impl FromStr for $choice {
            type Err = String;

            fn from_str(text: &str) -> Result<Self, String> {
                match text {
                    $($name => Ok(Self::$value),)+
                    other => Err(format!("found `{other}`, expected one of {}", Self::NAMES.join(", "))),
                }
            }
        }
    };
}

choice!(
    /// Whether a response is tokenised by itself.
    Join {
        /// Prompt and response are one text; the prompt is the shortest common token prefix of itself with each of them.
        "together" => Together,
        /// Prompt and response are one text; the prompt is as many tokens as it has by itself.
        "together-by-length" => TogetherByLength,
        /// As together-by-length, with the slip of the published analysis script: padding tokens of the prompt are not counted, so
        /// that the response begins as many tokens early as the prompt has of them.
        "without-padding" => WithoutPadding,
        /// The response is a text of its own.
        "apart" => Apart,
    }
);

choice!(
    /// What ends a response.
    Eos {
        /// Of plain text: the text of EOS, where it does not end with it.
        "text" => Text,
        /// Line ends at its end are taken away; then a space and the text of EOS, where it does not end with it. Its last token is
        /// EOS even where it is cut.
        "spaced-text" => SpacedText,
        /// Of plain text: the id of EOS, where it does not end with it.
        "id" => Id,
        /// The id of EOS, always: chats have it a second time.
        "always" => Always,
        /// Nothing.
        "none" => None,
    }
);

choice!(
    /// Which end of a row that is too long is cut.
    Truncate {
        /// The end of each response; a row whose prompt leaves no room for one is dropped.
        "response" => Response,
        /// The beginning of the prompt.
        "prompt" => Prompt,
        /// The ends of prompt and responses, in proportion.
        "both" => Both,
        /// None: the row is bad.
        "refuse" => Refuse,
    }
);

choice!(
    /// Where plain texts without a prompt are split.
    ImplicitPrompt {
        /// After the characters that both have in common; before a space at their end.
        "shared" => Shared,
        /// After the last `\n\nAssistant:` in common.
        "dialogue" => Dialogue,
    }
);

choice!(
    /// What follows a prompt of messages whose last is the assistant's.
    AssistantLast {
        /// A new turn of the assistant's.
        "new-turn" => NewTurn,
        /// The rest of that turn.
        "continue" => Continue,
        /// What closes that turn, and then a new one, all of which is scored.
        "open" => Open,
    }
);

choice!(
    /// A recipe by name.
    RecipeName {
        /// TRL since 1.10.
        "trl" => Trl,
        /// TRL from 0.29 to 1.9.
        "trl-0.29" => Trl029,
        /// TRL from 0.13 to 0.24.
        "trl-0.24" => Trl024,
        /// OpenRLHF.
        "openrlhf" => OpenRlhf,
        /// LLaMA-Factory, with the tokenizer's own chat template.
        "llama-factory" => LlamaFactory,
        /// The published analysis script, with its slip.
        "official" => Official,
        /// Prompt and response by themselves.
        "apart" => Apart,
    }
);

/// How texts become tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recipe {
    /// Whether a response is tokenised by itself.
    pub join: Join,
    /// What ends a response.
    pub eos: Eos,
    /// Whether plain text gets the special tokens that the tokenizer puts around one.
    pub add_special_tokens: bool,
    /// Where rows without a prompt are split.
    pub implicit_prompt: ImplicitPrompt,
    /// What follows a prompt that ends with the assistant.
    pub assistant_last: AssistantLast,
    /// Most tokens of a prompt: it loses the others on the left.
    pub max_prompt_length: Option<usize>,
    /// Most tokens of prompt and response together.
    pub max_length: Option<usize>,
    /// What is cut of more.
    pub truncate: Truncate,
}

impl RecipeName {
    /// What it does.
    #[must_use]
    pub const fn recipe(self) -> Recipe {
        const TRL: Recipe = Recipe {
            join: Join::Together,
            eos: Eos::Text,
            add_special_tokens: true,
            implicit_prompt: ImplicitPrompt::Shared,
            assistant_last: AssistantLast::NewTurn,
            max_prompt_length: None,
            max_length: Some(1024),
            truncate: Truncate::Response,
        };
        match self {
            Self::Trl => TRL,
            Self::Trl029 => Recipe { join: Join::TogetherByLength, ..TRL },
            Self::Trl024 => Recipe {
                join: Join::Apart,
                eos: Eos::Always,
                add_special_tokens: false,
                assistant_last: AssistantLast::Open,
                max_prompt_length: Some(512),
                truncate: Truncate::Prompt,
                ..TRL
            },
            Self::OpenRlhf => Recipe {
                join: Join::TogetherByLength,
                eos: Eos::SpacedText,
                add_special_tokens: false,
                max_length: Some(512),
                ..TRL
            },
            Self::LlamaFactory => Recipe {
                join: Join::Apart,
                eos: Eos::None,
                add_special_tokens: false,
                max_length: Some(2048),
                truncate: Truncate::Both,
                ..TRL
            },
            Self::Official => Recipe {
                join: Join::WithoutPadding,
                eos: Eos::None,
                max_length: None,
                truncate: Truncate::Refuse,
                ..TRL
            },
            Self::Apart => Recipe {
                join: Join::Apart,
                eos: Eos::None,
                implicit_prompt: ImplicitPrompt::Dialogue,
                max_length: None,
                truncate: Truncate::Refuse,
                ..TRL
            },
        }
    }
}

impl Recipe {
    /// Every choice in it, as `name=value,…`.
    #[must_use]
    pub fn settings(&self) -> String {
        let choices = serde_json::to_value(self).unwrap_or_default();
        let setting = |(name, value): (&String, &Value)| match value {
            Value::String(value) => format!("{name}={value}"),
            Value::Null => format!("{name}=none"),
            value => format!("{name}={value}"),
        };
        choices.as_object().into_iter().flatten().map(setting).collect::<Vec<_>>().join(",")
    }
}

impl Default for Recipe {
    fn default() -> Self {
        RecipeName::Trl.recipe()
    }
}

impl fmt::Display for Recipe {
    /// In words, for those who wonder what they measured.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named = |name: &&&str| name.parse::<RecipeName>().is_ok_and(|of| of.recipe() == *self);
        let name = RecipeName::NAMES.iter().find(named).copied().unwrap_or("own");
        let join = match self.join {
            Join::Together => "prompt and response together",
            Join::TogetherByLength => "prompt and response together, split at the prompt's length",
            Join::WithoutPadding => "prompt and response together, split at the prompt's length without padding tokens",
            Join::Apart => "prompt and response apart",
        };
        let eos = match self.eos {
            Eos::Text => "EOS text after plain responses",
            Eos::SpacedText => "a space and EOS text after responses",
            Eos::Id => "EOS after plain responses",
            Eos::Always => "EOS after every response",
            Eos::None => "no EOS added",
        };
        write!(f, "{name}: {join}, {eos}")?;
        if let Some(most) = self.max_prompt_length {
            write!(f, ", prompts cut to {most} tokens")?;
        }
        let Some(most) = self.max_length else { return write!(f, ", no limit") };
        match self.truncate {
            Truncate::Response => write!(f, ", responses cut at {most} tokens"),
            Truncate::Prompt => write!(f, ", prompts cut so that {most} tokens remain"),
            Truncate::Both => write!(f, ", prompts and responses cut to {most} tokens"),
            Truncate::Refuse => write!(f, ", at most {most} tokens"),
        }
    }
}
