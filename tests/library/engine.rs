//! What must hold of the engine for any model and any responses, on random checkpoints in f64.
//!
//! Tolerance 1e-10 of √(Gram[i, i]·Gram[j, j]): two ways through the same sums, of some 10³ terms each, at 1.1e-16 a
//! rounding, with a factor for the norms' divisions.
use crate::support;
use crate::support::{Tensors, VOCABULARY, gpt2, llama, small_models, write_model};
use proptest::prelude::*;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use std::collections::HashMap;
use std::path::Path;
use tanglescope_gram::{
    Batch, Cotangent, Detail, GradientSink, Group, GroupResult, Request, count, grams, grams_across, run, token_logps,
};
use tanglescope_kernels::cost::Rates;
use tanglescope_kernels::{Arithmetic, DType, Flex, FlexDevice, FloatTensor, Memory, TensorData, TensorMetadata};
use tanglescope_model::{AdapterSource, Decoder, FreshLora, InScope, Outline, Places, Scope};

const TOLERANCE: f64 = 1e-10;

fn load(model: &(serde_json::Value, Tensors), adapter: &AdapterSource) -> Decoder<Flex> {
    let folder = tempfile::tempdir().unwrap();
    write_model(folder.path(), model);
    Decoder::load(folder.path(), adapter, DType::F64, &FlexDevice, Places::DEVICE).unwrap()
}

/// One model of each kind: tied and untied rotary, learned positions; the scope with every parameter.
fn models() -> Vec<(Decoder<Flex>, InScope)> {
    let models = [llama(1, true), llama(2, false), gpt2(3)];
    models
        .iter()
        .map(|model| load(model, &AdapterSource::None))
        .map(|model| {
            let scope = full(&model);
            (model, scope)
        })
        .collect()
}

fn full(model: &Decoder<Flex>) -> InScope {
    model.in_scope(&"full".parse().unwrap()).unwrap()
}

fn fresh() -> AdapterSource {
    AdapterSource::Fresh(FreshLora { r: 3, lora_alpha: 6.0, targets: Vec::new(), seed: 5 })
}

fn token() -> impl Strategy<Value = u32> {
    // few, so that ids repeat within and between responses
    (0..u32::try_from(VOCABULARY).unwrap()).prop_map(|t| if t < 30 { t % 6 } else { t })
}

fn group(branches: usize) -> impl Strategy<Value = Group> {
    let response = proptest::collection::vec(token(), 1..7);
    (proptest::collection::vec(token(), 1..6), proptest::collection::vec(response, branches..=branches))
        .prop_map(|(prompt, responses)| Group::new(prompt, responses))
}

/// One group alone.
fn alone(model: &Decoder<Flex>, scope: &InScope, group: &Group) -> GroupResult {
    grams(model, scope, &[Request::log_probabilities(group)]).remove(0)
}

fn sum(grams: &[Vec<f64>]) -> Vec<f64> {
    let mut total = vec![0.0; grams[0].len()];
    grams.iter().for_each(|gram| total.iter_mut().zip(gram).for_each(|(sum, x)| *sum += x));
    total
}

/// Compares Grams of the same K cotangents against the lengths of their gradients.
#[track_caller]
fn same(got: &[f64], want: &[f64], lengths_of: &[f64]) {
    let k = want.len().isqrt();
    assert_eq!(got.len(), want.len());
    for at in 0..k * k {
        let size = (lengths_of[at / k * (k + 1)] * lengths_of[at % k * (k + 1)]).sqrt();
        assert!((got[at] - want[at]).abs() <= TOLERANCE * size.max(1e-12), "{at}: {} instead of {}", got[at], want[at]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn grams_are_symmetric_and_positive_semidefinite(group in group(4), along in proptest::collection::vec(-1.0f64..1.0, 4)) {
        for (model, scope) in models() {
            let result = alone(&model, &scope, &group);
            for gram in result.grams.iter().chain([&result.total()]) {
                let trace: f64 = (0..4).map(|i| gram[5 * i]).sum();
                for (i, j) in (0..16).map(|at| (at / 4, at % 4)) {
                    prop_assert!((gram[4 * i + j] - gram[4 * j + i]).abs() <= TOLERANCE * trace);
                }
                // the squared length of Σ along_k g_k
                let length: f64 = (0..16).map(|at| along[at / 4] * along[at % 4] * gram[at]).sum();
                prop_assert!(length >= -TOLERANCE * trace, "{length}");
            }
        }
    }

    #[test]
    fn swapping_branches_swaps_ww_and_ll(group in group(2)) {
        let swapped = Group { responses: group.responses.iter().rev().cloned().collect(), ..group.clone() };
        for (model, scope) in models() {
            let (a, b) = (alone(&model, &scope, &group), alone(&model, &scope, &swapped));
            let total = a.total();
            for (a, b) in a.grams.iter().zip(&b.grams) {
                same(&[b[3], b[2], b[1], b[0]], a, &total);
            }
            prop_assert!((a.logp(0) - b.logp(1)).abs() <= TOLERANCE * a.logp(0).abs().max(1.0));
        }
    }

    #[test]
    fn a_batch_is_its_groups_one_at_a_time(groups in proptest::collection::vec(group(2), 1..5)) {
        for (model, scope) in models() {
            for (group, together) in groups.iter().zip(grams(&model, &scope, &Request::all(&groups))) {
                let alone = alone(&model, &scope, group);
                let total = alone.total();
                for (a, b) in together.grams.iter().zip(&alone.grams) {
                    same(a, b, &total);
                }
                prop_assert_eq!(together.trunk_tokens, alone.trunk_tokens);
            }
        }
    }

    /// Every branch as a group of its own has its own copy of the prompt.
    #[test]
    fn a_shared_trunk_is_the_same_as_none(group in group(3)) {
        for (model, scope) in models() {
            let shared = alone(&model, &scope, &group);
            let total = shared.total();
            let apart: Vec<Group> =
                group.responses.iter().map(|r| Group::new(group.prompt.clone(), vec![r.clone()])).collect();
            let (across, _) = grams_across(&model, &scope, &Request::all(&apart), Detail::Parameters);
            for (a, b) in across.iter().zip(&shared.grams) {
                same(a, b, &total);
            }
            let refs: Vec<&Group> = apart.iter().collect();
            for (branch, logps) in token_logps(&model, &refs).iter().enumerate() {
                let logp: f64 = logps[0].iter().sum();
                prop_assert!((logp - shared.logp(branch)).abs() <= TOLERANCE * logp.abs().max(1.0));
            }
        }
    }

    #[test]
    fn full_is_the_sum_of_disjoint_patterns(group in group(2)) {
        let patterns = [r"attn\.", r"mlp\.", "embed_tokens|wte|wpe|lm_head", r"norm\.|ln_"];
        for (model, scope) in models() {
            let whole = alone(&model, &scope, &group).total();
            let parts: Vec<(usize, Vec<f64>)> = patterns
                .iter()
                .map(|pattern| {
                    let part = model.in_scope(&pattern.parse().unwrap()).unwrap();
                    (part.parameters.len(), alone(&model, &part, &group).total())
                })
                .collect();
            prop_assert_eq!(parts.iter().map(|(n, _)| n).sum::<usize>(), scope.parameters.len());
            let grams: Vec<Vec<f64>> = parts.into_iter().map(|(_, gram)| gram).collect();
            same(&sum(&grams), &whole, &whole);
        }
    }

    /// The Gram, in closed form or by tiles, against gradients that are stored whole.
    #[test]
    fn grams_are_the_products_of_stored_gradients(group in group(2), weights in proptest::collection::vec(-1.0f64..1.0, 7)) {
        for (model, scope) in models() {
            let mut cotangents = Cotangent::log_probabilities(&group);
            // a third, over some of one branch's tokens
            let weights: Vec<f64> = weights.iter().take(group.responses[1].len()).map(|w| w.max(0.0)).collect();
            cotangents.push(Cotangent { branch: 1, weights: [weights, vec![0.5; 7]].concat()[..group.responses[1].len()].to_vec() });
            let requests = [Request { group: &group, cotangents }];
            let result = grams(&model, &scope, &requests).remove(0);
            let mut sink = GradientSink::<Flex>::new(3);
            run(&model, &scope, &Batch::new(&requests), &mut sink);
            let total = result.total();
            for (parameter, gram) in scope.parameters.iter().zip(&result.grams) {
                let gradients: Vec<Vec<f64>> = sink.gradients[&parameter.name].iter().map(Flex::download).collect();
                let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
                let want: Vec<f64> = (0..9).map(|at| dot(&gradients[at / 3], &gradients[at % 3])).collect();
                same(gram, &want, &total);
            }
        }
    }

    /// The matrix over single tokens sums to the inner products of whole responses.
    #[test]
    fn token_matrices_sum_to_the_pair(group in group(2)) {
        for (model, scope) in models() {
            let tokens: Vec<Cotangent> = (0..2)
                .flat_map(|branch| (0..group.responses[branch].len()).map(move |t| (branch, t)))
                .map(|(branch, t)| {
                    let weight = |s| f64::from(u8::from(s == t));
                    Cotangent { branch, weights: (0..group.responses[branch].len()).map(weight).collect() }
                })
                .collect();
            let matrix = grams(&model, &scope, &[Request { group: &group, cotangents: tokens }])[0].total();
            let pair = alone(&model, &scope, &group).total();
            let (k, w) = (group.responses.iter().map(Vec::len).sum::<usize>(), group.responses[0].len());
            let block = |rows: std::ops::Range<usize>, columns: std::ops::Range<usize>| -> f64 {
                rows.map(|r| matrix[r * k + columns.start..r * k + columns.end].iter().sum::<f64>()).sum()
            };
            let sums = [block(0..w, 0..w), block(0..w, w..k), block(w..k, 0..w), block(w..k, w..k)];
            same(&sums, &pair, &pair);
        }
    }

    /// Central differences of log π along a random direction of length 60: off by the fifth derivative times 0.006⁴ / 30
    /// and by the rounding of log π over the step, 1e-14 / 1e-4; with derivatives of some tens: 1e-8.
    #[test]
    fn gradients_are_the_slopes_of_log_probabilities(group in group(2), seed: u64) {
        for source in [AdapterSource::None, fresh()] {
            for model in [llama(1, true), llama(2, false), gpt2(3)].map(|model| load(&model, &source)) {
                let name = if source == AdapterSource::None { "full" } else { "lora" };
                let scope = model.in_scope(&name.parse().unwrap()).unwrap();
                let mut sink = GradientSink::<Flex>::new(2);
                run(&model, &scope, &Batch::new(&[Request::log_probabilities(&group)]), &mut sink);
                let mut random = support::Random::new(seed);
                let mut direction: HashMap<String, FloatTensor<Flex>> = HashMap::new();
                model.clone().visit(&|_| true, &mut |name, _, tensor| {
                    if scope.contains(name) {
                        let shape: Vec<usize> = tensor.shape().to_vec();
                        let noise = random.tensor(&shape, 1.0);
                        let values: Vec<f64> = noise.values.iter().map(|x| f64::from(*x)).collect();
                        direction.insert(name.to_owned(), Flex::upload(TensorData::new(values, shape), &FlexDevice));
                    }
                });
                let step = 1e-4;
                let at = |steps: f64| token_logps(&model.moved(&scope, &direction, steps * step), &[&group]).remove(0);
                let ahead = [at(-2.0), at(-1.0), at(1.0), at(2.0)];
                for branch in 0..2 {
                    let [m2, m1, p1, p2] = ahead.each_ref().map(|logps| logps[branch].iter().sum::<f64>());
                    let slope = (8.0 * (p1 - m1) - (p2 - m2)) / (12.0 * step);
                    let (mut along, mut length) = (0.0, 0.0);
                    for (name, gradients) in &sink.gradients {
                        let (g, d) = (Flex::download(&gradients[branch]), Flex::download(&direction[name]));
                        along += g.iter().zip(&d).map(|(g, d)| g * d).sum::<f64>();
                        length += g.iter().map(|g| g * g).sum::<f64>();
                    }
                    prop_assert!((slope - along).abs() <= 1e-7 * length.sqrt().max(1.0), "{slope} {along}");
                }
            }
        }
    }
}

/// B = 0 stops every gradient of A, as in PEFT.
#[test]
fn a_fresh_adapter_has_gradients_in_b_alone() {
    let model = load(&llama(1, true), &fresh());
    let scope = model.in_scope(&"lora".parse().unwrap()).unwrap();
    let group = Group::new(vec![1, 2], vec![vec![3, 4], vec![5]]);
    let result = alone(&model, &scope, &group);
    assert_eq!(scope.parameters.len(), 2 * 4 * 2);
    for (parameter, gram) in scope.parameters.iter().zip(&result.grams) {
        let is_b = parameter.name.ends_with("lora_B.weight");
        assert_eq!(gram[0] > 0.0, is_b, "{}: {gram:?}", parameter.name);
    }
}

/// `head` is the logits part alone: what an untied copy of the embedding gets as the output matrix.
#[test]
fn scope_head_of_a_tied_model_leaves_the_embedding_part_out() {
    let (config, tensors) = llama(1, true);
    let (mut untied_config, mut untied_tensors) = (config.clone(), tensors.clone());
    untied_config["tie_word_embeddings"] = false.into();
    untied_tensors.insert("lm_head.weight".to_owned(), tensors["model.embed_tokens.weight"].clone());
    let group = Group::new(vec![1, 2], vec![vec![3, 4, 3], vec![5, 2]]);
    let of = |model: &(serde_json::Value, Tensors), scope: &str| {
        let model = load(model, &AdapterSource::None);
        alone(&model, &model.in_scope(&scope.parse().unwrap()).unwrap(), &group).total()
    };
    let tied = of(&(config.clone(), tensors.clone()), "head");
    same(&tied, &of(&(untied_config, untied_tensors), "lm_head"), &tied);
    let both = of(&(config, tensors), "embed_tokens");
    assert!((both[0] / tied[0] - 1.0).abs() > 1e-3, "the embedding part is missing: {both:?} {tied:?}");
}

/// Identical responses are legal, and their gradients are one.
#[test]
fn identical_responses_have_equal_gradients() {
    for (model, scope) in models() {
        let gram = alone(&model, &scope, &Group::new(vec![1], vec![vec![3, 4], vec![3, 4]])).total();
        same(&gram, &[gram[0]; 4], &[gram[0]; 4]);
        assert!(gram[0] > 0.0);
    }
}

/// Blocks that keep only their input run forward again; blocks that stay in the host's memory are copied for each use.
/// Neither changes a bit.
#[test]
fn less_memory_changes_no_bit() {
    let groups = vec![
        Group::new(vec![1, 2, 3], vec![vec![4, 5, 6], vec![4, 7]]),
        Group::new(vec![9], vec![vec![2], vec![3, 3, 8, 1]]),
    ];
    let written = [(llama(1, true), AdapterSource::None), (gpt2(3), fresh()), (llama(2, false), fresh())];
    let written = written.map(|(model, source)| {
        let folder = tempfile::tempdir().unwrap();
        write_model(folder.path(), &model);
        (folder, source)
    });
    let adapters = |folder: &Path| -> Vec<AdapterSource> {
        let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        entries.filter(|path| path.is_dir()).map(AdapterSource::Saved).collect()
    };
    let small = small_models().into_iter().flat_map(|folder| {
        let sources = adapters(&folder).into_iter().chain([AdapterSource::None]);
        sources.map(move |source| (folder.clone(), source)).collect::<Vec<_>>()
    });
    let all = written.iter().map(|(folder, source)| (folder.path().to_owned(), source.clone())).chain(small);
    for (folder, source) in all {
        let load = |places| Decoder::<Flex>::load(&folder, &source, DType::F64, &FlexDevice, places).unwrap();
        let run = |model: &Decoder<Flex>, scope: &InScope| -> Vec<Vec<Vec<f64>>> {
            grams(model, scope, &Request::all(&groups)).into_iter().map(|result| result.grams).collect()
        };
        let all = load(Places::DEVICE);
        // rows that stand for a table's are no parameters together with it
        let scope = all.in_scope(&".*".parse().unwrap()).or_else(|_| all.in_scope(&Scope::Trainable)).unwrap();
        let want = run(&all, &scope);
        for bytes in [0, 4_000, 20_000] {
            let mut model = load(Places::DEVICE);
            model.activation_bytes = Some(bytes);
            assert_eq!(run(&model, &scope), want, "{}: {bytes} bytes of activations", folder.display());
        }
        for (device, host) in [(0, usize::MAX), (1, 1), (0, 0), (1, 0)] {
            let places = Places { device, host };
            let model = load(places);
            assert_eq!(model.parameters(), all.parameters());
            assert_eq!(run(&model, &scope), want, "{}: {places:?}", folder.display());
            // what is changed stays changed, wherever it was
            let name = scope.parameters.last().unwrap().name.clone();
            let doubled = |mut model: Decoder<Flex>| {
                model.visit(&|wanted| wanted == name, &mut |of, _, x| {
                    if of == name {
                        *x = Flex::times_number(Flex::cast(x.clone(), DType::F64), 2.0);
                    }
                });
                run(&model, &scope)
            };
            assert_eq!(doubled(model), doubled(all.clone()), "{}: {places:?}, changed", folder.display());
        }
    }
}

/// What is counted before anything is loaded is about the same parameters.
#[test]
fn an_outline_has_the_parameters_of_the_model() {
    for (model, source) in [(llama(1, true), AdapterSource::None), (llama(2, false), fresh()), (gpt2(3), fresh())] {
        let folder = tempfile::tempdir().unwrap();
        write_model(folder.path(), &model);
        let loaded = Decoder::<Flex>::load(folder.path(), &source, DType::F64, &FlexDevice, Places::DEVICE).unwrap();
        let outline = Outline::read(folder.path(), &source).unwrap();
        assert_eq!(outline.parameters(), loaded.parameters());
    }
    for folder in small_models() {
        let everything =
            FreshLora { r: 2, lora_alpha: 4.0, targets: vec!["per_layer_model_projection".to_owned()], seed: 3 };
        let of_inputs = folder.file_name().is_some_and(|name| name == "gemma4_text-small");
        let source = if of_inputs { AdapterSource::Fresh(everything) } else { fresh() };
        let loaded = Decoder::<Flex>::load(&folder, &source, DType::F64, &FlexDevice, Places::DEVICE).unwrap();
        let outline = Outline::read(&folder, &source).unwrap();
        assert_eq!(outline.parameters(), loaded.parameters());
        assert!(loaded.in_scope(&Scope::Lora).is_ok());
    }
}

/// The counted operations of a pass grow as the work does: linearly in the number of groups, and by the cotangents' rows.
#[test]
fn counts_are_sums_over_groups() {
    let folder = tempfile::tempdir().unwrap();
    write_model(folder.path(), &llama(2, false));
    let outline = Outline::read(folder.path(), &fresh()).unwrap();
    let group = Group::new(vec![1, 2, 3], vec![vec![4, 5, 6], vec![5, 7]]);
    let request = Request::log_probabilities(&group);
    for scope in ["lora", "full", "head", "layers.1.mlp"] {
        let scope = outline.in_scope(&scope.parse().unwrap()).unwrap();
        let of = |n: usize| {
            let batch = Batch::new(&vec![request.clone(); n]);
            count(&outline, &scope, &batch, DType::F32, &Rates::CPU).total().operations
        };
        assert!((of(3) - 3.0 * of(1)).abs() <= 1e-9 * of(3));
    }
    let of = |scope: &str| {
        let scope = outline.in_scope(&scope.parse().unwrap()).unwrap();
        count(&outline, &scope, &Batch::new([&request]), DType::F32, &Rates::CPU)
    };
    // nothing runs below the lowest parameter, and the head alone needs no backward pass
    assert!(of("head").backward.operations == 0.0 && of("head").head.operations > 0.0);
    assert!(of("layers.1.mlp").backward.operations < of("lora").backward.operations);
    assert!(of("lora").reductions.operations < of("full").reductions.operations);
}

/// The same numbers are the same function, whether a file has them in 16 bits or in 32: of models, and of every kind of adapter.
#[test]
fn what_is_stored_in_16_bits_is_what_is_stored_in_32() {
    let groups = [Group::new(vec![5, 6, 40], vec![vec![7, 8, 9], vec![7, 3]])];
    let rounded = |from: &Path, to: &Path, file: &str, dtype: Dtype| {
        std::fs::create_dir_all(to).unwrap();
        for entry in std::fs::read_dir(from).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_file()) {
            std::fs::copy(&entry, to.join(entry.file_name().unwrap())).unwrap();
        }
        let bytes = std::fs::read(from.join(file)).unwrap();
        let all = SafeTensors::deserialize(&bytes).unwrap();
        let number = |value: f64| half::bf16::from_f64(value).to_f32();
        let tensor = |view: &TensorView<'_>| {
            let values = match view.dtype() {
                Dtype::F64 => view.data().as_chunks::<8>().0.iter().map(|b| number(f64::from_le_bytes(*b))).collect(),
                _ => view.data().as_chunks::<4>().0.iter().map(|b| number(f32::from_le_bytes(*b).into())).collect(),
            };
            support::Tensor { shape: view.shape().to_vec(), values }
        };
        let tensors: Tensors = all.tensors().iter().map(|(name, view)| (name.clone(), tensor(view))).collect();
        support::write_tensors(&to.join(file), &tensors, dtype);
    };
    for name in ["arcee", "stablelm", "starcoder2"] {
        let folder = small_models().into_iter().find(|folder| folder.ends_with(name)).unwrap();
        let adapters =
            std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_dir());
        for adapter in adapters.map(Some).chain([None]) {
            let run = |dtype: Dtype| {
                let to = tempfile::tempdir().unwrap();
                rounded(&folder, &to.path().join("model"), "model.safetensors", dtype);
                let source = match &adapter {
                    None => AdapterSource::None,
                    Some(adapter) => {
                        rounded(adapter, &to.path().join("adapter"), "adapter_model.safetensors", dtype);
                        AdapterSource::Saved(to.path().join("adapter"))
                    }
                };
                let model = to.path().join("model");
                let model = Decoder::<Flex>::load(&model, &source, DType::F64, &FlexDevice, Places::DEVICE).unwrap();
                let scope = if adapter.is_some() { Scope::Trainable } else { Scope::Full };
                let scope = model.in_scope(&scope).unwrap();
                grams(&model, &scope, &Request::all(&groups)).remove(0)
            };
            let (narrow, wide) = (run(Dtype::BF16), run(Dtype::F32));
            let at = format!("{name} {adapter:?}");
            for branch in 0..2 {
                assert!((narrow.logp(branch) - wide.logp(branch)).abs() <= 1e-12 * wide.logp(branch).abs(), "{at}");
            }
            for (narrow, wide) in narrow.total().iter().zip(wide.total()) {
                // products of narrow matrices are summed in other pieces
                assert!((narrow - wide).abs() <= 1e-11 * wide.abs().max(1e-3), "{at}: {narrow} and {wide}");
            }
        }
    }
}
