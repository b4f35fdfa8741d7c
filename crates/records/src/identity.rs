//! Whether two runs are the same: one rule for every kind of folder.
use serde::Serialize;
use serde_json::{Map, Value};

/// The settings that decide a folder's numbers; a folder is resumed only with equal settings.
///
/// Its fields are those of its serialised form, so that one that is added is compared without a further line.
pub trait Identity: Serialize {
    /// What a field is called in messages.
    #[must_use]
    fn called(field: &str) -> String {
        field.replace('_', " ")
    }

    /// Whether a run may go on though a field differs: a folder that has more than is asked for now serves as well.
    #[must_use]
    fn serves(_field: &str, _there: &Value, _now: &Value) -> bool {
        false
    }
}

/// A field in which two runs differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// What it is called.
    pub what: String,
    /// Its value in the folder.
    pub there: String,
    /// Its value now.
    pub now: String,
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { what, there, now } = self;
        write!(f, "holds a run with another {what} ({there} there, {now} now); choose another folder")
    }
}

/// The first field in which two runs differ; `None` where they are the same run.
pub fn difference<I: Identity>(there: &I, now: &I) -> Option<Difference> {
    let fields = |identity: &I| match serde_json::to_value(identity) {
        Ok(Value::Object(fields)) => fields,
        _ => Map::new(),
    };
    let (there, now) = (fields(there), fields(now));
    let differs = |(field, now): (&String, &Value)| {
        let there = there.get(field).unwrap_or(&Value::Null);
        let same = there == now || I::serves(field, there, now);
        (!same).then(|| Difference { what: I::called(field), there: shown(there), now: shown(now) })
    };
    now.iter().find_map(differs)
}

/// A value for reading; of a hash its beginning.
fn shown(value: &Value) -> String {
    let is_hash = |text: &str| text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    match value {
        Value::String(text) if is_hash(text) => text.get(..12).unwrap_or(text).to_owned(),
        Value::String(text) => text.clone(),
        Value::Null => "none".to_owned(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::{Identity, difference};
    use serde::Serialize;
    use serde_json::Value;

    #[derive(Clone, Serialize)]
    struct Run {
        model: String,
        adapter: Option<String>,
        measures_contrast: bool,
    }

    impl Identity for Run {
        fn serves(field: &str, there: &Value, _now: &Value) -> bool {
            field == "measures_contrast" && *there == Value::Bool(true)
        }
    }

    #[test]
    fn every_field_is_compared_and_more_than_is_asked_for_serves() {
        let run = Run { model: "a".repeat(64), adapter: None, measures_contrast: false };
        assert_eq!(difference(&run, &run), None);
        let adapted = Run { adapter: Some("a".to_owned()), ..run.clone() };
        let said = difference(&run, &adapted).unwrap().to_string();
        assert_eq!(said, "holds a run with another adapter (none there, a now); choose another folder");
        let other = Run { model: "b".repeat(64), ..run.clone() };
        assert_eq!(difference(&run, &other).unwrap().there, "a".repeat(12));
        let more = Run { measures_contrast: true, ..run.clone() };
        assert_eq!(difference(&more, &run), None);
        assert_eq!(difference(&run, &more).unwrap().what, "measures contrast");
    }
}
