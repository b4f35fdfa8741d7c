//! `sweep` as a user runs it, on runs that `train` made and on damaged ones.
use crate::support;
use crate::support::{
    Tensors, analyze, error_line, files, ids_row, llama, run, same, succeed, tanglescope, write_json, write_model,
};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tanglescope_records::Table;

/// A model, two data sets of several parts, and a run of adapters and one of whole models with checkpoints 0, 2 and 4.
struct Runs {
    folder: tempfile::TempDir,
}

impl Runs {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let runs = Self { folder };
        write_model(&runs.path("model"), &llama(1, true));
        let row = |i: u32| {
            let ids = |from: u32, n: u32| (from..from + n).map(|t| t % 40).collect::<Vec<u32>>();
            ids_row(&ids(i, 1 + i % 9), &ids(2 * i, 1 + i % 5), &ids(3 * i + 1, 1 + i % 7))
        };
        std::fs::write(runs.path("one.jsonl"), (0..150).map(row).collect::<Vec<_>>().join("\n")).unwrap();
        std::fs::write(runs.path("two.jsonl"), (200..240).map(row).collect::<Vec<_>>().join("\n")).unwrap();
        for (name, scope) in [("adapters", "lora"), ("whole", "full")] {
            let words = ["train", "--objective", "dpo", "--scope", scope, "--learning-rate", "1e-2", "--lora-r", "2"];
            let steps = ["--batch-size", "4", "--max-steps", "4", "--save-every", "2", "--warmup-steps", "0"];
            let paths = ["--model", &runs.text("model"), "--data", &runs.text("two.jsonl"), "--out", &runs.text(name)];
            succeed([words.as_slice(), &steps, &paths, &["--device", "cpu"]].concat());
        }
        runs
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// Arguments of a sweep over runs on both data sets.
    fn sweep(&self, runs: &[&str], out: &str, more: &[&str]) -> Vec<String> {
        let mut words = vec!["sweep".to_owned()];
        words.extend(runs.iter().map(|run| self.text(run)));
        let data = [self.text("one.jsonl"), self.text("two.jsonl")];
        words.extend(
            ["--data", &data[0], "--data", &data[1], "--out", &self.text(out), "--device", "cpu"].map(str::to_owned),
        );
        words.extend(more.iter().map(|&word| word.to_owned()));
        words
    }

    fn leaf(&self, out: &str, run: &str, step: usize, data: &str) -> PathBuf {
        self.path(out).join(format!("run={run}/step={step}/dataset={data}"))
    }
}

fn column(leaf: &Path, name: &str) -> Vec<u64> {
    Table::at(leaf, "pairs.parquet").read(0).unwrap().column(name).unwrap().u64().unwrap().iter().flatten().collect()
}

#[test]
fn a_sweep_is_an_analysis_of_every_checkpoint() {
    let runs = Runs::new();
    succeed(runs.sweep(&["adapters", "whole"], "out", &["--objective", "dpo", "--objective", "cpo"]));
    assert_eq!(std::fs::read_dir(runs.path("out/run=whole")).unwrap().count(), 3);
    for step in [0, 2, 4] {
        for data in ["one", "two"] {
            // an adapter, whose base is its reference; and a whole model with the model that it was trained from
            let (model, file) = (runs.path("model"), runs.path(&format!("{data}.jsonl")));
            let checkpoint = |run: &str| runs.text(&format!("{run}/checkpoint-{step}"));
            let objectives = ["--objective", "dpo", "--objective", "cpo"];
            let alone = runs.path(&format!("alone-{step}-{data}"));
            let mut words = analyze(&model, &file, &alone);
            words.extend(["--adapter", &checkpoint("adapters")].iter().chain(&objectives).map(|&w| w.to_owned()));
            succeed(words);
            same(
                &files(&alone),
                &files(&runs.leaf("out", "adapters", step, data)),
                &format!("adapter, {step}, {data}"),
            );

            let alone = runs.path(&format!("alone-whole-{step}-{data}"));
            let mut words = analyze(Path::new(&checkpoint("whole")), &file, &alone);
            words.extend(["--reference", &runs.text("model")].iter().chain(&objectives).map(|&w| w.to_owned()));
            succeed(words);
            same(&files(&alone), &files(&runs.leaf("out", "whole", step, data)), &format!("whole, {step}, {data}"));
        }
    }
    let summary = succeed(["summarize", &runs.text("out")]);
    assert_eq!(summary.lines().count(), 1 + 2 * 3 * 2, "{summary}");
}

/// Another trainer's run of whole models does not say what it started from: no checkpoint is taken for its own reference.
#[test]
fn a_run_of_whole_models_is_told_what_it_started_from() {
    let runs = Runs::new();
    succeed(runs.sweep(&["whole"], "known", &["--objective", "dpo"]));
    std::fs::remove_file(runs.path("whole/manifest.json")).unwrap();
    let line = error_line(&run(runs.sweep(&["whole"], "told", &["--objective", "dpo"])));
    assert!(line.contains("uses a reference model, and there is none"), "{line}");
    succeed(runs.sweep(&["whole"], "told", &["--objective", "dpo", "--model", &runs.text("model")]));
    let leaf = |out: &str| files(&runs.leaf(out, "whole", 4, "one"));
    same(&leaf("known"), &leaf("told"), "told");
}

#[test]
fn adapters_that_save_modules_are_loaded_as_a_whole() {
    let runs = Runs::new();
    // checkpoint 2 with its own copy of a norm
    let at = runs.path("adapters/checkpoint-2");
    let config = std::fs::read(at.join("adapter_config.json")).unwrap();
    let mut config: serde_json::Value = serde_json::from_slice(&config).unwrap();
    config["modules_to_save"] = serde_json::json!(["model.norm"]);
    write_json(&at.join("adapter_config.json"), &config);
    let bytes = std::fs::read(at.join("adapter_model.safetensors")).unwrap();
    let stored = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let mut tensors = Tensors::new();
    for (name, view) in stored.tensors() {
        let values = view.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        tensors.insert(name, support::Tensor { shape: view.shape().to_vec(), values });
    }
    let norm = support::Tensor { shape: vec![16], values: vec![0.5; 16] };
    tensors.insert("base_model.model.model.norm.weight".to_owned(), norm);
    support::write_tensors(&at.join("adapter_model.safetensors"), &tensors, safetensors::Dtype::F32);
    succeed(runs.sweep(&["adapters"], "out", &[]));
    for step in [0, 2, 4] {
        let alone = runs.path(&format!("alone-{step}"));
        let mut words = analyze(&runs.path("model"), &runs.path("two.jsonl"), &alone);
        words.extend(["--adapter".to_owned(), runs.text(&format!("adapters/checkpoint-{step}"))]);
        succeed(words);
        same(&files(&alone), &files(&runs.leaf("out", "adapters", step, "two")), &format!("{step}"));
    }
}

#[test]
fn shards_and_killed_sweeps_come_to_the_same_files() {
    let runs = Runs::new();
    let objectives = ["--objective", "dpo"];
    succeed(runs.sweep(&["adapters", "whole"], "out", &objectives));
    let whole = files(&runs.path("out"));
    assert_eq!(whole.len(), 2 * 3 * (4 * 3 + 4), "three parts and one, of four tables");

    for shard in ["2/5", "1/5", "4/5", "5/5", "3/5"] {
        succeed(runs.sweep(&["adapters", "whole"], "shards", &["--shard", shard, "--objective", "dpo"]));
    }
    same(&files(&runs.path("shards")), &whole, "shards");

    // killed at growing moments, until one comes to its end
    let mut kills = 0;
    for wait in (0..).map(|i| Duration::from_millis(20 + 30 * i)) {
        let mut process = tanglescope()
            .args(runs.sweep(&["adapters", "whole"], "killed", &objectives))
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(wait);
        if process.try_wait().unwrap().is_some_and(|status| status.success()) {
            break;
        }
        process.kill().unwrap();
        process.wait().unwrap();
        kills += 1;
    }
    assert!(kills > 1, "it was not killed");
    same(&files(&runs.path("killed")), &whole, "killed");

    // a damaged part is named, and made again once it is gone
    let part = runs.leaf("killed", "whole", 2, "one").join("params.parquet/00001.parquet");
    std::fs::write(&part, b"PAR1").unwrap();
    let summary = run(["summarize", &runs.text("killed"), "--by", "layer"]);
    assert!(error_line(&summary).contains("params.parquet/00001.parquet"));
    std::fs::remove_file(&part).unwrap();
    succeed(runs.sweep(&["adapters", "whole"], "killed", &objectives));
    same(&files(&runs.path("killed")), &whole, "killed");
}

#[test]
fn a_sample_is_the_same_for_every_checkpoint_and_written_down() {
    let runs = Runs::new();
    let sample = ["--pairs", "20", "--seed", "3"];
    succeed(runs.sweep(&["adapters", "whole"], "out", &sample));
    let manifest: serde_json::Value =
        serde_json::from_slice(&std::fs::read(runs.path("out/manifest.json")).unwrap()).unwrap();
    let listed: Vec<u64> =
        manifest["data"]["one"]["sample"].as_array().unwrap().iter().map(|row| row["row"].as_u64().unwrap()).collect();
    assert_eq!(listed.len(), 20);
    assert!(listed.is_sorted() && listed != (0..20).collect::<Vec<_>>());
    for (run, step) in [("adapters", 0), ("whole", 4)] {
        assert_eq!(column(&runs.leaf("out", run, step, "one"), "pair"), listed);
    }
    let other = run(runs.sweep(&["adapters", "whole"], "out", &["--pairs", "20", "--seed", "4"]));
    assert_eq!(other.status.code(), Some(2));
    assert!(error_line(&other).contains("another sample of pairs"), "{}", error_line(&other));
}

#[test]
fn a_damaged_checkpoint_is_named_and_left_out() {
    let runs = Runs::new();
    let weights = runs.path("whole/checkpoint-2/model.safetensors");
    let bytes = std::fs::read(&weights).unwrap();
    std::fs::write(&weights, &bytes[..bytes.len() / 2]).unwrap();
    std::fs::remove_file(runs.path("adapters/checkpoint-4/adapter_config.json")).unwrap();
    let output = run(runs.sweep(&["adapters", "whole"], "out", &[]));
    assert_eq!(output.status.code(), Some(1));
    let line = error_line(&output);
    assert!(line.contains("run `adapters`, step 4") && line.contains("run `whole`, step 2"), "{line}");
    let all = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(all.contains("whole/checkpoint-2/model.safetensors"), "{all}");
    for (run, step, there) in [("adapters", 2, true), ("adapters", 4, false), ("whole", 2, false), ("whole", 4, true)] {
        assert_eq!(runs.leaf("out", run, step, "two").join("pairs.parquet").exists(), there, "{run} {step}");
    }
    // mended, it is all there is to do
    std::fs::write(&weights, &bytes).unwrap();
    assert_eq!(run(runs.sweep(&["adapters", "whole"], "out", &[])).status.code(), Some(1));
    assert!(runs.leaf("out", "whole", 2, "two").join("pairs.parquet").exists());
}

#[test]
fn a_second_sweep_at_once_is_refused() {
    let runs = Runs::new();
    std::fs::create_dir(runs.path("out")).unwrap();
    let lock = std::fs::File::create(runs.path("out/.lock")).unwrap();
    lock.lock().unwrap();
    for more in [&[][..], &["--shard", "1/2"]] {
        let output = run(runs.sweep(&["adapters"], "out", more));
        assert_eq!(output.status.code(), Some(1));
        assert!(error_line(&output).contains("another run is writing to this folder"));
    }
    // another shard lets shards in, and nobody else
    lock.unlock().unwrap();
    lock.lock_shared().unwrap();
    succeed(runs.sweep(&["adapters"], "out", &["--shard", "1/2"]));
    assert!(!run(runs.sweep(&["adapters"], "out", &[])).status.success());
}

#[test]
fn what_cannot_be_swept_is_refused_before_anything_is_written() {
    let runs = Runs::new();
    std::fs::create_dir(runs.path("empty")).unwrap();
    let renamed = format!("whole={}", runs.text("adapters"));
    let cases: Vec<(Vec<String>, &str)> = vec![
        (runs.sweep(&["nowhere"], "x", &[]), "no such folder"),
        (runs.sweep(&["empty"], "x", &[]), "no folders of checkpoints (checkpoint-N"),
        (runs.sweep(&["whole", "whole"], "x", &[]), "two are called `whole`"),
        (
            [vec!["sweep".to_owned(), renamed], runs.sweep(&["whole"], "x", &[])[1..].to_vec()].concat(),
            "two are called `whole`",
        ),
        (runs.sweep(&["whole"], "x", &["--shard", "0/3"]), "I from 1 to N"),
        (runs.sweep(&["whole"], "x", &["--shard", "half"]), "expected I/N"),
        (runs.sweep(&["whole"], "x", &["--pairs", "0"]), "leaves no row"),
        (runs.sweep(&["whole"], "x", &["--scope", "no.such.name"]), "matches no parameter"),
        (runs.sweep(&["whole"], "x", &["--objective", "nothing"]), "nothing"),
        (runs.sweep(&["whole"], "x", &["--reference", "base", "--scope", "full"]), "there is no adapter"),
    ];
    for (words, expected) in cases {
        let output = run(words);
        let line = error_line(&output);
        assert!(line.contains(expected), "{line}");
    }
    // adapters whose base is not known
    std::fs::remove_file(runs.path("adapters/manifest.json")).unwrap();
    for step in [0, 2, 4] {
        let at = runs.path(&format!("adapters/checkpoint-{step}/adapter_config.json"));
        let mut config: serde_json::Value = serde_json::from_slice(&std::fs::read(&at).unwrap()).unwrap();
        config["base_model_name_or_path"] = "some/hub-name".into();
        write_json(&at, &config);
    }
    let output = run(runs.sweep(&["adapters"], "x", &[]));
    assert_eq!(output.status.code(), Some(2));
    assert!(error_line(&output).contains("add --model"));
    succeed(runs.sweep(&["adapters"], "y", &["--model", &runs.text("model")]));
}

#[test]
fn a_dry_run_counts_and_writes_nothing() {
    let runs = Runs::new();
    let said = succeed(runs.sweep(&["adapters"], "out", &["--dry-run"]));
    for line in ["adapters: steps 0, 2, 4", "one: 150 pairs", "570 rows", "nothing was computed"] {
        assert!(said.contains(line), "{said}");
    }
    assert!(!runs.path("out").exists());
}

/// f32 on both sides: sums of some thousand products, each rounded to 6e-8, agree far within the 1e-4 that is asked for.
#[test]
fn the_published_scripts_columns_come_out_of_a_sweep() {
    let golden = support::repository("tests/golden/official");
    let text = |name: &str| golden.join(name).display().to_string();
    let out = tempfile::tempdir().unwrap();
    let out = out.path().display().to_string();
    succeed([
        "sweep",
        &text("run"),
        "--model",
        &text("model"),
        "--data",
        &text("rows.jsonl"),
        "--out",
        &out,
        "--device",
        "cpu",
    ]);
    let said = succeed(["summarize", &out, "--compat", "official", "--format", "csv"]);
    let expected = std::fs::read_to_string(golden.join("values.csv")).unwrap();
    assert_eq!(said.lines().next(), expected.lines().next().map(str::trim_end));
    assert_eq!(said.lines().count(), expected.lines().count());
    for (ours, theirs) in said.lines().zip(expected.lines()).skip(1) {
        for (a, b) in ours.split(',').zip(theirs.trim_end().split(',')) {
            let [a, b] = [a, b].map(|x| x.parse::<f64>().unwrap());
            assert!((a - b).abs() <= 1e-4 * b.abs(), "{ours} and {theirs}");
        }
    }
}
