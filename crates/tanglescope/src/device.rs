//! Which device a run uses.
use crate::error::{Error, Result};
use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::str::FromStr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, Once, PoisonError};
use tanglescope_kernels::device::{
    Cuda, CudaDevice, FoundDevice, Offers, Vulkan, WgpuDevice, cublas, cuda_devices, in_tf32, offers_cuda,
    offers_vulkan, tf32, vulkan_devices,
};
use tanglescope_kernels::{Backend, DType, Flex, FlexDevice, Kernels, Memory};
use tanglescope_model::{Stopped, stopped_by};

/// Number type of weights and activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// 32 bits.
    F32,
    /// 32 bits; products round their factors to 11 significant bits (tf32), on CUDA devices that have it.
    Tf32,
    /// 64 bits, on the CPU.
    F64,
    /// 16 bits with the range of f32, on devices that have it; sums stay in f32.
    Bf16,
    /// 16 bits, on devices that have it; sums stay in f32.
    F16,
}

impl Precision {
    /// The number type by itself.
    pub(crate) fn dtype(self) -> DType {
        match self {
            Self::F32 | Self::Tf32 => DType::F32,
            Self::F64 => DType::F64,
            Self::Bf16 => DType::BF16,
            Self::F16 => DType::F16,
        }
    }

    /// The number type that a device computes with.
    pub(crate) fn on(self, device: &Device) -> Result<DType> {
        let dtype = self.dtype();
        match self {
            Self::F32 => return Ok(dtype),
            Self::Tf32 => {
                let Device::Cuda(on, ..) = device else {
                    let problem = format!(
                        "is of CUDA devices, and {device} is none; leave it out, or take option `device` = cuda"
                    );
                    return Err(Error::option("tf32", problem));
                };
                return tf32(on)
                    .map(|()| dtype)
                    .map_err(|problem| Error::option("tf32", format!("{device}: {problem}; leave it out")));
            }
            Self::F64 if device.is_cpu() => return Ok(dtype),
            Self::F64 => {
                return Err(Error::value("dtype", "f64", "runs on the CPU only; add option `device` = cpu"));
            }
            Self::Bf16 | Self::F16 => {}
        }
        let name = dtype_name(dtype);
        if device.is_cpu() {
            let problem =
                "runs on cuda and vulkan devices; on the CPU use f32 (bf16 checkpoints stay bf16 in memory there)";
            return Err(Error::value("dtype", name, problem));
        }
        match device.computes_with(dtype) {
            true => Ok(dtype),
            false => Err(Error::value(
                "dtype",
                name,
                format!("{device} does not compute with it; see `tanglescope devices`"),
            )),
        }
    }
}

/// Devices by their name: `cpu`, or `cuda` or `vulkan` by itself, with a number (`cuda:1`), with several (`cuda:0,1`) or with `all` (`cuda:all`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeviceName {
    /// The processor.
    Cpu,
    /// CUDA devices.
    Cuda(Numbers),
    /// Vulkan devices.
    Vulkan(Numbers),
}

/// Which devices of a kind, by number from 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Numbers {
    /// All that are no software.
    All,
    /// These.
    These(Vec<usize>),
}

impl std::fmt::Display for Numbers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::All => f.write_str("all"),
            Self::These(numbers) => f.write_str(&numbers.iter().map(usize::to_string).collect::<Vec<_>>().join(",")),
        }
    }
}

impl std::fmt::Display for DeviceName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(numbers) => write!(f, "cuda:{numbers}"),
            Self::Vulkan(numbers) => write!(f, "vulkan:{numbers}"),
        }
    }
}

impl FromStr for Numbers {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "all" {
            return Ok(Self::All);
        }
        let mut numbers = Vec::new();
        for number in text.split(',') {
            let known = number.parse().map_err(|_| format!("`{number}` is no device number"))?;
            if numbers.contains(&known) {
                return Err(format!("{known} is named twice"));
            }
            numbers.push(known);
        }
        Ok(Self::These(numbers))
    }
}

impl FromStr for DeviceName {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let bad = |problem: String| Error::value("device", name, problem);
        let (kind, numbers) = name.split_once(':').unwrap_or((name, "0"));
        let numbers: Numbers = numbers.parse().map_err(bad)?;
        match kind {
            "cpu" if numbers == Numbers::These(vec![0]) => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(numbers)),
            "vulkan" => Ok(Self::Vulkan(numbers)),
            _ => Err(bad("expected cpu, cuda, cuda:N, cuda:N,M, cuda:all, or the same of vulkan".to_owned())),
        }
    }
}

/// How products of f32 take their factors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Factors {
    /// As they are.
    Whole,
    /// Rounded to tf32.
    Tf32,
}

/// A device of this machine.
#[derive(Clone, Debug)]
pub(crate) enum Device {
    /// The processor.
    Cpu,
    /// A CUDA device.
    Cuda(CudaDevice, FoundDevice, Factors),
    /// A Vulkan device.
    Vulkan(WgpuDevice, FoundDevice),
}

/// Work that is the same on every device.
pub(crate) trait OnDevice {
    /// What the work returns.
    type Output;
    /// Does it.
    fn run<B: Kernels>(self, device: &B::Device) -> Result<Self::Output>;
}

impl Device {
    /// Devices by their name, one at least, or the best one: a CUDA device, a Vulkan GPU, or the CPU.
    ///
    /// # Errors
    /// Where there is no such device, or its driver is missing.
    pub fn choose(name: Option<&DeviceName>) -> Result<Vec<Self>> {
        let Some(name) = name else { return Ok(vec![Self::best()]) };
        let absent = |problem: String| Error::Device { device: name.to_string(), problem };
        let (found, numbers): (Vec<Self>, _) = match name {
            DeviceName::Cpu => return Ok(vec![Self::Cpu]),
            DeviceName::Cuda(numbers) => {
                let found = cuda_devices().map_err(absent)?;
                (found.into_iter().map(|(d, f)| Self::Cuda(d, f, Factors::Whole)).collect(), numbers)
            }
            DeviceName::Vulkan(numbers) => {
                let found = vulkan_devices().map_err(absent)?;
                (found.into_iter().map(|(d, f)| Self::Vulkan(d, f)).collect(), numbers)
            }
        };
        let count = found.len();
        let missing = || absent(format!("there are {count} such devices, numbered from 0; see `tanglescope devices`"));
        match numbers {
            Numbers::All => {
                let all: Vec<Self> = found.into_iter().filter(|device| !device.is_software()).collect();
                if all.is_empty() { Err(missing()) } else { Ok(all) }
            }
            Numbers::These(numbers) => {
                numbers.iter().map(|&number| found.get(number).cloned().ok_or_else(missing)).collect()
            }
        }
    }

    fn best() -> Self {
        let cuda = cuda_devices().ok().and_then(|found| found.into_iter().next());
        let vulkan = || vulkan_devices().ok()?.into_iter().find(|(_, found)| !found.software);
        match cuda {
            Some((device, found)) => Self::Cuda(device, found, Factors::Whole),
            None => vulkan().map_or(Self::Cpu, |(device, found)| Self::Vulkan(device, found)),
        }
    }

    /// Runs work on the device.
    pub(crate) fn run<W: OnDevice>(&self, work: W) -> Result<W::Output> {
        self.guard(|| match self {
            Self::Cpu => work.run::<Flex>(&FlexDevice),
            Self::Cuda(device, ..) => work.run::<Cuda>(device),
            Self::Vulkan(device, _) => work.run::<Vulkan>(device),
        })
    }

    /// Runs what may end before it is done: by a device that fails, a file that cannot be read any more, or a listener that wants an end.
    pub(crate) fn guard<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        match self {
            Self::Cpu => readable(work).unwrap_or_else(|other| resume_unwind(other)),
            Self::Cuda(.., Factors::Tf32) => self.guarded(|| in_tf32(work)),
            Self::Cuda(..) | Self::Vulkan(..) => self.guarded(work),
        }
    }

    /// The same device, as it multiplies in a precision that it [has](Precision::on).
    pub(crate) fn multiplying(self, precision: Precision) -> Self {
        match (self, precision) {
            (Self::Cuda(device, found, _), Precision::Tf32) => Self::Cuda(device, found, Factors::Tf32),
            (device, _) => device,
        }
    }

    /// What a number type is called in manifests, where products may round f32.
    pub(crate) fn number_type(&self, dtype: DType) -> &'static str {
        match (self, dtype) {
            (Self::Cuda(.., Factors::Tf32), DType::F32) => "tf32",
            _ => dtype_name(dtype),
        }
    }

    /// What it is called in manifests: with the library of its products, where there are two.
    pub(crate) fn recorded(&self) -> String {
        match (self, self.slower_products()) {
            (Self::Cuda(..), None) => format!("{self}, products by cuBLAS"),
            (Self::Cuda(..), Some(_)) => format!("{self}, products by CubeCL"),
            _ => self.to_string(),
        }
    }

    /// Runs work whose device may fail: that its memory is full, or its driver gave up, comes as a panic of a library.
    fn guarded<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        static HOOK: Once = Once::new();
        static AT_WORK: AtomicUsize = AtomicUsize::new(0);
        static FIRST: Mutex<Option<String>> = Mutex::new(None);
        let first = || FIRST.lock().unwrap_or_else(PoisonError::into_inner);
        // set once, since two calls that swap hooks would leave the wrong one; panics of a device come on threads of its library
        HOOK.call_once(|| {
            let before = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |panic| {
                if AT_WORK.load(Ordering::Relaxed) == 0 {
                    return before(panic);
                }
                let text = panic.payload_as_str().unwrap_or("no reason is given");
                // a kernel that does not compile comes with all of its source, and a device with every call that failed
                let words: String = text.split_whitespace().take(40).collect::<Vec<_>>().join(" ");
                first().get_or_insert(words);
            }));
        });
        if AT_WORK.fetch_add(1, Ordering::Relaxed) == 0 {
            // of a call before
            first().take();
        }
        let result = readable(work);
        AT_WORK.fetch_sub(1, Ordering::Relaxed);
        result.unwrap_or_else(|payload| {
            let own = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
            let own = || own.or_else(|| payload.downcast_ref::<String>().cloned());
            let said = first().take().or_else(own).unwrap_or_else(|| "no reason is given".to_owned());
            let bound = self.largest().map(|bytes| format!("; it takes no tensor of more than {bytes} bytes"));
            let problem = format!(
                "it failed ({said}){}; what is written stays, and a smaller option `memory` asks less of it",
                bound.unwrap_or_default()
            );
            Err(Error::Device { device: self.to_string(), problem })
        })
    }

    /// Whether it is the processor.
    #[must_use]
    pub fn is_cpu(&self) -> bool {
        matches!(self, Self::Cpu)
    }

    /// Whether it is a software driver, which computes on the processor.
    pub(crate) fn is_software(&self) -> bool {
        self.found().is_some_and(|found| found.software)
    }

    fn found(&self) -> Option<&FoundDevice> {
        match self {
            Self::Cpu => None,
            Self::Cuda(_, found, _) | Self::Vulkan(_, found) => Some(found),
        }
    }

    /// Bytes of a device's own memory, where its driver says.
    pub(crate) fn memory(&self) -> Option<usize> {
        self.found()?.memory
    }

    /// Bytes of the largest tensor that it takes, where memory is not the only bound; starts it.
    pub(crate) fn largest(&self) -> Option<u64> {
        match self {
            Self::Cpu => None,
            Self::Cuda(device, ..) => <Cuda>::largest(device),
            Self::Vulkan(device, _) => <Vulkan>::largest(device),
        }
    }

    /// Whether it computes with a number type.
    pub(crate) fn computes_with(&self, dtype: DType) -> bool {
        match self {
            Self::Cpu => matches!(dtype, DType::F32 | DType::F64),
            // kernels on devices sum in f32
            Self::Cuda(..) | Self::Vulkan(..) if dtype == DType::F64 => false,
            Self::Cuda(device, ..) => <Cuda>::supports_dtype(device, dtype),
            Self::Vulkan(device, _) => <Vulkan>::supports_dtype(device, dtype),
        }
    }

    fn describe(&self) -> DeviceReport {
        let dtypes = [(DType::F64, "f64"), (DType::F32, "f32"), (DType::BF16, "bf16"), (DType::F16, "f16")];
        let dtypes = dtypes.into_iter().filter(|(dtype, _)| self.computes_with(*dtype)).map(|(_, name)| name).collect();
        let mut system = sysinfo::System::new();
        system.refresh_memory();
        let (name, memory_bytes, features) = match self {
            Self::Cpu => (
                "cpu".to_owned(),
                usize::try_from(system.total_memory()).ok(),
                vec![format!("{} threads", rayon::current_num_threads())],
            ),
            Self::Cuda(device, found, _) => {
                let mut all = features(&offers_cuda(device));
                all.push(self.slower_products().unwrap_or_else(|| "products by cuBLAS".to_owned()));
                all.extend(tf32(device).is_ok().then(|| "tf32 by option `tf32`".to_owned()));
                (format!("cuda:{}", found.number), found.memory, all)
            }
            Self::Vulkan(device, found) => {
                let mut all = features(&offers_vulkan(device));
                if found.software {
                    all.push("a software driver on the CPU: for tests".to_owned());
                }
                (format!("vulkan:{}", found.number), found.memory, all)
            }
        };
        let software = self.is_software();
        let found = self.found().map(|found| found.name.clone());
        DeviceReport { shown: self.to_string(), device: name, name: found, memory_bytes, software, dtypes, features }
    }
}

/// Runs work; where a file of a model could not be read any more, or the listener wanted an end, that is its error.
fn readable<T>(work: impl FnOnce() -> Result<T>) -> std::result::Result<Result<T>, Box<dyn Any + Send>> {
    catch_unwind(AssertUnwindSafe(work)).or_else(|payload| match payload.downcast::<Stopped>() {
        Ok(_) => Ok(Err(Error::Stopped)),
        Err(payload) => Ok(Err(stopped_by(payload)?.into())),
    })
}

/// Name of a number type.
pub(crate) fn dtype_name(dtype: DType) -> &'static str {
    match dtype {
        DType::F64 => "f64",
        DType::BF16 => "bf16",
        DType::F16 => "f16",
        _ => "f32",
    }
}

/// A device as it is listed.
#[derive(Clone, Debug, serde::Serialize)]
pub struct DeviceReport {
    /// For reading.
    #[serde(skip)]
    pub shown: String,
    /// Its name as an option.
    pub device: String,
    /// What its driver calls it.
    pub name: Option<String>,
    /// Bytes of memory, where the driver says.
    pub memory_bytes: Option<usize>,
    /// Whether it is a software driver, which computes on the processor.
    pub software: bool,
    /// Number types that it computes with.
    pub dtypes: Vec<&'static str>,
    /// What kernels make use of.
    pub features: Vec<String>,
}

/// The devices of this machine.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Devices {
    /// All of them.
    pub devices: Vec<DeviceReport>,
    /// Why there are none of a kind.
    pub missing: Vec<String>,
    /// The one that is used where none is named.
    pub default: String,
}

/// What devices, or the best one where none is named, are called.
///
/// # Errors
/// Where there is no such device, or its driver is missing.
pub fn device_in_use(name: Option<&DeviceName>) -> Result<String> {
    Ok(names(&Device::choose(name)?))
}

/// What some devices are called.
pub(crate) fn names(devices: &[Device]) -> String {
    devices.iter().map(Device::to_string).collect::<Vec<_>>().join(", ")
}

/// Lists the devices of this machine.
#[must_use]
pub fn devices() -> Devices {
    let mut devices = vec![Device::Cpu];
    let mut missing = Vec::new();
    match cuda_devices() {
        Ok(found) => {
            devices.extend(found.into_iter().map(|(device, found)| Device::Cuda(device, found, Factors::Whole)));
        }
        Err(problem) => missing.push(format!("cuda: {problem}")),
    }
    match vulkan_devices() {
        Ok(found) => devices.extend(found.into_iter().map(|(device, found)| Device::Vulkan(device, found))),
        Err(problem) => missing.push(format!("vulkan: {problem}")),
    }
    let devices = devices.iter().map(Device::describe).collect();
    Devices { devices, missing, default: Device::best().to_string() }
}

/// What kernels make use of, in words.
fn features(offers: &Offers) -> Vec<String> {
    let gib = offers.largest as f64 / f64::from(1u32 << 30);
    let mut out = vec![
        format!("{} KiB shared by a group of threads", offers.shared >> 10),
        format!("tensors of up to {gib:.1} GiB"),
    ];
    if !offers.matrix_units.is_empty() {
        out.push(format!("matrix units for {}", offers.matrix_units.join(" and ")));
    }
    out
}

impl Device {
    /// Why products on a CUDA device are not the library's that is made for it.
    pub(crate) fn slower_products(&self) -> Option<String> {
        let Self::Cuda(device, ..) = self else { return None };
        let problem = cublas(device).err()?;
        Some(format!("products by CubeCL, up to seven times slower than cuBLAS: {problem}"))
    }
}

impl std::fmt::Display for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Cpu => write!(f, "cpu ({} threads)", rayon::current_num_threads()),
            Self::Cuda(_, found, _) => write!(f, "cuda:{} ({})", found.number, found.name),
            Self::Vulkan(_, found) => write!(f, "vulkan:{} ({})", found.number, found.name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Device;

    #[test]
    fn a_library_that_panics_is_a_device_that_failed() {
        let failed = Device::Cpu.guarded::<()>(|| panic!("memory\n  is full")).unwrap_err().to_string();
        assert!(failed.contains("option `device` = cpu") && failed.contains("it failed (memory is full)"), "{failed}");
        assert_eq!(Device::Cpu.guarded(|| Ok(7)).unwrap(), 7);
    }
}
