//! `GraniteForCausalLM`: Llama with factors on the embedding, the attention scores, what each layer adds, and the logits.
use super::llama::{self, Defaults};
use super::{Description, factor};
use crate::config::Config;
use crate::error::Result;
use crate::rope::RopeDefaults;
use tanglescope_kernels::AttentionSpec;

pub(super) fn describe(config: &Config) -> Result<Description> {
    let of = llama::with_rope(llama::body(config, Defaults::default())?, config, RopeDefaults::default())?;
    let attention_bias = config.get("attention_bias")?.unwrap_or(false);
    Ok(Description {
        embedding_scale: factor(config, "embedding_multiplier")?,
        attention: AttentionSpec { scale: factor(config, "attention_multiplier")?, ..of.attention },
        residual_scale: factor(config, "residual_multiplier")?,
        logit_scale: factor(config, "logits_scaling")?.recip(),
        qkv_bias: attention_bias,
        o_bias: attention_bias,
        mlp_bias: config.get("mlp_bias")?.unwrap_or(false),
        ..of
    })
}
