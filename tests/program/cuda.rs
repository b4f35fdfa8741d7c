//! The engine on CUDA where there is no GPU: tests/cuda-on-cpu takes the place of the driver and of NVRTC, runs the kernels on the processor, and
//! tells of races, values that nobody wrote, accesses out of bounds and divergent barriers, which are failures here.
use crate::support::cuda_on_cpu::{AMPERE, Emulated, HOPPER, faults, libraries, sources};
use crate::support::{
    analyze, error_line, files, ids_row, llama, numbers, repository, succeed, tanglescope, write_model,
};
use crate::vulkan::agrees_with_the_cpu;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Kernels with known answers, and kernels with faults that have to be told of.
#[test]
fn the_processor_as_a_device_tells_of_faults() {
    let Some(libraries) = libraries() else { return };
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("selftest");
    let mut build = Command::new("g++");
    build.args(["-std=c++17", "-O1", "-o"]).arg(&program).arg(sources().join("selftest.cpp"));
    assert!(build.arg("-L").arg(libraries).arg("-lcuda").status().unwrap().success());
    let said = HOPPER.found_by(&mut Command::new(program), libraries).output().unwrap();
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    assert_eq!(said.lines().last(), Some("0 wrong"), "{said}");
}

/// Runs a command on an emulated device, which has to find no fault of ours.
fn run_on(of: Emulated, args: &[String]) -> Output {
    run_with(of, args, &[])
}

/// The same with more of the environment.
fn run_with(of: Emulated, args: &[String], environment: &[(&str, &str)]) -> Output {
    let output =
        of.found_by(tanglescope().args(args).envs(environment.iter().copied()), libraries().unwrap()).output().unwrap();
    assert_eq!(faults(&String::from_utf8_lossy(&output.stderr)), Vec::<&str>::new());
    output
}

fn agrees(of: Emulated, model: &Path, scope: &str, dtype: &str) {
    // of f32 as on Vulkan. 16 bits round what each of some ten maps of a layer stores, forward and back, to 2⁻¹¹ and 2⁻⁸ of its size: some 80 roundings one
    // after the other in models of two to four layers, of which independent ones come to √80 (Higham & Mary, SIAM J. Sci. Comput. 41, 2019), in
    // both factors of a product: 2·√80·2⁻¹¹ = 0.9e-2 and 2·√80·2⁻⁸ = 0.7e-1
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
    for dtype in ["f32", "f16", "bf16"] {
        agrees(Emulated { cublas: true, ..HOPPER }, &own("llama3_tied"), "full", dtype);
    }
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
    agrees(HOPPER, &shared.join("olmoe"), "lora", "f16");
    // experts' products together
    agrees(Emulated { cublas: true, ..HOPPER }, &shared.join("olmoe"), "full", "f32");
    // short keys are made long: f32 is off by 3e-5, 500 of its roundings, on the CPU and here, and 500 · 2⁻¹¹ is 0.25
    let of_delta = ("lora", "f16", 0.25);
    agrees_with_the_cpu(&shared.join("qwen3_next"), of_delta, "cuda", &|args| run_on(AMPERE, args));
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

/// Products of f32 round their factors where that is asked for, and nowhere else; manifests say it.
#[test]
fn tf32_is_asked_for_and_recorded() {
    if libraries().is_none() {
        return;
    }
    let model = repository("tests/golden/llama3_tied");
    let with_cublas = Emulated { cublas: true, ..HOPPER };
    // factors of products have f16's eleven bits, and nothing else is rounded to them: within what f16 is held to
    agrees_with_the_cpu(&model, ("full", "f32", 1e-2), "cuda", &|args| {
        run_on(with_cublas, &[args, &["--tf32".to_owned()]].concat())
    });
    let folder = tempfile::tempdir().unwrap();
    let (model, data) = (folder.path().join("model"), folder.path().join("data.jsonl"));
    write_model(&model, &llama(5, false));
    std::fs::write(&data, ids_row(&[1, 2, 3], &[4, 5, 6], &[4, 7])).unwrap();
    let args = |out: &str, device: &str, more: &[&str]| {
        let mut args = analyze(&model, &data, &folder.path().join(out));
        device.clone_into(&mut args[2]);
        args.extend(["--scope", "full"].iter().chain(more).map(|word| (*word).to_owned()));
        args
    };
    let identity = |out: &str| -> (String, String) {
        let manifest = std::fs::read(folder.path().join(out).join("manifest.json")).unwrap();
        let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
        let text = |of: &serde_json::Value| of.as_str().unwrap().to_owned();
        (text(&manifest["identity"]["dtype"]), text(&manifest["devices"][0]))
    };
    for (out, of, more) in
        [("whole", with_cublas, &[][..]), ("cubek", HOPPER, &[]), ("rounded", with_cublas, &["--tf32"])]
    {
        let output = run_on(of, &args(out, "cuda", more));
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let [whole, cubek, rounded] = ["whole", "cubek", "rounded"].map(identity);
    assert_eq!([&whole.0, &cubek.0, &rounded.0], ["f32", "f32", "tf32"]);
    assert!(whole.1.ends_with("products by cuBLAS") && cubek.1.ends_with("products by CubeCL"), "{whole:?} {cubek:?}");
    let ww = |out: &str| numbers(&folder.path().join(out), "pairs.parquet", "ww")[0].unwrap();
    let off = |out: &str| (ww(out) / ww("cubek") - 1.0).abs();
    // f32 has roundings of 6e-8, and tf32 of 5e-4
    assert!(off("whole") < 1e-5 && off("rounded") > 1e-5, "{} {}", off("whole"), off("rounded"));
    for (of, device, more, why) in [
        (HOPPER, "cuda", &["--tf32"][..], "cuBLAS"),
        (Emulated { capability: "75", ..with_cublas }, "cuda", &["--tf32"], "compute capability 8.0"),
        (with_cublas, "cpu", &["--tf32"], "CUDA devices"),
        (with_cublas, "cuda", &["--tf32", "--dtype", "bf16"], "factors of f32"),
    ] {
        let output = run_on(of, &args("refused", device, more));
        assert_eq!(output.status.code(), Some(2), "{why}");
        let said = error_line(&output);
        assert!(said.contains("--tf32") && said.contains(why), "{said}");
    }
    // its tolerances are those of rounded factors, and it is not for training
    let words = |of: &str| [of, "--device", "cuda", "--tf32", "--scope", "full", "--model"].map(str::to_owned);
    let of = |command: &str| {
        [&words(command)[..], &[model.display().to_string(), "--data".to_owned(), data.display().to_string()]].concat()
    };
    let output = run_on(with_cublas, &of("verify"));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    let train = [of("train"), ["--objective", "dpo", "--out", "run"].map(str::to_owned).to_vec()].concat();
    let said = error_line(&run_on(with_cublas, &train));
    assert!(said.contains("--tf32: steps are taken with products in f32"), "{said}");
    // records of the one are not gone on with as the other
    let output = run_on(with_cublas, &args("whole", "cuda", &["--tf32"]));
    assert!(!output.status.success() && error_line(&output).contains("dtype"), "{}", error_line(&output));
}

/// Pairs in several parts, a run of two whole models, and where results go.
struct ThreeDevices {
    folder: tempfile::TempDir,
}

impl ThreeDevices {
    fn new() -> Self {
        let of = Self { folder: tempfile::tempdir().unwrap() };
        for model in ["model", "run/checkpoint-1", "run/checkpoint-2"] {
            std::fs::create_dir_all(of.path(model)).unwrap();
            write_model(&of.path(model), &llama(5, false));
        }
        let row = |i: u32| {
            let ids = |from: u32, n: u32| (from..from + n).map(|t| t % 40).collect::<Vec<u32>>();
            ids_row(&ids(i, 1 + i % 3), &ids(2 * i, 1 + i % 3), &ids(3 * i + 1, 1 + i % 2))
        };
        for (name, rows) in [("many.jsonl", 135), ("few.jsonl", 20)] {
            std::fs::write(of.path(name), (0..rows).map(row).collect::<Vec<_>>().join("\n")).unwrap();
        }
        of
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Runs a command's words on a device by name, with more of the environment.
    fn run(&self, words: &[&str], device: &str, out: &str, environment: &[(&str, &str)]) -> Output {
        let mut args: Vec<String> = words
            .iter()
            .map(|word| match word.strip_prefix('@') {
                Some(name) => self.path(name).display().to_string(),
                None => (*word).to_owned(),
            })
            .collect();
        let out = self.path(out).display().to_string();
        args.extend(["--device", device, "--scope", "full", "--out", &out].map(str::to_owned));
        // of faults the other tests have looked
        let environment: Vec<_> = environment.iter().copied().chain([("CUDA_ON_CPU_CHECK", "0")]).collect();
        run_with(Emulated { devices: "3", cublas: true, ..HOPPER }, &args, &environment)
    }
}

/// Three devices have the bytes of one, also where one of them fails; where each does, that is the error.
#[test]
fn devices_share_the_work() {
    if libraries().is_none() {
        return;
    }
    let of = ThreeDevices::new();
    let commands: [(&str, &[&str]); 4] = [
        // in tf32, which the thread of each device has to know of
        ("analyze", &["analyze", "--model", "@model", "--data", "@many.jsonl", "--objective", "cpo", "--tf32"]),
        ("tokens", &["tokens", "--model", "@model", "--data", "@few.jsonl"]),
        ("interference", &["interference", "--model", "@model", "--data", "@many.jsonl", "--objective", "cpo"]),
        ("sweep", &["sweep", "@run", "--data", "@many.jsonl", "--objective", "cpo"]),
    ];
    for (name, words) in commands {
        let out = |which: &str| format!("{name}-{which}");
        let succeeded = |output: Output| {
            let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.success(), "{name}: {stderr}");
            stderr
        };
        succeeded(of.run(words, "cuda:1", &out("one"), &[]));
        let want = files(&of.path(&out("one")));
        assert!(want.len() > 3);
        let said = succeeded(of.run(words, "cuda:all", &out("three"), &[]));
        assert_eq!(said.matches("device: cuda:").count(), 1, "{name}: {said}");
        assert!(["cuda:0 (", "cuda:1 (", "cuda:2 ("].iter().all(|device| said.contains(device)), "{name}: {said}");
        assert!(files(&of.path(&out("three"))) == want, "{name}: three devices");
        let said = succeeded(of.run(words, "cuda:2,0,1", &out("two"), &[("CUDA_ON_CPU_FAIL", "0:60")]));
        let told = said.lines().filter(|line| line.starts_with("--device cuda:0 ("));
        let told: Vec<&str> = told.filter(|line| line.ends_with("; the other devices do its part")).collect();
        assert_eq!(told.len(), 1, "{name}: {said}");
        assert!(files(&of.path(&out("two"))) == want, "{name}: one device failed");
        let output = of.run(words, "cuda:all", &out("none"), &[("CUDA_ON_CPU_FAIL", "-1:60")]);
        assert_eq!(output.status.code(), Some(1), "{name}");
        assert!(error_line(&output).contains("CUDA_ERROR_LAUNCH_FAILED"), "{name}: {}", error_line(&output));
        // what they did is gone on with
        succeeded(of.run(words, "cuda:0,1", &out("none"), &[]));
        assert!(files(&of.path(&out("none"))) == want, "{name}: gone on with");
    }
}

#[test]
fn devices_are_chosen_by_name() {
    if libraries().is_none() {
        return;
    }
    let of = ThreeDevices::new();
    let words = ["analyze", "--model", "@model", "--data", "@few.jsonl"];
    let refused = |device: &str, code: i32, words: &[&str]| {
        let output = of.run(words, device, "refused", &[]);
        assert_eq!(output.status.code(), Some(code));
        error_line(&output)
    };
    assert!(refused("cuda:0,3", 1, &words).contains("there are 3 such devices"));
    assert!(refused("cuda:0,0", 2, &words).contains("0 is named twice"));
    assert!(refused("cuda:0,", 2, &words).contains("`` is no device number"));
    assert!(refused("cpu:all", 2, &words).contains("expected cpu, cuda, cuda:N, cuda:N,M"));
    let train = ["train", "--model", "@model", "--data", "@few.jsonl", "--objective", "dpo"];
    assert!(refused("cuda:all", 2, &train).contains("this runs on one device"));
}
