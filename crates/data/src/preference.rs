//! The forms in which the field writes preferences over responses, and what they have in common.
use crate::layout::{Layout, Mapping, Wanted, brief};
use crate::recipe::{ImplicitPrompt, Recipe};
use serde::de::{DeserializeOwned, DeserializeSeed};
use serde_json::{Map, Value};

/// One turn of a conversation: an object with `role` and `content`, and whatever else a template reads.
pub type Message = Map<String, Value>;

/// A prompt and its responses as written; of a pair the preferred response comes first.
#[derive(Clone, Debug, PartialEq)]
pub enum Preference {
    /// Plain text.
    Text {
        /// What comes before the response.
        prompt: String,
        /// At least two.
        responses: Vec<String>,
    },
    /// Chat messages.
    Chat {
        /// Turns before the response.
        prompt: Vec<Message>,
        /// Turns of each response.
        responses: Vec<Vec<Message>>,
    },
    /// Token ids.
    Ids {
        /// Tokens before the response.
        prompt: Vec<u32>,
        /// Tokens of each response.
        responses: Vec<Vec<u32>>,
    },
}

/// What a row says.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// Its `id`, as text.
    pub id: Option<String>,
    /// Prompt and responses.
    pub preference: Preference,
    /// Of a group: how good each response is, the higher the better. `None` for a pair.
    pub scores: Option<Vec<f64>>,
    /// Of a pair: a weight for every token of the chosen response and of the rejected one.
    pub weights: Option<[Vec<f64>; 2]>,
    /// How a chat is rendered.
    pub setting: Setting,
    /// Whether it has texts beside ids.
    pub ids_beside_text: bool,
}

/// Text, or messages.
#[derive(Clone, Debug)]
pub(crate) enum Content {
    Text(String),
    Messages(Vec<Message>),
}

/// What a row says of how its chat is rendered.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Setting {
    /// Schemas of tools.
    pub tools: Option<Value>,
    /// Variables for the template.
    pub variables: Map<String, Value>,
}

/// Marks the start of an assistant turn in Anthropic's HH dialogues.
const ASSISTANT: &str = "\n\nAssistant:";

/// How a row is understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Form {
    /// Plain text becomes a user and an assistant turn.
    pub chat: bool,
    /// Only the chosen response is used: it stands for both, whether there is another or not.
    pub chosen_only: bool,
    /// Where plain texts without a prompt are split.
    pub implicit_prompt: ImplicitPrompt,
}

impl Default for Form {
    fn default() -> Self {
        Self { chat: false, chosen_only: false, implicit_prompt: Recipe::default().implicit_prompt }
    }
}

/// Reads a line as the wanted columns of a row.
///
/// # Errors
/// Where it is not a JSON object in UTF-8.
pub(crate) fn columns_of(line: &[u8], wanted: &Wanted) -> Result<Map<String, Value>, String> {
    let text = std::str::from_utf8(line).map_err(|e| format!("not UTF-8: {e}"))?;
    let mut json = serde_json::Deserializer::from_str(text);
    let columns = wanted.deserialize(&mut json).and_then(|columns| json.end().map(|()| columns));
    match columns.map_err(|e| format!("not JSON: {e}"))? {
        Value::Object(columns) => Ok(columns),
        _ => Err("a row is a JSON object, and this is none".to_owned()),
    }
}

/// Reads one JSON row in any layout that is recognised.
///
/// # Errors
/// Says what is missing or of the wrong type.
///
/// ```
/// use tanglescope_data::{Form, Preference, parse_row};
/// let row = br#"{"id": 7, "chosen": "\n\nHuman: Hi\n\nAssistant: Hello", "rejected": "\n\nHuman: Hi\n\nAssistant: No"}"#;
/// let row = parse_row(row, Form::default())?;
/// assert_eq!(row.id.as_deref(), Some("7"));
/// let Preference::Text { prompt, responses } = row.preference else { unreachable!() };
/// assert_eq!((prompt.as_str(), responses[0].as_str()), ("\n\nHuman: Hi\n\nAssistant:", " Hello"));
/// # Ok::<(), String>(())
/// ```
pub fn parse_row(line: &[u8], form: Form) -> Result<Row, String> {
    let columns = columns_of(line, &Wanted::of(&Mapping::default()))?;
    parse_columns(Layout::of(&columns).usual(columns)?, form)
}

/// Reads the usual columns of a row: those that its form needs, whatever the others hold.
///
/// # Errors
/// Says what is missing or of the wrong type.
pub(crate) fn parse_columns(mut columns: Columns, form: Form) -> Result<Row, String> {
    let id = columns.remove("id").and_then(|id| match id {
        Value::Null => None,
        Value::String(id) => Some(id),
        other => Some(other.to_string()),
    });
    let present = |columns: &Columns, keys: &[&str]| keys.iter().any(|key| is_there(columns, key));
    let has_ids = present(&columns, &["responses_ids", "prompt_ids", "chosen_ids", "rejected_ids"]);
    let ids_beside_text = has_ids && present(&columns, &["responses", "chosen", "rejected"]);
    let (preference, scores) = if present(&columns, &["responses", "responses_ids"]) {
        let scores: Option<Vec<f64>> = typed(&mut columns, "scores", "a list of numbers")?;
        let ranks: Option<Vec<f64>> = typed(&mut columns, "ranks", "a list of numbers")?;
        let scores = scores.or(ranks.map(|ranks| ranks.iter().map(|rank| -rank).collect()));
        (group(&mut columns)?, scores)
    } else {
        (pair(&mut columns, form)?, None)
    };
    let preference = if form.chat { as_chat(preference) } else { preference };
    let preference = with_system(preference, content(&mut columns, "system")?);
    let setting = Setting {
        tools: tools(&mut columns)?,
        variables: typed(&mut columns, "chat_template_kwargs", "an object")?.unwrap_or_default(),
    };
    let number = preference.len();
    match &scores {
        Some(scores) if scores.len() != number => {
            return Err(format!("has {number} responses and {} scores", scores.len()));
        }
        Some(scores) if scores.iter().any(|score| !score.is_finite()) => {
            return Err("has a score that is not finite".to_owned());
        }
        _ => {}
    }
    // one response stands for both there, and has no other's weights
    let weights = if form.chosen_only { None } else { weights(&mut columns, scores.is_some() || number != 2)? };
    Ok(Row { id, preference, scores, weights, setting, ids_beside_text })
}

type Columns = Map<String, Value>;

fn is_there(columns: &Columns, key: &str) -> bool {
    columns.get(key).is_some_and(|value| !value.is_null())
}

/// A column of a type; `None` where it is not there or null.
fn typed<T: DeserializeOwned>(columns: &mut Columns, key: &str, expected: &str) -> Result<Option<T>, String> {
    match columns.remove(key) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => match T::deserialize(&value) {
            Ok(value) => Ok(Some(value)),
            Err(_) => Err(format!("`{key}` is {}, expected {expected}", brief(&value))),
        },
    }
}

/// Weights of the tokens of both responses.
fn weights(columns: &mut Columns, is_group: bool) -> Result<Option<[Vec<f64>; 2]>, String> {
    let mut of = |key: &str| typed::<Vec<f64>>(columns, key, "a list of numbers, one a token");
    match (of("chosen_weights")?, of("rejected_weights")?) {
        (None, None) => Ok(None),
        (Some(_), Some(_)) if is_group => {
            Err("has weights of tokens, which are of pairs, beside a group of responses".to_owned())
        }
        (Some(chosen), Some(rejected)) => match chosen.iter().chain(&rejected).any(|weight| !weight.is_finite()) {
            true => Err("has a weight that is not finite".to_owned()),
            false => Ok(Some([chosen, rejected])),
        },
        (chosen, _) => {
            let (there, missing) = if chosen.is_some() { ("chosen", "rejected") } else { ("rejected", "chosen") };
            Err(format!("has `{there}_weights` without `{missing}_weights`"))
        }
    }
}

/// Schemas of tools: a list, or a list as JSON text; an empty one is none.
fn tools(columns: &mut Columns) -> Result<Option<Value>, String> {
    let problem = "a list of schemas";
    let tools = match typed::<Value>(columns, "tools", problem)? {
        Some(Value::String(text)) if text.trim().is_empty() => None,
        Some(Value::String(text)) => {
            Some(serde_json::from_str(&text).map_err(|e| format!("`tools` is text, expected {problem} as JSON: {e}"))?)
        }
        other => other,
    };
    match tools {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Array(list)) => Ok((!list.is_empty()).then_some(Value::Array(list))),
        Some(other) => Err(format!("`tools` is {}, expected {problem}", brief(&other))),
    }
}

/// Text or messages.
fn content(columns: &mut Columns, key: &str) -> Result<Option<Content>, String> {
    match columns.remove(key) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => content_of(value).map(Some).map_err(|problem| format!("`{key}` {problem}")),
    }
}

/// Text, a message, or a list of them.
fn content_of(value: Value) -> Result<Content, String> {
    let expected = "expected text or a list of messages with `role` and `content`";
    match value {
        Value::String(text) => Ok(Content::Text(text)),
        Value::Object(message) => Ok(Content::Messages(vec![usual_message(message)])),
        Value::Array(list) => {
            let of = |value| match value {
                Value::Object(message) => Ok(usual_message(message)),
                other => Err(format!("has {}, {expected}", brief(&other))),
            };
            Ok(Content::Messages(list.into_iter().map(of).collect::<Result<_, _>>()?))
        }
        other => Err(format!("is {}, {expected}", brief(&other))),
    }
}

/// A message of ShareGPT's, with `from` and `value`, as one with `role` and `content`.
fn usual_message(mut message: Message) -> Message {
    if message.contains_key("role") || !(message.contains_key("from") && message.contains_key("value")) {
        return message;
    }
    let (from, value) = (message.remove("from").unwrap_or_default(), message.remove("value").unwrap_or_default());
    let role = match from.as_str() {
        Some("human" | "user") => "user".into(),
        Some("gpt" | "chatgpt" | "bing" | "bard" | "assistant" | "function_call") => "assistant".into(),
        Some("observation" | "tool" | "function") => "tool".into(),
        _ => from,
    };
    message.insert("role".to_owned(), role);
    message.insert("content".to_owned(), value);
    message
}

/// A chat with a system's turn before it, where it has none.
fn with_system(preference: Preference, system: Option<Content>) -> Preference {
    match (preference, system) {
        (Preference::Chat { mut prompt, responses }, Some(Content::Text(system)))
            if !system.is_empty() && prompt.first().and_then(|m| m.get("role")).is_none_or(|role| role != "system") =>
        {
            prompt.insert(0, message("system", system));
            Preference::Chat { prompt, responses }
        }
        (preference, _) => preference,
    }
}

impl Preference {
    /// Number of responses.
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Text { responses, .. } => responses.len(),
            Self::Chat { responses, .. } => responses.len(),
            Self::Ids { responses, .. } => responses.len(),
        }
    }
}

fn need<T>(value: Option<T>, key: &str) -> Result<T, String> {
    value.ok_or_else(|| format!("no `{key}`"))
}

/// A prompt with several responses.
fn group(columns: &mut Columns) -> Result<Preference, String> {
    let responses_ids: Option<Vec<Vec<u32>>> = typed(columns, "responses_ids", "a list of lists of token ids")?;
    let preference = if let Some(responses) = responses_ids {
        Preference::Ids { prompt: need(ids(columns, "prompt_ids")?, "prompt_ids")?, responses }
    } else {
        let prompt = need(content(columns, "prompt")?, "prompt")?;
        let responses: Vec<Value> = typed(columns, "responses", "a list of responses")?.unwrap_or_default();
        let responses = responses.into_iter().map(content_of).collect::<Result<Vec<_>, _>>();
        let responses = responses.map_err(|problem| format!("`responses` {problem}"))?;
        let all_text = responses.iter().all(|response| matches!(response, Content::Text(_)));
        match prompt {
            Content::Text(prompt) if all_text => {
                let text = |response| if let Content::Text(text) = response { Some(text) } else { None };
                Preference::Text { prompt, responses: responses.into_iter().filter_map(text).collect() }
            }
            prompt => after(prompt, responses),
        }
    };
    match preference.len() {
        0 | 1 => Err(format!("`responses` has {}, expected at least 2", preference.len())),
        _ => Ok(preference),
    }
}

fn ids(columns: &mut Columns, key: &str) -> Result<Option<Vec<u32>>, String> {
    typed(columns, key, "a list of token ids")
}

/// A preferred response and another.
fn pair(columns: &mut Columns, form: Form) -> Result<Preference, String> {
    if ["prompt_ids", "chosen_ids", "rejected_ids"].iter().any(|key| is_there(columns, key)) {
        let mut beside = |key: &str| ids(columns, key)?.ok_or_else(|| format!("no `{key}` beside the other ids"));
        let (prompt, chosen) = (beside("prompt_ids")?, beside("chosen_ids")?);
        let rejected = if form.chosen_only { chosen.clone() } else { beside("rejected_ids")? };
        return Ok(Preference::Ids { prompt, responses: vec![chosen, rejected] });
    }
    // of rows that are one response, the column that TRL has it in
    let chosen = match content(columns, "chosen")? {
        None => content(columns, "completion")?,
        chosen => chosen,
    };
    let chosen = need(chosen, "chosen")?;
    let rejected = if form.chosen_only { Some(chosen.clone()) } else { content(columns, "rejected")? };
    match (content(columns, "prompt")?, chosen, need(rejected, "rejected")?) {
        (Some(Content::Text(prompt)), Content::Text(chosen), Content::Text(rejected)) => {
            Ok(Preference::Text { prompt, responses: vec![chosen, rejected] })
        }
        (None, Content::Text(chosen), Content::Text(rejected)) => match form.implicit_prompt {
            ImplicitPrompt::Dialogue => split_dialogue(&chosen, &rejected),
            ImplicitPrompt::Shared => split_shared(&chosen, &rejected),
        },
        // UltraFeedback repeats the prompt, as text, beside message lists that hold it already
        (None | Some(Content::Text(_)), Content::Messages(chosen), Content::Messages(rejected)) if whole(&chosen) => {
            split_messages(&chosen, &rejected)
        }
        (None, Content::Messages(chosen), Content::Messages(rejected)) => split_messages(&chosen, &rejected),
        (Some(prompt), chosen, rejected) => Ok(after(prompt, vec![chosen, rejected])),
        (None, ..) => Err("`chosen` and `rejected` are of different forms, and there is no `prompt`".to_owned()),
    }
}

/// Turns of responses after those of a prompt, which they may repeat.
fn after(prompt: Content, responses: Vec<Content>) -> Preference {
    let prompt = messages(prompt, "user");
    let strip = |response: Content| {
        let response = messages(response, "assistant");
        match response.starts_with(&prompt) {
            true => response[prompt.len()..].to_vec(),
            false => response,
        }
    };
    let responses = responses.into_iter().map(strip).collect();
    Preference::Chat { prompt, responses }
}

/// Whether a message list holds more than the response.
fn whole(list: &[Message]) -> bool {
    list.iter().any(|message| message.get("role").is_some_and(|role| role != "assistant"))
}

fn messages(content: Content, role: &str) -> Vec<Message> {
    match content {
        Content::Messages(list) => list,
        Content::Text(text) => vec![message(role, text)],
    }
}

fn message(role: &str, content: String) -> Message {
    [("role".to_owned(), role.into()), ("content".to_owned(), content.into())].into_iter().collect()
}

fn as_chat(preference: Preference) -> Preference {
    match preference {
        Preference::Text { prompt, responses } => Preference::Chat {
            prompt: vec![message("user", prompt)],
            responses: responses.into_iter().map(|text| vec![message("assistant", text)]).collect(),
        },
        other => other,
    }
}

/// Splits whole dialogues after the last common `\n\nAssistant:`.
fn split_dialogue(chosen: &str, rejected: &str) -> Result<Preference, String> {
    let alike = chosen.chars().zip(rejected.chars()).take_while(|(a, b)| a == b).map(|(a, _)| a.len_utf8()).sum();
    let Some(turn) = chosen[..alike].rfind(ASSISTANT) else {
        return Err("no `prompt`, and the dialogues have no \"\\n\\nAssistant:\" in common to split at".to_owned());
    };
    let at = turn + ASSISTANT.len();
    let responses = vec![chosen[at..].to_owned(), rejected[at..].to_owned()];
    Ok(Preference::Text { prompt: chosen[..at].to_owned(), responses })
}

/// Splits texts where they part, before a space at the end of what they have in common, as TRL's `extract_prompt` does.
fn split_shared(chosen: &str, rejected: &str) -> Result<Preference, String> {
    let alike = chosen.chars().zip(rejected.chars()).take_while(|(a, b)| a == b);
    let mut at: usize = alike.map(|(a, _)| a.len_utf8()).sum();
    // where one is all of the other's beginning, its last character is its response
    if at == chosen.len().min(rejected.len()) {
        at = chosen[..at].char_indices().next_back().map_or(0, |(last, _)| last);
    } else if chosen[..at].ends_with(' ') {
        at -= 1;
    }
    if at == 0 {
        return Err("no `prompt`, and `chosen` and `rejected` have no beginning in common".to_owned());
    }
    let responses = vec![chosen[at..].to_owned(), rejected[at..].to_owned()];
    Ok(Preference::Text { prompt: chosen[..at].to_owned(), responses })
}

/// Splits message lists after the turns that they have in common, as TRL's `extract_prompt` does.
fn split_messages(chosen: &[Message], rejected: &[Message]) -> Result<Preference, String> {
    let alike = chosen.iter().zip(rejected).take_while(|(a, b)| a == b).count();
    // identical responses: the last turn is the response
    let at = alike.min(chosen.len().saturating_sub(1)).min(rejected.len().saturating_sub(1));
    if at == 0 {
        return Err("no `prompt`, and the message lists have no first turn in common".to_owned());
    }
    let responses = vec![chosen[at..].to_vec(), rejected[at..].to_vec()];
    Ok(Preference::Chat { prompt: chosen[..at].to_vec(), responses })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chat(line: &str) -> (Vec<String>, Vec<String>, Vec<String>) {
        let row = parse_row(line.as_bytes(), Form::default()).unwrap();
        let Preference::Chat { prompt, responses } = row.preference else { panic!("{row:?}") };
        let text = |list: &[Message]| list.iter().map(|m| m["content"].as_str().unwrap().to_owned()).collect();
        (text(&prompt), text(&responses[0]), text(&responses[1]))
    }

    #[test]
    fn ultrafeedback_lists_hold_the_prompt() {
        let row = r#"{"prompt": "Q", "chosen": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}],
            "rejected": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "B"}]}"#;
        assert_eq!(chat(row), (vec!["Q".into()], vec!["A".into()], vec!["B".into()]));
    }

    #[test]
    fn identical_message_lists_keep_their_last_turn_as_the_response() {
        let list = r#"[{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]"#;
        let row = format!(r#"{{"chosen": {list}, "rejected": {list}}}"#);
        assert_eq!(chat(&row), (vec!["Q".into()], vec!["A".into()], vec!["A".into()]));
    }

    #[test]
    fn chat_prompt_with_text_responses_becomes_turns() {
        let row = r#"{"prompt": [{"role": "user", "content": "Q"}], "chosen": "A", "rejected": "B"}"#;
        assert_eq!(chat(row), (vec!["Q".into()], vec!["A".into()], vec!["B".into()]));
    }

    #[test]
    fn a_missing_branch_is_named() {
        let error = parse_row(br#"{"prompt": "Q", "chosen": "A"}"#, Form::default()).unwrap_err();
        assert_eq!(error, "no `rejected`");
    }

    #[test]
    fn a_chosen_response_alone_stands_for_both() {
        let form = Form { chosen_only: true, ..Form::default() };
        let of = |line: &str| parse_row(line.as_bytes(), form).unwrap().preference;
        let text = Preference::Text { prompt: "Q".into(), responses: vec!["A".into(); 2] };
        assert_eq!(of(r#"{"prompt": "Q", "completion": "A"}"#), text);
        let ids = Preference::Ids { prompt: vec![1], responses: vec![vec![2]; 2] };
        assert_eq!(of(r#"{"prompt_ids": [1], "chosen_ids": [2]}"#), ids);
    }

    #[test]
    fn rows_without_a_prompt_are_split_as_trl_splits_them_or_after_the_dialogue() {
        let of = |row: &str, implicit_prompt| {
            let row = parse_row(row.as_bytes(), Form { implicit_prompt, ..Form::default() })?;
            let Preference::Text { prompt, responses } = row.preference else { unreachable!("{row:?}") };
            Ok::<_, String>((prompt, responses))
        };
        let (shared, dialogue) = (ImplicitPrompt::Shared, ImplicitPrompt::Dialogue);
        let row = r#"{"chosen": "Human: x\n\nAssistant: The é a", "rejected": "Human: x\n\nAssistant: The é b"}"#;
        let split = |prompt: &str, a: &str, b: &str| Ok((prompt.to_owned(), vec![a.to_owned(), b.to_owned()]));
        assert_eq!(of(row, shared), split("Human: x\n\nAssistant: The é", " a", " b"));
        assert_eq!(of(row, dialogue), split("Human: x\n\nAssistant:", " The é a", " The é b"));
        // where one begins with the whole of the other, its last character is its response
        assert_eq!(of(r#"{"chosen": "abc", "rejected": "ab"}"#, shared), split("a", "bc", "b"));
        assert!(of(r#"{"chosen": "a", "rejected": "b"}"#, shared).unwrap_err().contains("in common"));
        assert!(of(r#"{"chosen": "ca", "rejected": "cb"}"#, dialogue).unwrap_err().contains("Assistant"));
    }

    #[test]
    fn groups_have_scores_or_ranks_of_which_the_first_is_best() {
        let of = |line: &str| parse_row(line.as_bytes(), Form::default());
        let row = of(r#"{"prompt": "Q", "responses": ["A", "B", "C"], "scores": [1, 3.5, 2]}"#).unwrap();
        assert_eq!((row.preference.len(), row.scores), (3, Some(vec![1.0, 3.5, 2.0])));
        let row = of(r#"{"prompt_ids": [1], "responses_ids": [[2], [3]], "ranks": [2, 1]}"#).unwrap();
        assert_eq!(row.scores, Some(vec![-2.0, -1.0]));
        let turns = r#"{"prompt": "Q", "responses": ["A", [{"role": "assistant", "content": "B"}]]}"#;
        assert!(matches!(of(turns).unwrap().preference, Preference::Chat { .. }));
        assert!(of(r#"{"prompt": "Q", "responses": ["A"]}"#).unwrap_err().contains("at least 2"));
        assert!(of(r#"{"prompt": "Q", "responses": ["A", "B"], "scores": [1]}"#).unwrap_err().contains("1 scores"));
        assert!(of(r#"{"responses": ["A", "B"]}"#).unwrap_err().contains("`prompt`"));
    }
}
