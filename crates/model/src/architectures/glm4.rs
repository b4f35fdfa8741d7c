//! `Glm4ForCausalLM`: norms before and after each layer, biases on queries, keys and values, rotary angles of neighbours in half of each
//! head, and one matrix for gate and up.
use super::llama::{self, Defaults};
use super::{Description, Names, Up};
use crate::config::Config;
use crate::error::Result;
use crate::rope::RopeDefaults;

fn names() -> Names {
    Names {
        after_attention: Some("post_self_attn_layernorm"),
        after_mlp: Some("post_mlp_layernorm"),
        up: Up::Joined("mlp.gate_up_proj"),
        ..llama::names()
    }
}

pub(super) fn describe(config: &Config) -> Result<Description> {
    let defaults = Defaults {
        sizes: [151_552, 4096, 40, 32, 13_696],
        kv_heads: Some(2),
        head_dim: Some(128),
        max_positions: 131_072,
        eps: 1.5625e-7,
        padding: Some(151_329),
        ..Defaults::default()
    };
    let rope = RopeDefaults { part: Some(("partial_rotary_factor", 0.5)), neighbours: true, ..RopeDefaults::default() };
    let of = llama::with_rope(llama::body(config, defaults)?, config, rope)?;
    Ok(Description { qkv_bias: config.get("attention_bias")?.unwrap_or(true), names: names(), ..of })
}
