//! From a Hugging Face folder to a decoder, and from one adapter to another.
use crate::adapter::{Adapter, AdapterSource, Place, TablesOutline};
use crate::architectures::{self, Description, ExpertsKind, PerLayerKind, Wrapper};
use crate::assemble;
use crate::config::Config;
use crate::decoder::Decoder;
use crate::error::{Error, Result};
use crate::layers::{
    Block, FeedForward, Linear, Matrix, Norm, Part, PerLayerInputs, Vector, bias_of, weight_of, whole,
};
use crate::outline::Outline;
use crate::residency::{InFiles, Places, Residence, Store};
use crate::sink::Embedding;
use crate::stop::Stop;
use crate::tables::TableChanges;
use crate::weights::{HeldModel, Weights, content_hash};
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use tanglescope_checkpoint::Layout;
use tanglescope_kernels::cost::Rates;
use tanglescope_kernels::{DType, Flex, FlexDevice, FloatTensor, Kernels, Memory, TensorMetadata};

/// Reads the tensors of a base model, or of an adapter's copies of them.
pub(crate) struct Loader<'a> {
    base: Weights,
    pub(crate) adapter: &'a mut Adapter,
    names_prefix: String,
    /// Whether the checkpoint leaves the base's prefix out.
    bare: bool,
    pub(crate) dtype: DType,
    saved: BTreeSet<String>,
    /// Names of tensors that are not as the base has them.
    changed: BTreeSet<String>,
    /// Those of them that the adapter has beside what it trains.
    wrapped: BTreeSet<String>,
}

impl<'a> Loader<'a> {
    pub fn new(base: Weights, adapter: &'a mut Adapter, names_prefix: String, bare: bool, dtype: DType) -> Self {
        Self {
            base,
            adapter,
            names_prefix,
            bare,
            dtype,
            saved: BTreeSet::new(),
            changed: BTreeSet::new(),
            wrapped: BTreeSet::new(),
        }
    }
}

impl Loader<'_> {
    /// Name in the checkpoint of a parameter of the full architecture.
    fn name(&self, name: &str) -> String {
        if self.bare {
            name.strip_prefix(self.names_prefix.as_str()).unwrap_or(name).to_owned()
        } else {
            name.to_owned()
        }
    }

    /// Where a parameter of the full architecture is: its name in the checkpoint, and the stored tensor that it is read from.
    fn source(&mut self, canonical: &str) -> (String, &mut Weights, String) {
        let name = self.name(canonical);
        let Adapter::Saved(adapter) = &mut *self.adapter else { return (name.clone(), &mut self.base, name) };
        let (saved, wrapped) = (adapter.saved(canonical), adapter.wrapped(canonical));
        let Some(stored) = saved.clone().or(wrapped) else { return (name.clone(), &mut self.base, name) };
        self.base.ignore(&name);
        self.changed.insert(name.clone());
        let own = if saved.is_some() { &mut self.saved } else { &mut self.wrapped };
        own.insert(name.clone());
        (name, adapter.weights(), stored)
    }

    /// The tensor and its name in the checkpoint.
    pub(crate) fn tensor<B: Kernels>(
        &mut self,
        canonical: &str,
        shape: &[usize],
        layout: Layout,
        device: &B::Device,
    ) -> Result<(String, FloatTensor<B>)> {
        let dtype = self.dtype;
        let (name, weights, stored) = self.source(canonical);
        Ok((name, weights.take::<B>(&stored, shape, layout, dtype, device)?))
    }

    /// The same of a matrix, which may be codes.
    fn matrix<B: Kernels>(
        &mut self,
        canonical: &str,
        shape: &[usize],
        layout: Layout,
        device: &B::Device,
    ) -> Result<Matrix<B>> {
        let dtype = self.dtype;
        let (_, weights, stored) = self.source(canonical);
        weights.take_matrix::<B>(&stored, shape, layout, dtype, device)
    }

    /// The values of a tensor that is no parameter, as f64.
    pub(crate) fn values(&mut self, canonical: &str, number: usize) -> Result<Vec<f64>> {
        let name = self.name(canonical);
        let values = self.base.take::<Flex>(&name, &[number], Layout::Same, DType::F64, &FlexDevice)?;
        Ok(Flex::download(&values))
    }

    pub(crate) fn embedding<B: Kernels>(
        &mut self,
        module: &str,
        shape: [usize; 2],
        device: &B::Device,
    ) -> Result<Embedding<B>> {
        let name = format!("{module}.weight");
        let table = self.matrix::<B>(&name, &shape, Layout::Same, device)?;
        Ok(Embedding { name: self.name(&name), table })
    }

    pub(crate) fn norm<B: Kernels>(
        &mut self,
        module: &str,
        features: usize,
        of: &Description,
        device: &B::Device,
    ) -> Result<Norm<B>> {
        if !of.norm_gain {
            return Ok(assemble::without_parameters(features, of.norm, self.dtype, device));
        }
        let (gain_name, gain) = self.tensor::<B>(&format!("{module}.weight"), &[features], Layout::Same, device)?;
        let bias = match of.norm_bias {
            true => Some(self.tensor::<B>(&format!("{module}.bias"), &[features], Layout::Same, device)?.1),
            false => None,
        };
        Ok(Norm { gain_name, gain, bias, kind: of.norm, gain_plus_one: of.gain_plus_one })
    }

    /// Numbers that are neither a norm's nor a map's, of a shape in the checkpoint.
    pub(crate) fn vector<B: Kernels>(&mut self, name: &str, shape: &[usize], device: &B::Device) -> Result<Vector<B>> {
        let (name, values) = self.tensor::<B>(name, shape, Layout::Same, device)?;
        Ok(Vector { name, values: B::reshape(values, [shape.iter().product::<usize>()]) })
    }

    pub(crate) fn linear<B: Kernels>(
        &mut self,
        module: &Module<'_>,
        [inputs, outputs]: [usize; 2],
        device: &B::Device,
    ) -> Result<Linear<B>> {
        let path = &module.path;
        let place = Place { layer: module.layer, attention: module.attention, routed: module.routed };
        if let Some(experts) = module.stack {
            let name = weight_of(path);
            let (shape, layout) = experts.place(&name, &[inputs, outputs]);
            let weight = self.matrix::<B>(whole(&name), &shape, layout, device)?;
            let bias = match module.bias {
                true => {
                    let name = bias_of(path);
                    let (shape, layout) = experts.place(&name, &[outputs]);
                    Some(self.tensor::<B>(whole(&name), &shape, layout, device)?.1)
                }
                false => None,
            };
            return Ok(Linear { name: self.name(path), weight, bias, lora: None });
        }
        let (shape_stored, layout) =
            if module.conv1d { ([inputs, outputs], Layout::Same) } else { ([outputs, inputs], Layout::Transposed) };
        let mut weight = self.matrix::<B>(&weight_of(path), &shape_stored, layout, device)?;
        if let Some(rest) = self.adapter.rest::<B>(path, place, &weight, (self.dtype, device))? {
            weight = Matrix::Plain(rest);
            self.changed.insert(self.name(&weight_of(path)));
        }
        let bias = match module.bias {
            true => Some(self.tensor::<B>(&bias_of(path), &[outputs], Layout::Same, device)?.1),
            false => None,
        };
        let lora = self.adapter.factors::<B>(path, place, &weight, self.dtype, device)?;
        Ok(Linear { name: self.name(path), weight, bias, lora })
    }
}

/// A linear map, before it is loaded.
pub(crate) struct Module<'a> {
    pub path: String,
    /// Block, where it is of one.
    pub layer: Option<usize>,
    pub attention: bool,
    pub bias: bool,
    pub conv1d: bool,
    pub routed: bool,
    /// The experts that one tensor holds, where it is a part of one.
    pub stack: Option<&'a ExpertsKind>,
}

impl<B: Kernels> Decoder<B> {
    /// Loads a Hugging Face folder, with an adapter where one is given, and keeps the weights of blocks where `places` says: those in the
    /// host's memory are copied to the device when they are used, and those in files are read.
    ///
    /// # Errors
    /// Names the file, key or tensor that is missing, left over, unreadable, or not supported.
    pub fn load(
        folder: &Path,
        source: &AdapterSource,
        dtype: DType,
        device: &B::Device,
        places: Places,
    ) -> Result<Self> {
        if !folder.is_dir() {
            return Err(Error::file(folder, "no such folder; expected a Hugging Face model folder with config.json"));
        }
        let description = architectures::describe(&Config::of_model(folder)?)?;
        let base = Weights::open(folder, "model")?.put_together(description.fp8_block)?;
        Self::build(base, content_hash(folder)?, description, folder, source, dtype, device, places)
    }

    /// The same of a model whose weights another library holds in memory; on the CPU they are used where they lie.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_held(
        held: &HeldModel,
        source: &AdapterSource,
        dtype: DType,
        device: &B::Device,
        places: Places,
    ) -> Result<Self> {
        let description = architectures::describe(&Config::of_model(&held.folder)?)?;
        let (weights, hash) = (Weights::of(held.tensors.clone()), held.content_hash.clone());
        Self::build(weights, hash, description, &held.folder, source, dtype, device, places)
    }

    /// The base model under the adapter, sharing its tensors; `None` where the adapter replaced some of them
    /// (`modules_to_save`, or plain weights of what it wraps).
    #[must_use]
    pub fn base(&self) -> Option<Self> {
        if !self.saved.is_empty() || !self.wrapped.is_empty() || self.taken_apart.is_some() {
            return None;
        }
        let mut base = Self { adapter_hash: None, ..self.clone() };
        for block in &mut base.blocks {
            match block {
                Residence::Device(block) => without_adapter(block),
                Residence::Host(block) => without_adapter(block),
                Residence::Files(block) => block.without_adapter(),
            }
        }
        base.per_layer.iter_mut().for_each(|inputs| inputs.projection.lora = None);
        base.maps.iter_mut().for_each(|map| map.rank = None);
        base.fused.clear();
        base.tables = TableChanges::default();
        base.tables_outline = TablesOutline::default();
        Some(base)
    }

    /// This model under another adapter, or none, sharing the base's tensors; `None` where this adapter or the other
    /// replaces some of them (`modules_to_save`).
    ///
    /// # Errors
    /// Names the file, key or tensor of the adapter that cannot be used.
    pub fn under(&self, source: &AdapterSource) -> Result<Option<Self>> {
        let mut adapter = Adapter::open(source)?;
        let as_a_whole = match &adapter {
            Adapter::Saved(saved) => saved.saves_parameters() || saved.changes_all_experts(),
            Adapter::None | Adapter::Fresh(_) => false,
        };
        let Some(mut model) = self.base().filter(|_| !as_a_whole) else { return Ok(None) };
        let before = if self.bare { &*self.description.names.prefix } else { "" };
        let of_attention: BTreeSet<&str> =
            self.maps.iter().filter(|map| map.reads.by_attention()).map(|map| map.path.as_str()).collect();
        let attention = |path: &str| of_attention.contains(path);
        let (dtype, device) = (self.dtype, &self.device);
        // in the order in which a load asks for factors, which decides the numbers of fresh ones
        if let Some(inputs) = &mut model.per_layer {
            adapter.attach(&mut inputs.projection, before, OUTSIDE, (dtype, device))?;
        }
        for (layer, block) in model.blocks.iter_mut().enumerate() {
            let at = (layer, &attention as &dyn Fn(&str) -> bool);
            match block {
                Residence::Device(block) => {
                    adapter.attach_to_block(block, before, at, (dtype, device))?;
                    one_rank(&block.mlp.layer)?;
                }
                Residence::Host(block) => {
                    adapter.attach_to_block(block, before, at, (dtype, &FlexDevice))?;
                    one_rank(&block.mlp.layer)?;
                }
                Residence::Files(of) => of.change(dtype, device, |block| {
                    adapter.attach_to_block(block, before, at, (dtype, device))?;
                    one_rank(&block.mlp.layer)
                })?,
            }
        }
        model.tables = adapter.tables::<B>(&self.description, dtype, device)?;
        if let Adapter::Saved(saved) = &mut adapter {
            saved.ignore(&never_read(&self.description));
            model.adapter_hash = Some(saved.content_hash()?);
        }
        adapter.finish()?;
        let outline = Outline::with(model.description.clone(), &mut adapter);
        (model.description, model.maps, model.tables_outline) = (outline.description, outline.maps, outline.tables);
        Ok(Some(model))
    }

    /// A model of given dimensions with made-up weights, for measurements of speed.
    ///
    /// # Errors
    /// Where the adapter cannot be read.
    pub fn synthetic(
        description: Description,
        source: &AdapterSource,
        dtype: DType,
        device: &B::Device,
        places: Places,
    ) -> Result<Self> {
        let (base, folder) = (Weights::synthetic(), Path::new("synthetic"));
        Self::build(base, "synthetic".to_owned(), description, folder, source, dtype, device, places)
    }

    #[allow(clippy::too_many_arguments)] // what all ways to a model share
    fn build(
        mut base: Weights,
        content_hash: String,
        description: Description,
        folder: &Path,
        source: &AdapterSource,
        dtype: DType,
        device: &B::Device,
        places: Places,
    ) -> Result<Self> {
        let description = description.located(folder, |name| base.has(name))?;
        base.keep_within(B::largest(device));
        let quantised = base.quantised();
        let names = &description.names;
        let bare = !base.has(&format!("{}.weight", names.embedding));
        let mut adapter = Adapter::open(source)?;
        let adapter_hash = match &mut adapter {
            Adapter::Saved(saved) => {
                saved.weights().keep_within(B::largest(device));
                Some(saved.content_hash()?)
            }
            _ => None,
        };
        let of_images = |name: &str| description.wrapper.is_some() && Wrapper::is_of_images(name);
        let beside = |name: &str| description.names.beside.iter().any(|start| name.starts_with(start));
        let no_parameter = |name: &&str| is_buffer(name, &description, bare) || of_images(name) || beside(name);
        let buffers: Vec<String> = base.names().filter(no_parameter).map(str::to_owned).collect();
        buffers.iter().for_each(|name| base.ignore(name));
        let names_prefix = names.prefix.clone().into_owned();
        let store = Arc::new(Store {
            weights: base.again(),
            description: description.clone(),
            names_prefix: names_prefix.clone(),
            bare,
            dtype,
        });
        let mut loader = Loader::new(base, &mut adapter, names_prefix, bare, dtype);
        let table = [description.vocabulary, description.hidden];
        let embedding = loader.embedding::<B>(&names.embedding, table, device)?;
        let positions = match names.positions {
            Some(module) => {
                let rows = description.first_position + description.max_positions;
                Some(loader.embedding::<B>(module, [rows, description.hidden], device)?)
            }
            None => None,
        };
        let per_layer = per_layer_inputs(&mut loader, &description, device)?;
        let place = |layer| residence(&mut loader, &store, layer, (places, device));
        let blocks = (0..description.layers()).map(place).collect::<Result<_>>()?;
        let final_norm = loader.norm::<B>(&names.final_norm, description.hidden, &description, device)?;
        let head = head(&mut loader, &description, &embedding, folder, device)?;
        let head_bias = match description.head_bias {
            true => Some(loader.vector::<B>(&format!("{}.bias", names.head), &[description.vocabulary], device)?),
            false => None,
        };
        let tables = loader.adapter.tables::<B>(&description, dtype, device)?;
        loader.base.finish()?;
        let (saved, wrapped) = (loader.saved, loader.wrapped);
        if let Adapter::Saved(adapter) = &mut adapter {
            adapter.ignore(&never_read(&description));
        }
        adapter.finish()?;
        let Outline { description, maps, fused, tables: tables_outline, .. } = Outline::with(description, &mut adapter);
        Ok(Self {
            description,
            dtype,
            device: device.clone(),
            content_hash,
            adapter_hash,
            quantised,
            activation_bytes: None,
            rates: Rates::CPU,
            stop: Stop::default(),
            embedding,
            positions,
            per_layer,
            blocks,
            final_norm,
            head,
            head_bias,
            maps,
            fused,
            bare,
            saved,
            wrapped,
            taken_apart: adapter.taken_apart(),
            tables,
            tables_outline,
        })
    }
}

/// What blocks read of each token beside the residual stream, where they do.
fn per_layer_inputs<B: Kernels>(
    loader: &mut Loader<'_>,
    of: &Description,
    device: &B::Device,
) -> Result<Option<Box<PerLayerInputs<B>>>> {
    let Some(kind) = &of.per_layer else { return Ok(None) };
    let [table, projection, norm] = PerLayerKind::OUTSIDE.map(|name| of.outside(name));
    let width = of.layers() * kind.width;
    let place = Module {
        path: projection,
        layer: OUTSIDE.layer,
        attention: OUTSIDE.attention,
        bias: false,
        conv1d: of.names.conv1d,
        routed: OUTSIDE.routed,
        stack: None,
    };
    Ok(Some(Box::new(PerLayerInputs {
        table: loader.embedding::<B>(&table, [kind.vocabulary, width], device)?,
        projection: loader.linear::<B>(&place, [of.hidden, width], device)?,
        norm: loader.norm::<B>(&norm, kind.width, of, device)?,
    })))
}

/// Loads a block to where it is to be.
fn residence<B: Kernels>(
    loader: &mut Loader<'_>,
    store: &Arc<Store>,
    layer: usize,
    (places, device): (Places, &B::Device),
) -> Result<Residence<B>> {
    let of = &store.description;
    if layer < places.device {
        return Ok(Residence::Device(Box::new(assemble::block::<B>(loader, of, layer, device)?)));
    }
    if layer - places.device < places.host {
        return Ok(Residence::Host(Box::new(assemble::block::<Flex>(loader, of, layer, &FlexDevice)?)));
    }
    let block = assemble::block::<B>(loader, of, layer, device)?;
    Ok(Residence::Files(Box::new(InFiles::of(block, layer, store, &|name| loader.changed.contains(name)))))
}

/// Refuses an adapter whose factors differ in rank from one expert of a layer to another: they are multiplied together.
pub(crate) fn one_rank<B: Kernels>(of: &FeedForward<B>) -> Result<()> {
    let Some(of) = of.experts() else { return Ok(()) };
    for maps in &of.maps {
        let mut ranks = maps.iter().filter_map(|map| map.lora.as_ref().map(|lora| (lora, lora.a.shape()[1])));
        let Some((_, first)) = ranks.next() else { continue };
        if let Some((lora, rank)) = ranks.find(|(_, rank)| *rank != first) {
            let problem =
                format!("has rank {rank}, and another expert of the layer {first}; one rank for all is supported");
            return Err(Error::tensor(Path::new("adapter_model.safetensors"), &lora.a_name(), problem));
        }
    }
    Ok(())
}

fn without_adapter<B: Kernels>(block: &mut Block<B>) {
    block.visit(&mut |part| match part {
        Part::Linear(map) | Part::Expert(map) => map.lora = None,
        Part::Fused(fused) => *fused = [None, None],
        Part::Norm(_) | Part::Vector(_) => {}
    });
}

/// Path of the blocks in the checkpoint.
pub(crate) fn in_checkpoint(of: &Description, bare: bool) -> &str {
    let blocks: &str = &of.names.blocks;
    if bare { blocks.strip_prefix(&*of.names.prefix).unwrap_or(blocks) } else { blocks }
}

/// The output matrix, or `None` where it is the embedding.
fn head<B: Kernels>(
    loader: &mut Loader<'_>,
    of: &Description,
    embedding: &Embedding<B>,
    folder: &Path,
    device: &B::Device,
) -> Result<Option<Embedding<B>>> {
    let name = format!("{}.weight", of.names.head);
    if !of.tied {
        return Ok(Some(loader.embedding::<B>(&of.names.head, [of.vocabulary, of.hidden], device)?));
    }
    if let Adapter::Saved(adapter) = &mut *loader.adapter {
        let embedding_name = format!("{}.weight", of.names.embedding);
        let (of_embedding, of_head) = (adapter.saved(&embedding_name), adapter.saved(&name));
        let untied = match (&of_embedding, &of_head) {
            (None, None) => None,
            (Some(_), None) if adapter.ensures_tying() => None,
            (Some(table), Some(head)) if adapter.ensures_tying() && adapter.weights().equal(table, head)? => {
                adapter.weights().ignore(head);
                None
            }
            (Some(stored), _) | (None, Some(stored)) => Some(stored.clone()),
        };
        if let (None, Some(stored)) = (&untied, adapter.wrapped(&name)) {
            // both are the base's one table
            let same = match adapter.wrapped(&embedding_name) {
                Some(of_embedding) => adapter.weights().equal(&stored, &of_embedding)?,
                None => adapter.weights().equal_to(&stored, &loader.base, &embedding.name)?,
            };
            if !same {
                let problem =
                    "stands for the output matrix, which this model's embedding is; expected the same as that";
                return Err(Error::tensor(folder, &stored, problem));
            }
            adapter.weights().ignore(&stored);
        }
        if let Some(stored) = untied {
            let problem = "this model's output matrix is its embedding, and the adapter saves a copy of one of them without \
                           `ensure_weight_tying`, which unties the two; merge the adapter into the model and save both first";
            return Err(Error::tensor(folder, &stored, problem));
        }
    }
    if loader.base.has(&name) {
        if !loader.base.equal(&name, &embedding.name)? {
            let problem = format!(
                "differs from `{}`, but config.json says `tie_word_embeddings: true`; set it to false if the two differ",
                embedding.name
            );
            return Err(Error::tensor(folder, &name, problem));
        }
        loader.base.ignore(&name);
    }
    Ok(None)
}

/// Where a linear map beside the blocks is.
const OUTSIDE: Place = Place { layer: None, attention: false, routed: false };

/// Modules of blocks that borrow keys and values, which older checkpoints and adapters have tensors of.
fn never_read(of: &Description) -> Vec<String> {
    let of_block = |layer| of.borrowed(layer).into_iter().map(move |name| (layer, name));
    let modules = (0..of.layers()).flat_map(of_block);
    modules.map(|(layer, name)| format!("{}.{layer}.{name}", of.names.blocks)).collect()
}

/// Whether a stored tensor is one of the architecture's buffers, which are no parameters.
fn is_buffer(name: &str, of: &Description, bare: bool) -> bool {
    // of the whole model, of its rotary embedding: transformers writes them anew
    let of_rope = !of.ropes.is_empty() && name.ends_with("rotary_emb.inv_freq");
    let further = of.layers()..of.layers() + of.further_blocks;
    let never_read = |layer: usize, inside: &str| {
        let module = inside.rsplit_once('.').map_or(inside, |(module, _)| module);
        layer < of.layers() && of.borrowed(layer).contains(&module)
    };
    of_rope
        || names_inside(name, in_checkpoint(of, bare)).is_some_and(|(layer, inside)| {
            of.names.buffers.contains(&inside) || further.contains(&layer) || never_read(layer, inside)
        })
}

/// Layer and the rest of a name inside a list of blocks.
fn names_inside<'a>(name: &'a str, blocks: &str) -> Option<(usize, &'a str)> {
    let (layer, path) = name.strip_prefix(blocks)?.strip_prefix('.')?.split_once('.')?;
    Some((layer.parse().ok()?, path))
}
