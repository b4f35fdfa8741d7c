//! Tables as the page has them: lists by column.
use polars_core::prelude::{AnyValue, DataFrame};
use serde_json::{Map, Value, json};

/// Adds every n-th row to lists by column. The columns that say whose they are become `leaf`.
pub(crate) fn append(whole: &mut Map<String, Value>, leaf: usize, rows: &DataFrame, every: usize) {
    let kept: Vec<usize> = (0..rows.height()).step_by(every).collect();
    let before = whole.get("leaf").and_then(Value::as_array).map_or(0, Vec::len);
    let mut extend = |name: &str, values: Vec<Value>| {
        let list = whole.entry(name).or_insert_with(|| Value::Array(vec![Value::Null; before]));
        if let Value::Array(list) = list {
            list.extend(values);
        }
    };
    extend("leaf", vec![json!(leaf); kept.len()]);
    for column in rows.columns() {
        let name = column.name().as_str();
        if !matches!(name, "run" | "step" | "dataset") {
            extend(name, kept.iter().map(|&row| column.get(row).map_or(Value::Null, |x| value(&x))).collect());
        }
    }
    // a column that these rows lack
    for (_, list) in whole.iter_mut() {
        if let Value::Array(list) = list {
            list.resize(before + kept.len(), Value::Null);
        }
    }
}

/// A cell. JSON has no infinities and no NaN; they are texts.
fn value(cell: &AnyValue<'_>) -> Value {
    match cell {
        AnyValue::Null => Value::Null,
        AnyValue::String(text) => json!(text),
        AnyValue::StringOwned(text) => json!(text.as_str()),
        AnyValue::Boolean(is) => json!(is),
        AnyValue::Float64(x) if x.is_finite() => json!(x),
        AnyValue::Float64(x) if x.is_nan() => json!("NaN"),
        AnyValue::Float64(x) => json!(if *x > 0.0 { "Infinity" } else { "-Infinity" }),
        other => other.extract::<i64>().map_or(Value::Null, |n| json!(n)),
    }
}
