//! Rotary position embedding: the angle of each position and pair of dimensions (docs/mathematics.md, section 3).
use crate::config::Config;
use crate::error::Result;
use std::borrow::Cow;
use std::collections::HashMap;
use std::f64::consts::PI;
use tanglescope_kernels::Pairs;

/// Keys that transformers knows in rotary parameters, and leaves unread for types that do not use them.
const KNOWN: &[&str] = &[
    "attention_factor",
    "beta_fast",
    "beta_slow",
    "factor",
    "high_freq_factor",
    "long_factor",
    "low_freq_factor",
    "mscale",
    "mscale_all_dim",
    "original_max_position_embeddings",
    "partial_rotary_factor",
    "rope_theta",
    "rope_type",
    "short_factor",
    "truncate",
    "type",
];

/// How the inverse frequencies come about.
#[derive(Clone, Debug, PartialEq)]
enum Frequencies {
    /// The same for sequences of every length.
    Fixed(Vec<f64>),
    /// `dynamic`: the base grows with a sequence that is longer than the original length.
    Dynamic { theta: f64, dimensions: usize, factor: f64, original: usize },
    /// `longrope`: one set for sequences up to the original length, one for longer ones.
    Long { short: Vec<f64>, long: Vec<f64>, original: usize },
}

/// Inverse frequencies, scaled as the config asks: angle = position · inverse frequency.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    frequencies: Frequencies,
    /// Factor on cos and sin (`yarn`, `longrope`).
    attention_factor: f64,
    /// Pairs of values that are rotated in each head.
    pub pairs: usize,
    /// Longest sequence that the frequencies are made for; no bound of their own where there is none.
    pub reach: Option<usize>,
    /// Which values of a head are rotated together.
    pub rotated: Pairs,
    /// A factor that grows with the position.
    temperature: Option<Temperature>,
    /// DeepSeek's factor on attention's scores, beside that on cos and sin.
    pub(crate) score_scale: f64,
}

/// `1 + β ln(1 + ⌊position/original⌋)`: Llama 4's and Ministral 3's factor on queries.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Temperature {
    /// β.
    pub beta: f64,
    /// Positions before it begins to grow.
    pub original: usize,
}

impl Temperature {
    fn at(self, position: u32) -> f64 {
        1.0 + self.beta * (1.0 + f64::from(position) / self.original as f64).floor().ln()
    }
}

/// What a config leaves to the architecture.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RopeDefaults {
    /// θ, and the key that may have it outside the rotary parameters.
    pub theta: (&'static str, f64),
    /// The part of a head that is rotated, and its key; `None` where the architecture rotates whole heads.
    pub part: Option<(&'static str, f64)>,
    /// Whether `su` and `yarn` stand for `longrope`, as in older configs of Phi-3.
    pub long_by_other_names: bool,
    /// Whether angles have sections for time, height and width, whose positions are all a text's own, so that they change nothing.
    pub sections: bool,
    /// Whether neighbours are rotated together, and not values half a head apart.
    pub neighbours: bool,
    /// The part of a head that `proportional` rotates where nothing is said, for architectures that have this type; it is theirs where there
    /// are no parameters at all.
    pub proportional: Option<f64>,
    /// Keys that the architecture reads itself.
    pub others: &'static [&'static str],
}

impl Default for RopeDefaults {
    fn default() -> Self {
        Self {
            theta: ("rope_theta", 10_000.0),
            part: None,
            long_by_other_names: false,
            sections: false,
            neighbours: false,
            proportional: None,
            others: &[],
        }
    }
}

impl Rope {
    /// Reads `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (transformers 4).
    ///
    /// # Errors
    /// Where the scaling is of an unknown type, lacks a number, or has a key that is not understood.
    pub(crate) fn read(config: &Config, head_dim: usize, defaults: RopeDefaults) -> Result<Self> {
        let (key, parameters) = match config.object("rope_parameters")? {
            Some(parameters) => ("rope_parameters", Some(parameters)),
            None => ("rope_scaling", config.object("rope_scaling")?),
        };
        Self::of(config, key, parameters.as_ref(), head_dim, defaults)
    }

    /// Reads one set of rotary parameters of a config.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub(crate) fn of(
        config: &Config,
        key: &str,
        parameters: Option<&Config>,
        head_dim: usize,
        defaults: RopeDefaults,
    ) -> Result<Self> {
        if let Some(rope) = Self::proportional(config, key, parameters, head_dim, defaults)? {
            return Ok(rope);
        }
        let (theta, dimensions) = base(config, key, parameters, head_dim, defaults)?;
        let rotated = if defaults.neighbours { Pairs::Neighbours } else { Pairs::Halves };
        let plain = Self { rotated, ..Self::fixed(inverse_frequencies(theta, dimensions)) };
        let Some(parameters) = parameters else { return Ok(plain) };
        let scaling = Scaling { config, key, parameters, theta, dimensions };
        let (rope, score_scale) = (scaling.applied(plain, defaults)?, scaling.score_scale()?);
        let of_sections = |key: &str| defaults.sections && ["mrope_section", "mrope_interleaved"].contains(&key);
        let rope = Self { rotated, score_scale, ..rope };
        parameters.finish(|key| KNOWN.contains(&key) || defaults.others.contains(&key) || of_sections(key))?;
        Ok(rope)
    }

    /// Angles of whole heads of which a first part turns: frequencies are those of the head's width, and zero beyond the part.
    fn proportional(
        config: &Config,
        key: &str,
        parameters: Option<&Config>,
        head_dim: usize,
        defaults: RopeDefaults,
    ) -> Result<Option<Self>> {
        let Some(default) = defaults.proportional else { return Ok(None) };
        let (mut theta, mut part, mut factor) = (defaults.theta.1, default, 1.0);
        if let Some(parameters) = parameters {
            let kind: Option<String> = parameters.get("rope_type")?;
            if kind.as_deref() != Some("proportional") {
                return Ok(None);
            }
            theta = parameters.get("rope_theta")?.unwrap_or(theta);
            part = parameters.get("partial_rotary_factor")?.unwrap_or(1.0);
            factor = parameters.get("factor")?.unwrap_or(factor);
            parameters.finish(|key| KNOWN.contains(&key))?;
        }
        if !(theta > 0.0 && (0.0..=1.0).contains(&part) && factor > 0.0) {
            let problem = format!(
                "found θ {theta}, factor {factor} and a part of {part}, expected positive numbers and a part up to 1"
            );
            return Err(config.refuse(key, problem));
        }
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // at most half of head_dim
        let turning = (part * head_dim as f64 / 2.0).floor() as usize;
        let inverse = inverse_frequencies(theta, head_dim).into_iter().enumerate();
        Ok(Some(Self::fixed(inverse.map(|(i, f)| if i < turning { f / factor } else { 0.0 }).collect())))
    }

    /// Frequencies that are the same for sequences of every length.
    fn fixed(inverse: Vec<f64>) -> Self {
        let pairs = inverse.len();
        Self {
            frequencies: Frequencies::Fixed(inverse),
            attention_factor: 1.0,
            pairs,
            reach: None,
            rotated: Pairs::Halves,
            temperature: None,
            score_scale: 1.0,
        }
    }

    /// Pairs whose angle is not zero everywhere.
    pub(crate) fn turning(&self) -> usize {
        match &self.frequencies {
            Frequencies::Fixed(inverse) => inverse.iter().filter(|f| **f != 0.0).count(),
            Frequencies::Dynamic { .. } | Frequencies::Long { .. } => self.pairs,
        }
    }

    /// The same angles with a factor that grows with the position.
    pub(crate) fn with_temperature(self, temperature: Temperature) -> Self {
        Self { temperature: Some(temperature), ..self }
    }

    /// Longest sequence up to which the frequencies do not depend on its length; `None` where they never do.
    #[must_use]
    pub(crate) fn same_up_to(&self) -> Option<usize> {
        match &self.frequencies {
            Frequencies::Fixed(_) => None,
            Frequencies::Dynamic { original, .. } | Frequencies::Long { original, .. } => Some(*original),
        }
    }

    /// Inverse frequencies for a sequence of some tokens.
    fn inverse(&self, length: usize) -> Cow<'_, [f64]> {
        match &self.frequencies {
            Frequencies::Fixed(inverse) => Cow::Borrowed(inverse),
            Frequencies::Long { short, long, original } => Cow::Borrowed(if length > *original { long } else { short }),
            Frequencies::Dynamic { theta, dimensions, factor, original } => {
                let d = *dimensions as f64;
                let ratio = length.max(*original) as f64 / *original as f64;
                let grown = theta * (factor * ratio - (factor - 1.0)).powf(d / (d - 2.0));
                Cow::Owned(inverse_frequencies(grown, *dimensions))
            }
        }
    }

    /// cos and sin of every row's angles, `[rows, pairs]`, times the attention factor and the temperature; `lengths` is the number of tokens
    /// of each row's whole sequence.
    #[must_use]
    pub(crate) fn tables(&self, positions: &[u32], lengths: &[u32]) -> (Vec<f64>, Vec<f64>) {
        let mut inverse_by_length: HashMap<u32, Cow<'_, [f64]>> = HashMap::new();
        let (mut cos, mut sin) = (Vec::new(), Vec::new());
        for (&position, &length) in positions.iter().zip(lengths) {
            let inverse = inverse_by_length.entry(length).or_insert_with(|| self.inverse(length as usize));
            let factor = self.attention_factor * self.temperature.map_or(1.0, |of| of.at(position));
            for f in inverse.iter() {
                let angle = f64::from(position) * f;
                cos.push(angle.cos() * factor);
                sin.push(angle.sin() * factor);
            }
        }
        (cos, sin)
    }
}

/// θ, and the number of values of a head that are rotated.
fn base(
    config: &Config,
    key: &str,
    parameters: Option<&Config>,
    head_dim: usize,
    defaults: RopeDefaults,
) -> Result<(f64, usize)> {
    let within = |key: &str| parameters.map_or(Ok(None), |parameters| parameters.get::<f64>(key));
    let outside: Option<f64> = config.get(defaults.theta.0)?;
    let theta = within("rope_theta")?.or(outside).unwrap_or(defaults.theta.1);
    let part_key = defaults.part.map_or("partial_rotary_factor", |(key, _)| key);
    let outside: Option<f64> = config.get(part_key)?;
    let part = within("partial_rotary_factor")?.or(outside).unwrap_or(defaults.part.map_or(1.0, |(_, part)| part));
    if defaults.part.is_none() && part < 1.0 {
        return Err(config.refuse(part_key, "only 1 is supported for this architecture"));
    }
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // at most head_dim
    let dimensions = (head_dim as f64 * part.clamp(0.0, 1.0)) as usize;
    if dimensions == 0 || theta <= 0.0 {
        let problem = format!("found θ {theta} over {dimensions} dimensions, expected more than 0");
        return Err(config.refuse(key, problem));
    }
    Ok((theta, dimensions))
}

/// Rotary parameters that may scale the frequencies.
struct Scaling<'a> {
    config: &'a Config,
    /// Where the config has the parameters.
    key: &'a str,
    parameters: &'a Config,
    theta: f64,
    dimensions: usize,
}

impl Scaling<'_> {
    fn kind(&self) -> Result<String> {
        let kind: Option<String> = match self.parameters.get("rope_type")? {
            Some(kind) => Some(kind),
            None => self.parameters.get("type")?,
        };
        Ok(kind.unwrap_or_else(|| "default".to_owned()))
    }

    /// The square of `YaRN`'s factor by `mscale_all_dim`, where that is given.
    fn score_scale(&self) -> Result<f64> {
        let all: Option<f64> = self.parameters.get("mscale_all_dim")?;
        match all.filter(|all| *all != 0.0) {
            Some(all) if self.kind()? != "default" => Ok(yarn_scale(self.factor()?, all).powi(2)),
            _ => Ok(1.0),
        }
    }

    /// The embedding scaled as `rope_type` says.
    fn applied(&self, plain: Rope, defaults: RopeDefaults) -> Result<Rope> {
        match self.kind()?.as_str() {
            "default" => Ok(plain),
            "mrope" if defaults.sections => Ok(plain),
            "linear" => self.linear(),
            "dynamic" => self.dynamic(plain),
            "llama3" => {
                let (low, high) = (self.positive("low_freq_factor")?, self.positive("high_freq_factor")?);
                let (factor, original) = (self.positive("factor")?, self.original()? as f64);
                Ok(Rope::fixed(llama3(self.unscaled(), factor, low, high, original)))
            }
            "yarn" if !defaults.long_by_other_names => self.yarn(),
            "longrope" => self.longrope(plain),
            "su" | "yarn" if defaults.long_by_other_names => self.longrope(plain),
            other => {
                let problem = format!(
                    "rope type `{other}` is not supported for this architecture; supported: default, linear, dynamic, \
                     llama3, yarn, longrope"
                );
                Err(self.config.refuse(self.key, problem))
            }
        }
    }

    fn linear(&self) -> Result<Rope> {
        let factor = self.positive("factor")?;
        let reach = Some(times(self.max_positions()?, factor));
        Ok(Rope { reach, ..Rope::fixed(self.unscaled().into_iter().map(|f| f / factor).collect()) })
    }

    fn dynamic(&self, plain: Rope) -> Result<Rope> {
        let (factor, original) = (self.positive("factor")?, self.max_positions()?);
        if self.dimensions <= 2 {
            return Err(self.parameters.refuse("rope_type", "`dynamic` needs more than 2 dimensions to rotate"));
        }
        let frequencies = Frequencies::Dynamic { theta: self.theta, dimensions: self.dimensions, factor, original };
        Ok(Rope { frequencies, reach: Some(usize::MAX), ..plain })
    }

    fn yarn(&self) -> Result<Rope> {
        let (original, factor) = (self.original()?, self.factor()?);
        let inverse = yarn(self.parameters, self.theta, self.dimensions, factor, original as f64)?;
        let attention_factor = yarn_attention(self.parameters, factor)?;
        Ok(Rope { attention_factor, reach: Some(times(original, factor)), ..Rope::fixed(inverse) })
    }

    fn longrope(&self, plain: Rope) -> Result<Rope> {
        let (original, factor) = (self.original()?, self.factor()?);
        let [short, long] = ["short_factor", "long_factor"].map(|key| divided(self.parameters, key, self.unscaled()));
        let frequencies = Frequencies::Long { short: short?, long: long?, original };
        let grown = if factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / (original as f64).ln()).sqrt() };
        let attention_factor = self.parameters.get("attention_factor")?.unwrap_or(grown);
        Ok(Rope { frequencies, attention_factor, ..plain })
    }

    fn unscaled(&self) -> Vec<f64> {
        inverse_frequencies(self.theta, self.dimensions)
    }

    fn positive(&self, key: &str) -> Result<f64> {
        match self.parameters.need::<f64>(key)? {
            value if value > 0.0 && value.is_finite() => Ok(value),
            value => Err(self.parameters.refuse(key, format!("found {value}, expected a positive number"))),
        }
    }

    fn max_positions(&self) -> Result<usize> {
        Ok(self.config.get::<usize>("max_position_embeddings")?.unwrap_or(2048))
    }

    /// Length of the sequences before the context was stretched.
    fn original(&self) -> Result<usize> {
        const KEY: &str = "original_max_position_embeddings";
        // Phi-3 and others keep it outside, and that counts first
        let outside: Option<usize> = self.config.get(KEY)?;
        let within: Option<usize> = self.parameters.get(KEY)?;
        match outside.or(within).map_or_else(|| self.max_positions(), Ok)? {
            found @ 2.. => Ok(found),
            _ => Err(self.parameters.refuse(KEY, "expected more than 1")),
        }
    }

    /// How far the context was stretched, from the lengths where the config does not say it.
    fn factor(&self) -> Result<f64> {
        match self.parameters.get::<f64>("factor")? {
            Some(_) => self.positive("factor"),
            None => Ok(self.max_positions()? as f64 / self.original()? as f64),
        }
    }
}

/// θ^(−2i/d).
fn inverse_frequencies(theta: f64, dimensions: usize) -> Vec<f64> {
    (0..dimensions.div_ceil(2)).map(|i| theta.powf(-2.0 * i as f64 / dimensions as f64)).collect()
}

/// A length times a factor, rounded.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // a positive number of tokens
fn times(length: usize, factor: f64) -> usize {
    (length as f64 * factor).round() as usize
}

/// Inverse frequencies over the factors that a key lists.
fn divided(parameters: &Config, key: &str, inverse: Vec<f64>) -> Result<Vec<f64>> {
    let factors: Vec<f64> = parameters.need(key)?;
    if factors.len() != inverse.len() || factors.iter().any(|f| *f <= 0.0) {
        let problem = format!("found {} numbers, expected {} positive ones", factors.len(), inverse.len());
        return Err(parameters.refuse(key, problem));
    }
    Ok(inverse.into_iter().zip(factors).map(|(f, factor)| f / factor).collect())
}

/// Long wavelengths stretched, short ones kept, a smooth passage between (Llama 3.1).
fn llama3(mut inverse: Vec<f64>, factor: f64, low: f64, high: f64, original: f64) -> Vec<f64> {
    for f in &mut inverse {
        let turns = original * *f / (2.0 * PI);
        if turns < low {
            *f /= factor;
        } else if turns <= high {
            let smooth = (turns - low) / (high - low);
            *f = (1.0 - smooth) * *f / factor + smooth * *f;
        }
    }
    inverse
}

/// Frequencies by `YaRN` (arXiv 2309.00071, section 3.2): a ramp over the dimensions from kept to stretched.
fn yarn(parameters: &Config, theta: f64, dimensions: usize, factor: f64, original: f64) -> Result<Vec<f64>> {
    let d = dimensions as f64;
    // 0 stands for the default, as in transformers
    let turns = |key: &str, default: f64| -> Result<f64> {
        Ok(parameters.get(key)?.filter(|turns: &f64| *turns > 0.0).unwrap_or(default))
    };
    let dimension = |turns: f64| d * (original / (turns * 2.0 * PI)).ln() / (2.0 * theta.ln());
    let (mut low, mut high) = (dimension(turns("beta_fast", 32.0)?), dimension(turns("beta_slow", 1.0)?));
    if parameters.get("truncate")?.unwrap_or(true) {
        (low, high) = (low.floor(), high.ceil());
    }
    (low, high) = (low.max(0.0), high.min(d - 1.0));
    let width = if high - low == 0.0 { 0.001 } else { high - low };
    let ramp = |i: usize| ((i as f64 - low) / width).clamp(0.0, 1.0);
    let inverse = inverse_frequencies(theta, dimensions).into_iter().enumerate();
    Ok(inverse.map(|(i, f)| f / factor * ramp(i) + f * (1.0 - ramp(i))).collect())
}

fn yarn_scale(factor: f64, mscale: f64) -> f64 {
    if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 }
}

/// `YaRN`'s factor on cos and sin, whose square is the temperature of attention.
fn yarn_attention(parameters: &Config, factor: f64) -> Result<f64> {
    let of = |mscale: f64| yarn_scale(factor, mscale);
    let number = |key: &str| -> Result<Option<f64>> { Ok(parameters.get(key)?.filter(|x: &f64| *x != 0.0)) };
    let given: Option<f64> = parameters.get("attention_factor")?;
    Ok(match (given, number("mscale")?, number("mscale_all_dim")?) {
        (Some(given), ..) => given,
        (None, Some(mscale), Some(all)) => of(mscale) / of(all),
        _ => of(1.0),
    })
}
