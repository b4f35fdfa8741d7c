//! Which device a run uses.
use crate::error::{Error, Result};
use tanglescope_kernels::device::{Cuda, CudaDevice, Found, Vulkan, WgpuDevice, cuda_devices, vulkan_devices};
use tanglescope_kernels::{Flex, FlexDevice};

/// A device of this machine.
#[derive(Clone, Debug)]
pub enum Device {
    /// The processor.
    Cpu,
    /// A CUDA device.
    Cuda(CudaDevice, Found),
    /// A Vulkan device.
    Vulkan(WgpuDevice, Found),
}

/// Work that is the same on every device.
pub trait OnDevice {
    /// What the work returns.
    type Output;
    /// Does it.
    fn run<B: tanglescope_kernels::Kernels>(self, device: &B::Device) -> Self::Output;
}

impl Device {
    /// The device that `--device` names; without it a CUDA device, a Vulkan GPU, or the CPU.
    pub fn choose(name: Option<&str>) -> Result<Self> {
        let Some(name) = name else { return Ok(Self::best()) };
        let bad = |problem: String| Error::option(format!("--device {name}"), problem);
        let (kind, number) = match name.split_once(':') {
            None => (name, 0),
            Some((kind, number)) => (kind, number.parse().map_err(|_| bad(format!("`{number}` is no device number")))?),
        };
        let missing =
            |count: usize| bad(format!("there are {count} such devices, numbered from 0; see `tanglescope devices`"));
        match kind {
            "cpu" if number == 0 => Ok(Self::Cpu),
            "cuda" => {
                let found = cuda_devices().map_err(bad)?;
                let count = found.len();
                found.into_iter().nth(number).map(|(d, f)| Self::Cuda(d, f)).ok_or_else(|| missing(count))
            }
            "vulkan" => {
                let found = vulkan_devices().map_err(bad)?;
                let count = found.len();
                found.into_iter().nth(number).map(|(d, f)| Self::Vulkan(d, f)).ok_or_else(|| missing(count))
            }
            _ => Err(bad("expected cpu, cuda, cuda:N, vulkan or vulkan:N".to_owned())),
        }
    }

    fn best() -> Self {
        let cuda = cuda_devices().ok().and_then(|found| found.into_iter().next());
        let vulkan = || vulkan_devices().ok()?.into_iter().find(|(_, found)| !found.software);
        match cuda {
            Some((device, found)) => Self::Cuda(device, found),
            None => vulkan().map_or(Self::Cpu, |(device, found)| Self::Vulkan(device, found)),
        }
    }

    /// Runs work on the device.
    pub fn run<W: OnDevice>(&self, work: W) -> W::Output {
        match self {
            Self::Cpu => work.run::<Flex>(&FlexDevice),
            Self::Cuda(device, _) => work.run::<Cuda>(device),
            Self::Vulkan(device, _) => work.run::<Vulkan>(device),
        }
    }

    /// Whether it is the processor.
    pub fn is_cpu(&self) -> bool {
        matches!(self, Self::Cpu)
    }
}

impl std::fmt::Display for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Cpu => write!(f, "cpu ({} threads)", rayon::current_num_threads()),
            Self::Cuda(_, found) => write!(f, "cuda:{} ({})", found.number, found.name),
            Self::Vulkan(_, found) => write!(f, "vulkan:{} ({})", found.number, found.name),
        }
    }
}

/// `tanglescope devices`.
pub fn list() {
    println!("{}", Device::Cpu);
    match cuda_devices() {
        Err(problem) => println!("cuda: {problem}"),
        Ok(found) => {
            for (_, found) in found {
                let memory = found.memory.map_or(String::new(), |m| format!(", {:.1} GiB", m as f64 / 2f64.powi(30)));
                println!("cuda:{} ({}{memory})", found.number, found.name);
            }
        }
    }
    match vulkan_devices() {
        Err(problem) => println!("vulkan: {problem}"),
        Ok(found) => {
            for (_, found) in found {
                let software = if found.software { ", a program on the CPU: for tests" } else { "" };
                println!("vulkan:{} ({}{software})", found.number, found.name);
            }
        }
    }
    println!("used without --device: {}", Device::best());
}
