//! `Phi3ForCausalLM`: Llama with one matrix for queries, keys and values and one for gate and up, and `longrope`.
use super::llama::{self, Defaults};
use super::{Description, Names, Qkv, Up, window};
use crate::config::Config;
use crate::error::Result;
use crate::rope::RopeDefaults;

fn names() -> Names {
    Names { qkv: Qkv::Joined("self_attn.qkv_proj"), up: Up::Joined("mlp.gate_up_proj"), ..llama::names() }
}

pub(super) fn describe(config: &Config) -> Result<Description> {
    let defaults = Defaults { max_positions: 4096, eps: 1e-5, padding: Some(32_000), ..Defaults::default() };
    let rope = RopeDefaults {
        part: Some(("partial_rotary_factor", 1.0)),
        long_by_other_names: true,
        ..RopeDefaults::default()
    };
    let of = llama::with_rope(llama::body(config, defaults)?, config, rope)?;
    // read where the rotary embedding is scaled; the others leave it unread
    let _original: Option<usize> = config.get("original_max_position_embeddings")?;
    // written by Phi-4 at the only value that its code has
    for key in ["full_attn_mod", "interpolate_factor"] {
        if config.get(key)?.is_some_and(|value: f64| value.to_bits() != 1.0f64.to_bits()) {
            return Err(config.refuse(key, "only 1 is supported"));
        }
    }
    let (window, all) = (window(config)?, vec![true; of.layers()]);
    Ok(Description { names: names(), ..llama::with_windows(of, window, &all) })
}
