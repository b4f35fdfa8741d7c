//! What `inspect` says of folders: of every checkpoint that is known here, of inputs after bug reports, and of what trainers leave.
use crate::support::{repository, small_models, succeed};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

fn inspected(path: &Path) -> Value {
    serde_json::from_str(&succeed(["--json", "inspect", &path.display().to_string()])).unwrap()
}

/// What a folder is said to be.
enum Found {
    /// A model of this type, that can be measured.
    Model(&'static str),
    /// An adapter, that can be measured.
    Adapter,
    /// One with these words of what it trains beside.
    AdapterWith(&'static str),
    /// What is refused, with these words.
    Refused(&'static str),
    /// Neither.
    Nothing,
}
use Found::{Adapter, AdapterWith, Model, Nothing, Refused};

/// That there is no tokenizer is said, and keeps nobody from measuring token ids.
fn refusals(found: &Value) -> Vec<&str> {
    let all = found["refused"].as_array().unwrap().iter().map(|text| text.as_str().unwrap());
    all.filter(|text| !text.starts_with("texts: ")).collect()
}

#[track_caller]
fn check(name: &str, found: &Value, wanted: &Found) {
    let refused = refusals(found);
    match wanted {
        Model(kind) => {
            assert_eq!((&found["model"]["model_type"], refused.len()), (&json!(kind), 0), "{name}: {found}");
            assert!(found["costs"].as_array().unwrap().len() >= 2, "{name}: {found}");
        }
        Adapter => assert!(found["adapter"]["tensors"].as_u64().unwrap() > 0 && refused.is_empty(), "{name}: {found}"),
        AdapterWith(kind) => {
            assert!(found["adapter"]["kinds"].to_string().contains(kind) && refused.is_empty(), "{name}: {found}");
        }
        Refused(told) => assert!(refused.iter().any(|text| text.contains(told)), "{name}: {found}"),
        Nothing => {
            assert_eq!((&found["model"], &found["adapter"], &found["run"]), (&Value::Null, &Value::Null, &Value::Null));
        }
    }
}

/// Folders of a folder, by name.
fn inside(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut folders: Vec<PathBuf> = entries.filter(|path| path.is_dir()).collect();
    folders.sort();
    folders
}

#[test]
fn every_checkpoint_that_is_known_can_be_measured() {
    let shared = ["golden", "golden_formats", "golden_quantised"];
    let shared = shared.iter().flat_map(|root| inside(&repository(&format!("../shared/{root}"))));
    let mut adapters = 0;
    for folder in shared.chain(small_models()) {
        let config: Value = serde_json::from_slice(&std::fs::read(folder.join("config.json")).unwrap()).unwrap();
        let found = inspected(&folder);
        assert_eq!(found["model"]["model_type"], config["model_type"]);
        assert_eq!(refusals(&found), Vec::<&str>::new(), "{}", folder.display());
        for adapter in inside(&folder).into_iter().filter(|inside| inside.join("adapter_config.json").is_file()) {
            check(&adapter.display().to_string(), &inspected(&adapter), &Adapter);
            adapters += 1;
        }
    }
    assert!(adapters >= 15);
    let small = repository("tests/golden/architectures");
    for (path, kind) in [
        ("arcee/adapter_dora", "DoRA"),
        ("arcee/adapter_embedding", "LoRA on the embedding"),
        ("arcee/adapter_tokens", "rows of 6 tokens"),
        ("arcee/adapter_modules", "trained copies of"),
        ("arcee/adapter_pissa", "pissa"),
        ("starcoder2/adapter_lora_biases", "trained biases"),
    ] {
        check(path, &inspected(&small.join(path)), &AdapterWith(kind));
    }
}

/// Inputs after public bug reports, which lie beside the checkout where this runs in full.
#[test]
fn inputs_of_bug_reports_are_what_they_are() {
    let table = [
        ("w01_orig_mod", Model("llama")),
        ("w04_shard_has_more_than_index", Model("llama")),
        ("w05_tied_stored_twice", Model("llama")),
        ("w06_tied_flag_but_two_matrices", Model("llama")),
        ("w08_inv_freq_buffers", Model("llama")),
        ("w09_fp8_block", Refused("missing")),
        ("c01_head_dim_null", Model("llama")),
        ("c02_no_kv_heads", Refused("k_proj.weight`: found shape")),
        ("c03_torch_dtype", Model("llama")),
        ("c04_both_dtypes", Model("llama")),
        ("c06_rope_type_key_type", Model("llama")),
        ("c08_rope_su", Refused("rope type `su`")),
        ("c09_eos_list", Model("llama")),
        ("c10_pretraining_tp_2", Model("llama")),
        ("c11_unknown_future_key", Refused("attn_output_gate")),
        ("c12_use_cache_and_auto_map", Model("llama")),
        ("c14_bom_in_config", Model("llama")),
        ("a01_swift_lookahead", Adapter),
        ("a03_unsloth_regex", Adapter),
        ("a04_all_linear_string", Adapter),
        ("a06_caret_never_matches", Adapter),
        ("a08_old_peft_02", Adapter),
        ("a09_base_path_gone", Adapter),
        ("a10_future_key_null", Adapter),
        ("a11_future_key_set", Refused("some_future_config")),
        ("a13_default_in_names", Adapter),
        ("a15_save_embedding_layers", Adapter),
        ("a16_resized_vocab", AdapterWith("embed_tokens")),
        ("a18_target_parameters", AdapterWith("all experts")),
        ("a19_trainable_tokens", AdapterWith("rows of 2 tokens")),
        ("alpha0", Adapter),
        ("m_tiny_smol", Model("llama")),
        ("t01_truncation_padding", Nothing),
        ("t09_template_list", Nothing),
        ("equal_f32", Nothing),
    ];
    let inputs = repository("../shared/field/inputs");
    if !inputs.is_dir() {
        eprintln!("not here: {}", inputs.display());
        return;
    }
    for (name, wanted) in &table {
        check(name, &inspected(&inputs.join(name)), wanted);
    }
    let gone = inspected(&inputs.join("a09_base_path_gone"));
    assert_eq!(gone["adapter"]["base"], "/nonexistent/home/user/llama-bnb-4bit");
}

/// What a run of TRL leaves beside adapters and models, and what PEFT does.
#[test]
fn what_trainers_leave_is_a_run() {
    let folder = tempfile::tempdir().unwrap();
    let small = repository("tests/golden/architectures/arcee");
    let beside =
        ["optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin", "README.md", "trainer_state.json"];
    let copy = |from: &Path, to: &Path| {
        std::fs::create_dir_all(to).unwrap();
        for entry in std::fs::read_dir(from).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_file()) {
            std::fs::copy(&entry, to.join(entry.file_name().unwrap())).unwrap();
        }
    };
    for (kind, of) in [("adapters", small.join("adapter_dora")), ("whole", small)] {
        let run = folder.path().join(kind);
        for step in [5, 10] {
            let checkpoint = run.join(format!("checkpoint-{step}"));
            copy(&of, &checkpoint);
            beside.iter().for_each(|name| std::fs::write(checkpoint.join(name), "not read").unwrap());
        }
        // the last model is in the run's own folder too
        copy(&of, &run);
        let found = inspected(&run);
        let adapters = if kind == "adapters" { 2 } else { 0 };
        assert_eq!((&found["run"]["steps"], &found["run"]["adapters"]), (&json!([5, 10]), &json!(adapters)), "{found}");
        assert!(found["run"]["trainer"].as_str().unwrap().contains("TRL"), "{found}");
        assert_eq!(refusals(&inspected(&run.join("checkpoint-10"))), Vec::<&str>::new());
    }
}
