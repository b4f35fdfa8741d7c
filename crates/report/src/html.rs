//! A report as one HTML file: the page, its data as JSON, its script, and the library that draws.
use crate::error::{Error, Result};
use crate::gather::Report;
use crate::palette::Palette;
use minijinja::{Environment, context};
use std::path::Path;

const PAGE: &str = include_str!("../assets/report.html");
const CSS: &str = include_str!("../assets/report.css");
/// The page's script: each file is a section of the page, and uses those before it.
const JS: &str = concat!(
    include_str!("../assets/page/base.js"),
    include_str!("../assets/page/charts.js"),
    include_str!("../assets/page/found.js"),
    include_str!("../assets/page/dynamics.js"),
    include_str!("../assets/page/objectives.js"),
    include_str!("../assets/page/layers.js"),
    include_str!("../assets/page/distributions.js"),
    include_str!("../assets/page/between.js"),
    include_str!("../assets/page/pairs.js"),
    include_str!("../assets/page/pair.js"),
    include_str!("../assets/page/page.js"),
);
/// Apache ECharts 6.1.0 as published (`dist/echarts.min.js`), Apache License 2.0.
const ECHARTS: &str = include_str!("../assets/echarts-6.1.0.min.js");

/// The file; where it is `watched`, it loads itself again once what its server says of the records is another text. Text from the
/// data is in it as JSON only, without a `<` that could end the element it is in, and the page's script shows it as text.
///
/// # Errors
/// Where the page cannot be put together.
pub fn html(report: &Report, watched: Option<&str>) -> Result<String> {
    let refuse = |e: &dyn std::fmt::Display| Error::file(Path::new("report.html"), e);
    let data = serde_json::to_string(report).map_err(|e| refuse(&e))?.replace('<', "\\u003c");
    let palette = serde_json::to_string(&Palette::css()).map_err(|e| refuse(&e))?;
    let mut environment = Environment::new();
    environment.add_template("report.html", PAGE).map_err(|e| refuse(&e))?;
    let page = environment.get_template("report.html").map_err(|e| refuse(&e))?;
    let models = report.leaves.len();
    let runs = report.training.len();
    let count = |n: usize, what: &str| format!("{n} {what}{}", if n == 1 { "" } else { "s" });
    let parts = [
        (models > 0).then(|| format!("{} of models on data, {} pairs", count(models, "record"), report.pairs_in_all)),
        (runs > 0).then(|| count(runs, "training run")),
    ];
    let subtitle = parts.into_iter().flatten().collect::<Vec<_>>().join("; ");
    page.render(context! {
        title => "Tanglescope: gradient entanglement",
        subtitle,
        version => report.origin.version,
        command => report.origin.command.join(" "),
        css => CSS,
        js => JS,
        echarts => ECHARTS,
        data,
        palette,
        watched,
    })
    .map_err(|e| refuse(&e))
}
