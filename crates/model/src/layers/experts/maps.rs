//! Maps of experts: rows sorted by expert, multiplied in stretches.
use crate::layers::router::{BackwardRoutes, Routes};
use crate::layers::{Backward, Linear, dims};
use crate::sink::Factor;
use std::ops::Range;
use tanglescope_kernels::{FloatTensor, Kernels, RowSet, Stretch, Weight, as_index};

/// Rows of a matrix.
pub(super) fn slice<B: Kernels>(x: &FloatTensor<B>, rows: Range<usize>) -> FloatTensor<B> {
    B::gather(x, &rows.map(as_index).collect::<Vec<_>>(), None)
}

/// Inner product of each row of two matrices.
pub(super) fn row_products<B: Kernels>(a: FloatTensor<B>, b: FloatTensor<B>) -> Vec<f64> {
    let width = dims::<B>(&a)[1];
    let ones = B::upload_like(vec![1.0; width], &[width, 1], &a);
    B::download(&B::matmul(&B::times(a, b), &ones, false, 1.0, None))
}

/// The stretches of rows that some matrices have, where they are there.
pub(super) fn stretches<'a, B: Kernels>(
    matrices: impl Iterator<Item = Option<(Weight<'a, B>, f64)>>,
    offsets: &[usize],
) -> Vec<Stretch<'a, B>> {
    let of = |(matrix, ends): (Option<(Weight<'a, B>, f64)>, &[usize])| {
        let (w, scale) = matrix?;
        (ends[0] < ends[1]).then(|| Stretch { rows: ends[0]..ends[1], w, scale })
    };
    matrices.zip(offsets.windows(2)).filter_map(of).collect()
}

/// The maps' outputs for rows sorted by expert, and s·x·A where there are adapters.
pub(super) fn forward<B: Kernels>(
    maps: &[Linear<B>],
    x: &FloatTensor<B>,
    offsets: &[usize],
) -> (FloatTensor<B>, Option<FloatTensor<B>>) {
    let width = maps[0].weight.dims()[1];
    let weights = stretches(maps.iter().map(|map| Some((map.weight.weight(), 1.0))), offsets);
    let mut y = B::grouped(x, &weights, false, width, None);
    let biases: Vec<FloatTensor<B>> =
        maps.iter().filter_map(|map| Some(B::reshape(map.bias.clone()?, [1, width]))).collect();
    if !biases.is_empty() {
        // a bias is a map of the number one
        let rows = dims::<B>(x)[0];
        let ones = B::upload_like(vec![1.0; rows], &[rows, 1], x);
        y = B::grouped(
            &ones,
            &stretches(biases.iter().map(|bias| Some((Weight::Plain(bias), 1.0))), offsets),
            false,
            width,
            Some(y),
        );
    }
    let Some(rank) = rank(maps) else { return (y, None) };
    let a = maps.iter().map(|map| map.lora.as_ref().map(|lora| (Weight::Plain(&lora.a), lora.scale)));
    let low = B::grouped(x, &stretches(a, offsets), false, rank, None);
    let b = maps.iter().map(|map| map.lora.as_ref().map(|lora| (Weight::Plain(&lora.b), 1.0)));
    (B::grouped(&low, &stretches(b, offsets), false, width, Some(y)), Some(low))
}

/// Rank of the experts' adapters.
fn rank<B: Kernels>(maps: &[Linear<B>]) -> Option<usize> {
    maps.iter().find_map(|map| Some(dims::<B>(&map.lora.as_ref()?.a)[1]))
}

/// What the maps' output cotangents become on the way to their input, and to their parameters.
pub(super) struct Cotangent<'a, B: Kernels> {
    maps: &'a [Linear<B>],
    pub(super) delta: FloatTensor<B>,
    low: Option<&'a FloatTensor<B>>,
    /// s·δ·Bᵀ.
    low_delta: Option<FloatTensor<B>>,
    offsets: &'a [usize],
}

impl<'a, B: Kernels> Cotangent<'a, B> {
    pub(super) fn new(
        maps: &'a [Linear<B>],
        delta: FloatTensor<B>,
        low: Option<&'a FloatTensor<B>>,
        (input, offsets): (bool, &'a [usize]),
        pass: &Backward<'_, B>,
    ) -> Self {
        let wanted =
            |map: &Linear<B>| map.lora.as_ref().is_some_and(|lora| input || pass.scope.contains(&lora.a_name()));
        let low_delta = rank(maps).filter(|_| maps.iter().any(wanted)).map(|rank| {
            let b = maps.iter().map(|map| map.lora.as_ref().map(|lora| (Weight::Plain(&lora.b), lora.scale)));
            B::grouped(&delta, &stretches(b, offsets), true, rank, None)
        });
        Self { maps, delta, low, low_delta, offsets }
    }

    /// Cotangent of the input, plus `onto`.
    pub(super) fn input(&self, onto: Option<FloatTensor<B>>) -> FloatTensor<B> {
        let width = self.maps[0].weight.dims()[0];
        let weights = stretches(self.maps.iter().map(|map| Some((map.weight.weight(), 1.0))), self.offsets);
        let dx = B::grouped(&self.delta, &weights, true, width, onto);
        let Some(low_delta) = &self.low_delta else { return dx };
        let a = self.maps.iter().map(|map| map.lora.as_ref().map(|lora| (Weight::Plain(&lora.a), 1.0)));
        B::grouped(low_delta, &stretches(a, self.offsets), true, width, Some(dx))
    }
}

/// Delivers the parameters of maps of one input, expert by expert: `forward` are the sorted rows of the forward pass.
pub(super) fn deliver_experts<B: Kernels>(
    maps: &[&Cotangent<'_, B>],
    input: &FloatTensor<B>,
    forward: &Routes,
    backward: &BackwardRoutes,
    pass: &mut Backward<'_, B>,
) {
    let all = pass.rows;
    for expert in 0..backward.offsets.len() - 1 {
        let Some(rows) = rows_of(expert, forward, backward, all.here()) else { continue };
        let (own, inputs) = (backward.of_expert(expert), forward.of_expert(expert));
        let mut found: Vec<(String, FloatTensor<B>)> = Vec::new();
        for of in maps {
            let map = &of.maps[expert];
            if pass.scope.contains(&map.weight_name()) {
                found.push((map.weight_name(), slice::<B>(&of.delta, own.clone())));
            }
            if map.bias.is_some() && pass.scope.contains(&map.bias_name()) {
                pass.sink.vector(&map.bias_name(), &slice::<B>(&of.delta, own.clone()), &rows);
            }
            let Some(lora) = &map.lora else { continue };
            if let Some(low_delta) = of.low_delta.as_ref().filter(|_| pass.scope.contains(&lora.a_name())) {
                found.push((lora.a_name(), slice::<B>(low_delta, own.clone())));
            }
            if let Some(low) = of.low.filter(|_| pass.scope.contains(&lora.b_name())) {
                let delta = slice::<B>(&of.delta, own.clone());
                let factor = Factor { name: lora.b_name(), delta: &delta };
                pass.sink.linear(&slice::<B>(low, inputs.clone()), &[factor], &rows);
            }
        }
        if !found.is_empty() {
            let factors: Vec<Factor<'_, B>> =
                found.iter().map(|(name, delta)| Factor { name: name.clone(), delta }).collect();
            pass.sink.linear(&slice::<B>(input, inputs), &factors, &rows);
        }
    }
}

/// The backward rows of an expert over its own sorted rows; `None` where it has none.
pub(super) fn rows_of(expert: usize, forward: &Routes, backward: &BackwardRoutes, here: &RowSet) -> Option<RowSet> {
    let (own, first) = (backward.of_expert(expert), as_index(forward.of_expert(expert).start));
    (!own.is_empty()).then(|| RowSet {
        index: backward.places[own.clone()].iter().map(|&place| place - first).collect(),
        offsets: cotangent_offsets(&backward.rows[own], &here.offsets),
        sets: here.sets.clone(),
    })
}

/// First of each cotangent's rows among ascending backward rows, and their number.
fn cotangent_offsets(rows: &[u32], offsets: &[usize]) -> Vec<usize> {
    offsets.iter().map(|&offset| rows.partition_point(|&row| (row as usize) < offset)).collect()
}

/// Whether a parameter of a map is in scope.
pub(super) fn in_scope<B: Kernels>(map: &Linear<B>, pass: &Backward<'_, B>) -> bool {
    let of_adapter = map
        .lora
        .as_ref()
        .is_some_and(|lora| pass.scope.contains(&lora.a_name()) || pass.scope.contains(&lora.b_name()));
    let of_bias = map.bias.is_some() && pass.scope.contains(&map.bias_name());
    of_adapter || of_bias || pass.scope.contains(&map.weight_name())
}
