//! The devices that a run can be put on, found without starting one that is not there.
pub use burn_cuda::{Cuda, CudaDevice};
pub use burn_wgpu::{Vulkan, WgpuDevice};

/// What a device offers to kernels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offers {
    /// Bytes of memory that the threads of a group share.
    pub shared: usize,
    /// Bytes of the largest tensor that it takes.
    pub largest: u64,
    /// Number types that its matrix units multiply.
    pub matrix_units: Vec<&'static str>,
}

fn offers<R: burn_cubecl::CubeRuntime>(device: &R::CubeDevice) -> Offers {
    let client = R::client(device);
    let has = |dtype| crate::on_chip::limits(&client, dtype).matrix_units.is_some();
    let types = [(crate::DType::BF16, "bf16"), (crate::DType::F16, "f16")];
    Offers {
        shared: crate::on_chip::limits(&client, crate::DType::F32).shared,
        largest: client.properties().memory.max_page_size,
        matrix_units: types.into_iter().filter(|(dtype, _)| has(*dtype)).map(|(_, name)| name).collect(),
    }
}

/// What a Vulkan device offers; starts it.
#[must_use]
pub fn offers_vulkan(device: &WgpuDevice) -> Offers {
    offers::<burn_wgpu::WgpuRuntime>(device)
}

/// What a CUDA device offers; starts it.
#[must_use]
pub fn offers_cuda(device: &CudaDevice) -> Offers {
    offers::<cubecl::cuda::CudaRuntime>(device)
}

/// Whether products on a CUDA device are cuBLAS's.
///
/// # Errors
/// Says what is missing, so that they are CubeCL's.
pub fn cublas(device: &CudaDevice) -> Result<(), String> {
    crate::product::cublas::check(device)
}

/// Whether products of f32 on a CUDA device can round their factors to tf32 (11 significant bits), which matrix units multiply.
///
/// # Errors
/// Says what is missing.
pub fn tf32(device: &CudaDevice) -> Result<(), String> {
    crate::product::cublas::check_tf32(device)
}

/// Does work whose products of f32 round their factors to [tf32] on CUDA devices, as long as this thread starts them.
pub fn in_tf32<T>(work: impl FnOnce() -> T) -> T {
    crate::product::cublas::in_tf32(work)
}

/// Whether this thread does [such work](in_tf32).
#[must_use]
pub fn is_in_tf32() -> bool {
    crate::product::cublas::is_in_tf32()
}

/// A device of this machine that a run can be put on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundDevice {
    /// Number after the colon of `--device`.
    pub number: usize,
    /// What the driver calls it.
    pub name: String,
    /// Bytes of its own memory, where the driver says.
    pub memory: Option<usize>,
    /// Whether it is a driver in software, which is for tests only.
    pub software: bool,
}

/// Bytes of a Vulkan device's own memory: its largest heap that is local to the device.
#[allow(unsafe_code)]
fn memory(adapter: &wgpu::Adapter) -> Option<usize> {
    // SAFETY: the adapter was made by wgpu's Vulkan backend just now, and nothing of it is destroyed or kept.
    let heaps = unsafe {
        let adapter = adapter.as_hal::<wgpu::hal::api::Vulkan>()?;
        let instance = adapter.shared_instance().raw_instance();
        instance.get_physical_device_memory_properties(adapter.raw_physical_device())
    };
    // VK_MEMORY_HEAP_DEVICE_LOCAL_BIT
    let local = |heap: &u32| heap & 1 != 0;
    let heaps = heaps.memory_heaps.into_iter().take(heaps.memory_heap_count as usize);
    heaps.filter(|heap| local(&heap.flags.as_raw())).filter_map(|heap| usize::try_from(heap.size).ok()).max()
}

/// Vulkan devices: discrete, integrated and virtual GPUs, then software ones.
///
/// # Errors
/// Says what to install where there is none.
pub fn vulkan_devices() -> Result<Vec<(WgpuDevice, FoundDevice)>, String> {
    use wgpu::DeviceType::{Cpu, DiscreteGpu, IntegratedGpu, VirtualGpu};
    let descriptor = wgpu::InstanceDescriptor {
        backends: wgpu::Backends::VULKAN,
        ..wgpu::InstanceDescriptor::new_without_display_handle()
    };
    let instance = wgpu::Instance::new(descriptor);
    let adapters = futures_lite::future::block_on(instance.enumerate_adapters(wgpu::Backends::VULKAN));
    let infos: Vec<(wgpu::AdapterInfo, Option<usize>)> = adapters.iter().map(|a| (a.get_info(), memory(a))).collect();
    let mut devices = Vec::new();
    for kind in [DiscreteGpu, IntegratedGpu, VirtualGpu, Cpu] {
        for (i, (info, memory)) in infos.iter().filter(|(info, _)| info.device_type == kind).enumerate() {
            let device = match kind {
                DiscreteGpu => WgpuDevice::DiscreteGpu(i),
                IntegratedGpu => WgpuDevice::IntegratedGpu(i),
                VirtualGpu => WgpuDevice::VirtualGpu(i),
                // burn addresses the first software device only
                _ if i == 0 => WgpuDevice::Cpu,
                _ => continue,
            };
            let number = devices.len();
            devices.push((
                device,
                FoundDevice { number, name: info.name.clone(), memory: *memory, software: kind == Cpu },
            ));
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
#[allow(unsafe_code)]
pub fn cuda_devices() -> Result<Vec<(CudaDevice, FoundDevice)>, String> {
    use cudarc::driver::result;
    // SAFETY: both only try to open the library by its name.
    if !unsafe { cudarc::driver::sys::is_culib_present() } {
        return Err("no CUDA device: the NVIDIA driver (libcuda.so.1) is not installed".to_owned());
    }
    // SAFETY: as above.
    if !unsafe { cudarc::nvrtc::sys::is_culib_present() } {
        return Err("no CUDA device: NVRTC (libnvrtc.so of the CUDA toolkit) is not installed".to_owned());
    }
    // kernels include what it has; CubeCL ends the process where it finds no toolkit
    let headers = cubecl::cuda::install::cuda_path().map(|toolkit| toolkit.join("include"));
    if !headers.as_ref().is_some_and(|folder| folder.join("cuda_fp16.h").is_file()) {
        return Err("no CUDA device: the headers of the CUDA toolkit (include/cuda_fp16.h) are not in CUDA_PATH, \
                    /usr/local/cuda or /opt/cuda"
            .to_owned());
    }
    let failed = |e: result::DriverError| format!("no CUDA device: the driver says {e}");
    result::init().map_err(failed)?;
    let count = usize::try_from(result::device::get_count().map_err(failed)?).unwrap_or(0);
    let found = |number: usize| {
        let device = result::device::get(i32::try_from(number).unwrap_or(i32::MAX)).map_err(failed)?;
        let name = result::device::get_name(device).map_err(failed)?;
        // SAFETY: the handle was returned by the driver just now.
        let memory = unsafe { result::device::total_mem(device) }.ok();
        Ok((CudaDevice::new(number), FoundDevice { number, name, memory, software: false }))
    };
    (0..count).map(found).collect()
}
