//! Tensors of a safetensors checkpoint: one file or the shards of an index, read one tensor at a time.
//!
//! A tensor is mapped, converted and unmapped before the next one, so that loading needs little more memory than the
//! converted weights.
use crate::error::{Error, Result};
use half::{bf16, f16};
use memmap2::{Mmap, MmapOptions};
use rayon::prelude::*;
use safetensors::{Dtype, SafeTensors};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use tanglescope_kernels::{DType, FloatTensor, Kernels, TensorData};

/// A stored tensor.
#[derive(Clone, Debug)]
struct Stored {
    file: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    /// First byte in the file, and their number.
    bytes: (u64, usize),
}

/// Names that torch.compile, FSDP and activation checkpointing put between those of the modules that they wrap.
const WRAPPERS: [&str; 3] = ["_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"];

/// What DataParallel puts before every name.
const REPLICA: &str = "module.";

/// How a matrix is kept in memory against how it is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// As stored.
    Same,
    /// Rows become columns.
    Transposed,
    /// One matrix of a stack of them, or one row of a matrix, and of its columns every so many-th from one on.
    Part {
        /// Which matrix.
        index: usize,
        /// First column.
        first: usize,
        /// From one column to the next.
        every: usize,
    },
    /// Rows of one matrix of a stack of them, which become columns.
    Rows {
        /// Which matrix.
        index: usize,
        /// Which stretch of rows,
        piece: usize,
        /// of how many of equal length.
        of: usize,
    },
}

impl Layout {
    /// Shape of what is kept of a stored shape.
    fn kept(self, stored: &[usize]) -> Vec<usize> {
        match (self, stored) {
            (Self::Transposed, &[rows, columns]) => vec![columns, rows],
            (Self::Part { every, .. }, &[_, ref rows @ .., columns]) => {
                rows.iter().copied().chain([columns / every]).collect()
            }
            (Self::Rows { of, .. }, &[_, rows, columns]) => vec![columns, rows / of],
            _ => stored.to_vec(),
        }
    }

    /// Writes the values of what is kept to where they are among those of a stored shape.
    pub(crate) fn put(self, kept: &[f64], stored: &[usize], all: &mut [f64]) {
        for (at, value) in kept.iter().enumerate() {
            all[self.at(at, stored)] = *value;
        }
    }

    /// Where a value of what is kept is in a stored shape.
    fn at(self, at: usize, stored: &[usize]) -> usize {
        match self {
            Self::Same => at,
            Self::Transposed => at % stored[0] * stored[1] + at / stored[0],
            Self::Part { index, first, every } => index * stored[1..].iter().product::<usize>() + at * every + first,
            Self::Rows { .. } => {
                let (part, of) = self.part(stored);
                let (columns, rows) = (stored[2], stored[0] * stored[1] / of);
                (part * rows + at % rows) * columns + at / rows
            }
        }
    }

    /// Where the bytes are that are read of a stored shape, as parts of all: the first, and their number.
    fn part(self, stored: &[usize]) -> (usize, usize) {
        match self {
            Self::Same | Self::Transposed => (0, 1),
            Self::Part { index, .. } => (index, stored[0]),
            Self::Rows { index, piece, of } => (index * of + piece, stored[0] * of),
        }
    }
}

/// The tensors of a checkpoint, each to be taken once.
#[derive(Debug, Default)]
pub struct Weights {
    folder: PathBuf,
    files: Vec<PathBuf>,
    tensors: BTreeMap<String, Stored>,
    taken: BTreeSet<String>,
    /// Whether every tensor that is asked for is made up.
    synthetic: bool,
}

/// Index of a sharded checkpoint.
#[derive(serde::Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// The files of a sharded checkpoint, with the tensors that each has, as an index names them.
///
/// # Errors
/// Where the file is no index, or one of its names is no file's.
pub fn shards(index: &Path) -> Result<BTreeMap<String, Vec<String>>> {
    let text = std::fs::read(index).map_err(|e| Error::file(index, e))?;
    let parsed: Index = serde_json::from_slice(&text).map_err(|e| Error::file(index, e))?;
    let mut shards: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (tensor, shard) in parsed.weight_map {
        shards.entry(shard).or_default().push(tensor);
    }
    match shards.keys().find(|name| Path::new(name).components().count() != 1) {
        None => Ok(shards),
        Some(name) => Err(Error::file(index, format!("names the shard `{name}`, which is no file's name"))),
    }
}

impl Weights {
    /// Opens `STEM.safetensors` or the shards that `STEM.safetensors.index.json` names.
    ///
    /// # Errors
    /// Where there is neither, or a file is no valid safetensors file.
    pub fn open(folder: &Path, stem: &str) -> Result<Self> {
        let single = folder.join(format!("{stem}.safetensors"));
        let index_path = folder.join(format!("{stem}.safetensors.index.json"));
        let mut weights = Self { folder: folder.to_owned(), ..Self::default() };
        if single.is_file() {
            weights.add(single, None)?;
        } else if index_path.is_file() {
            for (shard, tensors) in shards(&index_path)? {
                let path = folder.join(&shard);
                if !path.is_file() {
                    let problem = format!("names the shard `{shard}`, which is not in the folder; copy it there");
                    return Err(Error::file(&index_path, problem));
                }
                weights.add(path, Some(&tensors))?;
            }
        } else {
            let binary = ["pytorch_model.bin", "adapter_model.bin", "pytorch_model.bin.index.json"];
            let problem = match binary.iter().find(|name| folder.join(name).exists()) {
                Some(name) => format!(
                    "holds only `{name}`: pickled weights can run code and are not read. Load it once with transformers \
                     or peft and save it with `save_pretrained(..., safe_serialization=True)`"
                ),
                None => format!("no {stem}.safetensors and no {stem}.safetensors.index.json in this folder"),
            };
            return Err(Error::file(folder, problem));
        }
        weights.unwrap_names()?;
        Ok(weights)
    }

    /// Takes the names of wrappers out of tensors' names.
    fn unwrap_names(&mut self) -> Result<()> {
        let all_begin = !self.tensors.is_empty() && self.tensors.keys().all(|name| name.starts_with(REPLICA));
        let plain = |name: &str| -> String {
            let name = if all_begin { &name[REPLICA.len()..] } else { name };
            let parts = name.split('.').filter(|part| !WRAPPERS.contains(part));
            parts.collect::<Vec<_>>().join(".")
        };
        let mut unwrapped = BTreeMap::new();
        for (name, stored) in std::mem::take(&mut self.tensors) {
            let path = &self.files[stored.file];
            let plain = plain(&name);
            if unwrapped.insert(plain.clone(), stored).is_some() {
                let problem = format!("is `{plain}` inside a wrapper, and there is another tensor of that name");
                return Err(Error::tensor(path, &name, problem));
            }
        }
        self.tensors = unwrapped;
        Ok(())
    }

    /// Weights that are no file's: matrices of small numbers without a pattern, gains of one. For measurements of speed.
    pub(crate) fn synthetic() -> Self {
        Self { synthetic: true, ..Self::default() }
    }

    fn add(&mut self, path: PathBuf, wanted: Option<&[String]>) -> Result<()> {
        let map = map(&path, 0, None)?;
        let (header, metadata) = SafeTensors::read_metadata(&map).map_err(|e| {
            Error::file(&path, format!("not a complete safetensors file ({e}); copy or download it again"))
        })?;
        let file = self.files.len();
        let listed = wanted.map(|wanted| wanted.iter().map(String::as_str).collect::<HashSet<_>>());
        for (name, info) in metadata.tensors() {
            if listed.as_ref().is_some_and(|listed| !listed.contains(name.as_str())) {
                continue;
            }
            let (start, end) = info.data_offsets;
            let bytes = ((8 + header + start) as u64, end - start);
            let stored = Stored { file, dtype: info.dtype, shape: info.shape.clone(), bytes };
            self.tensors.insert(name, stored);
        }
        if let Some(missing) = wanted.unwrap_or_default().iter().find(|name| !self.tensors.contains_key(*name)) {
            return Err(Error::tensor(&path, missing, "the index says that it is in this file, which lacks it"));
        }
        self.files.push(path);
        Ok(())
    }

    /// Whether a tensor is stored.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.synthetic || self.tensors.contains_key(name)
    }

    /// Names of all stored tensors.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Shape of a stored tensor.
    #[must_use]
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|t| t.shape.as_slice())
    }

    /// Marks a stored tensor as accounted for without reading it.
    pub(crate) fn ignore(&mut self, name: &str) {
        self.taken.insert(name.to_owned());
    }

    /// Reads a tensor of a given stored shape in a number type, or a matrix as it is stored where products take that.
    ///
    /// # Errors
    /// Where it is missing, of another shape or type, or has a value that is not finite.
    pub(crate) fn take<B: Kernels>(
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
            return Err(Error::tensor(&self.folder, name, format!("missing; expected one of shape {shape:?}")));
        };
        let path = &self.files[stored.file];
        if stored.shape != shape {
            let problem = format!("found shape {}, expected {shape:?}", brief_shape(&stored.shape));
            return Err(Error::tensor(path, name, problem));
        }
        let data = if layout.kept(shape).len() == 2 && stored.dtype == Dtype::BF16 && B::takes_stored(DType::BF16) {
            stored.read::<bf16>(path, name, layout)?
        } else {
            match dtype {
                DType::F64 => stored.read::<f64>(path, name, layout)?,
                DType::BF16 => stored.read::<bf16>(path, name, layout)?,
                DType::F16 => stored.read::<f16>(path, name, layout)?,
                _ => stored.read::<f32>(path, name, layout)?,
            }
        };
        self.taken.insert(name.to_owned());
        Ok(B::upload(data, device))
    }

    /// Whether two stored tensors hold the same numbers.
    ///
    /// # Errors
    /// Where one cannot be read.
    pub(crate) fn equal(&self, a: &str, b: &str) -> Result<bool> {
        if self.synthetic {
            return Ok(true);
        }
        let (x, y) = (&self.tensors[a], &self.tensors[b]);
        let read = |t: &Stored, name: &str| t.read::<f64>(&self.files[t.file], name, Layout::Same);
        Ok(x.shape == y.shape && read(x, a)? == read(y, b)?)
    }

    /// Checks that nothing was left over.
    ///
    /// # Errors
    /// Names the first stored tensor that was neither taken nor ignored.
    pub(crate) fn finish(&self) -> Result<()> {
        let mut left = self.tensors.keys().filter(|name| !self.taken.contains(*name));
        let Some(first) = left.next() else { return Ok(()) };
        let others = left.count();
        let more = if others == 0 { String::new() } else { format!(" ({others} more are left over)") };
        let path = &self.files[self.tensors[first].file];
        let problem = format!("left over: this architecture and config have no parameter of this name{more}");
        Err(Error::tensor(path, first, problem))
    }

    /// SHA-256 over the contents of all files, in the order of their names.
    ///
    /// # Errors
    /// Where a file cannot be read.
    pub(crate) fn content_hash(&self) -> Result<String> {
        let mut files: Vec<&PathBuf> = self.files.iter().collect();
        files.sort();
        let hashes: Vec<String> = files.par_iter().map(|path| file_hash(path)).collect::<Result<_>>()?;
        Ok(if hashes.len() == 1 { hashes[0].clone() } else { hex(&Sha256::digest(hashes.concat())) })
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

/// Lower-case hexadecimal digits.
fn hex(digest: &[u8]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// SHA-256 of a model folder's weights and config, which stand for the model.
///
/// # Errors
/// Where a file cannot be read.
pub fn content_hash(folder: &Path) -> Result<String> {
    let weights = Weights::open(folder, "model")?.content_hash()?;
    Ok(format!("{weights}+{}", file_hash(&folder.join("config.json"))?))
}

/// SHA-256 of a text.
#[must_use]
pub fn text_hash(text: &str) -> String {
    hex(&Sha256::digest(text))
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

#[allow(unsafe_code)]
fn map(path: &Path, start: u64, len: Option<usize>) -> Result<Mmap> {
    let file = File::open(path).map_err(|e| Error::file(path, e))?;
    let mut options = MmapOptions::new();
    options.offset(start);
    if let Some(len) = len {
        options.len(len);
    }
    // SAFETY: the map is only read, and only as bytes. A file that another process changes under the map can change
    // the numbers read, or end the process where it is cut short; no safe interface rules that out.
    unsafe { options.map(&file) }.map_err(|e| Error::file(path, e))
}

/// A number type that weights are converted to.
trait Float: Copy + Send + Sync + Default + tanglescope_kernels::Element {
    fn of(x: f64) -> Self;
    fn finite(self) -> bool;
}

impl Float for f32 {
    #[allow(clippy::cast_possible_truncation)]
    fn of(x: f64) -> Self {
        x as f32
    }
    fn finite(self) -> bool {
        self.is_finite()
    }
}

impl Float for bf16 {
    fn of(x: f64) -> Self {
        Self::from_f64(x)
    }
    fn finite(self) -> bool {
        self.is_finite()
    }
}

impl Float for f16 {
    fn of(x: f64) -> Self {
        Self::from_f64(x)
    }
    fn finite(self) -> bool {
        self.is_finite()
    }
}

impl Float for f64 {
    fn of(x: f64) -> Self {
        x
    }
    fn finite(self) -> bool {
        self.is_finite()
    }
}

/// Index of the first value that is NaN or infinite. Long runs are looked through without a branch a value.
fn first_not_finite<E: Float>(numbers: &[E]) -> Option<usize> {
    let all_finite = |run: &[E]| run.iter().fold(true, |all, x| all & x.finite());
    if numbers.par_chunks(1 << 14).all(all_finite) { None } else { numbers.iter().position(|x| !x.finite()) }
}

impl Stored {
    fn read<E: Float>(&self, path: &Path, name: &str, layout: Layout) -> Result<TensorData> {
        let (mut start, mut len) = self.bytes;
        if len == 0 {
            return Err(Error::tensor(path, name, "has no values"));
        }
        let (part, of) = layout.part(&self.shape);
        len /= of;
        start += (part * len) as u64;
        let bytes = map(path, start, Some(len))?;
        let numbers: Vec<E> = match self.dtype {
            Dtype::F32 => self.convert(&bytes, layout, |b: [u8; 4]| E::of(f64::from(f32::from_le_bytes(b)))),
            Dtype::BF16 => self.convert(&bytes, layout, |b: [u8; 2]| E::of(bf16::from_le_bytes(b).to_f64())),
            Dtype::F16 => self.convert(&bytes, layout, |b: [u8; 2]| E::of(f16::from_le_bytes(b).to_f64())),
            Dtype::F64 => self.convert(&bytes, layout, |b: [u8; 8]| E::of(f64::from_le_bytes(b))),
            other => {
                let problem = format!(
                    "stored as {other:?}; expected F32, F16, BF16 or F64. Quantised weights have to be dequantised and \
                     saved first"
                );
                return Err(Error::tensor(path, name, problem));
            }
        };
        if let Some(at) = first_not_finite(&numbers) {
            let at = layout.at(at, &self.shape);
            return Err(Error::tensor(
                path,
                name,
                format!(
                    "value {at} is NaN or infinite: the checkpoint is damaged, or it is beyond what this option `dtype` holds"
                ),
            ));
        }
        Ok(TensorData::new(numbers, layout.kept(&self.shape)))
    }

    fn convert<E: Float, const W: usize>(&self, bytes: &[u8], layout: Layout, of: fn([u8; W]) -> E) -> Vec<E> {
        let (values, _) = bytes.as_chunks::<W>();
        let across = match (layout, self.shape.as_slice()) {
            (Layout::Transposed, &[rows, columns]) => Some([rows, columns]),
            (Layout::Rows { of, .. }, &[_, rows, columns]) => Some([rows / of, columns]),
            _ => None,
        };
        match (layout, across) {
            (_, Some([rows, columns])) => {
                let mut out = vec![E::default(); values.len()];
                // bands of 16 rows of the result read whole cache lines of the source
                out.par_chunks_mut(16 * rows).enumerate().for_each(|(band, out)| {
                    let first = band * 16;
                    for r in 0..rows {
                        for (c, to) in out.iter_mut().skip(r).step_by(rows).enumerate() {
                            *to = of(values[r * columns + first + c]);
                        }
                    }
                });
                out
            }
            // whole rows lie side by side, so that the columns that are left are as far apart from row to row
            (Layout::Part { first, every, .. }, _) => {
                let number = (values.len() - first).div_ceil(every);
                let at = |i: usize| of(values[first + i * every]);
                (0..number).into_par_iter().with_min_len(4096).map(at).collect()
            }
            _ => values.par_iter().with_min_len(4096).map(|&b| of(b)).collect(),
        }
    }
}
