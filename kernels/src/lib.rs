//! The kernels of Tanglescope: everything that the engine asks of a device, each behind a trait over burn's [`Backend`].
//!
//! Every tensor is a row-major matrix `[rows, features]` (or a vector `[features]`) of one floating-point type. The traits are
//! implemented for burn's CPU backend [`Flex`] over plain slices, and for Vulkan and CUDA by CubeCL kernels, one source each
//! for both. Every kernel has a folder: `mod.rs` its trait and formula, `cpu.rs` its CPU twin; `cube.rs` the device's source and
//! `launch.rs` how that is spread over a device, where it is not composed of others; `reference.rs` the same composed of burn's own
//! operations, which the tests hold both against, where there are such.
//!
//! The engine is generic over [`Kernels`], the sum of the traits, and calls nothing else of a backend (but for training, which takes a step apart in burn's own operations), so
//! that a device's code is generated here once and a change in the engine recompiles none of it. Shapes are the caller's duty: the engine builds
//! them from a validated model and batch, and an implementation may panic on a mismatch.
pub use burn_backend::{
    AllocationProperty, Backend, Bytes, DType, Element, Shape, TensorData, TensorMetadata, tensor::FloatTensor,
};
pub use burn_flex::{Flex, FlexDevice};

pub mod activation;
pub mod adam;
pub mod arithmetic;
pub mod attention;
pub mod bench;
pub mod codes;
pub mod convolution;
pub mod cost;
pub mod delta;
pub mod device;
pub mod gram;
mod grams;
pub mod grouped;
pub mod head;
mod host;
mod layout;
pub mod memory;
pub mod norm;
mod on_chip;
mod pending;
pub mod product;
pub mod reference;
pub mod rotary;
pub mod rows;
mod soft_cap;
pub mod tally;
pub mod tile;
pub mod vectors;

pub use activation::{Activate, Activation};
pub use adam::{Adam, AdamStep};
pub use arithmetic::Arithmetic;
pub use attention::{Attend, AttentionSpec};
pub use codes::{CodeSpec, Coded, Codes, Weight};
pub use convolution::Convolve;
pub use delta::{DeltaInputs, DeltaRule, DeltaSpec};
pub use gram::RowGram;
pub use grams::{Gram, Grams};
pub use grouped::{Grouped, Stretch};
pub use head::{Head, HeadOutput};
pub use layout::{HeadCotangents, RowSet, Segment, Span};
pub use memory::{Done, Memory};
pub use norm::{Norm, NormKind};
pub use pending::Pending;
pub use product::Product;
pub use rotary::{Pairs, Rotary};
pub use rows::Rows;
pub use soft_cap::SoftCap;
pub use tile::TileGram;
pub use vectors::VectorGram;

/// All that the engine asks of a backend.
pub trait Kernels:
    Memory
    + Arithmetic
    + Rows
    + Product
    + Codes
    + Grouped
    + Norm
    + Activate
    + Rotary
    + Attend
    + Convolve
    + DeltaRule
    + Head
    + TileGram
    + RowGram
    + VectorGram
    + Adam
{
}

impl<B> Kernels for B where
    B: Memory
        + Arithmetic
        + Rows
        + Product
        + Codes
        + Grouped
        + Norm
        + Activate
        + Rotary
        + Attend
        + Convolve
        + DeltaRule
        + Head
        + TileGram
        + RowGram
        + VectorGram
        + Adam
{
}

/// A number as devices index with it: of a row, a value, a task.
///
/// # Panics
/// Beyond 2³² − 1, where an index would stand for another one.
#[must_use]
#[track_caller]
pub fn as_index(n: usize) -> u32 {
    u32::try_from(n).unwrap_or_else(|_| panic!("{n} is more than 32-bit indices reach; ask for smaller batches"))
}
