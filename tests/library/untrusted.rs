//! Files that nobody vouches for: whatever they hold, reading them ends, in an error or in rows, without a panic and within bounds of
//! memory. Inputs are made from valid ones by reproducible changes (the seeds are the case numbers); `TANGLESCOPE_CASES` is how many of
//! each kind, a few thousand where it is not set.
use crate::support::{copy_folder, demo, llama, repository, write_model};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::{Duration, Instant};
use tanglescope_checkpoint::{Layout, Tensors};
use tanglescope_data::{ChatTemplate, Dataset, Form, Limits, Message, Reading, Recipe, Setting, TextTokens, parse_row};
use tanglescope_kernels::{DType, Flex, FlexDevice};
use tanglescope_model::architectures::describe;
use tanglescope_model::{AdapterSource, Config, Decoder, Places, adapter_hash};

fn cases(default: u64) -> u64 {
    std::env::var("TANGLESCOPE_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(default)
}

/// Pieces that parsers look at twice.
const PIECES: [&[u8]; 22] = [
    b"\"",
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b":",
    b"null",
    b"-1",
    b"1e999",
    b"18446744073709551616",
    b"\\u0000",
    b"\\ud800",
    b"\xFF\xFE",
    b"\0\0\0\0",
    b"\xFF\xFF\xFF\xFF",
    b"\x7F\xFF\xFF\xFF\xFF\xFF\xFF\xFF",
    b"{%",
    b"{{",
    b"PAR1",
    b"true",
    b"0.0000001",
];

/// Numbers that sizes, ranks and layers must not be believed at.
const NUMBERS: [&[u8]; 10] = [
    b"0",
    b"-1",
    b"1000000000",
    b"2147483648",
    b"4294967296",
    b"9223372036854775807",
    b"18446744073709551615",
    b"1e308",
    b"0.5",
    b"[1]",
];

/// A changed copy: bytes flipped, cut, repeated, put in; numbers exchanged for others; a piece nested deeply.
fn changed(bytes: &[u8], random: &mut ChaCha8Rng) -> Vec<u8> {
    let mut out = bytes.to_vec();
    for _ in 0..random.random_range(1..4) {
        let at = random.random_range(0..=out.len());
        match random.random_range(0..8) {
            6 => {
                let digits = |at: &usize| out[*at].is_ascii_digit();
                let starts: Vec<usize> =
                    (0..out.len()).filter(|at| digits(at) && (*at == 0 || !digits(&(at - 1)))).collect();
                if !starts.is_empty() {
                    let start = starts[random.random_range(0..starts.len())];
                    let end = (start..out.len()).find(|at| !digits(at)).unwrap_or(out.len());
                    let number = NUMBERS[random.random_range(0..NUMBERS.len())];
                    out.splice(start..end, number.iter().copied());
                }
            }
            7 if random.random_range(0..50) == 0 => {
                let piece = PIECES[random.random_range(0..PIECES.len())].repeat(20_000);
                out.splice(at..at, piece);
            }
            0 if at < out.len() => out[at] ^= 1 << random.random_range(0..8),
            1 => out.truncate(at),
            2 => {
                let piece = PIECES[random.random_range(0..PIECES.len())];
                out.splice(at..at, piece.iter().copied());
            }
            3 if at < out.len() => {
                let end = (at + random.random_range(1..40)).min(out.len());
                out.drain(at..end);
            }
            4 if at < out.len() => {
                let end = (at + random.random_range(1..40)).min(out.len());
                let copy = out[at..end].to_vec();
                out.splice(at..at, copy);
            }
            _ if at < out.len() => out[at] = random.random(),
            _ => {}
        }
    }
    out
}

/// Runs a reader on changed copies of some files. A case that takes seconds hangs for all that a user can tell.
fn survive(what: &str, seeds: &[Vec<u8>], cases: u64, read: impl Fn(&[u8])) {
    for case in 0..cases {
        let mut random = ChaCha8Rng::seed_from_u64(case);
        let bytes = changed(&seeds[random.random_range(0..seeds.len())], &mut random);
        let start = Instant::now();
        let ended = catch_unwind(AssertUnwindSafe(|| read(&bytes)));
        assert!(ended.is_ok(), "{what}: case {case} panicked on {:?}", String::from_utf8_lossy(&bytes));
        assert!(start.elapsed() < Duration::from_secs(10), "{what}: case {case} took {:?}", start.elapsed());
    }
    // what the system says of this process, after all cases
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or("0 kB").trim();
    let kilobytes: u64 = peak.trim_end_matches(" kB").parse().unwrap();
    assert!(kilobytes < 4 << 20, "{what}: {peak}");
}

fn texts(of: &[&str]) -> Vec<Vec<u8>> {
    of.iter().map(|text| text.as_bytes().to_vec()).collect()
}

#[test]
fn configs() {
    let shapes =
        ["gemma2", "gemma3_text", "gpt2", "gpt_neox", "llama", "mistral", "olmo2", "phi3", "qwen2", "qwen3", "llava"];
    let config = |kind: &str| {
        let body = r#""vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4,
            "num_key_value_heads": 2, "head_dim": 8, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 32, "sliding_window": 5,
            "rope_parameters": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "beta_fast": 32},
            "layer_types": ["sliding_attention", "full_attention", "full_attention"], "tie_word_embeddings": false"#;
        match kind {
            "llava" => format!(r#"{{"model_type": "llava", "text_config": {{"model_type": "llama", {body}}}}}"#),
            _ => format!(r#"{{"model_type": "{kind}", {body}}}"#),
        }
    };
    // sizes that no memory holds
    let huge = |of: String| {
        of.replace("\"num_hidden_layers\": 3", "\"num_hidden_layers\": 1000000000")
            .replace("\"n_layer\": 2", "\"n_layer\": 1000000000")
    };
    let seeds: Vec<Vec<u8>> =
        shapes.iter().flat_map(|kind| [config(kind), huge(config(kind))]).map(String::into_bytes).collect();
    survive("config.json", &seeds, cases(20_000), |bytes| {
        if let Ok(config) = Config::parse(Path::new("config.json"), bytes) {
            let _ = describe(&config).map(|of| (0..of.layers()).map(|layer| of.parts(layer).len()).sum::<usize>());
        }
    });
}

#[test]
fn rows() {
    let seeds = texts(&[
        r#"{"id": 7, "prompt": "Q", "chosen": "A", "rejected": "B"}"#,
        r#"{"prompt": [{"role": "user", "content": "Q"}], "chosen": [{"role": "assistant", "content": "A"}], "rejected": "B"}"#,
        r#"{"chosen": "\n\nHuman: x\n\nAssistant: é", "rejected": "\n\nHuman: x\n\nAssistant: 漢"}"#,
        r#"{"prompt_ids": [1, 2], "chosen_ids": [3], "rejected_ids": [4, 5]}"#,
        r#"{"prompt": "Q", "responses": ["A", "B", "C"], "scores": [1, 2.5, -3]}"#,
        r#"{"info": {"post": "P", "title": "T"}, "summaries": [{"text": "a"}, {"text": "b"}], "choice": 1}"#,
        r#"{"instruction": "I", "completions": [{"response": "a", "overall_score": 1}, {"response": "b", "overall_score": 2}]}"#,
        r#"{"history": "H", "human_ref_A": "a", "human_ref_B": "b", "labels": 1}"#,
        r#"{"prompt": "P", "answers": [{"answer": "a", "rank": 1}, {"answer": "b", "rank": 2}]}"#,
        r#"{"instruction": "I", "input": "x", "output": ["a", "b"], "history": [["q", "a"]], "system": "S"}"#,
        r#"{"conversations": [{"from": "human", "value": "Q"}], "chosen": {"from": "gpt", "value": "a"}, "rejected": {"from": "gpt", "value": "b"}}"#,
        r#"{"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "a"}], "rejected_response": "b"}"#,
        r#"{"input": {"messages": [{"role": "user", "content": "Q"}]}, "preferred_output": [{"role": "assistant", "content": "a"}],
            "non_preferred_output": [{"role": "assistant", "content": "b"}]}"#,
        r#"{"prompt": [{"role": "user", "content": [{"type": "text", "text": "Q"}]}], "chosen": [{"role": "assistant", "content": "a",
            "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}]}], "rejected": [{"role": "assistant",
            "content": null, "reasoning_content": "r"}], "tools": [{"type": "function", "function": {"name": "f"}}],
            "chat_template_kwargs": {"enable_thinking": false}}"#,
        r#"{"prompt": "P", "generations": ["a", "b"], "ratings": [1, 2], "generation_models": ["m", "n"]}"#,
    ]);
    survive("rows", &seeds, cases(60_000), |bytes| {
        drop(parse_row(bytes, Form { chat: bytes.len() % 2 == 0, ..Form::default() }));
    });
}

#[test]
fn data_files_of_each_format() {
    let folder = tempfile::tempdir().unwrap();
    let model = demo();
    let reading = Reading { skip_bad_rows: true, ..Reading::default() };
    let limits = Limits { vocabulary: 1 << 20, positions: 1 << 20 };
    for (name, many) in [
        ("pandas.parquet", 1500),
        ("kto.parquet", 1500),
        ("ids.parquet", 1500),
        ("pandas.feather", 1500),
        ("saved/data-00000-of-00002.arrow", 1500),
        ("pandas.json", 1500),
        ("pandas.csv", 1500),
        ("packed.jsonl.gz", 1500),
    ] {
        let path = repository("tests/golden/data").join(name);
        let copy = folder.path().join(path.file_name().unwrap());
        let seed = std::fs::read(&path).unwrap();
        survive(name, &[seed], cases(many), |bytes| {
            std::fs::write(&copy, bytes).unwrap();
            drop(Dataset::read(&copy, &[&model], &reading, limits));
        });
    }
}

#[test]
fn tokenizers_and_templates() {
    let folder = tempfile::tempdir().unwrap();
    let small = r#"{"version": "1.0", "truncation": null, "padding": null, "normalizer": {"type": "NFC"}, "added_tokens": [],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "post_processor": null, "decoder": {"type": "ByteLevel"}, "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2, "Ġ": 3},
        "merges": [["a", "b"]], "unk_token": null, "byte_fallback": false}}"#;
    let growing = small.replace(r#"{"type": "NFC"}"#, r#"{"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "ab"},
        {"type": "Replace", "pattern": {"Regex": "(a|b)+c*"}, "content": "abab"}, {"type": "Replace", "pattern": {"String": " "}, "content": "b"}]}"#);
    let split = small.replace(
        r#"{"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true}"#,
        r#"{"type": "Split", "pattern": {"Regex": "(a+)+$|\\p{L}{1,9}"}, "behavior": "Isolated", "invert": false}"#,
    );
    assert!(growing != small && split != small);
    survive("tokenizer.json", &texts(&[small, &growing, &split]), cases(3000), |bytes| {
        std::fs::write(folder.path().join("tokenizer.json"), bytes).unwrap();
        if let Ok(tokenizer) = TextTokens::open(&[folder.path()]) {
            let _ = (tokenizer.text(0), tokenizer.text(u32::MAX), tokenizer.join(&[0, 1, 99]));
            let row =
                parse_row(r#"{"prompt": "ab a", "chosen": "b", "rejected": "é"}"#.as_bytes(), Form::default()).unwrap();
            drop(Recipe::default().tokens(&row.preference, &Setting::default(), &tokenizer));
        }
    });
    let templates = texts(&[
        "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] | trim }}{{ eos_token }}{% endfor %}",
        "{% if messages[0].role == 'system' %}{% set s = messages[0].content %}{% endif %}{{ s[:3] }}{{ raise_exception('x') }}",
        "{% macro f(x, n=2) %}{{ x ~ n }}{% endmacro %}{% for i in range(3) %}{{ f(i) }}{% endfor %}{{ strftime_now('%d %b %Y') }}",
        "{% set ns = namespace(x='ab') %}{% for i in range(30) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}",
        "{% for i in range(9) %}{% for j in range(99) %}{{ messages | tojson }}{{ 'x' * 99 }}{% endfor %}{% endfor %}",
        "{% for m in messages %}{{ m.content.split('l')[0].strip() | upper | replace('a', 'bb') | indent(3) | center(9) }}{% endfor %}",
        "{% macro f(n) %}{% if n > 0 %}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(50) }}{{ messages[0].get('tools') or '' }}",
        "{%- for m in messages if m.role != 'tool' -%}{{ loop.index0 * 2 // 3 }}{{ m | tojson(indent=2) }}{%- endfor %}",
    ]);
    let message: Message = serde_json::from_str(r#"{"role": "user", "content": "Hello"}"#).unwrap();
    survive("chat templates", &templates, cases(20_000), |bytes| {
        let source = String::from_utf8_lossy(bytes);
        if let Ok(template) = ChatTemplate::new(&source, serde_json::Map::new(), Path::new("chat_template.jinja")) {
            drop(template.render(std::slice::from_ref(&message), true, &Setting::default()));
        }
    });
}

#[test]
fn safetensors_and_adapters() {
    let folder = tempfile::tempdir().unwrap();
    write_model(folder.path(), &llama(1, true));
    let path = folder.path().join("model.safetensors");
    let whole = std::fs::read(&path).unwrap();
    let header = 8 + usize::try_from(u64::from_le_bytes(whole[..8].try_into().unwrap())).unwrap();
    survive("safetensors headers", &[whole[..header].to_vec()], cases(6000), |bytes| {
        std::fs::write(&path, [bytes, &whole[header..]].concat()).unwrap();
        if let Ok(weights) = Tensors::open(folder.path(), "model") {
            let names: Vec<String> = weights.names().map(str::to_owned).collect();
            names.iter().for_each(|name| drop(weights.get(name).map(|of| of.shape().to_vec())));
            let load = |source: &AdapterSource| {
                Decoder::<Flex>::load(folder.path(), source, DType::F32, &FlexDevice, Places::DEVICE)
            };
            drop(load(&AdapterSource::None));
        }
    });
    let adapter = folder.path().join("adapter");
    std::fs::create_dir_all(&adapter).unwrap();
    std::fs::write(adapter.join("adapter_model.safetensors"), b"\x02\0\0\0\0\0\0\0{}").unwrap();
    let config = r#"{"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "rank_pattern": {"a.*b": 2},
        "alpha_pattern": {}, "bias": "none", "layers_to_transform": [0, 1], "layers_pattern": "layers", "modules_to_save": null}"#;
    survive(
        "adapter_config.json",
        &texts(&[config, &config.replace(r#"["q_proj", "v_proj"]"#, r#""(a|b)+.*""#)]),
        cases(6000),
        |bytes| {
            std::fs::write(adapter.join("adapter_config.json"), bytes).unwrap();
            drop(adapter_hash(&adapter));
        },
    );
}

/// What torch writes, as an archive and before that.
#[test]
fn torch_files() {
    let folder = tempfile::tempdir().unwrap();
    let torch = ["legacy/pytorch_model.bin", "zip/pytorch_model.bin", "nested/model.pt"].map(checkpoint);
    survive("files of torch.save", &torch, cases(20_000), |bytes| open_as(folder.path(), "pytorch_model.bin", bytes));
}

#[test]
fn quantised_tensors() {
    let folder = tempfile::tempdir().unwrap();
    let quantised = ["eight_bits", "four_bits", "fp8"].map(|name| checkpoint(&format!("{name}/model.safetensors")));
    survive("quantised tensors", &quantised, cases(2_000), |bytes| open_as(folder.path(), "model.safetensors", bytes));
}

#[test]
fn gguf_files() {
    let folder = tempfile::tempdir().unwrap();
    let gguf = [
        checkpoint("gguf/model.gguf")[..4096].to_vec(),
        checkpoint("gguf_gemma/model.gguf"),
        checkpoint("../gguf_models/mixtral.gguf"),
        checkpoint("../gguf_tokenizers/pieces.gguf"),
        checkpoint("../gguf_tokenizers/qwen2.gguf"),
    ];
    survive("GGUF files", &gguf, cases(2_000), |bytes| {
        open_as(folder.path(), "model.gguf", bytes);
        std::fs::write(folder.path().join("model.gguf"), bytes).unwrap();
        let _config = tanglescope_checkpoint::gguf_config(folder.path());
        let _tokenizer = tanglescope_checkpoint::gguf_tokenizer(folder.path());
        std::fs::remove_file(folder.path().join("model.gguf")).unwrap();
    });
}

#[test]
fn distributed_checkpoints() {
    let folder = tempfile::tempdir().unwrap();
    let distributed = repository("../shared/golden_formats/dcp_llama/pytorch_model_fsdp_0");
    // where the shared goldens lie beside the checkout
    if distributed.is_dir() {
        copy_folder(&distributed, folder.path());
        let metadata = std::fs::read(distributed.join(".metadata")).unwrap();
        let read = |bytes: &[u8]| open_as(folder.path(), ".metadata", bytes);
        survive("descriptions of distributed checkpoints", &[metadata], cases(5_000), read);
    }
}

/// A file of the checkpoints that are carried.
fn checkpoint(path: &str) -> Vec<u8> {
    std::fs::read(repository("tests/golden/checkpoints").join(path)).unwrap()
}

/// Reads a folder with some bytes as one of its files: what is in it, and the tensors' values and codes.
fn open_as(folder: &Path, name: &str, bytes: &[u8]) {
    std::fs::write(folder.join(name), bytes).unwrap();
    if let Ok(tensors) = Tensors::open(folder, "model").and_then(|of| of.put_together(Some([128, 128]))) {
        for name in tensors.names() {
            // a model reads shapes that it expects, and no others
            let shape = tensors.get(name).map_or(&[][..], |of| of.shape());
            if shape.iter().fold(1usize, |n, size| n.saturating_mul(*size)) < 1 << 20 {
                let _values = tensors.read::<f32>(name, Layout::Same);
                for layout in [Layout::Same, Layout::Rows { index: 0, piece: 0, of: 2 }] {
                    let _words = tensors.codes(name, layout, f32::MAX).map(|codes| codes.map(|codes| codes.words()));
                }
            }
        }
    }
    std::fs::remove_file(folder.join(name)).unwrap();
}
