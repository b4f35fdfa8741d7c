//! How the *gram* reduction runs on a device: a value, chosen from the rows and from what the device offers, and refused where it
//! lacks something.
use super::cube::{PLANES, SIDE};
use crate::RowSet;
use crate::on_chip::{Limits, Tile};

/// Tiles of 64 × 64 rows.
const TILE: Tile = Tile { units_m: 16, units_n: 16, per_m: 4, per_n: 4, step: 16 };

/// Cotangents of a set from which on, where none has more than a row, both row Grams are formed whole.
const WHOLE: usize = 16;

/// How the products of rows are formed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Strategy {
    /// Both row Grams whole in device memory, as matrix products: for many cotangents of a row each.
    Whole,
    /// Tile by tile, unit by unit.
    Units(Tile),
    /// Tile by tile, by matrix units, `plane` units together.
    MatrixUnits {
        /// Units that an instruction is given to.
        plane: usize,
    },
}

impl Strategy {
    /// The fastest one that is not refused, for inputs of a width and the narrowest of some cotangents.
    pub fn choose(rows: &RowSet, widths: [usize; 2], limits: &Limits) -> Self {
        let by_matrix_units = limits.matrix_units.map(|plane| Self::MatrixUnits { plane });
        let all = [Some(Self::Whole), by_matrix_units];
        let taken = all.into_iter().flatten().find(|strategy| strategy.check(rows, widths, limits).is_ok());
        taken.unwrap_or(Self::Units(TILE))
    }

    /// Whether a device can run it on some rows.
    ///
    /// # Errors
    /// Says what is missing.
    pub fn check(self, rows: &RowSet, widths: [usize; 2], limits: &Limits) -> Result<(), String> {
        let units = match self {
            Self::Whole => {
                let single = |set: &std::ops::Range<usize>| set.clone().all(|k| rows.of(k).len() <= 1);
                let many = rows.sets.iter().all(|set| set.len() > WHOLE && single(set));
                return if many { Ok(()) } else { Err(format!("not more than {WHOLE} cotangents of a row each")) };
            }
            Self::Units(tile) => tile.units(),
            Self::MatrixUnits { plane } if limits.matrix_units != Some(plane) => {
                return Err(format!("no matrix units for this type with {plane} units together"));
            }
            Self::MatrixUnits { .. } if widths.iter().any(|&width| width < SIDE / 2) => {
                return Err(format!("rows of {widths:?} values leave most of a tile of {SIDE} empty"));
            }
            Self::MatrixUnits { plane } => plane * PLANES,
        };
        match units <= limits.units {
            true => Ok(()),
            false => Err(format!("{units} units a cube, and the device has {}", limits.units)),
        }
    }

    /// Most rows of a tile: what every way has room for.
    pub fn side() -> usize {
        SIDE.min(TILE.m())
    }
}
