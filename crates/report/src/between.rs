//! What pairs do to each other, as far as it is shown: a heat map of their cosines in the order of a dendrogram, and who pulls whom.
use crate::columns::{Rows, append};
use crate::error::Result;
use polars_core::prelude::{DataFrame, NamedFrom, PolarsResult, Series};
use polars_lazy::prelude::{Expr, col, lit};
use serde::Serialize;
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use tanglescope_records::tables::interference::{Couple, read};
use tanglescope_records::{Leaf, tables};

/// Pairs of a heat map; of more, every n-th in the order of the dendrogram is in it.
const PAIRS: usize = 120;

/// Bytes of all heat maps: where there are many, each has fewer pairs.
const BYTES: usize = 2_000_000;

/// Bytes of a pair and another one in the page: four cosines in thousandths, each with its comma.
const BYTES_OF_TWO: usize = 20;

/// Eigenvalues that are shown.
const EIGENVALUES: u32 = 200;

/// Cosines between the gradients of some pairs of a record.
#[derive(Clone, Debug, Serialize)]
pub struct HeatMap {
    /// Number of the record.
    pub leaf: usize,
    /// Pairs, in the order of the dendrogram.
    pub pairs: Vec<u64>,
    /// Pairs that were measured.
    pub pairs_in_all: usize,
    /// How far apart the clusters are that meet between a pair and the one before it.
    pub distances: Vec<Option<f64>>,
    /// Cosines in thousandths, row by row: of chosen with chosen (`ww`), chosen of the row with rejected of the column (`wl`), rejected with rejected
    /// (`ll`), and of the directions g_w − g_l (`dd`); `None` where one of the two is zero.
    pub cosines: BTreeMap<&'static str, Vec<Option<i16>>>,
}

/// What records have between pairs, of those that have it.
pub(crate) fn heat_maps(leaves: &[Leaf]) -> Result<Vec<HeatMap>> {
    let measured: Vec<bool> =
        leaves.iter().map(|leaf| Ok(leaf.table(tables::CLUSTERS)?.is_some())).collect::<Result<_>>()?;
    let maps = measured.iter().filter(|is| **is).count().max(1);
    let most = (BYTES / (maps * BYTES_OF_TWO)).isqrt().clamp(1, PAIRS);
    let of = leaves.iter().enumerate().map(|(number, leaf)| heat_map(number, leaf, most));
    of.filter_map(Result::transpose).collect()
}

fn heat_map(leaf: usize, records: &Leaf, most: usize) -> Result<Option<HeatMap>> {
    let (Some(clusters), Some(couples)) = (records.table(tables::CLUSTERS)?, records.table(tables::INTERFERENCE)?)
    else {
        return Ok(None);
    };
    let order = clusters.collect(clusters.scan()?.select([col("pair"), col("distance")]))?;
    let read_order = || -> PolarsResult<Vec<(u64, Option<f64>)>> {
        let (pairs, distances) = (order.column("pair")?.u64()?, order.column("distance")?.f64()?);
        Ok(pairs.iter().zip(distances.iter()).filter_map(|(pair, distance)| Some((pair?, distance))).collect())
    };
    let order = read_order().map_err(|e| clusters.blame(e))?;
    let every = order.len().div_ceil(most).max(1);
    let pairs: Vec<u64> = order.iter().step_by(every).map(|of| of.0).collect();
    // between two that are shown, the widest of the gaps that lie between them
    let widest = |gap: &[(u64, Option<f64>)]| gap.iter().filter_map(|of| of.1).reduce(f64::max);
    let distances = (0..pairs.len()).map(|at| {
        let to = at * every;
        if at == 0 { None } else { widest(&order[to + 1 - every..=to]) }
    });
    let distances = distances.collect();
    let is_shown = |name: &str| -> Expr {
        let shown = Series::new(name.into(), pairs.clone());
        col(name).is_in(lit(shown).implode(true), false)
    };
    let rows = couples.collect(couples.scan()?.filter(is_shown("a").and(is_shown("b"))))?;
    let cosines = cosines(&pairs, &read(&rows)?);
    Ok(Some(HeatMap { leaf, pairs, pairs_in_all: order.len(), distances, cosines }))
}

/// Cosines of every two of some pairs.
fn cosines(pairs: &[u64], couples: &[Couple]) -> BTreeMap<&'static str, Vec<Option<i16>>> {
    let n = pairs.len();
    let place: HashMap<u64, usize> = pairs.iter().enumerate().map(|(at, pair)| (*pair, at)).collect();
    let direction = |[ww, wl, lw, ll]: [f64; 4]| ww - wl - lw + ll;
    let mut squares = vec![[0.0; 3]; n];
    for couple in couples.iter().filter(|couple| couple.a == couple.b) {
        squares[place[&couple.a]] = [couple.inner[0], couple.inner[3], direction(couple.inner)];
    }
    let mut found: BTreeMap<&'static str, Vec<Option<i16>>> =
        ["ww", "wl", "ll", "dd"].map(|name| (name, vec![None; n * n])).into();
    let mut set = |name: &'static str, row: usize, column: usize, inner: f64, size: f64| {
        if let (true, Some(matrix)) = (size > 0.0, found.get_mut(name)) {
            #[allow(clippy::cast_possible_truncation)] // within ±1,000
            let thousandths = (1000.0 * (inner / size.sqrt()).clamp(-1.0, 1.0)).round() as i16;
            matrix[row * n + column] = Some(thousandths);
        }
    };
    for couple in couples {
        let (a, b) = (place[&couple.a], place[&couple.b]);
        let [ww, wl, lw, ll] = couple.inner;
        let ([aw, al, ad], [bw, bl, bd]) = (squares[a], squares[b]);
        for (row, column) in [(a, b), (b, a)] {
            set("ww", row, column, ww, aw * bw);
            set("ll", row, column, ll, al * bl);
            set("dd", row, column, direction(couple.inner), ad * bd);
        }
        set("wl", a, b, wl, aw * bl);
        set("wl", b, a, lw, al * bw);
    }
    found
}

/// What each pair does to the others' chosen responses under the first objective, and gets from them.
pub(crate) struct Effects(HashMap<u64, [Option<f64>; 3]>);

impl Effects {
    /// The columns of the three numbers of a pair.
    pub const NAMES: [&str; 3] = ["own_w", "others_w", "harm"];

    pub fn of(&self, pair: u64) -> Option<&[Option<f64>; 3]> {
        self.0.get(&pair)
    }

    /// The part of all pull on others' chosen responses that the tenth of the pairs makes which pull down most, and the share of the pairs that pull down
    /// more than they lift; `None` where nothing pulls down.
    pub fn harm(&self) -> Option<(f64, f64)> {
        let mut harm: Vec<f64> = self.0.values().filter_map(|of| of[2]).filter(|x| x.is_finite()).collect();
        harm.sort_by(f64::total_cmp);
        let down: Vec<f64> = harm.iter().copied().take_while(|x| *x < 0.0).collect();
        let all: f64 = down.iter().sum();
        let few: f64 = down.iter().take(harm.len().div_ceil(10)).sum();
        (all < 0.0).then(|| (few / all, down.len() as f64 / harm.len() as f64))
    }
}

/// Effects of a record; `None` where it has none.
pub(crate) fn effects(records: &Leaf) -> Result<Option<Effects>> {
    let Some(effects) = records.table(tables::EFFECTS)? else { return Ok(None) };
    let first = effects.collect(effects.scan()?.select([col("objective")]).limit(1))?;
    let name = first.column("objective").and_then(|name| Ok(name.str()?.get(0).map(str::to_owned)));
    let Some(name) = name.map_err(|e| effects.blame(e))? else { return Ok(None) };
    let wanted = ["pair"].into_iter().chain(Effects::NAMES).map(col).collect::<Vec<_>>();
    let rows = effects.collect(effects.scan()?.filter(col("objective").eq(lit(name))).select(wanted))?;
    let read = || -> PolarsResult<Effects> {
        let columns = Effects::NAMES.map(|name| rows.column(name).and_then(|of| of.f64().cloned()));
        let [own, others, harm] = columns;
        let columns = [own?, others?, harm?];
        let pairs = rows.column("pair")?.u64()?.iter().enumerate();
        Ok(Effects(pairs.filter_map(|(row, pair)| Some((pair?, columns.each_ref().map(|of| of.get(row))))).collect()))
    };
    Ok(Some(read().map_err(|e| effects.blame(e))?))
}

/// Random batches by size, and the largest eigenvalues: tables of a record, where it has them.
pub(crate) fn table(records: &Leaf, name: &str) -> tanglescope_records::Result<Option<DataFrame>> {
    let Some(table) = records.table(name)? else { return Ok(None) };
    Ok(Some(table.collect(table.scan()?.limit(if name == tables::SPECTRUM { EIGENVALUES } else { u32::MAX }))?))
}

/// Who pulls whom, of some pairs of a record and under its first objective: rows of drags.parquet, added to lists by column.
pub(crate) fn drags(leaf: usize, records: &Leaf, of: &BTreeSet<u64>, whole: &mut Map<String, Value>) -> Result<()> {
    // with a second data set they are of its pairs
    if records.table(tables::AGAINST_EFFECTS)?.is_some() {
        return Ok(());
    }
    let Some(drags) = records.table(tables::DRAGS)? else { return Ok(()) };
    let wanted = Series::new("pair".into(), of.iter().copied().collect::<Vec<_>>());
    let rows = drags.collect(drags.scan()?.filter(col("pair").is_in(lit(wanted).implode(true), false)))?;
    let mut all = Map::new();
    append(&mut all, leaf, &rows, 1);
    let Some(rows) = Rows::of_leaf(&all, leaf) else { return Ok(()) };
    let first = rows.text(0, "objective").map(str::to_owned);
    for row in (0..rows.len()).filter(|&row| rows.text(row, "objective") == first.as_deref()) {
        for name in ["leaf", "pair", "direction", "other", "change"] {
            let list = whole.entry(name).or_insert_with(|| Value::Array(Vec::new()));
            if let (Value::Array(list), Some(cell)) = (list, rows.cell(row, name)) {
                list.push(cell.clone());
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::cosines;
    use tanglescope_records::tables::interference::Couple;

    #[test]
    fn cosines_are_those_of_rows_with_columns() {
        // gradients of two entries: 7 has (1, 0) and (0, 2), 3 has (1, 1) and nothing
        let couples = [
            Couple { a: 3, b: 3, inner: [2.0, 0.0, 0.0, 0.0] },
            Couple { a: 3, b: 7, inner: [1.0, 2.0, 0.0, 0.0] },
            Couple { a: 7, b: 7, inner: [1.0, 0.0, 0.0, 4.0] },
        ];
        let found = cosines(&[7, 3], &couples);
        assert_eq!(found["ww"], [Some(1000), Some(707), Some(707), Some(1000)]);
        // chosen of the row, rejected of the column
        assert_eq!(found["wl"], [Some(0), None, Some(707), None]);
        assert_eq!(found["ll"], [Some(1000), None, None, None]);
        // (1, −2) and (1, 1)
        assert_eq!(found["dd"], [Some(1000), Some(-316), Some(-316), Some(1000)]);
    }
}
