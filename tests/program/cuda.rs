//! The engine on CUDA where there is no GPU: tests/cuda-on-cpu takes the place of the driver and of NVRTC, runs the kernels on the processor, and
//! tells of races, values that nobody wrote, accesses out of bounds and divergent barriers, which are failures here.
use crate::support::{analyze, ids_row, llama, numbers, repository, succeed, tanglescope, write_model};
use crate::vulkan::agrees_with_the_cpu;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

/// Kernels with known answers, and kernels with faults that have to be told of.
#[test]
fn the_processor_as_a_device_tells_of_faults() {
    let Some(libraries) = libraries() else { return };
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("selftest");
    let mut build = Command::new("g++");
    build.args(["-std=c++17", "-O1", "-o"]).arg(&program).arg(repository("tests/cuda-on-cpu/selftest.cpp"));
    assert!(build.arg("-L").arg(libraries).arg("-lcuda").status().unwrap().success());
    let said = Command::new(program)
        .env("CUDA_PATH", libraries)
        .env("LD_LIBRARY_PATH", libraries)
        .env("CUDA_ON_CPU_CACHE", libraries.join("kernels"))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    assert_eq!(said.lines().last(), Some("0 wrong"), "{said}");
}

/// What a device that is not there can do, and in which order its threads get their turn.
#[derive(Clone, Copy)]
struct Emulated {
    /// Compute capability, as 80 or 90.
    capability: &'static str,
    order: &'static str,
}

const HOPPER: Emulated = Emulated { capability: "90", order: "forward" };
const AMPERE: Emulated = Emulated { capability: "80", order: "reverse" };

/// The folder of both libraries and of compiled kernels. Without g++ these tests are left out, but not on CI.
fn libraries() -> Option<&'static Path> {
    static BUILT: OnceLock<Option<PathBuf>> = OnceLock::new();
    let build = || {
        let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join("cuda-on-cpu");
        if Command::new("g++").arg("--version").output().is_err() {
            assert!(std::env::var_os("CI").is_none(), "g++ is not installed");
            eprintln!("left out: g++ is not installed");
            return None;
        }
        let built = Command::new("sh").arg(repository("tests/cuda-on-cpu/build.sh")).arg(&out).output().unwrap();
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
        Some(out)
    };
    BUILT.get_or_init(build).as_deref()
}

/// Runs a command on an emulated device, which has to find no fault of ours.
fn run_on(of: Emulated, args: &[String]) -> Output {
    let libraries = libraries().unwrap();
    let output = tanglescope()
        .args(args)
        .env("CUDA_PATH", libraries)
        .env("LD_LIBRARY_PATH", libraries)
        .env("CUDA_ON_CPU_CACHE", libraries.join("kernels"))
        .env("CUDA_ON_CPU_ARCH", of.capability)
        .env("CUDA_ON_CPU_ORDER", of.order)
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    let faults = stderr.lines().filter(|line| line.starts_with("CUDA on the CPU: "));
    let ours: Vec<&str> = faults
        // cubek's products of 16 bits read a fragment lane by lane after its store, without a __syncwarp between
        .filter(|line| !(line.contains(": matmul_entry_") && line.contains(": race by the letter: ")))
        // what CubeCL guards is no access
        .filter(|line| !(line.contains(": copy_kernel_") && line.contains(": guarded ")))
        .collect();
    assert_eq!(ours, Vec::<&str>::new());
    output
}

fn agrees(of: Emulated, model: &Path, scope: &str, dtype: &str) {
    // of f32 as on Vulkan; 16 bits round every layer's activations to 2⁻¹¹ and 2⁻⁸, some tens of times one after the other
    let tolerance = match dtype {
        "f32" => 1e-4,
        "f16" => 1e-2,
        _ => 1e-1,
    };
    agrees_with_the_cpu(model, (scope, dtype, tolerance), "cuda", &|args| run_on(of, args));
}

#[test]
fn cuda_agrees_with_the_cpu() {
    if libraries().is_none() {
        return;
    }
    let own = |name: &str| repository("tests/golden").join(name);
    agrees(HOPPER, &own("llama3_tied"), "lora", "f32");
    agrees(AMPERE, &own("gpt2"), "full", "f32");
    agrees(HOPPER, &own("llama3_tied"), "full", "bf16");
    agrees(AMPERE, &own("llama3_tied"), "lora", "f16");
}

/// Windows, soft caps, experts, a delta rule.
#[test]
fn cuda_agrees_with_the_cpu_on_other_architectures() {
    let shared = repository("../shared/golden");
    if libraries().is_none() || !shared.is_dir() {
        return;
    }
    for (name, scope) in [("gemma2", "full"), ("olmoe", "lora"), ("qwen3_next", "lora")] {
        agrees(HOPPER, &shared.join(name), scope, "f32");
    }
}

/// A group of five responses and single tokens, on the CPU and on CUDA.
#[test]
fn groups_and_tokens_on_cuda() {
    if libraries().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model");
    write_model(&model, &llama(5, false));
    let group = json!({"prompt_ids": [1, 2], "responses_ids": [[3, 4], [5], [6, 7, 8], [3, 9], [10, 4]], "scores": [3, 1, 2, 5, 4]});
    let data = folder.path().join("group.jsonl");
    std::fs::write(&data, group.to_string()).unwrap();
    let pair = folder.path().join("pair.jsonl");
    std::fs::write(&pair, ids_row(&[1, 2, 3], &[4, 5, 6], &[4, 7])).unwrap();
    for (command, data, table, column) in
        [("analyze", &data, "groups.parquet", "inner"), ("tokens", &pair, "tokens.parquet", "inner")]
    {
        let out = |device: &str| folder.path().join(format!("{command}-{device}"));
        let with = |device: &str, dtype: &str| {
            let mut args = analyze(&model, data, &out(device));
            command.clone_into(&mut args[0]);
            device.clone_into(&mut args[2]);
            args.extend(["--scope", "full", "--dtype", dtype].map(str::to_owned));
            args
        };
        succeed(with("cpu", "f64"));
        let output = run_on(HOPPER, &with("cuda", "f32"));
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let [want, got] = ["cpu", "cuda"].map(|device| -> Vec<f64> {
            numbers(&out(device), table, column).into_iter().map(Option::unwrap).collect()
        });
        let size = want.iter().fold(0.0f64, |size, x| size.max(x.abs()));
        assert_eq!(got.len(), want.len());
        for (got, want) in got.iter().zip(&want) {
            assert!((got - want).abs() <= 1e-4 * size, "{command}: {got} instead of {want}");
        }
    }
}

/// In whatever order threads and blocks get their turn, and wherever blocks of the model are, bits are the same.
#[test]
fn order_and_streaming_change_no_bit_on_cuda() {
    if libraries().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (model, data) = (folder.path().join("model"), folder.path().join("data.jsonl"));
    write_model(&model, &llama(5, false));
    std::fs::write(&data, ids_row(&[1, 2, 3], &[4, 5, 6], &[4, 7])).unwrap();
    let bits = |name: &str, of: Emulated, more: &[&str]| -> Vec<Vec<u64>> {
        let out = folder.path().join(name);
        let mut args = analyze(&model, &data, &out);
        "cuda".clone_into(&mut args[2]);
        args.extend(["--scope", "full", "--dtype", "f32"].iter().chain(more).map(|word| (*word).to_owned()));
        let output = run_on(of, &args);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let of = [
            ("pairs.parquet", "logp_chosen"),
            ("params.parquet", "ww"),
            ("params.parquet", "wl"),
            ("params.parquet", "ll"),
        ];
        of.map(|(table, column)| numbers(&out, table, column).into_iter().flatten().map(f64::to_bits).collect()).into()
    };
    let want = bits("forward", HOPPER, &[]);
    assert!(bits("reverse", Emulated { order: "reverse", ..HOPPER }, &[]) == want);
    assert!(bits("random", Emulated { order: "random:3", ..HOPPER }, &[]) == want);
    assert!(bits("streamed", HOPPER, &["--memory", "0.00001"]) == want);
}
