//! Windows of pairs whose gradients are formed together, and the measurement of every two of them.
use super::BetweenMeasures;
use super::kept::Files;
use super::rounds::{Visit, rounds};
use super::tiles::{Found, Tiles, firsts};
use crate::crew::Member;
use crate::device::{Precision, dtype_name};
use crate::error::{Error, Result};
use crate::estimate::Planned;
use crate::listener::{Amount, Listener};
use crate::measure::{Item, Measured, ROWS_PER_PART, Setup, stage};
use crate::options::Destination;
use crate::placement::{Placement, free_on_disk};
use crate::shard::Shard;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use tanglescope_gram::{Gradients, Group, Kept};
use tanglescope_kernels::{DType, Kernels, TensorMetadata};
use tanglescope_objectives::PairGram;
use tanglescope_records::manifest::{self, AgainstData, AnalysisManifest, InterferencePlan};
use tanglescope_records::tables::interference::Couple;

/// Bytes that a disk is taken to read or write in a second: a common one that is no fast one.
const DISK_BYTES: f64 = 5e8;

/// A data set, and where its records go.
#[derive(Clone, Copy)]
pub struct Side<'a, B: Kernels> {
    /// The model on it.
    pub setup: &'a Setup<'a, B>,
    /// Its folder.
    pub to: &'a Destination,
}

/// Consecutive rows of a data set.
struct Window {
    side: usize,
    rows: Range<usize>,
}

/// The products between the pairs of a data set, or of two.
pub struct Between<'a, B: Kernels> {
    sides: Vec<Side<'a, B>>,
    measured: Vec<Measured>,
    /// The number type that gradients are kept in.
    dtype: DType,
    plan: InterferencePlan,
    /// Of both data sets, those of the one with fewer first, so that they stay.
    windows: Vec<Window>,
    tiles: Tiles,
    files: Files,
    /// Bytes that a pair's gradients take, and bytes that there are for all of them.
    bytes: [usize; 2],
}

impl<'a, B: Kernels> Between<'a, B> {
    /// The products of a data set, or of one with another; an unfinished measurement in the folder goes on with its plan.
    pub fn new(sides: &[Side<'a, B>], between: &BetweenMeasures, placement: Placement) -> Result<Self> {
        let (setup, to) = (sides[0].setup, sides[0].to);
        let asked = setup.of.asked;
        let dtype = between.keep.map_or(setup.model.dtype, Precision::dtype);
        let entries = entries(setup);
        let groups = sides.iter().any(|side| side.setup.data.groups);
        let mut responses = 2;
        if groups {
            for side in sides {
                for pair in side.setup.data.pairs.get(0..side.setup.data.pairs.len())? {
                    responses = responses.max(pair.responses().len());
                }
            }
        }
        let of_pair = entries * responses * dtype.size();
        let outline = asked.outline()?;
        let room = placement.left_for_gradients(asked, &outline, setup.plan.forward_rows_per_batch);
        let window = (0..=ROWS_PER_PART.ilog2()).rev().map(|power| 1 << power);
        let Some(pairs_per_window) = window.into_iter().find(|window| 2 * window * of_pair <= room) else {
            let mib = |bytes: usize| bytes as f64 / f64::from(1 << 20);
            let problem = format!(
                "leaves {:.1} MiB for gradients, and those of two rows take {:.1}; expected more, or a smaller option `scope`",
                mib(room),
                mib(2 * of_pair)
            );
            return Err(Error::option("memory", problem));
        };
        let against = sides.get(1).map(|other| AgainstData {
            path: other.setup.data.path.clone(),
            data: other.setup.data.content_hash.clone(),
        });
        let plan = InterferencePlan { pairs_per_window, kept: dtype_name(dtype).to_owned(), against };
        let plan = Self::open(to, plan)?;
        let mut order: Vec<usize> = (0..sides.len()).collect();
        order.sort_by_key(|&side| (sides[side].setup.data.pairs.len(), side));
        let of_side = |side: usize| {
            let parts = sides[side].setup.data.pairs.parts(plan.pairs_per_window);
            parts.map(move |rows| Window { side, rows }).collect::<Vec<_>>()
        };
        let windows = order.into_iter().flat_map(of_side).collect();
        let measured = sides.iter().map(|side| Measured::of(side.setup, side.to)).collect::<Result<_>>()?;
        let tiles = Tiles::create(to, sides.len() == 2, between.by_layer, groups)?;
        Ok(Self {
            sides: sides.to_vec(),
            measured,
            dtype,
            plan,
            windows,
            tiles,
            files: Files::new(&to.out),
            bytes: [of_pair, room],
        })
    }

    /// The plan of the folder, if it is of the same products, or this one.
    fn open(to: &Destination, now: InterferencePlan) -> Result<InterferencePlan> {
        let _turn = Shard::turn(&to.out)?;
        let Some(mut manifest) = manifest::read::<AnalysisManifest>(&to.out)? else {
            unreachable!("the folder of an analysis was opened");
        };
        if let Some(there) = &manifest.interference {
            return match there.difference(&now) {
                None => Ok(there.clone()),
                Some(difference) => Err(Error::value("out", to.out.display(), difference)),
            };
        }
        manifest.interference = Some(now.clone());
        manifest::write(&to.out, &manifest)?;
        Ok(now)
    }

    /// Measures every couple of windows of the shard that is not there yet.
    pub fn measure(&self) -> Result<()> {
        let Side { to, .. } = self.sides[0];
        let own = to.shard.part(self.all_tiles());
        let missing = || Ok(own.iter().copied().filter(|tile| !self.tiles.has(self.number(*tile))).collect());
        let wanted: Vec<[usize; 2]> = self.member().agree(&stage(to, "tiles"), missing)?;
        if wanted.len() < own.len() {
            let (done, all) = (own.len() - wanted.len(), own.len());
            let out = to.out.display();
            self.listener().resumed(&format!("{out}: {done} of {all} parts of interference.parquet are there already"));
        }
        if self.member().of() > 1 {
            return self.measure_together(&wanted);
        }
        let [of_pair, room] = self.bytes;
        // one window comes by while the others stay
        let stay = (room / (of_pair * self.plan.pairs_per_window)).saturating_sub(1).max(1);
        let rounds = rounds(wanted, stay);
        let rows: Vec<usize> = self.windows.iter().map(|window| self.forward_rows(window)).collect::<Result<_>>()?;
        let mut visits = vec![0; self.windows.len()];
        rounds.iter().flatten().for_each(|visit| visits[visit.window] += 1);
        let in_files = rounds.len() > 1 && self.files_are_faster(&visits, &rows)?;
        let formed = |window: usize| if in_files { 1 } else { visits[window] };
        let total = (0..self.windows.len()).filter(|&window| visits[window] > 0 && !self.files.has(window));
        let total = total.fold(Amount::default(), |mut sum, window| {
            let times = formed(window);
            sum.add(Amount { pairs: self.windows[window].rows.len() * times, rows: rows[window] * times });
            sum
        });
        self.listener().begin(total, Amount::default());
        for round in rounds {
            let mut there: BTreeMap<usize, (Vec<Item>, Gradients<B>)> = BTreeMap::new();
            for visit in round {
                visits[visit.window] -= 1;
                let keep = in_files && visits[visit.window] > 0;
                let (items, gradients) = self.gradients(visit.window, keep)?;
                self.meet(&visit, &items, &gradients, &there)?;
                if visit.stays {
                    there.insert(visit.window, (items, gradients));
                }
            }
        }
        self.listener().end();
        if self.is_whole() {
            self.files.clear()?;
        }
        Ok(())
    }

    /// The same by several devices: each window is formed by one of them, into a file, and each column of tiles is multiplied by one.
    fn measure_together(&self, wanted: &[[usize; 2]]) -> Result<()> {
        let (to, member) = (self.sides[0].to, self.member());
        let windows: BTreeSet<usize> = wanted.iter().flatten().copied().collect();
        let missing = || windows.iter().copied().filter(|&window| !self.files.has(window)).collect::<Vec<_>>();
        let mut total = Amount::default();
        for window in missing() {
            total.add(Amount {
                pairs: self.windows[window].rows.len(),
                rows: self.forward_rows(&self.windows[window])?,
            });
        }
        self.listener().begin(total, Amount::default());
        if member.agree(&stage(to, "on disk"), || Ok(self.fit_on_disk(&missing())))? {
            member.each(&stage(to, "windows"), || Ok(missing()), |window| self.gradients(window, true).map(drop))?;
        }
        let mut parts: Vec<[usize; 2]> = windows.iter().map(|&window| self.part_of(window)).collect();
        parts.dedup();
        let unmeasured = || {
            let missing = |at: &usize| !self.measured[parts[*at][0]].has(parts[*at][1]);
            Ok((0..parts.len()).filter(missing).collect())
        };
        member.each(&stage(to, "diagonals"), unmeasured, |at| self.analyse(parts[at]))?;
        self.listener().end();
        // the last column is the longest
        let columns = || Ok(wanted.iter().map(|[_, b]| *b).collect::<BTreeSet<_>>().into_iter().rev().collect());
        member.each(&stage(to, "columns"), columns, |b| {
            let (items, gradients) = self.gradients(b, false)?;
            let of_column = wanted.iter().copied().filter(|tile| tile[1] == b && !self.tiles.has(self.number(*tile)));
            for [a, b] in of_column {
                let visit = Visit { window: b, stays: false, tiles: vec![[a, b]] };
                let mut there = BTreeMap::new();
                if a != b {
                    there.insert(a, self.gradients(a, false)?);
                }
                self.meet(&visit, &items, &gradients, &there)?;
            }
            Ok(())
        })?;
        member.once(&stage(to, "files"), || if self.is_whole() { self.files.clear() } else { Ok(()) })?;
        Ok(())
    }

    /// Whether the disk has room for the gradients of some windows; says what is done.
    fn fit_on_disk(&self, windows: &[usize]) -> bool {
        let bytes = windows.iter().map(|&window| self.windows[window].rows.len() * self.bytes[0]).sum();
        let fit = self.kept_in_files(bytes);
        if !fit {
            self.listener().fell_back(&format!(
                "gradients take {:.1} GiB, more than the disk has; each is formed again for every window that it meets",
                gib(bytes)
            ));
        }
        fit
    }

    /// Whether the disk has room for some bytes of gradients, which is said.
    fn kept_in_files(&self, bytes: usize) -> bool {
        let fit = bytes < free_on_disk(&self.sides[0].to.out) / 10 * 9;
        if fit {
            let gib = gib(bytes);
            self.listener().note(&format!("gradients are kept in {gib:.1} GiB of files until all have met"));
        }
        fit
    }

    /// Which part of which data set's analysis a window belongs to.
    fn part_of(&self, window: usize) -> [usize; 2] {
        let Window { side, rows } = &self.windows[window];
        [*side, rows.start / ROWS_PER_PART]
    }

    /// Measures a part of a data set's own pairs.
    fn analyse(&self, [side, part]: [usize; 2]) -> Result<()> {
        let Side { setup, .. } = &self.sides[side];
        let rows = part * ROWS_PER_PART..((part + 1) * ROWS_PER_PART).min(setup.data.pairs.len());
        let items = Item::all(&setup.model.description, setup.data.pairs.get(rows)?, None);
        self.measured[side].write(part, &setup.window(part, &items)?)
    }

    fn member(&self) -> &'a Member<'a> {
        self.sides[0].setup.of.member
    }

    /// Is told what is left out.
    pub fn listener(&self) -> &'a dyn Listener {
        self.member().listener
    }

    /// Whether every part is there, those of other shards too.
    pub fn is_whole(&self) -> bool {
        self.all_tiles().iter().all(|tile| self.tiles.has(self.number(*tile)))
    }

    /// The numbers of the pairs of each data set.
    pub fn pairs(&self) -> Result<Vec<Vec<u64>>> {
        let numbers = |side: &Side<'a, B>| {
            let rows = side.setup.data.pairs.iter().map(|pair| Ok(pair?.row));
            Ok(rows.collect::<tanglescope_data::Result<Vec<u64>>>()?)
        };
        self.sides.iter().map(numbers).collect()
    }

    /// All products, part by part.
    pub fn couples(&self) -> impl Iterator<Item = Result<Vec<Couple>>> + '_ {
        self.all_tiles().into_iter().map(|tile| self.tiles.read(self.number(tile)))
    }

    /// The couples of windows: of one data set with itself each once, of two every one with every other.
    fn all_tiles(&self) -> Vec<[usize; 2]> {
        let n = self.windows.len();
        let (one, side) = (self.sides.len() == 1, |window: usize| self.windows[window].side);
        let all = (0..n).flat_map(|a| (a..n).map(move |b| [a, b]));
        all.filter(|&[a, b]| one || side(a) != side(b)).collect()
    }

    /// The number of a tile's part: those that a longer data set begins with keep theirs.
    fn number(&self, [a, b]: [usize; 2]) -> usize {
        match self.sides.len() {
            1 => b * (b + 1) / 2 + a,
            _ => {
                let first = self.windows.iter().filter(|window| window.side == self.windows[0].side).count();
                let [own, other] = if self.windows[a].side == 0 { [a, b - first] } else { [b - first, a] };
                let others = if self.windows[a].side == 0 { self.windows.len() - first } else { first };
                own * others + other
            }
        }
    }

    fn items(&self, window: &Window) -> Result<Vec<Item>> {
        let setup = self.sides[window.side].setup;
        Ok(Item::all(&setup.model.description, setup.data.pairs.get(window.rows.clone())?, None))
    }

    fn forward_rows(&self, window: &Window) -> Result<usize> {
        Ok(self.items(window)?.iter().map(|item| item.group.forward_rows()).sum())
    }

    /// The gradients of a window, formed or read back; with its analysis, where the window is a part of it that is not there yet.
    fn gradients(&self, at: usize, keep: bool) -> Result<(Vec<Item>, Gradients<B>)> {
        let window = &self.windows[at];
        let Side { setup, .. } = self.sides[window.side];
        let items = self.items(window)?;
        if self.files.has(at) {
            let rows = items.iter().map(|item| item.group.responses.len()).sum();
            let read = self.files.read(at, rows, self.dtype, &setup.model.device)?;
            return Ok((items, read));
        }
        let kept = Kept { metric: setup.metric(), dtype: self.dtype };
        let [side, part] = self.part_of(at);
        let measured = &self.measured[side];
        let gradients = match self.plan.pairs_per_window == ROWS_PER_PART && !measured.has(part) {
            false => setup.gradients(&items, &kept),
            true => {
                let (rows, gradients) = setup.window_with(part, &items, &kept)?;
                measured.write(part, &rows)?;
                gradients
            }
        };
        if keep {
            self.files.write(at, &gradients)?;
        }
        Ok((items, gradients))
    }

    /// Writes the products of a window with those that stay, and with itself.
    fn meet(
        &self,
        visit: &Visit,
        items: &[Item],
        gradients: &Gradients<B>,
        there: &BTreeMap<usize, (Vec<Item>, Gradients<B>)>,
    ) -> Result<()> {
        let setup = self.sides[0].setup;
        for &[a, b] in &visit.tiles {
            let same = a == b;
            let (other_items, other) = match there.get(&a) {
                Some((items, gradients)) if !same => (items.as_slice(), gradients),
                _ => (items, gradients),
            };
            let by_layer = other.products(gradients, setup.scope, setup.model.dtype);
            let diagonal = if same { self.diagonal(a)? } else { Vec::new() };
            // the columns a are of the first data set, whichever stays
            let transposed = self.windows[a].side == 1;
            let items = if transposed { [items, other_items] } else { [other_items, items] };
            let found = Found { items, firsts: items.map(firsts), same, by_layer, transposed, diagonal: &diagonal };
            self.tiles.write(self.number([a, b]), &found)?;
        }
        Ok(())
    }

    /// The Gram of each pair of a window, as the analysis has them, which is made where it is not there.
    fn diagonal(&self, at: usize) -> Result<Vec<PairGram>> {
        let window = &self.windows[at];
        let [side, part] = self.part_of(at);
        let measured = &self.measured[side];
        if !measured.has(part) {
            self.analyse([side, part])?;
        }
        let first = window.rows.start - part * ROWS_PER_PART;
        Ok(measured.grams(part)?[first..first + window.rows.len()].to_vec())
    }

    /// Whether gradients that are needed several times are read back sooner than they are formed again, and the disk has room for them.
    fn files_are_faster(&self, visits: &[usize], rows: &[usize]) -> Result<bool> {
        let setup = self.sides[0].setup;
        let (asked, sample) = (setup.of.asked, self.items(&self.windows[0])?);
        let groups: Vec<Group> = sample.into_iter().map(|item| item.group).collect();
        let planned = Planned::of(asked, asked.outline()?)?;
        let a_row = planned.groups(&groups, setup.plan.forward_rows_per_batch).seconds / rows[0].max(1) as f64;
        let (mut again, mut read, mut all) = (0.0, 0.0, 0);
        for ((window, &visits), &rows) in self.windows.iter().zip(visits).zip(rows) {
            let bytes = window.rows.len() * self.bytes[0];
            let more = visits.saturating_sub(1) as f64;
            again += more * a_row * rows as f64;
            if visits > 1 {
                all += bytes;
                read += (more + 1.0) * bytes as f64 / DISK_BYTES;
            }
        }
        if read < again && self.kept_in_files(all) {
            return Ok(true);
        }
        self.listener().fell_back(&format!(
            "gradients take {:.1} GiB and do not fit into memory together; they are formed {:.1} times",
            gib(all),
            visits.iter().sum::<usize>() as f64 / visits.len().max(1) as f64
        ));
        Ok(false)
    }
}

/// Some bytes in GiB.
fn gib(bytes: usize) -> f64 {
    bytes as f64 / f64::from(1 << 30)
}

/// Entries of all parameters in scope.
fn entries<B: Kernels>(setup: &Setup<'_, B>) -> usize {
    let mut entries = 0;
    setup.model.clone().visit(&|name| setup.scope.contains(name), &mut |name, _, tensor| {
        if setup.scope.contains(name) {
            entries += tensor.shape().num_elements();
        }
    });
    entries
}
