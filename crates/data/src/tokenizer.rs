//! A model's own tokenizer and chat template: files that come with checkpoints, and are not trusted.
use crate::error::{Error, Result};
use crate::guard::guarded;
use crate::template::ChatTemplate;
use chrono::NaiveDate;
use serde_json::{Map, Value};
use std::collections::HashMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use tanglescope_checkpoint::{GgufTokenizer, gguf_tokenizer};
use tokenizers::{AddedToken, Tokenizer};

/// A tokenizer and a chat template, and which files they are from.
pub struct TextTokens {
    tokenizer: Tokenizer,
    template: Option<ChatTemplate>,
    bos: Option<u32>,
    eos: Option<(String, u32)>,
    pad: Option<u32>,
    /// How many times longer its normalizer may make a text.
    growth: f64,
    /// The folders of tokenizer.json and of the chat template.
    from: [Option<PathBuf>; 2],
}

/// Longest text that is tokenised, in bytes: the longest context of any model takes a tenth of it.
const LONGEST_TEXT: usize = 1 << 25;

/// Longest text that a normalizer may make of one, in bytes.
const LONGEST_MADE: f64 = (1u64 << 28) as f64;

/// Most times that a decoder may make a token longer.
const MOST_GROWTH: f64 = 1e4;

/// How many times longer a normalizer or decoder may make a text, at the most: each step by what it puts in the place of the
/// shortest thing that it replaces.
fn growth(of: &Value) -> f64 {
    let length = |value: Option<&Value>| value.and_then(Value::as_str).map_or(0.0, |text| text.len() as f64);
    let steps = ["normalizers", "decoders"].iter().find_map(|key| of.get(key)?.as_array());
    match of.get("type").and_then(Value::as_str) {
        Some("Sequence") => steps.map_or(1.0, |steps| steps.iter().map(growth).product()),
        Some("Replace") => {
            let pattern = of.get("pattern").and_then(|pattern| pattern.get("String"));
            // a pattern may match single bytes, and an empty text is between any two
            (length(of.get("content")) / length(pattern).max(1.0)).max(1.0) + f64::from(u8::from(pattern.is_none()))
        }
        Some("Prepend") => 1.0 + length(of.get("prepend")),
        // the longest decomposition of a character, U+FDFA, and room for tables of a model's own
        Some("NFC" | "NFD" | "NFKC" | "NFKD" | "Precompiled") => 20.0,
        _ => 2.0,
    }
}

/// EOS of tokenizer classes whose files need not name one, by the model type in config.json.
const CLASS_EOS: [(&str, &str); 14] = [
    ("gpt2", "<|endoftext|>"),
    ("gpt_neox", "<|endoftext|>"),
    ("gpt_neo", "<|endoftext|>"),
    ("gptj", "<|endoftext|>"),
    ("opt", "</s>"),
    ("llama", "</s>"),
    ("mistral", "</s>"),
    ("mixtral", "</s>"),
    ("qwen2", "<|endoftext|>"),
    ("qwen3", "<|endoftext|>"),
    ("gemma", "<eos>"),
    ("gemma2", "<eos>"),
    ("gemma3_text", "<eos>"),
    ("cohere", "<|END_OF_TURN_TOKEN|>"),
];

/// Special tokens of a tokenizer's configuration: each a string, or an object with `content`.
fn special_tokens(config: &Map<String, Value>) -> Map<String, Value> {
    let text = |value: &Value| value.as_str().or_else(|| value.get("content")?.as_str()).map(Value::from);
    config
        .iter()
        .filter(|(key, _)| key.ends_with("_token"))
        .filter_map(|(key, v)| Some((key.clone(), text(v)?)))
        .collect()
}

/// Tokens that the configuration adds to those of tokenizer.json, as transformers does.
fn added_tokens(config: &Map<String, Value>, named: &Map<String, Value>) -> Vec<AddedToken> {
    let flag = |of: &Value, key: &str, default: bool| of.get(key).and_then(Value::as_bool).unwrap_or(default);
    let listed = config.get("added_tokens_decoder").and_then(Value::as_object).into_iter().flat_map(Map::values);
    let listed = listed.filter_map(|of| {
        let special = flag(of, "special", false);
        Some(
            AddedToken::from(of.get("content")?.as_str()?, special)
                .single_word(flag(of, "single_word", false))
                .lstrip(flag(of, "lstrip", false))
                .rstrip(flag(of, "rstrip", false))
                .normalized(flag(of, "normalized", !special)),
        )
    });
    let named = named.values().filter_map(Value::as_str).map(|text| AddedToken::from(text, true));
    listed.chain(named).collect()
}

/// Largest file of a tokenizer; those of the largest vocabularies have some thirty megabytes.
const LARGEST: u64 = 1 << 28;

/// The bytes of a file that is one: no device or pipe, and not larger than such files are.
fn bytes(path: &Path) -> std::io::Result<Vec<u8>> {
    let of = std::fs::metadata(path)?;
    if !of.is_file() || of.len() > LARGEST {
        let what = if of.is_file() {
            format!("has {} bytes, and at most {LARGEST} are read", of.len())
        } else {
            "is no file".to_owned()
        };
        return Err(std::io::Error::new(ErrorKind::InvalidInput, what));
    }
    std::fs::read(path)
}

/// The text of a file.
fn text(path: &Path) -> Result<String> {
    let bytes = bytes(path).map_err(|e| Error::file(path, e))?;
    String::from_utf8(bytes).map_err(|e| Error::file(path, format!("not UTF-8: {e}")))
}

/// A file as JSON; `None` where it is not there.
fn json(path: &Path) -> Result<Option<Map<String, Value>>> {
    match bytes(path) {
        Ok(text) => {
            // Windows programs mark the byte order
            let text = text.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(&text);
            serde_json::from_slice(text).map(Some).map_err(|e| Error::file(path, e))
        }
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::file(path, e)),
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
    /// Reads tokenizer.json, or else the tokenizer that a GGUF file carries, tokenizer_config.json and chat_template.jinja, each from the first of some folders that has it: an
    /// adapter's, and then its model's.
    ///
    /// # Errors
    /// Where no folder has tokenizer.json, or a file is malformed.
    pub fn open(folders: &[&Path]) -> Result<Self> {
        let having = |name: &str| folders.iter().find(|folder| folder.join(name).exists());
        let (folder, path, text, in_file) = match having("tokenizer.json") {
            None => match in_gguf(folders)? {
                Some((folder, path, of)) => (folder, path, of.tokenizer.to_string().into_bytes(), Some(of.config)),
                None => {
                    let path = folders.last().copied().unwrap_or(Path::new(".")).join("tokenizer.json");
                    let problem = "is not there; text needs the model's tokenizer (rows of token ids do not)";
                    return Err(Error::file(&path, problem));
                }
            },
            Some(folder) => {
                let path = folder.join("tokenizer.json");
                let text = bytes(&path).map_err(|e| {
                    Error::file(&path, format!("{e}; text needs the model's tokenizer (rows of token ids do not)"))
                })?;
                (*folder, path, text, None)
            }
        };
        let mut tokenizer = guarded(|| Tokenizer::from_bytes(text).map_err(|e| e.to_string()))
            .map_err(|problem| Error::file(&path, format!("not a tokenizer: {problem}")))?;
        // of the saver's last call, and reset by transformers at each one
        tokenizer.with_padding(None).with_truncation(None).map_err(|e| Error::file(&path, e))?;
        let growing = |part: serde_json::Result<Value>| part.map_or(1.0, |part| growth(&part));
        let longer = growing(serde_json::to_value(tokenizer.get_normalizer()));
        if growing(serde_json::to_value(tokenizer.get_decoder())) > MOST_GROWTH {
            return Err(Error::file(&path, "its decoder makes texts of more than ten thousand times the length"));
        }
        let mut config = in_file.clone().unwrap_or_default();
        config.extend(json(&folder.join("tokenizer_config.json"))?.unwrap_or_default());
        let mut special = special_tokens(&json(&folder.join("special_tokens_map.json"))?.unwrap_or_default());
        special.extend(special_tokens(&config));
        // one that has no id yet would get one beyond the model's vocabulary
        let known: Vec<AddedToken> = added_tokens(&config, &special)
            .into_iter()
            .filter(|token| tokenizer.token_to_id(&token.content).is_some())
            .filter(|token| !tokenizer.get_added_vocabulary().get_vocab().contains_key(&token.content))
            .collect();
        tokenizer.add_tokens(&known);
        let with_id = |text: &str| Some((text.to_owned(), tokenizer.token_to_id(text)?));
        let named = |key: &str| with_id(special.get(key)?.as_str()?);
        let [bos, pad] = ["bos_token", "pad_token"].map(|key| named(key).map(|(_, id)| id));
        let eos = match named("eos_token") {
            Some(eos) => Some(eos),
            None => {
                let configs = folders.iter().map(|folder| json(&folder.join("config.json")));
                let model = configs.collect::<Result<Vec<_>>>()?.into_iter().flatten().next().unwrap_or_default();
                eos_of_model(&model, &tokenizer)
            }
        };
        if let Some((text, _)) = &eos {
            special.entry("eos_token").or_insert_with(|| text.clone().into());
        }
        let of_file = || -> Result<Option<(ChatTemplate, PathBuf)>> {
            let of = in_file.as_ref().and_then(|config| config.get("chat_template")?.as_str());
            let made = of.map(|source| ChatTemplate::new(source, special.clone(), &path)).transpose()?;
            Ok(made.map(|template| (template, folder.to_owned())))
        };
        let found = match template(folders, &special)? {
            None => of_file()?,
            found => found,
        };
        let (template, of_template) = match found {
            Some((template, folder)) => (Some(template), Some(folder)),
            None => (None, None),
        };
        Ok(Self { tokenizer, template, bos, eos, pad, growth: longer, from: [Some(folder.to_owned()), of_template] })
    }

    /// The folders that tokenizer.json and the chat template are from.
    #[must_use]
    pub fn from(&self) -> [Option<&Path>; 2] {
        self.from.each_ref().map(|from| from.as_deref())
    }

    /// Ids that this tokenizer and another have, and those of them that have other names there, with both names.
    #[must_use]
    pub fn differing(&self, other: &Self) -> (usize, Vec<(u32, String, String)>) {
        let size = |of: &Self| u32::try_from(of.tokenizer.get_vocab_size(true)).unwrap_or(u32::MAX);
        let both = (0..size(self).min(size(other)))
            .filter_map(|id| Some((id, self.tokenizer.id_to_token(id)?, other.tokenizer.id_to_token(id)?)));
        let (mut known, mut differing) = (0, Vec::new());
        for (id, here, there) in both {
            known += 1;
            if here != there {
                differing.push((id, here, there));
            }
        }
        (known, differing)
    }

    /// Makes a day the one that the chat template writes.
    pub fn pin_date(&mut self, date: NaiveDate) {
        if let Some(template) = &mut self.template {
            template.pin_date(date);
        }
    }

    /// The chat template.
    pub(crate) fn template(&self) -> Option<&ChatTemplate> {
        self.template.as_ref()
    }

    /// EOS: its text and its id.
    pub(crate) fn eos(&self) -> Option<(&str, u32)> {
        self.eos.as_ref().map(|(text, id)| (text.as_str(), *id))
    }

    /// The padding token.
    pub(crate) fn pad(&self) -> Option<u32> {
        self.pad
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

    /// Ids of a text, with the special tokens that the tokenizer puts around one or without.
    ///
    /// # Errors
    /// Where the text is too long, or cannot be tokenised.
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>, String> {
        let refuse = |problem: String| format!("cannot be tokenised: {problem}");
        if text.len() > LONGEST_TEXT {
            let megabytes = [text.len(), LONGEST_TEXT].map(|bytes| bytes >> 20);
            return Err(refuse(format!("{} MiB of text, and at most {} are taken", megabytes[0], megabytes[1])));
        }
        if text.len() as f64 * self.growth > LONGEST_MADE {
            let most = format!("up to {:.1e} times", self.growth);
            return Err(refuse(format!("the tokenizer's normalizer may make {} bytes {most} as long", text.len())));
        }
        let encode = || self.tokenizer.encode(text, add_special_tokens).map_err(|e| e.to_string());
        let mut ids = guarded(encode).map(|encoding| encoding.get_ids().to_vec()).map_err(refuse)?;
        // a text that already begins with BOS gets no second one
        if add_special_tokens && self.bos.is_some_and(|bos| ids.starts_with(&[bos, bos])) {
            ids.remove(0);
        }
        Ok(ids)
    }

    /// Ids of a plain-text prompt with the special tokens that the tokenizer puts before a text, and apart from them those that it
    /// puts after one, which belong after the response.
    pub(crate) fn encode_prompt(&self, text: &str) -> Result<(Vec<u32>, Vec<u32>), String> {
        let mut ids = self.encode(text, true)?;
        let body = self.encode(text, false)?;
        // a BOS of its own is of the text
        let added = ids.len().saturating_sub(body.len());
        let before = (0..=added).find(|&at| ids[at..].starts_with(&body)).unwrap_or(added);
        let closing = ids.split_off(before + body.len().min(ids.len() - before));
        Ok((ids, closing))
    }
}

/// The tokenizer that the GGUF file of the first of some folders with one carries, with that folder and the file.
fn in_gguf<'a>(folders: &[&'a Path]) -> Result<Option<(&'a Path, PathBuf, GgufTokenizer)>> {
    for folder in folders {
        let found = gguf_tokenizer(folder).map_err(|e| Error::file(folder, e))?;
        if let Some((path, of)) = found {
            return Ok(Some((folder, path, of)));
        }
    }
    Ok(None)
}

/// Whether one of some folders has a tokenizer: its file, or one that a GGUF file carries.
#[must_use]
pub fn has_tokenizer(folders: &[&Path]) -> bool {
    folders.iter().any(|folder| folder.join("tokenizer.json").exists()) || in_gguf(folders).is_ok_and(|of| of.is_some())
}

/// EOS by the class of a model's tokenizer, or by the id that its config names.
fn eos_of_model(config: &Map<String, Value>, tokenizer: &Tokenizer) -> Option<(String, u32)> {
    let model_type = config.get("model_type").and_then(Value::as_str).unwrap_or_default();
    let of_class = CLASS_EOS.iter().find(|(of, _)| *of == model_type).map(|(_, eos)| *eos);
    if let Some((text, id)) = of_class.and_then(|eos| Some((eos, tokenizer.token_to_id(eos)?))) {
        return Some((text.to_owned(), id));
    }
    let id = match config.get("eos_token_id")? {
        Value::Array(several) => several.first()?.as_u64()?,
        one => one.as_u64()?,
    };
    let id = u32::try_from(id).ok()?;
    Some((tokenizer.id_to_token(id)?, id))
}

/// The chat template of the first folder that has one, and that folder.
fn template(folders: &[&Path], special: &Map<String, Value>) -> Result<Option<(ChatTemplate, PathBuf)>> {
    for folder in folders {
        let (jinja, config) = (folder.join("chat_template.jinja"), folder.join("tokenizer_config.json"));
        let source = if jinja.exists() {
            let source = text(&jinja)?;
            let tools = folder.join("additional_chat_templates").join("tool_use.jinja");
            let tools = tools.exists().then(|| text(&tools));
            Some((source, tools.transpose()?, &jinja))
        } else {
            let of = json(&config)?.and_then(|mut config| config.remove("chat_template"));
            of.and_then(|of| configured(&of)).map(|(source, tools)| (source, tools, &config))
        };
        if let Some((source, tools, path)) = source {
            let mut template = ChatTemplate::new(&source, special.clone(), path)?;
            if let Some(tools) = tools {
                template.add_tool_use(&tools, path)?;
            }
            return Ok(Some((template, folder.to_path_buf())));
        }
    }
    Ok(None)
}

/// The template of a configuration and the one for conversations with tools: one, or those called `default` and `tool_use` of
/// several.
fn configured(template: &Value) -> Option<(String, Option<String>)> {
    if let Value::String(text) = template {
        return Some((text.clone(), None));
    }
    let several = template.as_array()?;
    let called = |name: &str| {
        Some(several.iter().find(|t| t.get("name").is_some_and(|n| n == name))?.get("template")?.as_str()?.to_owned())
    };
    Some((called("default")?, called("tool_use")))
}

#[cfg(test)]
mod tests {
    use super::{bytes_of, growth};
    use serde_json::json;

    #[test]
    fn growth_is_that_of_all_steps_together() {
        let replace = |pattern: &str, content: &str| json!({"type": "Replace", "pattern": {"String": pattern}, "content": content});
        // as llama has it: a mark in front, and spaces become three bytes
        let llama =
            json!({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, replace(" ", "▁")]});
        assert!((growth(&llama) - 12.0).abs() < 1e-12);
        let bomb = json!({"type": "Sequence", "normalizers": vec![replace("a", "aaaaaaaaaa"); 9]});
        assert!((growth(&bomb) - 1e9).abs() < 1.0);
        assert!(
            growth(&json!({"type": "Sequence", "normalizers": vec![json!({"type": "Prepend", "prepend": "aaa"}); 9]}))
                > 2e5
        );
    }

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
