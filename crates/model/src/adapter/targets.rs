//! Which modules an adapter changes, by PEFT's rules for names and patterns.
use crate::config::Config;
use crate::error::{Result, pattern_problem};
use fancy_regex::Regex;

/// Which modules an adapter changes.
#[derive(Debug)]
pub(super) enum Targets {
    List(Vec<String>),
    Pattern(Regex),
    All,
}

/// One or several strings.
#[derive(serde::Deserialize)]
#[serde(untagged)]
pub(super) enum OneOrMany<T> {
    One(T),
    Many(Vec<T>),
}

impl<T> OneOrMany<T> {
    pub fn into_vec(self) -> Vec<T> {
        match self {
            Self::One(one) => vec![one],
            Self::Many(many) => many,
        }
    }
}

/// A key of rank_pattern or alpha_pattern: the end of a module's path.
#[derive(Debug)]
pub(super) enum ModuleName {
    /// Letters, digits, `_` and `.`, which stand for themselves.
    Plain(String),
    Pattern(Regex),
}

impl ModuleName {
    pub fn matches(&self, module: &str) -> bool {
        match self {
            Self::Plain(name) => is_end_of(name, module),
            Self::Pattern(pattern) => matches(pattern, module),
        }
    }
}

/// Whether a pattern matches a path; one that takes too long does not.
pub(super) fn matches(pattern: &Regex, module: &str) -> bool {
    pattern.is_match(module).unwrap_or(false)
}

/// Most patterns of a table that are not plain names: each is compiled, and tried on every module.
pub(super) const MOST_PATTERNS: usize = 1000;

pub(super) fn pattern(config: &Config, key: &str, text: &str) -> Result<Regex> {
    Regex::new(text)
        .map_err(|e| config.refuse(key, format!("not a pattern that can be matched here: {}", pattern_problem(&e))))
}

/// PEFT's rule for the keys of rank_pattern and alpha_pattern.
pub(super) fn pattern_table<T: serde::de::DeserializeOwned>(
    config: &Config,
    key: &str,
) -> Result<Vec<(ModuleName, T)>> {
    let Some(table) = config.object(key)? else { return Ok(Vec::new()) };
    let plain = |name: &str| name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.".contains(&byte));
    let patterns = table.entries().filter(|(name, _)| !plain(name)).count();
    if patterns > MOST_PATTERNS {
        return Err(config.refuse(key, format!("has {patterns} patterns, expected at most {MOST_PATTERNS}")));
    }
    let of = |name: &String| -> Result<ModuleName> {
        Ok(match plain(name) {
            true => ModuleName::Plain(name.clone()),
            false => ModuleName::Pattern(pattern(config, key, &format!(r"^(?:.*\.)?(?:{name})$"))?),
        })
    };
    table.entries().map(|(name, _)| Ok((of(name)?, table.need(name)?))).collect()
}

pub(super) fn targets(config: &Config, key: &str) -> Result<Option<Targets>> {
    Ok(match config.get::<OneOrMany<String>>(key)? {
        None => None,
        Some(OneOrMany::One(text)) if text == "all-linear" => Some(Targets::All),
        Some(OneOrMany::One(text)) => Some(Targets::Pattern(pattern(config, key, &format!("^(?:{text})$"))?)),
        Some(OneOrMany::Many(list)) => Some(Targets::List(list)),
    })
}

impl Targets {
    pub fn matches(&self, module: &str) -> bool {
        match self {
            Self::List(list) => named(list, module),
            Self::Pattern(pattern) => matches(pattern, module),
            Self::All => true,
        }
    }
}

/// Whether a module's path is, or ends with, a name.
pub(super) fn is_end_of(name: &str, module: &str) -> bool {
    module.strip_suffix(name).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

/// Whether a module's path is, or ends with, one of the names.
pub(super) fn named(names: &[String], module: &str) -> bool {
    names.iter().any(|name| is_end_of(name, module))
}
