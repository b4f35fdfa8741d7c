//! Where the weights of blocks are: on the device, or in the host's memory until they are used.
use crate::layers::{Block, Visitor};
use tanglescope_kernels::{DType, Flex, FlexDevice, FloatTensor, Kernels, Memory, TensorData, TensorMetadata};

/// A block, wherever its weights are.
#[derive(Clone, Debug)]
pub(crate) enum Residence<B: Kernels> {
    /// On the device.
    Device(Box<Block<B>>),
    /// In the host's memory; copied to the device for each use.
    Host(Box<Block<Flex>>),
}

/// A block that is on the device for now.
pub(crate) enum OnDevice<'a, B: Kernels> {
    /// As it stays there.
    Resident(&'a Block<B>),
    /// A copy of the host's.
    Copied(Box<Block<B>>),
}

impl<B: Kernels> std::ops::Deref for OnDevice<'_, B> {
    type Target = Block<B>;

    fn deref(&self) -> &Block<B> {
        match self {
            Self::Resident(block) => block,
            Self::Copied(block) => block,
        }
    }
}

/// A tensor of the host, on the device.
fn to_device<B: Kernels>(x: &FloatTensor<Flex>, dtype: DType, device: &B::Device) -> FloatTensor<B> {
    B::upload(x.clone().into_data().convert_dtype(dtype), device)
}

impl<B: Kernels> Residence<B> {
    /// The block, on the device.
    pub fn on_device(&self, dtype: DType, device: &B::Device) -> OnDevice<'_, B> {
        match self {
            Self::Device(block) => OnDevice::Resident(block),
            Self::Host(block) => OnDevice::Copied(Box::new(block.convert(&|x| to_device::<B>(x, dtype, device)))),
        }
    }

    /// Shows every part of the block as it is on the device, and keeps what was changed.
    pub fn visit(&mut self, dtype: DType, device: &B::Device, f: &mut Visitor<'_, B>) {
        match self {
            Self::Device(block) => block.visit(f),
            Self::Host(block) => {
                let mut copy: Block<B> = block.convert(&|x| to_device::<B>(x, dtype, device));
                copy.visit(f);
                let host = |x: &FloatTensor<B>| {
                    let values = TensorData::new(B::download(x), x.shape());
                    Flex::upload(values.convert_dtype(dtype), &FlexDevice)
                };
                **block = copy.convert(&host);
            }
        }
    }
}
