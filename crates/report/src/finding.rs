//! What a report says first: sentences written from the numbers by fixed rules (docs/report.md).
use crate::between::Effects;
use crate::columns::{Rows, append};
use crate::texts::{self, Texts};
use crate::training::{Apart, Training};
use serde::Serialize;
use serde_json::{Map, Value};
use std::cmp::Ordering;
use std::collections::BTreeSet;
use tanglescope_analytics::compare;
use tanglescope_analytics::statistics::wilson;
use tanglescope_records::Leaf;

/// What was found of a run on a data set.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    /// The run.
    pub run: String,
    /// The data set.
    pub dataset: String,
    /// What becomes of the chosen response.
    pub headline: String,
    /// Why, and how sure that is.
    pub reasons: Vec<String>,
}

/// Pairs below which intervals are said to be wide.
const FEW: usize = 30;

/// Pairs of a random batch that effects are told of, where a run does not say its own.
const BATCH: u64 = 32;

/// What is gathered already.
pub(crate) struct Gathered<'a> {
    pub leaves: &'a [Leaf],
    pub tables: &'a Map<String, Value>,
    pub training: &'a [Training],
    pub texts: &'a Texts,
    /// Of each record.
    pub effects: &'a [Option<Effects>],
}

/// A share of some pairs, with its interval.
fn share(hits: usize, of: usize) -> String {
    let [low, high] = wilson(hits, of);
    format!(
        "{} of {of} pairs ({:.0} %, 95 % interval {:.0} to {:.0} %)",
        hits,
        percent(hits, of),
        100.0 * low,
        100.0 * high
    )
}

fn percent(hits: usize, of: usize) -> f64 {
    100.0 * hits as f64 / of.max(1) as f64
}

/// A number as it is said: two decimals, or what is left of a small one.
fn said(x: f64) -> String {
    let text = match x.abs() {
        size if size >= 100.0 => format!("{x:.0}"),
        size if size >= 0.05 || size == 0.0 => format!("{x:.2}"),
        _ => format!("{x:.1e}"),
    };
    text.replace('-', "−")
}

fn signed(x: f64) -> String {
    if x > 0.0 { format!("+{}", said(x)) } else { said(x) }
}

/// What became of a metric between two checkpoints.
struct Moved {
    count: usize,
    falls: usize,
    rises: usize,
    median: f64,
    interval: [f64; 2],
}

impl Moved {
    fn of(rows: &Rows<'_>, metric: &str) -> Option<Self> {
        let row = (0..rows.len()).find(|&row| rows.text(row, "metric") == Some(metric))?;
        let count = |name: &str| rows.whole(row, name);
        Some(Self {
            count: count("count")?,
            falls: count("falls")?,
            rises: count("rises")?,
            median: rows.real(row, "median")?,
            interval: [rows.real(row, "low")?, rows.real(row, "high")?],
        })
    }

    /// What happened to more of the pairs, and to how many: `fell for 3 of 4 pairs (…)`, in the words for a fall and a rise, and for what was moved.
    fn most(&self, [fell, rose]: [&str; 2], what: &str) -> String {
        match self.falls.cmp(&self.rises) {
            Ordering::Greater => format!("{fell}{what} for {}", share(self.falls, self.count)),
            Ordering::Less => format!("{rose}{what} for {}", share(self.rises, self.count)),
            Ordering::Equal => {
                let it = if what.is_empty() { "" } else { " it" };
                format!("{fell}{what} for as many pairs as it {rose}{it} for ({} of {} each)", self.falls, self.count)
            }
        }
    }

    /// By how much, at the median, and whether that may be nothing.
    fn change(&self) -> String {
        let [low, high] = self.interval.map(signed);
        let unsure = if self.interval[0] * self.interval[1] > 0.0 { "" } else { ", which may be none" };
        format!("by {} at the median ({low} to {high}{unsure})", signed(self.median))
    }

    /// Nothing changed at all.
    fn stayed(&self) -> bool {
        self.falls + self.rises == 0
    }
}

/// How many pairs a small step on an objective, of each pair by itself, moves how.
struct Regimes {
    all: usize,
    /// log π(chosen) falls.
    falls: usize,
    /// log π(rejected) rises.
    rejected_rises: usize,
}

impl Regimes {
    fn of(regimes: &Rows<'_>, objective: &str) -> Self {
        let count = |kinds: &[&str]| -> usize {
            let of = |row: &usize| {
                regimes.text(*row, "objective") == Some(objective)
                    && regimes.text(*row, "regime").is_some_and(|regime| kinds.contains(&regime))
            };
            (0..regimes.len()).filter(of).filter_map(|row| regimes.whole(row, "count")).sum()
        };
        Self {
            all: count(&["ideal", "both-up", "both-down", "inverted", "none"]),
            falls: count(&["both-down", "inverted"]),
            rejected_rises: count(&["both-up", "inverted"]),
        }
    }
}

impl Gathered<'_> {
    /// What was found of every run on every data set, in the order of the records.
    pub fn findings(&self) -> Vec<Finding> {
        let mut seen = BTreeSet::new();
        let firsts = self.leaves.iter().filter(|leaf| seen.insert((&leaf.run, &leaf.dataset)));
        let mut findings: Vec<Finding> = firsts.map(|leaf| self.finding(&leaf.run, &leaf.dataset)).collect();
        findings.extend(self.training.iter().filter(|of| of.leaves.is_empty()).map(recorded));
        findings
    }

    fn finding(&self, run: &str, dataset: &str) -> Finding {
        let of: Vec<usize> = (0..self.leaves.len())
            .filter(|&n| self.leaves[n].run == run && self.leaves[n].dataset == dataset)
            .collect();
        let (first, last) = (of[0], of[of.len() - 1]);
        let training = self.training.iter().find(|training| of.iter().any(|leaf| training.leaves.contains(leaf)));
        let mut reasons = Vec::new();
        let measured = if first < last { self.measured(first, last, training, &mut reasons) } else { None };
        let headline = measured.unwrap_or_else(|| self.predicted(last, training, &mut reasons));
        if let Some(training) = training {
            reasons.extend(taken_apart(&training.apart));
        }
        reasons.extend(self.in_batches(last, training).filter(|said| !headline.contains(said.as_str())));
        reasons.extend(self.met(first, last));
        reasons.extend(self.in_metric(last));
        reasons.extend(self.blocks(last));
        reasons.extend(self.tokens(&of));
        reasons.extend(self.related(last));
        reasons.extend(self.harmful(last));
        let pairs = self.table("digest", last).and_then(|rows| rows.whole(0, "pairs")).unwrap_or(0);
        if pairs > 0 && pairs < FEW {
            reasons.push(format!("These are only {pairs} pairs: other pairs may well say something else."));
        }
        Finding { run: run.to_owned(), dataset: dataset.to_owned(), headline, reasons }
    }

    /// The rows of a table that are of some records; `None` where there are none.
    fn table(&self, name: &str, leaf: usize) -> Option<Rows<'_>> {
        Rows::of_leaf(self.tables.get(name)?.as_object()?, leaf)
    }

    /// What training did, from its first to its last checkpoint that was measured.
    fn measured(
        &self,
        first: usize,
        last: usize,
        training: Option<&Training>,
        reasons: &mut Vec<String>,
    ) -> Option<String> {
        let (before, after) = (&self.leaves[first], &self.leaves[last]);
        let mut table = Map::new();
        match compare(before, after) {
            Ok(rows) => append(&mut table, last, &rows, 1),
            // other pairs at the last checkpoint than at the first
            Err(error) => {
                reasons.push(format!(
                    "What became of the pairs between the first and the last checkpoint is not told: {error}."
                ));
                return None;
            }
        }
        let rows = Rows::of_leaf(&table, last)?;
        let (chosen, rejected) = (Moved::of(&rows, "logp_chosen")?, Moved::of(&rows, "logp_rejected")?);
        let steps = before.step.zip(after.step)?;
        let who = training.map_or(format!("Training of {}", before.run), |of| format!("Training on {}", of.objective));
        let rest = match rejected.stayed() {
            true => "stayed as it was".to_owned(),
            false => format!("{}, {}", rejected.most(["fell", "rose"], ""), rejected.change()),
        };
        let margin = Moved::of(&rows, "margin").map_or(String::new(), |margin| {
            let grew = percent(margin.rises, margin.count);
            format!("; the margin between both grew for {grew:.0} % of the pairs")
        });
        reasons.push(format!("log π(rejected) {rest}{margin}."));
        let from = format!("from step {} to step {}", steps.0, steps.1);
        Some(match chosen.stayed() {
            true => format!(
                "{who} left the probability of the chosen response of all {} pairs of {} as it was, {from}.",
                chosen.count, before.dataset
            ),
            false => format!(
                "{who} {} of {}: log π(chosen) changed {} {from}.",
                chosen.most(["lowered", "raised"], " the probability of the chosen response"),
                before.dataset,
                chosen.change(),
            ),
        })
    }

    /// What a small step would do, to first order.
    fn predicted(&self, leaf: usize, training: Option<&Training>, reasons: &mut Vec<String>) -> String {
        let Some(regimes) = self.table("regimes", leaf) else { return "These records have no pairs.".to_owned() };
        let name = regimes.text(0, "objective").unwrap_or("dpo").to_owned();
        let first = Regimes::of(&regimes, &name);
        if first.all == 0 {
            return "These records have no pairs.".to_owned();
        }
        reasons.push(format!("log π(rejected) would rise for {}.", share(first.rejected_rises, first.all)));
        let mut names: Vec<&str> = (0..regimes.len()).filter_map(|row| regimes.text(row, "objective")).collect();
        names.dedup();
        let of = |name: &str| Regimes::of(&regimes, name);
        let by_falls = |name: &&&str| of(name).falls * 1_000_000 / of(name).all.max(1);
        if let (true, Some(best), Some(worst)) =
            (names.len() > 1, names.iter().min_by_key(by_falls), names.iter().max_by_key(by_falls))
        {
            let part = |name: &str| percent(of(name).falls, of(name).all);
            let same =
                format!("Under each of {} objectives the same share of chosen responses would fall.", names.len());
            let apart = || {
                format!(
                    "Of {} objectives, a step on {worst} would lower the chosen response of the most pairs ({:.0} %), one on {best} of the fewest ({:.0} %).",
                    names.len(),
                    part(worst),
                    part(best)
                )
            };
            reasons.push(if by_falls(&best) == by_falls(&worst) { same } else { apart() });
        }
        let alone = format!(
            "A small step on {name} of each pair by itself would lower the probability of the chosen response for {}.",
            share(first.falls, first.all)
        );
        match self.in_batches(leaf, training) {
            Some(said) => {
                reasons.insert(0, alone);
                said
            }
            None => alone,
        }
    }

    /// What others do in random batches, where it was measured: the first objective's.
    fn in_batches(&self, leaf: usize, training: Option<&Training>) -> Option<String> {
        let (sizes, pairs) = (self.table("batch_sizes", leaf)?, self.table("digest", leaf)?.whole(0, "pairs")?);
        let name = sizes.text(0, "objective")?.to_owned();
        let size = training.and_then(Training::batch_size).unwrap_or(BATCH);
        let rows: Vec<usize> = (0..sizes.len()).filter(|&row| sizes.text(row, "objective") == Some(&name)).collect();
        // sizes are powers of two, and all pairs
        let row = *rows.iter().rev().find(|&&row| sizes.whole(row, "batch_size").is_some_and(|b| b as u64 <= size))?;
        // shares of pairs, whose numbers they are
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let hits = |row: usize, column: &str| Some((sizes.real(row, column)? * pairs as f64).round() as usize);
        Some(format!(
            "In random batches of {}, a small step on {name} would lower the probability of the chosen response for {}, on average over the batches; a step on \
             each pair alone, for {}. Other pairs turn the sign for {}.",
            sizes.whole(row, "batch_size")?,
            share(hits(row, "falls_w")?, pairs),
            hits(rows[0], "falls_w")?,
            hits(row, "turned_w")?,
        ))
    }

    /// How the two gradients meet.
    fn met(&self, first: usize, last: usize) -> Option<String> {
        let (before, after) = (self.table("digest", first)?, self.table("digest", last)?);
        let of = |name: &str| after.real(0, name);
        let cosine = of("cosine")?;
        let (low, high) = (of("cosine_low")?, of("cosine_high")?);
        let pull = match () {
            () if low > 0.0 => "point the same way",
            () if high < 0.0 => "point apart",
            () => "may point the same way or apart",
        };
        let was = before
            .real(0, "cosine")
            .filter(|_| first != last)
            .map_or(String::new(), |was| format!(", from {} at the first checkpoint", said(was)));
        Some(format!(
            "The gradients of both responses {pull}: their cosine is {} at the median (95 % interval {} to {}){was}. A step with d_w = d_l moves both \
             probabilities the same way for {:.0} % of the pairs.",
            said(cosine),
            said(low),
            said(high),
            100.0 * (of("both_up")? + of("both_down")?),
        ))
    }

    /// The same where gradients are measured as Adam's step has them, where they were.
    fn in_metric(&self, leaf: usize) -> Option<String> {
        let (metrics, regimes) = (self.table("metrics", leaf)?, self.table("adam_regimes", leaf)?);
        let row = (0..metrics.len()).find(|&row| metrics.text(row, "metric") == Some("adam_cosine"))?;
        let name = regimes.text(0, "objective")?;
        let of = Regimes::of(&regimes, name);
        Some(format!(
            "In the metric of Adam's step the cosine is {} (95 % interval {} to {}), and a small step on {name} of each pair by itself would lower the probability of the \
             chosen response for {}.",
            said(metrics.real(row, "median")?),
            said(metrics.real(row, "low")?),
            said(metrics.real(row, "high")?),
            share(of.falls, of.all),
        ))
    }

    /// The fewest blocks that make half of wl.
    fn blocks(&self, leaf: usize) -> Option<String> {
        let rows = self.table("layers", leaf)?;
        let mut parts: Vec<(usize, f64)> =
            (0..rows.len()).filter_map(|row| Some((rows.whole(row, "layer")?, rows.real(row, "wl_share")?))).collect();
        let all = parts.len();
        parts.sort_by(|a, b| b.1.total_cmp(&a.1));
        let mut sum = 0.0;
        let mut few: Vec<usize> = parts
            .iter()
            .take_while(|(_, part)| {
                // the one that would come behind a half is not counted
                let more = sum < 0.5;
                sum += if more { part.max(0.0) } else { 0.0 };
                more
            })
            .map(|(layer, _)| *layer)
            .collect();
        if sum < 0.5 || few.len() == all {
            return None;
        }
        few.sort_unstable();
        let list = ranges(&few);
        Some(format!(
            "At least half of the inner product of both gradients, over all pairs, is from {} of {all} blocks: {list} ({:.0} %).",
            few.len(),
            100.0 * sum
        ))
    }

    /// What shared and contrast tokens make of wl, over the pairs whose matrices are there: those of the last of some records that has any.
    fn tokens(&self, leaves: &[usize]) -> Option<String> {
        let of_leaf = |key: &str| texts::parse(key).map(|(leaf, _)| leaf).filter(|leaf| leaves.contains(leaf));
        let last = self.texts.matrices.keys().filter_map(|key| of_leaf(key)).max()?;
        let mut sums = [0.0; 3];
        let mut pairs = 0;
        for (key, matrix) in self.texts.matrices.iter().filter(|(key, _)| of_leaf(key) == Some(last)) {
            let Some(of) = self.texts.pairs.get(key) else { continue };
            let shared = |name: &str| -> Vec<bool> {
                let tokens = of[name].as_array().map_or(&[][..], Vec::as_slice);
                tokens.iter().map(|token| token[2] == 1).collect()
            };
            let (chosen, rejected) = (shared("chosen"), shared("rejected"));
            for (row, w) in matrix["wl"].as_array()?.iter().zip(&chosen) {
                for (inner, l) in row.as_array()?.iter().zip(&rejected) {
                    sums[if *w == *l { usize::from(!*w) } else { 2 }] += inner.as_f64().unwrap_or(0.0);
                }
            }
            pairs += 1;
        }
        let all: f64 = sums.iter().sum();
        if pairs == 0 || all == 0.0 {
            return None;
        }
        let [shared, contrast, mixed] = sums.map(|sum| format!("{:+.0}", 100.0 * sum / all).replace('-', "−"));
        Some(format!(
            "By tokens, over {pairs} pairs: of an inner product of {}, {shared} % is from tokens that both responses share, {contrast} % from those that differ, \
             {mixed} % between the two kinds.",
            said(all)
        ))
    }

    /// What the cosine goes with most, where the interval leaves no doubt of the sign.
    fn related(&self, leaf: usize) -> Option<String> {
        let rows = self.table("relations", leaf)?;
        let row = (0..rows.len())
            .filter(|&row| rows.text(row, "metric") == Some("cosine"))
            .filter(|&row| {
                rows.real(row, "low").zip(rows.real(row, "high")).is_some_and(|(low, high)| low * high > 0.0)
            })
            .max_by(|&a, &b| {
                let size = |row| rows.real(row, "spearman").unwrap_or(0.0).abs();
                size(a).total_cmp(&size(b))
            })?;
        let (with, rho) = (rows.text(row, "against")?.replace('_', " "), rows.real(row, "spearman")?);
        let how = if rho > 0.0 { "rises" } else { "falls" };
        Some(format!(
            "The cosine {how} with {with} (Spearman's correlation {}, 95 % interval {} to {}).",
            said(rho),
            said(rows.real(row, "low")?),
            said(rows.real(row, "high")?)
        ))
    }

    /// How far the few most harmful pairs go.
    fn harmful(&self, leaf: usize) -> Option<String> {
        let (few, down) = self.effects[leaf].as_ref()?.harm()?;
        Some(format!(
            "The tenth of the pairs that pull down others' chosen responses most make {:.0} % of all such pull ({:.0} % of the pairs pull down more than they lift).",
            100.0 * few,
            100.0 * down
        ))
    }
}

/// Numbers as 3–5, 7.
fn ranges(sorted: &[usize]) -> String {
    let runs = sorted.chunk_by(|a, b| a + 1 == *b);
    let run = |run: &[usize]| match run {
        [one] => one.to_string(),
        [first, .., last] => format!("{first}–{last}"),
        [] => String::new(),
    };
    runs.map(run).collect::<Vec<_>>().join(", ")
}

/// What a run recorded of its own steps, where none of its checkpoints was measured.
fn recorded(training: &Training) -> Finding {
    let ends = training.ends;
    let both = [
        (
            if ends.steps == 1 {
                "log π(chosen) of its pairs was, before it,"
            } else {
                "log π(chosen) of the pairs of a step went"
            },
            ends.chosen,
        ),
        ("log π(rejected)", ends.rejected),
    ];
    let told: Vec<String> = both
        .into_iter()
        .filter_map(|(name, of)| {
            of.map(|[first, last]| match ends.steps {
                1 => format!("{name} at {}", said(first)),
                _ => format!("{name} from {} to {}", said(first), said(last)),
            })
        })
        .collect();
    let headline = match (ends.steps, told.is_empty()) {
        (0, _) => format!("Training on {} has recorded no step yet.", training.objective),
        (steps, true) => {
            format!("{} of training on {} recorded no log-probabilities.", times(steps, "step"), training.objective)
        }
        (1, false) => format!("After 1 step of training on {}, {}.", training.objective, told.join(", ")),
        (steps, false) => format!(
            "In {} of training on {}, {} (means of {} at either end, whose pairs differ).",
            times(steps, "step"),
            training.objective,
            told.join(", "),
            times(ends.few, "step"),
        ),
    };
    let mut reasons = taken_apart(&training.apart);
    reasons.push(
        "No records here are known to be of this run's checkpoints: those of sweep tell what became of the same pairs."
            .to_owned(),
    );
    Finding { run: training.run.clone(), dataset: String::new(), headline, reasons }
}

/// `1 step`, `2 steps`.
fn times(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

/// What the changes of the steps' own pairs were made of, where `train` took them apart.
fn taken_apart(of: &Apart) -> Vec<String> {
    let mut all = Vec::new();
    if of.fell > 0 {
        let [own, others, momentum, decay] = of.by.map(signed);
        all.push(format!(
            "In steps that were taken apart, the chosen response of a pair of the step fell {} of {} times, by {} in all; to first order {own} is by the pair itself, \
             {others} by the other pairs of its batch, {momentum} by momentum, {decay} by weight decay.",
            of.fell,
            of.count,
            said(of.change),
        ));
    }
    if of.count > 0 {
        let [own, batch, whole] = of.right.map(|right| percent(right, of.count));
        all.push(format!(
            "What the pair itself does has the sign of the change for {own:.0} % of them, with the others of the batch for {batch:.0} %, with momentum and decay for \
             {whole:.0} %."
        ));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::{Moved, ranges, recorded, said, share, signed};
    use crate::training::{Apart, Ends, Training};

    #[test]
    fn numbers_are_said_as_they_are_read() {
        assert_eq!([said(1234.6), said(-1.256), said(0.0), said(0.0012)], ["1235", "−1.26", "0.00", "1.2e−3"]);
        assert_eq!([signed(0.5), signed(-0.5)], ["+0.50", "−0.50"]);
        // Wilson's interval of 8 in 10
        assert_eq!(share(8, 10), "8 of 10 pairs (80 %, 95 % interval 49 to 94 %)");
        assert_eq!([ranges(&[3, 4, 5, 7]), ranges(&[1]), ranges(&[])], ["3–5, 7", "1", ""]);
    }

    #[test]
    fn what_moved_neither_way_is_not_said_to_have_fallen() {
        let moved = |falls, rises, interval| Moved { count: 10, falls, rises, median: -0.5, interval };
        let most = |falls, rises| moved(falls, rises, [0.0; 2]).most(["lowered", "raised"], " it all");
        assert!(most(6, 4).starts_with("lowered it all for 6 of 10 pairs ("));
        assert!(most(4, 6).starts_with("raised it all for 6 of 10 pairs ("));
        assert_eq!(most(4, 4), "lowered it all for as many pairs as it raised it for (4 of 10 each)");
        assert_eq!([moved(0, 0, [0.0; 2]).stayed(), moved(1, 0, [0.0; 2]).stayed()], [true, false]);
        let change = |interval| moved(6, 4, interval).change();
        assert_eq!(change([-1.0, -0.25]), "by −0.50 at the median (−1.00 to −0.25)");
        assert_eq!(change([-1.0, 0.25]), "by −0.50 at the median (−1.00 to +0.25, which may be none)");
    }

    #[test]
    fn of_a_run_only_what_it_recorded_is_said() {
        let headline = |steps, chosen, rejected| {
            let training = Training {
                run: "run".to_owned(),
                leaves: Vec::new(),
                objective: "sft".to_owned(),
                manifest: None,
                steps: serde_json::Map::new(),
                steps_in_all: steps,
                predictions: serde_json::Map::new(),
                predictions_in_all: 0,
                parts: serde_json::Map::new(),
                ends: Ends { steps, few: 1, chosen, rejected },
                apart: Apart::default(),
            };
            recorded(&training).headline
        };
        assert_eq!(headline(0, None, None), "Training on sft has recorded no step yet.");
        let one = headline(4, Some([-2.0, -1.0]), None);
        assert!(
            one.contains("log π(chosen) of the pairs of a step went from −2.00 to −1.00 (")
                && !one.contains("rejected"),
            "{one}"
        );
        assert_eq!(
            headline(1, Some([-2.0; 2]), Some([-3.0; 2])),
            "After 1 step of training on sft, log π(chosen) of its pairs was, before it, at −2.00, log π(rejected) at −3.00."
        );
        let both = headline(4, Some([-2.0, -1.0]), Some([-3.0, -4.0]));
        assert!(both.contains("to −1.00, log π(rejected) from −3.00 to −4.00"), "{both}");
    }
}
