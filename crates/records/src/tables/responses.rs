//! responses.parquet: both responses of a pair, token by token.
use crate::tables::{column, frame};
use polars_core::prelude::{
    Column, DataFrame, DataType, Float64Type, NamedFrom, PlSmallStr, PolarsDataType, Series, StringType, UInt32Type,
};

/// A row of responses.parquet.
#[derive(Clone, Debug, PartialEq)]
pub struct ResponsesRow {
    /// Number of the row in the data.
    pub pair: u64,
    /// Text of the prompt; `None` without a tokenizer.
    pub prompt: Option<String>,
    /// The preferred response.
    pub chosen: ResponseTokens,
    /// The other response.
    pub rejected: ResponseTokens,
}

/// A response, token by token.
#[derive(Clone, Debug, PartialEq)]
pub struct ResponseTokens {
    /// Token ids.
    pub ids: Vec<u32>,
    /// What each stands for; `None` without a tokenizer.
    pub text: Option<Vec<String>>,
    /// Log-probability of each.
    pub logps: Vec<f64>,
    /// Entropy of the prediction of each, in nats.
    pub entropies: Vec<f64>,
    /// Place of each among all tokens by probability, from 1.
    pub ranks: Vec<u32>,
}

/// A column of lists; `None` is a null.
fn lists<R, T: PolarsDataType>(name: &str, rows: &[R], value: impl Fn(&R) -> Option<Series>) -> Column {
    let values: Vec<Option<Series>> = rows.iter().map(value).collect();
    let column = Series::new(name.into(), values);
    let typed = column.cast(&DataType::List(Box::new(T::get_static_dtype())));
    typed.unwrap_or_else(|e| unreachable!("lists of one type: {e}")).into()
}

/// responses.parquet.
#[must_use]
pub fn table(rows: &[ResponsesRow]) -> DataFrame {
    let none = PlSmallStr::EMPTY;
    let ids = |of: &ResponseTokens| Some(Series::new(none.clone(), &of.ids));
    let text = |of: &ResponseTokens| of.text.as_ref().map(|text| Series::new(none.clone(), text));
    let logps = |of: &ResponseTokens| Some(Series::new(none.clone(), &of.logps));
    frame(vec![
        column("pair", rows, |r| r.pair),
        column("prompt", rows, |r| r.prompt.clone()),
        lists::<_, UInt32Type>("chosen_ids", rows, |r| ids(&r.chosen)),
        lists::<_, UInt32Type>("rejected_ids", rows, |r| ids(&r.rejected)),
        lists::<_, StringType>("chosen_text", rows, |r| text(&r.chosen)),
        lists::<_, StringType>("rejected_text", rows, |r| text(&r.rejected)),
        lists::<_, Float64Type>("chosen_logps", rows, |r| logps(&r.chosen)),
        lists::<_, Float64Type>("rejected_logps", rows, |r| logps(&r.rejected)),
        lists::<_, Float64Type>("chosen_entropies", rows, |r| Some(Series::new(none.clone(), &r.chosen.entropies))),
        lists::<_, Float64Type>("rejected_entropies", rows, |r| Some(Series::new(none.clone(), &r.rejected.entropies))),
        lists::<_, UInt32Type>("chosen_ranks", rows, |r| Some(Series::new(none.clone(), &r.chosen.ranks))),
        lists::<_, UInt32Type>("rejected_ranks", rows, |r| Some(Series::new(none.clone(), &r.rejected.ranks))),
    ])
}
