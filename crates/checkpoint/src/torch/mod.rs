//! Files that `torch.save` writes: an archive of a pickle and the values of storages, or, before torch 1.6, pickles with the storages
//! behind them. The pickle is read as data ([`pickle`]); of what it would build, tensors and dicts of them are understood.
pub(crate) mod distributed;
pub(crate) mod optimizer;
pub(crate) mod pickle;

use crate::number::Number;
use pickle::{Id, Pickle, Value};
use std::collections::HashMap;
use std::io::Cursor;
use zip::{CompressionMethod, ZipArchive};

/// Values of a storage that make a tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Strided {
    pub number: Number,
    /// First byte, in the file.
    pub start: u64,
    pub shape: Vec<usize>,
    /// Values from one entry to the next, for each dimension.
    pub strides: Vec<usize>,
}

impl Strided {
    /// Whether its values lie one behind the other.
    pub fn is_plain(&self) -> bool {
        let mut apart = 1;
        let dimensions = self.shape.iter().zip(&self.strides).rev();
        dimensions.fold(true, |plain, (&size, &stride)| {
            let here = size <= 1 || stride == apart;
            apart *= size;
            plain && here
        })
    }
}

/// Where a storage's values are.
struct Storage {
    start: u64,
    bytes: u64,
}

/// Storages by their keys.
type Storages = HashMap<String, Storage>;

/// Number of torch's files before 1.6, the lowest byte first.
const MAGIC: [u8; 10] = [0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];

/// Most bytes of a pickle: it describes tensors, and does not hold their values.
const MOST_BYTES: usize = 1 << 28;

/// The tensors of a file's state dict, by name.
pub(crate) fn tensors(bytes: &[u8]) -> Result<Vec<(String, Strided)>, String> {
    read(bytes, |pickle, storages| state_dict(pickle, pickle.top, storages))
}

/// The one tensor of a file, which begins at some byte of another file.
fn tensor_at(bytes: &[u8], first: u64) -> Result<Strided, String> {
    let tensor = read(bytes, |pickle, storages| {
        tensor(pickle, pickle.top, storages)?.ok_or_else(|| "holds something other than a tensor".to_owned())
    })?;
    Ok(Strided { start: tensor.start + first, ..tensor })
}

/// Reads a file's pickle, and tells where its storages are.
fn read<T>(bytes: &[u8], of: impl FnOnce(&Pickle<'_>, &Storages) -> Result<T, String>) -> Result<T, String> {
    if bytes.starts_with(b"PK") {
        let (data, storages) = archive(bytes)?;
        return of(&pickle::read(data)?, &storages);
    }
    if bytes.get(257..262) == Some(b"ustar") {
        return Err(
            "was written by torch before 0.4, as a tar archive, which is not read; load it once with torch and save it"
                .to_owned(),
        );
    }
    legacy(bytes, of)
}

/// The pickle of an archive, and its storages.
fn archive(bytes: &[u8]) -> Result<(&[u8], Storages), String> {
    let broken = |e: zip::result::ZipError| format!("not a complete archive ({e}); copy or download it again");
    let mut archive = ZipArchive::new(Cursor::new(bytes)).map_err(broken)?;
    let (mut data, mut storages) = (None, Storages::new());
    for index in 0..archive.len() {
        let file = archive.by_index_raw(index).map_err(broken)?;
        let (name, size) = (file.name().to_owned(), file.size());
        let start = file.data_start().ok_or("has an entry that is nowhere")?;
        let Some((_, inside)) = name.split_once('/') else { continue };
        let whole = usize::try_from(start).ok().zip(usize::try_from(start.saturating_add(size)).ok());
        let content = whole
            .and_then(|(start, end)| bytes.get(start..end))
            .ok_or_else(|| format!("`{name}` ends beyond the file"))?;
        let wanted = inside == "data.pkl" || inside.starts_with("data/") || inside == "byteorder";
        if wanted && file.compression() != CompressionMethod::Stored {
            return Err(format!(
                "`{name}` is compressed, which torch does not do; load it once with torch and save it"
            ));
        }
        match inside {
            "data.pkl" => data = Some(content),
            "byteorder" if content != b"little" => {
                return Err("was written with the highest byte first, which is not read".to_owned());
            }
            _ => {
                if let Some(key) = inside.strip_prefix("data/") {
                    storages.insert(key.to_owned(), Storage { start, bytes: size });
                }
            }
        }
    }
    match data {
        Some(data) if data.len() <= MOST_BYTES => Ok((data, storages)),
        Some(data) => Err(format!("its pickle has {} bytes; expected at most {MOST_BYTES}", data.len())),
        None if storages.is_empty() => Err("an archive without `data.pkl`, so none that torch.save writes".to_owned()),
        None => Err("an archive without `data.pkl`: is it a TorchScript module?".to_owned()),
    }
}

/// A file before torch 1.6: its number, its version, a word on the machine, the pickle, the keys of its storages, and the storages.
fn legacy<T>(bytes: &[u8], of: impl FnOnce(&Pickle<'_>, &Storages) -> Result<T, String>) -> Result<T, String> {
    let no_file = "neither an archive nor what torch wrote before 1.6: is it complete?";
    let rest = |at: usize| &bytes[at..(at + MOST_BYTES).min(bytes.len())];
    let first = pickle::read(rest(0)).map_err(|problem| format!("{no_file} ({problem})"))?;
    if first.big(first.top) != Some(&MAGIC) {
        return Err(no_file.to_owned());
    }
    let mut at = first.length;
    at += pickle::read(rest(at))?.length;
    let machine = pickle::read(rest(at))?;
    if let Some(entries) = machine.entries(machine.top)
        && machine.entry(entries, "little_endian").map(|id| machine.get(id)) == Some(&Value::Bool(false))
    {
        return Err("was written with the highest byte first, which is not read".to_owned());
    }
    at += machine.length;
    let main = pickle::read(rest(at))?;
    at += main.length;
    let keys = pickle::read(rest(at))?;
    at += keys.length;
    // how wide each storage's numbers are stands where a tensor uses it
    let widths = widths(&main)?;
    let mut storages = Storages::new();
    for &key in keys.parts(keys.top).ok_or("has no list of storages")? {
        let key = keys.text(key).ok_or("has a storage without a name")?;
        let count = bytes.get(at..at + 8).and_then(|count| count.try_into().ok()).map(u64::from_le_bytes);
        let width = widths.get(key).ok_or_else(|| format!("has a storage `{key}` that no tensor uses"))?;
        let (start, size) = (at as u64 + 8, count.and_then(|count| count.checked_mul(*width as u64)));
        let end = size.and_then(|size| start.checked_add(size)).filter(|end| *end <= bytes.len() as u64);
        let (Some(size), Some(end)) = (size, end) else {
            return Err(format!("its storage `{key}` ends beyond the file"));
        };
        storages.insert(key.to_owned(), Storage { start, bytes: size });
        at = usize::try_from(end).map_err(|_| no_file)?;
    }
    of(&main, &storages)
}

/// Bytes of a number of each storage that a pickle describes.
fn widths(pickle: &Pickle<'_>) -> Result<HashMap<String, usize>, String> {
    let described = pickle.outside();
    described
        .map(|id| storage_named(pickle, id).map(|named| (named.key, named.number.map_or(1, Number::size))))
        .collect()
}

/// What a pickle says of a storage.
struct StorageName {
    key: String,
    /// Type of its values; `None` where the tensor says it.
    number: Option<Number>,
    /// Values of the storage behind it that come before it.
    offset: usize,
}

/// `('storage', type, key, device, values)`, and before torch 1.6 what part of another it is.
fn storage_named(pickle: &Pickle<'_>, described: Id) -> Result<StorageName, String> {
    let problem = || "describes a storage in a way that torch does not".to_owned();
    let parts = pickle.parts(described).filter(|parts| parts.len() >= 5).ok_or_else(problem)?;
    if pickle.text(parts[0]) != Some("storage") {
        return Err(problem());
    }
    let number = match pickle.name(parts[1]).ok_or_else(problem)? {
        ("torch.storage", "UntypedStorage") => None,
        (_, name) => {
            Some(Number::of_torch(name).ok_or_else(|| format!("has values of type `{name}`, which are not read"))?)
        }
    };
    let view = parts.get(5).and_then(|view| pickle.parts(*view));
    let offset = match view {
        None => 0,
        Some(view) => view.get(1).and_then(|offset| pickle.size(*offset)).ok_or_else(problem)?,
    };
    Ok(StorageName { key: pickle.text(parts[2]).ok_or_else(problem)?.to_owned(), number, offset })
}

/// Keys under which trainers put a state dict beside other things.
const STATE_DICTS: [&str; 4] = ["state_dict", "model", "module", "model_state_dict"];

/// The tensors of a dict; or of the dict under a key that trainers use, where it has none itself.
fn state_dict(pickle: &Pickle<'_>, id: Id, storages: &Storages) -> Result<Vec<(String, Strided)>, String> {
    let found = tensors_of(pickle, id, storages)?;
    if !found.is_empty() {
        return Ok(found);
    }
    let entries = pickle.entries(id).unwrap_or_default();
    let inner =
        STATE_DICTS.iter().find_map(|key| pickle.entry(entries, key).filter(|inner| pickle.entries(*inner).is_some()));
    let found = inner.map_or(Ok(found), |inner| tensors_of(pickle, inner, storages))?;
    if found.is_empty() { Err("holds a dict without tensors".to_owned()) } else { Ok(found) }
}

/// The entries of a dict that are tensors.
fn tensors_of(pickle: &Pickle<'_>, id: Id, storages: &Storages) -> Result<Vec<(String, Strided)>, String> {
    let mut found = Vec::new();
    for (key, value) in pickle.entries(id).ok_or("holds something other than a dict of tensors")? {
        if let (Some(name), Some(tensor)) = (pickle.text(*key), tensor(pickle, *value, storages)?) {
            found.push((name.to_owned(), tensor));
        }
    }
    Ok(found)
}

/// How deep calls of rebuilding functions stand in each other.
const DEEPEST: usize = 8;

/// The tensor that a value is, where it is one.
fn tensor(pickle: &Pickle<'_>, id: Id, storages: &Storages) -> Result<Option<Strided>, String> {
    let (mut id, mut function) = (id, None);
    for _ in 0..DEEPEST {
        let arguments = match (pickle.get(id), &function) {
            (Value::Call { of, arguments, .. }, None) => {
                function = pickle.name(*of).map(|(module, name)| (module.to_owned(), name.to_owned()));
                *arguments
            }
            (Value::Tuple(_), Some(_)) => id,
            _ => return Ok(None),
        };
        let Some((module, name)) = function.take() else { return Ok(None) };
        let parts = pickle.parts(arguments).unwrap_or_default();
        let wrong = || format!("calls `{module}.{name}` with arguments that torch does not give it");
        match name.as_str() {
            "_rebuild_tensor" | "_rebuild_tensor_v2" => {
                return rebuilt(pickle, parts, None, storages).ok_or_else(wrong)?.map(Some);
            }
            "_rebuild_tensor_v3" => {
                let number = parts.get(6).and_then(|id| pickle.name(*id)).and_then(|(_, name)| Number::of_torch(name));
                let number = number.ok_or_else(wrong)?;
                return rebuilt(pickle, parts, Some(number), storages).ok_or_else(wrong)?.map(Some);
            }
            "_rebuild_parameter" | "_rebuild_parameter_with_state" | "Parameter" => {
                id = *parts.first().ok_or_else(wrong)?;
            }
            // a subclass of tensors: the function that builds it, its class, and the function's arguments
            "_rebuild_from_type_v2" => {
                let (of, inner) = parts.first().zip(parts.get(2)).ok_or_else(wrong)?;
                let (module, name) = pickle.name(*of).ok_or_else(wrong)?;
                function = Some((module.to_owned(), name.to_owned()));
                id = *inner;
            }
            _ => return Ok(None),
        }
    }
    Err("holds a tensor inside too many others".to_owned())
}

/// A tensor of a storage, an offset, sizes and strides; `None` where the arguments are not those.
fn rebuilt(
    pickle: &Pickle<'_>,
    arguments: &[Id],
    number: Option<Number>,
    storages: &Storages,
) -> Option<Result<Strided, String>> {
    let [storage, offset, sizes, strides, ..] = arguments else { return None };
    let Value::Outside(described) = pickle.get(*storage) else { return None };
    let (offset, shape, strides) = (pickle.size(*offset)?, pickle.sizes(*sizes)?, pickle.sizes(*strides)?);
    if shape.len() != strides.len() {
        return None;
    }
    let of_storage = || -> Result<Strided, String> {
        let named = storage_named(pickle, *described)?;
        let number = number.or(named.number).ok_or("has a tensor without a type")?;
        let storage = storages.get(&named.key).ok_or_else(|| format!("lacks the values of storage `{}`", named.key))?;
        let beyond = || format!("has a tensor that ends beyond its storage `{}`", named.key);
        let width = number.size() as u64;
        let first = (offset as u64).checked_add(named.offset as u64);
        // the last value is as far from the first as all dimensions reach
        let reach = shape.iter().zip(&strides).try_fold(0u64, |sum, (&size, &stride)| {
            sum.checked_add((size as u64).saturating_sub(1).checked_mul(stride as u64)?)
        });
        let values = u64::from(!shape.contains(&0));
        let end = first
            .zip(reach)
            .and_then(|(first, reach)| first.checked_add(reach)?.checked_add(values)?.checked_mul(width));
        end.filter(|end| *end <= storage.bytes).ok_or_else(beyond)?;
        let start = first.and_then(|first| first.checked_mul(width)).ok_or_else(beyond)?;
        Ok(Strided { number, start: storage.start + start, shape, strides })
    };
    Some(of_storage())
}
