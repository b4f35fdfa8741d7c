//! The outputs, input cotangents and every parameter's gradient of each layer, and of a block, against burn's autodiff of the
//! same written as tensor operations over whole sequences, at random shapes.
//!
//! f64; relative to the largest value 1e-10: some ten sums of up to 10² terms lie between an input and a gradient,
//! each off by 1e-14 at most, and norms over few features divide by numbers that can be small.
mod random;
mod written;

use burn_autodiff::Autodiff;
use burn_tensor::Tensor;
use burn_tensor::backend::AutodiffBackend;
use proptest::prelude::*;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use random::{Parameters, Shape, shapes};
use std::collections::{BTreeMap, HashMap};
use tanglescope_kernels::{
    DType, Flex, FlexDevice, FloatTensor, Memory, Product, RowSet, Rows, Segment, Span, TensorData,
};
use tanglescope_model::layers::{
    Attention, Backward, BackwardRows, Beside, Block, BlockTrace, ColumnNorms, Forward, Layer, Mlp,
};
use tanglescope_model::{
    BlockNeeds, Embedding, Factor, HeadRows, InScope, LayerNeeds, Location, Parameter, ParameterKind, Scope, Sink,
    TableRows,
};
use written::Written;

type Auto = Autodiff<Flex>;
type Gradients = <Auto as AutodiffBackend>::Gradients;

fn flex(values: &[f64], shape: Vec<usize>) -> FloatTensor<Flex> {
    Flex::upload(TensorData::new(values.to_vec(), shape), &FlexDevice)
}

fn leaf<const D: usize>(values: &[f64], shape: [usize; D]) -> Tensor<Auto, D> {
    Tensor::from_data(TensorData::new(values.to_vec(), shape), (&FlexDevice, DType::F64)).require_grad()
}

fn host<const D: usize>(x: Tensor<Flex, D>) -> Vec<f64> {
    x.into_data().convert::<f64>().into_vec().unwrap()
}

/// Keeps every parameter's gradient, one a cotangent.
#[derive(Default)]
struct Recorder(HashMap<String, Vec<Vec<f64>>>);

impl Sink<Flex> for Recorder {
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
        unreachable!("a layer has no head")
    }

    fn embedding(&mut self, _: &Embedding<Flex>, _: &TableRows<'_, Flex>, _: &RowSet) {
        unreachable!("a layer has no embedding")
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

/// A layer under test, and how it is written for autodiff.
trait Tested {
    type Trace;

    fn forward(&self, x: &FloatTensor<Flex>, rows: &Forward<'_, Flex>) -> (FloatTensor<Flex>, Self::Trace);

    fn vjp(
        &self,
        trace: Self::Trace,
        x: &FloatTensor<Flex>,
        delta: FloatTensor<Flex>,
        pass: &mut Backward<'_, Flex>,
    ) -> FloatTensor<Flex>;

    fn written(&self, written: &Written<'_>, x: &Tensor<Auto, 2>, angles: &[f64]) -> Tensor<Auto, 2>;
}

/// Every cotangent is wanted.
const ALL: LayerNeeds = LayerNeeds { output: true, hidden: true, latent: true, input: true, stream: true };

macro_rules! layer_alone {
    ($layer:ident, $written:expr) => {
        impl Tested for $layer<Flex> {
            type Trace = <Self as Layer<Flex>>::Trace;

            fn forward(&self, x: &FloatTensor<Flex>, rows: &Forward<'_, Flex>) -> (FloatTensor<Flex>, Self::Trace) {
                Layer::forward(self, x, None, rows)
            }

            fn vjp(
                &self,
                trace: Self::Trace,
                x: &FloatTensor<Flex>,
                delta: FloatTensor<Flex>,
                pass: &mut Backward<'_, Flex>,
            ) -> FloatTensor<Flex> {
                Layer::vjp(self, &trace, &|| x.clone(), &delta, None, ALL, pass).unwrap()
            }

            fn written(&self, written: &Written<'_>, x: &Tensor<Auto, 2>, angles: &[f64]) -> Tensor<Auto, 2> {
                $written(written, x, angles)
            }
        }
    };
}

layer_alone!(Mlp, |written: &Written<'_>, x, _| written.mlp(x));
layer_alone!(Attention, Written::attention);

impl Tested for Block<Flex> {
    type Trace = BlockTrace<Flex>;

    fn forward(&self, x: &FloatTensor<Flex>, rows: &Forward<'_, Flex>) -> (FloatTensor<Flex>, Self::Trace) {
        Block::forward(self, x, rows)
    }

    fn vjp(
        &self,
        trace: Self::Trace,
        _: &FloatTensor<Flex>,
        delta: FloatTensor<Flex>,
        pass: &mut Backward<'_, Flex>,
    ) -> FloatTensor<Flex> {
        Block::vjp(self, trace, delta, BlockNeeds { mixer: ALL, mlp: ALL, per_layer: LayerNeeds::default() }, pass)
            .unwrap()
    }

    fn written(&self, written: &Written<'_>, x: &Tensor<Auto, 2>, angles: &[f64]) -> Tensor<Auto, 2> {
        written.block(x, angles)
    }
}

/// A scope of all parameters.
fn everything(parameters: &Parameters) -> InScope {
    let parameter = |name: &String| Parameter {
        name: name.clone(),
        layer: Some(0),
        module: name.clone(),
        location: Location::Block,
        kind: ParameterKind::Base,
    };
    InScope::select(&Scope::Full, parameters.values.keys().map(parameter).collect(), "").unwrap()
}

fn check<L: Tested>(shape: &Shape, seed: u64, layer: impl Fn(&mut Parameters, &Shape) -> L) {
    let mut parameters = Parameters { random: ChaCha8Rng::seed_from_u64(seed), values: BTreeMap::new() };
    let layer = layer(&mut parameters, shape);
    let d = shape.hidden;

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
    full.sets.push(0..cotangents);
    active.sets.push(0..cotangents);
    let delta = parameters.noise(active.rows() * d);

    let of = |f: fn(f64) -> f64| flex(&angles.iter().map(|a| f(*a)).collect::<Vec<_>>(), vec![n, shape.half]);
    let angles_of: Vec<_> = shape.rotary.then(|| (of(f64::cos), of(f64::sin))).into_iter().collect();
    let input = flex(&x, vec![n, d]);
    let (y, trace) = layer.forward(&input, &Forward { spans: &spans, angles: &angles_of, lent: None, by_token: None });
    let y = Flex::download(&y);
    let rows = BackwardRows { full: &full, segments: &segments, active: Some(&active) };
    let mut recorder = Recorder::default();
    let delta_rows = flex(&delta, vec![active.rows(), d]);
    let scope = everything(&parameters);
    let (beside, column_norms) = (Beside::default(), ColumnNorms::Differentiated);
    let mut pass = Backward { rows, angles: &angles_of, scope: &scope, sink: &mut recorder, beside, column_norms };
    let dx = layer.vjp(trace, &input, delta_rows, &mut pass);
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
        let output = layer.written(&written, &input, &pick(&angles, shape.half));
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
    fn feed_forward_layers_agree_with_autodiff(mut shape in shapes(), seed: u64) {
        // it acts on each row by itself, and returns the rows that it is given
        shape.late = false;
        check(&shape, seed, Parameters::mlp);
    }

    #[test]
    fn attention_agrees_with_autodiff(shape in shapes(), seed: u64) {
        check(&shape, seed, Parameters::attention);
    }

    #[test]
    fn blocks_agree_with_autodiff(shape in shapes(), seed: u64) {
        check(&shape, seed, Parameters::block);
    }
}
