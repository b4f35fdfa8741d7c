//! The loop of a run: steps, evaluations, checkpoints.
use super::log::Log;
use crate::error::Result;
use crate::listener::{Amount, Listener, advance};
use serde_json::{Map, Value, json};
use std::path::PathBuf;
use tanglescope_kernels::Kernels;
use tanglescope_objectives::Rounding;
use tanglescope_records::manifest::TrainingManifest;
use tanglescope_records::tables::training::{self, Prediction};
use tanglescope_records::{Settings, Table, tables};
use tanglescope_train::checkpoint::{self, CheckpointPaths};
use tanglescope_train::{StepLog, Trainer};

/// A run on its way.
pub struct TrainingLoop<'a, B: Kernels> {
    pub trainer: Trainer<'a, B>,
    pub settings: &'a Settings,
    pub paths: CheckpointPaths<'a>,
    pub manifest: &'a TrainingManifest,
    /// Whether there are pairs to evaluate on.
    pub held_out: bool,
    /// Is told how far it is.
    pub listener: &'a dyn Listener,
    /// The log so far.
    pub history: Vec<Value>,
}

impl<B: Kernels> TrainingLoop<'_, B> {
    /// Takes all steps that are left; returns the last checkpoint.
    pub fn go(mut self) -> Result<PathBuf> {
        let out = self.paths.run;
        let saved = checkpoint::steps(out)?.into_iter().next_back();
        if let Some(step) = saved {
            self.history = checkpoint::restore(&mut self.trainer, &self.paths, step)?;
            let steps = self.settings.max_steps;
            self.listener.resumed(&format!("{}: {step} of {steps} steps are there already", out.display()));
        }
        let (steps, predictions) = (Table::create(out, tables::STEPS)?, Table::create(out, tables::PREDICTIONS)?);
        let mut log = Log::open(out, &self.history)?;
        if saved.is_none() {
            self.evaluate(&mut log)?;
            self.save()?;
        }
        let (all, before) = (self.amount(self.settings.max_steps), self.amount(self.trainer.steps()));
        self.listener.begin(all, before);
        let (mut pairs, mut predicted): (Vec<_>, Vec<Prediction>) = (Vec::new(), Vec::new());
        let max_steps = self.settings.max_steps;
        while self.trainer.steps() < max_steps {
            let step = self.trainer.step()?;
            let number = self.trainer.steps();
            let (before, after) = (self.amount(number - 1), self.amount(number));
            let more = Amount { pairs: after.pairs - before.pairs, rows: after.rows - before.rows };
            self.listener.about(&format!("step {number} of {max_steps}: {}, ", brief(&step.log)));
            advance(self.listener, more);
            self.note(step.log, &mut log)?;
            pairs.extend(step.pairs);
            predicted.extend(step.predictions);
            let last = number == max_steps;
            if number.is_multiple_of(self.manifest.identity.eval_every) || last {
                self.evaluate(&mut log)?;
            }
            if number.is_multiple_of(self.manifest.identity.save_every) || last {
                // before the checkpoint, so that a run that goes on from it has them
                steps.write(
                    number,
                    training::steps(&std::mem::take(&mut pairs), Rounding::of(&self.manifest.identity.dtype)),
                )?;
                if !predicted.is_empty() {
                    predictions.write(number, training::predictions(&std::mem::take(&mut predicted)))?;
                }
                self.save()?;
            }
        }
        self.listener.end();
        Ok(checkpoint::folder(out, max_steps))
    }

    /// What some steps from the first on see. Every pair counts as one row: which pairs come when is known only by shuffling
    /// every epoch.
    fn amount(&self, steps: usize) -> Amount {
        let pairs = self.trainer.examples_in(steps);
        Amount { pairs, rows: pairs }
    }

    fn save(&self) -> Result<()> {
        Ok(checkpoint::save(&self.trainer, &self.paths, &self.history, self.manifest.epochs)?)
    }

    /// Adds a line to the log.
    fn note(&mut self, found: StepLog, log: &mut Log) -> Result<()> {
        let mut line = Map::new();
        line.insert("step".to_owned(), json!(self.trainer.steps()));
        line.insert("epoch".to_owned(), json!(self.trainer.epoch()));
        line.extend(found.0);
        let line = Value::Object(line);
        log.add(&line)?;
        self.history.push(line);
        Ok(())
    }

    fn evaluate(&mut self, log: &mut Log) -> Result<()> {
        if !self.held_out {
            return Ok(());
        }
        let found = self.trainer.evaluate();
        self.note(found, log)
    }
}

/// What of a step's means is shown while it runs.
fn brief(log: &StepLog) -> String {
    let shown = [
        ("loss", "loss"),
        ("logps/chosen", "chosen"),
        ("logps/rejected", "rejected"),
        ("entanglement/cosine", "cosine"),
    ];
    let of = |(key, name): (&str, &str)| Some(format!("{name} {:.4}", log.0.get(key)?.as_f64()?));
    shown.into_iter().filter_map(of).collect::<Vec<_>>().join(", ")
}
