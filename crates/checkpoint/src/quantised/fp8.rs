//! Eight-bit floating point numbers with a factor for each block of rows and columns, or for all (DeepSeek-V3, arXiv 2412.19437, section 3.3).
use super::{ByName, Codes, Quantised, Raw, ending, put, take};
use crate::number::{Number, from_e4m3};
use std::ops::Range;
use std::path::PathBuf;

/// `value·factor` in f32.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Fp8 {
    pub values: Raw,
    factors: Raw,
    /// Rows and columns that share a factor.
    pub block: [usize; 2],
    pub columns: usize,
}

/// Ends of the names of factors on weights, and of those on activations, which play no part in the function of the weights.
const FACTORS: [&str; 2] = [".weight_scale_inv", ".weight_scale"];
const OF_ACTIVATIONS: [&str; 2] = [".activation_scale", ".input_scale"];

pub(super) fn put_together(tensors: &mut ByName, block: Option<[usize; 2]>) -> Result<(), (String, String)> {
    for end in FACTORS {
        for module in ending(tensors, end) {
            let name = format!("{module}.weight");
            if tensors.get(&name).and_then(Raw::of).is_none_or(|weight| weight.number != Number::F8E4M3) {
                continue;
            }
            let factors = take(tensors, &format!("{module}{end}"), &name)?;
            let values = take(tensors, &name, &name)?;
            OF_ACTIVATIONS.iter().for_each(|end| drop(tensors.remove(&format!("{module}{end}"))));
            let problem = |problem: String| (name.clone(), problem);
            let &[rows, columns] = values.shape.as_slice() else {
                return Err(problem(format!("is of 8 bits in shape {:?}; expected a matrix", values.shape)));
            };
            if rows == 0 || columns == 0 {
                return Err(problem(format!("is of 8 bits in shape [{rows}, {columns}], without a value")));
            }
            let (all, by_row) = ([rows, columns], [1, columns]);
            let block = match factors.len() {
                1 => all,
                of if of == rows && factors.shape.iter().product::<usize>() == rows && block.is_none() => by_row,
                _ => block.filter(|block| block.iter().all(|size| *size > 0)).unwrap_or(all),
            };
            let wanted = rows.div_ceil(block[0]) * columns.div_ceil(block[1]);
            if factors.len() != wanted {
                let found = factors.len();
                return Err(problem(format!(
                    "has {found} factors, and {wanted} blocks of {block:?} in [{rows}, {columns}]"
                )));
            }
            put(tensors, &name, vec![rows, columns], Quantised::Fp8(Fp8 { values, factors, block, columns }));
        }
    }
    Ok(())
}

impl Fp8 {
    /// Rows as codes.
    pub fn codes(&self, files: &[PathBuf], rows: &Range<usize>) -> Result<Codes, String> {
        let stored = self.factors.values::<f32>(files, 0..self.factors.len())?;
        let across = self.columns.div_ceil(self.block[1]);
        let of_row = |row: usize| &stored[row / self.block[0] * across..][..across];
        let factors = rows.clone().flat_map(of_row).copied().collect();
        let codes = self.values.bytes(files, rows.start * self.columns..rows.end * self.columns)?;
        let table = (0..=u8::MAX).map(from_e4m3).collect();
        Ok(Codes::plain(self.columns, codes, table, (self.block[1], factors)))
    }
}
