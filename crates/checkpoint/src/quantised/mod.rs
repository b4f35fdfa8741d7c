//! Weights that are stored as a few bits each, with factors beside them: one way of quantising a file. What is read is the value that the
//! trainer's library dequantises to, to the bit.
mod bitsandbytes;
mod fp8;
pub(crate) mod ggml;
mod mxfp4;

use crate::error::Result;
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

    /// Some of its values, in the order of the tensor's rows.
    pub fn read(&self, files: &[PathBuf], range: &Range<usize>) -> Result<Vec<f32>, String> {
        match self {
            Self::FourBits(of) => of.read(files, range),
            Self::EightBits(of) => of.read(files, range),
            Self::Fp8(of) => of.read(files, range),
            Self::Mxfp4(of) => of.read(files, range),
            Self::Ggml(of) => of.read(files, range),
        }
    }
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
