//! Tensors of another library, by DLPack, where they lie.
use bytes::Bytes;
use dlpark::ffi::{DLDataTypeCode, DLDeviceType};
use dlpark::python::{ImportedDlpack, from_dlpack};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use tanglescope_checkpoint::{Held, Number};

/// A tensor that another library shares; it lives as long as this does.
struct Shared(ImportedDlpack);

impl AsRef<[u8]> for Shared {
    #[allow(unsafe_code)]
    fn as_ref(&self) -> &[u8] {
        let Ok(tensor) = self.0.validate() else { return &[] };
        // SAFETY: `shared` has looked at shape and strides and that it is in the host's memory, which its owner keeps until `self` is dropped. The
        // owner may write to it while it is read, as the documentation of `from_torch` says; numbers of any bits are values.
        unsafe { tensor.cpu_bytes() }.unwrap_or_default()
    }
}

/// The numbers of a tensor on the host, and its shape.
///
/// # Errors
/// Where it is no such tensor, is on another device, or its numbers do not lie one behind the other.
pub fn shared(tensor: &Bound<'_, PyAny>) -> PyResult<(Vec<usize>, Held)> {
    let imported = from_dlpack(tensor.as_borrowed(), None, None)?;
    let refuse = |problem: String| PyValueError::new_err(problem);
    let (shape, number) = {
        let of = imported.validate().map_err(|e| refuse(e.to_string()))?;
        if of.device().device_type != DLDeviceType::CPU {
            return Err(refuse("is not in the host's memory".to_owned()));
        }
        if !of.is_compact().map_err(|e| refuse(e.to_string()))? {
            return Err(refuse("has numbers that do not lie one behind the other".to_owned()));
        }
        let dtype = of.dtype();
        let number = match (dtype.code, dtype.bits, dtype.lanes) {
            (DLDataTypeCode::FLOAT, 64, 1) => Number::F64,
            (DLDataTypeCode::FLOAT, 32, 1) => Number::F32,
            (DLDataTypeCode::FLOAT, 16, 1) => Number::F16,
            (DLDataTypeCode::BFLOAT, 16, 1) => Number::BF16,
            (code, bits, _) => {
                return Err(refuse(format!(
                    "has numbers of {bits} bits of kind {}; expected f64, f32, f16 or bf16",
                    code.0
                )));
            }
        };
        let shape: Result<Vec<usize>, _> = of.shape().iter().map(|n| usize::try_from(*n)).collect();
        (shape.map_err(|e| refuse(e.to_string()))?, number)
    };
    Ok((shape, Held { number, bytes: Bytes::from_owner(Shared(imported)) }))
}
