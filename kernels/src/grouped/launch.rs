//! On a device: by cuBLAS many stretches at once, each into its rows of the result; stretch by stretch elsewhere.
use super::{Grouped, Stretch, reference};
use crate::codes::launch::matrix;
use crate::on_chip::{on_devices, rows_of};
use crate::product::cublas::{Asked, multiplies, multiply};
use crate::product::launch::transposed as turned;
use crate::{Backend, Codes, FloatTensor, Weight};
use burn_backend::ops::FloatTensorOps;
use burn_cubecl::{CubeRuntime, tensor::CubeTensor};

/// Products of stretches, written into the rows of `y` or added to them.
///
/// # Errors
/// Where cuBLAS does not take them; nothing was changed then.
fn by_cublas<R, B>(
    x: &CubeTensor<R>,
    stretches: &[Stretch<'_, B>],
    transposed: bool,
    y: &CubeTensor<R>,
    added: bool,
) -> Result<(), String>
where
    R: CubeRuntime,
    B: Backend<FloatTensorPrimitive = CubeTensor<R>>,
{
    let as_taken = |of: &Stretch<'_, B>| match &of.w {
        Weight::Plain(w) if transposed => turned(w),
        Weight::Turned(w) if !transposed => turned(w),
        Weight::Plain(w) | Weight::Turned(w) => (*w).clone(),
        Weight::Coded(w) if transposed => turned(&matrix(w, x.dtype)),
        Weight::Coded(w) => matrix(w, x.dtype),
    };
    let matrices: Vec<CubeTensor<R>> = stretches.iter().map(as_taken).collect();
    #[allow(clippy::cast_possible_truncation)]
    let asked = stretches.iter().zip(&matrices).map(|(of, b)| Asked {
        a: x,
        b,
        out: y,
        rows: of.rows.clone(),
        scale: of.scale as f32,
        onto: added,
    });
    multiply(&asked.collect::<Vec<_>>())
}

on_devices! { Grouped, R {
    fn grouped(
        x: &FloatTensor<Self>,
        stretches: &[Stretch<'_, Self>],
        transposed: bool,
        width: usize,
        onto: Option<FloatTensor<Self>>,
    ) -> FloatTensor<Self> {
        let product = |x: &FloatTensor<Self>, of: &Stretch<'_, Self>| Self::matmul_with(x, &of.w, transposed, of.scale, None);
        if !multiplies(x) {
            return reference::grouped::<Self>(x, stretches, width, onto, product);
        }
        let added = onto.is_some();
        let mut y = match onto {
            Some(y) if y.can_mut() => y,
            Some(y) => y.copy(),
            None => Self::float_zeros([rows_of(x), width].into(), &x.device, x.dtype.into()),
        };
        // codes are widened one matrix at a time
        let coded = |of: &Stretch<'_, Self>| matches!(of.w, Weight::Coded(_));
        for some in stretches.chunk_by(|a, b| !coded(a) && !coded(b)) {
            if by_cublas::<R, Self>(x, some, transposed, &y, added).is_err() {
                y = reference::grouped::<Self>(x, some, width, Some(y), product);
            }
        }
        y
    }
} }
