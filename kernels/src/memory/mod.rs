//! What is on a device, and how it gets there and back.
mod cpu;
mod launch;

use crate::{Backend, DType, Flex, FloatTensor, Shape, TensorData};

/// What waits until a device has done something, and says what of it failed.
pub type Done = Box<dyn FnOnce() -> Result<(), String> + Send>;

/// Copies between host and device, types, shapes, and waiting.
pub trait Memory: Backend {
    /// Waits until the device has done all that it was given.
    ///
    /// # Panics
    /// Where something of it failed, as reading does.
    fn wait(device: &Self::Device) {
        Self::done(device)().unwrap_or_else(|problem| panic!("{problem}"));
    }

    /// What waits, in any thread, until the device has done all that this thread has given it so far.
    #[must_use]
    fn done(device: &Self::Device) -> Done;

    /// Bytes of the device's memory that are in use, and that are reserved; `None` where it is the host's.
    fn memory_in_use(device: &Self::Device) -> Option<(u64, u64)>;

    /// Bytes of the largest tensor that the device takes; `None` where the memory is the only bound.
    fn largest(device: &Self::Device) -> Option<u64>;

    /// Copies host values to the device: numbers, or [words](crate::Coded).
    fn upload(values: TensorData, device: &Self::Device) -> FloatTensor<Self>;

    /// A tensor of the host on the device: in a number type, or a matrix as it is where products take that; [words](crate::Coded) as they
    /// are.
    fn from_host(x: &FloatTensor<Flex>, dtype: DType, device: &Self::Device) -> FloatTensor<Self>;

    /// Tensors of the host on the device as [`from_host`](Self::from_host) copies them, beside other work: in a stream that copies have for themselves, and from
    /// memory that the device reads by itself where the runtime has some. Memory of such a tensor may be used again while the device reads it, so that it has to be
    /// kept until what uses it is [done](Self::done).
    ///
    /// # Errors
    /// What failed of earlier ones.
    fn copied(all: &[FloatTensor<Flex>], dtype: DType, device: &Self::Device)
    -> Result<Vec<FloatTensor<Self>>, String>;

    /// A tensor on the host, in a number type; [words](crate::Coded) as they are.
    fn to_host(x: &FloatTensor<Self>, dtype: DType) -> FloatTensor<Flex>;

    /// Copies host values to where another tensor is, in its type, as a tensor of a shape.
    fn upload_like(values: Vec<f64>, shape: &[usize], like: &FloatTensor<Self>) -> FloatTensor<Self>;

    /// Copies a tensor to the host, as f64.
    fn download(x: &FloatTensor<Self>) -> Vec<f64>;

    /// The type for what is carried from row to row, where roundings add up: f64 on the CPU, f32 on a device.
    fn carried() -> DType;

    /// The tensor in another number type.
    fn cast(x: FloatTensor<Self>, dtype: DType) -> FloatTensor<Self>;

    /// Whether products take matrices of weights in a type narrower than that of the other factor, as they are stored.
    fn takes_stored(dtype: DType) -> bool;

    /// Whether tensors are used where they lie in the host's memory.
    #[must_use]
    fn is_host() -> bool {
        false
    }

    /// The transpose of a matrix, row by row.
    fn turned(x: &FloatTensor<Self>) -> FloatTensor<Self>;

    /// The same values in another shape.
    fn reshape(x: FloatTensor<Self>, shape: impl Into<Shape>) -> FloatTensor<Self>;
}
