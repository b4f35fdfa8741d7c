//! `Gemma2ForCausalLM`: norms before and after attention and feed-forward layer that multiply with one plus their gain, a scaled
//! embedding, soft caps on attention scores and logits, and a window on every other block.
use super::llama::{self, Defaults};
use super::{Description, Names, soft_cap, window_or, windowed};
use crate::config::Config;
use crate::error::Result;
use crate::rope::RopeDefaults;
use tanglescope_kernels::AttentionSpec;

pub(super) fn names() -> Names {
    Names {
        after_attention: Some("post_attention_layernorm"),
        mlp_norm: Some("pre_feedforward_layernorm"),
        after_mlp: Some("post_feedforward_layernorm"),
        ..llama::names()
    }
}

/// What Gemma 2 and Gemma 3 share, with the soft caps that a config has where it says nothing; positions and windows are
/// left out.
pub(super) fn body(config: &Config, max_positions: usize, [scores, logits]: [Option<f64>; 2]) -> Result<Description> {
    let defaults = Defaults {
        sizes: [262_208, 2304, 26, 8, 9216],
        kv_heads: Some(4),
        head_dim: Some(256),
        max_positions,
        activation: ("hidden_activation", "gelu_pytorch_tanh"),
        tied: true,
        padding: Some(0),
        ..Defaults::default()
    };
    let of = llama::body(config, defaults)?;
    // older configs name both, and the newer key counts
    let _older: Option<String> = config.get("hidden_act")?;
    let query_scale: f64 = config.get("query_pre_attn_scalar")?.unwrap_or(256.0);
    if query_scale <= 0.0 {
        return Err(config.refuse("query_pre_attn_scalar", format!("found {query_scale}, expected a positive number")));
    }
    let bias = config.get("attention_bias")?.unwrap_or(false);
    Ok(Description {
        embedding_scale: (of.hidden as f64).sqrt(),
        attention: AttentionSpec {
            scale: query_scale.sqrt().recip(),
            cap: soft_cap(config, "attn_logit_softcapping", scores)?,
            ..of.attention
        },
        gain_plus_one: true,
        qkv_bias: bias,
        o_bias: bias,
        logit_cap: soft_cap(config, "final_logit_softcapping", logits)?,
        names: names(),
        ..of
    })
}

pub(super) fn describe(config: &Config) -> Result<Description> {
    let of = llama::with_rope(body(config, 8192, [Some(50.0), Some(30.0)])?, config, RopeDefaults::default())?;
    let window = window_or(config, 4096)?;
    let windowed = windowed(config, of.layers(), |layer| layer % 2 == 0)?;
    Ok(llama::with_windows(of, window, &windowed))
}
