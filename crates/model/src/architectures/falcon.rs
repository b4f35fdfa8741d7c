//! `FalconForCausalLM`: `LayerNorm`s, attention beside the feed-forward layer with a norm for both or one each, and one projection for
//! queries, keys and values.
use super::llama::{self, Defaults};
use super::{Description, Names, Qkv, Up};
use crate::config::Config;
use crate::error::Result;
use crate::rope::RopeDefaults;
use std::borrow::Cow;
use tanglescope_kernels::{AttentionSpec, NormKind};

pub(super) fn describe(config: &Config) -> Result<Description> {
    if config.get("alibi")?.unwrap_or(false) {
        return Err(config.refuse("alibi", "found true; only rotary positions are supported"));
    }
    let defaults = Defaults {
        sizes: [65_024, 4544, 32, 71, 4 * 4544],
        width_elsewhere: true,
        activation: ("activation", "gelu"),
        tied: true,
        ..Defaults::default()
    };
    let of = llama::body(config, defaults)?;
    let newer = config.get("new_decoder_architecture")?.unwrap_or(false);
    let shared = config.get("multi_query")?.unwrap_or(true);
    let heads = of.attention.heads;
    let groups: Option<usize> = config.get("num_kv_heads")?;
    let kv_heads = match (newer, shared) {
        (true, _) => groups.unwrap_or(heads),
        (false, true) => 1,
        (false, false) => heads,
    };
    if kv_heads == 0 || heads % kv_heads != 0 {
        let problem = format!("found {kv_heads}, expected a divisor of num_attention_heads, {heads}");
        return Err(config.refuse("num_kv_heads", problem));
    }
    let attention = AttentionSpec { kv_heads, ..of.attention };
    let of = llama::with_rope(Description { attention, ..of }, config, RopeDefaults::default())?;
    let beside: bool = config.get("parallel_attn")?.unwrap_or(true);
    let parallel = newer || beside;
    let norms = config.get("num_ln_in_parallel_attn")?.unwrap_or(if newer { 2 } else { 1 });
    let [first, second] = match (newer, parallel, norms) {
        (true, _, 2) => ["ln_attn", "ln_mlp"].map(Some),
        (_, true, 1) => [Some("input_layernorm"), None],
        (false, false, _) => ["input_layernorm", "post_attention_layernorm"].map(Some),
        (_, _, other) => {
            let problem = format!("found {other}, expected 1, or 2 with new_decoder_architecture");
            return Err(config.refuse("num_ln_in_parallel_attn", problem));
        }
    };
    let bias = config.get("bias")?.unwrap_or(false);
    let width = config.get("ffn_hidden_size")?.unwrap_or(4 * of.hidden);
    let fused = "self_attention.query_key_value";
    Ok(Description {
        mlp_width: config.checked_size("ffn_hidden_size", width)?,
        norm: NormKind { centred: true, eps: config.get("layer_norm_epsilon")?.unwrap_or(1e-5) },
        norm_bias: true,
        parallel,
        qkv_bias: bias,
        o_bias: bias,
        mlp_bias: bias,
        names: Names {
            prefix: Cow::Borrowed("transformer."),
            embedding: Cow::Borrowed("transformer.word_embeddings"),
            blocks: Cow::Borrowed("transformer.h"),
            attention_norm: first,
            // queries of all heads and the one key and value, or group by group
            qkv: if newer || !shared { Qkv::ByHead(fused) } else { Qkv::Joined(fused) },
            o: "self_attention.dense",
            mlp_norm: second,
            up: Up::Plain("mlp.dense_h_to_4h"),
            down: "mlp.dense_4h_to_h",
            final_norm: Cow::Borrowed("transformer.ln_f"),
            ..llama::names()
        },
        ..of
    })
}
