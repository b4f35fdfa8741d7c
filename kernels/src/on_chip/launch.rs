//! The host's part of every launch: results in device memory, grids, and what a device offers.
use super::WIDE;
use crate::as_index;
use burn_backend::{DType, Shape};
use burn_cubecl::{CubeRuntime, tensor::CubeTensor};
use cubecl::features::MmaConfig;
use cubecl::ir::{ElemType, FloatKind};
use cubecl::prelude::*;
use cubecl::server::Handle;

/// A client of the device that a tensor is on.
pub(crate) type Launch<R> = ComputeClient<R>;

/// Most cubes along one side of a grid that every device takes.
const SIDE: usize = 65_535;

/// A grid of at least `n` cubes, a cube an element of work; kernels leave where their number is too high.
pub(crate) fn by_rows(n: usize) -> CubeCount {
    let x = n.clamp(1, SIDE);
    CubeCount::Static(as_index(x), as_index(n.max(1).div_ceil(x)), 1)
}

/// An unwritten contiguous tensor beside another one.
pub(crate) fn empty<R: CubeRuntime>(like: &CubeTensor<R>, shape: impl Into<Shape>, dtype: DType) -> CubeTensor<R> {
    let shape = shape.into();
    // a buffer of no bytes is none
    let handle = like.client.empty(shape.num_elements().max(1) * dtype.size());
    CubeTensor::new_contiguous(like.client.clone(), like.device.clone(), shape, handle, dtype)
}

/// Copies indices to the device; none become one that is never read.
pub(crate) fn ints<R: CubeRuntime>(client: &Launch<R>, values: &[u32]) -> ArrayArg<R> {
    let values = if values.is_empty() { &[0] } else { values };
    array(client.create_from_slice(bytemuck::cast_slice(values)), values.len())
}

/// Copies weights to the device.
#[allow(clippy::cast_possible_truncation)]
pub(crate) fn floats<R: CubeRuntime>(client: &Launch<R>, values: &[f64]) -> ArrayArg<R> {
    let mut values: Vec<f32> = values.iter().map(|&v| v as f32).collect();
    values.resize(values.len().max(1), 0.0);
    array(client.create_from_slice(bytemuck::cast_slice(&values)), values.len())
}

/// A kernel's argument from a buffer of `len` values.
#[allow(unsafe_code)]
pub(crate) fn array<R: CubeRuntime>(handle: Handle, len: usize) -> ArrayArg<R> {
    // SAFETY: every caller passes the number of values that it made the buffer for.
    unsafe { ArrayArg::from_raw_parts(handle, len) }
}

/// Rows of a matrix; a vector has one.
pub(crate) fn rows_of<R: CubeRuntime>(x: &CubeTensor<R>) -> usize {
    let shape = x.meta.shape();
    if shape.num_dims() == 1 { 1 } else { shape[0] }
}

/// Width of a matrix's rows.
pub(crate) fn width_of<R: CubeRuntime>(x: &CubeTensor<R>) -> usize {
    let shape = x.meta.shape();
    shape[shape.num_dims() - 1]
}

/// The tensor itself where neighbouring values of a row lie side by side, whatever lies between rows; a copy otherwise.
pub(crate) fn rows_as_they_are<R: CubeRuntime>(x: &CubeTensor<R>) -> CubeTensor<R> {
    let strides = x.meta.strides();
    if strides[strides.len() - 1] == 1 { x.clone() } else { burn_cubecl::kernel::into_contiguous(x.clone()) }
}

/// The tensor itself where its values lie side by side without gaps; a copy otherwise.
pub(crate) fn contiguous<R: CubeRuntime>(x: &CubeTensor<R>) -> CubeTensor<R> {
    burn_cubecl::kernel::into_contiguous(x.clone())
}

/// Whether rows, and parts of them of a width, begin where [`WIDE`] values can be loaded at once.
pub(crate) fn loads_wide<R: CubeRuntime>(width: usize, inputs: &[&CubeTensor<R>]) -> bool {
    let lies = |x: &&CubeTensor<R>| {
        let bytes = (WIDE * x.dtype.size()) as u64;
        x.meta.strides()[0].is_multiple_of(WIDE) && x.handle.offset_start.unwrap_or(0).is_multiple_of(bytes)
    };
    width.is_multiple_of(WIDE) && inputs.iter().all(lies)
}

/// What a device's kernels are fitted to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Bytes of memory that the units of a cube share.
    pub shared: usize,
    /// Units of a cube.
    pub units: usize,
    /// Units that a matrix unit's instructions are given to together, where it takes 16×16×16 products of this type.
    pub matrix_units: Option<usize>,
    /// Whether matrix units take factors of 16 × 16 and 16 × 8 values of this type from registers of 32 units, and such registers can be loaded from squares
    /// of 8 × 8.
    pub from_registers: bool,
    /// Whether it is hardware: a software driver offers no operations across a plane.
    pub hardware: bool,
}

/// Limits for kernels over values of a type.
pub(crate) fn limits<R: CubeRuntime>(client: &Launch<R>, dtype: DType) -> Limits {
    let properties = client.properties();
    let kind = match dtype {
        DType::BF16 => Some(FloatKind::BF16),
        DType::F16 => Some(FloatKind::F16),
        _ => None,
    };
    let element = |kind| ElemType::Float(kind).into();
    let product = |kind, n| {
        let (a_type, b_type, cd_type) = (element(kind), element(kind), element(FloatKind::F32));
        MmaConfig { a_type, b_type, cd_type, m: 16, n, k: 16 }
    };
    let (hardware, matmul) = (&properties.hardware, &properties.features.matmul);
    // CubeCL offers fragments of bf16 on CUDA from capability 7.0 on; NVIDIA's headers have them from 8.0 on, as the other product
    let early = |kind| R::name(client) == "cuda" && kind == FloatKind::BF16 && !matmul.mma.contains(&product(kind, 8));
    let takes = |kind| matmul.cmma.contains(&product(kind, 16)) && !early(kind);
    let from_registers = |kind| matmul.mma.contains(&product(kind, 8)) && matmul.ldmatrix.contains(&element(kind));
    let fixed = hardware.plane_size_min == hardware.plane_size_max;
    Limits {
        shared: hardware.max_shared_memory_size,
        units: hardware.max_units_per_cube as usize,
        hardware: properties.features.plane.contains(cubecl::features::Plane::Ops),
        from_registers: kind.is_some_and(from_registers) && hardware.plane_size_max == 32,
        matrix_units: kind.filter(|&k| fixed && takes(k)).map(|_| hardware.plane_size_max as usize),
    }
}
