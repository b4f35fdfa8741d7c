//! `DeepseekV3ForCausalLM`: attention by way of latents, and GLM-4.5's experts on all but the first blocks.
use super::llama::{self, Defaults};
use super::{Description, LatentKind, glm4_moe};
use crate::config::Config;
use crate::error::Result;
use crate::layers::LatentDims;
use crate::rope::{Rope, RopeDefaults};
use tanglescope_kernels::{AttentionSpec, NormKind};

pub(super) fn describe(config: &Config) -> Result<Description> {
    let defaults = Defaults {
        sizes: [129_280, 7168, 61, 128, 18_432],
        kv_heads: Some(128),
        max_positions: 4096,
        ..Defaults::default()
    };
    let of = llama::body(config, defaults)?;
    let size = |key: &str, default: usize| config.checked_size(key, config.get(key)?.unwrap_or(default));
    let dims = LatentDims {
        rotary: size("qk_rope_head_dim", 64)?,
        plain: size("qk_nope_head_dim", 128)?,
        value: size("v_head_dim", 128)?,
    };
    let width = dims.rotary + dims.plain;
    if !dims.rotary.is_multiple_of(2) {
        return Err(config.refuse("qk_rope_head_dim", format!("found {}, expected an even number", dims.rotary)));
    }
    if of.attention.kv_heads != of.attention.heads {
        let problem = format!("found {}, expected num_attention_heads, {}", of.attention.kv_heads, of.attention.heads);
        return Err(config.refuse("num_key_value_heads", problem));
    }
    if let Some(given) = config.get::<usize>("qk_head_dim")?.filter(|given| *given != width) {
        let problem = format!("found {given}, expected qk_nope_head_dim and qk_rope_head_dim together, {width}");
        return Err(config.refuse("qk_head_dim", problem));
    }
    for (key, only) in [("topk_method", "noaux_tc"), ("scoring_func", "sigmoid")] {
        if let Some(other) = config.get::<String>(key)?.filter(|given| given != only) {
            return Err(config.refuse(key, format!("`{other}` is not supported; supported: {only}")));
        }
    }
    if let Some(other) = config.get::<usize>("moe_layer_freq")?.filter(|every| *every != 1) {
        return Err(config.refuse("moe_layer_freq", format!("found {other}; only 1 is supported")));
    }
    // how experts are spread over machines, and what balanced them in training
    let _machines: Option<usize> = config.get("ep_size")?;
    let _balance: Option<f64> = config.get("aux_loss_alpha")?;
    let _by_sequence: Option<bool> = config.get("seq_aux")?;
    let latent = LatentKind {
        queries: if config.has("q_lora_rank") { config.get("q_lora_rank")? } else { Some(1536) },
        keys: size("kv_lora_rank", 512)?,
        dims,
        // these norms have an ε of their own
        norm: NormKind { centred: false, eps: 1e-6 },
    };
    let neighbours = config.get("rope_interleave")?.unwrap_or(true);
    let rope = Rope::read(config, dims.rotary, RopeDefaults { neighbours, ..RopeDefaults::default() })?;
    let scale = (width as f64).sqrt().recip() * rope.score_scale;
    let attention = AttentionSpec { head_dim: dims.head(), scale, ..of.attention };
    let bias = config.get("attention_bias")?.unwrap_or(false);
    let of = llama::with_this_rope(
        Description { attention, latent: Some(latent), qkv_bias: bias, o_bias: bias, ..of },
        rope,
    );
    glm4_moe::with_experts(of, config, [256, 8], 2048, 3)
}
