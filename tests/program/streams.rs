//! Standard output and error that cannot be written, and paths of every kind: an exit code and a line, never a panic.
use crate::support::{analyze, demo, ids_row, llama, succeed, tanglescope, write_model};
use std::ffi::OsString;
use std::fs::File;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

/// A model, data, and records of it.
fn inputs() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    write_model(&at("model"), &llama(1, true));
    std::fs::write(at("data.jsonl"), [ids_row(&[1, 2], &[3], &[4]), ids_row(&[1, 2], &[3, 4], &[5])].join("\n"))
        .unwrap();
    succeed(analyze(&at("model"), &at("data.jsonl"), &at("records")));
    folder
}

/// Every command, each into a folder of its own.
fn commands(folder: &Path, number: usize) -> Vec<Vec<String>> {
    let at = |name: &str| folder.join(name).display().to_string();
    let out = |name: &str| at(&format!("{name}-{number}"));
    let (model, data, records) = (at("model"), at("data.jsonl"), at("records"));
    let on = ["--model", &model, "--data", &data, "--device", "cpu"];
    let of = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    let with = |command: &str, more: &[&str]| of(&[&[command], on.as_slice(), more].concat());
    vec![
        with("analyze", &["--out", &out("analyze")]),
        with("analyze", &["--out", &out("dry"), "--dry-run"]),
        with("tokens", &["--out", &out("tokens")]),
        of(&["rows", "--model", &model, "--data", &data]),
        with("train", &["--out", &out("train"), "--objective", "dpo", "--max-steps", "1", "--batch-size", "2"]),
        with("verify", &["--pairs", "1", "--objective", "cpo"]),
        of(&["sweep", &model, "--data", &data, "--out", &out("sweep"), "--device", "cpu", "--scope", "full"]),
        of(&["bench", "--dry-run", "--device", "cpu"]),
        of(&["summarize", &records]),
        of(&["report", &records, "--out", &out("report.html")]),
        of(&["objectives"]),
        of(&["devices"]),
        of(&["demo", "--dry-run"]),
        of(&["completions", "bash"]),
        of(&["man", "--out", &out("man")]),
    ]
}

fn finish(mut command: Command) -> Output {
    command.stdin(Stdio::null()).spawn().unwrap().wait_with_output().unwrap()
}

fn full() -> Stdio {
    File::options().write(true).open("/dev/full").unwrap().into()
}

#[test]
fn a_reader_that_goes_ends_nothing_and_a_full_output_is_an_error() {
    let folder = inputs();
    for (number, words) in commands(folder.path(), 0).into_iter().enumerate() {
        let mut command = tanglescope();
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        command.args(&words).stdout(writer).stderr(Stdio::piped());
        let output = finish(command);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(0), "{words:?}: {said}");
        assert!(!said.contains("panicked"), "{words:?}: {said}");
        // the same command again, from where it is
        let words = &commands(folder.path(), 1)[number];
        let mut command = tanglescope();
        command.args(words).stdout(full()).stderr(Stdio::piped());
        let output = finish(command);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        // a sweep and a folder of manual pages print nothing
        let prints = !["sweep", "man"].contains(&words[0].as_str());
        assert_eq!(output.status.code(), Some(i32::from(prints)), "{words:?}: {said}");
        let last = said.lines().last().unwrap_or_default();
        assert!(!prints || last.starts_with("error: standard output: cannot be written"), "{words:?}: {said}");
    }
}

#[test]
fn nobody_who_listens_ends_nothing() {
    let folder = inputs();
    for words in commands(folder.path(), 2) {
        let mut command = tanglescope();
        command.args(&words).stdout(Stdio::piped()).stderr(full());
        let output = finish(command);
        assert_eq!(output.status.code(), Some(0), "{words:?}");
    }
    // an error that nobody hears is one all the same
    let mut command = tanglescope();
    command.args(["summarize", "/nowhere"]).stdout(Stdio::piped()).stderr(full());
    assert_eq!(finish(command).status.code(), Some(2));
}

#[test]
fn json_parses_for_every_command_and_dry_run() {
    let folder = inputs();
    for mut words in commands(folder.path(), 3) {
        words.push("--json".to_owned());
        let printed = succeed(&words);
        assert!(serde_json::from_str::<serde_json::Value>(&printed).is_ok(), "{words:?}: {printed}");
    }
    let mut train = commands(folder.path(), 4).remove(4);
    train.extend(["--dry-run", "--json"].map(str::to_owned));
    assert_eq!(serde_json::from_str::<serde_json::Value>(&succeed(&train)).unwrap()["steps"], 1);
}

#[test]
fn paths_need_not_be_text_and_have_to_be_files_or_folders() {
    let folder = inputs();
    let odd = folder.path().join(OsString::from_vec(b"odd-\xFF-name".to_vec()));
    std::fs::create_dir(&odd).unwrap();
    let (model, data) = (odd.join("model"), odd.join("data.jsonl"));
    write_model(&model, &llama(1, true));
    std::fs::copy(folder.path().join("data.jsonl"), &data).unwrap();
    let words = |out: &Path| -> Vec<OsString> {
        let [m, d, o] = [&model, &data, out].map(|path| path.as_os_str().to_owned());
        let of = |text: &str| OsString::from(text);
        vec![of("analyze"), of("--model"), m, of("--data"), d, of("--out"), o, of("--device"), of("cpu")]
    };
    succeed(words(&odd.join("out")));
    // the library that reads tables takes paths as text
    let output = crate::support::run([OsString::from("summarize"), odd.join("out").into_os_string()]);
    assert_eq!(output.status.code(), Some(2));
    assert!(crate::support::error_line(&output).contains("not UTF-8"));
    // pipes and devices
    let pipe = folder.path().join("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let refused = |option: &str, path: &Path| {
        let mut given = words(&odd.join("none"));
        let at = given.iter().position(|word| word == option).unwrap() + 1;
        given[at] = path.as_os_str().to_owned();
        let output = crate::support::run(given);
        assert_eq!(output.status.code(), Some(2), "{option} {}", path.display());
        crate::support::error_line(&output)
    };
    assert!(refused("--data", &pipe).contains("a device or a pipe"));
    assert!(refused("--model", Path::new("/dev/zero")).contains("a device or a pipe"));
    std::fs::remove_file(model.join("config.json")).unwrap();
    std::os::unix::fs::symlink("/dev/zero", model.join("config.json")).unwrap();
    assert!(refused("--model", &model).contains("config.json: is no file"));
}

#[test]
fn a_path_in_the_wrong_place_is_named_for_what_it_is() {
    let folder = inputs();
    let at = |name: &str| folder.path().join(name).display().to_string();
    let (model, data, records) = (at("model"), at("data.jsonl"), at("records"));
    let adapter = folder.path().join("adapter");
    std::fs::create_dir(&adapter).unwrap();
    std::fs::write(adapter.join("adapter_config.json"), "{}").unwrap();
    let said = |words: &[&str]| {
        let output = crate::support::run(words);
        assert_eq!(output.status.code(), Some(2), "{words:?}");
        crate::support::error_line(&output)
    };
    let analyze = |model: &str, data: &str, more: &[&str]| {
        said(&[&["analyze", "--model", model, "--data", data, "--out", &at("none"), "--device", "cpu"], more].concat())
    };
    assert!(analyze(adapter.to_str().unwrap(), &data, &[]).contains("is a PEFT adapter, for --adapter"));
    assert!(analyze(&data, &data, &[]).contains("is a file of data, for --data"));
    assert!(analyze(&records, &data, &[]).contains("is a folder of analyze, for summarize and report"));
    assert!(analyze(&model, &model, &[]).contains("is a model, for --model"));
    assert!(analyze(&model, &data, &["--adapter", &model]).contains("is a model, for --model"));
    assert!(said(&["summarize", &model]).contains("is a model, for --model"));
    assert!(said(&["report", &model, "--out", &at("x.html")]).contains("is a model, for --model"));
    assert!(analyze(demo().join("nothing").to_str().unwrap(), &data, &[]).contains("no such folder"));
}
