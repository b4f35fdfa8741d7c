//! The tensors of a checkpoint by name: one file, the shards of an index, or the parts of several ranks.
//!
//! Files are mapped and described when a checkpoint is opened; values are read one tensor at a time.
use crate::error::{Error, Result};
use crate::gguf::{self, GgufTokenizer};
use crate::hash::{file_hash, hash_of_hashes, held_hash, text_hash};
use crate::layout::Layout;
use crate::number::{Float, Number};
use crate::quantised::{self, Codes};
use crate::stored::{Encoding, Held, Piece, Place, Stored, map};
use crate::torch::{self, distributed};
use bytes::Bytes;
use rayon::prelude::*;
use safetensors::tensor::Metadata;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::{Path, PathBuf};

/// Names that torch.compile, FSDP and activation checkpointing put between those of the modules that they wrap.
const WRAPPERS: [&str; 3] = ["_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"];

/// What DataParallel puts before every name.
const REPLICA: &str = "module.";

/// The tensors of a checkpoint.
#[derive(Clone, Debug, Default)]
pub struct Tensors {
    folder: PathBuf,
    files: Vec<PathBuf>,
    by_name: BTreeMap<String, Stored>,
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

/// Names that trainers give to files of `torch.save` that hold no weights.
const NO_WEIGHTS: [&str; 6] = ["optimizer", "scheduler", "scaler", "training_args", "rng_state", "trainer_state"];

/// How names of files of `torch.save` end.
const TORCH_ENDS: [&str; 3] = [".bin", ".pt", ".pth"];

/// Names of the files that a checkpoint of a stem may be in, in the order in which they are looked for: one file, or the index of its shards.
#[must_use]
pub fn file_names(stem: &str) -> [[String; 2]; 2] {
    let torch = if stem == "model" { "pytorch_model" } else { stem };
    [format!("{stem}.safetensors"), format!("{torch}.bin")].map(|single| {
        let index = format!("{single}.index.json");
        [single, index]
    })
}

impl Tensors {
    /// Opens the checkpoint of a folder: `STEM.safetensors` or the shards that `STEM.safetensors.index.json` names; else what
    /// `torch.save` wrote as `pytorch_model.bin` or `STEM.bin` or its shards; else the one GGUF file; else the one `.pt` or `.pth` file; else the
    /// folder of `torch.distributed.checkpoint` inside.
    ///
    /// # Errors
    /// Where there is none, or a file is not what it should be.
    pub fn open(folder: &Path, stem: &str) -> Result<Self> {
        let mut tensors = Self { folder: folder.to_owned(), ..Self::default() };
        let named = file_names(stem).map(|names| names.map(|name| folder.join(name)));
        if let Some([single, index]) = named.iter().find(|[single, index]| single.is_file() || index.is_file()) {
            if single.is_file() { tensors.add(single.clone(), None)? } else { tensors.add_shards(index)? }
        } else if let Some(file) = gguf_in(folder)? {
            tensors.add(file, None)?;
        } else if let Some(problem) = unconverted(folder) {
            return Err(Error::file(folder, problem));
        } else if let Some(file) = only_torch_file(folder)? {
            tensors.add(file, None)?;
        } else if let Some(inside) = distributed_folder(folder) {
            tensors.add_distributed(&inside)?;
        } else {
            let [[safetensors, _], [torch, _]] = file_names(stem);
            let problem = format!(
                "no {safetensors}, no {torch}, no index of shards of either, no single .gguf, .pt or .pth, and no folder of \
                 torch.distributed.checkpoint in this folder"
            );
            return Err(Error::file(folder, problem));
        }
        tensors.unwrap_names()?;
        Ok(tensors)
    }

    /// Tensors of one file, whose names are not in it.
    pub(crate) fn of_file(path: &Path, tensors: Vec<(String, Stored)>) -> Self {
        let folder = path.parent().unwrap_or(Path::new(".")).to_owned();
        Self { folder, files: vec![path.to_owned()], by_name: tensors.into_iter().collect() }
    }

    /// Tensors that another library holds in memory, by name and shape; `called` is what complaints call them.
    ///
    /// # Errors
    /// Names a tensor whose bytes are not as many as its shape has.
    pub fn held(called: &Path, tensors: impl IntoIterator<Item = (String, Vec<usize>, Held)>) -> Result<Self> {
        let mut of = Self { folder: called.to_owned(), files: vec![called.to_owned()], ..Self::default() };
        for (name, shape, held) in tensors {
            let values = shape.iter().try_fold(1usize, |all, n| all.checked_mul(*n));
            let needed = values.and_then(|values| values.checked_mul(held.number.size()));
            if needed != Some(held.bytes.len()) {
                let problem = format!("has {} bytes for shape {shape:?} of {}", held.bytes.len(), held.number.name());
                return Err(Error::tensor(called, &name, problem));
            }
            of.by_name.insert(name, Stored { shape, encoding: Encoding::Held(held) });
        }
        of.unwrap_names()?;
        Ok(of)
    }

    /// The same with quantised tensors put together from what they are stored as. `fp8_block` is how many rows and columns share a factor
    /// of 8-bit floating point numbers, where it is not all of them.
    ///
    /// # Errors
    /// Names a tensor whose parts do not fit each other.
    pub fn put_together(mut self, fp8_block: Option<[usize; 2]>) -> Result<Self> {
        let folder = &self.folder;
        quantised::put_together(&mut self.by_name, &self.files, fp8_block)
            .map_err(|(tensor, problem)| Error::tensor(folder, &tensor, problem))?;
        Ok(self)
    }

    /// Takes the names of wrappers out of tensors' names.
    fn unwrap_names(&mut self) -> Result<()> {
        let all_begin = !self.by_name.is_empty() && self.by_name.keys().all(|name| name.starts_with(REPLICA));
        let plain = |name: &str| -> String {
            let name = if all_begin { &name[REPLICA.len()..] } else { name };
            let parts = name.split('.').filter(|part| !WRAPPERS.contains(part));
            parts.collect::<Vec<_>>().join(".")
        };
        let mut unwrapped = BTreeMap::new();
        for (name, stored) in std::mem::take(&mut self.by_name) {
            let path = &self.files[stored.file()];
            let plain = plain(&name);
            if unwrapped.insert(plain.clone(), stored).is_some() {
                let problem = format!("is `{plain}` inside a wrapper, and there is another tensor of that name");
                return Err(Error::tensor(path, &name, problem));
            }
        }
        self.by_name = unwrapped;
        Ok(())
    }

    fn add_shards(&mut self, index: &Path) -> Result<()> {
        for (shard, tensors) in shards(index)? {
            let path = self.folder.join(&shard);
            if !path.is_file() {
                let problem = format!("names the shard `{shard}`, which is not in the folder; copy it there");
                return Err(Error::file(index, problem));
            }
            self.add(path, Some(&tensors))?;
        }
        Ok(())
    }

    /// Adds the tensors of a file, or those of it that are wanted.
    fn add(&mut self, path: PathBuf, wanted: Option<&[String]>) -> Result<()> {
        let file = self.files.len();
        let found = match path.extension().and_then(|end| end.to_str()) {
            Some("safetensors") => of_safetensors(&path, file)?,
            Some("gguf") => gguf::tensors(&map(&path, 0, None)?, file),
            _ => torch::tensors(&map(&path, 0, None)?)
                .map(|of| of.into_iter().map(|(name, of)| (name, of_torch(of, file))).collect()),
        };
        let found: Vec<(String, Stored)> = found.map_err(|problem| Error::file(&path, problem))?;
        let listed = wanted.map(|wanted| wanted.iter().map(String::as_str).collect::<HashSet<_>>());
        let listed = |name: &str| listed.as_ref().is_none_or(|listed| listed.contains(name));
        self.by_name.extend(found.into_iter().filter(|(name, _)| listed(name)));
        if let Some(missing) = wanted.unwrap_or_default().iter().find(|name| !self.by_name.contains_key(*name)) {
            return Err(Error::tensor(&path, missing, "the index says that it is in this file, which lacks it"));
        }
        self.files.push(path);
        Ok(())
    }

    /// Adds the tensors of a folder of `torch.distributed.checkpoint`.
    fn add_distributed(&mut self, folder: &Path) -> Result<()> {
        let metadata = folder.join(distributed::METADATA);
        let described = map(&metadata, 0, None)?;
        let found = distributed::tensors(&described).map_err(|problem| Error::file(&metadata, problem))?;
        let names: BTreeSet<&str> = found.iter().flat_map(|of| &of.parts).map(|part| part.file.as_str()).collect();
        let mut maps = BTreeMap::new();
        for name in names {
            let path = folder.join(name);
            if !path.is_file() {
                let problem =
                    format!("names the file `{name}`, which is not in the folder; copy the files of every rank there");
                return Err(Error::file(&metadata, problem));
            }
            maps.insert(name.to_owned(), (self.files.len(), map(&path, 0, None)?));
            self.files.push(path);
        }
        // a trainer's state dict is one of several things in such a checkpoint
        let model = "model.";
        let inside =
            found.iter().any(|of| of.name.starts_with("model.model.") || of.name.starts_with("model.lm_head."));
        for of in &found {
            let name = if inside { of.name.strip_prefix(model) } else { Some(of.name.as_str()) };
            let Some(name) = name else { continue };
            let (mut pieces, mut number) = (Vec::new(), None);
            for part in &of.parts {
                let (file, bytes) = &maps[&part.file];
                let path = &self.files[*file];
                let tensor =
                    distributed::part(bytes, part).map_err(|problem| Error::tensor(path, &of.name, problem))?;
                if *number.get_or_insert(tensor.number) != tensor.number {
                    return Err(Error::tensor(path, &of.name, "has parts of several types"));
                }
                let place = Place { file: *file, start: tensor.start };
                pieces.push(Piece { place, at: part.at.clone(), shape: tensor.shape, strides: tensor.strides });
            }
            let Some(number) = number else { continue };
            let stored = Stored { shape: of.shape.clone(), encoding: Encoding::Pieces { number, pieces } };
            self.by_name.insert(name.to_owned(), stored);
        }
        Ok(())
    }

    /// The folder that was opened.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Names of all tensors.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.by_name.keys().map(String::as_str)
    }

    /// A tensor.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Stored> {
        self.by_name.get(name)
    }

    /// The file that a tensor is in, or the folder for one that is in none.
    #[must_use]
    pub fn path_of(&self, name: &str) -> &Path {
        self.by_name.get(name).map_or(&self.folder, |stored| &self.files[stored.file()])
    }

    /// Reads the values of a tensor that a layout keeps, in its order.
    ///
    /// # Errors
    /// Where there is none of the name, or it is of a type that is not read, or has a value that is not finite.
    pub fn read<E: Float>(&self, name: &str, layout: Layout) -> Result<Vec<E>> {
        match self.by_name.get(name) {
            Some(stored) => stored.read(&self.files, name, layout),
            None => Err(Error::tensor(&self.folder, name, "missing")),
        }
    }

    /// What a layout keeps of a quantised tensor, as codes of the matrix, or, where that is another than [`Layout::Same`], of its transpose; `None`
    /// where there are none, or some may stand for no number, or for one beyond `most`: reading them as values says which.
    ///
    /// # Errors
    /// Where it cannot be read.
    pub fn codes(&self, name: &str, layout: Layout, most: f32) -> Result<Option<Codes>> {
        self.by_name.get(name).map_or(Ok(None), |stored| stored.codes(&self.files, name, layout, most))
    }

    /// The numbers of a tensor where they lie; `None` where it is not [held](Self::held), or of another type, or has a value that is not
    /// finite.
    #[must_use]
    pub fn held_numbers(&self, name: &str, number: Number) -> Option<Bytes> {
        self.by_name.get(name)?.held(number)
    }

    /// SHA-256 over the contents of all files, in the order of their names; of tensors in memory, over their names, shapes and bytes.
    ///
    /// # Errors
    /// Where a file cannot be read.
    pub fn content_hash(&self) -> Result<String> {
        let of_held = |(name, stored): (&String, &Stored)| match &stored.encoding {
            Encoding::Held(held) => Some(held_hash(name, &stored.shape, held)),
            _ => None,
        };
        let held: Vec<String> = self.by_name.par_iter().filter_map(of_held).collect();
        if !held.is_empty() {
            return Ok(text_hash(&held.concat()));
        }
        let mut files: Vec<&PathBuf> = self.files.iter().collect();
        files.sort();
        let hashes: Vec<String> = files.par_iter().map(|path| file_hash(path)).collect::<Result<_>>()?;
        Ok(hash_of_hashes(hashes))
    }
}

/// Bytes of the longest header of a safetensors file.
const LONGEST_HEADER: u64 = 100_000_000;

/// Length and contents of the header of a safetensors file, of which nothing else is mapped: a model may be larger than what a process may
/// map.
fn safetensors_header(path: &Path) -> Result<Result<(usize, Metadata), String>> {
    let length = std::fs::metadata(path).map_err(|e| Error::file(path, e))?.len();
    let refuse =
        |problem: String| Ok(Err(format!("not a complete safetensors file ({problem}); copy or download it again")));
    if length < 8 {
        return refuse(format!("it has {length} bytes"));
    }
    let first = map(path, 0, Some(8))?;
    let header = first.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
    if header > LONGEST_HEADER || header + 8 > length {
        return refuse(format!("its header would have {header} bytes"));
    }
    let size = usize::try_from(header).unwrap_or(usize::MAX);
    let bytes = map(path, 0, Some(8 + size))?;
    match serde_json::from_slice::<Metadata>(&bytes[8..]) {
        Err(problem) => refuse(problem.to_string()),
        Ok(metadata) if (metadata.data_len() as u64).checked_add(8 + header) != Some(length) => refuse(format!(
            "its tensors would end at byte {}, and it has {length}",
            metadata.data_len() as u64 + 8 + header
        )),
        Ok(metadata) => Ok(Ok((size, metadata))),
    }
}

/// The tensors of a safetensors file.
fn of_safetensors(path: &Path, file: usize) -> Result<Result<Vec<(String, Stored)>, String>> {
    let (header, metadata) = match safetensors_header(path)? {
        Ok(found) => found,
        Err(problem) => return Ok(Err(problem)),
    };
    let of = |(name, info): (String, &safetensors::tensor::TensorInfo)| {
        let place = Place { file, start: (8 + header + info.data_offsets.0) as u64 };
        let encoding = Encoding::Plain { number: Number::of_safetensors(info.dtype), place };
        (name, Stored { shape: info.shape.clone(), encoding })
    };
    Ok(Ok(metadata.tensors().into_iter().map(of).collect()))
}

/// A tensor of a file of `torch.save`.
pub(crate) fn of_torch(of: torch::Strided, file: usize) -> Stored {
    let (number, place) = (of.number, Place { file, start: of.start });
    let encoding = match of.is_plain() {
        true => Encoding::Plain { number, place },
        false => {
            let at = vec![0; of.shape.len()];
            Encoding::Pieces { number, pieces: vec![Piece { place, at, shape: of.shape.clone(), strides: of.strides }] }
        }
    };
    Stored { shape: of.shape, encoding }
}

/// The one file of `torch.save` in a folder that may hold weights.
fn only_torch_file(folder: &Path) -> Result<Option<PathBuf>> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Ok(None) };
    let mut found: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).filter(|path| path.is_file()).collect();
    found.retain(|path| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        TORCH_ENDS.iter().any(|end| name.ends_with(end)) && !NO_WEIGHTS.iter().any(|start| name.starts_with(start))
    });
    found.sort();
    match found.as_slice() {
        [] => Ok(None),
        [one] => Ok(Some(one.clone())),
        [first, second, ..] => {
            let names = [first, second].map(|path| path.file_name().unwrap_or_default().display().to_string());
            let problem = format!("holds `{}`, `{}` and no index that says what is in them", names[0], names[1]);
            Err(Error::file(folder, problem))
        }
    }
}

/// The one GGUF file of a folder.
fn gguf_in(folder: &Path) -> Result<Option<PathBuf>> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Ok(None) };
    let mut found: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    found.retain(|path| path.extension().is_some_and(|end| end == "gguf"));
    found.sort();
    match found.as_slice() {
        [] => Ok(None),
        [one] => Ok(Some(one.clone())),
        many => {
            let names = many.iter().filter_map(|path| path.file_name()).map(|name| format!("`{}`", name.display()));
            let names = names.collect::<Vec<_>>().join(", ");
            Err(Error::file(
                folder,
                format!("holds several GGUF files: {names}; put the one to be read into a folder of its own"),
            ))
        }
    }
}

/// The tokenizer of the one GGUF file of a folder, with the file; `None` where there is no such file, or it has none.
///
/// # Errors
/// Where it cannot be read, or is of a kind that is not known.
pub fn gguf_tokenizer(folder: &Path) -> Result<Option<(PathBuf, GgufTokenizer)>> {
    let Some(path) = gguf_in(folder)? else { return Ok(None) };
    let bytes = map(&path, 0, None)?;
    let of = gguf::header(&bytes).and_then(|header| gguf::tokenizer(&header));
    Ok(of.map_err(|problem| Error::file(&path, problem))?.map(|of| (path, of)))
}

/// The config that the one GGUF file of a folder stands for, as transformers writes it, with the file; `None` where there is no such file.
///
/// # Errors
/// Where it cannot be read, or its config cannot be made from it.
pub fn gguf_config(folder: &Path) -> Result<Option<(PathBuf, serde_json::Value)>> {
    let Some(path) = gguf_in(folder)? else { return Ok(None) };
    let map = map(&path, 0, None)?;
    let config = gguf::config(&map).map_err(|problem| Error::file(&path, problem))?;
    Ok(Some((path, config)))
}

/// What to do about a training state that its own trainer has to convert.
fn unconverted(folder: &Path) -> Option<String> {
    let begins = |folder: &Path, start: &str, end: &str| {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        let mut names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        names.any(|name| name.starts_with(start) && name.ends_with(end))
    };
    let beside = if folder.ends_with("huggingface") { folder.parent().unwrap_or(folder) } else { folder };
    if begins(beside, "model_world_size_", ".pt") {
        return Some(format!(
            "holds verl's state of every rank. Convert it with `python -m verl.model_merger merge --backend fsdp --local_dir {} \
             --target_dir OUT`, and use OUT",
            beside.display()
        ));
    }
    if begins(folder, "mp_rank_", "") && !begins(folder, "mp_rank_", ".pt") {
        return Some(format!(
            "holds Megatron's state of every rank. Convert it with the program that wrote it (Megatron-Bridge: \
             `AutoBridge.from_hf_pretrained(BASE).export_ckpt(\"{}\", OUT)`), and use OUT",
            folder.display()
        ));
    }
    let states = |folder: &Path| begins(folder, "", "_model_states.pt");
    let inside = || std::fs::read_dir(folder).into_iter().flatten().flatten().any(|entry| states(&entry.path()));
    (states(folder) || inside()).then(|| {
        format!(
            "holds DeepSpeed's state of every rank. Convert it with `python zero_to_fp32.py {} OUT`, and use OUT",
            folder.display()
        )
    })
}

/// The folder of `torch.distributed.checkpoint`: this one, or the one inside that trainers write the model to.
fn distributed_folder(folder: &Path) -> Option<PathBuf> {
    let candidates = [".", "pytorch_model_fsdp_0", "model", "pytorch_model", "dist_model", "distcp"];
    candidates.iter().map(|name| folder.join(name)).find(|inside| inside.join(distributed::METADATA).is_file())
}
