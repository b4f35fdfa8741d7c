//! Devices that share the work of a call: each takes a part of it as soon as it is free, and what one cannot do the others do.
use crate::error::{Error, Result};
use crate::listener::{Amount, Listener};
use std::any::Any;
use std::collections::{HashMap, HashSet, VecDeque};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use tanglescope_model::Stop;

/// Parts of a stage.
struct Stage {
    left: VecDeque<usize>,
    /// How many are being done.
    at_work: usize,
    /// Why one of them cannot be done by any.
    failed: Option<String>,
}

#[derive(Default)]
struct State {
    /// Stages that a member has come to, by name.
    stages: HashMap<String, Stage>,
    /// What a member found that is so for all of them, by name.
    agreed: HashMap<String, Box<dyn Any + Send>>,
    /// What belongs to all until it is let go, by name.
    held: HashMap<String, Box<dyn Any + Send>>,
    /// Whether something ended one of them that ends the others too.
    closed: bool,
}

/// Members that work side by side.
struct Crew {
    members: usize,
    state: Mutex<State>,
    changed: Condvar,
}

/// One of those that share the work.
pub struct Member<'a> {
    crew: &'a Crew,
    /// Is told how far it is; what all of them would say is said once.
    pub listener: &'a dyn Listener,
}

/// A part that a member has taken: it goes back where the member does not end it.
struct Taken<'a> {
    crew: &'a Crew,
    stage: &'a str,
    part: Option<usize>,
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        let mut state = self.crew.state();
        if let Some(stage) = state.stages.get_mut(self.stage) {
            stage.at_work -= 1;
            stage.left.extend(self.part);
        }
        self.crew.changed.notify_all();
    }
}

impl Crew {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next part of a stage; waits for those at work, whose parts may come back.
    fn take(&self, stage: &str) -> Result<Option<usize>> {
        let mut state = self.state();
        loop {
            if state.closed {
                return Err(Error::Stopped);
            }
            let Some(of) = state.stages.get_mut(stage) else {
                unreachable!("a stage is there before its parts are taken")
            };
            if let Some(failed) = &of.failed {
                return Err(Error::Failed(failed.clone()));
            }
            if let Some(part) = of.left.pop_front() {
                of.at_work += 1;
                return Ok(Some(part));
            }
            if of.at_work == 0 {
                return Ok(None);
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn close(&self) {
        self.state().closed = true;
        self.changed.notify_all();
    }
}

impl Member<'_> {
    /// How many share the work.
    pub fn of(&self) -> usize {
        self.crew.members
    }

    /// Does parts of a stage until all are done, here or by others; which parts there are is asked of the member that is here first.
    pub fn each(
        &self,
        stage: &str,
        parts: impl FnOnce() -> Result<Vec<usize>>,
        mut work: impl FnMut(usize) -> Result<()>,
    ) -> Result<()> {
        {
            let mut state = self.crew.state();
            if !state.stages.contains_key(stage) {
                let left = parts()?.into();
                state.stages.insert(stage.to_owned(), Stage { left, at_work: 0, failed: None });
            }
        }
        while let Some(part) = self.crew.take(stage)? {
            let mut taken = Taken { crew: self.crew, stage, part: Some(part) };
            match work(part) {
                Ok(()) => taken.part = None,
                Err(error) => {
                    if let (Error::Failed(why), Some(of)) = (&error, self.crew.state().stages.get_mut(stage)) {
                        of.failed.get_or_insert_with(|| why.clone());
                    }
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Does what one of them has to do while the others wait; what came of it, where it was this one.
    pub fn once<T>(&self, stage: &str, work: impl FnOnce() -> Result<T>) -> Result<Option<T>> {
        let (mut work, mut done) = (Some(work), None);
        self.each(
            stage,
            || Ok(vec![0]),
            |_| {
                done = work.take().map(|work| work()).transpose()?;
                Ok(())
            },
        )?;
        Ok(done)
    }

    /// What the member that is here first finds, so that all go on with the same.
    pub fn agree<T: Clone + Send + 'static>(&self, name: &str, find: impl FnOnce() -> Result<T>) -> Result<T> {
        let mut state = self.crew.state();
        if let Some(known) = state.agreed.get(name).and_then(|known| known.downcast_ref::<T>()) {
            return Ok(known.clone());
        }
        let found = find()?;
        state.agreed.insert(name.to_owned(), Box::new(found.clone()));
        Ok(found)
    }

    /// Takes what belongs to all of them, whichever of them goes on, until one of them lets go.
    pub fn hold<T: Send + 'static>(&self, name: &str, take: impl FnOnce() -> Result<T>) -> Result<()> {
        self.once(&format!("take {name}"), || {
            let taken: Box<dyn Any + Send> = Box::new(take()?);
            self.crew.state().held.insert(name.to_owned(), taken);
            Ok(())
        })?;
        Ok(())
    }

    /// Lets go of what is held.
    pub fn let_go(&self, name: &str) {
        self.crew.state().held.remove(name);
    }
}

/// Runs members' work side by side, each on its seat; what the one returned that ended the work. A device that fails leaves its part to the others.
///
/// # Errors
/// Where no device is left; or of the member whose work ended all others' too.
pub fn together<S: Send, T: Send>(
    seats: Vec<S>,
    listener: &dyn Listener,
    work: impl Fn(S, &Member<'_>) -> Result<Option<T>> + Sync,
) -> Result<T> {
    let crew = Crew { members: seats.len(), state: Mutex::default(), changed: Condvar::new() };
    let (ears, left) = (
        Ears { listener, said: Mutex::default(), begun: AtomicUsize::new(0), ended: AtomicUsize::new(0) },
        AtomicUsize::new(seats.len()),
    );
    let member = |seat: S| {
        let heard = Heard { ears: &ears, begun: AtomicUsize::new(0), ended: AtomicUsize::new(0) };
        let done = work(seat, &Member { crew: &crew, listener: &heard });
        let weight = match &done {
            Err(error @ Error::Device { .. }) if left.fetch_sub(1, Ordering::Relaxed) > 1 => {
                listener.fell_back(&format!("{error}; the other devices do its part"));
                Weight::OthersGoOn
            }
            Err(Error::Device { .. }) => Weight::NoneGoesOn,
            Err(Error::Stopped) => Weight::Stopped,
            _ => Weight::Wrong,
        };
        if weight > Weight::OthersGoOn && done.is_err() {
            crew.close();
        }
        (weight, done)
    };
    let mut seats: VecDeque<S> = seats.into();
    let all: Vec<(Weight, Result<Option<T>>)> = match (seats.len(), seats.pop_front()) {
        (1, Some(seat)) => vec![(Weight::Wrong, work(seat, &Member { crew: &crew, listener }))],
        (_, first) => std::thread::scope(|scope| {
            let member = &member;
            let threads: Vec<_> =
                first.into_iter().chain(seats).map(|seat| scope.spawn(move || member(seat))).collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
                .collect()
        }),
    };
    let (mut found, mut failed) = (None, None);
    for (weight, done) in all {
        match done {
            Ok(done) => found = found.or(done),
            Err(error) if failed.as_ref().is_none_or(|(there, _)| *there < weight) => failed = Some((weight, error)),
            Err(_) => {}
        }
    }
    match (found, failed) {
        (Some(found), None | Some((Weight::OthersGoOn, _))) => Ok(found),
        (_, Some((_, error))) => Err(error),
        (None, None) => unreachable!("one of them ended the work"),
    }
}

/// Which of several errors is the one that ended the work.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Weight {
    /// Of a device that others did without.
    OthersGoOn,
    /// Of the last device.
    NoneGoesOn,
    /// What others are ended with.
    Stopped,
    /// What would be wrong on any device.
    Wrong,
}

/// What a listener was told by any of them.
struct Ears<'a> {
    listener: &'a dyn Listener,
    said: Mutex<HashSet<String>>,
    begun: AtomicUsize,
    ended: AtomicUsize,
}

/// The listener as a member has it.
struct Heard<'a> {
    ears: &'a Ears<'a>,
    begun: AtomicUsize,
    ended: AtomicUsize,
}

impl Heard<'_> {
    fn is_new(&self, what: &str) -> bool {
        self.ears.said.lock().unwrap_or_else(PoisonError::into_inner).insert(what.to_owned())
    }

    /// Whether this member is the first to come so far.
    fn is_first(own: &AtomicUsize, all: &AtomicUsize) -> bool {
        let times = own.fetch_add(1, Ordering::Relaxed);
        all.compare_exchange(times, times + 1, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }
}

impl Listener for Heard<'_> {
    fn begin(&self, total: Amount, before: Amount) {
        if Self::is_first(&self.begun, &self.ears.begun) {
            self.ears.listener.begin(total, before);
        }
    }

    fn about(&self, what: &str) {
        self.ears.listener.about(what);
    }

    fn advance(&self, more: Amount) {
        self.ears.listener.advance(more);
    }

    fn end(&self) {
        if Self::is_first(&self.ended, &self.ears.ended) {
            self.ears.listener.end();
        }
    }

    fn note(&self, what: &str) {
        if self.is_new(what) {
            self.ears.listener.note(what);
        }
    }

    fn resumed(&self, what: &str) {
        if self.is_new(what) {
            self.ears.listener.resumed(what);
        }
    }

    fn left_out(&self, what: &str) {
        if self.is_new(what) {
            self.ears.listener.left_out(what);
        }
    }

    fn fell_back(&self, what: &str) {
        if self.is_new(what) {
            self.ears.listener.fell_back(what);
        }
    }

    fn short_of_memory(&self) {
        self.ears.listener.short_of_memory();
    }

    fn completed(&self, records: &Path) {
        if self.is_new(&records.display().to_string()) {
            self.ears.listener.completed(records);
        }
    }

    fn stop(&self) -> Option<&Stop> {
        self.ears.listener.stop()
    }
}

#[cfg(test)]
mod tests {
    use super::together;
    use crate::error::{Error, Result};
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicBool, Ordering};

    fn failed() -> Error {
        Error::Device { device: "cuda:1".to_owned(), problem: "it failed".to_owned() }
    }

    #[test]
    fn every_part_is_done_once_and_those_of_a_member_that_fails_by_others() {
        let (done, has_failed) = (Mutex::new(Vec::new()), AtomicBool::new(false));
        let sum = together(vec![0, 1, 2], &(), |seat, member| {
            for stage in 0..3 {
                member.each(
                    &format!("stage {stage}"),
                    || Ok((0..20).collect()),
                    |part| {
                        std::thread::sleep(std::time::Duration::from_micros(200));
                        if seat == 1 && stage == 1 {
                            has_failed.store(true, Ordering::Relaxed);
                            return Err(failed());
                        }
                        done.lock().unwrap().push((stage, part));
                        Ok(())
                    },
                )?;
            }
            member.once("end", || Ok(done.lock().unwrap().len()))
        });
        assert_eq!(sum.unwrap(), 60);
        let mut done = done.into_inner().unwrap();
        done.sort_unstable();
        assert_eq!(done, (0..3).flat_map(|stage| (0..20).map(move |part| (stage, part))).collect::<Vec<_>>());
        assert!(has_failed.into_inner());
    }

    #[test]
    fn what_no_device_can_do_and_what_is_wrong_for_all_is_the_error() {
        let all_fail: Result<()> = together(vec![0, 1, 2], &(), |_, member| {
            member.each("parts", || Ok(vec![0, 1]), |_| Err(failed()))?;
            Ok(Some(()))
        });
        assert!(matches!(all_fail, Err(Error::Device { .. })));
        let wrong: Result<()> = together(vec![0, 1, 2], &(), |seat, member| {
            if seat == 2 {
                return Err(Error::value("data", "x", "is wrong"));
            }
            member.each(
                "parts",
                || Ok((0..1000).collect()),
                |_| {
                    std::thread::sleep(std::time::Duration::from_millis(1));
                    Ok(())
                },
            )?;
            member.once("end", || Ok(()))
        });
        assert!(wrong.unwrap_err().to_string().contains("is wrong"));
    }
}
