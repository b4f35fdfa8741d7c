//! SHA-256 of files, which stand for what they hold.
use crate::error::{Error, Result};
use crate::stored::Held;
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// A digest in lower-case hexadecimal digits.
#[must_use]
pub fn hex(digest: &[u8]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// One hash of several, or the one.
pub(crate) fn hash_of_hashes(mut hashes: Vec<String>) -> String {
    if hashes.len() == 1 { hashes.remove(0) } else { text_hash(&hashes.concat()) }
}

/// SHA-256 of a text.
#[must_use]
pub fn text_hash(text: &str) -> String {
    hex(&Sha256::digest(text))
}

/// SHA-256 of a tensor in memory, with its name, shape and type.
pub(crate) fn held_hash(name: &str, shape: &[usize], held: &Held) -> String {
    let mut hasher = Sha256::new();
    hasher.update(format!("{name} {shape:?} {}\n", held.number.name()));
    hasher.update(&held.bytes);
    hex(&hasher.finalize())
}

/// SHA-256 of a file.
///
/// # Errors
/// Where it cannot be read.
pub fn file_hash(path: &Path) -> Result<String> {
    let mut file = File::open(path).map_err(|e| Error::file(path, e))?;
    let (mut hasher, mut buffer) = (Sha256::new(), vec![0; 1 << 20]);
    loop {
        match file.read(&mut buffer).map_err(|e| Error::file(path, e))? {
            0 => return Ok(hex(&hasher.finalize())),
            n => hasher.update(&buffer[..n]),
        }
    }
}
