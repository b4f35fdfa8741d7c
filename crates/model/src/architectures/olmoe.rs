//! `OlmoeForCausalLM`: Llama with norms of all queries and keys, a bound on queries, keys and values, and experts on every block.
use super::llama::{self, Defaults};
use super::{
    Description, EXPERT_MAPS, ExpertsKind, Names, QueryKeyNorm, StoredExperts, auxiliary_losses, bound, expert_numbers,
    softmax_rule,
};
use crate::config::Config;
use crate::error::Result;
use crate::layers::Routing;
use crate::rope::RopeDefaults;

fn names() -> Names {
    Names { query_key_norms: Some(["self_attn.q_norm", "self_attn.k_norm"]), ..llama::names() }
}

pub(super) fn describe(config: &Config) -> Result<Description> {
    let defaults = Defaults {
        sizes: [50_304, 2048, 16, 16, 2048],
        max_positions: 4096,
        eps: 1e-5,
        padding: Some(1),
        ..Defaults::default()
    };
    let of = llama::with_rope(llama::body(config, defaults)?, config, RopeDefaults::default())?;
    let bias = config.get("attention_bias")?.unwrap_or(false);
    let [number, per_row] = expert_numbers(config, ["num_experts", "num_local_experts"], [64, 8])?;
    let rule = softmax_rule(config)?;
    auxiliary_losses(config)?;
    let experts = ExpertsKind {
        number,
        width: of.mlp_width,
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
    let (sparse, query_key_norm) = (vec![true; of.layers()], Some(QueryKeyNorm::Whole));
    let of = Description {
        qkv_bias: bias,
        o_bias: bias,
        query_key_norm,
        qkv_bound: bound(config, "clip_qkv")?,
        names: names(),
        ..of
    };
    Ok(of.with_experts(experts, &sparse))
}
