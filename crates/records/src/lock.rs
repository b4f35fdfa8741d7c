//! Folders that one process writes to at a time.
use crate::error::{Error, Result};
use crate::whole::tidy;
use std::fs::{File, TryLockError};
use std::path::Path;

/// Keeps other processes out of a folder until it is dropped, and takes away what a killed one left half written there and in the folder's tables. On
/// a file system without locks it keeps nobody out.
///
/// # Errors
/// Where another process writes to the folder, or its lock file cannot be written.
pub fn lock(folder: &Path) -> Result<File> {
    let file = lock_file(&folder.join(".lock"), false)?;
    tidy(folder)?;
    let entries = std::fs::read_dir(folder).map_err(|e| Error::new(folder, e))?;
    let tables = entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir());
    tables.filter(|path| path.extension().is_some_and(|end| end == "parquet")).try_for_each(|table| tidy(&table))?;
    Ok(file)
}

/// Takes a lock on a file; a shared one keeps out only those that are not.
///
/// # Errors
/// Where another process has it, or the file cannot be written.
pub fn lock_file(path: &Path, shared: bool) -> Result<File> {
    let file = File::create(path).map_err(|e| Error::new(path, format!("cannot be written: {e}")))?;
    match if shared { file.try_lock_shared() } else { file.try_lock() } {
        Err(TryLockError::WouldBlock) => {
            Err(Error::new(path.parent().unwrap_or(path), "another run is writing to this folder"))
        }
        // taken, or on a file system without locks
        Ok(()) | Err(TryLockError::Error(_)) => Ok(file),
    }
}

/// Waits for a lock on a file.
///
/// # Errors
/// Where the file cannot be written.
pub fn wait_for_lock(path: &Path) -> Result<File> {
    let file = File::create(path).map_err(|e| Error::new(path, format!("cannot be written: {e}")))?;
    // a file system without locks has none to wait for
    let _ = file.lock();
    Ok(file)
}
