//! The pairs whose texts are in a report, chosen so that every regime and every extreme is among them, and their matrices of
//! token gradients.
use crate::error::Result;
use polars_core::prelude::{DataFrame, DataType, PolarsResult};
use polars_lazy::prelude::{col, lit};
use serde::Serialize;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use tanglescope_objectives::contrast;
use tanglescope_records::{Leaf, Manifest, Records, folders_with, tables};

/// Measures both of whose ends are shown, whatever is left out.
pub(crate) const EXTREMES: [&str; 5] = ["cosine", "wl_over_min", "norm_ratio", "logp_chosen", "edit_distance"];

/// Pairs whose texts are in a report.
const TEXTS: usize = 200;

/// Bytes of texts in the file, and as many of matrices, where the page has room for them; fewer are taken where they are long.
const BYTES: usize = 2_500_000;

/// Characters of a prompt that are shown, the last ones.
const PROMPT: usize = 4000;

/// Texts and matrices. Keys are `leaf/pair`.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Texts {
    /// Texts and tokens of pairs.
    pub pairs: BTreeMap<String, Value>,
    /// Inner products of the gradients of their tokens: `wl`, `ww` and `ll`, row by row.
    pub matrices: BTreeMap<String, Value>,
}

/// Reads texts and matrices, of pairs in a heat map before others. Says what of the folders is not shown.
pub(crate) fn gather(
    folders: &[PathBuf],
    leaves: &[Leaf],
    pairs: &Map<String, Value>,
    mapped: &[(usize, u64)],
    room: usize,
    left_out: &mut Vec<String>,
) -> Result<Texts> {
    let mut texts = Texts::default();
    let bytes = BYTES.min(room / 2);
    matrices(folders, leaves, bytes, &mut texts, left_out)?;
    let mut first: Vec<(usize, u64)> = texts.matrices.keys().filter_map(|key| parse(key)).collect();
    first.extend(mapped);
    let mut by_leaf: BTreeMap<usize, Vec<u64>> = BTreeMap::new();
    for (leaf, pair) in chosen(pairs, &first) {
        by_leaf.entry(leaf).or_default().push(pair);
    }
    let (mut left, mut leaves_left) = (bytes, by_leaf.len());
    for (leaf, wanted) in by_leaf {
        // what one leaves over is the next ones'
        let mut own = left / leaves_left;
        (left, leaves_left) = (left - own, leaves_left - 1);
        if let Some(records) = leaves[leaf].table(tables::RESPONSES)? {
            responses(&records, leaf, &wanted, &mut own, &mut texts)?;
        }
        left += own;
    }
    Ok(texts)
}

fn key(leaf: usize, pair: u64) -> String {
    format!("{leaf}/{pair}")
}

/// Record and pair of a key.
pub(crate) fn parse(key: &str) -> Option<(usize, u64)> {
    let (leaf, pair) = key.split_once('/')?;
    Some((leaf.parse().ok()?, pair.parse().ok()?))
}

/// Which pairs are shown with their texts: those with matrices; of each regime, and by each measure, both ends; the rest evenly.
fn chosen(pairs: &Map<String, Value>, first: &[(usize, u64)]) -> BTreeSet<(usize, u64)> {
    let column = |name: &str| pairs.get(name).and_then(Value::as_array).cloned().unwrap_or_default();
    let (leaf, pair, regime) = (column("leaf"), column("pair"), column("regime_dpo"));
    let id = |row: usize| -> Option<(usize, u64)> {
        Some((usize::try_from(leaf.get(row)?.as_u64()?).ok()?, pair.get(row)?.as_u64()?))
    };
    let mut all: BTreeSet<(usize, u64)> = first.iter().copied().collect();
    let mut orders: Vec<Vec<usize>> = Vec::new();
    for name in EXTREMES {
        let values = column(name);
        let mut rows: Vec<(usize, f64)> =
            values.iter().enumerate().filter_map(|(row, x)| Some((row, x.as_f64()?))).collect();
        rows.sort_by(|a, b| a.1.total_cmp(&b.1));
        let rows: Vec<usize> = rows.into_iter().map(|(row, _)| row).collect();
        orders.push(rows.clone());
        orders.push(rows.into_iter().rev().collect());
    }
    let kinds: BTreeSet<&str> = regime.iter().filter_map(Value::as_str).collect();
    let of_kind = |kind: &str, rows: &[usize]| -> Vec<usize> {
        rows.iter().copied().filter(|&row| regime.get(row).and_then(Value::as_str) == Some(kind)).collect()
    };
    let of_kinds: Vec<Vec<usize>> = kinds
        .iter()
        .flat_map(|kind| orders.iter().take(4).map(|rows| of_kind(kind, rows)).collect::<Vec<_>>())
        .collect();
    orders.extend(of_kinds);
    // a half by their ends, in turn, whatever else is shown
    let enough = first.len() + TEXTS / 2;
    for rank in 0..TEXTS {
        for rows in &orders {
            if all.len() < enough {
                all.extend(rows.get(rank).and_then(|&row| id(row)));
            }
        }
    }
    // the rest evenly over everything
    let room = TEXTS.saturating_sub(all.len()).max(1);
    let every = leaf.len().div_ceil(room).max(1);
    for row in (0..leaf.len()).step_by(every) {
        if all.len() < TEXTS {
            all.extend(id(row));
        }
    }
    all
}

/// Adds texts of some pairs.
fn responses(records: &Records, leaf: usize, wanted: &[u64], left: &mut usize, texts: &mut Texts) -> Result<()> {
    let only = wanted.iter().map(|pair| col("pair").eq(lit(*pair))).reduce(polars_lazy::prelude::Expr::or);
    let Some(only) = only else { return Ok(()) };
    let rows = records.collect(records.scan()?.filter(only))?;
    let mut read = || -> PolarsResult<()> {
        for row in 0..rows.height() {
            let Some(pair) = rows.column("pair")?.cast(&DataType::UInt64)?.u64()?.get(row) else { continue };
            let (chosen, rejected) = (ids(&rows, "chosen_ids", row)?, ids(&rows, "rejected_ids", row)?);
            let masks = contrast(&chosen, &rejected);
            let tokens = |name: &str, ids: &[u32], mask: &[bool]| -> PolarsResult<Value> {
                let text = rows.column(&format!("{name}_text"))?.list()?.get_as_series(row);
                let text = text.map(|text| text.str().cloned()).transpose()?;
                let logps = rows.column(&format!("{name}_logps"))?.list()?.get_as_series(row);
                let logps = logps.map(|logps| logps.f64().cloned()).transpose()?;
                let token = |at: usize| {
                    let shown = text.as_ref().and_then(|text| text.get(at)).map(str::to_owned);
                    let shown = shown.unwrap_or_else(|| format!("[{}]", ids[at]));
                    json!([shown, logps.as_ref().and_then(|logps| logps.get(at)).map(rounded), u8::from(!mask[at])])
                };
                Ok((0..ids.len()).map(token).collect())
            };
            let prompt = rows.column("prompt")?.str()?.get(row).map(|prompt| {
                let from = prompt.char_indices().rev().nth(PROMPT - 1).map_or(0, |(at, _)| at);
                if from > 0 { format!("… {}", &prompt[from..]) } else { prompt.to_owned() }
            });
            let of = json!({
                "prompt": prompt,
                "chosen": tokens("chosen", &chosen, &masks[0])?,
                "rejected": tokens("rejected", &rejected, &masks[1])?,
            });
            let Some(rest) = left.checked_sub(of.to_string().len()) else { continue };
            *left = rest;
            texts.pairs.insert(key(leaf, pair), of);
        }
        Ok(())
    };
    Ok(read().map_err(|e| records.blame(e))?)
}

/// Five significant digits: as many as are read.
fn rounded(x: f64) -> Value {
    format!("{x:.4e}").parse::<f64>().map_or(Value::Null, |x| json!(x))
}

/// What decides the numbers of matrices, and the file that their rows are of: they may be of its first rows only.
#[derive(PartialEq)]
struct Origin {
    model: String,
    adapter: Option<String>,
    scope: String,
    dtype: String,
    all_pairs: bool,
    data: PathBuf,
}

impl Origin {
    fn of(folder: &Path) -> Result<Option<Self>> {
        let Some(Manifest::Analysis(manifest)) = Manifest::read(folder)? else { return Ok(None) };
        let (of, data) = (manifest.identity, manifest.data);
        let data = data.canonicalize().unwrap_or(data);
        let (model, adapter, scope, dtype, all_pairs) = (of.model, of.adapter, of.scope, of.dtype, of.all_pairs);
        Ok(Some(Self { model, adapter, scope, dtype, all_pairs, data }))
    }
}

/// Adds matrices: those in a leaf's own folder, or in one of the same model, data and scope, of the same tokens.
fn matrices(
    folders: &[PathBuf],
    leaves: &[Leaf],
    bytes: usize,
    texts: &mut Texts,
    left_out: &mut Vec<String>,
) -> Result<()> {
    let origins = leaves.iter().map(|leaf| Origin::of(&leaf.folder)).collect::<Result<Vec<_>>>()?;
    let mut left = bytes;
    for folder in folders_with(folders, tables::TOKENS)? {
        let of = Origin::of(&folder)?;
        let same = |number: usize| leaves[number].folder == folder || (of.is_some() && origins[number] == of);
        let mut home = None;
        for (number, leaf) in leaves.iter().enumerate().filter(|(number, _)| same(*number)) {
            let from = Leaf { folder: folder.clone(), ..leaf.clone() };
            if same_tokens(&from, leaf)? {
                home = Some((number, from));
                break;
            }
        }
        let Some((leaf, from)) = home else {
            left_out.push(format!("matrices of {}: of no records that are shown", folder.display()));
            continue;
        };
        let Some(records) = from.table(tables::TOKENS)? else { continue };
        for part in records.parts() {
            if left == 0 || texts.matrices.len() >= TEXTS / 2 {
                break;
            }
            let one = Records::of(vec![part.clone()]);
            let rows = one.collect(one.scan()?)?;
            add(&rows, leaf, &mut left, texts).map_err(|e| one.blame(e))?;
        }
    }
    Ok(())
}

/// Whether matrices are of the tokens that a leaf's pairs have: a file may have changed, or another template was used.
fn same_tokens(matrices: &Leaf, leaf: &Leaf) -> Result<bool> {
    let (Some(positions), Some(responses)) = (matrices.table(tables::POSITIONS)?, leaf.table(tables::RESPONSES)?)
    else {
        return Ok(false);
    };
    // a part is enough to tell
    let positions = Records::of(positions.parts()[..1].to_vec());
    let rows = positions.collect(positions.scan()?.select(["pair", "branch", "token"].map(col)))?;
    let read = || -> PolarsResult<BTreeMap<u64, [Vec<u32>; 2]>> {
        let mut of: BTreeMap<u64, [Vec<u32>; 2]> = BTreeMap::new();
        let (pairs, branches) = (rows.column("pair")?.u64()?, rows.column("branch")?.str()?);
        for ((pair, branch), token) in pairs.iter().zip(branches.iter()).zip(rows.column("token")?.u32()?.iter()) {
            let (Some(pair), Some(token)) = (pair, token) else { continue };
            of.entry(pair).or_default()[usize::from(branch == Some("l"))].push(token);
        }
        Ok(of)
    };
    let of = read().map_err(|e| positions.blame(e))?;
    let only = of.keys().map(|pair| col("pair").eq(lit(*pair))).reduce(polars_lazy::prelude::Expr::or);
    let query = responses.scan()?.filter(only.unwrap_or(lit(false)));
    let rows = responses.collect(query.select(["pair", "chosen_ids", "rejected_ids"].map(col)))?;
    let compare = || -> PolarsResult<bool> {
        for row in 0..rows.height() {
            let pair = rows.column("pair")?.u64()?.get(row).unwrap_or_default();
            for (name, tokens) in ["chosen_ids", "rejected_ids"].into_iter().zip(&of[&pair]) {
                if ids(&rows, name, row)? != *tokens {
                    return Ok(false);
                }
            }
        }
        Ok(rows.height() > 0)
    };
    Ok(compare().map_err(|e| responses.blame(e))?)
}

/// Token ids of a row.
fn ids(rows: &DataFrame, name: &str, row: usize) -> PolarsResult<Vec<u32>> {
    let list = rows.column(name)?.list()?.get_as_series(row);
    Ok(list.map(|list| list.u32().map(|ids| ids.iter().flatten().collect())).transpose()?.unwrap_or_default())
}

/// Adds the matrices of a part that there is room for.
fn add(rows: &DataFrame, leaf: usize, left: &mut usize, texts: &mut Texts) -> PolarsResult<()> {
    let (pairs, blocks) = (rows.column("pair")?.u64()?, rows.column("block")?.str()?);
    let (at, inner) = (rows.column("row")?.u32()?, rows.column("inner")?.f64()?);
    let mut matrices: BTreeMap<(u64, &str), Vec<Vec<Value>>> = BTreeMap::new();
    for (((pair, block), at), inner) in pairs.iter().zip(blocks.iter()).zip(at.iter()).zip(inner.iter()) {
        let (Some(pair), Some(block), Some(at), Some(inner)) = (pair, block, at, inner) else { continue };
        let matrix = matrices.entry((pair, block)).or_default();
        if matrix.len() <= at as usize {
            matrix.resize(at as usize + 1, Vec::new());
        }
        matrix[at as usize].push(rounded(inner));
    }
    let all: BTreeSet<u64> = matrices.keys().map(|key| key.0).collect();
    for pair in all {
        let of = |block: &str| matrices.get(&(pair, block)).cloned().unwrap_or_default();
        let blocks = ["wl", "ww", "ll"].map(|block| (block, of(block)));
        let whole: Map<String, Value> =
            blocks.into_iter().map(|(block, matrix)| (block.to_owned(), json!(matrix))).collect();
        let whole = Value::Object(whole);
        let rest = left.checked_sub(whole.to_string().len()).filter(|_| texts.matrices.len() < TEXTS / 2);
        let Some(rest) = rest else {
            *left = 0;
            return Ok(());
        };
        *left = rest;
        texts.matrices.insert(key(leaf, pair), whole);
    }
    Ok(())
}
