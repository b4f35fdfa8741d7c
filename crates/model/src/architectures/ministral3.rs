//! `Ministral3ForCausalLM`: Mistral with queries that grow with their position.
use super::llama::{self, Defaults};
use super::{BlockKind, Description, window};
use crate::config::Config;
use crate::error::Result;
use crate::rope::{Rope, RopeDefaults, Temperature};

pub(super) fn describe(config: &Config) -> Result<Description> {
    let defaults = Defaults {
        sizes: [131_072, 4096, 34, 32, 14_336],
        kv_heads: Some(8),
        head_dim: Some(128),
        max_positions: 262_144,
        eps: 1e-5,
        padding: Some(11),
        ..Defaults::default()
    };
    let of = llama::body(config, defaults)?;
    let Some(parameters) = config.object("rope_parameters")? else {
        return Err(config.refuse("rope_parameters", "missing; a config of this architecture has them"));
    };
    let rope = RopeDefaults {
        theta: ("rope_theta", 1e6),
        others: &["llama_4_scaling_beta", "max_position_embeddings"],
        ..RopeDefaults::default()
    };
    let keys = Rope::read(config, of.attention.head_dim, rope)?;
    let beta: f64 = parameters.need("llama_4_scaling_beta")?;
    let original = parameters.size("original_max_position_embeddings")?;
    let queries = keys.clone().with_temperature(Temperature { beta, original });
    let max_positions = keys.reach.map_or(of.max_positions, |reach| reach.max(of.max_positions));
    let blocks = vec![BlockKind { window: window(config)?, rope: Some([1, 0]), ..BlockKind::default() }; of.layers()];
    Ok(Description { ropes: vec![keys, queries], blocks, max_positions, ..of })
}
