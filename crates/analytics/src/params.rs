//! params.parquet by layer and by module.
use crate::metrics::{keys, spread_columns};
use crate::statistics::{Order, Spread, floor};
use polars_core::prelude::{DataFrame, PolarsResult};
use polars_lazy::prelude::{Expr, col, lit, when};
use rayon::prelude::{ParallelIterator, ParallelSlice};
use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use tanglescope_objectives::{PairGram, Rounding};
use tanglescope_records::tables::{self, column, frame};
use tanglescope_records::{Error, Leaf, Manifest, Records, Result};

/// What rows of params.parquet are summed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// All parameters of a block.
    Layer,
    /// The parameters of a module, in a block or outside.
    Module,
}

/// Rows that are read at once.
const ROWS_AT_ONCE: usize = 1 << 18;

/// Stretches of the table that are read side by side and summed each by itself, however many cores there are: sums do not depend on them.
const STRETCHES: usize = 16;

/// Pieces of [−1, 1] in which cosines are counted: 4 KiB a key, and of twenty million pairs some twenty thousand in one.
const PIECES: usize = 1 << 10;

/// Cosines that are kept at once, as numbers: 256 MiB of them. Where more are near the ranks, as where many are equal, keys take turns.
const KEPT: usize = 1 << 25;

type Key = (Option<u32>, String);

/// The keys of a table, numbered as they are first seen.
struct Keys {
    by: By,
    places: Mutex<BTreeMap<Key, usize>>,
}

/// What is known of a key.
#[derive(Clone, Copy, Default)]
struct KeySums {
    /// Pairs that have a cosine, and those that have none.
    pairs: [usize; 2],
    /// Sums over pairs, and of their cosines.
    gram: PairGram,
    cosines: f64,
}

/// The cosines of a key in the pieces where its order statistics are.
type Near = BTreeMap<usize, Vec<f64>>;

/// One row a layer, or a layer and module: where the cosines of pairs lie, when only these parameters count (columns of a
/// spread), the sums over pairs `ww`, `wl`, `ll`, and `wl_share`, the part of the wl of all parameters, those in no layer
/// included, that is of these. `None` without params.parquet.
///
/// A pair's rows have to be together in one part, as `analyze` writes them. Order statistics are exact: the table is read once to count
/// cosines by their size, and again for those near the ranks that are looked at, so that memory does not grow with pairs.
///
/// # Errors
/// Where a part is damaged, or written while it is read.
pub fn params(leaf: &Leaf, by: By) -> Result<Option<DataFrame>> {
    let Some(records) = leaf.table(tables::PARAMS)? else { return Ok(None) };
    let found = Keys { by, places: Mutex::default() };
    let (sums, ends) = counted(&records, &found)?;
    let spreads = spreads(&records, &found, &sums, &ends)?;
    let total = total_wl(&records)?;
    let places = found.places.into_inner().unwrap_or_else(PoisonError::into_inner);
    let rows: Vec<(Key, KeySums)> = places.iter().map(|(key, at)| (key.clone(), sums[*at])).collect();
    let spreads: Vec<(Option<Spread>, usize)> = places.values().map(|at| (spreads[*at], sums[*at].pairs[1])).collect();
    let mut columns = vec![column("layer", &rows, |r| r.0.0)];
    if by == By::Module {
        columns.push(column("module", &rows, |r| r.0.1.clone()));
    }
    columns.extend(spread_columns(&spreads));
    columns.extend([
        column("ww", &rows, |r| r.1.gram.ww),
        column("wl", &rows, |r| r.1.gram.wl),
        column("ll", &rows, |r| r.1.gram.ll),
        column("wl_share", &rows, |r| (total != 0.0).then(|| r.1.gram.wl / total)),
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

impl Keys {
    /// The number of a row's key, `None` where it has none.
    fn place(&self, layer: Option<u32>, module: &str) -> Option<usize> {
        let key = self.by.key(layer, module)?;
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        let next = places.len();
        Some(*places.entry(key).or_insert(next))
    }
}

impl KeySums {
    fn add(&mut self, of: &Self) {
        self.pairs = [self.pairs[0] + of.pairs[0], self.pairs[1] + of.pairs[1]];
        let gram = of.gram;
        self.gram = PairGram { ww: self.gram.ww + gram.ww, wl: self.gram.wl + gram.wl, ll: self.gram.ll + gram.ll };
        self.cosines += of.cosines;
    }

    /// Of one pair.
    fn of(gram: PairGram, cosine: Option<f64>) -> Self {
        let known = [gram.ww, gram.wl, gram.ll].iter().all(|x| !x.is_nan());
        Self {
            pairs: [usize::from(cosine.is_some()), usize::from(cosine.is_none())],
            gram: if known { gram } else { PairGram::default() },
            cosines: cosine.unwrap_or(0.0),
        }
    }
}

/// The cosine of a pair by a key, where it has one.
fn cosine(gram: &PairGram) -> Option<f64> {
    gram.cosine().filter(|cosine| !cosine.is_nan())
}

/// The piece that a cosine is in; 1 is in the last.
fn piece(cosine: f64) -> usize {
    floor((cosine + 1.0) * (PIECES / 2) as f64).min(PIECES - 1)
}

/// The entry of a place in a list that grows.
fn at<T>(list: &mut Vec<T>, place: usize, empty: impl Fn() -> T) -> &mut T {
    if list.len() <= place {
        list.resize_with(place + 1, empty);
    }
    &mut list[place]
}

/// Does something with the stretches of a table, side by side; in their order.
fn stretches<T: Send>(records: &Records, of: impl Fn(&[PathBuf]) -> Result<T> + Send + Sync) -> Result<Vec<T>> {
    let parts = records.parts();
    parts.par_chunks(parts.len().div_ceil(STRETCHES).max(1)).map(of).collect()
}

/// Sums of each key, and the rank at which each piece of its cosines ends.
fn counted(records: &Records, keys: &Keys) -> Result<(Vec<KeySums>, Vec<Vec<u32>>)> {
    let none = || vec![0u32; PIECES];
    let counts: Mutex<Vec<Vec<u32>>> = Mutex::default();
    let stretches = stretches(records, |parts| {
        let (mut sums, mut here) = (Vec::<KeySums>::new(), Vec::<Vec<u32>>::new());
        each_gram(parts, keys, |place, gram| {
            let cosine = cosine(gram);
            at(&mut sums, place, KeySums::default).add(&KeySums::of(*gram, cosine));
            let counts = at(&mut here, place, none);
            if let Some(cosine) = cosine {
                counts[piece(cosine)] += 1;
            }
        })?;
        let mut counts = counts.lock().unwrap_or_else(PoisonError::into_inner);
        for (place, here) in here.iter().enumerate() {
            at(&mut counts, place, none).iter_mut().zip(here).for_each(|(all, n)| *all += n);
        }
        Ok(sums)
    })?;
    let mut sums = Vec::<KeySums>::new();
    for (place, of) in stretches.iter().flat_map(|sums| sums.iter().enumerate()) {
        at(&mut sums, place, KeySums::default).add(of);
    }
    let mut ends = counts.into_inner().unwrap_or_else(PoisonError::into_inner);
    for pieces in &mut ends {
        pieces.iter_mut().fold(0, |before, end| {
            *end += before;
            *end
        });
    }
    Ok((sums, ends))
}

/// Where the cosines of each key lie.
fn spreads(records: &Records, keys: &Keys, sums: &[KeySums], ends: &[Vec<u32>]) -> Result<Vec<Option<Spread>>> {
    let orders: Vec<Option<Order>> = sums.iter().map(|of| Order::of(of.pairs[0])).collect();
    let piece_of = |place: usize, rank: usize| ends[place].partition_point(|end| *end as usize <= rank);
    let before = |place: usize, piece: usize| if piece == 0 { 0 } else { ends[place][piece - 1] as usize };
    let expected = |place: usize, piece: usize| ends[place][piece] as usize - before(place, piece);
    let near = |place: usize| -> Near {
        let ranks = orders[place].iter().flat_map(|order| order.ranks());
        ranks.map(|rank| (piece_of(place, rank), Vec::new())).collect()
    };
    let mut spreads = Vec::new();
    while spreads.len() < sums.len() {
        // as many keys as there is room for
        let first = spreads.len();
        let (mut now, mut kept) = (Vec::new(), 0);
        for place in first..sums.len() {
            let near = near(place);
            kept += near.keys().map(|piece| expected(place, *piece)).sum::<usize>();
            if place > first && kept > KEPT {
                break;
            }
            now.push(near);
        }
        for (place, near) in (first..).zip(read_near(records, keys, first, now)?) {
            if near.iter().any(|(piece, values)| values.len() != expected(place, *piece)) {
                return Err(records.blame("was written while it was read; run the command again"));
            }
            let mean = sums[place].cosines / sums[place].pairs[0] as f64;
            let value = |rank: usize| {
                let piece = piece_of(place, rank);
                near[&piece][rank - before(place, piece)]
            };
            spreads.push(orders[place].map(|order| order.spread(mean, value)));
        }
    }
    Ok(spreads)
}

/// Fills the pieces of some keys, from the `first` on, with their cosines in order.
fn read_near(records: &Records, keys: &Keys, first: usize, empty: Vec<Near>) -> Result<Vec<Near>> {
    let all = Mutex::new(empty.clone());
    stretches(records, |parts| {
        let mut here = empty.clone();
        each_gram(parts, keys, |place, gram| {
            if let Some(cosine) = cosine(gram)
                && let Some(near) = place.checked_sub(first).and_then(|at| here.get_mut(at))
                && let Some(values) = near.get_mut(&piece(cosine))
            {
                values.push(cosine);
            }
        })?;
        let mut all = all.lock().unwrap_or_else(PoisonError::into_inner);
        for (all, here) in all.iter_mut().zip(here) {
            all.values_mut().zip(here.into_values()).for_each(|(all, here)| all.extend(here));
        }
        Ok(())
    })?;
    let mut all = all.into_inner().unwrap_or_else(PoisonError::into_inner);
    all.iter_mut().flat_map(BTreeMap::values_mut).for_each(|values| values.sort_unstable_by(f64::total_cmp));
    Ok(all)
}

/// Goes through the rows of some parts, and hands on the Gram of each pair for each key that it has rows of.
fn each_gram(parts: &[PathBuf], keys: &Keys, mut of: impl FnMut(usize, &PairGram)) -> Result<()> {
    // rows of pairs repeat each other's layers and modules in order: the one that came next is tried before it is looked up
    let mut seen: Vec<(Option<u32>, String, Option<usize>)> = Vec::new();
    let mut numbers: HashMap<Option<u32>, HashMap<String, usize>> = HashMap::new();
    let mut next = 0;
    // of the pair whose rows these are, and of which keys there were rows
    let (mut sums, mut touched) = (Vec::<Option<PairGram>>::new(), Vec::<usize>::new());
    let mut now: Option<u64> = None;
    let mut settle = |sums: &mut [Option<PairGram>], touched: &mut Vec<usize>| {
        touched.drain(..).for_each(|place| sums[place].take().iter().for_each(|gram| of(place, gram)));
    };
    for part in parts {
        for rows in tanglescope_records::batches(part, &["pair", "layer", "module", "ww", "wl", "ll"], ROWS_AT_ONCE)? {
            let rows = rows?;
            let mut add = || -> PolarsResult<()> {
                let layers: Vec<Option<u32>> = rows.column("layer")?.u32()?.iter().collect();
                let modules = rows.column("module")?.str()?.rechunk();
                let modules = modules.downcast_as_array();
                let pairs: Vec<Option<u64>> = rows.column("pair")?.u64()?.iter().collect();
                let values = |name: &str| -> PolarsResult<Vec<f64>> {
                    Ok(rows.column(name)?.f64()?.iter().map(|x| x.unwrap_or(f64::NAN)).collect())
                };
                let (ww, wl, ll) = (values("ww")?, values("wl")?, values("ll")?);
                for (row, (pair, layer)) in pairs.into_iter().zip(layers).enumerate() {
                    if pair != now {
                        settle(&mut sums, &mut touched);
                        (now, next) = (pair, 0);
                    }
                    let module = modules.get(row).unwrap_or_default();
                    if seen.get(next).is_none_or(|expected| expected.0 != layer || expected.1 != module) {
                        let named = numbers.entry(layer).or_default();
                        next = named.get(module).copied().unwrap_or_else(|| {
                            seen.push((layer, module.to_owned(), keys.place(layer, module)));
                            named.insert(module.to_owned(), seen.len() - 1);
                            seen.len() - 1
                        });
                    }
                    let place = seen[next].2;
                    next += 1;
                    let Some(place) = place else { continue };
                    let sum = at(&mut sums, place, || None).get_or_insert_with(|| {
                        touched.push(place);
                        PairGram::default()
                    });
                    sum.ww += ww[row];
                    sum.wl += wl[row];
                    sum.ll += ll[row];
                }
                Ok(())
            };
            add().map_err(|e| Error::new(part, e))?;
        }
    }
    settle(&mut sums, &mut touched);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{By, PIECES, params, piece};
    use crate::statistics::Spread;
    use polars_core::prelude::{AnyValue, DataFrame};
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;
    use std::collections::BTreeMap;
    use tanglescope_objectives::PairGram;
    use tanglescope_records::tables::{self, column, frame};
    use tanglescope_records::{Leaf, Table};

    type Row = (u64, Option<u32>, &'static str, PairGram);

    /// Rows of three modules a pair, one of them in no layer and one that only some pairs have.
    fn rows(pairs: std::ops::Range<u64>, random: &mut ChaCha8Rng) -> Vec<Row> {
        let mut rows = Vec::new();
        for pair in pairs {
            for (layer, module) in
                [(None, "embed"), (Some(0), "q"), (Some(0), "k"), (Some(1), "expert"), (Some(2), "gate")]
            {
                if module == "expert" && pair % 3 != 0 {
                    continue;
                }
                let mut part = || PairGram {
                    ww: random.random::<f64>() + 1.0,
                    wl: random.random::<f64>() * 2.0 - 1.0,
                    ll: if pair == 5 { 0.0 } else { random.random::<f64>() + 1.0 },
                };
                match module {
                    // one trained value: all cosines are 1 or −1
                    "gate" => rows.push((
                        pair,
                        layer,
                        module,
                        PairGram { wl: if pair % 4 == 0 { -4.0 } else { 4.0 }, ww: 4.0, ll: 4.0 },
                    )),
                    // two tensors of a module
                    _ => rows.extend([part(), part()].map(|gram| (pair, layer, module, gram))),
                }
            }
        }
        rows
    }

    fn table(rows: &[Row]) -> DataFrame {
        frame(vec![
            column("pair", rows, |r| r.0),
            column("layer", rows, |r| r.1),
            column("module", rows, |r| r.2.to_owned()),
            column("ww", rows, |r| r.3.ww),
            column("wl", rows, |r| r.3.wl),
            column("ll", rows, |r| r.3.ll),
        ])
    }

    #[test]
    fn two_readings_find_what_all_cosines_say() {
        let folder = tempfile::tempdir().unwrap();
        let (written, mut random) =
            (Table::create(folder.path(), tables::PARAMS).unwrap(), ChaCha8Rng::seed_from_u64(0));
        let mut all = Vec::new();
        // more parts than are read side by side, of different lengths
        for part in 0..40u64 {
            let part_rows = rows(part * 50..part * 50 + 10 + part, &mut random);
            written.write(usize::try_from(part).unwrap(), table(&part_rows)).unwrap();
            all.extend(part_rows);
        }
        let leaf = Leaf { run: String::new(), step: None, dataset: String::new(), folder: folder.path().to_owned() };
        for by in [By::Layer, By::Module] {
            let mut grams: BTreeMap<_, BTreeMap<u64, PairGram>> = BTreeMap::new();
            for (pair, layer, module, gram) in &all {
                let Some(key) = by.key(*layer, module) else { continue };
                let sum = grams.entry(key).or_default().entry(*pair).or_default();
                *sum = PairGram { ww: sum.ww + gram.ww, wl: sum.wl + gram.wl, ll: sum.ll + gram.ll };
            }
            let found = params(&leaf, by).unwrap().unwrap();
            assert_eq!(found.height(), grams.len());
            let total: f64 = all.iter().map(|row| row.3.wl).sum();
            for (row, (key, grams)) in grams.iter().enumerate() {
                let value = |name: &str| match found.column(name).unwrap().get(row).unwrap() {
                    AnyValue::Float64(x) => x,
                    AnyValue::UInt64(n) => n as f64,
                    other => panic!("{name}: {other}"),
                };
                let cosines: Vec<f64> = grams.values().filter_map(PairGram::cosine).collect();
                let undefined = grams.len() - cosines.len();
                let want = Spread::of(cosines).unwrap();
                let [low, high] = want.interval;
                let [q25, median, q75] = want.quartiles;
                let counts = [("count", want.count as f64), ("undefined", undefined as f64)];
                let ranked = [("q25", q25), ("median", median), ("q75", q75), ("low", low), ("high", high)];
                for (name, want) in counts.into_iter().chain(ranked) {
                    assert_eq!(value(name).to_bits(), want.to_bits(), "{key:?}, {name}");
                }
                // sums in another order: some thousand terms below 4
                let sum = |of: fn(&PairGram) -> f64| grams.values().map(of).sum::<f64>();
                for (name, want) in [
                    ("mean", want.mean),
                    ("ww", sum(|gram| gram.ww)),
                    ("wl", sum(|gram| gram.wl)),
                    ("ll", sum(|gram| gram.ll)),
                    ("wl_share", sum(|gram| gram.wl) / total),
                ] {
                    assert!((value(name) - want).abs() < 1e-10, "{key:?}, {name}: {} {want}", value(name));
                }
            }
        }
    }

    #[test]
    fn pieces_are_in_the_order_of_cosines_and_hold_both_ends() {
        assert_eq!([piece(-1.0), piece(0.0), piece(1.0)], [0, PIECES / 2, PIECES - 1]);
        let cosines: Vec<f64> = (0..=100_000).map(|i| f64::from(i) / 50_000.0 - 1.0).collect();
        assert!(cosines.windows(2).all(|of| piece(of[0]) <= piece(of[1])));
    }
}
