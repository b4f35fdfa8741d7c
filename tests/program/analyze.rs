//! `analyze`, `verify` and `devices` as a user runs them.
use crate::support;
use crate::support::{
    analyze, demo, error_line, ids_row, llama, numbers, repository, run, succeed, tanglescope, write_model,
};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tanglescope_records::Table;

/// Every file of a table, by name.
fn parts(out: &Path, table: &str) -> BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(out.join(table)).unwrap();
    let read = |path: PathBuf| (path.file_name().unwrap().to_string_lossy().into_owned(), std::fs::read(path).unwrap());
    entries.map(|entry| read(entry.unwrap().path())).collect()
}

fn counts(out: &Path, table: &str, column: &str) -> Vec<u32> {
    let frame = Table::create(out, table).unwrap().read(0).unwrap();
    frame.column(column).unwrap().u32().unwrap().iter().flatten().collect()
}

fn texts(out: &Path, table: &str, column: &str) -> Vec<Option<String>> {
    let frame = Table::create(out, table).unwrap().read(0).unwrap();
    frame.column(column).unwrap().str().unwrap().iter().map(|x| x.map(str::to_owned)).collect()
}

/// A model folder and a data file with the given rows.
fn inputs(folder: &Path, rows: &[String]) -> (PathBuf, PathBuf) {
    let (model, data) = (folder.join("model"), folder.join("pairs.jsonl"));
    write_model(&model, &llama(1, true));
    std::fs::write(&data, rows.join("\n")).unwrap();
    (model, data)
}

fn with(mut args: Vec<String>, more: &[&str]) -> Vec<String> {
    args.extend(more.iter().map(|&arg| arg.to_owned()));
    args
}

#[test]
fn the_tables_have_the_documented_columns() {
    let folder = tempfile::tempdir().unwrap();
    let row = r#"{"id": "first", "prompt_ids": [1, 2], "chosen_ids": [3, 4], "rejected_ids": [3, 5, 6]}"#;
    let (model, data) = inputs(folder.path(), &[row.to_owned()]);
    let out = folder.path().join("out");
    let summary = succeed(with(analyze(&model, &data, &out), &["--scope", "full", "--dtype", "f64"]));
    assert!(summary.contains("pairs            1\n"), "{summary}");
    for line in ["cosine ", "DPO regimes ", "highest layers "] {
        assert!(summary.contains(line), "{summary}");
    }
    let columns = |table: &str| -> Vec<String> {
        let frame = Table::create(&out, table).unwrap().read(0).unwrap();
        frame.get_column_names().iter().map(std::string::ToString::to_string).collect()
    };
    let pairs = [
        "pair",
        "id",
        "prompt_tokens",
        "chosen_tokens",
        "rejected_tokens",
        "trunk_tokens",
        "truncated_tokens",
        "chosen_truncated_tokens",
        "rejected_truncated_tokens",
        "edit_distance",
        "logp_chosen",
        "logp_rejected",
        "ww",
        "wl",
        "ll",
        "cosine",
        "norm_ratio",
        "band_low",
        "band_high",
        "regime_dpo",
        "common_mode",
        "differential_mode",
        "last_layer_share",
        "hidden_ww",
        "hidden_wl",
        "hidden_ll",
        "ches",
        "ches_by_length",
        "entropy_chosen",
        "entropy_rejected",
        "renyi_chosen",
        "renyi_rejected",
        "argmax_mass_chosen",
        "argmax_mass_rejected",
        "rank_chosen",
        "rank_rejected",
        "accuracy_chosen",
        "accuracy_rejected",
        "margin_by_length",
        "head_differential",
    ];
    assert_eq!(columns("pairs.parquet"), pairs);
    assert_eq!(columns("params.parquet"), ["pair", "param", "layer", "module", "ww", "wl", "ll"]);
    let lengths = ["prompt_tokens", "chosen_tokens", "rejected_tokens", "trunk_tokens", "truncated_tokens"];
    assert_eq!(lengths.map(|name| counts(&out, "pairs.parquet", name)[0]), [2, 2, 3, 3, 0]);
    assert_eq!(texts(&out, "pairs.parquet", "id"), [Some("first".to_owned())]);
    // the parts of a pair sum to the whole
    let sum: f64 = numbers(&out, "params.parquet", "wl").into_iter().flatten().sum();
    let wl = numbers(&out, "pairs.parquet", "wl")[0].unwrap();
    assert!((sum - wl).abs() <= 1e-12 * wl.abs(), "{sum} {wl}");
    let names = texts(&out, "params.parquet", "param");
    let at = names.iter().position(|n| n.as_deref() == Some("model.layers.1.mlp.up_proj.weight")).unwrap();
    assert_eq!(texts(&out, "params.parquet", "module")[at].as_deref(), Some("mlp.up_proj"));

    let manifest: serde_json::Value =
        serde_json::from_slice(&std::fs::read(out.join("manifest.json")).unwrap()).unwrap();
    for key in ["tanglescope", "command", "model", "data", "pairs", "devices", "identity", "plan"] {
        assert!(!manifest[key].is_null(), "{key} is missing: {manifest}");
    }
}

/// A model of our goldens with two experts a row in three blocks, and the pairs of its golden.
fn with_experts(folder: &Path) -> (PathBuf, PathBuf) {
    let model = repository("tests/golden/architectures/qwen3_5_moe_text");
    let golden: serde_json::Value = serde_json::from_slice(&std::fs::read(model.join("golden.json")).unwrap()).unwrap();
    let ids =
        |pair: &serde_json::Value, name: &str| -> Vec<u32> { serde_json::from_value(pair[name].clone()).unwrap() };
    let row = |pair: &serde_json::Value| {
        let [prompt, chosen, rejected] = ["prompt_ids", "chosen_ids", "rejected_ids"].map(|name| ids(pair, name));
        ids_row(&prompt, &chosen, &rejected)
    };
    let data = folder.join("pairs.jsonl");
    std::fs::write(&data, golden["pairs"].as_array().unwrap().iter().map(row).collect::<Vec<_>>().join("\n")).unwrap();
    (model, data)
}

#[test]
fn experts_are_counted_where_responses_are_predicted() {
    let folder = tempfile::tempdir().unwrap();
    let (model, data) = with_experts(folder.path());
    let out = folder.path().join("out");
    let summary = succeed(with(analyze(&model, &data, &out), &["--scope", "full", "--dtype", "f64"]));
    assert!(summary.contains("routing overlap  0."), "{summary}");
    assert!(!summary.contains("router ties"), "random weights in f64 have none: {summary}");
    let frame = Table::at(&out, "routing.parquet").read(0).unwrap();
    let names = ["pair", "layer", "expert", "rows_chosen", "rows_rejected", "ww", "wl", "ll"];
    assert_eq!(frame.get_column_names().iter().map(|name| name.as_str()).collect::<Vec<_>>(), names);
    // every token of a response goes to two experts of each of three blocks
    for of in ["chosen", "rejected"] {
        let rows: u32 = counts(&out, "routing.parquet", &format!("rows_{of}")).iter().sum();
        let tokens: u32 = counts(&out, "pairs.parquet", &format!("{of}_tokens")).iter().sum();
        assert_eq!(rows, tokens * 2 * 3, "{of}");
    }
    assert_eq!(counts(&out, "pairs.parquet", "router_ties"), [0, 0, 0]);
    assert!(numbers(&out, "pairs.parquet", "routing_overlap").iter().all(|x| x.is_some_and(|x| x > 0.0 && x <= 1.0)));
    // the experts' parts are those of the tensors that hold all of them
    let sum = |values: Vec<Option<f64>>| -> f64 { values.into_iter().flatten().sum() };
    let of_experts = texts(&out, "params.parquet", "param").into_iter().zip(numbers(&out, "params.parquet", "wl"));
    let of_experts = of_experts.filter(|(name, _)| name.as_ref().unwrap().contains(".mlp.experts.")).map(|(_, wl)| wl);
    let (of_experts, of_each) = (sum(of_experts.collect()), sum(numbers(&out, "routing.parquet", "wl")));
    assert!((of_experts - of_each).abs() <= 1e-12 * of_experts.abs(), "{of_experts} {of_each}");
    let table = succeed(["summarize", &out.display().to_string(), "--by", "expert", "--format", "csv"]);
    assert!(table.lines().next().unwrap().ends_with("share_chosen,share_rejected,ww,wl,ll,wl_share"), "{table}");
    assert_eq!(table.lines().count(), 1 + 3 * 5, "five experts a block");
    // and in the page
    let page = folder.path().join("report.html");
    succeed(["report", &out.display().to_string(), "--out", &page.display().to_string()]);
    assert!(std::fs::read_to_string(&page).unwrap().contains(r#""experts":{"leaf":[0,"#));
}

/// Central differences through routers, experts, the gated delta rule and its convolutions, at rows of 1 to 20 tokens.
#[test]
fn verify_passes_through_routers_and_states() {
    let folder = tempfile::tempdir().unwrap();
    let (model, data) = with_experts(folder.path());
    let words = ["verify", "--scope", "full", "--device", "cpu", "--pairs", "3", "--model"].map(str::to_owned);
    let paths = [model.display().to_string(), "--data".to_owned(), data.display().to_string()];
    let said = succeed(words.into_iter().chain(paths));
    assert!(said.contains("57 of 57 checks passed"), "{said}");
}

/// At a tie of all experts the first two are chosen, and the gradient is that of this choice: a step away another is, so that no
/// difference agrees with it. Such rows are counted.
#[test]
fn at_a_tie_the_gradient_is_that_of_the_first_choice_and_the_rows_are_counted() {
    let folder = tempfile::tempdir().unwrap();
    let (from, data) = with_experts(folder.path());
    let model = folder.path().join("tied");
    support::copy_folder(&from, &model);
    let file = model.join("model.safetensors");
    let bytes = std::fs::read(&file).unwrap();
    let stored = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let mut tensors = support::Tensors::new();
    for (name, view) in stored.tensors() {
        let values = view.data().chunks_exact(4).map(|x| f32::from_le_bytes(x.try_into().unwrap())).collect();
        tensors.insert(name, support::Tensor { shape: view.shape().to_vec(), values });
    }
    let router = tensors.get_mut("model.layers.0.mlp.gate.weight").unwrap();
    let width = router.shape[1];
    let first = router.values[..width].to_vec();
    router.values.chunks_exact_mut(width).for_each(|row| row.copy_from_slice(&first));
    support::write_tensors(&file, &tensors, safetensors::Dtype::F32);
    let out = folder.path().join("out");
    let summary = succeed(with(analyze(&model, &data, &out), &["--scope", "full", "--dtype", "f64"]));
    assert!(summary.contains("rows of 3 pairs have experts within rounding of others"), "{summary}");
    let of_first = |name: &str| -> Vec<u32> {
        let layers = counts(&out, "routing.parquet", "layer");
        let of = counts(&out, "routing.parquet", name);
        of.into_iter().zip(layers).filter(|(_, layer)| *layer == 0).map(|(value, _)| value).collect()
    };
    let chosen = of_first("rows_chosen").into_iter().zip(of_first("expert"));
    assert!(chosen.filter(|(rows, _)| *rows > 0).all(|(_, expert)| expert < 2), "the first two");
    let words = ["verify", "--scope", "full", "--device", "cpu", "--model"].map(str::to_owned);
    let paths = [model.display().to_string(), "--data".to_owned(), data.display().to_string()];
    let output = run(words.into_iter().chain(paths));
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stdout).contains("FAIL"));
}

#[test]
fn a_model_without_experts_has_no_rows_by_expert() {
    let folder = tempfile::tempdir().unwrap();
    let (model, data) = inputs(folder.path(), &[ids_row(&[1, 2], &[3, 4], &[3, 5])]);
    let out = folder.path().join("out");
    succeed(analyze(&model, &data, &out));
    let output = run(["summarize", &out.display().to_string(), "--by", "expert"]);
    assert!(error_line(&output).contains("nothing to summarize"), "{}", error_line(&output));
    assert!(String::from_utf8_lossy(&output.stderr).contains("has no routing.parquet"));
}

/// Rows enough for several parts, of lengths that make different batches.
fn many_rows() -> Vec<String> {
    let row = |i: u32| {
        let ids = |from: u32, n: u32| (from..from + n).map(|t| t % 40).collect::<Vec<u32>>();
        ids_row(&ids(i, 1 + i % 9), &ids(2 * i, 1 + i % 5), &ids(3 * i + 1, 1 + i % 7))
    };
    (0..330).map(row).collect()
}

#[test]
fn a_killed_run_goes_on_and_ends_with_the_same_bits() {
    let folder = tempfile::tempdir().unwrap();
    let (model, data) = inputs(folder.path(), &many_rows());
    let (whole, killed) = (folder.path().join("whole"), folder.path().join("killed"));
    succeed(analyze(&model, &data, &whole));

    let mut process =
        tanglescope().args(analyze(&model, &data, &killed)).stderr(std::process::Stdio::null()).spawn().unwrap();
    let start = Instant::now();
    while !killed.join("pairs.parquet/00001.parquet").exists() && process.try_wait().unwrap().is_none() {
        assert!(start.elapsed() < Duration::from_mins(2), "no part was written");
    }
    process.kill().unwrap();
    process.wait().unwrap();
    // what a kill in the middle of a write leaves, and a part of one table without that of the other
    std::fs::write(killed.join("params.parquet/.unfinished-Ab3dEf"), b"PAR1").unwrap();
    let last = killed.join("pairs.parquet/00005.parquet");
    let _ = std::fs::remove_file(&last);

    // another memory budget changes no batch of a run that has begun
    let output = run(with(analyze(&model, &data, &killed), &["--memory", "0.00001"]));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && stderr.contains("of 330 pairs are there already"), "{stderr}");
    for table in ["pairs.parquet", "params.parquet"] {
        let (a, b) = (parts(&whole, table), parts(&killed, table));
        assert_eq!(a.len(), 6);
        assert_eq!(
            a.keys().collect::<Vec<_>>(),
            b.keys().filter(|name| name.ends_with(".parquet")).collect::<Vec<_>>()
        );
        assert!(a.iter().all(|(name, bytes)| b[name] == *bytes), "{table} differs");
        assert!(b.keys().all(|name| name.ends_with(".parquet")), "{:?}", b.keys());
    }

    // a third start finds everything and changes nothing
    let before = parts(&killed, "pairs.parquet");
    assert!(succeed(analyze(&model, &data, &killed)).contains("pairs            330"));
    assert_eq!(parts(&killed, "pairs.parquet"), before);
}

#[test]
fn a_folder_of_another_run_is_refused_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let (model, data) = inputs(folder.path(), &[ids_row(&[1, 2], &[3], &[4, 5]), ids_row(&[1], &[2], &[3])]);
    let out = folder.path().join("out");
    let base = analyze(&model, &data, &out);
    succeed(&base);
    let before = (
        parts(&out, "pairs.parquet"),
        parts(&out, "params.parquet"),
        std::fs::read(out.join("manifest.json")).unwrap(),
    );
    let other_model = folder.path().join("other");
    write_model(&other_model, &llama(9, true));
    let (other_model, other_data) = (other_model.display().to_string(), folder.path().join("other.jsonl"));
    std::fs::write(&other_data, ids_row(&[1, 2], &[3], &[4, 6])).unwrap();
    let other_data = other_data.display().to_string();
    let cases: [(&[&str], &str); 6] = [
        (&["--scope", "full"], "another"),
        (&["--dtype", "f64"], "another dtype"),
        (&["--seed", "1"], "another adapter"),
        (&["--lora-r", "4"], "another adapter"),
        (&["--data", &other_data], "another data or tokenisation"),
        (&["--model", &other_model], "another model"),
    ];
    for (change, message) in cases {
        let args = base.clone().into_iter();
        // the last of two equal options counts only where it replaces the first
        let args: Vec<String> = match change[0] {
            "--data" | "--model" => {
                let at = base.iter().position(|arg| arg == change[0]).unwrap();
                args.enumerate().map(|(i, arg)| if i == at + 1 { change[1].to_owned() } else { arg }).collect()
            }
            _ => with(base.clone(), change),
        };
        let output = run(args);
        assert_eq!(output.status.code(), Some(2), "{change:?}");
        assert!(error_line(&output).contains(message), "{}", error_line(&output));
        let after = (
            parts(&out, "pairs.parquet"),
            parts(&out, "params.parquet"),
            std::fs::read(out.join("manifest.json")).unwrap(),
        );
        assert!(before == after, "{change:?} changed the folder");
    }
    // the same model elsewhere is the same run: content counts, not the path
    let moved = folder.path().join("moved");
    support::copy_folder(&model, &moved);
    succeed(analyze(&moved, &data, &out));
}

#[test]
fn bad_rows_are_skipped_where_asked_and_rows_keep_their_numbers() {
    let folder = tempfile::tempdir().unwrap();
    let rows = [
        ids_row(&[1], &[2], &[3]),
        r#"{"prompt_ids": [1], "chosen_ids": [2]}"#.to_owned(),
        "not json".to_owned(),
        ids_row(&[1], &[2], &[40]),
        ids_row(&[1], &[], &[3]),
        ids_row(&[1, 2], &[2, 3], &[3]),
    ];
    let (model, data) = inputs(folder.path(), &rows);
    let out = folder.path().join("out");
    let output = run(with(analyze(&model, &data, &out), &["--on-bad-row", "skip"]));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    for row in [1, 2, 3, 4] {
        assert!(stderr.contains(&format!("row {row} left out: ")), "{stderr}");
    }
    let frame = Table::create(&out, "pairs.parquet").unwrap().read(0).unwrap();
    let pairs: Vec<u64> = frame.column("pair").unwrap().u64().unwrap().iter().flatten().collect();
    assert_eq!(pairs, [0, 5]);
    let manifest: serde_json::Value =
        serde_json::from_slice(&std::fs::read(out.join("manifest.json")).unwrap()).unwrap();
    let skipped: Vec<u64> =
        manifest["skipped"].as_array().unwrap().iter().map(|s| s["row"].as_u64().unwrap()).collect();
    assert_eq!(skipped, [1, 2, 3, 4]);
}

#[test]
fn long_prompts_are_refused_or_cut_from_the_left_and_the_record_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let (model, data) = inputs(folder.path(), &[ids_row(&[9, 8, 1, 2], &[3], &[4, 5]), ids_row(&[7], &[2], &[3])]);
    let (cut, short) = (folder.path().join("cut"), folder.path().join("short"));
    let output = run(with(analyze(&model, &data, &cut), &["--max-length", "4", "--truncate", "refuse"]));
    assert_eq!(output.status.code(), Some(2));
    let message = error_line(&output);
    assert!(message.contains("row 0") && message.contains("--truncate"), "{message}");
    let output = run(with(analyze(&model, &data, &cut), &["--max-length", "4", "--truncate", "prompt"]));
    assert!(String::from_utf8_lossy(&output.stderr).contains("row 0: the prompt was cut on the left"), "{output:?}");
    assert_eq!(counts(&cut, "pairs.parquet", "truncated_tokens"), [2, 0]);
    assert_eq!(counts(&cut, "pairs.parquet", "prompt_tokens"), [2, 1]);
    // what is left is the end of the prompt
    std::fs::write(&data, [ids_row(&[1, 2], &[3], &[4, 5]), ids_row(&[7], &[2], &[3])].join("\n")).unwrap();
    succeed(analyze(&model, &data, &short));
    assert_eq!(numbers(&cut, "pairs.parquet", "wl"), numbers(&short, "pairs.parquet", "wl"));
    // as the recipe does it, responses lose their ends, and a prompt that leaves no room goes
    std::fs::write(&data, [ids_row(&[1, 2], &[3], &[4, 5, 6]), ids_row(&[7, 8, 9, 10], &[2], &[3])].join("\n"))
        .unwrap();
    let ends = folder.path().join("ends");
    let output = run(with(analyze(&model, &data, &ends), &["--max-tokens", "4"]));
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("row 1 left out: the prompt alone has 4 tokens"),
        "{output:?}"
    );
    let cuts = ["truncated_tokens", "chosen_truncated_tokens", "rejected_truncated_tokens", "rejected_tokens"];
    assert_eq!(cuts.map(|name| counts(&ends, "pairs.parquet", name)[0]), [0, 0, 1, 2]);
}

#[test]
fn identical_responses_have_cosine_one_and_no_regime() {
    let folder = tempfile::tempdir().unwrap();
    let (model, data) = inputs(folder.path(), &[ids_row(&[1, 2], &[3, 4], &[3, 4])]);
    let out = folder.path().join("out");
    succeed(analyze(&model, &data, &out));
    let cosine = numbers(&out, "pairs.parquet", "cosine")[0].unwrap();
    // three f64 sums over the same f32 numbers, in one order each
    assert!((cosine - 1.0).abs() <= 1e-12, "{cosine}");
    assert_eq!(texts(&out, "pairs.parquet", "regime_dpo")[0].as_deref(), Some("none"));
}

/// The ways to write one pair lead to the same tokens and so to the same numbers.
#[test]
fn one_pair_in_several_forms_is_one_pair() {
    let folder = tempfile::tempdir().unwrap();
    let rows = [
        r#"{"prompt": "\n\nHuman: Hi there\n\nAssistant:", "chosen": " Hello", "rejected": " No"}"#,
        r#"{"chosen": "\n\nHuman: Hi there\n\nAssistant: Hello", "rejected": "\n\nHuman: Hi there\n\nAssistant: No"}"#,
    ];
    let chats = [
        r#"{"prompt": "Hi there", "chosen": "Hello", "rejected": "No"}"#,
        r#"{"prompt": [{"role": "user", "content": "Hi there"}], "chosen": [{"role": "assistant", "content": "Hello"}], "rejected": [{"role": "assistant", "content": "No"}]}"#,
        r#"{"chosen": [{"role": "user", "content": "Hi there"}, {"role": "assistant", "content": "Hello"}], "rejected": [{"role": "user", "content": "Hi there"}, {"role": "assistant", "content": "No"}]}"#,
    ];
    for (name, rows, more) in [("text", &rows[..], &[][..]), ("chat", &chats[..], &["--chat"][..])] {
        let data = folder.path().join(format!("{name}.jsonl.gz"));
        let mut packed =
            flate2::write::GzEncoder::new(std::fs::File::create(&data).unwrap(), flate2::Compression::fast());
        std::io::Write::write_all(&mut packed, rows.join("\n").as_bytes()).unwrap();
        packed.finish().unwrap();
        let out = folder.path().join(name);
        succeed(with(analyze(&demo(), &data, &out), more));
        for column in ["logp_chosen", "logp_rejected"] {
            let values = numbers(&out, "pairs.parquet", column);
            let off = values.iter().map(|v| (v.unwrap() / values[0].unwrap() - 1.0).abs()).fold(0.0, f64::max);
            // f32 rows of one batch: the same products in blocks of another size
            assert!(off <= 1e-6, "{name} {column}: {values:?}");
        }
        let prompts = counts(&out, "pairs.parquet", "prompt_tokens");
        assert!(prompts.iter().all(|n| *n == prompts[0]), "{prompts:?}");
    }
}

/// An output folder is one process's at a time.
#[test]
fn a_second_process_is_kept_out() {
    let folder = tempfile::tempdir().unwrap();
    let (model, data) = inputs(folder.path(), &[ids_row(&[1], &[2], &[3])]);
    let out = folder.path().join("out");
    std::fs::create_dir_all(&out).unwrap();
    let lock = std::fs::File::create(out.join(".lock")).unwrap();
    lock.lock().unwrap();
    let output = run(analyze(&model, &data, &out));
    assert_eq!(output.status.code(), Some(1));
    assert!(error_line(&output).contains("another run"), "{}", error_line(&output));
    drop(lock);
    succeed(analyze(&model, &data, &out));
}

#[test]
fn verify_passes_on_a_model_that_is_computed_right() {
    // the last goes through routers, states and sequences shorter and longer than a convolution
    let all = [
        ("llama3_tied", "lora"),
        ("llama3_tied", "full"),
        ("gpt2", "full"),
        ("gpt2", "head"),
        ("architectures/qwen3_5_moe_text", "full"),
        ("architectures/qwen3_5_moe_text", "linear_attn|mlp.gate"),
    ];
    for (golden, scope) in all {
        let folder = tempfile::tempdir().unwrap();
        let model = repository("tests/golden").join(golden);
        let data = folder.path().join("pairs.jsonl");
        std::fs::write(&data, ids_row(&[5, 6, 7], &[8, 9], &[8, 10, 11])).unwrap();
        let (model, data) = (model.display().to_string(), data.display().to_string());
        let said = succeed(["verify", "--device", "cpu", "--model", &model, "--data", &data, "--scope", scope]);
        assert!(said.contains("19 of 19 checks passed"), "{said}");
        assert!(!said.contains("FAIL"), "{said}");
    }
}

#[test]
fn devices_always_lists_the_processor() {
    let said = succeed(["devices"]);
    assert!(said.starts_with("cpu ("), "{said}");
    assert!(said.contains("used without --device: "), "{said}");
}
