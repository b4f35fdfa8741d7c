//! A device's memory, by burn's operations.
use super::{Done, Memory};
use crate::on_chip::on_devices;
use crate::reference::{host, wrap};
use crate::{Backend, DType, Flex, FlexDevice, FloatTensor, Shape, TensorData};
use burn_backend::BackendTypes;
use burn_backend::ops::FloatTensorOps;
use burn_cubecl::{CubeRuntime, tensor::CubeTensor};
use burn_flex::FlexTensor;
use burn_tensor::{Int, Tensor};
use cubecl::bytes::{AllocationProperty, Bytes};
use cubecl::device::Device;
use cubecl::device_handle::DeviceHandle;
use cubecl::prelude::ComputeClient;
use cubecl::server::{ComputeServer, CopyDescriptor};
use cubecl::stream_id::StreamId;

/// The stream of copies that pass while the device works: CubeCL numbers those of threads from zero.
const COPIES: StreamId = StreamId { value: u64::MAX };

/// The bytes of a tensor of the host, which stay where they are.
struct Lent(FlexTensor);

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        self.0.bytes()
    }
}

fn memory_in_use<R: CubeRuntime>(device: &R::CubeDevice) -> Option<(u64, u64)> {
    R::client(device).memory_usage().ok().map(|usage| (usage.bytes_in_use, usage.bytes_reserved))
}

fn done<R: CubeRuntime>(device: &R::CubeDevice) -> Done {
    // the mark is made now; what failed before is said here, and by no later read
    let mark = R::client(device).sync();
    Box::new(|| futures_lite::future::block_on(mark).map_err(|problem| format!("{problem:?}")))
}

/// The type in which a tensor of the host is taken; words stay what they are.
fn taken(x: &FlexTensor, dtype: DType) -> DType {
    if x.dtype() == DType::U32 { DType::U32 } else { dtype }
}

/// What is copied of a tensor of the host, from memory that the device reads by itself where the runtime has some.
fn staged<R: CubeRuntime>(client: &ComputeClient<R>, x: &FlexTensor, dtype: DType) -> TensorData {
    let as_it_lies = x.dtype() == dtype && x.is_contiguous() && x.layout().start_offset() == 0;
    let mut values = if as_it_lies && x.bytes().len() == x.layout().num_elements() * dtype.size() {
        let bytes = Bytes::from_shared(bytes::Bytes::from_owner(Lent(x.clone())), AllocationProperty::Other);
        TensorData { bytes, shape: x.layout().shape().clone(), dtype }
    } else {
        x.clone().into_data().convert_dtype(dtype)
    };
    client.staging([&mut values.bytes].into_iter(), false);
    values
}

/// See [`Memory::copied`]. CubeCL's own functions copy what is staged once more before they hand it on; so it is handed on here.
fn copied<R: CubeRuntime>(
    all: &[FlexTensor],
    dtype: DType,
    device: &R::CubeDevice,
) -> Result<Vec<CubeTensor<R>>, String> {
    let (client, server) = (R::client(device), DeviceHandle::<R::Server>::new(device.to_id()));
    COPIES.executes(|| {
        let copy = |x: &FlexTensor| {
            let TensorData { bytes, shape, dtype } = staged(&client, x, taken(x, dtype));
            // a buffer of no bytes is none
            let handle = client.empty(bytes.len().max(1));
            let out = CubeTensor::new_contiguous(client.clone(), device.clone(), shape, handle, dtype);
            let (binding, meta) = (out.handle.clone().binding(), &out.meta);
            let to = CopyDescriptor::new(binding, meta.shape().clone(), meta.strides().clone(), dtype.size());
            if !bytes.is_empty() {
                server.submit(move |server| server.write(vec![(to, bytes)], COPIES));
            }
            out
        };
        let copies = all.iter().map(copy).collect();
        // no kernel is ever started in this stream, which would give back what copies before these were made from
        client.flush().map_err(|problem| format!("{problem:?}"))?;
        Ok(copies)
    })
}

/// Numbers, or [words](crate::Coded), on a device.
fn upload<B>(values: TensorData, device: &B::Device) -> FloatTensor<B>
where
    B: Backend<IntTensorPrimitive = FloatTensor<B>>,
{
    if values.dtype == DType::U32 { B::int_from_data(values, device) } else { B::float_from_data(values, device) }
}

on_devices! { Memory, R {
    fn done(device: &<Self as BackendTypes>::Device) -> Done {
        done::<R>(device)
    }

    fn memory_in_use(device: &<Self as BackendTypes>::Device) -> Option<(u64, u64)> {
        memory_in_use::<R>(device)
    }

    fn largest(device: &<Self as BackendTypes>::Device) -> Option<u64> {
        Some(<R as cubecl::Runtime>::client(device).properties().memory.max_page_size)
    }

    fn upload(values: TensorData, device: &<Self as BackendTypes>::Device) -> FloatTensor<Self> {
        upload::<Self>(values, device)
    }

    fn from_host(
        x: &FloatTensor<Flex>,
        dtype: DType,
        device: &<Self as BackendTypes>::Device,
    ) -> FloatTensor<Self> {
        upload::<Self>(x.clone().into_data().convert_dtype(taken(x, dtype)), device)
    }

    fn copied(
        all: &[FloatTensor<Flex>],
        dtype: DType,
        device: &<Self as BackendTypes>::Device,
    ) -> Result<Vec<FloatTensor<Self>>, String> {
        copied::<R>(all, dtype, device)
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
