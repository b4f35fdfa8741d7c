//! `config.json` as a source of typed values; every complaint names the file and the key.
use crate::error::{Error, Result};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// A JSON object read from a file. It remembers which of its keys were asked for.
#[derive(Clone, Debug)]
pub struct Config {
    path: PathBuf,
    object: Map<String, Value>,
    /// Keys that lead to this object from the top of the file, each followed by a dot.
    prefix: String,
    read: RefCell<BTreeSet<String>>,
}

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
        Self::parse(path, &std::fs::read(path).map_err(|e| Error::file(path, e))?)
    }

    /// Reads JSON text whose top level is an object; `path` is what complaints call it.
    ///
    /// # Errors
    /// Where it is not a JSON object.
    pub fn parse(path: &Path, text: &[u8]) -> Result<Self> {
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
            Some(value) => {
                T::deserialize(value.clone()).map(Some).map_err(|e| self.refuse(key, format!("found {value}: {e}")))
            }
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
    /// Where it is absent, zero, or no whole number.
    pub(crate) fn size(&self, key: &str) -> Result<usize> {
        match self.need(key)? {
            0 => Err(self.refuse(key, "found 0, expected a positive number")),
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
                    "found {value}, a key that is not understood for this architecture and may change what the model \
                     computes; if it changes nothing, take it out of the config"
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
