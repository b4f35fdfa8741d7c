//! Preference data as groups that a model can take.
use crate::error::{Error, Result};
use crate::listener::Listener;
use crate::options::RowOptions;
use std::path::Path;
use tanglescope_data::{Dataset, Limits, Pair, PairTokens, Reading, TextTokens};
use tanglescope_gram::Group;
use tanglescope_model::architectures::Description;
use tanglescope_records::manifest::SkippedRow;

/// How data is read; refuses what would leave no row.
pub fn reading(rows: &RowOptions) -> Result<Reading> {
    if rows.limit == Some(0) {
        return Err(Error::value("limit", 0, "leaves no row"));
    }
    Ok(rows.reading())
}

/// The rows of a data file for the model of a folder; says what was left out or cut.
pub fn read(
    path: &Path,
    folder: &Path,
    reading: &Reading,
    model: &Description,
    listener: &dyn Listener,
) -> Result<Dataset> {
    let limits = Limits { vocabulary: model.vocabulary, positions: model.max_positions };
    let data = Dataset::read(path, folder, reading, limits)?;
    let path = path.display();
    for note in &data.notes {
        listener.left_out(&format!("{path}: {note}"));
    }
    for skipped in &data.skipped {
        listener.left_out(&format!("{path}: row {} left out: {}", skipped.row, skipped.problem));
    }
    if data.truncated > 0 {
        listener.left_out(&format!("{path}: {} prompts were cut from the left", data.truncated));
    }
    Ok(data)
}

/// Rows that were left out, as manifests have them.
pub fn skipped(data: &Dataset) -> Vec<SkippedRow> {
    data.skipped.iter().map(|skipped| SkippedRow { row: skipped.row, problem: skipped.problem.clone() }).collect()
}

/// The tokenizer of a model's folder, where it has one.
pub fn tokenizer(folder: &Path) -> Result<Option<TextTokens>> {
    Ok(folder.join("tokenizer.json").is_file().then(|| TextTokens::open(folder)).transpose()?)
}

/// The rows of a data set as groups for a model, with all their responses.
pub fn whole_groups(model: &Description, data: &Dataset) -> Result<Vec<Group>> {
    let of = |pair: Pair| match pair.group {
        Some(group) => Group::of(model, pair.tokens.prompt, group.responses),
        None => group(model, pair.tokens),
    };
    Ok(data.pairs.iter().map(|pair| pair.map(of)).collect::<tanglescope_data::Result<_>>()?)
}

/// The rows of a data set as groups of two for a model.
pub fn groups(model: &Description, data: &Dataset) -> Result<Vec<Group>> {
    let of = |pair: Pair| group(model, pair.tokens);
    Ok(data.pairs.iter().map(|pair| pair.map(of)).collect::<tanglescope_data::Result<_>>()?)
}

/// A pair as a group of two for a model: branch 0 chosen, branch 1 rejected.
pub fn group(model: &Description, tokens: PairTokens) -> Group {
    Group::of(model, tokens.prompt, vec![tokens.chosen, tokens.rejected])
}
