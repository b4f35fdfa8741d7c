//! Options of `train` from a TOML file: each key is an option's name, and what the command line says comes before it.
use crate::cli::Cli;
use crate::error::{Error, Result};
use clap::{CommandFactory, Parser};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use toml::{Table, Value};

/// Parses the command line, with the options of a config file where it names one.
pub fn parse(words: Vec<OsString>) -> Result<Cli> {
    // required options may be in the file
    let lenient = Cli::command().ignore_errors(true).disable_help_flag(true).try_get_matches_from(&words).ok();
    let config = lenient
        .as_ref()
        .and_then(|all| all.subcommand())
        .and_then(|(name, of)| if name == "train" { of.get_one::<PathBuf>("config").cloned() } else { None });
    let Some(config) = config else { return Ok(Cli::parse_from(words)) };
    let at = words.iter().position(|word| word == "train").map_or(words.len(), |at| at + 1);
    let (before, after) = words.split_at(at);
    let given = |name: &str| {
        after
            .iter()
            .filter_map(|word| word.to_str())
            .any(|word| word.strip_prefix("--").is_some_and(|word| word.split('=').next() == Some(name)))
    };
    let options = options(&config, given)?;
    Ok(Cli::parse_from(before.iter().cloned().chain(options).chain(after.iter().cloned())))
}

/// The words that a config file stands for, but for options that are `given` in another way.
fn options(path: &Path, given: impl Fn(&str) -> bool) -> Result<Vec<OsString>> {
    let refuse = |problem: String| Error::Input(format!("--config {}: {problem}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|e| refuse(e.to_string()))?;
    let table: Table = text.parse().map_err(|e: toml::de::Error| refuse(e.to_string()))?;
    let known = Cli::command();
    let train = known.find_subcommand("train").into_iter().flat_map(clap::Command::get_arguments);
    let names: Vec<&str> = train.filter_map(clap::Arg::get_long).filter(|name| *name != "config").collect();
    let mut words = Vec::new();
    for (key, value) in table {
        let name = key.replace('_', "-");
        if !names.contains(&name.as_str()) {
            return Err(refuse(format!("`{key}` is no option of train; they are {}", names.join(", "))));
        }
        if given(&name) {
            continue;
        }
        let plain = |value: &Value| match value {
            Value::String(text) => Some(text.clone()),
            Value::Integer(number) => Some(number.to_string()),
            Value::Float(number) => Some(number.to_string()),
            _ => None,
        };
        let joined = match &value {
            Value::Boolean(false) => continue,
            Value::Boolean(true) => {
                words.push(format!("--{name}").into());
                continue;
            }
            Value::Array(list) => list.iter().map(plain).collect::<Option<Vec<_>>>().map(|list| list.join(",")),
            other => plain(other),
        };
        let Some(text) = joined else {
            return Err(refuse(format!("`{key}`: expected text, a number, true, false, or a list of these")));
        };
        words.push(format!("--{name}={text}").into());
    }
    Ok(words)
}
