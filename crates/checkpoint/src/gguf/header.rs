//! A GGUF file's header: its keys and values, and the list of its tensors.
use super::config::DIVISORS;
use crate::number::Number;
use crate::quantised::ggml::Kind;
use std::collections::BTreeMap;

/// A value of the header.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Field<'a> {
    Whole(i64),
    Real(f64),
    Bool(bool),
    Text(&'a str),
    /// Type and number of its values, and their bytes.
    Array(u32, u64, &'a [u8]),
}

impl<'a> Field<'a> {
    /// The values of an array, each read by one function.
    fn values<T>(&self, read: impl Fn(Field<'a>) -> Option<T>) -> Result<Vec<T>, String> {
        let Self::Array(kind, number, bytes) = *self else {
            return Err("has a number where an array belongs".to_owned());
        };
        let mut reader = Reader { bytes, at: 0 };
        let wrong = || "has an array of values of another type than it should be of".to_owned();
        (0..number).map(|_| read(reader.field(kind)?).ok_or_else(wrong)).collect()
    }

    /// An array of texts.
    pub fn texts(&self) -> Result<Vec<&'a str>, String> {
        self.values(|value| if let Field::Text(text) = value { Some(text) } else { None })
    }

    /// An array of whole numbers.
    pub fn wholes(&self) -> Result<Vec<i64>, String> {
        self.values(|value| if let Field::Whole(number) = value { Some(number) } else { None })
    }

    /// An array of real numbers.
    pub fn reals(&self) -> Result<Vec<f64>, String> {
        self.values(|value| if let Field::Real(number) = value { Some(number) } else { None })
    }
}

/// What is read of a file's header.
pub(crate) struct Header<'a> {
    pub fields: BTreeMap<&'a str, Field<'a>>,
    /// Name, sizes with the one that lies closest together last, kind, and first byte after the header.
    pub tensors: Vec<(&'a str, Vec<usize>, u32, u64)>,
    /// First byte of the tensors.
    pub data: u64,
}

/// Bytes, read one thing after the other.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

pub(super) const TRUNCATED: &str = "ends in its header; copy or download it again";

impl<'a> Reader<'a> {
    fn take(&mut self, length: u64) -> Result<&'a [u8], String> {
        let end = usize::try_from(length).ok().and_then(|length| self.at.checked_add(length));
        let part = end.and_then(|end| self.bytes.get(self.at..end)).ok_or(TRUNCATED)?;
        self.at += part.len();
        Ok(part)
    }

    fn next<const W: usize>(&mut self) -> Result<[u8; W], String> {
        self.take(W as u64)?.try_into().map_err(|_| TRUNCATED.to_owned())
    }

    fn u32(&mut self) -> Result<u32, String> {
        Ok(u32::from_le_bytes(self.next()?))
    }

    fn u64(&mut self) -> Result<u64, String> {
        Ok(u64::from_le_bytes(self.next()?))
    }

    fn text(&mut self) -> Result<&'a str, String> {
        let length = self.u64()?;
        std::str::from_utf8(self.take(length)?).map_err(|_| "has a name that is no text".to_owned())
    }

    fn field(&mut self, kind: u32) -> Result<Field<'a>, String> {
        Ok(match kind {
            0 => Field::Whole(i64::from(self.next::<1>()?[0])),
            1 => Field::Whole(i64::from(self.next::<1>()?[0].cast_signed())),
            2 => Field::Whole(i64::from(u16::from_le_bytes(self.next()?))),
            3 => Field::Whole(i64::from(i16::from_le_bytes(self.next()?))),
            4 => Field::Whole(i64::from(self.u32()?)),
            5 => Field::Whole(i64::from(i32::from_le_bytes(self.next()?))),
            6 => Field::Real(f64::from(f32::from_le_bytes(self.next()?))),
            7 => Field::Bool(self.next::<1>()?[0] != 0),
            8 => Field::Text(self.text()?),
            9 => self.array()?,
            10 => Field::Whole(self.u64()?.cast_signed()),
            11 => Field::Whole(i64::from_le_bytes(self.next()?)),
            12 => Field::Real(f64::from_le_bytes(self.next()?)),
            other => return Err(format!("has a value of type {other}, which GGUF has not")),
        })
    }

    fn array(&mut self) -> Result<Field<'a>, String> {
        let (kind, number) = (self.u32()?, self.u64()?);
        let start = self.at;
        let width = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            10..=12 => 8,
            8 => {
                for _ in 0..number {
                    self.text()?;
                }
                return Ok(Field::Array(kind, number, &self.bytes[start..self.at]));
            }
            other => return Err(format!("has an array of type {other}, which is not read")),
        };
        let values = self.take(number.checked_mul(width).ok_or(TRUNCATED)?)?;
        Ok(Field::Array(kind, number, values))
    }
}

pub(crate) fn header(bytes: &[u8]) -> Result<Header<'_>, String> {
    let mut reader = Reader { bytes, at: 0 };
    if reader.take(4)? != b"GGUF" {
        return Err("is no GGUF file".to_owned());
    }
    let version = reader.u32()?;
    if !(2..=3).contains(&version) {
        return Err(format!("is GGUF of version {version}; read: 2 and 3, with the lowest byte first"));
    }
    let (tensors, fields) = (reader.u64()?, reader.u64()?);
    let mut header = Header { fields: BTreeMap::new(), tensors: Vec::new(), data: 0 };
    for _ in 0..fields {
        let (key, kind) = (reader.text()?, reader.u32()?);
        header.fields.insert(key, reader.field(kind)?);
    }
    for _ in 0..tensors {
        let (name, dimensions) = (reader.text()?, reader.u32()?);
        if dimensions > 4 {
            return Err(format!("has a tensor of {dimensions} dimensions"));
        }
        let sizes = (0..dimensions).map(|_| reader.u64()).collect::<Result<Vec<u64>, _>>()?;
        let shape = sizes.iter().rev().map(|size| usize::try_from(*size).map_err(|_| TRUNCATED.to_owned()));
        header.tensors.push((name, shape.collect::<Result<_, _>>()?, reader.u32()?, reader.u64()?));
    }
    let alignment = match header.fields.get("general.alignment") {
        None => 32,
        Some(Field::Whole(of)) => u64::try_from(*of).ok().filter(|of| *of > 0).ok_or("has no alignment")?,
        Some(_) => return Err("has an alignment that is no number".to_owned()),
    };
    header.data = (reader.at as u64).div_ceil(alignment).checked_mul(alignment).ok_or(TRUNCATED)?;
    Ok(header)
}

impl Header<'_> {
    pub fn architecture(&self) -> Result<&str, String> {
        match self.fields.get("general.architecture") {
            Some(Field::Text(of)) => Ok(of),
            _ => Err("does not say its architecture".to_owned()),
        }
    }

    /// A value under the architecture's name.
    pub fn own(&self, key: &str) -> Option<&Field<'_>> {
        self.fields.get(format!("{}.{key}", self.architecture().ok()?).as_str())
    }

    /// What the frequencies of rotary angles are divided by, where the file has that as a tensor.
    pub fn divisors(&self, bytes: &[u8]) -> Result<Option<Vec<f64>>, String> {
        let Some((name, shape, kind, offset)) = self.tensors.iter().find(|(name, ..)| *name == DIVISORS) else {
            return Ok(None);
        };
        let start = self.data.checked_add(*offset).and_then(|start| usize::try_from(start).ok());
        let values = shape.iter().try_fold(4usize, |all, size| all.checked_mul(*size));
        let end = start.zip(values).and_then(|(start, values)| start.checked_add(values));
        let values = start.zip(end).and_then(|(start, end)| bytes.get(start..end)).ok_or(TRUNCATED)?;
        if Kind::of(*kind).and_then(Kind::plain) != Some(Number::F32) {
            return Err(format!("`{name}` is of type {kind}; read: F32"));
        }
        Ok(Some(values.as_chunks::<4>().0.iter().map(|value| f64::from(f32::from_le_bytes(*value))).collect()))
    }

    pub fn size(&self, key: &str) -> Option<usize> {
        match self.own(key) {
            Some(Field::Whole(number)) => usize::try_from(*number).ok(),
            _ => None,
        }
    }
}
