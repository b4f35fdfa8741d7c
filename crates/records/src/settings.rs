//! How a run trains.
use serde::{Deserialize, Serialize};

/// How the learning rate moves after the warm-up, as in transformers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Schedule {
    /// It stays.
    Constant,
    /// In a straight line to 0 at the last step.
    Linear,
    /// Along half a cosine to 0 at the last step.
    Cosine,
}

/// Settings of a run that decide its numbers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// Largest learning rate.
    pub learning_rate: f64,
    /// How it moves.
    pub schedule: Schedule,
    /// Steps over which it first rises from 0.
    pub warmup_steps: usize,
    /// Steps of the whole run.
    pub max_steps: usize,
    /// Pairs of a batch: what an objective that is defined on a batch sees at once.
    pub batch_size: usize,
    /// Batches of a step; the loss is the mean over all their pairs.
    pub accumulate: usize,
    /// AdamW's decay of the first moment.
    pub beta1: f32,
    /// AdamW's decay of the second moment.
    pub beta2: f32,
    /// AdamW's ε.
    pub epsilon: f32,
    /// AdamW's weight decay, on matrices.
    pub weight_decay: f32,
    /// Longest gradient; longer ones are scaled down. 0: none is.
    pub max_grad_norm: f64,
    /// Learning rate of the masks of objective `sparse`.
    pub mask_learning_rate: f64,
    /// Seed of the order of pairs.
    pub seed: u64,
    /// Every so many steps each pair's Gram is recorded; 0: never.
    pub gram_every: usize,
    /// Every so many steps the change of log-probabilities is predicted and measured; 0: never.
    pub predict_every: usize,
}

impl Settings {
    /// Pairs of a step.
    #[must_use]
    pub fn pairs_per_step(&self) -> usize {
        self.batch_size * self.accumulate
    }

    /// Learning rate of a step, counted from 0, as transformers' schedules of the same names have it.
    ///
    /// ```
    /// # use tanglescope_records::{Schedule, Settings};
    /// # let settings = Settings { learning_rate: 1.0, schedule: Schedule::Linear, warmup_steps: 2, max_steps: 10,
    /// #   batch_size: 1, accumulate: 1, beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.0, max_grad_norm: 0.0,
    /// #   mask_learning_rate: 1.0, seed: 0, gram_every: 1, predict_every: 0 };
    /// assert_eq!([0, 1, 2, 6].map(|step| settings.rate(step)), [0.0, 0.5, 1.0, 0.5]);
    /// ```
    #[must_use]
    pub fn rate(&self, step: usize) -> f64 {
        if step < self.warmup_steps {
            return self.learning_rate * step as f64 / self.warmup_steps as f64;
        }
        let left = self.max_steps.saturating_sub(self.warmup_steps).max(1) as f64;
        let progress = (step - self.warmup_steps) as f64 / left;
        self.learning_rate
            * match self.schedule {
                Schedule::Constant => 1.0,
                Schedule::Linear => (1.0 - progress).max(0.0),
                Schedule::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * progress).cos()).max(0.0),
            }
    }
}
