//! Walks over the parameters of a decoder: their names, their tensors, and a copy a step away.
use crate::decoder::Decoder;
use crate::error::Result;
use crate::layers::{Block, FusedLora, Linear, Lora, Matrix, Norm, Part, whole};
use crate::outline;
use crate::scope::{InScope, Parameter, ParameterKind, Scope};
use std::collections::HashMap;
use tanglescope_kernels::{DType, FloatTensor, Kernels};

impl<B: Kernels> Decoder<B> {
    /// All parameters, base and adapter, in the order of the forward pass.
    #[must_use]
    pub fn parameters(&self) -> Vec<Parameter> {
        let mut all = outline::parameters(&self.description, &self.maps, (&self.fused, &self.tables_outline));
        for parameter in all.iter_mut().filter(|parameter| parameter.kind == ParameterKind::Base) {
            let prefix = if self.bare { &*self.description.names.prefix } else { "" };
            if let Some(name) = parameter.name.strip_prefix(prefix) {
                parameter.name = name.to_owned();
            }
            if let Some(module) = parameter.module.strip_prefix(prefix).filter(|_| parameter.layer.is_none()) {
                parameter.module = module.to_owned();
            }
            if self.saved.contains(&parameter.name) {
                parameter.kind = ParameterKind::Saved;
            }
        }
        all
    }

    /// The parameters that a scope selects.
    ///
    /// # Errors
    /// Where it selects none.
    pub fn in_scope(&self, scope: &Scope) -> Result<InScope> {
        let chosen = InScope::select(scope, self.parameters(), self.head_name())?;
        self.tables_outline.refuse_replaced(&chosen, scope)?;
        Ok(chosen)
    }

    /// Calls a function with every parameter's name, whether it is a low-rank factor, and its tensor (matrices of
    /// linear maps as `[in, out]`); those of blocks that are in files where one of theirs is `wanted`, which are then kept in memory, and
    /// those that are codes where they are wanted themselves, which are then numbers.
    pub fn visit(&mut self, wanted: &dyn Fn(&str) -> bool, f: &mut NamedVisitor<'_, B>) {
        let widened: Widened<'_> = (self.dtype, wanted);
        visit_matrix(&self.embedding.name, &mut self.embedding.table, widened, f);
        self.tables.visit(f);
        if let Some(positions) = &mut self.positions {
            visit_matrix(&positions.name, &mut positions.table, widened, f);
        }
        if let Some(inputs) = &mut self.per_layer {
            visit_matrix(&inputs.table.name, &mut inputs.table.table, widened, f);
            visit_linear(&mut inputs.projection, widened, f);
            visit_norm(&mut inputs.norm, f);
        }
        let (dtype, device) = (self.dtype, &self.device);
        for block in &mut self.blocks {
            block.visit((dtype, device), wanted, f);
        }
        visit_norm(&mut self.final_norm, f);
        if let Some(head) = &mut self.head {
            visit_matrix(&head.name, &mut head.table, widened, f);
        }
        if let Some(bias) = &mut self.head_bias {
            f(&bias.name.clone(), false, &mut bias.values);
        }
    }

    /// The model a step away from this one: `θ + step·direction` for every parameter in scope.
    ///
    /// `direction` has a tensor for each name, in the shape that [`visit`](Self::visit) shows.
    #[must_use]
    pub fn moved(&self, scope: &InScope, direction: &HashMap<String, FloatTensor<B>>, step: f64) -> Self {
        let mut moved = self.clone();
        if scope.head_only() && moved.head.is_none() {
            // the logits part of a tied matrix alone: a head of its own, which starts as the embedding
            moved.head = Some(moved.embedding.clone());
            moved.embedding.name.clear();
        }
        moved.visit(&|name| scope.contains(name), &mut |name, _, tensor| {
            if let Some(direction) = direction.get(name).filter(|_| scope.contains(name)) {
                *tensor = B::add_scaled(B::cast(tensor.clone(), self.dtype), direction, step);
            }
        });
        moved
    }
}

/// Takes parameters one by one: name, whether it is a low-rank factor, tensor.
pub type NamedVisitor<'a, B> = dyn FnMut(&str, bool, &mut FloatTensor<B>) + 'a;

/// The number type of what is widened, and which tensors are, by their whole names.
pub(crate) type Widened<'a> = (DType, &'a dyn Fn(&str) -> bool);

/// Calls a function with every parameter of a block, those that are codes only where they are widened.
pub(crate) fn visit_block<B: Kernels>(block: &mut Block<B>, widened: Widened<'_>, f: &mut NamedVisitor<'_, B>) {
    block.visit(&mut |part| match part {
        Part::Linear(map) | Part::Expert(map) => visit_linear(map, widened, f),
        Part::Fused(fused) => fused.iter_mut().flatten().for_each(|fused| visit_fused(fused, f)),
        Part::Norm(norm) => visit_norm(norm, f),
        Part::Vector(vector) => f(&vector.name.clone(), false, &mut vector.values),
    });
}

/// Calls a function with a matrix, where it is numbers or is to become them.
fn visit_matrix<B: Kernels>(
    name: &str,
    matrix: &mut Matrix<B>,
    (dtype, wanted): Widened<'_>,
    f: &mut NamedVisitor<'_, B>,
) {
    if matches!(matrix, Matrix::Plain(_)) || wanted(whole(name)) {
        f(name, false, matrix.widened(dtype));
    }
}

fn visit_linear<B: Kernels>(map: &mut Linear<B>, widened: Widened<'_>, f: &mut NamedVisitor<'_, B>) {
    let (weight_name, bias_name) = (map.weight_name(), map.bias_name());
    visit_matrix(&weight_name, &mut map.weight, widened, f);
    if let Some(bias) = &mut map.bias {
        f(&bias_name, false, bias);
    }
    if let Some(lora) = &mut map.lora {
        visit_lora(lora, f);
        if let Some(magnitude) = &mut lora.magnitude {
            magnitude.renew(&map.weight, [&lora.a, &lora.b], lora.scale);
        }
    }
}

pub(crate) fn visit_lora<B: Kernels>(lora: &mut Lora<B>, f: &mut NamedVisitor<'_, B>) {
    let (a_name, b_name, magnitude_name) = (lora.a_name(), lora.b_name(), lora.magnitude_name());
    f(&a_name, true, &mut lora.a);
    f(&b_name, true, &mut lora.b);
    if let Some(magnitude) = &mut lora.magnitude {
        f(&magnitude_name, true, &mut magnitude.values);
    }
}

pub(crate) fn visit_fused<B: Kernels>(fused: &mut FusedLora<B>, f: &mut NamedVisitor<'_, B>) {
    for expert in 0..fused.a.len() {
        f(&fused.a_name(expert), true, &mut fused.a[expert]);
        for piece in 0..fused.b.len() {
            f(&fused.b_name(expert, piece), true, &mut fused.b[piece][expert]);
        }
    }
}

fn visit_norm<B: Kernels>(norm: &mut Norm<B>, f: &mut NamedVisitor<'_, B>) {
    if norm.gain_name.is_empty() {
        return;
    }
    let bias_name = norm.bias_name();
    f(&norm.gain_name, false, &mut norm.gain);
    if let Some(bias) = &mut norm.bias {
        f(&bias_name, false, bias);
    }
}
