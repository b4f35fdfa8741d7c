//! `Qwen3NextForCausalLM`: the gated delta rule on three of four blocks, attention with norms of heads and output gates on the others, and
//! experts beside one that every row goes through.
use super::llama::{self, Defaults};
use super::{
    DeltaKind, DeltaMaps, Description, EXPERT_MAPS, ExpertsKind, Names, QueryKeyNorm, SharedKind, StoredExperts,
    auxiliary_losses, expert_numbers, qwen2_moe, qwen3, softmax_rule,
};
use crate::config::Config;
use crate::error::Result;
use crate::layers::Routing;
use crate::rope::RopeDefaults;
use tanglescope_kernels::DeltaSpec;

pub(super) fn describe(config: &Config) -> Result<Description> {
    let defaults = Defaults {
        sizes: [151_936, 2048, 48, 16, 5632],
        kv_heads: Some(2),
        head_dim: Some(256),
        max_positions: 32_768,
        ..Defaults::default()
    };
    let inputs = DeltaMaps::ByHead(["linear_attn.in_proj_qkvz", "linear_attn.in_proj_ba"]);
    let of = body(config, defaults, inputs, false)?;
    let experts = experts(config, [512, 10], softmax_rule_or_renormalised(config)?)?;
    let sparse = qwen2_moe::sparse(config, of.layers())?;
    Ok(of.with_experts(experts, &sparse))
}

/// The weights of chosen experts, renormalised where the config says nothing.
fn softmax_rule_or_renormalised(config: &Config) -> Result<crate::layers::RoutingRule> {
    match config.has("norm_topk_prob") {
        true => softmax_rule(config),
        false => Ok(crate::layers::RoutingRule::SoftmaxOfChosen),
    }
}

/// Experts of one shape, and one that every row goes through behind a gate.
pub(super) fn experts(config: &Config, numbers: [usize; 2], rule: crate::layers::RoutingRule) -> Result<ExpertsKind> {
    let [number, per_row] = expert_numbers(config, ["num_experts", "num_local_experts"], numbers)?;
    auxiliary_losses(config)?;
    let size = |key: &str| config.checked_size(key, config.get(key)?.unwrap_or(512));
    Ok(ExpertsKind {
        number,
        width: size("moe_intermediate_size")?,
        routing: Routing { per_row, rule, scale: 1.0 },
        router: "mlp.gate",
        correction: None,
        list: "mlp.experts",
        stored: StoredExperts::Each(EXPERT_MAPS),
        router_bias: false,
        clamp: None,
        beside_mlp: false,
        shared: Some(SharedKind {
            width: size("shared_expert_intermediate_size")?,
            maps: ["mlp.shared_expert.gate_proj", "mlp.shared_expert.up_proj", "mlp.shared_expert.down_proj"],
            gate: Some("mlp.shared_expert_gate"),
        }),
    })
}

/// What Qwen 3.5 has too.
pub(super) fn body(config: &Config, defaults: Defaults, inputs: DeltaMaps, sections: bool) -> Result<Description> {
    let rope = RopeDefaults {
        part: Some(("partial_rotary_factor", 0.25)),
        sections,
        others: &["partial_rotary_factor"],
        ..RopeDefaults::default()
    };
    let of = llama::with_rope(llama::body(config, defaults)?, config, rope)?;
    let bias = config.get("attention_bias")?.unwrap_or(false);
    let recurrent = recurrent(config, of.layers())?;
    let size = |key: &str, default: usize| config.checked_size(key, config.get(key)?.unwrap_or(default));
    let key_heads = size("linear_num_key_heads", 16)?;
    let value_heads = size("linear_num_value_heads", 32)?;
    if value_heads % key_heads != 0 {
        let problem = format!("found {value_heads}, expected a multiple of linear_num_key_heads, {key_heads}");
        return Err(config.refuse("linear_num_value_heads", problem));
    }
    let (key_dim, value_dim) = (size("linear_key_head_dim", 128)?, size("linear_value_head_dim", 128)?);
    let spec = DeltaSpec { key_heads, value_heads, key_dim, value_dim };
    let delta = DeltaKind { spec, taps: size("linear_conv_kernel_dim", 4)?, activation: of.activation, inputs };
    let mut of = Description {
        gain_plus_one: true,
        qkv_bias: bias,
        o_bias: bias,
        output_gate: true,
        delta: Some(delta),
        query_key_norm: Some(QueryKeyNorm::Heads),
        names: Names { beside: &["mtp."], ..qwen3::names() },
        ..of
    };
    of.blocks.iter_mut().zip(recurrent).for_each(|(block, recurrent)| block.recurrent = recurrent);
    Ok(of)
}

/// Which blocks have the gated delta rule: as `layer_types` says, or all but every fourth.
fn recurrent(config: &Config, layers: usize) -> Result<Vec<bool>> {
    let every: usize = config.get("full_attention_interval")?.unwrap_or(4);
    if every == 0 {
        return Err(config.refuse("full_attention_interval", "found 0, expected a positive number"));
    }
    let Some(types): Option<Vec<String>> = super::by_layer(config, "layer_types", layers)? else {
        return Ok((0..layers).map(|layer| (layer + 1) % every != 0).collect());
    };
    let of = |kind: &String| match kind.as_str() {
        "linear_attention" => Ok(true),
        "full_attention" => Ok(false),
        _ => {
            let problem = format!("`{kind}` is not supported; supported: full_attention, linear_attention");
            Err(config.refuse("layer_types", problem))
        }
    };
    types.iter().map(of).collect()
}
