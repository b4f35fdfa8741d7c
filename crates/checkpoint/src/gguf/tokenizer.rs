//! The tokenizer that a GGUF file carries, as the tokenizer.json and the tokenizer_config.json that it was made from.
//!
//! Two kinds are there: byte-level BPE (`gpt2`), whose way of cutting texts is known by a name, and SentencePiece's BPE (`llama`), whose merges
//! follow from the scores of its pieces as transformers makes them (`convert_slow_tokenizer.generate_merges`).
use super::header::{Field, Header};
use serde_json::{Map, Value, json};
use std::collections::HashMap;

/// A tokenizer, and what is configured beside it.
#[derive(Clone, Debug, PartialEq)]
pub struct GgufTokenizer {
    /// What tokenizer.json holds.
    pub tokenizer: Value,
    /// What tokenizer_config.json holds: special tokens and a chat template.
    pub config: Map<String, Value>,
}

const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);
const GPT4O: &str = concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);

/// The pattern by which texts are cut before merges, by llama.cpp's name for the way; GPT-2's own where there is none.
const CUTS: [(&str, Option<&str>); 10] = [
    ("llama-bpe", Some(LLAMA3)),
    ("llama3", Some(LLAMA3)),
    ("llama-v3", Some(LLAMA3)),
    ("qwen2", Some(QWEN2)),
    ("deepseek-r1-qwen", Some(QWEN2)),
    ("tekken", Some(TEKKEN)),
    ("gpt-4o", Some(GPT4O)),
    // digits one by one, and then GPT-2's
    ("smollm", None),
    ("gpt-2", None),
    ("default", None),
];

/// Bytes of the longest token: merges are looked for at every place of each.
const LONGEST_TOKEN: usize = 1024;

/// Types of tokens, as llama.cpp numbers them.
const UNKNOWN: i64 = 2;
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;

/// The tokenizer of a file, `None` where it has none.
pub(crate) fn of(header: &Header<'_>) -> Result<Option<GgufTokenizer>, String> {
    let beside = "; put the model's own tokenizer.json beside the file";
    let own = |key: &str| header.fields.get(format!("tokenizer.ggml.{key}").as_str());
    let Some(Field::Text(model)) = own("model") else { return Ok(None) };
    let Some(tokens) = own("tokens") else { return Err(format!("has a tokenizer without tokens{beside}")) };
    let gemma = header.architecture().is_ok_and(|of| of.starts_with("gemma"));
    // Gemma's tokens of several spaces are written as such
    let spelled = |token: &str| match gemma && token.contains(' ') && token.trim().is_empty() {
        true => token.replace(' ', "▁"),
        false => token.to_owned(),
    };
    let tokens: Vec<String> = tokens.texts()?.into_iter().map(spelled).collect();
    let tokens: Vec<&str> = tokens.iter().map(String::as_str).collect();
    if let Some(long) = tokens.iter().find(|token| token.len() > LONGEST_TOKEN) {
        return Err(format!("has a token of {} bytes; the longest that is read has {LONGEST_TOKEN}", long.len()));
    }
    let types = own("token_type").map(Field::wholes).transpose()?.unwrap_or_default();
    let kind = |id: usize| types.get(id).copied().unwrap_or(1);
    let flag = |key: &str| match own(key) {
        Some(Field::Bool(of)) => Some(*of),
        _ => None,
    };
    let named = |key: &str| match own(key) {
        Some(Field::Whole(id)) => usize::try_from(*id).ok().and_then(|id| Some((id, *tokens.get(id)?))),
        _ => None,
    };
    let vocab: Map<String, Value> =
        tokens.iter().enumerate().map(|(id, token)| ((*token).to_owned(), json!(id))).collect();
    let added: Vec<Value> = (0..tokens.len())
        .filter(|id| [CONTROL, USER_DEFINED, UNKNOWN].contains(&kind(*id)))
        .map(|id| {
            json!({
                "id": id, "content": tokens[id], "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
                "special": kind(id) != USER_DEFINED,
            })
        })
        .collect();
    let space = flag("add_space_prefix").unwrap_or(true);
    let (parts, adds_bos) = match *model {
        "gpt2" => {
            let Some(Field::Text(cut)) = own("pre") else {
                return Err(format!("does not say how its tokenizer cuts texts (tokenizer.ggml.pre){beside}"));
            };
            let merges = own("merges").map(Field::texts).transpose()?.unwrap_or_default();
            (
                byte_level(cut, &merges).ok_or_else(|| {
                    let known = CUTS.map(|(name, _)| name).join(", ");
                    format!(
                        "cuts texts in the way `{}`, which is not known; known: {known}{beside}",
                        crate::error::brief(cut)
                    )
                })?,
                whole_words(cut),
            )
        }
        "llama" => {
            let mut scores = own("scores").map(Field::reals).transpose()?.unwrap_or_default();
            if scores.len() != tokens.len() {
                return Err(format!("has {} scores for {} tokens{beside}", scores.len(), tokens.len()));
            }
            if gemma {
                // Gemma's scores are not in the order of its merges, and its tokens are
                scores = (0..tokens.len()).map(|id| -(id as f64)).collect();
            }
            let unknown = named("unknown_token_id").map(|(_, token)| token);
            (pieces(&tokens, &scores, unknown, space && !gemma), true)
        }
        other => {
            return Err(format!(
                "has a tokenizer of the kind `{}`, which is not read{beside}",
                crate::error::brief(other)
            ));
        }
    };
    let Parts { normalizer, cut, decoder, mut model } = parts;
    model["vocab"] = Value::Object(vocab);
    let (bos, eos) = (named("bos_token_id"), named("eos_token_id"));
    let around = [
        bos.filter(|_| flag("add_bos_token").unwrap_or(adds_bos)),
        eos.filter(|_| flag("add_eos_token").unwrap_or(false)),
    ];
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": normalizer, "pre_tokenizer": cut,
        "post_processor": template(around), "decoder": decoder, "model": model,
    });
    let mut config = Map::new();
    for (key, of) in [
        ("bos_token", bos),
        ("eos_token", eos),
        ("pad_token", named("padding_token_id")),
        ("unk_token", named("unknown_token_id")),
    ] {
        if let Some((_, token)) = of {
            config.insert(key.to_owned(), json!(token));
        }
    }
    if let Some(Field::Text(template)) = header.fields.get("tokenizer.chat_template") {
        config.insert("chat_template".to_owned(), json!(template));
    }
    Ok(Some(GgufTokenizer { tokenizer, config }))
}

/// What the kinds differ in.
struct Parts {
    normalizer: Value,
    cut: Value,
    decoder: Value,
    /// Without its vocabulary.
    model: Value,
}

/// Whether a word that is a token is that token, whatever merges make of it; llama.cpp also puts BOS before texts that are cut in such a
/// way, where the file does not say.
fn whole_words(cut: &str) -> bool {
    CUTS.iter().any(|(name, pattern)| *name == cut && [Some(LLAMA3), Some(TEKKEN)].contains(pattern))
}

/// Byte-level BPE.
fn byte_level(cut: &str, merges: &[&str]) -> Option<Parts> {
    let pattern = CUTS.iter().find(|(name, _)| *name == cut)?.1;
    let level = |by_itself: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": by_itself});
    let steps = match (pattern, cut) {
        (None, "smollm") => vec![json!({"type": "Digits", "individual_digits": true}), level(true)],
        (None, _) => vec![level(true)],
        (Some(pattern), _) => vec![
            json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false}),
            level(false),
        ],
    };
    let normalizer = if pattern == Some(QWEN2) { json!({"type": "NFC"}) } else { Value::Null };
    Some(Parts {
        normalizer,
        cut: json!({"type": "Sequence", "pretokenizers": steps}),
        decoder: json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true}),
        model: json!({
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null, "end_of_word_suffix": null,
            "fuse_unk": false, "byte_fallback": false, "ignore_merges": whole_words(cut), "merges": merges,
        }),
    })
}

/// SentencePiece's BPE.
fn pieces(tokens: &[&str], scores: &[f64], unknown: Option<&str>, space: bool) -> Parts {
    let places: HashMap<&str, usize> = tokens.iter().enumerate().map(|(id, token)| (*token, id)).collect();
    let mut merges: Vec<(f64, usize, usize, usize)> = Vec::new();
    for (id, token) in tokens.iter().enumerate() {
        let halves = token.char_indices().skip(1).filter_map(|(at, _)| {
            let (left, right) = token.split_at(at);
            Some((*places.get(left)?, *places.get(right)?))
        });
        let mut of_token: Vec<(usize, usize)> = halves.collect();
        of_token.sort_unstable();
        merges.extend(of_token.into_iter().map(|(left, right)| (scores[id], id, left, right)));
    }
    // the highest score first, of equal ones the longest halves, and then the order in which they were found
    let lengths =
        |(_, _, left, right): &(f64, usize, usize, usize)| [*left, *right].map(|half| tokens[half].chars().count());
    merges.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| lengths(b).cmp(&lengths(a))));
    let merges: Vec<Value> =
        merges.into_iter().map(|(_, _, left, right)| json!([tokens[left], tokens[right]])).collect();
    let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
    let normalizer = match space {
        true => json!({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, replace]}),
        false => replace,
    };
    let mut back = vec![
        json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if space {
        back.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    Parts {
        normalizer,
        cut: Value::Null,
        decoder: json!({"type": "Sequence", "decoders": back}),
        model: json!({
            "type": "BPE", "dropout": null, "unk_token": unknown, "continuing_subword_prefix": null, "end_of_word_suffix": null,
            "fuse_unk": true, "byte_fallback": true, "ignore_merges": false, "merges": merges,
        }),
    }
}

/// What is put before and after a text.
fn template([before, after]: [Option<(usize, &str)>; 2]) -> Value {
    if before.is_none() && after.is_none() {
        return json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": true});
    }
    let token = |of: Option<(usize, &str)>, sentence: usize| {
        of.map(|(_, id)| json!({"SpecialToken": {"id": id, "type_id": sentence}}))
    };
    let text = |name: &str, sentence: usize| {
        let all = [
            token(before, sentence),
            Some(json!({"Sequence": {"id": name, "type_id": sentence}})),
            token(after, sentence),
        ];
        all.into_iter().flatten().collect::<Vec<_>>()
    };
    let tokens: Map<String, Value> = [before, after]
        .into_iter()
        .flatten()
        .map(|(id, token)| (token.to_owned(), json!({"id": token, "ids": [id], "tokens": [token]})))
        .collect();
    let pair: Vec<Value> = text("A", 0).into_iter().chain(text("B", 1)).collect();
    json!({"type": "TemplateProcessing", "single": text("A", 0), "pair": pair, "special_tokens": tokens})
}
