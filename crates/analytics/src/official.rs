//! The columns of the published repository's script, for comparisons with what it gave.
use crate::metrics::derived;
use polars_core::prelude::DataFrame;
use polars_lazy::prelude::col;
use tanglescope_records::tables::{column, frame};
use tanglescope_records::{Leaf, Result};

/// What analysis/grad_plot.py of github.com/HumainLab/Understand_MarginPO writes for the checkpoints of a run: means over pairs
/// of wl, of the cosine, of ‖g_w‖ and ‖g_l‖, and of its `Grad_Condition`. That one is meant to be wl / min(‖g_w‖², ‖g_l‖²), but
/// the script takes the minimum of ‖g_w‖² and ‖g_w‖² again; so does this.
///
/// # Errors
/// Where a part is damaged.
pub fn official(leaves: &[Leaf]) -> Result<DataFrame> {
    let mut rows: Vec<(Option<u64>, [f64; 5])> = Vec::new();
    for leaf in leaves {
        let pairs = leaf.pairs()?;
        let query = derived(pairs.scan()?).map_err(|e| pairs.blame(e))?;
        let means = query.select([
            col("wl").mean(),
            // a pair without a cosine makes the script's mean NaN
            (col("wl") / (col("norm_chosen") * col("norm_rejected"))).mean().alias("cosine"),
            col("norm_chosen").mean(),
            col("norm_rejected").mean(),
            (col("wl") / col("ww")).mean().alias("condition"),
        ]);
        let means = pairs.collect(means)?;
        let mean = |name: &str| {
            let value = means.column(name).and_then(|column| Ok(column.f64()?.get(0)));
            value.map(|value| value.unwrap_or(f64::NAN)).map_err(|e| pairs.blame(e))
        };
        let values = ["wl", "cosine", "norm_chosen", "norm_rejected", "condition"].map(mean);
        let [a, b, c, d, e] = values;
        rows.push((leaf.step, [a?, b?, c?, d?, e?]));
    }
    Ok(frame(vec![
        column("Step", &rows, |r| r.0),
        column("InnerProduct", &rows, |r| r.1[0]),
        column("Correlation", &rows, |r| r.1[1]),
        column("Grad_W_Norm", &rows, |r| r.1[2]),
        column("Grad_L_Norm", &rows, |r| r.1[3]),
        column("Grad_Condition", &rows, |r| r.1[4]),
    ]))
}
