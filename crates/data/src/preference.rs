//! The forms in which the field writes preferences over responses, and what they have in common.
use crate::layout::Layout;
use serde::Deserialize;
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
}

/// Text, or a list of messages.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged, expecting = "expected text or a list of messages with `role` and `content`")]
pub(crate) enum Content {
    Text(String),
    Messages(Vec<Message>),
}

/// The columns that are read, whatever else a row has.
#[derive(Deserialize)]
struct Columns {
    id: Option<Value>,
    prompt: Option<Content>,
    #[serde(alias = "completion")]
    chosen: Option<Content>,
    rejected: Option<Content>,
    prompt_ids: Option<Vec<u32>>,
    chosen_ids: Option<Vec<u32>>,
    rejected_ids: Option<Vec<u32>>,
    responses: Option<Vec<Content>>,
    responses_ids: Option<Vec<Vec<u32>>>,
    scores: Option<Vec<f64>>,
    ranks: Option<Vec<f64>>,
}

/// Marks the start of an assistant turn in Anthropic's HH dialogues.
const ASSISTANT: &str = "\n\nAssistant:";

/// How a row is understood.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Form {
    /// Plain text becomes a user and an assistant turn.
    pub chat: bool,
    /// Only the chosen response is used: it stands for both, whether there is another or not.
    pub chosen_only: bool,
}

/// Reads a line as the columns of a row.
///
/// # Errors
/// Where it is not a JSON object in UTF-8.
pub fn columns_of(line: &[u8]) -> Result<Map<String, Value>, String> {
    let text = std::str::from_utf8(line).map_err(|e| format!("not UTF-8: {e}"))?;
    match serde_json::from_str(text).map_err(|e| format!("not JSON: {e}"))? {
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
    let columns = columns_of(line)?;
    parse_columns(Layout::of(&columns).usual(columns)?, form)
}

/// Reads the usual columns of a row.
///
/// # Errors
/// Says what is missing or of the wrong type.
pub(crate) fn parse_columns(columns: Map<String, Value>, form: Form) -> Result<Row, String> {
    let columns = Columns::deserialize(Value::Object(columns)).map_err(|e| e.to_string())?;
    let id = columns.id.as_ref().and_then(|id| match id {
        Value::Null => None,
        Value::String(id) => Some(id.clone()),
        other => Some(other.to_string()),
    });
    let scores = columns.scores.clone().or(columns.ranks.as_ref().map(|ranks| ranks.iter().map(|r| -r).collect()));
    let preference = if columns.responses.is_some() || columns.responses_ids.is_some() {
        group(columns)?
    } else {
        pair(columns, form)?
    };
    let preference = if form.chat { as_chat(preference) } else { preference };
    let number = preference.len();
    match scores {
        Some(scores) if scores.len() != number => Err(format!("has {number} responses and {} scores", scores.len())),
        Some(scores) if scores.iter().any(|score| !score.is_finite()) => {
            Err("has a score that is not finite".to_owned())
        }
        scores => Ok(Row { id, preference, scores }),
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
fn group(columns: Columns) -> Result<Preference, String> {
    let preference = if let Some(responses) = columns.responses_ids {
        Preference::Ids { prompt: need(columns.prompt_ids, "prompt_ids")?, responses }
    } else {
        let (prompt, responses) = (need(columns.prompt, "prompt")?, columns.responses.unwrap_or_default());
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

/// A preferred response and another.
fn pair(columns: Columns, form: Form) -> Result<Preference, String> {
    let or_chosen = |chosen: &Content, rejected| if form.chosen_only { Some(chosen.clone()) } else { rejected };
    if columns.prompt_ids.is_some() || columns.chosen_ids.is_some() || columns.rejected_ids.is_some() {
        let need = |ids: Option<Vec<u32>>, key: &str| ids.ok_or_else(|| format!("no `{key}` beside the other ids"));
        let (prompt, chosen) = (need(columns.prompt_ids, "prompt_ids")?, need(columns.chosen_ids, "chosen_ids")?);
        let rejected = if form.chosen_only { Some(chosen.clone()) } else { columns.rejected_ids };
        return Ok(Preference::Ids { prompt, responses: vec![chosen, need(rejected, "rejected_ids")?] });
    }
    let chosen = need(columns.chosen, "chosen")?;
    let rejected = need(or_chosen(&chosen, columns.rejected), "rejected")?;
    match (columns.prompt, chosen, rejected) {
        (Some(Content::Text(prompt)), Content::Text(chosen), Content::Text(rejected)) => {
            Ok(Preference::Text { prompt, responses: vec![chosen, rejected] })
        }
        (None, Content::Text(chosen), Content::Text(rejected)) => split_dialogue(&chosen, &rejected),
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
    fn dialogues_that_differ_in_the_first_turn_are_refused() {
        let error = parse_row(br#"{"chosen": "a", "rejected": "b"}"#, Form::default()).unwrap_err();
        assert!(error.contains("Assistant"), "{error}");
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
