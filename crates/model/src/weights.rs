//! The tensors of a checkpoint, each to be taken once, onto a device.
use crate::error::{Error, Result};
use half::{bf16, f16};
use rayon::prelude::*;
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use tanglescope_checkpoint::{Layout, Stored, Tensors};
use tanglescope_kernels::{DType, FloatTensor, Kernels, TensorData};

/// The tensors of a checkpoint, each to be taken once.
#[derive(Debug, Default)]
pub(crate) struct Weights {
    tensors: Arc<Tensors>,
    taken: BTreeSet<String>,
    /// Whether every tensor that is asked for is made up.
    synthetic: bool,
}

impl Weights {
    /// Opens the checkpoint of a folder; see [`Tensors::open`].
    pub fn open(folder: &Path, stem: &str) -> Result<Self> {
        Ok(Self { tensors: Arc::new(Tensors::open(folder, stem)?), ..Self::default() })
    }

    /// The same with quantised tensors as their values; see [`Tensors::put_together`].
    pub fn put_together(self, fp8_block: Option<[usize; 2]>) -> Result<Self> {
        let tensors = Arc::try_unwrap(self.tensors).unwrap_or_else(|shared| Tensors::clone(&shared));
        Ok(Self { tensors: Arc::new(tensors.put_together(fp8_block)?), ..self })
    }

    /// The same tensors, none of them taken.
    pub fn again(&self) -> Self {
        Self { tensors: self.tensors.clone(), taken: BTreeSet::new(), synthetic: self.synthetic }
    }

    /// Weights that are no file's: matrices of small numbers without a pattern, gains of one. For measurements of speed.
    pub fn synthetic() -> Self {
        Self { synthetic: true, ..Self::default() }
    }

    /// Whether a tensor is stored.
    pub fn has(&self, name: &str) -> bool {
        self.synthetic || self.tensors.get(name).is_some()
    }

    /// Names of all stored tensors.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.names()
    }

    /// Shape of a stored tensor.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(Stored::shape)
    }

    /// Ways in which tensors are quantised.
    pub fn quantised(&self) -> BTreeSet<&'static str> {
        let stored = self.tensors.names().filter_map(|name| self.tensors.get(name));
        stored.filter(|stored| stored.is_quantised()).map(Stored::kind).collect()
    }

    /// Marks a stored tensor as accounted for without reading it.
    pub fn ignore(&mut self, name: &str) {
        self.taken.insert(name.to_owned());
    }

    /// Reads a tensor of a given stored shape in a number type, or a matrix as it is stored where products take that.
    ///
    /// # Errors
    /// Where it is missing, of another shape or type, or has a value that is not finite.
    pub fn take<B: Kernels>(
        &mut self,
        name: &str,
        shape: &[usize],
        layout: Layout,
        dtype: DType,
        device: &B::Device,
    ) -> Result<FloatTensor<B>> {
        if self.synthetic {
            return Ok(B::upload(made_up(shape, layout).convert_dtype(dtype), device));
        }
        let Some(stored) = self.tensors.get(name) else {
            return Err(Error::tensor(
                self.tensors.folder(),
                name,
                format!("missing; expected one of shape {shape:?}"),
            ));
        };
        if stored.shape() != shape {
            let problem = format!("found shape {}, expected {shape:?}", brief_shape(stored.shape()));
            return Err(Error::tensor(self.tensors.path_of(name), name, problem));
        }
        let kept = layout.kept(shape);
        let narrow = kept.len() == 2 && stored.fits_bf16() && B::takes_stored(DType::BF16);
        let data = match dtype {
            _ if narrow => TensorData::new(self.tensors.read::<bf16>(name, layout)?, kept),
            DType::F64 => TensorData::new(self.tensors.read::<f64>(name, layout)?, kept),
            DType::BF16 => TensorData::new(self.tensors.read::<bf16>(name, layout)?, kept),
            DType::F16 => TensorData::new(self.tensors.read::<f16>(name, layout)?, kept),
            _ => TensorData::new(self.tensors.read::<f32>(name, layout)?, kept),
        };
        self.taken.insert(name.to_owned());
        Ok(B::upload(data, device))
    }

    /// Whether two stored tensors hold the same numbers.
    ///
    /// # Errors
    /// Where one cannot be read.
    pub fn equal(&self, a: &str, b: &str) -> Result<bool> {
        self.equal_to(a, self, b)
    }

    /// Whether a stored tensor holds the same numbers as one stored elsewhere.
    ///
    /// # Errors
    /// Where one cannot be read.
    pub fn equal_to(&self, a: &str, other: &Self, b: &str) -> Result<bool> {
        if self.synthetic {
            return Ok(true);
        }
        let read = |of: &Self, name: &str| of.tensors.read::<f64>(name, Layout::Same);
        Ok(self.shape(a) == other.shape(b) && read(self, a)? == read(other, b)?)
    }

    /// Checks that nothing was left over.
    ///
    /// # Errors
    /// Names the first stored tensor that was neither taken nor ignored.
    pub fn finish(&self) -> Result<()> {
        let mut left = self.tensors.names().filter(|name| !self.taken.contains(*name));
        let Some(first) = left.next() else { return Ok(()) };
        let others = left.count();
        let more = if others == 0 { String::new() } else { format!(" ({others} more are left over)") };
        let problem = format!("left over: this architecture and config have no parameter of this name{more}");
        Err(Error::tensor(self.tensors.path_of(first), first, problem))
    }

    /// SHA-256 over the contents of all files, in the order of their names.
    ///
    /// # Errors
    /// Where a file cannot be read.
    pub fn content_hash(&self) -> Result<String> {
        Ok(self.tensors.content_hash()?)
    }
}

/// A tensor of a stored shape with made-up values, as it is kept.
fn made_up(shape: &[usize], layout: Layout) -> TensorData {
    let kept = layout.kept(shape);
    let n = kept.iter().product();
    if kept.len() == 1 {
        return TensorData::ones::<f32, _>(kept);
    }
    // Knuth's multiplicative hash: values in ±0.035, whose squares have mean 0.02²
    let value = |i: usize| ((i.wrapping_mul(0x9E37_79B9) >> 8) & 0xFFFF) as f32 / 32768.0 - 1.0;
    TensorData::new((0..n).into_par_iter().with_min_len(4096).map(|i| 0.035 * value(i)).collect::<Vec<f32>>(), kept)
}

/// A shape that a file claims, in few characters.
fn brief_shape(shape: &[usize]) -> String {
    match shape.len() {
        0..=8 => format!("{shape:?}"),
        n => format!("{:?} and {} dimensions more", &shape[..8], n - 8),
    }
}

/// Share of a model folder's values that are in matrices which stay in bfloat16 in the host's memory.
///
/// # Errors
/// Where a file cannot be read.
pub fn narrow_share(folder: &Path) -> Result<f64> {
    let tensors = Tensors::open(folder, "model")?;
    let (mut narrow, mut all) = (0.0, 0.0);
    for stored in tensors.names().filter_map(|name| tensors.get(name)) {
        let values = stored.shape().iter().map(|n| *n as f64).product::<f64>();
        all += values;
        // what is quantised has fewer entries than values, and becomes bfloat16's where those are
        narrow += if stored.shape().len() >= 2 && (stored.fits_bf16() || stored.is_quantised()) { values } else { 0.0 };
    }
    Ok(if all > 0.0 { narrow / all } else { 0.0 })
}

/// SHA-256 of a model folder's weights and config, which stand for the model.
///
/// # Errors
/// Where a file cannot be read.
pub fn content_hash(folder: &Path) -> Result<String> {
    let weights = Weights::open(folder, "model")?.content_hash()?;
    let config = folder.join("config.json");
    // without a config of its own, the file of the weights says what the model is
    let config = if config.exists() { tanglescope_checkpoint::file_hash(&config)? } else { "gguf".to_owned() };
    Ok(format!("{weights}+{config}"))
}
