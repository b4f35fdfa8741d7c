//! The CPU kernels against burn: values against its tensor operations, vector–Jacobian products against its autodiff.
//!
//! Tolerances, relative to the largest value of a result. In f64 1e-12: sums of up to 10³ terms of like size, each
//! rounded to 1.1e-16, are off by 1e-13 at worst, and burn's own result by as much. In f32 2e-4: the same with 6e-8.
mod forward;
mod reductions;
#[path = "../support/mod.rs"]
mod support;
mod vjp;

use burn_autodiff::Autodiff;
use burn_tensor::{Tensor, TensorPrimitive};
use support::{Random, close, rows_of};
use tanglescope_kernels::{DType, Flex, FlexDevice, FloatTensor, Memory, TensorData};

/// The CPU backend with burn's autodiff around it.
type Auto = Autodiff<Flex>;

/// Number types, each with the error that its arithmetic allows.
const TYPES: [(DType, f64); 2] = [(DType::F64, 1e-12), (DType::F32, 2e-4)];

/// A CPU tensor of some shape.
fn tensor(values: &[f64], shape: impl Into<Vec<usize>>, dtype: DType) -> FloatTensor<Flex> {
    Flex::upload(TensorData::new(values.to_vec(), shape.into()).convert_dtype(dtype), &FlexDevice)
}

/// The same as an f64 leaf of burn's autodiff.
fn leaf<const D: usize>(values: &[f64], shape: [usize; D]) -> Tensor<Auto, D> {
    Tensor::from_data(TensorData::new(values.to_vec(), shape), (&FlexDevice, DType::F64)).require_grad()
}

fn primitive<const D: usize>(x: &Tensor<Auto, D>) -> FloatTensor<Auto> {
    x.clone().into_primitive().tensor()
}

fn wrap<const D: usize>(x: FloatTensor<Auto>) -> Tensor<Auto, D> {
    Tensor::from_primitive(TensorPrimitive::Float(x))
}

fn host<B: burn_tensor::backend::Backend, const D: usize>(x: Tensor<B, D>) -> Vec<f64> {
    x.into_data().convert::<f64>().into_vec().unwrap()
}

/// The gradient of a leaf.
fn gradient<const D: usize>(
    of: &Tensor<Auto, D>,
    gradients: &<Auto as burn_tensor::backend::AutodiffBackend>::Gradients,
) -> Vec<f64> {
    of.grad(gradients).map(host).unwrap()
}
