//! How the *gram* reduction is cut up for a device: sets that are formed together, and blocks of rows where a set alone is large.
use super::cube::{COLUMNS, ROWS};
use crate::pending::Entry;
use crate::{RowSet, as_index};
use std::ops::Range;

/// Cotangents of a set from which on, where none has more than a row, Grams are whole matrices instead of sums.
const WHOLE: usize = 16;

/// What is formed at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// A set of many cotangents of a row each, or none: entry by entry.
    Single {
        /// The set.
        set: usize,
        /// Cotangents that have a row, from the set's first on.
        present: Vec<usize>,
    },
    /// Consecutive sets, one batch of products, their rows filled up to the longest.
    Several {
        /// The sets.
        sets: Range<usize>,
    },
}

impl Part {
    /// Everything of a batch, in parts of no more than `bytes` of row Grams each unless a set alone has more.
    pub fn of(rows: &RowSet, bytes: usize) -> Vec<Self> {
        let size = |set: usize| {
            let set = &rows.sets[set];
            (rows.forward_range(set).len(), rows.of_set(set).len())
        };
        let mut parts: Vec<Self> = Vec::new();
        // lengths of the last part: the longest, and what its sets have without being filled up
        let (mut longest, mut own) = ((0, 0), 0);
        for (number, set) in rows.sets.iter().enumerate() {
            let single = set.len() > WHOLE && set.clone().all(|k| rows.of(k).len() <= 1);
            if single {
                let present = (0..set.len()).filter(|k| !rows.of(set.start + k).is_empty()).collect();
                parts.push(Self::Single { set: number, present });
                continue;
            }
            let (forward, backward) = size(number);
            let area = |(n, r): (usize, usize)| n * n + r * r;
            let together = (longest.0.max(forward), longest.1.max(backward));
            match parts.last_mut() {
                // filling up at most doubles the work
                Some(Self::Several { sets })
                    if (sets.len() + 1) * area(together) * size_of::<f32>() <= bytes
                        && (sets.len() + 1) * area(together) <= 2 * (own + area((forward, backward))) =>
                {
                    sets.end = number + 1;
                    (longest, own) = (together, own + area((forward, backward)));
                }
                _ => {
                    parts.push(Self::Several { sets: number..number + 1 });
                    (longest, own) = ((forward, backward), area((forward, backward)));
                }
            }
        }
        parts
    }

    /// Backward rows of each set of the part.
    pub fn backward(&self, rows: &RowSet) -> Vec<Range<usize>> {
        self.sets().map(|set| rows.of_set(&rows.sets[set])).collect()
    }

    /// Forward rows that each of its sets uses.
    pub fn forward(&self, rows: &RowSet) -> Vec<Range<usize>> {
        self.sets().map(|set| rows.forward_range(&rows.sets[set])).collect()
    }

    /// The sets that it is of.
    pub fn sets(&self) -> Range<usize> {
        match self {
            Self::Single { set, .. } => *set..*set + 1,
            Self::Several { sets } => sets.clone(),
        }
    }

    /// All rows of its products.
    pub fn rows(&self, rows: &RowSet) -> Range<usize> {
        0..self.backward(rows).iter().map(Range::len).max().unwrap_or(0)
    }

    /// The rows of its products that are formed at once: all of them, or blocks of those of one large set.
    pub fn blocks(&self, rows: &RowSet, bytes: usize) -> Vec<Range<usize>> {
        let longest = self.rows(rows).end;
        let fit = (bytes / size_of::<f32>() / longest.max(1)).max(ROWS);
        let step = if self.sets().len() == 1 { fit } else { longest };
        (0..longest).step_by(step.max(1)).map(|first| first..(first + step).min(longest)).collect()
    }
}

/// The sums over the entries of a block of products.
#[derive(Debug, Default)]
pub(super) struct Sums {
    /// See [`super::cube::sum_products()`].
    pub tasks: Vec<[u32; 7]>,
    /// Forward row of each backward row, from the set's first on, set after set.
    pub index: Vec<u32>,
    /// Where the sums of some tasks belong.
    pub entries: Vec<(Entry, Range<usize>)>,
}

impl Sums {
    /// Of a block of rows of a part's sets.
    pub fn new(rows: &RowSet, sets: &Range<usize>, block: &Range<usize>) -> Self {
        let mut sums = Self::default();
        for (at, number) in sets.clone().enumerate() {
            let set = &rows.sets[number];
            let (of_set, forward) = (rows.of_set(set), rows.forward_range(set));
            let first = sums.index.len();
            sums.index.extend(rows.index[of_set.clone()].iter().map(|&row| row - as_index(forward.start)));
            let of = |k: usize| rows.of(set.start + k).start - of_set.start..rows.of(set.start + k).end - of_set.start;
            for i in 0..set.len() {
                let mine = of(i).start.max(block.start)..of(i).end.min(block.end);
                for j in 0..=i {
                    let from = sums.tasks.len();
                    for row in mine.clone().step_by(ROWS) {
                        for column in of(j).step_by(COLUMNS) {
                            let (down, along) = ((row + ROWS).min(mine.end), (column + COLUMNS).min(of(j).end));
                            let [row, down] = [row, down].map(|r| r - block.start);
                            let task = [at, row, down, column, along, first + block.start, first];
                            sums.tasks.push(task.map(as_index));
                        }
                    }
                    if sums.tasks.len() > from {
                        let weight = if i == j { 1.0 } else { 2.0 };
                        sums.entries.push((Entry { set: number, i, j, weight }, from..sums.tasks.len()));
                    }
                }
            }
        }
        sums
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two pairs: trunks of four and of none, suffixes of two and three, and of one and four.
    fn pairs() -> RowSet {
        let first = (0..6).chain(0..4).chain(6..9);
        let index = first.chain(9..10).chain(10..14).collect();
        RowSet { index, offsets: vec![0, 6, 13, 14, 18], sets: vec![0..2, 2..4] }
    }

    #[test]
    fn every_pair_of_rows_counts_once_whatever_is_formed_at_once() {
        let rows = pairs();
        for bytes in [1, 700, 1 << 20] {
            let mut counted = [0.0; 8];
            for part in Part::of(&rows, bytes) {
                let Part::Several { sets } = &part else { panic!("{part:?}") };
                for block in part.blocks(&rows, bytes) {
                    let sums = Sums::new(&rows, sets, &block);
                    for (Entry { set, i, j, weight }, tasks) in &sums.entries {
                        let area = |t: &[u32; 7]| f64::from((t[2] - t[1]) * (t[4] - t[3]));
                        let area = sums.tasks[tasks.clone()].iter().map(area).sum::<f64>() * weight / 2.0;
                        counted[set * 4 + i * 2 + j] += area;
                        counted[set * 4 + j * 2 + i] += area;
                    }
                }
            }
            let counted = counted.map(|area| format!("{area}"));
            assert_eq!(counted, ["36", "42", "42", "49", "1", "4", "4", "16"], "{bytes}");
        }
    }

    #[test]
    fn sets_of_like_length_are_formed_together_within_the_bytes() {
        // filled up, three would be of 40 rows each: more than twice what they have
        let unlike = RowSet { index: (0..48).collect(), offsets: vec![0, 40, 44, 48], sets: vec![0..1, 1..2, 2..3] };
        assert_eq!(Part::of(&unlike, 1 << 20), [Part::Several { sets: 0..2 }, Part::Several { sets: 2..3 }]);
        let like = RowSet { index: (0..30).collect(), offsets: vec![0, 10, 20, 30], sets: vec![0..1, 1..2, 2..3] };
        assert_eq!(Part::of(&like, 1 << 20), [Part::Several { sets: 0..3 }]);
        assert_eq!(Part::of(&like, 2 * 200 * 4), [Part::Several { sets: 0..2 }, Part::Several { sets: 2..3 }]);
    }

    #[test]
    fn rows_of_a_large_set_are_cut_into_blocks() {
        let rows = RowSet { index: (0..100).collect(), offsets: vec![0, 100], sets: vec![0..1] };
        let part = &Part::of(&rows, 1)[0];
        let blocks = part.blocks(&rows, 100 * 4 * 40);
        assert_eq!(blocks, [0..40, 40..80, 80..100]);
        let sums = Sums::new(&rows, &(0..1), &blocks[1]);
        // the first task: 16 rows from the block's first on, which are the set's from 40 on
        assert_eq!(sums.tasks[0], [0, 0, 16, 0, 100, 40, 0]);
    }
}
