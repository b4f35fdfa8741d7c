//! What a command says while it works: on standard error, a bar on a terminal, plain lines elsewhere.
use crate::error::{Error, Result, with_flags};
use indicatif::{ProgressBar, ProgressStyle};
use std::io::{ErrorKind, IsTerminal, Write};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use tanglescope::{Amount, Check, Listener};

/// Says a line on standard error, where anybody listens.
macro_rules! tell {
    ($($part:tt)*) => {
        crate::console::tell_line(format_args!($($part)*))
    };
}
pub(crate) use tell;

/// Says a line on standard error. That nobody can hear it is no reason to end what is being done.
pub fn tell_line(what: std::fmt::Arguments<'_>) {
    let written = writeln!(std::io::stderr().lock(), "{what}");
    drop(written);
}

/// Prints bytes on standard output; a reader that has seen enough is no error.
pub fn print(bytes: &[u8]) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(e) if e.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => written.map_err(|e| Error::Failed(format!("standard output: cannot be written: {e}"))),
    }
}

/// Prints a line on standard output.
pub fn print_line(text: &str) -> Result<()> {
    print(format!("{text}\n").as_bytes())
}

/// Prints a value for programs.
pub fn print_json(value: &serde_json::Value) -> Result<()> {
    print_line(&format!("{value:#}"))
}

/// Prints the text that a function writes.
pub fn print_text(write: impl FnOnce(&mut String)) -> Result<()> {
    let mut text = String::new();
    write(&mut text);
    print(text.as_bytes())
}

/// Shortest time between two plain lines.
const QUIET: Duration = Duration::from_secs(10);

/// Prints what a call does.
#[derive(Default)]
pub struct Console {
    progress: Mutex<Option<Progress>>,
    /// Of a part of another command, which says what is done: notes, and lines where there is no terminal, are left out.
    quiet: bool,
    /// Whether checks are printed as they are made.
    checks: bool,
}

impl Console {
    /// Of a part of another command.
    pub fn quiet() -> Self {
        Self { quiet: true, ..Self::default() }
    }

    /// Prints checks as they are made.
    pub fn with_checks() -> Self {
        Self { checks: true, ..Self::default() }
    }

    fn progress(&self, act: impl FnOnce(&mut Progress)) {
        let mut progress = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(progress) = progress.as_mut() {
            act(progress);
        }
    }
}

impl Listener for Console {
    fn begin(&self, total: Amount, before: Amount) {
        *self.progress.lock().unwrap_or_else(PoisonError::into_inner) = Some(Progress::new(total, before, self.quiet));
    }

    fn about(&self, what: &str) {
        self.progress(|progress| progress.about(what.to_owned()));
    }

    fn advance(&self, more: Amount) {
        self.progress(|progress| progress.add(more));
    }

    fn end(&self) {
        if let Some(progress) = self.progress.lock().unwrap_or_else(PoisonError::into_inner).take() {
            progress.finish();
        }
    }

    fn note(&self, what: &str) {
        if !self.quiet {
            tell!("{}", with_flags(what));
        }
    }

    fn short_of_memory(&self) {
        crate::allocator::give_memory_back();
    }

    fn resumed(&self, what: &str) {
        tell!("{}", with_flags(what));
    }

    fn left_out(&self, what: &str) {
        tell!("{}", with_flags(what));
    }

    fn fell_back(&self, what: &str) {
        tell!("{}", with_flags(what));
    }

    fn checked(&self, check: &Check) {
        if self.checks {
            let Check { what, got, expected, error, tolerance, passed } = check;
            let verdict = if *passed { "pass" } else { "FAIL" };
            // the end of the command prints too, and says where that cannot be done
            let printed = print_line(&format!(
                "{verdict}  {what}: {got:.9e}, expected {expected:.9e}, error {error:.1e} (up to {tolerance:.0e})"
            ));
            drop(printed);
        }
    }
}

/// Counts what is done.
struct Progress {
    bar: Option<ProgressBar>,
    quiet: bool,
    about: String,
    total: Amount,
    done: Amount,
    /// What an earlier run had done.
    before: Amount,
    start: Instant,
    said: Instant,
}

impl Progress {
    /// Starts with `before` of `total` done; a quiet one says nothing where there is no terminal, and nothing at the end.
    fn new(total: Amount, before: Amount, quiet: bool) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new((total.rows - before.rows) as u64);
            if let Ok(style) = ProgressStyle::with_template("{wide_bar} {msg}, {eta} left") {
                bar.set_style(style);
            }
            bar
        });
        let now = Instant::now();
        Self { bar, quiet, about: String::new(), total, done: before, before, start: now, said: now }
    }

    /// What is said in front of the amounts from now on.
    fn about(&mut self, what: String) {
        self.about = what;
    }

    /// Adds what is done.
    fn add(&mut self, more: Amount) {
        self.done.add(more);
        let seconds = self.start.elapsed().as_secs_f64();
        let rate = (self.done.pairs - self.before.pairs) as f64 / seconds;
        let said = format!("{}{} of {} pairs, {rate:.2} pairs/s", self.about, self.done.pairs, self.total.pairs);
        if let Some(bar) = &self.bar {
            bar.set_message(said);
            bar.inc(more.rows as u64);
        } else if !self.quiet && self.said.elapsed() >= QUIET {
            self.said = Instant::now();
            // what a device did of a part before it failed is done again
            let left = self.total.rows.saturating_sub(self.done.rows);
            let done = self.done.rows - self.before.rows;
            tell!("{said}, {:.0} s left", seconds * left as f64 / done as f64);
        }
    }

    /// Ends it, and says how long it took.
    fn finish(self) {
        if let Some(bar) = self.bar {
            bar.finish_and_clear();
        }
        let (pairs, seconds) = (self.done.pairs - self.before.pairs, self.start.elapsed().as_secs_f64());
        if pairs > 0 && !self.quiet {
            tell!("{pairs} pairs in {seconds:.1} s, {:.2} pairs/s", pairs as f64 / seconds);
        }
    }
}
