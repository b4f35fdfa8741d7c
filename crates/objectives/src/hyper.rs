//! `name:key=value,…`: an objective with its hyper-parameters, as it is given on a command line and kept in manifests.
use crate::error::{Error, Result};

/// Names of hyper-parameters with their defaults; one without has to be given.
pub(crate) type Keys = [(&'static str, Option<f64>)];

/// The name, and what follows its colon.
pub(crate) fn split(given: &str) -> (&str, &str) {
    given.split_once(':').unwrap_or((given, ""))
}

/// The value of every key, in the order of `keys`: as given, or its default.
///
/// # Errors
/// Where something is not `key=value`, a key is unknown or given twice, a value is no finite number, or a key without a default
/// is missing.
pub(crate) fn values(given: &str, keys: &Keys) -> Result<Vec<(&'static str, f64)>> {
    let refuse = |problem: String| Error { given: given.to_owned(), problem };
    let (name, settings) = split(given);
    let mut found = keys.to_vec();
    let mut seen = Vec::new();
    for setting in settings.split(',').filter(|setting| !setting.is_empty()) {
        let Some((key, value)) = setting.split_once('=') else {
            return Err(refuse(format!("`{setting}` is not of the form key=value")));
        };
        let Some((_, slot)) = found.iter_mut().find(|(known, _)| *known == key) else {
            let keys: Vec<&str> = keys.iter().map(|(key, _)| *key).collect();
            return Err(refuse(format!("`{name}` has no `{key}`; its keys are {}", list(&keys))));
        };
        if seen.contains(&key) {
            return Err(refuse(format!("`{key}` is given twice")));
        }
        seen.push(key);
        let number = value.parse::<f64>().ok().filter(|number| number.is_finite());
        let number = number.ok_or_else(|| refuse(format!("`{key}={value}`: expected a number")))?;
        if let Some(expected) = outside(name, key, number) {
            return Err(refuse(format!("`{key}={value}`: expected {expected}")));
        }
        *slot = Some(number);
    }
    let missing: Vec<&str> = found.iter().filter(|(_, value)| value.is_none()).map(|(key, _)| *key).collect();
    if !missing.is_empty() {
        let settings = missing.join("=…,");
        return Err(refuse(format!("has no default for {}; write {name}:{settings}=…", list(&missing))));
    }
    Ok(found.into_iter().filter_map(|(key, value)| Some((key, value?))).collect())
}

/// What a hyper-parameter has to be, where a value is not.
fn outside(name: &str, key: &str, value: f64) -> Option<&'static str> {
    match (name, key) {
        // a threshold on a probability
        ("gate_dpo", "tau") => None,
        (_, "beta" | "beta0" | "tau" | "rho" | "weight") if value <= 0.0 => Some("a positive number"),
        ("exo_pair", "eps") | ("bdpo", "lam") if !(value > 0.0 && value < 1.0) => Some("a number between 0 and 1"),
        ("robust_dpo", "eps") if !(0.0..0.5).contains(&value) => Some("a number from 0 to less than 0.5"),
        (_, "eps") | ("ld_dpo", "alpha") if !(0.0..=1.0).contains(&value) => Some("a number from 0 to 1"),
        ("adadpo", "clip") if value < 1.0 => Some("a number from 1"),
        ("alphapo", "alpha") if value == 0.0 => Some("another number than 0, for which it is simpo"),
        _ => None,
    }
}

/// `a, b and c`.
pub(crate) fn list(names: &[&str]) -> String {
    match names {
        [] => "none".to_owned(),
        [one] => (*one).to_owned(),
        [rest @ .., last] => format!("{} and {last}", rest.join(", ")),
    }
}
