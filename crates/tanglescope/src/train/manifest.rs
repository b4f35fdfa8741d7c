//! manifest.json of a run.
use super::TrainOptions;
use super::examples::Examples;
use crate::error::{Error, Result};
use crate::model::Model;
use crate::rates;
use crate::reference::Reference;
use tanglescope_kernels::Kernels;
use tanglescope_model::{Decoder, content_hash};
use tanglescope_records::identity::difference;
use tanglescope_records::manifest::{self, TrainingIdentity, TrainingManifest};
use tanglescope_records::{Settings, absolute};

/// The manifest of the folder: the one that is there, if it is of the same run, or a new one.
pub fn open<B: Kernels>(
    options: &TrainOptions,
    asked: &Model,
    model: &Decoder<B>,
    examples: &Examples,
    settings: &Settings,
    reference: &Reference,
) -> Result<TrainingManifest> {
    let out = &options.out;
    let tenth = (settings.max_steps / 10).max(1);
    let identity = TrainingIdentity {
        model: model.content_hash.clone(),
        adapter: asked.adapter_identity(model.adapter_hash.as_deref()),
        tokenize: examples.tokenize.clone(),
        data: examples.data.clone(),
        eval_data: examples.eval_data.clone(),
        eval_fraction: options.eval_fraction,
        scope: asked.scope.to_string(),
        padding_row: asked.padding_token()?,
        dtype: asked.number_type().to_owned(),
        objective: options.objective.to_string(),
        reference: reference.identity(|folder| Ok(content_hash(folder)?))?,
        eval_every: options.eval_every.unwrap_or(tenth),
        save_every: options.save_every.unwrap_or(tenth),
        settings: settings.clone(),
    };
    let device = asked.device.recorded();
    let manifest = match manifest::read::<TrainingManifest>(out)? {
        Some(mut manifest) => {
            if let Some(difference) = difference(&manifest.identity, &identity) {
                return Err(Error::value("out", out.display(), difference));
            }
            if !manifest.devices.contains(&device) {
                manifest.devices.push(device);
            }
            manifest
        }
        None => {
            manifest::refuse_orphans(out)?;
            let outline = asked.outline()?;
            let placement = crate::Placement::of_loaded(asked, &outline, model);
            let placement = super::for_training(placement, asked, &outline);
            TrainingManifest {
                tanglescope: env!("CARGO_PKG_VERSION").to_owned(),
                kind: "train".to_owned(),
                command: options.command.clone(),
                model: absolute(&asked.folder),
                adapter: asked.adapter_folder().map(absolute),
                data: absolute(&options.data.data),
                pairs: examples.train.len(),
                held_out: examples.held_out.len(),
                skipped: examples.skipped.clone(),
                eval_skipped: examples.eval_skipped.clone(),
                devices: vec![device],
                epochs: options.epochs,
                identity,
                forward_rows_per_batch: placement.rows_per_batch(asked, &outline),
                at_once: placement.at_once,
                rates: rates::stored(model.rates),
            }
        }
    };
    manifest::write(out, &manifest)?;
    Ok(manifest)
}
