//! Stretch by stretch on a device.
use super::{Grouped, Stretch, reference};
use crate::on_chip::on_devices;
use crate::{Codes, FloatTensor};

on_devices! { Grouped, R {
    fn grouped(
        x: &FloatTensor<Self>,
        stretches: &[Stretch<'_, Self>],
        transposed: bool,
        width: usize,
        onto: Option<FloatTensor<Self>>,
    ) -> FloatTensor<Self> {
        let product = |x: &FloatTensor<Self>, of: &Stretch<'_, Self>| Self::matmul_with(x, &of.w, transposed, of.scale, None);
        reference::grouped::<Self>(x, stretches, width, onto, product)
    }
} }
