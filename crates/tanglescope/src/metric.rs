//! The metric of an optimizer's step, from what trainers save of the optimizer.
use crate::error::{Error, Result};
use crate::listener::Listener;
use crate::model::Model;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use tanglescope_checkpoint::{AdamGroup, SecondMoments, file_hash};
use tanglescope_gram::Metric;
use tanglescope_kernels::{DType, FloatTensor, Kernels, TensorData, TensorMetadata};
use tanglescope_model::{Decoder, InScope, Parameter, ParameterKind, read_all_tensors};
use tanglescope_records::manifest::{self, TrainingManifest};

/// In which metric inner products are taken beside the plain one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MetricChoice {
    /// None: the plain products alone, in which plain gradient descent moves.
    #[default]
    Gradient,
    /// That of Adam's and AdamW's step: P = 1/(√v̂ + ε), from the second moments of a checkpoint's optimizer.
    Adam,
}

/// A metric, and what stands for it in manifests.
pub struct LoadedMetric<B: Kernels> {
    /// The factors.
    pub metric: Metric<B>,
    /// Hash of the moments, and the step that they are after.
    pub identity: String,
}

/// What Adam divides by, from a second moment.
#[derive(Clone, Copy, Debug)]
struct Adam {
    beta2: f64,
    epsilon: f64,
    step: f64,
}

impl Adam {
    /// √P of a second moment v, P = 1/(√(v/(1 − β₂ᵗ)) + ε).
    fn root(self, v: f64) -> f64 {
        (1.0 / ((v / (1.0 - self.beta2.powf(self.step))).sqrt() + self.epsilon)).sqrt()
    }
}

/// The state of an optimizer, wherever a trainer left it.
enum Saved {
    /// A checkpoint of `train`.
    Ours(PathBuf),
    /// A file of `torch.save`.
    Torch(PathBuf),
}

/// What other trainers leave, and how it becomes a file that is read.
const OTHERS: [(&str, &str); 5] = [
    (
        "global_step",
        "DeepSpeed's, in parts of every rank; load it with the trainer without ZeRO, and save the optimizer as optimizer.pt",
    ),
    (
        "zero_pp_rank_",
        "DeepSpeed's, in parts of every rank; load it with the trainer without ZeRO, and save the optimizer as optimizer.pt",
    ),
    (
        "bf16_zero_pp_rank_",
        "DeepSpeed's, in parts of every rank; load it with the trainer without ZeRO, and save the optimizer as optimizer.pt",
    ),
    (
        "optimizer_0",
        "FSDP's, in parts of every rank; make one file of it by torch.distributed.checkpoint.format_utils.dcp_to_torch_save, and name its parameters by number as torch.optim does",
    ),
    ("optimizer.bin", "FSDP's, by the names of wrapped modules; save it as torch.optim's state dict, optimizer.pt"),
];

/// Looks for an optimizer's state in a folder, or takes a file.
fn saved(path: &Path) -> Result<Saved> {
    if path.is_file() {
        return Ok(match path.extension().is_some_and(|end| end == "safetensors") {
            true => Saved::Ours(path.parent().unwrap_or(Path::new(".")).to_owned()),
            false => Saved::Torch(path.to_owned()),
        });
    }
    if path.join("optimizer.safetensors").is_file() {
        return Ok(Saved::Ours(path.to_owned()));
    }
    if path.join("optimizer.pt").is_file() {
        return Ok(Saved::Torch(path.join("optimizer.pt")));
    }
    let entries = std::fs::read_dir(path).map_err(|e| Error::value("optimizer", path.display(), e))?;
    let names: Vec<String> = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    for (begins, what) in OTHERS {
        if let Some(name) = names.iter().find(|name| name.starts_with(begins)) {
            return Err(Error::value(
                "optimizer",
                path.display(),
                format!("has `{name}`: the optimizer's state is {what}"),
            ));
        }
    }
    let problem = "has no optimizer.safetensors and no optimizer.pt; Adam's metric is made of the second moments that the trainer saves with a \
                   checkpoint (for TRL: save_only_model=False)";
    Err(Error::value("optimizer", path.display(), problem))
}

/// Where the optimizer's state is: given, or beside the adapter or the model.
fn place<'a>(optimizer: Option<&'a Path>, asked: &'a Model) -> &'a Path {
    optimizer.unwrap_or_else(|| asked.adapter_folder().unwrap_or(&asked.folder))
}

/// What stands for a metric in manifests, found without loading a model; `None` for plain products.
pub fn identity((choice, optimizer): (MetricChoice, Option<&Path>), asked: &Model) -> Result<Option<String>> {
    if choice == MetricChoice::Gradient {
        return match optimizer {
            None => Ok(None),
            Some(_) => Err(Error::option("optimizer", "is read for option `metric` = adam, which is not asked for")),
        };
    }
    let (step, file) = match saved(place(optimizer, asked))? {
        Saved::Ours(folder) => {
            let step = tanglescope_train::checkpoint::step_of(&folder)?;
            (step.to_string(), folder.join("optimizer.safetensors"))
        }
        Saved::Torch(file) => {
            let moments = SecondMoments::open(&file).map_err(tanglescope_model::Error::from)?;
            (moments.steps.values().fold(0.0, |a: f64, b| a.max(*b)).to_string(), file)
        }
    };
    let hash = file_hash(&file).map_err(tanglescope_model::Error::from)?;
    Ok(Some(format!("adam, step {step}, {hash}")))
}

/// The metric that is asked for; `None` for plain products.
pub fn load<B: Kernels>(
    of: (MetricChoice, Option<&Path>),
    asked: &Model,
    model: &Decoder<B>,
    scope: &InScope,
    listener: &dyn Listener,
) -> Result<Option<LoadedMetric<B>>> {
    let Some(identity) = identity(of, asked)? else { return Ok(None) };
    let path = place(of.1, asked);
    let roots = match saved(path)? {
        Saved::Ours(folder) => ours(&folder, model, scope)?,
        Saved::Torch(file) => of_torch(&file, asked, model, scope)?,
    };
    listener.note(&format!("inner products are taken in the metric of Adam too, by the state in {}", path.display()));
    Ok(Some(LoadedMetric { metric: Metric::new(roots), identity }))
}

type Roots<B> = HashMap<String, FloatTensor<B>>;

/// √P as a tensor of the model's number type, or in f32 on a device.
fn roots<B: Kernels>(v: &FloatTensor<B>, shape: Vec<usize>, adam: Adam, model: &Decoder<B>) -> FloatTensor<B> {
    let values: Vec<f64> = B::download(v).into_iter().map(|v| adam.root(v)).collect();
    let dtype = if B::is_host() { model.dtype } else { DType::F32 };
    B::upload(TensorData::new(values, shape).convert_dtype(dtype), &model.device)
}

/// From a checkpoint of `train`, which names moments as the model names parameters.
fn ours<B: Kernels>(folder: &Path, model: &Decoder<B>, scope: &InScope) -> Result<Roots<B>> {
    let path = folder.join("optimizer.safetensors");
    let refuse = |problem: String| Error::value("optimizer", path.display(), problem);
    let run = folder.parent().unwrap_or(Path::new("."));
    let no_run = || refuse("is not in a folder of a run of `train`, whose manifest says β₂ and ε".to_owned());
    let settings = manifest::read::<TrainingManifest>(run)?.ok_or_else(no_run)?.identity.settings;
    let step = tanglescope_train::checkpoint::step_of(folder)?;
    if step == 0 {
        return Err(refuse(
            "is of step 0, before which nothing was seen of any gradient; give a later checkpoint".to_owned(),
        ));
    }
    let adam = Adam { beta2: f64::from(settings.beta2), epsilon: f64::from(settings.epsilon), step: step as f64 };
    let found = read_all_tensors::<B>(folder, "optimizer", DType::F64, &model.device)?;
    let (mut all, mut missing) = (Roots::<B>::new(), None);
    model.clone().visit(&|name| scope.contains(name), &mut |name, _, tensor| {
        if !scope.contains(name) {
            return;
        }
        let (shape, entries) = (tensor.shape().to_vec(), tensor.shape().num_elements());
        match found.get(&format!("moment_2.{name}")).filter(|v| v.shape().num_elements() == entries) {
            Some(v) => drop(all.insert(name.to_owned(), roots(v, shape, adam, model))),
            None => drop(missing.get_or_insert(name.to_owned())),
        }
    });
    if let Some(name) = missing {
        return Err(refuse(format!("has no second moment of `{name}` in its shape: was the run on other parameters?")));
    }
    Ok(all)
}

/// From a file of `torch.save`, which numbers parameters in the order of the trainer's groups.
fn of_torch<B: Kernels>(file: &Path, asked: &Model, model: &Decoder<B>, scope: &InScope) -> Result<Roots<B>> {
    let refuse = |problem: String| Error::value("optimizer", file.display(), problem);
    let moments = SecondMoments::open(file).map_err(tanglescope_model::Error::from)?;
    let architecture = tanglescope_model::Config::model_type(&asked.folder)?;
    let numbers = numbered(&scope.parameters, &architecture, &moments.groups).map_err(refuse)?;
    let group_of: BTreeMap<usize, &AdamGroup> =
        moments.groups.iter().flat_map(|group| group.parameters.iter().map(move |number| (*number, group))).collect();
    let number = |name: &str| numbers.get(name).map(usize::to_string);
    let found = model.read_stored(scope, moments.tensors.clone(), number, DType::F64)?;
    let mut all = Roots::<B>::new();
    for (name, v) in found {
        let number = numbers[tanglescope_model::layers::whole(&name)];
        let group = group_of[&number];
        let step = moments.steps.get(&number).copied().unwrap_or(0.0);
        let adam = Adam { beta2: group.beta2, epsilon: group.epsilon, step };
        let shape = v.shape().to_vec();
        all.insert(name, roots(&v, shape, adam, model));
    }
    Ok(all)
}

/// Architectures whose modules torch registers in the order mixer, feed-forward layer, norms: what `torch.nn.Module.named_parameters` goes by.
const MIXER_MLP_NORMS: [&str; 18] = [
    "cohere2",
    "gemma",
    "gemma2",
    "gemma3_text",
    "glm4",
    "granite",
    "llama",
    "ministral3",
    "mistral",
    "mixtral",
    "olmo2",
    "olmo3",
    "olmoe",
    "qwen2",
    "qwen2_moe",
    "qwen3",
    "qwen3_moe",
    "smollm3",
];

/// The same whose modules are registered in the order of the forward pass.
const AS_COMPUTED: [&str; 1] = ["gpt2"];

/// Place of a parameter in the order of `named_parameters`, inside its block.
fn registered(parameter: &Parameter, architecture: &str) -> [usize; 2] {
    let module = parameter.module.as_str();
    let is_norm = |part: &str| part.contains("norm");
    if AS_COMPUTED.contains(&architecture) {
        return [0, 0];
    }
    let (child, rest) = module.split_once('.').unwrap_or((module, ""));
    // norms of a block stand behind its layers, and norms of a layer behind its maps
    [if is_norm(child) { 2 } else { usize::from(child.contains("mlp")) }, usize::from(is_norm(rest))]
}

/// Whether the trainer lets a parameter decay: `transformers` leaves out norms and biases.
fn decays(name: &str) -> bool {
    !(name.contains("bias") || name.contains("norm"))
}

/// The number of each parameter in an optimizer's groups. The trainer of transformers makes two: what decays, then norms and biases, each in
/// torch's order of the model's parameters; others make one of all.
fn numbered(
    parameters: &[Parameter],
    architecture: &str,
    groups: &[AdamGroup],
) -> Result<HashMap<String, usize>, String> {
    let adapter = parameters.iter().all(|parameter| parameter.kind == ParameterKind::Lora);
    if !adapter && !MIXER_MLP_NORMS.contains(&architecture) && !AS_COMPUTED.contains(&architecture) {
        return Err(format!("the order in which torch numbers the parameters of a {architecture} is not known here"));
    }
    let mut order: Vec<&Parameter> = parameters.iter().collect();
    order.sort_by_key(|parameter| (parameter.layer.is_some(), parameter.layer, registered(parameter, architecture)));
    // what stands behind the blocks
    let (blocks, outside): (Vec<&Parameter>, Vec<&Parameter>) = order.into_iter().partition(|p| p.layer.is_some());
    let (before, after): (Vec<&Parameter>, Vec<&Parameter>) =
        outside.into_iter().partition(|p| p.location == tanglescope_model::Location::Embedding);
    let all: Vec<&Parameter> = before.into_iter().chain(blocks).chain(after).collect();
    let split = |decaying: bool| {
        all.iter().filter(move |p| decays(&p.name) == decaying).map(|p| p.name.clone()).collect::<Vec<_>>()
    };
    let whole = || all.iter().map(|p| p.name.clone()).collect::<Vec<_>>();
    let counts: Vec<usize> = groups.iter().map(|group| group.parameters.len()).filter(|count| *count > 0).collect();
    let expected = if counts.len() == 1 { vec![whole()] } else { vec![split(true), split(false)] };
    let sizes: Vec<usize> = expected.iter().map(Vec::len).filter(|count| *count > 0).collect();
    if sizes != counts {
        return Err(format!(
            "has groups of {counts:?} parameters, and the scope's are {sizes:?}: ask for the scope that was trained, such as lora or full"
        ));
    }
    let numbers =
        groups.iter().filter(|group| !group.parameters.is_empty()).flat_map(|group| group.parameters.iter().copied());
    let names = expected.into_iter().filter(|names| !names.is_empty()).flatten();
    Ok(names.zip(numbers).collect())
}
