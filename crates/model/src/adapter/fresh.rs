//! An adapter that no training has touched, as PEFT starts one.
use super::Place;
use super::targets::named;
use crate::error::{Error, Result};
use crate::layers::{Lora, Matrix};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, Uniform};
use tanglescope_kernels::{DType, Kernels, TensorData};

/// Settings of a fresh adapter.
#[derive(Clone, Debug, PartialEq)]
pub struct FreshLora {
    /// Rank.
    pub r: usize,
    /// α; the factor on B A x is α/r.
    pub lora_alpha: f64,
    /// Module names, as PEFT's `target_modules`; the attention projections where empty.
    pub targets: Vec<String>,
    /// Seed of A.
    pub seed: u64,
}

/// Makes the factors, module after module.
pub(crate) struct Fresh {
    settings: FreshLora,
    random: ChaCha8Rng,
    /// Whether each of the targets was a module's name.
    hits: Vec<bool>,
}

impl Fresh {
    pub fn new(settings: &FreshLora) -> Self {
        Self {
            random: ChaCha8Rng::seed_from_u64(settings.seed),
            hits: vec![false; settings.targets.len()],
            settings: settings.clone(),
        }
    }

    /// Rank of a module's factors, `None` where it is left alone.
    pub fn rank(&mut self, module: &str, attention: bool) -> Option<usize> {
        let mut chosen = self.settings.targets.is_empty() && attention;
        for (target, hit) in self.settings.targets.iter().zip(&mut self.hits) {
            if named(std::slice::from_ref(target), module) {
                (chosen, *hit) = (true, true);
            }
        }
        chosen.then_some(self.settings.r)
    }

    /// Factors for one module.
    pub fn factors<B: Kernels>(
        &mut self,
        module: &str,
        place: Place,
        weight: &Matrix<B>,
        dtype: DType,
        device: &B::Device,
    ) -> Result<Option<Lora<B>>> {
        let [inputs, outputs] = weight.dims();
        let Some(r) = self.rank(module, place.attention) else { return Ok(None) };
        if r > inputs.max(outputs) {
            let problem = format!("{r} is more than `{module}` has rows or columns ({inputs} and {outputs})");
            return Err(Error::Option { option: "lora_r", problem });
        }
        let bound = (inputs as f64).sqrt().recip();
        let uniform =
            Uniform::new(-bound, bound).map_err(|e| Error::Option { option: "lora_r", problem: e.to_string() })?;
        let a: Vec<f64> = (0..inputs * r).map(|_| uniform.sample(&mut self.random)).collect();
        let upload = |values: Vec<f64>, shape| B::upload(TensorData::new(values, shape).convert_dtype(dtype), device);
        Ok(Some(Lora {
            name: module.to_owned(),
            a: upload(a, [inputs, r]),
            b: upload(vec![0.0; r * outputs], [r, outputs]),
            scale: self.settings.lora_alpha / r as f64,
            magnitude: None,
        }))
    }

    pub fn finish(&self) -> Result<()> {
        match self.settings.targets.iter().zip(&self.hits).find(|(_, hit)| !**hit) {
            None => Ok(()),
            Some((target, _)) => Err(Error::Option {
                option: "lora_targets",
                problem: format!("`{target}` is no linear map of this model's blocks"),
            }),
        }
    }
}
