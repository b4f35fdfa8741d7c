//! Which objectives are measured, and the reference model that they need.
use crate::data::tokenizer;
use crate::error::{Error, Result};
use crate::listener::Listener;
use crate::model::Model;
use crate::options::{ObjectiveChoice, ReferenceModel};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tanglescope_kernels::Kernels;
use tanglescope_model::{AdapterSource, Decoder, HeldModel, adapter_hash};
use tanglescope_objectives::{Needs, Objective};
use tanglescope_records::manifest::Beside;

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
    /// The model under another adapter.
    Adapter(PathBuf),
    /// Another model, in memory.
    Held(Arc<HeldModel>),
}

/// Where TRL keeps the adapter that training went on from, inside a checkpoint: its reference.
const TRL_REFERENCE: &str = "ref";

/// Whether a folder is an adapter's.
fn is_adapter(folder: &Path) -> bool {
    folder.join("adapter_config.json").exists() && !folder.join("config.json").exists()
}

/// The base was asked for as the reference, and there is nothing above it.
pub fn no_base() -> Error {
    let problem = "there is no adapter, so the base is the policy (in training, as it starts); say self or a folder";
    Error::value("reference", "base", problem)
}

/// The objectives of a run and their reference.
#[derive(Clone, Debug)]
pub struct Objectives {
    /// Each once.
    pub objectives: Vec<Objective>,
    /// What they, or the user, ask for.
    pub reference: Reference,
}

impl Objectives {
    /// Checks what was chosen for a model.
    pub fn new(
        choices: &[ObjectiveChoice],
        reference: Option<&ReferenceModel>,
        model: &Model,
        listener: &dyn Listener,
    ) -> Result<Self> {
        let under_adapter = match &model.adapter {
            AdapterSource::None => None,
            AdapterSource::Saved(folder) if is_adapter(&folder.join(TRL_REFERENCE)) => {
                Some(Reference::Adapter(folder.join(TRL_REFERENCE)))
            }
            AdapterSource::Saved(_) => Some(Reference::Base),
            // B = 0: the adapter does nothing yet
            AdapterSource::Fresh(_) => Some(Reference::Itself),
        };
        let given = match reference {
            None => None,
            Some(ReferenceModel::Itself) => Some(Reference::Itself),
            Some(ReferenceModel::Base) => match &model.adapter {
                AdapterSource::Saved(_) => Some(Reference::Base),
                AdapterSource::Fresh(_) => Some(Reference::Itself),
                AdapterSource::None => return Err(no_base()),
            },
            Some(ReferenceModel::Start) => {
                return Err(Error::value("reference", "start", "only a sweep knows what a run was trained from"));
            }
            Some(ReferenceModel::Folder(folder)) => Some(Reference::of(folder)),
            Some(ReferenceModel::Held(held)) => Some(Reference::Held(held.clone())),
        };
        let available = given.clone().or(under_adapter);
        let mut objectives: Vec<Objective> = Vec::new();
        for choice in choices {
            let chosen = match choice {
                ObjectiveChoice::All => every(available.is_some(), listener),
                ObjectiveChoice::One(objective) => vec![measurable(objective, available.is_some())?],
            };
            for objective in chosen {
                if !objectives.iter().any(|known| known.given() == objective.given()) {
                    objectives.push(objective);
                }
            }
        }
        let used = given.is_some() || objectives.iter().any(Objective::uses_reference);
        let reference = available.filter(|_| used).unwrap_or(Reference::None);
        if let Reference::Adapter(folder) = &reference {
            listener.note(&format!("reference: the model under the adapter {}", folder.display()));
        }
        Ok(Self { objectives, reference })
    }

    /// What has to be measured for them.
    pub fn beside(&self) -> Beside {
        let any = |needs| self.objectives.iter().any(|objective| objective.needs() == needs);
        Beside {
            contrast: any(Needs::Contrast),
            public: any(Needs::Tail),
            weights: any(Needs::Weights),
            text: any(Needs::Text),
            mismatched: any(Needs::Mismatched),
        }
    }

    /// As they were given.
    pub fn names(&self) -> Vec<String> {
        self.objectives.iter().map(Objective::to_string).collect()
    }
}

/// An objective that can be measured without training.
pub fn measurable(objective: &Objective, reference: bool) -> Result<Objective> {
    if objective.needs() == Needs::Training {
        let problem = "has parameters of its own that only training learns; sparse_hard is its form with a given mask";
        return Err(Error::value("objectives", objective, problem));
    }
    if objective.uses_reference() && !reference {
        return Err(Error::no_reference("objectives", objective.given()));
    }
    Ok(objective.clone())
}

/// Everything that can be used; says what cannot.
fn every(reference: bool, listener: &dyn Listener) -> Vec<Objective> {
    let (usable, left_out) = Objective::every(reference);
    for (name, reason) in left_out {
        listener.left_out(&format!("option `objectives` = all leaves out {name}: {reason}"));
    }
    usable
}

/// A reference model that is loaded.
pub enum LoadedReference<B: Kernels> {
    /// None.
    None,
    /// The policy itself.
    Itself,
    /// Another model, or the base.
    Model(Box<Decoder<B>>),
}

impl Reference {
    /// The model, or the adapter, of a folder.
    pub fn of(folder: &Path) -> Self {
        if is_adapter(folder) { Self::Adapter(folder.to_owned()) } else { Self::Folder(folder.to_owned()) }
    }

    /// Whether it takes a forward pass of its own.
    pub fn is_another(&self) -> bool {
        matches!(self, Self::Base | Self::Folder(_) | Self::Adapter(_) | Self::Held(_))
    }

    /// Loads it; the base shares the policy's weights where it can.
    pub fn load<B: Kernels>(
        &self,
        model: &Model,
        policy: &Decoder<B>,
        listener: &dyn Listener,
    ) -> Result<LoadedReference<B>> {
        let load = |model: Model| model.load::<B>(model.dtype, &policy.device, listener);
        let reference = match self {
            Self::None => return Ok(LoadedReference::None),
            Self::Itself => return Ok(LoadedReference::Itself),
            Self::Base => match policy.base() {
                Some(base) => base,
                None => load(Model { adapter: AdapterSource::None, ..model.clone() })?,
            },
            Self::Folder(folder) => {
                same_texts(folder, model, listener)?;
                load(Model { folder: folder.clone(), held: None, adapter: AdapterSource::None, ..model.clone() })?
            }
            Self::Held(held) => {
                let (folder, held) = (held.folder.clone(), Some(held.clone()));
                load(Model { folder, held, adapter: AdapterSource::None, ..model.clone() })?
            }
            Self::Adapter(folder) => load(Model { adapter: AdapterSource::Saved(folder.clone()), ..model.clone() })?,
        };
        let (known, needed) = (reference.description.vocabulary, policy.description.vocabulary);
        if known < needed {
            let problem = format!("knows {known} tokens, the policy {needed}: it is no model of the same tokens");
            return Err(Error::option("reference", problem));
        }
        Ok(LoadedReference::Model(Box::new(reference)))
    }

    /// What the manifest says of it, without loading it; `hash` gives a folder's content.
    pub fn identity(&self, hash: impl FnOnce(&PathBuf) -> Result<String>) -> Result<Option<String>> {
        match self {
            Self::None => Ok(None),
            Self::Itself => Ok(Some("self".to_owned())),
            Self::Base => Ok(Some("base".to_owned())),
            Self::Folder(folder) => hash(folder).map(Some),
            Self::Held(held) => Ok(Some(held.content_hash.clone())),
            Self::Adapter(folder) => Ok(Some(format!("adapter {}", adapter_hash(folder)?))),
        }
    }
}

/// Share of the ids that may stand for other texts: trainers give reserved tokens new names.
const OTHER_TEXTS: f64 = 0.01;

/// Says where a reference's tokenizer has other texts for the model's ids; refuses one of other texts altogether.
fn same_texts(reference: &Path, model: &Model, listener: &dyn Listener) -> Result<()> {
    let (Some(ours), Some(theirs)) = (tokenizer(&model.tokenizer_folders())?, tokenizer(&[reference])?) else {
        return Ok(());
    };
    let (known, differing) = ours.differing(&theirs);
    let Some((id, here, there)) = differing.first() else { return Ok(()) };
    let said = format!("token {id} is `{there}` in the reference's tokenizer and `{here}` in the model's");
    let said = match differing.len() {
        1 => said,
        n => format!("{said}, and {} others differ", n - 1),
    };
    if differing.len() as f64 > OTHER_TEXTS * known as f64 {
        let problem = format!("{said}: the same ids are other texts to it; take a reference of the same tokenizer");
        return Err(Error::value("reference", reference.display(), problem));
    }
    listener.note(&format!("reference: {said}"));
    Ok(())
}
