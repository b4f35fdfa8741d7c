//! `LlamaForCausalLM`: RMS norms, rotary positions, grouped-query attention, a gated feed-forward layer.
use super::{Description, Names, Qkv, activation};
use crate::config::Config;
use crate::error::Result;
use crate::rope::Rope;
use tanglescope_kernels::{Heads, NormKind};

const NAMES: Names = Names {
    prefix: "model.",
    embedding: "model.embed_tokens",
    positions: None,
    blocks: "model.layers",
    attention_norm: "input_layernorm",
    qkv: Qkv::Separate(["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]),
    o: "self_attn.o_proj",
    mlp_norm: "post_attention_layernorm",
    gate: Some("mlp.gate_proj"),
    up: "mlp.up_proj",
    down: "mlp.down_proj",
    final_norm: "model.norm",
    head: "lm_head",
    conv1d: false,
    buffers: &["self_attn.rotary_emb.inv_freq"],
};

pub(super) fn describe(config: &Config) -> Result<Description> {
    let (hidden, heads) = (config.size("hidden_size")?, config.size("num_attention_heads")?);
    let kv_heads = config.get("num_key_value_heads")?.unwrap_or(heads);
    if kv_heads == 0 || heads % kv_heads != 0 {
        let problem = format!("found {kv_heads}, expected a divisor of num_attention_heads, {heads}");
        return Err(config.refuse("num_key_value_heads", problem));
    }
    let head_dim: usize = config.get("head_dim")?.unwrap_or(hidden / heads);
    if head_dim == 0 || !head_dim.is_multiple_of(2) {
        return Err(config.refuse("head_dim", format!("found {head_dim}, expected a positive even number")));
    }
    Ok(Description {
        vocabulary: config.size("vocab_size")?,
        hidden,
        layers: config.size("num_hidden_layers")?,
        max_positions: config.get("max_position_embeddings")?.unwrap_or(2048),
        heads: Heads { heads, kv_heads, head_dim, scale: (head_dim as f64).sqrt().recip() },
        rope: Some(Rope::read(config, head_dim)?),
        norm: NormKind { centred: false, eps: config.get("rms_norm_eps")?.unwrap_or(1e-6) },
        norm_bias: false,
        mlp_width: config.size("intermediate_size")?,
        activation: activation(config, "hidden_act", "silu")?,
        attention_bias: config.get("attention_bias")?.unwrap_or(false),
        mlp_bias: config.get("mlp_bias")?.unwrap_or(false),
        tied: config.get("tie_word_embeddings")?.unwrap_or(false),
        names: NAMES,
    })
}
