//! `Qwen3MoeForCausalLM`: Qwen 3 with experts on every block but those that the config names.
use super::{
    Description, EXPERT_MAPS, ExpertsKind, QueryKeyNorm, StoredExperts, auxiliary_losses, expert_numbers, llama,
    qwen2_moe, qwen3, softmax_rule, window_or,
};
use crate::config::Config;
use crate::error::Result;
use crate::layers::Routing;
use crate::rope::RopeDefaults;

pub(super) fn describe(config: &Config) -> Result<Description> {
    let defaults = llama::Defaults {
        sizes: [151_936, 2048, 24, 32, 6144],
        kv_heads: Some(4),
        max_positions: 32_768,
        ..llama::Defaults::default()
    };
    let of = llama::with_rope(llama::body(config, defaults)?, config, RopeDefaults::default())?;
    let bias = config.get("attention_bias")?.unwrap_or(false);
    let [number, per_row] = expert_numbers(config, ["num_experts", "num_local_experts"], [128, 8])?;
    let rule = softmax_rule(config)?;
    auxiliary_losses(config)?;
    let experts = ExpertsKind {
        number,
        width: config.checked_size("moe_intermediate_size", config.get("moe_intermediate_size")?.unwrap_or(768))?,
        routing: Routing { per_row, rule, scale: 1.0 },
        router: "mlp.gate",
        correction: None,
        list: "mlp.experts",
        stored: StoredExperts::Each(EXPERT_MAPS),
        router_bias: false,
        clamp: None,
        shared: None,
        beside_mlp: false,
    };
    let sparse = qwen2_moe::sparse(config, of.layers())?;
    let asked: bool = config.get("use_sliding_window")?.unwrap_or(false);
    let window = window_or(config, 4096)?.filter(|_| asked);
    let of = Description {
        qkv_bias: bias,
        o_bias: bias,
        query_key_norm: Some(QueryKeyNorm::Heads),
        names: qwen3::names(),
        ..llama::with_windows(of, window, &vec![true; sparse.len()])
    };
    Ok(of.with_experts(experts, &sparse))
}
