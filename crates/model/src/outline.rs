//! The shape of a model without its weights: what it would cost to run, before anything is loaded.
use crate::adapter::{Adapter, AdapterSource};
use crate::architectures::{self, Description, Part, Reads};
use crate::config::Config;
use crate::error::Result;
use crate::scope::{InScope, Location, Parameter, ParameterKind, Scope};
use std::path::Path;

/// A linear map of a block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Map {
    /// Path of its module in the full architecture.
    pub path: String,
    /// Block.
    pub layer: usize,
    /// Which of a block's inputs it reads.
    pub reads: Reads,
    /// Values of its input and of its output, a row.
    pub shape: [usize; 2],
    /// Whether it has a bias.
    pub bias: bool,
    /// Rank of its adapter's factors.
    pub rank: Option<usize>,
}

/// Dimensions and linear maps of a model, with an adapter or without.
#[derive(Clone, Debug)]
pub struct Outline {
    /// Dimensions and names.
    pub description: Description,
    /// The linear maps of all blocks, in the order of the forward pass.
    pub maps: Vec<Map>,
}

impl Outline {
    /// Reads a model folder's config, and an adapter's.
    ///
    /// # Errors
    /// Where a config cannot be read or asks for something that is not computed.
    pub fn read(folder: &Path, source: &AdapterSource) -> Result<Self> {
        let description = architectures::describe(&Config::read(&folder.join("config.json"))?)?;
        Self::new(description, source)
    }

    /// The outline of a model with given dimensions.
    ///
    /// # Errors
    /// Where the adapter's config cannot be read.
    pub fn new(description: Description, source: &AdapterSource) -> Result<Self> {
        Ok(Self::with(description, &mut Adapter::open(source)?))
    }

    /// The outline of a model under an adapter that is open.
    pub(crate) fn with(description: Description, adapter: &mut Adapter) -> Self {
        let mut maps = Vec::new();
        for layer in 0..description.layers() {
            for part in description.parts() {
                let Part::Map { name, reads, shape, bias } = part else { continue };
                let path = format!("{}.{layer}.{name}", description.names.blocks);
                let rank = adapter.rank(&path, layer, reads.by_attention());
                maps.push(Map { path, layer, reads, shape, bias, rank });
            }
        }
        Self { description, maps }
    }

    /// All parameters under the names of the full architecture, in the order of the forward pass.
    #[must_use]
    pub fn parameters(&self) -> Vec<Parameter> {
        parameters(&self.description, &self.maps)
    }

    /// The parameters that a scope selects. A checkpoint of the bare base, and an adapter's copies of base parameters, are
    /// seen only once weights are opened.
    ///
    /// # Errors
    /// Where it selects none.
    pub fn in_scope(&self, scope: &Scope) -> Result<InScope> {
        let names = &self.description.names;
        let head = if self.description.tied { &names.embedding } else { &names.head };
        InScope::select(scope, self.parameters(), &format!("{head}.weight"))
    }

    /// The padding token whose row of the embedding is not trained by its places in a sequence; `None` where the scope trains no
    /// such row.
    #[must_use]
    pub fn padding_row(&self, scope: &InScope) -> Option<u32> {
        let table = format!("{}.weight", self.description.names.embedding);
        let trains = !scope.head_only() && scope.parameters.iter().any(|parameter| parameter.name == table);
        self.description.padding_row.filter(|_| trains)
    }

    /// Values of all weights: of everything outside the blocks, and of one block.
    #[must_use]
    pub fn values(&self) -> (usize, usize) {
        let of = &self.description;
        let tables = if of.tied { 1 } else { 2 };
        let positions = if of.names.positions.is_some() { of.max_positions } else { 0 };
        let outside = (tables * of.vocabulary + positions + 2) * of.hidden;
        let maps = self.maps.iter().filter(|map| map.layer == 0);
        let map_values =
            |map: &Map| map.shape[0] * map.shape[1] + map.rank.unwrap_or(0) * (map.shape[0] + map.shape[1]);
        let norm_values = |part: Part| if let Part::Norm { features, .. } = part { 2 * features } else { 0 };
        (outside, maps.map(map_values).sum::<usize>() + of.parts().into_iter().map(norm_values).sum::<usize>())
    }
}

/// The parameters of a model with some linear maps, under the names of the full architecture, in the order of the forward pass.
pub(crate) fn parameters(of: &Description, maps: &[Map]) -> Vec<Parameter> {
    let mut out = Vec::new();
    let mut add = |module: &str, tensor: &str, location: Location, layer: Option<usize>, kind: ParameterKind| {
        let prefix = layer.map_or(String::new(), |layer| format!("{}.{layer}.", of.names.blocks));
        let name = format!("{prefix}{module}.{tensor}");
        out.push(Parameter { name, layer, module: module.to_owned(), location, kind });
    };
    let norm_values = || ["weight", "bias"].into_iter().take(if of.norm_bias { 2 } else { 1 });
    add(&of.names.embedding, "weight", Location::Embedding, None, ParameterKind::Base);
    if let Some(positions) = of.names.positions {
        add(positions, "weight", Location::Embedding, None, ParameterKind::Base);
    }
    for layer in 0..of.layers() {
        let mut maps = maps.iter().filter(|map| map.layer == layer);
        let mut add = |module: &str, tensor: &str, kind| add(module, tensor, Location::Block, Some(layer), kind);
        for part in of.parts() {
            match part {
                Part::Norm { name, .. } => norm_values().for_each(|tensor| add(name, tensor, ParameterKind::Base)),
                Part::Map { name, bias, .. } => {
                    add(name, "weight", ParameterKind::Base);
                    if bias {
                        add(name, "bias", ParameterKind::Base);
                    }
                    if maps.next().is_some_and(|map| map.rank.is_some()) {
                        add(name, "lora_A.weight", ParameterKind::Lora);
                        add(name, "lora_B.weight", ParameterKind::Lora);
                    }
                }
            }
        }
    }
    norm_values().for_each(|tensor| add(&of.names.final_norm, tensor, Location::FinalNorm, None, ParameterKind::Base));
    if !of.tied {
        add(&of.names.head, "weight", Location::Head, None, ParameterKind::Base);
    }
    out
}
