//! Where the gradients of windows are kept between their tiles: in memory, or in files beside the results.
use crate::error::{Error, Result};
use crate::records::make_folder;
use std::path::{Path, PathBuf};
use tanglescope_gram::Gradients;
use tanglescope_kernels::{DType, Kernels, TensorMetadata};
use tanglescope_model::{read_all_tensors, write_tensors};

/// Name of the folder of gradients, inside that of the results.
const FOLDER: &str = "gradients";

/// How a file begins that is not whole yet.
const UNFINISHED: &str = ".unfinished-";

/// Files of gradients, one a window, each written whole and then renamed.
pub struct Files {
    folder: PathBuf,
}

impl Files {
    /// Those beside some results.
    pub fn new(out: &Path) -> Self {
        Self { folder: out.join(FOLDER) }
    }

    fn path(&self, window: usize) -> PathBuf {
        self.folder.join(format!("{window:05}.safetensors"))
    }

    /// Whether a window's are there.
    pub fn has(&self, window: usize) -> bool {
        self.path(window).is_file()
    }

    /// Writes a window's.
    pub fn write<B: Kernels>(&self, window: usize, gradients: &Gradients<B>) -> Result<()> {
        make_folder(&self.folder)?;
        let path = self.path(window);
        let beside = self.folder.join(format!("{UNFINISHED}{}-{window:05}.safetensors", std::process::id()));
        let tensors = gradients.by_parameter().iter().map(|(name, rows)| (name.clone(), rows.clone()));
        write_tensors::<B>(&beside, tensors.collect())?;
        std::fs::rename(&beside, &path).map_err(|e| Error::output(&path, format!("cannot be written: {e}")))
    }

    /// Reads a window's, of some rows, in a number type.
    pub fn read<B: Kernels>(
        &self,
        window: usize,
        rows: usize,
        dtype: DType,
        device: &B::Device,
    ) -> Result<Gradients<B>> {
        let found = read_all_tensors::<B>(&self.folder, &format!("{window:05}"), dtype, device)?;
        if let Some((name, found)) = found.iter().find(|(_, found)| found.shape()[0] != rows) {
            let problem = format!("`{name}` has shape {:?}, expected {rows} rows; delete this file", found.shape());
            return Err(Error::output(&self.path(window), problem));
        }
        Ok(Gradients::from_parts(rows, found))
    }

    /// Takes all away.
    pub fn clear(&self) -> Result<()> {
        match std::fs::remove_dir_all(&self.folder) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::output(&self.folder, e)),
            _ => Ok(()),
        }
    }
}
