//! `interference`: the Gram of all responses of a data set, whatever windows, shards and interruptions it is put together from.
use crate::support::{error_line, files, ids_row, llama, repository, run, same, succeed, tanglescope, write_model};
use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use tanglescope_gram::{Batch, Detail, GradientSink, Group, Request, grams_across, run as run_batch, token_logps};
use tanglescope_kernels::{DType, Flex, FlexDevice, Memory};
use tanglescope_model::{AdapterSource, Decoder, Places, read_all_tensors};
use tanglescope_records::tables::interference::{Couple, read};
use tanglescope_records::{Table, tables};

/// Σ of roundings of some 10⁴ terms and of a pass, relative to the lengths of both gradients.
const ROUNDING: f64 = 1e-12;

struct Folder(tempfile::TempDir);

fn ids(from: u32, n: u32) -> Vec<u32> {
    (from..from + n).map(|t| t % 40).collect()
}

/// Prompt and responses of a pair.
fn pair(i: u32) -> [Vec<u32>; 3] {
    [ids(i, 1 + i % 9), ids(2 * i, 1 + i % 5), ids(3 * i + 1, 1 + i % 7)]
}

impl Folder {
    /// A model; pairs of three parts, a few others, and groups.
    fn new() -> Self {
        let of = Self(tempfile::tempdir().unwrap());
        write_model(&of.path("model"), &llama(1, true));
        let row = |i: u32| {
            let [prompt, chosen, rejected] = pair(i);
            ids_row(&prompt, &chosen, &rejected)
        };
        std::fs::write(of.path("pairs.jsonl"), (0..150).map(row).collect::<Vec<_>>().join("\n")).unwrap();
        std::fs::write(of.path("others.jsonl"), (200..270).map(row).collect::<Vec<_>>().join("\n")).unwrap();
        let group = |i: u32| {
            let responses: Vec<Vec<u32>> = (0..2 + i % 3).map(|k| ids(i + 7 * k, 1 + (i + k) % 4)).collect();
            let scores: Vec<u32> = (0..2 + i % 3).collect();
            serde_json::json!({"prompt_ids": ids(i, 3), "responses_ids": responses, "scores": scores}).to_string()
        };
        std::fs::write(of.path("groups.jsonl"), (0..9).map(group).collect::<Vec<_>>().join("\n")).unwrap();
        of
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn words(&self, command: &str, data: &str, out: &str, more: &[&str]) -> Vec<String> {
        let text = |name: &str| self.path(name).display().to_string();
        let (model, data, out) = (text("model"), text(data), text(out));
        let words = [
            command, "--model", &model, "--data", &data, "--out", &out, "--device", "cpu", "--dtype", "f64", "--scope",
            "full",
        ];
        words.iter().chain(more).map(|word| (*word).to_owned()).collect()
    }

    fn couples(&self, out: &str, table: &str) -> HashMap<(u64, u64), [f64; 4]> {
        let table = Table::at(&self.path(out), table);
        let mut found = HashMap::new();
        for part in table.parts().unwrap() {
            let number = part.file_stem().unwrap().to_str().unwrap().parse().unwrap();
            for Couple { a, b, inner } in read(&table.read(number).unwrap()).unwrap() {
                assert!(found.insert((a, b), inner).is_none(), "{a}, {b} twice");
            }
        }
        found
    }

    /// The Gram of the responses of some groups by one pass over all of them.
    fn gram(&self, groups: &[Group]) -> Vec<f64> {
        let load =
            Decoder::<Flex>::load(&self.path("model"), &AdapterSource::None, DType::F64, &FlexDevice, Places::DEVICE);
        let model = load.unwrap();
        let scope = model.in_scope(&"full".parse().unwrap()).unwrap();
        grams_across(&model, &scope, &Request::all(groups), Detail::Total).0.remove(0)
    }
}

fn groups(of: impl Iterator<Item = u32>) -> Vec<Group> {
    let group = |i| {
        let [prompt, chosen, rejected] = pair(i);
        Group::new(prompt, vec![chosen, rejected])
    };
    of.map(group).collect()
}

/// Fails where a product is off by more than rounding.
#[track_caller]
fn close(got: f64, want: f64, lengths: f64) {
    assert!((got - want).abs() <= ROUNDING * lengths.sqrt(), "{got} instead of {want}");
}

#[test]
fn products_between_pairs_are_those_of_one_pass_over_all_of_them() {
    let of = Folder::new();
    succeed(of.words("interference", "pairs.jsonl", "out", &["--by-layer"]));
    let found = of.couples("out", tables::INTERFERENCE);
    assert_eq!(found.len(), 150 * 151 / 2);
    let n = 70;
    let gram = of.gram(&groups(0..n));
    let k = 2 * n as usize;
    for a in 0..n as usize {
        for b in a..n as usize {
            for (at, [i, j]) in [[0, 0], [0, 1], [1, 0], [1, 1]].into_iter().enumerate() {
                let (row, column) = (2 * a + i, 2 * b + j);
                let lengths = gram[row * k + row] * gram[column * k + column];
                close(found[&(a as u64, b as u64)][at], gram[row * k + column], lengths);
            }
        }
    }
    // a pair with itself is what `analyze` finds, bit for bit, and so are the tables beside
    succeed(of.words("analyze", "pairs.jsonl", "analysis", &[]));
    let [analysis, out] = ["analysis", "out"].map(|folder| files(&of.path(folder)));
    let of_pairs = |files: &BTreeMap<PathBuf, Vec<u8>>| -> BTreeMap<PathBuf, Vec<u8>> {
        let tables = [tables::PAIRS, tables::PARAMS];
        files.clone().into_iter().filter(|(path, _)| tables.iter().any(|table| path.starts_with(table))).collect()
    };
    same(&of_pairs(&out), &of_pairs(&analysis), "the analysis beside");
    let pairs = Table::at(&of.path("out"), tables::PAIRS).read(1).unwrap();
    let column = |name: &str| pairs.column(name).unwrap().f64().unwrap().iter().flatten().collect::<Vec<f64>>();
    let (ww, wl, ll) = (column("ww"), column("wl"), column("ll"));
    for at in 0..64 {
        let [a, b, c, d] = found[&(64 + at as u64, 64 + at as u64)];
        assert_eq!([a, b, c, d].map(f64::to_bits), [ww[at], wl[at], wl[at], ll[at]].map(f64::to_bits));
    }
    // blocks sum to the whole
    let layers = Table::at(&of.path("out"), tables::INTERFERENCE_LAYERS).read(0).unwrap();
    let sums: f64 = layers.column("lw").unwrap().f64().unwrap().iter().flatten().sum();
    let want: f64 = (0..64).flat_map(|b| (0..=b).map(move |a| (a, b))).map(|at| found[&at][2]).sum();
    let size: f64 = found.values().map(|inner| inner[2].abs()).sum();
    assert!((sums - want).abs() <= ROUNDING * size, "{sums} {want}");
}

#[test]
fn windows_of_any_size_give_the_same_products() {
    let of = Folder::new();
    let limit = ["--limit", "70"];
    succeed(of.words("interference", "pairs.jsonl", "whole", &limit));
    let want = of.couples("whole", tables::INTERFERENCE);
    let mut sizes = Vec::new();
    for memory in ["0.0013", "0.0018", "0.0035"] {
        let out = format!("of-{memory}");
        succeed(of.words("interference", "pairs.jsonl", &out, &[&limit[..], &["--memory", memory]].concat()));
        let manifest = std::fs::read_to_string(of.path(&out).join("manifest.json")).unwrap();
        let manifest: serde_json::Value = serde_json::from_str(&manifest).unwrap();
        sizes.push(manifest["interference"]["pairs_per_window"].as_u64().unwrap());
        let found = of.couples(&out, tables::INTERFERENCE);
        assert_eq!(found.len(), want.len());
        for ((a, b), inner) in &found {
            for (at, [i, j]) in [[0, 0], [0, 3], [3, 0], [3, 3]].into_iter().enumerate() {
                close(inner[at], want[&(*a, *b)][at], want[&(*a, *a)][i] * want[&(*b, *b)][j]);
            }
        }
        assert!(!of.path(&out).join("gradients").exists());
    }
    assert!(sizes.iter().all(|size| *size < 64) && sizes[0] < sizes[2], "{sizes:?}");
}

#[test]
fn a_second_data_set_and_groups() {
    let of = Folder::new();
    let others = of.path("others.jsonl").display().to_string();
    succeed(of.words("interference", "pairs.jsonl", "out", &["--limit", "70", "--against", &others]));
    let found = of.couples("out", tables::AGAINST);
    assert_eq!(found.len(), 70 * 70);
    let gram = of.gram(&groups((0..70).chain(200..270)));
    for ((a, b), inner) in found {
        for (at, [i, j]) in [[0, 0], [0, 1], [1, 0], [1, 1]].into_iter().enumerate() {
            let [a, b] = [a, b].map(|n| usize::try_from(n).unwrap());
            let (row, column) = (2 * a + i, 2 * (70 + b) + j);
            close(inner[at], gram[row * 280 + column], gram[row * 281] * gram[column * 281]);
        }
    }
    assert!(Table::at(&of.path("out/against"), tables::PAIRS).has(0));
    // all responses of groups meet
    succeed(of.words("interference", "groups.jsonl", "groups", &[]));
    let responses = Table::at(&of.path("groups"), tables::INTERFERENCE_RESPONSES).read(0).unwrap();
    let count = |i: usize| 2 + i % 3;
    let couples: usize = (0..9).flat_map(|b| (0..=b).map(move |a| count(a) * count(b))).sum();
    assert_eq!(responses.height(), couples);
    // some rows by number
    succeed(of.words("interference", "pairs.jsonl", "some", &["--pairs", "3,140,9"]));
    let mut pairs: Vec<(u64, u64)> = of.couples("some", tables::INTERFERENCE).into_keys().collect();
    pairs.sort_unstable();
    assert_eq!(pairs, [(3, 3), (3, 9), (3, 140), (9, 9), (9, 140), (140, 140)]);
    let refused = run(of.words("interference", "pairs.jsonl", "none", &["--pairs", "3,150"]));
    assert!(error_line(&refused).contains("--pairs 150: is the number of no usable row"), "{}", error_line(&refused));
    let refused = run(of.words("interference", "pairs.jsonl", "out", &["--limit", "70"]));
    assert!(error_line(&refused).contains("second data set"), "{}", error_line(&refused));
}

#[test]
fn shards_and_killed_calls_join_into_the_folder_of_one() {
    use std::process::Stdio;
    let of = Folder::new();
    let words = |out: &str, more: &[&str]| of.words("interference", "pairs.jsonl", out, more);
    succeed(words("whole", &["--by-layer"]));
    let whole = files(&of.path("whole"));
    for number in ["2/3", "3/3", "1/3"] {
        succeed(words("shards", &["--by-layer", "--shard", number]));
    }
    same(&files(&of.path("shards")), &whole, "shards");
    // two windows at a time, so that most are formed or read again; killed again and again
    let tight = ["--by-layer", "--memory", "0.0035"];
    succeed(words("tight", &tight));
    for attempt in 0..4 {
        let mut child =
            tanglescope().args(words("killed", &tight)).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(60 + 90 * attempt));
        child.kill().unwrap();
        child.wait().unwrap();
    }
    succeed(words("killed", &tight));
    same(&files(&of.path("killed")), &files(&of.path("tight")), "killed");
    assert!(!of.path("killed/gradients").exists());
}

/// Rows of pairs.parquet.
fn reals(out: &std::path::Path, table: &str, name: &str) -> Vec<f64> {
    let rows = Table::at(out, table).read(0).unwrap();
    rows.column(name).unwrap().f64().unwrap().iter().flatten().collect()
}

/// torch's own numbers: three steps of transformers' Trainer, its optimizer.pt, and the products of all gradients by autograd in float64
/// (tests/interference_values.py). Both sides round some 10⁵ terms in f64, the second moments come from f32: 1e-10 of the lengths.
#[test]
fn the_metric_of_a_trainers_optimizer_is_that_of_torch() {
    let golden = repository("tests/golden/interference");
    let of = tempfile::tempdir().unwrap();
    for name in ["full", "lora"] {
        let text = std::fs::read_to_string(golden.join(name).join("grams.json")).unwrap();
        let want: HashMap<String, Vec<f64>> = serde_json::from_str(&text).unwrap();
        let (folder, base) = (golden.join(name), repository("tests/golden/llama3_tied"));
        let out = of.path().join(name);
        let mut words: Vec<String> = [
            "interference",
            "--device",
            "cpu",
            "--dtype",
            "f64",
            "--scope",
            name,
            "--metric",
            "adam",
            "--objective",
            "simpo",
        ]
        .map(str::to_owned)
        .to_vec();
        let mut add = |key: &str, path: &std::path::Path| words.extend([key.to_owned(), path.display().to_string()]);
        add("--data", &golden.join("pairs.jsonl"));
        add("--out", &out);
        match name {
            "full" => add("--model", &folder),
            _ => {
                add("--model", &base);
                add("--adapter", &folder);
            }
        }
        succeed(&words);
        let (plain, adam) = (&want["gram"], &want["adam"]);
        let n = plain.len().isqrt();
        let near = |got: f64, of: &[f64], i: usize, j: usize| {
            let lengths = (of[i * (n + 1)] * of[j * (n + 1)]).sqrt();
            assert!((got - of[i * n + j]).abs() <= 1e-10 * lengths, "{name} {i} {j}: {got} {}", of[i * n + j]);
        };
        for (prefix, of) in [("", plain), ("adam_", adam)] {
            for (column, [i, j]) in [("ww", [0, 0]), ("wl", [0, 1]), ("ll", [1, 1])] {
                let found = reals(&out, tables::PAIRS, &format!("{prefix}{column}"));
                assert_eq!(found.len(), n / 2);
                found.iter().enumerate().for_each(|(pair, got)| near(*got, of, 2 * pair + i, 2 * pair + j));
            }
        }
        for Couple { a, b, inner } in read(&Table::at(&out, tables::INTERFERENCE).read(0).unwrap()).unwrap() {
            let [a, b] = [a, b].map(|n| usize::try_from(n).unwrap());
            for (at, [i, j]) in [[0, 0], [0, 1], [1, 0], [1, 1]].into_iter().enumerate() {
                near(inner[at], adam, 2 * a + i, 2 * b + j);
            }
        }
        // what a step on an objective does in the metric
        let [d_w, d_l, ww, wl] = [("d_w", 0), ("d_l", 0), ("adam_ww", 1), ("adam_wl", 1)]
            .map(|(column, of)| reals(&out, [tables::OBJECTIVES, tables::PAIRS][of], column));
        for (at, delta) in reals(&out, tables::OBJECTIVES, "adam_delta_w").into_iter().enumerate() {
            assert_eq!(delta.to_bits(), (d_w[at] * ww[at] - d_l[at] * wl[at]).to_bits());
        }
        // another metric is another run
        let plain: Vec<String> =
            words.iter().map(|word| if word == "adam" { "gradient".to_owned() } else { word.clone() }).collect();
        let refused = error_line(&run(&plain));
        assert!(refused.contains("another state of the optimizer"), "{refused}");
    }
}

/// The same of a run of `train`, whose second moments are by name.
#[test]
fn the_metric_of_a_run_of_train() {
    let of = Folder::new();
    let run = of.path("run");
    succeed(of.words(
        "train",
        "pairs.jsonl",
        "run",
        &["--objective", "dpo", "--max-steps", "3", "--batch-size", "2", "--seed", "1"],
    ));
    let checkpoint = run.join("checkpoint-3");
    let words = |out: &str, metric: &str| {
        let [model, data, out] =
            [checkpoint.clone(), of.path("pairs.jsonl"), of.path(out)].map(|path| path.display().to_string());
        let words = [
            "analyze", "--model", &model, "--data", &data, "--out", &out, "--device", "cpu", "--dtype", "f64",
            "--scope", "full", "--limit", "3", "--metric", metric,
        ];
        words.map(str::to_owned).to_vec()
    };
    succeed(words("adam", "adam"));
    // the same from gradients and moments that are read here
    let model =
        Decoder::<Flex>::load(&checkpoint, &AdapterSource::None, DType::F64, &FlexDevice, Places::DEVICE).unwrap();
    let scope = model.in_scope(&"full".parse().unwrap()).unwrap();
    let moments = read_all_tensors::<Flex>(&checkpoint, "optimizer", DType::F64, &FlexDevice).unwrap();
    let (ww, wl) =
        (reals(&of.path("adam"), tables::PAIRS, "adam_ww"), reals(&of.path("adam"), tables::PAIRS, "adam_wl"));
    for (at, group) in groups(0..3).into_iter().enumerate() {
        let mut sink = GradientSink::<Flex>::new(2);
        run_batch(&model, &scope, &Batch::new(&[Request::log_probabilities(&group)]), &mut sink);
        let mut want = [0.0; 2];
        for (name, gradients) in &sink.gradients {
            let v = Flex::download(&moments[&format!("moment_2.{name}")]);
            let [w, l] = [0, 1].map(|k| Flex::download(&gradients[k]));
            for (e, v) in v.iter().enumerate() {
                let factor = 1.0 / ((v / (1.0 - f64::from(0.999f32).powi(3))).sqrt() + f64::from(1e-8f32));
                want[0] += factor * w[e] * w[e];
                want[1] += factor * w[e] * l[e];
            }
        }
        assert!((ww[at] - want[0]).abs() <= 1e-10 * want[0], "{} {}", ww[at], want[0]);
        assert!((wl[at] - want[1]).abs() <= 1e-9 * want[0], "{} {}", wl[at], want[1]);
    }
    // before the first step, and without a state
    let [first, model] = ["run/checkpoint-0", "model"].map(|name| of.path(name).display().to_string());
    for (folder, says) in [(first, "optimizer"), (model, "has no optimizer.safetensors and no optimizer.pt")] {
        let mut words = words("none", "adam");
        words[2] = folder;
        let refused = error_line(&crate::support::run(words));
        assert!(refused.contains(says), "{refused}");
    }
}

/// What batches do to pairs, against the sum over the couples' products; the spectrum against the trace.
#[test]
fn steps_on_batches_are_sums_over_their_pairs() {
    let of = Folder::new();
    std::fs::write(of.path("batches.jsonl"), "[0, 5, 9]\n[3]\n").unwrap();
    let batches = of.path("batches.jsonl").display().to_string();
    let more = [
        "--limit",
        "20",
        "--objective",
        "simpo",
        "--objective",
        "sft_batch",
        "--objective",
        "sparse_hard",
        "--reference",
        "self",
        "--batches",
        &batches,
    ];
    let said = succeed(of.words("interference", "pairs.jsonl", "out", &more));
    assert!(said.contains("effective rank"), "{said}");
    let out = of.path("out");
    let found = of.couples("out", tables::INTERFERENCE);
    let outcomes = Table::at(&out, tables::OBJECTIVES);
    let mut d: HashMap<(String, u64), [f64; 2]> = HashMap::new();
    for part in outcomes.parts().unwrap() {
        let rows = outcomes.read(part.file_stem().unwrap().to_str().unwrap().parse().unwrap()).unwrap();
        let column = |name: &str| rows.column(name).unwrap().f64().unwrap().iter().flatten().collect::<Vec<f64>>();
        let (d_w, d_l) = (column("d_w"), column("d_l"));
        let pairs: Vec<u64> = rows.column("pair").unwrap().u64().unwrap().iter().flatten().collect();
        for (row, name) in rows.column("objective").unwrap().str().unwrap().iter().enumerate() {
            d.insert((name.unwrap().to_owned(), pairs[row]), [d_w[row], d_l[row]]);
        }
    }
    let at = |a: u64, b: u64| match a <= b {
        true => found[&(a, b)],
        false => {
            let [ww, wl, lw, ll] = found[&(b, a)];
            [ww, lw, wl, ll]
        }
    };
    let rows = Table::at(&out, tables::BATCHES).read(0).unwrap();
    // of the loss on contrast tokens alone there are no products between pairs
    assert_eq!(rows.height(), 2 * 2 * 20);
    let column = |name: &str| rows.column(name).unwrap().f64().unwrap().iter().flatten().collect::<Vec<f64>>();
    let numbers = |name: &str| rows.column(name).unwrap().u64().unwrap().iter().flatten().collect::<Vec<u64>>();
    let (own, others, pairs, batch) = (column("own_w"), column("others_w"), numbers("pair"), numbers("batch"));
    for (row, name) in rows.column("objective").unwrap().str().unwrap().iter().enumerate() {
        let members: &[u64] = if batch[row] == 0 { &[0, 5, 9] } else { &[3] };
        let part = |b: &u64| {
            let ([d_w, d_l], [ww, wl, ..]) = (d[&(name.unwrap().to_owned(), *b)], at(pairs[row], *b));
            (d_w * ww - d_l * wl) / members.len() as f64
        };
        let (itself, rest): (Vec<u64>, Vec<u64>) = members.iter().partition(|b| **b == pairs[row]);
        let (want_own, want_others): (f64, f64) = (itself.iter().map(part).sum(), rest.iter().map(part).sum());
        let size: f64 = members.iter().map(|b| part(b).abs()).sum();
        assert!((own[row] - want_own).abs() <= 1e-12 * size && (others[row] - want_others).abs() <= 1e-12 * size);
    }
    let eigenvalues = reals(&out, tables::SPECTRUM, "eigenvalue");
    let trace: f64 = (0..20).map(|pair| at(pair, pair)[0] + at(pair, pair)[3]).sum();
    assert_eq!(eigenvalues.len(), 40);
    assert!((eigenvalues.iter().sum::<f64>() - trace).abs() <= 1e-12 * trace);
    for (text, says) in [
        ("[0, 20]", "--batches 20: is the number of no usable row"),
        ("[]", "is a batch of nothing"),
        ("0, 1", "line 1"),
    ] {
        std::fs::write(of.path("batches.jsonl"), text).unwrap();
        let refused = error_line(&run(of.words("interference", "pairs.jsonl", "out", &more)));
        assert!(refused.contains(says), "{refused}");
    }
    // a run of train names its own
    let run = of.path("run").display().to_string();
    succeed(of.words(
        "train",
        "pairs.jsonl",
        "run",
        &["--objective", "dpo", "--max-steps", "2", "--batch-size", "3", "--limit", "20"],
    ));
    let more = ["--limit", "20", "--objective", "simpo", "--batches", &run];
    succeed(of.words("interference", "pairs.jsonl", "steps", &more));
    assert_eq!(Table::at(&of.path("steps"), tables::BATCHES).read(0).unwrap().height(), 2 * 20);
}

/// What other trainers leave of an optimizer is named, and so is a file that is none.
/// Steps of plain descent on a real batch change every pair's log-probabilities, in the batch and outside of it, by what the products between pairs say, the
/// more exactly the smaller the step: the quotient of measured and predicted change is 1 + cη + O(η²).
#[test]
fn real_steps_on_a_batch_do_what_the_products_say() {
    let of = Folder::new();
    let batch = [0u32, 5, 9];
    std::fs::write(of.path("batches.jsonl"), format!("{batch:?}\n")).unwrap();
    let batches = of.path("batches.jsonl").display().to_string();
    let more = ["--limit", "12", "--objective", "simpo", "--batches", &batches];
    succeed(of.words("interference", "pairs.jsonl", "out", &more));
    let out = of.path("out");
    let parts = ["own_w", "own_l", "others_w", "others_l"].map(|name| reals(&out, tables::BATCHES, name));
    let d = ["d_w", "d_l"].map(|name| reals(&out, tables::OBJECTIVES, name));
    let load = Decoder::<Flex>::load(&of.path("model"), &AdapterSource::None, DType::F64, &FlexDevice, Places::DEVICE);
    let model = load.unwrap();
    let scope = model.in_scope(&"full".parse().unwrap()).unwrap();
    let all = groups(0..12);
    let requests: Vec<Request<'_>> = batch.iter().map(|&b| Request::log_probabilities(&all[b as usize])).collect();
    let mut sink = GradientSink::<Flex>::new(2 * batch.len());
    run_batch(&model, &scope, &Batch::new(&requests), &mut sink);
    let size = batch.len() as f64;
    let along: Vec<f64> = batch.iter().flat_map(|&b| [d[0][b as usize] / size, -d[1][b as usize] / size]).collect();
    let step = sink.combined(&along);
    let groups: Vec<&Group> = all.iter().collect();
    let logps = |model: &Decoder<Flex>| -> Vec<[f64; 2]> {
        let of = token_logps(model, &groups);
        of.iter().map(|of| [0, 1].map(|k| of[k].iter().sum::<f64>())).collect()
    };
    let before = logps(&model);
    let predicted = |pair: usize, k: usize| parts[k][pair] + parts[2 + k][pair];
    let most = (0..12).flat_map(|pair| [predicted(pair, 0), predicted(pair, 1)]).map(f64::abs).fold(0.0, f64::max);
    let eta = 1e-3 / most;
    let off = |eta: f64| -> Vec<f64> {
        let after = logps(&model.moved(&scope, &step, eta));
        let of = |(pair, k): (usize, usize)| after[pair][k] - before[pair][k] - eta * predicted(pair, k);
        (0..12).flat_map(|pair| [(pair, 0), (pair, 1)]).map(of).collect()
    };
    let (whole, half) = (off(eta), off(eta / 2.0));
    let mut outside = 0;
    for (at, (whole, half)) in whole.iter().zip(&half).enumerate() {
        let (pair, k) = (at / 2, at % 2);
        // what is left is of second order: a quarter at half the step, up to the third order, η³, and roundings of log π
        assert!(whole.abs() < 3e-4, "pair {pair}: {whole} of a change of {}", eta * predicted(pair, k));
        assert!((whole - 4.0 * half).abs() < 0.05 * whole.abs() + 1e-6, "pair {pair}: {whole} {half}");
        outside += usize::from(parts[k][pair] == 0.0 && predicted(pair, k) != 0.0);
    }
    assert_eq!(outside, 2 * (12 - batch.len()), "pairs outside of the batch move too");
}

#[test]
fn states_that_are_not_read_are_named() {
    let of = Folder::new();
    let words = |state: &std::path::Path| {
        let state = state.display().to_string();
        of.words("analyze", "pairs.jsonl", "out", &["--metric", "adam", "--optimizer", &state, "--limit", "1"])
    };
    let file = |name: &str| {
        let folder = of.path(&format!("of-{name}"));
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join(name), "").unwrap();
        folder
    };
    for (name, whose) in [
        ("global_step3", "DeepSpeed"),
        ("zero_pp_rank_0_mp_rank_00_optim_states.pt", "DeepSpeed"),
        ("optimizer.bin", "FSDP"),
    ] {
        let line = error_line(&run(words(&file(name))));
        assert!(line.contains(name) && line.contains(whose), "{line}");
    }
    let line = error_line(&run(words(&file("optimizer.pt").join("optimizer.pt"))));
    assert!(line.contains("optimizer.pt") && line.contains("is it complete"), "{line}");
    // a state dict that is no optimizer's
    let weights = repository("tests/golden/interference/full/model.safetensors");
    let line = error_line(&run(words(&weights)));
    assert!(line.contains("optimizer"), "{line}");
    let plain = of.words("analyze", "pairs.jsonl", "out", &["--optimizer", "x", "--limit", "1"]);
    assert!(error_line(&run(plain)).contains("--metric"));
}
