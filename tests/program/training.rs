//! Training as a user runs it: against a plain autodiff loop, through kills, out of memory on the disk, into NaN; and the
//! sums behind its steps.
use crate::support;
use crate::support::{Tensors, VOCABULARY, error_line, gpt2, ids_row, llama, run, succeed, tanglescope, write_model};
use burn_autodiff::Autodiff;
use burn_optim::{AdamWConfig, SimpleOptimizer};
use burn_tensor::{Int, Tensor, activation};
use proptest::prelude::*;
use safetensors::SafeTensors;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;
use tanglescope_gram::{
    Batch, Coefficients, DirectionalSink, GradientSink, Group, GroupResult, Request, batches_of, run as run_batch,
    update,
};
use tanglescope_kernels::{DType, Flex, FlexDevice, FloatTensor, Memory, TensorData, TensorMetadata};
use tanglescope_model::{AdapterSource, Decoder, FreshLora, Places};
use tanglescope_objectives::{Lengths, Needs, Objective, PairGram, PairLogps};
use tanglescope_records::Table;

struct Inputs {
    folder: tempfile::TempDir,
    model: PathBuf,
    data: PathBuf,
}

/// A random llama, and pairs of token ids.
fn inputs(pairs: u32) -> Inputs {
    let folder = tempfile::tempdir().unwrap();
    let (model, data) = (folder.path().join("model"), folder.path().join("pairs.jsonl"));
    write_model(&model, &llama(1, true));
    let ids = |from: u32, n: u32| (from..from + n).map(|t| t * 7 % 40).collect::<Vec<u32>>();
    let row = |i: u32| ids_row(&ids(i, 1 + i % 4), &ids(2 * i, 2 + i % 4), &ids(3 * i + 1, 1 + i % 3));
    std::fs::write(&data, (0..pairs).map(row).collect::<Vec<_>>().join("\n")).unwrap();
    Inputs { folder, model, data }
}

impl Inputs {
    fn out(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn args(&self, out: &Path, objective: &str, more: &[&str]) -> Vec<String> {
        let text = |path: &Path| path.display().to_string();
        let words = ["train", "--device", "cpu", "--model", &text(&self.model), "--data", &text(&self.data), "--out"];
        let given = ["--objective", objective];
        words.iter().chain([&text(out).as_str()]).chain(&given).chain(more).map(|&word| word.to_owned()).collect()
    }
}

fn bytes(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// f64 tensors of a checkpoint.
fn tensors(path: &Path) -> BTreeMap<String, (Vec<usize>, Vec<f64>)> {
    let file = bytes(path);
    let all = SafeTensors::deserialize(&file).unwrap();
    let values = |data: &[u8]| data.as_chunks::<8>().0.iter().map(|b| f64::from_le_bytes(*b)).collect();
    all.iter().map(|(name, view)| (name.to_owned(), (view.shape().to_vec(), values(view.data())))).collect()
}

mod autodiff {
    use super::*;

    type Auto = Autodiff<Flex>;
    /// Parameters as files hold them: `[out, in]`; gains as one row.
    pub type Leaves = BTreeMap<String, Tensor<Auto, 2>>;
    /// From log π of both responses, those of the reference, and the lengths.
    pub type Loss = fn([Tensor<Auto, 1>; 2], [f64; 2], [usize; 2]) -> Tensor<Auto, 1>;

    fn constant(values: Vec<f64>, shape: [usize; 2]) -> Tensor<Auto, 2> {
        Tensor::from_data(TensorData::new(values, shape), (&FlexDevice, DType::F64))
    }

    pub fn leaf(values: Vec<f64>, shape: [usize; 2]) -> Tensor<Auto, 2> {
        constant(values, shape).require_grad()
    }

    /// log π(response | prompt) of the test's llama: 2 layers, 4 heads over 2, head dimension 4.
    pub fn logp(leaves: &Leaves, prompt: &[u32], response: &[u32]) -> Tensor<Auto, 1> {
        let of = |name: &str| leaves[name].clone();
        let sequence: Vec<i32> =
            prompt.iter().chain(&response[..response.len() - 1]).map(|t| i32::try_from(*t).unwrap()).collect();
        let n = sequence.len();
        let ids =
            |ids: &[i32]| Tensor::<Auto, 1, Int>::from_data(TensorData::new(ids.to_vec(), [ids.len()]), &FlexDevice);
        let norm = |x: &Tensor<Auto, 2>, name: &str| {
            let size = (x.clone() * x.clone()).mean_dim(1).add_scalar(1e-5).sqrt();
            x.clone() / size * of(&format!("{name}.weight"))
        };
        let angle = |row: usize, pair: usize| row as f64 / 10000f64.powf(2.0 * pair as f64 / 4.0);
        let table = |f: fn(f64) -> f64| constant((0..2 * n).map(|i| f(angle(i / 2, i % 2))).collect(), [n, 2]);
        let turn = |x: Tensor<Auto, 2>| {
            let (cos, sin) = (table(f64::cos), table(f64::sin));
            let (a, b) = (x.clone().slice([0..n, 0..2]), x.slice([0..n, 2..4]));
            Tensor::cat(vec![a.clone() * cos.clone() - b.clone() * sin.clone(), b * cos + a * sin], 1)
        };
        let mask: Vec<f64> = (0..n * n).map(|at| if at % n > at / n { -1e9 } else { 0.0 }).collect();
        let mut x = of("model.embed_tokens.weight").select(0, ids(&sequence));
        for layer in 0..2 {
            let name = |of: &str| format!("model.layers.{layer}.{of}");
            let linear =
                |x: &Tensor<Auto, 2>, path: &str| x.clone().matmul(of(&format!("{}.weight", name(path))).transpose());
            let h = norm(&x, &name("input_layernorm"));
            let [q, k, v] = ["q_proj", "k_proj", "v_proj"].map(|p| linear(&h, &format!("self_attn.{p}")));
            let head = |x: &Tensor<Auto, 2>, i: usize| x.clone().slice([0..n, 4 * i..4 * i + 4]);
            let heads = (0..4).map(|i| {
                let scores = turn(head(&q, i)).matmul(turn(head(&k, i / 2)).transpose()) * 0.5;
                activation::softmax(scores + constant(mask.clone(), [n, n]), 1).matmul(head(&v, i / 2))
            });
            x = x + linear(&Tensor::cat(heads.collect(), 1), "self_attn.o_proj");
            let h = norm(&x, &name("post_attention_layernorm"));
            let inner = activation::silu(linear(&h, "mlp.gate_proj")) * linear(&h, "mlp.up_proj");
            x = x + linear(&inner, "mlp.down_proj");
        }
        let logits = norm(&x, "model.norm").matmul(of("model.embed_tokens.weight").transpose());
        let logps = activation::log_softmax(logits.slice([prompt.len() - 1..n, 0..VOCABULARY]), 1);
        let targets: Vec<i32> = response.iter().map(|t| i32::try_from(*t).unwrap()).collect();
        logps.gather(1, ids(&targets).reshape([targets.len(), 1])).sum()
    }

    pub fn dpo(policy: [Tensor<Auto, 1>; 2], reference: [f64; 2], _: [usize; 2]) -> Tensor<Auto, 1> {
        let [w, l] = policy;
        -activation::log_sigmoid((w.sub_scalar(reference[0]) - l.sub_scalar(reference[1])) * 0.1)
    }

    pub fn simpo(policy: [Tensor<Auto, 1>; 2], _: [f64; 2], lengths: [usize; 2]) -> Tensor<Auto, 1> {
        let [w, l] = policy;
        let u = w.mul_scalar(2.0 / lengths[0] as f64) - l.mul_scalar(2.0 / lengths[1] as f64);
        -activation::log_sigmoid(u.sub_scalar(1.0))
    }

    pub fn value(x: &Tensor<Auto, 1>) -> f64 {
        x.clone().into_data().convert::<f64>().into_vec::<f64>().unwrap()[0]
    }
}

/// 20 steps of all pairs at once by burn's autodiff and optimizer, on whole sequences of every response.
fn plain_loop(inputs: &Inputs, loss: autodiff::Loss) -> BTreeMap<String, Vec<f64>> {
    let rows: Vec<serde_json::Value> = std::fs::read_to_string(&inputs.data)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let ids = |row: &serde_json::Value, key: &str| -> Vec<u32> { serde_json::from_value(row[key].clone()).unwrap() };
    let pairs: Vec<[Vec<u32>; 3]> =
        rows.iter().map(|row| ["prompt_ids", "chosen_ids", "rejected_ids"].map(|key| ids(row, key))).collect();
    let (_, start) = llama(1, true);
    let mut values: BTreeMap<String, (Vec<f64>, [usize; 2])> = start
        .into_iter()
        .map(|(name, tensor)| {
            let shape = if let [n] = tensor.shape[..] { [1, n] } else { [tensor.shape[0], tensor.shape[1]] };
            (name, (tensor.values.iter().map(|x| f64::from(*x)).collect(), shape))
        })
        .collect();
    let adamw = AdamWConfig::new().with_epsilon(1e-6).with_weight_decay(0.0).build();
    let mut states = HashMap::new();
    let mut reference: Option<Vec<[f64; 2]>> = None;
    for step in 0..20 {
        let leaves: autodiff::Leaves = values
            .iter()
            .map(|(name, (values, shape))| (name.clone(), autodiff::leaf(values.clone(), *shape)))
            .collect();
        let policy: Vec<[Tensor<Autodiff<Flex>, 1>; 2]> = pairs
            .iter()
            .map(|[prompt, chosen, rejected]| [chosen, rejected].map(|r| autodiff::logp(&leaves, prompt, r)))
            .collect();
        let fixed =
            reference.get_or_insert_with(|| policy.iter().map(|of| of.each_ref().map(autodiff::value)).collect());
        let losses = policy.into_iter().zip(&pairs).zip(fixed.iter());
        let total = losses
            .map(|((policy, [_, chosen, rejected]), fixed)| loss(policy, *fixed, [chosen.len(), rejected.len()]))
            .reduce(|a, b| a + b)
            .unwrap();
        // a product: the vjp of autodiff's division by a number rounds that number's inverse to f32
        let mut gradients = total.mul_scalar(1.0 / pairs.len() as f64).backward();
        let found: BTreeMap<&String, Tensor<Flex, 2>> =
            leaves.iter().map(|(name, leaf)| (name, leaf.grad_remove(&mut gradients).unwrap())).collect();
        let flat = |x: &Tensor<Flex, 2>| x.clone().into_data().convert::<f64>().into_vec::<f64>().unwrap();
        let norm = found.values().flat_map(flat).map(|x| x * x).sum::<f64>().sqrt();
        let clip = (1.0 / (norm + 1e-6)).min(1.0);
        // a warm-up of 2 steps, then constant
        let rate = 1e-3 * (f64::from(step) / 2.0).min(1.0);
        for (name, gradient) in found {
            let (held, shape) = &values[name];
            let x = Tensor::<Flex, 2>::from_data(TensorData::new(held.clone(), *shape), (&FlexDevice, DType::F64));
            let (x, state) = adamw.step(rate, x, gradient.mul_scalar(clip), states.remove(name));
            states.insert(name.clone(), state.unwrap());
            let shape = *shape;
            values.insert(name.clone(), (flat(&x), shape));
        }
    }
    values.into_iter().map(|(name, (values, _))| (name, values)).collect()
}

/// Both loops run the same sums in another order. AdamW divides a gradient by its own size, so where a gradient is small
/// beside ε its rounding, some 1e-16 of the largest, is passed on at a rate of at most 1e-3/ε a step: 1e-13 for ε = 1e-6.
#[test]
fn training_equals_a_plain_autodiff_loop() {
    let inputs = inputs(6);
    for (objective, loss) in [("dpo", autodiff::dpo as autodiff::Loss), ("simpo:beta=2,gamma=1", autodiff::simpo)] {
        let out = inputs.out(objective);
        let more = ["--scope", "full", "--dtype", "f64", "--batch-size", "6", "--max-steps", "20"];
        let rest =
            ["--learning-rate", "1e-3", "--schedule", "constant", "--warmup-steps", "2", "--adam-epsilon", "1e-6"];
        succeed(inputs.args(&out, objective, &[more.as_slice(), &rest].concat()));
        let trained = tensors(&out.join("checkpoint-20/model.safetensors"));
        let (_, start) = llama(1, true);
        let expected = plain_loop(&inputs, loss);
        assert_eq!(trained.len(), expected.len());
        for (name, want) in &expected {
            let (got, old) = (&trained[name].1, &start[name].values);
            assert_eq!(got.len(), want.len());
            let moved = want.iter().zip(old).map(|(x, old)| (x - f64::from(*old)).abs()).fold(0.0, f64::max);
            assert!(moved > 1e-3, "{name} has hardly moved: {moved}");
            for (got, want) in got.iter().zip(want) {
                assert!((got - want).abs() <= 1e-10, "{objective}, {name}: {got} instead of {want}");
            }
        }
    }
}

/// log π of both responses of every pair under a checkpoint, by `analyze` in f64.
fn logps(inputs: &Inputs, checkpoint: &Path, adapter: bool) -> Vec<f64> {
    let out = inputs.out(if adapter { "of-adapter" } else { "of-model" });
    let model = if adapter { &inputs.model } else { checkpoint };
    let mut args = support::analyze(model, &inputs.data, &out);
    args.extend(["--dtype", "f64"].map(str::to_owned));
    args.extend(match adapter {
        true => ["--adapter".to_owned(), checkpoint.display().to_string()],
        false => ["--scope".to_owned(), "head".to_owned()],
    });
    succeed(args);
    let [chosen, rejected] = ["logp_chosen", "logp_rejected"].map(|name| support::numbers(&out, "pairs.parquet", name));
    chosen.into_iter().zip(rejected).flat_map(|(w, l)| [w.unwrap(), l.unwrap()]).collect()
}

/// Compares log-probabilities of two programs in f64: some 10³ roundings of 1.1e-16 a token, on values of up to 10², and
/// 20 steps of training that pass on 1e-12 of it.
#[track_caller]
fn same_logps(got: &[f64], want: &[f64]) {
    assert_eq!(got.len(), want.len());
    for (got, want) in got.iter().zip(want) {
        assert!((got - want).abs() <= 1e-10 * want.abs(), "{got} instead of {want}");
    }
}

/// Checkpoints as transformers and PEFT load them. What they find was stored by
/// `TANGLESCOPE_PYTHON=python cargo test`, which asks them again where that Python has both.
#[test]
fn checkpoints_load_in_transformers_and_peft() {
    let inputs = inputs(6);
    let stored = support::repository("tests/golden/peft.json");
    let stored: serde_json::Value = serde_json::from_slice(&bytes(&stored)).unwrap();
    for (scope, adapter) in [("lora", true), ("full", false)] {
        let out = inputs.out(scope);
        let more = ["--scope", scope, "--lora-r", "4", "--dtype", "f64", "--batch-size", "6", "--max-steps", "20"];
        let rest = ["--learning-rate", "1e-3", "--adam-epsilon", "1e-6"];
        succeed(inputs.args(&out, "dpo", &[more.as_slice(), &rest].concat()));
        let checkpoint = out.join("checkpoint-20");
        let got = logps(&inputs, &checkpoint, adapter);
        if let Some(python) = std::env::var_os("TANGLESCOPE_PYTHON") {
            let mut command = std::process::Command::new(python);
            command.arg(support::repository("tests/peft_values.py")).arg(&inputs.data);
            let folders = if adapter { vec![&inputs.model, &checkpoint] } else { vec![&checkpoint] };
            let output = command.args(folders).output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            let found: Vec<f64> = serde_json::from_slice(&output.stdout).unwrap();
            println!("\"{scope}\": {}", serde_json::to_string(&found).unwrap());
            same_logps(&got, &found);
        }
        let stored: Vec<f64> = serde_json::from_value(stored[scope].clone()).unwrap();
        same_logps(&got, &stored);
    }
}

/// Everything that a run leaves, but for what names the moment or the way to it.
fn everything(run: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut out = BTreeMap::new();
    let mut folders = vec![run.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.file_name().unwrap() != "manifest.json" {
                out.insert(path.strip_prefix(run).unwrap().to_owned(), bytes(&path));
            }
        }
    }
    out
}

/// Starts the run again and again, and kills it a little later each time, until it is through.
fn with_kills(args: &[String]) -> usize {
    let mut kills = 0;
    loop {
        let mut child = tanglescope().args(args).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        // a run that never gets to its next checkpoint would go on for ever
        std::thread::sleep(Duration::from_millis(60 + 17 * kills as u64));
        let _ = child.kill();
        let output = child.wait_with_output().unwrap();
        if output.status.success() {
            return kills;
        }
        assert!(output.status.code().is_none(), "{}", String::from_utf8_lossy(&output.stderr));
        kills += 1;
    }
}

#[test]
fn a_killed_run_ends_with_the_same_bits() {
    let inputs = inputs(30);
    // learned masks, a moving average, and low-rank factors: all that a checkpoint has to hold
    for (objective, scope) in [("sparse:lam=0.01", "full"), ("calibrated", "lora")] {
        let more = ["--scope", scope, "--batch-size", "4", "--epochs", "40", "--save-every", "15"];
        let rest = ["--eval-fraction", "0.2", "--predict-every", "50", "--learning-rate", "1e-3"];
        let more = [more.as_slice(), &rest].concat();
        let (whole, killed) = (inputs.out(&format!("whole-{scope}")), inputs.out(&format!("killed-{scope}")));
        succeed(inputs.args(&whole, objective, &more));
        let kills = with_kills(&inputs.args(&killed, objective, &more));
        assert!(kills > 0, "the run was through before it was killed");
        let (whole, killed) = (everything(&whole), everything(&killed));
        assert_eq!(whole.keys().collect::<Vec<_>>(), killed.keys().collect::<Vec<_>>());
        for (path, want) in &whole {
            assert!(killed[path] == *want, "{} differs after {kills} kills", path.display());
        }
    }
}

#[test]
fn a_run_goes_on_only_as_what_it_was() {
    let inputs = inputs(6);
    let out = inputs.out("run");
    succeed(inputs.args(&out, "dpo", &["--max-steps", "2"]));
    let refused = |objective: &str, more: &[&str]| {
        let output = run(inputs.args(&out, objective, more));
        assert_eq!(output.status.code(), Some(2));
        error_line(&output)
    };
    assert!(refused("ipo", &["--max-steps", "2"]).contains("another objective (dpo there, ipo now)"));
    assert!(refused("dpo", &["--max-steps", "3"]).contains("another max steps (2 there, 3 now)"));
    assert!(refused("dpo", &["--max-steps", "2", "--seed", "1"]).contains("another adapter"));
    // and what is done is not done again
    let again = run(inputs.args(&out, "dpo", &["--max-steps", "2"]));
    assert!(String::from_utf8_lossy(&again.stderr).contains("2 of 2 steps are there already"));
}

#[test]
fn an_overflow_names_step_and_pair_and_keeps_the_last_checkpoint() {
    let inputs = inputs(6);
    let out = inputs.out("run");
    let more = ["--scope", "full", "--learning-rate", "1e38", "--max-grad-norm", "0", "--max-steps", "9"];
    let more = [more.as_slice(), &["--save-every", "1", "--warmup-steps", "3", "--batch-size", "2"]].concat();
    let output = run(inputs.args(&out, "dpo", &more));
    assert_eq!(output.status.code(), Some(1));
    let line = error_line(&output);
    assert!(line.contains("step ") && line.contains("row "), "{line}");
    assert!(line.contains("NaN") || line.contains("inf"), "{line}");
    // the newest checkpoint is sound: nothing that overflowed was saved
    let steps = tanglescope_train::checkpoint::steps(&out).unwrap();
    let newest = tanglescope_train::checkpoint::folder(&out, *steps.last().unwrap());
    Decoder::<Flex>::load(&newest, &AdapterSource::None, DType::F32, &FlexDevice, Places::DEVICE).unwrap();
    assert!(steps.len() > 1, "{steps:?}");
}

/// A limit on the size of files stands for a full disk: both end a write with an error.
#[test]
fn a_full_disk_loses_no_earlier_checkpoint() {
    let inputs = inputs(6);
    let out = inputs.out("run");
    let args = inputs.args(&out, "dpo", &["--scope", "full", "--max-steps", "4", "--save-every", "2"]);
    let model = std::fs::metadata(inputs.model.join("model.safetensors")).unwrap().len();
    // the model fits, and the optimizer, twice its size, does not
    let limited = format!("trap '' XFSZ; ulimit -f {}; exec \"$0\" \"$@\"", (model + model / 2) / 512);
    let limited = |args: &[String]| -> Output {
        let mut command = std::process::Command::new("sh");
        command.env("XDG_RUNTIME_DIR", std::env::temp_dir());
        command.args(["-c", &limited]).arg(env!("CARGO_BIN_EXE_tanglescope")).args(args).output().unwrap()
    };
    let output = limited(&args);
    assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(error_line(&output).contains("cannot be written"), "{}", error_line(&output));
    let kept = |out: &Path| everything(out).into_keys().map(|path| path.display().to_string()).collect::<Vec<_>>();
    assert!(kept(&out).contains(&"checkpoint-0/model.safetensors".to_owned()), "{:?}", kept(&out));
    assert!(!kept(&out).iter().any(|path| path.contains("checkpoint-2") || path.starts_with(".checkpoint")));
    // with room again, the run goes on to the end
    succeed(&args);
    assert!(out.join("checkpoint-4/optimizer.safetensors").is_file());
}

#[test]
fn options_that_cannot_be_used_are_refused() {
    let inputs = inputs(4);
    let config = inputs.out("config.toml");
    std::fs::write(&config, "learning_rate = 1e-4\nlearning = 3\n").unwrap();
    let config = config.display().to_string();
    for (objective, more, says) in [
        ("dpoo", vec![], "there is no `dpoo`; there are dpo, cdpo"),
        ("dpo:b=1", vec![], "its keys are beta"),
        ("dpo", vec!["--scope", "head"], "no checkpoint stores"),
        ("dpo", vec!["--batch-size", "0"], "--batch-size 0"),
        ("dpo", vec!["--learning-rate", "nan"], "--learning-rate NaN"),
        ("dpo", vec!["--eval-fraction", "2"], "between 0 and 1"),
        ("dpo", vec!["--epochs", "0"], "--epochs 0"),
        ("dpo", vec!["--adam-beta2", "1"], "--adam-beta2 1"),
        ("dpo", vec!["--adam-epsilon", "0"], "--adam-epsilon 0"),
        ("dpo", vec!["--save-every", "0"], "--save-every 0"),
        ("dpo", vec!["--batch-size", "4294967296", "--accumulate", "4294967296"], "too many pairs"),
        ("dpo", vec!["--lora-alpha", "nan"], "--lora-alpha"),
        ("calibrated:ema=2", vec![], "`ema` is at least 0 and below 1"),
        ("dpo", vec!["--reference", "base", "--scope", "full"], "there is no adapter"),
        ("dpo", vec!["--config", &config], "`learning` is no option of train; they are model"),
    ] {
        let output = run(inputs.args(&inputs.out("run"), objective, &more));
        assert_eq!(output.status.code(), Some(2), "{objective} {more:?}");
        assert!(error_line(&output).contains(says), "{}", error_line(&output));
    }
}

#[test]
fn a_config_file_stands_for_options_and_the_command_line_comes_first() {
    let inputs = inputs(4);
    let (config, out) = (inputs.out("config.toml"), inputs.out("run"));
    let text = format!(
        "model = {:?}\ndata = {:?}\nout = {:?}\nobjective = \"ipo:tau=0.2\"\nscope = \"full\"\nmax_steps = 3\n\
         learning-rate = 1e-4\ndevice = \"cpu\"\nchat = false\nlora_targets = [\"q_proj\"]\n",
        inputs.model, inputs.data, out
    );
    std::fs::write(&config, text).unwrap();
    let config = config.display().to_string();
    succeed(["train", "--config", &config, "--max-steps", "2", "--scope=lora", "--lora-targets", "v_proj"]);
    let manifest: serde_json::Value = serde_json::from_slice(&bytes(&out.join("manifest.json"))).unwrap();
    assert_eq!(manifest["identity"]["objective"], "ipo:tau=0.2");
    assert_eq!(manifest["identity"]["max_steps"], 2);
    assert_eq!(manifest["identity"]["learning_rate"], 1e-4);
    let adapter: serde_json::Value =
        serde_json::from_slice(&bytes(&out.join("checkpoint-2/adapter_config.json"))).unwrap();
    assert_eq!(adapter["target_modules"], serde_json::json!(["self_attn.v_proj"]));
    assert!(out.join("checkpoint-2").is_dir());
}

/// Compares the rows of steps.parquet with what the objective makes of their log-probabilities and Grams.
fn check_outcomes(given: &str, steps: &polars_core::prelude::DataFrame, data: &Path) {
    let objective: Objective = given.parse().unwrap();
    let rows: Vec<serde_json::Value> =
        std::fs::read_to_string(data).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let length = |pair: u64, key: &str| {
        u32::try_from(rows[usize::try_from(pair).unwrap()][key].as_array().unwrap().len()).unwrap()
    };
    let column = |name: &str, row: usize| steps.column(name).unwrap().f64().unwrap().get(row);
    for row in 0..steps.height() {
        let pair = steps.column("pair").unwrap().u64().unwrap().get(row).unwrap();
        let lengths = Lengths { chosen: length(pair, "chosen_ids"), rejected: length(pair, "rejected_ids") };
        let both = |w: &str, l: &str| Some([column(w, row)?, column(l, row)?]);
        let reference = both("ref_logp_chosen", "ref_logp_rejected");
        let chosen = column("logp_chosen", row).unwrap();
        let logps = PairLogps {
            chosen,
            rejected: column("logp_rejected", row).unwrap_or(0.0),
            reference,
            lengths,
            ..PairLogps::default()
        };
        let value = |name: &str| column(name, row);
        let gram = match (value("ww"), value("wl"), value("ll")) {
            (Some(ww), Some(wl), Some(ll)) => PairGram { ww, wl, ll },
            _ => PairGram::default(),
        };
        let step = steps.column("step").unwrap().u64().unwrap().get(row).unwrap();
        // batches and masks see more than a row; a moving average is the pair's own at the first step only
        if !matches!(objective.needs(), Needs::Pair | Needs::Gram) || objective.hyper("ema").is_some() && step > 1 {
            continue;
        }
        let want = objective.of_pair(&logps, &gram).unwrap();
        for (name, want) in [("loss", want.loss), ("d_w", want.d_w), ("d_l", want.d_l)] {
            let got = value(name).unwrap();
            assert!((got - want).abs() <= 1e-9 * want.abs().max(1e-9), "{given}: {name} is {got}, not {want}");
        }
        if gram.ww > 0.0 {
            for (name, [a, b]) in ["delta_w", "delta_l"].into_iter().zip(gram.changes(want.d_w, want.d_l)) {
                let got = value(name).unwrap();
                assert!((got - (a - b)).abs() <= 1e-9 * (a.abs() + b.abs()), "{given}: {name} is {got}, not {}", a - b);
            }
        }
    }
}

/// What a step on contrast tokens does to a pair is what `analyze` says of it.
#[test]
fn masked_steps_say_what_an_analysis_says() {
    let inputs = inputs(5);
    let out = inputs.out("run");
    let more = ["--scope", "full", "--dtype", "f64", "--max-steps", "1", "--batch-size", "5"];
    succeed(inputs.args(&out, "sparse_hard", &more));
    let steps = Table::create(&out, "steps.parquet").unwrap().read(1).unwrap();
    let analysis = inputs.out("analysis");
    let mut args = support::analyze(&inputs.model, &inputs.data, &analysis);
    let objective = ["--scope", "full", "--dtype", "f64", "--objective", "sparse_hard", "--reference", "self"];
    args.extend(objective.map(str::to_owned));
    succeed(args);
    let want = Table::create(&analysis, "objectives.parquet").unwrap().read(0).unwrap();
    for row in 0..5 {
        let pair = steps.column("pair").unwrap().u64().unwrap().get(row).unwrap();
        let at = usize::try_from(pair).unwrap();
        for name in ["loss", "d_w", "d_l", "delta_w", "delta_l"] {
            let of = |frame: &polars_core::prelude::DataFrame, row| {
                frame.column(name).unwrap().f64().unwrap().get(row).unwrap()
            };
            let (got, want) = (of(&steps, row), of(&want, at));
            assert!((got - want).abs() <= 1e-9 * want.abs().max(1e-6), "{name} of pair {pair}: {got}, not {want}");
        }
    }
}

/// Every objective runs, with low-rank factors and with all parameters; what its first step says is what the objectives say
/// of the pair.
#[test]
fn every_objective_trains() {
    let inputs = inputs(5);
    // a weight for every token
    let rows = std::fs::read_to_string(&inputs.data).unwrap();
    let weighed = rows.lines().map(|line| {
        let mut row: serde_json::Value = serde_json::from_str(line).unwrap();
        for of in ["chosen", "rejected"] {
            let tokens = row[format!("{of}_ids")].as_array().unwrap().len();
            row[format!("{of}_weights")] = (1..=tokens).map(|at| 1.0 / at as f64).collect();
        }
        row.to_string()
    });
    std::fs::write(&inputs.data, weighed.collect::<Vec<_>>().join("\n")).unwrap();
    for definition in tanglescope_objectives::all() {
        let given = match definition.name {
            "gate_dpo" => "gate_dpo:alpha=1,tau=0.5".to_owned(),
            "sparse" => "sparse:lam=0.01".to_owned(),
            name => name.to_owned(),
        };
        let objective: tanglescope_objectives::Objective = given.parse().unwrap();
        if let Some(problem) = objective.not_for_training() {
            let line = error_line(&run(inputs.args(&inputs.out(definition.name), &given, &[])));
            assert!(line.contains(problem), "{line}");
            continue;
        }
        for scope in ["full", "lora"] {
            let out = inputs.out(&format!("{}-{scope}", definition.name));
            let more =
                ["--scope", scope, "--dtype", "f64", "--max-steps", "2", "--batch-size", "3", "--accumulate", "2"];
            let rest =
                ["--schedule", "constant", "--warmup-steps", "0", "--learning-rate", "1e-5", "--save-every", "2"];
            let rest = [more.as_slice(), &rest, &["--predict-every", "1", "--weight-decay", "0.1"]].concat();
            succeed(inputs.args(&out, &given, &rest));
            let steps = Table::create(&out, "steps.parquet").unwrap().read(2).unwrap();
            assert_eq!(steps.height(), 10);
            check_outcomes(&given, &steps, &inputs.data);
            let predictions = Table::create(&out, "predictions.parquet").unwrap().read(2).unwrap();
            let column = |name: &str| -> Vec<f64> {
                predictions.column(name).unwrap().f64().unwrap().iter().map(Option::unwrap).collect()
            };
            let (predicted, measured) = (column("predicted"), column("measured"));
            // what is left is of second order: a hundredth of the change at most, for steps of 1e-5 on weights of size 0.1
            let size = measured.iter().map(|x| x.abs()).fold(0.0, f64::max);
            assert!(size > 0.0, "{given}, {scope}: nothing moved");
            for (p, m) in predicted.iter().zip(&measured) {
                assert!((p - m).abs() <= 1e-2 * size, "{given}, {scope}: {p} predicted, {m} measured");
            }
            // the parts of Adam's step make the whole of it, to rounding; of losses on one response they are not told apart
            if predictions.column("own").unwrap().null_count() > 0 {
                assert_eq!(definition.name, "sft");
                continue;
            }
            let [own, others, momentum, decay] = ["own", "others", "momentum", "decay"].map(column);
            for (row, predicted) in predicted.iter().enumerate() {
                let parts = [own[row], others[row], momentum[row], decay[row]];
                let whole: f64 = parts.iter().sum();
                assert!((whole - predicted).abs() <= 1e-9 * size, "{given}, {scope}: {parts:?} of {predicted}");
            }
            assert!(
                momentum.iter().any(|x| *x != 0.0)
                    && decay.iter().any(|x| *x != 0.0)
                    && others.iter().any(|x| *x != 0.0)
            );
        }
    }
}

/// Of a step on one pair there are no others, and its own part is that of its Gram in the metric: with the first step's, g²/(1 − β₂) in place of v.
#[test]
fn a_step_on_one_pair_is_its_own() {
    let inputs = inputs(5);
    let out = inputs.out("run");
    let more = [
        "--scope",
        "full",
        "--dtype",
        "f64",
        "--max-steps",
        "3",
        "--batch-size",
        "1",
        "--predict-every",
        "1",
        "--eval-fraction",
        "0.4",
    ];
    succeed(inputs.args(&out, "dpo", &more));
    let parts = Table::at(&out, "predictions.parquet").parts().unwrap();
    let predictions = Table::at(&out, "predictions.parquet").read(3).unwrap();
    assert!(!parts.is_empty());
    let column = |name: &str| -> Vec<f64> {
        predictions.column(name).unwrap().f64().unwrap().iter().map(Option::unwrap).collect()
    };
    let split: Vec<&str> = predictions.column("split").unwrap().str().unwrap().iter().map(Option::unwrap).collect();
    let (own, others, measured) = (column("own"), column("others"), column("measured"));
    for row in 0..own.len() {
        match split[row] {
            "batch" => assert!(others[row].abs() <= 1e-9 * own[row].abs(), "{} {}", others[row], own[row]),
            _ => assert!(own[row] == 0.0 && others[row] != 0.0 && measured[row] != 0.0),
        }
    }
}

/// Pairs whose tokens repeat, within and between responses.
fn groups() -> impl Strategy<Value = Vec<Group>> {
    let token = || 0..10u32;
    let response = move || proptest::collection::vec(token(), 1..6);
    let group = (proptest::collection::vec(token(), 1..5), response(), response())
        .prop_map(|(prompt, chosen, rejected)| Group::new(prompt, vec![chosen, rejected]));
    proptest::collection::vec(group, 1..5)
}

fn load(model: &(serde_json::Value, Tensors), adapter: &AdapterSource) -> Decoder<Flex> {
    let folder = tempfile::tempdir().unwrap();
    write_model(folder.path(), model);
    Decoder::load(folder.path(), adapter, DType::F64, &FlexDevice, Places::DEVICE).unwrap()
}

/// Distance of two gradients, and the size of the second.
fn distance(got: &HashMap<String, FloatTensor<Flex>>, want: &HashMap<String, FloatTensor<Flex>>) -> (f64, f64) {
    let squares = |name: &String| {
        let (got, want) = (got.get(name).map(Flex::download), Flex::download(&want[name]));
        let got = got.unwrap_or_else(|| vec![0.0; want.len()]);
        got.iter().zip(&want).fold((0.0, 0.0), |(d, s), (a, b)| (d + (a - b) * (a - b), s + b * b))
    };
    let (d, s) = want.keys().map(squares).fold((0.0, 0.0), |(a, b), (c, d)| (a + c, b + d));
    (d.sqrt(), s.sqrt())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Sums of weighted gradients, in one pass, in two, and from kept gradients, are those of the single gradients; and what
    /// a step does along them is the inner product. Tolerance: two orders of sums of 10³ terms at 1.1e-16 a rounding, with a
    /// factor for the norms' divisions.
    #[test]
    fn sums_are_those_of_single_gradients(
        groups in groups(), coefficients in proptest::collection::vec(-2.0..2.0f64, 8), most in 1usize..20, kind in 0usize..4,
        zero: bool,
    ) {
        let fresh = AdapterSource::Fresh(FreshLora { r: 3, lora_alpha: 6.0, targets: Vec::new(), seed: 5 });
        let (model, adapter, scope) = [
            (llama(1, true), AdapterSource::None, "full"),
            (llama(2, false), AdapterSource::None, "full"),
            (gpt2(3), AdapterSource::None, "full"),
            (llama(1, true), fresh, "lora"),
        ].into_iter().nth(kind).unwrap();
        let mut model = load(&model, &adapter);
        // B = 0 would leave A without a gradient
        model.visit(&|_| true, &mut |name, lora, tensor| {
            if lora && name.contains("lora_B") {
                let values: Vec<f64> = Flex::download(tensor).iter().enumerate().map(|(i, x)| x + (i as f64).sin()).collect();
                *tensor = Flex::upload(TensorData::new(values, tensor.shape()), &FlexDevice);
            }
        });
        let scope = model.in_scope(&scope.parse().unwrap()).unwrap();
        let of = |g: usize| if zero { vec![0.0, 0.0] } else { coefficients[2 * g..2 * g + 2].to_vec() };
        let requests = Request::all(&groups);
        let batch = Batch::new(&requests);
        let mut single = GradientSink::<Flex>::new(2 * groups.len());
        run_batch(&model, &scope, &batch, &mut single);
        let all: Vec<f64> = (0..groups.len()).flat_map(of).collect();
        let want = single.combined(&all);
        let size = (0..all.len())
            .map(|k| distance(&HashMap::new(), &single.combined(&(0..all.len()).map(|i| f64::from(u8::from(i == k))).collect::<Vec<_>>())).1)
            .fold(0.0, f64::max);
        let of_logps = |g: usize, _: &Vec<Vec<f64>>| of(g);
        let of_gram = |g: usize, _: &GroupResult| of(g);
        for at_once in [1, 2] {
            for when in [Coefficients::OfLogps(&of_logps), Coefficients::OfGram(&of_gram)] {
                let found = update(&model, &scope, &requests, &batches_of(&groups, most, at_once), &when, true);
                let (off, _) = distance(&found.gradient, &want);
                prop_assert!(off <= 1e-10 * size, "{off} of {size}");
                prop_assert_eq!(found.results.len(), groups.len());
            }
        }
        let mut along = DirectionalSink::<Flex>::new(&want, all.len());
        run_batch(&model, &scope, &batch, &mut along);
        for (k, change) in along.changes.iter().enumerate() {
            let dot: f64 = single.gradients.iter().map(|(name, of)| {
                Flex::download(&of[k]).iter().zip(Flex::download(&want[name])).map(|(a, b)| a * b).sum::<f64>()
            }).sum();
            prop_assert!((change - dot).abs() <= 1e-10 * size * size.max(1.0) * 20.0, "{} instead of {}", change, dot);
        }
    }
}

/// PEFT has the experts of a layer in one matrix, and drops factors of single ones.
#[test]
fn factors_of_single_experts_are_said_to_be_left_out_by_peft() {
    let model = support::repository("../shared/golden/olmoe");
    // where the shared goldens lie beside the checkout
    if !model.is_dir() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let data = folder.path().join("pairs.jsonl");
    std::fs::write(&data, ids_row(&[1, 2], &[3, 4], &[5]) + "\n").unwrap();
    let paths = [("--model", &model), ("--data", &data), ("--out", &out)];
    let paths = paths.into_iter().flat_map(|(flag, path)| [flag.to_owned(), path.display().to_string()]);
    let more = ["--objective", "dpo", "--lora-targets", "experts.1.up_proj", "--max-steps", "1", "--device", "cpu"];
    let output = run(["train".to_owned()].into_iter().chain(paths).chain(more.map(str::to_owned)));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{said}");
    assert!(said.contains("factors for each expert by itself"), "{said}");
}

/// An adapter on a base whose blocks are read from its files is trained as on one that is in memory.
#[test]
fn adapters_are_trained_over_a_base_that_does_not_fit() {
    let inputs = inputs(6);
    let train = |name: &str, more: &[&str]| {
        let out = inputs.out(name);
        let base = ["--dtype", "f64", "--scope", "lora", "--max-steps", "3", "--batch-size", "3"];
        let output = run(inputs.args(&out, "dpo", &[&base, more].concat()));
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        (tensors(&out.join("checkpoint-3/adapter_model.safetensors")), said)
    };
    let (whole, said) = train("whole", &[]);
    assert!(!said.contains("read from the checkpoint's files"));
    let (read, said) = train("read", &["--memory", "0.00001"]);
    assert!(said.contains("read from the checkpoint's files"), "{said}");
    for (name, (shape, values)) in &whole {
        assert_eq!(&read[name].0, shape);
        // batches of other pairs are summed in another order
        let size = values.iter().fold(0.0f64, |most, x| most.max(x.abs()));
        for (a, b) in read[name].1.iter().zip(values) {
            assert!((a - b).abs() <= 1e-9 * size, "{name}: {a} and {b}");
        }
    }
}
