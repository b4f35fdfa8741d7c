//! params.parquet by layer and by module.
use crate::metrics::{keys, spread_columns};
use crate::statistics::Spread;
use polars_core::prelude::{DataFrame, PolarsResult};
use polars_lazy::prelude::{Expr, col, len, lit, when};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use tanglescope_objectives::{PairGram, Rounding};
use tanglescope_records::tables::{self, column, frame};
use tanglescope_records::{Leaf, Manifest, Records, Result};

/// What rows of params.parquet are summed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// All parameters of a block.
    Layer,
    /// The parameters of a module, in a block or outside.
    Module,
}

/// Cosines that are kept at once, as numbers: 512 MiB of them. More keys than fit take several passes over the file.
const KEPT: usize = 1 << 26;

/// Rows that are read at once.
const ROWS_AT_ONCE: usize = 1 << 20;

type Key = (Option<u32>, String);

/// What is known of a key.
#[derive(Default)]
struct KeySums {
    cosines: Vec<f64>,
    undefined: usize,
    /// Sums over pairs.
    gram: PairGram,
}

/// One row a layer, or a layer and module: where the cosines of pairs lie, when only these parameters count (columns of a
/// spread), the sums over pairs `ww`, `wl`, `ll`, and `wl_share`, the part of the wl of all parameters, those in no layer
/// included, that is of these. `None` without params.parquet.
///
/// A pair's rows have to be together, as `analyze` writes them.
///
/// # Errors
/// Where a part is damaged.
pub fn params(leaf: &Leaf, by: By) -> Result<Option<DataFrame>> {
    let Some(records) = leaf.table(tables::PARAMS)? else { return Ok(None) };
    let keys_of = records.scan()?.group_by([col("layer"), col("module")]).agg([len()]);
    let distinct = records.collect(keys_of)?;
    let read = || -> PolarsResult<BTreeSet<Key>> {
        let (layers, modules) = (distinct.column("layer")?.u32()?, distinct.column("module")?.str()?);
        Ok(layers
            .iter()
            .zip(modules.iter())
            .filter_map(|(layer, module)| by.key(layer, module.unwrap_or_default()))
            .collect())
    };
    let all: Vec<Key> = read().map_err(|e| records.blame(e))?.into_iter().collect();
    let pairs = leaf.pairs()?;
    let height = pairs.collect(pairs.scan()?.select([len().alias("n")]))?;
    let pairs = height.column("n").and_then(|n| n.cast(&polars_core::prelude::DataType::UInt64)).ok();
    let pairs = pairs.and_then(|n| n.u64().ok()?.get(0)).map_or(1, |n| usize::try_from(n).unwrap_or(usize::MAX));
    let mut rows: Vec<(Key, Option<Spread>, usize, PairGram)> = Vec::new();
    for keys in all.chunks((KEPT / pairs.max(1)).max(1)) {
        for (key, found) in keys.iter().zip(pass(&records, by, keys)?) {
            rows.push((key.clone(), Spread::of(found.cosines), found.undefined, found.gram));
        }
    }
    let total = total_wl(&records)?;
    let mut columns = vec![column("layer", &rows, |r| r.0.0)];
    if by == By::Module {
        columns.push(column("module", &rows, |r| r.0.1.clone()));
    }
    let spreads: Vec<(Option<Spread>, usize)> = rows.iter().map(|r| (r.1, r.2)).collect();
    columns.extend(spread_columns(&spreads));
    columns.extend([
        column("ww", &rows, |r| r.3.ww),
        column("wl", &rows, |r| r.3.wl),
        column("ll", &rows, |r| r.3.ll),
        column("wl_share", &rows, |r| (total != 0.0).then(|| r.3.wl / total)),
    ]);
    Ok(Some(frame(keys(leaf, rows.len()).into_iter().chain(columns).collect())))
}

/// A column's values, zero for those that are not a number.
pub(crate) fn known(name: &str) -> Expr {
    when(col(name).is_not_nan()).then(col(name)).otherwise(lit(0.0)).alias(name)
}

/// The wl of all parameters, summed over the pairs.
pub(crate) fn total_wl(params: &Records) -> Result<f64> {
    let total = params.collect(params.scan()?.select([known("wl").sum()]))?;
    let total = total.column("wl").and_then(|wl| Ok(wl.f64()?.get(0))).map_err(|e| params.blame(e))?;
    Ok(total.unwrap_or(0.0))
}

/// The Gram of the mean gradients over all pairs, summed over the parameters; `None` where it was not recorded.
///
/// # Errors
/// Where the table is damaged.
pub fn means(leaf: &Leaf) -> Result<Option<DataFrame>> {
    let Some(records) = leaf.table(tables::MEANS)? else { return Ok(None) };
    let query = records.scan()?.select([col("pairs").max(), col("ww").sum(), col("wl").sum(), col("ll").sum()]);
    let sums = records.collect(query)?;
    let read = || -> PolarsResult<(u64, PairGram)> {
        let sum = |name: &str| -> PolarsResult<f64> { Ok(sums.column(name)?.f64()?.get(0).unwrap_or(f64::NAN)) };
        let pairs = sums.column("pairs")?.u64()?.get(0).unwrap_or(0);
        Ok((pairs, PairGram { ww: sum("ww")?, wl: sum("wl")?, ll: sum("ll")? }))
    };
    let rows = [read().map_err(|e| records.blame(e))?];
    let rounding = match Manifest::read(&leaf.folder)? {
        Some(Manifest::Analysis(manifest)) => Rounding::of(&manifest.identity.dtype),
        _ => Rounding::F64,
    };
    let columns = vec![
        column("pairs", &rows, |r| r.0),
        column("ww", &rows, |r| r.1.ww),
        column("wl", &rows, |r| r.1.wl),
        column("ll", &rows, |r| r.1.ll),
        column("cosine", &rows, |r| r.1.cosine()),
        column("norm_ratio", &rows, |r| r.1.norm_ratio()),
        column("regime_dpo", &rows, |r| r.1.regime(1.0, 1.0, rounding).name().to_owned()),
    ];
    Ok(Some(frame(keys(leaf, 1).into_iter().chain(columns).collect())))
}

impl By {
    /// The key of a row, `None` where it is in no layer and layers are asked for.
    fn key(self, layer: Option<u32>, module: &str) -> Option<Key> {
        match self {
            Self::Layer => layer.map(|layer| (Some(layer), String::new())),
            Self::Module => Some((layer, module.to_owned())),
        }
    }
}

/// Reads the table once, for some keys.
fn pass(records: &Records, by: By, keys: &[Key]) -> Result<Vec<KeySums>> {
    let mut found: Vec<KeySums> = keys.iter().map(|_| KeySums::default()).collect();
    let places: HashMap<&Key, usize> = keys.iter().enumerate().map(|(at, key)| (key, at)).collect();
    let mut sums: BTreeMap<usize, PairGram> = BTreeMap::new();
    let mut now: Option<u64> = None;
    for part in records.parts() {
        for rows in tanglescope_records::batches(part, &["pair", "layer", "module", "ww", "wl", "ll"], ROWS_AT_ONCE)? {
            let rows = rows?;
            let mut add = || -> PolarsResult<()> {
                let (pairs, layers) = (rows.column("pair")?.u64()?, rows.column("layer")?.u32()?);
                let modules = rows.column("module")?.str()?;
                let [ww, wl, ll] = ["ww", "wl", "ll"].map(|name| rows.column(name).and_then(|of| of.f64()));
                let (ww, wl, ll) = (ww?, wl?, ll?);
                let mut known: HashMap<(Option<u32>, &str), Option<usize>> = HashMap::new();
                let values = ww.iter().zip(wl.iter()).zip(ll.iter());
                for (((pair, layer), module), ((ww, wl), ll)) in
                    pairs.iter().zip(layers.iter()).zip(modules.iter()).zip(values)
                {
                    if pair != now {
                        settle(&mut sums, &mut found);
                        now = pair;
                    }
                    let module = module.unwrap_or_default();
                    let place = *known
                        .entry((layer, module))
                        .or_insert_with(|| by.key(layer, module).and_then(|key| places.get(&key).copied()));
                    if let Some(place) = place {
                        let sum = sums.entry(place).or_default();
                        sum.ww += ww.unwrap_or(f64::NAN);
                        sum.wl += wl.unwrap_or(f64::NAN);
                        sum.ll += ll.unwrap_or(f64::NAN);
                    }
                }
                Ok(())
            };
            add().map_err(|e| records.blame(e))?;
        }
    }
    settle(&mut sums, &mut found);
    Ok(found)
}

/// Adds a finished pair's cosine and sums to its keys' totals, and clears `sums`.
fn settle(sums: &mut BTreeMap<usize, PairGram>, found: &mut [KeySums]) {
    for (place, gram) in std::mem::take(sums) {
        let found = &mut found[place];
        match gram.cosine().filter(|cosine| !cosine.is_nan()) {
            Some(cosine) => found.cosines.push(cosine),
            None => found.undefined += 1,
        }
        if [gram.ww, gram.wl, gram.ll].iter().all(|x| !x.is_nan()) {
            found.gram.ww += gram.ww;
            found.gram.wl += gram.wl;
            found.gram.ll += gram.ll;
        }
    }
}
