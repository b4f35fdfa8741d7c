//! The forms in which the field writes a preference pair, and what they have in common.
use serde::Deserialize;
use serde_json::{Map, Value};

/// One turn of a conversation: an object with `role` and `content`, and whatever else a template reads.
pub type Message = Map<String, Value>;

/// A preference pair as written.
#[derive(Clone, Debug, PartialEq)]
pub enum Preference {
    /// Prompt and responses as plain text.
    Text {
        /// What comes before the response.
        prompt: String,
        /// The preferred response.
        chosen: String,
        /// The other response.
        rejected: String,
    },
    /// Prompt and responses as chat messages.
    Chat {
        /// Turns before the response.
        prompt: Vec<Message>,
        /// Turns of the preferred response.
        chosen: Vec<Message>,
        /// Turns of the other response.
        rejected: Vec<Message>,
    },
    /// Prompt and responses as token ids.
    Ids {
        /// Tokens before the response.
        prompt: Vec<u32>,
        /// Tokens of the preferred response.
        chosen: Vec<u32>,
        /// Tokens of the other response.
        rejected: Vec<u32>,
    },
}

#[derive(Clone, Deserialize)]
#[serde(untagged, expecting = "expected text or a list of messages with `role` and `content`")]
enum Content {
    Text(String),
    Messages(Vec<Message>),
}

#[derive(Deserialize)]
struct Row {
    id: Option<Value>,
    prompt: Option<Content>,
    #[serde(alias = "completion")]
    chosen: Option<Content>,
    rejected: Option<Content>,
    prompt_ids: Option<Vec<u32>>,
    chosen_ids: Option<Vec<u32>>,
    rejected_ids: Option<Vec<u32>>,
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

/// Reads one JSON row: its `id` as text, and the pair. `completion` is another name of `chosen`.
///
/// # Errors
/// Says what is missing or of the wrong type.
///
/// ```
/// use tanglescope_data::{Form, Preference, parse_row};
/// let row = br#"{"id": 7, "chosen": "\n\nHuman: Hi\n\nAssistant: Hello", "rejected": "\n\nHuman: Hi\n\nAssistant: No"}"#;
/// let (id, pair) = parse_row(row, Form::default())?;
/// assert_eq!(id.as_deref(), Some("7"));
/// let Preference::Text { prompt, chosen, .. } = pair else { unreachable!() };
/// assert_eq!((prompt.as_str(), chosen.as_str()), ("\n\nHuman: Hi\n\nAssistant:", " Hello"));
/// # Ok::<(), String>(())
/// ```
pub fn parse_row(line: &[u8], form: Form) -> Result<(Option<String>, Preference), String> {
    let text = std::str::from_utf8(line).map_err(|e| format!("not UTF-8: {e}"))?;
    let value: Value = serde_json::from_str(text).map_err(|e| format!("not JSON: {e}"))?;
    let row = Row::deserialize(value).map_err(|e| e.to_string())?;
    let id = row.id.and_then(|id| match id {
        Value::Null => None,
        Value::String(id) => Some(id),
        other => Some(other.to_string()),
    });
    if row.prompt_ids.is_some() || row.chosen_ids.is_some() || row.rejected_ids.is_some() {
        let need = |ids: Option<Vec<u32>>, key: &str| ids.ok_or_else(|| format!("no `{key}` beside the other ids"));
        let (prompt, chosen) = (need(row.prompt_ids, "prompt_ids")?, need(row.chosen_ids, "chosen_ids")?);
        let rejected = if form.chosen_only { Some(chosen.clone()) } else { row.rejected_ids };
        return Ok((id, Preference::Ids { prompt, chosen, rejected: need(rejected, "rejected_ids")? }));
    }
    let need = |content: Option<Content>, key: &str| content.ok_or_else(|| format!("no `{key}`"));
    let chosen = need(row.chosen, "chosen")?;
    let rejected = need(if form.chosen_only { Some(chosen.clone()) } else { row.rejected }, "rejected")?;
    let pair = match (row.prompt, chosen, rejected) {
        (Some(Content::Text(prompt)), Content::Text(chosen), Content::Text(rejected)) => {
            Preference::Text { prompt, chosen, rejected }
        }
        (None, Content::Text(chosen), Content::Text(rejected)) => split_dialogue(chosen, rejected)?,
        // UltraFeedback repeats the prompt, as text, beside message lists that hold it already
        (None | Some(Content::Text(_)), Content::Messages(chosen), Content::Messages(rejected)) if whole(&chosen) => {
            split_messages(chosen, rejected)?
        }
        (None, Content::Messages(chosen), Content::Messages(rejected)) => split_messages(chosen, rejected)?,
        (Some(prompt), chosen, rejected) => {
            let prompt = messages(prompt, "user");
            let strip = |response: Vec<Message>| match response.starts_with(&prompt) {
                true => response[prompt.len()..].to_vec(),
                false => response,
            };
            let (chosen, rejected) = (strip(messages(chosen, "assistant")), strip(messages(rejected, "assistant")));
            Preference::Chat { prompt, chosen, rejected }
        }
        (None, ..) => return Err("`chosen` and `rejected` are of different forms, and there is no `prompt`".to_owned()),
    };
    Ok((id, if form.chat { as_chat(pair) } else { pair }))
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

fn as_chat(pair: Preference) -> Preference {
    match pair {
        Preference::Text { prompt, chosen, rejected } => Preference::Chat {
            prompt: vec![message("user", prompt)],
            chosen: vec![message("assistant", chosen)],
            rejected: vec![message("assistant", rejected)],
        },
        other => other,
    }
}

/// Splits whole dialogues after the last common `\n\nAssistant:`.
fn split_dialogue(chosen: String, rejected: String) -> Result<Preference, String> {
    let alike = chosen.chars().zip(rejected.chars()).take_while(|(a, b)| a == b).map(|(a, _)| a.len_utf8()).sum();
    let Some(turn) = chosen[..alike].rfind(ASSISTANT) else {
        return Err("no `prompt`, and the dialogues have no \"\\n\\nAssistant:\" in common to split at".to_owned());
    };
    let at = turn + ASSISTANT.len();
    Ok(Preference::Text {
        prompt: chosen[..at].to_owned(),
        chosen: chosen[at..].to_owned(),
        rejected: rejected[at..].to_owned(),
    })
}

/// Splits message lists after the turns that they have in common, as TRL's `extract_prompt` does.
fn split_messages(chosen: Vec<Message>, rejected: Vec<Message>) -> Result<Preference, String> {
    let alike = chosen.iter().zip(&rejected).take_while(|(a, b)| a == b).count();
    // identical responses: the last turn is the response
    let at = alike.min(chosen.len().saturating_sub(1)).min(rejected.len().saturating_sub(1));
    if at == 0 {
        return Err("no `prompt`, and the message lists have no first turn in common".to_owned());
    }
    Ok(Preference::Chat {
        prompt: chosen[..at].to_vec(),
        chosen: chosen[at..].to_vec(),
        rejected: rejected[at..].to_vec(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chat(line: &str) -> (Vec<String>, Vec<String>, Vec<String>) {
        let (_, pair) = parse_row(line.as_bytes(), Form::default()).unwrap();
        let Preference::Chat { prompt, chosen, rejected } = pair else { panic!("{pair:?}") };
        let text = |list: Vec<Message>| list.iter().map(|m| m["content"].as_str().unwrap().to_owned()).collect();
        (text(prompt), text(chosen), text(rejected))
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
        let of = |line: &str| parse_row(line.as_bytes(), form).unwrap().1;
        let text = Preference::Text { prompt: "Q".into(), chosen: "A".into(), rejected: "A".into() };
        assert_eq!(of(r#"{"prompt": "Q", "completion": "A"}"#), text);
        let ids = Preference::Ids { prompt: vec![1], chosen: vec![2], rejected: vec![2] };
        assert_eq!(of(r#"{"prompt_ids": [1], "chosen_ids": [2]}"#), ids);
    }

    #[test]
    fn dialogues_that_differ_in_the_first_turn_are_refused() {
        let error = parse_row(br#"{"chosen": "a", "rejected": "b"}"#, Form::default()).unwrap_err();
        assert!(error.contains("Assistant"), "{error}");
    }
}
