//! Checkpoints of `torch.distributed.checkpoint`: a folder of `.distcp` files, one or more a rank, and `.metadata`, a pickle that says which
//! part of which tensor is where. Each part is a file of `torch.save` inside a `.distcp` file.
use super::pickle::{self, Id, Pickle, Value};
use super::{MOST_BYTES, Strided, tensor_at};
use std::collections::HashMap;

/// Name of the file that describes the others.
pub(crate) const METADATA: &str = ".metadata";

/// A part of a tensor, and where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    /// Name of the file.
    pub file: String,
    /// Bytes of it.
    pub start: u64,
    pub length: u64,
    /// Where the part begins in the tensor, and how large it is.
    pub at: Vec<usize>,
    pub shape: Vec<usize>,
}

/// A tensor of a distributed checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Tensor {
    pub name: String,
    pub shape: Vec<usize>,
    pub parts: Vec<Part>,
}

/// The state of an instance of a class, by its name.
fn instance<'a>(pickle: &'a Pickle<'_>, id: Id, class: &str) -> Option<&'a [(Id, Id)]> {
    let Value::Call { of, state: Some(state), .. } = pickle.get(id) else { return None };
    // a dict of attributes, or a pair of that and of slots
    let state = match pickle.get(*state) {
        Value::Tuple(parts) => *parts.last()?,
        _ => *state,
    };
    let (module, name) = pickle.name(*of)?;
    (name == class && module.starts_with("torch.distributed.checkpoint")).then(|| pickle.entries(state))?
}

/// Reads `.metadata`.
pub(crate) fn tensors(bytes: &[u8]) -> Result<Vec<Tensor>, String> {
    if bytes.len() > MOST_BYTES {
        return Err(format!("has {} bytes; expected at most {MOST_BYTES}", bytes.len()));
    }
    let pickle = pickle::read(bytes)?;
    read(&pickle).ok_or_else(|| "is not what torch.distributed.checkpoint writes".to_owned())?
}

/// Where parts are, by the tensor's name and the part's place.
type Places = HashMap<(String, Vec<usize>), (String, u64, u64)>;

fn read(pickle: &Pickle<'_>) -> Option<Result<Vec<Tensor>, String>> {
    let metadata = instance(pickle, pickle.top, "Metadata")?;
    let mut places = Places::new();
    for (index, place) in pickle.entries(pickle.entry(metadata, "storage_data")?)? {
        let index = instance(pickle, *index, "MetadataIndex")?;
        let name = pickle.text(pickle.entry(index, "fqn")?)?.to_owned();
        let at = pickle.entry(index, "offset").and_then(|at| pickle.sizes(at)).unwrap_or_default();
        let place = instance(pickle, *place, "_StorageInfo")?;
        let number = |key| pickle.size(pickle.entry(place, key)?).map(|number| number as u64);
        let file = pickle.text(pickle.entry(place, "relative_path")?)?.to_owned();
        places.insert((name, at), (file, number("offset")?, number("length")?));
    }
    let mut found = Vec::new();
    for (name, of) in pickle.entries(pickle.entry(metadata, "state_dict_metadata")?)? {
        let name = pickle.text(*name)?;
        // what is no tensor is bytes
        let Some(of) = instance(pickle, *of, "TensorStorageMetadata") else { continue };
        let shape = pickle.sizes(pickle.entry(of, "size")?)?;
        let mut parts = Vec::new();
        for &chunk in pickle.parts(pickle.entry(of, "chunks")?)? {
            let chunk = instance(pickle, chunk, "ChunkStorageMetadata")?;
            let sizes = |key| pickle.sizes(pickle.entry(chunk, key)?);
            let (at, size) = (sizes("offsets")?, sizes("sizes")?);
            let Some((file, start, length)) = places.get(&(name.to_owned(), at.clone())) else {
                return Some(Err(format!("says nothing of where the part of `{name}` at {at:?} is")));
            };
            if file.contains(['/', '\\']) || file.starts_with("..") {
                return Some(Err(format!("names the file `{file}`, which is none of this folder")));
            }
            parts.push(Part { file: file.clone(), start: *start, length: *length, at, shape: size });
        }
        if let Err(problem) = fill(&shape, &parts) {
            return Some(Err(format!("`{name}`: {problem}")));
        }
        found.push(Tensor { name: name.to_owned(), shape, parts });
    }
    Some(Ok(found))
}

/// Whether parts fill a tensor: each lies in it, and together they have as many values as it has.
fn fill(shape: &[usize], parts: &[Part]) -> Result<(), String> {
    let number = |shape: &[usize]| shape.iter().try_fold(1usize, |number, size| number.checked_mul(*size));
    let mut sum = 0usize;
    for part in parts {
        let inside = part.at.len() == shape.len()
            && part.shape.len() == shape.len()
            && part
                .at
                .iter()
                .zip(&part.shape)
                .zip(shape)
                .all(|((at, size), all)| at.checked_add(*size).is_some_and(|end| end <= *all));
        if !inside {
            return Err(format!("a part of {:?} at {:?} is not inside {shape:?}", part.shape, part.at));
        }
        sum = number(&part.shape)
            .and_then(|values| sum.checked_add(values))
            .ok_or("has more values than can be counted")?;
    }
    match number(shape) {
        Some(all) if all == sum => Ok(()),
        _ => Err(format!(
            "its parts have {sum} values in all, which are not those of {shape:?}: a rank's file may be missing"
        )),
    }
}

/// The tensor of a part, in the bytes of its file.
pub(crate) fn part(bytes: &[u8], of: &Part) -> Result<Strided, String> {
    let range = usize::try_from(of.start).ok().zip(usize::try_from(of.start.saturating_add(of.length)).ok());
    let part = range.and_then(|(start, end)| bytes.get(start..end)).ok_or("a part of a tensor ends beyond the file")?;
    let tensor = tensor_at(part, of.start)?;
    if tensor.shape != of.shape {
        return Err(format!("a part has shape {:?}, and .metadata says {:?}", tensor.shape, of.shape));
    }
    Ok(tensor)
}
