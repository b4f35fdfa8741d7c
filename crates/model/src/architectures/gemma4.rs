//! `Gemma4ForCausalLM` without per-layer inputs, shared keys and experts: Gemma 3 with gains as they are, normalised values, scores that
//! are not scaled, wider heads in the blocks without a window, whose keys may be their values, and a factor on each block's output.
use super::llama::{self, Defaults};
use super::{BlockKind, Description, Names, QueryKeyNorm, gemma2, rope_of_type, soft_cap, window, windowed};
use crate::config::Config;
use crate::error::Result;
use crate::rope::RopeDefaults;
use tanglescope_kernels::AttentionSpec;

fn names() -> Names {
    Names {
        query_key_norms: Some(["self_attn.q_norm", "self_attn.k_norm"]),
        output_scale: Some("layer_scalar"),
        ..gemma2::names()
    }
}

/// What the smaller models of the family have, and this one's functions do not.
fn refuse_others(config: &Config) -> Result<()> {
    for (key, default, what) in [
        ("hidden_size_per_layer_input", 256usize, "inputs to each layer by token"),
        ("num_kv_shared_layers", 0, "layers with another layer's keys and values"),
    ] {
        let found: Option<usize> = config.get(key)?;
        if found.unwrap_or(default) != 0 {
            let problem = format!("found {}: {what} are not supported, expected 0", found.unwrap_or(default));
            return Err(config.refuse(key, problem));
        }
    }
    if config.get("enable_moe_block")?.unwrap_or(false) {
        return Err(config.refuse("enable_moe_block", "found true: Gemma 4's experts are not supported"));
    }
    // what those would be made of
    for key in ["vocab_size_per_layer_input", "num_experts", "top_k_experts", "moe_intermediate_size"] {
        let _size: Option<usize> = config.get(key)?;
    }
    let _of_shared: Option<bool> = config.get("use_double_wide_mlp")?;
    Ok(())
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
    refuse_others(config)?;
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
    let window = if config.has("sliding_window") { window(config)? } else { Some(512) };
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
    let blocks = windowed.iter().zip(heads).map(|(&windowed, heads)| BlockKind {
        window: window.filter(|_| windowed),
        rope: Some([usize::from(windowed); 2]),
        heads,
        keys_are_values: keys_are_values && !windowed,
        ..BlockKind::default()
    });
    let bias = config.get("attention_bias")?.unwrap_or(false);
    Ok(Description {
        embedding_scale: (of.hidden as f64).sqrt(),
        attention: AttentionSpec { scale: 1.0, ..of.attention },
        qkv_bias: bias,
        o_bias: bias,
        query_key_norm: Some(QueryKeyNorm::Heads),
        value_norm: true,
        logit_cap: soft_cap(config, "final_logit_softcapping", None)?,
        names: names(),
        blocks: blocks.collect(),
        ropes,
        ..of
    })
}
