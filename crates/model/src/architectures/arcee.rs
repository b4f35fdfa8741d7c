//! `ArceeForCausalLM`: Llama with a feed-forward layer of squared ReLUs and no gate.
use super::llama::{self, Defaults};
use super::{Description, Names, Up};
use crate::config::Config;
use crate::error::Result;
use crate::rope::RopeDefaults;

pub(super) fn describe(config: &Config) -> Result<Description> {
    let defaults = Defaults {
        sizes: [32_000, 2560, 32, 32, 18_432],
        max_positions: 4096,
        eps: 1e-5,
        activation: ("hidden_act", "relu2"),
        ..Defaults::default()
    };
    let of = llama::with_rope(llama::body(config, defaults)?, config, RopeDefaults::default())?;
    let bias = config.get("attention_bias")?.unwrap_or(false);
    let mlp_bias = config.get("mlp_bias")?.unwrap_or(false);
    let names = Names { up: Up::Plain("mlp.up_proj"), ..llama::names() };
    Ok(Description { qkv_bias: bias, o_bias: bias, mlp_bias, names, ..of })
}
