//! Rotary position embedding: the angle of each position and pair of dimensions (docs/mathematics.md, section 3).
use crate::config::Config;
use crate::error::Result;
use std::f64::consts::PI;

/// Inverse frequencies, scaled as the config asks: angle = position · `inverse[i]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// `[head_dim / 2]`.
    pub inverse: Vec<f64>,
}

impl Rope {
    /// Reads `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (transformers 4).
    ///
    /// # Errors
    /// Where the scaling is of a type other than `default`, `linear` or `llama3`, or lacks a number.
    pub fn read(config: &Config, head_dim: usize) -> Result<Self> {
        let (key, parameters) = match config.object("rope_parameters")? {
            Some(parameters) => ("rope_parameters", Some(parameters)),
            None => ("rope_scaling", config.object("rope_scaling")?),
        };
        let within = match &parameters {
            Some(parameters) => parameters.get("rope_theta")?,
            None => None,
        };
        let theta: f64 = match within {
            Some(theta) => theta,
            None => config.get("rope_theta")?.unwrap_or(10_000.0),
        };
        let part: Option<f64> = config.get("partial_rotary_factor")?;
        if part.is_some_and(|p| p < 1.0) {
            return Err(config.refuse("partial_rotary_factor", "only 1 is supported for this architecture"));
        }
        let mut inverse: Vec<f64> = (0..head_dim / 2).map(|i| theta.powf(-2.0 * i as f64 / head_dim as f64)).collect();
        let Some(parameters) = parameters else { return Ok(Self { inverse }) };
        let kind: Option<String> = match parameters.get("rope_type")? {
            Some(kind) => Some(kind),
            None => parameters.get("type")?,
        };
        match kind.as_deref().unwrap_or("default") {
            "default" => {}
            "linear" => {
                let factor: f64 = parameters.need("factor")?;
                inverse.iter_mut().for_each(|f| *f /= factor);
            }
            "llama3" => {
                let factor: f64 = parameters.need("factor")?;
                let (low, high): (f64, f64) =
                    (parameters.need("low_freq_factor")?, parameters.need("high_freq_factor")?);
                let original: f64 = parameters.need("original_max_position_embeddings")?;
                for f in &mut inverse {
                    let turns = original * *f / (2.0 * PI);
                    if turns < low {
                        *f /= factor;
                    } else if turns <= high {
                        let smooth = (turns - low) / (high - low);
                        *f = (1.0 - smooth) * *f / factor + smooth * *f;
                    }
                }
            }
            other => {
                return Err(config
                    .refuse(key, format!("rope type `{other}` is not supported; supported: default, linear, llama3")));
            }
        }
        Ok(Self { inverse })
    }

    /// cos and sin of every position's angles, `[positions, head_dim / 2]`.
    #[must_use]
    pub fn tables(&self, positions: &[u32]) -> (Vec<f64>, Vec<f64>) {
        positions
            .iter()
            .flat_map(|&p| self.inverse.iter().map(move |f| f64::from(p) * f))
            .map(|a| (a.cos(), a.sin()))
            .unzip()
    }
}
