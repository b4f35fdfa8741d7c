//! Rows of preference data as the tokens that are measured.
use crate::data::{read_within, reading, tokenizer};
use crate::error::{Error, Result};
use crate::listener::Listener;
use crate::options::{DataOptions, RowOptions};
use crate::rows::{RowToken, RowTokens, write_ids};
use std::path::{Path, PathBuf};
use tanglescope_data::{Dataset, Limits, Pair, Skipped, TextTokens};
use tanglescope_model::architectures::Description;

/// Rows of preference data as token ids, kept on the disk.
pub struct TokenRows {
    pub(crate) data: Dataset,
    /// How they were read.
    pub(crate) options: RowOptions,
    /// Where their tokenizer was looked for.
    pub(crate) folders: Vec<PathBuf>,
    /// Turns ids back into text.
    pub(crate) tokenizer: Option<TextTokens>,
}

/// Which rows a model can take.
pub(crate) fn limits(of: &Description) -> Limits {
    Limits { vocabulary: of.vocabulary, positions: of.max_positions }
}

impl TokenRows {
    /// Reads a data set; the tokenizer is the first that the folders have. Without a model no id and no length is too large.
    ///
    /// # Errors
    /// Where a file or the tokenizer cannot be read, no row is usable, or a row is bad and bad rows are not skipped.
    pub fn read(data: &DataOptions, folders: &[PathBuf], listener: &dyn Listener) -> Result<Self> {
        Self::within(data, folders, Limits { vocabulary: usize::MAX, positions: usize::MAX - 1 }, listener)
    }

    /// The same of rows that a model can take.
    pub(crate) fn of_model(
        data: &DataOptions,
        folders: &[PathBuf],
        of: &Description,
        listener: &dyn Listener,
    ) -> Result<Self> {
        Self::within(data, folders, limits(of), listener)
    }

    fn within(data: &DataOptions, folders: &[PathBuf], limits: Limits, listener: &dyn Listener) -> Result<Self> {
        let in_order: Vec<&Path> = folders.iter().map(PathBuf::as_path).collect();
        let called = data.called.as_ref().map_or(data.data.as_path(), Path::new);
        Ok(Self {
            data: read_within((&data.data, called), &in_order, &reading(&data.rows)?, limits, listener)?,
            options: data.rows.clone(),
            folders: folders.to_vec(),
            tokenizer: tokenizer(&in_order)?,
        })
    }

    /// Refuses rows that a model cannot take.
    pub(crate) fn check(&self, of: &Description) -> Result<()> {
        Ok(self.data.check(limits(of))?)
    }

    /// Number of usable rows.
    #[must_use]
    pub fn len(&self) -> usize {
        self.data.pairs.len()
    }

    /// Whether there is no row.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.data.pairs.is_empty()
    }

    /// Rows that were left out, and why.
    #[must_use]
    pub fn skipped(&self) -> &[Skipped] {
        &self.data.skipped
    }

    /// What was recognised, and what was cut or left out, in words.
    pub fn notes(&self) -> impl Iterator<Item = &String> {
        self.data.recognised.iter().chain(&self.data.notes)
    }

    /// How texts became tokens; `None` where no row is text.
    #[must_use]
    pub fn tokenize(&self) -> Option<&str> {
        self.data.tokenize.as_deref()
    }

    /// SHA-256 of the rows' numbers and token ids.
    #[must_use]
    pub fn content_hash(&self) -> &str {
        &self.data.content_hash
    }

    /// A row, by its place among the usable ones.
    ///
    /// # Errors
    /// Where there is no such row, or it cannot be read back.
    pub fn row(&self, at: usize) -> Result<RowTokens> {
        let Some(pair) = self.data.pairs.get(at..at.saturating_add(1))?.pop() else {
            return Err(Error::value("row", at, format!("there are {} rows, numbered from 0", self.len())));
        };
        Ok(row_tokens(&pair, self.tokenizer.as_ref()))
    }

    /// Writes the ids of all rows, with their own `id` and scores, as JSON lines that every call reads as data.
    ///
    /// # Errors
    /// Where the file cannot be written.
    pub fn write_ids(&self, path: &Path) -> Result<()> {
        write_ids(path, &self.data)
    }

    /// The rows of some numbers in the data.
    pub(crate) fn of_numbers(&self, numbers: &[u64]) -> Result<Self> {
        let mut places = Vec::with_capacity(numbers.len());
        for (at, pair) in self.data.pairs.get(0..self.len())?.into_iter().enumerate() {
            if numbers.contains(&pair.row) {
                places.push((pair.row, at));
            }
        }
        if let Some(missing) = numbers.iter().find(|number| !places.iter().any(|(row, _)| row == *number)) {
            return Err(Error::value("pairs", missing, "is the number of no usable row; rows count from 0"));
        }
        self.select(&places.into_iter().map(|(_, at)| at).collect::<Vec<_>>())
    }

    /// Some of the rows, by their places among the usable ones.
    ///
    /// # Errors
    /// Where there is no such row, or none is asked for.
    pub fn select(&self, places: &[usize]) -> Result<Self> {
        if let Some(at) = places.iter().find(|at| **at >= self.len()) {
            return Err(Error::value("row", at, format!("there are {} rows, numbered from 0", self.len())));
        }
        if places.is_empty() {
            return Err(Error::option("row", "no row is asked for"));
        }
        let folders: Vec<&Path> = self.folders.iter().map(PathBuf::as_path).collect();
        Ok(Self {
            data: self.data.select(places)?,
            options: self.options.clone(),
            folders: self.folders.clone(),
            tokenizer: tokenizer(&folders)?,
        })
    }
}

/// A row with the texts of its tokens.
pub(crate) fn row_tokens(pair: &Pair, tokenizer: Option<&TextTokens>) -> RowTokens {
    let token = |id: &u32| RowToken { id: *id, text: tokenizer.and_then(|tokenizer| tokenizer.text(*id)) };
    let tokens = |ids: &[u32]| ids.iter().map(token).collect();
    RowTokens {
        row: pair.row,
        id: pair.id.clone(),
        prompt: tokens(&pair.tokens.prompt),
        responses: pair.responses().into_iter().map(tokens).collect(),
        prompt_cut: pair.cut.prompt,
        responses_cut: pair.cut.responses.clone(),
    }
}
