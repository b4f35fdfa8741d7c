//! `StableLmForCausalLM`: layer norms, a gated feed-forward layer, beside attention or after it, and rotary angles in a part of each head.
use super::llama::{self, Defaults};
use super::{Description, Names};
use crate::config::Config;
use crate::error::Result;
use crate::rope::RopeDefaults;
use tanglescope_kernels::NormKind;

pub(super) fn describe(config: &Config) -> Result<Description> {
    let defaults = Defaults {
        sizes: [50_304, 2560, 32, 32, 6912],
        kv_heads: Some(32),
        max_positions: 4096,
        ..Defaults::default()
    };
    let rope = RopeDefaults { part: Some(("partial_rotary_factor", 0.25)), ..RopeDefaults::default() };
    let of = llama::with_rope(llama::body(config, defaults)?, config, rope)?;
    if config.get("qk_layernorm")?.unwrap_or(false) {
        return Err(config.refuse("qk_layernorm", "found true; only false is supported"));
    }
    // of training
    let _dropout: Option<f64> = config.get("hidden_dropout")?;
    let parallel = config.get("use_parallel_residual")?.unwrap_or(false);
    let names = llama::names();
    Ok(Description {
        norm: NormKind { centred: true, eps: config.get("layer_norm_eps")?.unwrap_or(1e-5) },
        norm_bias: true,
        parallel,
        qkv_bias: config.get("use_qkv_bias")?.unwrap_or(false),
        // side by side, both read one norm
        names: Names { mlp_norm: names.mlp_norm.filter(|_| !parallel), ..names },
        ..of
    })
}
