//! Random layers of every kind, and the shapes they have.
use crate::flex;
use proptest::prelude::*;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};
use std::collections::BTreeMap;
use tanglescope_kernels::{Activation, AttentionSpec, Flex, FloatTensor, Memory, NormKind, Pairs};
use tanglescope_model::layers::{
    Attention, Block, FeedForward, Linear, Lora, Magnitude, Matrix, Mixer, Mlp, Norm, Pieces, Projection, Source,
    Sublayer,
};

/// Shape of a random block and of its rows.
#[derive(Clone, Debug)]
pub struct Shape {
    pub hidden: usize,
    pub mlp_width: usize,
    pub kv_heads: usize,
    pub repeat: usize,
    pub half: usize,
    pub gated: bool,
    /// Gate and up from one matrix.
    pub joined: bool,
    pub qkv: Qkv,
    pub bias: bool,
    pub centred: bool,
    pub rotary: bool,
    /// Values of a head that are not rotated.
    pub left: usize,
    /// Norms before the layers, after them, and of queries and keys: none, of each head, of all.
    pub before: bool,
    pub after: bool,
    pub query_key: usize,
    pub plus_one: bool,
    pub parallel: bool,
    /// Factor on what each layer adds.
    pub scale: f64,
    pub rank: usize,
    /// Whether columns of changed maps have learned lengths.
    pub lengths: bool,
    pub trunk: usize,
    pub suffixes: Vec<usize>,
    pub late: bool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Qkv {
    Separate,
    Joined,
    ByHead,
}

impl Shape {
    pub fn head_dim(&self) -> usize {
        2 * self.half + self.left
    }
}

pub fn shapes() -> impl Strategy<Value = Shape> {
    let sizes = (2usize..20, 1usize..24, 1usize..3, 1usize..3, 1usize..5);
    let qkv = prop_oneof![Just(Qkv::Separate), Just(Qkv::Joined), Just(Qkv::ByHead)];
    let kinds = (any::<[bool; 5]>(), any::<[bool; 5]>(), 0usize..3, qkv, (0usize..4, any::<bool>()), 0usize..3);
    let rows = (1usize..8, proptest::collection::vec(0usize..7, 1..4), any::<bool>());
    (sizes, kinds, rows).prop_map(|(sizes, kinds, rows)| {
        let (hidden, mlp_width, kv_heads, repeat, half) = sizes;
        let (
            [gated, joined, bias, centred, rotary],
            [before, after, plus_one, parallel, scaled],
            query_key,
            qkv,
            (rank, lengths),
            left,
        ) = kinds;
        let (trunk, suffixes, late) = rows;
        // two values less their mean and over their size are ±1 whatever they are: all but ε's part of the gradient cancels, and it is rounding
        let centred = centred && hidden > 3 && (query_key == 0 || 2 * half + left > 3);
        // columns of a few entries may be nearly 0 long, and what their norms add then cancels all the rest, but for its rounding times m/n
        let fewest = hidden.min(mlp_width).min(kv_heads * (2 * half + left));
        let lengths = lengths && fewest >= 4;
        // a matrix by head has as many keys as queries
        let repeat = if qkv == Qkv::ByHead { 1 } else { repeat };
        Shape {
            hidden,
            mlp_width,
            kv_heads,
            repeat,
            half,
            gated,
            joined,
            qkv,
            bias,
            centred,
            rotary,
            left,
            before,
            after,
            query_key,
            plus_one,
            parallel,
            scale: if scaled { 0.45 } else { 1.0 },
            rank,
            lengths,
            trunk,
            suffixes,
            late,
        }
    })
}

/// Named random parameters, `[rows, columns]` each (one row for vectors).
pub struct Parameters {
    pub random: ChaCha8Rng,
    pub values: BTreeMap<String, (Vec<f64>, [usize; 2])>,
}

impl Parameters {
    pub fn noise(&mut self, n: usize) -> Vec<f64> {
        (0..n).map(|_| StandardNormal.sample(&mut self.random)).collect()
    }

    fn matrix(&mut self, name: &str, shape: [usize; 2]) -> FloatTensor<Flex> {
        let scale = (shape[0] as f64).sqrt().recip();
        let values: Vec<f64> = self.noise(shape[0] * shape[1]).into_iter().map(|x| x * scale).collect();
        self.values.insert(name.to_owned(), (values.clone(), shape));
        flex(&values, shape.to_vec())
    }

    fn vector(&mut self, name: &str, n: usize) -> FloatTensor<Flex> {
        flex(&Flex::download(&self.matrix(name, [1, n])), vec![n])
    }

    fn linear(&mut self, name: &str, [inputs, outputs]: [usize; 2], shape: &Shape) -> Linear<Flex> {
        let weight = Matrix::Plain(self.matrix(&format!("{name}.weight"), [inputs, outputs]));
        let bias = shape.bias.then(|| self.vector(&format!("{name}.bias"), outputs));
        let lora = (shape.rank > 0).then(|| {
            let a = self.matrix(&format!("{name}.lora_A.weight"), [inputs, shape.rank]);
            let b = self.matrix(&format!("{name}.lora_B.weight"), [shape.rank, outputs]);
            let magnitude = shape.lengths.then(|| {
                let values = self.vector(&format!("{name}.lora_magnitude_vector"), outputs);
                Magnitude::new(values, &weight, [&a, &b], 0.7)
            });
            Lora { name: name.to_owned(), a, b, scale: 0.7, magnitude }
        });
        Linear { name: name.to_owned(), weight, bias, lora }
    }

    fn up(&mut self, shape: &Shape) -> Projection<Flex> {
        let (d, m) = (shape.hidden, shape.mlp_width);
        match (shape.gated, shape.joined) {
            (false, _) => Projection::of_whole(vec![self.linear("up", [d, m], shape)]),
            (true, false) => Projection::of_whole(["gate", "up"].map(|name| self.linear(name, [d, m], shape)).to_vec()),
            (true, true) => {
                let maps = vec![self.linear("up", [d, 2 * m], shape)];
                Projection { maps, pieces: vec![Pieces::Columns(vec![m, m])] }
            }
        }
    }

    fn norm(&mut self, name: &str, features: usize, shape: &Shape) -> Norm<Flex> {
        Norm {
            gain_name: format!("{name}.weight"),
            gain: self.vector(&format!("{name}.weight"), features),
            bias: shape.bias.then(|| self.vector(&format!("{name}.bias"), features)),
            kind: NormKind { centred: shape.centred, eps: 1e-5 },
            gain_plus_one: shape.plus_one,
        }
    }

    pub fn mlp(&mut self, shape: &Shape) -> Mlp<Flex> {
        let (up, down) = (self.up(shape), self.linear("down", [shape.mlp_width, shape.hidden], shape));
        Mlp { up, down, activation: Activation::Silu }
    }

    pub fn attention(&mut self, shape: &Shape) -> Attention<Flex> {
        let (h, kv_heads) = (shape.head_dim(), shape.kv_heads);
        let (d, qw, kw) = (shape.hidden, kv_heads * shape.repeat * h, kv_heads * h);
        let (maps, pieces) = match shape.qkv {
            Qkv::Separate => {
                let maps = [("q", qw), ("k", kw), ("v", kw)].map(|(name, width)| self.linear(name, [d, width], shape));
                (maps.to_vec(), vec![Pieces::Whole; 3])
            }
            Qkv::Joined => (vec![self.linear("qkv", [d, qw + 2 * kw], shape)], vec![Pieces::Columns(vec![qw, kw, kw])]),
            Qkv::ByHead => {
                let pieces = vec![Pieces::ByHead(vec![h; 3])];
                (vec![self.linear("qkv", [d, qw + 2 * kw], shape)], pieces)
            }
        };
        let [of_queries, of_keys] = if shape.query_key == 1 { [h, h] } else { [qw, kw] };
        let mut norm =
            |name: &str, width: usize| (shape.query_key > 0).then(|| Box::new(self.norm(name, width, shape)));
        let (query_norm, key_norm) = (norm("qn", of_queries), norm("kn", of_keys));
        let o = self.linear("o", [qw, d], shape);
        let heads = kv_heads * shape.repeat;
        let spec = AttentionSpec { heads, kv_heads, head_dim: h, scale: 0.3, cap: None, window: None };
        Attention {
            source: Source::Input(Projection { maps, pieces }),
            query_norm,
            key_norm,
            gated: false,
            sinks: None,
            value_norm: None,
            keys_are_values: false,
            borrows: false,
            bound: None,
            o,
            spec,
            rope: shape.rotary.then_some([0, 0]),
            rotated: Pairs::Halves,
        }
    }

    pub fn block(&mut self, shape: &Shape) -> Block<Flex> {
        let d = shape.hidden;
        let norm = |parameters: &mut Self, there: bool, name: &str| there.then(|| parameters.norm(name, d, shape));
        let (norm_before, norm_after) = (norm(self, shape.before, "ln1"), norm(self, shape.after, "ln3"));
        let layer = Mixer::Attention(self.attention(shape));
        let mixer = Sublayer { norm: norm_before, layer, norm_after, scale: shape.scale };
        let (norm_before, norm_after) = (norm(self, shape.before, "ln2"), norm(self, shape.after, "ln4"));
        let layer = FeedForward::Mlp(self.mlp(shape));
        let mlp = Sublayer { norm: norm_before, layer, norm_after, scale: shape.scale };
        Block { mixer, mlp, per_layer: None, parallel: shape.parallel, scale: 1.0 }
    }
}
