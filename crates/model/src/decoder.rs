//! The decoder: embedding, blocks, final norm, head; one forward pass, and one backward pass for many cotangents.
use crate::adapter::{Adapter, AdapterSource};
use crate::architectures::{self, Description, Qkv};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::layers::{Angles, BackwardRows, Block, BlockTrace, Linear, Norm, QkvProjection};
use crate::scope::{InScope, Parameter, ParameterKind, Scope};
use crate::sink::{Embedding, Sink};
use crate::weights::{Layout, Weights, file_hash};
use std::collections::{BTreeSet, HashMap};
use std::path::Path;
use tanglescope_kernels::{DType, FloatTensor, Kernels, Segment, Span, TensorData};

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
    embedding: Embedding<B>,
    positions: Option<Embedding<B>>,
    blocks: Vec<Block<B>>,
    final_norm: Norm<B>,
    /// `None` where the head is the embedding.
    head: Option<Embedding<B>>,
    prefix: String,
    saved: BTreeSet<String>,
}

/// What a forward pass leaves for the backward pass.
#[derive(Debug)]
pub struct Trace<B: Kernels> {
    blocks: Vec<BlockTrace<B>>,
    angles: Option<Angles<B>>,
    /// Output of the last block, `[N, hidden]`.
    last: FloatTensor<B>,
}

/// Reads the tensors of a base model, or of an adapter's copies of them.
struct Loader<'a, B: Kernels> {
    base: Weights,
    adapter: &'a mut Adapter,
    names_prefix: &'static str,
    /// Whether the checkpoint leaves the base's prefix out.
    bare: bool,
    dtype: DType,
    device: B::Device,
    saved: BTreeSet<String>,
}

impl<B: Kernels> Loader<'_, B> {
    /// Name in the checkpoint of a parameter of the full architecture.
    fn name(&self, name: &str) -> String {
        if self.bare { name.strip_prefix(self.names_prefix).unwrap_or(name).to_owned() } else { name.to_owned() }
    }

    /// The tensor and its name in the checkpoint.
    fn tensor(&mut self, canonical: &str, shape: &[usize], layout: Layout) -> Result<(String, FloatTensor<B>)> {
        let name = self.name(canonical);
        if let Adapter::Saved(adapter) = &mut *self.adapter
            && let Some(stored) = adapter.saved(canonical)
        {
            let x = adapter.weights().take::<B>(&stored, shape, layout, self.dtype, &self.device)?;
            self.base.ignore(&name);
            self.saved.insert(name.clone());
            return Ok((name, x));
        }
        let x = self.base.take::<B>(&name, shape, layout, self.dtype, &self.device)?;
        Ok((name, x))
    }

    fn embedding(&mut self, module: &str, shape: [usize; 2]) -> Result<Embedding<B>> {
        let (name, table) = self.tensor(&format!("{module}.weight"), &shape, Layout::Same)?;
        Ok(Embedding { name, table })
    }

    fn norm(&mut self, module: &str, of: &Description) -> Result<Norm<B>> {
        let gain = self.tensor(&format!("{module}.weight"), &[of.hidden], Layout::Same)?.1;
        let bias = match of.norm_bias {
            true => Some(self.tensor(&format!("{module}.bias"), &[of.hidden], Layout::Same)?.1),
            false => None,
        };
        Ok(Norm { name: self.name(module), gain, bias, kind: of.norm })
    }

    fn linear(&mut self, module: &Module, [inputs, outputs]: [usize; 2]) -> Result<Linear<B>> {
        let path = &module.path;
        let (shape, layout) =
            if module.conv1d { ([inputs, outputs], Layout::Same) } else { ([outputs, inputs], Layout::Transposed) };
        let weight = self.tensor(&format!("{path}.weight"), &shape, layout)?.1;
        let bias = match module.bias {
            true => Some(self.tensor(&format!("{path}.bias"), &[outputs], Layout::Same)?.1),
            false => None,
        };
        let (layer, shape) = (module.layer, [inputs, outputs]);
        let lora = self.adapter.factors::<B>(path, layer, module.attention, shape, self.dtype, &self.device)?;
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
    /// Loads a Hugging Face folder, with an adapter where one is given.
    ///
    /// # Errors
    /// Names the file, key or tensor that is missing, left over, unreadable, or not supported.
    pub fn load(folder: &Path, source: &AdapterSource, dtype: DType, device: &B::Device) -> Result<Self> {
        let config_path = folder.join("config.json");
        if !folder.is_dir() {
            return Err(Error::file(folder, "no such folder; expected a Hugging Face model folder with config.json"));
        }
        let description = architectures::describe(&Config::read(&config_path)?)?;
        let mut base = Weights::open(folder, "model")?;
        let content_hash = format!("{}+{}", base.content_hash()?, file_hash(&config_path)?);
        let names = description.names;
        let bare = !base.has(&format!("{}.weight", names.embedding));
        let mut adapter = Adapter::open(source)?;
        let adapter_hash = match &adapter {
            Adapter::Saved(saved) => Some(saved.content_hash()?),
            _ => None,
        };
        let buffers: Vec<String> =
            base.names().filter(|name| is_buffer(name, &description, bare)).map(str::to_owned).collect();
        buffers.iter().for_each(|name| base.ignore(name));
        let mut loader = Loader::<B> {
            base,
            adapter: &mut adapter,
            names_prefix: names.prefix,
            bare,
            dtype,
            device: device.clone(),
            saved: BTreeSet::new(),
        };
        let embedding = loader.embedding(names.embedding, [description.vocabulary, description.hidden])?;
        let positions = match names.positions {
            Some(module) => Some(loader.embedding(module, [description.max_positions, description.hidden])?),
            None => None,
        };
        let blocks = (0..description.layers).map(|i| block(&mut loader, &description, i)).collect::<Result<_>>()?;
        let final_norm = loader.norm(names.final_norm, &description)?;
        let head = head(&mut loader, &description, &embedding, folder)?;
        loader.base.finish()?;
        let saved = loader.saved;
        adapter.finish()?;
        Ok(Self {
            prefix: if bare { names.blocks.strip_prefix(names.prefix).unwrap_or(names.blocks) } else { names.blocks }
                .to_owned(),
            description,
            dtype,
            device: device.clone(),
            content_hash,
            adapter_hash,
            embedding,
            positions,
            blocks,
            final_norm,
            head,
            saved,
        })
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
        // the visitor changes tensors; tensors are shared, so a clone of the model costs nothing
        self.clone().visit(&mut |name, lora, _| {
            let kind = match (lora, self.saved.contains(name)) {
                (true, _) => ParameterKind::Lora,
                (false, true) => ParameterKind::Saved,
                (false, false) => ParameterKind::Base,
            };
            let inside =
                if lora { names_inside(name, self.description.names.blocks) } else { names_inside(name, &self.prefix) };
            let (layer, path) = inside.map_or((None, name), |(layer, path)| (Some(layer), path));
            let module = path.rsplit_once('.').map_or(path, |(module, _)| module);
            let module = module.trim_end_matches(".lora_A").trim_end_matches(".lora_B").to_owned();
            out.push(Parameter { name: name.to_owned(), layer, module, kind });
        });
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
            visit_norm(&mut block.attention_norm, f);
            block.qkv.maps_mut().iter_mut().for_each(|map| visit_linear(map, f));
            visit_linear(&mut block.o, f);
            visit_norm(&mut block.mlp_norm, f);
            if let Some(gate) = &mut block.gate {
                visit_linear(gate, f);
            }
            visit_linear(&mut block.up, f);
            visit_linear(&mut block.down, f);
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
    pub fn forward(&self, tokens: &[u32], positions: &[u32], spans: &[Span], keep: bool) -> Trace<B> {
        let rows = |of: &Embedding<B>, ids: &[u32]| B::cast(B::gather(&of.table, ids, None), self.dtype);
        let mut x = rows(&self.embedding, tokens);
        if let Some(table) = &self.positions {
            x = B::add_scaled(x, &rows(table, positions), 1.0);
        }
        let angles = self.description.rope.as_ref().map(|rope| {
            let (cos, sin) = rope.tables(positions);
            let shape = [positions.len(), rope.inverse.len()];
            let upload = |t: Vec<f64>| B::upload(TensorData::new(t, shape).convert_dtype(self.dtype), &self.device);
            (upload(cos), upload(sin))
        });
        let mut blocks = Vec::with_capacity(self.blocks.len());
        for block in &self.blocks {
            let (y, trace) = block.forward(x, spans, angles.as_ref(), keep);
            x = y;
            blocks.extend(trace);
        }
        Trace { blocks, angles, last: x }
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
        trace: &Trace<B>,
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
        let lowest = if wanted.is_empty() { self.blocks.iter().position(|block| block.wanted(sink)) } else { Some(0) };
        if lowest.is_none() && !self.final_norm.wanted(sink) {
            return;
        }
        let active = rows.active.unwrap_or(rows.full);
        let mut delta = self.final_norm.vjp(&trace.last, delta, active, None, sink);
        let Some(lowest) = lowest else { return };
        let top = self.blocks.len() - 1;
        // below the top block every row's cotangent is filled by attention
        let filled: Vec<Segment> = rows.segments.iter().map(|s| Segment { active_from: 0, ..s.clone() }).collect();
        for (i, (block, trace_of)) in self.blocks.iter().zip(&trace.blocks).enumerate().skip(lowest).rev() {
            let below_top = BackwardRows { segments: &filled, active: None, ..rows };
            let rows = if i == top { rows } else { below_top };
            let below = i > lowest || !wanted.is_empty();
            match block.vjp(trace_of, delta, rows, trace.angles.as_ref(), below, sink) {
                Some(next) => delta = next,
                None => return,
            }
        }
        for (table, ids) in wanted {
            sink.embedding(table, &delta, ids, rows.full);
        }
    }
}

fn block<B: Kernels>(loader: &mut Loader<'_, B>, of: &Description, layer: usize) -> Result<Block<B>> {
    let names = of.names;
    let path = |name: &str| format!("{}.{layer}.{name}", names.blocks);
    let module = |name: &str, attention: bool| Module {
        path: path(name),
        layer,
        attention,
        bias: if attention { of.attention_bias } else { of.mlp_bias },
        conv1d: names.conv1d,
    };
    let (d, h) = (of.hidden, of.heads.head_dim);
    let (q, kv) = (of.heads.heads * h, of.heads.kv_heads * h);
    Ok(Block {
        attention_norm: loader.norm(&path(names.attention_norm), of)?,
        qkv: match names.qkv {
            Qkv::Separate([q_name, k_name, v_name]) => QkvProjection::Separate(Box::new([
                loader.linear(&module(q_name, true), [d, q])?,
                loader.linear(&module(k_name, true), [d, kv])?,
                loader.linear(&module(v_name, true), [d, kv])?,
            ])),
            Qkv::Fused(name) => QkvProjection::Fused(Box::new(loader.linear(&module(name, true), [d, q + 2 * kv])?)),
        },
        o: loader.linear(&module(names.o, true), [q, d])?,
        heads: of.heads,
        mlp_norm: loader.norm(&path(names.mlp_norm), of)?,
        gate: match names.gate {
            Some(gate) => Some(loader.linear(&module(gate, false), [d, of.mlp_width])?),
            None => None,
        },
        up: loader.linear(&module(names.up, false), [d, of.mlp_width])?,
        down: loader.linear(&module(names.down, false), [of.mlp_width, d])?,
        activation: of.activation,
    })
}

/// The output matrix, or `None` where it is the embedding.
fn head<B: Kernels>(
    loader: &mut Loader<'_, B>,
    of: &Description,
    embedding: &Embedding<B>,
    folder: &Path,
) -> Result<Option<Embedding<B>>> {
    let name = format!("{}.weight", of.names.head);
    if !of.tied {
        return Ok(Some(loader.embedding(of.names.head, [of.vocabulary, of.hidden])?));
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
    let blocks = of.names.blocks;
    let blocks = if bare { blocks.strip_prefix(of.names.prefix).unwrap_or(blocks) } else { blocks };
    names_inside(name, blocks).is_some_and(|(_, inside)| of.names.buffers.contains(&inside))
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
