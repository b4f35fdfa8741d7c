//! `GemmaForCausalLM`: Llama with norms that multiply with one plus their gain, and a scaled embedding.
use super::Description;
use super::llama::{self, Defaults};
use crate::config::Config;
use crate::error::Result;
use crate::rope::RopeDefaults;
use tanglescope_kernels::Activation;

pub(super) fn describe(config: &Config) -> Result<Description> {
    let defaults = Defaults {
        sizes: [256_000, 3072, 28, 16, 24_576],
        kv_heads: Some(16),
        head_dim: Some(256),
        max_positions: 8192,
        activation: ("hidden_act", "gelu_pytorch_tanh"),
        tied: true,
        padding: Some(0),
        ..Defaults::default()
    };
    let of = llama::with_rope(llama::body(config, defaults)?, config, RopeDefaults::default())?;
    // a key of transformers 4 that its code let `hidden_act` stand in for
    let newer: Option<String> = config.get("hidden_activation")?;
    if newer.is_some_and(|name| !["gelu_pytorch_tanh", "gelu"].contains(&name.as_str())) {
        return Err(config.refuse("hidden_activation", "only gelu_pytorch_tanh is supported"));
    }
    // the first configs say gelu and mean its tanh form, as transformers reads them
    let activation = if of.activation == Activation::Gelu { Activation::GeluTanh } else { of.activation };
    let bias = config.get("attention_bias")?.unwrap_or(false);
    let embedding_scale = (of.hidden as f64).sqrt();
    Ok(Description { activation, embedding_scale, gain_plus_one: true, qkv_bias: bias, o_bias: bias, ..of })
}
