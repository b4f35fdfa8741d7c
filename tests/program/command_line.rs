//! What is for shells and programs: completions, manual pages, JSON, exit codes.
use crate::support::{analyze, demo, ids_row, llama, repository, run, succeed, write_model};
use serde_json::{Value, json};
use std::path::Path;

#[test]
fn every_command_that_prints_prints_json_where_that_is_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    write_model(&at("model"), &llama(1, true));
    std::fs::write(at("data.jsonl"), [ids_row(&[1, 2], &[3], &[4]), ids_row(&[1, 2], &[3, 4], &[5])].join("\n"))
        .unwrap();
    let text = |name: &str| at(name).display().to_string();
    let common = |command: &str| {
        let words = [command, "--json", "--device", "cpu", "--model", &text("model"), "--data", &text("data.jsonl")];
        words.map(str::to_owned).to_vec()
    };
    let with = |command: &str, more: &[&str]| {
        let words = common(command).into_iter().chain(more.iter().map(|&word| word.to_owned()));
        serde_json::from_str::<Value>(&succeed(words)).unwrap()
    };
    let found = with("analyze", &["--out", &text("out"), "--objective", "cpo"]);
    assert_eq!(found["pairs"], 2);
    assert_eq!(found["regimes"]["cpo"].as_object().unwrap().len(), 5);
    let found = with("tokens", &["--out", &text("out")]);
    assert_eq!(found["pairs"], 2);
    let found = with("verify", &["--pairs", "1"]);
    assert_eq!(found["failed"], 0);
    assert!(found["checks"].as_array().unwrap().iter().all(|check| check["passed"] == true));
    let of = |words: &[&str]| serde_json::from_str::<Value>(&succeed(words)).unwrap();
    let objectives = of(&["objectives", "--json"]);
    let dpo = objectives.as_array().unwrap().iter().find(|of| of["name"] == "dpo").unwrap();
    assert!(dpo["keys"]["beta"].is_number() && dpo["formula"].is_string());
    assert!(of(&["--json", "devices"])["devices"].is_array());
    assert_eq!(of(&["summarize", &text("out"), "--json"])[0]["pairs"], 2);
}

#[test]
fn shells_and_manuals_know_the_commands() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = succeed(["completions", shell]);
        assert!(script.contains("analyze") && script.contains("mean-gradients"), "{shell}");
    }
    let folder = tempfile::tempdir().unwrap();
    let pages = folder.path().join("man");
    succeed(["man", "--out", pages.to_str().unwrap()]);
    let names: Vec<String> =
        std::fs::read_dir(&pages).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    for name in ["tanglescope.1", "tanglescope-analyze.1", "tanglescope-sweep.1"] {
        assert!(names.iter().any(|of| of == name), "{names:?}");
    }
    assert!(std::fs::read_to_string(pages.join("tanglescope-analyze.1")).unwrap().contains("group\\-objective"));
}

#[test]
fn exit_codes_tell_bad_input_from_anything_else() {
    let folder = tempfile::tempdir().unwrap();
    let (model, data) = (folder.path().join("model"), folder.path().join("data.jsonl"));
    write_model(&model, &llama(1, true));
    std::fs::write(&data, ids_row(&[1, 2], &[3], &[4])).unwrap();
    let code = |words: Vec<String>| run(words).status.code();
    let out = folder.path().join("out");
    assert_eq!(code(analyze(&model, &data, &out)), Some(0));
    assert_eq!(code(analyze(&model, &folder.path().join("nothing.jsonl"), &out)), Some(2));
    assert_eq!(code(vec!["analyze".to_owned(), "--nothing".to_owned()]), Some(2));
    // the output folder is a file
    assert_eq!(code(analyze(&model, &data, &data)), Some(1));
}

/// What folders are, as text and as JSON; what cannot be measured is said, and is no failure.
#[test]
fn inspect_says_what_a_folder_is() {
    let of = |path: &Path| -> Value {
        serde_json::from_str(&succeed(["--json", "inspect", &path.display().to_string()])).unwrap()
    };
    let demo = demo();
    let model = of(&demo);
    assert_eq!(model["model"]["model_type"], "llama");
    assert_eq!(model["model"]["stored"].as_object().unwrap().len(), 1);
    assert_eq!((&model["model"]["tokenizer"], &model["refused"]), (&json!(true), &json!([])));
    let costs = model["costs"].as_array().unwrap();
    assert!(costs.len() >= 2 && costs.iter().all(|cost| cost["seconds"].as_f64().unwrap() > 0.0), "{costs:?}");
    let small = repository("tests/golden/architectures");
    let adapter = of(&small.join("starcoder2/adapter_all_biases"));
    assert!(adapter["adapter"]["tensors"].as_u64().unwrap() > 0 && adapter["adapter"]["base_is_here"] == false);
    let gguf = of(&repository("tests/golden/checkpoints/gguf_model"));
    assert_eq!((&gguf["model"]["stored"], &gguf["model"]["parameters"]), (&json!({ "F32": 20 }), &json!(110_912)));
    assert!(gguf["refused"][0].as_str().unwrap().contains("no tokenizer.json"));
    // a run, and a model that is not supported
    let folder = tempfile::tempdir().unwrap();
    for step in ["global_step8_hf", "global_step16_hf"] {
        let at = folder.path().join(step);
        std::fs::create_dir(&at).unwrap();
        std::fs::write(at.join("config.json"), r#"{"model_type": "mamba"}"#).unwrap();
    }
    let run = of(folder.path());
    assert_eq!((&run["run"]["trainer"], &run["run"]["steps"]), (&json!("OpenRLHF"), &json!([8, 16])));
    let unknown = of(&folder.path().join("global_step8_hf"));
    assert!(unknown["refused"][0].as_str().unwrap().contains("`mamba` is not supported"), "{unknown}");
    let text = succeed(["inspect", &demo.display().to_string()]);
    assert!(text.contains("a pair of 512 tokens takes"), "{text}");
}
