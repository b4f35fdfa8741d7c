//! Which batches run side by side, and when each begins.
//!
//! What a batch keeps grows through its forward pass and shrinks through its backward pass. Batches that run side by side
//! therefore begin apart from each other: a batch has the baton until half of its time is over, when the next one begins, so
//! that two of them take little more memory than one.
use crate::plan;
use rayon::prelude::*;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

/// Batches, each a list of requests by number, and how many of them run side by side.
///
/// On a processor, batches side by side keep every core busy: the parallel loops of one batch are a few hundred microseconds
/// long, and a core that has done its share of one would wait for the others. A device orders the work of one thread.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// Members of each batch.
    pub batches: Vec<Vec<usize>>,
    /// Batches that run side by side.
    pub at_once: usize,
}

impl Schedule {
    /// One batch of a number of requests.
    pub(crate) fn together(requests: usize) -> Self {
        Self { batches: vec![(0..requests).collect()], at_once: 1 }
    }

    /// Batches of requests of the given numbers of rows, at most `most` rows each where a request alone has no more.
    #[must_use]
    pub(crate) fn by_length(rows: &[usize], most: usize, at_once: usize) -> Self {
        Self { batches: plan::batches(rows, most), at_once }
    }

    /// What `run` finds for the members of all batches, in the members' order, whatever order batches run in.
    pub(crate) fn run<R: Send>(&self, run: impl Fn(&[usize], Option<Turn<'_>>) -> Vec<R> + Sync) -> Vec<R> {
        let of = |batch: &Vec<usize>, turn| batch.iter().copied().zip(run(batch, turn)).collect::<Vec<_>>();
        if self.at_once == 1 {
            return in_order(self.batches.iter().flat_map(|batch| of(batch, None)).collect());
        }
        let (baton, left) = (Baton::default(), Mutex::new(self.batches.iter()));
        let next = || left.lock().unwrap_or_else(PoisonError::into_inner).next();
        let lane = |_| {
            let mut found = Vec::new();
            loop {
                let turn = baton.take();
                let Some(batch) = next() else { return found };
                found.extend(of(batch, Some(turn)));
            }
        };
        in_order((0..self.at_once).into_par_iter().with_max_len(1).flat_map_iter(lane).collect())
    }

    /// The same, where `run` adds to a sum of its lane. A lane has every n-th batch, so that the order of its sum depends on
    /// the batches and their number side by side alone.
    pub(crate) fn run_summed<R: Send, S: Send>(
        &self,
        empty: impl Fn() -> S + Sync,
        run: impl Fn(&[usize], &mut S, Option<Turn<'_>>) -> Vec<R> + Sync,
    ) -> (Vec<R>, Vec<S>) {
        let baton = Baton::default();
        let lane = |lane: usize| {
            let (mut sum, mut found) = (empty(), Vec::new());
            for batch in self.batches.iter().skip(lane).step_by(self.at_once) {
                let turn = (self.at_once > 1).then(|| baton.take());
                found.extend(batch.iter().copied().zip(run(batch, &mut sum, turn)));
            }
            (found, sum)
        };
        let lanes: Vec<_> = match self.at_once {
            1 => vec![lane(0)],
            n => (0..n).into_par_iter().with_max_len(1).map(lane).collect(),
        };
        let (found, sums): (Vec<Vec<(usize, R)>>, Vec<S>) = lanes.into_iter().unzip();
        (in_order(found.into_iter().flatten().collect()), sums)
    }
}

fn in_order<R>(mut found: Vec<(usize, R)>) -> Vec<R> {
    found.sort_by_key(|(member, _)| *member);
    found.into_iter().map(|(_, result)| result).collect()
}

/// A lock that one batch holds while it begins.
#[derive(Default)]
struct Baton(AtomicBool);

/// Guard of the baton; dropping it lets the next batch begin.
pub(crate) struct Turn<'a>(&'a Baton);

impl Baton {
    /// Waits for the baton; the waiting core of the pool works on the loops of the batches that run.
    fn take(&self) -> Turn<'_> {
        while self.0.swap(true, Ordering::Acquire) {
            if rayon::yield_now() != Some(rayon::Yield::Executed) {
                std::thread::yield_now();
            }
        }
        Turn(self)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.0.store(false, Ordering::Release);
    }
}

/// Gives the baton on when a backward pass through a number of blocks is half of the batch's time from its end: a forward pass
/// takes a third of the time, and a quarter of the backward pass as much as half of that.
pub(crate) fn give_on_half_way(turn: Option<Turn<'_>>, layers: usize) -> impl FnMut(usize) {
    let mut turn = turn;
    move |layer| drop(turn.take_if(|_| layer <= layers * 3 / 4))
}
