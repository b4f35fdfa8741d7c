//! Bad input: every case ends with exit code 2 (or 1 where the input is not to blame), one message that names the file,
//! row or tensor, and no panic.
use crate::support;
use crate::support::{
    Tensors, analyze, copy_folder, error_line, gpt2, ids_row, llama, run, succeed, write_json, write_model,
    write_tensors,
};
use serde_json::json;
use std::path::{Path, PathBuf};

/// A model folder, a data file and an output folder that work, to be spoiled by a case.
struct Inputs {
    folder: tempfile::TempDir,
    model: PathBuf,
    data: PathBuf,
    out: PathBuf,
    more: Vec<String>,
}

impl Inputs {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (model, data, out) =
            (folder.path().join("model"), folder.path().join("pairs.jsonl"), folder.path().join("out"));
        write_model(&model, &llama(1, true));
        std::fs::write(&data, [ids_row(&[1, 2], &[3], &[4]), ids_row(&[1, 2], &[3, 4], &[5])].join("\n")).unwrap();
        Self { folder, model, data, out, more: Vec::new() }
    }

    fn weights(&self) -> PathBuf {
        self.model.join("model.safetensors")
    }

    fn rows(&self, rows: &[&str]) {
        std::fs::write(&self.data, rows.join("\n")).unwrap();
    }

    fn option(&mut self, words: &[&str]) {
        self.more.extend(words.iter().map(|&word| word.to_owned()));
    }

    /// The demo's model, which has a tokenizer, under a name of its own.
    fn with_tokenizer(&mut self) {
        self.model = self.folder.path().join("tokenized");
        copy_folder(&support::demo(), &self.model);
        self.rows(&[r#"{"prompt": "a", "chosen": "b", "rejected": "c"}"#]);
    }

    /// Changes the tensors of the checkpoint.
    fn tensors(&self, change: impl FnOnce(&mut Tensors)) {
        let (_, mut tensors) = llama(1, true);
        change(&mut tensors);
        write_tensors(&self.weights(), &tensors, safetensors::Dtype::F32);
    }

    fn config(&self, key: &str, value: serde_json::Value) {
        let path = self.model.join("config.json");
        let mut config: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        config[key] = value;
        write_json(&path, &config);
    }

    /// An adapter of rank 2 on `q_proj` of both layers; `change` may spoil its config and tensors.
    fn adapter(&mut self, change: impl FnOnce(&mut serde_json::Value, &mut Tensors)) {
        let folder = self.folder.path().join("adapter");
        std::fs::create_dir_all(&folder).unwrap();
        let mut config =
            json!({"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], "bias": "none"});
        let mut random = support::Random::new(8);
        let mut tensors = Tensors::new();
        for layer in 0..2 {
            let path = format!("base_model.model.model.layers.{layer}.self_attn.q_proj");
            tensors.insert(format!("{path}.lora_A.weight"), random.tensor(&[2, 16], 0.3));
            tensors.insert(format!("{path}.lora_B.weight"), random.tensor(&[16, 2], 0.3));
        }
        change(&mut config, &mut tensors);
        write_json(&folder.join("adapter_config.json"), &config);
        write_tensors(&folder.join("adapter_model.safetensors"), &tensors, safetensors::Dtype::F32);
        self.option(&["--adapter", &folder.display().to_string()]);
    }
}

/// What is spoiled, how, and the words that the message has to have.
struct Case(&'static str, fn(&mut Inputs), &'static [&'static str]);

const MODEL: &[Case] = &[
    Case("no such model folder", |i| i.model = i.model.join("nowhere"), &["nowhere", "no such folder"]),
    Case("a folder without config", |i| std::fs::remove_file(i.model.join("config.json")).unwrap(), &["config.json"]),
    Case(
        "a config that is not JSON",
        |i| std::fs::write(i.model.join("config.json"), "{").unwrap(),
        &["config.json", "not a JSON object"],
    ),
    Case("an unknown architecture", |i| i.config("model_type", "mamba".into()), &["config.json", "`mamba`", "llama"]),
    Case("a missing key", |i| i.config("hidden_size", serde_json::Value::Null), &["config.json", "hidden_size"]),
    Case("a size of zero", |i| i.config("num_hidden_layers", 0.into()), &["num_hidden_layers", "positive"]),
    Case("a negative size", |i| i.config("vocab_size", (-4).into()), &["vocab_size", "-4"]),
    Case("heads that do not fit", |i| i.config("num_key_value_heads", 3.into()), &["num_key_value_heads", "divisor"]),
    Case("an activation that is not computed", |i| i.config("hidden_act", "mish".into()), &["hidden_act", "`mish`"]),
    Case(
        "rope of an unknown type",
        |i| i.config("rope_scaling", json!({"rope_type": "proportional", "factor": 2.0})),
        &["rope_scaling", "`proportional`"],
    ),
    Case(
        "a quantised base",
        |i| i.config("quantization_config", json!({"quant_method": "gptq"})),
        &["quantization_config", "gptq"],
    ),
    Case(
        "truncated safetensors",
        |i| {
            let bytes = std::fs::read(i.weights()).unwrap();
            std::fs::write(i.weights(), &bytes[..bytes.len() / 2]).unwrap();
        },
        &["model.safetensors", "not a complete safetensors file"],
    ),
    Case("empty safetensors", |i| std::fs::write(i.weights(), "").unwrap(), &["model.safetensors"]),
    Case(
        "a corrupt header",
        |i| {
            let mut bytes = std::fs::read(i.weights()).unwrap();
            bytes[8..40].fill(b'x');
            std::fs::write(i.weights(), bytes).unwrap();
        },
        &["model.safetensors", "not a complete safetensors file"],
    ),
    Case(
        "a header longer than the file",
        |i| {
            let mut bytes = std::fs::read(i.weights()).unwrap();
            bytes[..8].fill(0x7f);
            std::fs::write(i.weights(), bytes).unwrap();
        },
        &["model.safetensors", "not a complete safetensors file"],
    ),
    Case(
        "an index that names a missing shard",
        |i| {
            std::fs::remove_file(i.weights()).unwrap();
            let index = json!({"weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}});
            write_json(&i.model.join("model.safetensors.index.json"), &index);
        },
        &["model.safetensors.index.json", "model-00001-of-00002.safetensors"],
    ),
    Case(
        "an index that points outside",
        |i| {
            std::fs::rename(i.weights(), i.folder.path().join("model.safetensors")).unwrap();
            let index = json!({"weight_map": {"model.norm.weight": "../model.safetensors"}});
            write_json(&i.model.join("model.safetensors.index.json"), &index);
        },
        &["model.safetensors.index.json", "../model.safetensors"],
    ),
    Case(
        "a shard without the tensor",
        |i| {
            std::fs::rename(i.weights(), i.model.join("a.safetensors")).unwrap();
            let index = json!({"weight_map": {"lm_head.weight": "a.safetensors"}});
            write_json(&i.model.join("model.safetensors.index.json"), &index);
        },
        &["a.safetensors", "lm_head.weight"],
    ),
    Case(
        "weights that are none of torch's",
        |i| std::fs::rename(i.weights(), i.model.join("pytorch_model.bin")).unwrap(),
        &["pytorch_model.bin", "neither an archive nor what torch wrote before 1.6"],
    ),
    Case("a missing tensor", |i| i.tensors(|t| drop(t.remove("model.norm.weight"))), &["model.norm.weight", "missing"]),
    Case(
        "a left-over tensor",
        |i| i.tensors(|t| drop(t.insert("model.extra.weight".into(), t["model.norm.weight"].clone()))),
        &["model.extra.weight", "left over"],
    ),
    Case(
        "a tensor of the wrong shape",
        |i| i.tensors(|t| t.get_mut("model.layers.1.mlp.up_proj.weight").unwrap().shape = vec![16, 24]),
        &["model.layers.1.mlp.up_proj.weight", "[16, 24]", "[24, 16]"],
    ),
    Case(
        "a NaN",
        |i| i.tensors(|t| t.get_mut("model.layers.0.mlp.up_proj.weight").unwrap().values[7] = f32::NAN),
        &["model.layers.0.mlp.up_proj.weight", "value 7", "NaN"],
    ),
    Case(
        "an infinite weight",
        |i| i.tensors(|t| t.get_mut("model.norm.weight").unwrap().values[3] = f32::INFINITY),
        &["model.norm.weight", "value 3"],
    ),
    Case(
        "a tied head that differs",
        |i| {
            i.tensors(|t| {
                let mut head = t["model.embed_tokens.weight"].clone();
                head.values[0] += 1.0;
                t.insert("lm_head.weight".into(), head);
            });
        },
        &["lm_head.weight", "tie_word_embeddings"],
    ),
    Case(
        "gpt2 weights under a llama config",
        |i| write_tensors(&i.weights(), &gpt2(1).1, safetensors::Dtype::F32),
        &["missing"],
    ),
    Case(
        "a scope that matches nothing",
        |i| i.option(&["--scope", "no_such"]),
        &["--scope no_such", "matches no parameter"],
    ),
    Case("a scope that is no pattern", |i| i.option(&["--scope", "("]), &["--scope ("]),
    Case("a device that is not there", |i| i.option(&["--dtype", "f32", "--lora-r", "0"]), &["--lora-r 0"]),
    Case("a target that is no module", |i| i.option(&["--lora-targets", "nothing_proj"]), &["nothing_proj"]),
];

const ADAPTER: &[Case] = &[
    Case(
        "an adapter folder without config",
        |i| i.option(&["--adapter", "/nowhere"]),
        &["--adapter /nowhere", "no such folder"],
    ),
    Case("an unknown type", |i| i.adapter(|c, _| c["peft_type"] = "IA3".into()), &["adapter_config.json", "`IA3`"]),
    Case(
        "DoRA without lengths of columns",
        |i| i.adapter(|c, _| c["use_dora"] = true.into()),
        &["lora_magnitude_vector", "missing"],
    ),
    Case(
        "a token twice",
        |i| i.adapter(|c, _| c["trainable_token_indices"] = json!([3, 3])),
        &["trainable_token_indices", "token 3 twice"],
    ),
    Case(
        "a token that there is not",
        |i| i.adapter(|c, _| c["trainable_token_indices"] = json!({"embed_tokens": [100_000]})),
        &["trainable_token_indices", "100000"],
    ),
    Case(
        "tokens of a module that has none",
        |i| i.adapter(|c, _| c["trainable_token_indices"] = json!({"q_proj": [3]})),
        &["trainable_token_indices", "`q_proj`"],
    ),
    Case(
        "tokens without rows",
        |i| i.adapter(|c, _| c["trainable_token_indices"] = json!([3])),
        &["trainable_tokens_delta", "missing"],
    ),
    Case("biases of some other kind", |i| i.adapter(|c, _| c["bias"] = "some".into()), &["`bias`", "`some`"]),
    Case("lora_bias", |i| i.adapter(|c, _| c["lora_bias"] = true.into()), &["lora_bias"]),
    Case(
        "PiSSA",
        |i| i.adapter(|c, _| c["init_lora_weights"] = "pissa_niter_4".into()),
        &["pissa_niter_4", "random numbers"],
    ),
    Case("CorDA", |i| i.adapter(|c, _| c["init_lora_weights"] = "corda".into()), &["corda", "samples of data"]),
    Case(
        "an adapter of another width",
        |i| {
            i.adapter(|_, t| {
                t.values_mut().filter(|t| t.shape == [2, 16]).for_each(|t| {
                    t.shape = vec![2, 8];
                    t.values.truncate(16);
                });
            });
        },
        &["lora_A.weight", "[2, 8]", "[2, 16]"],
    ),
    Case(
        "an adapter of another rank",
        |i| i.adapter(|c, _| c["r"] = 4.into()),
        &["lora_A.weight", "[2, 16]", "[4, 16]"],
    ),
    Case(
        "an adapter with more layers",
        |i| {
            i.adapter(|_, t| {
                let extra = t["base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"].clone();
                t.insert("base_model.model.model.layers.7.self_attn.q_proj.lora_A.weight".into(), extra);
            });
        },
        &["layers.7.self_attn.q_proj.lora_A.weight"],
    ),
    Case(
        "an adapter with a layer less",
        |i| i.adapter(|_, t| drop(t.remove("base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight"))),
        &["layers.1.self_attn.q_proj.lora_B.weight", "missing"],
    ),
    Case(
        "a NaN in an adapter",
        |i| i.adapter(|_, t| t.values_mut().next().unwrap().values[0] = f32::NAN),
        &["lora_A.weight", "NaN"],
    ),
    Case(
        "a saved copy of a tied matrix",
        |i| {
            i.adapter(|c, t| {
                c["modules_to_save"] = json!(["lm_head"]);
                t.insert(
                    "base_model.model.lm_head.weight".into(),
                    llama(1, true).1["model.embed_tokens.weight"].clone(),
                );
            });
        },
        &["lm_head.weight", "unties"],
    ),
];

const DATA: &[Case] = &[
    Case("no such data file", |i| std::fs::remove_file(&i.data).unwrap(), &["pairs.jsonl"]),
    Case("a model as data", |i| i.data = i.model.clone(), &["is a model, for --model"]),
    Case("empty data", |i| i.rows(&[]), &["pairs.jsonl", "has no rows"]),
    Case("blank lines only", |i| i.rows(&["", " ", ""]), &["pairs.jsonl", "has no rows"]),
    Case(
        "gzip that is cut short",
        |i| {
            i.data = i.folder.path().join("pairs.jsonl.gz");
            let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::none());
            std::io::Write::write_all(&mut packed, ids_row(&[1], &[2], &[3]).as_bytes()).unwrap();
            let packed = packed.finish().unwrap();
            std::fs::write(&i.data, &packed[..packed.len() - 12]).unwrap();
        },
        &["pairs.jsonl.gz", "cannot be read"],
    ),
    Case(
        "a row without `rejected`",
        |i| i.rows(&[&ids_row(&[1], &[2], &[3]), r#"{"prompt": "a", "chosen": "b"}"#]),
        &["pairs.jsonl", "row 1", "rejected"],
    ),
    Case(
        "ids without the rejected ones",
        |i| i.rows(&[r#"{"prompt_ids": [1], "chosen_ids": [2]}"#]),
        &["row 0", "rejected_ids"],
    ),
    Case("a row that is no object", |i| i.rows(&["[1, 2]"]), &["row 0"]),
    Case("a row that is no JSON", |i| i.rows(&[&ids_row(&[1], &[2], &[3]), "{\"prompt\": "]), &["row 1", "not JSON"]),
    Case("a row nested too deep", |i| i.rows(&[&"[".repeat(100_000)]), &["row 0", "not JSON"]),
    Case("an empty response", |i| i.rows(&[&ids_row(&[1], &[], &[3])]), &["row 0", "`chosen` has no tokens"]),
    Case("an empty prompt", |i| i.rows(&[&ids_row(&[], &[2], &[3])]), &["row 0", "`prompt` has no tokens"]),
    Case(
        "an id beyond the vocabulary",
        |i| i.rows(&[&ids_row(&[1], &[2], &[40])]),
        &["row 0", "`rejected`", "40", "0 to 39"],
    ),
    Case("a negative id", |i| i.rows(&[r#"{"prompt_ids": [-1], "chosen_ids": [2], "rejected_ids": [3]}"#]), &["row 0"]),
    Case(
        "a prompt longer than the model's positions",
        |i| i.rows(&[&ids_row(&[1; 64], &[2, 3], &[3])]),
        &["row 0", "65 positions", "64"],
    ),
    Case(
        "a response longer than --max-tokens",
        |i| {
            i.rows(&[&ids_row(&[1; 9], &[2; 9], &[3])]);
            i.option(&["--max-tokens", "9", "--truncate-prompt"]);
        },
        &["row 0", "no room for a prompt"],
    ),
    Case(
        "invalid UTF-8",
        |i| std::fs::write(&i.data, b"{\"prompt\": \"\xff\xfe\"}\n").unwrap(),
        &["row 0", "not UTF-8"],
    ),
    Case(
        "text without a tokenizer",
        |i| i.rows(&[r#"{"prompt": "a", "chosen": "b", "rejected": "c"}"#]),
        &["tokenizer.json"],
    ),
    Case(
        "an empty response as text",
        |i| {
            i.with_tokenizer();
            i.rows(&[r#"{"prompt": "a", "chosen": "", "rejected": "c"}"#]);
            // with EOS after it, it has a token
            i.option(&["--tokenize", "apart"]);
        },
        &["row 0", "`chosen` has no tokens"],
    ),
    Case(
        "a tokenizer that is none",
        |i| {
            i.with_tokenizer();
            std::fs::write(i.model.join("tokenizer.json"), r#"{"model": 3}"#).unwrap();
        },
        &["tokenizer.json", "not a tokenizer"],
    ),
    Case(
        "a malformed chat template",
        |i| {
            i.with_tokenizer();
            std::fs::write(i.model.join("chat_template.jinja"), "{% for m in %}").unwrap();
            i.option(&["--chat"]);
        },
        &["chat_template.jinja", "malformed chat template"],
    ),
    Case(
        "a chat template that refuses the roles",
        |i| {
            i.with_tokenizer();
            std::fs::write(i.model.join("chat_template.jinja"), "{{ raise_exception('roles must alternate') }}")
                .unwrap();
            i.option(&["--chat"]);
        },
        &["row 0", "roles must alternate"],
    ),
    Case(
        "a chat template without an end",
        |i| {
            i.with_tokenizer();
            let endless = "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}{{ a }}{% endfor %}{% endfor %}{% endfor %}";
            std::fs::write(i.model.join("chat_template.jinja"), endless).unwrap();
            i.option(&["--chat"]);
        },
        &["row 0", "fuel"],
    ),
    Case(
        "a chat for a model without a template",
        |i| {
            i.with_tokenizer();
            std::fs::remove_file(i.model.join("tokenizer_config.json")).unwrap();
            i.option(&["--chat"]);
        },
        &["row 0", "chat template"],
    ),
    Case(
        "no row left after skipping",
        |i| {
            i.rows(&["x"]);
            i.option(&["--on-bad-row", "skip"]);
        },
        &["no row can be used", "row 0"],
    ),
    Case("a limit of zero", |i| i.option(&["--limit", "0"]), &["--limit 0"]),
    Case("no memory", |i| i.option(&["--memory", "-1"]), &["--memory"]),
];

#[track_caller]
fn check(cases: &[Case]) {
    for Case(name, spoil, words) in cases {
        let mut inputs = Inputs::new();
        spoil(&mut inputs);
        let mut args = analyze(&inputs.model, &inputs.data, &inputs.out);
        args.extend(inputs.more.clone());
        let output = run(args);
        assert_eq!(output.status.code(), Some(2), "{name}: {}", String::from_utf8_lossy(&output.stderr));
        let message = error_line(&output);
        for word in *words {
            assert!(message.contains(word), "{name}: `{word}` is not in: {message}");
        }
        assert!(!inputs.out.join("pairs.parquet/00000.parquet").exists(), "{name}: wrote results");
    }
}

#[test]
fn models() {
    // what the cases spoil works as it is
    let inputs = Inputs::new();
    succeed(analyze(&inputs.model, &inputs.data, &inputs.out));
    check(MODEL);
}

#[test]
fn adapters() {
    let mut inputs = Inputs::new();
    inputs.adapter(|_, _| ());
    let mut args = analyze(&inputs.model, &inputs.data, &inputs.out);
    args.extend(inputs.more.clone());
    succeed(args);
    check(ADAPTER);
}

#[test]
fn data() {
    let mut inputs = Inputs::new();
    inputs.with_tokenizer();
    succeed(analyze(&inputs.model, &inputs.data, &inputs.out));
    check(DATA);
}

#[test]
fn a_bad_option_is_explained_by_the_command_line() {
    for args in [&["analyze", "--bogus"][..], &["analyse"], &["analyze", "--dtype", "f8"], &["analyze", "--device"]] {
        let output = run(args);
        assert_eq!(output.status.code(), Some(2));
        assert!(String::from_utf8_lossy(&output.stderr).contains("error:"));
    }
    // a word that is no device is a slip of the pen, a device that is not there is not
    for (device, code) in [("tpu", 2), ("cuda:x", 2), ("vulkan:99", 1)] {
        let inputs = Inputs::new();
        let mut args = analyze(&inputs.model, &inputs.data, &inputs.out);
        args[2] = device.to_owned();
        let output = run(args);
        assert_eq!(output.status.code(), Some(code));
        assert!(error_line(&output).contains(&format!("--device {device}")), "{}", error_line(&output));
    }
}

#[test]
fn an_output_folder_that_cannot_be_made() {
    let inputs = Inputs::new();
    // a file where the folder should be: no permission stops root
    let out = inputs.data.join("out");
    let output = run(analyze(&inputs.model, &inputs.data, &out));
    assert_eq!(output.status.code(), Some(1));
    assert!(error_line(&output).contains(&out.display().to_string()));
}

#[test]
fn a_damaged_manifest_is_named() {
    let inputs = Inputs::new();
    succeed(analyze(&inputs.model, &inputs.data, &inputs.out));
    std::fs::write(inputs.out.join("manifest.json"), "{}").unwrap();
    let output = run(analyze(&inputs.model, &inputs.data, &inputs.out));
    assert_eq!(output.status.code(), Some(1));
    assert!(error_line(&output).contains("manifest.json"));
}

#[test]
fn a_damaged_part_is_named() {
    let inputs = Inputs::new();
    succeed(analyze(&inputs.model, &inputs.data, &inputs.out));
    let part = inputs.out.join("params.parquet/00000.parquet");
    std::fs::write(&part, b"PAR1 and then nothing PAR1").unwrap();
    let output = run(analyze(&inputs.model, &inputs.data, &inputs.out));
    assert_eq!(output.status.code(), Some(1));
    assert!(error_line(&output).contains("params.parquet/00000.parquet"), "{}", error_line(&output));
}

/// A file system of a given size, taken away at the end.
struct SmallDisk(PathBuf);

impl SmallDisk {
    /// `None` where this user may not mount; on CI that is an error.
    fn new(folder: &Path, size: &str) -> Option<Self> {
        std::fs::create_dir_all(folder).unwrap();
        let mounted = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"])
            .arg(folder)
            .status()
            .is_ok_and(|status| status.success());
        assert!(mounted || std::env::var_os("CI").is_none(), "a test of a full disk has to mount a tmpfs, as root");
        mounted.then(|| Self(folder.to_owned()))
    }

    fn grow(&self, size: &str) {
        let status = std::process::Command::new("mount")
            .args(["-o", &format!("remount,size={size}")])
            .arg(&self.0)
            .status()
            .unwrap();
        assert!(status.success());
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg(&self.0).status();
    }
}

#[test]
fn a_full_disk_leaves_finished_parts_and_the_run_goes_on_when_there_is_room() {
    let inputs = Inputs::new();
    let rows: Vec<String> = (0..200u32).map(|i| ids_row(&[i % 40, 1], &[2, i % 7], &[3])).collect();
    std::fs::write(&inputs.data, rows.join("\n")).unwrap();
    let whole = inputs.folder.path().join("whole");
    succeed(analyze(&inputs.model, &inputs.data, &whole));
    let disk = inputs.folder.path().join("disk");
    // room for about half of the results
    let pages = |path: PathBuf| std::fs::metadata(path).unwrap().len().div_ceil(4096);
    let all: u64 = ["pairs.parquet", "params.parquet"]
        .iter()
        .flat_map(|table| std::fs::read_dir(whole.join(table)).unwrap())
        .map(|entry| pages(entry.unwrap().path()))
        .sum();
    let Some(disk) = SmallDisk::new(&disk, &format!("{}k", 4 * (4 + all / 2))) else { return };
    let out = disk.0.join("out");
    let output = run(analyze(&inputs.model, &inputs.data, &out));
    assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stderr));
    let message = error_line(&output);
    assert!(message.contains(".parquet") && message.contains("No space left"), "{message}");
    // what was finished is as it should be, and nothing else is there
    let same = |table: &str| {
        let names: Vec<PathBuf> = std::fs::read_dir(out.join(table)).unwrap().map(|e| e.unwrap().path()).collect();
        for path in &names {
            let twin = whole.join(table).join(path.file_name().unwrap());
            assert_eq!(std::fs::read(path).unwrap(), std::fs::read(twin).unwrap(), "{}", path.display());
        }
        names.len()
    };
    let before = same("params.parquet");
    assert!((1..4).contains(&before), "{before} parts fit; the disk is of the wrong size for this test");
    disk.grow("8m");
    succeed(analyze(&inputs.model, &inputs.data, &out));
    assert_eq!((same("pairs.parquet"), same("params.parquet")), (4, 4));
}
