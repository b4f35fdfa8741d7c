//! Bases that an adapter's initialisation took apart: what it trains began as a part of each weight, and the base keeps the rest.
//! PEFT computes that rest anew wherever it loads such an adapter, and so it is done here, from the weight alone.
use crate::config::Config;
use crate::error::{Error, Result};
use faer::{Mat, MatRef};
use tanglescope_kernels::{DType, FloatTensor, Kernels, TensorData, TensorMetadata};

/// The part of each weight W `[out, in]` that a base is without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TakenApart {
    /// Its r largest singular directions (`PiSSA`, Meng et al., arXiv 2404.02948).
    SingularDirections,
    /// s times its part in the span of its first r columns (`OLoRA`, Büyükakyüz, arXiv 2406.01775).
    FirstColumns,
}

/// `init_lora_weights` values that leave the base as it is.
const KEEP_BASE: [&str; 7] = ["gaussian", "eva", "orthogonal", "default", "kaiming", "true", "false"];

impl TakenApart {
    /// What a config's `init_lora_weights` says.
    ///
    /// # Errors
    /// Where the base depends on what the adapter does not have: samples of data, random numbers, a quantisation.
    pub fn of(config: &Config) -> Result<Option<Self>> {
        let Some(serde_json::Value::String(init)) = config.get::<serde_json::Value>("init_lora_weights")? else {
            return Ok(None);
        };
        let because = match init.to_lowercase().as_str() {
            "pissa" => return Ok(Some(Self::SingularDirections)),
            "olora" => return Ok(Some(Self::FirstColumns)),
            name if KEEP_BASE.contains(&name) => return Ok(None),
            name if name.starts_with("pissa_niter_") => "whose singular directions PEFT estimates with random numbers",
            "corda" => "which is chosen by samples of data that the adapter does not have",
            "loftq" => "a quantisation of the checkpoint that is made anew with each load",
            _ => "which the adapter does not have",
        };
        let problem = format!(
            "`{}` trains on a changed base, {because}. Give the base that was saved beside the adapter as the model and set \
             `init_lora_weights` to true, or convert the adapter: `save_pretrained(..., path_initial_model_for_weight_conversion=...)` \
             in peft",
            crate::error::brief(&init)
        );
        Err(config.refuse("init_lora_weights", problem))
    }

    /// Its name, as it is in configs.
    pub fn name(self) -> &'static str {
        match self {
            Self::SingularDirections => "pissa",
            Self::FirstColumns => "olora",
        }
    }

    /// What is left of a weight `[in, out]`, for factors of rank r and their scale.
    pub fn rest<B: Kernels>(
        self,
        weight: &FloatTensor<B>,
        (r, scale): (usize, f64),
        module: &str,
        (dtype, device): (DType, &B::Device),
    ) -> Result<FloatTensor<B>> {
        let (shape, values) = (weight.shape(), B::download(weight));
        let (inputs, outputs) = (shape[0], shape[1]);
        let w = MatRef::from_row_major_slice(&values, inputs, outputs);
        let r = r.min(inputs).min(outputs);
        // an orthonormal basis of r directions of the outputs, and what part of W in them is taken
        let (basis, part): (Mat<f64>, f64) = match self {
            Self::SingularDirections => {
                let parts = w.thin_svd().map_err(|problem| Error::Option {
                    option: "adapter",
                    problem: format!("the singular values of `{module}` cannot be found: {problem:?}"),
                })?;
                (parts.V().subcols(0, r).to_owned(), 1.0)
            }
            Self::FirstColumns => (w.subrows(0, r).transpose().qr().compute_thin_Q(), scale),
        };
        let taken = (w * &basis) * basis.transpose();
        let rest: Vec<f64> =
            values.iter().enumerate().map(|(at, x)| x - part * taken[(at / outputs, at % outputs)]).collect();
        // a matrix of bfloat16's has a rest that is none
        Ok(B::upload(TensorData::new(rest, [inputs, outputs]).convert_dtype(dtype), device))
    }
}
