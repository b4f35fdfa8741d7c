//! Progress of long work: a bar on a terminal, plain lines elsewhere.
use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// Shortest time between two plain lines.
const QUIET: Duration = Duration::from_secs(10);

/// Pairs, and the forward rows that they take: pairs run in the order of their length, so that rows tell the time left.
#[derive(Clone, Copy, Debug, Default)]
pub struct Amount {
    /// Pairs.
    pub pairs: usize,
    /// Their forward rows.
    pub rows: usize,
}

impl Amount {
    /// Adds to it.
    pub fn add(&mut self, more: Self) {
        self.pairs += more.pairs;
        self.rows += more.rows;
    }
}

/// Counts what is done.
pub struct Progress {
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
    pub fn new(total: Amount, before: Amount, quiet: bool) -> Self {
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
    pub fn about(&mut self, what: String) {
        self.about = what;
    }

    /// Adds what is done.
    pub fn add(&mut self, more: Amount) {
        self.done.add(more);
        let seconds = self.start.elapsed().as_secs_f64();
        let rate = (self.done.pairs - self.before.pairs) as f64 / seconds;
        let said = format!("{}{} of {} pairs, {rate:.2} pairs/s", self.about, self.done.pairs, self.total.pairs);
        if let Some(bar) = &self.bar {
            bar.set_message(said);
            bar.inc(more.rows as u64);
        } else if !self.quiet && self.said.elapsed() >= QUIET {
            self.said = Instant::now();
            let (left, done) = (self.total.rows - self.done.rows, self.done.rows - self.before.rows);
            eprintln!("{said}, {:.0} s left", seconds * left as f64 / done as f64);
        }
    }

    /// Ends it, and says how long it took.
    pub fn finish(self) {
        if let Some(bar) = self.bar {
            bar.finish_and_clear();
        }
        let (pairs, seconds) = (self.done.pairs - self.before.pairs, self.start.elapsed().as_secs_f64());
        if pairs > 0 && !self.quiet {
            eprintln!("{pairs} pairs in {seconds:.1} s, {:.2} pairs/s", pairs as f64 / seconds);
        }
    }
}
