//! What the references of the kernels share: burn's tensors around primitives. A reference is the same operation composed of
//! burn's own, which the kernels are tested against; it is slow, and independent of ours.
use crate::{DType, FloatTensor, TensorData};
use burn_backend::Backend;
use burn_tensor::{Int, Tensor, TensorPrimitive};

/// A burn tensor around a primitive.
pub(crate) fn wrap<B: Backend, const D: usize>(x: &FloatTensor<B>) -> Tensor<B, D> {
    Tensor::from_primitive(TensorPrimitive::Float(x.clone()))
}

/// The primitive of a burn tensor.
pub(crate) fn unwrap<B: Backend, const D: usize>(x: Tensor<B, D>) -> FloatTensor<B> {
    x.into_primitive().tensor()
}

/// Indices as burn takes them.
pub(crate) fn int<B: Backend>(index: &[u32], device: &B::Device) -> Tensor<B, 1, Int> {
    let values: Vec<i64> = index.iter().map(|&i| i64::from(i)).collect();
    Tensor::from_data(TensorData::new(values, [index.len()]), device)
}

/// Host values in a given type.
pub(crate) fn floats<B: Backend, const D: usize>(
    values: Vec<f64>,
    shape: [usize; D],
    dtype: DType,
    device: &B::Device,
) -> Tensor<B, D> {
    Tensor::from_data(TensorData::new(values, shape).convert_dtype(dtype), (device, dtype))
}

/// The values of a tensor, on the host; burn's own results can be views with strides.
pub fn host<B: Backend, const D: usize>(x: Tensor<B, D>) -> Vec<f64> {
    x.into_data().convert::<f64>().into_vec().unwrap_or_default()
}
