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

/// An architecture whose tensors are given transformers' names.
struct Architecture {
    /// llama.cpp's name.
    name: &'static str,
    /// `model_type`.
    model_type: &'static str,
    /// Whether rows of queries and keys are in the order of rotating neighbours, as llama.cpp does.
    neighbours: bool,
    /// Whether norms before and after both layers are Gemma's.
    four_norms: bool,
    /// Router, and gate, up and down of an expert, by module.
    experts: Option<[&'static str; 4]>,
}

/// One without experts whose rows are in the order of transformers.
const fn plain(name: &'static str, model_type: &'static str) -> Architecture {
    Architecture { name, model_type, neighbours: false, four_norms: false, experts: None }
}

/// Names of experts in most architectures.
const EXPERTS: Option<[&str; 4]> = Some(["mlp.gate", "gate_proj", "up_proj", "down_proj"]);

const ARCHITECTURES: [Architecture; 14] = [
    Architecture { neighbours: true, ..plain("llama", "llama") },
    // known from the first by its experts
    Architecture {
        neighbours: true,
        experts: Some(["block_sparse_moe.gate", "w1", "w3", "w2"]),
        ..plain("llama", "mixtral")
    },
    plain("qwen2", "qwen2"),
    plain("qwen3", "qwen3"),
    Architecture { experts: EXPERTS, ..plain("qwen2moe", "qwen2_moe") },
    Architecture { experts: EXPERTS, ..plain("qwen3moe", "qwen3_moe") },
    Architecture { experts: EXPERTS, ..plain("olmoe", "olmoe") },
    plain("olmo2", "olmo2"),
    plain("phi3", "phi3"),
    Architecture { neighbours: true, ..plain("granite", "granite") },
    Architecture { neighbours: true, ..plain("smollm3", "smollm3") },
    plain("gemma", "gemma"),
    Architecture { four_norms: true, ..plain("gemma2", "gemma2") },
    Architecture { four_norms: true, ..plain("gemma3", "gemma3_text") },
];

/// Names inside a block.
const IN_BLOCK: [(&str, &str); 18] = [
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_qkv", "self_attn.qkv_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("post_attention_norm", "post_attention_layernorm"),
    ("post_ffw_norm", "post_feedforward_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
    ("ffn_norm", "post_attention_layernorm"),
    ("ffn_gate_shexp", "mlp.shared_expert.gate_proj"),
    ("ffn_up_shexp", "mlp.shared_expert.up_proj"),
    ("ffn_down_shexp", "mlp.shared_expert.down_proj"),
    (SHARED_GATE, "mlp.shared_expert_gate"),
];

/// What opens the shared expert, a matrix of one row that is stored as a vector.
const SHARED_GATE: &str = "ffn_gate_inp_shexp";

/// Experts of a block in one tensor.
const OF_EXPERTS: [&str; 3] = ["ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"];

impl Architecture {
    /// The one of a header.
    fn of(header: &Header<'_>) -> Result<Option<&'static Self>, String> {
        let name = header.architecture()?;
        let routed = header.size("expert_count").is_some_and(|number| number > 0);
        let mut named = ARCHITECTURES.iter().filter(|of| of.name == name);
        let first = named.next();
        Ok(named.find(|of| routed && of.experts.is_some()).or(first))
    }

    /// The name that transformers has for a tensor; of the experts of a block, that of the first, with what stands for its number.
    fn name_of(&self, name: &str) -> Option<String> {
        let (module, tensor) = name.rsplit_once('.')?;
        let outside = [("token_embd", "model.embed_tokens"), ("output_norm", "model.norm"), ("output", "lm_head")];
        if let Some((_, of)) = outside.iter().find(|(of, _)| *of == module) {
            return Some(format!("{of}.{tensor}"));
        }
        let (layer, inside) = module.strip_prefix("blk.")?.split_once('.')?;
        if let Some([router, maps @ ..]) = self.experts {
            let layers = router.rsplit_once('.')?.0;
            if inside == "ffn_gate_inp" {
                return Some(format!("model.layers.{layer}.{router}.{tensor}"));
            }
            if let Some(at) = OF_EXPERTS.iter().position(|of| *of == inside) {
                return Some(format!("model.layers.{layer}.{layers}.experts.{EXPERT}.{}.{tensor}", maps[at]));
            }
        }
        let (_, of) = IN_BLOCK.iter().find(|(of, _)| *of == inside)?;
        let of = match inside {
            "ffn_norm" if self.four_norms => "pre_feedforward_layernorm",
            // gate and up in one
            "ffn_up" if self.model_type == "phi3" => "mlp.gate_up_proj",
            _ => of,
        };
        Some(format!("model.layers.{layer}.{of}.{tensor}"))
    }
}

/// What stands for the number of an expert in a name.
const EXPERT: &str = "#";

/// Most experts of a block.
const MOST_EXPERTS: usize = 4096;

/// The tensors of a file, under transformers' names.
pub(crate) fn tensors(bytes: &[u8], file: usize) -> Result<Vec<(String, Stored)>, String> {
    let header = header(bytes)?;
    let architecture = header.architecture()?;
    let Some(of) = Architecture::of(&header)? else {
        let mut known: Vec<&str> = ARCHITECTURES.iter().map(|of| of.name).collect();
        known.dedup();
        let found = crate::error::brief(architecture);
        return Err(format!("is of architecture `{found}`, which is not read from GGUF; read: {}", known.join(", ")));
    };
    let gemma = architecture.starts_with("gemma");
    let mut found = Vec::new();
    for (name, shape, kind, offset) in &header.tensors {
        // a part of the config
        if *name == DIVISORS || DIVISORS_BY_LENGTH.contains(name) {
            continue;
        }
        let named = of
            .name_of(name)
            .ok_or_else(|| format!("has a tensor `{}`, which is not known", crate::error::brief(name)))?;
        let start = header.data.checked_add(*offset).ok_or(TRUNCATED)?;
        let kind = Kind::of(*kind).ok_or_else(|| format!("`{name}` is of type {kind}; read: {}", Kind::names()))?;
        let length = shape.last().and_then(|columns| kind.bytes_of_row(*columns));
        let rows = shape.iter().rev().skip(1).try_fold(1usize, |rows, size| rows.checked_mul(*size));
        let length = length.zip(rows).and_then(|(row, rows)| row.checked_mul(rows));
        let length = length.ok_or_else(|| format!("`{name}` has rows that are no whole blocks: {shape:?}"))?;
        if start.checked_add(length as u64).is_none_or(|end| end > bytes.len() as u64) {
            return Err(format!("`{name}` ends beyond the file; copy or download it again"));
        }
        // llama.cpp rotates neighbours, and has rows of queries and keys in that order
        let heads = match name.rsplit('.').nth(1) {
            Some("attn_q") if of.neighbours => header.size("attention.head_count"),
            Some("attn_k") if of.neighbours => {
                header.size("attention.head_count_kv").or(header.size("attention.head_count"))
            }
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
        let columns = shape.last().copied().unwrap_or(1);
        let encoding = |start: u64| {
            let place = Place { file, start };
            match kind.plain().filter(|_| apart.is_none() && !minus_one) {
                Some(number) => Encoding::Plain { number, place },
                None => Encoding::Quantised(Quantised::Ggml(Ggml { kind, place, columns, head: apart, minus_one })),
            }
        };
        match (named.split_once(EXPERT), shape.as_slice()) {
            // experts lie one behind the other
            (Some((before, after)), &[experts, rows, columns]) if (1..=MOST_EXPERTS).contains(&experts) => {
                for expert in 0..experts {
                    let encoding = encoding(start + (length / experts * expert) as u64);
                    let stored = Stored { shape: vec![rows, columns], encoding };
                    found.push((format!("{before}{expert}{after}"), stored));
                }
            }
            (Some(_), _) => {
                return Err(format!(
                    "`{name}` is of shape {shape:?}; expected a matrix for each of up to {MOST_EXPERTS} experts"
                ));
            }
            (None, &[columns]) if name.contains(SHARED_GATE) => {
                found.push((named, Stored { shape: vec![1, columns], encoding: encoding(start) }));
            }
            (None, _) => found.push((named, Stored { shape: shape.clone(), encoding: encoding(start) })),
        }
    }
    Ok(found)
}

/// Divisors of sequences within the original length, and of longer ones: their config says which length that is, and the header does not.
const DIVISORS_BY_LENGTH: [&str; 2] = ["rope_factors_long.weight", "rope_factors_short.weight"];

/// Keys of config.json, and llama.cpp's for the same.
const SIZES: [(&str, &str); 12] = [
    ("hidden_size", "embedding_length"),
    ("num_hidden_layers", "block_count"),
    ("intermediate_size", "feed_forward_length"),
    ("num_attention_heads", "attention.head_count"),
    ("num_key_value_heads", "attention.head_count_kv"),
    ("head_dim", "attention.key_length"),
    ("max_position_embeddings", "context_length"),
    ("sliding_window", "attention.sliding_window"),
    ("num_experts", "expert_count"),
    ("num_experts_per_tok", "expert_used_count"),
    ("moe_intermediate_size", "expert_feed_forward_length"),
    ("shared_expert_intermediate_size", "expert_shared_feed_forward_length"),
];

/// The config that a file's header stands for, as transformers writes it.
pub(crate) fn config(bytes: &[u8]) -> Result<Value, String> {
    let header = header(bytes)?;
    let architecture = header.architecture()?.to_owned();
    let beside = "; put the model's own config.json beside the file";
    let Some(Architecture { model_type, .. }) = Architecture::of(&header)? else {
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
        ("embedding_multiplier", "embedding_scale"),
        ("residual_multiplier", "residual_scale"),
        ("attention_multiplier", "attention.scale"),
        ("logits_scaling", "logit_scale"),
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
    // what llama.cpp does in its code, and has in no header
    match *model_type {
        "qwen3_moe" => drop(config.insert("norm_topk_prob".to_owned(), json!(true))),
        "qwen2_moe" | "olmoe" => drop(config.insert("norm_topk_prob".to_owned(), json!(false))),
        _ => {}
    }
    if DIVISORS_BY_LENGTH.iter().any(|name| has(name)) {
        return Err(format!("scales its rotary angles by the length of a sequence{beside}"));
    }
    Ok(Value::Object(config))
}
