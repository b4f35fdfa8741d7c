//! Models, adapters and data from a server on this machine that speaks the hub's protocol: redirects, etags, ranges, refusals, and
//! connections that break.
use crate::support;
use crate::support::{
    Random, Tensors, error_line, ids_row, llama, tanglescope, write_json, write_model, write_tensors,
};
use safetensors::Dtype;
use serde_json::json;
use std::collections::{BTreeMap, HashMap};
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What the server does wrong, and what was asked of it.
#[derive(Default)]
struct State {
    /// Requests for contents, by path.
    asked: Vec<String>,
    /// Answers that say that too much is asked.
    busy: usize,
    /// Bytes of a file after which the connection is cut, once a file.
    cut: HashMap<String, usize>,
    /// The token that is needed.
    token: Option<String>,
    /// Whether the answer to every request is an error of the server's own.
    broken: bool,
    /// Whether answers are compressed, whatever was asked for, and so say nothing of parts.
    compressed: bool,
    /// Whether large files lie under an address without a host, and further on under one of another host.
    relative: bool,
    /// Whether parts are not known, and all is sent.
    whole: bool,
    /// Seconds that answers which say that too much is asked ask to wait.
    pause: Option<u64>,
    /// Whether a token came to where files lie.
    leaked: bool,
}

/// Files of repositories by `models/org/name` or `datasets/org/name`.
type Files = BTreeMap<String, BTreeMap<String, Vec<u8>>>;

struct Server {
    endpoint: String,
    state: Arc<Mutex<State>>,
}

impl Server {
    fn start(files: Files) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let (state, host) = (Arc::new(Mutex::new(State::default())), endpoint.clone());
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (files, state, host) = (files.clone(), Arc::clone(&shared), host.clone());
                std::thread::spawn(move || answer(stream, &files, &state, &host));
            }
        });
        Self { endpoint, state }
    }

    fn set(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock().unwrap());
    }

    /// Paths of the contents that were asked for since the last time.
    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.state.lock().unwrap().asked)
    }
}

fn etag(bytes: &[u8]) -> String {
    use sha2::{Digest, Sha256};
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The commit that a branch of a run is.
fn commit(name: &str) -> String {
    etag(name.as_bytes())[..40].to_owned()
}

fn send(mut stream: &TcpStream, status: &str, headers: &[(&str, String)], body: &[u8], most: usize) {
    let lines: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n{lines}", body.len());
    let _ = stream.write_all(format!("{head}\r\n").as_bytes());
    let _ = stream.write_all(&body[..body.len().min(most)]);
    let _ = stream.flush();
}

fn packed(bytes: &[u8]) -> Vec<u8> {
    let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    packer.write_all(bytes).unwrap();
    packer.finish().unwrap()
}

/// What is known of a repository: its branches, or its files at one.
fn answer_api(stream: &TcpStream, path: &str, files: &Files, compressed: bool) {
    let encoding = ("content-encoding", "gzip".to_owned());
    if let Some(repository) = path.strip_suffix("/refs") {
        let revisions = files.keys().filter_map(|key| key.strip_prefix(repository)?.strip_prefix('@'));
        let of = |name: &str| json!({"name": name, "ref": format!("refs/heads/{name}"), "targetCommit": commit(name)});
        let body = json!({"branches": revisions.map(of).collect::<Vec<_>>(), "tags": [], "converts": []}).to_string();
        return send(stream, "200 OK", &[], body.as_bytes(), usize::MAX);
    }
    let repository = path.split("/revision/").next().unwrap();
    let revision = path.rsplit('/').next().unwrap();
    let plain = files.get(repository).filter(|_| ["main", "v1", COMMIT].contains(&revision));
    let named = files.iter().find_map(|(key, of)| {
        let name = key.strip_prefix(repository)?.strip_prefix('@')?;
        (name == revision || commit(name) == revision).then(|| (of, commit(name)))
    });
    let (of, sha) = match named {
        Some(found) => found,
        None => match plain {
            Some(of) => (of, COMMIT.to_owned()),
            None => return send(stream, "404 Not Found", &[], b"", 0),
        },
    };
    let siblings: Vec<_> = of.keys().map(|name| json!({"rfilename": name})).collect();
    let body = json!({"sha": sha, "siblings": siblings}).to_string();
    match compressed {
        true => send(stream, "200 OK", &[encoding], &packed(body.as_bytes()), usize::MAX),
        false => send(stream, "200 OK", &[], body.as_bytes(), usize::MAX),
    }
}

/// One request: repository information, a file or the place where it lies, or a part of its contents.
fn answer(stream: TcpStream, files: &Files, state: &Mutex<State>, host: &str) {
    let mut lines = BufReader::new(&stream).lines().map_while(Result::ok);
    let request = lines.next().unwrap_or_default();
    let headers: HashMap<String, String> = lines
        .by_ref()
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.split_once(": ").map(|(name, value)| (name.to_lowercase(), value.to_owned())))
        .collect();
    let path = request.split(' ').nth(1).unwrap_or_default().trim_start_matches('/').to_owned();
    let mut state = state.lock().unwrap();
    if state.broken {
        return;
    }
    if state.busy > 0 {
        state.busy -= 1;
        let pause: Vec<_> = state.pause.map(|seconds| ("retry-after", seconds.to_string())).into_iter().collect();
        return send(&stream, "429 Too Many Requests", &pause, b"", 0);
    }
    let known =
        state.token.as_ref().is_none_or(|token| headers.get("authorization") == Some(&format!("Bearer {token}")));
    if !known && !path.starts_with("cdn/") {
        return send(&stream, "401 Unauthorized", &[], b"", 0);
    }
    let range = headers.get("range").and_then(|range| range.strip_prefix("bytes=")?.split_once('-'));
    let part = |bytes: &[u8]| {
        let (from, to) = range.unwrap_or(("0", ""));
        let from: usize = from.parse().unwrap();
        let to = to.parse::<usize>().map_or(bytes.len(), |to| (to + 1).min(bytes.len()));
        (bytes[from.min(to)..to].to_vec(), format!("bytes {from}-{}/{}", to.max(1) - 1, bytes.len()))
    };
    state.leaked |= path.starts_with("cdn/") && headers.contains_key("authorization");
    if let Some(path) = path.strip_prefix("api/") {
        return answer_api(&stream, path, files, state.compressed);
    }
    let (repository, revision, name) = match path.strip_prefix("cdn/") {
        Some(rest) => rest.split_once("/file/").map(|(repository, name)| (repository, "", name)).unwrap(),
        None => path
            .split_once("/resolve/")
            .map(|(repository, rest)| (repository, rest.split_once('/').unwrap()))
            .map(|(repository, (revision, name))| (repository, revision, name))
            .unwrap(),
    };
    let key = if repository.starts_with("datasets/") || repository.starts_with("models/") {
        repository.to_owned()
    } else {
        format!("models/{repository}")
    };
    let of_commit = |of: &&String| {
        of.strip_prefix(&key).is_some_and(|name| name.starts_with('@') && commit(&name[1..]) == revision)
    };
    let key = files.keys().find(of_commit).cloned().unwrap_or(key);
    let Some(bytes) = files.get(&key).and_then(|of| of.get(name)) else {
        return send(&stream, "404 Not Found", &[], b"", 0);
    };
    let own = [("x-repo-commit", COMMIT.to_owned())];
    if !path.starts_with("cdn/") && name.ends_with(".safetensors") {
        // large files lie elsewhere
        let mut headers = own.to_vec();
        headers.push(("x-linked-etag", format!("\"{}\"", etag(bytes))));
        // as files under Xet: the hash and the length are in the first answer, and another host has the bytes
        let elsewhere = match state.relative {
            true => format!("/cdn/{key}/file/{name}"),
            false => format!("{}/cdn/{key}/file/{name}", host.replace("127.0.0.1", "localhost")),
        };
        headers.push(("x-linked-size", bytes.len().to_string()));
        headers.push(("location", elsewhere));
        return send(&stream, "302 Found", &headers, b"", 0);
    }
    let (body, content_range) = part(bytes);
    let mut headers = own.to_vec();
    headers.push(("etag", format!("\"{}\"", etag(bytes))));
    headers.push(("content-range", content_range));
    let is_contents = range != Some(("0", "0"));
    if is_contents {
        state.asked.push(format!("{name} from {}", range.unwrap_or(("0", "")).0));
    }
    let most = if is_contents { state.cut.remove(name).unwrap_or(usize::MAX) } else { usize::MAX };
    if state.compressed && !path.starts_with("cdn/") {
        headers.pop();
        headers.push(("content-encoding", "gzip".to_owned()));
        return send(&stream, "200 OK", &headers, &packed(bytes), usize::MAX);
    }
    if state.whole {
        headers.pop();
        return send(&stream, "200 OK", &headers, bytes, most);
    }
    drop(state);
    send(&stream, "206 Partial Content", &headers, &body, most);
}

fn read_folder(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    files.map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), std::fs::read(&path).unwrap())).collect()
}

/// A model whole and in shards, an adapter, and a data set of two parts.
fn repositories(folder: &Path) -> Files {
    let (config, tensors) = llama(2, false);
    let (model, sharded, adapter) = (folder.join("model"), folder.join("sharded"), folder.join("adapter"));
    write_model(&model, &(config.clone(), tensors.clone()));
    std::fs::create_dir_all(&sharded).unwrap();
    write_json(&sharded.join("config.json"), &config);
    let mut shards = [Tensors::new(), Tensors::new()];
    let mut map = serde_json::Map::new();
    for (i, (name, tensor)) in tensors.iter().enumerate() {
        shards[i % 2].insert(name.clone(), tensor.clone());
        map.insert(name.clone(), format!("model-{}.safetensors", i % 2).into());
    }
    for (i, shard) in shards.iter().enumerate() {
        write_tensors(&sharded.join(format!("model-{i}.safetensors")), shard, Dtype::F32);
    }
    write_json(&sharded.join("model.safetensors.index.json"), &json!({ "weight_map": map }));
    std::fs::create_dir_all(&adapter).unwrap();
    let of = json!({"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]});
    write_json(&adapter.join("adapter_config.json"), &of);
    let mut random = Random::new(9);
    let mut factors = Tensors::new();
    for name in tensors.keys().filter(|name| name.contains("q_proj.weight")) {
        let [outputs, inputs] = tensors[name].shape[..] else { panic!("{name} is a matrix") };
        let module = format!("base_model.model.{}", name.replace(".weight", ""));
        factors.insert(format!("{module}.lora_A.weight"), random.tensor(&[2, inputs], 0.5));
        factors.insert(format!("{module}.lora_B.weight"), random.tensor(&[outputs, 2], 0.5));
    }
    write_tensors(&adapter.join("adapter_model.safetensors"), &factors, Dtype::F32);
    let row = |id: u32| (ids_row(&[1, 2], &[id], &[4, 5]) + "\n").into_bytes();
    let data = [("data/train.jsonl", row(3)), ("data/test.jsonl", row(6)), ("README.md", b"x".to_vec())];
    let data = data.into_iter().map(|(name, bytes)| (name.to_owned(), bytes)).collect();
    let mut model_files = read_folder(&model);
    model_files.insert("pytorch_model.bin".to_owned(), b"never read".to_vec());
    Files::from([
        ("models/org/model".to_owned(), model_files),
        ("models/org/sharded".to_owned(), read_folder(&sharded)),
        ("models/org/adapter".to_owned(), read_folder(&adapter)),
        ("models/org/bare".to_owned(), [("config.json".to_owned(), b"{}".to_vec())].into()),
        ("datasets/org/pairs".to_owned(), data),
        ("models/org/run@step5".to_owned(), changed(&read_folder(&model), 5)),
        ("models/org/run@step10".to_owned(), changed(&read_folder(&model), 10)),
        ("models/org/run@step100-old".to_owned(), changed(&read_folder(&model), 100)),
        ("models/org/run@main".to_owned(), read_folder(&model)),
        ("models/org/half@step1".to_owned(), [("config.json".to_owned(), b"{}".to_vec())].into()),
        ("models/org/half@step2".to_owned(), read_folder(&model)),
        ("datasets/org/odd".to_owned(), [("../../x.jsonl".to_owned(), b"{}".to_vec())].into()),
    ])
}

/// A model with a part of its numbers changed.
fn changed(files: &BTreeMap<String, Vec<u8>>, by: u8) -> BTreeMap<String, Vec<u8>> {
    let mut files = files.clone();
    let weights = files.get_mut("model.safetensors").unwrap();
    let last = weights.len() - 4;
    // the sign and the lowest bits of the last number
    weights[last] = by;
    files
}

/// A way in which a server answers.
type Way = fn(&mut State);

struct Case {
    folder: tempfile::TempDir,
    server: Server,
    home: PathBuf,
}

impl Case {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let server = Server::start(repositories(folder.path()));
        let home = folder.path().join("home");
        Self { folder, server, home }
    }

    /// The program with this hub and no other, where what is no repository is looked for in the case's folder.
    fn command(&self) -> Command {
        let mut command = tanglescope();
        for name in ["HF_TOKEN", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HUGGINGFACE_HUB_CACHE", "TRANSFORMERS_OFFLINE"] {
            command.env_remove(name);
        }
        command.env("HF_HOME", &self.home).env("HF_ENDPOINT", &self.server.endpoint).current_dir(self.folder.path());
        command
    }

    fn analyze(&self, out: &str, model: &str, more: &[&str], variables: &[(&str, &str)]) -> Output {
        let out = self.folder.path().join(out);
        let base = ["analyze", "--device", "cpu", "--dtype", "f64", "--scope", "lora", "--model", model];
        let mut command = self.command();
        command.envs(variables.iter().copied()).args(base).arg("--out").arg(out).args(more).output().unwrap()
    }

    fn wl(&self, out: &str) -> Option<f64> {
        support::numbers(&self.folder.path().join(out), "pairs.parquet", "wl")[0]
    }

    fn blobs(&self, repository: &str) -> Vec<String> {
        let folder = self.home.join("hub").join(repository).join("blobs");
        let names = std::fs::read_dir(folder).into_iter().flatten().flatten();
        names
            .map(|entry| entry.file_name().to_str().unwrap().to_owned())
            .filter(|name| !name.contains(".lock"))
            .collect()
    }
}

fn ok(output: &Output) {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn models_adapters_and_data_come_from_the_hub_once_and_are_kept() {
    let case = Case::new();
    let local = ["--adapter", "adapter", "--data", "pairs.jsonl"];
    std::fs::write(case.folder.path().join("pairs.jsonl"), ids_row(&[1, 2], &[3], &[4, 5])).unwrap();
    ok(&case.analyze("here", "model", &local, &[]));
    assert!(case.server.asked().is_empty());

    let hub = ["--adapter", "org/adapter", "--data", "org/pairs"];
    ok(&case.analyze("fetched", "org/model", &hub, &[]));
    assert_eq!(case.wl("fetched"), case.wl("here"));
    // no pickled weights, no other part of the data, nothing twice
    let mut asked = case.server.asked();
    asked.sort();
    let names: Vec<&str> = asked.iter().map(|of| of.split(' ').next().unwrap()).collect();
    let wanted =
        ["adapter_config.json", "adapter_model.safetensors", "config.json", "data/train.jsonl", "model.safetensors"];
    assert_eq!(names, wanted);
    let manifest = std::fs::read_to_string(case.folder.path().join("fetched/manifest.json")).unwrap();
    for name in ["org/model", "org/adapter", "org/pairs"] {
        assert!(manifest.contains(&format!("{name}@{COMMIT}")), "{manifest}");
    }
    // the other part, the same model
    ok(&case.analyze("test", "org/model", &["--data", "org/pairs", "--split", "test"], &[]));
    assert_eq!(case.server.asked(), ["data/test.jsonl from 0"]);
    // shards, at a revision
    ok(&case.analyze("sharded", "org/sharded@v1", &local, &[]));
    assert_eq!(case.wl("sharded"), case.wl("here"));
    // nothing is asked where that is forbidden, and what is not there is said
    case.server.asked();
    ok(&case.analyze("offline", "org/model", &local, &[("HF_HUB_OFFLINE", "1")]));
    let output = case.analyze("none", "org/other", &local, &[("HF_HUB_OFFLINE", "1")]);
    assert_eq!(output.status.code(), Some(2));
    assert!(error_line(&output).contains("HF_HUB_OFFLINE"));
    assert!(case.server.asked().is_empty());
    // a hub that cannot be reached: the cache, or a sentence
    case.server.set(|state| state.broken = true);
    let output = case.analyze("cut off", "org/model", &local, &[]);
    ok(&output);
    assert!(String::from_utf8_lossy(&output.stderr).contains("cannot be reached"));
    let output = case.analyze("none", "org/other", &local, &[]);
    assert!(error_line(&output).contains("cannot be reached"));
}

#[test]
fn what_breaks_off_goes_on_and_nothing_half_is_used() {
    let case = Case::new();
    std::fs::write(case.folder.path().join("pairs.jsonl"), ids_row(&[1, 2], &[3], &[4, 5])).unwrap();
    let data = ["--data", "pairs.jsonl"];
    ok(&case.analyze("here", "model", &data, &[]));
    // busy at first, and cut in the middle of the weights
    case.server.set(|state| {
        state.busy = 2;
        state.cut.insert("model.safetensors".to_owned(), 1000);
    });
    ok(&case.analyze("fetched", "org/model", &data, &[]));
    assert_eq!(case.wl("fetched"), case.wl("here"));
    let asked = case.server.asked();
    assert!(asked.contains(&"model.safetensors from 1000".to_owned()), "{asked:?}");
    assert!(case.blobs("models--org--model").iter().all(|name| name.len() == 64));
    // a part of an earlier process
    let blobs = case.home.join("hub/models--org--sharded/blobs");
    std::fs::create_dir_all(&blobs).unwrap();
    let shard = std::fs::read(case.folder.path().join("sharded/model-0.safetensors")).unwrap();
    std::fs::write(blobs.join(etag(&shard)).with_extension("part"), &shard[..500]).unwrap();
    ok(&case.analyze("sharded", "org/sharded", &data, &[]));
    assert_eq!(case.wl("sharded"), case.wl("here"));
    assert!(case.server.asked().contains(&"model-0.safetensors from 500".to_owned()));
}

#[test]
fn refusals_say_what_to_do() {
    let case = Case::new();
    std::fs::write(case.folder.path().join("pairs.jsonl"), ids_row(&[1, 2], &[3], &[4, 5])).unwrap();
    let refuse = |model: &str, more: &[&str], told: &str| {
        let output = case.analyze("none", model, more, &[]);
        assert_eq!(output.status.code(), Some(2));
        let line = error_line(&output);
        assert!(line.contains(told), "{line}");
        assert!(!case.folder.path().join("none").exists());
    };
    let data = ["--data", "pairs.jsonl"];
    refuse("org/nothing", &data, "no repository or revision");
    refuse("org/model@v9", &data, "org/model@v9");
    refuse("org/bare", &data, "has no model.safetensors and no pytorch_model.bin");
    refuse("org/adapter", &data, "config.json");
    refuse("model", &["--data", "org/pairs", "--split", "dev"], "`dev`");
    refuse("model", &["--data", "org/odd"], "no name of a file");
    case.server.set(|state| state.token = Some("secret".to_owned()));
    refuse("org/model", &data, "HF_TOKEN");
    ok(&case.analyze("let in", "org/model", &data, &[("HF_TOKEN", "secret")]));
    // a token in the file that `hf auth login` writes
    std::fs::write(case.home.join("token"), "secret\n").unwrap();
    ok(&case.analyze("let in too", "org/sharded", &data, &[]));
}

#[test]
fn hubs_and_mirrors_answer_in_their_own_ways() {
    let case = Case::new();
    std::fs::write(case.folder.path().join("pairs.jsonl"), ids_row(&[1, 2], &[3], &[4, 5])).unwrap();
    let data = ["--data", "pairs.jsonl"];
    ok(&case.analyze("here", "model", &data, &[]));
    // the token goes to the hub, and not to where its files lie
    case.server.set(|state| state.token = Some("secret".to_owned()));
    ok(&case.analyze("let in", "org/model", &data, &[("HF_TOKEN", "secret")]));
    case.server.set(|state| {
        assert!(!std::mem::take(&mut state.leaked));
        state.token = None;
    });
    let ways: [(&str, Way); 4] = [
        ("compressed", |state| state.compressed = true),
        ("relative", |state| state.relative = true),
        ("whole", |state| {
            // and it breaks off, so that all comes again
            state.whole = true;
            state.cut.insert("model.safetensors".to_owned(), 700);
        }),
        ("pause", |state| (state.busy, state.pause) = (1, Some(1))),
    ];
    for (name, way) in ways {
        std::fs::remove_dir_all(case.home.join("hub")).unwrap();
        case.server.set(|state| *state = State::default());
        case.server.set(way);
        let begun = std::time::Instant::now();
        ok(&case.analyze(name, "org/model", &data, &[]));
        assert_eq!(case.wl(name), case.wl("here"), "{name}");
        assert!(name != "pause" || begun.elapsed() >= std::time::Duration::from_secs(1));
        assert!(case.blobs("models--org--model").iter().all(|blob| blob.len() == 64), "{name}");
    }
    // a pause that nobody waits for is said at once
    std::fs::remove_dir_all(case.home.join("hub")).unwrap();
    case.server.set(|state| *state = State { busy: 1, pause: Some(4000), ..State::default() });
    let output = case.analyze("none", "org/model", &data, &[]);
    assert!(error_line(&output).contains("too many requests"));
    // what arrives otherwise than it is on the hub is not kept
    case.server.set(|state| *state = State::default());
    let blobs = case.home.join("hub/models--org--model/blobs");
    std::fs::create_dir_all(&blobs).unwrap();
    let weights = std::fs::read(case.folder.path().join("model/model.safetensors")).unwrap();
    std::fs::write(blobs.join(etag(&weights)).with_extension("part"), vec![0; 400]).unwrap();
    let output = case.analyze("none", "org/model", &data, &[]);
    assert!(error_line(&output).contains("did not arrive as it is on the hub"), "{}", error_line(&output));
    ok(&case.analyze("again", "org/model", &data, &[]));
    assert_eq!(case.wl("again"), case.wl("here"));
}

#[test]
fn revisions_are_the_steps_of_a_run_and_are_given_back() {
    let case = Case::new();
    std::fs::write(case.folder.path().join("pairs.jsonl"), ids_row(&[1, 2], &[3], &[4, 5])).unwrap();
    let sweep_of = |repository: &str, more: &[&str]| {
        let base =
            ["sweep", repository, "--data", "pairs.jsonl", "--out", "swept", "--device", "cpu", "--dtype", "f64"];
        case.command().args(base).args(["--scope", "full"]).args(more).output().unwrap()
    };
    let sweep = |more: &[&str]| sweep_of("org/run", more);
    let snapshots = || {
        let found = std::fs::read_dir(case.home.join("hub/models--org--run/snapshots")).into_iter().flatten().flatten();
        found.map(|entry| entry.file_name().into_string().unwrap()).collect::<Vec<_>>()
    };
    ok(&sweep(&["--revisions", "step*", "--keep", "1"]));
    // by number, and the last stays; the contents that it shares with none are given back
    assert_eq!(snapshots(), [commit("step100-old")]);
    assert_eq!(case.blobs("models--org--run").iter().filter(|name| name.len() == 64).count(), 2);
    let wl = |step: usize| {
        let out = case.folder.path().join(format!("swept/run=run/step={step}/dataset=pairs"));
        support::numbers(&out, "pairs.parquet", "wl")[0].unwrap().to_bits()
    };
    assert!(wl(5) != wl(10) && wl(10) != wl(100));
    // what is measured is not fetched again, and all of it where something else is asked
    case.server.asked();
    ok(&sweep(&["--revisions", "step*", "--keep", "1"]));
    assert!(case.server.asked().is_empty());
    let output = sweep(&["--revisions", "step*", "--objective", "simpo"]);
    ok(&output);
    assert_eq!(snapshots().len(), 3);
    // one that cannot be fetched is left out, and the others are not
    let output = sweep_of("org/half", &["--revisions", "step*"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(error_line(&output).contains("step 1"), "{}", error_line(&output));
    assert!(case.folder.path().join("swept/run=half/step=2/dataset=pairs/manifest.json").is_file());
    for (more, told) in [(["--revisions", "none*"], "no revision with a step"), (["--revisions", "[*"], "--revisions")]
    {
        let output = sweep(&more);
        assert_eq!(output.status.code(), Some(2));
        assert!(error_line(&output).contains(told), "{}", error_line(&output));
    }
}
