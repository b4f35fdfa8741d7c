//! The config that a GGUF file's header stands for.
use super::header::{Field, header};
use super::names::Architecture;
use serde_json::{Map, Value, json};

/// The tensor of what frequencies of rotary angles are divided by.
pub(super) const DIVISORS: &str = "rope_freqs.weight";

/// Divisors of sequences within the original length, and of longer ones: their config says which length that is, and the header does not.
pub(super) const DIVISORS_BY_LENGTH: [&str; 2] = ["rope_factors_long.weight", "rope_factors_short.weight"];

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
        // a window of 0 is none
        if let Some(size) = header.size(own).filter(|size| *size > 0) {
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
    let of_heads = || Some(header.size("embedding_length")? / header.size("attention.head_count")?.max(1));
    let head_dim = header.size("attention.key_length").or_else(of_heads);
    if let (Some(rotated), Some(of)) = (header.size("rope.dimension_count"), head_dim)
        && rotated != of
    {
        if *model_type != "phi3" || of == 0 {
            return Err(format!("rotates {rotated} of {of} dimensions of a head{beside}"));
        }
        config.insert("partial_rotary_factor".to_owned(), json!(rotated as f64 / of as f64));
    }
    // what llama.cpp does in its code, and has in no header
    if let ("gemma2", Some(46)) | ("gemma3_text", Some(62)) = (*model_type, header.size("block_count")) {
        config.insert("query_pre_attn_scalar".to_owned(), json!(of_heads()));
    }
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
