//! Files that are written whole or not at all.
use crate::error::{Error, Result};
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

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

/// Files that processes which are gone were writing in the place of a file.
fn abandoned(folder: &Path, name: &str) -> Vec<PathBuf> {
    let is_abandoned = |of: &str| {
        let Some((process, rest)) = of.strip_prefix(UNFINISHED).and_then(|rest| rest.split_once('-')) else {
            return false;
        };
        let of_this = rest.split_once('-').is_some_and(|(_, of)| of == name);
        // where processes are not files, nothing is known of them
        let gone = Path::new("/proc/self").exists() && !Path::new("/proc").join(process).exists();
        of_this && process.parse::<u32>().is_ok() && gone
    };
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter(|entry| is_abandoned(&entry.file_name().to_string_lossy())).map(|entry| entry.path()).collect()
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
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    // another process may have taken one away by now
    abandoned(folder, &name).into_iter().for_each(|path| drop(std::fs::remove_file(path)));
    let write = || -> io::Result<()> {
        // the process is in the name, so that the next one knows whether it is still there
        let (prefix, suffix) = (format!("{UNFINISHED}{}-", std::process::id()), format!("-{name}"));
        let mut beside = tempfile::Builder::new().prefix(&prefix).suffix(&suffix).tempfile_in(folder)?;
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
    fn what_a_killed_process_was_writing_goes_with_the_next_write() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        // no process has such a number; the other file is one of a process that runs, and another of another file
        let (gone, running) =
            (".unfinished-4294967294-x1-a.json", format!(".unfinished-{}-x2-a.json", std::process::id()));
        for name in [gone, &running, ".unfinished-4294967294-x3-b.json"] {
            std::fs::write(at(name), "half").unwrap();
        }
        write_whole(&at("a.json"), b"whole").unwrap();
        assert!(!at(gone).exists() && at(&running).exists() && at(".unfinished-4294967294-x3-b.json").exists());
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
