//! The decoder: embedding, blocks, final norm, head; one forward pass, and one backward pass for many cotangents.
use crate::adapter::{Adapter, AdapterSource, SavedAdapter};
use crate::architectures::{self, BlockKind, Description, Part, Qkv, Up, Wrapper};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::layers::{Angles, BackwardRows, Block, BlockTrace, Linear, Norm, Pieces, Projection};
use crate::scope::{InScope, Parameter, ParameterKind, Scope};
use crate::sink::{Embedding, Sink};
use crate::weights::{Layout, Weights, content_hash};
use std::collections::{BTreeSet, HashMap};
use std::path::Path;
use tanglescope_kernels::cost::Rates;
use tanglescope_kernels::{DType, Flex, FlexDevice, FloatTensor, Kernels, Segment, Span, TensorData, TensorMetadata};

/// A decoder-only transformer, with a LoRA adapter or without.
#[derive(Clone, Debug)]
pub struct Decoder<B: Kernels> {
    /// Dimensions and names.
    pub description: Description,
    /// Number type of activations and results; matrices of weights may be in the type that they are stored in.
    pub dtype: DType,
    /// Where the weights are.
    pub device: B::Device,
    /// SHA-256 of the base's config and weights.
    pub content_hash: String,
    /// SHA-256 of a saved adapter's config and weights.
    pub adapter_hash: Option<String>,
    /// Bytes that the activations of a batch may take; no bound where there is none.
    pub activation_bytes: Option<usize>,
    /// What the device does in a second: decides between the two Gram reductions of a map.
    pub rates: Rates,
    embedding: Embedding<B>,
    positions: Option<Embedding<B>>,
    blocks: Vec<Place<B>>,
    final_norm: Norm<B>,
    /// `None` where the head is the embedding.
    head: Option<Embedding<B>>,
    prefix: String,
    saved: BTreeSet<String>,
}

/// Where a block's weights are.
#[derive(Clone, Debug)]
enum Place<B: Kernels> {
    /// On the device.
    Device(Box<Block<B>>),
    /// In the host's memory; copied to the device for each use.
    Host(Box<Block<Flex>>),
}

/// A block that is on the device for now.
enum Lent<'a, B: Kernels> {
    Resident(&'a Block<B>),
    Copied(Box<Block<B>>),
}

impl<B: Kernels> std::ops::Deref for Lent<'_, B> {
    type Target = Block<B>;

    fn deref(&self) -> &Block<B> {
        match self {
            Self::Resident(block) => block,
            Self::Copied(block) => block,
        }
    }
}

/// How many of the top blocks keep what their vjp needs. The others keep their input and compute the rest again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// Nothing at all: no backward pass follows.
    Nothing,
    /// This many of the top blocks.
    Top(usize),
}

/// What a block's forward pass left.
#[derive(Debug)]
enum Kept<B: Kernels> {
    Trace(Box<BlockTrace<B>>),
    Input(FloatTensor<B>),
}

/// What a forward pass leaves for the backward pass.
#[derive(Debug)]
pub struct Trace<B: Kernels> {
    blocks: Vec<Kept<B>>,
    /// What attends to what, for blocks that are computed again.
    spans: Vec<Span>,
    angles: Vec<Angles<B>>,
    /// Output of the last block, `[N, hidden]`.
    last: FloatTensor<B>,
}

/// Rows of tokens to run.
#[derive(Clone, Copy, Debug)]
pub struct ForwardRows<'a> {
    /// Token of each row.
    pub tokens: &'a [u32],
    /// Its position in its sequence.
    pub positions: &'a [u32],
    /// Tokens of its whole sequence, the last one included.
    pub lengths: &'a [u32],
    /// What attends to what.
    pub spans: &'a [Span],
}

/// Reads the tensors of a base model, or of an adapter's copies of them.
struct Loader<'a> {
    base: Weights,
    adapter: &'a mut Adapter,
    names_prefix: String,
    /// Whether the checkpoint leaves the base's prefix out.
    bare: bool,
    dtype: DType,
    saved: BTreeSet<String>,
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

    /// The tensor and its name in the checkpoint.
    fn tensor<B: Kernels>(
        &mut self,
        canonical: &str,
        shape: &[usize],
        layout: Layout,
        device: &B::Device,
    ) -> Result<(String, FloatTensor<B>)> {
        let name = self.name(canonical);
        if let Adapter::Saved(adapter) = &mut *self.adapter
            && let Some(stored) = adapter.saved(canonical)
        {
            let x = adapter.weights().take::<B>(&stored, shape, layout, self.dtype, device)?;
            self.base.ignore(&name);
            self.saved.insert(name.clone());
            return Ok((name, x));
        }
        let x = self.base.take::<B>(&name, shape, layout, self.dtype, device)?;
        Ok((name, x))
    }

    fn embedding<B: Kernels>(&mut self, module: &str, shape: [usize; 2], device: &B::Device) -> Result<Embedding<B>> {
        let (name, table) = self.tensor::<B>(&format!("{module}.weight"), &shape, Layout::Same, device)?;
        Ok(Embedding { name, table })
    }

    fn norm<B: Kernels>(
        &mut self,
        module: &str,
        features: usize,
        of: &Description,
        device: &B::Device,
    ) -> Result<Norm<B>> {
        let gain = self.tensor::<B>(&format!("{module}.weight"), &[features], Layout::Same, device)?.1;
        let bias = match of.norm_bias {
            true => Some(self.tensor::<B>(&format!("{module}.bias"), &[features], Layout::Same, device)?.1),
            false => None,
        };
        Ok(Norm { name: self.name(module), gain, bias, kind: of.norm, gain_plus_one: of.gain_plus_one })
    }

    fn linear<B: Kernels>(
        &mut self,
        module: &Module,
        [inputs, outputs]: [usize; 2],
        device: &B::Device,
    ) -> Result<Linear<B>> {
        let path = &module.path;
        let (shape, layout) =
            if module.conv1d { ([inputs, outputs], Layout::Same) } else { ([outputs, inputs], Layout::Transposed) };
        let weight = self.tensor::<B>(&format!("{path}.weight"), &shape, layout, device)?.1;
        let bias = match module.bias {
            true => Some(self.tensor::<B>(&format!("{path}.bias"), &[outputs], Layout::Same, device)?.1),
            false => None,
        };
        let (layer, shape) = (module.layer, [inputs, outputs]);
        let lora = self.adapter.factors::<B>(path, layer, module.attention, shape, self.dtype, device)?;
        Ok(Linear { name: self.name(path), weight, bias, lora })
    }
}

/// A linear map of a block, before it is loaded.
struct Module {
    path: String,
    layer: usize,
    attention: bool,
    bias: bool,
    conv1d: bool,
}

impl<B: Kernels> Decoder<B> {
    /// Loads a Hugging Face folder, with an adapter where one is given, and keeps the weights of all blocks from
    /// `resident` on in the host's memory, from where each is copied to the device when it is used.
    ///
    /// # Errors
    /// Names the file, key or tensor that is missing, left over, unreadable, or not supported.
    pub fn load(
        folder: &Path,
        source: &AdapterSource,
        dtype: DType,
        device: &B::Device,
        resident: usize,
    ) -> Result<Self> {
        let config_path = folder.join("config.json");
        if !folder.is_dir() {
            return Err(Error::file(folder, "no such folder; expected a Hugging Face model folder with config.json"));
        }
        let description = architectures::describe(&Config::read(&config_path)?)?;
        let base = Weights::open(folder, "model")?;
        Self::build(base, content_hash(folder)?, description, folder, source, dtype, device, resident)
    }

    /// The base model under the adapter, sharing its tensors; `None` where the adapter replaced some of them
    /// (`modules_to_save`).
    #[must_use]
    pub fn base(&self) -> Option<Self> {
        if !self.saved.is_empty() {
            return None;
        }
        let mut base = Self { adapter_hash: None, ..self.clone() };
        for place in &mut base.blocks {
            match place {
                Place::Device(block) => block.maps_mut().for_each(|map| map.lora = None),
                Place::Host(block) => block.maps_mut().for_each(|map| map.lora = None),
            }
        }
        Some(base)
    }

    /// This model under another saved adapter, sharing the base's tensors; `None` where this adapter or the other
    /// replaces some of them (`modules_to_save`).
    ///
    /// # Errors
    /// Names the file, key or tensor of the adapter that cannot be used.
    pub fn adapted(&self, folder: &Path) -> Result<Option<Self>> {
        let mut adapter = SavedAdapter::open(folder)?;
        let Some(mut model) = self.base().filter(|_| !adapter.saves_modules()) else { return Ok(None) };
        let names = &self.description.names;
        let before = if self.prefix == names.blocks { "" } else { &names.prefix };
        for (layer, place) in model.blocks.iter_mut().enumerate() {
            match place {
                Place::Device(block) => adapter.attach(block, before, layer, self.dtype, &self.device)?,
                Place::Host(block) => adapter.attach(block, before, layer, self.dtype, &FlexDevice)?,
            }
        }
        adapter.finish()?;
        model.adapter_hash = Some(adapter.content_hash()?);
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
        resident: usize,
    ) -> Result<Self> {
        let (base, folder) = (Weights::synthetic(), Path::new("synthetic"));
        Self::build(base, "synthetic".to_owned(), description, folder, source, dtype, device, resident)
    }

    #[allow(clippy::too_many_arguments)] // what both ways to a model share
    fn build(
        mut base: Weights,
        content_hash: String,
        description: Description,
        folder: &Path,
        source: &AdapterSource,
        dtype: DType,
        device: &B::Device,
        resident: usize,
    ) -> Result<Self> {
        let description = description.located(folder, |name| base.has(name))?;
        let names = &description.names;
        let bare = !base.has(&format!("{}.weight", names.embedding));
        let mut adapter = Adapter::open(source)?;
        let adapter_hash = match &adapter {
            Adapter::Saved(saved) => Some(saved.content_hash()?),
            _ => None,
        };
        let of_images = |name: &str| description.wrapper.is_some() && Wrapper::is_of_images(name);
        let no_parameter = |name: &&str| is_buffer(name, &description, bare) || of_images(name);
        let buffers: Vec<String> = base.names().filter(no_parameter).map(str::to_owned).collect();
        buffers.iter().for_each(|name| base.ignore(name));
        let saved = BTreeSet::new();
        let names_prefix = names.prefix.clone().into_owned();
        let mut loader = Loader { base, adapter: &mut adapter, names_prefix, bare, dtype, saved };
        let table = [description.vocabulary, description.hidden];
        let embedding = loader.embedding::<B>(&names.embedding, table, device)?;
        let positions = match names.positions {
            Some(module) => {
                Some(loader.embedding::<B>(module, [description.max_positions, description.hidden], device)?)
            }
            None => None,
        };
        let mut blocks = Vec::with_capacity(description.layers());
        for layer in 0..description.layers() {
            blocks.push(match layer < resident {
                true => Place::Device(Box::new(block::<B>(&mut loader, &description, layer, device)?)),
                false => Place::Host(Box::new(block::<Flex>(&mut loader, &description, layer, &FlexDevice)?)),
            });
        }
        let final_norm = loader.norm::<B>(&names.final_norm, description.hidden, &description, device)?;
        let head = head(&mut loader, &description, &embedding, folder, device)?;
        loader.base.finish()?;
        let saved = loader.saved;
        adapter.finish()?;
        Ok(Self {
            prefix: in_checkpoint(&description, bare).to_owned(),
            description,
            dtype,
            device: device.clone(),
            content_hash,
            adapter_hash,
            activation_bytes: None,
            rates: Rates::CPU,
            embedding,
            positions,
            blocks,
            final_norm,
            head,
            saved,
        })
    }

    /// A block, on the device.
    fn block(&self, layer: usize) -> Lent<'_, B> {
        match &self.blocks[layer] {
            Place::Device(block) => Lent::Resident(block),
            Place::Host(block) => {
                Lent::Copied(Box::new(block.convert(&|x| to_device::<B>(x, self.dtype, &self.device))))
            }
        }
    }

    /// Name of the output matrix.
    #[must_use]
    pub fn head_name(&self) -> &str {
        &self.head.as_ref().unwrap_or(&self.embedding).name
    }

    /// The output matrix, `[V, hidden]`.
    #[must_use]
    pub fn head(&self) -> &FloatTensor<B> {
        &self.head.as_ref().unwrap_or(&self.embedding).table
    }

    /// All parameters, base and adapter, in the order of the forward pass.
    #[must_use]
    pub fn parameters(&self) -> Vec<Parameter> {
        let mut out = Vec::new();
        let mut add = |name: &str, lora: bool| {
            let kind = match (lora, self.saved.contains(name)) {
                (true, _) => ParameterKind::Lora,
                (false, true) => ParameterKind::Saved,
                (false, false) => ParameterKind::Base,
            };
            let inside = if lora {
                names_inside(name, &self.description.names.blocks)
            } else {
                names_inside(name, &self.prefix)
            };
            let (layer, path) = inside.map_or((None, name), |(layer, path)| (Some(layer), path));
            let module = path.rsplit_once('.').map_or(path, |(module, _)| module);
            let module = module.trim_end_matches(".lora_A").trim_end_matches(".lora_B").to_owned();
            out.push(Parameter { name: name.to_owned(), layer, module, kind });
        };
        add(&self.embedding.name, false);
        self.positions.iter().for_each(|positions| add(&positions.name, false));
        for block in &self.blocks {
            // the visitor may change tensors; tensors are shared, so a clone of a block costs nothing
            match block.clone() {
                Place::Device(mut block) => visit_block(&mut *block, &mut |name, lora, _| add(name, lora)),
                Place::Host(mut block) => visit_block(&mut *block, &mut |name, lora, _| add(name, lora)),
            }
        }
        let mut norm = self.final_norm.clone();
        visit_norm(&mut norm, &mut |name, lora, _| add(name, lora));
        self.head.iter().for_each(|head| add(&head.name, false));
        out
    }

    /// The parameters that a scope selects.
    ///
    /// # Errors
    /// Where it selects none.
    pub fn in_scope(&self, scope: &Scope) -> Result<InScope> {
        InScope::select(scope, self.parameters(), self.head_name())
    }

    /// Calls a function with every parameter's name, whether it is a low-rank factor, and its tensor (matrices of
    /// linear maps as `[in, out]`).
    pub fn visit(&mut self, f: &mut impl FnMut(&str, bool, &mut FloatTensor<B>)) {
        f(&self.embedding.name, false, &mut self.embedding.table);
        if let Some(positions) = &mut self.positions {
            f(&positions.name, false, &mut positions.table);
        }
        for block in &mut self.blocks {
            match block {
                Place::Device(block) => visit_block(block, f),
                Place::Host(block) => {
                    let mut copy: Block<B> = block.convert(&|x| to_device::<B>(x, self.dtype, &self.device));
                    visit_block(&mut copy, f);
                    let host = |x: &FloatTensor<B>| {
                        let values = TensorData::new(B::download(x), x.shape());
                        Flex::upload(values.convert_dtype(self.dtype), &FlexDevice)
                    };
                    **block = copy.convert(&host);
                }
            }
        }
        visit_norm(&mut self.final_norm, f);
        if let Some(head) = &mut self.head {
            f(&head.name, false, &mut head.table);
        }
    }

    /// The model a step away from this one: `θ + step·direction` for every parameter in scope.
    ///
    /// `direction` has a tensor for each name, in the shape that [`visit`](Self::visit) shows.
    #[must_use]
    pub fn moved(&self, scope: &InScope, direction: &HashMap<String, FloatTensor<B>>, step: f64) -> Self {
        let mut moved = self.clone();
        if scope.head_only() && moved.head.is_none() {
            // the logits part of a tied matrix alone: a head of its own, which starts as the embedding
            moved.head = Some(moved.embedding.clone());
            moved.embedding.name.clear();
        }
        moved.visit(&mut |name, _, tensor| {
            if let Some(direction) = direction.get(name).filter(|_| scope.contains(name)) {
                *tensor = B::add_scaled(B::cast(tensor.clone(), self.dtype), direction, step);
            }
        });
        moved
    }

    /// Forward pass over rows of tokens; what the backward pass needs is kept if asked for.
    ///
    /// Tokens and positions have to be within the model's vocabulary and positions.
    pub fn forward(&self, rows: ForwardRows<'_>, keep: Keep) -> Trace<B> {
        let ForwardRows { tokens, positions, lengths, spans } = rows;
        let of_table = |of: &Embedding<B>, ids: &[u32]| B::cast(B::gather(&of.table, ids, None), self.dtype);
        let mut x = self.scaled(of_table(&self.embedding, tokens));
        if let Some(table) = &self.positions {
            x = B::add_scaled(x, &of_table(table, positions), 1.0);
        }
        let tables = self.description.ropes.iter().map(|rope| {
            let (cos, sin) = rope.tables(positions, lengths);
            let shape = [positions.len(), rope.pairs];
            let upload = |t: Vec<f64>| B::upload(TensorData::new(t, shape).convert_dtype(self.dtype), &self.device);
            (upload(cos), upload(sin))
        });
        let angles: Vec<Angles<B>> = tables.collect();
        let mut blocks = Vec::with_capacity(self.blocks.len());
        for layer in 0..self.blocks.len() {
            let whole = matches!(keep, Keep::Top(top) if self.blocks.len() - layer <= top);
            let input = (keep != Keep::Nothing && !whole).then(|| x.clone());
            let (y, trace) = self.block(layer).forward(x, spans, &angles, whole);
            x = y;
            blocks.extend(trace.map(|trace| Kept::Trace(Box::new(trace))).or(input.map(Kept::Input)));
        }
        Trace { blocks, spans: spans.to_vec(), angles, last: x }
    }

    /// Rows of the token embedding, or their cotangents, times the embedding's factor.
    fn scaled(&self, rows: FloatTensor<B>) -> FloatTensor<B> {
        let scale = self.description.embedding_scale;
        if scale.to_bits() == 1.0f64.to_bits() { rows } else { B::float_mul_scalar(rows, scale.into()) }
    }

    /// Inputs of the head at some forward rows, `[rows.len(), hidden]`.
    #[must_use]
    pub fn head_inputs(&self, trace: &Trace<B>, rows: &[u32]) -> FloatTensor<B> {
        self.final_norm.forward(&B::gather(&trace.last, rows, None))
    }

    /// Carries the cotangents of the head's inputs, `delta[R_active, hidden]`, down to the lowest parameter that the
    /// sink wants, and delivers every one on the way.
    pub fn backward(
        &self,
        trace: Trace<B>,
        delta: &FloatTensor<B>,
        tokens: &[u32],
        positions: &[u32],
        rows: BackwardRows<'_>,
        sink: &mut dyn Sink<B>,
    ) {
        let embeddings = [(Some(&self.embedding), tokens), (self.positions.as_ref(), positions)];
        let wanted: Vec<(&Embedding<B>, &[u32])> = embeddings
            .into_iter()
            .filter_map(|(table, ids)| Some((table?, ids)))
            .filter(|(table, _)| sink.wants(&table.name) && !sink.head_only())
            .collect();
        let lowest = match wanted.is_empty() {
            true => self.blocks.iter().position(|block| match block {
                Place::Device(block) => block.wanted(&|name| sink.wants(name)),
                Place::Host(block) => block.wanted(&|name| sink.wants(name)),
            }),
            false => Some(0),
        };
        if lowest.is_none() && !self.final_norm.wanted(&|name| sink.wants(name)) {
            return;
        }
        let active = rows.active.unwrap_or(rows.full);
        let mut delta = self.final_norm.vjp(&trace.last, delta, active, None, sink);
        let Some(lowest) = lowest else { return };
        let top = self.blocks.len() - 1;
        // below the top block every row's cotangent is filled by attention
        let filled: Vec<Segment> = rows.segments.iter().map(|s| Segment { active_from: 0, ..s.clone() }).collect();
        let Trace { blocks, spans, angles, .. } = trace;
        // a block's part is given back as soon as it has been used
        for (i, kept) in blocks.into_iter().enumerate().skip(lowest).rev() {
            let below_top = BackwardRows { segments: &filled, active: None, ..rows };
            let rows = if i == top { rows } else { below_top };
            let below = i > lowest || !wanted.is_empty();
            let block = self.block(i);
            let trace_of = match kept {
                Kept::Trace(trace) => *trace,
                Kept::Input(x) => match block.forward(x, &spans, &angles, true).1 {
                    Some(trace) => trace,
                    None => unreachable!("a forward pass that keeps leaves a trace"),
                },
            };
            match block.vjp(trace_of, delta, rows, &angles, below, sink) {
                Some(next) => delta = next,
                None => return,
            }
            sink.passed(i);
        }
        for (table, ids) in wanted {
            // positions are added as they are
            let delta = if table.name == self.embedding.name { self.scaled(delta.clone()) } else { delta.clone() };
            sink.embedding(table, &delta, ids, rows.full);
        }
    }
}

/// A tensor of the host, on the device.
fn to_device<B: Kernels>(x: &FloatTensor<Flex>, dtype: DType, device: &B::Device) -> FloatTensor<B> {
    B::upload(x.clone().into_data().convert_dtype(dtype), device)
}

fn visit_block<B: Kernels>(block: &mut Block<B>, f: &mut impl FnMut(&str, bool, &mut FloatTensor<B>)) {
    block.attention_norm.iter_mut().for_each(|norm| visit_norm(norm, f));
    block.qkv.maps.iter_mut().for_each(|map| visit_linear(map, f));
    block.query_key_norms.iter_mut().flat_map(|norms| norms.iter_mut()).for_each(|norm| visit_norm(norm, f));
    visit_linear(&mut block.o, f);
    block.after_attention.iter_mut().for_each(|norm| visit_norm(norm, f));
    block.mlp_norm.iter_mut().for_each(|norm| visit_norm(norm, f));
    block.up.maps.iter_mut().for_each(|map| visit_linear(map, f));
    visit_linear(&mut block.down, f);
    block.after_mlp.iter_mut().for_each(|norm| visit_norm(norm, f));
}

fn block<B: Kernels>(loader: &mut Loader<'_>, of: &Description, layer: usize, device: &B::Device) -> Result<Block<B>> {
    let names = &of.names;
    let (mut norms, mut maps) = (HashMap::new(), HashMap::new());
    for part in of.parts() {
        match part {
            Part::Norm { name, features } => {
                let path = format!("{}.{layer}.{name}", names.blocks);
                norms.insert(name, loader.norm::<B>(&path, features, of, device)?);
            }
            Part::Map { name, reads, shape, bias } => {
                let path = format!("{}.{layer}.{name}", names.blocks);
                let module = Module { path, layer, attention: reads.of_attention(), bias, conv1d: names.conv1d };
                maps.insert(name, loader.linear::<B>(&module, shape, device)?);
            }
        }
    }
    let mut norm = |name: Option<&'static str>| name.and_then(|name| norms.remove(name));
    let mut take = |named: &[&'static str]| -> Vec<Linear<B>> { named.iter().filter_map(|n| maps.remove(n)).collect() };
    let (qkv, pieces) = match &names.qkv {
        Qkv::Separate(named) => (take(named), Pieces::Separate),
        Qkv::Joined(name) => (take(&[name]), Pieces::Columns(of.qkv_widths().to_vec())),
        Qkv::ByHead(name) => (take(&[name]), Pieces::ByHead { pieces: 3, head_dim: of.heads.head_dim }),
    };
    let qkv = Projection { maps: qkv, pieces };
    let (up, pieces) = match &names.up {
        Up::Plain(name) => (take(&[name]), Pieces::Separate),
        Up::Gated(named) => (take(named), Pieces::Separate),
        Up::Joined(name) => (take(&[name]), Pieces::Columns(vec![of.mlp_width; 2])),
    };
    let up = Projection { maps: up, pieces };
    let [o, down] = [names.o, names.down].map(|name| take(&[name]).pop());
    let (Some(o), Some(down)) = (o, down) else { unreachable!("every description has both as parts") };
    let query_key_norms = names.query_key_norms.and_then(|[q, k]| Some(Box::new([norm(Some(q))?, norm(Some(k))?])));
    let BlockKind { rope, .. } = of.blocks[layer];
    Ok(Block {
        attention_norm: norm(names.attention_norm),
        qkv,
        query_key_norms,
        o,
        after_attention: norm(names.after_attention),
        heads: of.heads_of(layer),
        rope,
        mlp_norm: norm(names.mlp_norm),
        up,
        down,
        after_mlp: norm(names.after_mlp),
        activation: of.activation,
        parallel: of.parallel,
    })
}

/// Path of the blocks in the checkpoint.
fn in_checkpoint(of: &Description, bare: bool) -> &str {
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
    if let Adapter::Saved(adapter) = &*loader.adapter {
        let embedding_name = format!("{}.weight", of.names.embedding);
        if let Some(stored) = adapter.saved(&embedding_name).or_else(|| adapter.saved(&name)) {
            let problem = "this model's output matrix is its embedding, and the adapter saves a copy of one of them, \
                           which unties the two; merge the adapter into the model and save both first";
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

/// Whether a stored tensor is one of the architecture's buffers, which are no parameters.
fn is_buffer(name: &str, of: &Description, bare: bool) -> bool {
    names_inside(name, in_checkpoint(of, bare)).is_some_and(|(_, inside)| of.names.buffers.contains(&inside))
}

/// Layer and the rest of a name inside a list of blocks.
fn names_inside<'a>(name: &'a str, blocks: &str) -> Option<(usize, &'a str)> {
    let (layer, path) = name.strip_prefix(blocks)?.strip_prefix('.')?.split_once('.')?;
    Some((layer.parse().ok()?, path))
}

fn visit_linear<B: Kernels>(map: &mut Linear<B>, f: &mut impl FnMut(&str, bool, &mut FloatTensor<B>)) {
    let (weight_name, bias_name) = (map.weight_name(), map.bias_name());
    f(&weight_name, false, &mut map.weight);
    if let Some(bias) = &mut map.bias {
        f(&bias_name, false, bias);
    }
    if let Some(lora) = &mut map.lora {
        let (a_name, b_name) = (lora.a_name(), lora.b_name());
        f(&a_name, true, &mut lora.a);
        f(&b_name, true, &mut lora.b);
    }
}

fn visit_norm<B: Kernels>(norm: &mut Norm<B>, f: &mut impl FnMut(&str, bool, &mut FloatTensor<B>)) {
    let (gain_name, bias_name) = (norm.gain_name(), norm.bias_name());
    f(&gain_name, false, &mut norm.gain);
    if let Some(bias) = &mut norm.bias {
        f(&bias_name, false, bias);
    }
}
