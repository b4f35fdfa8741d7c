//! `MixtralForCausalLM`: Mistral with experts on every block.
use super::llama::{self, Defaults};
use super::{Description, ExpertsKind, StoredExperts, auxiliary_losses, expert_numbers, window};
use crate::config::Config;
use crate::error::Result;
use crate::layers::{Routing, RoutingRule};
use crate::rope::RopeDefaults;

pub(super) fn describe(config: &Config) -> Result<Description> {
    let defaults = Defaults {
        sizes: [32_000, 4096, 32, 32, 14_336],
        kv_heads: Some(8),
        max_positions: 131_072,
        eps: 1e-5,
        ..Defaults::default()
    };
    let rope = RopeDefaults { theta: ("rope_theta", 1e6), ..RopeDefaults::default() };
    let of = llama::with_rope(llama::body(config, defaults)?, config, rope)?;
    let [number, per_row] = expert_numbers(config, ["num_local_experts", "num_experts"], [8, 2])?;
    auxiliary_losses(config)?;
    // noise of training
    let _jitter: Option<f64> = config.get("router_jitter_noise")?;
    let experts = ExpertsKind {
        number,
        width: of.mlp_width,
        routing: Routing { per_row, rule: RoutingRule::SoftmaxOfChosen, scale: 1.0 },
        router: "block_sparse_moe.gate",
        correction: None,
        list: "block_sparse_moe.experts",
        stored: StoredExperts::Each(["w1", "w3", "w2"]),
        router_bias: false,
        clamp: None,
        shared: None,
        beside_mlp: false,
    };
    let all = vec![true; of.layers()];
    Ok(llama::with_windows(of, window(config)?, &all).with_experts(experts, &all))
}
