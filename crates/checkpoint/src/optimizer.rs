//! Second moments of Adam as trainers save them, by the parameter's number.
use crate::error::{Error, Result};
use crate::layout::Layout;
use crate::stored::map;
use crate::tensors::{Tensors, of_torch};
use crate::torch::optimizer::{Step, optimizer};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

/// The second moments in an `optimizer.pt`.
#[derive(Debug)]
pub struct SecondMoments {
    /// `exp_avg_sq` of each parameter, under its number.
    pub tensors: Arc<Tensors>,
    /// The groups of parameters, by number and in order.
    pub groups: Vec<AdamGroup>,
    /// Steps that each parameter's moments are after.
    pub steps: BTreeMap<usize, f64>,
}

/// Parameters that an Adam treats alike.
#[derive(Clone, Debug, PartialEq)]
pub struct AdamGroup {
    /// β₂: how much of the second moments stays at a step.
    pub beta2: f64,
    /// ε, beside the root of the second moments.
    pub epsilon: f64,
    /// Numbers of the parameters, in order.
    pub parameters: Vec<usize>,
}

impl SecondMoments {
    /// Reads what a file of `torch.save` says of its tensors; nothing in it is run.
    ///
    /// # Errors
    /// Where it is not the state of an Adam.
    pub fn open(path: &Path) -> Result<Self> {
        let refuse = |problem: String| Error::file(path, problem);
        let (groups, moments) = optimizer(&map(path, 0, None)?).map_err(refuse)?;
        let (mut stored, mut steps) = (Vec::new(), BTreeMap::new());
        let mut of_steps = Vec::new();
        for of in moments {
            stored.push((of.parameter.to_string(), of_torch(of.exp_avg_sq, 0)));
            match of.step {
                Step::Number(step) => drop(steps.insert(of.parameter, step)),
                Step::Tensor(step) => {
                    of_steps.push(of.parameter);
                    stored.push((format!("step {}", of.parameter), of_torch(step, 0)));
                }
            }
        }
        let tensors = Tensors::of_file(path, stored);
        for parameter in of_steps {
            let values: Vec<f64> = tensors.read(&format!("step {parameter}"), Layout::Same)?;
            let [step] = values[..] else {
                return Err(refuse(format!("has {} steps of parameter {parameter}", values.len())));
            };
            steps.insert(parameter, step);
        }
        let group = |of: crate::torch::optimizer::Group| AdamGroup {
            beta2: of.beta2,
            epsilon: of.epsilon,
            parameters: of.parameters,
        };
        Ok(Self { tensors: Arc::new(tensors), groups: groups.into_iter().map(group).collect(), steps })
    }
}
