//! The ways to store one function are one function: number types, shards, prefixes, buffers, spellings of configs, and
//! adapters against the same change merged into the weights.
//!
//! f64, relative 1e-12 where the same numbers take the same way; 1e-10 where products are merged in another order.
use crate::support;
use crate::support::{Random, Tensor, Tensors, gpt2, llama, small_models, write_json, write_model, write_tensors};
use safetensors::Dtype;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::path::Path;
use tanglescope_gram::{Group, Request, grams, token_logps};
use tanglescope_kernels::{DType, Flex, FlexDevice, Memory};
use tanglescope_model::{AdapterSource, Decoder, Error, Places, Scope};

fn load(folder: &Path, adapter: Option<&Path>) -> Result<Decoder<Flex>, Error> {
    let source = adapter.map_or(AdapterSource::None, |folder| AdapterSource::Saved(folder.to_owned()));
    Decoder::load(folder, &source, DType::F64, &FlexDevice, Places::DEVICE)
}

fn pair() -> Group {
    Group::new(vec![1, 2, 3, 4, 5], vec![vec![6, 7, 8], vec![9, 10]])
}

/// Log-probabilities of the pair, and its Gram over all base parameters.
fn values(model: &Decoder<Flex>) -> Vec<f64> {
    let scope = model.in_scope(&"full".parse().unwrap()).unwrap();
    let group = pair();
    let result = grams(model, &scope, &[Request::log_probabilities(&group)]).remove(0);
    let mut values = vec![result.logp(0), result.logp(1)];
    values.extend(result.total());
    values
}

fn logps(model: &Decoder<Flex>) -> Vec<f64> {
    token_logps(model, &[&pair()]).remove(0).concat()
}

#[track_caller]
fn same(what: &str, got: &[f64], want: &[f64], tolerance: f64) {
    assert_eq!(got.len(), want.len());
    for (got, want) in got.iter().zip(want) {
        assert!((got - want).abs() <= tolerance * want.abs(), "{what}: {got} instead of {want}");
    }
}

#[track_caller]
fn different(what: &str, a: &[f64], b: &[f64]) {
    assert!(a.iter().zip(b).any(|(a, b)| (a - b).abs() > 1e-6 * b.abs()), "{what} changes nothing");
}

/// Values that bf16 and f16 hold exactly.
fn rounded(tensors: &Tensors) -> Tensors {
    let round = |x: f32| (x * 16.0).round() / 16.0;
    let of = |t: &Tensor| Tensor { shape: t.shape.clone(), values: t.values.iter().map(|x| round(*x)).collect() };
    tensors.iter().map(|(name, tensor)| (name.clone(), of(tensor))).collect()
}

#[test]
fn number_types_hold_the_same_numbers() {
    for (config, tensors) in [llama(1, true), llama(2, false), gpt2(3)] {
        let tensors = rounded(&tensors);
        let of = |dtype: Dtype| {
            let folder = tempfile::tempdir().unwrap();
            write_json(&folder.path().join("config.json"), &config);
            write_tensors(&folder.path().join("model.safetensors"), &tensors, dtype);
            values(&load(folder.path(), None).unwrap())
        };
        let want = of(Dtype::F32);
        same("bf16", &of(Dtype::BF16), &want, 1e-12);
        same("f16", &of(Dtype::F16), &want, 1e-12);
    }
}

#[test]
fn shards_are_one_checkpoint() {
    let (config, tensors) = llama(2, false);
    let (whole, sharded) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    write_model(whole.path(), &(config.clone(), tensors.clone()));
    write_json(&sharded.path().join("config.json"), &config);
    let mut shards = [Tensors::new(), Tensors::new(), Tensors::new()];
    let mut map = serde_json::Map::new();
    for (i, (name, tensor)) in tensors.into_iter().enumerate() {
        map.insert(name.clone(), format!("model-{}.safetensors", i % 3).into());
        shards[i % 3].insert(name, tensor);
    }
    for (i, shard) in shards.iter().enumerate() {
        write_tensors(&sharded.path().join(format!("model-{i}.safetensors")), shard, Dtype::F32);
    }
    write_json(&sharded.path().join("model.safetensors.index.json"), &json!({"metadata": {}, "weight_map": map}));
    same("shards", &values(&load(sharded.path(), None).unwrap()), &values(&load(whole.path(), None).unwrap()), 1e-12);
}

#[test]
fn the_base_prefix_and_known_buffers_do_not_matter() {
    for (model, prefix) in [(llama(1, true), "model."), (gpt2(3), "transformer.")] {
        let folder = tempfile::tempdir().unwrap();
        write_model(folder.path(), &model);
        let want = load(folder.path(), None).unwrap();
        let (config, tensors) = model;
        let mut bare: Tensors =
            tensors.into_iter().map(|(name, t)| (name.strip_prefix(prefix).unwrap().to_owned(), t)).collect();
        let buffer = Tensor { shape: vec![2], values: vec![0.5, 0.25] };
        for layer in 0..2 {
            let names = if prefix == "model." {
                vec![format!("layers.{layer}.self_attn.rotary_emb.inv_freq")]
            } else {
                vec![format!("h.{layer}.attn.bias"), format!("h.{layer}.attn.masked_bias")]
            };
            names.into_iter().for_each(|name| drop(bare.insert(name, buffer.clone())));
        }
        write_model(folder.path(), &(config, bare));
        let got = load(folder.path(), None).unwrap();
        same(prefix, &values(&got), &values(&want), 1e-12);
        // names are those of the checkpoint
        for (got, want) in got.parameters().iter().zip(want.parameters()) {
            assert_eq!(Some(got.name.as_str()), want.name.strip_prefix(prefix));
            assert_eq!(
                (got.layer, &got.module),
                (want.layer, &if want.layer.is_some() { want.module } else { got.module.clone() })
            );
        }
    }
}

#[test]
fn a_stored_copy_of_a_tied_head_is_no_parameter() {
    let (config, mut tensors) = llama(1, true);
    let folder = tempfile::tempdir().unwrap();
    write_model(folder.path(), &(config.clone(), tensors.clone()));
    let want = load(folder.path(), None).unwrap();
    tensors.insert("lm_head.weight".to_owned(), tensors["model.embed_tokens.weight"].clone());
    write_model(folder.path(), &(config, tensors));
    let got = load(folder.path(), None).unwrap();
    assert_eq!(got.parameters(), want.parameters());
    same("copy", &values(&got), &values(&want), 1e-12);
}

/// transformers 4 and 5 write rotary settings under other keys, and mean the same.
#[test]
fn both_spellings_of_rope_are_one() {
    let (mut config, tensors) = llama(1, true);
    let theta = config.as_object_mut().unwrap().remove("rope_theta").unwrap();
    let llama3 = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                        "original_max_position_embeddings": 16});
    let mut seen = Vec::new();
    for scaling in [json!({"rope_type": "default"}), json!({"rope_type": "linear", "factor": 4.0}), llama3] {
        let of = |change: &dyn Fn(&mut Value)| {
            let folder = tempfile::tempdir().unwrap();
            let mut config = config.clone();
            change(&mut config);
            write_model(folder.path(), &(config, tensors.clone()));
            values(&load(folder.path(), None).unwrap())
        };
        let new = of(&|config| {
            config["rope_parameters"] = scaling.clone();
            config["rope_parameters"]["rope_theta"] = theta.clone();
        });
        let old = of(&|config| {
            config["rope_theta"] = theta.clone();
            config["rope_scaling"] = scaling.clone();
        });
        let older = of(&|config| {
            config["rope_theta"] = theta.clone();
            config["rope_scaling"] = scaling.clone();
            let kind = config["rope_scaling"].as_object_mut().unwrap().remove("rope_type").unwrap();
            config["rope_scaling"]["type"] = kind;
        });
        same("rope_scaling", &old, &new, 1e-15);
        same("type", &older, &new, 1e-15);
        seen.iter().for_each(|other: &Vec<f64>| different("a kind of rope", other, &new));
        seen.push(new);
    }
}

/// With biases of zero the function is that without; with others it is not, and every bias is a parameter.
#[test]
fn llama_with_biases() {
    let (config, tensors) = llama(1, true);
    let plain = tempfile::tempdir().unwrap();
    write_model(plain.path(), &(config.clone(), tensors.clone()));
    let plain = load(plain.path(), None).unwrap();
    for size in [0.0, 0.5] {
        let (mut config, mut tensors) = (config.clone(), tensors.clone());
        config["attention_bias"] = true.into();
        config["mlp_bias"] = true.into();
        let mut random = Random::new(4);
        let weights: Vec<(String, usize)> = tensors
            .iter()
            .filter(|(name, tensor)| name.contains("_proj.") && tensor.shape.len() == 2)
            .map(|(name, tensor)| (name.replace(".weight", ".bias"), tensor.shape[0]))
            .collect();
        assert_eq!(weights.len(), 14);
        weights.into_iter().for_each(|(name, n)| drop(tensors.insert(name, random.tensor(&[n], size))));
        let folder = tempfile::tempdir().unwrap();
        write_model(folder.path(), &(config, tensors));
        let model = load(folder.path(), None).unwrap();
        assert_eq!(model.parameters().iter().filter(|p| p.name.ends_with("proj.bias")).count(), 14);
        match size {
            0.0 => same("zero biases", &logps(&model), &logps(&plain), 1e-12),
            _ => different("biases", &logps(&model), &logps(&plain)),
        }
    }
}

/// Which modules an adapter changes, and by how much: name, layer, rank, factor s on B·A.
type Change = (&'static str, usize, usize, f64);

/// Writes an adapter with random factors for the given modules, and the model with the same changes merged.
#[allow(clippy::cast_possible_truncation)] // merged weights are stored as f32
fn adapter(
    folder: &Path,
    (model_config, tensors): &(Value, Tensors),
    path: impl Fn(&str, usize) -> String,
    conv1d: bool,
    config: &Value,
    changes: &[Change],
) -> (std::path::PathBuf, std::path::PathBuf) {
    let mut random = Random::new(11);
    let (mut factors, mut merged) = (Tensors::new(), tensors.clone());
    for (module, layer, r, scale) in changes {
        let module = path(module, *layer);
        let weight = merged.get_mut(&format!("{module}.weight")).unwrap();
        let [outputs, inputs] =
            if conv1d { [weight.shape[1], weight.shape[0]] } else { [weight.shape[0], weight.shape[1]] };
        let (a, b) = (random.tensor(&[*r, inputs], 0.3), random.tensor(&[outputs, *r], 0.3));
        for o in 0..outputs {
            for i in 0..inputs {
                let product: f64 =
                    (0..*r).map(|k| f64::from(b.values[o * r + k]) * f64::from(a.values[k * inputs + i])).sum();
                let at = if conv1d { i * outputs + o } else { o * inputs + i };
                weight.values[at] = (f64::from(weight.values[at]) + scale * product) as f32;
            }
        }
        factors.insert(format!("base_model.model.{module}.lora_A.weight"), a);
        factors.insert(format!("base_model.model.{module}.lora_B.weight"), b);
    }
    let (adapter, whole) = (folder.join("adapter"), folder.join("merged"));
    std::fs::create_dir_all(&adapter).unwrap();
    write_json(&adapter.join("adapter_config.json"), config);
    write_tensors(&adapter.join("adapter_model.safetensors"), &factors, Dtype::F32);
    write_model(&whole, &(model_config.clone(), merged));
    (adapter, whole)
}

/// Merged weights are rounded to f32, 6e-8 each; log-probabilities of a two-layer model move by a few times that.
const MERGED: f64 = 2e-6;

#[test]
fn adapters_are_their_merged_weights() {
    let model = llama(2, false);
    let base = json!({"peft_type": "LORA", "bias": "none", "lora_dropout": 0.05, "inference_mode": true, "task_type": "CAUSAL_LM"});
    let with = |more: Value| {
        let mut config = base.clone();
        config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        config
    };
    let root = 4.0 / 2.0f64.sqrt();
    let cases: Vec<(&str, Value, Vec<Change>)> = vec![
        (
            "a list of names",
            with(json!({"r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "down_proj"]})),
            vec![
                ("self_attn.q_proj", 0, 2, 2.0),
                ("self_attn.q_proj", 1, 2, 2.0),
                ("mlp.down_proj", 0, 2, 2.0),
                ("mlp.down_proj", 1, 2, 2.0),
            ],
        ),
        (
            "a whole path",
            with(json!({"r": 2, "lora_alpha": 4, "target_modules": ["model.layers.1.self_attn.v_proj"]})),
            vec![("self_attn.v_proj", 1, 2, 2.0)],
        ),
        (
            "a pattern",
            with(json!({"r": 3, "lora_alpha": 1, "target_modules": r".*\.1\..*(k_proj|gate_proj)"})),
            vec![("self_attn.k_proj", 1, 3, 1.0 / 3.0), ("mlp.gate_proj", 1, 3, 1.0 / 3.0)],
        ),
        (
            "rank-stabilised",
            with(json!({"r": 2, "lora_alpha": 4, "use_rslora": true, "target_modules": ["o_proj"]})),
            vec![("self_attn.o_proj", 0, 2, root), ("self_attn.o_proj", 1, 2, root)],
        ),
        (
            "some layers",
            with(json!({"r": 2, "lora_alpha": 4, "target_modules": ["up_proj"], "layers_to_transform": [1]})),
            vec![("mlp.up_proj", 1, 2, 2.0)],
        ),
        (
            "one layer, as a number",
            with(
                json!({"r": 2, "lora_alpha": 4, "target_modules": ["up_proj"], "layers_to_transform": 0, "layers_pattern": "layers"}),
            ),
            vec![("mlp.up_proj", 0, 2, 2.0)],
        ),
        (
            "excluded modules",
            with(
                json!({"r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "k_proj"], "exclude_modules": ["k_proj"]}),
            ),
            vec![("self_attn.q_proj", 0, 2, 2.0), ("self_attn.q_proj", 1, 2, 2.0)],
        ),
        (
            "rank and alpha patterns",
            with(json!({"r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"],
            "rank_pattern": {"v_proj": 3, "layers.1.self_attn.q_proj": 1}, "alpha_pattern": {r"layers\.0\.self_attn\.v_proj": 9}})),
            vec![
                ("self_attn.q_proj", 0, 2, 2.0),
                ("self_attn.q_proj", 1, 1, 4.0),
                ("self_attn.v_proj", 0, 3, 3.0),
                ("self_attn.v_proj", 1, 3, 4.0 / 3.0),
            ],
        ),
    ];
    for (name, config, changes) in cases {
        let folder = tempfile::tempdir().unwrap();
        let plain = folder.path().join("plain");
        write_model(&plain, &model);
        let path = |module: &str, layer: usize| format!("model.layers.{layer}.{module}");
        let (adapter, merged) = adapter(folder.path(), &model, path, false, &config, &changes);
        let adapted = load(&plain, Some(&adapter)).unwrap();
        same(name, &logps(&adapted), &logps(&load(&merged, None).unwrap()), MERGED);
        different(name, &logps(&adapted), &logps(&load(&plain, None).unwrap()));
        let scope = adapted.in_scope(&"lora".parse().unwrap()).unwrap();
        assert_eq!(scope.parameters.len(), 2 * changes.len(), "{name}");
        assert!(scope.parameters.iter().all(|p| p.name.starts_with("model.layers.")), "{name}");
    }
}

/// GPT-2's weights are stored `[in, out]`; PEFT says so with `fan_in_fan_out`, and its factors are not.
#[test]
fn gpt2_adapters_are_their_merged_weights() {
    let model = gpt2(3);
    let config = json!({"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": true});
    let modules = ["attn.c_attn", "attn.c_proj", "mlp.c_proj"];
    let changes: Vec<Change> = modules.into_iter().flat_map(|m| [(m, 0, 2, 2.0), (m, 1, 2, 2.0)]).collect();
    let folder = tempfile::tempdir().unwrap();
    let plain = folder.path().join("plain");
    write_model(&plain, &model);
    let path = |module: &str, layer: usize| format!("transformer.h.{layer}.{module}");
    let (adapter, merged) = adapter(folder.path(), &model, path, true, &config, &changes);
    same("gpt2", &logps(&load(&plain, Some(&adapter)).unwrap()), &logps(&load(&merged, None).unwrap()), MERGED);
}

/// An adapter's own copies of base modules replace them, and are what `trainable` adds to `lora`.
#[test]
fn modules_to_save_replace_the_base() {
    let model = llama(2, false);
    let folder = tempfile::tempdir().unwrap();
    let plain = folder.path().join("plain");
    write_model(&plain, &model);
    let config = json!({"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], "modules_to_save": ["lm_head", "norm"]});
    let changes = [("self_attn.q_proj", 0, 2, 2.0), ("self_attn.q_proj", 1, 2, 2.0)];
    let path = |module: &str, layer: usize| format!("model.layers.{layer}.{module}");
    let (adapter, merged) = adapter(folder.path(), &model, path, false, &config, &changes);
    // copies in the adapter and in the merged model
    let mut random = Random::new(6);
    let copies: Tensors = [("lm_head.weight", vec![support::VOCABULARY, 16]), ("model.norm.weight", vec![16])]
        .into_iter()
        .map(|(name, shape)| (name.to_owned(), random.tensor(&shape, 0.5)))
        .collect();
    let add = |file: &Path, prefix: &str| {
        let bytes = std::fs::read(file).unwrap();
        let stored = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let mut tensors: Tensors = stored
            .iter()
            .map(|(name, view)| {
                let (values, _) = view.data().as_chunks::<4>();
                let values = values.iter().map(|b| f32::from_le_bytes(*b)).collect();
                (name.to_owned(), Tensor { shape: view.shape().to_vec(), values })
            })
            .collect();
        tensors.extend(copies.iter().map(|(name, tensor)| (format!("{prefix}{name}"), tensor.clone())));
        write_tensors(file, &tensors, Dtype::F32);
    };
    add(&adapter.join("adapter_model.safetensors"), "base_model.model.");
    add(&merged.join("model.safetensors"), "");
    let adapted = load(&plain, Some(&adapter)).unwrap();
    same("saved modules", &logps(&adapted), &logps(&load(&merged, None).unwrap()), MERGED);
    let count = |scope: &str| adapted.in_scope(&scope.parse().unwrap()).unwrap().parameters.len();
    assert_eq!((count("lora"), count("trainable")), (4, 6));
}

/// Tensors of all experts, taps of convolutions and what corrects routers are written as they were read.
#[test]
fn a_saved_model_is_the_model() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut folders = small_models();
    folders.push(root.join("tests/golden/gpt2"));
    // where the shared goldens lie beside the checkout
    folders.extend(["deepseek_v3", "gpt_oss", "phimoe"].map(|name| root.join("../shared/golden").join(name)));
    for folder in folders.into_iter().filter(|folder| folder.is_dir()) {
        let load = |folder: &Path| {
            Decoder::<Flex>::load(folder, &AdapterSource::None, DType::F32, &FlexDevice, Places::DEVICE).unwrap()
        };
        let tensors = |model: &Decoder<Flex>| {
            let mut all = Vec::new();
            model.clone().visit(&|_| true, &mut |name, _, tensor| all.push((name.to_owned(), Flex::download(tensor))));
            all
        };
        let (model, written) = (load(&folder), tempfile::tempdir().unwrap());
        model.save(&folder, &AdapterSource::None, written.path()).unwrap();
        let shapes = |folder: &Path| {
            let bytes = std::fs::read(folder.join("model.safetensors")).unwrap();
            let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
            let mut all: Vec<_> =
                file.tensors().into_iter().map(|(name, view)| (name, view.shape().to_vec())).collect();
            all.sort();
            all
        };
        assert_eq!(shapes(written.path()), shapes(&folder), "{}", folder.display());
        assert_eq!(tensors(&load(written.path())), tensors(&model), "{}", folder.display());
        let mut restored = model.moved(&model.in_scope(&Scope::Full).unwrap(), &HashMap::new(), 0.0);
        restored.restore(&AdapterSource::None, written.path()).unwrap();
        assert_eq!(tensors(&restored), tensors(&model), "{}", folder.display());
    }
}
