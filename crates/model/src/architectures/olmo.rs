//! `OlmoForCausalLM`: Llama with layer norms that have no parameters, and a bound on queries, keys and values.
use super::llama::{self, Defaults};
use super::{Description, bound};
use crate::config::Config;
use crate::error::Result;
use crate::rope::RopeDefaults;
use tanglescope_kernels::NormKind;

pub(super) fn describe(config: &Config) -> Result<Description> {
    let defaults = Defaults { sizes: [50_304, 4096, 32, 32, 11_008], padding: Some(1), ..Defaults::default() };
    let of = llama::with_rope(llama::body(config, defaults)?, config, RopeDefaults::default())?;
    let bias = config.get("attention_bias")?.unwrap_or(false);
    let norm = NormKind { centred: true, eps: 1e-5 };
    Ok(Description {
        norm,
        norm_gain: false,
        qkv_bias: bias,
        o_bias: bias,
        qkv_bound: bound(config, "clip_qkv")?,
        ..of
    })
}
