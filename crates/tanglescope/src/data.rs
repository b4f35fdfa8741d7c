//! Preference data as groups that a model can take.
use crate::error::{Error, Result};
use crate::folder::{Kind, expect};
use crate::listener::Listener;
use crate::options::RowOptions;
use crate::token_rows::limits;
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};
use tanglescope_checkpoint::{gguf_tokenizer, hex};
use tanglescope_data::{Dataset, Limits, Pair, PairTokens, Reading, TextTokens, has_tokenizer};
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

/// The rows of a data file for a model; says what was left out or cut. The tokenizer is the first that the folders have.
pub fn read(
    path: &Path,
    folders: &[&Path],
    reading: &Reading,
    model: &Description,
    listener: &dyn Listener,
) -> Result<Dataset> {
    read_within((path, path), folders, reading, limits(model), listener)
}

/// The same with limits, of a file and the name that it goes by.
pub fn read_within(
    (path, called): (&Path, &Path),
    folders: &[&Path],
    reading: &Reading,
    limits: Limits,
    listener: &dyn Listener,
) -> Result<Dataset> {
    expect(Kind::Data, "data", path)?;
    let mut data = Dataset::read(path, folders, reading, limits).map_err(|error| error.called(path, called))?;
    called.clone_into(&mut data.path);
    let path = called.display();
    for recognised in &data.recognised {
        listener.note(&format!("{path}: {recognised}"));
    }
    for note in &data.notes {
        listener.left_out(&format!("{path}: {note}"));
    }
    for skipped in &data.skipped {
        listener.left_out(&format!("{path}: row {} left out: {}", skipped.row, skipped.problem));
    }
    Ok(data)
}

/// Rows that were left out, as manifests have them.
pub fn skipped(data: &Dataset) -> Vec<SkippedRow> {
    data.skipped.iter().map(|skipped| SkippedRow { row: skipped.row, problem: skipped.problem.clone() }).collect()
}

/// The tokenizer of the first of some folders that has one.
pub fn tokenizer(folders: &[&Path]) -> Result<Option<TextTokens>> {
    Ok(has_tokenizer(folders).then(|| TextTokens::open(folders)).transpose()?)
}

/// SHA-256 of the files of a tokenizer and a chat template, as [`TextTokens::open`] takes them from some folders.
pub fn tokenizer_hash(folders: &[PathBuf]) -> Result<String> {
    const FILES: [&str; 4] =
        ["tokenizer.json", "special_tokens_map.json", "chat_template.jinja", "tokenizer_config.json"];
    let mut hasher = Sha256::new();
    for name in FILES {
        let path = folders.iter().map(|folder| folder.join(name)).find(|path| path.is_file());
        let bytes = path.map(|path| std::fs::read(&path).map_err(|e| Error::output(&path, e))).transpose()?;
        hasher.update([u8::from(bytes.is_some())]);
        hasher.update(Sha256::digest(bytes.unwrap_or_default()));
    }
    if !folders.iter().any(|folder| folder.join(FILES[0]).is_file()) {
        for folder in folders {
            let Some((_, of)) = gguf_tokenizer(folder).map_err(tanglescope_model::Error::from)? else { continue };
            hasher.update(Sha256::digest(of.tokenizer.to_string()));
            hasher.update(Sha256::digest(serde_json::to_string(&of.config).unwrap_or_default()));
            break;
        }
    }
    Ok(hex(&hasher.finalize()))
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
