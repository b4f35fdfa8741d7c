//! `Olmo2ForCausalLM`: Llama with norms after attention and feed-forward layer and none before, and norms of all queries and keys.
use super::llama::{self, Defaults};
use super::{Description, Names, QueryKeyNorm};
use crate::config::Config;
use crate::error::Result;
use crate::rope::RopeDefaults;

pub(super) fn names() -> Names {
    Names {
        attention_norm: None,
        query_key_norms: Some(["self_attn.q_norm", "self_attn.k_norm"]),
        after_attention: Some("post_attention_layernorm"),
        mlp_norm: None,
        after_mlp: Some("post_feedforward_layernorm"),
        ..llama::names()
    }
}

pub(super) fn describe(config: &Config) -> Result<Description> {
    llama::with_rope(body(config)?, config, RopeDefaults::default())
}

/// What OLMo 2 and OLMo 3 share; positions and windows are left out.
pub(super) fn body(config: &Config) -> Result<Description> {
    let of = llama::body(config, Defaults { eps: 1e-5, padding: Some(1), ..Defaults::default() })?;
    let bias = config.get("attention_bias")?.unwrap_or(false);
    let query_key_norm = Some(QueryKeyNorm::Whole);
    Ok(Description { qkv_bias: bias, o_bias: bias, query_key_norm, names: names(), ..of })
}
