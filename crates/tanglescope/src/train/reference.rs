//! Token log-probabilities under the reference: computed once, and kept in the run's folder.
use super::examples::Examples;
use crate::error::{Error, Result};
use crate::listener::{Amount, Listener, advance};
use crate::model::Model;
use crate::reference::{LoadedReference, Reference};
use std::path::Path;
use tanglescope_gram::{Group, batches_of, token_logps_in_batches};
use tanglescope_kernels::{DType, Flex, FlexDevice, FloatTensor, Kernels, Memory, TensorData};
use tanglescope_model::{Decoder, read_tensors, write_tensors};
use tanglescope_train::{Example, Reference as Logps, StepPlan};

/// The stem of the file.
const NAME: &str = "reference";

fn tensor(values: Vec<f64>) -> FloatTensor<Flex> {
    let shape = [values.len()];
    Flex::upload(TensorData::new(values, shape).convert_dtype(DType::F64), &FlexDevice)
}

/// Those of the examples, and of the examples held out; `None` where there is no reference.
pub fn logps<B: Kernels>(
    out: &Path,
    asked: &Model,
    reference: &Reference,
    model: &Decoder<B>,
    examples: &Examples,
    plan: StepPlan,
    listener: &dyn Listener,
) -> Result<Option<[Vec<Logps>; 2]>> {
    if *reference == Reference::None {
        return Ok(None);
    }
    let sets = [("examples", &examples.train), ("held_out", &examples.held_out)];
    let used: Vec<(&str, &Vec<Example>)> = sets.into_iter().filter(|(_, set)| !set.is_empty()).collect();
    let path = out.join(format!("{NAME}.safetensors"));
    if !path.exists() {
        let loaded = reference.load(asked, model, listener)?;
        let which =
            if matches!(loaded, LoadedReference::Itself) { "the model as training starts" } else { "another model" };
        listener.note(&format!("reference: {which}"));
        let model = match &loaded {
            LoadedReference::Model(model) => model,
            LoadedReference::Itself | LoadedReference::None => model,
        };
        let tensors = compute(model, &used, plan, listener);
        // a name that the next run's lock takes away
        let unfinished = out.join(format!(".unfinished-{NAME}.safetensors"));
        write_tensors::<Flex>(&unfinished, tensors)?;
        std::fs::rename(&unfinished, &path).map_err(|e| Error::output(&path, e))?;
    }
    let tokens = |set: &[Example]| set.iter().flat_map(|e| &e.group.responses).map(Vec::len).sum::<usize>();
    let like = used.iter().map(|(name, set)| ((*name).to_owned(), tensor(vec![0.0; tokens(set)]))).collect();
    let mut read = read_tensors::<Flex>(out, NAME, like, &FlexDevice)?;
    Ok(Some(sets.map(|(name, set)| {
        let mut values = read.remove(name).map(|x| Flex::download(&x)).unwrap_or_default().into_iter();
        let mut of = |r: &Vec<u32>| values.by_ref().take(r.len()).collect();
        set.iter().map(|example| example.group.responses.iter().map(&mut of).collect()).collect()
    })))
}

/// A tensor a set: all of its tokens, end to end.
fn compute<B: Kernels>(
    model: &Decoder<B>,
    sets: &[(&str, &Vec<Example>)],
    plan: StepPlan,
    listener: &dyn Listener,
) -> Vec<(String, FloatTensor<Flex>)> {
    let all = || sets.iter().flat_map(|(_, set)| set.iter());
    let total = Amount { pairs: all().count(), rows: all().map(|e| e.group.forward_rows()).sum() };
    listener.begin(total, Amount::default());
    let mut tensors = Vec::new();
    for (name, set) in sets {
        let groups: Vec<&Group> = set.iter().map(|example| &example.group).collect();
        let schedule = batches_of(groups.iter().copied(), plan.rows, plan.at_once);
        let logps = token_logps_in_batches(model, &groups, &schedule, |batch| {
            let rows = batch.iter().map(|&g| groups[g].forward_rows()).sum();
            advance(listener, Amount { pairs: batch.len(), rows });
        });
        tensors.push(((*name).to_owned(), tensor(logps.into_iter().flatten().flatten().collect())));
    }
    listener.end();
    tensors
}
