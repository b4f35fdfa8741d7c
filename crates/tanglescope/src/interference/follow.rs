//! What follows from the products between pairs: what steps on objectives, on batches, do to every pair, and the spectrum.
use super::AGAINST;
use super::windows::Between;
use crate::error::{Error, Result};
use crate::options::Destination;
use std::collections::BTreeMap;
use std::path::Path;
use tanglescope_analytics::{Coefficients, Effects, Spectrum, clusters};
use tanglescope_kernels::Kernels;
use tanglescope_objectives::{Needs, Objective};
use tanglescope_records::tables::interference as rows;
use tanglescope_records::{Table, tables};

/// The batches that steps are predicted of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Batches {
    /// None by name: only what batches of every size do on average.
    #[default]
    None,
    /// Those of a first epoch of `train`: this many pairs each, in an order that is drawn.
    Drawn(usize),
    /// Rows of the data.
    Rows(Vec<Vec<u64>>),
}

impl Batches {
    /// Batches of a file with a list of rows a line, or those of the steps of a run of `train`.
    ///
    /// # Errors
    /// Where it cannot be read as such.
    pub fn read(path: &Path) -> Result<Self> {
        let refuse = |problem: String| Error::value("batches", path.display(), problem);
        if path.is_dir() {
            let (table, mut by_step) = (Table::at(path, tables::STEPS), BTreeMap::<u64, Vec<u64>>::new());
            for part in table.parts()? {
                let number = part.file_stem().and_then(|stem| stem.to_str()?.parse().ok());
                let number = number.ok_or_else(|| refuse(format!("has a part {} without a number", part.display())))?;
                for (step, pair) in tables::training::batches(&table.read(number)?)? {
                    by_step.entry(step).or_default().push(pair);
                }
            }
            return match by_step.is_empty() {
                true => Err(refuse(
                    "has no steps.parquet with a part in it; expected the folder of a run of `train`".to_owned(),
                )),
                false => Ok(Self::Rows(by_step.into_values().collect())),
            };
        }
        let text = std::fs::read_to_string(path).map_err(|e| refuse(e.to_string()))?;
        let batch = |(at, line): (usize, &str)| -> Result<Vec<u64>> {
            let rows: Vec<u64> = serde_json::from_str(line)
                .map_err(|e| refuse(format!("line {}: {e}; expected a list of rows such as [0, 17, 4]", at + 1)))?;
            if rows.is_empty() { Err(refuse(format!("line {}: is a batch of nothing", at + 1))) } else { Ok(rows) }
        };
        let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
        Ok(Self::Rows(lines.map(batch).collect::<Result<_>>()?))
    }
}

/// Most pairs of a data set whose Gram is decomposed: its time grows with the cube of their number.
const MOST_DECOMPOSED: usize = 4096;

impl<B: Kernels> Between<'_, B> {
    /// Makes the tables that follow, once every product is there, and returns what they amount to.
    pub fn follow(
        &self,
        objectives: &[Objective],
        batches: &Batches,
        seed: u64,
        to: &Destination,
    ) -> Result<Option<Spectrum>> {
        if !self.is_whole() {
            return Ok(None);
        }
        let pairs = self.pairs()?;
        let batches = match batches {
            Batches::None => Vec::new(),
            Batches::Rows(rows) => rows.clone(),
            Batches::Drawn(size) => {
                let drawn = tanglescope_train::batches_of_epoch(pairs[0].len(), *size, seed).into_iter();
                drawn.map(|batch| batch.into_iter().map(|at| pairs[0][at]).collect()).collect()
            }
        };
        if let Some(row) = batches.iter().flatten().find(|row| !pairs[0].contains(row)) {
            return Err(Error::value("batches", row, "is the number of no usable row"));
        }
        let others = pairs.get(1).map(Vec::as_slice);
        let mut effects = self.effects(objectives, &batches, others, to)?;
        let mut spectrum = match others {
            None if pairs[0].len() <= MOST_DECOMPOSED => Some(Spectrum::of(&pairs[0])),
            None => {
                self.listener().left_out(&format!(
                    "spectrum and clusters: of more than {MOST_DECOMPOSED} pairs they are not computed"
                ));
                None
            }
            Some(_) => None,
        };
        for couples in self.couples() {
            for couple in couples? {
                effects.iter_mut().for_each(|effects| effects.add(&couple));
                spectrum.iter_mut().for_each(|spectrum| spectrum.add(&couple));
            }
        }
        let write = |name: &str, frame| -> Result<()> { Ok(Table::create(&to.out, name)?.write(0, frame)?) };
        if !effects.is_empty() {
            let name = if others.is_some() { tables::AGAINST_EFFECTS } else { tables::EFFECTS };
            write(name, rows::effects(&effects.iter().flat_map(Effects::pairs).collect::<Vec<_>>()))?;
            write(tables::DRAGS, rows::drags(&effects.iter().flat_map(Effects::drags).collect::<Vec<_>>()))?;
            if others.is_none() {
                let sizes: Vec<_> = effects.iter().flat_map(Effects::sizes).collect();
                write(tables::BATCH_SIZES, rows::batch_sizes(&sizes))?;
            }
            if !batches.is_empty() {
                let of_batches: Vec<_> = effects.iter().flat_map(Effects::batches).collect();
                write(tables::BATCHES, rows::batches(&of_batches))?;
            }
        }
        if let Some(spectrum) = &mut spectrum {
            write(tables::CLUSTERS, rows::clusters(&clusters(spectrum)))?;
            spectrum.decompose();
            write(tables::SPECTRUM, rows::spectrum(spectrum.eigenvalues()))?;
        }
        Ok(spectrum)
    }

    /// Nothing yet of what every objective does whose coefficients are those of both log-probabilities.
    fn effects(
        &self,
        objectives: &[Objective],
        batches: &[Vec<u64>],
        others: Option<&[u64]>,
        to: &Destination,
    ) -> Result<Vec<Effects>> {
        let outcomes = Table::at(&to.out, tables::OBJECTIVES);
        let mut all = Vec::new();
        for objective in objectives {
            if matches!(objective.needs(), Needs::Contrast | Needs::Tail | Needs::Weights | Needs::Text) {
                let problem = "it moves other gradients than those of both log-probabilities, whose products between pairs are not measured";
                self.listener().left_out(&format!("batches under {}: {problem}", objective.given()));
                continue;
            }
            let mut coefficients = Vec::new();
            for part in outcomes.parts()? {
                let Some(number) = part.file_stem().and_then(|stem| stem.to_str()?.parse().ok()) else { continue };
                let of_part = rows::coefficients(&outcomes.read(number)?, objective.given())?;
                coefficients.extend(of_part.into_iter().map(|(pair, d)| Coefficients { pair, d }));
            }
            all.push(Effects::new(objective.given(), &coefficients, batches, others));
        }
        Ok(all)
    }
}

/// The folder of the second data set's own records.
pub(super) fn against(to: &Destination) -> Destination {
    Destination { out: to.out.join(AGAINST), ..to.clone() }
}
