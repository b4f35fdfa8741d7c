//! An adapter as PEFT saves it: a config, and the factors of each module that it changes.
use super::Place;
use super::tables::{TokenIndices, token_indices};
use super::taken_apart::TakenApart;
use super::targets::{ModuleName, OneOrMany, Targets, is_end_of, pattern_table, targets};
use crate::architectures::{ExpertsKind, StackOrder, StoredExperts, Wrapper};
use crate::config::{Config, is_off};
use crate::error::{Error, Result, brief};
use crate::layers::{FusedLora, Lora, Magnitude, Matrix};
use crate::weights::Weights;
use std::path::{Path, PathBuf};
use tanglescope_checkpoint::{Layout, file_hash};
use tanglescope_kernels::{DType, Flex, FlexDevice, Kernels, Memory, TensorData};

/// An opened adapter folder.
#[derive(Debug)]
pub(crate) struct SavedAdapter {
    pub(super) config_path: PathBuf,
    pub(super) weights: Weights,
    pub(super) r: usize,
    pub(super) lora_alpha: f64,
    pub(super) use_rslora: bool,
    pub(super) targets: Targets,
    /// Parameters of modules that are changed as they are: PEFT's way to the experts of a layer in one matrix.
    pub(super) target_parameters: Vec<String>,
    /// Which of them were found.
    pub(super) found_parameters: Vec<bool>,
    pub(super) exclude: Option<Targets>,
    pub(super) layers: Option<Vec<usize>>,
    pub(super) layers_pattern: Vec<String>,
    pub(super) rank_pattern: Vec<(ModuleName, usize)>,
    pub(super) alpha_pattern: Vec<(ModuleName, f64)>,
    pub(super) modules_to_save: Vec<String>,
    /// Whether it has its own copies of biases.
    pub(super) biases: bool,
    pub(super) ensure_weight_tying: bool,
    /// Whether columns have learned lengths (`DoRA`).
    pub(super) magnitudes: bool,
    pub(super) token_indices: TokenIndices,
    pub(super) taken_apart: Option<TakenApart>,
}

/// Keys of adapter_config.json that are read, or that change nothing about the function.
const UNDERSTOOD: &[&str] = &[
    "alpha_pattern",
    "auto_mapping",
    "base_model_name_or_path",
    "bias",
    "ensure_weight_tying",
    "eva_config",
    "exclude_modules",
    "fan_in_fan_out",
    "inference_mode",
    "init_lora_weights",
    "layers_pattern",
    "layers_to_transform",
    "lora_alpha",
    "lora_dropout",
    "megatron_core",
    "modules_to_save",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "r",
    "rank_pattern",
    "revision",
    "runtime_config",
    "target_modules",
    "target_parameters",
    "task_type",
    "trainable_token_indices",
    "use_dora",
    "use_rslora",
];

impl SavedAdapter {
    pub fn open(folder: &Path) -> Result<Self> {
        let config_path = folder.join("adapter_config.json");
        let config = Config::read(&config_path)?;
        let kind: String = config.need("peft_type")?;
        if kind != "LORA" {
            return Err(config.refuse("peft_type", format!("`{kind}` is not supported; supported: LORA")));
        }
        let bias: Option<String> = config.get("bias")?;
        let biases = match bias.as_deref() {
            None | Some("none") => false,
            Some("all" | "lora_only") => true,
            Some(other) => {
                let problem = format!("`{}` is not supported; supported: none, all, lora_only", brief(other));
                return Err(config.refuse("bias", problem));
            }
        };
        let taken_apart = TakenApart::of(&config)?;
        for (key, value) in config.entries() {
            if !is_off(value) && !UNDERSTOOD.contains(&key.as_str()) {
                return Err(config.refuse(key, format!("found {value}: a kind of adapter that is not supported")));
            }
        }
        let token_indices = token_indices(&config)?;
        let target_parameters: Vec<String> = config.get("target_parameters")?.unwrap_or_default();
        let chosen = match targets(&config, "target_modules")? {
            Some(chosen) => chosen,
            None if !target_parameters.is_empty() || !token_indices.is_empty() => Targets::List(Vec::new()),
            None => {
                return Err(config.refuse("target_modules", "missing; expected a list of module names or a pattern"));
            }
        };
        let adapter = Self {
            r: config.need("r")?,
            lora_alpha: config.need("lora_alpha")?,
            use_rslora: config.get("use_rslora")?.unwrap_or(false),
            targets: chosen,
            found_parameters: vec![false; target_parameters.len()],
            target_parameters,
            exclude: targets(&config, "exclude_modules")?,
            layers: config.get::<OneOrMany<usize>>("layers_to_transform")?.map(OneOrMany::into_vec),
            layers_pattern: config
                .get::<OneOrMany<String>>("layers_pattern")?
                .map_or_else(Vec::new, OneOrMany::into_vec),
            rank_pattern: pattern_table(&config, "rank_pattern")?,
            alpha_pattern: pattern_table(&config, "alpha_pattern")?,
            modules_to_save: config.get("modules_to_save")?.unwrap_or_default(),
            biases,
            ensure_weight_tying: config.get("ensure_weight_tying")?.unwrap_or(false),
            magnitudes: config.get("use_dora")?.unwrap_or(false),
            token_indices,
            taken_apart,
            weights: Weights::open(folder, "adapter_model")?,
            config_path,
        };
        Ok(adapter)
    }

    /// SHA-256 of config and weights.
    pub fn content_hash(&self) -> Result<String> {
        Ok(format!("{}+{}", self.weights.content_hash()?, file_hash(&self.config_path)?))
    }

    /// Whether it changes a module. PEFT means the fused experts by their names, and drops what is stored under those of single
    /// ones; adapters of its earlier versions have factors for each.
    pub(super) fn targets(&self, module: &str, layer: Option<usize>, routed: bool) -> bool {
        let stored = ["lora_A.weight", "lora_A.default.weight"]
            .iter()
            .any(|factor| self.weights.has(&format!("base_model.model.{module}.{factor}")));
        (stored || !routed) && self.targets_by_name(module, layer)
    }

    /// Whether its config chooses a module.
    pub(super) fn targets_by_name(&self, module: &str, layer: Option<usize>) -> bool {
        let listed = |layers: &Vec<usize>| {
            let of_pattern = |layer: usize, p: &String| module.contains(&format!("{p}.{layer}."));
            let in_pattern = |layer: usize| {
                self.layers_pattern.is_empty() || self.layers_pattern.iter().any(|p| of_pattern(layer, p))
            };
            layer.is_some_and(|layer| layers.contains(&layer) && in_pattern(layer))
        };
        self.targets.matches(module)
            && self.exclude.as_ref().is_none_or(|exclude| !exclude.matches(module))
            && self.layers.as_ref().is_none_or(listed)
    }

    /// A module's path as this adapter spells it: the text part of a multimodal model has several names.
    pub(super) fn spelled(&self, module: &str) -> String {
        let spellings = Wrapper::spellings(module).into_iter();
        let stored = |module: &String| self.weights.has(&format!("base_model.model.{module}.lora_A.weight"));
        spellings.into_iter().find(stored).unwrap_or_else(|| module.to_owned())
    }

    pub(super) fn rank(&self, module: &str) -> usize {
        self.rank_pattern.iter().find(|(p, _)| p.matches(module)).map_or(self.r, |(_, r)| *r)
    }

    /// The factors of a module with a weight `[in, out]`, `None` where the adapter leaves it alone.
    pub(super) fn factors<B: Kernels>(
        &mut self,
        module: &str,
        Place { layer, routed, .. }: Place,
        weight: &Matrix<B>,
        dtype: DType,
        device: &B::Device,
    ) -> Result<Option<Lora<B>>> {
        let module = &self.spelled(module);
        if !self.targets(module, layer, routed) {
            return Ok(None);
        }
        let (r, scale) = (self.rank(module), self.scale_of(module));
        let [inputs, outputs] = weight.dims();
        let stored = |factor: &str| {
            let plain = format!("base_model.model.{module}.{factor}.weight");
            let named = format!("base_model.model.{module}.{factor}.default.weight");
            if self.weights.has(&named) { named } else { plain }
        };
        let (a, b) = (stored("lora_A"), stored("lora_B"));
        let mut a = self.weights.take::<B>(&a, &[r, inputs], Layout::Transposed, dtype, device)?;
        let mut b = self.weights.take::<B>(&b, &[outputs, r], Layout::Transposed, dtype, device)?;
        let magnitude = match self.magnitudes {
            false => None,
            true if routed => {
                let problem = format!("DoRA on `{module}`, one of many experts, is not supported");
                return Err(Error::key(&self.config_path, "use_dora", problem));
            }
            true => {
                // they are more than right factors of products, which may be as narrow as they are stored
                (a, b) = (B::cast(a, dtype), B::cast(b, dtype));
                let name = format!("base_model.model.{module}.lora_magnitude_vector");
                let values = self.weights.take::<B>(&name, &[outputs], Layout::Same, dtype, device)?;
                let magnitude = Magnitude::new(values, weight, [&a, &b], scale);
                if !magnitude.is_finite() {
                    let problem = "the map that it scales has a column of zeros, by whose length DoRA divides";
                    return Err(Error::tensor(&self.config_path, &name, problem.to_owned()));
                }
                Some(magnitude)
            }
        };
        Ok(Some(Lora { name: module.clone(), a, b, scale, magnitude }))
    }

    /// Marks factors of modules that the model no longer has, and that changed nothing where it had them.
    pub fn ignore(&mut self, modules: &[String]) {
        for module in modules {
            let module = self.spelled(module);
            for factor in ["lora_A", "lora_B"] {
                self.weights.ignore(&format!("base_model.model.{module}.{factor}.weight"));
            }
        }
    }

    /// Whether it changes all experts of a layer as one matrix.
    pub fn changes_all_experts(&self) -> bool {
        !self.target_parameters.is_empty()
    }

    /// Paths under which it has its factors of gate and up, and of down, of the experts of a list, where it has them. PEFT wraps the module
    /// once for each parameter, the first one innermost.
    pub(super) fn fused_paths(&self, list: &str) -> [Option<String>; 2] {
        let targeted = |parameter: &str| {
            let path = format!("{list}.{parameter}");
            self.target_parameters.iter().any(|name| is_end_of(name, &path))
        };
        let list = self.spelled_list(list);
        match ["gate_up_proj", "down_proj"].map(targeted) {
            [true, true] => [Some(format!("{list}.base_layer")), Some(list)],
            [true, false] => [Some(list), None],
            [false, true] => [None, Some(list)],
            [false, false] => [None, None],
        }
    }

    /// The path of a list of experts as this adapter spells it.
    pub(super) fn spelled_list(&self, list: &str) -> String {
        let stored = |list: &String| self.weights.has(&format!("base_model.model.{list}.lora_A.weight"));
        Wrapper::spellings(list).into_iter().find(stored).unwrap_or_else(|| list.to_owned())
    }

    /// Its factors for the experts of a layer, in one pair of tensors: A `[experts·r, in]`, an expert's rows together, and
    /// B `[out, r·experts]`, an expert's columns apart.
    pub(super) fn fused<B: Kernels>(
        &mut self,
        list: &str,
        kind: &ExpertsKind,
        hidden: usize,
        dtype: DType,
        device: &B::Device,
    ) -> Result<[Option<FusedLora<B>>; 2]> {
        for (name, found) in self.target_parameters.iter().zip(&mut self.found_parameters) {
            *found |= ["gate_up_proj", "down_proj"].iter().any(|map| is_end_of(name, &format!("{list}.{map}")));
        }
        let shapes = [(hidden, vec![kind.width; 2]), (kind.width, vec![hidden])];
        let mut found = [None, None];
        for ((path, (inputs, outputs)), found) in self.fused_paths(list).into_iter().zip(shapes).zip(&mut found) {
            let Some(path) = path else { continue };
            let (r, experts, width) = (self.r, kind.number, outputs.iter().sum::<usize>());
            let scale = self.lora_alpha / if self.use_rslora { (r as f64).sqrt() } else { r as f64 };
            let mut take = |factor: &str, shape: [usize; 2]| -> Result<Vec<f64>> {
                let name = format!("base_model.model.{path}.{factor}.weight");
                let x = self.weights.take::<Flex>(&name, &shape, Layout::Same, DType::F64, &FlexDevice)?;
                Ok(Flex::download(&x))
            };
            let (a, b) = (take("lora_A", [experts * r, inputs])?, take("lora_B", [width, r * experts])?);
            let upload = |values: Vec<f64>, shape: [usize; 2]| {
                B::upload(TensorData::new(values, shape).convert_dtype(dtype), device)
            };
            let a_of = |e: usize| {
                let value = |at: usize| a[(e * r + at % r) * inputs + at / r];
                upload((0..inputs * r).map(value).collect(), [inputs, r])
            };
            // gate and up are one after the other, or in turn
            let in_turn = matches!(kind.stored, StoredExperts::Stacked { order: StackOrder::Inputs, .. });
            let every = if in_turn { outputs.len() } else { 1 };
            let pieces = outputs.into_iter().enumerate().map(|(piece, outputs)| {
                let start = if in_turn { piece } else { piece * outputs };
                let b_of = |e: usize| {
                    let row = |at: usize| start + at % outputs * every;
                    let value = |at: usize| b[row(at) * r * experts + at / outputs * experts + e];
                    upload((0..r * outputs).map(value).collect(), [r, outputs])
                };
                (0..experts).map(b_of).collect()
            });
            let b = pieces.collect();
            *found = Some(FusedLora { name: path, a: (0..experts).map(a_of).collect(), b, scale });
        }
        Ok(found)
    }

    /// Whether it has its own copies of some of the base's parameters.
    pub fn saves_parameters(&self) -> bool {
        !self.modules_to_save.is_empty() || self.biases || self.replaces_base() || self.taken_apart.is_some()
    }

    /// Whether its copy of the embedding is the output matrix too, where those of the model are one.
    pub fn ensures_tying(&self) -> bool {
        self.ensure_weight_tying
    }

    /// Name under which the adapter stores its own copy of a base parameter: of `modules_to_save`, or a bias that it trains, which is inside
    /// the module that PEFT wraps where that has factors too.
    pub fn saved(&self, parameter: &str) -> Option<String> {
        let (module, tensor) = parameter.rsplit_once('.')?;
        if self.biases && tensor == "bias" {
            let spellings = [format!("{module}.base_layer.bias"), parameter.to_owned()];
            let stored = spellings.map(|name| format!("base_model.model.{name}"));
            return stored.into_iter().find(|name| self.weights.has(name));
        }
        // PEFT wraps every module whose path ends with the name, be it in the middle of a word, with all that is inside
        let around = |end: usize| self.modules_to_save.iter().any(|name| module[..end].ends_with(name.as_str()));
        if !module.match_indices('.').map(|(end, _)| end).chain([module.len()]).any(around) {
            return None;
        }
        let stored = format!("base_model.model.{parameter}");
        self.weights.has(&stored).then_some(stored)
    }

    pub fn weights(&mut self) -> &mut Weights {
        &mut self.weights
    }

    /// Checks that every stored tensor was used and every saved module exists.
    pub fn finish(&self) -> Result<()> {
        let missed = self.target_parameters.iter().zip(&self.found_parameters).find(|(_, found)| !**found);
        if let Some((name, _)) = missed {
            let problem = format!(
                "`{name}` is not supported for this model; supported are the parameters of a layer's experts, gate_up_proj and down_proj"
            );
            return Err(Error::key(&self.config_path, "target_parameters", problem));
        }
        self.weights.finish().map_err(|error| match error {
            Error::Tensor { path, tensor, .. } => {
                let problem = "this tensor changes nothing that is computed here: its module is not one of the linear maps, the \
                               embedding or the output matrix of this model that `target_modules` selects, nor one of \
                               `modules_to_save`";
                Error::Tensor { path, tensor, problem: problem.to_owned() }
            }
            other => other,
        })
    }
}

/// The model that a saved adapter says it belongs to: a folder, or a repository of the hub.
#[must_use]
pub fn base_name(adapter: &Path) -> Option<String> {
    let config = Config::read(&adapter.join("adapter_config.json")).ok()?;
    config.get::<String>("base_model_name_or_path").ok()?
}

/// The model folder that a saved adapter says it belongs to, where there is one: as it is named, or from the adapter's own folder.
#[must_use]
pub fn base_named_by(adapter: &Path) -> Option<PathBuf> {
    let name = base_name(adapter)?;
    let folders = [PathBuf::from(&name), adapter.join(&name)];
    folders.into_iter().find(|path| path.join("config.json").is_file())
}

/// What a saved adapter trains and changes beside A and B of linear maps, in words.
///
/// # Errors
/// Where a file is missing, cannot be read, or is no adapter that is supported.
pub fn adapter_kinds(folder: &Path) -> Result<Vec<String>> {
    let adapter = SavedAdapter::open(folder)?;
    let has = |part: &str| adapter.weights.names().any(|name| name.contains(part));
    let mut kinds = Vec::new();
    if adapter.magnitudes {
        kinds.push("DoRA".to_owned());
    }
    if adapter.biases {
        kinds.push("trained biases".to_owned());
    }
    if has(".lora_embedding_") {
        kinds.push("LoRA on the embedding".to_owned());
    }
    if !adapter.modules_to_save.is_empty() {
        kinds.push(format!("trained copies of {}", adapter.modules_to_save.join(", ")));
    }
    let tokens: usize = adapter.token_indices.values().map(Vec::len).sum();
    if tokens > 0 {
        kinds.push(format!("rows of {tokens} tokens"));
    }
    if !adapter.target_parameters.is_empty() {
        kinds.push("all experts of a layer as one matrix".to_owned());
    }
    kinds.extend(adapter.taken_apart.map(|part| format!("a base taken apart ({})", part.name())));
    Ok(kinds)
}

/// SHA-256 of a saved adapter's config and weights.
///
/// # Errors
/// Where a file is missing, cannot be read, or is no adapter that is supported.
pub fn adapter_hash(folder: &Path) -> Result<String> {
    SavedAdapter::open(folder)?.content_hash()
}
