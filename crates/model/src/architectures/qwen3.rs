//! `Qwen3ForCausalLM`: Qwen 2 without its biases, and with norms of every head's queries and keys.
use super::{Description, Names, QueryKeyNorm, llama, qwen2};
use crate::config::Config;
use crate::error::Result;
use crate::rope::RopeDefaults;

pub(super) fn names() -> Names {
    Names { query_key_norms: Some(["self_attn.q_norm", "self_attn.k_norm"]), ..llama::names() }
}

pub(super) fn describe(config: &Config) -> Result<Description> {
    let bias = config.get("attention_bias")?.unwrap_or(false);
    let of = qwen2::body(config, qwen2::defaults(qwen2::SIZES, None, Some(128)), RopeDefaults::default())?;
    let query_key_norm = Some(QueryKeyNorm::Heads);
    Ok(Description { qkv_bias: bias, o_bias: bias, query_key_norm, names: names(), ..of })
}
