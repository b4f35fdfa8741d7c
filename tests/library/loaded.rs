//! A model that stays loaded, and one whose weights another library holds: what they measure is what a call that loads measures.
use crate::support::{demo, llama, small_models, write_json, write_model};
use bytes::Bytes;
use std::path::{Path, PathBuf};
use tanglescope::{
    AnalyzeOptions, DataOptions, Destination, DeviceName, HeldModel, LoadedModel, Measured, ModelOptions, PairMeasures,
    RowOptions, Scope, TokenRows, analyze,
};
use tanglescope_checkpoint::{Held, Number, Tensors};
use tanglescope_gram::{Group, Request, grams};
use tanglescope_kernels::{DType, Flex, FlexDevice};
use tanglescope_model::{AdapterSource, Decoder, FreshLora, Places};

fn pair() -> Group {
    Group::new(vec![1, 2, 3, 4, 5], vec![vec![6, 7, 8], vec![9, 10]])
}

fn total(model: &Decoder<Flex>, scope: &Scope) -> Vec<f64> {
    let (scope, group) = (model.in_scope(scope).unwrap(), pair());
    grams(model, &scope, &[Request::log_probabilities(&group)]).remove(0).total()
}

fn fresh() -> AdapterSource {
    AdapterSource::Fresh(FreshLora { r: 3, lora_alpha: 6.0, targets: Vec::new(), seed: 7 })
}

/// Factors are drawn module by module, so that the order in which they are asked for decides the numbers: of every architecture it is
/// the same when a base gets an adapter that is there already as when both are loaded together.
#[test]
fn a_fresh_adapter_on_a_loaded_base_has_the_bits_of_one_that_was_loaded_with_it() {
    let mut seen = 0;
    for folder in small_models() {
        let load =
            |source: &AdapterSource| Decoder::<Flex>::load(&folder, source, DType::F64, &FlexDevice, Places::DEVICE);
        // some models' attention has no map that a fresh adapter can change
        let Ok(want) = load(&fresh()) else { continue };
        let base = load(&AdapterSource::None).unwrap();
        let got = base.under(&fresh()).unwrap().expect("a fresh adapter replaces nothing");
        let [got_of, want_of] = [&got, &want].map(|model| total(model, &Scope::Lora));
        assert_eq!(got_of, want_of, "{}", folder.display());
        assert!(want_of.iter().any(|x| *x != 0.0), "{}", folder.display());
        // and the base is itself again
        let again = got.under(&AdapterSource::None).unwrap().unwrap();
        let full = Scope::Full;
        assert_eq!(total(&again, &full), total(&base, &full), "{}", folder.display());
        seen += 1;
    }
    assert!(seen >= 12, "{seen} models");
}

/// The tensors of a safetensors file in memory, in a number type.
fn held(folder: &Path, number: Number) -> Tensors {
    let bytes = std::fs::read(folder.join("model.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let of = |(name, tensor): (String, safetensors::tensor::TensorView<'_>)| {
        let values = tensor.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()));
        let bytes: Vec<u8> = match number {
            Number::F64 => values.flat_map(|x| f64::from(x).to_le_bytes()).collect(),
            Number::BF16 => values.flat_map(|x| half::bf16::from_f32(x).to_le_bytes()).collect(),
            _ => values.flat_map(f32::to_le_bytes).collect(),
        };
        (name, tensor.shape().to_vec(), Held { number, bytes: Bytes::from(bytes) })
    };
    Tensors::held(Path::new("in memory"), file.tensors().into_iter().map(of)).unwrap()
}

/// Weights in memory are the checkpoint's, in every number type, of all architectures whose live models have the names of their files. Those that are used
/// where they lie are multiplied as transposes, whose sums come in another order: f64, relative 1e-12 of the largest entry.
#[test]
fn weights_that_are_held_in_memory_are_those_of_the_file() {
    let mut seen = 0;
    for folder in small_models() {
        if !folder.join("model.safetensors").is_file() {
            continue;
        }
        let bytes = std::fs::read(folder.join("model.safetensors")).unwrap();
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        if file.tensors().iter().any(|(_, tensor)| tensor.dtype() != safetensors::Dtype::F32) {
            continue;
        }
        let want =
            Decoder::<Flex>::load(&folder, &AdapterSource::None, DType::F64, &FlexDevice, Places::DEVICE).unwrap();
        let want = total(&want, &Scope::Full);
        let most = want.iter().fold(0.0f64, |most, x| most.max(x.abs()));
        for number in [Number::F64, Number::F32] {
            let held = HeldModel::new("live", &folder, held(&folder, number)).unwrap();
            let got = Decoder::<Flex>::load_held(&held, &AdapterSource::None, DType::F64, &FlexDevice, Places::DEVICE)
                .unwrap();
            let got = total(&got, &Scope::Full);
            for (got, want) in got.iter().zip(&want) {
                assert!(
                    (got - want).abs() <= 1e-12 * most,
                    "{}, {number:?}: {got} instead of {want}",
                    folder.display()
                );
            }
        }
        seen += 1;
    }
    assert!(seen >= 12, "{seen} models");
}

/// bfloat16 stays so, where it lies.
#[test]
fn weights_of_16_bits_in_memory_are_those_of_a_file_of_16_bits() {
    let folder = tempfile::tempdir().unwrap();
    let model = llama(3, true);
    write_json(&folder.path().join("config.json"), &model.0);
    crate::support::write_tensors(&folder.path().join("model.safetensors"), &model.1, safetensors::Dtype::BF16);
    let want =
        Decoder::<Flex>::load(folder.path(), &AdapterSource::None, DType::F32, &FlexDevice, Places::DEVICE).unwrap();
    let want = total(&want, &Scope::Full);
    write_model(folder.path(), &model);
    let held = HeldModel::new("live", folder.path(), held(folder.path(), Number::BF16)).unwrap();
    let got = Decoder::<Flex>::load_held(&held, &AdapterSource::None, DType::F32, &FlexDevice, Places::DEVICE).unwrap();
    let got = total(&got, &Scope::Full);
    let most = want.iter().fold(0.0f64, |most, x| most.max(x.abs()));
    for (got, want) in got.iter().zip(&want) {
        // sums of f32 in another order: some hundred roundings of 6e-8
        assert!((got - want).abs() <= 1e-5 * most, "{got} instead of {want}");
    }
}

/// What is wrong with a tensor in memory is said with its name.
#[test]
fn tensors_in_memory_are_checked() {
    let bytes = |n: usize| Held { number: Number::F32, bytes: Bytes::from(vec![0; n]) };
    let named = |shape: Vec<usize>, n| Tensors::held(Path::new("in memory"), [("w".to_owned(), shape, bytes(n))]);
    let problem = named(vec![2, 3], 20).unwrap_err().to_string();
    assert!(problem.contains("tensor `w`") && problem.contains("20 bytes for shape [2, 3]"), "{problem}");
    assert!(named(vec![usize::MAX, 3], 20).is_err());
    let (config, tensors) = llama(1, true);
    let folder = tempfile::tempdir().unwrap();
    write_model(folder.path(), &(config, tensors));
    let problem = |held: Tensors| {
        let held = HeldModel::new("live", folder.path(), held).unwrap();
        let loaded = Decoder::<Flex>::load_held(&held, &AdapterSource::None, DType::F32, &FlexDevice, Places::DEVICE);
        loaded.map(drop).unwrap_err().to_string()
    };
    assert!(problem(named(vec![1], 4).unwrap()).contains("missing"));
    let mut bytes = std::fs::read(folder.path().join("model.safetensors")).unwrap();
    let end = bytes.len();
    bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(folder.path().join("model.safetensors"), bytes).unwrap();
    let said = problem(self::held(folder.path(), Number::F32));
    assert!(said.contains("NaN or infinite"), "{said}");
}

fn cpu() -> Measured {
    Measured { device: Some(DeviceName::Cpu), ..Measured::default() }
}

/// An adapter that PEFT would have saved for the demo's model: q_proj of every block, rank 2.
fn adapter(folder: &Path, seed: f32) -> PathBuf {
    let folder = folder.join(format!("adapter-{seed}"));
    std::fs::create_dir(&folder).unwrap();
    let config = serde_json::json!({
        "peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], "bias": "none",
    });
    write_json(&folder.join("adapter_config.json"), &config);
    let mut tensors = crate::support::Tensors::new();
    for layer in 0..5 {
        for (factor, shape) in [("lora_A", [2, 128]), ("lora_B", [128, 2])] {
            let values = (0..256u16).map(|i| (f32::from(i) * seed + layer as f32).sin() * 0.05).collect();
            let name = format!("base_model.model.model.layers.{layer}.self_attn.q_proj.{factor}.weight");
            tensors.insert(name, crate::support::Tensor { shape: shape.to_vec(), values });
        }
    }
    crate::support::write_tensors(&folder.join("adapter_model.safetensors"), &tensors, safetensors::Dtype::F32);
    folder
}

/// An adapter that does not fit is refused, and what was loaded stays as it was.
#[test]
fn an_adapter_that_does_not_fit_leaves_the_model_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let (good, bad) = (adapter(folder.path(), 0.37), adapter(folder.path(), 0.5));
    let factor = crate::support::Tensor { shape: vec![2, 64], values: vec![0.1; 128] };
    let name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight".to_owned();
    let tensors = crate::support::Tensors::from([(name, factor)]);
    crate::support::write_tensors(&bad.join("adapter_model.safetensors"), &tensors, safetensors::Dtype::F32);
    let of = ModelOptions { adapter: Some(good), measured: cpu(), ..ModelOptions::new(demo()) };
    let mut model = LoadedModel::load(&of, &()).unwrap();
    let gram = |model: &mut LoadedModel| model.gram(&[1, 2, 3], &[vec![4, 5], vec![6]], &()).unwrap();
    let before = gram(&mut model);
    let refused = model.load_adapter(Some(&bad), &()).unwrap_err().to_string();
    assert!(refused.contains("q_proj"), "{refused}");
    assert_eq!(gram(&mut model), before);
}

/// One loaded model, whatever it measured before, writes the bits of a call that loads it.
#[test]
fn a_loaded_model_measures_what_calls_that_load_measure() {
    let folder = tempfile::tempdir().unwrap();
    let adapters = [0.37, 1.3].map(|seed| adapter(folder.path(), seed));
    let data = DataOptions {
        rows: RowOptions { limit: Some(3), ..RowOptions::default() },
        ..DataOptions::new(demo().join("long.jsonl"))
    };
    let mut model = LoadedModel::load(&ModelOptions { measured: cpu(), ..ModelOptions::new(demo()) }, &()).unwrap();
    let rows: TokenRows = model.rows(&data, &()).unwrap();
    let steps: [(Option<usize>, Scope); 6] = [
        (None, Scope::Lora),
        (Some(0), Scope::Lora),
        (None, Scope::Full),
        (Some(1), Scope::Lora),
        (None, Scope::Lora),
        (Some(0), Scope::Full),
    ];
    for (step, (which, scope)) in steps.into_iter().enumerate() {
        let adapter = which.map(|which| adapters[which].clone());
        let measured = Measured { scope, ..cpu() };
        model.load_adapter(adapter.as_deref(), &()).unwrap();
        model.measure(&measured, &()).unwrap();
        let out = |of: &str| folder.path().join(format!("{of}-{step}"));
        let to = Destination::new(out("loaded"));
        let got = model.analyze(&rows, &PairMeasures::default(), &to, &()).unwrap().records;
        let options = ModelOptions { model: demo(), adapter, measured };
        let want = analyze(&AnalyzeOptions::new(options, data.clone(), out("calls")), &()).unwrap().records;
        for table in ["pairs.parquet", "params.parquet", "responses.parquet"] {
            let (got, want) = (got.table(table).unwrap().unwrap(), want.table(table).unwrap().unwrap());
            assert!(got.equals_missing(&want), "{table} of step {step}");
        }
        let manifest = |folder: &Path| std::fs::read_to_string(folder.join("manifest.json")).unwrap();
        assert_eq!(manifest(&got.path), manifest(&want.path));
    }
}

/// A Gram of three responses is that of the pairs among them, and what cannot be taken is said.
#[test]
fn a_gram_of_responses_is_that_of_their_pairs() {
    let mut model = LoadedModel::load(&ModelOptions { measured: cpu(), ..ModelOptions::new(demo()) }, &()).unwrap();
    let (prompt, responses) = (vec![5, 6, 7, 8], vec![vec![9, 10, 11], vec![12, 13], vec![9, 10, 14, 15]]);
    let all = model.gram(&prompt, &responses, &()).unwrap();
    let most = all.inner.iter().fold(0.0f64, |most, x| most.max(x.abs()));
    for (a, b) in [(0, 1), (1, 2), (2, 0)] {
        let two = model.gram(&prompt, &[responses[a].clone(), responses[b].clone()], &()).unwrap();
        for (got, want) in [
            (two.inner[0], all.inner[a * 3 + a]),
            (two.inner[1], all.inner[a * 3 + b]),
            (two.inner[3], all.inner[b * 3 + b]),
        ] {
            // f32, sums of another batch
            assert!((got - want).abs() <= 1e-5 * most, "{got} instead of {want}");
        }
    }
    for (prompt, responses, part) in [
        (vec![], vec![vec![1]], "one token at least"),
        (vec![1], vec![vec![1], vec![]], "one token at least"),
        (vec![1], vec![vec![512]], "the id 512"),
        (vec![1; 500], vec![vec![1; 20]], "positions"),
    ] {
        let said = model.gram(&prompt, &responses, &()).unwrap_err().to_string();
        assert!(said.contains(part), "{said}");
    }
}
