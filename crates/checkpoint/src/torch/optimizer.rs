//! The state of a torch optimizer that a trainer saves as `optimizer.pt`: moments by the parameter's number, and the groups that number them.
use super::pickle::{Id, Pickle, Value};
use super::{Storages, Strided, read, tensor};

/// What a group of parameters has in common.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Group {
    /// β₂ of Adam.
    pub beta2: f64,
    /// ε of Adam.
    pub epsilon: f64,
    /// Numbers of its parameters, in order.
    pub parameters: Vec<usize>,
}

/// A parameter's state.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Moments {
    /// Number of the parameter.
    pub parameter: usize,
    /// Exponential mean of squared gradients.
    pub exp_avg_sq: Strided,
    /// Steps taken: a number, or a tensor of one.
    pub step: Step,
}

/// Steps that a state is after.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Step {
    /// As a number.
    Number(f64),
    /// As a tensor of one number.
    Tensor(Strided),
}

/// The groups of a file's optimizer, and the states of their parameters.
pub(crate) fn optimizer(bytes: &[u8]) -> Result<(Vec<Group>, Vec<Moments>), String> {
    read(bytes, of_adam)
}

fn of_adam(pickle: &Pickle<'_>, storages: &Storages) -> Result<(Vec<Group>, Vec<Moments>), String> {
    let no_optimizer = "holds no state of an optimizer: expected a dict with `state` and `param_groups`";
    let entries = pickle.entries(pickle.top).ok_or(no_optimizer)?;
    let of = |key: &str| pickle.entry(entries, key);
    let states = of("state").and_then(|id| pickle.entries(id)).ok_or(no_optimizer)?;
    let groups = of("param_groups").and_then(|id| pickle.parts(id)).ok_or(no_optimizer)?;
    let groups = groups.iter().map(|&id| group(pickle, id)).collect::<Result<_, _>>()?;
    let moments = states.iter().map(|&(key, state)| moments(pickle, (key, state), storages));
    Ok((groups, moments.collect::<Result<_, _>>()?))
}

fn number(pickle: &Pickle<'_>, id: Id) -> Option<f64> {
    match pickle.get(id) {
        Value::Float(number) => Some(*number),
        #[allow(clippy::cast_precision_loss)] // steps are far below 2⁵²
        Value::Int(number) => Some(*number as f64),
        _ => None,
    }
}

fn group(pickle: &Pickle<'_>, id: Id) -> Result<Group, String> {
    let wrong = "has a group of parameters without `betas`, `eps` and `params`, so it is none of Adam's";
    let entries = pickle.entries(id).ok_or(wrong)?;
    let of = |key: &str| pickle.entry(entries, key);
    let betas = of("betas").and_then(|id| pickle.parts(id)).ok_or(wrong)?;
    let beta2 = betas.get(1).and_then(|&id| number(pickle, id)).ok_or(wrong)?;
    let epsilon = of("eps").and_then(|id| number(pickle, id)).ok_or(wrong)?;
    let numbers = of("params").and_then(|id| pickle.parts(id)).ok_or(wrong)?;
    let parameters = numbers.iter().map(|&id| pickle.size(id)).collect::<Option<_>>().ok_or(wrong)?;
    Ok(Group { beta2, epsilon, parameters })
}

fn moments(pickle: &Pickle<'_>, (key, state): (Id, Id), storages: &Storages) -> Result<Moments, String> {
    let parameter = pickle.size(key).ok_or("has a state of a parameter that has no number")?;
    let entries = pickle.entries(state).ok_or("has a state that is no dict")?;
    let names = || entries.iter().filter_map(|(name, _)| pickle.text(*name)).collect::<Vec<_>>().join(", ");
    let Some(second) = pickle.entry(entries, "exp_avg_sq") else {
        return Err(format!(
            "has no `exp_avg_sq` of parameter {parameter} ({}): only Adam's and AdamW's second moments, in whole numbers of 16 bits or more, make \
             its metric; that of plain descent is option `metric` = gradient",
            names()
        ));
    };
    let exp_avg_sq = tensor(pickle, second, storages)?.ok_or("has an `exp_avg_sq` that is no tensor")?;
    let step = pickle
        .entry(entries, "step")
        .ok_or_else(|| format!("does not say after which step parameter {parameter} is"))?;
    let step = match number(pickle, step) {
        Some(step) => Step::Number(step),
        None => Step::Tensor(tensor(pickle, step, storages)?.ok_or("has a `step` that is no number")?),
    };
    Ok(Moments { parameter, exp_avg_sq, step })
}
