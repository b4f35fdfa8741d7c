//! Rows of a quantised matrix as what all ways of quantising have in common: codes of a few bits, a table of what they stand for, and factors of
//! neighbouring values.
use crate::number::Number;
use half::{bf16, f16};
use rayon::prelude::*;

/// Bits of a code of a table.
pub(super) fn bits_of(table: usize) -> usize {
    if table <= 16 { 4 } else { 8 }
}

/// `round(table[code]·factor·second) − least` of each value, in f32, from left to right.
#[derive(Clone, Debug, PartialEq)]
pub struct Codes {
    /// Values of a row.
    pub columns: usize,
    /// A code a value, row by row.
    pub codes: Vec<u8>,
    /// What codes stand for: 16 numbers at the most where four bits are enough for each.
    pub table: Vec<f32>,
    /// Values of a row that share a factor, the last ones of a row aside.
    pub block: usize,
    /// A factor a block, row by row.
    pub factors: Vec<f32>,
    /// What is taken off all values of a block, where something is.
    pub least: Vec<f32>,
    /// A factor on all values.
    pub second: f32,
    /// The type that products are rounded to.
    pub rounded: Number,
}

impl Codes {
    /// Of one factor a block and nothing else.
    pub(crate) fn plain(columns: usize, codes: Vec<u8>, table: Vec<f32>, (block, factors): (usize, Vec<f32>)) -> Self {
        Self { columns, codes, table, block, factors, least: Vec::new(), second: 1.0, rounded: Number::F32 }
    }

    /// Blocks of a row.
    #[must_use]
    pub fn across(&self) -> usize {
        self.columns.div_ceil(self.block)
    }

    /// Number of rows.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.codes.len() / self.columns
    }

    /// Bits that a code needs.
    #[must_use]
    pub fn bits(&self) -> usize {
        bits_of(self.table.len())
    }

    fn round(&self) -> fn(f32) -> f32 {
        match self.rounded {
            Number::BF16 => |x| bf16::from_f32(x).to_f32(),
            Number::F16 => |x| f16::from_f32(x).to_f32(),
            _ => |x| x,
        }
    }

    /// The values, row by row.
    #[must_use]
    pub fn values(&self) -> Vec<f32> {
        let (across, round) = (self.across(), self.round());
        let row = |(row, out): (usize, &mut [f32])| {
            let codes = &self.codes[row * self.columns..][..self.columns];
            for (at, (codes, out)) in codes.chunks(self.block).zip(out.chunks_mut(self.block)).enumerate() {
                let (factor, least) =
                    (self.factors[row * across + at], self.least.get(row * across + at).unwrap_or(&0.0));
                for (code, out) in codes.iter().zip(out) {
                    *out = round(self.table[usize::from(*code)] * factor * self.second) - least;
                }
            }
        };
        let mut out = vec![0.0; self.codes.len()];
        out.par_chunks_mut(self.columns).enumerate().for_each(row);
        out
    }

    /// What no value is larger than; infinite where one is no number, as far as the largest factor and entry of the table say.
    #[must_use]
    pub(crate) fn largest(&self) -> f32 {
        let largest =
            |of: &[f32]| of.iter().fold(0f32, |most, x| if x.is_nan() { f32::INFINITY } else { most.max(x.abs()) });
        let of_table = self.table.iter().filter(|x| x.is_finite()).fold(0f32, |most, x| most.max(x.abs()));
        let most = (self.round())((of_table * largest(&self.factors) * self.second).abs()) + largest(&self.least);
        // a table may have codes that stand for no number
        let known = |code: &u8| self.table.get(usize::from(*code)).is_some_and(|x| x.is_finite());
        let all_known = self.codes.par_chunks(1 << 14).all(|codes| codes.iter().all(known));
        if most.is_nan() || !all_known { f32::INFINITY } else { most }
    }

    /// Codes, factors, what is taken off, and the table as words: codes from the lowest bits on, numbers as their bits, the table filled up
    /// with zeros to all that a code can say.
    #[must_use]
    pub fn words(&self) -> Vec<u32> {
        let of_word = 32 / self.bits();
        let word = |codes: &[u8]| codes.iter().rev().fold(0u32, |word, code| word << self.bits() | u32::from(*code));
        let mut words: Vec<u32> = self.codes.par_chunks(of_word).with_min_len(1 << 10).map(word).collect();
        let numbers = self.factors.iter().chain(&self.least).chain(&self.table);
        words.extend(numbers.map(|x| x.to_bits()));
        words.resize(words.len() + (1 << self.bits()) - self.table.len(), 0);
        words
    }

    /// Whether rows begin where words do.
    #[must_use]
    pub(crate) fn fill_words(&self) -> bool {
        super::fill_words(self.columns, self.bits())
    }
}
