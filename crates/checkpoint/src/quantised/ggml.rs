//! llama.cpp's blocks: a few bits a value with a factor for each block, or for parts of it whose factors are a few bits themselves
//! (`ggml-quants.c`; `gguf.quants` says the same in numpy).
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

    /// The values of a block.
    fn decode(self, bytes: &[u8], out: &mut [f32]) {
        let half = |at: usize| f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32();
        match self {
            Self::F32 => out[0] = f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]),
            Self::F16 => out[0] = half(0),
            Self::Bf16 => out[0] = bf16::from_le_bytes([bytes[0], bytes[1]]).to_f32(),
            Self::Q4_0 => {
                for (i, byte) in bytes[2..].iter().enumerate() {
                    out[i] = half(0) * (f32::from(byte & 15) - 8.0);
                    out[i + 16] = half(0) * (f32::from(byte >> 4) - 8.0);
                }
            }
            Self::Q8_0 => {
                let of = |byte: &u8| f32::from(byte.cast_signed()) * half(0);
                out.iter_mut().zip(&bytes[2..]).for_each(|(out, byte)| *out = of(byte));
            }
            Self::Q4K | Self::Q5K => {
                let factors = factors(&bytes[4..16]);
                let (high, low) = bytes[16..].split_at(if self == Self::Q5K { LARGE / 8 } else { 0 });
                for (group, out) in out.chunks_exact_mut(32).enumerate() {
                    let (scale, least) = factors[group];
                    let (scale, least) = (half(0) * f32::from(scale), half(2) * f32::from(least));
                    for (i, out) in out.iter_mut().enumerate() {
                        let code = low[group / 2 * 32 + i] >> (group % 2 * 4) & 15;
                        let fifth = high.get(i).map_or(0, |byte| byte >> group & 1);
                        *out = scale * f32::from(code | fifth << 4) - least;
                    }
                }
            }
            Self::Q6K => {
                let (low, rest) = bytes.split_at(LARGE / 2);
                let (high, rest) = rest.split_at(LARGE / 4);
                let scale = half(LARGE / 2 + LARGE / 4 + LARGE / 16);
                for (at, out) in out.iter_mut().enumerate() {
                    let (part, inside) = (at / 128, at % 128);
                    let four = low[part * 64 + inside % 64] >> (inside / 64 * 4) & 15;
                    let two = high[part * 32 + inside % 32] >> (inside / 32 * 2) & 3;
                    let code = f32::from(four | two << 4) - 32.0;
                    *out = scale * f32::from(rest[at / 16].cast_signed()) * code;
                }
            }
        }
    }
}

/// Factors of the eight parts of a block and what is taken off them, of six bits each in twelve bytes.
fn factors(bytes: &[u8]) -> [(u8, u8); 8] {
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

    pub fn read(&self, files: &[PathBuf], range: &Range<usize>) -> Result<Vec<f32>, String> {
        let columns = self.columns;
        let (values, block) = self.kind.block();
        let row_bytes = self.kind.bytes_of_row(columns).ok_or("has rows that are no whole blocks")?;
        let rows = range.start / columns..range.end.div_ceil(columns);
        // heads are read whole
        let head = self.head.unwrap_or(1);
        let stored = rows.start / head * head..rows.end.div_ceil(head) * head;
        let start = self.place.start + (stored.start * row_bytes) as u64;
        let bytes = map(&files[self.place.file], start, Some(stored.len() * row_bytes)).map_err(|e| e.to_string())?;
        let mut out = vec![0.0; rows.len() * columns];
        out.par_chunks_mut(columns).enumerate().for_each(|(at, out)| {
            let row = self.row(rows.start + at) - stored.start;
            let blocks = bytes[row * row_bytes..][..row_bytes].chunks_exact(block);
            blocks.zip(out.chunks_exact_mut(values)).for_each(|(bytes, out)| self.kind.decode(bytes, out));
            if self.minus_one {
                out.iter_mut().for_each(|value| *value -= 1.0);
            }
        });
        let first = rows.start * columns;
        out.truncate(range.end - first);
        out.drain(..range.start - first);
        Ok(out)
    }
}
