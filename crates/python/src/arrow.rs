//! Tables by the Arrow C stream interface.
use polars_arrow::array::{Array, StructArray};
use polars_arrow::datatypes::{ArrowDataType, Field};
use polars_arrow::ffi::{ArrowArrayStream, export_iterator};
use polars_core::prelude::{CompatLevel, DataFrame, PolarsResult};
use pyo3::prelude::*;
use pyo3::types::PyCapsule;

/// A table, which any library that knows Arrow's C stream takes.
#[pyclass(frozen, module = "tanglescope._native")]
pub struct Frame {
    frame: DataFrame,
}

impl Frame {
    pub fn new(frame: DataFrame) -> Self {
        Self { frame }
    }
}

/// Large texts and lists as every reader of Arrow knows them.
const LEVEL: fn() -> CompatLevel = CompatLevel::oldest;

/// The chunks of a table, each as an array of rows.
fn chunks(mut frame: DataFrame) -> (Field, impl Iterator<Item = PolarsResult<Box<dyn Array>>>) {
    frame.align_chunks();
    let fields: Vec<Field> = frame.columns().iter().map(|column| column.field().to_arrow(LEVEL())).collect();
    let of = ArrowDataType::Struct(fields);
    let field = Field::new("".into(), of.clone(), false);
    let batches: Vec<_> = frame.iter_chunks(LEVEL(), false).collect();
    let rows = batches.into_iter().map(move |batch| {
        let length = batch.len();
        Ok(Box::new(StructArray::new(of.clone(), length, batch.into_arrays(), None)) as Box<dyn Array>)
    });
    (field, rows)
}

#[pymethods]
impl Frame {
    /// The table as a stream; no other schema than its own can be asked for.
    #[pyo3(signature = (requested_schema=None))]
    fn __arrow_c_stream__<'py>(
        &self,
        py: Python<'py>,
        requested_schema: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyCapsule>> {
        // a producer may ignore it (Arrow's PyCapsule interface)
        let _ = requested_schema;
        let (field, rows) = chunks(self.frame.clone());
        let stream: ArrowArrayStream = export_iterator(Box::new(rows), field);
        PyCapsule::new_with_value(py, stream, c"arrow_array_stream")
    }

    fn __len__(&self) -> usize {
        self.frame.height()
    }
}
