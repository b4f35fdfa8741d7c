//! `bench`, `devices` and `--dry-run` through the command line.
use crate::support;
use crate::support::{analyze, demo, error_line, run, succeed};
use serde_json::Value;

fn small(more: &[&str]) -> Vec<String> {
    let words = [
        "bench",
        "--device",
        "cpu",
        "--shape",
        "demo",
        "--prompt",
        "5",
        "--response",
        "3",
        "--pairs",
        "2",
        "--repeats",
        "2",
    ];
    words.iter().chain(more).map(|word| (*word).to_owned()).collect()
}

#[test]
fn bench_says_what_the_device_does_in_tables_and_json() {
    let cache = tempfile::tempdir().unwrap();
    for scope in ["lora", "full"] {
        let output = support::tanglescope()
            .args(small(&["--scope", scope, "--format", "json"]))
            .env("XDG_CACHE_HOME", cache.path())
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        let positive = |value: &Value| value.as_f64().is_some_and(|x| x > 0.0);
        assert!(positive(&report["product_operations_per_second"]) && positive(&report["copy_bytes_per_second"]));
        let kernels = report["kernels"].as_array().unwrap();
        for name in ["tile", "gram", "attention", "head", "norm", "rotary", "gated unit", "product"] {
            assert!(kernels.iter().any(|k| k["name"].as_str().unwrap().starts_with(name)), "{name}");
        }
        assert!(kernels.iter().all(|k| positive(&k["share_of_roofline"])));
        assert_eq!(report["pass"]["seconds"].as_array().unwrap().len(), 2);
        assert!(positive(&report["pass"]["operations_per_pair"]) && positive(&report["pass"]["efficiency"]));
    }
    // what was measured is kept, and used by a later prediction
    let kept = std::fs::read_to_string(cache.path().join("tanglescope/rates.json")).unwrap();
    assert!(kept.contains("cpu") && kept.contains("operations_per_second"), "{kept}");
    let mut args = analyze(&demo(), &demo().join("pairs.jsonl"), &cache.path().join("out"));
    args.push("--dry-run".to_owned());
    let output = support::tanglescope().args(args).env("XDG_CACHE_HOME", cache.path()).output().unwrap();
    assert!(String::from_utf8_lossy(&output.stdout).contains("at the rates that `bench` measured"));
    let table = succeed(small(&[]));
    assert!(table.contains("roofline") && table.contains("pairs/s"), "{table}");
}

#[test]
fn bench_refuses_what_it_cannot_do() {
    for (more, what) in [
        (&["--pairs", "0"][..], "--pairs 0"),
        (&["--layers", "0"], "--layers 0"),
        (&["--dtype", "bf16"], "--dtype bf16"),
        (&["--memory", "-1"], "--memory"),
    ] {
        let output = run(["bench", "--device", "cpu", "--shape", "demo"].iter().chain(more));
        assert_eq!(output.status.code(), Some(2));
        assert!(error_line(&output).contains(what), "{}", error_line(&output));
    }
}

#[test]
fn a_dry_run_counts_and_writes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let mut args = analyze(&demo(), &demo().join("pairs.jsonl"), &out);
    args.extend(["--scope", "full", "--dry-run"].map(str::to_owned));
    let said = succeed(args);
    for word in ["groups", "rows", "operations", "weights", "activations", "time"] {
        assert!(said.contains(word), "{word}:\n{said}");
    }
    assert!(!out.exists());
    let model = demo().display().to_string();
    let data = demo().join("pairs.jsonl").display().to_string();
    let said = succeed(["verify", "--device", "cpu", "--model", &model, "--data", &data, "--dry-run"]);
    assert!(said.contains("operations") && !said.contains("pass  "), "{said}");
    let said = succeed(["demo", "--device", "cpu", "--dry-run"]);
    assert!(said.contains("nothing was computed"), "{said}");
}

#[test]
fn devices_are_listed_for_programs() {
    let listed: Value = serde_json::from_str(&succeed(["devices", "--format", "json"])).unwrap();
    let cpu = &listed["devices"][0];
    assert_eq!(cpu["device"], "cpu");
    assert!(cpu["memory_bytes"].as_u64().unwrap() > 1 << 20);
    assert!(cpu["dtypes"].as_array().unwrap().iter().any(|dtype| dtype == "f64"));
}
