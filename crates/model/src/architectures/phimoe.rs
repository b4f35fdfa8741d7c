//! `PhimoeForCausalLM` (Phi-3.5-MoE): `LayerNorm`s, a bias in the head, and two experts a row, each weighted among those whose logits
//! are close.
use super::llama::{self, Defaults};
use super::{Description, ExpertsKind, StoredExperts, auxiliary_losses, expert_numbers, window};
use crate::config::Config;
use crate::error::Result;
use crate::layers::{Routing, RoutingRule};
use crate::rope::RopeDefaults;
use tanglescope_kernels::NormKind;

pub(super) fn describe(config: &Config) -> Result<Description> {
    let defaults = Defaults {
        sizes: [32_064, 4096, 32, 32, 6400],
        kv_heads: Some(8),
        max_positions: 131_072,
        eps: 1e-5,
        ..Defaults::default()
    };
    let rope = RopeDefaults {
        theta: ("rope_theta", 1e6),
        others: &["short_mscale", "long_mscale"],
        ..RopeDefaults::default()
    };
    let of = llama::with_rope(llama::body(config, defaults)?, config, rope)?;
    if of.ropes.iter().any(|rope| rope.same_up_to().is_some()) {
        // Phi-3.5-MoE's factors on cos and sin go by the length of what is run
        return Err(config.refuse("rope_scaling", "only the default type is supported for this architecture"));
    }
    let [number, per_row] = expert_numbers(config, ["num_local_experts", "num_experts"], [16, 2])?;
    if per_row != 2 {
        let problem = format!("found {per_row}; this architecture's router chooses 2");
        return Err(config.refuse("num_experts_per_tok", problem));
    }
    auxiliary_losses(config)?;
    // noise of training; how close logits have to be is computed with the same number
    let _noise: Option<f64> = config.get("input_jitter_noise")?;
    let tolerance = 2.0 * config.get::<f64>("router_jitter_noise")?.unwrap_or(0.01);
    let experts = ExpertsKind {
        number,
        width: of.mlp_width,
        routing: Routing { per_row, rule: RoutingRule::SoftmaxOfClose { tolerance }, scale: 1.0 },
        router: "block_sparse_moe.gate",
        correction: None,
        list: "block_sparse_moe.experts",
        stored: StoredExperts::Each(["w1", "w3", "w2"]),
        router_bias: false,
        clamp: None,
        shared: None,
        beside_mlp: false,
    };
    let bias = config.get("attention_bias")?.unwrap_or(false);
    let all = vec![true; of.layers()];
    let of = Description {
        norm: NormKind { centred: true, ..of.norm },
        norm_bias: true,
        qkv_bias: bias,
        o_bias: bias,
        head_bias: config.get("lm_head_bias")?.unwrap_or(false),
        ..llama::with_windows(of, window(config)?, &all)
    };
    Ok(of.with_experts(experts, &all))
}
