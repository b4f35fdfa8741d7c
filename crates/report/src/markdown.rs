//! A short report in Markdown, with figures as SVG, for papers and pull requests.
use crate::error::{Error, Result};
use crate::gather::Report;
use crate::palette::{Colour, REGIMES, SERIES};
use plotters::prelude::*;
use serde_json::Value;
use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::Path;

/// A colour as plotters takes it.
fn rgb(colour: Colour) -> RGBColor {
    let [_, red, green, blue] = colour.to_be_bytes();
    RGBColor(red, green, blue)
}

/// Size of a figure.
const SIZE: (u32, u32) = (760, 380);

/// A file of the report: its name, and what is in it.
pub type File = (String, String);

/// The Markdown file `name`, and its figures, which belong into a folder of the same stem beside it.
///
/// # Errors
/// Where a figure cannot be drawn.
pub fn markdown(report: &Report, name: &str) -> Result<(String, Vec<File>)> {
    let stem = Path::new(name).file_stem().map_or("report".into(), |stem| stem.to_string_lossy().into_owned());
    let folder = format!("{stem}-figures");
    let mut figures: Vec<File> = Vec::new();
    let mut text = format!("# Gradient entanglement\n\nMade by Tanglescope {}", report.origin.version);
    let _ = writeln!(text, ": {}\n", code(&report.origin.command.join(" ")));
    findings(report, &mut text);
    digest(report, &mut text);
    let mut figure = |text: &mut String, file: String, caption: &str, svg: String| {
        let (caption, folder) = (plain(caption), address(&folder));
        let _ = writeln!(text, "![{caption}]({folder}/{file})\n\n*{caption}*\n");
        figures.push((file, svg));
    };
    let sets: BTreeSet<&str> = report.leaves.iter().filter_map(|leaf| leaf["dataset"].as_str()).collect();
    for set in sets {
        let named = |what: &str| format!("{what}-{}.svg", safe(set));
        let lines = |metric: &str| series(report, set, metric);
        let both: Vec<Series> = [("logp_chosen", false), ("logp_rejected", true)]
            .iter()
            .flat_map(|(metric, dashed)| lines(metric).into_iter().map(|of| Series { dashed: *dashed, ..of }))
            .collect();
        if both.iter().any(|series| series.points.len() > 1) {
            let _ = writeln!(text, "## {}\n", plain(set));
            let caption = format!("Median log-probability of chosen (solid) and rejected (dashed) responses, {set}");
            figure(&mut text, named("logps"), &caption, line_chart(&both, "log-probability")?);
            let caption = format!("Median cosine of the gradients of both responses, {set}");
            figure(&mut text, named("cosine"), &caption, line_chart(&lines("cosine"), "cosine")?);
        }
    }
    let Some(last) = report.leaves.len().checked_sub(1) else { return Ok((text, figures)) };
    let title = report.leaves[last]["title"].as_str().unwrap_or_default();
    let _ = writeln!(text, "## {}\n", plain(title));
    if let Some(svg) = objectives(report, last)? {
        figure(&mut text, "objectives.svg".into(), "Share of pairs in each regime, by objective", svg);
    }
    if let Some(svg) = layers(report, last)? {
        figure(&mut text, "layers.svg".into(), "Median cosine by the parameters of each module alone", svg);
    }
    if let Some(svg) = scatter(report, last)? {
        figure(&mut text, "norms.svg".into(), "Gradient norms of every pair, by regime of d_w = d_l", svg);
    }
    Ok((text, figures))
}

/// A name from outside as Markdown that shows it and means nothing else: no HTML, links, emphasis or cells.
fn plain(name: &str) -> String {
    let escape = |c: char| match c {
        '&' => "&amp;".to_owned(),
        '<' => "&lt;".to_owned(),
        '>' => "&gt;".to_owned(),
        '\n' | '\r' => " ".to_owned(),
        c if r"\`*_[]()#|!~".contains(c) => format!("\\{c}"),
        c => c.to_string(),
    };
    name.chars().map(escape).collect()
}

/// Text as it is, between as many marks as it has none of.
fn code(text: &str) -> String {
    let text = text.replace(['\n', '\r'], " ");
    let longest = text.split(|c| c != '`').map(str::len).max().unwrap_or(0);
    let mark = "`".repeat(longest + 1);
    if longest > 0 { format!("{mark} {text} {mark}") } else { format!("{mark}{text}{mark}") }
}

/// A path in a link.
fn address(path: &str) -> String {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_./".contains(byte);
    path.bytes().map(|byte| if plain(&byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

/// A name that every file system takes.
fn safe(name: &str) -> String {
    name.chars().map(|c| if c.is_alphanumeric() || "-_.".contains(c) { c } else { '_' }).collect()
}

fn failed(error: impl ToString) -> Error {
    Error::file(Path::new("figure"), error)
}

/// A column of a table.
fn column<'a>(report: &'a Report, table: &str, name: &str) -> &'a [Value] {
    report.tables.get(table).and_then(|table| table.get(name)).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// What was found, of every run on every data set.
fn findings(report: &Report, text: &mut String) {
    for of in &report.findings {
        let on = if of.dataset.is_empty() { String::new() } else { format!(" on {}", plain(&of.dataset)) };
        let _ = writeln!(text, "## {}{on}\n\n**{}**\n", plain(&of.run), plain(&of.headline));
        for reason in &of.reasons {
            let _ = writeln!(text, "- {}", plain(reason));
        }
        text.push('\n');
    }
}

/// The digest as a table.
fn digest(report: &Report, text: &mut String) {
    if report.leaves.is_empty() {
        return;
    }
    let names = [
        "pairs",
        "cosine",
        "cosine_low",
        "cosine_high",
        "logp_chosen",
        "logp_rejected",
        "margin",
        "ideal",
        "both_down",
    ];
    let _ = writeln!(text, "| run | step | data set | {} |", names.map(|name| name.replace('_', " ")).join(" | "));
    let _ = writeln!(text, "|---|--:|---|{}", "--:|".repeat(names.len()));
    for (row, leaf) in column(report, "digest", "leaf").iter().enumerate() {
        let leaf = &report.leaves[leaf.as_u64().and_then(|n| usize::try_from(n).ok()).unwrap_or(0)];
        let cell = |name: &&str| match &column(report, "digest", name)[row] {
            Value::Number(n) if n.is_u64() => n.to_string(),
            Value::Number(n) => format!("{:.3}", n.as_f64().unwrap_or(f64::NAN)),
            _ => String::new(),
        };
        let step = leaf["step"].as_u64().map_or(String::new(), |step| step.to_string());
        let word = |key: &str| plain(leaf[key].as_str().unwrap_or_default());
        let cells: Vec<String> = names.iter().map(cell).collect();
        let _ = writeln!(text, "| {} | {step} | {} | {} |", word("run"), word("dataset"), cells.join(" | "));
    }
    text.push('\n');
}

/// A line of a chart.
struct Series {
    name: String,
    colour: usize,
    dashed: bool,
    points: Vec<(f64, f64)>,
}

/// The medians of a metric over the steps of each run.
fn series(report: &Report, set: &str, metric: &str) -> Vec<Series> {
    let runs: BTreeSet<&str> = report.leaves.iter().filter_map(|leaf| leaf["run"].as_str()).collect();
    let (leaf, name, median) =
        (column(report, "metrics", "leaf"), column(report, "metrics", "metric"), column(report, "metrics", "median"));
    let of = |(colour, run): (usize, &str)| {
        let point = |row: usize| {
            let at = &report.leaves[usize::try_from(leaf[row].as_u64()?).ok()?];
            let is = name[row] == metric && at["run"] == run && at["dataset"] == set;
            Some((at["step"].as_f64()?, median[row].as_f64()?)).filter(|_| is)
        };
        let points = (0..leaf.len()).filter_map(point).collect();
        Series { name: run.to_owned(), colour, dashed: false, points }
    };
    runs.into_iter().enumerate().map(of).filter(|series| !series.points.is_empty()).collect()
}

/// Least and greatest of some numbers, a little wider apart.
fn range(values: impl Iterator<Item = f64>) -> std::ops::Range<f64> {
    let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), x| (a.min(x), b.max(x)));
    let room = ((high - low) * 0.05).max(1e-9);
    if low.is_finite() { low - room..high + room } else { 0.0..1.0 }
}

fn line_chart(all: &[Series], unit: &str) -> Result<String> {
    let points = || all.iter().flat_map(|series| series.points.iter().copied());
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        root.fill(&WHITE).map_err(failed)?;
        let mut chart = ChartBuilder::on(&root)
            .margin(12)
            .x_label_area_size(40)
            .y_label_area_size(60)
            .build_cartesian_2d(range(points().map(|p| p.0)), range(points().map(|p| p.1)))
            .map_err(failed)?;
        chart.configure_mesh().x_desc("step").y_desc(unit).light_line_style(TRANSPARENT).draw().map_err(failed)?;
        for series in all {
            let colour = rgb(SERIES[series.colour % SERIES.len()]);
            let style = colour.stroke_width(2);
            let points = series.points.iter().copied();
            if series.dashed {
                chart.draw_series(DashedLineSeries::new(points.clone(), 6, 4, style)).map_err(failed)?;
            } else {
                let drawn = chart.draw_series(LineSeries::new(points.clone(), style)).map_err(failed)?;
                drawn.label(&series.name).legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], style));
            }
            chart.draw_series(points.map(|p| Circle::new(p, 3, colour.filled()))).map_err(failed)?;
        }
        chart
            .configure_series_labels()
            .border_style(BLACK.mix(0.2))
            .background_style(WHITE.mix(0.8))
            .draw()
            .map_err(failed)?;
        root.present().map_err(failed)?;
    }
    Ok(svg)
}

/// Rows of a table that are of a leaf.
fn leaf_rows(report: &Report, table: &str, leaf: usize) -> Vec<usize> {
    let all = column(report, table, "leaf");
    (0..all.len()).filter(|&row| all[row].as_u64() == Some(leaf as u64)).collect()
}

fn objectives(report: &Report, leaf: usize) -> Result<Option<String>> {
    let (objective, regime, share) = (
        column(report, "regimes", "objective"),
        column(report, "regimes", "regime"),
        column(report, "regimes", "share"),
    );
    let mut bars: Vec<(String, [f64; 5])> = Vec::new();
    for row in leaf_rows(report, "regimes", leaf) {
        let name = objective[row].as_str().unwrap_or_default();
        let kind = regime[row].as_str().unwrap_or_default();
        if bars.last().is_none_or(|bar| bar.0 != name) {
            bars.push((name.to_owned(), [0.0; 5]));
        }
        let at = REGIMES.iter().position(|(known, _)| *known == kind);
        if let (Some(at), Some(bar)) = (at, bars.last_mut()) {
            bar.1[at] = share[row].as_f64().unwrap_or(0.0);
        }
    }
    if bars.is_empty() {
        return Ok(None);
    }
    let (width, step) = (760, 22);
    let height = 70 + step * u32::try_from(bars.len()).unwrap_or(u32::MAX);
    let (left, length) = (190, 550.0);
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, (width, height)).into_drawing_area();
        root.fill(&WHITE).map_err(failed)?;
        let text = ("sans-serif", 13).into_font();
        for (at, (name, colour)) in REGIMES.into_iter().enumerate() {
            let x = left + 105 * i32::try_from(at).unwrap_or(0);
            root.draw(&Rectangle::new([(x, 12), (x + 12, 24)], rgb(colour).filled())).map_err(failed)?;
            root.draw(&Text::new(name.replace('-', " "), (x + 18, 12), text.clone())).map_err(failed)?;
        }
        for (at, (name, shares)) in bars.iter().enumerate() {
            let y = 40 + i32::try_from(step).unwrap_or(0) * i32::try_from(at).unwrap_or(0);
            let short: String = name.chars().take(26).collect();
            root.draw(&Text::new(short, (8, y + 2), text.clone())).map_err(failed)?;
            let mut from = 0.0;
            for (share, (_, colour)) in shares.iter().zip(REGIMES) {
                let ends = [from, from + share].map(|x| left + rounded(x * length));
                root.draw(&Rectangle::new([(ends[0], y), (ends[1], y + 16)], rgb(colour).filled())).map_err(failed)?;
                from += share;
            }
        }
        root.present().map_err(failed)?;
    }
    Ok(Some(svg))
}

#[allow(clippy::cast_possible_truncation)]
fn rounded(x: f64) -> i32 {
    x.round() as i32
}

/// A colour for a value in [−1, 1]: blue, white, red.
fn diverging(value: f64) -> RGBColor {
    let end = if value < 0.0 { [33.0, 102.0, 172.0] } else { [178.0, 24.0, 43.0] };
    let part = value.abs().min(1.0);
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let [r, g, b] = end.map(|end| (242.0 + (end - 242.0) * part).round() as u8);
    RGBColor(r, g, b)
}

fn layers(report: &Report, leaf: usize) -> Result<Option<String>> {
    let (layer, module, median) =
        (column(report, "modules", "layer"), column(report, "modules", "module"), column(report, "modules", "median"));
    let rows = leaf_rows(report, "modules", leaf);
    let inside: Vec<(u64, &str, f64)> = rows
        .iter()
        .filter_map(|&row| Some((layer[row].as_u64()?, module[row].as_str()?, median[row].as_f64()?)))
        .collect();
    let levels: BTreeSet<u64> = inside.iter().map(|cell| cell.0).collect();
    let mut modules: Vec<&str> = Vec::new();
    inside.iter().filter(|cell| Some(&cell.0) == levels.first()).for_each(|cell| modules.push(cell.1));
    if modules.is_empty() {
        return Ok(None);
    }
    let (wide, high, left, top) = (72, 18, 60, 20);
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let size = (left + wide * count(modules.len()) + 20, top + high * count(levels.len()) + 60);
    let place = |n: usize, step: u32, from: u32| i32::try_from(from + step * count(n)).unwrap_or(i32::MAX);
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        root.fill(&WHITE).map_err(failed)?;
        let text = ("sans-serif", 11).into_font();
        for (level, median_of) in levels.iter().enumerate() {
            root.draw(&Text::new(format!("{median_of}"), (30, place(level, high, top) + 3), text.clone()))
                .map_err(failed)?;
            for (at, name) in modules.iter().enumerate() {
                let Some(cell) = inside.iter().find(|cell| cell.0 == *median_of && cell.1 == *name) else { continue };
                let (x, y) = (place(at, wide, left), place(level, high, top));
                let (right, bottom) = (place(at + 1, wide, left) - 1, place(level + 1, high, top) - 1);
                root.draw(&Rectangle::new([(x, y), (right, bottom)], diverging(cell.2).filled())).map_err(failed)?;
                let ink = if cell.2.abs() > 0.6 { WHITE } else { BLACK };
                let style = text.clone().color(&ink);
                root.draw(&Text::new(format!("{:.2}", cell.2), (x + 22, y + 3), style)).map_err(failed)?;
            }
        }
        for (at, name) in modules.iter().enumerate() {
            let short = name.rsplit('.').next().unwrap_or(name);
            let y = place(levels.len(), high, top) + 6;
            root.draw(&Text::new(short.to_owned(), (place(at, wide, left) + 4, y), text.clone())).map_err(failed)?;
        }
        root.draw(&Text::new("layer", (8, 4), text)).map_err(failed)?;
        root.present().map_err(failed)?;
    }
    Ok(Some(svg))
}

fn scatter(report: &Report, leaf: usize) -> Result<Option<String>> {
    let column = |name: &str| report.pairs.get(name).and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let (of, ww, ll, regime) = (column("leaf"), column("ww"), column("ll"), column("regime_dpo"));
    let point = |row: usize| {
        let norms = (ww[row].as_f64()?.sqrt(), ll[row].as_f64()?.sqrt());
        let is = of[row].as_u64() == Some(leaf as u64) && norms.0 > 0.0 && norms.1 > 0.0;
        is.then(|| (norms, regime[row].as_str().unwrap_or_default().to_owned()))
    };
    let points: Vec<((f64, f64), String)> = (0..of.len()).filter_map(point).collect();
    if points.is_empty() {
        return Ok(None);
    }
    let log_range = |f: fn(&((f64, f64), String)) -> f64| {
        let range = range(points.iter().map(|p| f(p).ln()));
        (range.start.exp()..range.end.exp()).log_scale()
    };
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        root.fill(&WHITE).map_err(failed)?;
        let mut chart = ChartBuilder::on(&root)
            .margin(12)
            .x_label_area_size(40)
            .y_label_area_size(70)
            .build_cartesian_2d(log_range(|p| p.0.0), log_range(|p| p.0.1))
            .map_err(failed)?;
        chart
            .configure_mesh()
            .x_desc("norm of the chosen response's gradient")
            .y_desc("of the rejected one's")
            .light_line_style(TRANSPARENT)
            .draw()
            .map_err(failed)?;
        for (kind, colour) in REGIMES {
            let colour = rgb(colour);
            let of_kind: Vec<_> = points.iter().filter(|p| p.1 == kind).collect();
            if of_kind.is_empty() {
                continue;
            }
            let marks = of_kind.iter().map(|p| Circle::new(p.0, 3, colour.mix(0.7).filled()));
            let drawn = chart.draw_series(marks).map_err(failed)?;
            drawn.label(kind.replace('-', " ")).legend(move |(x, y)| Circle::new((x + 9, y), 4, colour.filled()));
        }
        chart
            .configure_series_labels()
            .border_style(BLACK.mix(0.2))
            .background_style(WHITE.mix(0.8))
            .draw()
            .map_err(failed)?;
        root.present().map_err(failed)?;
    }
    Ok(Some(svg))
}
