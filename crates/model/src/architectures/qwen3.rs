//! `Qwen3ForCausalLM`: Qwen 2 without its biases, and with norms of every head's queries and keys.
use super::{Description, Names, QueryKeyNorm, llama, qwen2};
use crate::config::Config;
use crate::error::Result;

fn names() -> Names {
    Names { query_key_norms: Some(["self_attn.q_norm", "self_attn.k_norm"]), ..llama::names() }
}

pub(super) fn describe(config: &Config) -> Result<Description> {
    let bias = config.get("attention_bias")?.unwrap_or(false);
    let of = qwen2::body(config, Some(128))?;
    let query_key_norm = Some(QueryKeyNorm::Heads);
    Ok(Description { qkv_bias: bias, o_bias: bias, query_key_norm, names: names(), ..of })
}
