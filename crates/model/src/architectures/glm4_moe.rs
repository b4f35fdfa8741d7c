//! `Glm4MoeForCausalLM`: Llama with rotary angles in half of each head, and experts that sigmoids choose, beside one that every row goes
//! through, on all but the first blocks.
use super::llama::{self, Defaults};
use super::{
    Description, EXPERT_MAPS, ExpertsKind, Names, QueryKeyNorm, SharedKind, StoredExperts, auxiliary_losses,
    expert_numbers, factor,
};
use crate::config::Config;
use crate::error::Result;
use crate::layers::{Routing, RoutingRule};
use crate::rope::RopeDefaults;

pub(super) fn describe(config: &Config) -> Result<Description> {
    let defaults = Defaults {
        sizes: [151_552, 4096, 46, 96, 10_944],
        kv_heads: Some(8),
        max_positions: 131_072,
        eps: 1e-5,
        ..Defaults::default()
    };
    let rope = RopeDefaults { part: Some(("partial_rotary_factor", 0.5)), ..RopeDefaults::default() };
    let of = llama::with_rope(llama::body(config, defaults)?, config, rope)?;
    let normed = config.get("use_qk_norm")?.unwrap_or(false);
    let names = Names { query_key_norms: normed.then_some(["self_attn.q_norm", "self_attn.k_norm"]), ..llama::names() };
    let of = Description {
        qkv_bias: config.get("attention_bias")?.unwrap_or(false),
        query_key_norm: normed.then_some(QueryKeyNorm::Heads),
        names,
        ..of
    };
    with_experts(of, config, [128, 8], 1408, 1)
}

/// Experts that sigmoids choose on all but the first blocks: their number and that of a row, their width, and how many blocks are dense,
/// where the config says nothing.
pub(super) fn with_experts(
    of: Description,
    config: &Config,
    numbers: [usize; 2],
    width: usize,
    dense: usize,
) -> Result<Description> {
    let experts = experts(config, numbers, width)?;
    let dense: usize = config.get("first_k_dense_replace")?.unwrap_or(dense);
    let sparse: Vec<bool> = (0..of.layers()).map(|layer| layer >= dense).collect();
    Ok(Description { further_blocks: further_blocks(config)?, ..of }.with_experts(experts, &sparse))
}

/// Experts that sigmoids choose, in groups or not, and one of some times their width that every row goes through.
fn experts(config: &Config, numbers: [usize; 2], width: usize) -> Result<ExpertsKind> {
    let [number, per_row] = expert_numbers(config, ["n_routed_experts", "num_local_experts"], numbers)?;
    let groups: usize = config.get("n_group")?.unwrap_or(1);
    let best_groups: usize = config.get("topk_group")?.unwrap_or(1);
    if groups == 0 || number % groups != 0 || number / groups < 2 {
        let problem =
            format!("found {groups}, expected a divisor of {number} experts that leaves two or more in a group");
        return Err(config.refuse("n_group", problem));
    }
    if best_groups == 0 || best_groups > groups || best_groups * (number / groups) < per_row {
        let problem = format!("found {best_groups}, expected at most {groups} groups with {per_row} experts or more");
        return Err(config.refuse("topk_group", problem));
    }
    let renormalised = config.get("norm_topk_prob")?.unwrap_or(true);
    auxiliary_losses(config)?;
    let width = config.checked_size("moe_intermediate_size", config.get("moe_intermediate_size")?.unwrap_or(width))?;
    let shared = config.checked_size("n_shared_experts", config.get("n_shared_experts")?.unwrap_or(1))?;
    Ok(ExpertsKind {
        number,
        width,
        routing: Routing {
            per_row,
            rule: RoutingRule::Sigmoid { renormalised, groups, best_groups },
            scale: factor(config, "routed_scaling_factor")?,
        },
        router: "mlp.gate",
        correction: Some("mlp.gate.e_score_correction_bias"),
        list: "mlp.experts",
        stored: StoredExperts::Each(EXPERT_MAPS),
        router_bias: false,
        clamp: None,
        beside_mlp: false,
        shared: Some(SharedKind {
            width: config.checked_size("n_shared_experts", width * shared)?,
            maps: ["mlp.shared_experts.gate_proj", "mlp.shared_experts.up_proj", "mlp.shared_experts.down_proj"],
            gate: None,
        }),
    })
}

/// Blocks for predicting further tokens, under their newer name or their older one.
fn further_blocks(config: &Config) -> Result<usize> {
    let newer: Option<usize> = config.get("num_mtp_layers")?;
    let older: Option<usize> = config.get("num_nextn_predict_layers")?;
    Ok(newer.or(older).unwrap_or(0).min(crate::config::MOST_LAYERS))
}
