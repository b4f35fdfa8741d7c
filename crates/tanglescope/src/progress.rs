//! Progress of long work: a bar on a terminal, plain lines elsewhere.
use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// Shortest time between two plain lines.
const QUIET: Duration = Duration::from_secs(10);

/// Counts pairs.
pub struct Progress {
    bar: Option<ProgressBar>,
    total: usize,
    done: usize,
    /// Pairs that an earlier run had done.
    before: usize,
    start: Instant,
    said: Instant,
}

impl Progress {
    /// Starts with `before` of `total` pairs done.
    pub fn new(total: usize, before: usize) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new((total - before) as u64);
            let style = ProgressStyle::with_template("{wide_bar} {pos}/{len} pairs  {per_sec}  {eta} left");
            if let Ok(style) = style {
                bar.set_style(style);
            }
            bar
        });
        let now = Instant::now();
        Self { bar, total, done: before, before, start: now, said: now }
    }

    /// Adds pairs that are done.
    pub fn add(&mut self, pairs: usize) {
        self.done += pairs;
        if let Some(bar) = &self.bar {
            bar.inc(pairs as u64);
        } else if self.said.elapsed() >= QUIET {
            self.said = Instant::now();
            let rate = (self.done - self.before) as f64 / self.start.elapsed().as_secs_f64();
            let left = (self.total - self.done) as f64 / rate;
            eprintln!("{} of {} pairs, {rate:.2} pairs/s, {left:.0} s left", self.done, self.total);
        }
    }

    /// Ends it, and says how long it took.
    pub fn finish(self) {
        if let Some(bar) = self.bar {
            bar.finish_and_clear();
        }
        let (pairs, seconds) = (self.done - self.before, self.start.elapsed().as_secs_f64());
        if pairs > 0 {
            eprintln!("{pairs} pairs in {seconds:.1} s, {:.2} pairs/s", pairs as f64 / seconds);
        }
    }
}
