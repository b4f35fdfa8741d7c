//! Products on a device, by cubek's kernels.
//!
//! f32 stays f32: cubek's choice of its own would round the factors of a product to tf32 (10 bits) on CUDA devices with
//! matrix units, an error of 5e-4 where f32 has 6e-8. f16 and bf16 are multiplied on matrix units where there are some,
//! and summed in f32.
use crate::blocks::width_of;
use burn_backend::DType;
use burn_cubecl::{CubeRuntime, kernel, tensor::CubeTensor};
use cubek::matmul::definition::{MatmulElems, MatmulGlobalElems};
use cubek::matmul::launch::{Strategy, launch_ref};
use cubek::matmul::routines::BlueprintStrategy;
use cubek::std::InputBinding;
use std::ops::Range;

/// `a[…, m, k] · b[…, k, n]` as a new tensor of a type.
pub(crate) fn product<R: CubeRuntime>(a: &CubeTensor<R>, b: &CubeTensor<R>, dtype: DType) -> CubeTensor<R> {
    let mut shape = a.meta.shape().clone();
    let last = shape.num_dims() - 1;
    shape[last] = width_of(b);
    let out = crate::blocks::empty(a, shape, dtype);
    product_into(a, b, &out);
    out
}

/// The same into memory that is there.
pub(crate) fn product_into<R: CubeRuntime>(a: &CubeTensor<R>, b: &CubeTensor<R>, out: &CubeTensor<R>) {
    if out.meta.num_elements() == 0 {
        return;
    }
    let strategy =
        if a.dtype == DType::F32 { Strategy::SimpleUnit(BlueprintStrategy::default()) } else { Strategy::Auto };
    let globals = MatmulGlobalElems { lhs: a.dtype.into(), rhs: b.dtype.into(), out: out.dtype.into() };
    let bind = |x: &CubeTensor<R>| InputBinding::new(x.clone().binding(), x.dtype.into());
    let launched = |strategy: &Strategy| {
        let mut elements = MatmulElems::from_globals(&globals);
        launch_ref(strategy, &a.client, bind(a), bind(b), out.clone().binding(), &mut elements)
    };
    // shapes that a strategy cannot be set up for are taken by the one that has no demands
    if launched(&strategy).is_err()
        && let Err(problem) = launched(&Strategy::Naive)
    {
        unreachable!("a product of shape {:?} cannot be launched: {problem:?}", out.meta.shape());
    }
}

/// The transpose of the last two axes, as a view.
pub(crate) fn turned<R: CubeRuntime>(x: &CubeTensor<R>) -> CubeTensor<R> {
    let mut x = x.clone();
    let last = x.meta.shape().num_dims() - 1;
    x.meta.swap(last - 1, last);
    x
}

/// Some rows, as a view where the device's alignment allows one.
pub(crate) fn rows<R: CubeRuntime>(x: &CubeTensor<R>, range: Range<usize>) -> CubeTensor<R> {
    kernel::slice(x.clone(), &[range, 0..width_of(x)])
}

/// Some columns of every row.
pub(crate) fn columns<R: CubeRuntime>(x: &CubeTensor<R>, range: Range<usize>) -> CubeTensor<R> {
    kernel::slice(x.clone(), &[0..x.meta.shape()[0], range])
}
