//! What a decoder is: its dimensions, its functions, the names of its tensors, and the parts of each block.
use super::wrapper::Wrapper;
use crate::layers::{Clamp, ColumnNorms, LatentDims, Routing};
use crate::rope::Rope;
use std::borrow::Cow;
use tanglescope_checkpoint::Layout;
use tanglescope_kernels::{Activation, AttentionSpec, DeltaSpec, NormKind, SoftCap};

/// A decoder's dimensions, its functions, and the names of its tensors.
#[derive(Clone, Debug)]
pub struct Description {
    /// Rows of the embedding.
    pub vocabulary: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// What each block does differently.
    pub blocks: Vec<BlockKind>,
    /// Longest sequence that the model has positions for.
    pub max_positions: usize,
    /// Row of the first position, where positions are learned.
    pub first_position: usize,
    /// Factor on the embedding.
    pub embedding_scale: f64,
    /// Factor on what each layer adds to the residual stream.
    pub residual_scale: f64,
    /// Factor on the logits, before their soft cap.
    pub logit_scale: f64,
    /// The padding token whose row of the embedding its rows in a sequence do not train, as in torch's `Embedding` with
    /// `padding_idx`; `None` where every row is trained.
    pub padding_row: Option<u32>,
    /// What norms of columns are in gradients, where an adapter gives columns of the maps that it changes learned lengths (`DoRA`).
    pub column_norms: Option<ColumnNorms>,
    /// Attention, without a window.
    pub attention: AttentionSpec,
    /// Rotary embeddings; learned positions where there are none.
    pub ropes: Vec<Rope>,
    /// The norms.
    pub norm: NormKind,
    /// Whether norms have a gain.
    pub norm_gain: bool,
    /// Whether norms have a bias.
    pub norm_bias: bool,
    /// Whether norms multiply with one plus their gain (Gemma).
    pub gain_plus_one: bool,
    /// A bound that queries, keys and values are cut at.
    pub qkv_bound: Option<f64>,
    /// Whether queries' projections have, head by head, a gate that the head's output is multiplied with.
    pub output_gate: bool,
    /// The latents that queries, keys and values come from, where they do.
    pub latent: Option<LatentKind>,
    /// The mixer of [recurrent](BlockKind::recurrent) blocks.
    pub delta: Option<DeltaKind>,
    /// Over what the norms of queries and keys go, where there are any.
    pub query_key_norm: Option<QueryKeyNorm>,
    /// Whether the values of each head are normalised, without a gain.
    pub value_norm: bool,
    /// Whether the feed-forward layer reads the block's input, beside attention and not after it; where it has no norm of its own,
    /// it reads what attention reads.
    pub parallel: bool,
    /// Width of the feed-forward layer.
    pub mlp_width: usize,
    /// Its function.
    pub activation: Activation,
    /// Whether the projections to queries, keys and values have biases.
    pub qkv_bias: bool,
    /// Whether the projection of the attention output has a bias.
    pub o_bias: bool,
    /// Whether the feed-forward projections have biases.
    pub mlp_bias: bool,
    /// The experts of [sparse](BlockKind::sparse) blocks.
    pub experts: Option<ExpertsKind>,
    /// What each block reads of a token beside the residual stream, where it does.
    pub per_layer: Option<PerLayerKind>,
    /// Whether the output matrix is the embedding.
    pub tied: bool,
    /// Whether the logits have a bias.
    pub head_bias: bool,
    /// A soft cap on the logits.
    pub logit_cap: Option<SoftCap>,
    /// Names of modules.
    pub names: Names,
    /// Blocks behind the last one that its checkpoints have for predicting further tokens, and that are no part of the model.
    pub further_blocks: usize,
    /// The multimodal model that this is the text part of.
    pub wrapper: Option<Wrapper>,
    /// Rows and columns that share a factor of stored 8-bit floating point numbers, where it is not all of a matrix.
    pub fp8_block: Option<[usize; 2]>,
}

/// What one block does differently from others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BlockKind {
    /// How many positions a query sees.
    pub window: Option<usize>,
    /// Which of the rotary embeddings queries have, and which keys; none where positions are learned, or the block has none.
    pub rope: Option<[usize; 2]>,
    /// Whether its rows see each other through the states of the gated delta rule, and not by attention.
    pub recurrent: bool,
    /// Whether its feed-forward layer is one of experts.
    pub sparse: bool,
    /// Key-value heads and values a head, where they are not those of other blocks.
    pub heads: Option<[usize; 2]>,
    /// Whether its keys, before their norm, are its values too.
    pub keys_are_values: bool,
    /// The block whose keys and values it attends to, where it has none of its own.
    pub lender: Option<usize>,
    /// Width of its feed-forward layer, where it is not that of other blocks.
    pub mlp_width: Option<usize>,
}

/// What each block reads of a token beside the residual stream (Gemma's per-layer inputs).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PerLayerKind {
    /// Values of a block's input.
    pub width: usize,
    /// Rows of its table.
    pub vocabulary: usize,
}

impl PerLayerKind {
    /// The table, the projection of the embedding, and the norm of that, beside the blocks.
    pub(crate) const OUTSIDE: [&str; 3] =
        ["embed_tokens_per_layer", "per_layer_model_projection", "per_layer_projection_norm"];
    /// Maps to a block's input's width and back, inside the block.
    pub(crate) const MAPS: [&str; 2] = ["per_layer_input_gate", "per_layer_projection"];
    /// Norm of what they add.
    pub(crate) const NORM: &str = "post_per_layer_input_norm";
}

/// A mixer by the gated delta rule, with its names inside the block.
#[derive(Clone, Debug)]
pub struct DeltaKind {
    /// Its heads.
    pub spec: DeltaSpec,
    /// Taps of the convolution of each channel.
    pub taps: usize,
    /// Function after the convolution.
    pub activation: Activation,
    /// Projections to queries, keys, values, output gates, uptakes and decays: joined head by head, or columns, then one each.
    pub inputs: DeltaMaps,
}

/// Latents of attention.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LatentKind {
    /// Values of the latent of queries; they come from the input where there is none.
    pub queries: Option<usize>,
    /// Values of the latent of keys and values.
    pub keys: usize,
    /// Parts of a head.
    pub dims: LatentDims,
    /// Norms of the latents.
    pub norm: NormKind,
}

impl LatentKind {
    /// Norms of the latents of queries, and of keys and values.
    pub(crate) const NORMS: [&str; 2] = ["self_attn.q_a_layernorm", "self_attn.kv_a_layernorm"];
    /// Maps to the latents; the first is to queries where they have none.
    pub(crate) const DOWN: [&str; 3] = ["self_attn.q_proj", "self_attn.q_a_proj", "self_attn.kv_a_proj_with_mqa"];
    /// Maps from them.
    pub(crate) const UP: [&str; 2] = ["self_attn.q_b_proj", "self_attn.kv_b_proj"];
}

/// Projections of a mixer by the gated delta rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeltaMaps {
    /// One map whose columns are one key head's query, key, values and output gates, then the next head's; one of its uptakes and
    /// decays.
    ByHead([&'static str; 2]),
    /// One map of queries, keys and values as columns; one each of output gates, uptakes and decays.
    Columns([&'static str; 4]),
}

impl DeltaKind {
    /// Taps, bias and rate of the decays, norm of the outputs, and output projection.
    pub(crate) const NAMES: [&str; 5] = [
        "linear_attn.conv1d.weight",
        "linear_attn.dt_bias",
        "linear_attn.A_log",
        "linear_attn.norm",
        "linear_attn.out_proj",
    ];

    /// Widths of queries or keys, and of values.
    #[must_use]
    pub fn widths(&self) -> [usize; 2] {
        [self.spec.key_heads * self.spec.key_dim, self.spec.value_heads * self.spec.value_dim]
    }

    /// The projections and the widths of their outputs.
    pub(crate) fn maps(&self) -> Vec<(&'static str, usize)> {
        let ([keys, values], heads) = (self.widths(), self.spec.value_heads);
        match self.inputs {
            DeltaMaps::ByHead([qkvz, ba]) => vec![(qkvz, 2 * keys + 2 * values), (ba, 2 * heads)],
            DeltaMaps::Columns([qkv, z, b, a]) => vec![(qkv, 2 * keys + values), (z, values), (b, heads), (a, heads)],
        }
    }
}

/// A feed-forward layer of experts.
#[derive(Clone, Debug)]
pub struct ExpertsKind {
    /// Experts of a layer.
    pub number: usize,
    /// Width of each.
    pub width: usize,
    /// How they are chosen and weighted.
    pub routing: Routing,
    /// Path of the router inside the block.
    pub router: &'static str,
    /// Path of the tensor that is added to sigmoids where they decide.
    pub correction: Option<&'static str>,
    /// Path of the list of experts inside the block.
    pub list: &'static str,
    /// Where the matrices of an expert are.
    pub stored: StoredExperts,
    /// Whether the router has a bias.
    pub router_bias: bool,
    /// What gate and up are cut at, before a gate of `x·σ(α·x)` and one more than up.
    pub clamp: Option<Clamp>,
    /// An expert that every row goes through.
    pub shared: Option<SharedKind>,
    /// Whether they stand beside a feed-forward layer for all rows, with norms of their own and a factor on each expert's weight (Gemma 4).
    pub beside_mlp: bool,
}

/// Where the matrices of experts are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoredExperts {
    /// Each by itself: gate, up and down inside an expert.
    Each([&'static str; 3]),
    /// All in one tensor each, of gate and up, and of down.
    Stacked {
        /// The tensors.
        names: [&'static str; 2],
        /// How they lie there.
        order: StackOrder,
    },
}

/// How the matrices of experts lie in a tensor of all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StackOrder {
    /// `[experts, out, in]`, gate before up.
    Outputs,
    /// `[experts, in, out]`, columns of gate and up in turn, with biases beside them.
    Inputs,
}

/// An expert that every row goes through.
#[derive(Clone, Copy, Debug)]
pub struct SharedKind {
    /// Its width.
    pub width: usize,
    /// Paths of gate, up and down inside the block.
    pub maps: [&'static str; 3],
    /// Path of what opens it, one number a row.
    pub gate: Option<&'static str>,
}

impl ExpertsKind {
    /// Beside a feed-forward layer for all rows: the norm behind that, before the experts, and behind them.
    pub(crate) const NORMS: [&str; 3] =
        ["post_feedforward_layernorm_1", "pre_feedforward_layernorm_2", "post_feedforward_layernorm_2"];
    /// There: the gain of the norm of what the router reads, and the factors on the experts' weights.
    pub(crate) const ROUTER: [&str; 2] = ["router.scale", Self::FACTORS];
    /// The factors on the experts' weights.
    pub const FACTORS: &str = "router.per_expert_scale";

    /// Path of an expert's gate, up and down inside the block; what stands before `#` is a tensor that holds those of all.
    pub(crate) fn paths(&self, expert: usize) -> [String; 3] {
        let list = self.list;
        match self.stored {
            StoredExperts::Each(maps) => maps.map(|map| format!("{list}.{expert}.{map}")),
            StoredExperts::Stacked { names: [gate_up, down], .. } => [(gate_up, 0), (gate_up, 1), (down, 0)]
                .map(|(tensor, piece)| format!("{list}.{tensor}#{expert}.{piece}")),
        }
    }

    /// Shape of the tensor that has a map `tensor#expert.piece` or its bias of some shape, and where it lies there.
    ///
    /// # Panics
    /// Where the name is not of that form.
    pub(crate) fn place(&self, name: &str, kept: &[usize]) -> (Vec<usize>, Layout) {
        let part = name.split_once('#').and_then(|(_, part)| part.split_once('.'));
        let part = part.and_then(|(expert, piece)| Some((expert.parse().ok()?, piece.parse().ok()?)));
        let Some((index, piece)) = part else { unreachable!("`{name}` is a part of a tensor") };
        let StoredExperts::Stacked { names: [gate_up, _], order } = self.stored else {
            unreachable!("`{name}` is a part of a tensor of all experts")
        };
        // of gate and up there are two
        let pieces = if name.contains(gate_up) { 2 } else { 1 };
        let (by_columns, columns) =
            (Layout::Part { index, first: piece, every: pieces }, pieces * kept[kept.len() - 1]);
        match (order, kept) {
            (_, [_]) => (vec![self.number, columns], by_columns),
            (StackOrder::Inputs, _) => (vec![self.number, kept[0], columns], by_columns),
            (StackOrder::Outputs, _) => {
                (vec![self.number, columns, kept[0]], Layout::Rows { index, piece, of: pieces })
            }
        }
    }

    /// Whether the experts have biases.
    fn bias(&self) -> bool {
        matches!(self.stored, StoredExperts::Stacked { order: StackOrder::Inputs, .. })
    }
}

/// What the norms of queries and keys go over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueryKeyNorm {
    /// Each head's values.
    Heads,
    /// The values of all heads together.
    Whole,
}

/// Where the tensors of an architecture stand in its checkpoints. Names inside a block are relative to the block.
#[derive(Clone, Debug)]
pub struct Names {
    /// The base model's prefix, which checkpoints of the bare base leave out.
    pub prefix: Cow<'static, str>,
    /// The token embedding.
    pub embedding: Cow<'static, str>,
    /// Learned positions.
    pub positions: Option<&'static str>,
    /// The list of blocks.
    pub blocks: Cow<'static, str>,
    /// Norm before attention.
    pub attention_norm: Option<&'static str>,
    /// Projections to queries, keys and values.
    pub qkv: Qkv,
    /// Norms of queries and keys.
    pub query_key_norms: Option<[&'static str; 2]>,
    /// Scores of heads that no value belongs to.
    pub sinks: Option<&'static str>,
    /// Projection of the attention output.
    pub o: &'static str,
    /// Norm of the projected attention output.
    pub after_attention: Option<&'static str>,
    /// Norm before the feed-forward layer.
    pub mlp_norm: Option<&'static str>,
    /// First projections of the feed-forward layer.
    pub up: Up,
    /// Second projection of the feed-forward layer.
    pub down: &'static str,
    /// Norm of the feed-forward layer's output.
    pub after_mlp: Option<&'static str>,
    /// Norm before the head.
    pub final_norm: Cow<'static, str>,
    /// Output matrix.
    pub head: Cow<'static, str>,
    /// Whether projections are stored `[in, out]` (`Conv1D`) and not `[out, in]` (`Linear`).
    pub conv1d: bool,
    /// Tensors under a block that are no parameters.
    pub buffers: &'static [&'static str],
    /// The one of them that is a number which the block's output is multiplied with.
    pub output_scale: Option<&'static str>,
    /// How names begin of tensors that checkpoints have beside the model, for predicting further tokens.
    pub beside: &'static [&'static str],
}

/// Query, key and value projections.
#[derive(Clone, Copy, Debug)]
pub enum Qkv {
    /// Three matrices.
    Separate([&'static str; 3]),
    /// One matrix whose columns are queries, then keys, then values.
    Joined(&'static str),
    /// One matrix whose columns are the queries of one key head, its key and its value, then the next head's.
    ByHead(&'static str),
}

/// What the feed-forward layer's function is applied to.
#[derive(Clone, Copy, Debug)]
pub enum Up {
    /// One matrix, no gate.
    Plain(&'static str),
    /// A gate's matrix and the one of what it multiplies.
    Gated([&'static str; 2]),
    /// One matrix whose columns are the gate's, then the others.
    Joined(&'static str),
}

/// The inputs of a block's linear maps, in the order of the forward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reads {
    /// The normalised residual stream, for queries, keys and values.
    MixerInput,
    /// The normalised latent of queries.
    QueryLatent,
    /// The normalised latent of keys and values.
    KeyLatent,
    /// What attention made of queries, keys and values.
    AttentionOutput,
    /// The normalised residual stream, for the feed-forward layer.
    MlpInput,
    /// The feed-forward layer's hidden values.
    MlpHidden,
    /// The residual stream behind the feed-forward layer.
    BlockOutput,
    /// A block's input by token, gated.
    PerLayerInput,
    /// The embedding, beside the blocks.
    Embedded,
}

impl Reads {
    /// Whether the map is one of attention's.
    pub(crate) fn by_attention(self) -> bool {
        self.before_mixing() || self == Self::AttentionOutput
    }

    /// Whether rows have not seen each other yet, so that every row of it has a cotangent.
    #[must_use]
    pub fn before_mixing(self) -> bool {
        matches!(self, Self::MixerInput | Self::QueryLatent | Self::KeyLatent)
    }
}

/// A part of a block that has parameters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// A norm of a number of values.
    Norm {
        /// Path inside the block.
        name: Cow<'static, str>,
        /// Length of its gain.
        features: usize,
        /// Whether rows are multiplied with one plus the gain.
        plus_one: bool,
    },
    /// Other numbers.
    Vector {
        /// Path of the tensor inside the block.
        name: &'static str,
        /// Its shape in the checkpoint.
        shape: Vec<usize>,
    },
    /// A linear map.
    Map {
        /// Path inside the block.
        name: Cow<'static, str>,
        /// Which of the block's inputs it reads.
        reads: Reads,
        /// Values of its input and of its output, a row.
        shape: [usize; 2],
        /// Whether it has a bias.
        bias: bool,
        /// Whether it is one of many experts', which not every row meets.
        routed: bool,
    },
}

impl Description {
    /// Number of blocks.
    #[must_use]
    pub fn layers(&self) -> usize {
        self.blocks.len()
    }

    /// Attention of a block, with its window.
    #[must_use]
    pub fn attention_of(&self, layer: usize) -> AttentionSpec {
        let BlockKind { window, heads, .. } = self.blocks[layer];
        let [kv_heads, head_dim] = heads.unwrap_or([self.attention.kv_heads, self.attention.head_dim]);
        AttentionSpec { window, kv_heads, head_dim, ..self.attention }
    }

    /// Widths of the queries, keys and values of a row in a block.
    pub(crate) fn qkv_widths(&self, layer: usize) -> [usize; 3] {
        let of = self.attention_of(layer);
        let kv = of.kv_heads * of.head_dim;
        [of.heads * of.head_dim, kv, kv]
    }

    /// Width of a block's feed-forward layer.
    #[must_use]
    pub fn mlp_width_of(&self, layer: usize) -> usize {
        self.blocks[layer].mlp_width.unwrap_or(self.mlp_width)
    }

    /// Whether other blocks attend to a block's keys and values.
    pub(crate) fn lends(&self, layer: usize) -> bool {
        self.blocks.iter().any(|block| block.lender == Some(layer))
    }

    /// Paths of modules that a block would have for the keys and values that it borrows; older checkpoints have them, and do not use them.
    pub(crate) fn borrowed(&self, layer: usize) -> Vec<&'static str> {
        let Qkv::Separate([_, k, v]) = self.names.qkv else { return Vec::new() };
        match self.blocks[layer].lender {
            Some(_) => [k, v].into_iter().chain(self.names.query_key_norms.map(|[_, of_keys]| of_keys)).collect(),
            None => Vec::new(),
        }
    }

    /// Path of a module beside the blocks.
    pub(crate) fn outside(&self, name: &str) -> String {
        format!("{}{name}", self.names.prefix)
    }

    /// Paths inside a block of the linear maps that read one of its inputs.
    pub(crate) fn maps_of(&self, layer: usize, input: Reads) -> impl Iterator<Item = Cow<'static, str>> {
        self.parts(layer).into_iter().filter_map(move |part| match part {
            Part::Map { name, reads, .. } if reads == input => Some(name),
            _ => None,
        })
    }

    /// Longest sequence up to which the functions of a row do not depend on how long its sequence is.
    #[must_use]
    pub fn same_up_to(&self) -> Option<usize> {
        self.ropes.iter().filter_map(Rope::same_up_to).min()
    }

    /// The same with experts on some blocks.
    pub(super) fn with_experts(mut self, experts: ExpertsKind, sparse: &[bool]) -> Self {
        self.blocks.iter_mut().zip(sparse).for_each(|(block, &sparse)| block.sparse = sparse);
        self.experts = Some(experts);
        self
    }

    /// The experts of a block, where its feed-forward layer is one of experts.
    #[must_use]
    pub fn experts_of(&self, layer: usize) -> Option<&ExpertsKind> {
        self.experts.as_ref().filter(|_| self.blocks[layer].sparse)
    }

    /// The gated delta rule of a block, where its mixer is that.
    #[must_use]
    pub fn delta_of(&self, layer: usize) -> Option<&DeltaKind> {
        self.delta.as_ref().filter(|_| self.blocks[layer].recurrent)
    }

    /// The parts of a block that have parameters, in the order of the forward pass.
    #[must_use]
    pub fn parts(&self, layer: usize) -> Vec<Part> {
        let (d, names) = (self.hidden, &self.names);
        let norm = |name: Option<&'static str>| name.filter(|_| self.norm_gain).map(|name| self.norm_of(name, d));
        let mut parts: Vec<Part> = norm(names.attention_norm).into_iter().collect();
        match self.delta_of(layer) {
            Some(delta) => parts.extend(self.delta_parts(delta)),
            None => parts.extend(self.attention_parts(layer)),
        }
        parts.extend(norm(names.after_attention));
        parts.extend(norm(names.mlp_norm));
        let experts = self.experts_of(layer);
        if experts.is_none_or(|experts| experts.beside_mlp) {
            parts.extend(self.mlp_parts(layer));
        }
        if let Some(experts) = experts {
            let [behind_mlp, before, behind] =
                ExpertsKind::NORMS.map(|name| norm(Some(name).filter(|_| experts.beside_mlp)));
            parts.extend(behind_mlp.into_iter().chain(before));
            parts.extend(self.expert_parts(experts));
            parts.extend(behind);
        }
        parts.extend(norm(names.after_mlp));
        if let Some(PerLayerKind { width, .. }) = self.per_layer {
            let [gate, back] = PerLayerKind::MAPS;
            parts.push(map(gate, Reads::BlockOutput, [d, width], false));
            parts.push(map(back, Reads::PerLayerInput, [width, d], false));
            parts.extend(norm(Some(PerLayerKind::NORM)));
        }
        parts
    }

    fn norm_of(&self, name: &'static str, features: usize) -> Part {
        Part::Norm { name: name.into(), features, plus_one: self.gain_plus_one }
    }

    fn delta_parts(&self, of: &DeltaKind) -> Vec<Part> {
        let (d, [keys, values], heads) = (self.hidden, of.widths(), of.spec.value_heads);
        let [taps, bias, rate, norm, o] = DeltaKind::NAMES;
        let of_input = |(name, width)| map(name, Reads::MixerInput, [d, width], false);
        let mut parts: Vec<Part> = of.maps().into_iter().map(of_input).collect();
        parts.push(Part::Vector { name: taps, shape: vec![2 * keys + values, 1, of.taps] });
        parts.extend([bias, rate].map(|name| Part::Vector { name, shape: vec![heads] }));
        parts.push(Part::Norm { name: norm.into(), features: of.spec.value_dim, plus_one: false });
        parts.push(map(o, Reads::AttentionOutput, [values, d], false));
        parts
    }

    fn latent_parts(&self, of: &LatentKind) -> Vec<Part> {
        let (d, heads, dims) = (self.hidden, self.attention.heads, of.dims);
        let ([q_norm, kv_norm], [q_proj, q_a, kv_a], [q_b, kv_b]) =
            (LatentKind::NORMS, LatentKind::DOWN, LatentKind::UP);
        let queries = heads * (dims.rotary + dims.plain);
        let down = |name, width| map(name, Reads::MixerInput, [d, width], self.qkv_bias);
        let mut parts = match of.queries {
            Some(latent) => vec![
                down(q_a, latent),
                self.norm_of(q_norm, latent),
                map(q_b, Reads::QueryLatent, [latent, queries], false),
            ],
            None => vec![map(q_proj, Reads::MixerInput, [d, queries], false)],
        };
        let keys = heads * (dims.plain + dims.value);
        parts.extend([
            down(kv_a, of.keys + dims.rotary),
            self.norm_of(kv_norm, of.keys),
            map(kv_b, Reads::KeyLatent, [of.keys, keys], false),
            map(self.names.o, Reads::AttentionOutput, [heads * dims.value, d], self.o_bias),
        ]);
        parts
    }

    fn attention_parts(&self, layer: usize) -> Vec<Part> {
        if let Some(latent) = &self.latent {
            return self.latent_parts(latent);
        }
        let (d, names, [q, kv, _]) = (self.hidden, &self.names, self.qkv_widths(layer));
        let mut parts = Vec::new();
        let of_queries = if self.output_gate { 2 * q } else { q };
        let qkv_map = |name, width| map(name, Reads::MixerInput, [d, width], self.qkv_bias);
        match names.qkv {
            Qkv::Separate([q_name, k_name, v_name]) => {
                let BlockKind { lender, keys_are_values, .. } = self.blocks[layer];
                parts.push(qkv_map(q_name, of_queries));
                parts.extend(lender.is_none().then(|| qkv_map(k_name, kv)));
                parts.extend((lender.is_none() && !keys_are_values).then(|| qkv_map(v_name, kv)));
            }
            Qkv::Joined(name) | Qkv::ByHead(name) => parts.push(qkv_map(name, q + 2 * kv)),
        }
        if let (Some(names), Some(over)) = (names.query_key_norms, self.query_key_norm) {
            let widths = if over == QueryKeyNorm::Heads { [self.attention_of(layer).head_dim; 2] } else { [q, kv] };
            let own = if self.blocks[layer].lender.is_some() { 1 } else { 2 };
            parts.extend(names.into_iter().zip(widths).take(own).map(|(name, features)| self.norm_of(name, features)));
        }
        parts.extend(names.sinks.map(|name| Part::Vector { name, shape: vec![self.attention.heads] }));
        parts.push(map(names.o, Reads::AttentionOutput, [q, d], self.o_bias));
        parts
    }

    fn mlp_parts(&self, layer: usize) -> Vec<Part> {
        let (d, names, width) = (self.hidden, &self.names, self.mlp_width_of(layer));
        let up_map = |name, width| map(name, Reads::MlpInput, [d, width], self.mlp_bias);
        let mut parts = match names.up {
            Up::Plain(name) => vec![up_map(name, width)],
            Up::Gated(names) => names.map(|name| up_map(name, width)).to_vec(),
            Up::Joined(name) => vec![up_map(name, 2 * width)],
        };
        parts.push(map(names.down, Reads::MlpHidden, [width, d], self.mlp_bias));
        parts
    }

    fn expert_parts(&self, of: &ExpertsKind) -> Vec<Part> {
        let d = self.hidden;
        let reads = [Reads::MlpInput, Reads::MlpInput, Reads::MlpHidden];
        let shapes = |width| [[d, width], [d, width], [width, d]];
        let mut parts = vec![map(of.router, Reads::MlpInput, [d, of.number], of.router_bias)];
        if of.beside_mlp {
            let vectors = ExpertsKind::ROUTER.into_iter().zip([d, of.number]);
            parts.extend(vectors.map(|(name, values)| Part::Vector { name, shape: vec![values] }));
        }
        for expert in 0..of.number {
            let maps = of.paths(expert).into_iter().zip(reads).zip(shapes(of.width));
            parts.extend(maps.map(|((name, reads), shape)| Part::Map {
                name: name.into(),
                reads,
                shape,
                bias: of.bias(),
                routed: true,
            }));
        }
        if let Some(shared) = of.shared {
            let maps = shared.maps.into_iter().zip(reads).zip(shapes(shared.width));
            parts.extend(maps.map(|((name, reads), shape)| map(name, reads, shape, false)));
            parts.extend(shared.gate.map(|name| map(name, Reads::MlpInput, [d, 1], false)));
        }
        parts
    }
}

fn map(name: &'static str, reads: Reads, shape: [usize; 2], bias: bool) -> Part {
    Part::Map { name: name.into(), reads, shape, bias, routed: false }
}
