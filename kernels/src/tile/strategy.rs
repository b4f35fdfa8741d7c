//! How the gradient tiles of a parameter are multiplied on a device: a value, chosen from what the device offers, and refused
//! where it lacks something.
use super::cube::{PLANES, SIDE, shared_bytes};
use crate::on_chip::{Limits, Tile, WIDE};

/// Cotangents that a cube holds at most, on plain units and on matrix units: the accumulators of four there are more than a unit has registers for (ptxas moves a
/// thousand bytes of each unit's to memory and back).
const HELD: [usize; 2] = [4, 2];

/// How a cube multiplies its tiles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Strategy {
    /// Unit by unit, in tiles of this form.
    Units(Tile),
    /// By matrix units, `plane` units together.
    MatrixUnits {
        /// Units that an instruction is given to.
        plane: usize,
    },
}

impl Strategy {
    /// The fastest one that is not refused, for a gradient `[m, n]`, the cotangents that a cube holds at once, and rows that can be
    /// loaded wide or not.
    pub fn choose(shape: [usize; 2], held: usize, wide: bool, limits: &Limits) -> Self {
        let by_matrix_units = limits.matrix_units.map(|plane| Self::MatrixUnits { plane });
        let taken = by_matrix_units.filter(|strategy| strategy.check(shape, held, wide, limits).is_ok());
        taken.unwrap_or_else(|| Self::Units(tile(shape, held, limits.hardware)))
    }

    /// Whether a device can run it on a gradient `[m, n]`.
    ///
    /// # Errors
    /// Says what is missing.
    pub fn check(self, [m, n]: [usize; 2], held: usize, wide: bool, limits: &Limits) -> Result<(), String> {
        let (units, least) = match self {
            Self::Units(tile) => (tile.units(), 1),
            Self::MatrixUnits { plane } if limits.matrix_units != Some(plane) => {
                return Err(format!("no matrix units for this type with {plane} units together"));
            }
            Self::MatrixUnits { .. } if held > HELD[1] => {
                return Err(format!("{held} cotangents, and accumulators of {} fit", HELD[1]));
            }
            Self::MatrixUnits { .. } if !wide => return Err(format!("rows are not loaded {WIDE} values at once")),
            Self::MatrixUnits { .. } if shared_bytes(held) > limits.shared => {
                return Err(format!("{} bytes shared, and the device has {}", shared_bytes(held), limits.shared));
            }
            Self::MatrixUnits { plane } => (plane * PLANES, SIDE / 2),
        };
        if units > limits.units {
            return Err(format!("{units} units a cube, and the device has {}", limits.units));
        }
        if m < least || n < least {
            return Err(format!("a gradient of {m} × {n} leaves most of a tile of {SIDE} × {SIDE} empty"));
        }
        Ok(())
    }

    /// Cotangents that a cube holds at most, of a gradient `[m, n]`.
    pub fn most_held(shape: [usize; 2], wide: bool, limits: &Limits) -> usize {
        match Self::choose(shape, HELD[1], wide, limits) {
            Self::Units(_) => HELD[0],
            Self::MatrixUnits { .. } => HELD[1],
        }
    }

    /// Rows and columns of a tile.
    pub fn tile(self) -> [usize; 2] {
        match self {
            Self::Units(tile) => [tile.m(), tile.n()],
            Self::MatrixUnits { .. } => [SIDE, SIDE],
        }
    }
}

/// Tiles for a gradient `[m, n]`: square ones, or long ones where one side is a low rank. A software driver takes minutes to
/// compile what many registers are unrolled to.
fn tile([m, n]: [usize; 2], held: usize, hardware: bool) -> Tile {
    let wide = if held <= 2 && hardware { 8 } else { 4 };
    let (per_m, per_n) = match (m, n) {
        (0..=16, _) => (1, wide),
        (_, 0..=16) => (wide, 1),
        (0..=64, _) | (_, 0..=64) => (4, 4),
        _ => (wide.min(4 * (m / 64)), wide.min(4 * (n / 64))),
    };
    Tile { units_m: 16, units_n: 16, per_m, per_n, step: 8 }
}
