//! The columns that data sets of the field have, recognised and brought to the usual ones: `prompt`, `chosen`, `rejected`, or
//! `prompt`, `responses`, `scores`.
use crate::error::{Error, Result};
use serde_json::{Map, Value, json};
use std::collections::HashSet;
use std::path::Path;

/// A way to write preferences that is known by its columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    /// `prompt`, `chosen`, `rejected`, or ids, or `responses`; whole dialogues; whatever is not recognised.
    Usual,
    /// OpenAI's comparisons of summaries: `info.post`, `summaries`, `choice`.
    Comparisons,
    /// UltraFeedback as it was collected: `instruction` and `completions` with scores.
    UltraFeedback,
    /// HelpSteer's preferences: `response_1`, `response_2`, `preference_strength`, or `overall_preference` after a `context`.
    HelpSteerPreference,
    /// HelpSteer's ratings: a `response` and its `helpfulness` a row, joined by prompt.
    HelpSteer,
    /// Stanford Human Preferences: `history`, `human_ref_A`, `human_ref_B`, `labels`.
    Shp,
    /// PKU-SafeRLHF: `response_0`, `response_1`, `better_response_id`.
    SafeRlhf,
    /// Nectar: `answers` with ranks.
    Nectar,
    /// KTO's labels: a `completion` and its `label` a row, joined by prompt.
    Kto,
    /// LLaMA-Factory's ShareGPT: `conversations` before `chosen` and `rejected`.
    ShareGpt,
    /// Alpaca with preferences: `instruction`, `input`, `history`, `system`, `chosen`, `rejected`.
    Alpaca,
    /// Orca's DPO pairs: `system`, `question` or `input`, `chosen`, `rejected`.
    Orca,
    /// axolotl's chats: `messages` before `chosen` and `rejected`.
    Messages,
    /// ms-swift: `messages`, the last of which is the chosen response, and `rejected_response` or `rejected_messages`.
    Swift,
    /// OpenAI's preference fine-tuning: `input`, `preferred_output`, `non_preferred_output`.
    OpenAi,
    /// distilabel: `instruction` or `input`, `generations` and `ratings`.
    Distilabel,
}

/// Which columns tell a layout, in the order in which they are tried.
const TOLD_BY: &[(Layout, &[&str])] = &[
    (Layout::OpenAi, &["input", "preferred_output", "non_preferred_output"]),
    (Layout::Swift, &["messages", "rejected_response"]),
    (Layout::Swift, &["messages", "rejected_messages"]),
    (Layout::ShareGpt, &["conversations", "chosen", "rejected"]),
    (Layout::Messages, &["messages", "chosen", "rejected"]),
    (Layout::Alpaca, &["instruction", "chosen", "rejected"]),
    (Layout::Orca, &["question", "chosen", "rejected"]),
    (Layout::Orca, &["input", "chosen", "rejected"]),
    (Layout::Distilabel, &["instruction", "generations", "ratings"]),
    (Layout::Distilabel, &["instruction", "generations", "rating"]),
    (Layout::Distilabel, &["input", "generations", "ratings"]),
    (Layout::Distilabel, &["input", "generations", "rating"]),
    (Layout::Comparisons, &["info", "summaries", "choice"]),
    (Layout::UltraFeedback, &["instruction", "completions"]),
    (Layout::HelpSteerPreference, &["prompt", "response_1", "response_2", "preference_strength"]),
    (Layout::HelpSteerPreference, &["context", "response1", "response2", "overall_preference"]),
    (Layout::HelpSteer, &["prompt", "response", "helpfulness"]),
    (Layout::Shp, &["history", "human_ref_A", "human_ref_B", "labels"]),
    (Layout::SafeRlhf, &["prompt", "response_0", "response_1", "better_response_id"]),
    (Layout::Nectar, &["prompt", "answers"]),
    (Layout::Kto, &["prompt", "completion", "label"]),
];

type Columns = Map<String, Value>;

impl Layout {
    /// The layout that a row's columns tell.
    pub(crate) fn of(columns: &Columns) -> Self {
        let has = |name: &str| columns.get(name).is_some_and(|value| !value.is_null());
        // a prompt beside both responses is all that is needed, and so are ids
        if has("prompt") && has("chosen") && has("rejected") || has("chosen_ids") || has("responses_ids") {
            return Self::Usual;
        }
        let told = |names: &&[&str]| names.iter().all(|name| columns.contains_key(*name));
        TOLD_BY.iter().find(|(_, names)| told(names)).map_or(Self::Usual, |(layout, _)| *layout)
    }

    /// What to call it, where it is not the usual one.
    pub(crate) fn name(self) -> Option<&'static str> {
        Some(match self {
            Self::Usual => return None,
            Self::Comparisons => "comparisons of summaries (info, summaries, choice)",
            Self::UltraFeedback => "UltraFeedback (instruction, completions with scores)",
            Self::HelpSteerPreference => "HelpSteer preferences",
            Self::HelpSteer => "HelpSteer ratings, joined by prompt",
            Self::Shp => "Stanford Human Preferences",
            Self::SafeRlhf => "PKU-SafeRLHF (better_response_id)",
            Self::Nectar => "Nectar (answers with ranks)",
            Self::Kto => "labelled completions, joined by prompt",
            Self::ShareGpt => "LLaMA-Factory's ShareGPT preferences (conversations, chosen, rejected), as chats",
            Self::Alpaca => "Alpaca preferences (instruction, input, chosen, rejected), as chats",
            Self::Orca => "Orca preferences (system, question, chosen, rejected), as chats",
            Self::Messages => "axolotl's chats (messages, chosen, rejected)",
            Self::Swift => "ms-swift's chats (messages, rejected_response)",
            Self::OpenAi => "OpenAI's preferences (input, preferred_output, non_preferred_output)",
            Self::Distilabel => "distilabel (generations with ratings)",
        })
    }

    /// Whether a row is one response, which belongs with others of its prompt.
    pub(crate) fn joins(self) -> bool {
        matches!(self, Self::HelpSteer | Self::Kto)
    }

    /// The usual columns of a row.
    ///
    /// # Errors
    /// Says which column is missing or of the wrong type.
    pub(crate) fn usual(self, mut columns: Columns) -> Result<Columns, String> {
        if self == Self::Usual {
            return Ok(columns);
        }
        let kept: Columns = KEPT.iter().filter_map(|key| Some(((*key).to_owned(), columns.remove(*key)?))).collect();
        let mut usual: Columns = match self {
            Self::Usual => Columns::new(),
            Self::Comparisons => {
                let choice = index(&columns, "choice")?;
                let summaries = list(&columns, "summaries")?.iter().map(|summary| text_at(summary, "text"));
                let info = need(&columns, "info")?;
                let post = text_at(info, "post").or_else(|_| text_at(info, "article"))?;
                let headed =
                    |key: &str, head: &str| text_at(info, key).map_or(String::new(), |t| format!("{head}{t}\n\n"));
                let (forum, title) = (headed("subreddit", "SUBREDDIT: r/"), headed("title", "TITLE: "));
                let prompt = format!("{forum}{title}POST: {post}\n\nTL;DR:");
                chosen_of(prompt, summaries.collect::<Result<_, _>>()?, choice, "choice")?
            }
            Self::UltraFeedback => {
                let completions = list(&columns, "completions")?;
                let responses = completions.iter().map(|c| text_at(c, "response")).collect::<Result<Vec<_>, _>>()?;
                let score = |c: &Value| {
                    let number = |key: &str| c.get(key).and_then(number);
                    number("overall_score")
                        .or(number("fine-grained_score"))
                        .ok_or("a completion has no `overall_score`")
                };
                let scores = completions.iter().map(score).collect::<Result<Vec<f64>, _>>()?;
                group(
                    need(&columns, "instruction")?.clone(),
                    responses.into_iter().map(Value::String).collect(),
                    &scores,
                )
            }
            Self::HelpSteerPreference => {
                let newer = columns.contains_key("context");
                let [prompt, first, second, strength] = match newer {
                    true => ["context", "response1", "response2", "overall_preference"],
                    false => ["prompt", "response_1", "response_2", "preference_strength"],
                };
                let strength_value = number_in(&columns, strength)?;
                if strength_value == 0.0 {
                    return Err(format!("`{strength}` is 0: neither response is preferred"));
                }
                let responses = [text(&columns, first)?, text(&columns, second)?];
                pair(need(&columns, prompt)?.clone(), responses, usize::from(strength_value > 0.0))
            }
            Self::Shp => {
                let better = usize::from(index(&columns, "labels")? != 1);
                pair(
                    text(&columns, "history")?.into(),
                    [text(&columns, "human_ref_A")?, text(&columns, "human_ref_B")?],
                    better,
                )
            }
            Self::SafeRlhf => {
                let better = index(&columns, "better_response_id")?;
                let responses = [text(&columns, "response_0")?, text(&columns, "response_1")?];
                chosen_of(text(&columns, "prompt")?, responses.to_vec(), better, "better_response_id")?
            }
            Self::Nectar => {
                let answers = list(&columns, "answers")?;
                let responses = answers.iter().map(|a| text_at(a, "answer")).collect::<Result<Vec<_>, _>>()?;
                let rank = |a: &Value| a.get("rank").and_then(number).ok_or("an answer has no `rank`");
                let scores: Vec<f64> = answers.iter().map(rank).collect::<Result<Vec<_>, _>>()?;
                let scores: Vec<f64> = scores.into_iter().map(|rank| -rank).collect();
                group(need(&columns, "prompt")?.clone(), responses.into_iter().map(Value::String).collect(), &scores)
            }
            Self::ShareGpt
            | Self::Messages
            | Self::Alpaca
            | Self::Orca
            | Self::Swift
            | Self::OpenAi
            | Self::Distilabel => self.of_a_trainer(&columns)?,
            Self::HelpSteer | Self::Kto => {
                return Err("is one response, which has to be joined by its prompt".to_owned());
            }
        };
        for (key, value) in kept {
            usual.entry(key).or_insert(value);
        }
        Ok(usual)
    }

    /// The usual columns of the rows that trainers and tools have as theirs.
    fn of_a_trainer(self, columns: &Columns) -> Result<Columns, String> {
        Ok(match self {
            Self::ShareGpt | Self::Messages => {
                let prompt = if self == Self::ShareGpt { "conversations" } else { "messages" };
                let [chosen, rejected] = responses(columns, "chosen", "rejected")?;
                chat(need(columns, prompt)?.clone(), chosen, rejected)
            }
            Self::Alpaca => {
                let instruction = text(columns, "instruction")?;
                let asked = match columns.get("input").and_then(Value::as_str).filter(|input| !input.is_empty()) {
                    Some(input) => format!("{instruction}\n{input}"),
                    None => instruction,
                };
                let history = columns.get("history").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
                let mut prompt = Vec::new();
                for turn in history {
                    let said = turn.as_array().map_or(&[][..], Vec::as_slice);
                    let [Some(user), Some(assistant)] = [0, 1].map(|at| said.get(at).and_then(Value::as_str)) else {
                        return Err(format!("`history` has {}, expected two texts a turn", brief(turn)));
                    };
                    prompt.push(json!({"role": "user", "content": user}));
                    prompt.push(json!({"role": "assistant", "content": assistant}));
                }
                prompt.push(json!({"role": "user", "content": asked}));
                let [chosen, rejected] = responses(columns, "chosen", "rejected")?;
                chat(prompt.into(), chosen, rejected)
            }
            Self::Orca => {
                let asked = need(columns, if columns.contains_key("question") { "question" } else { "input" })?;
                let prompt =
                    if asked.is_string() { json!([{"role": "user", "content": asked}]) } else { asked.clone() };
                let [chosen, rejected] = responses(columns, "chosen", "rejected")?;
                chat(prompt, chosen, rejected)
            }
            Self::Swift => {
                let messages = list(columns, "messages")?;
                let Some((chosen, prompt)) = messages.split_last().filter(|(_, prompt)| !prompt.is_empty()) else {
                    return Err("`messages` has no prompt and response".to_owned());
                };
                let rejected = match columns.get("rejected_response").filter(|value| !value.is_null()) {
                    Some(rejected) => rejected.clone(),
                    None => {
                        let rejected = list(columns, "rejected_messages")?;
                        let rest = if rejected.starts_with(prompt) { &rejected[prompt.len()..] } else { rejected };
                        rest.to_vec().into()
                    }
                };
                chat(prompt.to_vec().into(), json!([chosen]), as_turns(rejected))
            }
            Self::OpenAi => {
                let input = need(columns, "input")?;
                let messages = input.get("messages").cloned().ok_or("`input` has no `messages`")?;
                let [chosen, rejected] = responses(columns, "preferred_output", "non_preferred_output")?;
                let mut usual = chat(messages, chosen, rejected);
                usual.extend(input.get("tools").map(|tools| ("tools".to_owned(), tools.clone())));
                usual
            }
            Self::Distilabel => {
                let asked = if columns.contains_key("instruction") { "instruction" } else { "input" };
                let ratings = if columns.contains_key("ratings") { "ratings" } else { "rating" };
                let rated = list(columns, "generations")?.iter().zip(list(columns, ratings)?);
                // one that was not rated is no candidate
                let rated: Vec<(Value, f64)> =
                    rated.filter_map(|(text, rating)| Some((text.clone(), number(rating)?))).collect();
                let (generations, scores): (Vec<Value>, Vec<f64>) = rated.into_iter().unzip();
                group(need(columns, asked)?.clone(), generations, &scores)
            }
            _ => return Err("is of no trainer's layout".to_owned()),
        })
    }

    /// Prompt, response and score of a row that is one response.
    ///
    /// # Errors
    /// Says which column is missing or of the wrong type.
    pub(crate) fn response(self, columns: &Columns) -> Result<(Value, Value, f64), String> {
        let (response, score) = match self {
            Self::Kto => ("completion", "label"),
            _ => ("response", "helpfulness"),
        };
        let score = match need(columns, score)? {
            Value::Bool(label) => f64::from(u8::from(*label)),
            Value::String(text) if ["true", "false"].contains(&text.to_lowercase().as_str()) => {
                f64::from(u8::from(text.eq_ignore_ascii_case("true")))
            }
            _ => number_in(columns, score)?,
        };
        Ok((need(columns, "prompt")?.clone(), need(columns, response)?.clone(), score))
    }
}

/// A group in the usual columns.
pub(crate) fn group(prompt: Value, responses: Vec<Value>, scores: &[f64]) -> Columns {
    let mut columns = Columns::new();
    columns.insert("prompt".to_owned(), prompt);
    columns.insert("responses".to_owned(), responses.into());
    columns.insert("scores".to_owned(), json!(scores));
    columns
}

/// A pair of a chat in the usual columns.
fn chat(prompt: Value, chosen: Value, rejected: Value) -> Columns {
    [("prompt", prompt), ("chosen", chosen), ("rejected", rejected)]
        .map(|(key, of)| (key.to_owned(), of))
        .into_iter()
        .collect()
}

/// Two responses as lists of turns.
fn responses(columns: &Columns, chosen: &str, rejected: &str) -> Result<[Value; 2], String> {
    Ok([need(columns, chosen)?, need(columns, rejected)?].map(|response| as_turns(response.clone())))
}

/// A response, text or a message or a list of them, as a list.
fn as_turns(response: Value) -> Value {
    match response {
        Value::Array(turns) => turns.into(),
        Value::String(text) => json!([{"role": "assistant", "content": text}]),
        message => json!([message]),
    }
}

fn pair(prompt: Value, responses: [String; 2], better: usize) -> Columns {
    let [first, second] = responses;
    let (chosen, rejected) = if better == 0 { (first, second) } else { (second, first) };
    let mut columns = Columns::new();
    columns.insert("prompt".to_owned(), prompt);
    columns.insert("chosen".to_owned(), chosen.into());
    columns.insert("rejected".to_owned(), rejected.into());
    columns
}

fn chosen_of(prompt: String, responses: Vec<String>, better: usize, key: &str) -> Result<Columns, String> {
    let number = responses.len();
    match <[String; 2]>::try_from(responses) {
        Ok(responses) if better < 2 => Ok(pair(prompt.into(), responses, better)),
        Ok(_) => Err(format!("`{key}` is {better}, expected 0 or 1")),
        Err(_) => Err(format!("has {number} responses, expected 2")),
    }
}

fn need<'a>(columns: &'a Columns, key: &str) -> Result<&'a Value, String> {
    columns.get(key).filter(|value| !value.is_null()).ok_or_else(|| format!("no `{key}`"))
}

fn text(columns: &Columns, key: &str) -> Result<String, String> {
    let value = need(columns, key)?;
    value.as_str().map(str::to_owned).ok_or_else(|| format!("`{key}` is {}, expected text", brief(value)))
}

fn text_at(value: &Value, key: &str) -> Result<String, String> {
    value.get(key).and_then(Value::as_str).map(str::to_owned).ok_or_else(|| format!("no text `{key}`"))
}

fn list<'a>(columns: &'a Columns, key: &str) -> Result<&'a Vec<Value>, String> {
    let value = need(columns, key)?;
    value.as_array().ok_or_else(|| format!("`{key}` is {}, expected a list", brief(value)))
}

/// A number, written as one or as text (CSV).
fn number(value: &Value) -> Option<f64> {
    value.as_f64().or_else(|| value.as_str()?.trim().parse().ok())
}

fn number_in(columns: &Columns, key: &str) -> Result<f64, String> {
    let value = need(columns, key)?;
    number(value).ok_or_else(|| format!("`{key}` is {}, expected a number", brief(value)))
}

fn index(columns: &Columns, key: &str) -> Result<usize, String> {
    let value = number_in(columns, key)?;
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // checked: a small whole number
    match value {
        0.0..=1e6 if value.fract() == 0.0 => Ok(value as usize),
        _ => Err(format!("`{key}` is {value}, expected a whole number from 0")),
    }
}

/// A value in few characters.
pub(crate) fn brief(value: &Value) -> String {
    let text = value.to_string();
    if text.chars().count() > 40 { text.chars().take(37).chain("...".chars()).collect() } else { text }
}

/// Columns that the user names: where each of the usual ones is to be found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mapping(Vec<(String, Vec<String>)>);

/// Columns that say the same in every layout.
const KEPT: [&str; 6] = ["id", "system", "tools", "chat_template_kwargs", "chosen_weights", "rejected_weights"];

/// The usual columns.
const USUAL: [&str; 17] = [
    "chosen_weights",
    "rejected_weights",
    "system",
    "tools",
    "chat_template_kwargs",
    "id",
    "prompt",
    "chosen",
    "rejected",
    "prompt_ids",
    "chosen_ids",
    "rejected_ids",
    "responses",
    "responses_ids",
    "scores",
    "ranks",
    "label",
];

impl Mapping {
    /// Reads `prompt=info.post,chosen=…`: a usual column and the path of another.
    ///
    /// # Errors
    /// Where it is not of that form, or a column is not a usual one.
    pub fn parse(text: &str) -> Result<Self, String> {
        let of = |part: &str| -> Result<(String, Vec<String>), String> {
            let Some((name, path)) = part.split_once('=').filter(|(_, path)| !path.is_empty()) else {
                return Err(format!("found `{part}`, expected NAME=COLUMN"));
            };
            if name != "completion" && !USUAL.contains(&name) {
                return Err(format!("`{name}` is no column that is read; they are completion, {}", USUAL.join(", ")));
            }
            Ok((name.to_owned(), path.split('.').map(str::to_owned).collect()))
        };
        Ok(Self(text.split(',').map(of).collect::<Result<_, _>>()?))
    }

    /// Whether it says where a usual column is.
    pub(crate) fn names(&self, usual: &str) -> bool {
        self.0.iter().any(|(name, _)| name == usual)
    }

    /// The columns that it names of a row, with the row's own `id`; all of them where it names none.
    ///
    /// # Errors
    /// Where a row lacks one.
    pub(crate) fn of(&self, mut columns: Columns) -> Result<Columns, String> {
        if self.0.is_empty() {
            return Ok(columns);
        }
        let mut out = Columns::new();
        for (name, path) in &self.0 {
            let (first, rest) = (&path[0], &path[1..]);
            // a column may have dots in its own name
            let whole = path.join(".");
            let value = columns.get(&whole).or_else(|| {
                rest.iter().try_fold(columns.get(first)?, |value, key| match key.parse::<usize>() {
                    Ok(at) if value.is_array() => value.get(at),
                    _ => value.get(key),
                })
            });
            let Some(value) = value.filter(|value| !value.is_null()) else {
                let has = columns.keys().cloned().collect::<Vec<_>>().join(", ");
                return Err(format!("no column `{whole}`, which option `columns` takes for `{name}`; it has {has}"));
            };
            out.insert(name.clone(), value.clone());
        }
        if let Some(id) = columns.remove("id") {
            out.entry("id").or_insert(id);
        }
        Ok(out)
    }
}

/// Columns beside those of [`TOLD_BY`] and [`USUAL`] that a layout reads.
const ALSO_READ: [&str; 5] = ["input", "history", "completion", "overall_score", "fine-grained_score"];

/// Columns that trainers use, and that nothing here reads.
const OF_TRAINERS: [&str; 14] = [
    "images",
    "image",
    "videos",
    "audios",
    "documents",
    "margin",
    "score_chosen",
    "score_rejected",
    "chosen_score",
    "rejected_score",
    "ref_chosen_logps",
    "ref_rejected_logps",
    "reference_chosen_logps",
    "weight",
];

/// Which columns of a data set are worth parsing.
#[derive(Clone, Debug)]
pub(crate) struct Wanted(HashSet<String>);

impl Wanted {
    /// All that any layout or the user's own names read.
    pub(crate) fn of(mapping: &Mapping) -> Self {
        let told = TOLD_BY.iter().flat_map(|(_, names)| names.iter());
        let known = told.chain(&USUAL).chain(&ALSO_READ).map(|name| (*name).to_owned());
        // a path may be one column with dots in its name, or into one
        let own = mapping.0.iter().flat_map(|(_, path)| [path[0].clone(), path.join(".")]);
        Self(known.chain(own).collect())
    }

    /// Whether a column is.
    pub(crate) fn has(&self, column: &str) -> bool {
        self.0.contains(column)
    }
}

/// Columns of a row that trainers use, and that are not read.
pub(crate) fn unread<'a>(columns: impl Iterator<Item = &'a str>, wanted: &Wanted) -> Vec<String> {
    columns.filter(|name| OF_TRAINERS.contains(name) && !wanted.has(name)).map(str::to_owned).collect()
}

/// Says that no row of a joined layout can be used.
pub(crate) fn none_joined(path: &Path) -> Error {
    Error::file(path, "no prompt has two responses of different labels or ratings to compare")
}
