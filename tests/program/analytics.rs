//! What `summarize` says, against numpy and scipy on stored random records (tests/analytics_values.py).
use crate::support::{analyze, demo, error_line, repository, run, succeed};
use polars_core::prelude::{AnyValue, DataFrame};
use serde_json::{Value, json};
use std::path::PathBuf;
use tanglescope_analytics::{By, bins, compare, metrics, official, outcomes, outliers, params, regimes, relations};
use tanglescope_records::{Leaf, find};

fn golden(name: &str) -> PathBuf {
    repository("tests/golden/analytics").join(name)
}

fn values() -> Value {
    serde_json::from_slice(&std::fs::read(golden("values.json")).unwrap()).unwrap()
}

fn leaf(name: &str) -> Leaf {
    find(&[golden(name)]).unwrap().remove(0)
}

/// A cell as text or number.
fn number(frame: &DataFrame, column: &str, row: usize) -> Option<f64> {
    match frame.column(column).unwrap().get(row).unwrap() {
        AnyValue::Null => None,
        value => Some(value.try_extract().unwrap()),
    }
}

/// The row whose key columns have these values, `None` for null.
fn row(frame: &DataFrame, key: &[(&str, &str)]) -> usize {
    let text = |column: &str, row: usize| match frame.column(column).unwrap().get(row).unwrap() {
        AnyValue::Null => "None".to_owned(),
        AnyValue::String(text) => text.to_owned(),
        other => other.to_string(),
    };
    let found = (0..frame.height()).find(|&at| key.iter().all(|(column, value)| text(column, at) == *value));
    found.unwrap_or_else(|| panic!("no row {key:?} in {frame}"))
}

/// 1e-12: sums of at most 1,200 terms whose rounding is 1.1e-16 each, and a beta function that both libraries know to 1e-14.
fn same(found: Option<f64>, expected: &Value, what: &str) {
    let expected = match expected {
        Value::Null => None,
        Value::String(text) => Some(text.parse::<f64>().unwrap()),
        other => other.as_f64(),
    };
    let close = match (found, expected) {
        (None, None) => true,
        (Some(a), Some(b)) if a.is_nan() || b.is_nan() => a.is_nan() && b.is_nan(),
        (Some(a), Some(b)) => a.total_cmp(&b).is_eq() || (a - b).abs() <= 1e-12 * b.abs().max(1.0),
        _ => false,
    };
    assert!(close, "{what}: {found:?}, and {expected:?} by numpy");
}

fn spread(frame: &DataFrame, at: usize, expected: &Value, what: &str) {
    for column in ["count", "undefined", "mean", "q25", "median", "q75", "low", "high"] {
        same(number(frame, column, at), &expected[column], &format!("{what}, {column}"));
    }
}

#[test]
fn metrics_regimes_and_outcomes_are_numpys() {
    let values = values();
    for name in ["large", "small", "one"] {
        let (leaf, expected) = (leaf(name), &values[name]);
        let table = metrics(&leaf).unwrap();
        assert_eq!(table.height(), expected["metric"].as_object().unwrap().len());
        for (metric, expected) in expected["metric"].as_object().unwrap() {
            spread(&table, row(&table, &[("metric", metric)]), expected, &format!("{name}, {metric}"));
        }
        let table = regimes(&leaf).unwrap();
        let counted: u64 = table.column("count").unwrap().u64().unwrap().iter().flatten().sum();
        let expected_counts = expected["regime"].as_object().unwrap();
        assert_eq!(counted, expected_counts.values().map(|n| n["count"].as_u64().unwrap()).sum::<u64>());
        for (key, expected) in expected_counts {
            let (objective, regime) = key.rsplit_once('/').unwrap();
            let at = row(&table, &[("objective", objective), ("regime", regime)]);
            for column in ["count", "share", "low", "high"] {
                same(number(&table, column, at), &expected[column], &format!("{key}, {column}"));
            }
        }
        let table = outcomes(&leaf).unwrap().unwrap();
        for (key, expected) in expected["objective"].as_object().unwrap() {
            let (objective, metric) = key.rsplit_once('/').unwrap();
            spread(&table, row(&table, &[("objective", objective), ("metric", metric)]), expected, key);
        }
    }
}

#[test]
fn layers_and_modules_are_numpys() {
    let values = values();
    for name in ["large", "small", "one"] {
        for (by, key) in [(By::Layer, "layer"), (By::Module, "module")] {
            let table = params(&leaf(name), by).unwrap().unwrap();
            let expected = values[name][key].as_object().unwrap();
            assert_eq!(table.height(), expected.len(), "{table}");
            for (key, expected) in expected {
                let at = match key.split_once('/') {
                    None => row(&table, &[("layer", key)]),
                    Some((layer, module)) => row(&table, &[("layer", layer), ("module", module)]),
                };
                spread(&table, at, expected, key);
                same(number(&table, "wl", at), &expected["wl"], key);
                same(number(&table, "wl_share", at), &expected["wl_share"], key);
            }
        }
    }
}

#[test]
fn correlations_are_scipys() {
    let values = values();
    for name in ["large", "small", "one"] {
        let table = relations(&leaf(name)).unwrap();
        for (key, expected) in values[name]["relation"].as_object().unwrap() {
            let (metric, against) = key.split_once('/').unwrap();
            let at = row(&table, &[("metric", metric), ("against", against)]);
            for column in ["count", "spearman", "low", "high"] {
                same(number(&table, column, at), &expected[column], &format!("{key}, {column}"));
            }
        }
    }
}

#[test]
fn tenths_by_a_property_are_numpys() {
    let values = values();
    for name in ["large", "small", "one"] {
        let table = bins(&leaf(name)).unwrap();
        for (key, expected) in values[name]["bin"].as_object().unwrap() {
            let [metric, against, bin] = key.split('/').collect::<Vec<_>>().try_into().unwrap();
            let at = row(&table, &[("metric", metric), ("against", against), ("bin", bin)]);
            spread(&table, at, expected, key);
            for column in ["from", "to"] {
                same(number(&table, column, at), &expected[column], &format!("{key}, {column}"));
            }
        }
    }
}

#[test]
fn comparisons_are_numpys() {
    let table = compare(&leaf("small"), &leaf("large")).unwrap();
    for (metric, expected) in values()["large against small"].as_object().unwrap() {
        let at = row(&table, &[("metric", metric)]);
        spread(&table, at, expected, metric);
        for column in ["rises", "falls", "p"] {
            same(number(&table, column, at), &expected[column], &format!("{metric}, {column}"));
        }
    }
}

#[test]
fn only_the_same_pairs_are_compared() {
    let folder = tempfile::tempdir().unwrap();
    let row = |id: &str, chosen: &str| {
        json!({"id": id, "prompt": "It was a", "chosen": chosen, "rejected": " day"}).to_string()
    };
    let files = [
        ("good", [row("a", " good day"), row("b", " good one")]),
        ("fine", [row("a", " fine day"), row("b", " fine one")]),
        ("other", [row("a", " good day"), row("c", " good one")]),
    ];
    let out = |name: &str| folder.path().join(name).display().to_string();
    for (name, rows) in &files {
        let data = folder.path().join(format!("{name}.jsonl"));
        std::fs::write(&data, rows.join("\n")).unwrap();
        succeed(analyze(&demo(), &data, &folder.path().join(name)));
    }
    // two data sets, row by row
    let compared = run(["summarize", &out("good"), "--against", &out("fine"), "--format", "csv"]);
    assert!(compared.status.success(), "{}", error_line(&compared));
    assert!(String::from_utf8_lossy(&compared.stderr).contains("not the same token ids"));
    assert!(String::from_utf8_lossy(&compared.stdout).lines().any(|line| line.contains(",cosine,")));
    let refused = run(["summarize", &out("good"), "--against", &out("other")]);
    assert!(error_line(&refused).contains("pair 1 is `b`, and `c` in"), "{}", error_line(&refused));
    // the official columns say of a row only its step
    let refused = run(["summarize", &out("good"), &out("fine"), "--compat", "official"]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(error_line(&refused).contains("several runs"), "{}", error_line(&refused));
    let nothing = run(["summarize", &folder.path().join("nowhere").display().to_string()]);
    assert_eq!(nothing.status.code(), Some(2));
}

#[test]
fn the_official_columns_are_means_with_the_norm_of_w_twice() {
    let values = values();
    for name in ["large", "small", "one"] {
        let table = official(&[leaf(name)]).unwrap();
        let names = ["InnerProduct", "Correlation", "Grad_W_Norm", "Grad_L_Norm", "Grad_Condition"];
        for (at, column) in names.into_iter().enumerate() {
            same(number(&table, column, 0), &values[name]["official"][at], &format!("{name}, {column}"));
        }
    }
}

#[test]
fn nothing_to_summarize_is_said_with_nulls() {
    let empty = leaf("empty");
    let table = metrics(&empty).unwrap();
    assert!(
        (0..table.height())
            .all(|at| number(&table, "count", at) == Some(0.0) && number(&table, "median", at).is_none())
    );
    assert_eq!(regimes(&empty).unwrap().height(), 0);
    assert_eq!(params(&empty, By::Module).unwrap().unwrap().height(), 0);
    assert_eq!(outliers(&empty).unwrap().height(), 0);
    assert_eq!(bins(&empty).unwrap().height(), 0);
    assert!(relations(&empty).unwrap().column("spearman").unwrap().null_count() > 0);
    assert!(compare(&empty, &leaf("one")).unwrap_err().to_string().contains("has no pair that"));
    // the wl of all is that of embeddings and norms too
    let table = params(&leaf("large"), By::Layer).unwrap().unwrap();
    let shares: f64 = (0..table.height()).filter_map(|at| number(&table, "wl_share", at)).sum();
    assert!(shares < 0.999, "{shares}");
}

#[test]
fn outliers_are_the_farthest_from_the_median() {
    let table = outliers(&leaf("large")).unwrap();
    let pairs = leaf("large").pairs().unwrap();
    let all = pairs.collect(pairs.scan().unwrap()).unwrap();
    let cosines: Vec<f64> = all.column("cosine").unwrap().f64().unwrap().iter().flatten().collect();
    let middle = tanglescope_analytics::statistics::median(cosines.clone());
    let farthest = cosines.iter().map(|c| (c - middle).abs()).fold(0.0, f64::max);
    let at = row(&table, &[("metric", "cosine")]);
    assert!((number(&table, "value", at).unwrap() - middle).abs() >= farthest);
}

#[test]
fn every_format_has_the_same_rows() {
    let folder = golden("large").display().to_string();
    let by = |format: &str| {
        vec!["summarize".to_owned(), folder.clone(), "--by".into(), "metric".into(), "--format".into(), format.into()]
    };
    let json: Vec<Value> = serde_json::from_str(&succeed(by("json"))).unwrap();
    let cosine = json.iter().find(|row| row["metric"] == "cosine").unwrap();
    let expected = &values()["large"]["metric"]["cosine"];
    same(cosine["median"].as_f64(), &expected["median"], "json");
    let csv = succeed(by("csv"));
    let line = csv.lines().find(|line| line.contains(",cosine,")).unwrap();
    assert!(line.split(',').any(|cell| cell.parse::<f64>() == Ok(cosine["median"].as_f64().unwrap())), "{line}");
    assert_eq!(csv.lines().count(), json.len() + 1);
    let md = succeed(by("md"));
    assert!(md.lines().all(|line| line.starts_with('|') && line.ends_with('|')), "{md}");
    assert_eq!(md.lines().count(), json.len() + 2);
    assert!(succeed(by("table")).contains("wl_over_min"));
    let out = tempfile::tempdir().unwrap();
    let file = out.path().join("x.parquet");
    succeed([by("parquet"), vec!["--out".into(), file.display().to_string()]].concat());
    assert_eq!(&std::fs::read(&file).unwrap()[..4], b"PAR1");
    let refused = run(by("parquet"));
    assert_eq!(refused.status.code(), Some(2));
    assert!(error_line(&refused).contains("--out"));
}

#[test]
fn a_damaged_part_and_a_folder_without_records_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path().join("pairs.parquet");
    std::fs::create_dir(&at).unwrap();
    std::fs::copy(golden("large/pairs.parquet/00000.parquet"), at.join("00000.parquet")).unwrap();
    let bytes = std::fs::read(golden("large/pairs.parquet/00001.parquet")).unwrap();
    let summarize = || run(vec!["summarize".to_owned(), folder.path().display().to_string()]);
    // cut short, and with the bytes of all columns turned over
    let mut turned = bytes.clone();
    let footer = u32::from_le_bytes(bytes[bytes.len() - 8..bytes.len() - 4].try_into().unwrap()) as usize + 8;
    let body = 4..bytes.len() - footer;
    turned[body].iter_mut().for_each(|byte| *byte = !*byte);
    for damaged in [&bytes[..bytes.len() / 2], &turned] {
        std::fs::write(at.join("00001.parquet"), damaged).unwrap();
        let output = summarize();
        assert_eq!(output.status.code(), Some(1));
        let line = error_line(&output);
        assert!(line.contains("00001.parquet") && line.contains("delete it"), "{line}");
    }
    std::fs::remove_dir_all(&at).unwrap();
    assert!(error_line(&summarize()).contains("has no records"));
}
