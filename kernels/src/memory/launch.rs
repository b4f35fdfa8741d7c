//! A device's memory, by burn's operations.
use super::Memory;
use crate::on_chip::on_devices;
use crate::reference::{host, wrap};
use crate::{Backend, DType, Flex, FlexDevice, FloatTensor, Shape, TensorData};
use burn_backend::BackendTypes;
use burn_backend::ops::FloatTensorOps;
use burn_cubecl::CubeRuntime;
use burn_tensor::{Int, Tensor};

fn wait<R: CubeRuntime>(device: &R::CubeDevice) {
    // what failed on the device is said by the next read
    let _ = futures_lite::future::block_on(R::client(device).sync());
}

fn memory_in_use<R: CubeRuntime>(device: &R::CubeDevice) -> Option<(u64, u64)> {
    R::client(device).memory_usage().ok().map(|usage| (usage.bytes_in_use, usage.bytes_reserved))
}

/// Numbers, or [words](crate::Coded), on a device.
fn upload<B>(values: TensorData, device: &B::Device) -> FloatTensor<B>
where
    B: Backend<IntTensorPrimitive = FloatTensor<B>>,
{
    if values.dtype == DType::U32 { B::int_from_data(values, device) } else { B::float_from_data(values, device) }
}

on_devices! { Memory, R {
    fn wait(device: &<Self as BackendTypes>::Device) {
        wait::<R>(device);
    }

    fn memory_in_use(device: &<Self as BackendTypes>::Device) -> Option<(u64, u64)> {
        memory_in_use::<R>(device)
    }

    fn upload(values: TensorData, device: &<Self as BackendTypes>::Device) -> FloatTensor<Self> {
        upload::<Self>(values, device)
    }

    fn from_host(
        x: &FloatTensor<Flex>,
        dtype: DType,
        device: &<Self as BackendTypes>::Device,
    ) -> FloatTensor<Self> {
        let values = x.clone().into_data();
        let dtype = if values.dtype == DType::U32 { DType::U32 } else { dtype };
        upload::<Self>(values.convert_dtype(dtype), device)
    }

    fn to_host(x: &FloatTensor<Self>, dtype: DType) -> FloatTensor<Flex> {
        if x.dtype == DType::U32 {
            return Flex::upload(Tensor::<Self, 1, Int>::from_primitive(x.clone()).into_data(), &FlexDevice);
        }
        let values = TensorData::new(Self::download(x), x.meta.shape().clone());
        Flex::upload(values.convert_dtype(dtype), &FlexDevice)
    }

    fn upload_like(values: Vec<f64>, shape: &[usize], like: &FloatTensor<Self>) -> FloatTensor<Self> {
        Self::float_from_data(TensorData::new(values, shape.to_vec()).convert_dtype(like.dtype), &like.device)
    }

    fn download(x: &FloatTensor<Self>) -> Vec<f64> {
        let n = x.meta.num_elements();
        host(wrap::<Self, 1>(&Self::float_reshape(x.clone(), [n].into())))
    }

    fn carried() -> DType {
        DType::F32
    }

    fn cast(x: FloatTensor<Self>, dtype: DType) -> FloatTensor<Self> {
        if x.dtype == dtype { x } else { Self::float_cast(x, dtype.into()) }
    }

    fn takes_stored(_dtype: DType) -> bool {
        false
    }

    fn turned(x: &FloatTensor<Self>) -> FloatTensor<Self> {
        Self::from_host(&Flex::turned(&Self::to_host(x, x.dtype)), x.dtype, &x.device)
    }

    fn reshape(x: FloatTensor<Self>, shape: impl Into<Shape>) -> FloatTensor<Self> {
        Self::float_reshape(x, shape.into())
    }
} }
