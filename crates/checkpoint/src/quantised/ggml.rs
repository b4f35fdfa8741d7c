//! llama.cpp's blocks: a few bits a value with a factor for each block, or for parts of it whose factors are a few bits themselves
//! (`ggml-quants.c`; `gguf.quants` says the same in numpy).
use super::{Codes, bits_of, fill_words, signed};
use crate::number::Number;
use crate::stored::{Place, map};
use half::{bf16, f16};
use rayon::prelude::*;
use std::ops::Range;
use std::path::PathBuf;

/// How a block is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    F32,
    F16,
    Bf16,
    Q4_0,
    Q8_0,
    Q4K,
    Q5K,
    Q6K,
}

/// Kinds by their number in a file, with their names.
const KINDS: [(u32, Kind, &str); 8] = [
    (0, Kind::F32, "F32"),
    (1, Kind::F16, "F16"),
    (30, Kind::Bf16, "BF16"),
    (2, Kind::Q4_0, "Q4_0"),
    (8, Kind::Q8_0, "Q8_0"),
    (12, Kind::Q4K, "Q4_K"),
    (13, Kind::Q5K, "Q5_K"),
    (14, Kind::Q6K, "Q6_K"),
];

/// Values of the blocks that have factors of parts.
const LARGE: usize = 256;

impl Kind {
    pub fn of(number: u32) -> Option<Self> {
        KINDS.iter().find(|(of, ..)| *of == number).map(|(_, kind, _)| *kind)
    }

    pub fn names() -> String {
        KINDS.map(|(_, _, name)| name).join(", ")
    }

    pub fn name(self) -> &'static str {
        KINDS.iter().find(|(_, kind, _)| *kind == self).map_or("", |(_, _, name)| name)
    }

    /// The number type of a kind whose blocks are one number as it is.
    pub fn plain(self) -> Option<Number> {
        match self {
            Self::F32 => Some(Number::F32),
            Self::F16 => Some(Number::F16),
            Self::Bf16 => Some(Number::BF16),
            Self::Q4_0 | Self::Q8_0 | Self::Q4K | Self::Q5K | Self::Q6K => None,
        }
    }

    /// Values and bytes of a block.
    fn block(self) -> (usize, usize) {
        match self {
            Self::F32 => (1, 4),
            Self::F16 | Self::Bf16 => (1, 2),
            Self::Q4_0 => (32, 2 + 16),
            Self::Q8_0 => (32, 2 + 32),
            Self::Q4K => (LARGE, 4 + 12 + LARGE / 2),
            Self::Q5K => (LARGE, 4 + 12 + LARGE / 8 + LARGE / 2),
            Self::Q6K => (LARGE, LARGE / 2 + LARGE / 4 + LARGE / 16 + 2),
        }
    }

    /// Bytes of a row of values; `None` where they are no whole blocks.
    pub fn bytes_of_row(self, columns: usize) -> Option<usize> {
        let (values, bytes) = self.block();
        columns.is_multiple_of(values).then(|| (columns / values).checked_mul(bytes))?
    }

    /// The value of a block of one.
    fn one(self, bytes: &[u8]) -> f32 {
        match self {
            Self::F16 => f16::from_le_bytes([bytes[0], bytes[1]]).to_f32(),
            Self::Bf16 => bf16::from_le_bytes([bytes[0], bytes[1]]).to_f32(),
            _ => f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]),
        }
    }

    /// What the codes of a kind stand for, and how many values share a factor; `None` where there are no codes.
    fn coded(self) -> Option<(Vec<f32>, usize)> {
        let numbers = |first: i16, last: i16| (first..=last).map(f32::from).collect();
        match self {
            Self::F32 | Self::F16 | Self::Bf16 => None,
            Self::Q4_0 => Some((numbers(-8, 7), 32)),
            Self::Q8_0 => Some((signed(), 32)),
            Self::Q4K => Some((numbers(0, 15), 32)),
            Self::Q5K => Some((numbers(0, 31), 32)),
            Self::Q6K => Some((numbers(-32, 31), 16)),
        }
    }

    /// Whether something is taken off the values.
    fn has_least(self) -> bool {
        matches!(self, Self::Q4K | Self::Q5K)
    }

    /// Codes of a block, its factors, and what is taken off.
    fn decode(self, bytes: &[u8], codes: &mut [u8], factors: &mut [f32], least: &mut [f32]) {
        let half = |at: usize| f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32();
        match self {
            Self::F32 | Self::F16 | Self::Bf16 => {}
            Self::Q4_0 => {
                factors[0] = half(0);
                for (i, byte) in bytes[2..].iter().enumerate() {
                    codes[i] = byte & 15;
                    codes[i + 16] = byte >> 4;
                }
            }
            Self::Q8_0 => {
                factors[0] = half(0);
                codes.copy_from_slice(&bytes[2..]);
            }
            Self::Q4K | Self::Q5K => {
                let (high, low) = bytes[16..].split_at(if self == Self::Q5K { LARGE / 8 } else { 0 });
                for (group, (scale, offset)) in of_parts(&bytes[4..16]).into_iter().enumerate() {
                    factors[group] = half(0) * f32::from(scale);
                    least[group] = half(2) * f32::from(offset);
                    for (i, code) in codes[group * 32..][..32].iter_mut().enumerate() {
                        let four = low[group / 2 * 32 + i] >> (group % 2 * 4) & 15;
                        let fifth = high.get(i).map_or(0, |byte| byte >> group & 1);
                        *code = four | fifth << 4;
                    }
                }
            }
            Self::Q6K => {
                let (low, rest) = bytes.split_at(LARGE / 2);
                let (high, rest) = rest.split_at(LARGE / 4);
                let scale = half(LARGE / 2 + LARGE / 4 + LARGE / 16);
                for (factor, of_part) in factors.iter_mut().zip(rest) {
                    *factor = scale * f32::from(of_part.cast_signed());
                }
                for (at, code) in codes.iter_mut().enumerate() {
                    let (part, inside) = (at / 128, at % 128);
                    let four = low[part * 64 + inside % 64] >> (inside / 64 * 4) & 15;
                    let two = high[part * 32 + inside % 32] >> (inside / 32 * 2) & 3;
                    *code = four | two << 4;
                }
            }
        }
    }
}

/// Factors of the eight parts of a block and what is taken off them, of six bits each in twelve bytes.
fn of_parts(bytes: &[u8]) -> [(u8, u8); 8] {
    std::array::from_fn(|part| {
        let i = part % 4;
        match part < 4 {
            true => (bytes[i] & 0x3f, bytes[4 + i] & 0x3f),
            false => {
                let both = bytes[8 + i];
                (both & 15 | bytes[i] >> 2 & 0x30, both >> 4 | bytes[4 + i] >> 2 & 0x30)
            }
        }
    })
}

/// A tensor in blocks, row by row.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Ggml {
    pub kind: Kind,
    pub place: Place,
    pub columns: usize,
    /// Rows of a head, where its first half and its second are stored in turn.
    pub head: Option<usize>,
    /// Whether one is taken off each value.
    pub minus_one: bool,
}

impl Ggml {
    /// Where a row is stored.
    fn row(&self, row: usize) -> usize {
        self.head.map_or(row, |head| {
            let (first, inside) = (row / head * head, row % head);
            first + inside % (head / 2) * 2 + inside / (head / 2)
        })
    }

    /// Bytes of some rows, one behind the other as the model has them.
    fn bytes(&self, files: &[PathBuf], rows: &Range<usize>) -> Result<Vec<u8>, String> {
        let width = self.kind.bytes_of_row(self.columns).ok_or("has rows that are no whole blocks")?;
        // heads are read whole
        let head = self.head.unwrap_or(1);
        let stored = rows.start / head * head..rows.end.div_ceil(head) * head;
        let start = self.place.start + (stored.start * width) as u64;
        let bytes = map(&files[self.place.file], start, Some(stored.len() * width)).map_err(|e| e.to_string())?;
        let mut out = Vec::with_capacity(rows.len() * width);
        match self.head {
            None => out.extend_from_slice(&bytes),
            Some(_) => {
                let row = |row: usize| &bytes[(self.row(row) - stored.start) * width..][..width];
                rows.clone().for_each(|at| out.extend_from_slice(row(at)));
            }
        }
        Ok(out)
    }

    /// Bits that a value takes as codes; `None` where there are none.
    pub fn bits_as_codes(&self) -> Option<f64> {
        let (table, block) = self.kind.coded().filter(|_| !self.minus_one)?;
        let bits = bits_of(table.len());
        let of_block = if self.kind.has_least() { 64.0 } else { 32.0 };
        fill_words(self.columns, bits).then(|| bits as f64 + of_block / block as f64)
    }

    /// Rows as codes; `None` where values are stored as numbers, or something is taken off each.
    pub fn codes(&self, files: &[PathBuf], rows: &Range<usize>) -> Result<Option<Codes>, String> {
        let Some((table, block)) = self.kind.coded().filter(|_| !self.minus_one) else { return Ok(None) };
        let (values, width) = self.kind.block();
        let bytes = self.bytes(files, rows)?;
        let blocks = bytes.len() / width;
        let (mut codes, mut factors) = (vec![0; blocks * values], vec![0.0; blocks * values / block]);
        let mut least = vec![0.0; factors.len()];
        let parts = bytes.par_chunks_exact(width).zip(codes.par_chunks_exact_mut(values));
        let numbers = factors.par_chunks_exact_mut(values / block).zip(least.par_chunks_exact_mut(values / block));
        let each = parts.zip(numbers).with_min_len(64);
        each.for_each(|((bytes, codes), (factors, least))| self.kind.decode(bytes, codes, factors, least));
        let least = if self.kind.has_least() { least } else { Vec::new() };
        Ok(Some(Codes { least, ..Codes::plain(self.columns, codes, table, (block, factors)) }))
    }

    /// Values of some rows.
    pub fn values(&self, files: &[PathBuf], rows: &Range<usize>) -> Result<Vec<f32>, String> {
        let mut values = match (Self { minus_one: false, ..self.clone() }).codes(files, rows)? {
            Some(codes) => codes.values(),
            None => {
                let (_, width) = self.kind.block();
                self.bytes(files, rows)?.par_chunks_exact(width).map(|bytes| self.kind.one(bytes)).collect()
            }
        };
        if self.minus_one {
            values.iter_mut().for_each(|value| *value -= 1.0);
        }
        Ok(values)
    }
}
