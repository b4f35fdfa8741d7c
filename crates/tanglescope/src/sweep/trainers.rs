//! Folders of checkpoints as training programs leave them: what they are called, and where in them the model is.
use super::runs::Checkpoint;
use crate::error::{Error, Result};
use std::path::{Path, PathBuf};

/// How some training programs lay out a run.
#[derive(Debug, PartialEq, Eq)]
pub struct Trainer {
    /// Who does it.
    pub name: &'static str,
    /// What stands around the step in a checkpoint's name.
    around: [&'static str; 2],
    /// Where in a checkpoint its model or adapter may be, in the order in which they are looked for.
    inside: &'static [&'static str],
}

/// The layouts, in the order in which they are looked for.
const TRAINERS: &[Trainer] = &[
    Trainer {
        name: "the Hugging Face Trainer: TRL, unsloth, LLaMA-Factory, axolotl, ms-swift",
        around: ["checkpoint-", ""],
        inside: &["."],
    },
    Trainer { name: "OpenRLHF", around: ["global_step", "_hf"], inside: &["."] },
    Trainer {
        name: "verl",
        around: ["global_step_", ""],
        inside: &["actor/lora_adapter", "actor/huggingface", "actor"],
    },
    Trainer { name: "open-instruct, torchtune", around: ["step_", ""], inside: &["."] },
    Trainer { name: "open-instruct, torchtune", around: ["epoch_", ""], inside: &["."] },
];

impl Trainer {
    /// The step in a checkpoint's name.
    fn step(&self, name: &str) -> Option<usize> {
        let [before, after] = self.around;
        name.strip_prefix(before)?.strip_suffix(after)?.parse().ok()
    }

    /// The model or adapter in a checkpoint; the checkpoint itself where there is none.
    fn model_in(&self, checkpoint: &Path) -> PathBuf {
        let configs = ["adapter_config.json", "config.json"];
        let has_one = |folder: &PathBuf| configs.iter().any(|name| folder.join(name).is_file());
        let inside =
            self.inside.iter().map(|path| if *path == "." { checkpoint.to_owned() } else { checkpoint.join(path) });
        inside.into_iter().find(has_one).unwrap_or_else(|| checkpoint.to_owned())
    }

    /// What a run's checkpoints are called.
    pub fn pattern(&self) -> String {
        let [before, after] = self.around;
        format!("{before}N{after}")
    }
}

/// The step in the name of a checkpoint by itself, whoever called it so.
pub fn step_of(name: &str) -> Option<usize> {
    TRAINERS.iter().find_map(|trainer| trainer.step(name))
}

/// Names that a run's checkpoints may have.
pub fn patterns() -> String {
    let mut patterns: Vec<String> = TRAINERS.iter().map(Trainer::pattern).collect();
    patterns.dedup();
    patterns.join(", ")
}

fn entries(folder: &Path) -> Result<Vec<String>> {
    let entries = std::fs::read_dir(folder).map_err(|e| Error::output(folder, e))?;
    Ok(entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect())
}

/// Whether a folder is one that ms-swift starts for each launch: `v3-20260102-030405`.
fn is_launch(name: &str) -> bool {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let parts: Vec<&str> = name.split('-').collect();
    matches!(parts.as_slice(), [version, date, time]
        if version.strip_prefix('v').is_some_and(digits) && digits(date) && digits(time))
}

/// The checkpoints of a run by step, with who lays out runs so; of the one launch inside, where ms-swift made a folder for each. Nothing where
/// there are none.
pub fn checkpoints(run: &Path) -> Result<Option<(&'static Trainer, Vec<Checkpoint>)>> {
    let names = entries(run)?;
    for trainer in TRAINERS {
        let steps = names.iter().filter_map(|name| Some((trainer.step(name)?, run.join(name))));
        let mut found: Vec<Checkpoint> =
            steps.map(|(step, folder)| Checkpoint { step, folder: trainer.model_in(&folder) }).collect();
        if !found.is_empty() {
            found.sort_by_key(|checkpoint| checkpoint.step);
            return Ok(Some((trainer, found)));
        }
    }
    let mut launches: Vec<&String> = names.iter().filter(|name| is_launch(name)).collect();
    launches.sort();
    match launches.as_slice() {
        [] => Ok(None),
        [one] => checkpoints(&run.join(one)),
        many => {
            let names = many.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
            Err(Error::value("runs", run.display(), format!("holds several launches: {names}; give one of them")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(folder: &Path, path: &str) {
        let file = folder.join(path);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, "{}").unwrap();
    }

    /// The trainer's first name, and each step with the folder of its model.
    fn found(files: &[&str]) -> (String, Vec<(usize, String)>) {
        let folder = tempfile::tempdir().unwrap();
        files.iter().for_each(|file| write(folder.path(), file));
        let (trainer, checkpoints) = checkpoints(folder.path()).unwrap().unwrap();
        let inside = |of: &Path| of.strip_prefix(folder.path()).unwrap().display().to_string();
        let name = trainer.name.split([':', ',']).next().unwrap().to_owned();
        (name, checkpoints.iter().map(|checkpoint| (checkpoint.step, inside(&checkpoint.folder))).collect())
    }

    #[test]
    fn every_trainers_folders_are_found() {
        let of = |name: &str, steps: &[(usize, &str)]| {
            (name.to_owned(), steps.iter().map(|(step, path)| (*step, (*path).to_owned())).collect::<Vec<_>>())
        };
        for (files, want) in [
            (
                &["checkpoint-20/adapter_config.json", "checkpoint-100/config.json", "checkpoint-last/config.json"][..],
                of("the Hugging Face Trainer", &[(20, "checkpoint-20"), (100, "checkpoint-100")]),
            ),
            (
                &["v0-20260102-030405/checkpoint-7/adapter_config.json", "v0-20260102-030405/args.json"],
                of("the Hugging Face Trainer", &[(7, "v0-20260102-030405/checkpoint-7")]),
            ),
            (
                &["global_step20_hf/config.json", "global_step20/mp_rank_00_model_states.pt"],
                of("OpenRLHF", &[(20, "global_step20_hf")]),
            ),
            (
                &[
                    "global_step_10/actor/huggingface/config.json",
                    "global_step_5/actor/lora_adapter/adapter_config.json",
                ],
                of("verl", &[(5, "global_step_5/actor/lora_adapter"), (10, "global_step_10/actor/huggingface")]),
            ),
            (&["step_30/config.json", "step_4/config.json"], of("open-instruct", &[(4, "step_4"), (30, "step_30")])),
            (
                &["epoch_0/config.json", "epoch_1/adapter_config.json"],
                of("open-instruct", &[(0, "epoch_0"), (1, "epoch_1")]),
            ),
        ] {
            assert_eq!(found(files), want);
        }
    }

    #[test]
    fn several_launches_are_named() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), "v0-20260102-030405/checkpoint-7/config.json");
        write(folder.path(), "v1-20260103-030405/checkpoint-7/config.json");
        let problem = checkpoints(folder.path()).unwrap_err().to_string();
        assert!(problem.contains("`v0-20260102-030405`, `v1-20260103-030405`"), "{problem}");
    }
}
