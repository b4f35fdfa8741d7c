//! The text parts of Qwen 3.5: Qwen3-Next with projections of their own for gates, uptakes and decays, dense or with experts.
use super::llama::Defaults;
use super::{DeltaMaps, Description, ExpertsKind, StackOrder, StoredExperts, qwen3_next};
use crate::config::Config;
use crate::error::Result;
use crate::layers::RoutingRule;

const INPUTS: DeltaMaps = DeltaMaps::Columns([
    "linear_attn.in_proj_qkv",
    "linear_attn.in_proj_z",
    "linear_attn.in_proj_b",
    "linear_attn.in_proj_a",
]);

pub(super) fn describe(config: &Config) -> Result<Description> {
    let defaults = Defaults {
        sizes: [248_320, 4096, 32, 16, 12_288],
        kv_heads: Some(4),
        head_dim: Some(256),
        max_positions: 32_768,
        ..Defaults::default()
    };
    qwen3_next::body(config, defaults, INPUTS, true)
}

pub(super) fn describe_moe(config: &Config) -> Result<Description> {
    let defaults = Defaults {
        sizes: [248_320, 2048, 40, 16, 512],
        kv_heads: Some(2),
        width_elsewhere: true,
        head_dim: Some(256),
        max_positions: 32_768,
        ..Defaults::default()
    };
    let of = qwen3_next::body(config, defaults, INPUTS, true)?;
    // the weights of the chosen are always renormalised
    let experts = ExpertsKind {
        stored: StoredExperts::Stacked { names: ["gate_up_proj", "down_proj"], order: StackOrder::Outputs },
        ..qwen3_next::experts(config, [256, 8], RoutingRule::SoftmaxOfChosen)?
    };
    let all = vec![true; of.layers()];
    Ok(of.with_experts(experts, &all))
}
