//! `GPT2LMHeadModel`: `LayerNorm`, learned positions, one projection for queries, keys and values, `Conv1D` weights.
use super::{Description, Names, Qkv, activation};
use crate::config::Config;
use crate::error::Result;
use tanglescope_kernels::{Heads, NormKind};

const NAMES: Names = Names {
    prefix: "transformer.",
    embedding: "transformer.wte",
    positions: Some("transformer.wpe"),
    blocks: "transformer.h",
    attention_norm: "ln_1",
    qkv: Qkv::Fused("attn.c_attn"),
    o: "attn.c_proj",
    mlp_norm: "ln_2",
    gate: None,
    up: "mlp.c_fc",
    down: "mlp.c_proj",
    final_norm: "transformer.ln_f",
    head: "lm_head",
    conv1d: true,
    buffers: &["attn.bias", "attn.masked_bias"],
};

pub(super) fn describe(config: &Config) -> Result<Description> {
    for key in ["scale_attn_by_inverse_layer_idx", "add_cross_attention"] {
        if config.get(key)? == Some(true) {
            return Err(config.refuse(key, "found true; only false is supported"));
        }
    }
    let (hidden, heads) = (config.size("n_embd")?, config.size("n_head")?);
    if hidden % heads != 0 {
        return Err(config.refuse("n_head", format!("found {heads}, expected a divisor of n_embd, {hidden}")));
    }
    let head_dim = hidden / heads;
    let scaled = config.get("scale_attn_weights")?.unwrap_or(true);
    Ok(Description {
        vocabulary: config.size("vocab_size")?,
        hidden,
        layers: config.size("n_layer")?,
        max_positions: config.size("n_positions")?,
        heads: Heads {
            heads,
            kv_heads: heads,
            head_dim,
            scale: if scaled { (head_dim as f64).sqrt().recip() } else { 1.0 },
        },
        rope: None,
        norm: NormKind { centred: true, eps: config.get("layer_norm_epsilon")?.unwrap_or(1e-5) },
        norm_bias: true,
        mlp_width: config.get("n_inner")?.unwrap_or(4 * hidden),
        activation: activation(config, "activation_function", "gelu_new")?,
        attention_bias: true,
        mlp_bias: true,
        tied: config.get("tie_word_embeddings")?.unwrap_or(true),
        names: NAMES,
    })
}
