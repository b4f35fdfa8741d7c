//! `Gemma3ForCausalLM`: Gemma 2 with norms of every head's queries and keys, and two rotary embeddings: one for the blocks with a
//! window, one for the others.
use super::{BlockKind, Description, Names, QueryKeyNorm, gemma2, llama, window, windowed};
use crate::config::Config;
use crate::error::Result;
use crate::rope::{Rope, RopeDefaults};

fn names() -> Names {
    Names { query_key_norms: Some(["self_attn.q_norm", "self_attn.k_norm"]), ..gemma2::names() }
}

pub(super) fn describe(config: &Config) -> Result<Description> {
    let of = gemma2::body(config, 131_072, [None, None])?;
    let window = if config.has("sliding_window") { window(config)? } else { Some(4096) };
    let pattern: Option<usize> = config.get("sliding_window_pattern")?;
    let every = match pattern {
        Some(every) => every,
        None => config.get("_sliding_window_pattern")?.unwrap_or(6),
    };
    if every == 0 {
        return Err(config.refuse("sliding_window_pattern", "found 0, expected a positive number"));
    }
    let windowed = windowed(config, of.layers(), |layer| !(layer + 1).is_multiple_of(every))?;
    let parameters = config.object("rope_parameters")?;
    // transformers 4 scales the rotary embedding of the blocks without a window alone
    let older = config.object("rope_scaling")?;
    let of_type = |kind: &str, older: Option<&Config>, theta| -> Result<Rope> {
        let newer = match &parameters {
            Some(parameters) => parameters.object(kind)?,
            None => None,
        };
        let defaults = RopeDefaults { theta, ..RopeDefaults::default() };
        Rope::of(config, kind, newer.as_ref().or(older), of.attention.head_dim, defaults)
    };
    let global = of_type("full_attention", older.as_ref(), ("rope_theta", 1e6))?;
    let local = of_type("sliding_attention", None, ("rope_local_base_freq", 1e4))?;
    if let Some(parameters) = &parameters {
        parameters.finish(|_| false)?;
    }
    let max_positions = global.reach.map_or(of.max_positions, |reach| reach.max(of.max_positions));
    let blocks =
        windowed.iter().map(|&windowed| BlockKind { window: None, rope: Some(usize::from(windowed)) }).collect();
    let of = Description {
        blocks,
        ropes: vec![global, local],
        max_positions,
        query_key_norm: Some(QueryKeyNorm::Heads),
        names: names(),
        ..of
    };
    Ok(llama::with_windows(of, window, &windowed))
}
