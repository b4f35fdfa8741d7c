//! `GPT2LMHeadModel`: `LayerNorm`, learned positions, one projection for queries, keys and values, `Conv1D` weights.
use super::{BlockKind, Description, Names, Qkv, Up, activation, llama};
use crate::config::Config;
use crate::error::Result;
use std::borrow::Cow;
use tanglescope_kernels::{AttentionSpec, NormKind};

fn names() -> Names {
    Names {
        prefix: Cow::Borrowed("transformer."),
        embedding: Cow::Borrowed("transformer.wte"),
        positions: Some("transformer.wpe"),
        blocks: Cow::Borrowed("transformer.h"),
        attention_norm: Some("ln_1"),
        qkv: Qkv::Joined("attn.c_attn"),
        sinks: None,
        o: "attn.c_proj",
        mlp_norm: Some("ln_2"),
        up: Up::Plain("mlp.c_fc"),
        down: "mlp.c_proj",
        final_norm: Cow::Borrowed("transformer.ln_f"),
        conv1d: true,
        buffers: &["attn.bias", "attn.masked_bias"],
        output_scale: None,
        beside: &[],
        ..llama::names()
    }
}

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
        blocks: vec![BlockKind::default(); config.layers("n_layer", config.size("n_layer")?)?],
        max_positions: config.size("n_positions")?,
        first_position: 0,
        embedding_scale: 1.0,
        residual_scale: 1.0,
        logit_scale: 1.0,
        padding_row: None,
        column_norms: None,
        attention: AttentionSpec {
            heads,
            kv_heads: heads,
            head_dim,
            scale: if scaled { (head_dim as f64).sqrt().recip() } else { 1.0 },
            cap: None,
            window: None,
        },
        ropes: Vec::new(),
        norm: NormKind { centred: true, eps: config.get("layer_norm_epsilon")?.unwrap_or(1e-5) },
        norm_gain: true,
        norm_bias: true,
        gain_plus_one: false,
        qkv_bound: None,
        output_gate: false,
        latent: None,
        delta: None,
        query_key_norm: None,
        value_norm: false,
        parallel: false,
        mlp_width: config.get("n_inner")?.unwrap_or(4 * hidden),
        activation: activation(config, "activation_function", "gelu_new")?,
        qkv_bias: true,
        o_bias: true,
        mlp_bias: true,
        experts: None,
        per_layer: None,
        tied: config.get("tie_word_embeddings")?.unwrap_or(true),
        head_bias: false,
        logit_cap: None,
        names: names(),
        further_blocks: 0,
        wrapper: None,
        fp8_block: None,
    })
}
