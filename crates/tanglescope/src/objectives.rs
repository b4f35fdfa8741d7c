//! Objectives on the command line: which are asked for, what they need, and the list of all.
use crate::error::{Error, Result};
use crate::hub::{self, Kind};
use crate::options::ModelOptions;
use serde_json::json;
use std::path::{Path, PathBuf};
use tanglescope_kernels::Kernels;
use tanglescope_model::{AdapterSource, Decoder};
use tanglescope_objectives::{Definition, Needs, Objective, all};

/// Where reference log-probabilities come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reference {
    /// Nowhere: only objectives without a reference can be used.
    None,
    /// The policy itself.
    Itself,
    /// The model under the adapter.
    Base,
    /// Another model.
    Folder(PathBuf),
}

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Asked {
    /// The objectives.
    pub objectives: Vec<Objective>,
    /// The reference that they, or the user, ask for.
    pub reference: Reference,
}

impl Asked {
    /// Checks `--objective` and `--reference`.
    pub fn new(names: &[String], reference: Option<&str>, options: &ModelOptions) -> Result<Self> {
        let under_adapter = match &options.adapter {
            AdapterSource::None => None,
            AdapterSource::Saved(_) => Some(Reference::Base),
            // B = 0: the adapter does nothing yet
            AdapterSource::Fresh(_) => Some(Reference::Itself),
        };
        let given = match reference {
            None => None,
            Some("self") => Some(Reference::Itself),
            Some("base") => Some(under_adapter.clone().ok_or_else(|| {
                Error::option(
                    "--reference base",
                    "there is no adapter, so the base is the policy; say self or a folder",
                )
            })?),
            Some(folder) => Some(Reference::Folder(hub::resolve(Path::new(folder), Kind::Model)?)),
        };
        let available = given.clone().or(under_adapter);
        let mut objectives: Vec<Objective> = Vec::new();
        for name in names {
            let asked =
                if name == "all" { every(available.is_some()) } else { vec![parse(name, available.is_some())?] };
            for objective in asked {
                if !objectives.iter().any(|known| known.given() == objective.given()) {
                    objectives.push(objective);
                }
            }
        }
        let used = given.is_some() || objectives.iter().any(|objective| objective.definition().reference);
        let reference = available.filter(|_| used).unwrap_or(Reference::None);
        Ok(Self { objectives, reference })
    }

    /// Whether gradients over contrast tokens are needed.
    pub fn contrast(&self) -> bool {
        self.objectives.iter().any(|objective| objective.needs() == Needs::Contrast)
    }
}

/// An objective for an analysis.
pub fn parse(name: &str, reference: bool) -> Result<Objective> {
    let objective: Objective = name.parse().map_err(|e| Error::option("--objective", e))?;
    let refuse = |problem: &str| Err(Error::option(format!("--objective {name}"), problem));
    if objective.needs() == Needs::Training {
        return refuse(
            "has parameters of its own that only training learns; sparse_hard is its form with a given mask",
        );
    }
    if objective.definition().reference && !reference {
        return Err(Error::no_reference("--objective", name));
    }
    Ok(objective)
}

/// Everything that can be used; says what cannot.
fn every(reference: bool) -> Vec<Objective> {
    let (usable, left_out) = Objective::every(reference);
    for (name, reason) in left_out {
        eprintln!("--objective all leaves out {name}: {reason}");
    }
    usable
}

/// A reference model that is loaded.
pub enum Loaded<B: Kernels> {
    /// None.
    None,
    /// The policy itself.
    Itself,
    /// Another model, or the base.
    Model(Box<Decoder<B>>),
}

impl Reference {
    /// Loads it; the base shares the policy's weights where it can.
    pub fn load<B: Kernels>(&self, options: &ModelOptions, policy: &Decoder<B>) -> Result<Loaded<B>> {
        let load = |options: ModelOptions| options.load::<B>(options.dtype, &policy.device);
        let model = match self {
            Self::None => return Ok(Loaded::None),
            Self::Itself => return Ok(Loaded::Itself),
            Self::Base => match policy.base() {
                Some(base) => base,
                None => load(ModelOptions { adapter: AdapterSource::None, ..options.clone() })?,
            },
            Self::Folder(folder) => {
                let options = ModelOptions { folder: folder.clone(), adapter: AdapterSource::None, ..options.clone() };
                load(options)?
            }
        };
        let (known, needed) = (model.description.vocabulary, policy.description.vocabulary);
        if known < needed {
            let problem = format!("knows {known} tokens, the policy {needed}: it is no model of the same tokens");
            return Err(Error::option("--reference", problem));
        }
        Ok(Loaded::Model(Box::new(model)))
    }
}

impl<B: Kernels> Loaded<B> {
    /// What the manifest says of it.
    pub fn identity(&self, reference: &Reference) -> Option<String> {
        match (self, reference) {
            (Self::None, _) => None,
            (Self::Itself, _) => Some("self".to_owned()),
            (Self::Model(_), Reference::Base) => Some("base".to_owned()),
            (Self::Model(model), _) => Some(model.content_hash.clone()),
        }
    }
}

/// `tanglescope objectives`.
pub fn list(json: bool) {
    if json {
        let of = |of: &Definition| {
            let keys = of.hyper.iter().map(|(key, default)| (*key, *default));
            let keys = keys.collect::<std::collections::BTreeMap<_, _>>();
            json!({"name": of.name, "keys": keys, "reference": of.reference, "formula": of.formula, "source": of.source})
        };
        println!("{:#}", json!(all().iter().map(of).collect::<Vec<_>>()));
        return;
    }
    println!(
        "s is the sigmoid, ls its logarithm; pw, pl are log-probabilities of the chosen and the rejected response, rw,"
    );
    println!(
        "rl those of the reference, nw, nl lengths in tokens; hw = pw - rw, hl = pl - rl, D = hw - hl, aw = pw/nw, al = pl/nl"
    );
    for definition in all() {
        let keys = definition.hyper.iter().map(|(key, default)| match default {
            Some(default) => format!("{key}={default}"),
            None => format!("{key}=…"),
        });
        let keys = keys.collect::<Vec<_>>().join(",");
        let colon = if keys.is_empty() { "" } else { ":" };
        let reference = if definition.reference { "" } else { " (no reference)" };
        println!(
            "\n{}{colon}{keys}{reference}\n    {}\n    {}",
            definition.name, definition.formula, definition.source
        );
    }
}
