//! Tables as the page has them: lists by column.
use polars_core::prelude::{AnyValue, DataFrame};
use serde_json::{Map, Value, json};

/// The rows of a table, lists by column, that are of one record.
pub(crate) struct Rows<'a> {
    table: &'a Map<String, Value>,
    at: Vec<usize>,
}

impl<'a> Rows<'a> {
    /// `None` where it has none.
    pub fn of_leaf(table: &'a Map<String, Value>, leaf: usize) -> Option<Self> {
        let all = table.get("leaf")?.as_array()?;
        let at: Vec<usize> = (0..all.len()).filter(|&row| all[row].as_u64() == Some(leaf as u64)).collect();
        (!at.is_empty()).then_some(Self { table, at })
    }

    pub fn len(&self) -> usize {
        self.at.len()
    }

    pub fn cell(&self, row: usize, column: &str) -> Option<&'a Value> {
        self.table.get(column)?.get(*self.at.get(row)?)
    }

    pub fn text(&self, row: usize, column: &str) -> Option<&'a str> {
        self.cell(row, column)?.as_str()
    }

    /// A finite number.
    pub fn real(&self, row: usize, column: &str) -> Option<f64> {
        self.cell(row, column)?.as_f64()
    }

    pub fn whole(&self, row: usize, column: &str) -> Option<usize> {
        usize::try_from(self.cell(row, column)?.as_u64()?).ok()
    }
}

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
