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
///
/// # Errors
/// As [`write_whole`].
pub fn write_with(path: &Path, content: impl FnOnce(&mut File) -> io::Result<()>) -> Result<()> {
    let refuse = |e: io::Error| Error::new(path, format!("cannot be written: {e}"));
    let asked = path;
    // the file that a link leads to is the one that is meant
    let real = if path.is_symlink() { Some(path.canonicalize().map_err(refuse)?) } else { None };
    let path = real.as_deref().unwrap_or(path);
    if path.metadata().is_ok_and(|of| !of.is_file() && !of.is_dir()) {
        // a device or a pipe has no other place to be written to first
        return File::options().write(true).open(path).and_then(|mut file| content(&mut file)).map_err(refuse);
    }
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
    write().map_err(|e| Error::new(asked, format!("cannot be written: {e}")))
}

#[cfg(test)]
mod tests {
    use super::{write_whole, write_with};

    #[cfg(unix)]
    #[test]
    fn links_are_followed_and_devices_are_not_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let (file, link) = (folder.path().join("a"), folder.path().join("link"));
        std::fs::write(&file, "old").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        write_whole(&link, b"new").unwrap();
        assert!(link.is_symlink());
        assert_eq!(std::fs::read(&file).unwrap(), b"new");
        write_whole(std::path::Path::new("/dev/null"), b"x").unwrap();
        assert!(!std::path::Path::new("/dev/null").is_file());
        std::fs::remove_file(&file).unwrap();
        assert!(write_whole(&link, b"x").unwrap_err().to_string().contains("link: cannot be written"));
    }

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
