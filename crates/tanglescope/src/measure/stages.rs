//! The parts of a measurement, table after table: what is measured, then what follows from it.
use super::items::Item;
use super::part::{Rows, Setup};
use super::stage;
use crate::error::Result;
use crate::listener::Amount;
use crate::options::Destination;
use crate::shard::Shard;
use std::ops::Range;
use std::path::Path;
use tanglescope_analytics::Summary;
use tanglescope_data::{Dataset, Pair, PairTokens};
use tanglescope_gram::Group;
use tanglescope_kernels::Kernels;
use tanglescope_objectives::{Needs, Objective, PairGram, Rounding};
use tanglescope_records::Table;
use tanglescope_records::tables::{self, groups, objectives, pairs, params, probes, responses, routing};

/// Pairs of a part: few enough that little is lost when a run is killed, many enough that batches of like length fill.
pub const ROWS_PER_PART: usize = 64;

/// The tables that every measurement has, in the order in which their parts are written.
const MEASURED: [&str; 3] = [tables::PARAMS, tables::RESPONSES, tables::PAIRS];

/// What of a measurement is in a folder already.
pub fn done(out: &Path, data: &Dataset, shard: Shard) -> Result<Amount> {
    let tables = MEASURED.map(|name| Table::at(out, name));
    let mut done = Amount::default();
    for (part, window) in own(data, shard) {
        if tables.iter().all(|table| table.has(part)) {
            done.add(Amount { pairs: window.len(), rows: rows(&data.pairs.get(window)?) });
        }
    }
    Ok(done)
}

/// Whether what follows from the rows is in a folder too: objectives, and mean gradients where they are wanted.
pub fn has_followed(out: &Path, data: &Dataset, objectives: &[Objective], mean: bool) -> bool {
    let parts = data.pairs.parts(ROWS_PER_PART).count();
    let of_all = objectives.iter().any(|objective| matches!(objective.needs(), Needs::Batch | Needs::Mismatched));
    let outcomes = Table::at(out, tables::OBJECTIVES);
    let needed = if objectives.is_empty() { 0 } else { parts + usize::from(of_all) };
    (0..needed).all(|part| outcomes.has(part)) && (!mean || Table::at(out, tables::MEANS).has(0))
}

/// The parts of a shard, with their rows.
fn own(data: &Dataset, shard: Shard) -> impl Iterator<Item = (usize, Range<usize>)> {
    let parts: Vec<(usize, Range<usize>)> = data.pairs.parts(ROWS_PER_PART).enumerate().collect();
    shard.part(parts).into_iter()
}

/// All that a measurement has to do.
pub fn work(data: &Dataset, shard: Shard) -> Result<Amount> {
    let mut work = Amount::default();
    for (_, window) in own(data, shard) {
        work.add(Amount { pairs: window.len(), rows: rows(&data.pairs.get(window)?) });
    }
    Ok(work)
}

/// Forward rows of some rows whose responses share a trunk: how much of the work they are.
fn rows(pairs: &[Pair]) -> usize {
    let of = |pair: &Pair| {
        let PairTokens { prompt, chosen, rejected } = pair.tokens.clone();
        let responses = pair.group.as_ref().map_or_else(|| vec![chosen, rejected], |group| group.responses.clone());
        Group::new(prompt, responses).forward_rows()
    };
    pairs.iter().map(of).sum()
}

/// Makes every part of a shard that is not there yet, then what else there is, and sums up all parts. What takes all of them is made once they are
/// there, by the shard that is done last.
pub fn run<B: Kernels>(
    setup: &Setup<'_, B>,
    to: &Destination,
    then: impl FnOnce() -> Result<()>,
) -> Result<Option<Summary>> {
    let Destination { out, shard, .. } = to;
    let (data, member) = (setup.data, setup.of.member);
    let measured = Measured::of(setup, to)?;
    let following = Following::create(to, setup, &measured)?;
    let windows: Vec<Range<usize>> = data.pairs.parts(ROWS_PER_PART).collect();
    let own = shard.range(windows.len());
    let items =
        |part: usize, first| Ok(Item::all(&setup.model.description, data.pairs.get(windows[part].clone())?, first));
    let firsts = setup.of.extras.all_pairs.then(|| firsts(own.end, |part| items(part, Some(0)))).transpose()?;
    let missing = || Ok(own.clone().filter(|&part| !measured.has(part)).collect());
    let made: Vec<usize> = member.agree(&stage(to, "made"), missing)?;
    let missing = || Ok(made.clone());
    member.each(&stage(to, "parts"), missing, |part| {
        let items = items(part, firsts.as_ref().map(|firsts| firsts[part]))?;
        measured.write(part, &setup.window(part, &items)?)?;
        following.part(part, &measured)
    })?;
    then()?;
    member.once(&stage(to, "sum"), || {
        let mut summary = Summary::default();
        for part in own.clone() {
            // of parts that were there other things may be asked now
            if made.binary_search(&part).is_err() {
                following.part(part, &measured)?;
            }
            summary.add(&measured.pairs.read(part)?, &measured.params.read(part)?)?;
            if let Some(outcomes) = &following.outcomes {
                summary.add_objectives(&outcomes.read(part)?)?;
            }
        }
        if (0..windows.len()).all(|part| measured.has(part)) {
            let _turn = Shard::turn(out)?;
            following.end(windows.len(), &measured, &mut summary)?;
        }
        Ok(summary)
    })
}

/// The number of the first pair of each of some parts, where numbers of pairs go on from those of the parts before.
fn firsts(parts: usize, items: impl Fn(usize) -> Result<Vec<Item>>) -> Result<Vec<u64>> {
    let (mut firsts, mut next) = (Vec::with_capacity(parts), 0);
    for part in 0..parts {
        firsts.push(next);
        next += items(part)?.iter().map(|item| item.pairs.len() as u64).sum::<u64>();
    }
    Ok(firsts)
}

/// The tables that are measured.
pub struct Measured {
    groups: Option<Table>,
    probes: Option<Table>,
    routing: Option<Table>,
    params: Table,
    responses: Table,
    pairs: Table,
    /// Of the numbers in them.
    rounding: Rounding,
}

impl Measured {
    /// With a table of groups, of probes and of routing where those are wanted.
    pub fn of<B: Kernels>(setup: &Setup<'_, B>, to: &Destination) -> Result<Self> {
        let (groups, probes) = (setup.data.groups, !setup.of.extras.probes.is_empty());
        let routing = setup.model.description.experts.is_some();
        let rounding = Rounding::of(setup.of.asked.number_type());
        let [params, responses, pairs] = MEASURED.map(|name| Table::create(&to.out, name));
        let table = |wanted: bool, name: &str| wanted.then(|| Table::create(&to.out, name)).transpose();
        Ok(Self {
            groups: table(groups, tables::GROUPS)?,
            probes: table(probes, tables::PROBES)?,
            routing: table(routing, tables::ROUTING)?,
            params: params?,
            responses: responses?,
            pairs: pairs?,
            rounding,
        })
    }

    /// Whether a part is there.
    pub fn has(&self, part: usize) -> bool {
        let Self { groups, probes, routing, params, responses, pairs, .. } = self;
        let beside = [groups, probes, routing].map(Option::as_ref);
        let all = [Some(pairs), Some(responses), Some(params)].into_iter().chain(beside);
        all.flatten().all(|table| table.has(part))
    }

    /// Writes a part; pairs.parquet, by which records are found, comes last.
    pub fn write(&self, part: usize, rows: &Rows) -> Result<()> {
        if let Some(table) = &self.groups {
            table.write(part, groups::table(&rows.groups))?;
        }
        if let Some(table) = &self.probes {
            table.write(part, probes::table(&rows.probes))?;
        }
        if let Some(table) = &self.routing {
            table.write(part, routing::table(&rows.routing))?;
        }
        self.params.write(part, params::table(&rows.params))?;
        self.responses.write(part, responses::table(&rows.responses))?;
        Ok(self.pairs.write(part, pairs::table(&rows.pairs, self.rounding))?)
    }
}

impl Measured {
    /// The Gram of each pair of a part, in the metric where there is one.
    pub fn grams(&self, part: usize) -> Result<Vec<PairGram>> {
        let rows = objectives::measured(&self.pairs.read(part)?)?;
        Ok(rows.into_iter().map(|of| of.in_metric.unwrap_or(of.gram)).collect())
    }
}

/// The tables that follow from those: what steps on objectives would do.
struct Following<'a> {
    group_outcomes: Option<Table>,
    outcomes: Option<Table>,
    probe_outcomes: Option<Table>,
    objectives: &'a [Objective],
    group_objectives: &'a [tanglescope_objectives::GroupObjective],
    /// Objectives that follow other gradients than those of both responses, which are not multiplied with probes'.
    others: Vec<String>,
}

impl<'a> Following<'a> {
    fn create<B: Kernels>(to: &Destination, setup: &Setup<'a, B>, measured: &Measured) -> Result<Self> {
        let (objectives, group_objectives) = (&setup.of.objectives.objectives, &setup.of.extras.objectives);
        let table = |wanted: bool, name: &str| wanted.then(|| Table::create(&to.out, name)).transpose();
        let others = |objective: &&Objective| {
            matches!(objective.needs(), Needs::Contrast | Needs::Tail | Needs::Weights | Needs::Text)
        };
        let others = objectives.iter().filter(others);
        Ok(Self {
            group_outcomes: table(measured.groups.is_some() && !group_objectives.is_empty(), tables::GROUP_OBJECTIVES)?,
            outcomes: table(!objectives.is_empty(), tables::OBJECTIVES)?,
            probe_outcomes: table(measured.probes.is_some() && !objectives.is_empty(), tables::PROBE_OBJECTIVES)?,
            objectives,
            group_objectives,
            others: others.map(Objective::to_string).collect(),
        })
    }

    fn part(&self, part: usize, measured: &Measured) -> Result<()> {
        if let (Some(table), Some(group_outcomes)) = (&measured.groups, &self.group_outcomes) {
            let rows = groups::measured(&table.read(part)?)?;
            group_outcomes.write(part, groups::outcomes(&rows, self.group_objectives))?;
        }
        let Some(outcomes) = &self.outcomes else { return Ok(()) };
        if !outcomes.has(part) {
            let rows = objectives::measured(&measured.pairs.read(part)?)?;
            outcomes.write(part, objectives::of_pairs(&rows, self.objectives, measured.rounding))?;
        }
        if let (Some(table), Some(probe_outcomes)) = (&measured.probes, &self.probe_outcomes) {
            let of_part = outcomes.read(part)?;
            probe_outcomes.write(part, probes::outcomes(&[table.read(part)?], &of_part, &self.others)?)?;
        }
        Ok(())
    }

    /// Objectives of a batch take the whole data as theirs: a part after all others.
    fn end(&self, part: usize, measured: &Measured, summary: &mut Summary) -> Result<()> {
        let Some(outcomes) = &self.outcomes else { return Ok(()) };
        let of_batches = |o: &Objective| matches!(o.needs(), Needs::Batch | Needs::Mismatched);
        if !self.objectives.iter().any(of_batches) {
            return Ok(());
        }
        let mut all = Vec::new();
        for part in 0..part {
            all.extend(objectives::measured(&measured.pairs.read(part)?)?);
        }
        let Some(of_all) = objectives::of_all(&all, self.objectives, measured.rounding) else { return Ok(()) };
        outcomes.write(part, of_all)?;
        let of_all = outcomes.read(part)?;
        summary.add_objectives(&of_all)?;
        if let (Some(table), Some(probe_outcomes)) = (&measured.probes, &self.probe_outcomes) {
            let tables = (0..part).map(|part| table.read(part)).collect::<Result<Vec<_>, _>>()?;
            probe_outcomes.write(part, probes::outcomes(&tables, &of_all, &self.others)?)?;
        }
        Ok(())
    }
}
