//! `GptOssForCausalLM`: attention with biases and sinks, a window on every other block, and experts of which all matrices are one tensor,
//! with biases and a clamped gate, on every block.
use super::llama::{self, Defaults};
use super::{
    Description, ExpertsKind, Names, StackOrder, StoredExperts, auxiliary_losses, expert_numbers, factor_or, window_or,
    windowed,
};
use crate::config::Config;
use crate::error::Result;
use crate::layers::{Clamp, Routing, RoutingRule};
use crate::rope::RopeDefaults;

pub(super) fn describe(config: &Config) -> Result<Description> {
    let defaults = Defaults {
        sizes: [201_088, 2880, 36, 64, 2880],
        kv_heads: Some(8),
        head_dim: Some(64),
        max_positions: 131_072,
        eps: 1e-5,
        ..Defaults::default()
    };
    let rope = RopeDefaults { theta: ("rope_theta", 150_000.0), ..RopeDefaults::default() };
    let of = llama::with_rope(llama::body(config, defaults)?, config, rope)?;
    let bias = config.get("attention_bias")?.unwrap_or(true);
    let [number, per_row] = expert_numbers(config, ["num_local_experts", "num_experts"], [128, 4])?;
    auxiliary_losses(config)?;
    let limit = factor_or(config, "swiglu_limit", 7.0)?;
    if limit < 0.0 {
        return Err(config.refuse("swiglu_limit", format!("found {limit}, expected a positive number")));
    }
    // a second name for num_experts_per_tok, which it equals
    let again: Option<usize> = config.get("experts_per_token")?;
    if let Some(again) = again.filter(|again| *again != per_row) {
        let problem = format!("found {again}, expected num_experts_per_tok, {per_row}");
        return Err(config.refuse("experts_per_token", problem));
    }
    let _context: Option<usize> = config.get("initial_context_length")?;
    let experts = ExpertsKind {
        number,
        width: of.mlp_width,
        routing: Routing { per_row, rule: RoutingRule::SoftmaxOfChosen, scale: 1.0 },
        router: "mlp.router",
        correction: None,
        list: "mlp.experts",
        stored: StoredExperts::Stacked { names: ["gate_up_proj", "down_proj"], order: StackOrder::Inputs },
        router_bias: true,
        clamp: Some(Clamp { limit, alpha: factor_or(config, "swiglu_alpha", 1.702)? }),
        shared: None,
        beside_mlp: false,
    };
    let window = window_or(config, 128)?;
    let windowed = windowed(config, of.layers(), |layer| (layer + 1) % 2 == 1)?;
    let all = vec![true; of.layers()];
    let of = Description {
        qkv_bias: bias,
        o_bias: bias,
        names: Names { sinks: Some("self_attn.sinks"), ..llama::names() },
        ..llama::with_windows(of, window, &windowed)
    };
    Ok(of.with_experts(experts, &all))
}
