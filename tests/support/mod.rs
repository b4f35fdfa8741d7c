//! What the tests share: small random checkpoints, and the program run as a user runs it.
#![allow(dead_code)] // each test crate uses its own part
pub mod cuda_on_cpu;
pub mod lavapipe;

use half::{bf16, f16};
use polars_core::prelude::DataType;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use tanglescope_records::Table;

/// A file or folder of the repository.
pub fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)
}

/// Small models of architectures, or of options, that the shared goldens do not have, in their order.
pub fn small_models() -> Vec<PathBuf> {
    let entries = std::fs::read_dir(repository("tests/golden/architectures")).unwrap();
    let mut folders: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    folders.sort();
    folders
}

/// Model folder with tokenizer and chat template, and pairs as text, that the demo carries.
pub fn demo() -> PathBuf {
    repository("crates/tanglescope/demo")
}

/// A named matrix or vector of f32.
#[derive(Clone, Debug)]
pub struct Tensor {
    pub shape: Vec<usize>,
    pub values: Vec<f32>,
}

/// Tensors of a checkpoint by name.
pub type Tensors = BTreeMap<String, Tensor>;

/// Writes tensors as a safetensors file, in f32 or rounded to f16 or bf16.
pub fn write_tensors(path: &Path, tensors: &Tensors, dtype: Dtype) {
    let bytes: Vec<(&String, &Tensor, Vec<u8>)> = tensors
        .iter()
        .map(|(name, tensor)| {
            let bytes = match dtype {
                Dtype::BF16 => tensor.values.iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect(),
                Dtype::F16 => tensor.values.iter().flat_map(|x| f16::from_f32(*x).to_le_bytes()).collect(),
                _ => tensor.values.iter().flat_map(|x| x.to_le_bytes()).collect(),
            };
            (name, tensor, bytes)
        })
        .collect();
    let views =
        bytes.iter().map(|(name, tensor, bytes)| (*name, TensorView::new(dtype, tensor.shape.clone(), bytes).unwrap()));
    std::fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

pub fn write_json(path: &Path, value: &Value) {
    std::fs::write(path, serde_json::to_vec_pretty(value).unwrap()).unwrap();
}

/// Reproducible normal numbers of a given size.
pub struct Random(pub ChaCha8Rng);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(ChaCha8Rng::seed_from_u64(seed))
    }

    pub fn tensor(&mut self, shape: &[usize], size: f32) -> Tensor {
        let n = shape.iter().product();
        let values = (0..n)
            .map(|_| {
                let x: f32 = StandardNormal.sample(&mut self.0);
                x * size
            })
            .collect();
        Tensor { shape: shape.to_vec(), values }
    }
}

/// Vocabulary of the random models.
pub const VOCABULARY: usize = 40;

/// Config and tensors of a random llama: 2 layers, hidden 16, 4 heads over 2 key-value heads.
pub fn llama(seed: u64, tied: bool) -> (Value, Tensors) {
    let mut random = Random::new(seed);
    let (d, h, width) = (16, 4, 24);
    let config = json!({
        "model_type": "llama", "vocab_size": VOCABULARY, "hidden_size": d, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": h, "intermediate_size": width,
        "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": tied,
        "hidden_act": "silu",
    });
    let mut tensors = Tensors::new();
    let mut add = |name: &str, shape: &[usize], size: f32| {
        let mut tensor = random.tensor(shape, size);
        if shape.len() == 1 {
            tensor.values.iter_mut().for_each(|x| *x += 1.0);
        }
        tensors.insert(name.to_owned(), tensor);
    };
    add("model.embed_tokens.weight", &[VOCABULARY, d], 0.7);
    for layer in 0..2 {
        let mut of = |name: &str, shape: &[usize]| add(&format!("model.layers.{layer}.{name}.weight"), shape, 0.25);
        of("input_layernorm", &[d]);
        of("self_attn.q_proj", &[4 * h, d]);
        of("self_attn.k_proj", &[2 * h, d]);
        of("self_attn.v_proj", &[2 * h, d]);
        of("self_attn.o_proj", &[d, 4 * h]);
        of("post_attention_layernorm", &[d]);
        of("mlp.gate_proj", &[width, d]);
        of("mlp.up_proj", &[width, d]);
        of("mlp.down_proj", &[d, width]);
    }
    add("model.norm.weight", &[d], 0.25);
    if !tied {
        add("lm_head.weight", &[VOCABULARY, d], 0.5);
    }
    (config, tensors)
}

/// Config and tensors of a random GPT-2: 2 layers, hidden 16, 4 heads.
pub fn gpt2(seed: u64) -> (Value, Tensors) {
    let mut random = Random::new(seed);
    let d = 16;
    let config = json!({
        "model_type": "gpt2", "vocab_size": VOCABULARY, "n_embd": d, "n_layer": 2, "n_head": 4, "n_positions": 64,
        "layer_norm_epsilon": 1e-5, "activation_function": "gelu_new",
    });
    let mut tensors = Tensors::new();
    tensors.insert("transformer.wte.weight".to_owned(), random.tensor(&[VOCABULARY, d], 0.7));
    tensors.insert("transformer.wpe.weight".to_owned(), random.tensor(&[64, d], 0.3));
    let mut norm = |tensors: &mut Tensors, name: &str| {
        let mut gain = random.tensor(&[d], 0.2);
        gain.values.iter_mut().for_each(|x| *x += 1.0);
        tensors.insert(format!("{name}.weight"), gain);
        tensors.insert(format!("{name}.bias"), random.tensor(&[d], 0.2));
    };
    for layer in 0..2 {
        norm(&mut tensors, &format!("transformer.h.{layer}.ln_1"));
        norm(&mut tensors, &format!("transformer.h.{layer}.ln_2"));
    }
    norm(&mut tensors, "transformer.ln_f");
    for layer in 0..2 {
        for (name, shape) in
            [("attn.c_attn", [d, 3 * d]), ("attn.c_proj", [d, d]), ("mlp.c_fc", [d, 4 * d]), ("mlp.c_proj", [4 * d, d])]
        {
            let path = format!("transformer.h.{layer}.{name}");
            tensors.insert(format!("{path}.weight"), random.tensor(&shape, 0.25));
            tensors.insert(format!("{path}.bias"), random.tensor(&shape[1..], 0.2));
        }
    }
    (config, tensors)
}

/// Writes a model folder.
pub fn write_model(folder: &Path, (config, tensors): &(Value, Tensors)) {
    std::fs::create_dir_all(folder).unwrap();
    write_json(&folder.join("config.json"), config);
    write_tensors(&folder.join("model.safetensors"), tensors, Dtype::F32);
}

/// A row of token ids.
pub fn ids_row(prompt: &[u32], chosen: &[u32], rejected: &[u32]) -> String {
    json!({"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected}).to_string()
}

/// Copies the files of a folder.
pub fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            std::fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
        }
    }
}

/// A column of numbers of a table's first part.
pub fn numbers(out: &Path, table: &str, column: &str) -> Vec<Option<f64>> {
    let frame = Table::create(out, table).unwrap().read(0).unwrap();
    let column = frame.column(column).unwrap().cast(&DataType::Float64).unwrap();
    column.f64().unwrap().iter().collect()
}

/// The program.
pub fn tanglescope() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tanglescope"));
    // as in a container, where Vulkan drivers would complain of it on standard error
    command.env_remove("XDG_RUNTIME_DIR").env_remove("RUST_BACKTRACE");
    command
}

/// Runs the program to its end.
pub fn run<S: AsRef<std::ffi::OsStr>>(args: impl IntoIterator<Item = S>) -> Output {
    tanglescope().args(args).output().unwrap()
}

/// Runs the program, which has to succeed; returns what it printed.
#[track_caller]
pub fn succeed<S: AsRef<std::ffi::OsStr>>(args: impl IntoIterator<Item = S>) -> String {
    let output = run(args);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{:?}\n{stderr}", output.status);
    String::from_utf8(output.stdout).unwrap()
}

/// Arguments of `analyze` on the CPU.
pub fn analyze(model: &Path, data: &Path, out: &Path) -> Vec<String> {
    let text = |path: &Path| path.display().to_string();
    let words = ["analyze", "--device", "cpu", "--model", &text(model), "--data", &text(data), "--out", &text(out)];
    words.map(str::to_owned).to_vec()
}

/// The only line on standard error that starts with `error:`; there has to be one, and no panic.
#[track_caller]
pub fn error_line(output: &Output) -> String {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(!stderr.contains("panicked"), "{stderr}");
    let errors: Vec<&str> = stderr.lines().filter(|line| line.starts_with("error:")).collect();
    assert_eq!(errors.len(), 1, "{stderr}");
    assert!(stderr.trim_end().ends_with(errors[0]), "the message is not the last line:\n{stderr}");
    errors[0].to_owned()
}

/// Every parquet file under a folder, by its path there.
pub fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    fn search(at: &Path, root: &Path, found: &mut BTreeMap<PathBuf, Vec<u8>>) {
        for entry in std::fs::read_dir(at).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                search(&path, root, found);
            } else if path.extension().is_some_and(|e| e == "parquet") {
                found.insert(path.strip_prefix(root).unwrap().to_owned(), std::fs::read(&path).unwrap());
            }
        }
    }
    let mut found = BTreeMap::new();
    search(folder, folder, &mut found);
    found
}

/// Two folders have the same files, byte for byte.
#[track_caller]
pub fn same(a: &BTreeMap<PathBuf, Vec<u8>>, b: &BTreeMap<PathBuf, Vec<u8>>, what: &str) {
    assert!(a.keys().eq(b.keys()), "{what}: {:?} and {:?}", a.keys(), b.keys());
    let other: Vec<&PathBuf> = a.keys().filter(|key| a[*key] != b[*key]).collect();
    assert!(other.is_empty(), "{what}: {other:?} differ");
}
