//! Requests to the hub as real hubs and mirrors answer them: files that lie elsewhere, under absolute addresses and relative ones, answers
//! that are compressed or leave out how long they are, pauses that are asked for, connections that break off.
use indicatif::{ProgressBar, ProgressStyle};
use sha2::{Digest, Sha256};
use std::fs::{File, OpenOptions};
use std::io::{IsTerminal, Read, Write};
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;
use tanglescope_checkpoint::hex;
use ureq::http::{HeaderMap, Response, StatusCode, header};
use ureq::{Agent, Body};
use url::Url;

/// Times that a request is made again after the hub said that it is busy, or broke off.
const RETRIES: u32 = 5;

/// Places to which an answer may send a request on, one after the other.
const REDIRECTS: usize = 10;

/// The longest pause that is waited for; what asks for more is told to the user.
const LONGEST_PAUSE: Duration = Duration::from_mins(5);

/// Why a request failed.
#[derive(Debug)]
pub enum Failure {
    /// The hub's answer.
    Status(u16),
    /// Nothing answered.
    Unreachable(String),
    /// An answer that cannot be used.
    Answer(String),
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Status(code) => write!(f, "http status: {code}"),
            Self::Unreachable(problem) | Self::Answer(problem) => f.write_str(problem),
        }
    }
}

/// What a request came to, where it may be made again.
enum Attempt {
    Failed(Failure),
    /// After how long the hub asks for it, where it says.
    Busy(u16, Option<Duration>),
}

/// What the hub says of a file.
#[derive(Debug, Default)]
pub struct About {
    /// The hash of its contents, which the cache keeps it under.
    pub etag: String,
    /// Bytes, where they are known before it is there.
    pub size: Option<u64>,
}

/// Requests to one hub.
pub struct Transfer {
    agent: Agent,
    home: Url,
    token: Option<String>,
}

/// A header as text.
fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// First byte and length of all, of a header `bytes FIRST-LAST/ALL`.
fn content_range(headers: &HeaderMap) -> (Option<u64>, Option<u64>) {
    let parts = text(headers, "content-range").and_then(|range| range.strip_prefix("bytes ")?.split_once('/'));
    let Some((range, all)) = parts else { return (None, None) };
    (range.split('-').next().and_then(|first| first.parse().ok()), all.parse().ok())
}

/// Whether the bytes of an answer are not those of the file.
fn is_compressed(headers: &HeaderMap) -> bool {
    text(headers, "content-encoding").is_some_and(|encoding| !encoding.eq_ignore_ascii_case("identity"))
}

impl Transfer {
    pub fn new(endpoint: &str, token: Option<String>) -> Result<Self, String> {
        let home = Url::parse(endpoint).map_err(|e| format!("HF_ENDPOINT `{endpoint}` is no address: {e}"))?;
        let config = Agent::config_builder()
            .max_redirects(0)
            .max_redirects_will_error(false)
            .http_status_as_error(false)
            .timeout_connect(Some(Duration::from_secs(30)))
            .timeout_recv_response(Some(Duration::from_mins(1)))
            // what hangs in the middle is asked for again, from there
            .timeout_recv_body(Some(Duration::from_mins(20)))
            .user_agent(concat!("tanglescope/", env!("CARGO_PKG_VERSION")))
            .build();
        Ok(Self { agent: config.into(), home, token })
    }

    /// The answer to a request for the bytes from `first` on, of one where `one` is asked for; with what was said on the way there.
    fn ask(&self, url: &str, range: Option<(u64, bool)>) -> Result<(Response<Body>, HeaderMap), Attempt> {
        let failed = |failure| Attempt::Failed(failure);
        let unusable = |problem: String| failed(Failure::Answer(problem));
        let mut url = Url::parse(url).map_err(|e| unusable(format!("`{url}` is no address: {e}")))?;
        let mut said = HeaderMap::new();
        for _ in 0..REDIRECTS {
            let mut request = self.agent.get(url.as_str()).header(header::ACCEPT_ENCODING, "identity");
            let is_home = url.origin() == self.home.origin();
            // the token is for the hub alone, and not for where its files lie
            if let Some(token) = self.token.as_ref().filter(|_| is_home) {
                request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
            }
            if let Some((first, one)) = range {
                let last = if one { first.to_string() } else { String::new() };
                request = request.header(header::RANGE, format!("bytes={first}-{last}"));
            }
            let response = request.call().map_err(|e| failed(Failure::Unreachable(e.to_string())))?;
            for (name, value) in response.headers() {
                if !said.contains_key(name) {
                    said.insert(name, value.clone());
                }
            }
            let status = response.status();
            if let (true, Some(location)) = (status.is_redirection(), text(response.headers(), "location")) {
                url = url.join(location).map_err(|e| unusable(format!("sends on to `{location}`, no address: {e}")))?;
                continue;
            }
            let seconds = text(response.headers(), "retry-after").and_then(|after| after.trim().parse().ok());
            return match status.as_u16() {
                code if code == 429 || code >= 500 => Err(Attempt::Busy(code, seconds.map(Duration::from_secs))),
                code if status.is_success() || code == 416 => Ok((response, said)),
                code => Err(failed(Failure::Status(code))),
            };
        }
        Err(unusable(format!("sends on more than {REDIRECTS} times")))
    }

    /// What `work` finds, done again while the hub is busy or breaks off.
    fn retried<T>(work: impl Fn() -> Result<T, Attempt>) -> Result<T, Failure> {
        for attempt in 0..=RETRIES {
            let (failure, pause) = match work() {
                Ok(found) => return Ok(found),
                Err(Attempt::Failed(failure)) => return Err(failure),
                Err(Attempt::Busy(0, _)) => (Failure::Unreachable("the connection broke off".to_owned()), None),
                Err(Attempt::Busy(code, pause)) => (Failure::Status(code), pause),
            };
            if attempt == RETRIES || pause.is_some_and(|pause| pause > LONGEST_PAUSE) {
                return Err(failure);
            }
            sleep(pause.unwrap_or(Duration::from_millis(300) * 2u32.pow(attempt)));
        }
        unreachable!("the last attempt returns")
    }

    /// The text at an address.
    pub fn text(&self, url: &str) -> Result<String, Failure> {
        Self::retried(|| {
            let (mut response, _) = self.ask(url, None)?;
            let read = response.body_mut().with_config().limit(1 << 30).read_to_string();
            read.map_err(|e| Attempt::Failed(Failure::Answer(format!("{url}: {e}"))))
        })
    }

    /// What the hub says of the file at an address.
    pub fn about(&self, url: &str) -> Result<About, Failure> {
        let (response, said) = Self::retried(|| self.ask(url, Some((0, true))))?;
        let etag = text(&said, "x-linked-etag").or_else(|| text(&said, "etag"));
        let etag = etag.map(|etag| etag.trim_start_matches("W/").trim_matches('"').to_owned());
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_".contains(c);
        let Some(etag) = etag.filter(|etag| !etag.is_empty() && etag.chars().all(plain)) else {
            return Err(Failure::Answer(format!("{url}: the answer has no hash of the file (x-linked-etag or etag)")));
        };
        let headers = response.headers();
        let length = || {
            let whole = response.status() == StatusCode::OK && !is_compressed(headers);
            text(headers, "content-length").filter(|_| whole)?.parse().ok()
        };
        let linked = || text(&said, "x-linked-size")?.parse().ok();
        Ok(About { etag, size: content_range(headers).1.or_else(linked).or_else(length) })
    }

    /// Brings the file at an address into one here, from where an earlier try broke off.
    pub fn download(&self, url: &str, about: &About, to: &Path) -> Result<(), Failure> {
        let refuse = |e: std::io::Error| Failure::Answer(format!("{}: {e}", to.display()));
        let bar = match std::io::stderr().is_terminal() {
            true => ProgressBar::new(about.size.unwrap_or(0)),
            false => ProgressBar::hidden(),
        };
        if let Ok(style) = ProgressStyle::with_template("{bar:40} {bytes}/{total_bytes}, {bytes_per_sec}, {eta} left") {
            bar.set_style(style);
        }
        let there = || std::fs::metadata(to).map_or(0, |of| of.len());
        let attempt = || {
            let mut file =
                OpenOptions::new().append(true).create(true).open(to).map_err(|e| Attempt::Failed(refuse(e)))?;
            let there = file.metadata().map_err(|e| Attempt::Failed(refuse(e)))?.len();
            let asked = self.ask(url, (there > 0).then_some((there, false)));
            let (mut response, _) = asked.map_err(|attempt| match attempt {
                // a connection that broke off may be there again a moment later
                Attempt::Failed(Failure::Unreachable(_)) if there > 0 => Attempt::Busy(0, None),
                other => other,
            })?;
            let goes_on =
                response.status() == StatusCode::PARTIAL_CONTENT && content_range(response.headers()).0 == Some(there);
            if there > 0 && !goes_on {
                // a hub that knows no parts sends all of it again
                file.set_len(0).map_err(|e| Attempt::Failed(refuse(e)))?;
                if response.status() != StatusCode::OK {
                    return Err(Attempt::Busy(0, None));
                }
            }
            bar.set_position(if goes_on { there } else { 0 });
            let whole =
                copy(&mut response.body_mut().as_reader(), &mut file, &bar).map_err(|e| Attempt::Failed(refuse(e)))?;
            let length = file.metadata().map_err(|e| Attempt::Failed(refuse(e)))?.len();
            if !whole || about.size.is_some_and(|size| length < size) { Err(Attempt::Busy(0, None)) } else { Ok(()) }
        };
        // as long as more of it comes, it is not given up
        loop {
            let before = there();
            match Self::retried(attempt) {
                Ok(()) => break,
                Err(Failure::Unreachable(_)) if there() > before => {}
                Err(failure) => return Err(failure),
            }
        }
        bar.finish_and_clear();
        Ok(())
    }
}

/// Copies an answer to a file; whether its end was reached.
fn copy(from: &mut impl Read, to: &mut File, bar: &ProgressBar) -> std::io::Result<bool> {
    let mut chunk = vec![0; 1 << 16];
    loop {
        match from.read(&mut chunk) {
            Ok(0) => return Ok(true),
            Ok(n) => {
                to.write_all(&chunk[..n])?;
                bar.inc(n as u64);
            }
            Err(_) => return Ok(false),
        }
    }
}

/// Whether a file has the length, and where the hub says that of its contents the SHA-256, that were told.
pub fn is_what_was_asked(path: &Path, about: &About) -> std::io::Result<bool> {
    if about.size.is_some_and(|size| std::fs::metadata(path).is_ok_and(|of| of.len() != size)) {
        return Ok(false);
    }
    // small files are kept under a hash of git's
    if about.etag.len() != 64 {
        return Ok(true);
    }
    let (mut file, mut hash) = (File::open(path)?, Sha256::new());
    std::io::copy(&mut file, &mut hash)?;
    Ok(hex(&hash.finalize()) == about.etag)
}
