//! What of a model is where, and how much of it runs together.
use crate::model::Model;
use tanglescope_gram::plan;
use tanglescope_model::Outline;

/// What of a model is where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placement {
    /// Bytes of all weights.
    pub weights: usize,
    /// Transformer blocks whose weights stay on the device.
    pub resident: usize,
    /// Bytes that the activations of a batch may take; `None` where that is not known.
    pub activations: Option<usize>,
    /// Batches that run side by side.
    pub at_once: usize,
}

impl Placement {
    /// Places a model: weights first, in at most 70 % of a device's memory, and activations in what that leaves.
    pub(crate) fn of(model: &Model, outline: &Outline) -> Self {
        let (outside, block) = outline.values();
        let (outside, block) = (outside * model.dtype.size(), block * model.dtype.size());
        let layers = outline.description.layers();
        let weights = outside + block * layers;
        if model.device.is_cpu() {
            let mut system = sysinfo::System::new();
            system.refresh_memory();
            // half of what is free: estimates leave out small things, and the machine may have other work
            let free = usize::try_from(system.available_memory()).unwrap_or(usize::MAX).saturating_sub(weights) / 2;
            let (at_once, activations) = (plan::BATCHES_IN_FLIGHT, model.memory.unwrap_or(free));
            return Self { weights, resident: layers, activations: Some(activations / at_once), at_once };
        }
        let at_once = plan::BATCHES_IN_FLIGHT_ON_DEVICE;
        // a tenth is left to the driver and to what kernels need in passing
        let Some(memory) = model.memory.or_else(|| Some(model.device.memory()? / 10 * 9)) else {
            return Self { weights, resident: layers, activations: None, at_once };
        };
        let room = memory / 10 * 7;
        let resident = if weights <= room { layers } else { room.saturating_sub(outside) / block.max(1) };
        let resident = resident.min(layers);
        Self { weights, resident, activations: Some(memory.saturating_sub(outside + block * resident)), at_once }
    }

    /// Backward rows that a pass over single tokens may have.
    pub(crate) fn backward_rows(&self, model: &Model, outline: &Outline) -> usize {
        let bytes = self.activations.unwrap_or(usize::MAX);
        (bytes / plan::bytes_per_backward_row(&outline.description, model.dtype)).clamp(1, plan::ENOUGH_BACKWARD_ROWS)
    }

    /// Forward rows that a batch may have.
    pub(crate) fn rows_per_batch(&self, model: &Model, outline: &Outline) -> usize {
        let of = &outline.description;
        let enough = if model.device.is_cpu() { plan::enough_rows(of) } else { plan::ENOUGH_ROWS_ON_DEVICE };
        let bytes = self.activations.unwrap_or(usize::MAX);
        (bytes / plan::bytes_per_row(of, model.dtype).max(1)).clamp(1, enough)
    }
}
