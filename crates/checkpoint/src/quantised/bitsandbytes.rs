//! bitsandbytes: four bits as a place in a table of 16 numbers, times a factor for each block (Dettmers et al., arXiv 2305.14314), whose factors
//! may be quantised again; and eight bits times a factor for each row (arXiv 2208.07339).
use super::{ByName, Codes, Quantised, Raw, ending, put, signed, take};
use crate::number::Number;
use rayon::prelude::*;
use serde::Deserialize;
use std::ops::Range;
use std::path::PathBuf;

/// `table[code]·factor` of each value, in f32, rounded to the type that was quantised.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct FourBits {
    /// Two a byte, the upper bits first.
    pub codes: Raw,
    table: Raw,
    factors: Raw,
    nested: Option<Nested>,
    block: usize,
    number: Number,
    floating: bool,
    pub columns: usize,
}

/// Factors as places in a table of 256 numbers, times a factor for each block, plus an offset.
#[derive(Clone, Debug, PartialEq)]
struct Nested {
    table: Raw,
    factors: Raw,
    block: usize,
    offset: f32,
}

/// What bitsandbytes writes beside each tensor, as JSON in a tensor of bytes.
#[derive(Deserialize)]
struct State {
    blocksize: usize,
    dtype: String,
    shape: Vec<usize>,
    nested_blocksize: Option<usize>,
    nested_offset: Option<f64>,
}

/// Most bytes of that.
const MOST_BYTES: usize = 1 << 16;

pub(super) fn put_together(tensors: &mut ByName, files: &[PathBuf]) -> Result<(), (String, String)> {
    for (end, floating) in [(".quant_state.bitsandbytes__nf4", false), (".quant_state.bitsandbytes__fp4", true)] {
        for name in ending(tensors, end) {
            let state = take(tensors, &format!("{name}{end}"), &name)?;
            let of = four_bits(tensors, files, (&name, floating), &state)?;
            put(tensors, &name, of.0, Quantised::FourBits(Box::new(of.1)));
        }
    }
    for module in ending(tensors, ".SCB") {
        let name = format!("{module}.weight");
        let factors = take(tensors, &format!("{module}.SCB"), &name)?;
        let values = take(tensors, &name, &name)?;
        tensors.remove(&format!("{module}.weight_format"));
        let problem = |problem: String| Err((name.clone(), problem));
        let &[rows, columns] = values.shape.as_slice() else {
            return problem(format!("is of 8 bits in shape {:?}; expected a matrix", values.shape));
        };
        if values.number != Number::I8 || factors.len() != rows {
            return problem(format!(
                "has {} factors of rows for {rows} rows of {}",
                factors.len(),
                values.number.name()
            ));
        }
        put(tensors, &name, vec![rows, columns], Quantised::EightBits(EightBits { values, factors, columns }));
    }
    Ok(())
}

fn four_bits(
    tensors: &mut ByName,
    files: &[PathBuf],
    (name, floating): (&str, bool),
    state: &Raw,
) -> Result<(Vec<usize>, FourBits), (String, String)> {
    let problem = |problem: String| (name.to_owned(), problem);
    if state.number != Number::U8 || state.len() > MOST_BYTES {
        return Err(problem(format!("has a `quant_state` of {} values of {}", state.len(), state.number.name())));
    }
    let bytes = state.bytes(files, 0..state.len()).map_err(problem)?;
    let state: State =
        serde_json::from_slice(&bytes).map_err(|e| problem(format!("has a `quant_state` that is not read: {e}")))?;
    let number = Number::of_torch(&state.dtype).filter(|of| matches!(of, Number::F32 | Number::F16 | Number::BF16));
    let number =
        number.ok_or_else(|| problem(format!("was quantised from `{}`", crate::error::brief(&state.dtype))))?;
    let mut part = |part: &str| take(tensors, &format!("{name}.{part}"), name);
    let (table, factors) = (part("quant_map")?, part("absmax")?);
    let nested = match (state.nested_blocksize, factors.number) {
        (Some(block), Number::U8) => {
            let offset = state.nested_offset.unwrap_or_default();
            #[allow(clippy::cast_possible_truncation)] // it was written from f32
            let offset = offset as f32;
            Some(Nested { table: part("nested_quant_map")?, factors: part("nested_absmax")?, block, offset })
        }
        _ => None,
    };
    let codes = take(tensors, name, name)?;
    let values = state.shape.iter().try_fold(1usize, |values, size| values.checked_mul(*size));
    let values = values.ok_or_else(|| problem(format!("was of shape {:?}", state.shape)))?;
    let blocks = if state.blocksize == 0 { 0 } else { values.div_ceil(state.blocksize) };
    // codes may be stored as numbers of more than a byte
    let bytes = codes.len() * codes.number.size();
    let of_nested =
        |of: &Nested| of.block > 0 && of.factors.len() >= blocks.div_ceil(of.block) && of.table.len() == 256;
    let fits = bytes == values.div_ceil(2)
        && blocks > 0
        && factors.len() == blocks
        && table.len() == 16
        && nested.as_ref().is_none_or(of_nested);
    if !fits {
        return Err(problem(format!(
            "has {bytes} bytes and {} factors for {values} values in blocks of {}",
            factors.len(),
            state.blocksize
        )));
    }
    let codes = Raw { number: Number::U8, shape: vec![bytes], ..codes };
    let (block, columns) = (state.blocksize, state.shape.last().copied().unwrap_or(1));
    Ok((state.shape, FourBits { codes, table, factors, nested, block, number, floating, columns }))
}

impl FourBits {
    pub fn kind(&self) -> &'static str {
        match (self.floating, self.nested.is_some()) {
            (false, false) => "nf4",
            (false, true) => "nf4 with quantised factors",
            (true, false) => "fp4",
            (true, true) => "fp4 with quantised factors",
        }
    }

    pub fn fits_bf16(&self) -> bool {
        self.number == Number::BF16
    }

    /// Factors of some blocks.
    fn factors(&self, files: &[PathBuf], blocks: Range<usize>) -> Result<Vec<f32>, String> {
        let Some(nested) = &self.nested else { return self.factors.values(files, blocks) };
        let codes = self.factors.bytes(files, blocks.clone())?;
        let table = nested.table.values::<f32>(files, 0..256)?;
        let first = blocks.start / nested.block;
        let outer = nested.factors.values::<f32>(files, first..blocks.end.div_ceil(nested.block))?;
        let of =
            |(at, code): (usize, &u8)| table[usize::from(*code)] * outer[at / nested.block - first] + nested.offset;
        Ok(blocks.zip(&codes).map(of).collect())
    }

    /// Neighbouring values of a row that share a factor, wherever the row begins.
    pub fn block_in_rows(&self) -> usize {
        common_divisor(self.block, self.columns)
    }

    /// Rows as codes. Blocks follow each other across rows, so that a row may begin within one.
    pub fn codes(&self, files: &[PathBuf], rows: &Range<usize>) -> Result<Codes, String> {
        let values = rows.start * self.columns..rows.end * self.columns;
        let first_byte = values.start / 2;
        let bytes = self.codes.bytes(files, first_byte..values.end.div_ceil(2))?;
        let first_block = values.start / self.block;
        let stored = self.factors(files, first_block..values.end.div_ceil(self.block))?;
        let block = self.block_in_rows();
        let factors = values.clone().step_by(block).map(|at| stored[at / self.block - first_block]).collect();
        let code = |at: usize| {
            let byte = bytes[at / 2 - first_byte];
            if at.is_multiple_of(2) { byte >> 4 } else { byte & 15 }
        };
        let table = self.table.values::<f32>(files, 0..16)?;
        let codes = values.into_par_iter().with_min_len(4096).map(code).collect();
        let codes = Codes::plain(self.columns, codes, table, (block, factors));
        Ok(Codes { rounded: self.number, ..codes })
    }
}

/// The largest number of which two are multiples.
fn common_divisor(a: usize, b: usize) -> usize {
    if b == 0 { a } else { common_divisor(b, a % b) }
}

/// `value·factor/127` of each value, in f32, a factor for each row.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct EightBits {
    pub values: Raw,
    factors: Raw,
    pub columns: usize,
}

impl EightBits {
    /// Rows as codes.
    pub fn codes(&self, files: &[PathBuf], rows: &Range<usize>) -> Result<Codes, String> {
        /// 1/127, as bitsandbytes has it.
        const PART: f32 = 7.874_016e-3;
        let factors = self.factors.values::<f32>(files, rows.clone())?;
        let codes = self.values.bytes(files, rows.start * self.columns..rows.end * self.columns)?;
        Ok(Codes { second: PART, ..Codes::plain(self.columns, codes, signed(), (self.columns, factors)) })
    }
}
