//! Groups of more than two responses, measures beside the Gram, and probes.
use crate::support::{llama, numbers, repository, run, succeed, write_model};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::path::Path;
use tanglescope_gram::{
    Batch, Detail, DirectionalSink, GradientSink, Group, Request, grams, grams_across, run as run_batch, token_logps,
};
use tanglescope_kernels::{DType, Flex, FlexDevice, FloatTensor};
use tanglescope_model::{AdapterSource, Decoder, InScope, Places};

fn analyze(model: &Path, data: &Path, out: &Path, more: &[&str]) -> String {
    let paths = [model, data, out].map(|path| path.to_str().unwrap().to_owned());
    let [model, data, out] = paths.each_ref().map(String::as_str);
    let base = [
        "analyze", "--model", model, "--data", data, "--out", out, "--dtype", "f64", "--device", "cpu", "--scope",
        "full",
    ];
    succeed(base.iter().chain(more))
}

fn column(out: &Path, table: &str, name: &str) -> Vec<f64> {
    numbers(out, table, name).into_iter().map(|x| x.unwrap_or(f64::NAN)).collect()
}

/// The Gram over the branches of all groups, summed over all parameters in scope.
fn total_across<'a>(model: &Decoder<Flex>, scope: &InScope, groups: impl IntoIterator<Item = &'a Group>) -> Vec<f64> {
    grams_across(model, scope, &Request::all(groups), Detail::Total).0.remove(0)
}

/// Prompt, responses and scores.
type Row = (Vec<u32>, Vec<Vec<u32>>, Vec<f64>);

fn rows(k: usize) -> impl Strategy<Value = Vec<Row>> {
    let ids = |n| proptest::collection::vec(1u32..30, 1..n);
    let row = (ids(6), proptest::collection::vec(ids(8), k), proptest::collection::vec(-3i32..4, k));
    let row =
        row.prop_map(|(prompt, responses, scores)| (prompt, responses, scores.into_iter().map(f64::from).collect()));
    proptest::collection::vec(row, 1..4)
}

fn write(path: &Path, rows: &[Value]) {
    let lines: Vec<String> = rows.iter().map(Value::to_string).collect();
    std::fs::write(path, lines.join("\n")).unwrap();
}

fn group_rows(rows: &[Row]) -> Vec<Value> {
    let row = |(p, r, s): &Row| json!({"prompt_ids": p, "responses_ids": r, "scores": s});
    rows.iter().map(row).collect()
}

/// The K×K of a group against K(K − 1)/2 runs of pairs: sums of the same terms in another order, 1e-12 of the size.
#[test]
fn a_group_is_all_of_its_pairs() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model");
    write_model(&model, &llama(3, true));
    let mut runner = TestRunner::new(Config::with_cases(4));
    let case = std::cell::Cell::new(0);
    runner
        .run(&rows(5), |rows| {
            let at = |name: &str| folder.path().join(format!("{name}{}", case.get()));
            case.set(case.get() + 1);
            write(&at("groups"), &group_rows(&rows));
            let every = |(p, r, _): &Row| -> Vec<Value> {
                let pairs = (0..r.len()).flat_map(|i| (i + 1..r.len()).map(move |j| (i, j)));
                pairs.map(|(i, j)| json!({"prompt_ids": p, "chosen_ids": r[i], "rejected_ids": r[j]})).collect()
            };
            write(&at("pairs"), &rows.iter().flat_map(every).collect::<Vec<_>>());
            analyze(&model, &at("groups"), &at("out"), &[]);
            analyze(&model, &at("pairs"), &at("pairs out"), &[]);
            let of = |name: &str| column(&at("out"), "groups.parquet", name);
            let (i, j, inner) = (of("i"), of("j"), of("inner"));
            let between: Vec<f64> = (0..i.len()).filter(|&n| i[n] < j[n]).map(|n| inner[n]).collect();
            let (wl, ww, ll) = (
                column(&at("pairs out"), "pairs.parquet", "wl"),
                column(&at("pairs out"), "pairs.parquet", "ww"),
                column(&at("pairs out"), "pairs.parquet", "ll"),
            );
            prop_assert_eq!(between.len(), wl.len());
            for n in 0..wl.len() {
                prop_assert!((between[n] - wl[n]).abs() <= 1e-12 * (ww[n] * ll[n]).sqrt(), "{} {}", between[n], wl[n]);
            }
            Ok(())
        })
        .unwrap();
}

/// A group of two is the pair, whichever of the two is better; and with all pairs too.
#[test]
fn a_group_of_two_is_the_pair_to_the_bit() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    write_model(&at("model"), &llama(3, true));
    let (a, b) = (vec![5, 6, 7], vec![5, 9]);
    let groups = [
        json!({"id": "x", "prompt_ids": [1, 2, 3], "responses_ids": [a, b], "scores": [1, 0]}),
        json!({"id": "y", "prompt_ids": [4], "responses_ids": [a, b], "ranks": [2, 1]}),
    ];
    let pairs = [
        json!({"id": "x", "prompt_ids": [1, 2, 3], "chosen_ids": a, "rejected_ids": b}),
        json!({"id": "y", "prompt_ids": [4], "chosen_ids": b, "rejected_ids": a}),
    ];
    write(&at("groups.jsonl"), &groups);
    write(&at("pairs.jsonl"), &pairs);
    let objectives = ["--objective", "dpo", "--objective", "sparse_hard", "--reference", "self"];
    analyze(&at("model"), &at("pairs.jsonl"), &at("pairs"), &objectives);
    for (name, more) in [("groups", vec![]), ("all", vec!["--all-pairs"])] {
        analyze(&at("model"), &at("groups.jsonl"), &at(name), &[&objectives, more.as_slice()].concat());
        let names =
            ["ww", "wl", "ll", "logp_chosen", "logp_rejected", "ches", "entropy_chosen", "contrast_l_w", "pair"];
        for (table, columns) in [
            ("pairs.parquet", names.as_slice()),
            ("params.parquet", &["ww", "wl", "ll"]),
            ("objectives.parquet", &["delta_w"]),
        ] {
            for column in columns {
                let (got, want) = (numbers(&at(name), table, column), numbers(&at("pairs"), table, column));
                let bits = |x: &[Option<f64>]| x.iter().map(|x| x.map(f64::to_bits)).collect::<Vec<_>>();
                assert!(!got.is_empty() && bits(&got) == bits(&want), "{name} {table} {column}: {got:?} {want:?}");
            }
        }
        assert_eq!(column(&at(name), "pairs.parquet", "chosen_response"), [0.0, 1.0]);
    }
}

/// Advantages times the Gram: the change that a real step of SGD on −Σ d_k log π_k makes, as the step goes to zero.
#[test]
fn group_objectives_predict_a_step() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    write_model(&at("model"), &llama(5, true));
    let (prompt, responses) = (vec![1, 2, 3], vec![vec![4, 5, 6], vec![4, 7], vec![8, 9, 10, 11]]);
    write(&at("data"), &[json!({"prompt_ids": prompt, "responses_ids": responses, "scores": [0.2, 1.0, -0.5]})]);
    let asked = ["--group-objective", "grpo", "--group-objective", "plackett_luce:beta=0.3", "--reference", "self"];
    analyze(&at("model"), &at("data"), &at("out"), &asked);
    let (d, delta) =
        (column(&at("out"), "group_objectives.parquet", "d"), column(&at("out"), "group_objectives.parquet", "delta"));
    assert_eq!(d.len(), 6);
    let model =
        Decoder::<Flex>::load(&at("model"), &AdapterSource::None, DType::F64, &FlexDevice, Places::DEVICE).unwrap();
    let scope = model.in_scope(&"full".parse().unwrap()).unwrap();
    let group = Group::new(prompt, responses);
    let mut sink = GradientSink::<Flex>::new(3);
    run_batch(&model, &scope, &Batch::new(&[Request::log_probabilities(&group)]), &mut sink);
    let logps = |model: &Decoder<Flex>| -> Vec<f64> {
        token_logps(model, &[&group]).remove(0).iter().map(|tokens| tokens.iter().sum()).collect()
    };
    for objective in 0..2 {
        let of = 3 * objective..3 * objective + 3;
        let direction = sink.combined(&d[of.clone()]);
        // central differences: the error is of the order of the step's square
        let step = 1e-5 / d[of.clone()].iter().fold(0.0f64, |a, d| a.max(d.abs()));
        let (ahead, behind) =
            (logps(&model.moved(&scope, &direction, step)), logps(&model.moved(&scope, &direction, -step)));
        for k in 0..3 {
            let real = (ahead[k] - behind[k]) / (2.0 * step);
            assert!(
                (real / delta[of.start + k] - 1.0).abs() <= 1e-4,
                "{objective} {k}: {real} {}",
                delta[of.start + k]
            );
        }
    }
}

/// Probes: the Gram over branches of several groups is that of gradients kept whole, and the predicted change is that of a step.
#[test]
fn probes_predict_what_a_step_on_a_pair_does_to_other_texts() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    write_model(&at("model"), &llama(6, true));
    let pairs: Vec<(Vec<u32>, Vec<Vec<u32>>)> =
        vec![(vec![1, 2], vec![vec![3, 4], vec![3, 5, 6]]), (vec![7], vec![vec![8], vec![9, 10]])];
    let probes: Vec<(Vec<u32>, Vec<u32>)> = vec![(vec![1, 2], vec![11, 12]), (vec![13], vec![3])];
    let row = |(p, r): &(Vec<u32>, Vec<Vec<u32>>)| json!({"prompt_ids": p, "chosen_ids": r[0], "rejected_ids": r[1]});
    write(&at("data"), &pairs.iter().map(row).collect::<Vec<_>>());
    let row = |(p, r): &(Vec<u32>, Vec<u32>)| json!({"prompt_ids": p, "chosen_ids": r});
    write(&at("probes"), &probes.iter().map(row).collect::<Vec<_>>());
    let asked =
        ["--probe", at("probes").to_str().unwrap(), "--objective", "dpo", "--reference", "self"].map(str::to_owned);
    let asked: Vec<&str> = asked.iter().map(String::as_str).collect();
    analyze(&at("model"), &at("data"), &at("out"), &asked);
    let delta = column(&at("out"), "probe_objectives.parquet", "delta");
    let [d_w, d_l] = ["d_w", "d_l"].map(|name| column(&at("out"), "objectives.parquet", name));
    assert_eq!(delta.len(), 4);
    let model =
        Decoder::<Flex>::load(&at("model"), &AdapterSource::None, DType::F64, &FlexDevice, Places::DEVICE).unwrap();
    let scope = model.in_scope(&"full".parse().unwrap()).unwrap();
    for (n, (prompt, responses)) in pairs.iter().enumerate() {
        let group = Group::new(prompt.clone(), responses.clone());
        let mut sink = GradientSink::<Flex>::new(2);
        run_batch(&model, &scope, &Batch::new(&[Request::log_probabilities(&group)]), &mut sink);
        let direction: HashMap<String, FloatTensor<Flex>> = sink.combined(&[d_w[n], -d_l[n]]);
        for (m, (prompt, response)) in probes.iter().enumerate() {
            let probe = Group::new(prompt.clone(), vec![response.clone()]);
            let logp = |step: f64| -> f64 {
                token_logps(&model.moved(&scope, &direction, step), &[&probe]).remove(0).concat().iter().sum()
            };
            let real = (logp(1e-4) - logp(-1e-4)) / 2e-4;
            let predicted = delta[n * probes.len() + m];
            assert!((real / predicted - 1.0).abs() <= 1e-4, "pair {n} probe {m}: {real} {predicted}");
            // and by the sink of predictions
            let along =
                DirectionalSink::of_groups(&model, &scope, &[&probe], &[vec![0]], &[&direction]).remove(0)[0][0];
            assert!((along / predicted - 1.0).abs() <= 1e-10, "{along} {predicted}");
            let gram = total_across(&model, &scope, [&group, &probe]);
            assert!((gram[6] * d_w[n] - gram[7] * d_l[n] - predicted).abs() <= 1e-10 * predicted.abs());
        }
    }
}

/// Hidden sums, entropies and ranks against transformers in f64, relative 1e-10: sums of some 10² terms, each off by 1e-15 times the
/// growth through two blocks.
#[test]
fn companion_measures_meet_transformers() {
    let golden = repository("tests/golden/llama3_tied");
    let read = |path: &Path| -> Value { serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap() };
    let pairs = read(&golden.join("golden.json"))["pairs"].as_array().unwrap().clone();
    let wanted = read(&repository("tests/golden/companions.json"));
    let folder = tempfile::tempdir().unwrap();
    for name in ["config.json", "model.safetensors"] {
        std::fs::copy(golden.join(name), folder.path().join(name)).unwrap();
    }
    let model =
        Decoder::<Flex>::load(folder.path(), &AdapterSource::None, DType::F64, &FlexDevice, Places::DEVICE).unwrap();
    let scope = model.in_scope(&"head".parse().unwrap()).unwrap();
    let ids = |pair: &Value, key: &str| -> Vec<u32> { serde_json::from_value(pair[key].clone()).unwrap() };
    for (pair, want) in pairs.iter().zip(wanted.as_array().unwrap()) {
        let group = Group::new(ids(pair, "prompt_ids"), vec![ids(pair, "chosen_ids"), ids(pair, "rejected_ids")]);
        let found = grams(&model, &scope, &[Request::log_probabilities(&group)]).remove(0).companions;
        let close = |got: f64, want: &Value| {
            let want = want.as_f64().unwrap();
            assert!((got - want).abs() <= 1e-10 * want.abs().max(1.0), "{got} instead of {want}");
        };
        [0, 1, 3].iter().zip(want["hidden"].as_array().unwrap()).for_each(|(&at, want)| close(found.hidden[at], want));
        for branch in 0..2 {
            let entropies = want["entropies"][branch].as_array().unwrap();
            found.entropies[branch].iter().zip(entropies).for_each(|(got, want)| close(*got, want));
            assert_eq!(json!(found.ranks[branch]), want["ranks"][branch]);
        }
    }
}

/// ⟨mean g_w, mean g_l⟩ from the Gram over the branches of all pairs.
#[test]
fn mean_gradients_are_the_means_over_all_pairs() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    write_model(&at("model"), &llama(7, true));
    let rows: Vec<Value> = (0..70u32)
        .map(|i| json!({"prompt_ids": [1 + i % 5, 2], "chosen_ids": [3 + i % 7, 4], "rejected_ids": [5 + i % 9]}))
        .collect();
    write(&at("data"), &rows);
    analyze(&at("model"), &at("data"), &at("out"), &["--mean-gradients"]);
    let model =
        Decoder::<Flex>::load(&at("model"), &AdapterSource::None, DType::F64, &FlexDevice, Places::DEVICE).unwrap();
    let scope = model.in_scope(&"full".parse().unwrap()).unwrap();
    let ids = |row: &Value, key: &str| -> Vec<u32> { serde_json::from_value(row[key].clone()).unwrap() };
    let group =
        |row: &Value| Group::new(ids(row, "prompt_ids"), vec![ids(row, "chosen_ids"), ids(row, "rejected_ids")]);
    let groups: Vec<Group> = rows.iter().map(group).collect();
    let gram = total_across(&model, &scope, &groups);
    let k = 2 * groups.len();
    let mean = |a: usize, b: usize| -> f64 {
        let sum: f64 = (0..70).flat_map(|i| (0..70).map(move |j| (2 * i + a) * k + 2 * j + b)).map(|at| gram[at]).sum();
        sum / 4900.0
    };
    let size = (mean(0, 0) * mean(1, 1)).sqrt();
    for (name, want) in [("ww", mean(0, 0)), ("wl", mean(0, 1)), ("ll", mean(1, 1))] {
        let got: f64 = column(&at("out"), "means.parquet", name).iter().sum();
        // 140 sums of f64, in another order
        assert!((got - want).abs() <= 1e-12 * size, "{name}: {got} instead of {want}");
    }
    let summary = succeed(["summarize", at("out").to_str().unwrap(), "--by", "mean", "--format", "json"]);
    let rows: Value = serde_json::from_str(&summary).unwrap();
    assert_eq!(rows[0]["pairs"], 70);
    assert!((rows[0]["cosine"].as_f64().unwrap() - mean(0, 1) / size).abs() <= 1e-12);
}

#[test]
fn what_cannot_be_asked_of_groups_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    write_model(&at("model"), &llama(3, true));
    write(&at("data"), &[json!({"prompt_ids": [1], "responses_ids": [[2], [3]], "scores": [1, 0]})]);
    let paths = [at("model"), at("data"), at("out")].map(|path| path.to_str().unwrap().to_owned());
    let base = ["analyze", "--model", &paths[0], "--data", &paths[1], "--out", &paths[2], "--device", "cpu"];
    for (more, told) in [
        (["--group-objective", "dpo"], "no objective on groups"),
        (["--group-objective", "listnet"], "--reference"),
        (["--probe", "nothing.jsonl"], "nothing.jsonl"),
    ] {
        let scope = if more[1] == "listnet" { ["--scope", "full"] } else { ["--scope", "lora"] };
        let output = run(base.iter().copied().chain(more).chain(scope));
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{message}");
        assert!(message.contains(told), "{message}");
    }
}
