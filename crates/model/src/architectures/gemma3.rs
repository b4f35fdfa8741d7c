//! `Gemma3ForCausalLM`: Gemma 2 with norms of every head's queries and keys, and two rotary embeddings: one for the blocks with a
//! window, one for the others.
use super::{Description, Names, QueryKeyNorm, gemma2, window_or, windowed, with_ropes_by_type};
use crate::config::Config;
use crate::error::Result;
use crate::rope::RopeDefaults;

fn names() -> Names {
    Names { query_key_norms: Some(["self_attn.q_norm", "self_attn.k_norm"]), ..gemma2::names() }
}

pub(super) fn describe(config: &Config) -> Result<Description> {
    let of = gemma2::body(config, 131_072, [None, None])?;
    let window = window_or(config, 4096)?;
    let pattern: Option<usize> = config.get("sliding_window_pattern")?;
    let every = match pattern {
        Some(every) => every,
        None => config.get("_sliding_window_pattern")?.unwrap_or(6),
    };
    if every == 0 {
        return Err(config.refuse("sliding_window_pattern", "found 0, expected a positive number"));
    }
    let windowed = windowed(config, of.layers(), |layer| !(layer + 1).is_multiple_of(every))?;
    let global = RopeDefaults { theta: ("rope_theta", 1e6), ..RopeDefaults::default() };
    let local = RopeDefaults { theta: ("rope_local_base_freq", 1e4), ..RopeDefaults::default() };
    let of = Description { query_key_norm: Some(QueryKeyNorm::Heads), names: names(), ..of };
    with_ropes_by_type(of, config, window, &windowed, [global, local])
}
