//! A part of a call's work, of which the others run elsewhere at the same time.
use crate::error::Result;
use std::fs::File;
use std::ops::Range;
use std::path::Path;
use std::str::FromStr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use tanglescope_records::{lock, lock_file, wait_for_lock};

/// Which part of the work: the I-th of N.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    /// Which, from 1.
    pub number: usize,
    /// Of how many.
    pub of: usize,
    /// Whether the work is this part already.
    pub taken: bool,
}

impl Shard {
    /// All of it.
    pub const WHOLE: Self = Self { number: 1, of: 1, taken: false };

    /// Which of some things are its own: consecutive ones, so that a checkpoint is loaded by as few shards as can be.
    #[must_use]
    pub fn range(self, things: usize) -> Range<usize> {
        match self.taken {
            true => 0..things,
            false => (self.number - 1) * things / self.of..self.number * things / self.of,
        }
    }

    /// Those things.
    #[must_use]
    pub fn part<T>(self, things: Vec<T>) -> Vec<T> {
        let Range { start, end } = self.range(things.len());
        things.into_iter().take(end).skip(start).collect()
    }

    /// Whether it is all of the work.
    #[must_use]
    pub fn is_whole(self) -> bool {
        self.of == 1
    }

    /// Keeps a second process out of this part of the work, and all but shards out of the folder; takes away what a killed process left half
    /// written, where no other shard can be at work.
    pub(crate) fn lock(self, out: &Path) -> Result<Vec<File>> {
        if self.is_whole() {
            return Ok(vec![lock(out)?]);
        }
        let own = out.join(format!(".lock-{}-of-{}", self.number, self.of));
        Ok(vec![lock_file(&out.join(".lock"), true)?, lock_file(&own, false)?])
    }

    /// The turn of a shard to do what shards do one after the other.
    pub(crate) fn turn(out: &Path) -> Result<(MutexGuard<'static, ()>, File)> {
        // members of this process too, on a file system without locks
        static TURN: Mutex<()> = Mutex::new(());
        let own = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        Ok((own, wait_for_lock(&out.join(".lock-manifest"))?))
    }
}

impl FromStr for Shard {
    type Err = crate::Error;

    fn from_str(text: &str) -> Result<Self> {
        let parts = text.split_once('/').and_then(|(i, n)| Some((i.parse().ok()?, n.parse().ok()?)));
        match parts {
            Some((number, of)) if 1 <= number && number <= of => Ok(Self { number, of, taken: false }),
            _ => Err(crate::Error::value("shard", text, "expected I/N with I from 1 to N, such as 1/4")),
        }
    }
}
