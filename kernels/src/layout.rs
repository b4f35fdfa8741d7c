//! How the rows of a batch hang together: what attends to what, and which forward row each backward row copies.
//!
//! Forward rows are a group's trunk followed by its suffixes; backward rows are, for each cotangent, its own copy of
//! the rows that it reaches (docs/mathematics.md, section 2).
use crate::as_index;
use std::collections::BTreeSet;
use std::ops::Range;

/// Consecutive forward rows that attend to all of `prefix` and causally to themselves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// Forward rows that every query of the span sees (a trunk; empty for the trunk itself).
    pub prefix: Range<usize>,
    /// Forward rows of the queries; each sees those up to and including itself.
    pub own: Range<usize>,
}

/// The backward rows of one cotangent: a copy of `prefix`, then of `own`, causal over the concatenation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Forward rows of the trunk that the cotangent reaches.
    pub prefix: Range<usize>,
    /// Forward rows of its branch's suffix that it reaches.
    pub own: Range<usize>,
    /// Row of the segment before which the cotangent of the attention output is exactly zero.
    pub active_from: usize,
}

impl Segment {
    /// Number of backward rows.
    #[must_use]
    pub fn len(&self) -> usize {
        self.prefix.len() + self.own.len()
    }

    /// The same rows, none of whose cotangents is known to be zero.
    #[must_use]
    pub fn filled(&self) -> Self {
        Self { active_from: 0, ..self.clone() }
    }

    /// Whether the segment has no rows.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Backward rows: for every cotangent, in order, the forward rows whose activations its rows use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RowSet {
    /// Forward row of each backward row, `[R]`.
    pub index: Vec<u32>,
    /// First backward row of each cotangent, and `R`: `[K + 1]`.
    pub offsets: Vec<usize>,
    /// Cotangents whose gradients are multiplied with each other: one range a set, together `0..K`.
    pub sets: Vec<Range<usize>>,
}

impl RowSet {
    /// Number of backward rows, `R`.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.index.len()
    }

    /// Number of cotangents, `K`.
    #[must_use]
    pub fn cotangents(&self) -> usize {
        self.offsets.len().saturating_sub(1)
    }

    /// Backward rows of cotangent `k`.
    #[must_use]
    pub fn of(&self, k: usize) -> Range<usize> {
        self.offsets[k]..self.offsets[k + 1]
    }

    /// Backward rows of all cotangents of a set.
    #[must_use]
    pub fn of_set(&self, set: &Range<usize>) -> Range<usize> {
        self.offsets[set.start]..self.offsets[set.end]
    }

    /// The rows that the same cotangents have here and elsewhere, where forward rows are counted on from `first`; and the places of either
    /// among them.
    #[must_use]
    pub fn and(&self, other: &Self, first: usize) -> (Self, [Vec<u32>; 2]) {
        let mut rows = Self { index: Vec::new(), offsets: vec![0], sets: self.sets.clone() };
        let (mut own, mut others) = (Vec::with_capacity(self.rows()), Vec::with_capacity(other.rows()));
        for k in 0..self.cotangents() {
            let (a, b, start) = (&self.index[self.of(k)], &other.index[other.of(k)], rows.index.len());
            own.extend((start..start + a.len()).map(as_index));
            others.extend((start + a.len()..start + a.len() + b.len()).map(as_index));
            rows.index.extend_from_slice(a);
            rows.index.extend(b.iter().map(|row| row + as_index(first)));
            rows.offsets.push(rows.index.len());
        }
        (rows, [own, others])
    }

    /// The same cotangents with as many rows each, row i of cotangent k of forward row `index(k, i)`.
    #[must_use]
    pub fn with_each(&self, each: usize, index: impl Fn(usize, usize) -> usize) -> Self {
        let k = self.cotangents();
        let index = (0..k * each).map(|at| as_index(index(at / each, at % each))).collect();
        Self { index, offsets: (0..=k).map(|k| k * each).collect(), sets: self.sets.clone() }
    }

    /// Stretches of backward rows of cotangent `k` over which the forward row goes up by one.
    pub(crate) fn runs(&self, k: usize) -> Vec<Range<usize>> {
        let rows = self.of(k);
        let mut runs: Vec<Range<usize>> = Vec::new();
        for r in rows {
            match runs.last_mut() {
                Some(run) if self.index[r] == self.index[r - 1] + 1 => run.end = r + 1,
                _ => runs.push(r..r + 1),
            }
        }
        runs
    }

    /// Whether no forward row is in the ranges of two sets.
    pub(crate) fn forward_ranges_apart(&self) -> bool {
        let ranges = self.sets.iter().map(|set| self.forward_range(set)).filter(|range| !range.is_empty());
        let mut ranges: Vec<Range<usize>> = ranges.collect();
        ranges.sort_by_key(|range| range.start);
        ranges.windows(2).all(|two| two[0].end <= two[1].start)
    }

    /// Smallest range of forward rows that covers what a set uses.
    pub(crate) fn forward_range(&self, set: &Range<usize>) -> Range<usize> {
        let used = &self.index[self.of_set(set)];
        let low = used.iter().min().map_or(0, |&r| r as usize);
        let high = used.iter().max().map_or(0, |&r| r as usize + 1);
        low..high
    }
}

/// Rows in order as a range, where they follow each other without a gap.
pub(crate) fn stretch(rows: &[u32]) -> Option<Range<usize>> {
    let (first, last) = (*rows.first()? as usize, *rows.last()? as usize);
    (last - first + 1 == rows.len()).then_some(first..last + 1)
}

/// Which rows of the head each cotangent weights.
#[derive(Clone, Copy, Debug)]
pub struct HeadCotangents<'a> {
    /// Rows and weights of each cotangent.
    pub weights: &'a [Vec<(usize, f64)>],
    /// Cotangents of each set.
    pub sets: &'a [Range<usize>],
}

impl HeadCotangents<'_> {
    /// Rows that the cotangents of each set weight, each once, in order.
    #[must_use]
    pub fn set_rows(&self) -> Vec<Vec<u32>> {
        let of_set = |set: &Range<usize>| {
            let rows = self.weights[set.clone()].iter().flatten().map(|&(row, _)| as_index(row));
            rows.collect::<BTreeSet<u32>>().into_iter().collect()
        };
        self.sets.iter().map(of_set).collect()
    }

    /// One backward row for every weighted row of each cotangent.
    pub(crate) fn rows(&self) -> RowSet {
        let mut offsets = vec![0];
        self.weights.iter().for_each(|rows| offsets.push(offsets[offsets.len() - 1] + rows.len()));
        RowSet { index: self.sources(), offsets, sets: self.sets.to_vec() }
    }

    /// The head's row behind each backward row.
    pub(crate) fn sources(&self) -> Vec<u32> {
        self.weights.iter().flatten().map(|&(row, _)| crate::as_index(row)).collect()
    }

    /// The weight of each backward row.
    pub(crate) fn weights(&self) -> Vec<f64> {
        self.weights.iter().flatten().map(|&(_, weight)| weight).collect()
    }
}
