//! Number types of stored values, and those that they are read as.
use half::{bf16, f16};

/// How numbers are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Number {
    /// 64 bits, IEEE.
    F64,
    /// 32 bits, IEEE.
    F32,
    /// 16 bits, IEEE.
    F16,
    /// The upper half of 32 bits.
    BF16,
    /// 8 bits: 4 of exponent, 3 of mantissa, no infinity (`float8_e4m3fn`).
    F8E4M3,
    /// 8 bits, whole numbers with a sign.
    I8,
    /// 8 bits, whole numbers.
    U8,
    /// Whole numbers of some other width, or two numbers in one: a name for what no weights are read from.
    Other(&'static str, usize),
}

impl Number {
    /// Bytes of one.
    #[must_use]
    pub fn size(self) -> usize {
        match self {
            Self::F64 => 8,
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
            Self::F8E4M3 | Self::I8 | Self::U8 => 1,
            Self::Other(_, size) => size,
        }
    }

    /// What it is called.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::F64 => "F64",
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::BF16 => "BF16",
            Self::F8E4M3 => "F8_E4M3",
            Self::I8 => "I8",
            Self::U8 => "U8",
            Self::Other(name, _) => name,
        }
    }

    /// The type of a safetensors file.
    pub(crate) fn of_safetensors(of: safetensors::Dtype) -> Self {
        use safetensors::Dtype;
        match of {
            Dtype::F64 => Self::F64,
            Dtype::F32 => Self::F32,
            Dtype::F16 => Self::F16,
            Dtype::BF16 => Self::BF16,
            Dtype::F8_E4M3 => Self::F8E4M3,
            Dtype::I8 => Self::I8,
            Dtype::U8 => Self::U8,
            Dtype::I64 => Self::Other("I64", 8),
            Dtype::U64 => Self::Other("U64", 8),
            Dtype::I32 => Self::Other("I32", 4),
            Dtype::U32 => Self::Other("U32", 4),
            Dtype::I16 => Self::Other("I16", 2),
            Dtype::U16 => Self::Other("U16", 2),
            Dtype::BOOL => Self::Other("BOOL", 1),
            Dtype::F8_E5M2 => Self::Other("F8_E5M2", 1),
            _ => Self::Other("a type that is not known", 1),
        }
    }

    /// The type that torch calls by a name, with `Storage` behind it or not.
    pub(crate) fn of_torch(name: &str) -> Option<Self> {
        Some(match name {
            "DoubleStorage" | "float64" => Self::F64,
            "FloatStorage" | "float32" => Self::F32,
            "HalfStorage" | "float16" | "half" => Self::F16,
            "BFloat16Storage" | "bfloat16" => Self::BF16,
            "CharStorage" | "int8" => Self::I8,
            "ByteStorage" | "uint8" => Self::U8,
            "float8_e4m3fn" => Self::F8E4M3,
            "float8_e5m2" => Self::Other("F8_E5M2", 1),
            "LongStorage" | "int64" => Self::Other("I64", 8),
            "IntStorage" | "int32" => Self::Other("I32", 4),
            "ShortStorage" | "int16" => Self::Other("I16", 2),
            "BoolStorage" | "bool" => Self::Other("BOOL", 1),
            "uint16" => Self::Other("U16", 2),
            "uint32" => Self::Other("U32", 4),
            "uint64" => Self::Other("U64", 8),
            _ => return None,
        })
    }

    /// Stored bytes as numbers; `None` where no weights are of this type.
    pub(crate) fn values<E: Float>(self, bytes: &[u8]) -> Option<Vec<E>> {
        fn each<E: Float, const W: usize>(bytes: &[u8], of: fn([u8; W]) -> f64) -> Vec<E> {
            bytes.as_chunks::<W>().0.iter().map(|&value| E::of(of(value))).collect()
        }
        Some(match self {
            Self::F64 => each(bytes, f64::from_le_bytes),
            Self::F32 => each(bytes, |b: [u8; 4]| f64::from(f32::from_le_bytes(b))),
            Self::F16 => each(bytes, |b: [u8; 2]| f16::from_le_bytes(b).to_f64()),
            Self::BF16 => each(bytes, |b: [u8; 2]| bf16::from_le_bytes(b).to_f64()),
            Self::F8E4M3 => each(bytes, |[b]: [u8; 1]| f64::from(from_e4m3(b))),
            Self::I8 => each(bytes, |[b]: [u8; 1]| f64::from(b.cast_signed())),
            Self::U8 => each(bytes, |[b]: [u8; 1]| f64::from(b)),
            Self::Other(..) => return None,
        })
    }
}

/// The value of an 8-bit number with 4 bits of exponent, whose bias is 7, and no infinity (OCP 8-bit floating point, 2023).
pub(crate) fn from_e4m3(byte: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(byte >> 3 & 15), f32::from(byte & 7));
    let size = match (exponent, byte & 7) {
        (15, 7) => f32::NAN,
        (0, _) => mantissa / 8.0 * 2f32.powi(-6),
        _ => (1.0 + mantissa / 8.0) * 2f32.powi(exponent - 7),
    };
    if byte & 0x80 == 0 { size } else { -size }
}

/// A number type that weights are read as.
pub trait Float: Copy + Send + Sync + Default + 'static {
    /// The nearest.
    fn of(x: f64) -> Self;
    /// Whether it is neither NaN nor infinite.
    fn finite(self) -> bool;
}

impl Float for f32 {
    #[allow(clippy::cast_possible_truncation)]
    fn of(x: f64) -> Self {
        x as f32
    }
    fn finite(self) -> bool {
        self.is_finite()
    }
}

impl Float for bf16 {
    fn of(x: f64) -> Self {
        Self::from_f64(x)
    }
    fn finite(self) -> bool {
        self.is_finite()
    }
}

impl Float for f16 {
    fn of(x: f64) -> Self {
        Self::from_f64(x)
    }
    fn finite(self) -> bool {
        self.is_finite()
    }
}

impl Float for f64 {
    fn of(x: f64) -> Self {
        x
    }
    fn finite(self) -> bool {
        self.is_finite()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The table of the standard: 448 is the largest, 2⁻⁹ the smallest above zero.
    #[test]
    fn eight_bits_are_the_standards() {
        let of = |byte: u8| from_e4m3(byte);
        let want = [448.0, 2f32.powi(-9), 2f32.powi(-6), 1.0, -1.125].map(f32::to_bits);
        assert_eq!([0x7e, 0x01, 0x08, 0x38, 0xb9].map(|byte| of(byte).to_bits()), want);
        assert!(of(0x7f).is_nan() && of(0xff).is_nan());
        assert_eq!(of(0x80).to_bits(), (-0.0f32).to_bits());
    }
}
