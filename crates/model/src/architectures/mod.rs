//! What the checkpoints of each architecture look like: one file an architecture, one line in `TABLE`.
mod gpt2;
mod llama;

use crate::config::Config;
use crate::error::Result;
use crate::rope::Rope;
use tanglescope_kernels::{Activation, Heads, NormKind};

/// Reads a config of one architecture.
type Describe = fn(&Config) -> Result<Description>;

/// `model_type` of config.json, and how such a config is read.
const TABLE: &[(&str, Describe)] = &[("gpt2", gpt2::describe), ("llama", llama::describe)];

/// A decoder's dimensions, its functions, and the names of its tensors.
#[derive(Clone, Debug)]
pub struct Description {
    /// Rows of the embedding.
    pub vocabulary: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Number of blocks.
    pub layers: usize,
    /// Longest sequence that the model has positions for.
    pub max_positions: usize,
    /// Attention heads.
    pub heads: Heads,
    /// Rotary embedding; learned positions where there is none.
    pub rope: Option<Rope>,
    /// The norms.
    pub norm: NormKind,
    /// Whether norms have a bias.
    pub norm_bias: bool,
    /// Width of the feed-forward layer.
    pub mlp_width: usize,
    /// Its function.
    pub activation: Activation,
    /// Whether the projections of attention have biases.
    pub attention_bias: bool,
    /// Whether the feed-forward projections have biases.
    pub mlp_bias: bool,
    /// Whether the output matrix is the embedding.
    pub tied: bool,
    /// Names of modules.
    pub names: Names,
}

/// Where the tensors of an architecture stand in its checkpoints. Names inside a block are relative to the block.
#[derive(Clone, Copy, Debug)]
pub struct Names {
    /// The base model's prefix, which checkpoints of the bare base leave out.
    pub prefix: &'static str,
    /// The token embedding.
    pub embedding: &'static str,
    /// Learned positions.
    pub positions: Option<&'static str>,
    /// The list of blocks.
    pub blocks: &'static str,
    /// Norm before attention.
    pub attention_norm: &'static str,
    /// Projections to queries, keys and values.
    pub qkv: Qkv,
    /// Projection of the attention output.
    pub o: &'static str,
    /// Norm before the feed-forward layer.
    pub mlp_norm: &'static str,
    /// Gate of a gated feed-forward layer.
    pub gate: Option<&'static str>,
    /// First projection of the feed-forward layer.
    pub up: &'static str,
    /// Second projection of the feed-forward layer.
    pub down: &'static str,
    /// Norm before the head.
    pub final_norm: &'static str,
    /// Output matrix.
    pub head: &'static str,
    /// Whether projections are stored `[in, out]` (`Conv1D`) and not `[out, in]` (`Linear`).
    pub conv1d: bool,
    /// Tensors under a block that are no parameters.
    pub buffers: &'static [&'static str],
}

/// Query, key and value projections.
#[derive(Clone, Copy, Debug)]
pub enum Qkv {
    /// Three matrices.
    Separate([&'static str; 3]),
    /// One matrix whose columns are queries, then keys, then values.
    Fused(&'static str),
}

/// Reads the config of a supported architecture.
///
/// # Errors
/// Where the architecture is unknown or a key asks for something that is not computed.
pub fn describe(config: &Config) -> Result<Description> {
    if let Some(quantization) = config.object("quantization_config")? {
        let method: Option<String> = quantization.get("quant_method")?;
        return Err(config.refuse(
            "quantization_config",
            format!(
                "the weights are quantised ({}); gradients need plain ones. Dequantise the checkpoint first and save it \
                 with `save_pretrained`",
                method.as_deref().unwrap_or("unknown method")
            ),
        ));
    }
    let model_type: String = config.need("model_type")?;
    let known = || TABLE.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
    match TABLE.iter().find(|(name, _)| *name == model_type) {
        Some((_, describe)) => describe(config),
        None => Err(config.refuse("model_type", format!("`{model_type}` is not supported; supported: {}", known()))),
    }
}

/// The activation that a config names.
fn activation(config: &Config, key: &str, default: &str) -> Result<Activation> {
    let name: String = config.get(key)?.unwrap_or_else(|| default.to_owned());
    match name.as_str() {
        "silu" | "swish" => Ok(Activation::Silu),
        "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" => Ok(Activation::GeluTanh),
        "gelu" => Ok(Activation::Gelu),
        "relu" => Ok(Activation::Relu),
        _ => Err(config.refuse(
            key,
            format!("`{name}` is not supported; supported: silu, gelu, gelu_new, gelu_pytorch_tanh, relu"),
        )),
    }
}
