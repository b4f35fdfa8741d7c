//! Objectives as a user runs them, and the first-order law of each on a small model.
use crate::support::{analyze, error_line, ids_row, llama, numbers, repository, run, succeed, write_model};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use tanglescope_gram::{Batch, Cotangent, GradientSink, Group, Request, run as run_batch, token_logps};
use tanglescope_kernels::{DType, Flex, FlexDevice};
use tanglescope_model::{AdapterSource, Decoder, InScope, Places};
use tanglescope_objectives::{Lengths, Needs, Objective, PairGram, PairLogps, all, contrast};
use tanglescope_records::Table;

struct Inputs {
    _folder: tempfile::TempDir,
    model: PathBuf,
    data: PathBuf,
    out: PathBuf,
}

fn inputs(rows: &[String]) -> Inputs {
    let folder = tempfile::tempdir().unwrap();
    let (model, data, out) =
        (folder.path().join("model"), folder.path().join("pairs.jsonl"), folder.path().join("out"));
    write_model(&model, &llama(1, true));
    std::fs::write(&data, rows.join("\n")).unwrap();
    Inputs { _folder: folder, model, data, out }
}

fn rows(n: u32) -> Vec<String> {
    let ids = |from: u32, n: u32| (from..from + n).map(|t| t % 40).collect::<Vec<u32>>();
    (0..n).map(|i| ids_row(&ids(i, 1 + i % 4), &ids(2 * i, 1 + i % 5), &ids(3 * i + 1, 1 + i % 3))).collect()
}

impl Inputs {
    fn args(&self, more: &[&str]) -> Vec<String> {
        let mut args = analyze(&self.model, &self.data, &self.out);
        args.extend(["--scope", "full", "--dtype", "f64"].iter().chain(more).map(|&word| word.to_owned()));
        args
    }
}

/// A row of objectives.parquet.
struct Row {
    objective: String,
    pair: u64,
    numbers: HashMap<&'static str, Option<f64>>,
}

/// The rows of one part.
fn outcomes(out: &Path, part: usize) -> Vec<Row> {
    let frame = Table::create(out, "objectives.parquet").unwrap().read(part).unwrap();
    let names = frame.column("objective").unwrap().str().unwrap();
    let pairs: Vec<u64> = frame.column("pair").unwrap().u64().unwrap().iter().flatten().collect();
    (0..frame.height())
        .map(|i| {
            let number = |name: &'static str| (name, frame.column(name).unwrap().f64().unwrap().get(i));
            let columns = ["loss", "d_w", "d_l", "delta_w", "delta_l", "band_slack"].map(number);
            Row { objective: names.get(i).unwrap().to_owned(), pair: pairs[i], numbers: columns.into() }
        })
        .collect()
}

#[test]
fn one_pass_serves_all_objectives() {
    let inputs = inputs(&rows(70));
    let asked = ["dpo", "simpo:beta=1", "sparse_hard", "aot", "normalised"];
    let options: Vec<&str> =
        asked.iter().flat_map(|name| ["--objective", name]).chain(["--reference", "self"]).collect();
    let summary = succeed(inputs.args(&options));
    for name in asked {
        assert!(summary.lines().any(|line| line.starts_with(name)), "{summary}");
    }
    let column = |name: &str| -> Vec<f64> {
        numbers(&inputs.out, "pairs.parquet", name).into_iter().map(Option::unwrap).collect()
    };
    assert_eq!(column("ref_logp_chosen"), column("logp_chosen"));
    assert_eq!(column("ref_logp_rejected"), column("logp_rejected"));
    let (ww, wl, ll) = (column("ww"), column("wl"), column("ll"));
    let first = outcomes(&inputs.out, 0);
    assert_eq!(first.len(), 64 * 4, "every pair and objective, but for those of a batch");
    for Row { objective: name, pair, numbers } in &first {
        let i = usize::try_from(*pair).unwrap();
        let of = |name: &str| numbers[name].unwrap();
        match name.as_str() {
            "dpo" => {
                // a policy that is its own reference has u = 0
                assert!((of("loss") - std::f64::consts::LN_2).abs() < 1e-15);
                assert_eq!(["d_w", "d_l"].map(|name| of(name).to_bits()), [0.05f64.to_bits(); 2]);
            }
            "normalised" => assert!((of("d_w") * ww[i].sqrt() - 0.05).abs() < 1e-12),
            _ => {}
        }
        if name == "sparse_hard" {
            assert_eq!(numbers["band_slack"], None);
        } else {
            let step = [of("d_w") * ww[i] - of("d_l") * wl[i], of("d_w") * wl[i] - of("d_l") * ll[i]];
            assert_eq!(["delta_w", "delta_l"].map(|name| of(name).to_bits()), step.map(f64::to_bits), "{name} {i}");
        }
    }
    // two windows of pairs, then the batch
    assert_eq!(outcomes(&inputs.out, 1).len(), 6 * 4);
    let last = outcomes(&inputs.out, 2);
    let batch: Vec<(&str, u64)> = last.iter().map(|row| (row.objective.as_str(), row.pair)).collect();
    assert_eq!(batch, (0..70).map(|pair| ("aot", pair)).collect::<Vec<_>>());
}

#[test]
fn other_objectives_are_added_without_another_pass() {
    let inputs = inputs(&rows(5));
    succeed(inputs.args(&["--objective", "dpo", "--reference", "self"]));
    let pairs = std::fs::read(inputs.out.join("pairs.parquet/00000.parquet")).unwrap();
    let output = run(inputs.args(&["--objective", "ipo", "--objective", "sft", "--reference", "self"]));
    assert!(output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("5 of 5 pairs are there already"));
    assert_eq!(std::fs::read(inputs.out.join("pairs.parquet/00000.parquet")).unwrap(), pairs);
    let names: Vec<String> = outcomes(&inputs.out, 0).into_iter().map(|row| row.objective).collect();
    assert_eq!(names, ["ipo", "sft"].repeat(5));
    // contrast tokens were not measured, and another reference is another run
    for (options, says) in [
        (vec!["--objective", "sparse_hard", "--reference", "self"], "contrast tokens"),
        (vec!["--objective", "sft"], "another reference"),
    ] {
        let output = run(inputs.args(&options));
        assert_eq!(output.status.code(), Some(2));
        assert!(error_line(&output).contains(says), "{}", error_line(&output));
    }
}

#[test]
fn objectives_that_cannot_be_used_are_refused() {
    let inputs = inputs(&rows(2));
    for (options, says) in [
        (vec!["--objective", "dpo"], "needs a reference|uses a reference model"),
        (vec!["--objective", "dpoo"], "there is no `dpoo`; there are dpo, cdpo"),
        (vec!["--objective", "ipo:beta=1", "--reference", "self"], "its keys are tau"),
        (vec!["--objective", "sparse:lam=1", "--reference", "self"], "only training learns"),
        (vec!["--objective", "dpo", "--reference", "base"], "there is no adapter"),
        (vec!["--objective", "dpo", "--reference", "/nowhere"], "/nowhere"),
    ] {
        let output = run(inputs.args(&options));
        assert_eq!(output.status.code(), Some(2), "{options:?}");
        let error = error_line(&output);
        assert!(says.split('|').any(|says| error.contains(says)), "{error}");
    }
    let output = run(inputs.args(&["--objective", "all"]));
    assert!(output.status.success());
    let stderr = String::from_utf8_lossy(&output.stderr);
    for left_out in ["leaves out dpo: needs a reference", "leaves out gate_dpo", "leaves out sparse: for training"] {
        assert!(stderr.contains(left_out), "{stderr}");
    }
    let names: Vec<String> = outcomes(&inputs.out, 0).into_iter().map(|row| row.objective).collect();
    assert!(names.contains(&"simpo".to_owned()) && !names.contains(&"dpo".to_owned()), "{names:?}");
}

#[test]
fn the_base_under_an_adapter_is_its_reference() {
    let golden = repository("tests/golden/llama3_tied");
    let values: serde_json::Value =
        serde_json::from_slice(&std::fs::read(golden.join("golden.json")).unwrap()).unwrap();
    let pairs = values["pairs"].as_array().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (data, out) = (folder.path().join("pairs.jsonl"), folder.path().join("out"));
    let lines: Vec<String> = pairs.iter().map(serde_json::Value::to_string).collect();
    std::fs::write(&data, lines.join("\n")).unwrap();
    let mut args = analyze(&golden, &data, &out);
    let adapter = golden.join("adapter").display().to_string();
    args.extend(["--adapter", &adapter, "--dtype", "f64", "--objective", "dpo"].map(str::to_owned));
    succeed(args);
    for (column, of, branch) in [
        ("ref_logp_chosen", "logp_base", "logp_w"),
        ("ref_logp_rejected", "logp_base", "logp_l"),
        ("logp_chosen", "logp_lora", "logp_w"),
    ] {
        for (got, pair) in numbers(&out, "pairs.parquet", column).into_iter().zip(pairs) {
            let want = pair[of][branch].as_f64().unwrap();
            // the goldens' own tolerance
            assert!((got.unwrap() / want - 1.0).abs() < 1e-10, "{column}: {got:?}, expected {want}");
        }
    }
}

/// What objectives ask for beside log-probabilities and Gram, against other measurements of the same: a text against a probe,
/// mismatched responses against rows that pair them, the shorter length against responses that were cut there.
#[test]
fn parts_that_objectives_ask_for_are_measured() {
    let rows = [
        r#"{"prompt_ids": [1, 2, 3], "chosen_ids": [4, 5, 6, 9], "rejected_ids": [4, 7]}"#,
        r#"{"prompt_ids": [8, 2], "chosen_ids": [5, 5], "rejected_ids": [6, 7, 3]}"#,
    ];
    let of = inputs(&rows.map(str::to_owned));
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, lines: &[&str]| {
        let path = folder.path().join(name);
        std::fs::write(&path, lines.join("\n")).unwrap();
        path
    };
    let measure = |data: &Path, name: &str, more: &[&str]| {
        let out = folder.path().join(name);
        let mut args = analyze(&of.model, data, &out);
        args.extend(["--dtype", "f64", "--scope", "full"].iter().chain(more).map(|arg| (*arg).to_owned()));
        succeed(args);
        out
    };
    let close = |got: &[Option<f64>], want: &[Option<f64>]| {
        assert_eq!(got.len(), want.len());
        for (got, want) in got.iter().zip(want) {
            let (got, want) = (got.unwrap(), want.unwrap());
            assert!((got - want).abs() <= 1e-9 * want.abs().max(1.0), "{got} {want}");
        }
    };
    let texts = write(
        "texts.jsonl",
        &[
            r#"{"prompt_ids": [1], "chosen_ids": [2, 3, 4, 5, 6, 9]}"#,
            r#"{"prompt_ids": [8], "chosen_ids": [2, 5, 5]}"#,
        ],
    );
    // a reference that is another model
    let other = tempfile::tempdir().unwrap();
    write_model(other.path(), &llama(5, true));
    let reference = other.path().display().to_string();
    let objectives =
        ["orpo_trl", "kto", "ld_dpo:alpha=0", "ld_dpo:alpha=1", "dpo", "wpo", "dpo:weight=0.5+sft:weight=2", "sft"];
    let objectives: Vec<&str> = objectives.iter().flat_map(|name| ["--objective", *name]).collect();
    let probes = texts.display().to_string();
    let out = measure(&of.data, "out", &[&["--reference", &reference, "--probe", &probes][..], &objectives].concat());
    let probed = |column: &str| numbers(&out, "probes.parquet", column);
    for (column, of_probe) in [("text_logp", "logp"), ("text_w", "inner_chosen"), ("text_l", "inner_rejected")] {
        let all = probed(of_probe);
        // row by row, probe by probe
        close(&numbers(&out, "pairs.parquet", column), &[all[0], all[3]]);
    }
    let mismatched = write(
        "mismatched.jsonl",
        &[
            r#"{"prompt_ids": [1, 2, 3], "chosen_ids": [5, 5], "rejected_ids": [6, 7, 3]}"#,
            r#"{"prompt_ids": [8, 2], "chosen_ids": [4, 5, 6, 9], "rejected_ids": [4, 7]}"#,
        ],
    );
    let of_others = measure(&mismatched, "others", &["--reference", &reference, "--objective", "dpo"]);
    for response in ["chosen", "rejected"] {
        let column = |name: String| numbers(&of_others, "pairs.parquet", &name);
        let (policy, reference) = (column(format!("logp_{response}")), column(format!("ref_logp_{response}")));
        let want: Vec<_> = policy.iter().zip(reference).map(|(p, r)| Some(p.unwrap() - r.unwrap())).collect();
        close(&numbers(&out, "pairs.parquet", &format!("mismatched_ratio_{response}")), &want);
    }
    let cut = write(
        "cut.jsonl",
        &[
            r#"{"prompt_ids": [1, 2, 3], "chosen_ids": [4, 5], "rejected_ids": [4, 7]}"#,
            r#"{"prompt_ids": [8, 2], "chosen_ids": [5, 5], "rejected_ids": [6, 7]}"#,
        ],
    );
    let of_cut = measure(&cut, "cut", &["--reference", &reference, "--objective", "dpo"]);
    for (column, of_whole) in [("public_logp_chosen", "logp_chosen"), ("ref_public_logp_rejected", "ref_logp_rejected")]
    {
        close(&numbers(&out, "pairs.parquet", column), &numbers(&of_cut, "pairs.parquet", of_whole));
    }
    let of_objective = |objective: &str| -> Vec<Row> {
        let all = outcomes(&out, 0).into_iter().chain(outcomes(&out, 1));
        all.filter(|row| row.objective == objective).collect()
    };
    let [none, whole, dpo] = ["ld_dpo:alpha=0", "ld_dpo:alpha=1", "dpo"].map(of_objective);
    let number = |row: &Row, name: &str| row.numbers[name].unwrap();
    let cut_dpo = outcomes(&of_cut, 0);
    for pair in 0..2 {
        assert!((number(&none[pair], "loss") - number(&cut_dpo[pair], "loss")).abs() < 1e-12);
        let all = [
            (number(&whole[pair], "loss"), number(&dpo[pair], "loss")),
            (number(&whole[pair], "delta_w"), number(&dpo[pair], "delta_w")),
        ];
        assert!(all.iter().all(|(got, want)| (got - want).abs() <= 1e-9 * want.abs()), "{all:?}");
        let (sum, sft) = (&of_objective("dpo:weight=0.5+sft:weight=2")[pair], &of_objective("sft")[pair]);
        let want = 0.5 * number(&dpo[pair], "delta_l") + 2.0 * number(sft, "delta_l");
        assert!((number(sum, "delta_l") - want).abs() <= 1e-9 * want.abs());
    }
    assert_eq!(["orpo_trl", "kto", "wpo"].map(|name| of_objective(name).len()), [2; 3]);
}

/// The output matrix by itself: its part of g_w − g_l, and the loss at weights that are moved along it.
#[test]
fn the_output_matrix_alone() {
    let row = r#"{"prompt_ids": [1, 2, 3], "chosen_ids": [4, 5, 6, 9], "rejected_ids": [4, 7]}"#;
    let of = inputs(&[row.to_owned()]);
    let (untied, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    write_model(untied.path(), &llama(7, false));
    let words = |model: &Path, scope: &str| {
        let mut args = analyze(model, &of.data, out.path());
        let more =
            ["--dtype", "f64", "--scope", scope, "--reference", "self", "--objective", "logits_sam:beta=0.3,rho=0.5"];
        args.extend(more.map(str::to_owned));
        args
    };
    succeed(words(untied.path(), "full"));
    let params = Table::at(out.path(), "params.parquet").read(0).unwrap();
    let at =
        params.column("param").unwrap().str().unwrap().iter().position(|name| name == Some("lm_head.weight")).unwrap();
    let [ww, wl, ll] = ["ww", "wl", "ll"].map(|name| numbers(out.path(), "params.parquet", name)[at].unwrap());
    let (head, want) =
        (numbers(out.path(), "pairs.parquet", "head_differential")[0].unwrap(), (ww - 2.0 * wl + ll).sqrt());
    assert!((head / want - 1.0).abs() < 1e-12, "{head} {want}");
    // policy and reference are one, so the margin is zero
    let loss = outcomes(out.path(), 0)[0].numbers["loss"].unwrap();
    let want = (0.3 * 0.5 * head).exp().ln_1p();
    assert!((loss / want - 1.0).abs() < 1e-12, "{loss} {want}");
    let by_length = numbers(out.path(), "pairs.parquet", "margin_by_length")[0].unwrap();
    let logp = |of: &str| numbers(out.path(), "pairs.parquet", &format!("logp_{of}"))[0].unwrap();
    assert!((by_length - (logp("chosen") / 4.0 - logp("rejected") / 2.0)).abs() < 1e-12);
    for (model, scope) in [(of.model.as_path(), "full"), (untied.path(), "lora")] {
        let output = run(words(model, scope));
        assert_eq!(output.status.code(), Some(2), "{scope}");
        assert!(
            error_line(&output).contains("output matrix, which is not in scope by itself"),
            "{}",
            error_line(&output)
        );
    }
}

/// Weights of the data's tokens: those of contrast tokens alone are `sparse_hard`, halves are DPO at half of β, of an analysis and of a training step.
#[test]
fn weights_of_the_data_scale_every_token() {
    let rows = [
        (vec![4, 5, 6, 9], vec![4, 7], [vec![0.0, 1.0, 1.0, 1.0], vec![0.0, 1.0]]),
        (vec![5, 5], vec![6, 7, 3], [vec![1.0; 2], vec![1.0; 3]]),
    ];
    let data = |weigh: &dyn Fn(&[f64]) -> Vec<f64>| {
        let row = |(chosen, rejected, contrast): &(Vec<u32>, Vec<u32>, [Vec<f64>; 2])| {
            let [w, l] = [0, 1].map(|k| weigh(&contrast[k]));
            let row = serde_json::json!({"prompt_ids": [1, 2, 3], "chosen_ids": chosen, "rejected_ids": rejected,
                "chosen_weights": w, "rejected_weights": l});
            row.to_string()
        };
        rows.each_ref().map(row)
    };
    let of = inputs(&data(&<[f64]>::to_vec));
    let folder = tempfile::tempdir().unwrap();
    let other = tempfile::tempdir().unwrap();
    write_model(other.path(), &llama(5, true));
    let reference = other.path().display().to_string();
    let write = |name: &str, lines: &[String]| {
        let path = folder.path().join(name);
        std::fs::write(&path, lines.join("\n")).unwrap();
        path
    };
    let options = |data: &Path, name: &str, objectives: &[&str]| {
        let mut args = analyze(&of.model, data, &folder.path().join(name));
        args.extend(["--dtype", "f64", "--scope", "full", "--reference", &reference].map(str::to_owned));
        args.extend(objectives.iter().flat_map(|name| ["--objective".to_owned(), (*name).to_owned()]));
        args
    };
    let same = |data: &Path, name: &str, [weighted, plain]: [&str; 2]| {
        succeed(options(data, name, &[weighted, plain]));
        let found = outcomes(&folder.path().join(name), 0);
        let of = |objective: &str| found.iter().filter(|row| row.objective == objective).collect::<Vec<_>>();
        let (got, want) = (of(weighted), of(plain));
        assert_eq!((got.len(), want.len()), (2, 2));
        for (got, want) in got.iter().zip(want) {
            for column in ["loss", "delta_w", "delta_l"] {
                let (got, want) = (got.numbers[column].unwrap(), want.numbers[column].unwrap());
                assert!((got - want).abs() <= 1e-12 * want.abs(), "{weighted}: {column} {got}, {plain} has {want}");
            }
        }
    };
    same(&of.data, "contrast", ["weighted_dpo", "sparse_hard"]);
    let halves = write("halves.jsonl", &data(&|of| vec![0.5; of.len()]));
    same(&halves, "halves", ["weighted_dpo:beta=0.2", "dpo:beta=0.1"]);
    // what `rows` writes has them too
    let ids = folder.path().join("ids.jsonl");
    let text = |path: &Path| path.display().to_string();
    succeed(["rows", "--model", &text(&of.model), "--data", &text(&halves), "--out", &text(&ids)]);
    assert!(std::fs::read_to_string(&ids).unwrap().contains(r#""rejected_weights":[0.5,0.5]"#));
    // a step on them
    let step = |objective: &str| {
        let out = folder.path().join(objective.replace([':', '='], "-"));
        let words = [
            "train",
            "--device",
            "cpu",
            "--model",
            &text(&of.model),
            "--data",
            &text(&halves),
            "--eval-data",
            &text(&halves),
        ];
        let more =
            ["--out", &text(&out), "--objective", objective, "--dtype", "f64", "--scope", "full", "--max-steps", "1"];
        succeed([words.as_slice(), &more, &["--reference", &reference]].concat());
        let steps = Table::at(&out, "steps.parquet").read(1).unwrap();
        ["loss", "delta_w", "delta_l"]
            .map(|column| -> Vec<Option<f64>> { steps.column(column).unwrap().f64().unwrap().iter().collect() })
    };
    let (weighted, dpo) = (step("weighted_dpo:beta=0.2"), step("dpo:beta=0.1"));
    for (got, want) in weighted.iter().flatten().zip(dpo.iter().flatten()) {
        let (got, want) = (got.unwrap(), want.unwrap());
        assert!((got - want).abs() <= 1e-12 * want.abs(), "{got}, not {want}");
    }
    // weights that do not fit are named with their row
    let refused = |lines: &[&str], problem: &str| {
        let lines: Vec<String> = lines.iter().map(|line| (*line).to_owned()).collect();
        let output = run(options(&write("bad.jsonl", &lines), "bad", &["weighted_dpo"]));
        assert_eq!(output.status.code(), Some(2));
        assert!(error_line(&output).contains(problem), "{}", error_line(&output));
    };
    let row = r#"{"prompt_ids": [1], "chosen_ids": [2, 3], "rejected_ids": [4]"#;
    refused(&[&format!("{row}}}")], "row 0: has no `chosen_weights`");
    refused(&[&format!(r#"{row}, "chosen_weights": [1, 2]}}"#)], "has `chosen_weights` without `rejected_weights`");
    let with = |w: &str| format!(r#"{row}, "chosen_weights": {w}, "rejected_weights": [1]}}"#);
    refused(&[&with("[1]")], "`chosen_weights` has 1 weights and the response 2 tokens");
    // where bad rows are left out, such a row is one
    let fits = format!(r#"{row}, "chosen_weights": [1, 2], "rejected_weights": [1]}}"#);
    let mut skipping = options(&write("some.jsonl", &[with("[1]"), fits]), "some", &["weighted_dpo"]);
    skipping.extend(["--on-bad-row", "skip"].map(str::to_owned));
    succeed(skipping);
    assert_eq!(Table::at(&folder.path().join("some"), "pairs.parquet").read(0).unwrap().height(), 1);
    // where nothing asks for them they are nobody's business
    let misfit = write("misfit.jsonl", &[with("[1]")]);
    succeed(options(&misfit, "unused", &["dpo"]));
    succeed(["rows", "--model", &text(&of.model), "--data", &text(&misfit)]);
    refused(&[&with(r#"["a"]"#)], "expected a list of numbers, one a token");
}

/// Log-probabilities of all tokens and of the contrast tokens, chosen first.
fn sums(model: &Decoder<Flex>, group: &Group, masks: &[Vec<bool>; 2]) -> [[f64; 2]; 2] {
    let logps = &token_logps(model, &[group])[0];
    let kept = |k: usize| logps[k].iter().zip(&masks[k]).filter(|(_, kept)| **kept).map(|(logp, _)| logp).sum();
    [[logps[0].iter().sum(), logps[1].iter().sum()], [kept(0), kept(1)]]
}

/// One step of plain gradient descent on each loss changes both log-probabilities by what the Gram says, the more exactly
/// the smaller the step: the quotient of measured and predicted change is 1 + cη + O(η²).
#[test]
fn the_first_order_law_holds_for_every_objective() {
    let folder = tempfile::tempdir().unwrap();
    write_model(folder.path(), &llama(4, true));
    let load = |source: &AdapterSource| -> Decoder<Flex> {
        Decoder::load(folder.path(), source, DType::F64, &FlexDevice, Places::DEVICE).unwrap()
    };
    let model = load(&AdapterSource::None);
    let scope: InScope = model.in_scope(&"full".parse().unwrap()).unwrap();
    let group = Group::new(vec![1, 2, 3], vec![vec![4, 5, 6, 9], vec![4, 7, 6]]);
    let masks = contrast(&group.responses[0], &group.responses[1]);
    let mut cotangents = Cotangent::log_probabilities(&group);
    for (branch, mask) in masks.iter().enumerate() {
        cotangents.push(Cotangent::over(branch, mask));
    }
    // tokens beyond the shorter response's length weigh ld_dpo's α
    cotangents.push(Cotangent { branch: 0, weights: vec![1.0, 1.0, 1.0, 0.5] });
    cotangents.push(Cotangent { branch: 1, weights: vec![1.0; 3] });
    // weights of the data's
    cotangents.push(Cotangent { branch: 0, weights: vec![0.5, 2.0, 0.0, 1.25] });
    cotangents.push(Cotangent { branch: 1, weights: vec![1.5, 0.25, 1.0] });
    let requests = [Request { group: &group, cotangents }];
    let mut sink = GradientSink::<Flex>::new(8);
    run_batch(&model, &scope, &Batch::new(&requests), &mut sink);
    let total = tanglescope_gram::grams(&model, &scope, &requests)[0].total();
    let [before, kept] = sums(&model, &group, &masks);
    let lengths = Lengths { chosen: 4, rejected: 3 };
    // a policy that has moved away from its reference, so that no margin is 0
    let logps = PairLogps {
        chosen: before[0],
        rejected: before[1],
        reference: Some([before[0] + 1.5, before[1] - 2.0]),
        lengths,
        renyi: Some([2.0, 1.5]),
        mismatched: Some([0.5, 1.0]),
        head: Some(0.7),
    };
    let over = |[chosen, rejected]: [f64; 2]| PairLogps {
        chosen,
        rejected,
        reference: Some([chosen + 1.0, rejected - 0.5]),
        ..logps
    };
    let gram = PairGram::of(&total);
    let mut checked = 0;
    for definition in all() {
        let settings = if definition.name == "gate_dpo" { ":alpha=5,tau=0.1" } else { "" };
        let Ok(objective) = format!("{}{settings}", definition.name).parse::<Objective>() else { continue };
        let (outcome, first) = match objective.needs() {
            Needs::Pair | Needs::Gram | Needs::Entropy | Needs::Head => (objective.of_pair(&logps, &gram).unwrap(), 0),
            Needs::Contrast => (objective.of_masked(&over(kept)).unwrap(), 2),
            Needs::Tail => (objective.of_masked(&over(before)).unwrap(), 4),
            Needs::Weights => (objective.of_masked(&over(before)).unwrap(), 6),
            // of a batch of one
            Needs::Batch | Needs::Mismatched => (objective.of_batch(&[logps]).unwrap()[0], 0),
            // its text: parts_that_objectives_ask_for_are_measured
            Needs::Text | Needs::Training => continue,
        };
        let d = [outcome.d_w, -outcome.d_l];
        let predicted: Vec<f64> =
            (0..2).map(|k| d[0] * total[8 * first + k] + d[1] * total[8 * (first + 1) + k]).collect();
        let mut along = [0.0; 8];
        along[first..first + 2].copy_from_slice(&d);
        let step = sink.combined(&along);
        for k in 0..2 {
            if predicted[k] == 0.0 {
                assert!(d.iter().all(|d| d.to_bits() << 1 == 0), "{objective}: no change is predicted of a step");
                continue;
            }
            // steps that change log π by about 1e-3, half and a quarter of it; its rounding is 1e-14/1e-3
            let eta = 1e-3 / predicted[k].abs();
            let quotient = |eta: f64| {
                let [after, _] = sums(&model.moved(&scope, &step, eta), &group, &masks);
                (after[k] - before[k]) / (eta * predicted[k])
            };
            let off = [eta, eta / 2.0, eta / 4.0].map(|eta| quotient(eta) - 1.0);
            // the first order is off by cη, and what is left when that is taken off by O(η²)
            assert!(off[0].abs() < 0.3, "{objective}, response {k}: {off:?}");
            let left = (off[0] - 2.0 * off[1]).abs().max((off[1] - 2.0 * off[2]).abs());
            assert!(left < 0.05 * off[0].abs() + 1e-9, "{objective}, response {k}: not linear, {off:?}");
            checked += 1;
        }
    }
    assert!(checked > 70, "{checked}");
}
