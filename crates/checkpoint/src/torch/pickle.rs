//! Pickles as data: what a file would build is written down, and nothing is called.
//!
//! A pickle is a program for a stack machine whose instructions can name any function of Python and call it. Here a call is a value
//! of its own, [`Value::Call`], and a name that is not one of tensors or plain containers ends the reading
//! (protocols 0 to 5, <https://github.com/python/cpython/blob/3.13/Lib/pickletools.py>).
use crate::error::brief;
use std::collections::HashMap;
use std::ops::Range;

/// Most values of a pickle. Files of weights have some ten for a tensor.
const MOST_VALUES: usize = 1 << 24;

/// Names that a pickle may have: what tensors, state dicts and their metadata are made of. A module that ends in a dot stands for all names
/// in it and below.
const KNOWN: &[(&str, &str)] = &[
    ("collections", "OrderedDict"),
    ("torch", "Size"),
    ("torch", "Tensor"),
    ("torch", "device"),
    ("torch.nn.parameter", "Parameter"),
    ("torch._utils", "_rebuild_tensor"),
    ("torch._utils", "_rebuild_tensor_v2"),
    ("torch._utils", "_rebuild_tensor_v3"),
    ("torch._utils", "_rebuild_parameter"),
    ("torch._utils", "_rebuild_parameter_with_state"),
    ("torch._tensor", "_rebuild_from_type_v2"),
    ("torch.serialization", "_get_layout"),
    ("torch.storage", "UntypedStorage"),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch.distributed.checkpoint.filesystem", "_StoragePrefix"),
    ("torch.distributed.checkpoint.metadata", "BytesStorageMetadata"),
    ("torch.distributed.checkpoint.metadata", "ChunkStorageMetadata"),
    ("torch.distributed.checkpoint.metadata", "Metadata"),
    ("torch.distributed.checkpoint.metadata", "MetadataIndex"),
    ("torch.distributed.checkpoint.metadata", "StorageMeta"),
    ("torch.distributed.checkpoint.metadata", "TensorProperties"),
    ("torch.distributed.checkpoint.metadata", "TensorStorageMetadata"),
    ("torch.distributed.checkpoint.metadata", "_MEM_FORMAT_ENCODING"),
    ("pathlib", "PosixPath"),
];

/// Number types of tensors, as torch names them.
const TYPES: &[&str] = &[
    "bfloat16",
    "bool",
    "float16",
    "float32",
    "float64",
    "float8_e4m3fn",
    "float8_e5m2",
    "half",
    "int16",
    "int32",
    "int64",
    "int8",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
];

/// Whether a name is one of those that tensors and plain containers are made of.
fn is_known(module: &str, name: &str) -> bool {
    let storage = module == "torch" && name.strip_suffix("Storage").is_some_and(|kind| !kind.is_empty());
    KNOWN.contains(&(module, name)) || storage || module == "torch" && TYPES.contains(&name)
}

/// A value's place among those of its pickle.
pub(crate) type Id = u32;

/// What a pickle builds.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    /// A number beyond 64 bits: its bytes, the lowest first.
    Big(Range<usize>),
    /// Text, as bytes of the pickle.
    Text(Range<usize>),
    /// Bytes of the pickle.
    Bytes(Range<usize>),
    Tuple(Vec<Id>),
    List(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    /// A function or a class, by its module and name.
    Name(String, String),
    /// What lies outside the pickle, by its description.
    Outside(Id),
    /// What a call or a class with arguments would give, and the state that it would be given then.
    Call {
        of: Id,
        arguments: Id,
        state: Option<Id>,
    },
}

/// The values of a pickle that was read whole.
#[derive(Debug)]
pub(crate) struct Pickle<'a> {
    bytes: &'a [u8],
    values: Vec<Value>,
    /// The one that the program leaves.
    pub top: Id,
    /// Bytes that it took.
    pub length: usize,
}

impl<'a> Pickle<'a> {
    /// A value.
    pub fn get(&self, id: Id) -> &Value {
        &self.values[id as usize]
    }

    /// Descriptions of all that lies outside.
    pub fn outside(&self) -> impl Iterator<Item = Id> {
        self.values.iter().filter_map(|value| match value {
            Value::Outside(described) => Some(*described),
            _ => None,
        })
    }

    /// The text of a value, where it is one.
    pub fn text(&self, id: Id) -> Option<&'a str> {
        match self.get(id) {
            Value::Text(range) => std::str::from_utf8(&self.bytes[range.clone()]).ok(),
            _ => None,
        }
    }

    /// A number that counts something.
    pub fn size(&self, id: Id) -> Option<usize> {
        match self.get(id) {
            Value::Int(number) => usize::try_from(*number).ok(),
            _ => None,
        }
    }

    /// The bytes of a number beyond 64 bits.
    pub fn big(&self, id: Id) -> Option<&'a [u8]> {
        match self.get(id) {
            Value::Big(range) => Some(&self.bytes[range.clone()]),
            _ => None,
        }
    }

    /// The parts of a tuple or list.
    pub fn parts(&self, id: Id) -> Option<&[Id]> {
        match self.get(id) {
            Value::Tuple(parts) | Value::List(parts) => Some(parts),
            _ => None,
        }
    }

    /// Module and name of a function or class.
    pub fn name(&self, id: Id) -> Option<(&str, &str)> {
        match self.get(id) {
            Value::Name(module, name) => Some((module, name)),
            _ => None,
        }
    }

    /// Entries of a dict, or of what a call of `OrderedDict` would give.
    pub fn entries(&self, id: Id) -> Option<&[(Id, Id)]> {
        match self.get(id) {
            Value::Dict(entries) => Some(entries),
            _ => None,
        }
    }

    /// The value of a text key.
    pub fn entry(&self, entries: &[(Id, Id)], key: &str) -> Option<Id> {
        entries.iter().rev().find(|(name, _)| self.text(*name) == Some(key)).map(|(_, value)| *value)
    }

    /// Sizes in a tuple, or in what a call of `torch.Size` would give.
    pub fn sizes(&self, id: Id) -> Option<Vec<usize>> {
        let tuple = match self.get(id) {
            Value::Call { of, arguments, .. } if self.name(*of) == Some(("torch", "Size")) => {
                *self.parts(*arguments)?.first()?
            }
            _ => id,
        };
        self.parts(tuple)?.iter().map(|&size| self.size(size)).collect()
    }
}

/// The stack machine.
struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    values: Vec<Value>,
    stack: Vec<Id>,
    /// Heights of the stack at its marks.
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
}

/// Reads the first pickle of some bytes.
///
/// # Errors
/// Says what is wrong, or which name is not one of tensors and plain containers.
pub(crate) fn read(bytes: &[u8]) -> Result<Pickle<'_>, String> {
    let (values, stack, marks, memo) = (Vec::new(), Vec::new(), Vec::new(), HashMap::new());
    let mut machine = Machine { bytes, at: 0, values, stack, marks, memo };
    while !machine.step()? {}
    let top = machine.pop()?;
    let Machine { bytes, values, at, .. } = machine;
    Ok(Pickle { bytes, values, top, length: at })
}

const TRUNCATED: &str = "the pickle ends in the middle; copy or download the file again";

impl Machine<'_> {
    fn take(&mut self, length: usize) -> Result<Range<usize>, String> {
        let end = self.at.checked_add(length).filter(|end| *end <= self.bytes.len()).ok_or(TRUNCATED)?;
        let range = self.at..end;
        self.at = end;
        Ok(range)
    }

    fn next<const W: usize>(&mut self) -> Result<[u8; W], String> {
        let range = self.take(W)?;
        self.bytes[range].try_into().map_err(|_| TRUNCATED.to_owned())
    }

    fn skip(&mut self, length: usize) -> Result<(), String> {
        self.take(length).map(|_| ())
    }

    /// A length in front of what it counts.
    fn counted<const W: usize>(&mut self) -> Result<Range<usize>, String> {
        let length = self.next::<W>()?.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte));
        self.take(usize::try_from(length).map_err(|_| TRUNCATED)?)
    }

    /// A line, without its end.
    fn line(&mut self) -> Result<Range<usize>, String> {
        let rest = &self.bytes[self.at..];
        let end = rest.iter().position(|byte| *byte == b'\n').ok_or(TRUNCATED)?;
        let range = self.take(end + 1)?;
        Ok(range.start..range.end - 1)
    }

    fn line_as<T: std::str::FromStr>(&mut self) -> Result<T, String> {
        let line = self.line()?;
        let text = std::str::from_utf8(&self.bytes[line]).ok().map(|text| text.trim_end_matches('L'));
        text.and_then(|text| text.parse().ok()).ok_or_else(|| "holds a number that is none".to_owned())
    }

    fn push(&mut self, value: Value) -> Result<(), String> {
        if self.values.len() >= MOST_VALUES {
            return Err(format!("the pickle holds more than {MOST_VALUES} values"));
        }
        self.stack.push(u32::try_from(self.values.len()).map_err(|_| TRUNCATED)?);
        self.values.push(value);
        Ok(())
    }

    fn pop(&mut self) -> Result<Id, String> {
        // what is below a mark is not to be had before the mark is gone
        if self.marks.last().is_some_and(|mark| self.stack.len() <= *mark) {
            return Err(NO_VALUE.to_owned());
        }
        self.stack.pop().ok_or_else(|| NO_VALUE.to_owned())
    }

    fn top(&self) -> Result<Id, String> {
        self.stack.last().copied().ok_or_else(|| NO_VALUE.to_owned())
    }

    /// What is above the last mark.
    fn since_mark(&mut self) -> Result<Vec<Id>, String> {
        let mark = self.marks.pop().ok_or_else(|| "the pickle goes back to a mark that is not there".to_owned())?;
        // never more than there is: `pop` stops at marks
        Ok(self.stack.split_off(mark.min(self.stack.len())))
    }

    fn tuple(&mut self, length: usize) -> Result<(), String> {
        let mut parts = Vec::with_capacity(length);
        for _ in 0..length {
            parts.push(self.pop()?);
        }
        parts.reverse();
        self.push(Value::Tuple(parts))
    }

    fn name(&mut self, module: &str, name: &str) -> Result<(), String> {
        // Python 2's names for the same
        let module = if module == "__builtin__" { "builtins" } else { module };
        if !is_known(module, name) {
            return Err(format!(
                "the pickle names `{}`, which is no part of tensors and plain containers; nothing was run. If you trust the file, load \
                 it once with transformers or peft and save it with `save_pretrained`, or with safetensors",
                brief(&format!("{module}.{name}"))
            ));
        }
        self.push(Value::Name(module.to_owned(), name.to_owned()))
    }

    fn named(&self, range: Range<usize>) -> Result<String, String> {
        std::str::from_utf8(&self.bytes[range])
            .map(str::to_owned)
            .map_err(|_| "holds a name that is no text".to_owned())
    }

    fn text_of(&self, id: Id) -> Result<String, String> {
        match &self.values[id as usize] {
            Value::Text(range) => self.named(range.clone()),
            _ => Err("names a function by what is no text".to_owned()),
        }
    }

    fn call(&mut self) -> Result<(), String> {
        let (arguments, of) = (self.pop()?, self.pop()?);
        let Value::Name(module, name) = &self.values[of as usize] else {
            return Err("the pickle calls what is no function".to_owned());
        };
        if (module.as_str(), name.as_str()) == ("collections", "OrderedDict") {
            return self.push(Value::Dict(Vec::new()));
        }
        self.push(Value::Call { of, arguments, state: None })
    }

    /// Adds to the list below.
    fn append(&mut self, parts: &[Id]) -> Result<(), String> {
        let list = self.top()?;
        match &mut self.values[list as usize] {
            Value::List(list) => list.extend_from_slice(parts),
            _ => return Err("the pickle adds to what is no list".to_owned()),
        }
        Ok(())
    }

    /// Adds keys and values to the dict below.
    fn set(&mut self, parts: &[Id]) -> Result<(), String> {
        let (pairs, rest) = parts.as_chunks::<2>();
        let dict = self.top()?;
        match &mut self.values[dict as usize] {
            Value::Dict(entries) if rest.is_empty() => entries.extend(pairs.iter().map(|[key, value]| (*key, *value))),
            _ => return Err("the pickle adds a key to what is no dict".to_owned()),
        }
        Ok(())
    }

    fn build(&mut self) -> Result<(), String> {
        let given = self.pop()?;
        let of = self.top()?;
        match &mut self.values[of as usize] {
            Value::Call { state, .. } => *state = Some(given),
            // attributes of a dict, such as a state dict's `_metadata`
            Value::Dict(_) => {}
            _ => return Err("the pickle gives a state to what has none".to_owned()),
        }
        Ok(())
    }

    fn remember(&mut self, at: u32) -> Result<(), String> {
        let top = self.top()?;
        self.memo.insert(at, top);
        Ok(())
    }

    fn recall(&mut self, at: u32) -> Result<(), String> {
        let id = *self.memo.get(&at).ok_or_else(|| format!("the pickle goes back to value {at}, which it has not"))?;
        self.stack.push(id);
        if self.stack.len() > MOST_VALUES {
            return Err(format!("the pickle holds more than {MOST_VALUES} values"));
        }
        Ok(())
    }

    /// Does one instruction; whether it was the last.
    #[allow(clippy::too_many_lines)] // one line for each instruction
    fn step(&mut self) -> Result<bool, String> {
        let [code] = self.next()?;
        match code {
            b'.' => return Ok(true),
            0x80 => self.skip(1)?,
            // a frame is a hint about buffers
            0x95 => self.skip(8)?,
            b'N' => self.push(Value::None)?,
            0x88 => self.push(Value::Bool(true))?,
            0x89 => self.push(Value::Bool(false))?,
            b'I' => {
                let line = self.line()?;
                let value = match &self.bytes[line.clone()] {
                    b"00" => Value::Bool(false),
                    b"01" => Value::Bool(true),
                    text => Value::Int(parsed(text)?),
                };
                self.push(value)?;
            }
            b'L' => {
                let number = self.line_as()?;
                self.push(Value::Int(number))?;
            }
            b'J' => {
                let number = i32::from_le_bytes(self.next()?);
                self.push(Value::Int(i64::from(number)))?;
            }
            b'K' => {
                let [number] = self.next()?;
                self.push(Value::Int(i64::from(number)))?;
            }
            b'M' => {
                let number = u16::from_le_bytes(self.next()?);
                self.push(Value::Int(i64::from(number)))?;
            }
            0x8a => {
                let range = self.counted::<1>()?;
                self.long(range)?;
            }
            0x8b => {
                let range = self.counted::<4>()?;
                self.long(range)?;
            }
            b'F' => {
                let number = self.line_as()?;
                self.push(Value::Float(number))?;
            }
            b'G' => {
                let number = f64::from_be_bytes(self.next()?);
                self.push(Value::Float(number))?;
            }
            b'V' => {
                let line = self.line()?;
                self.push(Value::Text(line))?;
            }
            b'S' => {
                let line = self.line()?;
                // in quotes
                let inside = line.start + 1..line.end.saturating_sub(1).max(line.start + 1);
                let inside = if line.len() < 2 { line.start..line.start } else { inside };
                self.push(Value::Text(inside))?;
            }
            0x8c | b'U' => {
                let range = self.counted::<1>()?;
                self.push(Value::Text(range))?;
            }
            b'X' | b'T' => {
                let range = self.counted::<4>()?;
                self.push(Value::Text(range))?;
            }
            0x8d => {
                let range = self.counted::<8>()?;
                self.push(Value::Text(range))?;
            }
            b'C' => {
                let range = self.counted::<1>()?;
                self.push(Value::Bytes(range))?;
            }
            b'B' => {
                let range = self.counted::<4>()?;
                self.push(Value::Bytes(range))?;
            }
            0x8e => {
                let range = self.counted::<8>()?;
                self.push(Value::Bytes(range))?;
            }
            b')' => self.push(Value::Tuple(Vec::new()))?,
            0x85 => self.tuple(1)?,
            0x86 => self.tuple(2)?,
            0x87 => self.tuple(3)?,
            b'(' => self.marks.push(self.stack.len()),
            b't' => {
                let parts = self.since_mark()?;
                self.push(Value::Tuple(parts))?;
            }
            // a set is a list here
            b']' | 0x8f => self.push(Value::List(Vec::new()))?,
            b'l' | 0x91 => {
                let parts = self.since_mark()?;
                self.push(Value::List(parts))?;
            }
            b'}' => self.push(Value::Dict(Vec::new()))?,
            b'd' => {
                let parts = self.since_mark()?;
                self.push(Value::Dict(Vec::new()))?;
                self.set(&parts)?;
            }
            b'a' => {
                let part = self.pop()?;
                self.append(&[part])?;
            }
            b'e' | 0x90 => {
                let parts = self.since_mark()?;
                self.append(&parts)?;
            }
            b's' => {
                let (value, key) = (self.pop()?, self.pop()?);
                self.set(&[key, value])?;
            }
            b'u' => {
                let parts = self.since_mark()?;
                self.set(&parts)?;
            }
            b'0' => {
                // a mark alone is taken away too
                if self.marks.last() == Some(&self.stack.len()) {
                    self.marks.pop();
                } else {
                    self.pop()?;
                }
            }
            b'1' => drop(self.since_mark()?),
            b'2' => {
                let top = self.top()?;
                self.stack.push(top);
            }
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                let (module, name) = (self.named(module)?, self.named(name)?);
                self.name(&module, &name)?;
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                let (module, name) = (self.text_of(module)?, self.text_of(name)?);
                self.name(&module, &name)?;
            }
            b'R' | 0x81 => self.call()?,
            b'b' => self.build()?,
            b'Q' => {
                let id = self.pop()?;
                self.push(Value::Outside(id))?;
            }
            b'q' => {
                let [at] = self.next()?;
                self.remember(u32::from(at))?;
            }
            b'r' => {
                let at = u32::from_le_bytes(self.next()?);
                self.remember(at)?;
            }
            b'p' => {
                let at = self.line_as()?;
                self.remember(at)?;
            }
            0x94 => {
                let at = u32::try_from(self.memo.len()).map_err(|_| TRUNCATED)?;
                self.remember(at)?;
            }
            b'h' => {
                let [at] = self.next()?;
                self.recall(u32::from(at))?;
            }
            b'j' => {
                let at = u32::from_le_bytes(self.next()?);
                self.recall(at)?;
            }
            b'g' => {
                let at = self.line_as()?;
                self.recall(at)?;
            }
            other => {
                return Err(format!(
                    "the pickle has instruction {other:#04x}, which tensors and plain containers do not need"
                ));
            }
        }
        Ok(false)
    }

    /// A whole number of any length, the lowest byte first, with a sign.
    fn long(&mut self, range: Range<usize>) -> Result<(), String> {
        let bytes = &self.bytes[range.clone()];
        if bytes.len() > 8 {
            return self.push(Value::Big(range));
        }
        let fill = if bytes.last().is_some_and(|byte| byte & 0x80 != 0) { 0xff } else { 0 };
        let mut whole = [fill; 8];
        whole[..bytes.len()].copy_from_slice(bytes);
        self.push(Value::Int(i64::from_le_bytes(whole)))
    }
}

const NO_VALUE: &str = "the pickle takes a value that it has not made";

fn parsed(text: &[u8]) -> Result<i64, String> {
    let number = std::str::from_utf8(text).ok().and_then(|text| text.parse().ok());
    number.ok_or_else(|| "holds a number that is none".to_owned())
}
