//! The same pairs at two times.
use crate::error::{Error, Result};
use crate::summary::median;
use polars_core::prelude::{DataFrame, PolarsResult};
use std::path::Path;

/// What became of some pairs between two checkpoints; the earlier one comes first.
#[derive(Clone, Debug, PartialEq)]
pub struct Comparison {
    /// Median cosine of the pairs that have one.
    pub cosine: [f64; 2],
    /// Mean log π(chosen).
    pub chosen: [f64; 2],
    /// Mean log π(rejected).
    pub rejected: [f64; 2],
    /// Share of pairs whose log π(chosen) is lower at the later one.
    pub chosen_fell: f64,
}

impl Comparison {
    /// Compares two pairs.parquet of the same rows.
    ///
    /// # Errors
    /// Where a column is missing, or the rows are not the same.
    pub fn of(before: &DataFrame, after: &DataFrame) -> Result<Self> {
        let numbers = |frame: &DataFrame, name: &str| -> PolarsResult<Vec<f64>> {
            Ok(frame.column(name)?.f64()?.iter().flatten().collect())
        };
        let compare = || -> PolarsResult<Option<Self>> {
            let both = |name: &str| Ok([numbers(before, name)?, numbers(after, name)?]) as PolarsResult<[Vec<f64>; 2]>;
            let (cosine, chosen, rejected) = (both("cosine")?, both("logp_chosen")?, both("logp_rejected")?);
            if before.column("pair")?.u64()?.iter().ne(after.column("pair")?.u64()?.iter()) {
                return Ok(None);
            }
            let mean = |of: &Vec<f64>| of.iter().sum::<f64>() / of.len() as f64;
            let fell = chosen[0].iter().zip(&chosen[1]).filter(|(before, after)| after < before).count();
            Ok(Some(Self {
                cosine: cosine.map(median),
                chosen_fell: fell as f64 / chosen[0].len() as f64,
                chosen: chosen.each_ref().map(mean),
                rejected: rejected.each_ref().map(mean),
            }))
        };
        let path = Path::new("pairs.parquet");
        compare().map_err(|e| Error::new(path, e))?.ok_or_else(|| Error::new(path, "the two have different pairs"))
    }
}

#[cfg(test)]
mod tests {
    use super::Comparison;
    use polars_core::df;

    #[test]
    fn pairs_are_compared_one_by_one() {
        let frame = |logps: [f64; 3], cosines: [Option<f64>; 3]| {
            df!("pair" => [0u64, 1, 2], "logp_chosen" => logps, "logp_rejected" => logps, "cosine" => cosines).unwrap()
        };
        let before = frame([-1.0, -2.0, -3.0], [Some(0.1), None, Some(0.3)]);
        let after = frame([-2.0, -1.0, -3.0], [Some(0.5), Some(0.6), Some(0.7)]);
        let found = Comparison::of(&before, &after).unwrap();
        assert_eq!((found.cosine, found.chosen), ([0.2, 0.6], [-2.0, -2.0]));
        assert!((found.chosen_fell - 1.0 / 3.0).abs() < 1e-15);
        let other = df!("pair" => [0u64], "logp_chosen" => [0.0], "logp_rejected" => [0.0], "cosine" => [0.0]).unwrap();
        assert!(Comparison::of(&before, &other).unwrap_err().to_string().contains("different pairs"));
    }
}
