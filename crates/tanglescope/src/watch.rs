//! A report that is shown while its records are written: a page on this machine alone, which loads itself again when they have more.
use crate::error::{Error, Result};
use crate::listener::Listener;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HOST, HeaderValue, REFRESH};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use std::collections::BTreeSet;
use std::convert::Infallible;
use std::net::Ipv4Addr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, UNIX_EPOCH};
use tanglescope_report::{Origin, Report, html, sources};
use tokio::net::TcpListener;
use tokio::task::{JoinError, spawn_blocking};
use tokio::time::{sleep, timeout};

/// Options of [`watch`].
#[derive(Clone, Debug)]
pub struct WatchOptions {
    /// Folders of records, as of [`report`](crate::report()); records may still be written, or not be there yet.
    pub folders: Vec<PathBuf>,
    /// The port, on the loopback address; any that is free where it is 0.
    pub port: u16,
    /// The command line, for the page's header.
    pub command: Vec<String>,
}

/// How often the listener is asked whether to stop.
const LOOK: Duration = Duration::from_millis(200);

/// How long a page that could not be made is not tried again, where no file has changed.
const AGAIN: Duration = Duration::from_secs(5);

/// Shows a report on this machine until the listener stops it; tells the listener the page's address.
///
/// # Errors
/// Where a folder is not there, or the port is taken.
pub fn watch(options: &WatchOptions, listener: &dyn Listener) -> Result<()> {
    for folder in &options.folders {
        std::fs::read_dir(folder).map_err(|e| Error::value("folders", folder.display(), e.to_string()))?;
    }
    let refuse = |problem: std::io::Error| Error::value("port", options.port, problem.to_string());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(refuse)?;
    let watched = runtime.block_on(async {
        let socket = TcpListener::bind((Ipv4Addr::LOCALHOST, options.port)).await.map_err(refuse)?;
        let address = socket.local_addr().map_err(refuse)?;
        listener.note(&format!("http://{address}/ shows {}", list(&options.folders)));
        let page = Arc::new(Page { options: options.clone(), making: Mutex::default(), made: Mutex::default() });
        while !listener.stop().is_some_and(tanglescope_model::Stop::is_asked) {
            // a browser opens connections that it does not use
            let stream = match timeout(LOOK, socket.accept()).await {
                Ok(Ok((stream, _))) => stream,
                // no file can be opened any more, and none will be at once
                Ok(Err(_)) => {
                    sleep(LOOK).await;
                    continue;
                }
                Err(_) => continue,
            };
            let page = Arc::clone(&page);
            tokio::spawn(async move {
                let answer = service_fn(move |request| {
                    let page = Arc::clone(&page);
                    // a page of many records takes seconds; meanwhile others are answered, and Ctrl-C is heard
                    let answer = spawn_blocking(move || page.answer(&request));
                    async move {
                        let failed = |e: JoinError| plain(StatusCode::INTERNAL_SERVER_ERROR, e.to_string());
                        Ok::<_, Infallible>(answer.await.unwrap_or_else(failed))
                    }
                });
                // who goes away in the middle is not missed
                let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), answer).await;
            });
        }
        Ok(())
    });
    // nobody waits for a page that is still being made
    runtime.shutdown_background();
    watched
}

fn list(folders: &[PathBuf]) -> String {
    folders.iter().map(|folder| folder.display().to_string()).collect::<Vec<_>>().join(", ")
}

/// The page as it was made last.
struct Page {
    options: WatchOptions,
    /// Held while a page is made.
    making: Mutex<()>,
    made: Mutex<Made>,
}

/// What was made of the records.
#[derive(Default)]
struct Made {
    /// The stamp of the records, and the page.
    page: Option<(String, String)>,
    /// Why nothing could be made of them since.
    failed: Option<Failed>,
}

struct Failed {
    stamp: String,
    why: String,
    at: Instant,
}

/// A mutex, whatever happened to another holder.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Page {
    fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        let host = request.headers().get(HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
        // another site's name that was made to point here would let its scripts read the page; a tunnel may have another port
        let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
        if !["127.0.0.1", "localhost"].contains(&name) {
            return plain(StatusCode::FORBIDDEN, "This page answers to localhost alone.".to_owned());
        }
        match (request.method(), request.uri().path()) {
            (&Method::GET, "/") => self.page(),
            (&Method::GET, "/stamp") => self.stamp(),
            _ => plain(StatusCode::NOT_FOUND, "There is nothing but the page itself.".to_owned()),
        }
    }

    /// What a page that is shown compares its own stamp with: where nothing better can be made, its own, and why.
    fn stamp(&self) -> Response<Full<Bytes>> {
        let now = stamp(&self.options.folders);
        let failed = |made: &Made| made.failed.as_ref().is_some_and(|failed| failed.stamp == now);
        if failed(&lock(&self.made)) {
            // what was in the way may be gone without a trace in the files
            self.make();
        }
        let made = lock(&self.made);
        let text = match (&made.page, &made.failed) {
            (Some((shown, _)), Some(Failed { why, .. })) if failed(&made) => {
                format!("{shown}\nNot up to date: of the records as they are now no page can be made: {why}")
            }
            _ => now,
        };
        plain(StatusCode::OK, text)
    }

    /// Makes a page of the records as they are, unless that was done, or could not be a moment ago.
    fn make(&self) {
        let _making = lock(&self.making);
        let now = stamp(&self.options.folders);
        {
            let made = lock(&self.made);
            let is_made = made.page.as_ref().is_some_and(|(at, _)| *at == now);
            let was_tried =
                made.failed.as_ref().is_some_and(|failed| failed.stamp == now && failed.at.elapsed() < AGAIN);
            if is_made || was_tried {
                return;
            }
        }
        let origin = Origin { version: env!("CARGO_PKG_VERSION").to_owned(), command: self.options.command.clone() };
        let make = || {
            let report = Report::of(&self.options.folders, origin).map_err(|e| e.to_string())?;
            html(&report, Some(&now)).map_err(|e| e.to_string())
        };
        // a fault of ours is told beside the page that was, too
        let page = catch_unwind(AssertUnwindSafe(make)).unwrap_or_else(|_| Err("a fault of Tanglescope's".to_owned()));
        let mut made = lock(&self.made);
        match page {
            Ok(page) => *made = Made { page: Some((now, page)), failed: None },
            Err(why) => made.failed = Some(Failed { stamp: now, why, at: Instant::now() }),
        }
    }

    fn page(&self) -> Response<Full<Bytes>> {
        self.make();
        let made = lock(&self.made);
        match &made.page {
            Some((_, page)) => typed(StatusCode::OK, "text/html; charset=utf-8", page.clone()),
            // nothing was written yet, or just now
            None => {
                let why = made.failed.as_ref().map_or("", |failed| &failed.why);
                let mut waiting = plain(StatusCode::OK, format!("Waiting for records: {why}"));
                waiting.headers_mut().insert(REFRESH, HeaderValue::from_static("2"));
                waiting
            }
        }
    }
}

fn plain(status: StatusCode, text: String) -> Response<Full<Bytes>> {
    typed(status, "text/plain; charset=utf-8", text)
}

fn typed(status: StatusCode, kind: &'static str, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// Changes whenever a file that a page is made from is added or written again: how many there are, their bytes, and when the last was written.
fn stamp(folders: &[PathBuf]) -> String {
    let (mut sums, mut seen) = ((0u64, 0u64, 0u128), BTreeSet::new());
    sources(folders).iter().for_each(|folder| count(folder, &mut sums, &mut seen));
    format!("{}-{}-{}", sums.0, sums.1, sums.2)
}

fn count(folder: &Path, sums: &mut (u64, u64, u128), seen: &mut BTreeSet<PathBuf>) {
    // links may lead back to where they are
    if !folder.canonicalize().is_ok_and(|folder| seen.insert(folder)) {
        return;
    }
    for path in std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()) {
        let Ok(about) = path.metadata() else { continue };
        if about.is_dir() {
            count(&path, sums, seen);
        } else if path.extension().is_some_and(|end| end == "parquet" || end == "json") {
            let written = about.modified().ok().and_then(|at| at.duration_since(UNIX_EPOCH).ok());
            *sums = (sums.0 + 1, sums.1 + about.len(), sums.2.max(written.map_or(0, |at| at.as_nanos())));
        }
    }
}
