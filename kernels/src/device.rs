//! The devices that a run can be put on, found without starting one that is not there.
#[cfg(any(feature = "vulkan", feature = "cuda"))]
use crate::{
    Activation, BlockGram, DType, FloatTensor, HeadOutput, Heads, Kernels, NormKind, RowSet, Segment, Span, TensorData,
    composed,
};
#[cfg(any(feature = "vulkan", feature = "cuda"))]
use std::ops::Range;

#[cfg(feature = "cuda")]
pub use burn_cuda::{Cuda, CudaDevice};
#[cfg(feature = "vulkan")]
pub use burn_wgpu::{Vulkan, WgpuDevice};

/// Methods of a concrete type, so that the device's code is generated in this crate and nowhere else.
#[cfg(any(feature = "vulkan", feature = "cuda"))]
macro_rules! composed_kernels {
    ($device:ty; $($name:ident($($arg:ident: $t:ty),*) -> $out:ty;)*) => {
        impl Kernels for $device {
            $(fn $name($($arg: $t),*) -> $out { composed::$name::<Self>($($arg),*) })*
        }
    };
    ($device:ty) => {
        composed_kernels! { $device;
            upload(values: TensorData, device: &<Self as burn_backend::BackendTypes>::Device) -> FloatTensor<Self>;
            takes_stored(dtype: DType) -> bool;
            cast(x: FloatTensor<Self>, dtype: DType) -> FloatTensor<Self>;
            download(x: &FloatTensor<Self>) -> Vec<f64>;
            matmul(x: &FloatTensor<Self>, w: &FloatTensor<Self>, transposed: bool, scale: f64, onto: Option<FloatTensor<Self>>) -> FloatTensor<Self>;
            weight_gradient(x: &FloatTensor<Self>, delta: &FloatTensor<Self>, rows: Range<usize>) -> FloatTensor<Self>;
            add_bias(y: FloatTensor<Self>, bias: &FloatTensor<Self>) -> FloatTensor<Self>;
            add_scaled(a: FloatTensor<Self>, b: &FloatTensor<Self>, scale: f64) -> FloatTensor<Self>;
            gather(x: &FloatTensor<Self>, index: &[u32], weights: Option<&[f64]>) -> FloatTensor<Self>;
            scatter_add(x: &FloatTensor<Self>, index: &[u32], rows: usize) -> FloatTensor<Self>;
            norm(x: &FloatTensor<Self>, gain: &FloatTensor<Self>, bias: Option<&FloatTensor<Self>>, kind: NormKind) -> FloatTensor<Self>;
            norm_vjp(x: &FloatTensor<Self>, gain: &FloatTensor<Self>, kind: NormKind, delta: &FloatTensor<Self>, index: &[u32], onto: Option<FloatTensor<Self>>) -> FloatTensor<Self>;
            norm_gain_terms(x: &FloatTensor<Self>, kind: NormKind, delta: &FloatTensor<Self>, index: &[u32]) -> FloatTensor<Self>;
            segment_sums(x: &FloatTensor<Self>, offsets: &[usize]) -> Vec<Vec<f64>>;
            activate(f: Activation, a: &FloatTensor<Self>, b: Option<&FloatTensor<Self>>) -> FloatTensor<Self>;
            activate_vjp(f: Activation, a: &FloatTensor<Self>, b: Option<&FloatTensor<Self>>, delta: &FloatTensor<Self>, index: &[u32]) -> (FloatTensor<Self>, Option<FloatTensor<Self>>);
            rotary(x: FloatTensor<Self>, cos: &FloatTensor<Self>, sin: &FloatTensor<Self>, index: Option<&[u32]>, head_dim: usize, inverse: bool) -> FloatTensor<Self>;
            split_columns(x: &FloatTensor<Self>, widths: &[usize]) -> Vec<FloatTensor<Self>>;
            join_columns(parts: &[FloatTensor<Self>]) -> FloatTensor<Self>;
            attention(q: &FloatTensor<Self>, k: &FloatTensor<Self>, v: &FloatTensor<Self>, spans: &[Span], heads: Heads) -> FloatTensor<Self>;
            attention_vjp(q: &FloatTensor<Self>, k: &FloatTensor<Self>, v: &FloatTensor<Self>, delta: &FloatTensor<Self>, segments: &[Segment], heads: Heads) -> [FloatTensor<Self>; 3];
            head(y: &FloatTensor<Self>, w: &FloatTensor<Self>, targets: &[u32], blocks: &[Range<usize>]) -> HeadOutput<FloatTensor<Self>>;
            gram_tile(x: &FloatTensor<Self>, delta: &FloatTensor<Self>, rows: &RowSet) -> Vec<BlockGram>;
            gram_rows(x: &FloatTensor<Self>, deltas: &[&FloatTensor<Self>], rows: &RowSet) -> Vec<Vec<BlockGram>>;
        }
    };
}

#[cfg(feature = "vulkan")]
composed_kernels!(Vulkan);
#[cfg(feature = "cuda")]
composed_kernels!(Cuda);

/// A device of this machine that a run can be put on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Number after the colon of `--device`.
    pub number: usize,
    /// What the driver calls it.
    pub name: String,
    /// Bytes of its own memory, where the driver says.
    pub memory: Option<usize>,
    /// Whether it is a program on the CPU, good for tests only.
    pub software: bool,
}

/// Vulkan devices: discrete, integrated and virtual GPUs, then software ones.
///
/// # Errors
/// Says what to install where there is none.
#[cfg(feature = "vulkan")]
pub fn vulkan_devices() -> Result<Vec<(WgpuDevice, Found)>, String> {
    use wgpu::DeviceType::{Cpu, DiscreteGpu, IntegratedGpu, VirtualGpu};
    let descriptor = wgpu::InstanceDescriptor {
        backends: wgpu::Backends::VULKAN,
        ..wgpu::InstanceDescriptor::new_without_display_handle()
    };
    let instance = wgpu::Instance::new(descriptor);
    let adapters = futures_lite::future::block_on(instance.enumerate_adapters(wgpu::Backends::VULKAN));
    let infos: Vec<wgpu::AdapterInfo> = adapters.iter().map(wgpu::Adapter::get_info).collect();
    let mut devices = Vec::new();
    for kind in [DiscreteGpu, IntegratedGpu, VirtualGpu, Cpu] {
        for (i, info) in infos.iter().filter(|info| info.device_type == kind).enumerate() {
            let device = match kind {
                DiscreteGpu => WgpuDevice::DiscreteGpu(i),
                IntegratedGpu => WgpuDevice::IntegratedGpu(i),
                VirtualGpu => WgpuDevice::VirtualGpu(i),
                // burn addresses the first software device only
                _ if i == 0 => WgpuDevice::Cpu,
                _ => continue,
            };
            let number = devices.len();
            devices.push((device, Found { number, name: info.name.clone(), memory: None, software: kind == Cpu }));
        }
    }
    if devices.is_empty() {
        return Err(
            "no Vulkan device: the loader (libvulkan1) or a driver for this machine's GPU is missing".to_owned()
        );
    }
    Ok(devices)
}

/// CUDA devices.
///
/// # Errors
/// Says which part is missing where there is none.
#[cfg(feature = "cuda")]
#[allow(unsafe_code)]
pub fn cuda_devices() -> Result<Vec<(CudaDevice, Found)>, String> {
    use cudarc::driver::result;
    // SAFETY: both only try to open the library by its name.
    if !unsafe { cudarc::driver::sys::is_culib_present() } {
        return Err("no CUDA device: the NVIDIA driver (libcuda.so.1) is not installed".to_owned());
    }
    // SAFETY: as above.
    if !unsafe { cudarc::nvrtc::sys::is_culib_present() } {
        return Err("no CUDA device: NVRTC (libnvrtc.so of the CUDA toolkit) is not installed".to_owned());
    }
    let failed = |e: result::DriverError| format!("no CUDA device: the driver says {e}");
    result::init().map_err(failed)?;
    let count = usize::try_from(result::device::get_count().map_err(failed)?).unwrap_or(0);
    let found = |number: usize| {
        let device = result::device::get(i32::try_from(number).unwrap_or(i32::MAX)).map_err(failed)?;
        let name = result::device::get_name(device).map_err(failed)?;
        // SAFETY: the handle was returned by the driver just now.
        let memory = unsafe { result::device::total_mem(device) }.ok();
        Ok((CudaDevice::new(number), Found { number, name, memory, software: false }))
    };
    (0..count).map(found).collect()
}
