//! Which parameters a run is about.
use crate::error::{Error, Result, pattern_problem};
use crate::layers::whole;
use regex::Regex;
use std::collections::BTreeMap;
use std::str::FromStr;

/// A set of parameters, before it is known which a model has.
#[derive(Clone, Debug)]
pub enum Scope {
    /// The adapter's A and B.
    Lora,
    /// The adapter's A and B and its `modules_to_save`.
    Trainable,
    /// Every base parameter, a tied one once.
    Full,
    /// The logits part of the output matrix.
    Head,
    /// Parameters in whose name the pattern is found.
    Pattern(Regex),
}

impl FromStr for Scope {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Ok(match text {
            "lora" => Self::Lora,
            "trainable" => Self::Trainable,
            "full" => Self::Full,
            "head" => Self::Head,
            _ => Self::Pattern(Regex::new(text).map_err(|e| Error::Scope {
                scope: text.to_owned(),
                problem: format!(
                    "neither lora, trainable, full or head nor a regular expression: {}",
                    pattern_problem(&e)
                ),
            })?),
        })
    }
}

impl std::fmt::Display for Scope {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Lora => "lora",
            Self::Trainable => "trainable",
            Self::Full => "full",
            Self::Head => "head",
            Self::Pattern(pattern) => pattern.as_str(),
        })
    }
}

/// A parameter tensor as it appears in results.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parameter {
    /// Name in the checkpoint; an adapter's without `base_model.model.` and `.default`.
    pub name: String,
    /// Block, for parameters of blocks.
    pub layer: Option<usize>,
    /// Path of its module, inside the block where it is of one.
    pub module: String,
    /// Where in the decoder it is used.
    pub location: Location,
    /// What kind of parameter it is.
    pub kind: ParameterKind,
}

/// Where in the decoder a parameter is used. A tied output matrix is where the embedding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Location {
    /// Tokens or learned positions.
    Embedding,
    /// What each block reads of a token beside the residual stream.
    PerLayerInputs,
    /// A block.
    Block,
    /// The norm before the head.
    FinalNorm,
    /// The output matrix.
    Head,
}

/// What a parameter belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParameterKind {
    /// The base model.
    Base,
    /// The base model, in the adapter's own copy (`modules_to_save`).
    Saved,
    /// A low-rank factor.
    Lora,
}

/// The parameters of one model that a scope selects.
#[derive(Clone, Debug)]
pub struct InScope {
    /// In the model's order.
    pub parameters: Vec<Parameter>,
    /// Block of each, by name.
    layers: BTreeMap<String, Option<usize>>,
    head_only: bool,
}

/// The expert that a name says: `….experts.3.gate_proj.weight`, or `….experts.gate_up_proj#3.0`.
fn expert_in(name: &str) -> Option<usize> {
    let (_, path) = name.split_once(".experts.")?;
    let number = |text: &str| text.split('.').next().and_then(|number| number.parse().ok());
    number(path).or_else(|| number(path.split_once('#')?.1))
}

impl InScope {
    /// Those of all parameters that a scope selects; `head` is the name of the output matrix.
    ///
    /// # Errors
    /// Where it selects none.
    pub fn select(scope: &Scope, all: Vec<Parameter>, head: &str) -> Result<Self> {
        let example = all.iter().find(|p| p.layer.is_some()).or(all.first()).map_or(String::new(), |p| p.name.clone());
        let chosen = |p: &Parameter| match scope {
            Scope::Lora => p.kind == ParameterKind::Lora,
            Scope::Trainable => p.kind != ParameterKind::Base,
            Scope::Full => p.kind != ParameterKind::Lora,
            Scope::Head => p.name == head,
            Scope::Pattern(pattern) => pattern.is_match(&p.name),
        };
        let parameters: Vec<Parameter> = all.into_iter().filter(chosen).collect();
        if parameters.is_empty() {
            let problem = match scope {
                Scope::Lora | Scope::Trainable => {
                    "the model has no adapter; add option `adapter`, or option `lora_r` for a fresh one".to_owned()
                }
                _ => format!("matches no parameter; one is `{example}`"),
            };
            return Err(Error::Scope { scope: scope.to_string(), problem });
        }
        let layers = parameters.iter().map(|p| (p.name.clone(), p.layer)).collect();
        Ok(Self { parameters, layers, head_only: matches!(scope, Scope::Head) })
    }

    /// Whether a parameter is selected.
    #[must_use]
    pub fn contains(&self, name: &str) -> bool {
        self.layers.contains_key(whole(name))
    }

    /// Block of a selected parameter; `None` outside of blocks.
    #[must_use]
    pub fn layer_of(&self, name: &str) -> Option<usize> {
        self.layers.get(whole(name)).copied().flatten()
    }

    /// Block and expert of a parameter of an expert, or of its part of a tensor of all experts.
    #[must_use]
    pub fn expert_of(&self, name: &str) -> Option<(usize, usize)> {
        let expert = expert_in(name)?;
        Some(((*self.layers.get(whole(name))?)?, expert))
    }

    /// Whether the embedding part of a tied output matrix is left out.
    #[must_use]
    pub fn head_only(&self) -> bool {
        self.head_only
    }
}
