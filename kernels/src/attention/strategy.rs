//! How attention runs on a device: a value, chosen from what the device offers and how its inputs lie, and refused where something
//! is missing.
use super::in_registers;
use super::matrix_units::{PLANES, UNITS, shared_bytes};
use super::task::SIDE;
use crate::on_chip::{Limits, WIDE};

/// Which pass over a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pass {
    /// Results from queries, keys and values.
    Forward,
    /// Cotangents of all three.
    Back,
}

/// Widest head for matrix units by way of shared memory: wider ones need more registers than a unit has.
const WIDEST: usize = 128;

/// How the products of a tile are formed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Strategy {
    /// Unit by unit, in f32.
    Units,
    /// By matrix units, `plane` units together.
    MatrixUnits {
        /// Units that an instruction is given to.
        plane: usize,
    },
    /// By matrix units, with factors in registers.
    InRegisters {
        /// Blocks of 16 queries of a plane: the more, the more products a loaded factor goes into.
        blocks: usize,
    },
}

impl Strategy {
    /// The fastest one that is not refused, for heads of a width and inputs that can be loaded wide or not.
    pub fn choose(pass: Pass, head_dim: usize, wide: bool, limits: &Limits) -> Self {
        let in_registers = [2, 1].map(|blocks| Self::InRegisters { blocks });
        let by_matrix_units = limits.matrix_units.map(|plane| Self::MatrixUnits { plane });
        let taken = |strategy: &Self| strategy.check(pass, head_dim, wide, limits).is_ok();
        in_registers.into_iter().chain(by_matrix_units).find(taken).unwrap_or(Self::Units)
    }

    /// Queries of a tile, where rows of results are queries.
    pub const fn queries(self) -> usize {
        match self {
            Self::Units | Self::MatrixUnits { .. } => SIDE,
            Self::InRegisters { blocks } => in_registers::rows(blocks),
        }
    }

    /// Keys of a tile, where rows of results are keys.
    pub const fn keys(self, head_dim: usize) -> usize {
        match self {
            Self::Units | Self::MatrixUnits { .. } => SIDE,
            Self::InRegisters { blocks } => in_registers::rows(in_registers::blocks_of_keys(head_dim, blocks)),
        }
    }

    /// Whether a device can run it.
    ///
    /// # Errors
    /// Says what is missing.
    pub fn check(self, pass: Pass, head_dim: usize, wide: bool, limits: &Limits) -> Result<(), String> {
        let (bytes, fits) = match self {
            Self::Units => return Ok(()),
            Self::MatrixUnits { plane } => {
                let units = plane * PLANES;
                if limits.matrix_units != Some(plane) || units != UNITS || units > limits.units {
                    return Err(format!("no matrix units for this type with {PLANES} planes of {plane} units"));
                }
                (shared_bytes(head_dim), head_dim <= WIDEST)
            }
            Self::InRegisters { blocks } => {
                if !limits.from_registers || in_registers::UNITS > limits.units {
                    return Err("no matrix units for this type that take factors from registers".to_string());
                }
                (in_registers::shared_bytes(pass, head_dim, blocks), in_registers::fits(head_dim, blocks))
            }
        };
        if !fits {
            return Err(format!("heads of {head_dim} values are too wide for the registers of a unit"));
        }
        if !wide {
            return Err(format!("rows of heads of {head_dim} values cannot be loaded {WIDE} values at once"));
        }
        match bytes {
            bytes if bytes > limits.shared => {
                Err(format!("{bytes} bytes shared, and the device has {}", limits.shared))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOPPER: Limits =
        Limits { shared: 227 << 10, units: 1024, matrix_units: Some(32), from_registers: true, hardware: true };

    fn chosen(pass: Pass, head_dim: usize, limits: Limits) -> Strategy {
        Strategy::choose(pass, head_dim, true, &limits)
    }

    #[test]
    fn factors_stay_in_registers_where_registers_and_shared_memory_hold_a_tile() {
        for pass in [Pass::Forward, Pass::Back] {
            assert_eq!(chosen(pass, 128, HOPPER), Strategy::InRegisters { blocks: 2 });
            assert_eq!(chosen(pass, 256, HOPPER), Strategy::InRegisters { blocks: 1 });
            assert_eq!(chosen(pass, 264, HOPPER), Strategy::Units);
        }
        // what a GeForce card has
        let small = Limits { shared: 99 << 10, ..HOPPER };
        assert_eq!(chosen(Pass::Forward, 128, small), Strategy::InRegisters { blocks: 2 });
        assert_eq!(chosen(Pass::Forward, 256, small), Strategy::InRegisters { blocks: 1 });
        assert_eq!(chosen(Pass::Back, 128, small), Strategy::InRegisters { blocks: 1 });
        assert_eq!(chosen(Pass::Back, 256, small), Strategy::Units);
    }

    #[test]
    fn what_is_missing_decides() {
        let cooperative = Limits { from_registers: false, ..HOPPER };
        assert_eq!(chosen(Pass::Forward, 128, cooperative), Strategy::MatrixUnits { plane: 32 });
        assert_eq!(chosen(Pass::Forward, 256, cooperative), Strategy::Units);
        assert_eq!(chosen(Pass::Forward, 64, Limits { matrix_units: None, ..cooperative }), Strategy::Units);
        assert_eq!(Strategy::choose(Pass::Forward, 64, false, &HOPPER), Strategy::Units);
    }
}
