//! A data file as token ids that a model can take.
use crate::error::{Error, Result};
use crate::preference::{Form, Preference, parse_row};
use crate::rows::read_lines;
use crate::tokens::{PairTokens, TextTokens};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};

/// How rows are read and tokenised.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reading {
    /// How a row is understood.
    pub form: Form,
    /// Plain-text responses end with EOS.
    pub append_eos: bool,
    /// Longest prompt and response together, in tokens.
    pub max_tokens: Option<usize>,
    /// Prompts that are too long lose tokens on the left; without it their rows are bad.
    pub truncate_prompt: bool,
    /// Bad rows are left out and reported; without it the first one is an error.
    pub skip_bad_rows: bool,
    /// Only that many rows are read.
    pub limit: Option<usize>,
    /// Only a sample of those is used.
    pub sample: Option<Sample>,
}

/// Rows drawn without replacement, the same for every model and tokenizer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// How many; all where there are no more.
    pub rows: usize,
    /// Of the draw.
    pub seed: u64,
}

impl Sample {
    /// Numbers of the rows, in order.
    fn draw(self, from: usize) -> Vec<usize> {
        let mut random = ChaCha8Rng::seed_from_u64(self.seed);
        let mut rows = rand::seq::index::sample(&mut random, from, self.rows.min(from)).into_vec();
        rows.sort_unstable();
        rows
    }
}

/// What a model can take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Ids go from 0 up to but not including this.
    pub vocabulary: usize,
    /// Longest input; the last token of a response is no input.
    pub positions: usize,
}

/// One usable row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    /// Number of the row in the data, from 0.
    pub row: u64,
    /// The row's `id`.
    pub id: Option<String>,
    /// Its tokens.
    pub tokens: PairTokens,
    /// Tokens that the prompt lost on the left.
    pub truncated_tokens: usize,
}

/// A row that was left out.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Skipped {
    /// Number of the row in the data, from 0.
    pub row: u64,
    /// Why.
    pub problem: String,
}

/// The usable rows of a data file, in order.
#[derive(Clone, Debug)]
pub struct Dataset {
    /// The file.
    pub path: PathBuf,
    /// Usable rows.
    pub pairs: Vec<Pair>,
    /// Rows left out.
    pub skipped: Vec<Skipped>,
    /// SHA-256 of the rows' numbers and token ids.
    pub content_hash: String,
}

impl Dataset {
    /// Reads a data file for a model; `tokenizer` is opened when the first row of text needs it.
    ///
    /// # Errors
    /// Where the file or tokenizer cannot be read, no row is usable, or a row is bad and bad rows are not skipped.
    pub fn read(path: &Path, model: &Path, reading: &Reading, limits: Limits) -> Result<Self> {
        let mut lines = read_lines(path)?;
        lines.truncate(reading.limit.unwrap_or(usize::MAX));
        if lines.is_empty() {
            return Err(Error::file(path, "has no rows"));
        }
        let numbers = match reading.sample {
            Some(sample) => sample.draw(lines.len()),
            None => (0..lines.len()).collect(),
        };
        let rows: Vec<_> = numbers.par_iter().map(|&row| parse_row(&lines[row], reading.form)).collect();
        drop(lines);
        let is_text = |row: &Result<_, _>| matches!(row, Ok((_, Preference::Text { .. } | Preference::Chat { .. })));
        let tokenizer = rows.iter().any(is_text).then(|| TextTokens::open(model)).transpose()?;
        let results: Vec<Result<Pair, String>> = rows
            .into_par_iter()
            .zip(&numbers)
            .map(|(parsed, &row)| {
                let (id, preference) = parsed?;
                let tokens = match (&tokenizer, preference) {
                    (_, Preference::Ids { prompt, chosen, rejected }) => PairTokens { prompt, chosen, rejected },
                    (Some(tokenizer), preference) => tokenizer.pair(&preference, reading.append_eos)?,
                    (None, _) => return Err("needs a tokenizer".to_owned()),
                };
                fit(tokens, reading, limits).map(|(tokens, truncated_tokens)| Pair {
                    row: row as u64,
                    id,
                    tokens,
                    truncated_tokens,
                })
            })
            .collect();
        let (mut pairs, mut skipped) = (Vec::with_capacity(results.len()), Vec::new());
        for (result, &row) in results.into_iter().zip(&numbers) {
            let row = row as u64;
            match result {
                Ok(pair) => pairs.push(pair),
                Err(problem) if reading.skip_bad_rows => skipped.push(Skipped { row, problem }),
                Err(problem) => return Err(Error::Row { path: path.to_owned(), row, problem }),
            }
        }
        if pairs.is_empty() {
            let first = skipped.first().map_or(String::new(), |s| format!("; row {}: {}", s.row, s.problem));
            return Err(Error::file(path, format!("no row can be used{first}")));
        }
        Ok(Self { path: path.to_owned(), content_hash: hash(&pairs), pairs, skipped })
    }
}

/// Checks ids and lengths, and truncates the prompt where that is asked for.
fn fit(mut tokens: PairTokens, reading: &Reading, limits: Limits) -> Result<(PairTokens, usize), String> {
    for (name, ids) in [("prompt", &tokens.prompt), ("chosen", &tokens.chosen), ("rejected", &tokens.rejected)] {
        if ids.is_empty() {
            return Err(format!("`{name}` has no tokens"));
        }
        if let Some(id) = ids.iter().find(|id| **id as usize >= limits.vocabulary) {
            let last = limits.vocabulary - 1;
            return Err(format!("`{name}` has the id {id}, beyond the model's vocabulary (0 to {last})"));
        }
    }
    let response = tokens.chosen.len().max(tokens.rejected.len());
    let mut truncated = 0;
    if let Some(most) = reading.max_tokens {
        let total = tokens.prompt.len() + response;
        if total > most {
            let problem = format!("prompt and response have {total} tokens, more than --max-tokens {most}");
            if !reading.truncate_prompt {
                return Err(format!("{problem}; --truncate-prompt cuts prompts from the left"));
            }
            truncated = total - most;
            if truncated >= tokens.prompt.len() {
                return Err(format!("{problem}, and the response alone leaves no room for a prompt"));
            }
            tokens.prompt.drain(..truncated);
        }
    }
    let inputs = tokens.prompt.len() + response - 1;
    if inputs > limits.positions {
        return Err(format!(
            "prompt and response need {inputs} positions, and the model has {}; --max-tokens {} --truncate-prompt cuts \
             prompts from the left",
            limits.positions,
            limits.positions + 1
        ));
    }
    Ok((tokens, truncated))
}

fn hash(pairs: &[Pair]) -> String {
    let mut hasher = Sha256::new();
    for pair in pairs {
        hasher.update(pair.row.to_le_bytes());
        for ids in [&pair.tokens.prompt, &pair.tokens.chosen, &pair.tokens.rejected] {
            hasher.update((ids.len() as u64).to_le_bytes());
            ids.iter().for_each(|id| hasher.update(id.to_le_bytes()));
        }
    }
    hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::Sample;

    #[test]
    fn a_sample_is_in_order_without_repeats_and_depends_on_the_seed() {
        let rows = Sample { rows: 20, seed: 0 }.draw(100);
        assert_eq!(rows.len(), 20);
        assert!(rows.is_sorted_by(|a, b| a < b) && rows[19] < 100);
        assert_eq!(rows, Sample { rows: 20, seed: 0 }.draw(100));
        assert_ne!(rows, Sample { rows: 20, seed: 1 }.draw(100));
        assert_eq!(Sample { rows: 7, seed: 3 }.draw(5), [0, 1, 2, 3, 4]);
    }
}
