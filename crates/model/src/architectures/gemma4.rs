//! `Gemma4ForCausalLM`: Gemma 3 with gains as they are, normalised values, scores that are not scaled, wider heads in the
//! blocks without a window, whose keys may be their values, and a factor on each block's output. The smaller models give each block
//! an input by token, and their last blocks attend to the keys and values of others; one has experts beside every feed-forward layer.
use super::llama::{self, Defaults};
use super::{
    BlockKind, Description, ExpertsKind, Names, PerLayerKind, QueryKeyNorm, StackOrder, StoredExperts,
    check_expert_numbers, gemma2, rope_of_type, soft_cap, window_or, windowed,
};
use crate::config::Config;
use crate::error::Result;
use crate::layers::{Routing, RoutingRule};
use crate::rope::RopeDefaults;
use tanglescope_kernels::AttentionSpec;

fn names() -> Names {
    Names {
        query_key_norms: Some(["self_attn.q_norm", "self_attn.k_norm"]),
        output_scale: Some("layer_scalar"),
        ..gemma2::names()
    }
}

/// Experts beside the feed-forward layer of every block.
fn experts(config: &Config) -> Result<Option<ExpertsKind>> {
    let width: Option<usize> = config.get("moe_intermediate_size")?;
    let [number, per_row] = [config.get("num_experts")?, config.get("top_k_experts")?];
    if !config.get("enable_moe_block")?.unwrap_or(false) {
        return Ok(None);
    }
    let needed = |key: &str, size: Option<usize>| match size {
        Some(size) => config.checked_size(key, size),
        None => Err(config.refuse(key, "missing; expected a number where `enable_moe_block` is true")),
    };
    let (number, per_row) = (needed("num_experts", number)?, needed("top_k_experts", per_row)?);
    check_expert_numbers(config, ["num_experts", "top_k_experts"], [number, per_row])?;
    Ok(Some(ExpertsKind {
        number,
        width: needed("moe_intermediate_size", width)?,
        routing: Routing { per_row, rule: RoutingRule::SoftmaxOfChosen, scale: 1.0 },
        router: "router.proj",
        correction: None,
        list: "experts",
        stored: StoredExperts::Stacked { names: ["gate_up_proj", "down_proj"], order: StackOrder::Outputs },
        router_bias: false,
        clamp: None,
        shared: None,
        beside_mlp: true,
    }))
}

/// What each block reads of a token beside the residual stream; the table's tokens are few enough for the vocabulary to be all of them.
fn per_layer(config: &Config, vocabulary: usize) -> Result<Option<PerLayerKind>> {
    let width = config.get("hidden_size_per_layer_input")?.unwrap_or(256);
    let rows = config.get("vocab_size_per_layer_input")?.unwrap_or(262_144);
    if width == 0 {
        return Ok(None);
    }
    if rows < vocabulary {
        let problem = format!("found {rows}, expected at least the vocabulary, {vocabulary}");
        return Err(config.refuse("vocab_size_per_layer_input", problem));
    }
    let width = config.checked_size("hidden_size_per_layer_input", width)?;
    Ok(Some(PerLayerKind { width, vocabulary: config.checked_size("vocab_size_per_layer_input", rows)? }))
}

/// The block whose keys and values each block attends to, where it has none of its own: the last ones borrow those of the last block of
/// their kind that has its own.
fn lenders(config: &Config, windowed: &[bool]) -> Result<Vec<Option<usize>>> {
    let borrowers: usize = config.get("num_kv_shared_layers")?.unwrap_or(0);
    let layers = windowed.len();
    let Some(own) = layers.checked_sub(borrowers).filter(|own| *own > 0) else {
        let problem = format!("found {borrowers}, expected fewer than the {layers} layers");
        return Err(config.refuse("num_kv_shared_layers", problem));
    };
    let lender = |layer: usize| (0..own).rev().find(|lender| windowed[*lender] == windowed[layer]);
    let of_layer = |layer: usize| match (layer < own, lender(layer)) {
        (true, _) => Ok(None),
        (false, Some(lender)) => Ok(Some(lender)),
        (false, None) => Err(config.refuse(
            "num_kv_shared_layers",
            format!("found {borrowers}: layer {layer} has no layer of its type below that has keys and values"),
        )),
    };
    (0..layers).map(of_layer).collect()
}

/// Key-value heads and values a head of each block where they are not the model's: listed by block, or the same for all without a
/// window.
fn heads(
    config: &Config,
    of: &Description,
    windowed: &[bool],
    keys_are_values: bool,
) -> Result<Vec<Option<[usize; 2]>>> {
    let AttentionSpec { kv_heads, head_dim, .. } = of.attention;
    let wide = config.checked_size("global_head_dim", config.get("global_head_dim")?.unwrap_or(512))?;
    let fewer: Option<usize> = config.get("num_global_key_value_heads")?;
    let listed = config.object("per_layer_config")?;
    let mut heads = Vec::with_capacity(windowed.len());
    for (layer, windowed) in windowed.iter().enumerate() {
        let own = match &listed {
            Some(listed) => listed.object(&layer.to_string())?,
            None => None,
        };
        heads.push(match own {
            Some(own) => {
                let size = |key: &str, of_others: usize| own.checked_size(key, own.get(key)?.unwrap_or(of_others));
                let sizes = [size("num_key_value_heads", kv_heads)?, size("head_dim", head_dim)?];
                own.finish(|_| false)?;
                Some(sizes)
            }
            None if listed.is_some() || *windowed => None,
            None => Some([fewer.filter(|_| keys_are_values).unwrap_or(kv_heads), wide]),
        });
        if let Some([kv_heads, _]) = heads[layer].filter(|[kv, _]| *kv == 0 || !of.attention.heads.is_multiple_of(*kv))
        {
            let problem = format!("found {kv_heads} for {} query heads, expected a divisor", of.attention.heads);
            return Err(config.refuse("num_global_key_value_heads", problem));
        }
    }
    if let Some(listed) = listed {
        listed.finish(|_| false)?;
    }
    Ok(heads)
}

pub(super) fn describe(config: &Config) -> Result<Description> {
    let defaults = Defaults {
        sizes: [262_144, 2304, 30, 8, 9216],
        kv_heads: Some(4),
        head_dim: Some(256),
        max_positions: 131_072,
        activation: ("hidden_activation", "gelu_pytorch_tanh"),
        tied: true,
        padding: Some(0),
        ..Defaults::default()
    };
    let of = llama::body(config, defaults)?;
    let mut windowed = windowed(config, of.layers(), |layer| !(layer + 1).is_multiple_of(6))?;
    // as transformers has it
    if let Some(last) = windowed.last_mut() {
        *last = false;
    }
    let window = window_or(config, 512)?;
    let keys_are_values = config.get("attention_k_eq_v")?.unwrap_or(false);
    let heads = heads(config, &of, &windowed, keys_are_values)?;
    let width = |of_windowed: bool| {
        let mine = windowed.iter().zip(&heads).filter(|(windowed, _)| **windowed == of_windowed);
        let all: Vec<usize> =
            mine.map(|(_, heads)| heads.map_or(of.attention.head_dim, |[_, head_dim]| head_dim)).collect();
        match all.as_slice() {
            [] => Ok(of.attention.head_dim),
            [width, others @ ..] if others.iter().all(|other| other == width) => Ok(*width),
            _ => Err(config.refuse(
                "per_layer_config",
                "found heads of several widths in layers of one type, which is not supported",
            )),
        }
    };
    let parameters = config.object("rope_parameters")?;
    let of_type =
        |kind, head_dim, defaults| rope_of_type(config, parameters.as_ref(), (kind, None), head_dim, defaults);
    let global = RopeDefaults { theta: ("rope_theta", 1e6), proportional: Some(0.25), ..RopeDefaults::default() };
    let local = RopeDefaults { theta: ("rope_local_base_freq", 1e4), ..RopeDefaults::default() };
    let ropes =
        vec![of_type("full_attention", width(false)?, global)?, of_type("sliding_attention", width(true)?, local)?];
    if let Some(parameters) = &parameters {
        parameters.finish(|_| false)?;
    }
    let lenders = lenders(config, &windowed)?;
    let wide = config.get("use_double_wide_mlp")?.unwrap_or(false).then_some(2 * of.mlp_width);
    let blocks = windowed.iter().zip(heads).zip(lenders).map(|((&windowed, heads), lender)| BlockKind {
        window: window.filter(|_| windowed),
        rope: Some([usize::from(windowed); 2]),
        heads,
        keys_are_values: keys_are_values && !windowed,
        lender,
        mlp_width: wide.filter(|_| lender.is_some()),
        ..BlockKind::default()
    });
    let bias = config.get("attention_bias")?.unwrap_or(false);
    let of = Description {
        embedding_scale: (of.hidden as f64).sqrt(),
        attention: AttentionSpec { scale: 1.0, ..of.attention },
        qkv_bias: bias,
        o_bias: bias,
        query_key_norm: Some(QueryKeyNorm::Heads),
        value_norm: true,
        logit_cap: soft_cap(config, "final_logit_softcapping", None)?,
        per_layer: per_layer(config, of.vocabulary)?,
        names: names(),
        blocks: blocks.collect(),
        ropes,
        ..of
    };
    Ok(match experts(config)? {
        Some(experts) => of.with_experts(experts, &vec![true; windowed.len()]),
        None => of,
    })
}
