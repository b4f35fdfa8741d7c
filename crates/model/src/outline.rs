//! The shape of a model without its weights: what it would cost to run, before anything is loaded.
use crate::adapter::{Adapter, AdapterSource, LowRank, OwnTokens, Place, TablesOutline};
use crate::architectures::{self, Description, Part, PerLayerKind, Reads};
use crate::config::Config;
use crate::error::Result;
use crate::layers::{bias_of, weight_of, whole};
use crate::scope::{InScope, Location, Parameter, ParameterKind, Scope};
use std::path::Path;
use tanglescope_checkpoint::Tensors;

/// A linear map of a block, or of what blocks read of each token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Map {
    /// Path of its module in the full architecture.
    pub path: String,
    /// Block, where it is of one.
    pub layer: Option<usize>,
    /// Which input it reads.
    pub reads: Reads,
    /// Values of its input and of its output, a row.
    pub shape: [usize; 2],
    /// Whether it has a bias.
    pub bias: bool,
    /// Rank of its adapter's factors.
    pub rank: Option<usize>,
    /// Path of its module as the adapter spells it.
    pub adapter_path: String,
    /// Whether it is one of many experts', which not every row meets.
    pub routed: bool,
}

/// An adapter's change of all experts of a layer, of gate and up together or of down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FusedMap {
    /// Block.
    pub layer: usize,
    /// Path of its module as the adapter has it.
    pub path: String,
    /// The same inside the block.
    pub module: String,
}

/// Dimensions and linear maps of a model, with an adapter or without.
#[derive(Clone, Debug)]
pub struct Outline {
    /// Dimensions and names.
    pub description: Description,
    /// All linear maps, in the order of the forward pass.
    pub maps: Vec<Map>,
    /// An adapter's changes of all experts of a layer.
    pub fused: Vec<FusedMap>,
    /// Its changes of the embedding and of the output matrix.
    pub tables: TablesOutline,
    /// Whether it took a part of the weights that it changes.
    pub taken_apart: bool,
}

impl Map {
    /// Name of its weight.
    #[must_use]
    pub fn weight_name(&self) -> String {
        weight_of(&self.path)
    }
}

impl Outline {
    /// Reads a model folder's config, and an adapter's.
    ///
    /// # Errors
    /// Where a config cannot be read or asks for something that is not computed.
    pub fn read(folder: &Path, source: &AdapterSource) -> Result<Self> {
        let description = architectures::describe(&Config::of_model(folder)?)?;
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
        let (mut maps, mut fused) = (Vec::new(), Vec::new());
        let mut add =
            |path: String, layer: Option<usize>, (reads, shape, bias, routed): (Reads, [usize; 2], bool, bool)| {
                let rank = adapter.rank(&path, Place { layer, attention: reads.by_attention(), routed });
                let adapter_path = adapter.spelled(&path);
                maps.push(Map { path, layer, reads, shape, bias, rank, adapter_path, routed });
            };
        if let Some(kind) = &description.per_layer {
            let shape = [description.hidden, description.layers() * kind.width];
            add(description.outside(PerLayerKind::OUTSIDE[1]), None, (Reads::Embedded, shape, false, false));
        }
        for layer in 0..description.layers() {
            for part in description.parts(layer) {
                let Part::Map { name, reads, shape, bias, routed } = part else { continue };
                let path = format!("{}.{layer}.{name}", description.names.blocks);
                add(path, Some(layer), (reads, shape, bias, routed));
            }
        }
        for layer in 0..description.layers() {
            if let Some(experts) = description.experts_of(layer) {
                let list = format!("{}.{layer}.{}", description.names.blocks, experts.list);
                for path in adapter.fused_paths(&list).into_iter().flatten() {
                    let module = format!("{}{}", experts.list, path.strip_prefix(&list).unwrap_or_default());
                    fused.push(FusedMap { layer, path, module });
                }
            }
        }
        let tables = adapter.tables_outline(&description);
        let column_norms = adapter.has_magnitudes().then_some(description.column_norms.unwrap_or_default());
        let description = Description { column_norms, ..description };
        Self { description, maps, fused, tables, taken_apart: adapter.taken_apart().is_some() }
    }

    /// All parameters under the names of the full architecture, in the order of the forward pass.
    #[must_use]
    pub fn parameters(&self) -> Vec<Parameter> {
        parameters(&self.description, &self.maps, (&self.fused, &self.tables))
    }

    /// Entries of the matrices that a scope selects, and of the vectors beside maps; those of norms, which are few, are left out.
    #[must_use]
    pub fn entries(&self, scope: &InScope) -> usize {
        let of = &self.description;
        let of_map = |map: &Map| {
            let ([n, m], has) = (map.shape, |name: &str| scope.contains(name));
            let factor = |name: &str| has(&format!("{}.{name}.weight", map.adapter_path));
            let low_rank =
                map.rank.map_or(0, |r| usize::from(factor("lora_A")) * n * r + usize::from(factor("lora_B")) * r * m);
            usize::from(has(&map.weight_name())) * n * m + usize::from(has(&bias_of(&map.path))) * m + low_rank
        };
        let embedding = format!("{}.weight", of.names.embedding);
        let mut tables = vec![embedding.clone(), self.head_name()];
        tables.dedup();
        let of_tables = tables.iter().filter(|name| scope.contains(name)).count() * of.vocabulary * of.hidden;
        self.maps.iter().map(of_map).sum::<usize>() + of_tables
    }

    /// The parameters that a scope selects. A checkpoint of the bare base, and an adapter's copies of base parameters, are
    /// seen only once weights are opened.
    ///
    /// # Errors
    /// Where it selects none.
    pub fn in_scope(&self, scope: &Scope) -> Result<InScope> {
        let chosen = InScope::select(scope, self.parameters(), &self.head_name())?;
        self.tables.refuse_replaced(&chosen, scope)?;
        Ok(chosen)
    }

    /// Name of the output matrix.
    #[must_use]
    pub fn head_name(&self) -> String {
        let names = &self.description.names;
        format!("{}.weight", if self.description.tied { &names.embedding } else { &names.head })
    }

    /// Names of the matrices of all parts of the logits.
    pub fn logit_matrices(&self) -> impl Iterator<Item = String> {
        let bias = self.description.head_bias.then(|| format!("{}.bias", self.description.names.head));
        let change = self.tables.head.as_ref().map(|head| head.names[1].clone());
        bias.into_iter().chain(change).chain([self.head_name()])
    }

    /// The padding token whose row of the embedding is not trained by its places in a sequence; `None` where the scope trains no
    /// such row.
    #[must_use]
    pub fn padding_row(&self, scope: &InScope) -> Option<u32> {
        let of = &self.description;
        let tables = [of.names.embedding.to_string(), of.outside(PerLayerKind::OUTSIDE[0])];
        let is_table = |name: &str| name.strip_suffix(".weight").is_some_and(|name| tables.iter().any(|of| of == name));
        let trains = !scope.head_only() && scope.parameters.iter().any(|parameter| is_table(&parameter.name));
        self.description.padding_row.filter(|_| trains)
    }

    /// What is wrong with the first matrix of a block that is not stored as it should be: missing, of another shape, or in numbers that are
    /// no weights; seen without reading values.
    #[must_use]
    pub fn misfit(&self, tensors: &Tensors) -> Option<String> {
        let names = &self.description.names;
        let bare = tensors.get(&format!("{}.weight", names.embedding)).is_none();
        let problem = |map: &Map| {
            let [inputs, outputs] = map.shape;
            let shape = if names.conv1d { [inputs, outputs] } else { [outputs, inputs] };
            let full = map.weight_name();
            let name = if bare { full.strip_prefix(&*names.prefix).unwrap_or(&full) } else { &full };
            match tensors.get(name) {
                None => Some(format!("tensor `{name}`: missing; expected one of shape {shape:?}")),
                Some(stored) if *stored.shape() != shape => {
                    Some(format!("tensor `{name}`: found shape {:?}, expected {shape:?}", stored.shape()))
                }
                Some(stored) if !stored.holds_weights() => {
                    Some(format!("tensor `{name}`: stored as {}", stored.kind()))
                }
                Some(_) => None,
            }
        };
        // parts of a tensor of all experts are told apart when they are read
        self.maps.iter().filter(|map| !map.path.contains('#')).find_map(problem)
    }

    /// How many values of weights there are.
    #[must_use]
    pub fn values(&self) -> Values {
        let of = &self.description;
        let tables = if of.tied { 1 } else { 2 };
        let positions = if of.names.positions.is_some() { of.first_position + of.max_positions } else { 0 };
        let by_token = of.per_layer.map_or(0, |kind| kind.vocabulary * of.layers() * kind.width + kind.width);
        let mut values =
            Values { outside: (tables * of.vocabulary + positions + 2) * of.hidden + by_token, ..Values::default() };
        // a change of the output matrix, or rows of its own, are put together with it for a pass
        let mut own_rows = [&self.tables.embedding_tokens, &self.tables.head_tokens].into_iter().flatten();
        if self.tables.head.is_some() || own_rows.any(|own| own.of_head) {
            values.numbers_outside = 2 * of.vocabulary * of.hidden;
        }
        let (mut blocks, mut numbers) = (vec![0; of.layers()], vec![0; of.layers()]);
        for map in &self.maps {
            let (all, low) = (map.shape[0] * map.shape[1], map.rank.unwrap_or(0) * (map.shape[0] + map.shape[1]));
            // what is left of a base that was taken apart is not as it is stored
            let (stored, low) = if self.taken_apart && map.rank.is_some() { (0, low + all) } else { (all, low) };
            match map.layer {
                Some(layer) => {
                    blocks[layer] += stored;
                    numbers[layer] += low;
                }
                None => {
                    values.outside += stored;
                    values.numbers_outside += low;
                }
            }
        }
        let of_part = |part: Part| match part {
            Part::Norm { features, .. } => 2 * features,
            Part::Vector { shape, .. } => shape.iter().product(),
            Part::Map { .. } => 0,
        };
        for (layer, block) in blocks.iter_mut().enumerate() {
            *block += of.parts(layer).into_iter().map(of_part).sum::<usize>();
        }
        let largest = |of: Vec<usize>| of.into_iter().max().unwrap_or(0);
        Values { block: largest(blocks), numbers_of_block: largest(numbers), ..values }
    }
}

/// Values of weights: of those that are as they are stored, and of those that are numbers of the model's type whatever they are stored as.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Values {
    /// Outside the blocks.
    pub outside: usize,
    /// Copies of the output matrix with an adapter's change, and adapters outside the blocks.
    pub numbers_outside: usize,
    /// Of the largest block.
    pub block: usize,
    /// Of the adapter in a block, and of weights that it took a part of.
    pub numbers_of_block: usize,
}

impl Values {
    /// Of a model of some blocks.
    #[must_use]
    pub fn all(&self, layers: usize) -> usize {
        let block = self.block.saturating_add(self.numbers_of_block);
        self.outside.saturating_add(self.numbers_outside).saturating_add(block.saturating_mul(layers))
    }
}

/// The parameters of a model with some linear maps, under the names of the full architecture, in the order of the forward pass.
pub(crate) fn parameters(
    of: &Description,
    maps: &[Map],
    (fused, tables): (&[FusedMap], &TablesOutline),
) -> Vec<Parameter> {
    let mut out = Vec::new();
    let mut add = |name: String, module: &str, location: Location, layer: Option<usize>| {
        let kind = match &*name {
            name if name.contains(".lora_") => ParameterKind::Lora,
            name if name.contains(".token_adapter.") => ParameterKind::Saved,
            _ => ParameterKind::Base,
        };
        out.push(Parameter { name, layer, module: module.to_owned(), location, kind });
    };
    let weight = |path: &str| format!("{path}.weight");
    let norm_values = || ["weight", "bias"].into_iter().take(usize::from(of.norm_gain) + usize::from(of.norm_bias));
    add(weight(&of.names.embedding), &of.names.embedding, Location::Embedding, None);
    if let Some(positions) = of.names.positions {
        add(weight(positions), positions, Location::Embedding, None);
    }
    let of_table = |low_rank: &Option<LowRank>, own: &Option<OwnTokens>| {
        let low_rank = low_rank.iter().flat_map(|of| of.names.iter().map(|name| (name.clone(), of.module.clone())));
        low_rank.chain(own.iter().map(|of| (of.name.clone(), of.module.clone()))).collect::<Vec<_>>()
    };
    for (name, module) in of_table(&tables.embedding, &tables.embedding_tokens) {
        add(name, &module, Location::Embedding, None);
    }
    let magnitude = of.column_norms.map(|_| "lora_magnitude_vector");
    let lora = |map: &Map| {
        let tensors = ["lora_A.weight", "lora_B.weight"].into_iter().chain(magnitude);
        let of = |tensor| format!("{}.{tensor}", map.adapter_path);
        tensors.map(of).collect::<Vec<_>>()
    };
    if of.per_layer.is_some() {
        let [table, projection, norm] = PerLayerKind::OUTSIDE.map(|name| of.outside(name));
        let mut add = |name: String, module: &str| add(name, module, Location::PerLayerInputs, None);
        add(weight(&table), &table);
        add(weight(&projection), &projection);
        let map = maps.iter().find(|map| map.path == projection && map.rank.is_some());
        map.into_iter().flat_map(lora).for_each(|name| add(name, &projection));
        norm_values().for_each(|tensor| add(format!("{norm}.{tensor}"), &norm));
    }
    for layer in 0..of.layers() {
        let mut maps = maps.iter().filter(|map| map.layer == Some(layer));
        let mut add = |name: String, module: &str| add(name, module, Location::Block, Some(layer));
        for part in of.parts(layer) {
            match part {
                Part::Norm { name, .. } => {
                    let path = format!("{}.{layer}.{name}", of.names.blocks);
                    norm_values().for_each(|tensor| add(format!("{path}.{tensor}"), &name));
                }
                Part::Vector { name, .. } => add(format!("{}.{layer}.{name}", of.names.blocks), name),
                Part::Map { name, bias, .. } => {
                    let path = format!("{}.{layer}.{name}", of.names.blocks);
                    let map = maps.next();
                    // a tensor of many maps is one parameter, and has a place at the first
                    if name.contains('#') && !name.ends_with("#0.0") {
                        continue;
                    }
                    add(whole(&weight_of(&path)).to_owned(), whole(&name));
                    if bias {
                        add(whole(&bias_of(&path)).to_owned(), whole(&name));
                    }
                    map.filter(|map| map.rank.is_some()).into_iter().flat_map(lora).for_each(|path| add(path, &name));
                }
            }
        }
    }
    for of in fused {
        for tensor in ["lora_A.weight", "lora_B.weight"] {
            add(format!("{}.{tensor}", of.path), &of.module, Location::Block, Some(of.layer));
        }
    }
    let norm: &str = &of.names.final_norm;
    norm_values().for_each(|tensor| add(format!("{norm}.{tensor}"), norm, Location::FinalNorm, None));
    if !of.tied {
        add(weight(&of.names.head), &of.names.head, Location::Head, None);
    }
    if of.head_bias {
        add(format!("{}.bias", of.names.head), &of.names.head, Location::Head, None);
    }
    for (name, module) in of_table(&tables.head, &tables.head_tokens) {
        add(name, &module, Location::Head, None);
    }
    out
}
