//! What a path is, and what of it can be measured: read from configs and the headers of files, without the weights.
use crate::device::{DeviceName, devices};
use crate::error::Result;
use crate::estimate::Planned;
use crate::folder::what_is;
use crate::model::Model;
use crate::options::{Measured, ModelOptions};
use crate::sweep::{Checkpoint, CheckpointKind, Run};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tanglescope_checkpoint::{Tensors, gguf_tokenizer};
use tanglescope_gram::Group;
use tanglescope_model::{AdapterSource, Config, Outline, Scope, adapter_kinds, base_name, base_named_by};

/// What a path is.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Inspection {
    /// The path.
    pub path: PathBuf,
    /// What it is, and where it goes.
    pub what: String,
    /// Where it is a model.
    pub model: Option<ModelFound>,
    /// Where it is an adapter.
    pub adapter: Option<AdapterFound>,
    /// Where it holds the checkpoints of a run.
    pub run: Option<RunFound>,
    /// What cannot be measured, and why.
    pub refused: Vec<String>,
    /// What a pair of 512 tokens takes on each device of this machine.
    pub costs: Vec<PairCost>,
}

/// What a model's folder holds.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ModelFound {
    /// `model_type` of its config.
    pub model_type: String,
    /// Transformer blocks.
    pub layers: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Tokens.
    pub vocabulary: usize,
    /// Longest sequence.
    pub max_positions: usize,
    /// Values of all stored tensors.
    pub parameters: usize,
    /// Experts of a block, where it has some.
    pub experts: Option<usize>,
    /// Tensors of each stored type, or way of quantising.
    pub stored: BTreeMap<String, usize>,
    /// Whether tokenizer.json is there, or a GGUF file carries a tokenizer, without which only token ids can be measured.
    pub tokenizer: bool,
    /// Whether it has a chat template.
    pub chat_template: bool,
}

/// What an adapter's folder holds.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct AdapterFound {
    /// The base that its config names.
    pub base: Option<String>,
    /// What it trains and changes beside A and B of linear maps.
    pub kinds: Vec<String>,
    /// Whether that is a folder of a model here.
    pub base_is_here: bool,
    /// Tensors that it stores.
    pub tensors: usize,
    /// Linear maps of the base that it changes, where the base is here.
    pub maps: Option<usize>,
}

/// What a run's folder holds.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RunFound {
    /// Who lays out runs so.
    pub trainer: String,
    /// Steps that there are checkpoints of.
    pub steps: Vec<usize>,
    /// How many of them are adapters.
    pub adapters: usize,
}

/// What a pair takes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PairCost {
    /// Where.
    pub device: String,
    /// Number type.
    pub dtype: String,
    /// The parameters.
    pub scope: String,
    /// GiB of weights, as they are in memory.
    pub weights_gib: f64,
    /// GiB of activations for the pair.
    pub activations_gib: f64,
    /// Seconds at the least.
    pub seconds: f64,
    /// Whether the device's rates were measured by `bench`, and are not those of a typical one.
    pub measured: bool,
}

/// Says what a path is: architecture, size and stored types of a model, base of an adapter, checkpoints of a run; what can be measured, what is
/// refused and why, and what a pair takes.
///
/// # Errors
/// Where there is nothing at the path. What is there and cannot be measured is no error.
pub fn inspect(path: &Path) -> Result<Inspection> {
    path.metadata().map_err(|e| crate::error::Error::output(path, e))?;
    let what = what_is(path).map_or("nothing that is known: no model, adapter, run, records or data", |(_, what)| what);
    let mut found = Inspection {
        path: path.to_owned(),
        what: what.to_owned(),
        model: None,
        adapter: None,
        run: None,
        refused: Vec::new(),
        costs: Vec::new(),
    };
    // trainers leave the last model or adapter in the run's own folder too
    if path.is_dir() {
        if let Ok(run) = Run::find(Some("run"), path)
            && let Some(trainer) = run.trainer
        {
            let kinds = run.checkpoints.iter().map(Checkpoint::kind);
            let adapters = kinds.filter(|kind| matches!(kind, Ok(CheckpointKind::Adapter))).count();
            let steps = run.checkpoints.iter().map(|checkpoint| checkpoint.step).collect();
            found.run = Some(RunFound { trainer: trainer.name.to_owned(), steps, adapters });
        }
        if path.join("adapter_config.json").is_file() {
            found.adapter(path);
        } else if Config::model_type(path).is_ok() {
            found.model(path);
        }
    }
    Ok(found)
}

impl Inspection {
    fn model(&mut self, folder: &Path) {
        let outline = match Outline::read(folder, &AdapterSource::None) {
            Ok(outline) => outline,
            Err(problem) => return self.refused.push(problem.to_string()),
        };
        let of = &outline.description;
        let (mut stored, mut parameters) = (BTreeMap::new(), 0);
        match Tensors::open(folder, "model").and_then(|tensors| tensors.put_together(of.fp8_block)) {
            Ok(tensors) => {
                for tensor in tensors.names().filter_map(|name| tensors.get(name)) {
                    *stored.entry(tensor.kind().to_owned()).or_insert(0) += 1;
                    parameters += tensor.shape().iter().product::<usize>();
                }
                let text_part = of.clone().located(folder, |name| tensors.get(name).is_some());
                match text_part.map(|of| Outline::new(of, &AdapterSource::None)) {
                    Ok(Ok(outline)) => self.refused.extend(outline.misfit(&tensors)),
                    Ok(Err(problem)) | Err(problem) => self.refused.push(problem.to_string()),
                }
            }
            Err(problem) => self.refused.push(problem.to_string()),
        }
        let has = |name: &str| folder.join(name).is_file();
        let in_config = std::fs::read_to_string(folder.join("tokenizer_config.json"))
            .is_ok_and(|text| text.contains("\"chat_template\""));
        let in_file = gguf_tokenizer(folder).ok().flatten();
        let tokenizer = has("tokenizer.json") || in_file.is_some();
        if !tokenizer {
            self.refused
                .push("texts: there is no tokenizer.json, so that only rows of token ids can be measured".to_owned());
        }
        let in_config = in_config || in_file.is_some_and(|(_, of)| of.config.contains_key("chat_template"));
        self.model = Some(ModelFound {
            model_type: Config::model_type(folder).unwrap_or_default(),
            layers: of.layers(),
            hidden: of.hidden,
            vocabulary: of.vocabulary,
            max_positions: of.max_positions,
            parameters,
            experts: of.experts.as_ref().map(|experts| experts.number),
            stored,
            tokenizer,
            chat_template: in_config || has("chat_template.jinja") || has("chat_template.json"),
        });
        // a software driver computes on the processor, which is among them
        for device in devices().devices.into_iter().filter(|device| !device.software) {
            let scopes = [Scope::Lora, Scope::Full].map(|scope| cost(folder, &device.device, scope));
            self.costs.extend(scopes.into_iter().flatten());
        }
    }

    fn adapter(&mut self, folder: &Path) {
        let kinds = adapter_kinds(folder).unwrap_or_else(|problem| {
            self.refused.push(problem.to_string());
            Vec::new()
        });
        let base = base_named_by(folder);
        let maps = base.as_ref().map(|base| Outline::read(base, &AdapterSource::Saved(folder.to_owned())));
        if let Some(Err(problem)) = &maps {
            self.refused.push(problem.to_string());
        }
        self.adapter = Some(AdapterFound {
            base: base_name(folder),
            kinds,
            base_is_here: base.is_some(),
            tensors: Tensors::open(folder, "adapter_model").map_or(0, |tensors| tensors.names().count()),
            maps: maps.and_then(|outline| Some(outline.ok()?.maps.iter().filter(|map| map.rank.is_some()).count())),
        });
    }
}

/// What a pair takes of a model on a device: a prompt of 256 tokens and two responses of 128.
fn cost(folder: &Path, device: &str, scope: Scope) -> Option<PairCost> {
    let measured = Measured { device: Some(device.parse::<DeviceName>().ok()?), scope, ..Measured::default() };
    let model = Model::new(&ModelOptions { measured, ..ModelOptions::new(folder) }).ok()?;
    let planned = Planned::new(&model).ok()?;
    let group = Group::new(vec![1; 256], vec![vec![2; 128], vec![3; 128]]);
    let estimate = planned.groups(&[group], usize::MAX);
    let gib = |bytes: usize| bytes as f64 / 2f64.powi(30);
    Some(PairCost {
        device: estimate.device,
        dtype: estimate.dtype.to_owned(),
        scope: estimate.scope,
        weights_gib: gib(estimate.placement.weights),
        activations_gib: gib(estimate.activation_bytes),
        seconds: estimate.seconds,
        measured: estimate.measured,
    })
}
