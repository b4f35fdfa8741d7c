//! CUDA where there is no GPU: tests/cuda-on-cpu in the place of the driver, of NVRTC and of cuBLAS.
#![allow(dead_code)] // each test crate uses its own part
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The folder of the libraries and of compiled kernels. Without g++ the tests that need it are left out, but not on CI.
pub fn libraries() -> Option<&'static Path> {
    static BUILT: OnceLock<Option<PathBuf>> = OnceLock::new();
    let build = || {
        let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join("cuda-on-cpu");
        if Command::new("g++").arg("--version").output().is_err() {
            assert!(std::env::var_os("CI").is_none(), "g++ is not installed");
            eprintln!("left out: g++ is not installed");
            return None;
        }
        let built = Command::new("sh").arg(sources().join("build.sh")).arg(&out).output().unwrap();
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
        Some(out)
    };
    BUILT.get_or_init(build).as_deref()
}

/// The folder tests/cuda-on-cpu.
pub fn sources() -> PathBuf {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    let of = package.ancestors().map(|folder| folder.join("tests/cuda-on-cpu")).find(|folder| folder.is_dir());
    of.unwrap_or_else(|| panic!("no folder above {} has tests/cuda-on-cpu", package.display()))
}

/// Devices that are not there: what they can do, and in which order their threads get their turn.
#[derive(Clone, Copy)]
pub struct Emulated {
    /// Compute capability, as 80 or 90.
    pub capability: &'static str,
    /// `forward`, `reverse`, or `random:SEED`.
    pub order: &'static str,
    /// How many.
    pub devices: &'static str,
    /// Whether cuBLAS is found beside them.
    pub cublas: bool,
}

pub const HOPPER: Emulated = Emulated { capability: "90", order: "forward", devices: "1", cublas: false };
pub const AMPERE: Emulated = Emulated { capability: "80", order: "reverse", devices: "1", cublas: false };

impl Emulated {
    /// Lets a command find them.
    pub fn found_by<'a>(&self, command: &'a mut Command, libraries: &Path) -> &'a mut Command {
        let mut paths = vec![libraries.to_owned()];
        paths.extend(self.cublas.then(|| libraries.join("cublas")));
        command
            .env("CUDA_PATH", libraries)
            .env("LD_LIBRARY_PATH", std::env::join_paths(paths).unwrap())
            .env("CUDA_ON_CPU_CACHE", libraries.join("kernels"))
            .env("CUDA_ON_CPU_ARCH", self.capability)
            .env("CUDA_ON_CPU_ORDER", self.order)
            .env("CUDA_ON_CPU_DEVICES", self.devices)
    }
}

/// What a program's kernels did wrong, by its standard error, but for what is known of libraries.
pub fn faults(stderr: &str) -> Vec<&str> {
    let told = stderr.lines().filter(|line| line.starts_with("CUDA on the CPU: "));
    // cubek's products of 16 bits read a fragment lane by lane after its store, without a __syncwarp between
    let of_cubek = |line: &&str| line.contains(": matmul_entry_") && line.contains(": race by the letter: ");
    // what CubeCL guards is no access
    let guarded = |line: &&str| line.contains(": copy_kernel_") && line.contains(": guarded ");
    let asked_for = |line: &&str| line.ends_with(" fails, as is asked for");
    told.filter(|line| !of_cubek(line) && !guarded(line) && !asked_for(line)).collect()
}
