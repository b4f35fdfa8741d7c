//! `PhiForCausalLM`: one `LayerNorm` before attention and feed-forward layer, which stand side by side, rotary angles in half of each
//! head, biases everywhere, in the head too.
use super::llama::{self, Defaults};
use super::{Description, Names, Qkv, Up};
use crate::config::Config;
use crate::error::Result;
use crate::rope::RopeDefaults;
use std::borrow::Cow;
use tanglescope_kernels::NormKind;

pub(super) fn describe(config: &Config) -> Result<Description> {
    if config.get("qk_layernorm")?.unwrap_or(false) {
        return Err(config.refuse("qk_layernorm", "found true; only false is supported"));
    }
    let defaults =
        Defaults { sizes: [51_200, 2048, 24, 32, 8192], activation: ("hidden_act", "gelu_new"), ..Defaults::default() };
    let rope = RopeDefaults { part: Some(("partial_rotary_factor", 0.5)), ..RopeDefaults::default() };
    let of = llama::with_rope(llama::body(config, defaults)?, config, rope)?;
    Ok(Description {
        norm: NormKind { centred: true, eps: config.get("layer_norm_eps")?.unwrap_or(1e-5) },
        norm_bias: true,
        parallel: true,
        qkv_bias: true,
        o_bias: true,
        mlp_bias: true,
        head_bias: true,
        names: Names {
            qkv: Qkv::Separate(["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]),
            o: "self_attn.dense",
            mlp_norm: None,
            up: Up::Plain("mlp.fc1"),
            down: "mlp.fc2",
            final_norm: Cow::Borrowed("model.final_layernorm"),
            ..llama::names()
        },
        ..of
    })
}
