//! The pairs of a run: those that it trains on, and those that are held out.
use super::TrainOptions;
use crate::data::{group, read, reading, skipped};
use crate::error::{Error, Result};
use crate::listener::Listener;
use crate::model::Model;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use std::path::Path;
use tanglescope_data::{Dataset, Pair, Reading};
use tanglescope_model::architectures::Description;
use tanglescope_objectives::Needs;
use tanglescope_records::manifest::SkippedRow;
use tanglescope_train::Example;

/// The pairs of a run.
pub struct Examples {
    /// Those that it trains on.
    pub train: Vec<Example>,
    /// Those that it is evaluated on.
    pub held_out: Vec<Example>,
    /// How texts became tokens.
    pub tokenize: Option<String>,
    /// Hash of the data.
    pub data: String,
    /// Hash of the data held out, where that has a file of its own.
    pub eval_data: Option<String>,
    /// Rows left out.
    pub skipped: Vec<SkippedRow>,
    /// The same of the data held out.
    pub eval_skipped: Vec<SkippedRow>,
}

impl Examples {
    /// Reads the data of a run.
    pub fn read(options: &TrainOptions, model: &Model, of: &Description, listener: &dyn Listener) -> Result<Self> {
        let chosen_only = options.objective.definitions().all(|definition| definition.name == "sft");
        let rows = reading(&options.data.rows)?;
        let rows = Reading { chosen_only, ..rows };
        let example = |pair: Pair| {
            let mut group = group(of, pair.tokens);
            if chosen_only {
                group.responses.truncate(1);
            }
            Example { row: pair.row, group, weights: pair.weights }
        };
        let weighted = options.objective.needs() == Needs::Weights;
        let read = |path: &Path, rows: &Reading| -> Result<Dataset> {
            let data = read(path, &model.tokenizer_folders(), rows, of, listener)?;
            if weighted {
                data.need_weights()?;
            }
            Ok(data)
        };
        let data = read(&options.data.data, &rows)?;
        let mut train: Vec<Example> = data.pairs.all()?.into_iter().map(example).collect();
        let (mut held_out, mut eval_data, mut eval_skipped) = (Vec::new(), None, Vec::new());
        if let Some(path) = &options.eval_data {
            let data = read(path, &Reading { limit: None, ..rows.clone() })?;
            held_out = data.pairs.all()?.into_iter().map(example).collect();
            eval_skipped = skipped(&data);
            eval_data = Some(data.content_hash);
        } else if let Some(share) = options.eval_fraction {
            let bad = |problem: String| Error::value("eval_fraction", share, problem);
            if !(share > 0.0 && share < 1.0) {
                return Err(bad("expected a number between 0 and 1".to_owned()));
            }
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
            let kept = train.len() - (share * train.len() as f64).round() as usize;
            if kept == 0 || kept == train.len() {
                return Err(bad(format!("leaves {kept} of {} pairs to train on", train.len())));
            }
            train.shuffle(&mut ChaCha8Rng::seed_from_u64(options.model.measured.seed));
            held_out = train.split_off(kept);
            held_out.sort_by_key(|example| example.row);
            train.sort_by_key(|example| example.row);
        }
        let skipped = skipped(&data);
        let (tokenize, data) = (data.tokenize, data.content_hash);
        Ok(Self { train, held_out, tokenize, data, eval_data, skipped, eval_skipped })
    }
}
