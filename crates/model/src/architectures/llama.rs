//! `LlamaForCausalLM`: RMS norms, rotary positions, grouped-query attention, a gated feed-forward layer. What most
//! later architectures vary.
use super::{BlockKind, Description, Names, Qkv, Up, activation};
use crate::config::Config;
use crate::error::Result;
use crate::rope::{Rope, RopeDefaults};
use std::borrow::Cow;
use tanglescope_kernels::{AttentionSpec, NormKind};

pub(super) fn names() -> Names {
    Names {
        prefix: Cow::Borrowed("model."),
        embedding: Cow::Borrowed("model.embed_tokens"),
        positions: None,
        blocks: Cow::Borrowed("model.layers"),
        attention_norm: Some("input_layernorm"),
        qkv: Qkv::Separate(["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]),
        query_key_norms: None,
        sinks: None,
        o: "self_attn.o_proj",
        after_attention: None,
        mlp_norm: Some("post_attention_layernorm"),
        up: Up::Gated(["mlp.gate_proj", "mlp.up_proj"]),
        down: "mlp.down_proj",
        after_mlp: None,
        final_norm: Cow::Borrowed("model.norm"),
        head: Cow::Borrowed("lm_head"),
        conv1d: false,
        buffers: &["self_attn.rotary_emb.inv_freq"],
        output_scale: None,
        beside: &[],
    }
}

/// What an architecture of this shape has where its config says nothing.
#[derive(Clone, Copy)]
pub(super) struct Defaults {
    /// Vocabulary, width, blocks, query heads and width of the feed-forward layer; the text part of a multimodal config leaves
    /// them out where they are transformers' defaults, and other configs never do.
    pub sizes: [usize; 5],
    /// As many as query heads where there is none.
    pub kv_heads: Option<usize>,
    /// Whether the width of the feed-forward layer is under another key, or there is only one of experts.
    pub width_elsewhere: bool,
    /// The residual stream's width over the query heads where there is none.
    pub head_dim: Option<usize>,
    pub max_positions: usize,
    pub eps: f64,
    pub activation: (&'static str, &'static str),
    pub tied: bool,
    /// `pad_token_id` where there is none.
    pub padding: Option<i64>,
}

impl Default for Defaults {
    fn default() -> Self {
        Self {
            sizes: [32_000, 4096, 32, 32, 11_008],
            kv_heads: None,
            width_elsewhere: false,
            head_dim: None,
            max_positions: 2048,
            eps: 1e-6,
            activation: ("hidden_act", "silu"),
            tied: false,
            padding: None,
        }
    }
}

/// The row that `nn.Embedding(…, padding_idx=config.pad_token_id)` does not train; a negative one counts from the end.
fn padding_row(config: &Config, default: Option<i64>, vocabulary: usize) -> Result<Option<u32>> {
    const KEY: &str = "pad_token_id";
    let Some(id) = config.get::<i64>(KEY)?.or(default.filter(|_| !config.has(KEY))) else { return Ok(None) };
    let rows = i64::try_from(vocabulary).unwrap_or(i64::MAX);
    let row = if id < 0 { rows.checked_add(id) } else { Some(id) }.filter(|row| (0..rows).contains(row));
    Ok(row.and_then(|row| u32::try_from(row).ok()))
}

/// Reads what every architecture of this shape has; positions are left to [`with_rope`].
pub(super) fn body(config: &Config, defaults: Defaults) -> Result<Description> {
    let size = |key: &str, default: usize| {
        if config.is_part() && !config.has(key) { Ok(default) } else { config.size(key) }
    };
    let [vocabulary, hidden, layers, heads, mlp_width] = defaults.sizes;
    let (hidden, heads) = (size("hidden_size", hidden)?, size("num_attention_heads", heads)?);
    let kv_heads: usize = config.get("num_key_value_heads")?.or(defaults.kv_heads).unwrap_or(heads);
    if kv_heads == 0 || heads % kv_heads != 0 {
        let problem = format!("found {kv_heads}, expected a divisor of num_attention_heads, {heads}");
        return Err(config.refuse("num_key_value_heads", problem));
    }
    let head_dim: usize = config.get("head_dim")?.or(defaults.head_dim).unwrap_or(hidden / heads);
    config.checked_size("head_dim", head_dim.max(1))?;
    if head_dim == 0 || !head_dim.is_multiple_of(2) {
        return Err(config.refuse("head_dim", format!("found {head_dim}, expected a positive even number")));
    }
    let (key, default) = defaults.activation;
    let vocabulary = size("vocab_size", vocabulary)?;
    Ok(Description {
        vocabulary,
        hidden,
        blocks: vec![BlockKind::default(); config.layers("num_hidden_layers", size("num_hidden_layers", layers)?)?],
        max_positions: config.get("max_position_embeddings")?.unwrap_or(defaults.max_positions),
        first_position: 0,
        embedding_scale: 1.0,
        residual_scale: 1.0,
        logit_scale: 1.0,
        padding_row: padding_row(config, defaults.padding, vocabulary)?,
        column_norms: None,
        attention: AttentionSpec {
            heads,
            kv_heads,
            head_dim,
            scale: (head_dim as f64).sqrt().recip(),
            cap: None,
            window: None,
        },
        ropes: Vec::new(),
        norm: NormKind { centred: false, eps: config.get("rms_norm_eps")?.unwrap_or(defaults.eps) },
        norm_gain: true,
        norm_bias: false,
        gain_plus_one: false,
        qkv_bound: None,
        output_gate: false,
        latent: None,
        delta: None,
        query_key_norm: None,
        value_norm: false,
        parallel: false,
        mlp_width: match defaults.width_elsewhere && !config.has("intermediate_size") {
            true => mlp_width,
            false => size("intermediate_size", mlp_width)?,
        },
        activation: activation(config, key, default)?,
        qkv_bias: false,
        o_bias: false,
        mlp_bias: false,
        experts: None,
        per_layer: None,
        tied: config.get("tie_word_embeddings")?.unwrap_or(defaults.tied),
        head_bias: false,
        logit_cap: None,
        names: names(),
        further_blocks: 0,
        wrapper: None,
        fp8_block: None,
    })
}

/// One rotary embedding for all blocks.
pub(super) fn with_rope(of: Description, config: &Config, defaults: RopeDefaults) -> Result<Description> {
    let rope = Rope::read(config, of.attention.head_dim, defaults)?;
    Ok(with_this_rope(of, rope))
}

/// This rotary embedding for all blocks.
pub(super) fn with_this_rope(of: Description, rope: Rope) -> Description {
    let max_positions = rope.reach.map_or(of.max_positions, |reach| reach.max(of.max_positions));
    let blocks = of.blocks.iter().map(|block| BlockKind { rope: Some([0, 0]), ..*block }).collect();
    Description { ropes: vec![rope], blocks, max_positions, ..of }
}

/// A window for some of the blocks.
pub(super) fn with_windows(mut of: Description, window: Option<usize>, windowed: &[bool]) -> Description {
    for (block, _) in of.blocks.iter_mut().zip(windowed).filter(|(_, windowed)| **windowed) {
        block.window = window;
    }
    of
}

pub(super) fn describe(config: &Config) -> Result<Description> {
    let of = with_rope(body(config, Defaults::default())?, config, RopeDefaults::default())?;
    let attention_bias = config.get("attention_bias")?.unwrap_or(false);
    let mlp_bias = config.get("mlp_bias")?.unwrap_or(false);
    Ok(Description { qkv_bias: attention_bias, o_bias: attention_bias, mlp_bias, ..of })
}
