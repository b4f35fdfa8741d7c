//! `MistralForCausalLM`: Llama with a window on every block's attention.
use super::llama::{self, Defaults};
use super::{Description, window_or};
use crate::config::Config;
use crate::error::Result;
use crate::rope::RopeDefaults;

pub(super) fn describe(config: &Config) -> Result<Description> {
    let defaults = Defaults {
        sizes: [32_000, 4096, 32, 32, 14_336],
        kv_heads: Some(8),
        max_positions: 131_072,
        ..Defaults::default()
    };
    let of = llama::with_rope(llama::body(config, defaults)?, config, RopeDefaults::default())?;
    let window = window_or(config, 4096)?;
    let all = vec![true; of.layers()];
    Ok(llama::with_windows(of, window, &all))
}
