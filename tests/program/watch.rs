//! The report while its records are written: a small server on this machine alone.
use crate::support::{demo, repository, run, succeed, tanglescope};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Stdio};
use std::time::Duration;

/// A watched page; ended where a test ends.
struct Watched {
    process: Child,
    port: u16,
}

impl Watched {
    fn start(folders: &[&str]) -> Self {
        let words = [["report", "--watch=0"].as_slice(), folders].concat();
        let mut process = tanglescope().args(words).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(process.stderr.take().unwrap()).lines();
        let said = lines.next().unwrap().unwrap();
        let port = said.split("http://127.0.0.1:").nth(1).and_then(|rest| rest.split('/').next());
        let port = port.and_then(|port| port.parse().ok()).unwrap_or_else(|| panic!("{said}"));
        Self { process, port }
    }

    /// The whole answer to a request.
    fn get(&self, path: &str, host: &str) -> String {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream.set_read_timeout(Some(Duration::from_mins(1))).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    fn own(&self, path: &str) -> String {
        self.get(path, &format!("localhost:{}", self.port))
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn a_run_is_shown_while_it_trains_and_to_this_machine_alone() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    std::fs::create_dir(&run).unwrap();
    let watched = Watched::start(&[&run.display().to_string()]);
    // a connection that asks nothing, as browsers open, keeps nobody waiting
    let _idle = TcpStream::connect(("127.0.0.1", watched.port)).unwrap();
    let waiting = watched.own("/");
    assert!(waiting.contains("Waiting for records: ") && waiting.to_lowercase().contains("refresh: 2"), "{waiting}");
    let before = watched.own("/stamp");

    let (model, data) = (demo().display().to_string(), demo().join("long.jsonl").display().to_string());
    let words =
        ["train", "--model", &model, "--data", &data, "--out", &run.display().to_string(), "--objective", "dpo"];
    succeed([words.as_slice(), &["--limit", "8", "--max-steps", "2", "--batch-size", "4", "--device", "cpu"]].concat());
    let stamp = watched.own("/stamp");
    assert_ne!(stamp, before);
    let page = watched.own("/");
    assert!(page.contains("In 2 steps of training on dpo"), "{}", page.chars().take(2000).collect::<String>());
    // it asks for nothing but its stamp, and knows the one that it was made at
    assert!(page.contains("connect-src 'self'"));
    assert!(page.contains(&format!("data-watched=\"{}\"", stamp.lines().last().unwrap())));

    // the run is known through a link as well, and what of it cannot be shown is said beside the page that was
    let linked = folder.path().join("linked");
    std::fs::create_dir(&linked).unwrap();
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink(&run, linked.join("run")).unwrap();
        let watched = Watched::start(&[&linked.display().to_string()]);
        let page = watched.own("/");
        assert!(page.contains("In 2 steps of training on dpo"));
        let shown = watched.own("/stamp");
        let shown = shown.lines().last().unwrap();
        assert!(page.contains(&format!("data-watched=\"{shown}\"")));
        std::fs::write(run.join("steps.parquet/00003.parquet"), "no table").unwrap();
        // the page asks anew, since its folders have more
        assert_ne!(watched.own("/stamp").lines().last().unwrap(), shown);
        assert!(watched.own("/").contains(&format!("data-watched=\"{shown}\"")), "the page that was");
        let told = watched.own("/stamp");
        let told: Vec<&str> = told.lines().rev().take(2).collect();
        assert!(
            told[1] == shown && told[0].starts_with("Not up to date: ") && told[0].contains("00003.parquet"),
            "{told:?}"
        );
        std::fs::remove_file(run.join("steps.parquet/00003.parquet")).unwrap();
        assert!(watched.own("/").contains("In 2 steps of training on dpo"));
        assert_eq!(watched.own("/stamp").lines().last().unwrap(), shown);
    }

    // a tunnel has a port of its own
    assert!(watched.get("/stamp", "localhost:1234").starts_with("HTTP/1.1 200"));
    let other = watched.get("/", "evil.example:80");
    assert!(other.starts_with("HTTP/1.1 403") && !other.contains("training"), "{other}");
    assert!(watched.own("/../Cargo.toml").starts_with("HTTP/1.1 404"));
}

#[test]
fn a_page_is_written_or_watched() {
    let records = repository("tests/golden/analytics/one").display().to_string();
    for words in [
        vec!["report", &records],
        vec!["report", &records, "--watch", "--out", "x.html"],
        vec!["report", &records, "--watch=70000"],
    ] {
        assert_eq!(run(&words).status.code(), Some(2), "{words:?}");
    }
    let output = run(["report", "no-such-folder", "--watch=0"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("no-such-folder"));
    // a page without a server knows nothing of one
    let folder = tempfile::tempdir().unwrap();
    let page = folder.path().join("page.html");
    succeed(["report", &records, "--out", &page.display().to_string()]);
    let text = std::fs::read_to_string(page).unwrap();
    assert!(!text.contains("connect-src") && !text.contains("data-watched"));
}
