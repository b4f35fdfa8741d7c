//! Checkpoints written as Hugging Face folders and PEFT adapters, and read back into a model that is loaded.
use crate::adapter::{AdapterSource, FreshLora, SavedAdapter};
use crate::architectures::{Part, PerLayerKind};
use crate::config::Config;
use crate::decoder::Decoder;
use crate::error::{Error, Result};
use crate::layers::whole;
use crate::load::in_checkpoint;
use crate::scope::{InScope, Parameter, ParameterKind};
use crate::weights::Weights;
use half::{bf16, f16};
use safetensors::{Dtype, View};
use serde_json::{Map, Value, json};
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use tanglescope_checkpoint::{Layout, Tensors};
use tanglescope_kernels::{DType, FloatTensor, Kernels, TensorData, TensorMetadata};

/// Files of a model folder, beside its weights, that a copy of the model needs.
const COPIED: &[&str] = &[
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
];

/// A tensor under the name and in the layout that a file has it in.
struct Stored<B: Kernels> {
    tensor: FloatTensor<B>,
    layout: Layout,
    shape: Vec<usize>,
    dtype: Dtype,
}

impl<B: Kernels> Stored<B> {
    /// `shape` is that of the file.
    fn new(tensor: FloatTensor<B>, layout: Layout, shape: Vec<usize>) -> Self {
        let dtype = match tensor.dtype() {
            DType::F64 => Dtype::F64,
            DType::BF16 => Dtype::BF16,
            DType::F16 => Dtype::F16,
            _ => Dtype::F32,
        };
        Self { tensor, layout, shape, dtype }
    }
}

impl<B: Kernels> View for &Stored<B> {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let mut values = B::download(&self.tensor);
        if let (Layout::Transposed, &[rows, columns]) = (self.layout, self.shape.as_slice()) {
            values = (0..values.len()).map(|i| values[i % columns * rows + i / columns]).collect();
        }
        let mut bytes = Vec::with_capacity(self.data_len());
        // to the type that they came from, so nothing is rounded
        #[allow(clippy::cast_possible_truncation)]
        for value in values {
            match self.dtype {
                Dtype::F64 => bytes.extend(value.to_le_bytes()),
                Dtype::BF16 => bytes.extend(bf16::from_f64(value).to_le_bytes()),
                Dtype::F16 => bytes.extend(f16::from_f64(value).to_le_bytes()),
                _ => bytes.extend((value as f32).to_le_bytes()),
            }
        }
        bytes.into()
    }

    fn data_len(&self) -> usize {
        let size = match self.dtype {
            Dtype::F64 => 8,
            Dtype::BF16 | Dtype::F16 => 2,
            _ => 4,
        };
        self.shape.iter().product::<usize>() * size
    }
}

/// Writes tensors in their own number types to a safetensors file, and flushes it to the disk.
///
/// # Errors
/// Where the file cannot be written.
pub fn write_tensors<B: Kernels>(path: &Path, tensors: Vec<(String, FloatTensor<B>)>) -> Result<()> {
    let stored = |(name, tensor): (String, FloatTensor<B>)| {
        let shape = tensor.shape().to_vec();
        (name, Stored::<B>::new(tensor, Layout::Same, shape))
    };
    write(path, tensors.into_iter().map(stored).collect())
}

fn write<B: Kernels>(path: &Path, mut tensors: Vec<(String, Stored<B>)>) -> Result<()> {
    tensors.sort_by(|a, b| a.0.cmp(&b.0));
    let metadata = Some([("format".to_owned(), "pt".to_owned())].into());
    let views = tensors.iter().map(|(name, stored)| (name, stored));
    let refuse = |problem: String| Error::output(path, problem);
    safetensors::serialize_to_file(views, metadata, path).map_err(|e| refuse(e.to_string()))?;
    File::open(path).and_then(|file| file.sync_all()).map_err(|e| refuse(e.to_string()))
}

/// Reads tensors of a safetensors file `STEM.safetensors` back, under their names, in the shape and number type of others.
///
/// # Errors
/// Where one is missing, of another shape, or not finite.
pub fn read_tensors<B: Kernels>(
    folder: &Path,
    stem: &str,
    like: Vec<(String, FloatTensor<B>)>,
    device: &B::Device,
) -> Result<HashMap<String, FloatTensor<B>>> {
    let mut weights = Weights::open(folder, stem)?;
    let take = |(name, like): (String, FloatTensor<B>)| {
        let tensor = weights.take::<B>(&name, &like.shape(), Layout::Same, like.dtype(), device)?;
        Ok((name, tensor))
    };
    let read = like.into_iter().map(take).collect::<Result<_>>()?;
    weights.finish()?;
    Ok(read)
}

/// Reads every tensor of a safetensors file `STEM.safetensors` in a number type, by name; the shape is what the file says.
///
/// # Errors
/// Where the file cannot be read, or a value is not finite.
pub fn read_all_tensors<B: Kernels>(
    folder: &Path,
    stem: &str,
    dtype: DType,
    device: &B::Device,
) -> Result<BTreeMap<String, FloatTensor<B>>> {
    let mut weights = Weights::open(folder, stem)?;
    let names: Vec<String> = weights.names().map(str::to_owned).collect();
    let take = |name: String| {
        let shape = weights.shape(&name).unwrap_or_default().to_vec();
        let tensor = weights.take::<B>(&name, &shape, Layout::Same, dtype, device)?;
        Ok((name, tensor))
    };
    names.into_iter().map(take).collect()
}

fn write_json(path: &Path, value: &Value) -> Result<()> {
    let text = serde_json::to_string_pretty(value).map_err(|e| Error::file(path, e))?;
    std::fs::write(path, text + "\n").map_err(|e| Error::output(path, e))
}

/// PEFT's description of a fresh adapter.
fn adapter_config<B: Kernels>(model: &Decoder<B>, base: &Path, of: &FreshLora) -> Value {
    let factors = model.parameters().into_iter().filter(|p| p.kind == ParameterKind::Lora);
    let targets: BTreeSet<String> = factors.map(|p| p.module).collect();
    json!({
        "base_model_name_or_path": base.display().to_string(),
        "bias": "none",
        "fan_in_fan_out": model.description.names.conv1d,
        "inference_mode": true,
        "init_lora_weights": true,
        "lora_alpha": of.lora_alpha,
        "lora_dropout": 0.0,
        "peft_type": "LORA",
        "r": of.r,
        "target_modules": targets,
        "task_type": "CAUSAL_LM",
    })
}

impl<B: Kernels> Decoder<B> {
    /// Where a file holds a tensor that [`visit`](Self::visit) shows: the shape of the tensor there, and how this one lies in it.
    fn place(&self, name: &str, parameter: &Parameter, tensor: &FloatTensor<B>) -> (Vec<usize>, Layout) {
        let of = &self.description;
        let kept: Vec<usize> = tensor.shape().to_vec();
        if let (Some(experts), true) = (of.experts.as_ref(), name.contains('#')) {
            return experts.place(name, &kept);
        }
        // a vector of a block may have had more dimensions
        if let (Some(layer), [_]) = (parameter.layer, &kept[..]) {
            let shape = of.parts(layer).into_iter().find_map(|part| match part {
                Part::Vector { name, shape } if *name == *parameter.module => Some(shape),
                _ => None,
            });
            return (shape.unwrap_or(kept), Layout::Same);
        }
        // B of the output matrix's change is kept as it is stored
        let of_table = parameter.kind == ParameterKind::Lora && parameter.layer.is_none();
        let of_table = of_table && self.tables.head.as_ref().is_none_or(|head| head.names[1] != name);
        let of_map = parameter.layer.is_some() || of_table || parameter.module.ends_with(PerLayerKind::OUTSIDE[1]);
        let linear = of_map && kept.len() == 2;
        let as_stored = parameter.kind != ParameterKind::Lora && of.names.conv1d;
        match linear && !as_stored {
            true => (kept.into_iter().rev().collect(), Layout::Transposed),
            false => (kept, Layout::Same),
        }
    }

    /// Shows some parameters with the shape of the tensor that a file has them in, and how they lie there.
    fn visit_stored(
        &mut self,
        chosen: impl Fn(&Parameter) -> bool,
        f: &mut impl FnMut(&str, Vec<usize>, Layout, &mut FloatTensor<B>),
    ) {
        let parameters: HashMap<String, Parameter> =
            self.parameters().into_iter().map(|parameter| (parameter.name.clone(), parameter)).collect();
        let model = self.clone();
        self.visit(&|name| chosen(&parameters[name]), &mut |name, _, tensor| {
            let parameter = &parameters[whole(name)];
            if chosen(parameter) {
                let (shape, layout) = model.place(name, parameter, tensor);
                f(name, shape, layout, tensor);
            }
        });
    }

    /// The stored form of some parameters: parts of one tensor are put together.
    fn stored(&self, chosen: impl Fn(&Parameter) -> bool) -> Vec<(String, Stored<B>)> {
        let mut out: Vec<(String, Stored<B>)> = Vec::new();
        let mut stacks: BTreeMap<String, (Vec<usize>, Vec<f64>)> = BTreeMap::new();
        self.clone().visit_stored(chosen, &mut |name, shape, layout, tensor| {
            if matches!(layout, Layout::Same | Layout::Transposed) {
                out.push((name.to_owned(), Stored::new(tensor.clone(), layout, shape)));
                return;
            }
            let values = shape.iter().product();
            let stack = stacks.entry(whole(name).to_owned());
            let (shape, all) = stack.or_insert_with(|| (shape, vec![0.0; values]));
            layout.put(&B::download(tensor), shape, all);
        });
        out.extend(stacks.into_iter().map(|(name, (shape, values))| {
            let tensor = TensorData::new(values, shape.clone()).convert_dtype(self.dtype);
            (name, Stored::new(B::upload(tensor, &self.device), Layout::Same, shape))
        }));
        out
    }

    /// Writes the model into a folder, as transformers and PEFT load it: the adapter alone where there is one, else all
    /// weights, with the config and tokenizer of the folder that it was loaded from.
    ///
    /// # Errors
    /// Where a file cannot be read or written.
    pub fn save(&self, base: &Path, source: &AdapterSource, folder: &Path) -> Result<()> {
        let config = match source {
            AdapterSource::None => return self.save_model(base, folder),
            AdapterSource::Fresh(fresh) => adapter_config(self, base, fresh),
            AdapterSource::Saved(adapter) => read_json(&adapter.join("adapter_config.json"))?,
        };
        let adapter = self.stored(|parameter| self.is_of_adapter(parameter));
        let name_of = adapter_names(source)?;
        let named = adapter.into_iter().map(|(name, stored)| (name_of(&name), stored)).collect();
        write(&folder.join("adapter_model.safetensors"), named)?;
        write_json(&folder.join("adapter_config.json"), &config)
    }

    /// Whether an adapter's file has a parameter: it is trained, or was there beside what is.
    fn is_of_adapter(&self, parameter: &Parameter) -> bool {
        parameter.kind != ParameterKind::Base || self.wrapped.contains(&parameter.name)
    }

    fn save_model(&self, base: &Path, folder: &Path) -> Result<()> {
        let mut stored = self.stored(|_| true);
        stored.extend(self.constants(base)?);
        write(&folder.join("model.safetensors"), stored)?;
        let mut config = Config::of_model(base)?.into_value();
        // what is written is not quantised
        let parts = [config.as_object_mut()].into_iter().flatten();
        parts.for_each(|of| drop(of.shift_remove("quantization_config")));
        // transformers loads weights in the type that the config names
        let dtype = if self.dtype == DType::F64 { "float64" } else { "float32" };
        let keys: Vec<&str> = ["dtype", "torch_dtype"].into_iter().filter(|key| config.get(key).is_some()).collect();
        for key in if keys.is_empty() { vec!["dtype"] } else { keys } {
            config[key] = json!(dtype);
        }
        write_json(&folder.join("config.json"), &config)?;
        for name in COPIED {
            let from = base.join(name);
            if from.is_file() {
                std::fs::copy(&from, folder.join(name)).map_err(|e| Error::output(&folder.join(name), e))?;
            }
        }
        Ok(())
    }

    /// Reads back what [`save`](Self::save) wrote.
    ///
    /// # Errors
    /// Where a tensor is missing, of another shape, or not finite.
    pub fn restore(&mut self, source: &AdapterSource, folder: &Path) -> Result<()> {
        let stem = if *source == AdapterSource::None { "model" } else { "adapter_model" };
        let name_of = adapter_names(source)?;
        let mut weights = Weights::open(folder, stem)?;
        let all = *source == AdapterSource::None;
        self.constant_names().iter().for_each(|name| weights.ignore(name));
        let (mut read, device) = (Ok(()), self.device.clone());
        let of_adapter = self.clone();
        self.visit_stored(
            |parameter| all || of_adapter.is_of_adapter(parameter),
            &mut |name, shape, layout, tensor| {
                if read.is_err() {
                    return;
                }
                let path = name_of(whole(name));
                match weights.take::<B>(&path, &shape, layout, tensor.dtype(), &device) {
                    Ok(found) => *tensor = B::reshape(found, tensor.shape()),
                    Err(error) => read = Err(error),
                }
            },
        );
        read?;
        weights.finish()
    }

    /// Reads a tensor for every parameter in scope, kept as the model keeps the parameter and stored as a checkpoint stores it: the second
    /// moments of an optimizer. `name_of` gives its name there.
    ///
    /// # Errors
    /// Where one has no name, is missing, of another shape, or not finite.
    pub fn read_stored(
        &self,
        scope: &InScope,
        tensors: Arc<Tensors>,
        name_of: impl Fn(&str) -> Option<String>,
        dtype: DType,
    ) -> Result<HashMap<String, FloatTensor<B>>> {
        let (mut weights, device) = (Weights::of(tensors), self.device.clone());
        let mut found: Result<HashMap<String, FloatTensor<B>>> = Ok(HashMap::new());
        let chosen = |parameter: &Parameter| scope.contains(&parameter.name);
        self.clone().visit_stored(chosen, &mut |name, shape, layout, tensor| {
            let Ok(all) = &mut found else { return };
            let path = name_of(whole(name)).unwrap_or_else(|| name.to_owned());
            match weights.take::<B>(&path, &shape, layout, dtype, &device) {
                Ok(read) => drop(all.insert(name.to_owned(), B::reshape(read, tensor.shape()))),
                Err(error) => found = Err(error),
            }
        });
        found
    }

    /// Names of what is added to sigmoids of routers, and of factors on blocks' outputs: no parameters, and a part of the model.
    fn constant_names(&self) -> Vec<String> {
        let of = &self.description;
        let blocks = in_checkpoint(of, self.bare);
        let correction = |layer| of.experts_of(layer).and_then(|experts| experts.correction);
        let of_block =
            |layer| correction(layer).into_iter().chain(of.names.output_scale).map(move |name| (layer, name));
        (0..of.layers()).flat_map(of_block).map(|(layer, name)| format!("{blocks}.{layer}.{name}")).collect()
    }

    /// Those, as the folder has them that the model was loaded from.
    fn constants(&self, base: &Path) -> Result<Vec<(String, Stored<B>)>> {
        let names = self.constant_names();
        if names.is_empty() {
            return Ok(Vec::new());
        }
        let mut weights = Weights::open(base, "model")?;
        let mut read = |name: String| {
            let shape = weights.shape(&name).unwrap_or_default().to_vec();
            let tensor = weights.take::<B>(&name, &shape, Layout::Same, self.dtype, &self.device)?;
            Ok((name, Stored::new(tensor, Layout::Same, shape)))
        };
        names.into_iter().map(&mut read).collect()
    }
}

/// What a file of an adapter calls a parameter, or of a whole model.
fn adapter_names(source: &AdapterSource) -> Result<impl Fn(&str) -> String> {
    let adapter = match source {
        AdapterSource::Saved(folder) => Some(SavedAdapter::open(folder)?),
        AdapterSource::None | AdapterSource::Fresh(_) => None,
    };
    let prefix = if *source == AdapterSource::None { "" } else { "base_model.model." };
    let saved = move |name: &str| adapter.as_ref().and_then(|of| of.saved(name).or_else(|| of.wrapped(name)));
    Ok(move |name: &str| saved(name).unwrap_or_else(|| format!("{prefix}{name}")))
}

fn read_json(path: &Path) -> Result<Value> {
    let text = std::fs::read(path).map_err(|e| Error::file(path, e))?;
    let object: Map<String, Value> = serde_json::from_slice(&text).map_err(|e| Error::file(path, e))?;
    Ok(Value::Object(object))
}
