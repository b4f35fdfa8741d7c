//! What the devices of this machine do in a second, as `bench` last measured it: a small file in the user's cache folder.
//!
//! The two figures decide between the Gram reductions of a map, and predict the time of a run.
use crate::device::Device;
use crate::error::{Error, Result};
use crate::records::make_folder;
use std::collections::BTreeMap;
use std::path::PathBuf;
use tanglescope_kernels::DType;
use tanglescope_kernels::cost::Rates;
use tanglescope_records::manifest::StoredRates;
use tanglescope_records::write_whole;

/// Rates as they are written into files.
pub fn stored(rates: Rates) -> StoredRates {
    StoredRates { operations_per_second: rates.operations, bytes_per_second: rates.bytes, triangles: rates.triangles }
}

/// Rates as they were written into a file.
pub fn read(stored: StoredRates) -> Rates {
    Rates { operations: stored.operations_per_second, bytes: stored.bytes_per_second, triangles: stored.triangles }
}

/// Where measured rates are kept; none where the user has no cache folder.
fn path() -> Option<PathBuf> {
    let folder = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache =
        folder("XDG_CACHE_HOME").or_else(|| folder("LOCALAPPDATA")).or_else(|| Some(folder("HOME")?.join(".cache")))?;
    Some(cache.join("tanglescope").join("rates.json"))
}

fn key(device: &Device, dtype: DType) -> String {
    format!("{device}, {}", device.number_type(dtype))
}

/// All that was measured. A file that is not there or not readable is one without measurements.
fn all() -> BTreeMap<String, StoredRates> {
    let text = path().and_then(|path| std::fs::read(path).ok()).unwrap_or_default();
    serde_json::from_slice(&text).unwrap_or_default()
}

/// Rates of a device in a number type, and whether they were measured.
pub fn of(device: &Device, dtype: DType) -> (Rates, bool) {
    let sound = |rates: &StoredRates| rates.operations_per_second > 0.0 && rates.bytes_per_second > 0.0;
    match all().get(&key(device, dtype)).filter(|rates| sound(rates)) {
        Some(&stored) => (Rates { triangles: device.is_cpu(), ..read(stored) }, true),
        None => (if device.is_cpu() { Rates::CPU } else { Rates::GPU }, false),
    }
}

/// Keeps what was measured. Returns where, or nothing where the user has no cache folder.
pub fn keep(device: &Device, dtype: DType, rates: Rates) -> Result<Option<PathBuf>> {
    let Some(path) = path() else { return Ok(None) };
    let mut all = all();
    all.insert(key(device, dtype), stored(rates));
    let folder = path.parent().unwrap_or(&path);
    make_folder(folder)?;
    let mut text = serde_json::to_vec_pretty(&all).map_err(|e| Error::output(&path, e))?;
    text.push(b'\n');
    write_whole(&path, &text)?;
    Ok(Some(path))
}
