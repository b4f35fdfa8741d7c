//! Four-bit floating point numbers in blocks of 32 with a power of two each (OCP microscaling formats, 2023), as gpt-oss stores its experts:
//! `[experts, out, in/32, 16]` bytes for a tensor `[experts, in, out]`.
use super::{ByName, Codes, Quantised, Raw, ending, put, take};
use crate::layout::Layout;
use crate::number::Number;
use rayon::prelude::*;
use std::ops::Range;
use std::path::PathBuf;

/// The numbers that four bits stand for.
const TABLE: [f32; 16] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];

/// Values of a block.
pub(super) const BLOCK: usize = 32;

/// `table[code]·2^(scale − 127)`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Mxfp4 {
    /// Two a byte, the lower bits first.
    pub blocks: Raw,
    scales: Raw,
    /// Outputs and inputs of an expert.
    pub shape: [usize; 2],
}

pub(super) fn put_together(tensors: &mut ByName) -> Result<(), (String, String)> {
    for name in ending(tensors, "_blocks") {
        if !tensors.contains_key(&format!("{name}_scales")) {
            continue;
        }
        let blocks = take(tensors, &format!("{name}_blocks"), &name)?;
        let scales = take(tensors, &format!("{name}_scales"), &name)?;
        let (&[experts, outputs, across, half], &[of_experts, of_outputs, of_across]) =
            (blocks.shape.as_slice(), scales.shape.as_slice())
        else {
            return Err((name, format!("has blocks {:?} and scales {:?}", blocks.shape, scales.shape)));
        };
        let alike = [experts, outputs, across] == [of_experts, of_outputs, of_across] && half == BLOCK / 2;
        let inputs = across.checked_mul(BLOCK);
        match inputs.filter(|_| alike && blocks.number == Number::U8 && scales.number == Number::U8) {
            Some(inputs) => {
                let of = Mxfp4 { blocks, scales, shape: [outputs, inputs] };
                put(tensors, &name, vec![experts, inputs, outputs], Quantised::Mxfp4(of));
            }
            None => return Err((name, format!("has blocks {:?} and scales {:?}", blocks.shape, scales.shape))),
        }
    }
    Ok(())
}

impl Mxfp4 {
    /// Rows as they are stored, which are columns of the tensor, every so many-th of them, as codes.
    pub fn codes(&self, files: &[PathBuf], rows: &Range<usize>, every: usize) -> Result<Codes, String> {
        let [_, inputs] = self.shape;
        let bytes = self.blocks.bytes(files, rows.start * inputs / 2..rows.end * inputs / 2)?;
        let scales = self.scales.bytes(files, rows.start * inputs / BLOCK..rows.end * inputs / BLOCK)?;
        let mut codes = vec![0; rows.len().div_ceil(every) * inputs];
        codes.par_chunks_mut(inputs).zip(bytes.par_chunks(every * inputs / 2)).for_each(|(codes, bytes)| {
            for (codes, byte) in codes.chunks_exact_mut(2).zip(bytes) {
                codes.copy_from_slice(&[byte & 15, byte >> 4]);
            }
        });
        let of_row = |scales: &[u8]| scales.iter().take(inputs / BLOCK).copied().collect::<Vec<u8>>();
        let factor = |scale: u8| 2f32.powi(i32::from(scale) - 127);
        let factors = scales.chunks(every * inputs / BLOCK).flat_map(of_row).map(factor).collect();
        Ok(Codes::plain(inputs, codes, TABLE.to_vec(), (BLOCK, factors)))
    }

    /// Values of whole experts.
    pub fn read(&self, files: &[PathBuf], range: &Range<usize>) -> Result<Vec<f32>, String> {
        let [outputs, inputs] = self.shape;
        let expert = outputs * inputs;
        if !range.start.is_multiple_of(expert) || !range.end.is_multiple_of(expert) {
            return Err("is read by whole experts only".to_owned());
        }
        let values = self.codes(files, &(range.start / inputs..range.end / inputs), 1)?.values();
        let turned = |of: &[f32]| Layout::Transposed.arrange(of, &[outputs, inputs], |value| value);
        Ok(values.chunks(expert).flat_map(turned).collect())
    }
}
