//! The tensors of a checkpoint, each to be taken once, onto a device.
use crate::architectures::Description;
use crate::error::{Error, Result};
use crate::layers::Matrix;
use half::{bf16, f16};
use rayon::prelude::*;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tanglescope_checkpoint::{Codes, Layout, Number, Stored, Tensors};
use tanglescope_kernels::{AllocationProperty, Bytes, CodeSpec, Coded, DType, FloatTensor, Kernels, TensorData};

/// The tensors of a checkpoint, each to be taken once.
#[derive(Debug, Default)]
pub(crate) struct Weights {
    tensors: Arc<Tensors>,
    taken: BTreeSet<String>,
    /// Whether every tensor that is asked for is made up.
    synthetic: bool,
    /// Bytes of the largest tensor that the device takes where they are used.
    largest: Option<u64>,
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

    /// Tensors that are open.
    pub fn of(tensors: Arc<Tensors>) -> Self {
        Self { tensors, ..Self::default() }
    }

    /// The same tensors, none of them taken.
    pub fn again(&self) -> Self {
        Self { tensors: self.tensors.clone(), taken: BTreeSet::new(), ..*self }
    }

    /// Says of how many bytes a tensor of the device may be.
    pub fn keep_within(&mut self, largest: Option<u64>) {
        self.largest = largest;
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
            self.fits(name, shape, dtype)?;
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
        self.fits(name, shape, dtype)?;
        let kept = layout.kept(shape);
        let narrow = kept.len() == 2 && stored.fits_bf16() && B::takes_stored(DType::BF16);
        let as_it_lies = (layout == Layout::Same)
            .then(|| self.held::<B>(name, shape, if narrow { DType::BF16 } else { dtype }))
            .flatten();
        if let Some(data) = as_it_lies {
            self.taken.insert(name.to_owned());
            return Ok(B::upload(data, device));
        }
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

    /// Whether the device takes a tensor of a shape.
    fn fits(&self, name: &str, shape: &[usize], dtype: DType) -> Result<()> {
        let Some(largest) = self.largest else { return Ok(()) };
        let bytes = shape.iter().product::<usize>() * dtype.size();
        if bytes as u64 <= largest {
            return Ok(());
        }
        let half = match dtype {
            DType::F32 if bytes as u64 / 2 <= largest => ", numbers of 16 bits take half (option `dtype`)",
            _ => "",
        };
        let problem = format!(
            "takes {bytes} bytes, and the device takes no tensor of more than {largest}{half}; option `device` = cpu has no such bound"
        );
        Err(Error::tensor(self.tensors.path_of(name), name, problem))
    }

    /// A tensor's numbers where they lie in the host's memory, if they are used there: in a number type.
    fn held<B: Kernels>(&self, name: &str, shape: &[usize], dtype: DType) -> Option<TensorData> {
        let number = match dtype {
            DType::F32 => Number::F32,
            DType::F64 => Number::F64,
            DType::BF16 => Number::BF16,
            _ => return None,
        };
        let bytes = self.tensors.held_numbers(name, number).filter(|_| B::is_host())?;
        let bytes = Bytes::from_shared(bytes, AllocationProperty::Native);
        Some(TensorData::from_bytes(bytes, shape.to_vec(), dtype))
    }

    /// A matrix as it is stored, as codes or numbers; see [`take`](Self::take).
    ///
    /// # Errors
    /// As there.
    pub fn take_matrix<B: Kernels>(
        &mut self,
        name: &str,
        shape: &[usize],
        layout: Layout,
        dtype: DType,
        device: &B::Device,
    ) -> Result<Matrix<B>> {
        // what is beyond the type is said where values are read
        let most = if dtype == DType::F16 { f16::MAX.to_f32() } else { f32::MAX };
        if self.shape(name) == Some(shape)
            && let Some(codes) = self.tensors.codes(name, layout, most)?
        {
            self.taken.insert(name.to_owned());
            let spec = spec_of(&codes);
            self.fits(name, &[spec.words()], DType::U32)?;
            let words = TensorData::new(codes.words(), [spec.words()]);
            return Ok(Matrix::Coded(Coded::new(B::upload(words, device), spec, layout != Layout::Same)));
        }
        if layout == Layout::Transposed
            && self.shape(name) == Some(shape)
            && let Some(of) = [dtype, DType::BF16].into_iter().find_map(|dtype| self.held::<B>(name, shape, dtype))
        {
            self.taken.insert(name.to_owned());
            return Ok(Matrix::Turned(B::upload(of, device)));
        }
        Ok(Matrix::Plain(self.take::<B>(name, shape, layout, dtype, device)?))
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

/// How codes lie in words.
fn spec_of(codes: &Codes) -> CodeSpec {
    CodeSpec {
        rows: codes.rows(),
        columns: codes.columns,
        bits: codes.bits(),
        block: codes.block,
        has_least: !codes.least.is_empty(),
        second: codes.second,
        rounded: match codes.rounded {
            Number::BF16 => DType::BF16,
            Number::F16 => DType::F16,
            _ => DType::F32,
        },
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

/// A base model whose weights another library holds in memory.
#[derive(Clone, Debug)]
pub struct HeldModel {
    /// What it is called.
    pub called: String,
    /// The folder with its config.json, which says what the weights are of.
    pub folder: PathBuf,
    /// Its weights, under the names of its checkpoint.
    pub tensors: Arc<Tensors>,
    /// Stands for both.
    pub content_hash: String,
}

impl PartialEq for HeldModel {
    fn eq(&self, other: &Self) -> bool {
        self.content_hash == other.content_hash
    }
}

impl Eq for HeldModel {}

impl HeldModel {
    /// The weights of a model whose config.json is in a folder.
    ///
    /// # Errors
    /// Where the config cannot be read.
    pub fn new(called: &str, folder: &Path, tensors: Tensors) -> Result<Self> {
        let config = tanglescope_checkpoint::file_hash(&folder.join("config.json"))?;
        let content_hash = format!("{}+{config}", tensors.content_hash()?);
        Ok(Self { called: called.to_owned(), folder: folder.to_owned(), tensors: Arc::new(tensors), content_hash })
    }

    /// See [`bytes_per_value`].
    #[must_use]
    pub fn bytes_per_value(&self, dtype: DType, kept: bool) -> [f64; 2] {
        average_bytes(&self.tensors, dtype, kept)
    }
}

/// Bytes that a value of a model folder's weights takes in memory on average, in a number type: of those outside the blocks, and of those in
/// them, whose names have a block's number. Matrices in bfloat16 stay so where they are `kept`, and what is stored as codes of a few bits stays codes.
///
/// # Errors
/// Where a file cannot be read.
pub fn bytes_per_value(folder: &Path, of: &Description, dtype: DType, kept: bool) -> Result<[f64; 2]> {
    let weights = Weights::open(folder, "model")?.put_together(of.fp8_block)?;
    Ok(average_bytes(&weights.tensors, dtype, kept))
}

/// The same of tensors.
fn average_bytes(tensors: &Tensors, dtype: DType, kept: bool) -> [f64; 2] {
    let of_tensor = |stored: &Stored| match stored.bits_as_codes() {
        Some(bits) => bits / 8.0,
        None if kept && stored.shape().len() >= 2 && stored.fits_bf16() => DType::BF16.size() as f64,
        None => dtype.size() as f64,
    };
    let (mut bytes, mut values) = ([0.0; 2], [0.0; 2]);
    for (name, stored) in tensors.names().filter_map(|name| Some((name, tensors.get(name)?))) {
        let number = stored.shape().iter().map(|n| *n as f64).product::<f64>();
        if number == 0.0 {
            continue;
        }
        let place = usize::from(name.split('.').any(|part| part.parse::<usize>().is_ok()));
        bytes[place] += number * of_tensor(stored);
        values[place] += number;
    }
    let average = |place: usize| if values[place] > 0.0 { bytes[place] / values[place] } else { dtype.size() as f64 };
    [average(0), average(1)]
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

#[cfg(test)]
mod tests {
    use super::*;
    use tanglescope_kernels::{Flex, FlexDevice};

    #[test]
    fn a_tensor_that_the_device_does_not_take_is_refused_by_name_and_limit() {
        let gib = 1 << 30;
        let mut weights = Weights::synthetic();
        weights.keep_within(Some(2 * gib - 1));
        let mut take =
            |rows, dtype| weights.take::<Flex>("lm_head.weight", &[rows, 8], Layout::Same, dtype, &FlexDevice);
        let refused = take(67_108_867, DType::F32).unwrap_err().to_string();
        let want = "tensor `lm_head.weight`: takes 2147483744 bytes, and the device takes no tensor of more than 2147483647, numbers of 16 bits take half \
                    (option `dtype`); option `device` = cpu has no such bound";
        assert!(refused.ends_with(want), "{refused}");
        assert!(take(4, DType::F32).is_ok());
    }
}
