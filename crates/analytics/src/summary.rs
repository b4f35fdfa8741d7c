//! What a run found, in a few lines.
use crate::statistics::{median, quantile};
use polars_core::prelude::{DataFrame, PolarsResult};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use tanglescope_objectives::{PairGram, Regime};
use tanglescope_records::{Error, Result};

/// Gathers the parts of a run, and says what they amount to.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    cosines: Vec<f64>,
    undefined: usize,
    regimes: Vec<Regime>,
    layers: BTreeMap<u32, Vec<f64>>,
    /// Of models with experts: how alike responses are routed.
    overlaps: Vec<f64>,
    /// Rows whose choice of experts is within rounding of another, and the pairs that have some.
    ties: [u64; 2],
    /// Regimes under each objective, in the order in which the objectives came.
    objectives: Vec<(String, Vec<Regime>)>,
}

/// The share of each regime that occurs.
fn shares(regimes: &[Regime]) -> String {
    let count = |regime: &Regime| regimes.iter().filter(|r| *r == regime).count();
    let occurring = Regime::ALL.iter().map(|regime| (regime.name(), count(regime))).filter(|(_, n)| *n > 0);
    let all: Vec<String> =
        occurring.map(|(name, n)| format!("{name} {:.1}%", 100.0 * n as f64 / regimes.len() as f64)).collect();
    all.join(", ")
}

impl Summary {
    /// Adds a part: rows of pairs.parquet, and the rows of params.parquet for the same pairs.
    ///
    /// # Errors
    /// Where a column is missing or of another type.
    pub fn add(&mut self, pairs: &DataFrame, params: &DataFrame) -> Result<()> {
        self.add_pairs(pairs).map_err(|e| Error::new(Path::new("pairs.parquet"), e))?;
        self.add_layers(params).map_err(|e| Error::new(Path::new("params.parquet"), e))
    }

    fn add_pairs(&mut self, pairs: &DataFrame) -> PolarsResult<()> {
        for cosine in pairs.column("cosine")?.f64()?.iter() {
            match cosine {
                Some(cosine) => self.cosines.push(cosine),
                None => self.undefined += 1,
            }
        }
        if let (Ok(overlaps), Ok(ties)) = (pairs.column("routing_overlap"), pairs.column("router_ties")) {
            self.overlaps.extend(overlaps.f64()?.iter().flatten());
            for ties in ties.u32()?.iter().flatten() {
                self.ties = [self.ties[0] + u64::from(ties), self.ties[1] + u64::from(ties > 0)];
            }
        }
        self.regimes.extend(pairs.column("regime_dpo")?.str()?.iter().flatten().filter_map(Regime::named));
        Ok(())
    }

    /// Adds rows of objectives.parquet.
    ///
    /// # Errors
    /// Where a column is missing or of another type.
    pub fn add_objectives(&mut self, rows: &DataFrame) -> Result<()> {
        let mut add = || -> PolarsResult<()> {
            let (names, regimes) = (rows.column("objective")?.str()?, rows.column("regime")?.str()?);
            for (name, regime) in names.iter().flatten().zip(regimes.iter().flatten()) {
                let at = self.objectives.iter().position(|(known, _)| known == name).unwrap_or_else(|| {
                    self.objectives.push((name.to_owned(), Vec::new()));
                    self.objectives.len() - 1
                });
                self.objectives[at].1.extend(Regime::named(regime));
            }
            Ok(())
        };
        add().map_err(|e| Error::new(Path::new("objectives.parquet"), e))
    }

    fn add_layers(&mut self, params: &DataFrame) -> PolarsResult<()> {
        let mut sums: BTreeMap<(u64, u32), PairGram> = BTreeMap::new();
        let (pair, layer) = (params.column("pair")?.u64()?, params.column("layer")?.u32()?);
        let (ww, wl, ll) = (params.column("ww")?.f64()?, params.column("wl")?.f64()?, params.column("ll")?.f64()?);
        for row in 0..params.height() {
            if let (Some(pair), Some(layer)) = (pair.get(row), layer.get(row)) {
                let sum = sums.entry((pair, layer)).or_default();
                sum.ww += ww.get(row).unwrap_or(0.0);
                sum.wl += wl.get(row).unwrap_or(0.0);
                sum.ll += ll.get(row).unwrap_or(0.0);
            }
        }
        for ((_, layer), gram) in sums {
            self.layers.entry(layer).or_default().extend(gram.cosine());
        }
        Ok(())
    }

    /// What [`Display`](fmt::Display) writes, for programs.
    #[must_use]
    pub fn json(&self) -> Value {
        let counts = |regimes: &[Regime]| -> Value {
            let of =
                |regime: Regime| (regime.name().to_owned(), regimes.iter().filter(|r| **r == regime).count().into());
            Regime::ALL.into_iter().map(of).collect::<Map<_, _>>().into()
        };
        let layers = self.layers().into_iter().map(|(layer, cosine)| json!({"layer": layer, "cosine": cosine}));
        let objectives = self.objectives.iter().map(|(name, regimes)| (name.clone(), counts(regimes)));
        let mut json = json!({
            "pairs": self.regimes.len(),
            "cosine_quartiles": self.quartiles(),
            "no_cosine": self.undefined,
            "regimes_dpo": counts(&self.regimes),
            "layers": layers.collect::<Vec<_>>(),
            "regimes": objectives.collect::<Map<_, _>>(),
        });
        if !self.overlaps.is_empty() {
            json["routing_overlap"] = median(self.overlaps.clone()).into();
            json["router_ties"] = json!({"rows": self.ties[0], "pairs": self.ties[1]});
        }
        json
    }

    /// Quartiles of the cosine: a quarter, the median, three quarters.
    pub(crate) fn quartiles(&self) -> Option<[f64; 3]> {
        let mut sorted = self.cosines.clone();
        sorted.sort_by(f64::total_cmp);
        (!sorted.is_empty()).then(|| [0.25, 0.5, 0.75].map(|share| quantile(&sorted, share)))
    }

    /// Layers by their median cosine over the pairs, highest first.
    pub(crate) fn layers(&self) -> Vec<(u32, f64)> {
        let filled = self.layers.iter().filter(|(_, cosines)| !cosines.is_empty());
        let mut layers: Vec<(u32, f64)> = filled.map(|(layer, cosines)| (*layer, median(cosines.clone()))).collect();
        layers.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        layers
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pairs = self.regimes.len();
        writeln!(f, "pairs            {pairs}")?;
        if let Some([low, median, high]) = self.quartiles() {
            writeln!(f, "cosine           {median:.4} median, quartiles {low:.4} to {high:.4}")?;
        }
        if self.undefined > 0 {
            writeln!(f, "no cosine        {} pairs with a zero gradient", self.undefined)?;
        }
        writeln!(f, "DPO regimes      {}", shares(&self.regimes))?;
        let layers: Vec<String> =
            self.layers().iter().take(3).map(|(layer, cosine)| format!("{layer} ({cosine:.4})")).collect();
        if !layers.is_empty() {
            writeln!(f, "highest layers   {} by median cosine", layers.join(", "))?;
        }
        if !self.overlaps.is_empty() {
            writeln!(f, "routing overlap  {:.4} median", median(self.overlaps.clone()))?;
        }
        let [rows, pairs] = self.ties;
        if rows > 0 {
            let what = "have experts within rounding of others, whose gradients differ";
            writeln!(f, "router ties      {rows} rows of {pairs} pairs {what}")?;
        }
        let width = self.objectives.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        if width > 0 {
            writeln!(f, "\none step on each objective, to first order")?;
        }
        for (name, regimes) in &self.objectives {
            writeln!(f, "{name:<width$}  {}", shares(regimes))?;
        }
        Ok(())
    }
}
