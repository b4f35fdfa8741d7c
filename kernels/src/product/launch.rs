//! Products on a device: by cuBLAS where there is one, by cubek's kernels elsewhere.
use super::{Product, cublas};
use crate::on_chip::{empty, on_devices, rows_of, width_of};
use crate::rows::launch::gather;
use crate::{FloatTensor, Memory, RowSet};
use burn_backend::{DType, ops::FloatTensorOps};
use burn_cubecl::{CubeRuntime, kernel, ops::numeric::add, tensor::CubeTensor};
use cubek::matmul::definition::{MatmulElems, MatmulGlobalElems};
use cubek::matmul::launch::{launch_naive, launch_tiling};
use cubek::matmul::routines::BlueprintStrategy;
use cubek::matmul::routines::simple::{SimpleAlgorithm, SimpleArgs};
use cubek::matmul::routines::simple_unit::SimpleUnitAlgorithm;
use cubek::std::InputBinding;
use std::ops::Range;

/// `a[…, m, k] · b[…, k, n]` as a new tensor of a type.
pub(crate) fn product<R: CubeRuntime>(a: &CubeTensor<R>, b: &CubeTensor<R>, dtype: DType) -> CubeTensor<R> {
    let mut shape = a.meta.shape().clone();
    let last = shape.num_dims() - 1;
    shape[last] = width_of(b);
    let out = empty(a, shape, dtype);
    product_into(a, b, &out);
    out
}

/// `onto + a·b` in the type of `onto`, in its place where cuBLAS multiplies: a tensor that nobody else reads.
pub(crate) fn product_onto<R: CubeRuntime>(a: &CubeTensor<R>, b: &CubeTensor<R>, onto: CubeTensor<R>) -> CubeTensor<R> {
    match cublas::product_into(a, b, &onto, 1.0, true) {
        Ok(()) => onto,
        Err(_) => {
            let here = product(a, b, onto.dtype);
            add(onto, here)
        }
    }
}

/// Columns whose products are summed on the device where the sum over all of them is kept in f64.
const PANEL: usize = 65_536;

/// How a product is multiplied: by cuBLAS or three of cubek's routines, called by themselves, since its own list of thirty would generate code
/// for all of them, twice. Its own choice would round f32 factors to tf32 (10 bits) on CUDA devices with matrix units, an error of
/// 5e-4 where f32 has 6e-8.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Multiply {
    /// By NVIDIA's library, on its devices.
    Cublas,
    /// Tiles on matrix units, summed in f32: f16 and bf16, where there are such units.
    MatrixUnits,
    /// Tiles on plain units, in f32.
    Units,
    /// One value a unit, which takes every shape.
    Naive,
}

impl Multiply {
    /// Those that are tried for a type, in order: shapes that one cannot be set up for are taken by the next.
    fn of(dtype: DType) -> &'static [Self] {
        match dtype {
            DType::F32 => &[Self::Cublas, Self::Units, Self::Naive],
            _ => &[Self::Cublas, Self::MatrixUnits, Self::Units, Self::Naive],
        }
    }

    /// Starts the product.
    ///
    /// # Errors
    /// Where this way cannot be set up for the shapes.
    fn launch<R: CubeRuntime>(self, a: &CubeTensor<R>, b: &CubeTensor<R>, out: &CubeTensor<R>) -> Result<(), String> {
        let globals = MatmulGlobalElems { lhs: a.dtype.into(), rhs: b.dtype.into(), out: out.dtype.into() };
        let mut elements = MatmulElems::from_globals(&globals);
        let bind = |x: &CubeTensor<R>| InputBinding::new(x.clone().binding(), x.dtype.into());
        let (client, left, right, target) = (&a.client, bind(a), bind(b), out.clone().binding());
        let launched = match self {
            Self::Cublas => return cublas::product_into(a, b, out, 1.0, false),
            Self::MatrixUnits => {
                // a plane with several rows of tiles: 1.2 to 2.1 times as fast as with one on an H100
                let rows = SimpleArgs { multi_rows: true, ..SimpleArgs::default() };
                let blueprint = BlueprintStrategy::<(), SimpleAlgorithm>::Inferred(rows);
                launch_tiling::launch_ref(client, left, right, target, &blueprint, &mut elements)
            }
            Self::Units => {
                let blueprint = BlueprintStrategy::<(), SimpleUnitAlgorithm>::default();
                launch_tiling::launch_ref(client, left, right, target, &blueprint, &mut elements)
            }
            Self::Naive => launch_naive::launch_ref(client, left, right, target, &elements),
        };
        launched.map_err(|problem| format!("{problem:?}"))
    }
}

/// a·b into the existing tensor `out`.
pub(crate) fn product_into<R: CubeRuntime>(a: &CubeTensor<R>, b: &CubeTensor<R>, out: &CubeTensor<R>) {
    if out.meta.num_elements() == 0 {
        return;
    }
    let refused: Vec<String> = Multiply::of(a.dtype)
        .iter()
        .map_while(|way| way.launch(a, b, out).err().map(|problem| format!("{way:?}: {problem}")))
        .collect();
    assert!(
        refused.len() < Multiply::of(a.dtype).len(),
        "no way to multiply {:?} by {:?} on this device: {}",
        a.meta.shape(),
        b.meta.shape(),
        refused.join("; ")
    );
}

/// The transpose of the last two axes, as a view.
pub(crate) fn transposed<R: CubeRuntime>(x: &CubeTensor<R>) -> CubeTensor<R> {
    let mut x = x.clone();
    let last = x.meta.shape().num_dims() - 1;
    x.meta.swap(last - 1, last);
    x
}

/// Some rows, as a view where the device's alignment allows one.
pub(crate) fn rows<R: CubeRuntime>(x: &CubeTensor<R>, range: Range<usize>) -> CubeTensor<R> {
    kernel::slice(x.clone(), &[range, 0..width_of(x)])
}

/// Some columns of every row.
pub(crate) fn columns<R: CubeRuntime>(x: &CubeTensor<R>, range: Range<usize>) -> CubeTensor<R> {
    kernel::slice(x.clone(), &[0..x.meta.shape()[0], range])
}

/// See [`Product::matmul`].
fn matmul<R: CubeRuntime>(
    x: &CubeTensor<R>,
    w: &CubeTensor<R>,
    by_transpose: bool,
    scale: f64,
    onto: Option<CubeTensor<R>>,
) -> CubeTensor<R> {
    let w = if by_transpose { transposed(w) } else { w.clone() };
    // cuBLAS scales and adds as it multiplies
    #[allow(clippy::cast_possible_truncation)]
    let single = scale as f32;
    match onto {
        Some(onto) if onto.can_mut() && cublas::product_into(x, &w, &onto, single, true).is_ok() => return onto,
        _ => {}
    }
    let y = empty(x, [rows_of(x), width_of(&w)], x.dtype);
    let y = match cublas::product_into(x, &w, &y, single, false) {
        Ok(()) => y,
        Err(_) => {
            product_into(x, &w, &y);
            let (scaled, dtype) = (scale.to_bits() != 1.0f64.to_bits(), y.dtype);
            let scalar = || cubecl::prelude::InputScalar::new(scale, dtype);
            if scaled { burn_cubecl::ops::numeric::mul_scalar(y, scalar()) } else { y }
        }
    };
    match onto {
        Some(onto) => add(onto, y),
        None => y,
    }
}

/// See [`Product::weight_gradient`].
fn weight_gradient<R: CubeRuntime>(x: &CubeTensor<R>, delta: &CubeTensor<R>, range: Range<usize>) -> CubeTensor<R> {
    let (x, delta) = (rows(x, range.clone()), rows(delta, range));
    product(&transposed(&x), &delta, x.dtype)
}

on_devices! { Product, R {
    fn matmul(
        x: &FloatTensor<Self>,
        w: &FloatTensor<Self>,
        transposed: bool,
        scale: f64,
        onto: Option<FloatTensor<Self>>,
    ) -> FloatTensor<Self> {
        matmul(x, w, transposed, scale, onto)
    }

    fn weight_gradient(x: &FloatTensor<Self>, delta: &FloatTensor<Self>, rows: Range<usize>) -> FloatTensor<Self> {
        weight_gradient(x, delta, rows)
    }

    fn weight_gradients(
        x: &FloatTensor<Self>,
        delta: &FloatTensor<Self>,
        rows: &RowSet,
        cotangents: &[usize],
    ) -> FloatTensor<Self> {
        let size = width_of(x) * width_of(delta);
        let of = |&k: &usize| {
            let own = rows.of(k);
            if own.is_empty() {
                return Self::float_zeros([1, size].into(), &x.device, x.dtype.into());
            }
            let inputs = gather(x, &rows.index[own.clone()], None);
            let gradient = product(&transposed(&inputs), &self::rows(delta, own), x.dtype);
            Self::reshape(gradient, [1, size])
        };
        Self::float_cat(cotangents.iter().map(of).collect(), 0)
    }

    fn row_products(a: &FloatTensor<Self>, b: &FloatTensor<Self>) -> Vec<f64> {
        let mut sum = vec![0.0; rows_of(a) * rows_of(b)];
        for first in (0..width_of(a)).step_by(PANEL) {
            let panel = |x| columns(x, first..(first + PANEL).min(width_of(x)));
            // squares of what 16 bits hold are beyond what they hold
            let products = Self::download(&product(&panel(a), &transposed(&panel(b)), DType::F32));
            sum.iter_mut().zip(products).for_each(|(sum, x)| *sum += x);
        }
        sum
    }
} }
