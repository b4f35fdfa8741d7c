//! What a call would do, found without loading a model.
use crate::device::names;
use crate::error::Result;
use crate::model::Model;
use crate::placement::Placement;
use crate::rates;
use tanglescope_gram::{Batch, Count, Group, Request, batches_of, count, plan, token_passes};
use tanglescope_kernels::cost::Rates;
use tanglescope_model::{InScope, Keep, Outline};

/// What a pass over some rows takes.
#[derive(Clone, Debug)]
pub struct Estimate {
    /// Where it would run.
    pub device: String,
    /// Number type.
    pub dtype: &'static str,
    /// Rows of the data.
    pub groups: usize,
    /// Tokens of their prompts.
    pub prompt_tokens: usize,
    /// Tokens of all their responses.
    pub response_tokens: usize,
    /// Rows of the forward passes.
    pub forward_rows: usize,
    /// Rows of the backward passes.
    pub backward_rows: usize,
    /// Passes over the model.
    pub passes: usize,
    /// Most rows of a pass: forward ones, or backward ones of passes over single tokens.
    pub rows_per_pass: usize,
    /// Parameter tensors in scope.
    pub parameters: usize,
    /// The scope as given.
    pub scope: String,
    /// Floating-point operations, by stage.
    pub count: Count,
    /// What of the model would be where.
    pub placement: Placement,
    /// Transformer blocks of the model.
    pub layers: usize,
    /// Blocks whose activations are kept; those of the others are computed again.
    pub kept_layers: usize,
    /// Bytes of activations at the most.
    pub activation_bytes: usize,
    /// What the device does in a second.
    pub rates: Rates,
    /// Whether that was measured by `bench`.
    pub measured: bool,
    /// Seconds at the least, at those rates.
    pub seconds: f64,
}

/// The outline of a model, its parameters in scope, and where it would be placed.
pub(crate) struct Planned<'a> {
    pub model: &'a Model,
    pub outline: Outline,
    pub scope: InScope,
    pub placement: Placement,
}

impl<'a> Planned<'a> {
    /// Reads a model's outline.
    pub fn new(model: &'a Model) -> Result<Self> {
        Self::of(model, model.outline()?)
    }

    /// Of a model with a given outline.
    pub fn of(model: &'a Model, outline: Outline) -> Result<Self> {
        let scope = outline.in_scope(&model.scope)?;
        let placement = Placement::of(model, &outline);
        Ok(Self { model, outline, scope, placement })
    }

    /// What a pass over some groups takes, in batches of at most `rows` forward rows.
    pub fn groups(&self, groups: &[Group], rows: usize) -> Estimate {
        let requests = Request::all(groups);
        let batches = batches_of(groups, rows, 1).batches;
        let batches = batches.iter().map(|members| Batch::new(members.iter().map(|&g| &requests[g])));
        self.batches(groups, batches, rows)
    }

    /// What the token-level matrices of some groups take, in passes of at most `rows` backward rows.
    pub fn tokens(&self, groups: &[Group], rows: usize) -> Estimate {
        let passes = groups.iter().flat_map(|group| {
            token_passes(group, rows).into_iter().map(move |cotangents| Batch::new(&[Request { group, cotangents }]))
        });
        self.batches(groups, passes, rows)
    }

    fn batches(&self, groups: &[Group], batches: impl Iterator<Item = Batch>, rows_per_pass: usize) -> Estimate {
        let Self { model, outline, scope, placement } = self;
        let (dtype, of) = (model.dtype, &outline.description);
        let (rates, measured) = rates::of(&model.device, dtype);
        let (mut total, mut rows, mut widest, mut passes) = (Count::default(), [0, 0], [0, 0], 0);
        for batch in batches {
            total = total.plus(&count(outline, scope, &batch, dtype, &rates));
            let of = [batch.tokens.len(), batch.full.rows()];
            (rows, widest) = ([0, 1].map(|i| rows[i] + of[i]), [0, 1].map(|i| widest[i].max(of[i])));
            passes += 1;
        }
        let Keep::Top(kept) = plan::keep(of, dtype, widest[0], widest[1], placement.activations) else {
            unreachable!("a run keeps some of its blocks")
        };
        let (per_row, all) = (plan::least_bytes_per_row(of, dtype), plan::bytes_per_row(of, dtype));
        let forward = widest[0] * (per_row + (all - per_row) * kept / of.layers().max(1));
        // the backward rows of two cotangents are counted with the forward rows that they copy
        let beyond = widest[1].saturating_sub(2 * widest[0]) * plan::bytes_per_backward_row(of, dtype);
        Estimate {
            device: names(&model.devices),
            dtype: model.number_type(),
            groups: groups.len(),
            prompt_tokens: groups.iter().map(|g| g.prompt.len()).sum(),
            response_tokens: groups.iter().flat_map(|g| &g.responses).map(Vec::len).sum(),
            forward_rows: rows[0],
            backward_rows: rows[1],
            passes,
            rows_per_pass,
            parameters: scope.parameters.len(),
            scope: model.scope.to_string(),
            count: total,
            placement: *placement,
            layers: of.layers(),
            kept_layers: kept,
            activation_bytes: forward + beyond,
            rates,
            measured,
            seconds: total.seconds(&rates) / model.devices.len() as f64,
        }
    }
}
