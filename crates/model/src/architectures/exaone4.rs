//! `Exaone4ForCausalLM`: norms after attention and feed-forward layer and none before, norms of every head's queries and keys, and, where
//! there is a window, none and no rotary angles on every fourth block.
use super::llama::{self, Defaults};
use super::{Description, Names, QueryKeyNorm, olmo2, window_or, windowed};
use crate::config::Config;
use crate::error::Result;
use crate::rope::RopeDefaults;

pub(super) fn describe(config: &Config) -> Result<Description> {
    let defaults =
        Defaults { sizes: [102_400, 4096, 32, 32, 16_384], kv_heads: Some(32), eps: 1e-5, ..Defaults::default() };
    let of = llama::with_rope(llama::body(config, defaults)?, config, RopeDefaults::default())?;
    let window = window_or(config, 4096)?;
    // EXAONE 4.0 writes the pattern as letters too, L for a window and G for none
    let pattern: Option<serde_json::Value> = config.get("sliding_window_pattern")?;
    let local: Vec<bool> = match pattern.unwrap_or_else(|| 4.into()) {
        serde_json::Value::String(letters) if !letters.is_empty() && letters.chars().all(|c| "LG".contains(c)) => {
            letters.chars().map(|letter| letter == 'L').collect()
        }
        number => match number.as_u64().and_then(|every| usize::try_from(every).ok()) {
            Some(every @ 1..=crate::config::MOST_LAYERS) => (1..=every).map(|layer| layer != every).collect(),
            Some(0) if window.is_none() => vec![false],
            _ => {
                return Err(
                    config.refuse("sliding_window_pattern", format!("found {number}, expected a positive number"))
                );
            }
        },
    };
    let windowed = windowed(config, of.layers(), |layer| window.is_some() && local[layer % local.len()])?;
    let names = Names { query_key_norms: Some(["self_attn.q_norm", "self_attn.k_norm"]), ..olmo2::names() };
    let mut of =
        Description { query_key_norm: Some(QueryKeyNorm::Heads), names, ..llama::with_windows(of, window, &windowed) };
    for (block, _) in of.blocks.iter_mut().zip(&windowed).filter(|(_, windowed)| window.is_some() && !**windowed) {
        block.rope = None;
    }
    Ok(of)
}
