//! Errors as the command line says them, and the exit codes that they end in.
use regex::{Captures, Regex};
use std::sync::LazyLock;

/// What ended a command.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The work.
    #[error("{}", with_flags(&.0.to_string()))]
    Work(#[from] tanglescope::Error),
    /// Something that was given and cannot be used.
    #[error("{0}")]
    Input(String),
    /// Something that happened on the way.
    #[error("{0}")]
    Failed(String),
}

/// Results of the command line.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// 2 for bad input, 1 for anything else.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Input(_) => 2,
            Self::Work(error) if error.is_bad_input() => 2,
            Self::Work(_) | Self::Failed(_) => 1,
        }
    }
}

/// A text of the library, which names options as fields, with the flags that they are here.
pub fn with_flags(text: &str) -> String {
    static OPTION: LazyLock<Regex> = LazyLock::new(|| {
        Regex::new("option `([a-z0-9_]+)`( = )?").unwrap_or_else(|e| unreachable!("the pattern is one: {e}"))
    });
    let flag = |found: &Captures<'_>| {
        let name = match &found[1] {
            "runs" => "RUN".to_owned(),
            "folders" => "DIR".to_owned(),
            // given one by one
            "objectives" => "--objective".to_owned(),
            "group_objectives" => "--group-objective".to_owned(),
            name => format!("--{}", name.replace('_', "-")),
        };
        if found.get(2).is_some() { format!("{name} ") } else { name }
    };
    OPTION.replace_all(text, flag).into_owned()
}

#[cfg(test)]
mod tests {
    use super::with_flags;

    #[test]
    fn fields_become_flags_with_their_values() {
        assert_eq!(with_flags("option `lora_r` = 0: a rank is at least 1"), "--lora-r 0: a rank is at least 1");
        assert_eq!(with_flags("option `memory`: expected more"), "--memory: expected more");
        assert_eq!(
            with_flags("option `runs` = a: no such folder; add option `model`"),
            "RUN a: no such folder; add --model"
        );
        assert_eq!(with_flags("`data` has no tokens"), "`data` has no tokens");
    }
}
