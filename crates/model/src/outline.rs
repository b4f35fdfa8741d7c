//! The shape of a model without its weights: what it would cost to run, before anything is loaded.
use crate::adapter::{Adapter, AdapterSource};
use crate::architectures::{self, Description, Part};
use crate::config::Config;
use crate::error::Result;
use crate::scope::{InScope, Parameter, ParameterKind, Scope};
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

/// The inputs of a block's linear maps, in the order of the forward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reads {
    /// The normalised residual stream, for queries, keys and values.
    Attention,
    /// What attention mixed.
    Mixed,
    /// The normalised residual stream, for the feed-forward layer.
    FeedForward,
    /// The feed-forward layer's inner values.
    Inner,
}

impl Reads {
    /// Whether the map is one of attention's.
    #[must_use]
    pub fn of_attention(self) -> bool {
        matches!(self, Self::Attention | Self::Mixed)
    }
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
        let mut adapter = Adapter::open(source)?;
        let mut maps = Vec::new();
        for layer in 0..description.layers() {
            for part in description.parts() {
                let Part::Map { name, reads, shape, bias } = part else { continue };
                let path = format!("{}.{layer}.{name}", description.names.blocks);
                let rank = adapter.rank(&path, layer, reads.of_attention());
                maps.push(Map { path, layer, reads, shape, bias, rank });
            }
        }
        Ok(Self { description, maps })
    }

    /// All parameters under the names of the full architecture, in the order of the forward pass.
    #[must_use]
    pub fn parameters(&self) -> Vec<Parameter> {
        let of = &self.description;
        let mut out = Vec::new();
        let mut add = |name: String, layer: Option<usize>, kind: ParameterKind| {
            let inside = layer.map(|layer| format!("{}.{layer}.", of.names.blocks));
            let path = inside.and_then(|inside| name.strip_prefix(&inside).map(str::to_owned)).unwrap_or(name.clone());
            let module = path.rsplit_once('.').map_or(path.as_str(), |(module, _)| module);
            let module = module.trim_end_matches(".lora_A").trim_end_matches(".lora_B").to_owned();
            out.push(Parameter { name, layer, module, kind });
        };
        let norm = |path: &str| {
            let names = ["weight", "bias"].into_iter().take(if of.norm_bias { 2 } else { 1 });
            names.map(|name| format!("{path}.{name}")).collect::<Vec<_>>()
        };
        add(format!("{}.weight", of.names.embedding), None, ParameterKind::Base);
        if let Some(positions) = of.names.positions {
            add(format!("{positions}.weight"), None, ParameterKind::Base);
        }
        for layer in 0..of.layers() {
            let mut maps = self.maps.iter().filter(|map| map.layer == layer);
            for part in of.parts() {
                match part {
                    Part::Norm { name, .. } => {
                        let path = format!("{}.{layer}.{name}", of.names.blocks);
                        norm(&path).into_iter().for_each(|name| add(name, Some(layer), ParameterKind::Base));
                    }
                    Part::Map { .. } => {
                        let Some(map) = maps.next() else { continue };
                        add(format!("{}.weight", map.path), Some(layer), ParameterKind::Base);
                        if map.bias {
                            add(format!("{}.bias", map.path), Some(layer), ParameterKind::Base);
                        }
                        if map.rank.is_some() {
                            ["lora_A", "lora_B"].iter().for_each(|factor| {
                                add(format!("{}.{factor}.weight", map.path), Some(layer), ParameterKind::Lora);
                            });
                        }
                    }
                }
            }
        }
        norm(&of.names.final_norm).into_iter().for_each(|name| add(name, None, ParameterKind::Base));
        if !of.tied {
            add(format!("{}.weight", of.names.head), None, ParameterKind::Base);
        }
        out
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

    /// Values of all weights: of everything outside the blocks, and of one block.
    #[must_use]
    pub fn values(&self) -> (usize, usize) {
        let of = &self.description;
        let tables = if of.tied { 1 } else { 2 };
        let positions = if of.names.positions.is_some() { of.max_positions } else { 0 };
        let outside = (tables * of.vocabulary + positions + 2) * of.hidden;
        let maps = self.maps.iter().filter(|map| map.layer == 0);
        let of_map = |map: &Map| map.shape[0] * map.shape[1] + map.rank.unwrap_or(0) * (map.shape[0] + map.shape[1]);
        let of_norm = |part: Part| if let Part::Norm { features, .. } = part { 2 * features } else { 0 };
        (outside, maps.map(of_map).sum::<usize>() + of.parts().into_iter().map(of_norm).sum::<usize>())
    }
}
