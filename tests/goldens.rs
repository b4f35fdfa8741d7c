//! The engine against exact float64 gradients: every pair, every parameter, both spellings of the config.
//!
//! Tolerances, relative to √(ww·ll) for inner products: in f64 1e-9, which leaves room for the goldens' own rounding
//! (sums of 10⁵ terms at 1e-16, condition number included); in f32 1e-4, about 10 × ε₃₂ × the depth of the sums
//! (some 100 rounded operations between an input and a gradient). Under the gated delta rule a sequence's first outputs `(q·k)·v` are nearly zero
//! before their norm, so that roundings of q and k grow by |q||k|/|q·k| where the gradient is largest: 3e-4 in f32, three times as much (transformers
//! itself, in f32, is off by 6e-5 on these). The same for the golden with inputs by token, which is as steep: its wl moves by 2.4e-4 where every weight
//! moves by half a unit in the last place of f32.
mod support;

use serde_json::Value;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use support::lavapipe::use_lavapipe;
use support::small_models;
use tanglescope_gram::{Batch, Group, GroupResult, Request, count, grams, token_matrices, token_rows};
use tanglescope_kernels::device::{Vulkan, vulkan_devices};
use tanglescope_kernels::{DType, Flex, FlexDevice, Kernels, tally};
use tanglescope_model::{AdapterSource, Decoder, FreshLora, Outline, Places, Scope};

/// Architectures with goldens.
const ARCHITECTURES: &[&str] = &[
    "cohere2",
    "deepseek_v3",
    "gemma",
    "gemma2",
    "gemma3",
    "gemma4_text",
    "glm4",
    "glm4_moe",
    "gpt2",
    "gpt_neox",
    "gpt_oss",
    "granite",
    "llama",
    "llama3_tied",
    "ministral3",
    "mistral",
    "mixtral",
    "olmo2",
    "olmo3",
    "olmoe",
    "phi3",
    "phimoe",
    "qwen2",
    "qwen2_5_vl",
    "qwen2_moe",
    "qwen3",
    "qwen3_5_text",
    "qwen3_moe",
    "qwen3_next",
    "qwen3_vl",
    "smollm3",
];

/// Folders of goldens: all of them where the shared ones lie beside the checkout, else the two that are carried.
fn folders() -> Vec<PathBuf> {
    let shared = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/golden");
    let carried = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden");
    let root = if shared.is_dir() { shared } else { carried };
    let found: Vec<PathBuf> = ARCHITECTURES.iter().map(|a| root.join(a)).filter(|f| f.is_dir()).collect();
    assert!(found.len() >= 2, "no goldens under {}", root.display());
    found
}

/// A copy of a golden's model folder under one of its two configs.
fn model_folder(golden: &Path, legacy: bool) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let config = if legacy { "config_legacy.json" } else { "config.json" };
    std::fs::copy(golden.join(config), folder.path().join("config.json")).unwrap();
    std::fs::copy(golden.join("model.safetensors"), folder.path().join("model.safetensors")).unwrap();
    folder
}

fn ids(pair: &Value, key: &str) -> Vec<u32> {
    pair[key].as_array().unwrap().iter().map(|id| u32::try_from(id.as_u64().unwrap()).unwrap()).collect()
}

fn groups(golden: &Value) -> Vec<Group> {
    let group = |pair| Group::new(ids(pair, "prompt_ids"), vec![ids(pair, "chosen_ids"), ids(pair, "rejected_ids")]);
    golden["pairs"].as_array().unwrap().iter().map(group).collect()
}

/// The adapter of a scope: on modules, on each expert, or on all experts of a layer.
fn adapter_of(scope: &str) -> Option<&'static str> {
    match scope {
        "lora" => Some("adapter"),
        "lora_per_expert" => Some("adapter_per_expert"),
        "lora_experts" => Some("adapter_experts"),
        _ => None,
    }
}

fn load<B: Kernels>(golden: &Path, legacy: bool, scope: &str, dtype: DType, device: &B::Device) -> Decoder<B> {
    let source = adapter_of(scope).map_or(AdapterSource::None, |of| AdapterSource::Saved(golden.join(of)));
    let folder = model_folder(golden, legacy);
    Decoder::load(folder.path(), &source, dtype, device, Places::DEVICE).unwrap()
}

/// Largest error of a pair's results, and where it is.
fn error(result: &GroupResult, names: &[String], pair: &Value, scope: &str) -> (f64, String) {
    let want = &pair[scope];
    let number = |v: &Value| v.as_f64().unwrap();
    let size = (number(&want["ww"]) * number(&want["ll"])).sqrt();
    let logp = pair.get(format!("logp_{scope}")).unwrap_or(&pair["logp_base"]);
    let mut errors = Vec::new();
    for (branch, key) in ["logp_w", "logp_l"].into_iter().enumerate() {
        errors.push(((result.logp(branch) / number(&logp[key]) - 1.0).abs(), key.to_owned()));
    }
    let total = result.total();
    for (got, key) in [(total[0], "ww"), (total[1], "wl"), (total[2], "wl"), (total[3], "ll")] {
        errors.push(((got - number(&want[key])).abs() / size, key.to_owned()));
    }
    if let Some(parameters) = want["per_param"].as_object() {
        assert_eq!(names.len(), parameters.len(), "{names:?}");
        let mine: HashMap<&String, &Vec<f64>> = names.iter().zip(&result.grams).collect();
        for (name, values) in parameters {
            let gram = mine.get(name).unwrap_or_else(|| panic!("no Gram of {name}"));
            for (at, value) in [0, 3, 1].into_iter().zip(values.as_array().unwrap()) {
                errors.push(((gram[at] - number(value)).abs() / size, name.clone()));
            }
        }
    }
    errors.into_iter().max_by(|a, b| a.0.total_cmp(&b.0)).unwrap()
}

fn check<B: Kernels>(device: &B::Device, dtype: DType, tolerance: f64, (spellings, scopes): (&[bool], &[&str])) {
    for folder in folders() {
        let golden: Value = serde_json::from_slice(&std::fs::read(folder.join("golden.json")).unwrap()).unwrap();
        let linear: Vec<String> = golden["meta"]["linear_params"]
            .as_array()
            .unwrap()
            .iter()
            .map(|n| n.as_str().unwrap().replace('.', r"\."))
            .collect();
        let linear = format!("^({})$", linear.join("|"));
        for &legacy in spellings {
            for &scope in scopes {
                if adapter_of(scope).is_some_and(|of| !folder.join(of).is_dir()) {
                    continue;
                }
                let model = load::<B>(&folder, legacy, scope, dtype, device);
                let of_adapter = adapter_of(scope).map_or(scope, |_| "lora");
                let wanted: Scope = if scope == "linear" { &linear } else { of_adapter }.parse().unwrap();
                let in_scope = model.in_scope(&wanted).unwrap();
                let names: Vec<String> = in_scope.parameters.iter().map(|p| p.name.clone()).collect();
                let results = grams(&model, &in_scope, &Request::all(&groups(&golden)));
                let steep = model.description.delta.is_some() || model.description.per_layer.is_some();
                let tolerance = if steep && dtype == DType::F32 { 3.0 * tolerance } else { tolerance };
                for (i, (result, pair)) in results.iter().zip(golden["pairs"].as_array().unwrap()).enumerate() {
                    let (worst, at) = error(result, &names, pair, scope);
                    println!("{} {scope} pair {i}: {worst:.1e} at {at}", folder.display());
                    assert!(worst <= tolerance, "{} {scope} pair {i}: {worst:e} at {at}", folder.display());
                }
            }
        }
    }
}

/// Both spellings of the config, and every scope.
const ALL: (&[bool], &[&str]) = (&[false, true], &["lora", "lora_per_expert", "lora_experts", "full", "linear"]);

#[test]
fn grams_meet_the_goldens_in_f64() {
    check::<Flex>(&FlexDevice, DType::F64, 1e-9, ALL);
}

#[test]
fn grams_meet_the_goldens_in_f32() {
    check::<Flex>(&FlexDevice, DType::F32, 1e-4, ALL);
}

#[test]
fn grams_meet_the_goldens_on_vulkan() {
    if !use_lavapipe() {
        return;
    }
    let (device, _) = vulkan_devices().unwrap().remove(0);
    check::<Vulkan>(&device, DType::F32, 1e-4, (&[false], &["lora", "lora_per_expert", "lora_experts", "full"]));
}

/// Blocks that are copied from the host's memory or read from files give the same bits on a device as those that stay there.
#[test]
fn where_blocks_are_changes_no_bit_on_vulkan() {
    if !use_lavapipe() {
        return;
    }
    let (device, _) = vulkan_devices().unwrap().remove(0);
    for name in ["llama", "gemma2"] {
        let Some(folder) = folders().into_iter().find(|folder| folder.ends_with(name)) else { continue };
        let golden: Value = serde_json::from_slice(&std::fs::read(folder.join("golden.json")).unwrap()).unwrap();
        let (model, groups) = (model_folder(&folder, false), groups(&golden));
        let source = AdapterSource::Saved(folder.join("adapter"));
        let run = |places: Places| {
            let model = Decoder::<Vulkan>::load(model.path(), &source, DType::F32, &device, places).unwrap();
            let scope = model.in_scope(&".*".parse().unwrap()).unwrap();
            let found = grams(&model, &scope, &Request::all(&groups));
            found.into_iter().map(|result| result.grams).collect::<Vec<_>>()
        };
        let want = run(Places::DEVICE);
        for (on_device, host) in [(1, 1), (0, usize::MAX), (0, 0)] {
            assert_eq!(
                run(Places { device: on_device, host }),
                want,
                "{name}: {on_device} on the device, {host} in memory"
            );
        }
    }
}

/// In one pass, and put together from passes of few rows.
#[test]
fn token_matrices_meet_the_goldens() {
    for folder in folders() {
        let golden: Value = serde_json::from_slice(&std::fs::read(folder.join("golden.json")).unwrap()).unwrap();
        let mut seen = 0;
        for (pair, group) in golden["pairs"].as_array().unwrap().iter().zip(groups(&golden)) {
            let Some(matrix) = pair.get("token_matrix") else { continue };
            for scope in ["lora", "full"] {
                let model = load::<Flex>(&folder, false, scope, DType::F64, &FlexDevice);
                let in_scope = model.in_scope(&scope.parse().unwrap()).unwrap();
                let number = |v: &Value| v.as_f64().unwrap();
                let size = (number(&pair[scope]["ww"]) * number(&pair[scope]["ll"])).sqrt();
                for most in [token_rows(&group), token_rows(&group) / 3, 1] {
                    let found = token_matrices(&model, &in_scope, &[&group], (most, 1), |_| ()).remove(0);
                    let block = found.block(0, 1);
                    for (t, row) in matrix[scope]["C"].as_array().unwrap().iter().enumerate() {
                        for (s, want) in row.as_array().unwrap().iter().enumerate() {
                            let error = (block[t][s] - number(want)).abs() / size;
                            assert!(error <= 1e-9, "{} {scope} {most} ({t}, {s}): {error:e}", folder.display());
                        }
                    }
                    // the entries of each block sum to the pair's inner product
                    for (key, a, b) in [("wl", 0, 1), ("ww", 0, 0), ("ll", 1, 1)] {
                        let sum: f64 = found.block(a, b).iter().flatten().sum();
                        let error = (sum - number(&pair[scope][key])).abs() / size;
                        assert!(error <= 1e-9, "{} {scope} {most} {key}: {error:e}", folder.display());
                    }
                }
                seen += 1;
            }
        }
        assert!(seen > 0, "{}: no token matrix", folder.display());
    }
}

/// Every scaled rotary embedding, over sequences within, across and past the original length, against transformers' own code
/// run in f64 (`tests/rotary_values.py`).
#[test]
fn scaled_rotary_embeddings_meet_transformers() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/rotary");
    let values: Value = serde_json::from_slice(&std::fs::read(root.join("values.json")).unwrap()).unwrap();
    let models = values["models"].as_object().unwrap();
    assert_eq!(models.len(), 6);
    for (name, of) in models {
        let folder = tempfile::tempdir().unwrap();
        let weights = format!("{}.safetensors", of["weights"].as_str().unwrap());
        std::fs::copy(root.join(weights), folder.path().join("model.safetensors")).unwrap();
        std::fs::copy(root.join(format!("{name}.json")), folder.path().join("config.json")).unwrap();
        let model = Decoder::<Flex>::load(folder.path(), &AdapterSource::None, DType::F64, &FlexDevice, Places::DEVICE)
            .unwrap();
        let scope = model.in_scope(&Scope::Full).unwrap();
        let pairs = of["pairs"].as_array().unwrap();
        let responses = |pair| vec![ids(pair, "chosen_ids"), ids(pair, "rejected_ids")];
        let groups: Vec<Group> =
            pairs.iter().map(|pair| Group::of(&model.description, ids(pair, "prompt_ids"), responses(pair))).collect();
        if ["dynamic", "longrope"].contains(&name.as_str()) {
            assert!(groups.iter().any(|group| group.apart) && groups.iter().any(|group| !group.apart), "{name}");
        }
        for (i, (result, pair)) in grams(&model, &scope, &Request::all(&groups)).iter().zip(pairs).enumerate() {
            let number = |key: &str| pair[key].as_f64().unwrap();
            let (size, total) = ((number("ww") * number("ll")).sqrt(), result.total());
            for (got, key) in [(total[0], "ww"), (total[1], "wl"), (total[3], "ll")] {
                let error = (got - number(key)).abs() / size;
                assert!(error <= 1e-9, "{name} pair {i} {key}: {error:e}");
            }
            for (branch, key) in ["logp_w", "logp_l"].into_iter().enumerate() {
                let error = (result.logp(branch) / number(key) - 1.0).abs();
                assert!(error <= 1e-9, "{name} pair {i} {key}: {error:e}");
            }
        }
    }
}

/// The same numbers from checkpoints in other files, and from quantised ones, whose goldens are those of the dequantised weights.
#[test]
fn other_files_and_quantised_weights_meet_the_goldens() {
    let shared = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared");
    let folders = ["golden_formats", "golden_quantised"].map(|root| shared.join(root));
    let entries = folders.iter().filter_map(|root| std::fs::read_dir(root).ok()).flatten();
    for folder in entries.map(|entry| entry.unwrap().path()) {
        let golden: Value = serde_json::from_slice(&std::fs::read(folder.join("golden.json")).unwrap()).unwrap();
        for scope in ["full", "lora", "lora_experts"] {
            let adapter = adapter_of(scope).map(|of| folder.join(of));
            if adapter.as_ref().is_some_and(|adapter| !adapter.is_dir()) {
                continue;
            }
            let source = adapter.map_or(AdapterSource::None, AdapterSource::Saved);
            let model = Decoder::<Flex>::load(&folder, &source, DType::F64, &FlexDevice, Places::DEVICE).unwrap();
            let wanted = if scope == "full" { Scope::Full } else { Scope::Lora };
            let in_scope = model.in_scope(&wanted).unwrap();
            let names: Vec<String> = in_scope.parameters.iter().map(|p| p.name.clone()).collect();
            let results = grams(&model, &in_scope, &Request::all(&groups(&golden)));
            for (i, (result, pair)) in results.iter().zip(golden["pairs"].as_array().unwrap()).enumerate() {
                let (worst, at) = error(result, &names, pair, scope);
                assert!(worst <= 1e-9, "{} {scope} pair {i}: {worst:e} at {at}", folder.display());
            }
        }
    }
}

/// Adapters of every kind, against PEFT: trained biases and modules, lengths of columns, the embedding and the output matrix, rows of
/// single tokens, and bases that are taken apart.
#[test]
fn adapters_of_every_kind_meet_peft() {
    let mut seen = Vec::new();
    for folder in small_models() {
        let golden: Value = serde_json::from_slice(&std::fs::read(folder.join("golden.json")).unwrap()).unwrap();
        let entries = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path());
        for adapter in entries.filter(|path| path.is_dir()) {
            let kind = adapter.file_name().unwrap().to_str().unwrap().strip_prefix("adapter_").unwrap().to_owned();
            // PEFT takes the base apart in float32: entries of W within ±1.5, of which each is rounded, and again their singular vectors
            let tolerance = if ["pissa", "olora"].contains(&kind.as_str()) { 2e-5 } else { 1e-9 };
            let source = AdapterSource::Saved(adapter.clone());
            let model = Decoder::<Flex>::load(&folder, &source, DType::F64, &FlexDevice, Places::DEVICE)
                .unwrap_or_else(|error| panic!("{}: {error}", adapter.display()));
            let scope = model.in_scope(&Scope::Trainable).unwrap();
            let names: Vec<String> = scope.parameters.iter().map(|p| p.name.clone()).collect();
            let results = grams(&model, &scope, &Request::all(&groups(&golden)));
            for (i, (result, pair)) in results.iter().zip(golden["pairs"].as_array().unwrap()).enumerate() {
                let (worst, at) = error(result, &names, pair, &kind);
                assert!(worst <= tolerance, "{} pair {i}: {worst:e} at {at}", adapter.display());
            }
            // what is written has the names that PEFT has
            let written = tempfile::tempdir().unwrap();
            model.save(&folder, &source, written.path()).unwrap();
            let stored = |folder: &Path| {
                let tensors = tanglescope_checkpoint::Tensors::open(folder, "adapter_model").unwrap();
                let trained = tensors.names().filter(|name| !name.contains(".base_layer.") || kind.ends_with("biases"));
                trained.map(str::to_owned).collect::<Vec<_>>()
            };
            assert_eq!(stored(written.path()), stored(&adapter));
            let mut restored = model.clone();
            restored.restore(&source, written.path()).unwrap();
            seen.push(kind);
        }
    }
    seen.sort();
    seen.dedup();
    let all = [
        "all_biases",
        "both",
        "dora",
        "embedding",
        "head",
        "lora_biases",
        "modules",
        "olora",
        "pissa",
        "tokens",
        "tokens_apart",
    ];
    assert_eq!(seen, all);
}

/// A GGUF file beside a config is that model; by itself it is the one that its header says, to the bit.
#[test]
fn a_gguf_file_is_the_model_that_it_was_made_from() {
    let carried = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden");
    let (golden, gguf) = (carried.join("llama3_tied"), carried.join("checkpoints/gguf_model/llama.gguf"));
    let pairs: Value = serde_json::from_slice(&std::fs::read(golden.join("golden.json")).unwrap()).unwrap();
    let run = |files: &[(&Path, &str)], config: Option<&Value>| {
        let folder = tempfile::tempdir().unwrap();
        for (from, name) in files {
            std::fs::copy(from, folder.path().join(name)).unwrap();
        }
        if let Some(config) = config {
            std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
        }
        let none = AdapterSource::None;
        let model = Decoder::<Flex>::load(folder.path(), &none, DType::F64, &FlexDevice, Places::DEVICE).unwrap();
        let scope = model.in_scope(&Scope::Full).unwrap();
        let names: Vec<String> = scope.parameters.iter().map(|p| p.name.clone()).collect();
        (grams(&model, &scope, &Request::all(&groups(&pairs))), names)
    };
    let mut config: Value = serde_json::from_slice(&std::fs::read(golden.join("config.json")).unwrap()).unwrap();
    let (results, names) = run(&[(&gguf, "llama.gguf")], Some(&config));
    for (result, pair) in results.iter().zip(pairs["pairs"].as_array().unwrap()) {
        let (worst, at) = error(result, &names, pair, "full");
        assert!(worst <= 1e-9, "{worst:e} at {at}");
    }
    // by itself it divides the frequencies by numbers in f32, and the longest sequence here has 40 tokens
    let (_, written) = tanglescope_checkpoint::gguf_config(gguf.parent().unwrap()).unwrap().unwrap();
    config["rope_parameters"] = written["rope_scaling"].clone();
    config["rope_parameters"]["rope_theta"] = serde_json::json!(10000.0);
    let (alone, _) = run(&[(&gguf, "llama.gguf")], None);
    let (plain, _) = run(&[(&golden.join("model.safetensors"), "model.safetensors")], Some(&config));
    let bits = |results: &[GroupResult]| -> Vec<u64> {
        results.iter().flat_map(|result| result.grams.iter().flatten().map(|x| x.to_bits())).collect()
    };
    assert!(bits(&alone) == bits(&plain));
    for (result, pair) in alone.iter().zip(pairs["pairs"].as_array().unwrap()) {
        let (worst, at) = error(result, &names, pair, "full");
        assert!(worst <= 1e-5, "{worst:e} at {at}");
    }
}

/// The goldens as GGUF files (`tests/gguf_models.py`), with experts of a block in one tensor, and others of llama.cpp's names and orders; those
/// whose header says all of a config, by themselves too.
#[test]
fn gguf_files_of_other_architectures_are_the_goldens() {
    let shared = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/golden");
    if !shared.is_dir() {
        return;
    }
    let files = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/gguf_models");
    let complete = ["mixtral", "qwen2_moe", "phi3", "olmo2", "granite"];
    for name in ["mixtral", "olmoe", "qwen2_moe", "phi3", "olmo2", "granite", "smollm3"] {
        let golden: Value =
            serde_json::from_slice(&std::fs::read(shared.join(name).join("golden.json")).unwrap()).unwrap();
        for with_config in [true, false] {
            if !with_config && !complete.contains(&name) {
                continue;
            }
            let folder = tempfile::tempdir().unwrap();
            std::fs::copy(files.join(format!("{name}.gguf")), folder.path().join("model.gguf")).unwrap();
            if with_config {
                std::fs::copy(shared.join(name).join("config.json"), folder.path().join("config.json")).unwrap();
            }
            let none = AdapterSource::None;
            let model = Decoder::<Flex>::load(folder.path(), &none, DType::F64, &FlexDevice, Places::DEVICE).unwrap();
            let scope = model.in_scope(&Scope::Full).unwrap();
            let names: Vec<String> = scope.parameters.iter().map(|p| p.name.clone()).collect();
            let results = grams(&model, &scope, &Request::all(&groups(&golden)));
            for (i, (result, pair)) in results.iter().zip(golden["pairs"].as_array().unwrap()).enumerate() {
                let (worst, at) = error(result, &names, pair, "full");
                assert!(worst <= 1e-9, "{name} pair {i}, config {with_config}: {worst:e} at {at}");
            }
        }
    }
    // llama.cpp has no block without experts among such, which the golden has
    let tempdir = tempfile::tempdir().unwrap();
    std::fs::copy(files.join("qwen3_moe.gguf"), tempdir.path().join("model.gguf")).unwrap();
    let open = |folder: &Path| tanglescope_checkpoint::Tensors::open(folder, "model").unwrap();
    let (got, want) = (open(tempdir.path()), open(&shared.join("qwen3_moe")));
    let bits = |of: &tanglescope_checkpoint::Tensors, name: &str| -> Vec<u32> {
        let values = of.read::<f32>(name, tanglescope_checkpoint::Layout::Same).unwrap();
        values.into_iter().map(f32::to_bits).collect()
    };
    let names = |of: &tanglescope_checkpoint::Tensors| -> Vec<String> {
        of.names().filter(|name| !name.starts_with("model.layers.1.")).map(str::to_owned).collect()
    };
    assert_eq!(names(&got), names(&want));
    names(&got).iter().for_each(|name| assert!(bits(&got, name) == bits(&want, name), "{name}"));
    let (_, config) = tanglescope_checkpoint::gguf_config(tempdir.path()).unwrap().unwrap();
    assert_eq!((&config["norm_topk_prob"], &config["num_experts"]), (&true.into(), &6.into()));
}

/// Grams of pairs of a llama in all parameters, its blocks at some places; and of the same model a step of nothing away, whose matrices are numbers.
fn of_llama<B: Kernels>(
    folder: &Path,
    dtype: DType,
    device: &B::Device,
    places: Places,
    groups: &[Group],
) -> [Vec<Vec<f64>>; 2] {
    let model = Decoder::<B>::load(folder, &AdapterSource::None, dtype, device, places).unwrap();
    let scope = model.in_scope(&Scope::Full).unwrap();
    [model.clone(), model.moved(&scope, &HashMap::new(), 0.0)].map(|model| {
        let found = grams(&model, &scope, &Request::all(groups));
        found.into_iter().flat_map(|result| result.grams).collect()
    })
}

/// A model whose matrices are codes of eight bits, tables among them, wherever its blocks are: the numbers of the model of the values that those
/// stand for.
#[test]
fn matrices_of_codes_are_the_values_that_they_stand_for() {
    let carried = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden");
    let (golden, folder) = (carried.join("llama3_tied"), carried.join("checkpoints/gguf_model_q8_0"));
    let pairs: Value = serde_json::from_slice(&std::fs::read(golden.join("golden.json")).unwrap()).unwrap();
    let groups = groups(&pairs);
    let coded = tempfile::tempdir().unwrap();
    std::fs::copy(golden.join("config.json"), coded.path().join("config.json")).unwrap();
    std::fs::copy(folder.join("llama.gguf"), coded.path().join("llama.gguf")).unwrap();
    let plain = tempfile::tempdir().unwrap();
    std::fs::copy(golden.join("config.json"), plain.path().join("config.json")).unwrap();
    let tensors = tanglescope_checkpoint::Tensors::open(&folder, "model").unwrap();
    let bytes = |name: &str| -> Vec<u8> {
        let values = tensors.read::<f32>(name, tanglescope_checkpoint::Layout::Same).unwrap();
        values.into_iter().flat_map(f32::to_le_bytes).collect()
    };
    let names = tensors.names().filter(|name| *name != "rope_freqs.weight");
    let values: Vec<(String, Vec<u8>)> = names.map(|name| (name.to_owned(), bytes(name))).collect();
    let views = values.iter().map(|(name, bytes)| {
        let shape = tensors.get(name).unwrap().shape().to_vec();
        (name, safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape, bytes).unwrap())
    });
    safetensors::serialize_to_file(views, None, &plain.path().join("model.safetensors")).unwrap();
    let same = |got: &[Vec<Vec<f64>>; 2], want: &[Vec<f64>], tolerance: f64| {
        for got in got {
            assert_eq!(got.len(), want.len());
            for (got, want) in got.iter().zip(want) {
                let size = (want[0] * want[3]).sqrt();
                // NaN fails
                let close = |(got, want): (&f64, &f64)| (got - want).abs() <= tolerance * size;
                assert!(got.iter().zip(want).all(close), "{got:?} instead of {want:?}");
            }
        }
    };
    // sums of the same terms in another order
    for (dtype, tolerance) in [(DType::F64, 1e-12), (DType::F32, 1e-4)] {
        let run = |folder: &Path, places: Places| of_llama::<Flex>(folder, dtype, &FlexDevice, places, &groups);
        let [want, _] = run(plain.path(), Places::DEVICE);
        let resident = run(coded.path(), Places::DEVICE);
        same(&resident, &want, tolerance);
        for (on_device, host) in [(1, 1), (0, usize::MAX), (0, 0)] {
            assert!(run(coded.path(), Places { device: on_device, host }) == resident, "{on_device} {host}");
        }
        if dtype == DType::F32 && use_lavapipe() {
            let (device, _) = vulkan_devices().unwrap().remove(0);
            for (on_device, host) in [(usize::MAX, 0), (1, 1), (0, 0)] {
                let places = Places { device: on_device, host };
                same(&of_llama::<Vulkan>(coded.path(), dtype, &device, places, &groups), &want, tolerance);
            }
        }
    }
}

/// The small models against transformers' own code run in f64 (`tests/architecture_values.py`).
#[test]
fn small_architectures_meet_transformers() {
    let folders = small_models();
    assert_eq!(folders.len(), 17);
    for folder in folders {
        let golden: Value = serde_json::from_slice(&std::fs::read(folder.join("golden.json")).unwrap()).unwrap();
        let model =
            Decoder::<Flex>::load(&folder, &AdapterSource::None, DType::F64, &FlexDevice, Places::DEVICE).unwrap();
        let scope = model.in_scope(&Scope::Full).unwrap();
        let names: Vec<String> = scope.parameters.iter().map(|p| p.name.clone()).collect();
        let results = grams(&model, &scope, &Request::all(&groups(&golden)));
        for (i, (result, pair)) in results.iter().zip(golden["pairs"].as_array().unwrap()).enumerate() {
            let (worst, at) = error(result, &names, pair, "full");
            assert!(worst <= 1e-9, "{} pair {i}: {worst:e} at {at}", folder.display());
        }
    }
}

/// What is counted before a batch runs is what its kernels do: products, attention and reductions, to the operation, for every
/// architecture and whatever is in scope.
#[test]
fn what_is_counted_is_what_runs() {
    let scopes = [
        "lora",
        "full",
        "head",
        "embed_tokens|embed_in|wte",
        "bias",
        "norm|ln_",
        "attn|attention",
        "mlp|moe",
        r"\.1\..*(down_proj|w2|c_proj|dense_4h_to_h)",
        r"\.1\..*(up_proj|w3|c_fc|dense_h_to_4h|gate_up)",
        "lora_A",
        r"sinks|conv1d|A_log",
        r"\.1\..*dt_bias",
        "lora_B",
        r"\.0\..*norm|\.0\.ln_",
        "per_layer_model_projection|per_expert_scale",
        "embed_tokens_per_layer|router",
        r"\.1\..*per_layer",
        r"layers\.0\..*(k_proj|_norm)",
        "trainable",
        "lm_head|token_adapter",
        "lora_embedding_A",
    ];
    let of_folder = |folder: PathBuf| {
        let entries = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path());
        // what adapters of experts take beside others is not counted to the operation
        let special = entries.filter(|path| {
            let name = path.file_name().unwrap().to_str().unwrap();
            path.is_dir() && name.starts_with("adapter_") && !name.ends_with("expert") && !name.ends_with("experts")
        });
        let plain = match folder.join("adapter").is_dir() {
            true => AdapterSource::Saved(folder.join("adapter")),
            false => AdapterSource::Fresh(FreshLora { r: 3, lora_alpha: 6.0, targets: Vec::new(), seed: 1 }),
        };
        let sources: Vec<AdapterSource> = special.map(AdapterSource::Saved).chain([plain]).collect();
        sources.into_iter().map(move |source| (folder.clone(), source))
    };
    for (folder, source) in folders().into_iter().chain(small_models()).flat_map(of_folder) {
        let golden: Value = serde_json::from_slice(&std::fs::read(folder.join("golden.json")).unwrap()).unwrap();
        let groups = groups(&golden);
        let requests = Request::all(&groups);
        let model_folder = model_folder(&folder, false);
        let outline = Outline::read(model_folder.path(), &source).unwrap();
        let model =
            Decoder::<Flex>::load(model_folder.path(), &source, DType::F64, &FlexDevice, Places::DEVICE).unwrap();
        let mut seen = 0;
        for name in scopes {
            // not every model has a bias
            let Ok(scope) = model.in_scope(&name.parse().unwrap()) else { continue };
            seen += 1;
            let batch = Batch::new(&requests);
            // the names of a multimodal checkpoint are known once it is opened
            let of_outline = outline.in_scope(&name.parse().unwrap()).unwrap();
            // an adapter's copies of base parameters are seen once weights are opened
            if of_outline.parameters.len() != scope.parameters.len() {
                continue;
            }
            let counted = count(&outline, &of_outline, &batch, DType::F64, &model.rates);
            let _earlier = tally::take();
            grams(&model, &scope, &requests);
            let ran = tally::take();
            for (stage, counted, ran) in [
                // the cross terms of a tied output matrix are products too
                ("products", counted.forward + counted.backward + counted.head, ran.products + ran.head),
                ("attention", counted.attention, ran.attention),
                ("reductions", counted.reductions, ran.reductions),
            ] {
                // which expert a row goes to is known once it runs, and with it how large their reductions are
                if stage == "reductions" && outline.description.experts.is_some() {
                    continue;
                }
                let at = format!("{} {source:?} {name}, {stage}", folder.display());
                assert!((counted.operations - ran.operations).abs() < 0.5, "{at}: {counted:?} counted, {ran:?} ran");
            }
        }
        assert!(seen >= 9, "{} {source:?}", folder.display());
    }
}
