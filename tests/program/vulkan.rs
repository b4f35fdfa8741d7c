//! The engine on Vulkan, on a driver in software.
//!
//! Against the CPU in f64, relative to √(ww·ll): 1e-4, about 10 × ε₃₂ × the depth of the sums, as for the goldens.
use crate::support;
use crate::support::lavapipe::lavapipe;
use crate::support::{analyze, error_line, repository, succeed, tanglescope};
use serde_json::Value;
use std::path::Path;
use std::process::Output;

fn numbers(out: &Path, column: &str) -> Vec<f64> {
    support::numbers(out, "pairs.parquet", column).into_iter().map(Option::unwrap).collect()
}

/// Two pairs of a golden model on a device against the CPU in f64, within a tolerance relative to √(ww·ll); `run` runs the command there.
pub fn agrees_with_the_cpu(
    model: &Path,
    (scope, dtype, tolerance): (&str, &str, f64),
    device: &str,
    run: &dyn Fn(&[String]) -> Output,
) {
    let folder = tempfile::tempdir().unwrap();
    let golden: Value = serde_json::from_slice(&std::fs::read(model.join("golden.json")).unwrap()).unwrap();
    let rows: Vec<String> = golden["pairs"].as_array().unwrap().iter().take(2).map(Value::to_string).collect();
    let data = folder.path().join("pairs.jsonl");
    std::fs::write(&data, rows.join("\n")).unwrap();
    let (cpu, there) = (folder.path().join("cpu"), folder.path().join("there"));
    let with = |out: &Path, device: &str, dtype: &str| {
        let mut args = analyze(model, &data, out);
        device.clone_into(&mut args[2]);
        args.extend(["--scope", scope, "--dtype", dtype].map(str::to_owned));
        if scope == "lora" {
            args.extend(["--adapter".to_owned(), model.join("adapter").display().to_string()]);
        }
        args
    };
    succeed(with(&cpu, "cpu", "f64"));
    let output = run(&with(&there, device, dtype));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && stderr.contains(&format!("device: {device}:0")), "{stderr}");
    let (ww, ll) = (numbers(&cpu, "ww"), numbers(&cpu, "ll"));
    for column in ["ww", "wl", "ll", "logp_chosen", "logp_rejected"] {
        let both = numbers(&there, column).into_iter().zip(numbers(&cpu, column));
        for (i, (got, want)) in both.enumerate() {
            let size = if column.starts_with("logp") { want.abs() } else { (ww[i] * ll[i]).sqrt() };
            let name = model.display();
            assert!(
                (got - want).abs() <= tolerance * size,
                "{name}, {scope} in {dtype} on {device}, pair {i}, {column}: {got} instead of {want}"
            );
        }
    }
}

#[test]
fn vulkan_agrees_with_the_cpu() {
    let Some(driver) = lavapipe() else { return };
    let run = |args: &[String]| tanglescope().args(args).env("VK_DRIVER_FILES", &driver).output().unwrap();
    for (golden, scope) in [("llama3_tied", "lora"), ("llama3_tied", "full"), ("gpt2", "full")] {
        agrees_with_the_cpu(&repository("tests/golden").join(golden), (scope, "f32", 1e-4), "vulkan", &run);
    }
}

#[test]
fn what_vulkan_cannot_do_is_said() {
    let Some(driver) = lavapipe() else { return };
    let folder = tempfile::tempdir().unwrap();
    let mut args = analyze(&support::demo(), &support::demo().join("pairs.jsonl"), folder.path());
    args[2] = "vulkan".to_owned();
    args.extend(["--dtype", "f64"].map(str::to_owned));
    let output = tanglescope().args(&args).env("VK_DRIVER_FILES", &driver).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(error_line(&output).contains("--dtype f64"), "{}", error_line(&output));
    let output = tanglescope().args(&args).env("VK_DRIVER_FILES", "/nowhere.json").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(error_line(&output).contains("--device vulkan:0: no Vulkan device"), "{}", error_line(&output));
}

/// A driver in software is slower than the CPU path and is never chosen unasked.
#[test]
fn a_software_device_is_not_the_default() {
    let Some(driver) = lavapipe() else { return };
    let output = tanglescope().arg("devices").env("VK_DRIVER_FILES", &driver).output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.contains("a software driver on the CPU"), "{said}");
    assert!(!said.contains("used without --device: vulkan"), "{said}");
}
