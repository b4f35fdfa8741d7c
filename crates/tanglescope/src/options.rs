//! The command line as it is meant: checked, with defaults filled in.
use crate::cli::{DataArgs, ModelArgs, OnBadRow, Precision};
use crate::device::Device;
use crate::error::{Error, Result};
use tanglescope_data::{Limits, PairTokens, Reading};
use tanglescope_gram::Group;
use tanglescope_kernels::{DType, Kernels};
use tanglescope_model::{AdapterSource, Decoder, FreshLora, Scope};

/// A model to load, and what of it is measured.
#[derive(Clone, Debug)]
pub struct ModelOptions {
    /// Where it is.
    pub folder: std::path::PathBuf,
    /// Its adapter.
    pub adapter: AdapterSource,
    /// The parameters in question.
    pub scope: Scope,
    /// Number type.
    pub dtype: DType,
    /// Where it runs.
    pub device: Device,
}

impl ModelOptions {
    /// Checks options and chooses the device.
    pub fn new(args: &ModelArgs) -> Result<Self> {
        let scope: Scope = args.scope.parse()?;
        let device = Device::choose(args.device.as_deref())?;
        let dtype = match args.dtype {
            Precision::F32 => DType::F32,
            Precision::F64 if device.is_cpu() => DType::F64,
            Precision::F64 => return Err(Error::option("--dtype f64", "runs on the CPU only; add --device cpu")),
        };
        let adapter = match (&args.adapter, &scope) {
            (Some(folder), _) => AdapterSource::Saved(folder.clone()),
            (None, Scope::Lora | Scope::Trainable) => {
                if args.lora_r == 0 {
                    return Err(Error::option("--lora-r 0", "a rank is at least 1"));
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
        Ok(Self { folder: args.model.clone(), adapter, scope, dtype, device })
    }

    /// Loads the model in a number type.
    pub fn load<B: Kernels>(&self, dtype: DType, device: &B::Device) -> Result<Decoder<B>> {
        Ok(Decoder::load(&self.folder, &self.adapter, dtype, device)?)
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

/// Name of a number type on the command line.
pub fn dtype_name(dtype: DType) -> &'static str {
    if dtype == DType::F64 { "f64" } else { "f32" }
}

/// How data is read.
pub fn reading(args: &DataArgs) -> Result<Reading> {
    if args.limit == Some(0) {
        return Err(Error::option("--limit 0", "leaves no row"));
    }
    Ok(Reading {
        chat: args.chat,
        append_eos: args.append_eos,
        max_tokens: args.max_tokens,
        truncate_prompt: args.truncate_prompt,
        skip_bad_rows: args.on_bad_row == OnBadRow::Skip,
        limit: args.limit,
    })
}

/// What a model can take.
pub fn limits<B: Kernels>(model: &Decoder<B>) -> Limits {
    Limits { vocabulary: model.description.vocabulary, positions: model.description.max_positions }
}

/// A pair as a group of two: branch 0 chosen, branch 1 rejected.
pub fn group(tokens: PairTokens) -> Group {
    Group { prompt: tokens.prompt, responses: vec![tokens.chosen, tokens.rejected] }
}
