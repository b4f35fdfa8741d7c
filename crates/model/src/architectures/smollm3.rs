//! `SmolLM3ForCausalLM`: Llama with blocks that have no rotary positions, every fourth where the config says nothing.
use super::llama::{self, Defaults};
use super::{Description, by_layer, window, windowed};
use crate::config::Config;
use crate::error::Result;
use crate::rope::RopeDefaults;

pub(super) fn describe(config: &Config) -> Result<Description> {
    let defaults = Defaults {
        sizes: [128_256, 2048, 36, 16, 11_008],
        kv_heads: Some(4),
        max_positions: 32_768,
        tied: true,
        padding: Some(128_004),
        ..Defaults::default()
    };
    let rope = RopeDefaults { theta: ("rope_theta", 2_000_000.0), ..RopeDefaults::default() };
    let mut of = llama::with_rope(llama::body(config, defaults)?, config, rope)?;
    let interval: usize = config.get("no_rope_layer_interval")?.unwrap_or(4);
    if interval == 0 {
        return Err(config.refuse("no_rope_layer_interval", "found 0, expected a positive number"));
    }
    let rotated: Vec<u8> = by_layer(config, "no_rope_layers", of.layers())?
        .unwrap_or_else(|| (0..of.layers()).map(|layer| u8::from(!(layer + 1).is_multiple_of(interval))).collect());
    for (block, _) in of.blocks.iter_mut().zip(&rotated).filter(|(_, rotated)| **rotated == 0) {
        block.rope = None;
    }
    let asked: bool = config.get("use_sliding_window")?.unwrap_or(false);
    let window = window(config)?.filter(|_| asked);
    let windowed = windowed(config, of.layers(), |layer| window.is_some() && rotated[layer] == 0)?;
    let bias = config.get("attention_bias")?.unwrap_or(false);
    let mlp_bias = config.get("mlp_bias")?.unwrap_or(false);
    Ok(Description { qkv_bias: bias, o_bias: bias, mlp_bias, ..llama::with_windows(of, window, &windowed) })
}
