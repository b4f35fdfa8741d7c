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
    InRegisters,
}

impl Strategy {
    /// The fastest one that is not refused, for heads of a width and inputs that can be loaded wide or not.
    pub fn choose(pass: Pass, head_dim: usize, wide: bool, limits: &Limits) -> Self {
        let by_matrix_units = limits.matrix_units.map(|plane| Self::MatrixUnits { plane });
        let taken = |strategy: &Self| strategy.check(pass, head_dim, wide, limits).is_ok();
        [Self::InRegisters].into_iter().chain(by_matrix_units).find(taken).unwrap_or(Self::Units)
    }

    /// Rows of a tile, be they queries or keys.
    pub const fn rows(self, head_dim: usize) -> usize {
        match self {
            Self::Units | Self::MatrixUnits { .. } => SIDE,
            Self::InRegisters => in_registers::rows(head_dim),
        }
    }

    /// Whether a device can run it.
    ///
    /// # Errors
    /// Says what is missing.
    pub fn check(self, pass: Pass, head_dim: usize, wide: bool, limits: &Limits) -> Result<(), String> {
        let (bytes, widest) = match self {
            Self::Units => return Ok(()),
            Self::MatrixUnits { plane } => {
                let units = plane * PLANES;
                if limits.matrix_units != Some(plane) || units != UNITS || units > limits.units {
                    return Err(format!("no matrix units for this type with {PLANES} planes of {plane} units"));
                }
                (shared_bytes(head_dim), WIDEST)
            }
            Self::InRegisters => {
                if !limits.from_registers || in_registers::units(pass) > limits.units {
                    return Err("no matrix units for this type that take factors from registers".to_string());
                }
                (in_registers::shared_bytes(pass, head_dim), in_registers::WIDEST)
            }
        };
        if head_dim > widest {
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
            // a GeForce card has enough shared memory
            for shared in [HOPPER.shared, 99 << 10] {
                let limits = Limits { shared, ..HOPPER };
                assert_eq!(chosen(pass, 256, limits), Strategy::InRegisters, "{pass:?}, {shared}");
                assert_eq!(chosen(pass, 264, limits), Strategy::Units, "{pass:?}, {shared}");
            }
            let small = Limits { shared: 48 << 10, ..HOPPER };
            assert_ne!(chosen(pass, 128, small), Strategy::InRegisters, "{pass:?}");
        }
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
