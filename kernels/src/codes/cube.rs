//! Codes on a device, as numbers.
// what the macro makes of a kernel's arguments, indices on a device (32 bits there), and kernels read top to bottom
#![allow(
    clippy::trivially_copy_pass_by_ref,
    clippy::used_underscore_binding,
    clippy::cast_possible_truncation,
    clippy::float_cmp,
    clippy::too_many_lines
)]
use cubecl::prelude::Tensor as Matrix;
use cubecl::prelude::*;

/// What products are rounded to, by integer operations, since not every device has the types.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Rounding {
    None,
    Bf16,
    F16,
}

/// The nearest bfloat16 or half of a number; see the processor's.
#[cube]
fn round(x: f32, #[comptime] to: Rounding) -> f32 {
    let bits = u32::reinterpret(x);
    let mut out = x;
    if comptime!(to == Rounding::Bf16) {
        out = f32::reinterpret((bits + 0x7fffu32 + ((bits >> 16u32) & 1u32)) & 0xffff_0000u32);
    }
    if comptime!(to == Rounding::F16) {
        let size = f32::reinterpret(bits & 0x7fff_ffffu32);
        if size < 6.103_515_6e-5f32 {
            // the sum's last bit is 2⁻²⁴
            let small = u32::reinterpret((size + 0.75f32) - 0.75f32);
            out = f32::reinterpret(small | (bits & 0x8000_0000u32));
        } else {
            out = f32::reinterpret((bits + 0xfffu32 + ((bits >> 13u32) & 1u32)) & 0xffff_e000u32);
        }
    }
    out
}

/// `out[row, column] = round(table[code]·factor·second) − least` for rows from a first one on, or those of an index; a unit a value.
#[cube(launch)]
pub(super) fn widen_codes<F: Float>(
    words: &Array<u32>,
    index: &Array<u32>,
    out: &mut Matrix<F>,
    first: usize,
    block: usize,
    across: usize,
    factors: usize,
    least: usize,
    table: usize,
    second: f32,
    #[comptime] indexed: bool,
    #[comptime] bits: usize,
    #[comptime] has_least: bool,
    #[comptime] rounding: Rounding,
    #[define(F)] _dtype: StorageType,
) {
    let columns = out.shape(1);
    if ABSOLUTE_POS >= out.shape(0) * columns {
        terminate!();
    }
    let column = ABSOLUTE_POS % columns;
    let mut row = first + ABSOLUTE_POS / columns;
    if comptime!(indexed) {
        row = index[ABSOLUTE_POS / columns] as usize;
    }
    // rows fill whole words
    let of_word = comptime!(32 / bits);
    let word = words[row * (columns / of_word) + column / of_word];
    let shift = (column % of_word * bits) as u32;
    let code = (word >> shift) & comptime!((1u32 << bits) - 1);
    let place = row * across + column / block;
    let number = f32::reinterpret(words[table + code as usize]);
    let factor = f32::reinterpret(words[factors + place]);
    let mut value = round(number * factor * second, rounding);
    if comptime!(has_least) {
        value -= f32::reinterpret(words[least + place]);
    }
    out[ABSOLUTE_POS] = F::cast_from(value);
}
