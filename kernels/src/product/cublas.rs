//! Products on a CUDA device by cuBLAS, where the toolkit has it: two to seven times as fast as cubek's kernels on an H100.
//!
//! CubeCL keeps its streams to itself. So a product has a stream of ours, which waits for all that was started in the device's
//! context before, and all that is started there afterwards waits for the product: the device waits, the processor does not.
#![allow(unsafe_code)]
use crate::on_chip::width_of;
use burn_backend::DType;
use burn_cubecl::{CubeRuntime, tensor::CubeTensor};
use cubecl::cuda::{CudaDevice, CudaRuntime};
use cubecl::prelude::ComputeClient;
use cudarc::cublas::sys::{
    self, cublasComputeType_t, cublasGemmAlgo_t, cublasHandle_t, cublasMath_t, cublasOperation_t, cudaDataType_t,
};
use cudarc::driver::{result as driver, sys as cuda};
use std::any::Any;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::ffi::c_void;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

/// A device's library, with the stream and the events of its products.
struct Library {
    context: cuda::CUcontext,
    stream: cuda::CUstream,
    /// After all that was started before a product.
    before: cuda::CUevent,
    /// After a product.
    after: cuda::CUevent,
    handle: cublasHandle_t,
    /// Whether its matrix units multiply tf32.
    tf32: bool,
}

thread_local! {
    /// Whether products that this thread starts round factors of f32 to tf32.
    static TF32: Cell<bool> = const { Cell::new(false) };
}

// SAFETY: its parts are the driver's and the library's, which take them from any thread, and one at a time: it lies in a mutex.
unsafe impl Send for Library {}

/// A device's library, or what is missing, once it was asked for.
type Opened = Arc<Mutex<Option<Result<Library, String>>>>;

/// Those of the devices that were asked for.
static LIBRARIES: Mutex<BTreeMap<usize, Opened>> = Mutex::new(BTreeMap::new());

/// One product of a device at a time; other devices do not wait for it.
fn with_library<T>(device: usize, run: impl FnOnce(&Library) -> Result<T, String>) -> Result<T, String> {
    let of_device = LIBRARIES.lock().unwrap_or_else(PoisonError::into_inner).entry(device).or_default().clone();
    let mut library = of_device.lock().unwrap_or_else(PoisonError::into_inner);
    library.get_or_insert_with(|| Library::open(device)).as_ref().map_err(Clone::clone).and_then(run)
}

/// Whether products of a device are cuBLAS's.
///
/// # Errors
/// Says what is missing.
pub(crate) fn check(device: &CudaDevice) -> Result<(), String> {
    with_library(device.index, |_| Ok(()))
}

/// Whether products of a device may round factors of f32 to tf32.
///
/// # Errors
/// Says what is missing.
pub(crate) fn check_tf32(device: &CudaDevice) -> Result<(), String> {
    with_library(device.index, |library| match library.tf32 {
        true => Ok(()),
        false => Err("its matrix units do not multiply tf32, which takes compute capability 8.0".to_owned()),
    })
}

/// Does work whose products of f32 round their factors to tf32 on CUDA devices. A device takes its work from one thread, so that the thread is what
/// says it.
pub(crate) fn in_tf32<T>(work: impl FnOnce() -> T) -> T {
    struct Restore(bool);
    impl Drop for Restore {
        fn drop(&mut self) {
            TF32.set(self.0);
        }
    }
    let _restore = Restore(TF32.replace(true));
    work()
}

/// Whether this thread is in such work.
pub(crate) fn is_in_tf32() -> bool {
    TF32.get()
}

impl Library {
    fn open(device: usize) -> Result<Self, String> {
        // SAFETY: only tries to open the library by its name.
        if !unsafe { sys::is_culib_present() } {
            return Err("cuBLAS (libcublas.so of the CUDA toolkit) is not installed".to_owned());
        }
        // SAFETY: looks symbols of the opened driver up, and calls none.
        let waits = |symbol: &[u8]| unsafe { cuda::culib().get::<unsafe extern "C" fn()>(symbol).is_ok() };
        if !waits(b"cuCtxRecordEvent\0") || !waits(b"cuCtxWaitEvent\0") {
            return Err("cuBLAS needs a driver of CUDA 12.5 or later".to_owned());
        }
        let failed = |e: driver::DriverError| format!("cuBLAS: the driver says {e}");
        let refused = |e: cudarc::cublas::result::CublasError| format!("cuBLAS says {:?}", e.0);
        let device = driver::device::get(i32::try_from(device).unwrap_or(i32::MAX)).map_err(failed)?;
        let major = cuda::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR;
        // SAFETY: the device is the driver's, its context is current in this thread from then on, and what is made is kept for
        // as long as the program runs.
        unsafe {
            let tf32 = driver::device::get_attribute(device, major).map_err(failed)? >= 8;
            let context = driver::primary_ctx::retain(device).map_err(failed)?;
            driver::ctx::set_current(context).map_err(failed)?;
            let stream = driver::stream::create(driver::stream::StreamKind::NonBlocking).map_err(failed)?;
            let event = || driver::event::create(cuda::CUevent_flags::CU_EVENT_DISABLE_TIMING).map_err(failed);
            let (before, after) = (event()?, event()?);
            cuda::cuCtxRecordEvent(context, before).result().map_err(failed)?;
            let handle = cudarc::cublas::result::create_handle().map_err(refused)?;
            cudarc::cublas::result::set_stream(handle, stream.cast()).map_err(refused)?;
            // sums of f16 and bf16 in f32 throughout, also where a sum is cut in parts
            let mode = cublasMath_t::CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION;
            sys::cublasSetMathMode(handle, mode).result().map_err(refused)?;
            Ok(Self { context, stream, before, after, handle, tf32 })
        }
    }

    /// Runs work on the stream, after all that was started in the context and before all that will be.
    fn in_turn(&self, work: impl FnOnce() -> Result<(), String>) -> Result<(), String> {
        let failed = |e: driver::DriverError| format!("the driver says {e}");
        // SAFETY: context, stream and events are of one device and never given back.
        unsafe {
            driver::ctx::set_current(self.context).map_err(failed)?;
            cuda::cuCtxRecordEvent(self.context, self.before).result().map_err(failed)?;
            cuda::cuStreamWaitEvent(self.stream, self.before, 0).result().map_err(failed)?;
            work()?;
            driver::event::record(self.after, self.stream).map_err(failed)?;
            cuda::cuCtxWaitEvent(self.context, self.after).result().map_err(failed)
        }
    }
}

/// How a factor lies in memory: rows of `leading` values each, as written or transposed, the next of a batch `batch` further.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Lies {
    transposed: bool,
    leading: usize,
    batch: usize,
}

impl Lies {
    /// Of a matrix or a batch of matrices, where rows or columns lie side by side.
    fn of(shape: &[usize], strides: &[usize]) -> Option<Self> {
        let (&[.., rows, columns], &[.., down, along]) = (shape, strides) else { return None };
        let batch = match (shape, strides) {
            ([_, _], _) => 0,
            ([_, _, _], [batch, ..]) => *batch,
            _ => return None,
        };
        // the distance of rows says nothing where there is one
        let leading = |many: usize, distance: usize, width: usize| if many == 1 { width } else { distance };
        if along == 1 || columns == 1 && down >= 1 && along >= 1 {
            let leading = leading(rows, down, columns);
            if leading >= columns {
                return Some(Self { transposed: false, leading, batch });
            }
        }
        let leading = leading(columns, along, rows);
        (down == 1 && leading >= rows).then_some(Self { transposed: true, leading, batch })
    }
}

/// A product in cuBLAS's words: column-major, so that `out = a·b` is `outᵀ = bᵀ·aᵀ` with each matrix read as it lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Call {
    /// Rows, columns and contracted length of outᵀ.
    shape: [i32; 3],
    /// bᵀ, then aᵀ: whether it is read transposed, the length of its columns, the distance of the next.
    factors: [(bool, i32, i64); 2],
    out: (i32, i64),
    batch: i32,
}

impl Call {
    /// # Errors
    /// Where matrices lie in a way that it does not read, or are longer than it counts.
    fn of(a: (&[usize], &[usize]), b: (&[usize], &[usize]), out: (&[usize], &[usize])) -> Result<Self, String> {
        let lies = |(shape, strides): (&[usize], &[usize])| {
            Lies::of(shape, strides)
                .ok_or_else(|| format!("{shape:?} with strides {strides:?} has gaps in rows and columns"))
        };
        let (first, second, target) = (lies(a)?, lies(b)?, lies(out)?);
        if target.transposed {
            return Err("the result is written row by row".to_owned());
        }
        let int = |n: usize| i32::try_from(n).map_err(|_| format!("{n} is more than it counts"));
        let long = |n: usize| i64::try_from(n).map_err(|_| format!("{n} is more than it counts"));
        let (&[.., m, k], &[.., n]) = (a.0, b.0) else { return Err("no matrices".to_owned()) };
        let factor = |lies: Lies| Ok::<_, String>((lies.transposed, int(lies.leading)?, long(lies.batch)?));
        Ok(Self {
            shape: [int(n)?, int(m)?, int(k)?],
            factors: [factor(second)?, factor(first)?],
            out: (int(target.leading)?, long(target.batch)?),
            batch: int(if let [batch, _, _] = a.0 { *batch } else { 1 })?,
        })
    }
}

fn kind(dtype: DType) -> Result<cudaDataType_t, String> {
    match dtype {
        DType::F32 => Ok(cudaDataType_t::CUDA_R_32F),
        DType::F16 => Ok(cudaDataType_t::CUDA_R_16F),
        DType::BF16 => Ok(cudaDataType_t::CUDA_R_16BF),
        other => Err(format!("no products of {other:?}")),
    }
}

/// A product: `out[rows] = scale·a[rows]·b`, or added to what `out` has, summed in f32.
#[derive(Debug)]
pub(crate) struct Asked<'a, R: CubeRuntime> {
    pub a: &'a CubeTensor<R>,
    pub b: &'a CubeTensor<R>,
    pub out: &'a CubeTensor<R>,
    /// Rows of `a` and of `out`.
    pub rows: Range<usize>,
    pub scale: f32,
    /// Whether it is added.
    pub onto: bool,
}

/// How a product is asked for: its call, number types, and how factors are rounded.
struct Prepared {
    call: Call,
    kinds: [cudaDataType_t; 3],
    compute: cublasComputeType_t,
}

impl<R: CubeRuntime> Asked<'_, R> {
    /// # Errors
    /// Where the matrices lie in a way that the library does not read.
    fn prepare(&self) -> Result<Prepared, String> {
        let Self { a, b, out, .. } = self;
        if width_of(a) == 0 {
            return Err("nothing to sum".to_owned());
        }
        let lies = |x: &CubeTensor<R>| (x.meta.shape().to_vec(), x.meta.strides().to_vec());
        let rows = |mut of: (Vec<usize>, Vec<usize>)| {
            let down = of.0.len() - 2;
            of.0[down] = self.rows.len();
            of
        };
        let (of_a, of_b, of_out) = (rows(lies(a)), lies(b), rows(lies(out)));
        let compute = match is_in_tf32() && a.dtype == DType::F32 && b.dtype == DType::F32 {
            true => cublasComputeType_t::CUBLAS_COMPUTE_32F_FAST_TF32,
            false => cublasComputeType_t::CUBLAS_COMPUTE_32F,
        };
        Ok(Prepared {
            call: Call::of((&of_a.0, &of_a.1), (&of_b.0, &of_b.1), (&of_out.0, &of_out.1))?,
            kinds: [kind(a.dtype)?, kind(b.dtype)?, kind(out.dtype)?],
            compute,
        })
    }

    /// Starts it on the library's stream.
    ///
    /// # Errors
    /// What the device or the library says; nothing was started then.
    fn start(&self, how: &Prepared, client: &ComputeClient<CudaRuntime>, library: &Library) -> Result<(), String> {
        let resource =
            |x: &CubeTensor<R>| client.get_resource(x.handle.clone()).map_err(|problem| format!("{problem:?}"));
        let (a, b, out) = (resource(self.a)?, resource(self.b)?, resource(self.out)?);
        let of_rows = |x: &CubeTensor<R>| {
            let strides = x.meta.strides();
            (self.rows.start * strides[strides.len() - 2] * x.dtype.size()) as u64
        };
        let at = |address: u64| address as *mut c_void;
        let transposed = |yes: bool| if yes { cublasOperation_t::CUBLAS_OP_T } else { cublasOperation_t::CUBLAS_OP_N };
        let Prepared { call, kinds, compute } = how;
        let ([rows, columns, length], [first, second]) = (call.shape, call.factors);
        let keep = if self.onto { 1.0f32 } else { 0.0 };
        // SAFETY: the buffers are the device's and hold what shapes and strides say; all of the context that is started after
        // this waits for it, so that what their memory is used for next comes after it too.
        let done = unsafe {
            cudarc::cublas::result::gemm_strided_batched_ex(
                library.handle,
                transposed(first.0),
                transposed(second.0),
                rows,
                columns,
                length,
                (&raw const self.scale).cast(),
                at(b.resource().ptr),
                kinds[1],
                first.1,
                first.2,
                at(a.resource().ptr + of_rows(self.a)),
                kinds[0],
                second.1,
                second.2,
                (&raw const keep).cast(),
                at(out.resource().ptr + of_rows(self.out)),
                kinds[2],
                call.out.0,
                call.out.1,
                call.batch,
                *compute,
                cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
            )
        };
        done.map_err(|e| format!("cuBLAS says {:?}", e.0))
    }
}

/// The client and the device of a tensor on a CUDA device.
fn cuda_of<R: CubeRuntime>(x: &CubeTensor<R>) -> Result<(&ComputeClient<CudaRuntime>, &CudaDevice), String> {
    let (client, device): (&dyn Any, &dyn Any) = (&x.client, &x.device);
    let cuda = client.downcast_ref::<ComputeClient<CudaRuntime>>().zip(device.downcast_ref::<CudaDevice>());
    cuda.ok_or_else(|| "no CUDA device".to_owned())
}

/// Whether products of what is beside a tensor are cuBLAS's.
pub(crate) fn multiplies<R: CubeRuntime>(x: &CubeTensor<R>) -> bool {
    cuda_of(x).and_then(|(_, device)| check(device)).is_ok()
}

/// Products on a CUDA device, started one after the other.
///
/// # Errors
/// Where the device is none, has no cuBLAS, or the matrices of one lie in a way that it does not read: nothing was started then.
///
/// # Panics
/// Where the device fails after the first.
pub(crate) fn multiply<R: CubeRuntime>(asked: &[Asked<'_, R>]) -> Result<(), String> {
    let asked = asked.iter().filter(|one| !one.rows.is_empty() && one.out.meta.num_elements() > 0);
    let prepared = asked.map(|one| one.prepare().map(|how| (one, how))).collect::<Result<Vec<_>, _>>()?;
    let Some((first, _)) = prepared.first() else { return Ok(()) };
    let (client, device) = cuda_of(first.out)?;
    check(device)?;
    let mut started = 0;
    let all = || {
        with_library(device.index, |library| {
            library.in_turn(|| {
                prepared.iter().try_for_each(|(one, how)| {
                    one.start(how, client, library)?;
                    started += 1;
                    Ok(())
                })
            })
        })
    };
    // on CubeCL's own thread, which has then started all that was asked of it before, and is asked once and not for every address
    let done = client.exclusive(all).unwrap_or_else(|problem| Err(format!("{problem:?}")));
    assert!(started == 0 || done.is_ok(), "a product on {device:?}: {}", done.unwrap_err());
    done
}

/// `out = scale·a·b`, or `out += scale·a·b`.
///
/// # Errors
/// As [`multiply()`] says.
pub(crate) fn product_into<R: CubeRuntime>(
    a: &CubeTensor<R>,
    b: &CubeTensor<R>,
    out: &CubeTensor<R>,
    scale: f32,
    onto: bool,
) -> Result<(), String> {
    let shape = out.meta.shape();
    let rows = 0..shape[shape.num_dims() - 2];
    multiply(&[Asked { a, b, out, rows, scale, onto }])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What cuBLAS is documented to do: `C = op(A)·op(B)` over column-major matrices.
    fn column_major(call: Call, first: &[f64], second: &[f64], out: &mut [f64]) {
        let size = |n: i32| usize::try_from(n).unwrap();
        let long = |n: i64| usize::try_from(n).unwrap();
        let [m, n, k] = call.shape.map(size);
        let entry = |of: &[f64], (transposed, leading, batch): (bool, i32, i64), i: usize, j: usize, b: usize| {
            let (i, j) = if transposed { (j, i) } else { (i, j) };
            of[b * long(batch) + j * size(leading) + i]
        };
        let [a, b] = call.factors;
        for of in 0..size(call.batch) {
            for i in 0..m {
                for j in 0..n {
                    out[of * long(call.out.1) + j * size(call.out.0) + i] =
                        (0..k).map(|l| entry(first, a, i, l, of) * entry(second, b, l, j, of)).sum();
                }
            }
        }
    }

    /// Shape and strides of a batch of matrices, with gaps between rows and matrices or stored transposed.
    fn placed(
        batch: usize,
        rows: usize,
        columns: usize,
        gap: usize,
        transposed: bool,
    ) -> ([usize; 3], [usize; 3], usize) {
        let (long, wide) = if transposed { (columns, rows) } else { (rows, columns) };
        let leading = wide + gap;
        let each = long * leading + gap;
        let strides = if transposed { [each, 1, leading] } else { [each, leading, 1] };
        ([batch, rows, columns], strides, batch * each)
    }

    proptest! {
        #[test]
        fn a_call_is_the_product_of_row_major_matrices(
            batch in 1usize..3, m in 1usize..4, k in 1usize..5, n in 1usize..4,
            gaps in [0usize..3, 0usize..3, 0usize..3], transposed: [bool; 2],
        ) {
            let (a, b) = (placed(batch, m, k, gaps[0], transposed[0]), placed(batch, k, n, gaps[1], transposed[1]));
            let out = placed(batch, m, n, gaps[2], false);
            let values = |len: usize, step: f64| (0..len).map(|i| (i as f64 * step).sin()).collect::<Vec<f64>>();
            let (left, right) = (values(a.2, 0.7), values(b.2, 1.3));
            let call = Call::of((&a.0, &a.1), (&b.0, &b.1), (&out.0, &out.1)).unwrap();
            let mut got = vec![f64::NAN; out.2];
            column_major(call, &right, &left, &mut got);
            let at = |strides: [usize; 3], of: usize, i: usize, j: usize| of * strides[0] + i * strides[1] + j * strides[2];
            for of in 0..batch {
                for i in 0..m {
                    for j in 0..n {
                        let want: f64 = (0..k).map(|l| left[at(a.1, of, i, l)] * right[at(b.1, of, l, j)]).sum();
                        prop_assert!((got[at(out.1, of, i, j)] - want).abs() < 1e-12);
                    }
                }
            }
        }
    }

    #[test]
    fn matrices_with_gaps_both_ways_are_refused() {
        let problem = Call::of((&[4, 4], &[16, 2]), (&[4, 4], &[4, 1]), (&[4, 4], &[4, 1])).unwrap_err();
        assert!(problem.contains("[16, 2]"), "{problem}");
    }
}
