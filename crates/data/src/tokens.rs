//! From preference pairs to token ids, by the rules of TRL's DPO trainer.
//!
//! Prompt and response are tokenised apart and concatenated. Special tokens come with the prompt: for plain text those
//! that the tokenizer adds, for chats those that the template writes.
use crate::error::{Error, Result};
use crate::guard::guarded;
use crate::preference::{Message, Preference};
use crate::template::ChatTemplate;
use serde_json::{Map, Value};
use std::collections::HashMap;
use std::path::Path;
use tokenizers::Tokenizer;

/// A model folder's tokenizer and chat template.
pub struct TextTokens {
    tokenizer: Tokenizer,
    template: Option<ChatTemplate>,
    bos: Option<u32>,
    eos: Option<u32>,
}

/// Prompt and responses as ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tokens {
    /// Tokens before the response.
    pub prompt: Vec<u32>,
    /// Tokens of each response.
    pub responses: Vec<Vec<u32>>,
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

/// Special tokens of tokenizer_config.json: each a string, or an object with `content`.
fn special_tokens(config: &Map<String, Value>) -> Map<String, Value> {
    let text = |value: &Value| value.as_str().or_else(|| value.get("content")?.as_str()).map(Value::from);
    config
        .iter()
        .filter(|(key, _)| key.ends_with("_token"))
        .filter_map(|(key, v)| Some((key.clone(), text(v)?)))
        .collect()
}

/// The template of tokenizer_config.json: one, or the one called `default` of several.
fn configured_template(config: &Map<String, Value>) -> Option<&str> {
    match config.get("chat_template")? {
        Value::String(text) => Some(text),
        Value::Array(several) => {
            several.iter().find(|t| t.get("name").is_some_and(|n| n == "default"))?.get("template")?.as_str()
        }
        _ => None,
    }
}

/// The bytes that a token's name writes: `<0xE2>` of models with byte fallback, or one character a byte of byte-level BPE, which
/// has printable ASCII and Latin-1 for themselves and moves the others up from U+0100, in order.
fn bytes_of(name: &str) -> Option<Vec<u8>> {
    if let Some(digits) = name.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>')) {
        return u8::from_str_radix(digits, 16).ok().map(|byte| vec![byte]);
    }
    let plain = |byte: &u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    let mut moved = (0..=u8::MAX).filter(|byte| !plain(byte)).zip('\u{100}'..);
    let table: HashMap<char, u8> = (0..=u8::MAX)
        .filter(plain)
        .map(|byte| (char::from(byte), byte))
        .chain(moved.by_ref().map(|(b, c)| (c, b)))
        .collect();
    name.chars().map(|c| table.get(&c).copied()).collect()
}

impl TextTokens {
    /// Reads tokenizer.json, tokenizer_config.json and chat_template.jinja of a model folder.
    ///
    /// # Errors
    /// Where tokenizer.json is missing, or a file is malformed.
    pub fn open(folder: &Path) -> Result<Self> {
        let path = folder.join("tokenizer.json");
        let text = std::fs::read(&path).map_err(|e| {
            Error::file(&path, format!("{e}; text needs the model's tokenizer (rows of token ids do not)"))
        })?;
        let tokenizer = guarded(|| Tokenizer::from_bytes(text).map_err(|e| e.to_string()))
            .map_err(|problem| Error::file(&path, format!("not a tokenizer: {problem}")))?;
        let config_path = folder.join("tokenizer_config.json");
        let config: Map<String, Value> = match std::fs::read(&config_path) {
            Ok(text) => serde_json::from_slice(&text).map_err(|e| Error::file(&config_path, e))?,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Map::new(),
            Err(e) => return Err(Error::file(&config_path, e)),
        };
        let special = special_tokens(&config);
        let id = |key: &str| tokenizer.token_to_id(special.get(key)?.as_str()?);
        let (bos, eos) = (id("bos_token"), id("eos_token"));
        let jinja = folder.join("chat_template.jinja");
        let template = if jinja.is_file() {
            let source = std::fs::read_to_string(&jinja).map_err(|e| Error::file(&jinja, e))?;
            Some(ChatTemplate::new(&source, special, &jinja)?)
        } else {
            configured_template(&config)
                .map(|source| ChatTemplate::new(source, special.clone(), &config_path))
                .transpose()?
        };
        Ok(Self { tokenizer, template, bos, eos })
    }

    /// Tokenises a row; `append_eos` ends plain-text responses with the tokenizer's EOS.
    ///
    /// # Errors
    /// Says what cannot be tokenised, and why.
    pub fn tokens(&self, row: &Preference, append_eos: bool) -> Result<Tokens, String> {
        match row {
            Preference::Ids { prompt, responses } => {
                Ok(Tokens { prompt: prompt.clone(), responses: responses.clone() })
            }
            Preference::Text { prompt, responses } => {
                let (prompt, closing) = self.prompt(prompt)?;
                let response = |text: &str| -> Result<Vec<u32>, String> {
                    let mut ids = self.encode(text)?;
                    if !ids.is_empty() {
                        ids.extend(closing.iter().filter(|id| ids.last() != Some(*id)).copied().collect::<Vec<_>>());
                        if append_eos {
                            let eos =
                                self.eos.ok_or("option `append_eos`: tokenizer_config.json names no `eos_token`")?;
                            ids.extend((ids.last() != Some(&eos)).then_some(eos));
                        }
                    }
                    Ok(ids)
                };
                let responses = responses.iter().map(|text| response(text)).collect::<Result<_, _>>()?;
                Ok(Tokens { prompt, responses })
            }
            Preference::Chat { prompt, responses } => {
                let template = self.template.as_ref().ok_or(
                    "the row is a chat, and the model has no chat template (chat_template.jinja, or `chat_template` in \
                     tokenizer_config.json)",
                )?;
                let opening = prompt.last().and_then(|m| m.get("role")).is_none_or(|role| role != "assistant");
                let prompt_text = template.render(prompt, opening)?;
                let response = |turns: &[Message]| -> Result<Vec<u32>, String> {
                    let full = template.render(&[prompt, turns].concat(), false)?;
                    let Some(added) = full.strip_prefix(&prompt_text) else {
                        return Err("the rendered prompt is no prefix of the rendered conversation, so this template \
                                    does not say where the response begins"
                            .to_owned());
                    };
                    self.encode(added)
                };
                let responses = responses.iter().map(|turns| response(turns)).collect::<Result<_, _>>()?;
                Ok(Tokens { prompt: self.encode(&prompt_text)?, responses })
            }
        }
    }

    /// What a token stands for: its text; its bytes, as `⟨E2 80⟩`, where it is a part of a character; its own name where
    /// it has neither. `None` for an unknown id.
    #[must_use]
    pub fn text(&self, token: u32) -> Option<String> {
        let name = self.tokenizer.id_to_token(token)?;
        match self.tokenizer.decode(&[token], false) {
            Ok(text) if !text.is_empty() && !text.contains('\u{FFFD}') => Some(text),
            _ => Some(bytes_of(&name).map_or(name, |bytes| {
                let digits: Vec<String> = bytes.iter().map(|byte| format!("{byte:02X}")).collect();
                format!("⟨{}⟩", digits.join(" "))
            })),
        }
    }

    /// The text of a sequence, special tokens included.
    #[must_use]
    pub fn join(&self, tokens: &[u32]) -> String {
        self.tokenizer.decode(tokens, false).unwrap_or_default()
    }

    /// Ids of a text without special tokens.
    fn encode(&self, text: &str) -> Result<Vec<u32>, String> {
        self.tokenizer
            .encode(text, false)
            .map(|e| e.get_ids().to_vec())
            .map_err(|e| format!("cannot be tokenised: {e}"))
    }

    /// Ids of a plain-text prompt with the special tokens that the tokenizer puts before a text, and apart from them
    /// those that it puts after one, which belong after the response.
    fn prompt(&self, text: &str) -> Result<(Vec<u32>, Vec<u32>), String> {
        let encoding = self.tokenizer.encode(text, true).map_err(|e| format!("cannot be tokenised: {e}"))?;
        let mut ids = encoding.get_ids().to_vec();
        let body = self.encode(text)?.len();
        let before = encoding.get_special_tokens_mask().iter().take_while(|mask| **mask == 1).count();
        let added = ids.len().saturating_sub(body);
        let closing = ids.split_off(ids.len() - added.saturating_sub(before.min(added)));
        // a text that already begins with BOS gets no second one
        if self.bos.is_some() && added > 0 && ids.len() > 1 && ids.first().copied() == self.bos && ids[1] == ids[0] {
            ids.remove(0);
        }
        Ok((ids, closing))
    }
}

#[cfg(test)]
mod tests {
    use super::bytes_of;

    #[test]
    fn names_of_byte_tokens_are_their_bytes() {
        // the first two bytes of ’ in byte-level BPE, and as GPT-2's file writes them; byte fallback; a name with a character that
        // stands for no byte
        assert_eq!(bytes_of("âĢ"), Some(vec![0xE2, 0x80]));
        assert_eq!(bytes_of("Ġa"), Some(vec![b' ', b'a']));
        assert_eq!(bytes_of("<0xE2>"), Some(vec![0xE2]));
        assert_eq!(bytes_of("漢"), None);
        // every byte has a character of its own
        let all: String = (0..=u8::MAX)
            .map(|byte| char::from_u32(if byte < 0x21 { 0x100 + u32::from(byte) } else { 0x21 }).unwrap())
            .collect();
        assert_eq!(bytes_of(&all).unwrap()[..3], [0, 1, 2]);
    }
}
