//! Data as people have it: every format and layout gives the rows that its library wrote (tests/data_values.py), malformed files
//! are named, and a file larger than memory would do.
use crate::support::{demo, repository};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use tanglescope_data::{Dataset, Limits, Mapping, Reading, RecipeName, Sample, TextTokens};

const LIMITS: Limits = Limits { vocabulary: 1 << 20, positions: 1 << 20 };

/// The demo's tokenizer, with a template that shows where turns begin.
fn model() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(demo().join("tokenizer.json"), folder.path().join("tokenizer.json")).unwrap();
    let template = "{% for m in messages %}{% if loop.index0 == 0 or m.role == 'user' %}<{{ m.role }}>{% endif %}{{ m.content }}\
                    {% if m.role == 'user' and not loop.last %}<assistant>{% endif %}{% endfor %}\
                    {% if add_generation_prompt %}<assistant>{% endif %}";
    std::fs::write(folder.path().join("chat_template.jinja"), template).unwrap();
    folder
}

fn reading() -> Reading {
    Reading { recipe: RecipeName::Apart.recipe(), ..Reading::default() }
}

fn data(name: &str) -> PathBuf {
    repository("tests/golden/data").join(name)
}

/// Rows as expected.json has them.
fn rows(of: &Dataset, tokenizer: &TextTokens) -> Vec<Value> {
    let row = |pair: tanglescope_data::Pair| {
        let text = |ids: &Vec<u32>| tokenizer.join(ids);
        let (responses, scores) = match &pair.group {
            Some(group) => (group.responses.iter().map(text).collect(), group.scores.clone()),
            None => (vec![text(&pair.tokens.chosen), text(&pair.tokens.rejected)], None),
        };
        json!([pair.row, pair.id, text(&pair.tokens.prompt), responses, scores])
    };
    of.pairs.iter().map(|pair| row(pair.unwrap())).collect()
}

#[test]
fn every_format_and_layout_gives_the_rows_that_were_written() {
    let (model, expected) = (model(), std::fs::read(data("expected.json")).unwrap());
    let expected: serde_json::Map<String, Value> = serde_json::from_slice(&expected).unwrap();
    let tokenizer = TextTokens::open(&[model.path()]).unwrap();
    assert!(expected.len() > 30);
    for (name, want) in expected {
        let found = Dataset::read(&data(&name), &[model.path()], &reading(), LIMITS);
        let found = found.unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(Value::Array(rows(&found, &tokenizer)), want, "{name}");
        let told = ["comparisons", "ultrafeedback.", "helpsteer", "shp", "saferlhf", "nectar", "kto"];
        assert_eq!(
            found.recognised.iter().any(|note| note.contains("read as")),
            told.iter().any(|t| name.starts_with(t)),
            "{name}"
        );
        if name.starts_with("kto") {
            assert!(found.notes.iter().any(|note| note.contains("2 of 3 prompts")), "{:?}", found.notes);
        }
    }
    // ids come as they are
    let ids = Dataset::read(&data("ids.parquet"), &[Path::new("none")], &reading(), LIMITS).unwrap();
    let pair = ids.pairs.all().unwrap().remove(0);
    assert_eq!((pair.tokens.prompt, pair.tokens.rejected), (vec![1, 2], vec![4, 5]));
}

#[test]
fn parts_columns_limits_and_samples() {
    let model = model();
    let read = |name: &str, change: &dyn Fn(&mut Reading)| {
        let mut reading = reading();
        change(&mut reading);
        Dataset::read(&data(name), &[model.path()], &reading, LIMITS)
    };
    for folder in ["parts", "hub"] {
        assert_eq!(read(folder, &|of| of.split = Some("test".to_owned())).unwrap().pairs.len(), 1);
        let error = read(folder, &|of| of.split = Some("dev".to_owned())).unwrap_err().to_string();
        assert!(error.contains("`dev`") && error.contains("train"), "{error}");
    }
    for name in ["hub", "pandas.parquet", "pandas.csv", "pandas.json", "saved", "pandas.jsonl"] {
        let some = read(name, &|of| of.limit = Some(2)).unwrap();
        assert_eq!(some.pairs.all().unwrap().iter().map(|pair| pair.row).collect::<Vec<_>>(), [0, 1], "{name}");
        let sample = Some(Sample { rows: 2, seed: 3 });
        let some = read(name, &|of| of.sample = sample).unwrap().pairs.all().unwrap();
        let same = read("pandas.jsonl", &|of| of.sample = sample).unwrap().pairs.all().unwrap();
        assert_eq!(some, same, "{name}");
    }
    // columns by name and by path
    let map = |text: &str| Mapping::parse(text).unwrap();
    let named = map("prompt=rejected,chosen=prompt,rejected=chosen");
    let pair = read("pandas.csv", &|of| of.columns = named.clone()).unwrap().pairs.all().unwrap().remove(0);
    let tokenizer = TextTokens::open(&[model.path()]).unwrap();
    assert_eq!((tokenizer.join(&pair.tokens.prompt).as_str(), pair.id.as_deref()), ("No.", Some("a")));
    let inside = map("prompt=info.post,chosen=summaries.1.text,rejected=summaries.0.text");
    let pair = read("comparisons.parquet", &|of| of.columns = inside.clone()).unwrap().pairs.all().unwrap().remove(0);
    assert_eq!(tokenizer.join(&pair.tokens.chosen), " shorter");
    let missing = map("prompt=nothing");
    let error = read("pandas.csv", &|of| of.columns = missing.clone()).unwrap_err().to_string();
    assert!(error.contains("row 0") && error.contains("`nothing`") && error.contains("rejected"), "{error}");
    assert!(Mapping::parse("question=x").unwrap_err().contains("`question`"));
    assert!(Mapping::parse("prompt").unwrap_err().contains("NAME=COLUMN"));
}

#[test]
fn malformed_files_of_each_kind_are_named() {
    let (model, folder) = (model(), tempfile::tempdir().unwrap());
    let refuse = |name: &str, bytes: &[u8], told: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        let error = Dataset::read(&path, &[model.path()], &reading(), LIMITS).unwrap_err().to_string();
        assert!(error.contains(name) && error.contains(told), "{error}");
    };
    let whole = |name: &str| std::fs::read(data(name)).unwrap();
    let cut = |name: &str| {
        let bytes = whole(name);
        bytes[..bytes.len() / 2].to_vec()
    };
    refuse("a.parquet", b"PAR1 but no more", "cannot be read");
    refuse("b.parquet", &cut("pandas.parquet"), "cannot be read");
    refuse("c.arrow", b"\xFF\xFF\xFF\xFF\x10\0\0\0abc", "cannot be read");
    refuse("d.feather", &cut("pandas.feather"), "cannot be read");
    refuse("e.json", b"[{\"prompt\": \"a\", \"chosen\": \"b\", \"rejected\": \"c\"}, {\"pro", "JSON list");
    refuse("f.json", b"[1, 2]", "row 0");
    refuse("g.csv", b"prompt,chosen,rejected\na,b,c\na,b\n", "row 1");
    refuse("h.csv", b"prompt,chosen,rejected\n", "no rows");
    refuse("i.csv", b"prompt,chosen,rejected\na,b,\xFF\xFE\n", "UTF-8");
    refuse("j.jsonl.gz", b"not packed", "cannot be read");
    refuse("k.jsonl", b"{\"prompt\": \"a\", \"chosen\": \"b\", \"rejected\": \"c\"}\n[]\n", "row 1");
    refuse("l.jsonl", br#"{"history": "H", "human_ref_A": "x", "human_ref_B": 3, "labels": 1}"#, "human_ref_B");
    refuse("m.jsonl", br#"{"prompt": "P", "completion": "x", "label": true}"#, "no prompt has two responses");
    refuse("n.jsonl", br#"{"prompt": "P", "response_1": "x", "response_2": "y", "preference_strength": 0}"#, "neither");
}

/// Rows go through a file and no row is kept: twice as many take twice the time and hardly more memory.
#[test]
fn many_rows_are_read_in_flat_memory() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("many.jsonl");
    let row = json!({"prompt_ids": vec![1; 100], "chosen_ids": vec![2; 100], "rejected_ids": vec![3; 100]}).to_string()
        + "\n";
    let megabytes = || {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or("0 kB").to_owned();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() / 1024
    };
    std::fs::write(&path, row.repeat(20_000)).unwrap();
    let few = Dataset::read(&path, &[Path::new("none")], &reading(), LIMITS).unwrap();
    assert_eq!(few.pairs.len(), 20_000);
    let before = megabytes();
    std::fs::write(&path, row.repeat(5)).unwrap();
    let mut file = std::fs::OpenOptions::new().append(true).open(&path).unwrap();
    for _ in 0..10 {
        std::io::Write::write_all(&mut file, row.repeat(20_000).as_bytes()).unwrap();
    }
    let many = Dataset::read(&path, &[Path::new("none")], &reading(), LIMITS).unwrap();
    assert_eq!(many.pairs.len(), 200_005);
    assert_eq!(many.pairs.get(200_000..200_010).unwrap().last().unwrap().row, 200_004);
    // 240 MB of token ids; 2 MB of places in the file
    assert!(megabytes() - before < 100, "{} MB more", megabytes() - before);
}
