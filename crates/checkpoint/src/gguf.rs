//! GGUF, llama.cpp's files: a header of keys and values, a list of tensors, and their blocks
//! (<https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>). Tensors are given the names, and rows the order, that transformers has.
use crate::number::Number;
use crate::quantised::Quantised;
use crate::quantised::ggml::{Ggml, Kind};
use crate::stored::{Encoding, Place, Stored};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// A value of the header.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Field<'a> {
    Whole(i64),
    Real(f64),
    Bool(bool),
    Text(&'a str),
    /// Type and number of its values, and their bytes.
    Array(u32, u64, &'a [u8]),
}

impl<'a> Field<'a> {
    /// The values of an array, each read by one function.
    fn values<T>(&self, read: impl Fn(Field<'a>) -> Option<T>) -> Result<Vec<T>, String> {
        let Self::Array(kind, number, bytes) = *self else {
            return Err("has a number where an array belongs".to_owned());
        };
        let mut reader = Reader { bytes, at: 0 };
        let wrong = || "has an array of values of another type than it should be of".to_owned();
        (0..number).map(|_| read(reader.field(kind)?).ok_or_else(wrong)).collect()
    }

    /// An array of texts.
    pub fn texts(&self) -> Result<Vec<&'a str>, String> {
        self.values(|value| if let Field::Text(text) = value { Some(text) } else { None })
    }

    /// An array of whole numbers.
    pub fn wholes(&self) -> Result<Vec<i64>, String> {
        self.values(|value| if let Field::Whole(number) = value { Some(number) } else { None })
    }

    /// An array of real numbers.
    pub fn reals(&self) -> Result<Vec<f64>, String> {
        self.values(|value| if let Field::Real(number) = value { Some(number) } else { None })
    }
}

/// What is read of a file's header.
pub(crate) struct Header<'a> {
    pub fields: BTreeMap<&'a str, Field<'a>>,
    /// Name, sizes with the one that lies closest together last, kind, and first byte after the header.
    tensors: Vec<(&'a str, Vec<usize>, u32, u64)>,
    /// First byte of the tensors.
    data: u64,
}

/// Bytes, read one thing after the other.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

const TRUNCATED: &str = "ends in its header; copy or download it again";

impl<'a> Reader<'a> {
    fn take(&mut self, length: u64) -> Result<&'a [u8], String> {
        let end = usize::try_from(length).ok().and_then(|length| self.at.checked_add(length));
        let part = end.and_then(|end| self.bytes.get(self.at..end)).ok_or(TRUNCATED)?;
        self.at += part.len();
        Ok(part)
    }

    fn next<const W: usize>(&mut self) -> Result<[u8; W], String> {
        self.take(W as u64)?.try_into().map_err(|_| TRUNCATED.to_owned())
    }

    fn u32(&mut self) -> Result<u32, String> {
        Ok(u32::from_le_bytes(self.next()?))
    }

    fn u64(&mut self) -> Result<u64, String> {
        Ok(u64::from_le_bytes(self.next()?))
    }

    fn text(&mut self) -> Result<&'a str, String> {
        let length = self.u64()?;
        std::str::from_utf8(self.take(length)?).map_err(|_| "has a name that is no text".to_owned())
    }

    fn field(&mut self, kind: u32) -> Result<Field<'a>, String> {
        Ok(match kind {
            0 => Field::Whole(i64::from(self.next::<1>()?[0])),
            1 => Field::Whole(i64::from(self.next::<1>()?[0].cast_signed())),
            2 => Field::Whole(i64::from(u16::from_le_bytes(self.next()?))),
            3 => Field::Whole(i64::from(i16::from_le_bytes(self.next()?))),
            4 => Field::Whole(i64::from(self.u32()?)),
            5 => Field::Whole(i64::from(i32::from_le_bytes(self.next()?))),
            6 => Field::Real(f64::from(f32::from_le_bytes(self.next()?))),
            7 => Field::Bool(self.next::<1>()?[0] != 0),
            8 => Field::Text(self.text()?),
            9 => self.array()?,
            10 => Field::Whole(self.u64()?.cast_signed()),
            11 => Field::Whole(i64::from_le_bytes(self.next()?)),
            12 => Field::Real(f64::from_le_bytes(self.next()?)),
            other => return Err(format!("has a value of type {other}, which GGUF has not")),
        })
    }

    fn array(&mut self) -> Result<Field<'a>, String> {
        let (kind, number) = (self.u32()?, self.u64()?);
        let start = self.at;
        let width = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            10..=12 => 8,
            8 => {
                for _ in 0..number {
                    self.text()?;
                }
                return Ok(Field::Array(kind, number, &self.bytes[start..self.at]));
            }
            other => return Err(format!("has an array of type {other}, which is not read")),
        };
        let values = self.take(number.checked_mul(width).ok_or(TRUNCATED)?)?;
        Ok(Field::Array(kind, number, values))
    }
}

pub(crate) fn header(bytes: &[u8]) -> Result<Header<'_>, String> {
    let mut reader = Reader { bytes, at: 0 };
    if reader.take(4)? != b"GGUF" {
        return Err("is no GGUF file".to_owned());
    }
    let version = reader.u32()?;
    if !(2..=3).contains(&version) {
        return Err(format!("is GGUF of version {version}; read: 2 and 3, with the lowest byte first"));
    }
    let (tensors, fields) = (reader.u64()?, reader.u64()?);
    let mut header = Header { fields: BTreeMap::new(), tensors: Vec::new(), data: 0 };
    for _ in 0..fields {
        let (key, kind) = (reader.text()?, reader.u32()?);
        header.fields.insert(key, reader.field(kind)?);
    }
    for _ in 0..tensors {
        let (name, dimensions) = (reader.text()?, reader.u32()?);
        if dimensions > 4 {
            return Err(format!("has a tensor of {dimensions} dimensions"));
        }
        let sizes = (0..dimensions).map(|_| reader.u64()).collect::<Result<Vec<u64>, _>>()?;
        let shape = sizes.iter().rev().map(|size| usize::try_from(*size).map_err(|_| TRUNCATED.to_owned()));
        header.tensors.push((name, shape.collect::<Result<_, _>>()?, reader.u32()?, reader.u64()?));
    }
    let alignment = match header.fields.get("general.alignment") {
        None => 32,
        Some(Field::Whole(of)) => u64::try_from(*of).ok().filter(|of| *of > 0).ok_or("has no alignment")?,
        Some(_) => return Err("has an alignment that is no number".to_owned()),
    };
    header.data = (reader.at as u64).div_ceil(alignment).checked_mul(alignment).ok_or(TRUNCATED)?;
    Ok(header)
}

impl Header<'_> {
    pub fn architecture(&self) -> Result<&str, String> {
        match self.fields.get("general.architecture") {
            Some(Field::Text(of)) => Ok(of),
            _ => Err("does not say its architecture".to_owned()),
        }
    }

    /// A value under the architecture's name.
    fn own(&self, key: &str) -> Option<&Field<'_>> {
        self.fields.get(format!("{}.{key}", self.architecture().ok()?).as_str())
    }

    /// What the frequencies of rotary angles are divided by, where the file has that as a tensor.
    fn divisors(&self, bytes: &[u8]) -> Result<Option<Vec<f64>>, String> {
        let Some((name, shape, kind, offset)) = self.tensors.iter().find(|(name, ..)| *name == DIVISORS) else {
            return Ok(None);
        };
        let start = self.data.checked_add(*offset).and_then(|start| usize::try_from(start).ok());
        let values = shape.iter().try_fold(4usize, |all, size| all.checked_mul(*size));
        let end = start.zip(values).and_then(|(start, values)| start.checked_add(values));
        let values = start.zip(end).and_then(|(start, end)| bytes.get(start..end)).ok_or(TRUNCATED)?;
        if Kind::of(*kind).and_then(Kind::plain) != Some(Number::F32) {
            return Err(format!("`{name}` is of type {kind}; read: F32"));
        }
        Ok(Some(values.as_chunks::<4>().0.iter().map(|value| f64::from(f32::from_le_bytes(*value))).collect()))
    }

    fn size(&self, key: &str) -> Option<usize> {
        match self.own(key) {
            Some(Field::Whole(number)) => usize::try_from(*number).ok(),
            _ => None,
        }
    }
}

/// The tensor of what frequencies of rotary angles are divided by.
const DIVISORS: &str = "rope_freqs.weight";

/// Architectures whose tensors are given transformers' names: llama.cpp's name, `model_type`, and whether norms before and after both layers are
/// Gemma's.
const ARCHITECTURES: [(&str, &str, bool); 6] = [
    ("llama", "llama", false),
    ("qwen2", "qwen2", false),
    ("qwen3", "qwen3", false),
    ("gemma", "gemma", false),
    ("gemma2", "gemma2", true),
    ("gemma3", "gemma3_text", true),
];

/// Names inside a block.
const IN_BLOCK: [(&str, &str); 13] = [
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("post_attention_norm", "post_attention_layernorm"),
    ("post_ffw_norm", "post_feedforward_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
    ("ffn_norm", "post_attention_layernorm"),
];

/// The name that transformers has for a tensor.
fn name_of(name: &str, four_norms: bool) -> Option<String> {
    let (module, tensor) = name.rsplit_once('.')?;
    let outside = [("token_embd", "model.embed_tokens"), ("output_norm", "model.norm"), ("output", "lm_head")];
    if let Some((_, of)) = outside.iter().find(|(of, _)| *of == module) {
        return Some(format!("{of}.{tensor}"));
    }
    let (layer, inside) = module.strip_prefix("blk.")?.split_once('.')?;
    let (_, of) = IN_BLOCK.iter().find(|(of, _)| *of == inside)?;
    let of = if four_norms && inside == "ffn_norm" { "pre_feedforward_layernorm" } else { of };
    Some(format!("model.layers.{layer}.{of}.{tensor}"))
}

/// The tensors of a file, under transformers' names.
pub(crate) fn tensors(bytes: &[u8], file: usize) -> Result<Vec<(String, Stored)>, String> {
    let header = header(bytes)?;
    let architecture = header.architecture()?;
    let Some((_, _, four_norms)) = ARCHITECTURES.iter().find(|(name, ..)| *name == architecture) else {
        let known = ARCHITECTURES.map(|(name, ..)| name).join(", ");
        let found = crate::error::brief(architecture);
        return Err(format!("is of architecture `{found}`, which is not read from GGUF; read: {known}"));
    };
    let gemma = architecture.starts_with("gemma");
    let mut found = Vec::new();
    for (name, shape, kind, offset) in &header.tensors {
        // a part of the config
        if *name == DIVISORS {
            continue;
        }
        let of = name_of(name, *four_norms)
            .ok_or_else(|| format!("has a tensor `{}`, which is not known", crate::error::brief(name)))?;
        let start = header.data.checked_add(*offset).ok_or(TRUNCATED)?;
        let place = Place { file, start };
        let kind = Kind::of(*kind).ok_or_else(|| format!("`{name}` is of type {kind}; read: {}", Kind::names()))?;
        let length = shape.last().and_then(|columns| kind.bytes_of_row(*columns));
        let rows = shape.iter().rev().skip(1).try_fold(1usize, |rows, size| rows.checked_mul(*size));
        let length = length.zip(rows).and_then(|(row, rows)| row.checked_mul(rows));
        let length = length.ok_or_else(|| format!("`{name}` has rows that are no whole blocks: {shape:?}"))?;
        if start.checked_add(length as u64).is_none_or(|end| end > bytes.len() as u64) {
            return Err(format!("`{name}` ends beyond the file; copy or download it again"));
        }
        // llama.cpp rotates neighbours, and has rows of queries and keys in that order
        let heads = match (architecture, name.rsplit('.').nth(1)) {
            ("llama", Some("attn_q")) => header.size("attention.head_count"),
            ("llama", Some("attn_k")) => header.size("attention.head_count_kv").or(header.size("attention.head_count")),
            _ => None,
        };
        let rows = shape.first().copied().unwrap_or(0);
        let whole = |heads: usize| heads.checked_mul(2).is_some_and(|halves| halves > 0 && rows.is_multiple_of(halves));
        let apart = heads.filter(|heads| whole(*heads)).map(|heads| rows / heads);
        if heads.is_some() && apart.is_none_or(|head| head == 0) {
            return Err(format!("`{name}` has {rows} rows, which are not those of {heads:?} heads"));
        }
        // it has one more than Gemma's gains
        let minus_one = gemma && name.ends_with("norm.weight");
        let encoding = match kind.plain().filter(|_| apart.is_none() && !minus_one) {
            Some(number) => Encoding::Plain { number, place },
            None => Encoding::Quantised(Quantised::Ggml(Ggml {
                kind,
                place,
                columns: shape.last().copied().unwrap_or(1),
                head: apart,
                minus_one,
            })),
        };
        found.push((of, Stored { shape: shape.clone(), encoding }));
    }
    Ok(found)
}

/// Keys of config.json, and llama.cpp's for the same.
const SIZES: [(&str, &str); 8] = [
    ("hidden_size", "embedding_length"),
    ("num_hidden_layers", "block_count"),
    ("intermediate_size", "feed_forward_length"),
    ("num_attention_heads", "attention.head_count"),
    ("num_key_value_heads", "attention.head_count_kv"),
    ("head_dim", "attention.key_length"),
    ("max_position_embeddings", "context_length"),
    ("sliding_window", "attention.sliding_window"),
];

/// The config that a file's header stands for, as transformers writes it.
pub(crate) fn config(bytes: &[u8]) -> Result<Value, String> {
    let header = header(bytes)?;
    let architecture = header.architecture()?.to_owned();
    let beside = "; put the model's own config.json beside the file";
    let Some((_, model_type, _)) = ARCHITECTURES.iter().find(|(name, ..)| *name == architecture) else {
        return Err(format!(
            "is of architecture `{}`, whose config is not made from it{beside}",
            crate::error::brief(&architecture)
        ));
    };
    let mut config = Map::new();
    config.insert("model_type".to_owned(), json!(model_type));
    for (key, own) in SIZES {
        if let Some(size) = header.size(own) {
            config.insert(key.to_owned(), json!(size));
        }
    }
    let vocabulary =
        header.tensors.iter().find(|(name, ..)| *name == "token_embd.weight").and_then(|(_, shape, ..)| shape.first());
    config.insert("vocab_size".to_owned(), json!(vocabulary.ok_or("has no token_embd.weight")?));
    for (key, own) in [
        ("rms_norm_eps", "attention.layer_norm_rms_epsilon"),
        ("attn_logit_softcapping", "attn_logit_softcapping"),
        ("final_logit_softcapping", "final_logit_softcapping"),
    ] {
        if let Some(Field::Real(number)) = header.own(own) {
            // it was written from f32: the shortest decimal number that is that again
            #[allow(clippy::cast_possible_truncation)]
            let number: f64 = (*number as f32).to_string().parse().map_err(|_| "has a number that is none")?;
            config.insert(key.to_owned(), json!(number));
        }
    }
    if let Some(Field::Real(theta)) = header.own("rope.freq_base") {
        config.insert("rope_theta".to_owned(), json!(theta));
    }
    let scaling = match header.own("rope.scaling.type") {
        None | Some(Field::Text("none")) => None,
        Some(Field::Text("linear")) => match header.own("rope.scaling.factor") {
            Some(Field::Real(factor)) => Some(json!({"rope_type": "linear", "factor": factor})),
            _ => return Err(format!("scales its rotary angles by no factor{beside}")),
        },
        Some(_) => return Err(format!("scales its rotary angles in a way that is not read from it{beside}")),
    };
    let scaling = match (header.divisors(bytes)?, scaling) {
        (None, scaling) => scaling,
        // one set of divisors, whatever the length
        (Some(of), None) => Some(json!({
            "rope_type": "longrope", "short_factor": of, "long_factor": of, "factor": 1.0,
            "original_max_position_embeddings": header.size("context_length"),
        })),
        (Some(_), Some(_)) => return Err(format!("scales its rotary angles in two ways{beside}")),
    };
    if let Some(scaling) = scaling {
        config.insert("rope_scaling".to_owned(), scaling);
    }
    let has = |name: &str| header.tensors.iter().any(|(of, ..)| *of == name);
    config.insert("tie_word_embeddings".to_owned(), json!(!has("output.weight")));
    if architecture == "llama" && has("blk.0.attn_q.bias") {
        config.insert("attention_bias".to_owned(), json!(true));
    }
    Ok(Value::Object(config))
}
