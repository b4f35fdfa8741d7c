//! `tokens` as a user runs it.
use crate::support::{analyze, demo, error_line, llama, run, succeed, write_model};
use serde_json::Value;
use std::path::Path;
use tanglescope_records::Table;

fn args(model: &Path, data: &Path, out: &Path, more: &[&str]) -> Vec<String> {
    let mut args = analyze(model, data, out);
    "tokens".clone_into(&mut args[0]);
    args.extend(more.iter().map(|&word| word.to_owned()));
    args
}

/// A column over all parts, its values read by `read`.
fn column<T>(out: &Path, table: &str, name: &str, read: fn(&polars_core::prelude::Column) -> Vec<T>) -> Vec<T> {
    let table = Table::create(out, table).unwrap();
    let parts = (0..).take_while(|part| table.has(*part));
    parts.flat_map(|part| read(table.read(part).unwrap().column(name).unwrap())).collect()
}

fn reals(out: &Path, table: &str, name: &str) -> Vec<f64> {
    column(out, table, name, |column| column.f64().unwrap().iter().map(Option::unwrap).collect())
}

fn numbers(out: &Path, table: &str, name: &str) -> Vec<usize> {
    let read = |column: &polars_core::prelude::Column| {
        column.u64().unwrap().iter().map(|x| usize::try_from(x.unwrap()).unwrap()).collect()
    };
    column(out, table, name, read)
}

fn words(out: &Path, table: &str, name: &str) -> Vec<String> {
    column(out, table, name, |column| column.str().unwrap().iter().map(|x| x.unwrap_or("").to_owned()).collect())
}

#[test]
fn entries_sum_to_the_pair_and_tokens_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let data = demo().join("pairs.jsonl");
    let more = ["--scope", "full", "--dtype", "f64", "--limit", "10"];
    let mut both = analyze(&demo(), &data, &out);
    both.extend(more.map(str::to_owned));
    succeed(both);
    // into the folder of an analysis of the same
    let said = succeed(args(&demo(), &data, &out, &more));
    assert!(said.contains("pairs                   10") && said.contains("contrast, contrast"), "{said}");
    let pairs = numbers(&out, "tokens.parquet", "pair");
    let (blocks, inner) = (words(&out, "tokens.parquet", "block"), reals(&out, "tokens.parquet", "inner"));
    for key in ["ww", "wl", "ll"] {
        for (pair, want) in reals(&out, "pairs.parquet", key).into_iter().enumerate() {
            let of = pairs.iter().zip(&blocks).zip(&inner).filter(|((p, b), _)| **p == pair && *b == key);
            let sum: f64 = of.map(|(_, inner)| inner).sum();
            let size = reals(&out, "pairs.parquet", "ww")[pair].max(reals(&out, "pairs.parquet", "ll")[pair]);
            // two orders of the same sums in f64
            assert!((sum - want).abs() <= 1e-10 * size, "{key} of pair {pair}: {sum} instead of {want}");
        }
    }
    let logps = reals(&out, "positions.parquet", "logp");
    let (branches, texts) = (words(&out, "positions.parquet", "branch"), words(&out, "positions.parquet", "text"));
    let of_pair = numbers(&out, "positions.parquet", "pair");
    let chosen = reals(&out, "pairs.parquet", "logp_chosen");
    for (pair, want) in chosen.iter().enumerate() {
        let rows = (0..logps.len()).filter(|i| of_pair[*i] == pair && branches[*i] == "w");
        let sum: f64 = rows.map(|i| logps[i]).sum();
        assert!((sum - want).abs() <= 1e-12 * want.abs());
    }
    let first: String =
        (0..texts.len()).filter(|i| of_pair[*i] == 0 && branches[*i] == "w").map(|i| texts[i].as_str()).collect();
    // with EOS, as TRL ends plain text
    assert_eq!(first, " positive<|endoftext|>");
}

#[test]
fn an_analysis_with_a_reference_and_matrices_share_a_folder_whichever_comes_first() {
    let folder = tempfile::tempdir().unwrap();
    let data = demo().join("pairs.jsonl");
    let rows = ["--limit", "3"];
    let mut words: Vec<Vec<String>> = Vec::new();
    for out in ["first", "second"].map(|name| folder.path().join(name)) {
        let mut with_objective = analyze(&demo(), &data, &out);
        with_objective.extend(["--objective", "dpo", "--objective", "sparse_hard:beta=0.1"].map(str::to_owned));
        with_objective.extend(rows.map(str::to_owned));
        words.push(with_objective);
        words.push(args(&demo(), &data, &out, &rows));
    }
    words.swap(2, 3);
    words.into_iter().for_each(|words| drop(succeed(words)));
    let read = |out: &str, table: &str| Table::at(&folder.path().join(out), table).read(0).unwrap();
    for table in ["pairs.parquet", "objectives.parquet", "tokens.parquet"] {
        assert!(read("first", table).equals_missing(&read("second", table)), "{table}");
    }
    // numbers of all pairs are not those of rows
    let mut all = analyze(&demo(), &data, &folder.path().join("all"));
    all.extend(["--all-pairs"].map(str::to_owned).into_iter().chain(rows.map(str::to_owned)));
    succeed(all);
    let refused = run(args(&demo(), &data, &folder.path().join("all"), &rows));
    assert_eq!(refused.status.code(), Some(2));
    assert!(error_line(&refused).contains("choice of pairs"), "{}", error_line(&refused));
}

#[test]
fn an_unfinished_run_goes_on_and_another_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (out, data) = (folder.path().join("out"), demo().join("pairs.jsonl"));
    let more = ["--limit", "20"];
    succeed(args(&demo(), &data, &out, &more));
    let whole = std::fs::read(out.join("tokens.parquet/00001.parquet")).unwrap();
    std::fs::remove_file(out.join("positions.parquet/00001.parquet")).unwrap();
    let again = run(args(&demo(), &data, &out, &more));
    assert!(again.status.success());
    assert!(String::from_utf8_lossy(&again.stderr).contains("12 of 20 pairs are there already"));
    assert_eq!(std::fs::read(out.join("tokens.parquet/00001.parquet")).unwrap(), whole);
    let other = run(args(&demo(), &data, &out, &["--limit", "20", "--scope", "full"]));
    assert_eq!(other.status.code(), Some(2));
    assert!(error_line(&other).contains("another adapter"), "{}", error_line(&other));
    let said = succeed(args(&demo(), &data, &folder.path().join("none"), &["--dry-run"]));
    assert!(said.contains("nothing was computed") && !folder.path().join("none").exists(), "{said}");
}

/// NumPy's header, and the numbers behind it.
fn npy(path: &Path) -> (String, Vec<f64>) {
    let bytes = std::fs::read(path).unwrap();
    assert_eq!(&bytes[..6], b"\x93NUMPY");
    let length = usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
    let header = String::from_utf8(bytes[10..10 + length].to_vec()).unwrap();
    let values = bytes[10 + length..].chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().unwrap())).collect();
    (header, values)
}

#[test]
fn arrays_are_the_tables_matrices_and_positions_sum_to_wl() {
    let folder = tempfile::tempdir().unwrap();
    let data = demo().join("pairs.jsonl");
    for scope in ["lora", "full"] {
        let out = folder.path().join(scope);
        let more = ["--scope", scope, "--dtype", "f64", "--limit", "10"];
        let mut both = analyze(&demo(), &data, &out);
        both.extend(more.map(str::to_owned));
        succeed(both);
        // what is there already is not made again, but what is asked for beside it is
        succeed(args(&demo(), &data, &out, &more));
        succeed(args(&demo(), &data, &out, &[&more[..], &["--npy", "--positions"]].concat()));
        let (pairs, blocks) = (numbers(&out, "tokens.parquet", "pair"), words(&out, "tokens.parquet", "block"));
        let inner = reals(&out, "tokens.parquet", "inner");
        let (chosen, rejected) = (counts(&out, "chosen_tokens"), counts(&out, "rejected_tokens"));
        for (block, shape) in [("wl", [chosen[9], rejected[9]]), ("ww", [chosen[9]; 2]), ("ll", [rejected[9]; 2])] {
            let (header, values) = npy(&out.join(format!("npy/9-{block}.npy")));
            assert!(header.contains("<f8") && header.contains(&format!("({}, {}", shape[0], shape[1])), "{header}");
            let rows = pairs.iter().zip(&blocks).zip(&inner).filter(|((pair, of), _)| **pair == 9 && *of == block);
            assert_eq!(values, rows.map(|(_, inner)| *inner).collect::<Vec<_>>());
        }
        let prompt = counts(&out, "prompt_tokens");
        let (pairs, products) =
            (numbers(&out, "position_products.parquet", "pair"), reals(&out, "position_products.parquet", "inner"));
        let (ww, wl, ll) = (
            reals(&out, "pairs.parquet", "ww"),
            reals(&out, "pairs.parquet", "wl"),
            reals(&out, "pairs.parquet", "ll"),
        );
        for pair in 0..10 {
            let of: Vec<f64> = pairs.iter().zip(&products).filter(|(p, _)| **p == pair).map(|(_, x)| *x).collect();
            // the last token of a response is no input
            assert_eq!(of.len(), (prompt[pair] + chosen[pair] - 1) * (prompt[pair] + rejected[pair] - 1));
            let sum: f64 = of.iter().sum();
            // the same products in another order, in f64
            assert!(
                (sum - wl[pair]).abs() <= 1e-10 * (ww[pair] * ll[pair]).sqrt(),
                "{scope}, {pair}: {sum} and {}",
                wl[pair]
            );
        }
    }
}

fn counts(out: &Path, name: &str) -> Vec<usize> {
    let read = |column: &polars_core::prelude::Column| {
        column.u32().unwrap().iter().map(|x| usize::try_from(x.unwrap()).unwrap()).collect()
    };
    column(out, "pairs.parquet", name, read)
}

/// What a step on an objective does to every token: a response's tokens sum to what objectives.parquet has of it, whatever each of them weighs.
#[test]
fn changes_of_tokens_sum_to_those_of_responses() {
    let folder = tempfile::tempdir().unwrap();
    let (model, reference) = (folder.path().join("model"), folder.path().join("reference"));
    write_model(&model, &llama(5, true));
    write_model(&reference, &llama(6, true));
    let rows = [
        r#"{"prompt_ids": [1, 2, 3], "chosen_ids": [4, 5, 6, 9], "rejected_ids": [4, 7], "chosen_weights": [0.5, 1, 0, 2], "rejected_weights": [1, 0.25]}"#,
        r#"{"prompt_ids": [1, 2], "chosen_ids": [5, 5], "rejected_ids": [6, 7, 3], "chosen_weights": [1, 2], "rejected_weights": [3, 1, 0.5]}"#,
    ];
    let data = folder.path().join("data.jsonl");
    std::fs::write(&data, rows.join("\n")).unwrap();
    let out = folder.path().join("out");
    let measured = ["--scope", "full", "--dtype", "f64"];
    let mut of_pairs = analyze(&model, &data, &out);
    of_pairs.extend(measured.map(str::to_owned));
    of_pairs.extend(["--reference".to_owned(), reference.display().to_string()]);
    let summed = ["dpo:beta=0.5", "simpo", "sft", "sparse_hard", "ld_dpo:alpha=0.25", "weighted_dpo"];
    of_pairs.extend(summed.iter().chain(&["orpo_trl"]).flat_map(|name| ["--objective".to_owned(), (*name).to_owned()]));
    succeed(of_pairs);
    let out_text = out.display().to_string();
    let by_token = ["summarize", &out_text, "--by", "token", "--format", "json"];
    let output = run(by_token);
    assert!(String::from_utf8_lossy(&output.stderr).contains("has no tokens.parquet beside objectives.parquet"));
    succeed(args(&model, &data, &out, &measured));

    let found: Vec<Value> = serde_json::from_str(&succeed(by_token)).unwrap();
    assert_eq!(found.len(), 7 * (4 + 2 + 2 + 3));
    let objectives = words(&out, "objectives.parquet", "objective");
    let of_pair = numbers(&out, "objectives.parquet", "pair");
    for (branch, delta) in [("w", "delta_w"), ("l", "delta_l")] {
        for (row, want) in reals(&out, "objectives.parquet", delta).into_iter().enumerate() {
            let of: Vec<&Value> = found
                .iter()
                .filter(|t| {
                    t["pair"] == of_pair[row] && t["objective"] == objectives[row].as_str() && t["branch"] == branch
                })
                .collect();
            if objectives[row] == "orpo_trl" {
                assert!(!of.is_empty() && of.iter().all(|t| t["change"].is_null() && t["coefficient"].is_null()));
                continue;
            }
            let changes: Vec<f64> = of.iter().map(|t| t["change"].as_f64().unwrap()).collect();
            let size: f64 = changes.iter().map(|x| x.abs()).sum();
            let sum: f64 = changes.iter().sum();
            // two orders of the same sums in f64
            assert!((sum - want).abs() <= 1e-10 * size, "{} {branch}: {sum} instead of {want}", objectives[row]);
        }
    }
    // the coefficients are the objective's, times what a token weighs
    let coefficients = |objective: &str, branch: &str| -> Vec<f64> {
        let of = found.iter().filter(|t| t["pair"] == 0 && t["objective"] == objective && t["branch"] == branch);
        of.map(|t| t["coefficient"].as_f64().unwrap()).collect()
    };
    let times = |weights: &[f64], of: &[f64]| {
        let scale = of.iter().zip(weights).find(|(_, w)| **w != 0.0).map(|(c, w)| c / w).unwrap();
        of.iter().zip(weights).all(|(c, w)| (c - scale * w).abs() <= 1e-15 * scale.abs())
    };
    assert!(times(&[0.5, 1.0, 0.0, 2.0], &coefficients("weighted_dpo", "w")));
    assert!(times(&[1.0, 0.25], &coefficients("weighted_dpo", "l")) && coefficients("weighted_dpo", "l")[0] < 0.0);
    assert!(times(&[1.0, 1.0, 0.25, 0.25], &coefficients("ld_dpo:alpha=0.25", "w")));
    assert!(times(&[0.0, 1.0, 1.0, 1.0], &coefficients("sparse_hard", "w")));
    assert!(times(&[1.0; 4], &coefficients("dpo:beta=0.5", "w")));
    assert_eq!(coefficients("sft", "l"), [0.0, 0.0]);
}
