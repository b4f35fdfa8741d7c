//! What will be measured: the tokens of every row, before anything is computed.
use crate::error::Result;
use crate::listener::Listener;
use crate::options::DataOptions;
use crate::token_rows::{TokenRows, row_tokens};
use serde::Serialize;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use tanglescope_data::Dataset;
use tanglescope_model::{AdapterSource, Outline};
use tanglescope_records::manifest::SkippedRow;
use tanglescope_records::write_with;

/// Options of [`rows`].
#[derive(Clone, Debug)]
pub struct RowsOptions {
    /// Folder of the model.
    pub model: PathBuf,
    /// Folder of an adapter, whose tokenizer and chat template come first.
    pub adapter: Option<PathBuf>,
    /// The data.
    pub data: DataOptions,
    /// How many rows are returned with their texts.
    pub show: usize,
    /// JSONL file for the ids of all rows, which every command reads as data.
    pub out: Option<PathBuf>,
}

impl RowsOptions {
    /// The first three rows of a data set for a model.
    #[must_use]
    pub fn new(model: impl Into<PathBuf>, data: DataOptions) -> Self {
        Self { model: model.into(), adapter: None, data, show: 3, out: None }
    }
}

/// A token and what it stands for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RowToken {
    /// Its id.
    pub id: u32,
    /// Its text; `None` without a tokenizer.
    pub text: Option<String>,
}

/// The tokens of a row.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RowTokens {
    /// Number of the row in the data, from 0.
    pub row: u64,
    /// The row's own `id`.
    pub id: Option<String>,
    /// Before the response.
    pub prompt: Vec<RowToken>,
    /// Of each response: chosen and rejected, or all of a group.
    pub responses: Vec<Vec<RowToken>>,
    /// Tokens that the prompt lost to a limit on lengths.
    pub prompt_cut: usize,
    /// Tokens that each response lost.
    pub responses_cut: Vec<usize>,
}

/// Lengths in tokens, over all rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Lengths {
    /// The shortest.
    pub least: usize,
    /// The median, the lower one of two.
    pub median: usize,
    /// The longest.
    pub most: usize,
}

impl Lengths {
    fn of(mut lengths: Vec<usize>) -> Self {
        lengths.sort_unstable();
        let at = |place: usize| lengths.get(place).copied().unwrap_or_default();
        let last = lengths.len().saturating_sub(1);
        Self { least: at(0), median: at(last / 2), most: at(last) }
    }
}

/// What [`rows`] found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Rows {
    /// Usable rows.
    pub rows: usize,
    /// How texts became tokens; `None` where no row is text.
    pub tokenize: Option<String>,
    /// Lengths of prompts.
    pub prompt: Lengths,
    /// Lengths of responses, each of them counted.
    pub response: Lengths,
    /// Rows that lost tokens to a limit on lengths.
    pub cut: usize,
    /// Rows that were left out, and why.
    pub skipped: Vec<SkippedRow>,
    /// The first rows.
    pub shown: Vec<RowTokens>,
}

/// Reads a data set as a measurement would, without computing anything.
///
/// # Errors
/// Where the model's config, its tokenizer, a row or the file for ids cannot be used.
pub fn rows(options: &RowsOptions, listener: &dyn Listener) -> Result<Rows> {
    let adapter = options.adapter.clone().map_or(AdapterSource::None, AdapterSource::Saved);
    let outline = Outline::read(&options.model, &adapter)?;
    let folders: Vec<PathBuf> = options.adapter.iter().chain([&options.model]).cloned().collect();
    let rows = TokenRows::of_model(&options.data, &folders, &outline.description, listener)?;
    let TokenRows { data, tokenizer, .. } = &rows;
    if let Some(path) = &options.out {
        write_ids(path, data)?;
    }
    let (mut prompts, mut responses, mut cut, mut shown) = (Vec::new(), Vec::new(), 0, Vec::new());
    for pair in data.pairs.iter() {
        let pair = pair?;
        prompts.push(pair.tokens.prompt.len());
        responses.extend(pair.responses().iter().map(|ids| ids.len()));
        cut += usize::from(pair.cut.prompt > 0 || pair.cut.responses.iter().any(|lost| *lost > 0));
        if shown.len() < options.show {
            shown.push(row_tokens(&pair, tokenizer.as_ref()));
        }
    }
    Ok(Rows {
        rows: data.pairs.len(),
        tokenize: data.tokenize.clone(),
        prompt: Lengths::of(prompts),
        response: Lengths::of(responses),
        cut,
        skipped: crate::data::skipped(data),
        shown,
    })
}

/// A row as columns of ids.
#[derive(Serialize)]
#[allow(clippy::struct_field_names)] // the columns' names
struct Ids<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
    prompt_ids: &'a [u32],
    #[serde(skip_serializing_if = "Option::is_none")]
    chosen_ids: Option<&'a [u32]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rejected_ids: Option<&'a [u32]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    responses_ids: Option<&'a [Vec<u32>]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    scores: Option<&'a [f64]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    chosen_weights: Option<&'a [f64]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rejected_weights: Option<&'a [f64]>,
}

pub(crate) fn write_ids(path: &Path, data: &Dataset) -> Result<()> {
    // what cannot be read back is said for itself
    let mut unread = None;
    let written = write_with(path, |file| {
        let mut file = BufWriter::new(file);
        for pair in data.pairs.iter() {
            let pair = match pair {
                Ok(pair) => pair,
                Err(error) => {
                    unread = Some(error);
                    return Err(std::io::Error::other("not written"));
                }
            };
            let (tokens, group) = (&pair.tokens, pair.group.as_ref());
            let ids = Ids {
                id: pair.id.as_deref(),
                prompt_ids: &tokens.prompt,
                chosen_ids: group.is_none().then_some(&tokens.chosen),
                rejected_ids: group.is_none().then_some(&tokens.rejected),
                responses_ids: group.map(|group| group.responses.as_slice()),
                scores: group.and_then(|group| group.scores.as_deref()),
                chosen_weights: pair.weights.as_ref().map(|of| of[0].as_slice()),
                rejected_weights: pair.weights.as_ref().map(|of| of[1].as_slice()),
            };
            serde_json::to_writer(&mut file, &ids)?;
            file.write_all(b"\n")?;
        }
        file.flush()
    });
    match unread {
        Some(error) => Err(error.into()),
        None => Ok(written?),
    }
}
