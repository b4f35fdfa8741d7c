//! A part of a sweep's work.
use crate::error::Result;
use std::fs::File;
use std::path::Path;
use std::str::FromStr;
use tanglescope_records::lock_file;

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

    /// Consecutive jobs, so that a checkpoint is loaded by as few shards as can be.
    #[must_use]
    pub fn part<T>(self, jobs: Vec<T>) -> Vec<T> {
        if self.taken {
            return jobs;
        }
        let n = jobs.len();
        let bounds = [self.number - 1, self.number].map(|i| i * n / self.of);
        jobs.into_iter().take(bounds[1]).skip(bounds[0]).collect()
    }

    /// Keeps a second process out of this part of the sweep, and all but shards out of the folder.
    pub(super) fn lock(self, out: &Path) -> Result<Vec<File>> {
        let whole = out.join(".lock");
        if self.of == 1 {
            return Ok(vec![lock_file(&whole, false)?]);
        }
        let own = out.join(format!(".lock-{}-of-{}", self.number, self.of));
        Ok(vec![lock_file(&whole, true)?, lock_file(&own, false)?])
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
