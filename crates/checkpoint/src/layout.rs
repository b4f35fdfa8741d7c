//! How a tensor is kept in memory against how its checkpoint has it.
use crate::number::Float;
use rayon::prelude::*;

/// How a matrix is kept in memory against how it is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// As stored.
    Same,
    /// Rows become columns.
    Transposed,
    /// One matrix of a stack of them, or one row of a matrix, and of its columns every so many-th from one on.
    Part {
        /// Which matrix.
        index: usize,
        /// First column.
        first: usize,
        /// From one column to the next.
        every: usize,
    },
    /// Rows of one matrix of a stack of them, which become columns.
    Rows {
        /// Which matrix.
        index: usize,
        /// Which stretch of rows,
        piece: usize,
        /// of how many of equal length.
        of: usize,
    },
}

impl Layout {
    /// Shape of what is kept of a stored shape.
    #[must_use]
    pub fn kept(self, stored: &[usize]) -> Vec<usize> {
        match (self, stored) {
            (Self::Transposed, &[rows, columns]) => vec![columns, rows],
            (Self::Part { every, .. }, &[_, ref rows @ .., columns]) => {
                rows.iter().copied().chain([columns / every]).collect()
            }
            (Self::Rows { of, .. }, &[_, rows, columns]) => vec![columns, rows / of],
            _ => stored.to_vec(),
        }
    }

    /// Writes the values of what is kept to where they are among those of a stored shape.
    pub fn put(self, kept: &[f64], stored: &[usize], all: &mut [f64]) {
        for (at, value) in kept.iter().enumerate() {
            all[self.at(at, stored)] = *value;
        }
    }

    /// Where a value of what is kept is in a stored shape.
    pub(crate) fn at(self, at: usize, stored: &[usize]) -> usize {
        match self {
            Self::Same => at,
            Self::Transposed => at % stored[0] * stored[1] + at / stored[0],
            Self::Part { index, first, every } => index * stored[1..].iter().product::<usize>() + at * every + first,
            Self::Rows { .. } => {
                let (part, of) = self.part(stored);
                let (columns, rows) = (stored[2], stored[0] * stored[1] / of);
                (part * rows + at % rows) * columns + at / rows
            }
        }
    }

    /// Which stretch of a stored shape's values is read, of how many of equal length.
    pub(crate) fn part(self, stored: &[usize]) -> (usize, usize) {
        match self {
            Self::Same | Self::Transposed => (0, 1),
            Self::Part { index, .. } => (index, stored[0]),
            Self::Rows { index, piece, of } => (index * of + piece, stored[0] * of),
        }
    }

    /// Values of the stretch that is read, in the order that they are kept in.
    pub(crate) fn arrange<S: Copy + Send + Sync, E: Float>(
        self,
        values: &[S],
        stored: &[usize],
        of: impl Fn(S) -> E + Sync,
    ) -> Vec<E> {
        let across = match (self, stored) {
            (Self::Transposed, &[rows, columns]) => Some([rows, columns]),
            (Self::Rows { of, .. }, &[_, rows, columns]) => Some([rows / of, columns]),
            _ => None,
        };
        match (self, across) {
            (_, Some([rows, columns])) => {
                let mut out = vec![E::default(); values.len()];
                // bands of 16 rows of the result read whole cache lines of the source
                out.par_chunks_mut(16 * rows).enumerate().for_each(|(band, out)| {
                    let first = band * 16;
                    for r in 0..rows {
                        for (c, to) in out.iter_mut().skip(r).step_by(rows).enumerate() {
                            *to = of(values[r * columns + first + c]);
                        }
                    }
                });
                out
            }
            // whole rows lie side by side, so that the columns that are left are as far apart from row to row
            (Self::Part { first, every, .. }, _) => {
                let number = (values.len() - first).div_ceil(every);
                let at = |i: usize| of(values[first + i * every]);
                (0..number).into_par_iter().with_min_len(4096).map(at).collect()
            }
            _ => values.par_iter().with_min_len(4096).map(|&value| of(value)).collect(),
        }
    }
}
