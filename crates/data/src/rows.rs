//! Rows of a JSONL file, plain or gzip.
use crate::error::{Error, Result};
use flate2::read::MultiGzDecoder;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

/// Reads the lines of a file as bytes, without blank ones; `.gz` is unpacked.
///
/// # Errors
/// Where the file cannot be opened, read, or unpacked.
pub fn read_lines(path: &Path) -> Result<Vec<Vec<u8>>> {
    let file = File::open(path).map_err(|e| Error::file(path, e))?;
    if file.metadata().is_ok_and(|m| m.is_dir()) {
        return Err(Error::file(path, "is a folder; expected a .jsonl or .jsonl.gz file"));
    }
    let packed = path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gz"));
    let reader: Box<dyn Read> = if packed { Box::new(MultiGzDecoder::new(file)) } else { Box::new(file) };
    let mut lines = Vec::new();
    for line in BufReader::new(reader).split(b'\n') {
        let line = line.map_err(|e| Error::file(path, format!("cannot be read after {} rows: {e}", lines.len())))?;
        if !line.trim_ascii().is_empty() {
            lines.push(line);
        }
    }
    Ok(lines)
}
