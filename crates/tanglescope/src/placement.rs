//! What of a model is where, and how much of it runs together.
use crate::device::Device;
use crate::model::Model;
use std::path::Path;
use tanglescope_gram::plan;
use tanglescope_kernels::Kernels;
use tanglescope_model::{Decoder, Outline, Places};

/// What of a model is where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placement {
    /// Bytes of all weights.
    pub weights: usize,
    /// Transformer blocks whose weights stay on the device, and in the host's memory beside it; the others are in the checkpoint's files.
    pub places: Places,
    /// Bytes that weights take at the same time, those of a block in files at work and of the next among them.
    pub held: usize,
    /// Bytes that the activations of a batch may take; `None` where that is not known.
    pub activations: Option<usize>,
    /// Batches that run side by side.
    pub at_once: usize,
}

/// Blocks that come and go which are in memory together: the one at work, and the next.
const AHEAD: usize = 2;

/// Bytes that the program itself takes, and reading.
const OVERHEAD: usize = 128 << 20;

/// Bytes of the host's memory that are free.
fn free() -> usize {
    let mut system = sysinfo::System::new();
    system.refresh_memory();
    usize::try_from(system.available_memory()).unwrap_or(usize::MAX)
}

/// Bytes of the smallest device's memory, where the driver says of each: devices that share the work go by one plan.
fn least_memory(devices: &[Device]) -> Option<usize> {
    devices.iter().map(Device::memory).collect::<Option<Vec<_>>>()?.into_iter().min()
}

/// Backward rows that the largest tensor of the device has room for.
fn most_backward_rows(model: &Model, outline: &Outline) -> usize {
    let bytes = plan::widest_bytes_per_backward_row(&outline.description, model.dtype);
    let largest = model.device.largest().and_then(|bytes| usize::try_from(bytes).ok());
    (largest.unwrap_or(usize::MAX) / bytes).max(1)
}

/// Bytes that are free on the disk of a folder; none where that is not known.
pub(crate) fn free_on_disk(folder: &Path) -> usize {
    let folder = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
    let disks = sysinfo::Disks::new_with_refreshed_list();
    let of = disks.iter().filter(|disk| folder.starts_with(disk.mount_point()));
    let nearest = of.max_by_key(|disk| disk.mount_point().components().count());
    nearest.map_or(0, |disk| usize::try_from(disk.available_space()).unwrap_or(usize::MAX))
}

/// Bytes that weights take where some blocks stay and the others are read.
fn with_reading([outside, block]: [usize; 2], stay: usize) -> usize {
    OVERHEAD + outside + block * (stay + AHEAD)
}

impl Placement {
    /// Places a model: weights first, in at most 70 % of the memory, and activations in what that leaves.
    pub(crate) fn of(model: &Model, outline: &Outline) -> Self {
        let layers = outline.description.layers();
        // where not all blocks stay: of as many rows as a pass takes at the most
        let rows = plan::ENOUGH_ROWS_OF_COPIES * plan::least_bytes_per_row(&outline.description, model.dtype);
        if model.device.is_cpu() {
            return Self::on_cpu(model, model.bytes_of_weights(outline, true), layers, rows);
        }
        let [outside, block] = model.bytes_of_weights(outline, false);
        let weights = outside + block * layers;
        let at_once = plan::BATCHES_IN_FLIGHT_ON_DEVICE;
        // a tenth is left to the driver and to what kernels need in passing
        let Some(memory) = model.memory.or_else(|| Some(least_memory(&model.devices)? / 10 * 9)) else {
            let places = Places { device: layers, host: 0 };
            return Self { weights, places, held: weights, activations: None, at_once };
        };
        let device = if weights <= memory / 10 * 7 {
            layers
        } else {
            // rows before blocks: a pass over more of them saves more copying than a block that stays
            let room = memory.saturating_sub(outside + block * AHEAD + rows);
            (room / block.max(1)).min(layers.saturating_sub(1))
        };
        let held = outside + block * if device < layers { device + AHEAD } else { layers };
        let on_host = || {
            let [_, of_host] = model.bytes_of_weights(outline, true);
            // each device has blocks of its own there, and those that are on their way
            let blocks = free() / model.devices.len() / 10 * 7 / of_host.max(1);
            blocks.saturating_sub(AHEAD).min(layers - device)
        };
        let host = if device < layers { on_host() } else { 0 };
        let places = Places { device, host };
        Self { weights, places, held, activations: Some(memory.saturating_sub(held)), at_once }
    }

    /// The same on the processor, from bytes of what is outside the blocks and of the largest block, and of as many rows as a pass takes at
    /// the most where blocks are read from files.
    fn on_cpu(model: &Model, [outside, block]: [usize; 2], layers: usize, rows: usize) -> Self {
        let weights = outside + block * layers;
        let memory = model.memory.unwrap_or_else(free);
        if weights <= memory / 10 * 7 {
            // estimates leave out small things, and where no bound is given the machine may have other work
            let left = (memory - weights) / if model.memory.is_some() { 1 } else { 2 };
            let (at_once, places) = (plan::BATCHES_IN_FLIGHT, Places { device: layers, host: 0 });
            return Self { weights, places, held: weights, activations: Some(left / at_once), at_once };
        }
        // rows before blocks: a pass over more of them saves more reading than a block that stays
        let room = memory.saturating_sub(with_reading([outside, block], 0) + rows);
        let device = (room / block.max(1)).min(layers.saturating_sub(1));
        let held = with_reading([outside, block], device);
        let places = Places { device, host: 0 };
        Self { weights, places, held, activations: Some(memory.saturating_sub(held)), at_once: 1 }
    }

    /// Where a model that is loaded is, and what that leaves: its weights are no longer free memory.
    pub(crate) fn of_loaded<B: Kernels>(model: &Model, outline: &Outline, loaded: &Decoder<B>) -> Self {
        if !model.device.is_cpu() {
            return Self::of(model, outline);
        }
        let (places, layers) = (loaded.places(), outline.description.layers());
        let [outside, block] = model.bytes_of_weights(outline, true);
        let weights = outside + block * layers;
        let (held, at_once) = match places.device < layers {
            true => (with_reading([outside, block], places.device), 1),
            false => (weights, plan::BATCHES_IN_FLIGHT),
        };
        let left = model.memory.map_or_else(|| free() / 2, |memory| memory.saturating_sub(held));
        Self { weights, places, held, activations: Some(left / at_once), at_once }
    }

    /// The same with half of the memory for activations left to gradients that are kept.
    #[must_use]
    pub(crate) fn beside_gradients(self) -> Self {
        Self { activations: self.activations.map(|bytes| bytes / 2), ..self }
    }

    /// Bytes that gradients may take which are kept, beside a loaded model and its batches of some forward rows.
    pub(crate) fn left_for_gradients(&self, model: &Model, outline: &Outline, rows: usize) -> usize {
        let batches = rows * self.row(model, outline).0 * self.at_once;
        let memory = match (model.memory, self.activations) {
            (Some(memory), _) => memory.saturating_sub(self.held),
            (None, Some(activations)) if !model.device.is_cpu() => 2 * activations,
            // the machine may have other work
            _ => free() / 10 * 7,
        };
        memory.saturating_sub(batches)
    }

    /// Blocks that are read from the checkpoint's files whenever they are used.
    #[must_use]
    pub fn in_files(&self, layers: usize) -> usize {
        layers.saturating_sub(self.places.device.saturating_add(self.places.host))
    }

    /// Backward rows that a pass over single tokens may have.
    pub(crate) fn backward_rows(&self, model: &Model, outline: &Outline) -> usize {
        let bytes = self.activations.unwrap_or(usize::MAX);
        let enough = plan::ENOUGH_BACKWARD_ROWS.min(most_backward_rows(model, outline));
        (bytes / plan::bytes_per_backward_row(&outline.description, model.dtype)).clamp(1, enough)
    }

    /// Forward rows that a batch may have.
    pub(crate) fn rows_per_batch(&self, model: &Model, outline: &Outline) -> usize {
        let (per_row, enough) = self.row(model, outline);
        let enough = enough.min((most_backward_rows(model, outline) / plan::BACKWARD_ROWS_PER_ROW).max(1));
        (self.activations.unwrap_or(usize::MAX) / per_row.max(1)).clamp(1, enough)
    }

    /// Bytes that a forward row takes, and rows beyond which more are not worth it.
    fn row(&self, model: &Model, outline: &Outline) -> (usize, usize) {
        let of = &outline.description;
        if self.places.device < of.layers() {
            // reading and copying are paid once a pass, so that a pass takes all rows that fit
            return (plan::least_bytes_per_row(of, model.dtype), plan::ENOUGH_ROWS_OF_COPIES);
        }
        let enough = if model.device.is_cpu() { plan::enough_rows(of) } else { plan::ENOUGH_ROWS_ON_DEVICE };
        (plan::bytes_per_row(of, model.dtype), enough)
    }
}
