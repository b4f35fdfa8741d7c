//! `GPTNeoXForCausalLM`: `LayerNorm`, rotary positions on a part of each head, one matrix for queries, keys and values, head by
//! head, and a feed-forward layer beside attention.
use super::llama::{self, Defaults};
use super::{Description, Names, Qkv, Up};
use crate::config::Config;
use crate::error::Result;
use crate::rope::RopeDefaults;
use std::borrow::Cow;
use tanglescope_kernels::NormKind;

fn names() -> Names {
    Names {
        prefix: Cow::Borrowed("gpt_neox."),
        embedding: Cow::Borrowed("gpt_neox.embed_in"),
        blocks: Cow::Borrowed("gpt_neox.layers"),
        qkv: Qkv::ByHead("attention.query_key_value"),
        sinks: None,
        o: "attention.dense",
        up: Up::Plain("mlp.dense_h_to_4h"),
        down: "mlp.dense_4h_to_h",
        final_norm: Cow::Borrowed("gpt_neox.final_layer_norm"),
        head: Cow::Borrowed("embed_out"),
        buffers: &["attention.bias", "attention.masked_bias", "attention.rotary_emb.inv_freq"],
        output_scale: None,
        beside: &[],
        ..llama::names()
    }
}

pub(super) fn describe(config: &Config) -> Result<Description> {
    let defaults = Defaults { activation: ("hidden_act", "gelu"), ..Defaults::default() };
    let of = llama::body(config, defaults)?;
    if of.attention.kv_heads != of.attention.heads || of.attention.head_dim * of.attention.heads != of.hidden {
        let problem = format!("found {} heads on a width of {}, expected a divisor", of.attention.heads, of.hidden);
        return Err(config.refuse("num_attention_heads", problem));
    }
    let rope =
        RopeDefaults { theta: ("rotary_emb_base", 1e4), part: Some(("rotary_pct", 0.25)), ..RopeDefaults::default() };
    let of = llama::with_rope(of, config, rope)?;
    // transformers 5 keeps both, and reads the parameters of the rotary embedding
    let _same: Option<f64> = config.get("rope_theta")?;
    let bias = config.get("attention_bias")?.unwrap_or(true);
    Ok(Description {
        norm: NormKind { centred: true, eps: config.get("layer_norm_eps")?.unwrap_or(1e-5) },
        norm_bias: true,
        padding_row: None,
        column_norms: None,
        parallel: config.get("use_parallel_residual")?.unwrap_or(true),
        qkv_bias: bias,
        o_bias: bias,
        mlp_bias: true,
        names: names(),
        ..of
    })
}
