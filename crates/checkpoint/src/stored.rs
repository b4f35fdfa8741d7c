//! A tensor as bytes of files: plain, in parts, or quantised; and how its values are read.
use crate::error::{Error, Result};
use crate::layout::Layout;
use crate::number::{Float, Number};
use crate::quantised::{Codes, Quantised};
use bytes::Bytes;
use half::{bf16, f16};
use memmap2::{Mmap, MmapOptions};
use rayon::prelude::*;
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Bytes of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// Which of the checkpoint's files.
    pub file: usize,
    /// First byte.
    pub start: u64,
}

/// A part of a tensor, whose values may be apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    pub place: Place,
    /// Where it begins in the tensor.
    pub at: Vec<usize>,
    pub shape: Vec<usize>,
    /// Values from one entry to the next, for each dimension.
    pub strides: Vec<usize>,
}

/// A stored tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct Stored {
    /// Its shape, as the model has it.
    pub(crate) shape: Vec<usize>,
    pub(crate) encoding: Encoding,
}

/// How the values are there.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Encoding {
    /// One behind the other.
    Plain { number: Number, place: Place },
    /// In pieces, or apart.
    Pieces { number: Number, pieces: Vec<Piece> },
    /// As a few bits each, with factors beside them.
    Quantised(Quantised),
    /// One behind the other, in memory.
    Held(Held),
}

/// Numbers in memory that another library may own, one behind the other.
#[derive(Clone, PartialEq)]
pub struct Held {
    /// Their type.
    pub number: Number,
    /// All of them.
    pub bytes: Bytes,
}

impl std::fmt::Debug for Held {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes of {}", self.bytes.len(), self.number.name())
    }
}

/// Bytes of a file, mapped.
#[allow(unsafe_code)]
pub(crate) fn map(path: &Path, start: u64, len: Option<usize>) -> Result<Mmap> {
    let file = File::open(path).map_err(|e| Error::file(path, e))?;
    let mut options = MmapOptions::new();
    options.offset(start);
    if let Some(len) = len {
        options.len(len);
    }
    // SAFETY: the map is only read, and only as bytes. A file that another process changes under the map can change
    // the numbers read, or end the process where it is cut short; no safe interface rules that out.
    unsafe { options.map(&file) }.map_err(|e| Error::file(path, e))
}

/// Index of the first value that is NaN or infinite. Long runs are looked through without a branch a value.
fn first_not_finite<E: Float>(numbers: &[E]) -> Option<usize> {
    let all_finite = |run: &[E]| run.iter().fold(true, |all, x| all & x.finite());
    if numbers.par_chunks(1 << 14).all(all_finite) { None } else { numbers.iter().position(|x| !x.finite()) }
}

/// Whether there are numbers, and all of them are finite.
fn all_finite<E: Float>(numbers: Option<&[E]>) -> bool {
    numbers.is_some_and(|numbers| first_not_finite(numbers).is_none())
}

impl Stored {
    /// Its shape.
    #[must_use]
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// What its numbers are called: a number type, or a way of quantising.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match &self.encoding {
            Encoding::Plain { number, .. } | Encoding::Pieces { number, .. } => number.name(),
            Encoding::Quantised(of) => of.kind(),
            Encoding::Held(of) => of.number.name(),
        }
    }

    /// Whether its numbers can be weights: floating point ones, or quantised ones with their factors.
    #[must_use]
    pub fn holds_weights(&self) -> bool {
        match &self.encoding {
            Encoding::Plain { number, .. } | Encoding::Pieces { number, .. } | Encoding::Held(Held { number, .. }) => {
                matches!(number, Number::F64 | Number::F32 | Number::F16 | Number::BF16)
            }
            Encoding::Quantised(_) => true,
        }
    }

    /// Whether it is stored quantised.
    #[must_use]
    pub fn is_quantised(&self) -> bool {
        matches!(self.encoding, Encoding::Quantised(_))
    }

    /// Whether every value is one of bfloat16's.
    #[must_use]
    pub fn fits_bf16(&self) -> bool {
        match &self.encoding {
            Encoding::Plain { number, .. } | Encoding::Pieces { number, .. } | Encoding::Held(Held { number, .. }) => {
                *number == Number::BF16
            }
            Encoding::Quantised(of) => of.fits_bf16(),
        }
    }

    /// Bits that a value takes as [codes](crate::Codes), with its share of the factors; `None` where it has none.
    #[must_use]
    pub fn bits_as_codes(&self) -> Option<f64> {
        match &self.encoding {
            Encoding::Quantised(of) => of.bits_as_codes(),
            Encoding::Plain { .. } | Encoding::Pieces { .. } | Encoding::Held(_) => None,
        }
    }

    /// The first of its files.
    pub(crate) fn file(&self) -> usize {
        match &self.encoding {
            Encoding::Plain { place, .. } => place.file,
            Encoding::Pieces { pieces, .. } => pieces.first().map_or(0, |piece| piece.place.file),
            Encoding::Quantised(of) => of.file(),
            Encoding::Held(_) => 0,
        }
    }

    /// The numbers themselves, where they are in memory, of a type, and finite.
    pub(crate) fn held(&self, number: Number) -> Option<Bytes> {
        let Encoding::Held(of) = &self.encoding else { return None };
        let finite = || match number {
            Number::F32 => all_finite(bytemuck::try_cast_slice::<_, f32>(&of.bytes).ok()),
            Number::F64 => all_finite(bytemuck::try_cast_slice::<_, f64>(&of.bytes).ok()),
            Number::BF16 => all_finite(bytemuck::try_cast_slice::<_, bf16>(&of.bytes).ok()),
            _ => false,
        };
        // what is wrong with a value is said where it is read as one
        (of.number == number && !of.bytes.is_empty() && finite()).then(|| of.bytes.clone())
    }

    /// What a layout keeps, as codes; `None` where there are none, or some may stand for no number, or for one beyond `most`.
    pub(crate) fn codes(&self, files: &[PathBuf], name: &str, layout: Layout, most: f32) -> Result<Option<Codes>> {
        let Encoding::Quantised(of) = &self.encoding else { return Ok(None) };
        if self.shape.contains(&0) {
            return Ok(None);
        }
        let codes = of.codes(files, &self.shape, layout);
        let codes = codes.map_err(|problem| Error::tensor(&files[self.file()], name, problem))?;
        // what is wrong with a value is said where it is read as one
        Ok(codes.filter(|codes| codes.fill_words() && codes.largest() <= most))
    }

    /// Reads the values that a layout keeps, in its order; `name` and `files` are for errors and of the checkpoint.
    pub(crate) fn read<E: Float>(&self, files: &[PathBuf], name: &str, layout: Layout) -> Result<Vec<E>> {
        let path = &files[self.file()];
        let values = self.shape.iter().product::<usize>();
        if values == 0 {
            return Err(Error::tensor(path, name, "has no values"));
        }
        let (part, of) = layout.part(&self.shape);
        let range = values / of * part..values / of * (part + 1);
        let numbers: Vec<E> = match &self.encoding {
            Encoding::Plain { number, place } => {
                let bytes =
                    map(path, place.start + (range.start * number.size()) as u64, Some(range.len() * number.size()))?;
                self.plain(*number, &bytes, layout).ok_or_else(|| no_weights(path, name, *number))?
            }
            Encoding::Held(Held { number, bytes }) => {
                let bytes = &bytes[range.start * number.size()..range.end * number.size()];
                self.plain(*number, bytes, layout).ok_or_else(|| no_weights(path, name, *number))?
            }
            Encoding::Pieces { number, pieces } => {
                let values = match number {
                    Number::F64 | Number::F32 | Number::F16 | Number::BF16 => {
                        read_pieces::<E>(files, *number, pieces, &self.shape, &range)?
                    }
                    Number::F8E4M3 | Number::I8 | Number::U8 | Number::Other(..) => None,
                };
                layout.arrange(&values.ok_or_else(|| no_weights(path, name, *number))?, &self.shape, |value| value)
            }
            Encoding::Quantised(of) => {
                let values = of.read(files, &range).map_err(|problem| Error::tensor(path, name, problem))?;
                layout.arrange(&values, &self.shape, |value| E::of(f64::from(value)))
            }
        };
        if let Some(at) = first_not_finite(&numbers) {
            let at = layout.at(at, &self.shape);
            return Err(Error::tensor(
                path,
                name,
                format!(
                    "value {at} is NaN or infinite: the checkpoint is damaged, or it is beyond what this option `dtype` holds"
                ),
            ));
        }
        Ok(numbers)
    }

    /// Values that lie one behind the other, in the order that a layout keeps.
    fn plain<E: Float>(&self, number: Number, bytes: &[u8], layout: Layout) -> Option<Vec<E>> {
        fn arranged<E: Float, const W: usize>(
            (bytes, shape, layout): (&[u8], &[usize], Layout),
            of: impl Fn([u8; W]) -> E + Sync,
        ) -> Vec<E> {
            layout.arrange(bytes.as_chunks::<W>().0, shape, of)
        }
        let from = (bytes, self.shape.as_slice(), layout);
        Some(match number {
            Number::F32 => arranged(from, |b: [u8; 4]| E::of(f64::from(f32::from_le_bytes(b)))),
            Number::BF16 => arranged(from, |b: [u8; 2]| E::of(bf16::from_le_bytes(b).to_f64())),
            Number::F16 => arranged(from, |b: [u8; 2]| E::of(f16::from_le_bytes(b).to_f64())),
            Number::F64 => arranged(from, |b: [u8; 8]| E::of(f64::from_le_bytes(b))),
            Number::F8E4M3 | Number::I8 | Number::U8 | Number::Other(..) => return None,
        })
    }
}

fn no_weights(path: &Path, name: &str, number: Number) -> Error {
    let problem = format!(
        "stored as {}; expected F32, F16, BF16 or F64, or a quantised form that config.json names",
        number.name()
    );
    Error::tensor(path, name, problem)
}

/// Values of a stretch of a tensor that is there in pieces; `None` where no weights are of the type.
fn read_pieces<E: Float>(
    files: &[PathBuf],
    number: Number,
    pieces: &[Piece],
    shape: &[usize],
    wanted: &Range<usize>,
) -> Result<Option<Vec<E>>> {
    let mut out = vec![E::default(); wanted.len()];
    for piece in pieces.iter().filter(|piece| !piece.shape.contains(&0)) {
        // from the first value to the last
        let reach = piece.shape.iter().zip(&piece.strides).map(|(size, stride)| (size - 1) * stride).sum::<usize>() + 1;
        let bytes = map(&files[piece.place.file], piece.place.start, Some(reach * number.size()))?;
        let Some(()) = copy_piece(&bytes, number, piece, shape, (wanted.start, &mut out)) else { return Ok(None) };
    }
    Ok(Some(out))
}

/// Copies what a piece has of a stretch of a tensor, which begins at value `first`.
fn copy_piece<E: Float>(
    bytes: &[u8],
    number: Number,
    piece: &Piece,
    shape: &[usize],
    (first, out): (usize, &mut [E]),
) -> Option<()> {
    let apart: Vec<usize> = (0..shape.len()).map(|d| shape[d + 1..].iter().product()).collect();
    // rows of the last dimension; a number alone is one of one
    let row = piece.shape.last().copied().unwrap_or(1);
    let rows = piece.shape.iter().rev().skip(1).product::<usize>();
    let width = number.size();
    for at in 0..rows {
        let (mut left, mut to, mut from) = (at, 0, 0);
        for d in (0..piece.shape.len().saturating_sub(1)).rev() {
            let here = left % piece.shape[d];
            left /= piece.shape[d];
            to += (piece.at[d] + here) * apart[d];
            from += here * piece.strides[d];
        }
        to += piece.at.last().unwrap_or(&0);
        if to >= first + out.len() || to + row <= first {
            continue;
        }
        let stride = piece.strides.last().copied().unwrap_or(1);
        let values: Vec<E> = match stride == 1 {
            true => number.values(&bytes[from * width..(from + row) * width])?,
            false => {
                let apart = (0..row).flat_map(|i| bytes[(from + i * stride) * width..][..width].iter().copied());
                number.values(&apart.collect::<Vec<u8>>())?
            }
        };
        let skipped = first.saturating_sub(to);
        let target = to.max(first) - first;
        let length = (row - skipped).min(out.len() - target);
        out[target..target + length].copy_from_slice(&values[skipped..skipped + length]);
    }
    Some(())
}
