//! From preferences to token ids, by a recipe.
use crate::preference::{Message, Preference, Setting};
use crate::recipe::{AssistantLast, Eos, Join, Recipe, Truncate};
use crate::remark::Remark;
use crate::tokenizer::TextTokens;

/// Prompt and responses as ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tokens {
    /// Tokens before the response.
    pub prompt: Vec<u32>,
    /// Tokens of each response.
    pub responses: Vec<Vec<u32>>,
    /// What a limit on lengths took away.
    pub cut: Cut,
    /// What its user should know.
    pub(crate) remarks: Vec<Remark>,
}

/// Tokens that a row lost to a limit on lengths.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Cut {
    /// Of the prompt.
    pub prompt: usize,
    /// Of each response.
    pub responses: Vec<usize>,
}

/// Prompt, preferred response and another as ids.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct PairTokens {
    /// Tokens before the response.
    pub prompt: Vec<u32>,
    /// Tokens of the preferred response.
    pub chosen: Vec<u32>,
    /// Tokens of the other response.
    pub rejected: Vec<u32>,
}

impl Tokens {
    /// Ids of which nothing is taken away.
    pub(crate) fn uncut(prompt: Vec<u32>, responses: Vec<Vec<u32>>, remarks: Vec<Remark>) -> Self {
        let cut = Cut { prompt: 0, responses: vec![0; responses.len()] };
        Self { prompt, responses, cut, remarks }
    }
}

/// Why a row has no tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unusable {
    /// The recipe leaves it out, as its trainer does.
    Dropped(String),
    /// It is malformed.
    Bad(String),
}

impl From<String> for Unusable {
    fn from(problem: String) -> Self {
        Self::Bad(problem)
    }
}

/// The row's texts: a prompt, and each response after it.
struct Texts {
    prompt: String,
    /// Prompt and response as one text.
    whole: Vec<String>,
    /// Whether the tokenizer's special tokens may be put around them.
    plain: bool,
    remarks: Vec<Remark>,
}

impl Recipe {
    /// The tokens of a row.
    ///
    /// # Errors
    /// Says what cannot be tokenised, and why, or that the row is left out.
    pub fn tokens(&self, row: &Preference, setting: &Setting, of: &TextTokens) -> Result<Tokens, Unusable> {
        let texts = match row {
            Preference::Ids { prompt, responses } => {
                return Ok(Tokens::uncut(prompt.clone(), responses.clone(), Vec::new()));
            }
            Preference::Text { prompt, responses } => Texts {
                prompt: prompt.clone(),
                whole: responses.iter().map(|response| format!("{prompt}{response}")).collect(),
                plain: true,
                remarks: Vec::new(),
            },
            Preference::Chat { prompt, responses } => self.rendered(prompt, responses, setting, of)?,
        };
        let tokens = self.joined(texts, of)?;
        self.cut(tokens, of.eos())
    }

    /// A chat's texts by the model's template.
    fn rendered(
        &self,
        prompt: &[Message],
        responses: &[Vec<Message>],
        setting: &Setting,
        of: &TextTokens,
    ) -> Result<Texts, String> {
        let template = of.template().ok_or(
            "the row is a chat, and the model has no chat template (chat_template.jinja, or `chat_template` in \
             tokenizer_config.json)",
        )?;
        let mut remarks = Vec::new();
        let mut prepare = |turns: &[Message]| template.prepared(turns, &mut remarks);
        let (prompt, mut responses) =
            (prepare(prompt)?, responses.iter().map(|turns| prepare(turns)).collect::<Result<Vec<_>, _>>()?);
        let assistant_last = prompt.last().and_then(|m| m.get("role")).is_some_and(|role| role == "assistant");
        let mut before = prompt.as_slice();
        if assistant_last {
            remarks.push(Remark::AssistantLast(self.assistant_last));
            if self.assistant_last == AssistantLast::Continue {
                let last = prompt.len() - 1;
                before = &prompt[..last];
                responses = responses.iter().map(|turns| continued(&prompt[last], turns)).collect::<Result<_, _>>()?;
            }
        }
        if template.reads_date() {
            remarks.push(Remark::Date);
        }
        let whole: Vec<String> = responses
            .iter()
            .map(|turns| template.render(&[before, turns].concat(), false, setting))
            .collect::<Result<_, _>>()?;
        let opening = !assistant_last || self.assistant_last == AssistantLast::NewTurn;
        let prompt = match (opening, self.join) {
            // compared by tokens
            (true, Join::Together | Join::TogetherByLength | Join::WithoutPadding) => {
                template.render(&prompt, true, setting)?
            }
            // a template may write the prompt by itself differently
            (true, Join::Apart) => shared_start(&template.render(&prompt, true, setting)?, &whole),
            (false, _) => shared_start(&template.render_open(&prompt, setting)?, &whole),
        };
        if prompt.is_empty() {
            return Err("the chat template writes nothing of the prompt before the response".to_owned());
        }
        Ok(Texts { prompt, whole, plain: false, remarks })
    }

    /// Texts as ids, with EOS where the recipe has it.
    fn joined(&self, texts: Texts, of: &TextTokens) -> Result<Tokens, String> {
        let Texts { prompt, mut whole, plain, mut remarks } = texts;
        let eos = match (self.eos, plain, of.eos()) {
            (Eos::None, ..) | (Eos::Text | Eos::Id, false, _) => None,
            (_, _, Some(eos)) => Some(eos),
            (Eos::Text, _, None) => {
                remarks.push(Remark::NoEos);
                None
            }
            (Eos::SpacedText | Eos::Id | Eos::Always, _, None) => {
                return Err("neither tokenizer_config.json, special_tokens_map.json nor config.json names EOS, which option `eos` puts \
                            at the end of responses; option `eos` = none leaves it out"
                    .to_owned());
            }
        };
        if let Some((text, _)) = eos {
            for whole in &mut whole {
                if self.eos == Eos::SpacedText {
                    whole.truncate(whole.trim_end_matches('\n').len());
                }
                let space = if self.eos == Eos::SpacedText { " " } else { "" };
                if matches!(self.eos, Eos::Text | Eos::SpacedText) && !whole.ends_with(text) {
                    whole.push_str(space);
                    whole.push_str(text);
                }
            }
        }
        let special = plain && self.add_special_tokens;
        let (prompt_ids, mut responses) = match self.join {
            Join::Apart => apart(&prompt, &whole, special, of)?,
            Join::Together | Join::TogetherByLength | Join::WithoutPadding => {
                let mut prompt_ids = of.encode(&prompt, special)?;
                let texts = whole;
                let whole: Vec<Vec<u32>> =
                    texts.iter().map(|text| of.encode(text, special)).collect::<Result<_, _>>()?;
                let shared = whole.iter().map(|ids| common(&prompt_ids, ids)).min().unwrap_or(0);
                if shared < prompt_ids.len() && (shared > 0 || self.join != Join::Together) {
                    remarks.push(Remark::Boundary(self.join));
                }
                if self.join == Join::WithoutPadding {
                    let padding = of
                        .pad()
                        .ok_or("nothing names pad_token, whose tokens `join` = without-padding does not count")?;
                    let counted = prompt_ids.iter().filter(|id| **id != padding).count();
                    prompt_ids.truncate(counted);
                }
                // where the prompt ends in other tokens than the texts, those of the prompt stay, and so many of the texts go
                let by_length = self.join != Join::Together;
                let at = if by_length { prompt_ids.len() } else { shared };
                let first = whole.first().and_then(|ids| ids.first().copied());
                if at > 0 {
                    let responses = whole.iter().map(|ids| ids.get(at..).unwrap_or_default().to_vec()).collect();
                    (prompt_ids[..at].to_vec(), responses)
                } else if whole.iter().all(|ids| ids.first().copied() == first) {
                    // nothing predicts the first token of a sequence
                    remarks.push(Remark::FirstToken);
                    let responses = whole.iter().map(|ids| ids.get(1..).unwrap_or_default().to_vec()).collect();
                    (first.into_iter().collect(), responses)
                } else {
                    remarks.push(Remark::NothingShared);
                    apart(&prompt, &texts, special, of)?
                }
            }
        };
        if let (Some((_, id)), Eos::Always | Eos::Id) = (eos, self.eos) {
            for ids in &mut responses {
                if self.eos == Eos::Always || ids.last() != Some(&id) {
                    ids.push(id);
                }
            }
        }
        Ok(Tokens::uncut(prompt_ids, responses, remarks))
    }

    /// Cuts what is longer than the recipe allows.
    pub(crate) fn cut(&self, mut tokens: Tokens, eos: Option<(&str, u32)>) -> Result<Tokens, Unusable> {
        let lose = |tokens: &mut Tokens, n: usize| {
            tokens.cut.prompt += n;
            tokens.prompt.drain(..n);
        };
        let excess = tokens.prompt.len().saturating_sub(self.max_prompt_length.unwrap_or(usize::MAX));
        lose(&mut tokens, excess);
        let Some(most) = self.max_length else { return Ok(tokens) };
        let prompt = tokens.prompt.len();
        let longest = tokens.responses.iter().map(Vec::len).max().unwrap_or(0);
        // OpenRLHF leaves a prompt out that has no two tokens of a response after it
        let room = if self.eos == Eos::SpacedText { 3 } else { 1 };
        if self.truncate == Truncate::Response && prompt + room > most {
            return Err(Unusable::Dropped(format!("the prompt alone has {prompt} tokens, and `max_length` is {most}")));
        }
        let total = prompt + longest;
        if total <= most {
            return Ok(tokens);
        }
        let problem = || format!("prompt and response have {total} tokens, more than option `max_length` = {most}");
        let keep = match self.truncate {
            Truncate::Refuse => {
                let cuts = "option `truncate` = response or prompt cuts them";
                return Err(Unusable::Bad(format!("{}; {cuts}", problem())));
            }
            Truncate::Prompt if longest >= most => {
                return Err(Unusable::Bad(format!(
                    "{}, and the response alone leaves no room for a prompt",
                    problem()
                )));
            }
            Truncate::Prompt => {
                lose(&mut tokens, total - most);
                longest
            }
            Truncate::Response => most - prompt,
            Truncate::Both => {
                let (prompt_kept, kept) = in_proportion(prompt, longest, most);
                if prompt_kept == 0 {
                    return Err(Unusable::Bad(format!("{}, which leaves no prompt", problem())));
                }
                tokens.cut.prompt += prompt - prompt_kept;
                tokens.prompt.truncate(prompt_kept);
                kept
            }
        };
        for (ids, lost) in tokens.responses.iter_mut().zip(&mut tokens.cut.responses) {
            *lost = ids.len().saturating_sub(keep);
            ids.truncate(keep);
            if let (true, Eos::SpacedText, Some((_, eos)), Some(last)) = (*lost > 0, self.eos, eos, ids.last_mut()) {
                *last = eos;
            }
        }
        Ok(tokens)
    }
}

/// Ids of a prompt and of what follows it in each text, each by itself.
fn apart(prompt: &str, whole: &[String], special: bool, of: &TextTokens) -> Result<(Vec<u32>, Vec<Vec<u32>>), String> {
    let (prompt_ids, closing) =
        if special { of.encode_prompt(prompt)? } else { (of.encode(prompt, false)?, Vec::new()) };
    let response = |whole: &String| -> Result<Vec<u32>, String> {
        let mut ids = of.encode(whole.strip_prefix(prompt).unwrap_or_default(), false)?;
        if !ids.is_empty() && !ids.ends_with(&closing) {
            ids.extend(&closing);
        }
        Ok(ids)
    };
    Ok((prompt_ids, whole.iter().map(response).collect::<Result<_, _>>()?))
}

/// LLaMA-Factory's `infer_seqlen`: tokens that stay of a prompt and of its longest response.
fn in_proportion(prompt: usize, response: usize, most: usize) -> (usize, usize) {
    let response_most = if response * 2 < most {
        most
    } else if prompt * 2 < most {
        most - prompt
    } else {
        // as Python rounds it
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let share = (most as f64 * (response as f64 / (prompt + response) as f64)) as usize;
        share
    };
    let response = response.min(response_most);
    (prompt.min(most - response), response)
}

/// How many ids two sequences begin with alike.
fn common(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// The characters that a text and all others begin with alike.
fn shared_start(text: &str, others: &[String]) -> String {
    let alike = |other: &String| -> usize {
        text.chars().zip(other.chars()).take_while(|(a, b)| a == b).map(|(c, _)| c.len_utf8()).sum()
    };
    text[..others.iter().map(alike).min().unwrap_or(text.len())].to_owned()
}

/// An assistant's turn with the text of a response at its end.
fn continued(turn: &Message, response: &[Message]) -> Result<Vec<Message>, String> {
    let text = |of: &Message| of.get("content").and_then(|content| content.as_str()).map(str::to_owned);
    let [first, rest @ ..] = response else { return Err("a response has no turn".to_owned()) };
    match (text(turn), text(first)) {
        (Some(start), Some(end)) => {
            let mut whole = turn.clone();
            whole.insert("content".to_owned(), format!("{start}{end}").into());
            Ok(std::iter::once(whole).chain(rest.iter().cloned()).collect())
        }
        _ => Err("an assistant's turn that goes on (option `assistant_last` = continue) has to be text".to_owned()),
    }
}
