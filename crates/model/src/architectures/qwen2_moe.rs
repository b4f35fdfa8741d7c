//! `Qwen2MoeForCausalLM`: Qwen 2 with experts on every block but those that the config names, and one that every row goes through.
use super::llama::{self, Defaults};
use super::{
    Description, EXPERT_MAPS, ExpertsKind, SharedKind, StoredExperts, auxiliary_losses, expert_numbers, softmax_rule,
    window_or, windowed,
};
use crate::config::Config;
use crate::error::Result;
use crate::layers::Routing;
use crate::rope::RopeDefaults;

pub(super) fn describe(config: &Config) -> Result<Description> {
    let defaults = Defaults {
        sizes: [151_936, 2048, 24, 16, 5632],
        kv_heads: Some(16),
        max_positions: 32_768,
        ..Defaults::default()
    };
    let of = llama::with_rope(llama::body(config, defaults)?, config, RopeDefaults::default())?;
    let qkv_bias = config.get("qkv_bias")?.unwrap_or(true);
    let [number, per_row] = expert_numbers(config, ["num_experts", "num_local_experts"], [60, 4])?;
    let rule = softmax_rule(config)?;
    auxiliary_losses(config)?;
    let size = |key: &str, default| config.checked_size(key, config.get(key)?.unwrap_or(default));
    let experts = ExpertsKind {
        number,
        width: size("moe_intermediate_size", 1408)?,
        routing: Routing { per_row, rule, scale: 1.0 },
        router: "mlp.gate",
        correction: None,
        list: "mlp.experts",
        stored: StoredExperts::Each(EXPERT_MAPS),
        router_bias: false,
        clamp: None,
        beside_mlp: false,
        shared: Some(SharedKind {
            width: size("shared_expert_intermediate_size", 5632)?,
            maps: ["mlp.shared_expert.gate_proj", "mlp.shared_expert.up_proj", "mlp.shared_expert.down_proj"],
            gate: Some("mlp.shared_expert_gate"),
        }),
    };
    let sparse = sparse(config, of.layers())?;
    let asked: bool = config.get("use_sliding_window")?.unwrap_or(false);
    let first: usize = config.get("max_window_layers")?.unwrap_or(28);
    // without being asked for, transformers writes a window of 0
    let window = if asked {
        window_or(config, 4096)?
    } else {
        let _unused: Option<usize> = config.get("sliding_window")?;
        None
    };
    let windowed = windowed(config, of.layers(), |layer| window.is_some() && layer % 2 == 0 && layer < first)?;
    let of = Description { qkv_bias, ..llama::with_windows(of, window, &windowed) };
    Ok(of.with_experts(experts, &sparse))
}

/// Which blocks have experts.
pub(super) fn sparse(config: &Config, layers: usize) -> Result<Vec<bool>> {
    let dense: Vec<usize> = config.get("mlp_only_layers")?.unwrap_or_default();
    let step: usize = config.get("decoder_sparse_step")?.unwrap_or(1);
    if step == 0 {
        return Err(config.refuse("decoder_sparse_step", "found 0, expected a positive number"));
    }
    Ok((0..layers).map(|layer| !dense.contains(&layer) && (layer + 1).is_multiple_of(step)).collect())
}
