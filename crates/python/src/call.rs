//! A call: work on a thread of its own, and a Python function that is told what it does.
use crate::errors::{Failure, broken, raised, with_keywords};
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;
use tanglescope::{Amount, Check, Listener, Stop};
use tanglescope_cli::allocator;

/// What the function is told: the name of an event, with its numbers and texts.
enum Event {
    Begin { total: Amount, before: Amount },
    About(String),
    Advance(Amount),
    End,
    Said(&'static str, String),
    Checked(Check),
}

/// Puts what a call does in line for the thread that waits for it.
pub struct Telling {
    events: Mutex<Sender<Event>>,
    stop: Stop,
}

impl Telling {
    /// Whether the call is to end.
    pub fn is_stopped(&self) -> bool {
        self.stop.is_asked()
    }

    fn tell(&self, event: Event) {
        // the receiver outlives the work
        let sent = self.events.lock().unwrap_or_else(PoisonError::into_inner).send(event);
        drop(sent);
    }
}

impl Listener for Telling {
    fn begin(&self, total: Amount, before: Amount) {
        self.tell(Event::Begin { total, before });
    }

    fn about(&self, what: &str) {
        self.tell(Event::About(what.to_owned()));
    }

    fn advance(&self, more: Amount) {
        self.tell(Event::Advance(more));
    }

    fn end(&self) {
        self.tell(Event::End);
    }

    fn note(&self, what: &str) {
        self.tell(Event::Said("note", what.to_owned()));
    }

    fn resumed(&self, what: &str) {
        self.tell(Event::Said("resumed", what.to_owned()));
    }

    fn left_out(&self, what: &str) {
        self.tell(Event::Said("left_out", what.to_owned()));
    }

    fn fell_back(&self, what: &str) {
        self.tell(Event::Said("fell_back", what.to_owned()));
    }

    fn completed(&self, records: &std::path::Path) {
        self.tell(Event::Said("completed", records.display().to_string()));
    }

    fn short_of_memory(&self) {
        allocator::give_memory_back();
    }

    fn checked(&self, check: &Check) {
        self.tell(Event::Checked(check.clone()));
    }

    fn stop(&self) -> Option<&Stop> {
        Some(&self.stop)
    }
}

impl Event {
    fn tell(self, listener: &Bound<'_, PyAny>) -> PyResult<()> {
        match self {
            Self::Begin { total, before } => {
                listener.call1(("begin", total.pairs, total.rows, before.pairs, before.rows))
            }
            Self::About(what) => listener.call1(("about", what)),
            Self::Advance(more) => listener.call1(("advance", more.pairs, more.rows)),
            Self::End => listener.call1(("end",)),
            Self::Said(how, what) => listener.call1((how, with_keywords(&what))),
            Self::Checked(check) => listener.call1(("checked", serde_json::json!(check).to_string())),
        }
        .map(drop)
    }
}

/// How long the waiting thread sleeps between two looks for Ctrl-C.
const LOOK: Duration = Duration::from_millis(50);

/// Refuses to go on in a process that was forked after its parent had begun to work: threads do not come along.
pub fn same_process() -> PyResult<()> {
    static FIRST: OnceLock<u32> = OnceLock::new();
    let now = std::process::id();
    if *FIRST.get_or_init(|| now) == now {
        return Ok(());
    }
    Err(PyRuntimeError::new_err(
        "this process was forked after tanglescope had begun to work in its parent, whose threads it lacks; start processes with \
         multiprocessing.get_context(\"spawn\") or \"forkserver\", or call tanglescope in children alone",
    ))
}

/// What a panic says.
fn said(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<String>().map(String::as_str).or_else(|| payload.downcast_ref::<&str>().copied());
    text.unwrap_or("no reason is given").to_owned()
}

/// Tells the function of events until the work is done or there is none for a while; `false` once it is done.
fn pass_on(py: Python<'_>, events: &mut Receiver<Event>, listener: Option<&Bound<'_, PyAny>>) -> PyResult<bool> {
    // the interpreter's lock is not held while nothing happens
    let waiting = &mut *events;
    let mut next = py.detach(move || waiting.recv_timeout(LOOK));
    loop {
        match next {
            Ok(event) => {
                if let Some(listener) = listener {
                    event.tell(listener)?;
                }
            }
            Err(RecvTimeoutError::Timeout) => return Ok(true),
            Err(RecvTimeoutError::Disconnected) => return Ok(false),
        }
        match events.try_recv() {
            Ok(event) => next = Ok(event),
            Err(_) => return Ok(true),
        }
    }
}

/// Does work without the interpreter's lock, and tells a function what it does; Ctrl-C, or an exception of the function, ends it.
///
/// # Errors
/// What ended the work, or the waiting for it.
pub fn run<T: Send>(
    py: Python<'_>,
    listener: Option<&Bound<'_, PyAny>>,
    work: impl FnOnce(&Telling) -> Result<T, Failure> + Send,
) -> PyResult<T> {
    same_process()?;
    let (sender, mut events) = channel();
    let stop = Stop::default();
    let telling = Telling { events: Mutex::new(sender), stop: stop.clone() };
    allocator::keep_memory();
    let (done, interrupted) = std::thread::scope(|scope| {
        let worker = scope.spawn(move || {
            let telling = telling;
            catch_unwind(AssertUnwindSafe(|| work(&telling)))
        });
        let mut interrupted = None;
        loop {
            // after an interruption the rest is waited for in silence
            let told = pass_on(py, &mut events, listener.filter(|_| interrupted.is_none()));
            let more = match told.and_then(|more| py.check_signals().map(|()| more)) {
                Ok(more) => more,
                Err(error) => {
                    stop.ask();
                    interrupted.get_or_insert(error);
                    true
                }
            };
            if !more {
                break;
            }
        }
        (py.detach(|| worker.join()), interrupted)
    });
    allocator::give_memory_back();
    if let Some(interrupted) = interrupted {
        return Err(interrupted);
    }
    match done {
        Ok(Ok(done)) => done.map_err(|failure| raised(py, &failure)),
        Ok(Err(payload)) | Err(payload) => Err(broken(py, &said(payload.as_ref()))),
    }
}

/// A Python value or none, which is no listener.
pub fn listener<'a, 'py>(given: &'a Bound<'py, PyAny>) -> Option<&'a Bound<'py, PyAny>> {
    (!given.is_none()).then_some(given)
}
