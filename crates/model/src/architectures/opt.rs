//! `OPTForCausalLM`: `LayerNorm`s before layers, learned positions that begin two rows into their table, biases, and `relu`.
use super::llama::{self, Defaults};
use super::{Description, Names, Qkv, Up};
use crate::config::Config;
use crate::error::Result;
use std::borrow::Cow;
use tanglescope_kernels::NormKind;

pub(super) fn describe(config: &Config) -> Result<Description> {
    if !config.get("do_layer_norm_before")?.unwrap_or(true) {
        return Err(config.refuse("do_layer_norm_before", "found false; only true is supported"));
    }
    if config.get("_remove_final_layer_norm")?.unwrap_or(false) {
        return Err(config.refuse("_remove_final_layer_norm", "found true; only false is supported"));
    }
    let defaults = Defaults {
        sizes: [50_272, 768, 12, 12, 3072],
        width_elsewhere: true,
        activation: ("activation_function", "relu"),
        tied: true,
        padding: Some(1),
        ..Defaults::default()
    };
    let of = llama::body(config, defaults)?;
    if let Some(width) = config.get::<usize>("word_embed_proj_dim")?.filter(|width| *width != of.hidden) {
        let problem = format!("found {width}; only hidden_size, {}, is supported", of.hidden);
        return Err(config.refuse("word_embed_proj_dim", problem));
    }
    let bias = config.get("enable_bias")?.unwrap_or(true);
    let affine = config.get("layer_norm_elementwise_affine")?.unwrap_or(true);
    // what training leaves out, and how weights began
    let _dropped: Option<f64> = config.get("layerdrop")?;
    let _dropout: Option<f64> = config.get("dropout")?;
    let _spread: Option<f64> = config.get("init_std")?;
    Ok(Description {
        first_position: 2,
        mlp_width: config.checked_size("ffn_dim", config.get("ffn_dim")?.unwrap_or(of.mlp_width))?,
        norm: NormKind { centred: true, eps: 1e-5 },
        norm_gain: affine,
        norm_bias: affine,
        qkv_bias: bias,
        o_bias: bias,
        mlp_bias: bias,
        names: Names {
            embedding: Cow::Borrowed("model.decoder.embed_tokens"),
            positions: Some("model.decoder.embed_positions"),
            blocks: Cow::Borrowed("model.decoder.layers"),
            attention_norm: Some("self_attn_layer_norm"),
            qkv: Qkv::Separate(["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]),
            o: "self_attn.out_proj",
            mlp_norm: Some("final_layer_norm"),
            up: Up::Plain("fc1"),
            down: "fc2",
            final_norm: Cow::Borrowed("model.decoder.final_layer_norm"),
            ..llama::names()
        },
        ..of
    })
}
