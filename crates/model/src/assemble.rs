//! From the parts of a block, as its description lists them, to its layers.
use crate::architectures::{
    self, BlockKind, DeltaKind, DeltaMaps, Description, ExpertsKind, LatentKind, PerLayerKind, Qkv, StoredExperts, Up,
};
use crate::error::Result;
use crate::layers::{
    Attention, Block, DeltaNet, ExpertNorms, Experts, FeedForward, Latent, Linear, Mixer, Mlp, MlpAndExperts, Norm,
    PerLayer, Pieces, Projection, SharedExpert, Sinks, Source, Sublayer, Vector,
};
use crate::load::{Loader, Module, one_rank};
use std::borrow::Cow;
use std::collections::HashMap;
use tanglescope_kernels::{DType, FloatTensor, Kernels, NormKind, Pairs, TensorData};

/// The loaded parts of a block, by their paths inside it; each is taken once.
struct Parts<'a, B: Kernels> {
    of: &'a Description,
    dtype: DType,
    device: &'a B::Device,
    norms: HashMap<Cow<'static, str>, Norm<B>>,
    maps: HashMap<Cow<'static, str>, Linear<B>>,
    vectors: HashMap<&'static str, Vector<B>>,
}

fn there<T>(part: Option<T>, name: &str) -> T {
    part.unwrap_or_else(|| unreachable!("`{name}` is a part of the description"))
}

impl<'a, B: Kernels> Parts<'a, B> {
    fn load(loader: &mut Loader<'_>, of: &'a Description, layer: usize, device: &'a B::Device) -> Result<Self> {
        let names = &of.names;
        let (norms, maps, vectors) = (HashMap::new(), HashMap::new(), HashMap::new());
        let mut parts = Self { of, dtype: loader.dtype, device, norms, maps, vectors };
        let stack = of.experts_of(layer).filter(|of| matches!(of.stored, StoredExperts::Stacked { .. }));
        for part in of.parts(layer) {
            match part {
                architectures::Part::Norm { name, features, plus_one } => {
                    let path = format!("{}.{layer}.{name}", names.blocks);
                    let norm = loader.norm::<B>(&path, features, of, device)?;
                    parts.norms.insert(name, Norm { gain_plus_one: plus_one, ..norm });
                }
                architectures::Part::Vector { name, shape } => {
                    let path = format!("{}.{layer}.{name}", names.blocks);
                    parts.vectors.insert(name, loader.vector::<B>(&path, &shape, device)?);
                }
                architectures::Part::Map { name, reads, shape, bias, routed } => {
                    let path = format!("{}.{layer}.{name}", names.blocks);
                    let stack = stack.filter(|_| routed);
                    let attention = reads.by_attention();
                    let module =
                        Module { path, layer: Some(layer), attention, bias, conv1d: names.conv1d, routed, stack };
                    parts.maps.insert(name, loader.linear::<B>(&module, shape, device)?);
                }
            }
        }
        Ok(parts)
    }

    fn map(&mut self, name: &str) -> Linear<B> {
        there(self.maps.remove(name), name)
    }

    fn maps(&mut self, names: &[&str]) -> Vec<Linear<B>> {
        names.iter().map(|name| self.map(name)).collect()
    }

    fn vector(&mut self, name: &str) -> Vector<B> {
        there(self.vectors.remove(name), name)
    }

    /// A norm of the residual stream, where the architecture has it.
    fn norm(&mut self, name: Option<&'static str>) -> Option<Norm<B>> {
        match self.of.norm_gain {
            true => name.and_then(|name| self.norms.remove(name)),
            false => name.map(|_| without_parameters(self.of.hidden, self.of.norm, self.dtype, self.device)),
        }
    }

    fn latent(&mut self, of: &LatentKind) -> Latent<B> {
        let ([q_norm, kv_norm], [q_proj, q_a, kv_a], [q_b, kv_b]) =
            (LatentKind::NORMS, LatentKind::DOWN, LatentKind::UP);
        let norm = |parts: &mut Self, name| Norm { kind: of.norm, ..there(parts.norms.remove(name), name) };
        let down = vec![self.map(of.queries.map_or(q_proj, |_| q_a)), self.map(kv_a)];
        let q = of.queries.map(|_| (norm(self, q_norm), self.map(q_b)));
        let pieces = vec![Pieces::Whole, Pieces::Columns(vec![of.keys, of.dims.rotary])];
        let kv = (norm(self, kv_norm), self.map(kv_b));
        Latent { down: Projection { maps: down, pieces }, q, kv, dims: of.dims }
    }

    fn attention(&mut self, layer: usize) -> Attention<B> {
        let source = match &self.of.latent {
            Some(latent) => Source::Latent(Box::new(self.latent(latent))),
            None => Source::Input(self.qkv(layer)),
        };
        let of = self.of;
        let BlockKind { rope, keys_are_values, lender, .. } = of.blocks[layer];
        let head_dim = of.attention_of(layer).head_dim;
        let mut norm = |which: usize| of.names.query_key_norms.and_then(|names| self.norm(Some(names[which])));
        let (query_norm, key_norm) = (norm(0).map(Box::new), lender.is_none().then(|| norm(1)).flatten().map(Box::new));
        let normalised = of.value_norm && lender.is_none();
        let value_norm = normalised.then(|| without_parameters(head_dim, of.norm, self.dtype, self.device));
        Attention {
            source,
            gated: of.output_gate,
            query_norm,
            key_norm,
            value_norm: value_norm.map(Box::new),
            keys_are_values,
            borrows: lender.is_some(),
            bound: of.qkv_bound,
            sinks: of.names.sinks.map(|name| Sinks { scores: self.vector(name) }),
            o: self.map(of.names.o),
            spec: of.attention_of(layer),
            rope,
            rotated: rope.map_or(Pairs::Halves, |[queries, _]| of.ropes[queries].rotated),
        }
    }

    fn qkv(&mut self, layer: usize) -> Projection<B> {
        let (of, spec) = (self.of, self.of.attention_of(layer));
        let head_dim = spec.head_dim;
        let (maps, pieces) = match of.names.qkv {
            Qkv::Separate(names) => {
                let queries = if of.output_gate { Pieces::ByHead(vec![head_dim; 2]) } else { Pieces::Whole };
                let own = match of.blocks[layer] {
                    BlockKind { lender: Some(_), .. } => &names[..1],
                    BlockKind { keys_are_values: true, .. } => &names[..2],
                    _ => &names[..],
                };
                let pieces = std::iter::once(queries).chain(vec![Pieces::Whole; own.len() - 1]).collect();
                (self.maps(own), pieces)
            }
            Qkv::Joined(name) => (self.maps(&[name]), vec![Pieces::Columns(of.qkv_widths(layer).to_vec())]),
            Qkv::ByHead(name) => {
                let queries = spec.heads / spec.kv_heads * head_dim;
                (self.maps(&[name]), vec![Pieces::ByHead(vec![queries, head_dim, head_dim])])
            }
        };
        Projection { maps, pieces }
    }

    fn delta_net(&mut self, of: &DeltaKind) -> DeltaNet<B> {
        let [taps, bias, rate, norm, o] = DeltaKind::NAMES;
        let ([keys, values], shared) = (of.widths(), of.spec.value_heads / of.spec.key_heads);
        let (key, value) = (of.spec.key_dim, of.spec.value_dim * shared);
        let pieces = match of.inputs {
            DeltaMaps::ByHead(_) => {
                vec![Pieces::ByHead(vec![key, key, value, value]), Pieces::ByHead(vec![shared; 2])]
            }
            DeltaMaps::Columns(_) => {
                let qkv = Pieces::Columns(vec![keys, keys, values]);
                std::iter::once(qkv).chain(vec![Pieces::Whole; 3]).collect()
            }
        };
        let maps = of.maps().into_iter().map(|(name, _)| self.map(name)).collect();
        DeltaNet {
            inputs: Projection { maps, pieces },
            convolution: self.vector(taps),
            activation: of.activation,
            decay_rate: self.vector(rate),
            decay_bias: self.vector(bias),
            unit: self.unit_norms(key),
            spec: of.spec,
            norm: there(self.norms.remove(norm), norm),
            o: self.map(o),
        }
    }

    /// Norms that make queries `1/√d` and keys 1 long: `x/√(Σx² + ε)` is `x/√(mean x² + ε/d)` over √d.
    fn unit_norms(&self, d: usize) -> [Norm<B>; 2] {
        /// Under the root of a length (transformers' `l2norm`).
        const EPS: f64 = 1e-6;
        let width = d as f64;
        let kind = NormKind { centred: false, eps: EPS / width };
        let of = |gain: f64| {
            let gain = TensorData::new(vec![gain; d], [d]).convert_dtype(self.dtype);
            Norm { gain: B::upload(gain, self.device), ..without_parameters(d, kind, self.dtype, self.device) }
        };
        [of(width.recip()), of(width.sqrt().recip())]
    }

    fn mlp(&mut self, layer: usize) -> Mlp<B> {
        let (maps, pieces) = match self.of.names.up {
            Up::Plain(name) => (self.maps(&[name]), vec![Pieces::Whole]),
            Up::Gated(names) => (self.maps(&names), vec![Pieces::Whole; 2]),
            Up::Joined(name) => (self.maps(&[name]), vec![Pieces::Columns(vec![self.of.mlp_width_of(layer); 2])]),
        };
        let up = Projection { maps, pieces };
        Mlp { up, down: self.map(self.of.names.down), activation: self.of.activation }
    }

    /// The experts of a layer, without a correction and without an adapter of all.
    fn experts(&mut self, kind: &ExpertsKind) -> Experts<B> {
        let activation = self.of.activation;
        let router = self.map(kind.router);
        let mut maps = [const { Vec::new() }; 3];
        for expert in 0..kind.number {
            maps.iter_mut().zip(kind.paths(expert)).for_each(|(maps, path)| maps.push(self.map(&path)));
        }
        let shared = kind.shared.map(|shared| {
            let [gate, up, down] = shared.maps.map(|name| self.map(name));
            let mlp = Mlp { up: Projection::of_whole(vec![gate, up]), down, activation };
            Box::new(SharedExpert { mlp, gate: shared.gate.map(|name| self.map(name)) })
        });
        let [gain, factors] = ExpertsKind::ROUTER;
        let norms = kind.beside_mlp.then(|| {
            let Vector { name, values } = self.vector(gain);
            let plain = without_parameters(self.of.hidden, self.of.norm, self.dtype, self.device);
            Box::new(ExpertNorms {
                router: Norm { gain_name: name, gain: values, ..plain },
                router_scale: (self.of.hidden as f64).sqrt().recip(),
                experts: self.norm_there(ExpertsKind::NORMS[1]),
            })
        });
        let factors = kind.beside_mlp.then(|| self.vector(factors));
        let (routing, clamp) = (kind.routing, kind.clamp);
        let (correction, fused) = (None, [None, None]);
        Experts { router, routing, correction, factors, norms, maps, activation, clamp, shared, fused }
    }

    /// A norm that the description has.
    fn norm_there(&mut self, name: &'static str) -> Norm<B> {
        there(self.norm(Some(name)), name)
    }
}

/// Loads a block.
pub(crate) fn block<B: Kernels>(
    loader: &mut Loader<'_>,
    of: &Description,
    layer: usize,
    device: &B::Device,
) -> Result<Block<B>> {
    let names = &of.names;
    let mut parts = Parts::<B>::load(loader, of, layer, device)?;
    let mixer = match of.delta_of(layer) {
        Some(delta) => Mixer::DeltaNet(parts.delta_net(delta)),
        None => Mixer::Attention(parts.attention(layer)),
    };
    let feed_forward = match of.experts_of(layer) {
        Some(kind) => {
            let list = format!("{}.{layer}.{}", names.blocks, kind.list);
            let fused = loader.adapter.fused::<B>(&list, kind, of.hidden, loader.dtype, device)?;
            let correction = match kind.correction {
                Some(name) => Some(loader.values(&format!("{}.{layer}.{name}", names.blocks), kind.number)?),
                None => None,
            };
            let experts = Experts { correction, fused, ..parts.experts(kind) };
            match kind.beside_mlp {
                false => FeedForward::Experts(experts),
                true => {
                    let [behind_mlp, _, behind] = ExpertsKind::NORMS.map(|name| parts.norm(Some(name)));
                    let (norm, layer) = (parts.norm(names.mlp_norm), parts.mlp(layer));
                    FeedForward::MlpAndExperts(MlpAndExperts {
                        mlp: Sublayer { norm, layer, norm_after: behind_mlp, scale: 1.0 },
                        experts: Sublayer { norm: None, layer: experts, norm_after: behind, scale: 1.0 },
                    })
                }
            }
        }
        None => FeedForward::Mlp(parts.mlp(layer)),
    };
    one_rank(&feed_forward)?;
    let scale = match names.output_scale {
        Some(name) => loader.values(&format!("{}.{layer}.{name}", names.blocks), 1)?[0],
        None => 1.0,
    };
    Ok(Block {
        mixer: Sublayer {
            norm: parts.norm(names.attention_norm),
            layer: mixer,
            norm_after: parts.norm(names.after_attention),
            scale: of.residual_scale,
        },
        mlp: Sublayer {
            norm: parts.norm(names.mlp_norm),
            layer: feed_forward,
            norm_after: parts.norm(names.after_mlp),
            scale: of.residual_scale,
        },
        per_layer: of.per_layer.map(|_| {
            let [gate, back] = PerLayerKind::MAPS.map(|name| parts.map(name));
            let layer = PerLayer { gate, activation: of.activation, back };
            Box::new(Sublayer { norm: None, layer, norm_after: parts.norm(Some(PerLayerKind::NORM)), scale: 1.0 })
        }),
        parallel: of.parallel,
        scale,
    })
}

/// A norm whose gain is one.
pub(crate) fn without_parameters<B: Kernels>(
    features: usize,
    kind: NormKind,
    dtype: DType,
    device: &B::Device,
) -> Norm<B> {
    let ones: FloatTensor<B> =
        B::upload(TensorData::new(vec![1.0f64; features], [features]).convert_dtype(dtype), device);
    Norm { gain_name: String::new(), gain: ones, bias: None, kind, gain_plus_one: false }
}
