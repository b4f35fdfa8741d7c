//! Calls that a listener ends.
use crate::support::demo;
use std::sync::atomic::{AtomicUsize, Ordering};
use tanglescope::{
    Amount, AnalyzeOptions, DataOptions, Error, Listener, ModelOptions, RowOptions, Stop, TokensOptions, analyze,
    tokens,
};

/// Ends a call when some batches are done, and counts the pairs of all of them.
struct After {
    batches: usize,
    seen: AtomicUsize,
    pairs: AtomicUsize,
    stop: Stop,
}

impl After {
    fn new(batches: usize) -> Self {
        Self { batches, seen: AtomicUsize::new(0), pairs: AtomicUsize::new(0), stop: Stop::default() }
    }
}

impl Listener for After {
    fn advance(&self, more: Amount) {
        self.pairs.fetch_add(more.pairs, Ordering::Relaxed);
        if self.seen.fetch_add(1, Ordering::Relaxed) + 1 >= self.batches {
            self.stop.ask();
        }
    }

    fn stop(&self) -> Option<&Stop> {
        Some(&self.stop)
    }
}

/// What was written stays, nothing of it is measured again, and the whole is what a call that is not stopped writes.
#[test]
fn a_stopped_call_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let rows = RowOptions { limit: Some(150), ..RowOptions::default() };
    let data = DataOptions { rows, ..DataOptions::new(demo().join("long.jsonl")) };
    let options = |out: &str| AnalyzeOptions::new(ModelOptions::new(demo()), data.clone(), folder.path().join(out));
    let whole = analyze(&options("whole"), &()).unwrap().records;
    // each call may do a little more than the last, so that a part, which is what stays, is done in some
    let (mut stops, mut measured) = (0, 0);
    let found = loop {
        let listener = After::new(4 + 4 * stops);
        match analyze(&options("stopped"), &listener) {
            Ok(found) => break found.records,
            Err(error) => assert!(matches!(error, Error::Stopped), "{error}"),
        }
        (stops, measured) = (stops + 1, measured + listener.pairs.into_inner());
        assert!(stops < 100, "no part is ever done");
    };
    assert!(stops > 0 && measured > 0);
    for table in ["pairs.parquet", "params.parquet", "responses.parquet"] {
        let (got, want) = (found.table(table).unwrap().unwrap(), whole.table(table).unwrap().unwrap());
        assert!(got.equals_missing(&want), "{table}");
    }
}

/// An end that is asked for before the first block is one before any batch is done.
#[test]
fn a_call_ends_within_a_batch() {
    let folder = tempfile::tempdir().unwrap();
    let data = DataOptions::new(demo().join("long.jsonl"));
    let listener = After::new(1);
    listener.stop.ask();
    let options = AnalyzeOptions::new(ModelOptions::new(demo()), data, folder.path().join("out"));
    assert!(matches!(analyze(&options, &listener), Err(Error::Stopped)));
    assert_eq!(listener.pairs.into_inner(), 0);
}

/// Token matrices too.
#[test]
fn stopped_tokens_say_so() {
    let folder = tempfile::tempdir().unwrap();
    let rows = RowOptions { limit: Some(4), ..RowOptions::default() };
    let data = DataOptions { rows, ..DataOptions::new(demo().join("long.jsonl")) };
    let options = TokensOptions::new(ModelOptions::new(demo()), data, folder.path().join("out"));
    assert!(matches!(tokens(&options, &After::new(1)), Err(Error::Stopped)));
    tokens(&options, &()).unwrap();
}
