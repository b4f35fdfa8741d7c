//! Grams whose partial sums are still in a device's memory: nothing waits for a device inside a pass.
use crate::on_chip::contiguous;
use crate::{Gram, RowSet};
use burn_cubecl::{CubeRuntime, tensor::CubeTensor};
use cubecl::prelude::ComputeClient;
use cubecl::server::Handle;
use std::iter::StepBy;
use std::ops::Range;

/// Where an inner product belongs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Entry {
    /// Set of cotangents.
    pub set: usize,
    /// First cotangent, from the set's first on.
    pub i: usize,
    /// Second cotangent.
    pub j: usize,
    /// How often it counts, shared equally between `[i, j]` and `[j, i]`.
    pub weight: f64,
}

/// Partial sums in f32 on a device, and what they are summed to, in f64, on the host.
pub struct Pending<R: CubeRuntime> {
    /// Cotangents of each set.
    sizes: Vec<usize>,
    client: Option<ComputeClient<R>>,
    buffers: Vec<(Handle, usize)>,
    /// Buffer, places in it, where their sum belongs.
    sums: Vec<(usize, StepBy<Range<usize>>, Entry)>,
    /// Buffers that hold parts of whole Grams.
    wholes: Vec<Whole>,
}

/// A buffer of square matrices one after the other, whose sum is the Gram of some of a set's cotangents.
#[derive(Clone, Debug)]
struct Whole {
    buffer: usize,
    set: usize,
    /// The cotangent of each row and column, from the set's first on.
    cotangents: Vec<usize>,
}

impl<R: CubeRuntime> std::fmt::Debug for Pending<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pending").field("sizes", &self.sizes).field("sums", &self.sums.len()).finish_non_exhaustive()
    }
}

impl<R: CubeRuntime> Pending<R> {
    /// Grams of zero.
    pub(crate) fn nothing(rows: &RowSet) -> Self {
        Self {
            sizes: rows.sets.iter().map(Range::len).collect(),
            client: None,
            buffers: Vec::new(),
            sums: Vec::new(),
            wholes: Vec::new(),
        }
    }

    /// Grams of some of a set's cotangents (by their place in it), whose parts are `[…, K, K]`.
    pub(crate) fn matrices(rows: &RowSet, parts: &CubeTensor<R>, set: usize, cotangents: Vec<usize>) -> Self {
        // what burn allocates itself may have gaps between rows
        let parts = contiguous(parts);
        let whole = Whole { buffer: 0, set, cotangents };
        let len = parts.meta.num_elements();
        Self { wholes: vec![whole], ..Self::new(rows, parts.client.clone(), parts.handle.clone(), len) }
    }

    /// Grams whose partial sums are in a buffer of `len` values.
    pub(crate) fn new(rows: &RowSet, client: ComputeClient<R>, partials: Handle, len: usize) -> Self {
        Self { client: Some(client), buffers: vec![(partials, len)], ..Self::nothing(rows) }
    }

    /// Says what some of the last buffer's partial sums sum up to: `count` of them from `first` on, `step` apart.
    pub(crate) fn add(&mut self, entry: Entry, first: usize, count: usize, step: usize) {
        let places = (first..first + count * step).step_by(step);
        self.sums.push((self.buffers.len().saturating_sub(1), places, entry));
    }

    /// The sum of two.
    pub(crate) fn plus(mut self, other: Self) -> Self {
        let first = self.buffers.len();
        self.client = self.client.or(other.client);
        self.buffers.extend(other.buffers);
        self.sums.extend(other.sums.into_iter().map(|(buffer, places, entry)| (first + buffer, places, entry)));
        self.wholes.extend(other.wholes.into_iter().map(|whole| Whole { buffer: first + whole.buffer, ..whole }));
        self
    }

    /// Bytes of partial sums that it keeps.
    pub(crate) fn bytes(&self) -> usize {
        self.buffers.iter().map(|(_, len)| len * size_of::<f32>()).sum()
    }

    /// Waits for the device and sums up.
    pub(crate) fn collect(self) -> Vec<Gram> {
        let mut grams: Vec<Gram> = self.sizes.iter().map(|k| vec![0.0; k * k]).collect();
        let Some(client) = self.client else { return grams };
        let handles = self.buffers.iter().map(|(handle, _)| handle.clone()).collect();
        let buffers = client.read(handles);
        let buffers: Vec<Vec<f32>> = buffers.iter().map(|bytes| bytemuck::pod_collect_to_vec(bytes)).collect();
        for (buffer, places, Entry { set, i, j, weight }) in self.sums {
            let sum: f64 = weight * places.map(|at| f64::from(buffers[buffer][at])).sum::<f64>();
            let (k, gram) = (self.sizes[set], &mut grams[set]);
            if i == j {
                gram[i * k + i] += sum;
            } else {
                gram[i * k + j] += sum / 2.0;
                gram[j * k + i] += sum / 2.0;
            }
        }
        for Whole { buffer, set, cotangents } in self.wholes {
            let (k, gram, size) = (self.sizes[set], &mut grams[set], cotangents.len());
            for part in buffers[buffer].chunks_exact((size * size).max(1)) {
                for (row, &i) in part.chunks_exact(size).zip(&cotangents) {
                    // a product may round the two triangles apart
                    for (&value, &j) in row.iter().zip(&cotangents) {
                        gram[i * k + j] += f64::from(value) / 2.0;
                        gram[j * k + i] += f64::from(value) / 2.0;
                    }
                }
            }
        }
        grams
    }
}
