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
use std::convert::Infallible;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, UNIX_EPOCH};
use tanglescope_report::{Origin, Report, html};
use tokio::net::TcpListener;
use tokio::time::timeout;

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
    runtime.block_on(async {
        let socket = TcpListener::bind((Ipv4Addr::LOCALHOST, options.port)).await.map_err(refuse)?;
        let address = socket.local_addr().map_err(refuse)?;
        listener.note(&format!("http://{address}/ shows {}", list(&options.folders)));
        let page = Arc::new(Page { options: options.clone(), made: Mutex::default() });
        while !listener.stop().is_some_and(tanglescope_model::Stop::is_asked) {
            // a browser opens connections that it does not use
            let Ok(Ok((stream, _))) = timeout(LOOK, socket.accept()).await else { continue };
            let page = Arc::clone(&page);
            tokio::spawn(async move {
                let answer = service_fn(move |request| {
                    let answer = page.answer(&request);
                    async move { Ok::<_, Infallible>(answer) }
                });
                // who goes away in the middle is not missed
                let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), answer).await;
            });
        }
        Ok(())
    })
}

fn list(folders: &[PathBuf]) -> String {
    folders.iter().map(|folder| folder.display().to_string()).collect::<Vec<_>>().join(", ")
}

/// The page as it was made last.
struct Page {
    options: WatchOptions,
    made: Mutex<Option<(String, String)>>,
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
            (&Method::GET, "/stamp") => plain(StatusCode::OK, stamp(&self.options.folders)),
            _ => plain(StatusCode::NOT_FOUND, "There is nothing but the page itself.".to_owned()),
        }
    }

    fn page(&self) -> Response<Full<Bytes>> {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        let now = stamp(&self.options.folders);
        if made.as_ref().is_none_or(|(stamp, _)| *stamp != now) {
            let origin =
                Origin { version: env!("CARGO_PKG_VERSION").to_owned(), command: self.options.command.clone() };
            let make = || Report::of(&self.options.folders, origin).and_then(|report| html(&report, Some(&now)));
            // polars waits for threads of its own, which nothing inside of a runtime may
            let made_now = std::thread::scope(|scope| scope.spawn(make).join());
            let made_now = made_now.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            match made_now {
                Ok(page) => *made = Some((now, page)),
                // nothing was written yet, or just now: a page that was there stays
                Err(error) if made.is_none() => {
                    let mut waiting = plain(StatusCode::OK, format!("Waiting for records: {error}"));
                    waiting.headers_mut().insert(REFRESH, HeaderValue::from_static("2"));
                    return waiting;
                }
                Err(_) => {}
            }
        }
        let page = made.as_ref().map(|(_, page)| page.clone()).unwrap_or_default();
        typed(StatusCode::OK, "text/html; charset=utf-8", page)
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

/// Changes whenever a file of records is added or written again: how many there are, their bytes, and when the last was written.
fn stamp(folders: &[PathBuf]) -> String {
    let mut sums = (0u64, 0u64, 0u128);
    folders.iter().for_each(|folder| count(folder, &mut sums));
    format!("{}-{}-{}", sums.0, sums.1, sums.2)
}

fn count(folder: &Path, sums: &mut (u64, u64, u128)) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let Ok(kind) = entry.file_type() else { continue };
        let path = entry.path();
        if kind.is_dir() {
            count(&path, sums);
        } else if path.extension().is_some_and(|end| end == "parquet" || end == "json")
            && let Ok(about) = entry.metadata()
        {
            let written = about.modified().ok().and_then(|at| at.duration_since(UNIX_EPOCH).ok());
            *sums = (sums.0 + 1, sums.1 + about.len(), sums.2.max(written.map_or(0, |at| at.as_nanos())));
        }
    }
}
