//! `Qwen2ForCausalLM`: Llama with biases on queries, keys and values, and a window on the upper blocks where one is asked for.
use super::llama::{self, Defaults};
use super::{Description, window_or, windowed};
use crate::config::Config;
use crate::error::Result;
use crate::rope::RopeDefaults;

pub(super) fn describe(config: &Config) -> Result<Description> {
    Ok(Description { qkv_bias: true, ..body(config, defaults(SIZES, None, None), RopeDefaults::default())? })
}

/// Sizes that a config may leave out.
pub(super) const SIZES: [usize; 5] = [151_936, 4096, 32, 32, 22_016];

pub(super) fn defaults(sizes: [usize; 5], kv_heads: Option<usize>, head_dim: Option<usize>) -> Defaults {
    Defaults { sizes, kv_heads, head_dim, max_positions: 32_768, ..Defaults::default() }
}

/// What Qwen 2 and Qwen 3 share.
pub(super) fn body(config: &Config, defaults: Defaults, rope: RopeDefaults) -> Result<Description> {
    let of = llama::with_rope(llama::body(config, defaults)?, config, rope)?;
    let asked: bool = config.get("use_sliding_window")?.unwrap_or(false);
    let first: usize = config.get("max_window_layers")?.unwrap_or(28);
    let window = window_or(config, 4096)?.filter(|_| asked);
    let windowed = windowed(config, of.layers(), |layer| window.is_some() && layer >= first)?;
    if window.is_none() && windowed.contains(&true) {
        let problem = "has sliding_attention, but use_sliding_window and sliding_window give no window";
        return Err(config.refuse("layer_types", problem));
    }
    Ok(llama::with_windows(of, window, &windowed))
}
