//! A block's outputs, input cotangents and every parameter's gradient against burn's autodiff of the same block written
//! as tensor operations over whole sequences, at random shapes.
//!
//! f64; relative to the largest value 1e-10: some ten sums of up to 10² terms lie between an input and a gradient,
//! each off by 1e-14 at most, and norms over few features divide by numbers that can be small.
use burn_autodiff::Autodiff;
use burn_tensor::backend::AutodiffBackend;
use burn_tensor::{Tensor, activation};
use proptest::prelude::*;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};
use std::collections::{BTreeMap, HashMap};
use tanglescope_kernels::{
    Activation, DType, Flex, FlexDevice, FloatTensor, Heads, Kernels, NormKind, RowSet, Segment, Span, TensorData,
};
use tanglescope_model::layers::{BackwardRows, Block, Linear, Lora, Norm, Pieces, Projection};
use tanglescope_model::{Embedding, Factor, HeadRows, Sink};

type Auto = Autodiff<Flex>;
type Gradients = <Auto as AutodiffBackend>::Gradients;

/// Shape of a random block and of its rows.
#[derive(Clone, Debug)]
struct Shape {
    hidden: usize,
    mlp_width: usize,
    kv_heads: usize,
    repeat: usize,
    half: usize,
    gated: bool,
    /// Gate and up from one matrix.
    joined: bool,
    qkv: Qkv,
    bias: bool,
    centred: bool,
    rotary: bool,
    /// Values of a head that are not turned.
    left: usize,
    /// Norms before the layers, after them, and of queries and keys: none, of each head, of all.
    before: bool,
    after: bool,
    query_key: usize,
    plus_one: bool,
    parallel: bool,
    rank: usize,
    trunk: usize,
    suffixes: Vec<usize>,
    late: bool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Qkv {
    Separate,
    Joined,
    ByHead,
}

impl Shape {
    fn head_dim(&self) -> usize {
        2 * self.half + self.left
    }
}

fn shapes() -> impl Strategy<Value = Shape> {
    let sizes = (2usize..20, 1usize..24, 1usize..3, 1usize..3, 1usize..5);
    let qkv = prop_oneof![Just(Qkv::Separate), Just(Qkv::Joined), Just(Qkv::ByHead)];
    let kinds = (any::<[bool; 5]>(), any::<[bool; 4]>(), 0usize..3, qkv, 0usize..4, 0usize..3);
    let rows = (1usize..8, proptest::collection::vec(0usize..7, 1..4), any::<bool>());
    (sizes, kinds, rows).prop_map(|(sizes, kinds, rows)| {
        let (hidden, mlp_width, kv_heads, repeat, half) = sizes;
        let ([gated, joined, bias, centred, rotary], [before, after, plus_one, parallel], query_key, qkv, rank, left) =
            kinds;
        let (trunk, suffixes, late) = rows;
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
            rank,
            trunk,
            suffixes,
            late,
        }
    })
}

/// Named random parameters, `[rows, columns]` each (one row for vectors).
struct Parameters {
    random: ChaCha8Rng,
    values: BTreeMap<String, (Vec<f64>, [usize; 2])>,
}

impl Parameters {
    fn noise(&mut self, n: usize) -> Vec<f64> {
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
        Linear {
            name: name.to_owned(),
            weight: self.matrix(&format!("{name}.weight"), [inputs, outputs]),
            bias: shape.bias.then(|| self.vector(&format!("{name}.bias"), outputs)),
            lora: (shape.rank > 0).then(|| Lora {
                name: name.to_owned(),
                a: self.matrix(&format!("{name}.lora_A.weight"), [inputs, shape.rank]),
                b: self.matrix(&format!("{name}.lora_B.weight"), [shape.rank, outputs]),
                scale: 0.7,
            }),
        }
    }

    fn up(&mut self, shape: &Shape) -> Projection<Flex> {
        let (d, m) = (shape.hidden, shape.mlp_width);
        match (shape.gated, shape.joined) {
            (false, _) => Projection { maps: vec![self.linear("up", [d, m], shape)], pieces: Pieces::Separate },
            (true, false) => {
                let maps = ["gate", "up"].map(|name| self.linear(name, [d, m], shape)).to_vec();
                Projection { maps, pieces: Pieces::Separate }
            }
            (true, true) => {
                let maps = vec![self.linear("up", [d, 2 * m], shape)];
                Projection { maps, pieces: Pieces::Columns(vec![m, m]) }
            }
        }
    }

    fn norm(&mut self, name: &str, features: usize, shape: &Shape) -> Norm<Flex> {
        Norm {
            name: name.to_owned(),
            gain: self.vector(&format!("{name}.weight"), features),
            bias: shape.bias.then(|| self.vector(&format!("{name}.bias"), features)),
            kind: NormKind { centred: shape.centred, eps: 1e-5 },
            gain_plus_one: shape.plus_one,
        }
    }
}

fn flex(values: &[f64], shape: Vec<usize>) -> FloatTensor<Flex> {
    Flex::upload(TensorData::new(values.to_vec(), shape), &FlexDevice)
}

fn leaf<const D: usize>(values: &[f64], shape: [usize; D]) -> Tensor<Auto, D> {
    Tensor::from_data(TensorData::new(values.to_vec(), shape), (&FlexDevice, DType::F64)).require_grad()
}

fn host<const D: usize>(x: Tensor<Flex, D>) -> Vec<f64> {
    x.into_data().convert::<f64>().into_vec().unwrap()
}

/// The block as tensor operations over one whole sequence `x[n, hidden]`.
struct Written<'a> {
    shape: &'a Shape,
    leaves: HashMap<String, Tensor<Auto, 2>>,
}

impl Written<'_> {
    fn norm(&self, name: &str, x: &Tensor<Auto, 2>) -> Tensor<Auto, 2> {
        let x = if self.shape.centred { x.clone() - x.clone().mean_dim(1) } else { x.clone() };
        let size = (x.clone() * x.clone()).mean_dim(1).add_scalar(1e-5).sqrt();
        let gain = self.leaves[&format!("{name}.weight")].clone();
        let y = x / size * if self.shape.plus_one { gain.add_scalar(1.0) } else { gain };
        self.leaves.get(&format!("{name}.bias")).map_or(y.clone(), |bias| y + bias.clone())
    }

    fn linear(&self, name: &str, x: &Tensor<Auto, 2>) -> Tensor<Auto, 2> {
        let of = |part: &str| self.leaves.get(&format!("{name}.{part}")).cloned();
        let mut y = x.clone().matmul(of("weight").unwrap());
        if let Some(bias) = of("bias") {
            y = y + bias;
        }
        match (of("lora_A.weight"), of("lora_B.weight")) {
            (Some(a), Some(b)) => y + x.clone().matmul(a).matmul(b) * 0.7,
            _ => y,
        }
    }

    fn attention(
        &self,
        q: &Tensor<Auto, 2>,
        k: &Tensor<Auto, 2>,
        v: &Tensor<Auto, 2>,
        angles: &[f64],
    ) -> Tensor<Auto, 2> {
        let (n, h, half) = (q.dims()[0], self.shape.head_dim(), self.shape.half);
        let head = |x: &Tensor<Auto, 2>, i: usize| x.clone().slice([0..n, i * h..(i + 1) * h]);
        let turn = |x: Tensor<Auto, 2>| {
            if !self.shape.rotary {
                return x;
            }
            let of = |f: fn(f64) -> f64| leaf(&angles.iter().map(|a| f(*a)).collect::<Vec<_>>(), [n, half]);
            let (cos, sin) = (of(f64::cos), of(f64::sin));
            let (a, b) = (x.clone().slice([0..n, 0..half]), x.clone().slice([0..n, half..2 * half]));
            let mut parts = vec![a.clone() * cos.clone() - b.clone() * sin.clone(), b * cos + a * sin];
            if 2 * half < h {
                parts.push(x.slice([0..n, 2 * half..h]));
            }
            Tensor::cat(parts, 1)
        };
        let mask: Vec<f64> = (0..n * n).map(|at| if at % n > at / n { -1e9 } else { 0.0 }).collect();
        let heads = (0..self.shape.kv_heads * self.shape.repeat).map(|i| {
            let shared = i / self.shape.repeat;
            let scores = turn(head(q, i)).matmul(turn(head(k, shared)).transpose()) * 0.3 + leaf(&mask, [n, n]);
            activation::softmax(scores, 1).matmul(head(v, shared))
        });
        Tensor::cat(heads.collect(), 1)
    }

    /// A norm of each stretch of a row as long as its gain.
    fn query_key_norm(&self, name: &str, x: Tensor<Auto, 2>) -> Tensor<Auto, 2> {
        let [n, width] = x.dims();
        let part = match self.shape.query_key {
            0 => return x,
            1 => self.shape.head_dim(),
            _ => width,
        };
        let parts = (0..width).step_by(part).map(|at| self.norm(name, &x.clone().slice([0..n, at..at + part])));
        Tensor::cat(parts.collect(), 1)
    }

    fn before(&self, name: &str, x: &Tensor<Auto, 2>) -> Tensor<Auto, 2> {
        if self.shape.before { self.norm(name, x) } else { x.clone() }
    }

    fn after(&self, name: &str, x: Tensor<Auto, 2>) -> Tensor<Auto, 2> {
        if self.shape.after { self.norm(name, &x) } else { x }
    }

    fn block(&self, x: &Tensor<Auto, 2>, angles: &[f64]) -> Tensor<Auto, 2> {
        let normal = self.before("ln1", x);
        let h = self.shape.head_dim();
        let (qw, kw) = (self.shape.kv_heads * self.shape.repeat * h, self.shape.kv_heads * h);
        let n = x.dims()[0];
        let columns = |x: &Tensor<Auto, 2>, columns| x.clone().slice([0..n, columns]);
        let [q, k, v] = match self.shape.qkv {
            Qkv::Separate => ["q", "k", "v"].map(|name| self.linear(name, &normal)),
            Qkv::Joined => {
                let all = self.linear("qkv", &normal);
                [0..qw, qw..qw + kw, qw + kw..qw + 2 * kw].map(|range| columns(&all, range))
            }
            Qkv::ByHead => {
                let all = self.linear("qkv", &normal);
                let of_head =
                    |head: usize, piece: usize| columns(&all, (3 * head + piece) * h..(3 * head + piece + 1) * h);
                [0, 1, 2].map(|piece| Tensor::cat((0..self.shape.kv_heads).map(|i| of_head(i, piece)).collect(), 1))
            }
        };
        let (q, k) = (self.query_key_norm("qn", q), self.query_key_norm("kn", k));
        let middle = x.clone() + self.after("ln3", self.linear("o", &self.attention(&q, &k, &v, angles)));
        let normal = self.before("ln2", if self.shape.parallel { x } else { &middle });
        let inner = match (self.shape.gated, self.shape.joined) {
            (false, _) => activation::silu(self.linear("up", &normal)),
            (true, false) => activation::silu(self.linear("gate", &normal)) * self.linear("up", &normal),
            (true, true) => {
                let (both, width) = (self.linear("up", &normal), self.shape.mlp_width);
                activation::silu(columns(&both, 0..width)) * columns(&both, width..2 * width)
            }
        };
        middle + self.after("ln4", self.linear("down", &inner))
    }
}

/// Keeps every parameter's gradient, one a cotangent.
#[derive(Default)]
struct Recorder(HashMap<String, Vec<Vec<f64>>>);

impl Sink<Flex> for Recorder {
    fn wants(&self, _: &str) -> bool {
        true
    }

    fn head_only(&self) -> bool {
        false
    }

    fn linear(&mut self, x: &FloatTensor<Flex>, factors: &[Factor<'_, Flex>], rows: &RowSet) {
        let inputs = Flex::gather(x, &rows.index, None);
        for factor in factors {
            let of = |k| Flex::download(&Flex::weight_gradient(&inputs, factor.delta, rows.of(k)));
            self.0.insert(factor.name.clone(), (0..rows.cotangents()).map(of).collect());
        }
    }

    fn vector(&mut self, name: &str, terms: &FloatTensor<Flex>, rows: &RowSet) {
        let sums = Flex::download(&Flex::segment_sums(terms, &rows.offsets));
        self.0.insert(name.to_owned(), sums.chunks(sums.len() / rows.cotangents()).map(<[f64]>::to_vec).collect());
    }

    fn wants_head_gram(&self) -> bool {
        false
    }

    fn head(&mut self, _: &str, _: &HeadRows<'_, Flex>, _: Option<Vec<Vec<f64>>>) {
        unreachable!("a block has no head")
    }

    fn embedding(&mut self, _: &Embedding<Flex>, _: &FloatTensor<Flex>, _: &[u32], _: &RowSet) {
        unreachable!("a block has no embedding")
    }
}

#[track_caller]
fn close(what: &str, got: &[f64], want: &[f64]) {
    assert_eq!(got.len(), want.len(), "{what}");
    let size = want.iter().fold(1e-2f64, |a, b| a.max(b.abs()));
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        assert!((got - want).abs() <= 1e-10 * size, "{what}, value {i}: {got} instead of {want}");
    }
}

fn gradient<const D: usize>(of: &Tensor<Auto, D>, gradients: &Gradients) -> Vec<f64> {
    of.grad(gradients).map(host).unwrap()
}

fn check(shape: &Shape, seed: u64) {
    let mut parameters = Parameters { random: ChaCha8Rng::seed_from_u64(seed), values: BTreeMap::new() };
    let h = shape.head_dim();
    let (d, qw, kw) = (shape.hidden, shape.kv_heads * shape.repeat * h, shape.kv_heads * h);
    let (maps, pieces) = match shape.qkv {
        Qkv::Separate => {
            let maps =
                [("q", qw), ("k", kw), ("v", kw)].map(|(name, width)| parameters.linear(name, [d, width], shape));
            (maps.to_vec(), Pieces::Separate)
        }
        Qkv::Joined => (vec![parameters.linear("qkv", [d, qw + 2 * kw], shape)], Pieces::Columns(vec![qw, kw, kw])),
        Qkv::ByHead => {
            let pieces = Pieces::ByHead { pieces: 3, head_dim: h };
            (vec![parameters.linear("qkv", [d, qw + 2 * kw], shape)], pieces)
        }
    };
    let qkv = Projection { maps, pieces };
    let query_key_norms = (shape.query_key > 0).then(|| {
        let widths = if shape.query_key == 1 { [h, h] } else { [qw, kw] };
        Box::new([parameters.norm("qn", widths[0], shape), parameters.norm("kn", widths[1], shape)])
    });
    let (m, up) = (shape.mlp_width, parameters.up(shape));
    let kv_heads = shape.kv_heads;
    let block = Block {
        attention_norm: shape.before.then(|| parameters.norm("ln1", d, shape)),
        qkv,
        query_key_norms,
        o: parameters.linear("o", [qw, d], shape),
        after_attention: shape.after.then(|| parameters.norm("ln3", d, shape)),
        heads: Heads { heads: kv_heads * shape.repeat, kv_heads, head_dim: h, scale: 0.3, cap: None, window: None },
        rope: shape.rotary.then_some(0),
        mlp_norm: shape.before.then(|| parameters.norm("ln2", d, shape)),
        up,
        down: parameters.linear("down", [m, d], shape),
        after_mlp: shape.after.then(|| parameters.norm("ln4", d, shape)),
        activation: Activation::Silu,
        parallel: shape.parallel,
    };

    let n = shape.trunk + shape.suffixes.iter().sum::<usize>();
    let (x, angles) = (parameters.noise(n * d), parameters.noise(n * shape.half));
    let mut spans = vec![Span { prefix: 0..0, own: 0..shape.trunk }];
    let (mut full, mut active, mut segments) = (RowSet::default(), RowSet::default(), Vec::new());
    full.offsets.push(0);
    active.offsets.push(0);
    let mut first = shape.trunk;
    for suffix in &shape.suffixes {
        let own = first..first + suffix;
        first += suffix;
        if !own.is_empty() {
            spans.push(Span { prefix: 0..shape.trunk, own: own.clone() });
        }
        let from = if shape.late { parameters.random.random_range(0..shape.trunk + suffix) } else { 0 };
        let rows: Vec<u32> = (0..shape.trunk).chain(own.clone()).map(|row| u32::try_from(row).unwrap()).collect();
        full.index.extend(&rows);
        full.offsets.push(full.index.len());
        active.index.extend(&rows[from..]);
        active.offsets.push(active.index.len());
        segments.push(Segment { prefix: 0..shape.trunk, own, active_from: from });
    }
    let cotangents = segments.len();
    full.blocks.push(0..cotangents);
    active.blocks.push(0..cotangents);
    let delta = parameters.noise(active.rows() * d);

    let of = |f: fn(f64) -> f64| flex(&angles.iter().map(|a| f(*a)).collect::<Vec<_>>(), vec![n, shape.half]);
    let turned: Vec<_> = shape.rotary.then(|| (of(f64::cos), of(f64::sin))).into_iter().collect();
    let (y, trace) = block.forward(flex(&x, vec![n, d]), &spans, &turned, true);
    let y = Flex::download(&y);
    let rows = BackwardRows { full: &full, segments: &segments, active: Some(&active) };
    let mut recorder = Recorder::default();
    let delta_rows = flex(&delta, vec![active.rows(), d]);
    let dx = block.vjp(trace.unwrap(), delta_rows, rows, &turned, true, &mut recorder).unwrap();
    let dx = Flex::download(&dx);

    for k in 0..cotangents {
        let index = || full.of(k).map(|r| full.index[r] as usize);
        let pick = |values: &[f64], width: usize| -> Vec<f64> {
            index().flat_map(|row| values[row * width..][..width].to_vec()).collect()
        };
        let leaves = parameters.values.iter().map(|(name, (values, shape))| (name.clone(), leaf(values, *shape)));
        let written = Written { shape, leaves: leaves.collect() };
        let length = full.of(k).len();
        let input = leaf(&pick(&x, d), [length, d]);
        let output = written.block(&input, &pick(&angles, shape.half));
        close("output", &pick(&y, d), &host(output.clone().inner()));
        let mut whole = vec![0.0; segments[k].active_from * d];
        whole.extend(&delta[active.of(k).start * d..active.of(k).end * d]);
        let gradients = (output * leaf(&whole, [length, d])).sum().backward();
        close("input", &dx[full.of(k).start * d..full.of(k).end * d], &gradient(&input, &gradients));
        assert_eq!(recorder.0.len(), written.leaves.len());
        for (name, of) in &written.leaves {
            close(name, &recorder.0[name][k], &gradient(of, &gradients));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn blocks_agree_with_autodiff(shape in shapes(), seed: u64) {
        check(&shape, seed);
    }
}
