//! `SeedOssForCausalLM`: Llama with biases that its config asks for one by one.
use super::Description;
use super::llama::{self, Defaults};
use crate::config::Config;
use crate::error::Result;
use crate::rope::RopeDefaults;

pub(super) fn describe(config: &Config) -> Result<Description> {
    let defaults = Defaults {
        sizes: [155_136, 4096, 64, 80, 27_648],
        kv_heads: Some(8),
        head_dim: Some(128),
        max_positions: 524_288,
        padding: Some(1),
        ..Defaults::default()
    };
    let of = llama::with_rope(llama::body(config, defaults)?, config, RopeDefaults::default())?;
    // of training
    let _dropout: Option<f64> = config.get("residual_dropout")?;
    Ok(Description {
        qkv_bias: config.get("attention_bias")?.unwrap_or(true),
        o_bias: config.get("attention_out_bias")?.unwrap_or(false),
        mlp_bias: config.get("mlp_bias")?.unwrap_or(false),
        ..of
    })
}
