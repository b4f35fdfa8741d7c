//! Attention on CUDA's matrix units, for f16 and bf16, with factors and sums in registers whose places are known (`ldmatrix`, `mma.sync`): what one product
//! leaves is masked, taken the exponential of and is a factor of the next, as in FlashAttention-2 (Dao 2023, arXiv 2307.08691).
//!
//! A plane has 32 rows of a tile, or 16; in the forward pass all its columns, and shared memory is for what is loaded alone. Of sums of 16 × 8 a unit has two neighbouring columns, from twice its number in its four on,
//! of two rows: a quarter of its plane's number, and 8 below (PTX ISA, "Matrix fragments for mma.m16n8k16").
//!
//! In the vjp two planes share these rows. One multiplies queries with keys, the other cotangents with values: each keeps its left factor in registers for
//! as long as the tile lasts, and they hand each other what comes out, in places that are a unit's own.
// what the macro makes of a kernel's arguments, indices on a device (32 bits there), and kernels read top to bottom
#![allow(
    clippy::trivially_copy_pass_by_ref,
    clippy::used_underscore_binding,
    clippy::cast_possible_truncation,
    clippy::float_cmp,
    clippy::manual_is_multiple_of,
    clippy::too_many_lines
)]
mod forward;
mod fragments;
mod vjp;

pub(super) use forward::attend;
pub(super) use vjp::{attend_vjp_keys, attend_vjp_queries};

use super::staged::{padded, pieces};
use super::strategy::Pass;
use super::task::SIDE;
use crate::on_chip::{MATRIX_UNIT, WIDE};

/// Groups of a tile's rows, one below the other: of a plane each, of two planes in the vjp.
const GROUPS: usize = 4;
/// Units of a plane.
pub(super) const PLANE: usize = 32;

/// Planes of a cube.
pub(super) const fn planes(pass: Pass) -> usize {
    match pass {
        Pass::Forward => GROUPS,
        Pass::Back => 2 * GROUPS,
    }
}

/// Units of a cube.
pub(super) const fn units(pass: Pass) -> usize {
    PLANE * planes(pass)
}

/// Widest head: a unit's share of its group's sums takes 128 registers, and of the factors that are kept in the vjp 64.
pub(super) const WIDEST: usize = 256;

/// Blocks of 16 rows of a group: the more, the more products a loaded factor goes into.
const fn blocks(head_dim: usize) -> usize {
    if 2 * padded(head_dim) <= WIDEST { 2 } else { 1 }
}

/// Rows of a tile.
pub(super) const fn rows(head_dim: usize) -> usize {
    GROUPS * MATRIX_UNIT * blocks(head_dim)
}

/// Columns of scores that a group has at a time in the vjp, or where a soft cap takes registers too.
const NARROWER: usize = 32;

/// Pairs of values that the planes of the vjp have room to hand each other: a tile's scores, of which each part has places of its own, since it is written
/// while the one before is read; or half of the sums.
const HANDED: usize = GROUPS * 2 * MATRIX_UNIT * SIDE / 2;

/// Bytes of shared memory of a pass over a head: queries of a tile, keys and values of another; in the vjp rows of two matrices, what is handed over, and
/// figures of rows.
pub(super) const fn shared_bytes(pass: Pass, head_dim: usize) -> usize {
    let (rows, bytes) = match pass {
        Pass::Forward => (rows(head_dim) + 2 * SIDE, 0),
        Pass::Back => (2 * SIDE, HANDED * 8 + 2 * rows(head_dim) * 4),
    };
    rows * pieces(head_dim) * WIDE * 2 + bytes
}
