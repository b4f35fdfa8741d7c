//! Shapes of known models, and rows of tokens, for measurements with made-up weights.
use crate::error::Result;
use std::path::Path;
use tanglescope_gram::Group;
use tanglescope_model::Config;
use tanglescope_model::architectures::{self, Description};

/// Shapes of known models.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShapeName {
    /// The model that `demo` carries.
    Demo,
    /// SmolLM2-135M.
    SmolLm2,
    /// Llama-3.2-1B.
    Llama1b,
    /// Llama-3-8B.
    Llama8b,
}

/// The dimensions of a known model.
pub fn description(shape: ShapeName) -> Result<Description> {
    let (name, text) = match shape {
        ShapeName::Demo => ("demo", include_str!("../../demo/config.json").to_owned()),
        ShapeName::SmolLm2 => ("smollm2-135m", llama(49_152, 576, 30, [9, 3], 1536, true)),
        ShapeName::Llama1b => ("llama-3.2-1b", llama(128_256, 2048, 16, [32, 8], 8192, true)),
        ShapeName::Llama8b => ("llama-3-8b", llama(128_256, 4096, 32, [32, 8], 14_336, false)),
    };
    Ok(architectures::describe(&Config::parse(Path::new(name), text.as_bytes())?)?)
}

fn llama(vocabulary: usize, hidden: usize, layers: usize, heads: [usize; 2], mlp: usize, tied: bool) -> String {
    serde_json::json!({
        "model_type": "llama", "vocab_size": vocabulary, "hidden_size": hidden, "num_hidden_layers": layers,
        "num_attention_heads": heads[0], "num_key_value_heads": heads[1], "intermediate_size": mlp,
        "max_position_embeddings": 131_072, "rope_theta": 500_000.0, "rms_norm_eps": 1e-5, "hidden_act": "silu",
        "tie_word_embeddings": tied,
    })
    .to_string()
}

/// Pairs of tokens without a pattern.
pub fn groups(of: &Description, [pairs, prompt, response]: [usize; 3]) -> Vec<Group> {
    let mut state = 1u64;
    let mut tokens = |n: usize| -> Vec<u32> {
        let mut token = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            u32::try_from((state >> 33) % of.vocabulary as u64).unwrap_or(0)
        };
        (0..n).map(|_| token()).collect()
    };
    (0..pairs).map(|_| Group::of(of, tokens(prompt), vec![tokens(response), tokens(response)])).collect()
}
