//! Weights that are stored as a few bits each, with factors beside them: one way of quantising a file. What is read is the value that the
//! trainer's library dequantises to, to the bit.
mod bitsandbytes;
mod codes;
mod fp8;
pub(crate) mod ggml;
mod mxfp4;

pub use codes::Codes;
use codes::bits_of;

use crate::error::Result;
use crate::layout::Layout;
use crate::number::{Float, Number};
use crate::stored::{Encoding, Place, Stored, map};
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;

/// A plain tensor that a quantised one is made of.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Raw {
    number: Number,
    place: Place,
    shape: Vec<usize>,
}

impl Raw {
    fn of(stored: &Stored) -> Option<Self> {
        match stored.encoding {
            Encoding::Plain { number, place } => Some(Self { number, place, shape: stored.shape.clone() }),
            _ => None,
        }
    }

    fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Some of its bytes, by its values.
    fn bytes(&self, files: &[PathBuf], values: Range<usize>) -> Result<Vec<u8>, String> {
        if values.end > self.len() {
            return Err(format!("has {} factors or codes, and {} are needed", self.len(), values.end));
        }
        if values.is_empty() {
            return Ok(Vec::new());
        }
        let width = self.number.size();
        let start = self.place.start + (values.start * width) as u64;
        let bytes = map(&files[self.place.file], start, Some(values.len() * width)).map_err(|e| e.to_string())?;
        Ok(bytes.to_vec())
    }

    /// Some of its values.
    fn values<E: Float>(&self, files: &[PathBuf], values: Range<usize>) -> Result<Vec<E>, String> {
        let bytes = self.bytes(files, values)?;
        self.number.values(&bytes).ok_or_else(|| format!("has factors of type {}", self.number.name()))
    }
}

/// A quantised tensor.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Quantised {
    FourBits(Box<bitsandbytes::FourBits>),
    EightBits(bitsandbytes::EightBits),
    Fp8(fp8::Fp8),
    Mxfp4(mxfp4::Mxfp4),
    Ggml(ggml::Ggml),
}

impl Quantised {
    /// What it is called.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::FourBits(of) => of.kind(),
            Self::EightBits(_) => "int8",
            Self::Fp8(_) => "fp8",
            Self::Mxfp4(_) => "mxfp4",
            Self::Ggml(of) => of.kind.name(),
        }
    }

    /// Whether every value is one of bfloat16's.
    pub fn fits_bf16(&self) -> bool {
        match self {
            Self::FourBits(of) => of.fits_bf16(),
            Self::EightBits(_) | Self::Fp8(_) | Self::Ggml(_) => false,
            Self::Mxfp4(_) => true,
        }
    }

    /// The file of its values.
    pub fn file(&self) -> usize {
        match self {
            Self::FourBits(of) => of.codes.place.file,
            Self::EightBits(of) => of.values.place.file,
            Self::Fp8(of) => of.values.place.file,
            Self::Mxfp4(of) => of.blocks.place.file,
            Self::Ggml(of) => of.place.file,
        }
    }

    /// Rows as they are stored, as codes; `None` where it has none.
    fn rows(&self, files: &[PathBuf], rows: &Range<usize>) -> Result<Option<Codes>, String> {
        match self {
            Self::FourBits(of) => of.codes(files, rows).map(Some),
            Self::EightBits(of) => of.codes(files, rows).map(Some),
            Self::Fp8(of) => of.codes(files, rows).map(Some),
            Self::Mxfp4(of) => of.codes(files, rows, 1).map(Some),
            Self::Ggml(of) => of.codes(files, rows),
        }
    }

    /// Bits that a value takes as codes, with its share of the factors; `None` where there are none.
    pub fn bits_as_codes(&self) -> Option<f64> {
        let (bits, columns, block) = match self {
            Self::FourBits(of) => (4, of.columns, of.block_in_rows()),
            Self::EightBits(of) => (8, of.columns, of.columns),
            Self::Fp8(of) => (8, of.columns, of.block[1]),
            Self::Mxfp4(of) => (4, of.shape[1], mxfp4::BLOCK),
            Self::Ggml(of) => return of.bits_as_codes(),
        };
        fill_words(columns, bits).then(|| bits as f64 + 32.0 / block.min(columns) as f64)
    }

    /// What a layout keeps, as codes of the matrix, or, where it keeps another than [`Layout::Same`], of its transpose; `None` where it is no such
    /// matrix, or not of codes.
    pub fn codes(&self, files: &[PathBuf], shape: &[usize], layout: Layout) -> Result<Option<Codes>, String> {
        match (layout, shape, self) {
            // an expert's columns are rows of what is stored
            (Layout::Part { index, first, every }, _, Self::Mxfp4(of)) => {
                let [outputs, _] = of.shape;
                of.codes(files, &(index * outputs + first..(index + 1) * outputs), every).map(Some)
            }
            (_, _, Self::Mxfp4(_)) => Ok(None),
            (Layout::Same | Layout::Transposed, &[rows, _], _) => self.rows(files, &(0..rows)),
            (Layout::Rows { index, piece, of }, &[_, rows, _], _) => {
                let first = (index * of + piece) * (rows / of);
                self.rows(files, &(first..first + rows / of))
            }
            _ => Ok(None),
        }
    }

    /// Some of its values, in the order of the tensor's rows.
    pub fn read(&self, files: &[PathBuf], range: &Range<usize>) -> Result<Vec<f32>, String> {
        let columns = match self {
            Self::Mxfp4(of) => return of.read(files, range),
            Self::FourBits(of) => of.columns,
            Self::EightBits(of) => of.columns,
            Self::Fp8(of) => of.columns,
            Self::Ggml(of) => of.columns,
        };
        let rows = range.start / columns..range.end.div_ceil(columns);
        let mut values = match self {
            Self::Ggml(of) => of.values(files, &rows)?,
            _ => self.rows(files, &rows)?.map(|codes| codes.values()).unwrap_or_default(),
        };
        let first = rows.start * columns;
        values.truncate(range.end - first);
        values.drain(..range.start - first);
        Ok(values)
    }
}

/// Whether rows of codes begin where words of 32 bits do.
fn fill_words(columns: usize, bits: usize) -> bool {
    columns.is_multiple_of(32 / bits)
}

/// What the codes of whole numbers with a sign in a byte stand for.
fn signed() -> Vec<f32> {
    (0..=u8::MAX).map(|code| f32::from(code.cast_signed())).collect()
}

/// Tensors by name.
pub(crate) type ByName = BTreeMap<String, Stored>;

/// Puts quantised tensors together from what they are stored as. `fp8_block` is how many rows and columns share a factor of 8-bit floating
/// point numbers, where it is not all of them.
///
/// # Errors
/// Names a tensor whose parts do not fit each other.
pub(crate) fn put_together(
    tensors: &mut ByName,
    files: &[PathBuf],
    fp8_block: Option<[usize; 2]>,
) -> Result<(), (String, String)> {
    bitsandbytes::put_together(tensors, files)?;
    fp8::put_together(tensors, fp8_block)?;
    mxfp4::put_together(tensors)
}

/// Takes a plain tensor out of the others.
fn take(tensors: &mut ByName, name: &str, whole: &str) -> Result<Raw, (String, String)> {
    let raw = tensors.remove(name).as_ref().and_then(Raw::of);
    raw.ok_or_else(|| (whole.to_owned(), format!("is quantised, and lacks `{name}`")))
}

/// Names that end in something, without that.
fn ending(tensors: &ByName, end: &str) -> Vec<String> {
    tensors.keys().filter_map(|name| name.strip_suffix(end)).map(str::to_owned).collect()
}

/// A tensor under its name.
fn put(tensors: &mut ByName, name: &str, shape: Vec<usize>, of: Quantised) {
    tensors.insert(name.to_owned(), Stored { shape, encoding: Encoding::Quantised(of) });
}
