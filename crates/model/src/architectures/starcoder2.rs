//! `Starcoder2ForCausalLM`: layer norms, biases everywhere, a feed-forward layer without a gate, and a window where one is asked for.
use super::llama::{self, Defaults};
use super::{Description, Names, Up, window};
use crate::config::Config;
use crate::error::Result;
use crate::rope::RopeDefaults;
use tanglescope_kernels::NormKind;

pub(super) fn describe(config: &Config) -> Result<Description> {
    let defaults = Defaults {
        sizes: [49_152, 3072, 30, 24, 12_288],
        kv_heads: Some(2),
        max_positions: 4096,
        activation: ("hidden_act", "gelu_pytorch_tanh"),
        tied: true,
        ..Defaults::default()
    };
    let of = llama::with_rope(llama::body(config, defaults)?, config, RopeDefaults::default())?;
    for key in ["residual_dropout", "embedding_dropout"] {
        let _of_training: Option<f64> = config.get(key)?;
    }
    let bias = config.get("use_bias")?.unwrap_or(true);
    let (window, all) = (window(config)?, vec![true; of.layers()]);
    let names = Names { up: Up::Plain("mlp.c_fc"), down: "mlp.c_proj", ..llama::names() };
    let norm = NormKind { centred: true, eps: config.get("norm_epsilon")?.unwrap_or(1e-5) };
    let of = Description { norm, norm_bias: true, qkv_bias: bias, o_bias: bias, mlp_bias: bias, names, ..of };
    Ok(llama::with_windows(of, window, &all))
}
