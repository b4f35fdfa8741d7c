//! A data set as token ids that a model can take.
use crate::error::{Error, Result};
use crate::files::Files;
use crate::layout::{Layout, Mapping, Wanted, group, none_joined, unread};
use crate::preference::{Form, Preference, Row, columns_of, parse_columns};
use crate::recipe::Recipe;
use crate::remark::Remark;
use crate::rows::{Raw, each};
use crate::spool::{Pairs, Spool, nothing};
use crate::tokenizer::TextTokens;
use crate::tokens::{Cut, PairTokens, Tokens, Unusable};
use chrono::NaiveDate;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashMap};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use tanglescope_checkpoint::hex;

/// Rows that are parsed and tokenised together, on all cores.
const ROWS_AT_ONCE: usize = 1024;

/// How rows are read and tokenised.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// Plain text becomes a user and an assistant turn.
    pub chat: bool,
    /// Only the chosen response is used: it stands for both, whether there is another or not.
    pub chosen_only: bool,
    /// How texts become tokens.
    pub recipe: Recipe,
    /// Whether its limits on lengths hold for ids too.
    pub limit_ids: bool,
    /// The day that chat templates are told; today where none is given.
    pub date: Option<NaiveDate>,
    /// Bad rows are left out and reported; without it the first one is an error.
    pub skip_bad_rows: bool,
    /// Only that many rows are read.
    pub limit: Option<usize>,
    /// Only a sample of those is used.
    pub sample: Option<Sample>,
    /// Which part of the data set, where it has several.
    pub split: Option<String>,
    /// Where the usual columns are to be found.
    pub columns: Mapping,
}

impl Reading {
    /// What decides the tokens of a text, in one line.
    fn tokenize(&self) -> String {
        let chat = self.chat.then(|| "chat".to_owned());
        let date = self.date.map(|date| format!("date={date}"));
        std::iter::once(self.recipe.settings()).chain(chat).chain(date).collect::<Vec<_>>().join(",")
    }
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
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Pair {
    /// Number of the row in the data, from 0.
    pub row: u64,
    /// The row's `id`.
    pub id: Option<String>,
    /// Its tokens; of a group, the best response and the worst.
    pub tokens: PairTokens,
    /// What a limit on lengths took away of the prompt and of each response, of a group as `group` has them.
    pub cut: Cut,
    /// All responses, of a row that is a group.
    pub group: Option<Candidates>,
    /// A weight for every token of the chosen response and of the rejected one, where the row has them.
    pub weights: Option<[Vec<f64>; 2]>,
    /// Why its weights are not those of its tokens, where they are not: an objective that needs them refuses the row.
    pub misfit: Option<String>,
}

impl Pair {
    /// Its responses: chosen and rejected, or all of a group in the row's order.
    #[must_use]
    pub fn responses(&self) -> Vec<&[u32]> {
        match &self.group {
            Some(group) => group.responses.iter().map(Vec::as_slice).collect(),
            None => vec![&self.tokens.chosen, &self.tokens.rejected],
        }
    }
}

/// The responses of a group.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Candidates {
    /// Tokens of each.
    pub responses: Vec<Vec<u32>>,
    /// How good each is; `None` where the row does not say, and its first counts as the best and its last as the worst.
    pub scores: Option<Vec<f64>>,
    /// The best, the first of equals.
    pub best: usize,
    /// The worst, the last of equals.
    pub worst: usize,
}

impl Candidates {
    fn new(responses: Vec<Vec<u32>>, scores: Option<Vec<f64>>) -> Self {
        let (mut best, mut worst) = (0, responses.len() - 1);
        if let Some(scores) = &scores {
            for (k, score) in scores.iter().enumerate() {
                if *score > scores[best] {
                    best = k;
                }
                if *score < scores[worst] || (*score - scores[worst]).abs() == 0.0 {
                    worst = k;
                }
            }
            // all are equal
            if best == worst {
                (best, worst) = (0, responses.len() - 1);
            }
        }
        Self { responses, scores, best, worst }
    }
}

/// A row that was left out.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Skipped {
    /// Number of the row in the data, from 0.
    pub row: u64,
    /// Why.
    pub problem: String,
    /// Whether the recipe leaves it out, as its trainer does; a bad row otherwise.
    pub dropped: bool,
}

/// The usable rows of a data set, in order.
#[derive(Debug)]
pub struct Dataset {
    /// The file or folder.
    pub path: PathBuf,
    /// Usable rows.
    pub pairs: Pairs,
    /// Rows left out: bad ones, and those that the recipe drops.
    pub skipped: Vec<Skipped>,
    /// Whether some row is a group.
    pub groups: bool,
    /// Its files.
    pub files: Vec<PathBuf>,
    /// What the rows were read as, and how texts became tokens, in words.
    pub recognised: Vec<String>,
    /// What of them was cut or left out, in words.
    pub notes: Vec<String>,
    /// How texts became tokens; `None` where no row is text.
    pub tokenize: Option<String>,
    /// SHA-256 of the rows' numbers, token ids and weights.
    pub content_hash: String,
}

/// A row with its number.
type Numbered<T> = (u64, T);

/// A row as a pair, with what to say of it, or why it is none.
type Used = Result<(Pair, Vec<Remark>), Unusable>;

/// Rows on their way from files to tokens.
struct Reader<'a> {
    path: &'a Path,
    folders: &'a [&'a Path],
    reading: &'a Reading,
    limits: Limits,
    wanted: &'a Wanted,
    /// Opened when the first row of text needs it.
    tokenizer: Option<TextTokens>,
    /// The layout recognised from the first row.
    layout: Option<Layout>,
    spool: Spool,
    skipped: Vec<Skipped>,
    /// How often there is something to say, and of which row first.
    remarks: BTreeMap<Remark, (usize, u64)>,
    groups: bool,
    hasher: Sha256,
}

impl Dataset {
    /// Reads a data set for a model. The tokenizer is opened when the first row of text needs it, from the first of the folders that
    /// has one: an adapter's, and then its model's.
    ///
    /// # Errors
    /// Where a file or the tokenizer cannot be read, no row is usable, or a row is bad and bad rows are not skipped.
    pub fn read(path: &Path, folders: &[&Path], reading: &Reading, limits: Limits) -> Result<Self> {
        let wanted = Wanted::of(&reading.columns);
        let Files { files, note } = Files::find(path, reading.split.as_deref())?;
        let limit = reading.limit.unwrap_or(usize::MAX);
        let all = |take: &mut dyn FnMut(u64, Raw) -> Result<()>| -> Result<u64> {
            let mut number = 0;
            for (file, format) in &files {
                let end = each(file, *format, &wanted, &mut |raw| {
                    if number >= limit as u64 {
                        return Ok(ControlFlow::Break(()));
                    }
                    take(number, raw)?;
                    number += 1;
                    Ok(ControlFlow::Continue(()))
                })?;
                if end.is_break() {
                    break;
                }
            }
            Ok(number)
        };
        let mut sample = match reading.sample {
            None => None,
            Some(sample) => {
                let rows = all(&mut |_, _| Ok(()))?;
                Some(sample.draw(usize::try_from(rows).unwrap_or(usize::MAX)).into_iter().peekable())
            }
        };
        let mut reader = Reader::new(path, folders, reading, limits, &wanted)?;
        let (mut waiting, mut joined) = (Vec::new(), Joined::default());
        let rows = all(&mut |number, raw| {
            if let Some(sample) = &mut sample
                && sample.next_if_eq(&usize::try_from(number).unwrap_or(usize::MAX)).is_none()
            {
                return Ok(());
            }
            waiting.push((number, raw));
            if waiting.len() == ROWS_AT_ONCE { reader.take(std::mem::take(&mut waiting), &mut joined) } else { Ok(()) }
        })?;
        if rows == 0 {
            return Err(nothing(path));
        }
        reader.take(waiting, &mut joined)?;
        reader.finish(joined, files.into_iter().map(|(file, _)| file).collect(), note)
    }
}

impl Dataset {
    /// Refuses a row that a model cannot take.
    ///
    /// # Errors
    /// Names the first such row.
    pub fn check(&self, limits: Limits) -> Result<()> {
        for pair in self.pairs.iter() {
            let pair = pair?;
            let checked = check(&pair.tokens.prompt, &pair.responses(), pair.group.is_some(), limits);
            checked.map_err(|problem| Error::Row { path: self.path.clone(), row: pair.row, problem })?;
        }
        Ok(())
    }

    /// Refuses a row without a weight for each of its tokens.
    ///
    /// # Errors
    /// Names the first such row.
    pub fn need_weights(&self) -> Result<()> {
        for pair in self.pairs.iter() {
            let pair = pair?;
            let none = || {
                "has no `chosen_weights` and `rejected_weights`, numbers for every token, which an objective asks for"
                    .to_owned()
            };
            if let Some(problem) = pair.misfit.or_else(|| pair.weights.is_none().then(none)) {
                return Err(Error::Row { path: self.path.clone(), row: pair.row, problem });
            }
        }
        Ok(())
    }

    /// Some of its rows, by their places among the usable ones; what was said of the others is left out.
    ///
    /// # Errors
    /// Where they cannot be read back.
    pub fn select(&self, places: &[usize]) -> Result<Self> {
        let (mut spool, mut hasher) = (Spool::new()?, Sha256::new());
        for &at in places {
            for pair in self.pairs.get(at..at + 1)? {
                hash(&mut hasher, &pair);
                spool.add(&pair)?;
            }
        }
        Ok(Self {
            path: self.path.clone(),
            pairs: spool.finish()?,
            skipped: Vec::new(),
            groups: self.groups,
            files: self.files.clone(),
            recognised: self.recognised.clone(),
            notes: Vec::new(),
            tokenize: self.tokenize.clone(),
            content_hash: hex(&hasher.finalize()),
        })
    }
}

/// Responses of one prompt, of rows that are one response each.
#[derive(Default)]
struct PromptResponses {
    row: u64,
    id: Option<Value>,
    prompt: Value,
    responses: Vec<Value>,
    scores: Vec<f64>,
}

/// Responses by prompt, in the order of the prompts' first rows.
#[derive(Default)]
struct Joined {
    place: HashMap<String, usize>,
    prompts: Vec<PromptResponses>,
}

impl Joined {
    fn add(&mut self, row: u64, id: Option<Value>, (prompt, response, score): (Value, Value, f64)) {
        let next = self.prompts.len();
        let at = *self.place.entry(prompt.to_string()).or_insert(next);
        if at == next {
            self.prompts.push(PromptResponses { row, id, prompt, ..PromptResponses::default() });
        }
        self.prompts[at].responses.push(response);
        self.prompts[at].scores.push(score);
    }
}

impl<'a> Reader<'a> {
    fn new(
        path: &'a Path,
        folders: &'a [&'a Path],
        reading: &'a Reading,
        limits: Limits,
        wanted: &'a Wanted,
    ) -> Result<Self> {
        let (spool, skipped, hasher) = (Spool::new()?, Vec::new(), Sha256::new());
        let (tokenizer, layout, remarks, groups) = (None, None, BTreeMap::new(), false);
        Ok(Self { path, folders, reading, limits, wanted, tokenizer, layout, spool, skipped, remarks, groups, hasher })
    }

    fn form(&self) -> Form {
        let Reading { chat, chosen_only, recipe, .. } = self.reading;
        Form { chat: *chat, chosen_only: *chosen_only, implicit_prompt: recipe.implicit_prompt }
    }

    fn remark(&mut self, remark: Remark, row: u64) {
        self.remarks.entry(remark).or_insert((0, row)).0 += 1;
    }

    /// Takes some rows in: to the spool, or among the responses of their prompts.
    fn take(&mut self, rows: Vec<Numbered<Raw>>, joined: &mut Joined) -> Result<()> {
        let columns = |raw: Raw| -> Result<Map<String, Value>, String> {
            let columns = match raw {
                Raw::Line(line) => columns_of(&line, self.wanted)?,
                Raw::Columns(columns) => columns,
                Raw::Bad(problem) => return Err(problem),
            };
            self.reading.columns.of(columns)
        };
        let rows: Vec<Numbered<Result<Map<String, Value>, String>>> =
            rows.into_par_iter().map(|(number, raw)| (number, columns(raw))).collect();
        let first = rows.iter().find_map(|(row, columns)| Some((*row, columns.as_ref().ok()?)));
        if let (None, Some((row, columns))) = (self.layout, first) {
            let layout = Layout::of(columns);
            self.layout = Some(layout);
            let mut unread = unread(columns.keys().map(String::as_str), self.wanted);
            unread.extend(self.leaves_system(layout, columns).then(|| "system".to_owned()));
            unread.into_iter().for_each(|column| self.remark(Remark::Unread(column), row));
        }
        let form = self.form();
        let leaves_system =
            |columns: &Map<String, Value>| self.leaves_system(self.layout.unwrap_or(Layout::Usual), columns);
        // a response by itself is what is asked for
        let layout = self.layout.filter(|layout| !(layout.joins() && form.chosen_only)).unwrap_or(Layout::Usual);
        if layout.joins() {
            for (number, columns) in rows {
                let of = columns.and_then(|mut columns| Ok((layout.response(&columns)?, columns.remove("id"))));
                match of {
                    Ok((response, id)) => joined.add(number, id, response),
                    Err(problem) => self.refuse(number, problem)?,
                }
            }
            return Ok(());
        }
        let parse = |(number, columns): Numbered<Result<Map<String, Value>, String>>| {
            let usual = columns.and_then(|mut columns| {
                if leaves_system(&columns) {
                    columns.remove("system");
                }
                layout.usual(columns)
            });
            (number, usual.and_then(|usual| parse_columns(usual, form)))
        };
        self.add(rows.into_par_iter().map(parse).collect())
    }

    /// Whether rows have a system's turn beside the usual columns, which no trainer reads there.
    fn leaves_system(&self, layout: Layout, columns: &Map<String, Value>) -> bool {
        let asked = self.reading.columns.names("system");
        layout == Layout::Usual && !asked && columns.get("system").is_some_and(|system| !system.is_null())
    }

    /// Tokenises rows and adds them.
    fn add(&mut self, rows: Vec<Numbered<Result<Row, String>>>) -> Result<()> {
        let is_text =
            |row: &Result<Row, String>| row.as_ref().is_ok_and(|row| !matches!(row.preference, Preference::Ids { .. }));
        if self.tokenizer.is_none() && rows.iter().any(|(_, row)| is_text(row)) {
            let mut tokenizer = TextTokens::open(self.folders)?;
            if let Some(date) = self.reading.date {
                tokenizer.pin_date(date);
            }
            self.tokenizer = Some(tokenizer);
        }
        let (tokenizer, reading, limits) = (self.tokenizer.as_ref(), self.reading, self.limits);
        let of = |(row, parsed): Numbered<Result<Row, String>>| {
            let used = parsed.map_err(Unusable::Bad).and_then(|parsed| usable(row, parsed, tokenizer, reading, limits));
            (row, used)
        };
        let pairs: Vec<Numbered<Used>> = rows.into_par_iter().map(of).collect();
        for (row, pair) in pairs {
            match pair {
                Ok((pair, remarks)) => {
                    hash(&mut self.hasher, &pair);
                    self.groups |= pair.group.is_some();
                    self.spool.add(&pair)?;
                    remarks.into_iter().for_each(|remark| self.remark(remark, row));
                }
                Err(Unusable::Dropped(problem)) => self.skipped.push(Skipped { row, problem, dropped: true }),
                Err(Unusable::Bad(problem)) => self.refuse(row, problem)?,
            }
        }
        Ok(())
    }

    fn refuse(&mut self, row: u64, problem: String) -> Result<()> {
        if !self.reading.skip_bad_rows {
            return Err(Error::Row { path: self.path.to_owned(), row, problem });
        }
        self.skipped.push(Skipped { row, problem, dropped: false });
        Ok(())
    }

    fn finish(mut self, joined: Joined, files: Vec<PathBuf>, note: Option<String>) -> Result<Dataset> {
        let mut recognised: Vec<String> = note.into_iter().collect();
        recognised.extend(self.layout.and_then(Layout::name).map(|name| format!("read as {name}")));
        let mut notes = Vec::new();
        if !joined.prompts.is_empty() {
            let all = joined.prompts.len();
            let differ = |of: &PromptResponses| of.scores.iter().any(|score| (score - of.scores[0]).abs() > 0.0);
            let (useful, alone): (Vec<_>, Vec<_>) = joined.prompts.into_iter().partition(differ);
            if useful.is_empty() {
                return Err(none_joined(self.path));
            }
            if !alone.is_empty() {
                notes.push(format!(
                    "{} of {all} prompts have no two responses to compare, and are left out",
                    alone.len()
                ));
            }
            let form = self.form();
            let row = |of: PromptResponses| {
                let mut columns = group(of.prompt, of.responses, &of.scores);
                columns.extend(of.id.map(|id| ("id".to_owned(), id)));
                (of.row, parse_columns(columns, form))
            };
            self.add(useful.into_iter().map(row).collect())?;
        }
        let pairs = self.spool.finish()?;
        if pairs.is_empty() {
            let first = self.skipped.first().map_or(String::new(), |s| format!("; row {}: {}", s.row, s.problem));
            return Err(Error::file(self.path, format!("no row can be used{first}")));
        }
        let content_hash = hex(&self.hasher.finalize());
        notes.extend(self.remarks.iter().map(|(remark, (rows, first))| remark.of_rows(*rows, *first)));
        if let Some(tokenizer) = &self.tokenizer {
            recognised.push(format!("tokens by recipe {}", self.reading.recipe));
            recognised.extend(other_folders(tokenizer, self.folders));
        }
        let tokenize = self.tokenizer.is_some().then(|| self.reading.tokenize());
        let (path, skipped, groups) = (self.path.to_owned(), self.skipped, self.groups);
        Ok(Dataset { path, pairs, skipped, groups, files, recognised, notes, tokenize, content_hash })
    }
}

/// Says which of a tokenizer's files are not the model's own.
fn other_folders(tokenizer: &TextTokens, folders: &[&Path]) -> Option<String> {
    let model = folders.last().copied();
    let [ids, template] = tokenizer.from().map(|from| from.filter(|from| Some(*from) != model));
    match (ids, template) {
        (None, None) => None,
        (Some(from), Some(other)) if from == other => {
            Some(format!("tokenizer and chat template of {}", from.display()))
        }
        (Some(from), _) => Some(format!("tokenizer of {}", from.display())),
        (None, Some(from)) => Some(format!("chat template of {}", from.display())),
    }
}

/// A row as a pair, or a group, of token ids that fit the model, and what to say of it.
fn usable(row: u64, parsed: Row, tokenizer: Option<&TextTokens>, reading: &Reading, limits: Limits) -> Used {
    let is_group = parsed.scores.is_some() || parsed.preference.len() > 2;
    let recipe = &reading.recipe;
    let mut tokens = match (parsed.preference, tokenizer) {
        (Preference::Ids { prompt, responses }, _) => {
            let longest = prompt.len() + responses.iter().map(Vec::len).max().unwrap_or(0);
            let beyond = recipe.max_length.filter(|most| longest > *most && !reading.limit_ids);
            let tokens = Tokens::uncut(prompt, responses, beyond.map(Remark::LongIds).into_iter().collect());
            if reading.limit_ids { recipe.cut(tokens, tokenizer.and_then(TextTokens::eos))? } else { tokens }
        }
        (preference, Some(tokenizer)) => recipe.tokens(&preference, &parsed.setting, tokenizer)?,
        (_, None) => return Err(Unusable::Bad("needs a tokenizer".to_owned())),
    };
    check(&tokens.prompt, &tokens.responses.iter().map(Vec::as_slice).collect::<Vec<_>>(), is_group, limits)?;
    let mut remarks = std::mem::take(&mut tokens.remarks);
    remarks.extend(parsed.ids_beside_text.then_some(Remark::IdsBesideText));
    let Tokens { prompt, responses, cut, .. } = tokens;
    remarks.extend((cut.prompt > 0).then_some(Remark::PromptCut));
    remarks.extend(cut.responses.iter().any(|lost| *lost > 0).then_some(Remark::ResponseCut));
    remarks.sort_unstable();
    remarks.dedup();
    let misfit = parsed.weights.as_ref().and_then(|weights| check_weights(weights, &responses, &cut).err());
    // what bad rows are left out for may need them
    if let Some(problem) = misfit.clone().filter(|_| reading.skip_bad_rows) {
        return Err(problem.into());
    }
    let group = is_group.then(|| Candidates::new(responses.clone(), parsed.scores));
    let (best, worst) = group.as_ref().map_or((0, 1), |group| (group.best, group.worst));
    let tokens = PairTokens { prompt, chosen: responses[best].clone(), rejected: responses[worst].clone() };
    Ok((Pair { row, id: parsed.id, tokens, cut, group, weights: parsed.weights, misfit }, remarks))
}

/// Checks that every token of both responses has a weight.
fn check_weights(weights: &[Vec<f64>; 2], responses: &[Vec<u32>], cut: &Cut) -> Result<(), String> {
    for (k, name) in ["chosen", "rejected"].into_iter().enumerate() {
        let (there, tokens, lost) = (weights[k].len(), responses[k].len(), cut.responses[k]);
        if lost > 0 {
            return Err(format!(
                "`{name}` lost {lost} tokens to a limit on lengths, so its weights are of other tokens; option `max_length` = none cuts nothing"
            ));
        }
        if there != tokens {
            return Err(format!(
                "`{name}_weights` has {there} weights and the response {tokens} tokens, which `rows` shows"
            ));
        }
    }
    Ok(())
}

/// What a response is called in its row.
fn name_of(group: bool, k: usize) -> String {
    match (group, k) {
        (true, k) => format!("responses[{k}]"),
        (false, 0) => "chosen".to_owned(),
        (false, _) => "rejected".to_owned(),
    }
}

/// Checks ids and lengths of a prompt and its responses against the model's limits.
fn check(prompt: &[u32], responses: &[&[u32]], group: bool, limits: Limits) -> Result<(), String> {
    let named = responses.iter().enumerate().map(|(k, ids)| (name_of(group, k), *ids));
    for (name, ids) in std::iter::once(("prompt".to_owned(), prompt)).chain(named) {
        if ids.is_empty() {
            return Err(format!("`{name}` has no tokens"));
        }
        if let Some(id) = ids.iter().find(|id| **id as usize >= limits.vocabulary) {
            let last = limits.vocabulary - 1;
            return Err(format!("`{name}` has the id {id}, beyond the model's vocabulary (0 to {last})"));
        }
    }
    let response = responses.iter().map(|ids| ids.len()).max().unwrap_or(0);
    let inputs = prompt.len() + response - 1;
    if inputs > limits.positions {
        return Err(format!(
            "prompt and response need {inputs} positions, and the model has {}; option `max_length` = {} with option `truncate` = \
             response or prompt cuts them",
            limits.positions,
            limits.positions + 1
        ));
    }
    Ok(())
}

/// What decides a row's results.
fn hash(hasher: &mut Sha256, pair: &Pair) {
    hasher.update(pair.row.to_le_bytes());
    let mut ids = |ids: &[u32]| {
        hasher.update((ids.len() as u64).to_le_bytes());
        ids.iter().for_each(|id| hasher.update(id.to_le_bytes()));
    };
    [&pair.tokens.prompt, &pair.tokens.chosen, &pair.tokens.rejected].into_iter().for_each(|of| ids(of));
    if let Some(group) = &pair.group {
        group.responses.iter().for_each(|of| ids(of));
        group.scores.iter().flatten().for_each(|score| hasher.update(score.to_le_bytes()));
    }
    pair.weights.iter().flatten().flatten().for_each(|weight| hasher.update(weight.to_le_bytes()));
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
