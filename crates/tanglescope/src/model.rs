//! A model as a call uses it: its options checked, its device chosen, its weights loaded.
use crate::device::{Device, names};
use crate::error::{Error, Result};
use crate::folder::{Kind, expect};
use crate::listener::Listener;
use crate::options::{Derivative, Measured, ModelOptions};
use crate::placement::Placement;
use crate::rates;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tanglescope_kernels::{DType, Flex, Kernels, Memory};
use tanglescope_model::{
    AdapterSource, ColumnNorms, Decoder, FreshLora, HeldModel, Outline, Places, Scope, Values, base_name,
    bytes_per_value,
};
use tanglescope_records::absolute;

/// A model to load, and what of it is measured.
#[derive(Clone, Debug)]
pub(crate) struct Model {
    /// Where it is.
    pub folder: PathBuf,
    /// Its weights, where another library holds them in memory; the folder then has its config and tokenizer.
    pub held: Option<Arc<HeldModel>>,
    /// Its adapter.
    pub adapter: AdapterSource,
    /// The parameters in question.
    pub scope: Scope,
    /// Whether the padding token's row of the embedding is trained.
    pub padding_row: Derivative,
    /// Whether gradients go through the norms of columns of a `DoRA` adapter.
    pub dora_norm: Derivative,
    /// Number type.
    pub dtype: DType,
    /// Where it runs.
    pub device: Device,
    /// Devices that have a copy of it each and share the work, that one among them.
    pub devices: Vec<Device>,
    /// Bytes that it may take.
    pub memory: Option<usize>,
}

/// The bytes of some GiB.
fn bytes(gib: Option<f64>) -> Result<Option<usize>> {
    if gib.is_some_and(|gib| !(gib.is_finite() && gib > 0.0)) {
        return Err(Error::option("memory", "expected a positive number of GiB, which is finite"));
    }
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    Ok(gib.map(|gib| (gib * 2f64.powi(30)) as usize))
}

impl Model {
    /// Checks options and chooses the device.
    pub fn new(options: &ModelOptions) -> Result<Self> {
        expect(Kind::Model, "model", &options.model)?;
        Self::of(options.model.clone(), options.adapter.clone(), &options.measured)
    }

    /// The same of a model that another library holds in memory.
    pub fn of_held(held: Arc<HeldModel>, adapter: Option<PathBuf>, options: &Measured) -> Result<Self> {
        Ok(Self { held: Some(held.clone()), ..Self::of(held.folder.clone(), adapter, options)? })
    }

    /// What it is called in manifests.
    pub fn called(&self) -> PathBuf {
        match &self.held {
            Some(held) => PathBuf::from(&held.called),
            None => absolute(&self.folder),
        }
    }

    /// The same for a model and its adapter.
    pub fn of(folder: PathBuf, adapter: Option<PathBuf>, options: &Measured) -> Result<Self> {
        if let Some(adapter) = &adapter {
            expect(Kind::Adapter, "adapter", adapter)?;
        }
        let devices = Device::choose(options.device.as_ref())?;
        let dtypes = devices.iter().map(|device| options.dtype.on(device)).collect::<Result<Vec<_>>>()?;
        let devices: Vec<Device> = devices.into_iter().map(|device| device.multiplying(options.dtype)).collect();
        let (device, dtype) = (devices[0].clone(), dtypes[0]);
        let adapter = match (adapter, &options.scope) {
            (Some(folder), _) => AdapterSource::Saved(folder),
            (None, Scope::Lora | Scope::Trainable) => {
                if options.lora_r == 0 {
                    return Err(Error::value("lora_r", 0, "a rank is at least 1"));
                }
                if options.lora_alpha.is_some_and(|alpha| !(alpha.is_finite() && alpha > 0.0)) {
                    return Err(Error::option("lora_alpha", "expected a positive number"));
                }
                AdapterSource::Fresh(FreshLora {
                    r: options.lora_r,
                    lora_alpha: options.lora_alpha.unwrap_or(2.0 * options.lora_r as f64),
                    targets: options.lora_targets.clone(),
                    seed: options.seed,
                })
            }
            (None, _) => AdapterSource::None,
        };
        let Measured { padding_row, dora_norm, .. } = *options;
        let (scope, memory) = (options.scope.clone(), bytes(options.memory)?);
        Ok(Self { folder, held: None, adapter, scope, padding_row, dora_norm, dtype, device, devices, memory })
    }

    /// The same on one of the devices.
    pub fn on(&self, device: &Device) -> Self {
        Self { device: device.clone(), ..self.clone() }
    }

    /// Refuses several devices, for what runs on one.
    pub fn on_one_device(self) -> Result<Self> {
        match self.devices.len() {
            1 => Ok(self),
            _ => Err(Error::value(
                "device",
                names(&self.devices),
                "this runs on one device; expected one, such as cuda:0",
            )),
        }
    }

    /// What stands for a model's adapter: the hash of a saved one, or the settings of a fresh one.
    pub fn adapter_identity(&self, hash: Option<&str>) -> Option<String> {
        match &self.adapter {
            AdapterSource::None => None,
            AdapterSource::Saved(_) => hash.map(str::to_owned),
            AdapterSource::Fresh(FreshLora { r, lora_alpha, targets, seed }) => {
                let targets = if targets.is_empty() { "attention".to_owned() } else { targets.join("+") };
                Some(format!("fresh, r {r}, lora_alpha {lora_alpha}, on {targets}, seed {seed}"))
            }
        }
    }

    /// Folder of a saved adapter.
    pub fn adapter_folder(&self) -> Option<&Path> {
        match &self.adapter {
            AdapterSource::Saved(folder) => Some(folder),
            AdapterSource::None | AdapterSource::Fresh(_) => None,
        }
    }

    /// Where its tokenizer and chat template are looked for: an adapter may have its own.
    pub fn tokenizer_folders(&self) -> Vec<&Path> {
        self.adapter_folder().into_iter().chain([self.folder.as_path()]).collect()
    }

    /// Bytes that weights take on the host, where matrices stay in bfloat16 that are stored so, or on the device: of what is outside the
    /// blocks, and of the largest block.
    pub(crate) fn bytes_of_weights(&self, outline: &Outline, on_host: bool) -> [usize; 2] {
        let kept = on_host && Flex::takes_stored(DType::BF16);
        let per_value = match &self.held {
            Some(held) => Ok(held.bytes_per_value(self.dtype, kept)),
            None => bytes_per_value(&self.folder, &outline.description, self.dtype, kept),
        };
        let [of_outside, of_block] = per_value.unwrap_or([self.dtype.size() as f64; 2]);
        let Values { outside, numbers_outside, block, numbers_of_block } = outline.values();
        let size = self.dtype.size();
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // a number of bytes
        let bytes = |values: usize, each: f64| (values as f64 * each).ceil() as usize;
        [bytes(outside, of_outside) + numbers_outside * size, bytes(block, of_block) + numbers_of_block * size]
    }

    /// The model's dimensions, read without its weights.
    pub fn outline(&self) -> Result<Outline> {
        Ok(Outline::read(&self.folder, &self.adapter)?)
    }

    /// The padding token whose row of the embedding is in scope and not trained by its places in a sequence.
    pub fn padding_token(&self) -> Result<Option<u32>> {
        if self.padding_row == Derivative::Exact {
            return Ok(None);
        }
        let outline = self.outline()?;
        // a scope that selects nothing is refused where the model is loaded
        Ok(outline.in_scope(&self.scope).ok().and_then(|scope| outline.padding_row(&scope)))
    }

    /// Whether gradients go through norms that trainers hold fixed.
    pub fn through_dora_norm(&self) -> Result<bool> {
        Ok(self.dora_norm == Derivative::Exact && self.outline()?.description.column_norms.is_some())
    }

    /// Loads the model in a number type.
    pub fn load<B: Kernels>(&self, dtype: DType, device: &B::Device, listener: &dyn Listener) -> Result<Decoder<B>> {
        // what a folder cannot be read for is said by the loader, which looks at everything in order
        let outline = self.outline().ok();
        let placement = outline.as_ref().map(|outline| Placement::of(self, outline));
        let places = placement.map_or(Places::DEVICE, |p| p.places);
        let in_files = outline.zip(placement).map_or(0, |(outline, of)| of.in_files(outline.description.layers()));
        if in_files > 0 {
            listener.short_of_memory();
        }
        let mut model = match &self.held {
            Some(held) => Decoder::load_held(held, &self.adapter, dtype, device, places)?,
            None => Decoder::load(&self.folder, &self.adapter, dtype, device, places)?,
        };
        model.stop = listener.stop().cloned().unwrap_or_default();
        self.settle(&mut model);
        if let Some(init) = model.taken_apart {
            listener.note(&format!(
                "adapter: `init_lora_weights` is {init}: the base is without the part of each weight that the factors began as, \
                 computed anew as peft does"
            ));
        }
        if let Some(wrapper) = model.description.wrapper {
            listener.left_out(&format!(
                "model: the text part of a {} model; what images go through is left out",
                wrapper.model_type
            ));
        }
        if !model.quantised.is_empty() {
            let ways = model.quantised.iter().copied().collect::<Vec<_>>().join(", ");
            listener.note(&format!(
                "model: weights are stored as {ways}; what is measured is the function of the values that those stand for"
            ));
        }
        let trained_on = self.adapter_folder().and_then(base_name).filter(|name| name.contains("bnb-4bit"));
        if let Some(name) = trained_on {
            let how = match model.quantised.is_empty() {
                true => format!(
                    "is measured on plain weights; option `model` = {name} measures it on those that it was trained on"
                ),
                false => "is measured on such; option `reference` = the plain model shows what that changes".to_owned(),
            };
            listener
                .note(&format!("adapter: it was trained on {name}, whose weights are quantised to 4 bits, and {how}"));
        }
        let layers = model.description.layers();
        let in_host = places.host.min(layers.saturating_sub(places.device));
        if in_host > 0 {
            listener.fell_back(&format!(
                "memory: {in_host} of {layers} blocks do not fit the device and are copied to it when they are used"
            ));
        }
        if in_files > 0 {
            listener.fell_back(&format!(
                "memory: {in_files} of {layers} blocks do not fit and are read from the checkpoint's files whenever they are used"
            ));
            if let Some(init) = model.taken_apart {
                listener.fell_back(&format!(
                    "memory: weights that the adapter changes stay there all the same, since `{init}` took a part of each; convert the adapter"
                ));
            }
        }
        if let (Some(held), Some(memory)) = (placement.map(|of| of.held), self.memory.filter(|_| self.device.is_cpu()))
            && held > memory
        {
            let [held, memory] = [held, memory].map(|bytes| bytes as f64 / f64::from(1u32 << 30));
            listener.fell_back(&format!(
                "memory: {memory:.2} GiB are less than the tables of tokens and two blocks take, {held:.2} GiB, without which it cannot run"
            ));
        }
        model.activation_bytes = placement.and_then(|p| p.activations);
        // one plan for all devices that share the work
        model.rates = rates::of(&self.devices[0], dtype).0;
        Ok(model)
    }

    /// Takes the derivatives that are asked for.
    pub fn settle<B: Kernels>(&self, model: &mut Decoder<B>) {
        if self.padding_row == Derivative::Exact {
            model.description.padding_row = None;
        }
        if self.dora_norm == Derivative::Exact {
            let norms = &mut model.description.column_norms;
            *norms = norms.map(|_| ColumnNorms::Differentiated);
        }
    }

    /// What its number type is called in manifests.
    pub fn number_type(&self) -> &'static str {
        self.device.number_type(self.dtype)
    }

    /// Says what runs where.
    pub fn announce(&self, listener: &dyn Listener) {
        listener.note(&format!("device: {}, {}", names(&self.devices), self.number_type()));
        if let Some(slower) = self.device.slower_products() {
            listener.note(&format!("device: {slower}"));
        }
        if let Ok(Some(token)) = self.padding_token() {
            listener.note(&format!(
                "embedding: its row of pad_token_id {token} is not trained by the token's places in a sequence, as in torch; option \
                 `padding_row` = exact takes the function's derivative"
            ));
        }
        if self.dora_norm == Derivative::Trainer
            && self.outline().is_ok_and(|outline| outline.description.column_norms.is_some())
        {
            listener.note(
                "adapter: DoRA, whose norms of columns are held fixed in gradients, as in peft; option `dora_norm` = exact goes \
                 through them",
            );
        }
        if let AdapterSource::Fresh(fresh) = &self.adapter {
            let FreshLora { r, lora_alpha, seed, .. } = fresh;
            listener.note(&format!(
                "adapter: none given, so a fresh one (r = {r}, lora_alpha = {lora_alpha}, B = 0, seed {seed})"
            ));
        }
    }
}
