//! Files that are written whole or not at all.
use crate::error::{Error, Result};
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

/// Writes a file whole or not at all: into one beside it, flushed to the disk, which is then renamed.
///
/// # Errors
/// Names the file where the disk is full or the folder not writable; what was there before is untouched then.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    write_with(path, |file| file.write_all(bytes))
}

/// How the names of files begin that are not whole yet.
const UNFINISHED: &str = ".unfinished-";

/// Takes away what a process was writing into a folder when it was killed. The folder has to be the caller's alone.
///
/// # Errors
/// Where a file cannot be removed.
pub fn tidy(folder: &Path) -> Result<()> {
    let entries = std::fs::read_dir(folder).map_err(|e| Error::new(folder, e))?;
    let unfinished = entries.flatten().filter(|entry| entry.file_name().to_string_lossy().starts_with(UNFINISHED));
    unfinished
        .map(|entry| entry.path())
        .try_for_each(|path| std::fs::remove_file(&path).map_err(|e| Error::new(&path, e)))
}

/// [`write_whole`] of what a function writes.
pub(crate) fn write_with(path: &Path, content: impl FnOnce(&mut File) -> io::Result<()>) -> Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let write = || -> io::Result<()> {
        let mut beside = tempfile::Builder::new().prefix(UNFINISHED).tempfile_in(folder)?;
        content(beside.as_file_mut())?;
        beside.as_file().sync_all()?;
        // as any new file; a temporary one is its owner's alone
        #[cfg(unix)]
        beside.as_file().set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
        beside.persist(path)?;
        // the name is on the disk too, before anything is built on it
        #[cfg(unix)]
        File::open(folder)?.sync_all()?;
        Ok(())
    };
    write().map_err(|e| Error::new(path, format!("cannot be written: {e}")))
}

#[cfg(test)]
mod tests {
    use super::{write_whole, write_with};

    #[test]
    fn a_write_that_fails_leaves_what_was_there_and_nothing_beside_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.json");
        write_whole(&path, b"first").unwrap();
        let fails = write_with(&path, |file| {
            use std::io::Write;
            file.write_all(b"half")?;
            Err(std::io::Error::other("full"))
        });
        assert!(fails.unwrap_err().to_string().ends_with("a.json: cannot be written: full"));
        assert_eq!(std::fs::read(&path).unwrap(), b"first");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
