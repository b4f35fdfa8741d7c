//! `analyze` and `tokens` in shards: whatever runs where and when, the folder is the one that a single call writes, byte for byte.
use crate::support::{error_line, files, ids_row, llama, run, same, succeed, tanglescope, write_model};
use std::path::PathBuf;

struct Folder(tempfile::TempDir);

impl Folder {
    /// A model, pairs of three parts of an analysis, and groups of as many.
    fn new() -> Self {
        let of = Self(tempfile::tempdir().unwrap());
        write_model(&of.path("model"), &llama(1, true));
        let ids = |from: u32, n: u32| (from..from + n).map(|t| t % 40).collect::<Vec<u32>>();
        let row = |i: u32| ids_row(&ids(i, 1 + i % 9), &ids(2 * i, 1 + i % 5), &ids(3 * i + 1, 1 + i % 7));
        std::fs::write(of.path("pairs.jsonl"), (0..150).map(row).collect::<Vec<_>>().join("\n")).unwrap();
        let group = |i: u32| {
            let responses: Vec<Vec<u32>> = (0..2 + i % 3).map(|k| ids(i + 7 * k, 1 + (i + k) % 4)).collect();
            let scores: Vec<u32> = (0..2 + i % 3).collect();
            serde_json::json!({"prompt_ids": ids(i, 3), "responses_ids": responses, "scores": scores}).to_string()
        };
        std::fs::write(of.path("groups.jsonl"), (0..140).map(group).collect::<Vec<_>>().join("\n")).unwrap();
        of
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn words(&self, command: &str, data: &str, out: &str, more: &[&str]) -> Vec<String> {
        let text = |name: &str| self.path(name).display().to_string();
        let (model, data, out) = (text("model"), text(data), text(out));
        let words = [command, "--model", &model, "--data", &data, "--out", &out, "--device", "cpu"];
        words.iter().chain(more).map(|word| (*word).to_owned()).collect()
    }
}

/// The program, at work without a word.
fn quiet(words: Vec<String>) -> std::process::Child {
    use std::process::Stdio;
    tanglescope().args(words).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

#[test]
fn shards_join_into_the_folder_of_one_call() {
    let of = Folder::new();
    // of a pair, of the whole data as a batch, of other rows' responses
    let losses =
        ["--objective", "dpo", "--objective", "aot", "--objective", "kto", "--scope", "full", "--reference", "self"];
    let groups = ["--all-pairs", "--group-objective", "grpo", "--objective", "simpo", "--scope", "full"];
    for (name, command, data, more) in [
        ("pairs", "analyze", "pairs.jsonl", &losses[..]),
        ("groups", "analyze", "groups.jsonl", &groups[..]),
        ("tokens", "tokens", "pairs.jsonl", &["--scope", "full", "--limit", "30", "--positions"][..]),
    ] {
        let whole = format!("{name}-whole");
        succeed(of.words(command, data, &whole, more));
        let whole = files(&of.path(&whole));
        assert!(!whole.is_empty());
        let shard = |out: &str, shard: &str| of.words(command, data, out, &[more, &["--shard", shard]].concat());
        // one after the other, not in order, one of them twice and one with nothing to do
        let one = format!("{name}-one");
        for number in ["4/5", "2/5", "5/5", "2/5", "1/5", "3/5"] {
            succeed(shard(&one, number));
        }
        same(&files(&of.path(&one)), &whole, &one);
        // at once
        let both = format!("{name}-both");
        let children: Vec<_> = ["1/3", "2/3", "3/3"].into_iter().map(|number| quiet(shard(&both, number))).collect();
        for mut child in children {
            assert!(child.wait().unwrap().success());
        }
        same(&files(&of.path(&both)), &whole, &both);
    }
}

#[test]
fn what_takes_all_pairs_waits_for_all_shards() {
    let of = Folder::new();
    let words = |out: &str, more: &[&str]| {
        of.words("analyze", "pairs.jsonl", out, &[&["--mean-gradients", "--objective", "sft_batch"], more].concat())
    };
    succeed(words("whole", &[]));
    let first = run(words("shards", &["--shard", "1/2"]));
    let said = String::from_utf8_lossy(&first.stderr).into_owned();
    assert!(first.status.success() && said.contains("mean gradients") && said.contains("--shard"), "{said}");
    assert!(!of.path("shards/objectives.parquet/00003.parquet").exists(), "of half of the pairs");
    succeed(words("shards", &["--shard", "2/2"]));
    assert!(of.path("shards/objectives.parquet/00003.parquet").exists());
    succeed(words("shards", &[]));
    same(&files(&of.path("shards")), &files(&of.path("whole")), "means");
    for (shard, part) in [("0/2", "I from 1 to N"), ("half", "expected I/N")] {
        let said = error_line(&run(words("x", &["--shard", shard])));
        assert!(said.contains(part), "{said}");
    }
}
