//! Lavapipe, the Vulkan driver in software of Debian's mesa-vulkan-drivers.
#![allow(dead_code)] // each test crate uses its own part
use std::path::{Path, PathBuf};

/// The driver's description, for `VK_DRIVER_FILES`. Without it the tests that need it are left out, but not on CI.
pub fn lavapipe() -> Option<PathBuf> {
    let folder = Path::new("/usr/share/vulkan/icd.d");
    let files = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let found = files.filter(|path| path.file_name().is_some_and(|n| n.to_string_lossy().starts_with("lvp_icd"))).min();
    assert!(found.is_some() || std::env::var_os("CI").is_none(), "install libvulkan1 and mesa-vulkan-drivers");
    found
}

/// Makes lavapipe the driver of this process, before its first look for devices; false where there is none.
#[allow(unsafe_code)]
pub fn use_lavapipe() -> bool {
    static FOUND: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
    *FOUND.get_or_init(|| {
        let driver = lavapipe();
        if let Some(driver) = &driver {
            // SAFETY: once, before the first look for devices, and nothing else in these tests reads the environment.
            unsafe { std::env::set_var("VK_DRIVER_FILES", driver) };
        }
        driver.is_some()
    })
}
