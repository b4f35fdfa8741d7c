//! Which tiles of the row Grams meet: a tile of `x·xᵀ` is formed once for all pairs of cotangents that use its rows.
use crate::pending::Entry;
use crate::{RowSet, as_index};
use std::collections::BTreeSet;
use std::ops::Range;

/// Consecutive forward rows, and the cotangents that have a copy of some of them.
struct Tile {
    rows: Range<usize>,
    copies: Vec<Copy>,
}

/// Rows `rows` of a tile, of which cotangent `cotangent` has copies from backward row `first` on.
struct Copy {
    cotangent: usize,
    rows: Range<usize>,
    first: usize,
}

/// Tiles and pairs for a device. All numbers are rows.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Plan {
    /// For each cube: first row and end of one tile, those of another, first pair and end of its pairs.
    pub tasks: Vec<[u32; 6]>,
    /// For each pair of copies: first row and end of those of the first tile that count, and the backward row of the
    /// first; the same of the second tile.
    pub pairs: Vec<[u32; 6]>,
    /// Where each pair's sum belongs.
    pub entries: Vec<Entry>,
}

/// Pairs that a cube takes at most; it forms its tile of `x·xᵀ` once for them.
const PAIRS: usize = 16;

/// Tiles of at most `side` rows of one set, cut where some cotangent's rows have a gap.
fn tiles(rows: &RowSet, set: &Range<usize>, side: usize) -> Vec<Tile> {
    let runs: Vec<(usize, Range<usize>)> =
        set.clone().flat_map(|k| rows.runs(k).into_iter().map(move |run| (k, run))).collect();
    let forward = |run: &Range<usize>| {
        let first = rows.index[run.start] as usize;
        first..first + run.len()
    };
    let mut cuts = BTreeSet::new();
    for pair in runs.windows(2).filter(|pair| pair[0].0 == pair[1].0) {
        cuts.extend([forward(&pair[0].1).end, forward(&pair[1].1).start]);
    }
    let range = rows.forward_range(set);
    let mut out = Vec::new();
    let mut start = range.start;
    for end in cuts.into_iter().filter(|cut| range.contains(cut) && *cut > range.start).chain([range.end]) {
        // tiles of like size, so that no cube has little to do
        let count = (end - start).div_ceil(side).max(1);
        for i in 0..count {
            let tile = start + (end - start) * i / count..start + (end - start) * (i + 1) / count;
            let mut copies = Vec::new();
            for (cotangent, run) in &runs {
                let of = forward(run);
                let rows = of.start.max(tile.start)..of.end.min(tile.end);
                if !rows.is_empty() {
                    copies.push(Copy { cotangent: *cotangent, first: run.start + rows.start - of.start, rows });
                }
            }
            if !copies.is_empty() {
                out.push(Tile { rows: tile, copies });
            }
        }
        start = end;
    }
    out
}

impl Plan {
    /// The plan of a batch with tiles of at most `side` rows.
    pub fn new(rows: &RowSet, side: usize) -> Self {
        let mut plan = Self::default();
        for (b, set) in rows.sets.iter().enumerate() {
            let tiles = tiles(rows, set, side);
            for (t, above) in tiles.iter().enumerate() {
                for (u, below) in tiles.iter().enumerate().take(t + 1) {
                    let mut first = plan.pairs.len();
                    for (p, a) in above.copies.iter().enumerate() {
                        // of a tile with itself only one order of each pair
                        let others = if t == u { p + 1 } else { below.copies.len() };
                        for c in &below.copies[..others] {
                            let same = t == u && a.cotangent == c.cotangent;
                            let of = |copy: &Copy| [copy.rows.start, copy.rows.end, copy.first].map(as_index);
                            let ([a0, a1, a2], [c0, c1, c2]) = (of(a), of(c));
                            plan.pairs.push([a0, a1, a2, c0, c1, c2]);
                            let (i, j) = (a.cotangent - set.start, c.cotangent - set.start);
                            plan.entries.push(Entry { set: b, i, j, weight: if same { 1.0 } else { 2.0 } });
                            if plan.pairs.len() - first == PAIRS {
                                plan.task(above, below, first);
                                first = plan.pairs.len();
                            }
                        }
                    }
                    if plan.pairs.len() > first {
                        plan.task(above, below, first);
                    }
                }
            }
        }
        plan
    }

    fn task(&mut self, above: &Tile, below: &Tile, first: usize) {
        let (a, b) = (&above.rows, &below.rows);
        self.tasks.push([a.start, a.end, b.start, b.end, first, self.pairs.len()].map(as_index));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A pair with a trunk of four rows and suffixes of two and three.
    fn pair() -> RowSet {
        let index = (0..6).chain(0..4).chain(6..9).collect();
        RowSet { index, offsets: vec![0, 6, 13], sets: vec![0..2] }
    }

    #[test]
    fn a_trunk_tile_is_formed_once_for_all_pairs_of_branches() {
        let plan = Plan::new(&pair(), 64);
        // trunk with itself: ww, lw, ll; suffix w with trunk: ww, wl; with itself: ww; suffix l: lw, ll; lw; ll
        assert_eq!(plan.tasks.len(), 6);
        assert_eq!(plan.tasks[0], [0, 4, 0, 4, 0, 3]);
        assert_eq!(plan.pairs[1], [0, 4, 6, 0, 4, 0]);
        assert_eq!(plan.tasks[1], [4, 6, 0, 4, 3, 5]);
    }

    #[test]
    fn every_pair_of_rows_counts_once() {
        let rows = pair();
        for side in [1, 2, 3, 64] {
            let plan = Plan::new(&rows, side);
            let mut counted = vec![0.0; 4];
            for (pair, entry) in plan.pairs.iter().zip(&plan.entries) {
                let area = f64::from((pair[1] - pair[0]) * (pair[4] - pair[3])) * entry.weight / 2.0;
                counted[entry.i * 2 + entry.j] += area;
                counted[entry.j * 2 + entry.i] += area;
            }
            assert_eq!(counted, [36.0, 42.0, 42.0, 49.0], "tiles of {side}");
        }
    }
}
