//! What configs ask for is computed or refused by name, and the text part of a multimodal model is the text model.
use crate::support;
use crate::support::{Tensors, llama, write_json, write_model, write_tensors};
use serde_json::{Value, json};
use std::path::Path;
use tanglescope_gram::{Group, Request, grams};
use tanglescope_kernels::{DType, Flex, FlexDevice, SoftCap};
use tanglescope_model::architectures::{BlockKind, Description, QueryKeyNorm, describe, model_types};
use tanglescope_model::{AdapterSource, Config, Decoder, Error, Places};

/// The least that a config of an architecture has, in three blocks.
fn config(model_type: &str) -> Value {
    let mut config = json!({
        "model_type": model_type, "vocab_size": 40, "hidden_size": 16, "intermediate_size": 24,
        "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    });
    if ["cohere2", "gpt_neox"].contains(&model_type) {
        let object = config.as_object_mut().unwrap();
        object.retain(|key, _| key != "num_key_value_heads" && key != "head_dim");
    }
    if model_type == "gpt2" {
        config = json!({
            "model_type": "gpt2", "vocab_size": 40, "n_embd": 16, "n_layer": 3, "n_head": 4, "n_positions": 32,
        });
    }
    config
}

const ALL: [&str; 10] =
    ["gemma2", "gemma3_text", "gpt2", "gpt_neox", "llama", "mistral", "olmo2", "phi3", "qwen2", "qwen3"];

fn with(model_type: &str, keys: Value) -> Value {
    let mut config = config(model_type);
    config.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
    config
}

fn read(config: &Value) -> Result<Description, Error> {
    describe(&Config::parse(Path::new("config.json"), config.to_string().as_bytes()).unwrap())
}

#[track_caller]
fn refused(config: &Value, key: &str) {
    let message = match read(config) {
        Ok(_) => panic!("{key} was not refused"),
        Err(error) => error.to_string(),
    };
    assert!(message.contains(&format!("`{key}`")), "{message}");
}

#[test]
fn a_key_that_is_not_understood_is_refused_by_name() {
    for model_type in ALL {
        read(&config(model_type)).unwrap();
        for key in ["logit_scale", "residual_multiplier", "qk_layernorm", "position_embedding_type"] {
            refused(&with(model_type, json!({ key: 0.5 })), key);
        }
        refused(&with(model_type, json!({ "is_encoder_decoder": true })), "is_encoder_decoder");
        // what changes nothing, or is off
        let inert = json!({
            "torch_dtype": "bfloat16", "use_cache": true, "attention_dropout": 0.1, "_name_or_path": "x",
            "unsloth_version": "1", "max_length": 20, "logit_scale": null, "qk_layernorm": false, "auto_map": {},
        });
        read(&with(model_type, inert)).unwrap();
    }
    // a key of another architecture
    refused(&with("llama", json!({ "final_logit_softcapping": 30.0 })), "final_logit_softcapping");
    refused(&with("llama", json!({ "sliding_window": 8 })), "sliding_window");
    refused(&with("llama", json!({ "partial_rotary_factor": 0.5 })), "partial_rotary_factor");
    refused(&with("mistral", json!({ "layer_types": ["full_attention"] })), "layer_types");
    refused(&with("gpt2", json!({ "rope_theta": 1e4 })), "rope_theta");
}

#[test]
fn rotary_parameters_that_are_not_understood_are_refused_by_name() {
    let rope = |parameters: Value| with("llama", json!({ "rope_parameters": parameters }));
    refused(&rope(json!({ "rope_type": "proportional" })), "rope_parameters");
    refused(&rope(json!({ "rope_type": "default", "mrope_section": [1, 2, 1] })), "rope_parameters.mrope_section");
    refused(&rope(json!({ "rope_type": "linear" })), "rope_parameters.factor");
    refused(&rope(json!({ "rope_type": "linear", "factor": 0 })), "rope_parameters.factor");
    refused(
        &rope(json!({ "rope_type": "longrope", "factor": 2, "short_factor": [1], "long_factor": [1] })),
        "rope_parameters.short_factor",
    );
    read(&rope(json!({ "rope_type": "default", "factor": 2, "beta_fast": 3 }))).unwrap();
    let gemma = |parameters: Value| with("gemma3_text", json!({ "rope_parameters": parameters }));
    refused(&gemma(json!({ "full_attention": {}, "other": { "rope_theta": 2 } })), "rope_parameters.other");
}

#[test]
fn windows_are_of_the_blocks_that_the_config_says() {
    let windows = |config: &Value| -> Vec<Option<usize>> {
        read(config).unwrap().blocks.iter().map(|block| block.window).collect()
    };
    let window = json!({ "sliding_window": 5 });
    assert_eq!(windows(&with("mistral", window.clone())), [Some(5); 3]);
    assert_eq!(windows(&with("mistral", json!({ "sliding_window": null }))), [None; 3]);
    assert_eq!(windows(&with("phi3", window.clone())), [Some(5); 3]);
    assert_eq!(windows(&with("qwen2", window.clone())), [None; 3]);
    let upper = json!({ "sliding_window": 5, "use_sliding_window": true, "max_window_layers": 2 });
    assert_eq!(windows(&with("qwen3", upper)), [None, None, Some(5)]);
    assert_eq!(windows(&with("gemma2", window.clone())), [Some(5), None, Some(5)]);
    let types =
        json!({ "sliding_window": 5, "layer_types": ["full_attention", "sliding_attention", "full_attention"] });
    assert_eq!(windows(&with("gemma2", types)), [None, Some(5), None]);
    let every = json!({ "sliding_window": 5, "sliding_window_pattern": 2 });
    assert_eq!(windows(&with("gemma3_text", every)), [Some(5), None, Some(5)]);
    refused(&with("gemma2", json!({ "layer_types": ["full_attention"] })), "layer_types");
    refused(&with("gemma2", json!({ "layer_types": vec!["chunked_attention"; 3] })), "layer_types");
    refused(&with("mistral", json!({ "sliding_window": 0 })), "sliding_window");
}

#[test]
fn defaults_are_those_of_transformers() {
    let gemma = read(&config("gemma2")).unwrap();
    assert_eq!((gemma.attention.cap, gemma.logit_cap), (Some(SoftCap(50.0)), Some(SoftCap(30.0))));
    assert_eq!((gemma.embedding_scale, gemma.attention.scale, gemma.tied), (4.0, 1.0 / 16.0, true));
    let off = with("gemma2", json!({ "attn_logit_softcapping": null, "final_logit_softcapping": null }));
    let off = read(&off).unwrap();
    assert_eq!((off.attention.cap, off.logit_cap), (None, None));
    let gemma = read(&config("gemma3_text")).unwrap();
    assert_eq!((gemma.attention.cap, gemma.query_key_norm), (None, Some(QueryKeyNorm::Heads)));
    assert_eq!(gemma.blocks, [BlockKind { window: Some(4096), rope: Some([1; 2]), ..BlockKind::default() }; 3]);
    let neox = read(&config("gpt_neox")).unwrap();
    assert!(neox.parallel && neox.norm.centred && neox.qkv_bias && !neox.tied);
    // a quarter of a head of four
    assert_eq!(neox.ropes[0].pairs, 1);
    let qwen = read(&config("qwen2")).unwrap();
    assert!(qwen.qkv_bias && !qwen.o_bias && !qwen.mlp_bias);
}

/// ww, wl, wl, ll over every parameter.
fn gram(folder: &Path, adapter: Option<&Path>) -> Result<Vec<f64>, Error> {
    let source = adapter.map_or(AdapterSource::None, |adapter| AdapterSource::Saved(adapter.to_owned()));
    let model = Decoder::<Flex>::load(folder, &source, DType::F64, &FlexDevice, Places::DEVICE)?;
    let scope = model.in_scope(&(if adapter.is_some() { "lora" } else { "full" }).parse()?)?;
    let group = Group::new(vec![1, 2, 3], vec![vec![4, 5, 6], vec![4, 7]]);
    Ok(grams(&model, &scope, &[Request::log_probabilities(&group)]).remove(0).total())
}

#[test]
fn the_text_part_of_a_multimodal_model_is_the_text_model() {
    let (text, tensors) = llama(2, false);
    let plain = tempfile::tempdir().unwrap();
    write_model(plain.path(), &(text.clone(), tensors.clone()));
    let want = gram(plain.path(), None).unwrap();

    // an adapter under the text model's names, and under those of each layout
    let adapter = |before: &str, after: &str| {
        let folder = tempfile::tempdir().unwrap();
        let config = json!({ "peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"] });
        write_json(&folder.path().join("adapter_config.json"), &config);
        let mut random = support::Random::new(9);
        let mut factors = Tensors::new();
        for name in tensors.keys().filter(|name| name.contains("q_proj.weight")) {
            let [outputs, inputs] = tensors[name].shape[..] else { panic!("{name} is a matrix") };
            let module = name.replacen(before, after, 1).replace(".weight", "");
            let mut add = |factor: &str, shape: &[usize]| {
                factors.insert(format!("base_model.model.{module}.{factor}.weight"), random.tensor(shape, 0.5));
            };
            add("lora_A", &[2, inputs]);
            add("lora_B", &[outputs, 2]);
        }
        write_tensors(&folder.path().join("adapter_model.safetensors"), &factors, safetensors::Dtype::F32);
        folder
    };
    let lora = adapter("", "");
    let want_lora = gram(plain.path(), Some(lora.path())).unwrap();

    for (wrapper, body, head) in [
        ("llava", "language_model.model.", "language_model."),
        ("mistral3", "model.language_model.", ""),
        ("gemma3", "language_model.model.", "language_model."),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let renamed = tensors.iter().map(|(name, tensor)| {
            let inside = name.strip_prefix("model.").map(|inside| format!("{body}{inside}"));
            (inside.unwrap_or_else(|| format!("{head}{name}")), tensor.clone())
        });
        let mut renamed: Tensors = renamed.collect();
        let image = if head.is_empty() { "model.vision_tower.x" } else { "vision_tower.x" };
        renamed.insert(image.to_owned(), support::Random::new(1).tensor(&[3], 1.0));
        let config = json!({ "model_type": wrapper, "text_config": text, "vision_config": { "hidden_size": 3 } });
        write_model(folder.path(), &(config, renamed.clone()));
        assert_eq!(gram(folder.path(), None).unwrap(), want, "{wrapper}");
        for inside in ["model.", "language_model.model.", "model.language_model."] {
            let spelled = adapter("model.", inside);
            assert_eq!(gram(folder.path(), Some(spelled.path())).unwrap(), want_lora, "{wrapper} {inside}");
        }
        // names that are no layout's
        let odd: Tensors = renamed.iter().map(|(name, tensor)| (format!("odd.{name}"), tensor.clone())).collect();
        write_tensors(&folder.path().join("model.safetensors"), &odd, safetensors::Dtype::F32);
        let message = gram(folder.path(), None).unwrap_err().to_string();
        assert!(message.contains("language_model.model.embed_tokens.weight"), "{message}");
    }
    refused(&json!({ "model_type": "llava" }), "text_config");
}

/// What docs/architectures.md says of each architecture is made from its description; TANGLESCOPE_WRITE_DOCS=1 writes it anew.
#[test]
fn the_documentation_prints_every_architecture() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/architectures.md");
    let (types, wrappers) = model_types();
    let mut text = format!("{ABOUT}\nText parts of multimodal models: `{}`.\n", wrappers.join("`, `"));
    for model_type in types {
        let of = read(&documented(model_type)).unwrap_or_else(|error| panic!("{model_type}: {error}"));
        text += &["\n## ", model_type, "\n\n```text\n", &of.formulas(), "```\n"].concat();
    }
    text += REFUSED;
    if std::env::var_os("TANGLESCOPE_WRITE_DOCS").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap();
    assert!(
        written == text,
        "docs/architectures.md is not what the descriptions say; run with TANGLESCOPE_WRITE_DOCS=1"
    );
}

/// Gemma 4's wider heads listed by layer, as transformers 5 writes them, or by one key for all without a window; and what its sizes
/// have beside that.
#[test]
fn gemma_4_is_read_in_both_spellings_and_in_all_its_sizes() {
    let of = |keys: serde_json::Value| {
        let least = json!({ "num_hidden_layers": 6, "hidden_size_per_layer_input": 0, "attention_k_eq_v": true });
        let mut config = with("gemma4_text", least);
        config.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
        config
    };
    let older = json!({ "global_head_dim": 128, "num_global_key_value_heads": 1 });
    let newer = json!({ "per_layer_config": { "5": { "head_dim": 128, "num_key_value_heads": 1 } } });
    let [older, newer] = [older, newer].map(|keys| read(&of(keys)).unwrap());
    assert_eq!(older.formulas(), newer.formulas());
    let widths = |layer: usize| {
        let spec = older.attention_of(layer);
        (spec.kv_heads, spec.head_dim, spec.window)
    };
    assert_eq!((widths(0), widths(5)), ((2, 8, Some(512)), (1, 128, None)));
    for (key, value) in [
        ("vocab_size_per_layer_input", json!({ "hidden_size_per_layer_input": 16, "vocab_size_per_layer_input": 8 })),
        ("num_kv_shared_layers", json!({ "num_kv_shared_layers": 6 })),
        // no layer below has keys and values of the last one's type
        ("num_kv_shared_layers", json!({ "num_kv_shared_layers": 1 })),
        ("num_experts", json!({ "enable_moe_block": true })),
        (
            "top_k_experts",
            json!({ "enable_moe_block": true, "num_experts": 4, "top_k_experts": 5, "moe_intermediate_size": 8 }),
        ),
        ("num_global_key_value_heads", json!({ "num_global_key_value_heads": 3 })),
    ] {
        refused(&of(value), key);
    }
    let shared = read(&of(json!({
        "num_kv_shared_layers": 3, "use_double_wide_mlp": true, "layer_types": [
            "sliding_attention", "full_attention", "sliding_attention", "sliding_attention", "full_attention", "full_attention"
        ],
    })));
    let shared = shared.unwrap();
    let lenders: Vec<Option<usize>> = shared.blocks.iter().map(|block| block.lender).collect();
    assert_eq!(lenders, [None, None, None, Some(2), Some(1), Some(1)]);
    assert_eq!((shared.mlp_width_of(2) * 2, shared.mlp_width_of(3)), (shared.mlp_width * 2, shared.mlp_width * 2));
    refused(
        &of(json!({ "per_layer_config": { "5": { "intermediate_size": 7 } } })),
        "per_layer_config.5.intermediate_size",
    );
    refused(
        &of(json!({ "per_layer_config": { "5": { "head_dim": 64 }, "2": { "head_dim": 32 } } })),
        "per_layer_config",
    );
}

/// The least config, with few experts.
fn documented(model_type: &str) -> Value {
    let keys = match model_type {
        "gpt_oss" | "mixtral" | "phimoe" => json!({ "num_local_experts": 8, "num_experts_per_tok": 2 }),
        "deepseek_v3" => {
            json!({ "num_key_value_heads": 4, "n_routed_experts": 8, "n_group": 4, "topk_group": 2, "num_experts_per_tok": 3, "first_k_dense_replace": 1 })
        }
        "gemma4_text" => {
            json!({ "attention_k_eq_v": true, "num_global_key_value_heads": 1, "enable_moe_block": true, "num_experts": 8, "top_k_experts": 2,
            "moe_intermediate_size": 16, "num_kv_shared_layers": 2,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"] })
        }
        "glm4_moe" => json!({ "n_routed_experts": 8, "num_experts_per_tok": 3 }),
        "olmoe" | "qwen2_moe" | "qwen3_moe" | "qwen3_next" | "qwen3_5_moe_text" => {
            json!({ "num_experts": 8, "num_experts_per_tok": 2 })
        }
        "ministral3" => json!({ "rope_parameters": {
            "rope_type": "yarn", "rope_theta": 1e6, "factor": 16.0, "original_max_position_embeddings": 16_384,
            "max_position_embeddings": 262_144, "llama_4_scaling_beta": 0.1, "mscale": 1.0, "mscale_all_dim": 1.0,
            "beta_fast": 32.0, "beta_slow": 1.0,
        } }),
        _ => json!({}),
    };
    let mut config = with(model_type, keys);
    // enough blocks for one of every kind
    let layers = if model_type == "gpt2" { "n_layer" } else { "num_hidden_layers" };
    config[layers] = json!(4);
    config
}

const ABOUT: &str = "# The architectures, as formulas

What is computed for each `model_type`, printed from its description: for a config of four blocks that says no more than sizes, so that windows,
factors and biases are an architecture's defaults. x is the residual stream; a name is a map, or the gain of a norm, as checkpoints call it; ⁺ is a map with a
bias. Every function, and how its gradient is formed, is in [the mathematics](mathematics.md#3-layers); how to add one is [here](adding-architectures.md).
";

const REFUSED: &str = "
## What is refused

A config key that is not understood and not switched off is refused by its name; a key that would change the function in a way that is not computed is, too:
`use_qk_norm` of `cohere`, `qk_layernorm` of `stablelm` and of `phi`, rotary types other than those of [the mathematics](mathematics.md#3-layers), an activation that is not named above, a
router that is not (`topk_method`, `scoring_func`), `moe_layer_freq` other than 1, `use_bidirectional_attention`, `is_encoder_decoder`, `add_cross_attention`, and a tied
output matrix with a bias. Not supported yet: of `opt` norms behind layers and embeddings of another width, of `falcon` ALiBi. Losses that balance experts are no part of log π, and are not computed.
";
