//! What the checkpoints of each architecture look like: one file an architecture, one line in `TABLE`.
mod arcee;
mod cohere;
mod deepseek_v3;
mod description;
mod exaone4;
mod falcon;
mod formulas;
mod gemma;
mod gemma2;
mod gemma3;
mod gemma4;
mod glm4;
mod glm4_moe;
mod gpt2;
mod gpt_neox;
mod gpt_oss;
mod granite;
mod inert;
mod keys;
mod llama;
mod ministral3;
mod mistral;
mod mixtral;
mod olmo;
mod olmo2;
mod olmo3;
mod olmoe;
mod opt;
mod phi;
mod phi3;
mod phimoe;
mod qwen2;
mod qwen2_moe;
mod qwen3;
mod qwen3_5;
mod qwen3_moe;
mod qwen3_next;
mod qwen_vl;
mod seed_oss;
mod smollm3;
mod stablelm;
mod starcoder2;
mod wrapper;

pub use description::{
    BlockKind, DeltaKind, DeltaMaps, Description, ExpertsKind, LatentKind, Names, Part, PerLayerKind, Qkv,
    QueryKeyNorm, Reads, SharedKind, StackOrder, StoredExperts, Up,
};
pub use wrapper::Wrapper;

use crate::config::Config;
use crate::error::{Result, brief};
use keys::{
    EXPERT_MAPS, MOST_EXPERTS_IN_ALL, activation, auxiliary_losses, bound, by_layer, check_expert_numbers,
    expert_numbers, factor, factor_or, rope_of_type, soft_cap, softmax_rule, window, window_or, windowed,
    with_ropes_by_type,
};

/// Reads a config of one architecture.
type Describe = fn(&Config) -> Result<Description>;

/// `model_type` of config.json, and how such a config is read.
const TABLE: &[(&str, Describe)] = &[
    ("arcee", arcee::describe),
    ("cohere", cohere::describe),
    ("cohere2", cohere::describe2),
    ("deepseek_v3", deepseek_v3::describe),
    ("exaone4", exaone4::describe),
    ("falcon", falcon::describe),
    ("gemma", gemma::describe),
    ("gemma2", gemma2::describe),
    ("gemma3_text", gemma3::describe),
    ("gemma4_text", gemma4::describe),
    ("glm4", glm4::describe),
    ("glm4_moe", glm4_moe::describe),
    ("gpt2", gpt2::describe),
    ("gpt_neox", gpt_neox::describe),
    ("gpt_oss", gpt_oss::describe),
    ("granite", granite::describe),
    ("llama", llama::describe),
    ("ministral3", ministral3::describe),
    ("mistral", mistral::describe),
    ("mixtral", mixtral::describe),
    ("olmo", olmo::describe),
    ("olmo2", olmo2::describe),
    ("olmo3", olmo3::describe),
    ("olmoe", olmoe::describe),
    ("opt", opt::describe),
    ("phi", phi::describe),
    ("phi3", phi3::describe),
    ("phimoe", phimoe::describe),
    ("qwen2", qwen2::describe),
    ("qwen2_moe", qwen2_moe::describe),
    ("qwen2_5_vl_text", qwen_vl::qwen2_5),
    ("qwen2_vl_text", qwen_vl::qwen2),
    ("qwen3", qwen3::describe),
    ("qwen3_5_moe_text", qwen3_5::describe_moe),
    ("qwen3_5_text", qwen3_5::describe),
    ("qwen3_moe", qwen3_moe::describe),
    ("qwen3_next", qwen3_next::describe),
    ("qwen3_vl_text", qwen_vl::qwen3),
    ("seed_oss", seed_oss::describe),
    ("smollm3", smollm3::describe),
    ("stablelm", stablelm::describe),
    ("starcoder2", starcoder2::describe),
];

/// `model_type` of every supported architecture, and of every multimodal model whose text part is one.
#[must_use]
pub fn model_types() -> (Vec<&'static str>, Vec<&'static str>) {
    (TABLE.iter().map(|(name, _)| *name).collect(), Wrapper::types().collect())
}

/// Reads the config of a supported architecture, or of a multimodal model whose text part is one.
///
/// # Errors
/// Where the architecture is unknown or a key asks for something that is not computed.
pub fn describe(config: &Config) -> Result<Description> {
    let model_type: String = config.need("model_type")?;
    if let Some(wrapper) = Wrapper::named(&model_type) {
        // that of the whole model is of its text part too
        let fp8_block = quantisation(config)?;
        let of = wrapper.describe(config)?;
        return Ok(Description { fp8_block: of.fp8_block.or(fp8_block), ..of });
    }
    describe_as(&model_type, config, &[])
}

/// Reads a config as one of an architecture; `others` are keys of what is around it.
fn describe_as(model_type: &str, config: &Config, others: &[&str]) -> Result<Description> {
    let fp8_block = quantisation(config)?;
    let Some((_, describe)) = TABLE.iter().find(|(name, _)| *name == model_type) else {
        let known = TABLE.iter().map(|(name, _)| *name).chain(Wrapper::types()).collect::<Vec<_>>().join(", ");
        return Err(config.refuse("model_type", format!("`{model_type}` is not supported; supported: {known}")));
    };
    let description = describe(config)?;
    if let Some(experts) = &description.experts {
        let all = experts.number * description.blocks.iter().filter(|block| block.sparse).count();
        if all > MOST_EXPERTS_IN_ALL {
            let problem = format!(
                "found {} on each of many layers, expected at most {MOST_EXPERTS_IN_ALL} in all",
                experts.number
            );
            return Err(config.refuse("num_experts", problem));
        }
    }
    for key in ["is_encoder_decoder", "add_cross_attention", "use_bidirectional_attention", "pruned_heads"] {
        // an image's tokens alone see each other both ways
        let of_text = |value: &serde_json::Value| !crate::config::is_off(value) && value != "vision";
        if config.get(key)?.is_some_and(|value: serde_json::Value| of_text(&value)) {
            return Err(config.refuse(key, "asks for something other than a causal decoder, which is not supported"));
        }
    }
    config.finish(|key| inert::is_inert(key) || others.contains(&key))?;
    if description.head_bias && description.tied {
        let problem = "found true; an output matrix that is the embedding and has a bias is not supported";
        return Err(config.refuse("tie_word_embeddings", problem));
    }
    Ok(Description { fp8_block, ..description })
}

/// How weights are quantised, where it is in a way that is read: rows and columns that share a factor of 8-bit floating point numbers.
fn quantisation(config: &Config) -> Result<Option<[usize; 2]>> {
    let Some(of) = config.object("quantization_config")? else { return Ok(None) };
    let method: Option<String> = of.get("quant_method")?;
    match method.as_deref() {
        Some("bitsandbytes" | "mxfp4") => Ok(None),
        Some("fp8") => {
            let format: Option<String> = of.get("fmt")?;
            if let Some(format) = format.filter(|format| format != "e4m3") {
                return Err(of.refuse("fmt", format!("`{}` is not supported; supported: e4m3", brief(&format))));
            }
            match of.get::<Vec<usize>>("weight_block_size")?.as_deref() {
                None => Ok(None),
                Some(&[rows, columns]) if rows > 0 && columns > 0 => Ok(Some([rows, columns])),
                Some(found) => {
                    Err(of.refuse("weight_block_size", format!("found {found:?}, expected two positive numbers")))
                }
            }
        }
        other => Err(config.refuse(
            "quantization_config",
            format!(
                "the weights are quantised ({}), in a way that is not read; read: bitsandbytes (nf4, fp4, int8), fp8 and mxfp4. \
                 Dequantise the checkpoint first and save it with `save_pretrained`",
                brief(other.unwrap_or("unknown method"))
            ),
        )),
    }
}
