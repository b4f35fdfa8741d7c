//! `config.json` as a source of typed values; every complaint names the file and the key.
use crate::error::{Error, Result, brief};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use tanglescope_checkpoint::gguf_config;

/// A JSON object read from a file. It remembers which of its keys were asked for.
#[derive(Clone, Debug)]
pub struct Config {
    path: PathBuf,
    object: Map<String, Value>,
    /// Keys that lead to this object from the top of the file, each followed by a dot.
    prefix: String,
    read: RefCell<BTreeSet<String>>,
}

/// Largest width, vocabulary or number of heads: sixteen million, of which the largest model has a fiftieth.
const MOST: usize = 1 << 24;

/// Most blocks; the deepest model has some two hundred.
pub const MOST_LAYERS: usize = 10_000;

/// Largest config, in bytes.
const LARGEST: u64 = 1 << 26;

/// Whether a value means "off": null, false or empty.
pub(crate) fn is_off(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(list) => list.is_empty(),
        Value::Object(object) => object.is_empty(),
        _ => false,
    }
}

impl Config {
    /// Reads a JSON file whose top level is an object.
    ///
    /// # Errors
    /// Where the file cannot be read or is not a JSON object.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let of = std::fs::metadata(path).map_err(|e| Error::file(path, e))?;
        // a device or a pipe has no end
        if !of.is_file() || of.len() > LARGEST {
            let found = if of.is_file() { format!("has {} bytes", of.len()) } else { "is no file".to_owned() };
            return Err(Error::file(path, format!("{found}; expected a JSON file of at most {LARGEST} bytes")));
        }
        Self::parse(path, &std::fs::read(path).map_err(|e| Error::file(path, e))?)
    }

    /// The config of a model's folder: config.json, or what its GGUF file says where there is none.
    ///
    /// # Errors
    /// Where there is neither, or it cannot be read.
    pub(crate) fn of_model(folder: &Path) -> Result<Self> {
        let path = folder.join("config.json");
        if !path.exists()
            && let Some((path, value)) = gguf_config(folder)?
        {
            return Self::parse(&path, value.to_string().as_bytes());
        }
        Self::read(&path)
    }

    /// `model_type` of a model's folder.
    ///
    /// # Errors
    /// Where its config is not there, cannot be read, or does not say.
    pub fn model_type(folder: &Path) -> Result<String> {
        Self::of_model(folder)?.need("model_type")
    }

    /// All of it.
    pub(crate) fn into_value(self) -> Value {
        Value::Object(self.object)
    }

    /// Reads JSON text whose top level is an object; `path` is what complaints call it.
    ///
    /// # Errors
    /// Where it is not a JSON object.
    pub fn parse(path: &Path, text: &[u8]) -> Result<Self> {
        // Windows programs mark the byte order
        let text = text.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(text);
        let object = serde_json::from_slice(text).map_err(|e| Error::file(path, format!("not a JSON object: {e}")))?;
        Ok(Self { path: path.to_owned(), object, prefix: String::new(), read: RefCell::default() })
    }

    /// Whether a key is there, be it null.
    pub(crate) fn has(&self, key: &str) -> bool {
        self.object.contains_key(key)
    }

    /// Whether this is an object inside the file's own.
    pub(crate) fn is_part(&self) -> bool {
        !self.prefix.is_empty()
    }

    /// The value of a key; `None` where it is absent or null.
    ///
    /// # Errors
    /// Where the value is of another type.
    pub(crate) fn get<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>> {
        self.read.borrow_mut().insert(key.to_owned());
        match self.object.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => T::deserialize(value.clone())
                .map(Some)
                .map_err(|e| self.refuse(key, format!("found {}: {e}", brief(&value.to_string())))),
        }
    }

    /// The value of a key that has to be there.
    ///
    /// # Errors
    /// Where it is absent, null, or of another type.
    pub(crate) fn need<T: DeserializeOwned>(&self, key: &str) -> Result<T> {
        self.get(key)?.ok_or_else(|| self.refuse(key, "missing; a Hugging Face config of this architecture has it"))
    }

    /// A size that has to be there and be positive.
    ///
    /// # Errors
    /// Where it is absent, zero, no whole number, or more than any model has.
    pub(crate) fn size(&self, key: &str) -> Result<usize> {
        self.checked_size(key, self.need(key)?)
    }

    /// The number of blocks, each of which is described by itself.
    ///
    /// # Errors
    /// As [`Config::size`].
    pub(crate) fn layers(&self, key: &str, found: usize) -> Result<usize> {
        match self.checked_size(key, found)? {
            layers if layers > MOST_LAYERS => {
                Err(self.refuse(key, format!("found {layers}, expected at most {MOST_LAYERS}")))
            }
            layers => Ok(layers),
        }
    }

    /// A size that is positive, and no more than any model has: sizes are multiplied with each other.
    ///
    /// # Errors
    /// Where it is not.
    pub(crate) fn checked_size(&self, key: &str, found: usize) -> Result<usize> {
        match found {
            0 => Err(self.refuse(key, "found 0, expected a positive number")),
            n if n > MOST => Err(self.refuse(key, format!("found {n}, expected at most {MOST}"))),
            n => Ok(n),
        }
    }

    /// The object under a key.
    ///
    /// # Errors
    /// Where the value is no object.
    pub(crate) fn object(&self, key: &str) -> Result<Option<Self>> {
        Ok(self.get(key)?.map(|object| Self {
            path: self.path.clone(),
            object,
            prefix: format!("{}{key}.", self.prefix),
            read: RefCell::default(),
        }))
    }

    /// Checks that every key was asked for, is off, or is known to change nothing.
    ///
    /// # Errors
    /// Names the first key that may change the function and was not understood.
    pub(crate) fn finish(&self, inert: impl Fn(&str) -> bool) -> Result<()> {
        let read = self.read.borrow();
        let ignored = |(key, value): &(&String, &Value)| !read.contains(*key) && !is_off(value) && !inert(key);
        match self.entries().find(ignored) {
            None => Ok(()),
            Some((key, value)) => {
                let problem = format!(
                    "found {}, a key that is not understood for this architecture and may change what the model \
                     computes; if it changes nothing, take it out of the config",
                    brief(&value.to_string())
                );
                Err(self.refuse(key, problem))
            }
        }
    }

    /// Its keys and values.
    pub(crate) fn entries(&self) -> impl Iterator<Item = (&String, &Value)> {
        self.object.iter()
    }

    /// An error about a key.
    pub(crate) fn refuse(&self, key: &str, problem: impl ToString) -> Error {
        Error::key(&self.path, &format!("{}{key}", self.prefix), problem)
    }
}
