//! What several kernels share on a device: staged tiles of matrices multiplied on chip, and sums over a cube.
mod cube;
mod launch;

pub(crate) use cube::{cube_sum, multiply, soft_cap, soft_cap_slope, turns};
pub(crate) use launch::{
    Limits, array, by_rows, contiguous, empty, floats, ints, limits, loads_wide, rows_as_they_are, rows_of, width_of,
};

/// Implements a kernel's trait for every device backend, with `$R` its runtime: for concrete backends, so that a device's code is
/// generated in this crate and nowhere else. A body that names no runtime leaves `$R` unused.
macro_rules! on_devices {
    ($trait:ident, $R:ident { $($body:tt)* }) => {
        const _: () = {
            #[allow(dead_code)]
            type $R = burn_wgpu::WgpuRuntime;
            impl $trait for crate::device::Vulkan { $($body)* }
        };
        const _: () = {
            #[allow(dead_code)]
            type $R = cubecl::cuda::CudaRuntime;
            impl $trait for crate::device::Cuda { $($body)* }
        };
    };
}
pub(crate) use on_devices;

/// Side of the tile that a matrix unit multiplies.
pub(crate) const MATRIX_UNIT: usize = 16;

/// Values of 16 bits that a unit loads at once: 16 bytes.
pub(crate) const WIDE: usize = 8;

/// Some values of a row, loaded at once.
pub(crate) type Piece<F> = cubecl::prelude::Vector<F, cubecl::prelude::Const<WIDE>>;

/// How the units of a cube share a tile of a product.
///
/// A unit holds `per_m × per_n` values, `units_m` and `units_n` apart, so that neighbours read neighbouring values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Tile {
    /// Units along the rows of the tile.
    pub units_m: usize,
    /// Units along its columns.
    pub units_n: usize,
    /// Rows a unit.
    pub per_m: usize,
    /// Columns a unit.
    pub per_n: usize,
    /// Entries of the contracted axis that are staged at a time.
    pub step: usize,
}

impl Tile {
    /// Rows of the tile.
    pub const fn m(self) -> usize {
        self.units_m * self.per_m
    }

    /// Columns of the tile.
    pub const fn n(self) -> usize {
        self.units_n * self.per_n
    }

    /// Units of a cube.
    pub const fn units(self) -> usize {
        self.units_m * self.units_n
    }

    /// Values a unit.
    pub const fn per_unit(self) -> usize {
        self.per_m * self.per_n
    }
}
