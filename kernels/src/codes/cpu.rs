//! Codes on the processor, widened stripe by stripe where a product uses them.
use super::{CodeSpec, Coded, Codes};
use crate::host::real::{Real, matrix, unwritten, vectorised};
use crate::host::stored::Stored;
use crate::product::cpu::{multiply, transpose};
use crate::{DType, Flex, Weight};
use burn_flex::FlexTensor;
use std::ops::Range;

/// The words of a matrix, and its table as numbers: of a byte of codes at a time, where those are of four bits.
pub struct Stripes<'a> {
    spec: CodeSpec,
    transposed: bool,
    codes: &'a [u32],
    factors: &'a [u32],
    least: &'a [u32],
    pairs: Vec<[f32; 2]>,
    singles: Vec<f32>,
}

/// The nearest bfloat16 of a number: half of the last bit that stays is added, and a little less where that bit is even.
#[inline(always)]
fn to_bf16(x: f32) -> f32 {
    let bits = x.to_bits();
    f32::from_bits((bits + 0x7fff + (bits >> 16 & 1)) & 0xffff_0000)
}

/// The nearest half of a number that one is near. Those below its smallest normal number are multiples of 2⁻²⁴, which is what numbers around 0.75 are
/// apart in f32.
#[inline(always)]
fn to_f16(x: f32) -> f32 {
    const SMALLEST_NORMAL: f32 = 6.103_515_6e-5;
    let bits = x.to_bits();
    let normal = f32::from_bits((bits + 0xfff + (bits >> 13 & 1)) & 0xffff_e000);
    let small = ((x.abs() + 0.75) - 0.75).copysign(x);
    if x.abs() < SMALLEST_NORMAL { small } else { normal }
}

impl<'a> Stripes<'a> {
    pub fn of(w: &'a Coded<Flex>) -> Self {
        let (spec, words) = (w.spec, w.words.storage::<u32>());
        let [factors, least, table] = spec.places();
        let singles: Vec<f32> = words[table..][..1 << spec.bits].iter().map(|bits| f32::from_bits(*bits)).collect();
        let pair = |byte: usize| [singles[byte & 15], singles[byte >> 4]];
        let pairs = if spec.bits == 4 { (0..256).map(pair).collect() } else { Vec::new() };
        let (codes, of_factors, of_least) = (&words[..factors], &words[factors..least], &words[least..table]);
        Self { spec, transposed: w.transposed, codes, factors: of_factors, least: of_least, pairs, singles }
    }

    /// Whether the matrix is the transpose of the codes.
    pub fn is_transpose(&self) -> bool {
        self.transposed
    }

    /// What codes of a row stand for, from a first one on that begins a word.
    #[inline(always)]
    fn look_up(&self, row: usize, first: usize, out: &mut [f32]) {
        let of_word = self.spec.of_word();
        let words = &self.codes[(row * self.spec.columns + first) / of_word..][..out.len() / of_word];
        if self.spec.bits == 4 {
            for (out, word) in out.chunks_exact_mut(8).zip(words) {
                for (out, byte) in out.chunks_exact_mut(2).zip(word.to_le_bytes()) {
                    out.copy_from_slice(&self.pairs[usize::from(byte)]);
                }
            }
        } else {
            for (out, word) in out.chunks_exact_mut(4).zip(words) {
                for (out, byte) in out.iter_mut().zip(word.to_le_bytes()) {
                    *out = self.singles[usize::from(byte)];
                }
            }
        }
    }

    /// Columns of some rows.
    pub fn widen<E: Real>(&self, rows: Range<usize>, columns: &Range<usize>) -> Vec<E> {
        let mut out = unwritten(rows.len() * columns.len());
        self.widen_into(rows, columns, &mut out);
        out
    }

    /// Writes columns of some rows.
    pub fn widen_into<E: Real>(&self, rows: Range<usize>, columns: &Range<usize>, out: &mut [E]) {
        let CodeSpec { block, second, rounded, has_least, .. } = self.spec;
        let across = self.spec.across();
        let mut numbers = vec![0.0f32; columns.len()];
        vectorised!({
            for (out, row) in out.chunks_exact_mut(columns.len().max(1)).zip(rows) {
                self.look_up(row, columns.start, &mut numbers);
                let mut at = columns.start;
                while at < columns.end {
                    let of = row * across + at / block;
                    let end = ((at / block + 1) * block).min(columns.end);
                    let here = at - columns.start..end - columns.start;
                    let (from, to) = (&mut numbers[here.clone()], &mut out[here]);
                    let factor = f32::from_bits(self.factors[of]);
                    from.iter_mut().for_each(|x| *x = *x * factor * second);
                    match rounded {
                        DType::BF16 => from.iter_mut().for_each(|x| *x = to_bf16(*x)),
                        DType::F16 => from.iter_mut().for_each(|x| *x = to_f16(*x)),
                        _ => {}
                    }
                    if has_least {
                        let least = f32::from_bits(self.least[of]);
                        from.iter_mut().for_each(|x| *x -= least);
                    }
                    to.iter_mut().zip(from.iter()).for_each(|(to, x)| *to = E::of(f64::from(*x)));
                    at = end;
                }
            }
        });
    }
}

impl Codes for Flex {
    fn widen(w: &Coded<Self>, dtype: DType) -> FlexTensor {
        fn of<E: Real>(w: &Coded<Flex>) -> FlexTensor {
            let all = Stored::<E>::Coded(Stripes::of(w)).rows(0..w.spec.rows, w.spec.columns).into_owned();
            matrix(if w.transposed { transpose(&all, w.spec.columns) } else { all }, w.dims())
        }
        if dtype == DType::F64 { of::<f64>(w) } else { of::<f32>(w) }
    }

    fn gather_coded(w: &Coded<Self>, index: &[u32], dtype: DType) -> FlexTensor {
        fn of<E: Real>(w: &Coded<Flex>, index: &[u32]) -> FlexTensor {
            let width = w.table().columns;
            matrix(Stored::<E>::Coded(Stripes::of(w)).gather(index, width), [index.len(), width])
        }
        if dtype == DType::F64 { of::<f64>(w, index) } else { of::<f32>(w, index) }
    }

    fn matmul_coded(
        x: &FlexTensor,
        w: &Coded<Self>,
        transposed: bool,
        scale: f64,
        onto: Option<FlexTensor>,
    ) -> FlexTensor {
        multiply(x, &Weight::Coded(w), w.dims(), transposed, scale, onto)
    }
}

#[cfg(test)]
mod tests {
    use super::{to_bf16, to_f16};
    use half::{bf16, f16};
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4096))]

        /// To the bit, wherever the result is finite: numbers of every size, and those halfway between two.
        #[test]
        fn rounding_is_half(bits: u32) {
            for bits in [bits, bits & 0xffff_f000, bits & 0xffff_8000] {
                let x = f32::from_bits(bits);
                if bf16::from_f32(x).is_finite() {
                    prop_assert_eq!(to_bf16(x).to_bits(), bf16::from_f32(x).to_f32().to_bits(), "{:e}", x);
                }
                // halves are the fewest of all numbers of 32 bits
                let x = f32::from_bits(bits & 0x8fff_ffff | 0x3000_0000);
                if f16::from_f32(x).is_finite() {
                    prop_assert_eq!(to_f16(x).to_bits(), f16::from_f32(x).to_f32().to_bits(), "{:e}", x);
                }
            }
        }
    }
}
