//! `CohereForCausalLM` and `Cohere2ForCausalLM`: one `LayerNorm` without a bias before attention and feed-forward layer, which stand
//! side by side, rotary angles of neighbours, and a factor on the logits. Cohere 2 has a window on three of four blocks, and no rotary
//! angles on the others.
use super::llama::{self, Defaults};
use super::{Description, Names, factor_or, window_or, windowed};
use crate::config::Config;
use crate::error::Result;
use crate::rope::RopeDefaults;
use tanglescope_kernels::NormKind;

fn body(config: &Config) -> Result<Description> {
    let defaults = Defaults {
        sizes: [256_000, 8192, 40, 64, 22_528],
        max_positions: 8192,
        tied: true,
        padding: Some(0),
        ..Defaults::default()
    };
    let of = llama::body(config, defaults)?;
    let rope = RopeDefaults { neighbours: true, ..RopeDefaults::default() };
    let of = llama::with_rope(of, config, rope)?;
    let bias = config.get("attention_bias")?.unwrap_or(false);
    Ok(Description {
        norm: NormKind { centred: true, eps: config.get("layer_norm_eps")?.unwrap_or(1e-5) },
        logit_scale: factor_or(config, "logit_scale", 0.0625)?,
        parallel: true,
        qkv_bias: bias,
        o_bias: bias,
        names: Names { mlp_norm: None, ..llama::names() },
        ..of
    })
}

pub(super) fn describe(config: &Config) -> Result<Description> {
    if config.get("use_qk_norm")?.unwrap_or(false) {
        return Err(config.refuse("use_qk_norm", "found true; only false is supported"));
    }
    body(config)
}

pub(super) fn describe2(config: &Config) -> Result<Description> {
    let of = body(config)?;
    // transformers takes the width over the heads, whatever the config says
    if of.attention.head_dim * of.attention.heads != of.hidden {
        let problem = format!("found {}, expected hidden_size over num_attention_heads", of.attention.head_dim);
        return Err(config.refuse("head_dim", problem));
    }
    let window = window_or(config, 4096)?;
    let every: usize = config.get("sliding_window_pattern")?.unwrap_or(4);
    if every == 0 {
        return Err(config.refuse("sliding_window_pattern", "found 0, expected a positive number"));
    }
    let windowed = windowed(config, of.layers(), |layer| !(layer + 1).is_multiple_of(every))?;
    let mut of = llama::with_windows(of, window, &windowed);
    for (block, _) in of.blocks.iter_mut().zip(&windowed).filter(|(_, windowed)| !**windowed || window.is_none()) {
        block.rope = None;
    }
    Ok(of)
}
