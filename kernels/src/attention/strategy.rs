//! How attention runs on a device: a value, chosen from what the device offers and how its inputs lie, and refused where something
//! is missing.
use super::matrix_units::{PLANES, shared_bytes};
use crate::on_chip::{Limits, WIDE};

/// Widest head for matrix units: wider ones need more registers than a unit has.
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
}

impl Strategy {
    /// The fastest one that is not refused, for heads of a width and inputs that can be loaded wide or not.
    pub fn choose(head_dim: usize, wide: bool, limits: &Limits) -> Self {
        let by_matrix_units = limits.matrix_units.map(|plane| Self::MatrixUnits { plane });
        let taken = by_matrix_units.filter(|strategy| strategy.check(head_dim, wide, limits).is_ok());
        taken.unwrap_or(Self::Units)
    }

    /// Whether a device can run it.
    ///
    /// # Errors
    /// Says what is missing.
    pub fn check(self, head_dim: usize, wide: bool, limits: &Limits) -> Result<(), String> {
        let Self::MatrixUnits { plane } = self else { return Ok(()) };
        let units = plane * PLANES;
        // four units share each of a tile's 64 rows
        if limits.matrix_units != Some(plane) || units != 256 || units > limits.units {
            return Err(format!("no matrix units for this type with {PLANES} planes of {plane} units"));
        }
        if head_dim > WIDEST || !wide {
            return Err(format!("heads of {head_dim} values, not up to {WIDEST} and loaded {WIDE} at once"));
        }
        match shared_bytes(head_dim) {
            bytes if bytes > limits.shared => {
                Err(format!("{bytes} bytes shared, and the device has {}", limits.shared))
            }
            _ => Ok(()),
        }
    }
}
