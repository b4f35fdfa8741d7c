//! The command line as it is meant: checked, with defaults filled in.
use crate::cli::{Bench, Measured, ModelArgs, OnBadRow, Precision, RowArgs};
use crate::device::{Device, dtype_name};
use crate::error::{Error, Result};
use crate::hub::{self, Kind};
use crate::rates;
use std::path::{Path, PathBuf};
use tanglescope_data::{Dataset, Form, Limits, Pair, PairTokens, Reading, TextTokens};
use tanglescope_gram::{Group, plan};
use tanglescope_kernels::{DType, Kernels};
use tanglescope_model::architectures::Description;
use tanglescope_model::{AdapterSource, Decoder, FreshLora, Outline, Scope};

/// A model to load, and what of it is measured.
#[derive(Clone, Debug)]
pub struct ModelOptions {
    /// Where it is.
    pub folder: PathBuf,
    /// Its adapter.
    pub adapter: AdapterSource,
    /// The parameters in question.
    pub scope: Scope,
    /// Number type.
    pub dtype: DType,
    /// Where it runs.
    pub device: Device,
    /// Bytes that it may take.
    pub memory: Option<usize>,
}

/// What of a model is where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placement {
    /// Bytes of all weights.
    pub weights: usize,
    /// Blocks whose weights stay on the device.
    pub resident: usize,
    /// Bytes that the activations of a batch may take; `None` where that is not known.
    pub activations: Option<usize>,
    /// Batches that run side by side.
    pub at_once: usize,
}

impl Placement {
    /// Places a model: weights first, in at most 70 % of a device's memory, and activations in what that leaves.
    pub fn of(options: &ModelOptions, outline: &Outline) -> Self {
        let (outside, block) = outline.values();
        let (outside, block) = (outside * options.dtype.size(), block * options.dtype.size());
        let layers = outline.description.layers();
        let weights = outside + block * layers;
        if options.device.is_cpu() {
            let mut system = sysinfo::System::new();
            system.refresh_memory();
            // half of what is free: estimates leave out small things, and the machine may have other work
            let free = usize::try_from(system.available_memory()).unwrap_or(usize::MAX).saturating_sub(weights) / 2;
            let (at_once, activations) = (plan::AT_ONCE, options.memory.unwrap_or(free));
            return Self { weights, resident: layers, activations: Some(activations / at_once), at_once };
        }
        let at_once = plan::AT_ONCE_ON_DEVICE;
        // a tenth is left to the driver and to what kernels need in passing
        let Some(memory) = options.memory.or_else(|| Some(options.device.memory()? / 10 * 9)) else {
            return Self { weights, resident: layers, activations: None, at_once };
        };
        let room = memory / 10 * 7;
        let resident = if weights <= room { layers } else { room.saturating_sub(outside) / block.max(1) };
        let resident = resident.min(layers);
        Self { weights, resident, activations: Some(memory.saturating_sub(outside + block * resident)), at_once }
    }

    /// Backward rows that a pass over single tokens may have.
    pub fn backward_rows(&self, options: &ModelOptions, outline: &Outline) -> usize {
        let bytes = self.activations.unwrap_or(usize::MAX);
        (bytes / plan::bytes_per_backward_row(&outline.description, options.dtype)).clamp(1, plan::ENOUGH_BACKWARD_ROWS)
    }

    /// Forward rows that a batch may have.
    pub fn rows_per_batch(&self, options: &ModelOptions, outline: &Outline) -> usize {
        let enough = if options.device.is_cpu() { plan::ENOUGH_ROWS } else { plan::ENOUGH_ROWS_ON_DEVICE };
        let bytes = self.activations.unwrap_or(usize::MAX);
        (bytes / plan::bytes_per_row(&outline.description, options.dtype).max(1)).clamp(1, enough)
    }
}

/// A number type that a device computes with.
fn dtype(precision: Precision, device: &Device) -> Result<DType> {
    let (dtype, name) = match precision {
        Precision::F32 => return Ok(DType::F32),
        Precision::F64 if device.is_cpu() => return Ok(DType::F64),
        Precision::F64 => return Err(Error::option("--dtype f64", "runs on the CPU only; add --device cpu")),
        Precision::Bf16 => (DType::BF16, "bf16"),
        Precision::F16 => (DType::F16, "f16"),
    };
    let option = format!("--dtype {name}");
    if device.is_cpu() {
        let problem =
            "runs on cuda and vulkan devices; on the CPU use f32 (bf16 checkpoints stay bf16 in memory there)";
        return Err(Error::option(option, problem));
    }
    match device.computes_with(dtype) {
        true => Ok(dtype),
        false => Err(Error::option(option, format!("{device} does not compute with it; see `tanglescope devices`"))),
    }
}

/// The bytes that `--memory` allows.
fn memory(gib: Option<f64>) -> Result<Option<usize>> {
    if gib.is_some_and(|gib| gib.is_nan() || gib <= 0.0) {
        return Err(Error::option("--memory", "expected a positive number of GiB"));
    }
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    Ok(gib.map(|gib| (gib * 2f64.powi(30)) as usize))
}

impl ModelOptions {
    /// Checks options and chooses the device.
    pub fn new(args: &ModelArgs) -> Result<Self> {
        Self::of(args.model.clone(), args.adapter.clone(), &args.measured)
    }

    /// The same for a model and its adapter.
    pub fn of(folder: PathBuf, adapter: Option<PathBuf>, args: &Measured) -> Result<Self> {
        let folder = hub::resolve(&folder, Kind::Model)?;
        let adapter = adapter.map(|adapter| hub::resolve(&adapter, Kind::Adapter)).transpose()?;
        let scope: Scope = args.scope.parse()?;
        let device = Device::choose(args.device.as_deref())?;
        let dtype = dtype(args.dtype, &device)?;
        let adapter = match (adapter, &scope) {
            (Some(folder), _) => AdapterSource::Saved(folder),
            (None, Scope::Lora | Scope::Trainable) => {
                if args.lora_r == 0 {
                    return Err(Error::option("--lora-r 0", "a rank is at least 1"));
                }
                if args.lora_alpha.is_some_and(|alpha| !(alpha.is_finite() && alpha > 0.0)) {
                    return Err(Error::option("--lora-alpha", "expected a positive number"));
                }
                AdapterSource::Fresh(FreshLora {
                    r: args.lora_r,
                    lora_alpha: args.lora_alpha.unwrap_or(2.0 * args.lora_r as f64),
                    targets: args.lora_targets.clone(),
                    seed: args.seed,
                })
            }
            (None, _) => AdapterSource::None,
        };
        Ok(Self { folder, adapter, scope, dtype, device, memory: memory(args.memory)? })
    }

    /// Checks options of `bench`, whose adapter is always a fresh one.
    pub fn bench(args: &Bench) -> Result<Self> {
        let measured = Measured {
            scope: args.scope.clone(),
            lora_r: args.lora_r,
            lora_alpha: None,
            lora_targets: args.lora_targets.clone(),
            seed: 0,
            dtype: args.dtype,
            device: args.device.clone(),
            memory: args.memory,
        };
        Self::of(args.model.clone().unwrap_or_default(), None, &measured)
    }

    /// What stands for a model's adapter: the hash of a saved one, or the settings of a fresh one.
    pub fn adapter_identity(&self, hash: Option<&str>) -> Option<String> {
        match &self.adapter {
            AdapterSource::None => None,
            AdapterSource::Saved(_) => hash.map(str::to_owned),
            AdapterSource::Fresh(fresh) => Some(format!("fresh {fresh:?}")),
        }
    }

    /// The model's dimensions, read without its weights.
    pub fn outline(&self) -> Result<Outline> {
        Ok(Outline::read(&self.folder, &self.adapter)?)
    }

    /// Loads the model in a number type.
    pub fn load<B: Kernels>(&self, dtype: DType, device: &B::Device) -> Result<Decoder<B>> {
        // what a folder cannot be read for is said by the loader, which looks at everything in order
        let placement = self.outline().ok().map(|outline| Placement::of(self, &outline));
        let resident = placement.map_or(usize::MAX, |p| p.resident);
        let mut model = Decoder::load(&self.folder, &self.adapter, dtype, device, resident)?;
        if let Some(wrapper) = model.description.wrapper {
            eprintln!("model: the text part of a {} model; what images go through is left out", wrapper.model_type);
        }
        if resident < model.description.layers() {
            let layers = model.description.layers();
            eprintln!(
                "memory: {} of {layers} blocks do not fit the device and are copied to it when they are used",
                layers - resident
            );
        }
        model.activation_bytes = placement.and_then(|p| p.activations);
        model.rates = rates::of(&self.device, dtype).0;
        Ok(model)
    }

    /// Says what runs where.
    pub fn announce(&self) {
        eprintln!("device: {}, {}", self.device, dtype_name(self.dtype));
        if let AdapterSource::Fresh(fresh) = &self.adapter {
            let FreshLora { r, lora_alpha, seed, .. } = fresh;
            eprintln!("adapter: none given, so a fresh one (r = {r}, lora_alpha = {lora_alpha}, B = 0, seed {seed})");
        }
    }
}

/// How data is read.
pub fn reading(rows: &RowArgs) -> Result<Reading> {
    if rows.limit == Some(0) {
        return Err(Error::option("--limit 0", "leaves no row"));
    }
    Ok(Reading {
        form: Form { chat: rows.chat, chosen_only: false },
        append_eos: rows.append_eos,
        max_tokens: rows.max_tokens,
        truncate_prompt: rows.truncate_prompt,
        skip_bad_rows: rows.on_bad_row == OnBadRow::Skip,
        limit: rows.limit,
        sample: None,
        split: rows.split.clone(),
        columns: rows.columns.clone().unwrap_or_default(),
    })
}

/// The rows of a data file for the model of a folder; says what was left out or cut.
pub fn read_data(path: &Path, folder: &Path, reading: &Reading, limits: Limits) -> Result<Dataset> {
    let path = &hub::resolve(path, Kind::Data(reading.split.as_deref()))?;
    let data = Dataset::read(path, folder, reading, limits)?;
    for note in &data.notes {
        eprintln!("{}: {note}", path.display());
    }
    for skipped in &data.skipped {
        eprintln!("{}: row {} left out: {}", path.display(), skipped.row, skipped.problem);
    }
    if data.truncated > 0 {
        eprintln!("{}: {} prompts were cut from the left", path.display(), data.truncated);
    }
    Ok(data)
}

/// The tokenizer of a model's folder, where it has one.
pub fn tokenizer(folder: &Path) -> Result<Option<TextTokens>> {
    Ok(folder.join("tokenizer.json").is_file().then(|| TextTokens::open(folder)).transpose()?)
}

/// The rows of a data set as groups for a model, with all their responses.
pub fn whole_groups(model: &Description, data: &Dataset) -> Result<Vec<Group>> {
    let of = |pair: Pair| match pair.group {
        Some(group) => Group::of(model, pair.tokens.prompt, group.responses),
        None => group(model, pair.tokens),
    };
    Ok(data.pairs.iter().map(|pair| pair.map(of)).collect::<tanglescope_data::Result<_>>()?)
}

/// The rows of a data set as groups of two for a model.
pub fn groups(model: &Description, data: &Dataset) -> Result<Vec<Group>> {
    Ok(data
        .pairs
        .iter()
        .map(|pair| pair.map(|pair| group(model, pair.tokens)))
        .collect::<tanglescope_data::Result<_>>()?)
}

/// What a model can take.
pub fn limits(model: &Description) -> Limits {
    Limits { vocabulary: model.vocabulary, positions: model.max_positions }
}

/// A pair as a group of two for a model: branch 0 chosen, branch 1 rejected.
pub fn group(model: &Description, tokens: PairTokens) -> Group {
    Group::of(model, tokens.prompt, vec![tokens.chosen, tokens.rejected])
}
