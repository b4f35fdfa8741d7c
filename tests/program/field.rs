//! Inputs after public bug reports, each with its right outcome (EXPECT.tsv beside them). They are too large to be carried, and lie
//! beside the checkout where this runs in full.
use crate::support::{error_line, numbers, repository, run, tanglescope};
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// What has to come of an input.
enum Outcome {
    /// The numbers of the model, or of the model under its adapter.
    Same,
    /// Other numbers.
    Loads,
    /// An error with these words.
    Refused(&'static str),
    /// A pair of texts, with these tokens in it and these not.
    Tokens(&'static [&'static str], &'static [&'static str]),
    /// So many pairs.
    Pairs(usize),
}
use Outcome::{Loads, Pairs, Refused, Same, Tokens};

const EXPECTED: [(&str, Outcome); 51] = [
    ("w01_orig_mod", Same),
    ("w04_shard_has_more_than_index", Same),
    ("w05_tied_stored_twice", Loads),
    ("w06_tied_flag_but_two_matrices", Refused("tie_word_embeddings")),
    ("w08_inv_freq_buffers", Same),
    ("w09_fp8_block", Refused("stored as F8_E4M3")),
    ("c01_head_dim_null", Same),
    ("c02_no_kv_heads", Refused("k_proj.weight`: found shape")),
    ("c03_torch_dtype", Same),
    ("c04_both_dtypes", Same),
    ("c06_rope_type_key_type", Loads),
    ("c08_rope_su", Refused("rope type `su`")),
    ("c09_eos_list", Same),
    ("c10_pretraining_tp_2", Same),
    ("c11_unknown_future_key", Refused("attn_output_gate")),
    ("c12_use_cache_and_auto_map", Same),
    ("c14_bom_in_config", Same),
    ("a01_swift_lookahead", Same),
    ("a03_unsloth_regex", Same),
    ("a04_all_linear_string", Same),
    ("a06_caret_never_matches", Same),
    ("a08_old_peft_02", Same),
    ("a09_base_path_gone", Same),
    ("a10_future_key_null", Same),
    ("a11_future_key_set", Refused("some_future_config")),
    ("a13_default_in_names", Same),
    ("a15_save_embedding_layers", Same),
    ("a16_resized_vocab", Refused("[389, 64], expected [384, 64]")),
    ("a18_target_parameters", Refused("target_parameters")),
    ("a19_trainable_tokens", Refused("trainable_tokens_delta`: missing")),
    ("m_tiny_smol", Tokens(&["<|im_start|>", "four"], &[])),
    ("t01_truncation_padding", Tokens(&["four", " is", " it", "<|im_end|>"], &[])),
    ("t03_bos_in_post_processor_and_text", Tokens(&["<|im_start|>", "four"], &[])),
    ("t04_no_eos_in_config", Refused("names EOS")),
    ("t06_r1_distill_template", Tokens(&["four", "five"], &["think"])),
    ("t07_generation_tags", Tokens(&["four", "<|im_end|>"], &["generation"])),
    ("t08_typed_content_template", Tokens(&["four", "2", "?"], &["type"])),
    ("t09_template_list", Tokens(&["<|im_start|>", "four"], &[])),
    ("t11_date", Tokens(&["Jan"], &[])),
    ("d01_null_rejected", Refused("row 0: no `rejected`")),
    ("d03_equal", Pairs(1)),
    ("d04_whitespace_prompt", Tokens(&["Answer", ":", " yes"], &[])),
    ("d05_content_null_tool_call", Refused("row 0: the chat template fails")),
    ("d07_typed_parts", Tokens(&["a", "b", "c"], &["type", "'"])),
    ("d08_llamafactory_sharegpt", Tokens(&["a", "b", "c"], &[])),
    ("d11_orca", Tokens(&["s", "a", "b", "c"], &[])),
    ("d13_chosen_and_completion", Pairs(1)),
    ("d15_unicode_nfd", Pairs(1)),
    ("d16_lone_surrogate", Refused("row 0: not JSON")),
    ("d17_nul_and_bidi", Pairs(1)),
    ("d19_assistant_last_prompt", Tokens(&["Sure", ",", " b"], &[])),
];

/// `analyze` in f64: its lengths of gradients and their product, or its error.
fn analyze(model: &Path, adapter: Option<&Path>, data: &Path, out: &Path) -> Result<Vec<f64>, String> {
    let mut command = tanglescope();
    command.args(["analyze", "--device", "cpu", "--dtype", "f64", "--model"]).arg(model);
    command.arg("--data").arg(data).arg("--out").arg(out);
    match adapter {
        Some(adapter) => command.arg("--adapter").arg(adapter),
        None => command.args(["--scope", "full"]),
    };
    let output = command.output().unwrap();
    if !output.status.success() {
        assert_eq!(output.status.code(), Some(2), "{}", String::from_utf8_lossy(&output.stderr));
        return Err(error_line(&output));
    }
    Ok(["ww", "wl", "ll"].iter().flat_map(|name| numbers(out, "pairs.parquet", name)).flatten().collect())
}

/// `rows` as JSON, or its error.
fn rows(model: &Path, data: &Path, more: &[&str]) -> Result<Value, String> {
    let [model, data] = [model, data].map(|path| path.display().to_string());
    let output = run([&["rows", "--json", "--model", &model, "--data", &data], more].concat());
    if !output.status.success() {
        assert_eq!(output.status.code(), Some(2), "{}", String::from_utf8_lossy(&output.stderr));
        return Err(error_line(&output));
    }
    Ok(serde_json::from_slice(&output.stdout).unwrap())
}

/// The tiny model with SmolLM2's tokenizer, and over it what an input changes.
fn over(tiny: &Path, input: &Path, to: &Path) {
    for from in [tiny, input] {
        for entry in std::fs::read_dir(from).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap();
            if name == "tokenizer.patch.json" {
                let file = to.join("tokenizer.json");
                let of = |path: &Path| serde_json::from_slice::<Value>(&std::fs::read(path).unwrap()).unwrap();
                let mut whole = of(&file);
                for (key, value) in of(&path).as_object().unwrap() {
                    whole[key] = value.clone();
                }
                std::fs::write(&file, whole.to_string()).unwrap();
            } else {
                // copies of files that cannot be written cannot be replaced
                std::fs::write(to.join(name), std::fs::read(&path).unwrap()).unwrap();
            }
        }
    }
}

#[test]
fn inputs_of_bug_reports_come_out_right() {
    let (field, golden) = (repository("../shared/field"), repository("../shared/golden/llama"));
    if !field.is_dir() {
        eprintln!("not here: {}", field.display());
        return;
    }
    let known: BTreeSet<String> = std::fs::read_to_string(field.join("EXPECT.tsv"))
        .unwrap()
        .lines()
        .map(|line| line.split('\t').next().unwrap().to_owned())
        .collect();
    let named: BTreeSet<String> =
        EXPECTED.iter().map(|(name, _)| (*name).to_owned()).chain(["d20_crlf_bom".to_owned()]).collect();
    assert_eq!(named, known, "EXPECT.tsv has other inputs");
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let stored: Value = serde_json::from_slice(&std::fs::read(golden.join("golden.json")).unwrap()).unwrap();
    let ids = stored["pairs"].as_array().unwrap().iter().map(|pair| {
        let of = |key: &str| pair[key].clone();
        serde_json::json!({"prompt_ids": of("prompt_ids"), "chosen_ids": of("chosen_ids"), "rejected_ids": of("rejected_ids")})
    });
    std::fs::write(at("ids.jsonl"), ids.map(|row| format!("{row}\n")).collect::<String>()).unwrap();
    let chat = r#"{"prompt": [{"role": "user", "content": "2+2?"}], "chosen": [{"role": "assistant", "content": "four is it"}],
        "rejected": [{"role": "assistant", "content": "five"}]}"#;
    std::fs::write(at("chat.jsonl"), chat.replace('\n', " ")).unwrap();
    let plain = analyze(&golden, None, &at("ids.jsonl"), &at("plain")).unwrap();
    let adapted = analyze(&golden, Some(&golden.join("adapter")), &at("ids.jsonl"), &at("adapted")).unwrap();
    let tiny = field.join("inputs/m_tiny_smol");
    for (name, expected) in EXPECTED {
        let input = field.join("inputs").join(name);
        let out = at(name);
        let (numbers, want) = match &name[..1] {
            "w" | "c" => (Some(analyze(&input, None, &at("ids.jsonl"), &out)), &plain),
            "a" => (Some(analyze(&golden, Some(&input), &at("ids.jsonl"), &out)), &adapted),
            _ => (None, &plain),
        };
        if let Some(numbers) = numbers {
            match (expected, numbers) {
                // the same operations on the same numbers
                (Same, Ok(got)) => assert_eq!(&got, want, "{name}"),
                (Loads, Ok(_)) => {}
                (Refused(words), Err(error)) => assert!(error.contains(words), "{name}: {error}"),
                (_, other) => panic!("{name}: {other:?}"),
            }
            continue;
        }
        let found = if name.starts_with('d') {
            rows(&tiny, &PathBuf::from(format!("{}.jsonl", input.display())), &[])
        } else {
            std::fs::create_dir(&out).unwrap();
            over(&tiny, &input, &out);
            match name {
                "t04_no_eos_in_config" => {
                    rows(&out, &field.join("inputs/d04_whitespace_prompt.jsonl"), &["--append-eos"])
                }
                "t11_date" => rows(&out, &at("chat.jsonl"), &["--date", "2026-01-31"]),
                _ => rows(&out, &at("chat.jsonl"), &[]),
            }
        };
        match (expected, found) {
            (Refused(words), Err(error)) => assert!(error.contains(words), "{name}: {error}"),
            (Pairs(n), Ok(found)) => assert_eq!(found["rows"], n, "{name}"),
            (Tokens(with, without), Ok(found)) => {
                let text = found["shown"][0].to_string();
                let tokens: BTreeSet<String> = ["/prompt", "/responses/0", "/responses/1"]
                    .iter()
                    .flat_map(|part| found["shown"][0].pointer(part).unwrap().as_array().unwrap().clone())
                    .map(|token| token["text"].as_str().unwrap().to_owned())
                    .collect();
                // as tokens, or as a part of one
                assert!(with.iter().all(|part| tokens.iter().any(|token| token.contains(part))), "{name}: {text}");
                assert!(without.iter().all(|part| !tokens.iter().any(|token| token.contains(part))), "{name}: {text}");
            }
            (_, other) => panic!("{name}: {other:?}"),
        }
    }
    let both = rows(&tiny, &field.join("inputs/d20_crlf_bom.jsonl"), &[]).unwrap();
    assert_eq!(both["rows"], 2);
    // the tokenizer's own truncation and padding change nothing
    let of = |model: &Path| rows(model, &at("chat.jsonl"), &[]).unwrap()["shown"].clone();
    assert_eq!(of(&at("t01_truncation_padding")), of(&at("m_tiny_smol")));
    // a template's line ends are one, as Jinja reads them
    std::fs::create_dir(at("crlf")).unwrap();
    over(&tiny, &tiny, &at("crlf"));
    std::fs::copy(field.join("inputs/crlf_template/chat_template.jinja"), at("template")).unwrap();
    std::fs::write(at("crlf").join("chat_template.jinja"), std::fs::read(at("template")).unwrap()).unwrap();
    assert_eq!(of(&at("crlf")), of(&at("m_tiny_smol")));
    // equal responses point the same way, and nothing moves them apart
    let out = at("equal");
    let equal = field.join("inputs/d03_equal.jsonl");
    let output = run([
        "analyze",
        "--device",
        "cpu",
        "--model",
        &tiny.display().to_string(),
        "--data",
        &equal.display().to_string(),
        "--out",
        &out.display().to_string(),
        "--scope",
        "full",
    ]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!((numbers(&out, "pairs.parquet", "cosine")[0].unwrap() - 1.0).abs() < 1e-6);
}
