//! The host's own memory.
use super::{Done, Memory};
use crate::host::real::{Real, dims, matrix, values, with_real};
use crate::product::cpu::transpose;
use crate::{DType, Flex, FlexDevice, Shape, TensorData};
use burn_backend::ops::FloatTensorOps;
use burn_flex::FlexTensor;
use rayon::prelude::*;

impl Memory for Flex {
    fn done(_device: &FlexDevice) -> Done {
        Box::new(|| Ok(()))
    }

    fn largest(_device: &FlexDevice) -> Option<u64> {
        None
    }

    fn memory_in_use(_device: &FlexDevice) -> Option<(u64, u64)> {
        None
    }

    fn upload(data: TensorData, _device: &FlexDevice) -> FlexTensor {
        FlexTensor::from_data(data)
    }

    fn from_host(x: &FlexTensor, dtype: DType, _device: &FlexDevice) -> FlexTensor {
        let is_matrix = x.layout().num_dims() == 2;
        let as_it_is = x.dtype() == DType::U32 || is_matrix && Self::takes_stored(x.dtype());
        if as_it_is { x.clone() } else { Self::cast(x.clone(), dtype) }
    }

    fn copied(all: &[FlexTensor], dtype: DType, device: &FlexDevice) -> Result<Vec<FlexTensor>, String> {
        Ok(all.iter().map(|x| Self::from_host(x, dtype, device)).collect())
    }

    fn to_host(x: &FlexTensor, dtype: DType) -> FlexTensor {
        if x.dtype() == DType::U32 { x.clone() } else { Self::cast(x.clone(), dtype) }
    }

    fn upload_like(values: Vec<f64>, shape: &[usize], like: &FlexTensor) -> FlexTensor {
        FlexTensor::from_data(TensorData::new(values, shape.to_vec()).convert_dtype(like.dtype()))
    }

    fn download(x: &FlexTensor) -> Vec<f64> {
        if x.dtype() == DType::BF16 {
            return x.storage::<half::bf16>().iter().map(|v| v.to_f64()).collect();
        }
        with_real!(x, E => values::<E>(x).iter().map(|v| v.wide()).collect())
    }

    fn carried() -> DType {
        DType::F64
    }

    fn cast(x: FlexTensor, dtype: DType) -> FlexTensor {
        if x.dtype() == dtype { x } else { Self::float_cast(x, dtype.into()) }
    }

    fn takes_stored(dtype: DType) -> bool {
        dtype == DType::BF16
    }

    fn is_host() -> bool {
        true
    }

    fn turned(x: &FlexTensor) -> FlexTensor {
        let [rows, columns] = dims(x);
        if x.dtype() == DType::BF16 {
            let values = x.storage::<half::bf16>();
            let at = |i: usize| values[i % rows * columns + i / rows];
            let turned: Vec<half::bf16> = (0..values.len()).into_par_iter().with_min_len(4096).map(at).collect();
            return FlexTensor::from_data(TensorData::new(turned, [columns, rows]));
        }
        with_real!(x, E => matrix(transpose(values::<E>(x), columns), [columns, rows]))
    }

    fn reshape(x: FlexTensor, shape: impl Into<Shape>) -> FlexTensor {
        Self::float_reshape(x, shape.into())
    }
}
