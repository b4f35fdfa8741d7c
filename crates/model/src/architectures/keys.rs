//! Keys that several architectures' configs have, each with what it may be.
use super::{BlockKind, Description};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::layers::RoutingRule;
use crate::rope::{Rope, RopeDefaults};
use serde::de::DeserializeOwned;
use tanglescope_kernels::{Activation, SoftCap};

/// The activation that a config names.
pub(super) fn activation(config: &Config, key: &str, default: &str) -> Result<Activation> {
    let name: String = config.get(key)?.unwrap_or_else(|| default.to_owned());
    match name.as_str() {
        "silu" | "swish" => Ok(Activation::Silu),
        "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" => Ok(Activation::GeluTanh),
        "gelu" => Ok(Activation::Gelu),
        "relu" => Ok(Activation::Relu),
        "relu2" => Ok(Activation::ReluSquared),
        _ => Err(config.refuse(
            key,
            format!("`{name}` is not supported; supported: silu, gelu, gelu_new, gelu_pytorch_tanh, relu, relu2"),
        )),
    }
}

/// A soft cap that a config may ask for.
pub(super) fn soft_cap(config: &Config, key: &str, default: Option<f64>) -> Result<Option<SoftCap>> {
    match if config.has(key) { config.get(key)? } else { default } {
        None => Ok(None),
        Some(cap) if cap > 0.0 && f64::is_finite(cap) => Ok(Some(SoftCap(cap))),
        Some(cap) => Err(config.refuse(key, format!("found {cap}, expected a positive number or null"))),
    }
}

/// A window that a config may ask for; null where all positions are seen.
pub(super) fn window(config: &Config) -> Result<Option<usize>> {
    match config.get("sliding_window")? {
        Some(0) => Err(config.refuse("sliding_window", "found 0, expected a positive number or null")),
        window => Ok(window),
    }
}

/// A window that a config may ask for, where an architecture has one of its own.
pub(super) fn window_or(config: &Config, default: usize) -> Result<Option<usize>> {
    if config.has("sliding_window") { window(config) } else { Ok(Some(default)) }
}

/// Which blocks attend within a window: as `layer_types` says, or where a rule of the architecture says so.
pub(super) fn windowed(config: &Config, layers: usize, rule: impl Fn(usize) -> bool) -> Result<Vec<bool>> {
    let Some(types): Option<Vec<String>> = config.get("layer_types")? else {
        return Ok((0..layers).map(rule).collect());
    };
    if types.len() != layers {
        let problem = format!("found {} entries, expected one for each of {layers} layers", types.len());
        return Err(config.refuse("layer_types", problem));
    }
    let of = |kind: &String| match kind.as_str() {
        "sliding_attention" => Ok(true),
        "full_attention" => Ok(false),
        _ => Err(unknown_layer(config, kind)),
    };
    types.iter().map(of).collect()
}

fn unknown_layer(config: &Config, kind: &str) -> Error {
    let problem = format!("`{kind}` is not supported; supported: full_attention, sliding_attention");
    config.refuse("layer_types", problem)
}

/// A window for some blocks, and two rotary embeddings: one for the blocks without a window, one for those with.
pub(super) fn with_ropes_by_type(
    of: Description,
    config: &Config,
    window: Option<usize>,
    windowed: &[bool],
    [global, local]: [RopeDefaults; 2],
) -> Result<Description> {
    let parameters = config.object("rope_parameters")?;
    // transformers 4 scales the rotary embedding of the blocks without a window alone
    let older = config.object("rope_scaling")?;
    let of_type = |kind, older, defaults| {
        rope_of_type(config, parameters.as_ref(), (kind, older), of.attention.head_dim, defaults)
    };
    let global = of_type("full_attention", older.as_ref(), global)?;
    let local = of_type("sliding_attention", None, local)?;
    if let Some(parameters) = &parameters {
        parameters.finish(|_| false)?;
    }
    let max_positions = global.reach.map_or(of.max_positions, |reach| reach.max(of.max_positions));
    let kind = |&windowed: &bool| BlockKind {
        window: window.filter(|_| windowed),
        rope: Some([usize::from(windowed); 2]),
        ..BlockKind::default()
    };
    let blocks = windowed.iter().map(kind).collect();
    Ok(Description { blocks, ropes: vec![global, local], max_positions, ..of })
}

/// The rotary embedding of a type of layers, whose parameters are listed by type, or are older ones.
pub(super) fn rope_of_type(
    config: &Config,
    parameters: Option<&Config>,
    (kind, older): (&str, Option<&Config>),
    head_dim: usize,
    defaults: RopeDefaults,
) -> Result<Rope> {
    let newer = match parameters {
        Some(parameters) => parameters.object(kind)?,
        None => None,
    };
    Rope::of(config, kind, newer.as_ref().or(older), head_dim, defaults)
}

/// Paths of gate, up and down where experts are Llama's feed-forward layers.
pub(super) const EXPERT_MAPS: [&str; 3] = ["gate_proj", "up_proj", "down_proj"];

/// The number of experts, under the first of two keys that is there, and how many of them a row goes through.
pub(super) fn expert_numbers(config: &Config, keys: [&str; 2], defaults: [usize; 2]) -> Result<[usize; 2]> {
    let [first, second] = [config.get(keys[0])?, config.get(keys[1])?];
    let number = config.checked_size(keys[0], first.or(second).unwrap_or(defaults[0]))?;
    let per_row =
        config.checked_size("num_experts_per_tok", config.get("num_experts_per_tok")?.unwrap_or(defaults[1]))?;
    check_expert_numbers(config, [keys[0], "num_experts_per_tok"], [number, per_row])?;
    Ok([number, per_row])
}

/// Refuses more experts than a layer has, and those of a row that are more than there are.
pub(super) fn check_expert_numbers(config: &Config, keys: [&str; 2], [number, per_row]: [usize; 2]) -> Result<()> {
    if number > MOST_EXPERTS {
        return Err(config.refuse(keys[0], format!("found {number}, expected at most {MOST_EXPERTS}")));
    }
    if per_row > number {
        let problem = format!("found {per_row}, expected at most the number of experts, {number}");
        return Err(config.refuse(keys[1], problem));
    }
    Ok(())
}

/// Most experts of a layer; the widest model has some hundreds.
const MOST_EXPERTS: usize = 4096;

/// Most experts of all layers; the largest model has some twenty thousand.
pub(super) const MOST_EXPERTS_IN_ALL: usize = 1 << 18;

/// The softmax over all experts, or over the chosen where the config renormalises it.
pub(super) fn softmax_rule(config: &Config) -> Result<RoutingRule> {
    let renormalised = config.get("norm_topk_prob")?.unwrap_or(false);
    Ok(if renormalised { RoutingRule::SoftmaxOfChosen } else { RoutingRule::Softmax })
}

/// Refuses what only training reads where it would change the function.
pub(super) fn auxiliary_losses(config: &Config) -> Result<()> {
    // losses beside log π, which are no part of it
    let _coefficient: Option<f64> = config.get("router_aux_loss_coef")?;
    let _output: Option<bool> = config.get("output_router_logits")?;
    Ok(())
}

/// A value for each block that a config may list; more than there are blocks are left, as transformers leaves them.
pub(super) fn by_layer<T: DeserializeOwned>(config: &Config, key: &str, layers: usize) -> Result<Option<Vec<T>>> {
    let Some(mut values): Option<Vec<T>> = config.get(key)? else { return Ok(None) };
    if values.len() < layers {
        let problem = format!("found {} entries, expected one for each of {layers} layers", values.len());
        return Err(config.refuse(key, problem));
    }
    values.truncate(layers);
    Ok(Some(values))
}

/// A bound on the size of values that a config may ask for.
pub(super) fn bound(config: &Config, key: &str) -> Result<Option<f64>> {
    match config.get(key)? {
        Some(bound) if !(bound > 0.0 && f64::is_finite(bound)) => {
            Err(config.refuse(key, format!("found {bound}, expected a positive number or null")))
        }
        bound => Ok(bound),
    }
}

/// A factor that is one where the config says nothing.
pub(super) fn factor(config: &Config, key: &str) -> Result<f64> {
    factor_or(config, key, 1.0)
}

pub(super) fn factor_or(config: &Config, key: &str, default: f64) -> Result<f64> {
    match config.get(key)?.unwrap_or(default) {
        factor if factor != 0.0 && f64::is_finite(factor) => Ok(factor),
        factor => Err(config.refuse(key, format!("found {factor}, expected a number other than 0"))),
    }
}
