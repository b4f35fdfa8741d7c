//! What a backward pass has to compute for a scope: decided once, from the description and the parameters in scope, and read by
//! the backward pass and by the count of its operations.
use crate::architectures::{DeltaKind, Description, ExpertsKind, LatentKind, PerLayerKind, Reads};
use crate::layers::whole;
use crate::scope::{InScope, Location};
use std::collections::BTreeSet;

/// What a backward pass has to compute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Needs {
    /// Cotangents of the rows that the embeddings gave: one of their tables is in scope, and not as the output matrix alone.
    pub embeddings: bool,
    /// Cotangents of what each block reads of a token beside the residual stream: the embedding is in scope, or what those come from.
    pub by_token: bool,
    /// The final norm's gain or bias is in scope, or something below it is.
    pub final_norm: bool,
    /// Of each block.
    pub blocks: Vec<BlockNeeds>,
}

/// What the vjp of a block has to compute.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BlockNeeds {
    /// Of attention, with the norms around it.
    pub mixer: LayerNeeds,
    /// Of the feed-forward layer, with the norms around it.
    pub mlp: LayerNeeds,
    /// Of what it reads of each token beside the residual stream, with the norm behind it.
    pub per_layer: LayerNeeds,
}

/// Which cotangents the vjp of a layer, with the norms around it, forms; each implies those before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LayerNeeds {
    /// Of its output: it runs at all.
    pub output: bool,
    /// Of what its last linear map reads: the attention output, or the hidden values of the feed-forward layer.
    pub hidden: bool,
    /// Of what lies between its first linear maps and those that read them, in attention by way of latents; elsewhere the same as
    /// `hidden`.
    pub latent: bool,
    /// Of what its first linear maps read.
    pub input: bool,
    /// Of the residual stream that its norm reads.
    pub stream: bool,
}

impl LayerNeeds {
    /// `below`: something below the layer is needed; the others: something is in scope among the norm before the layer, the
    /// maps and norms between that and what the last map reads, and the rest.
    #[allow(clippy::fn_params_excessive_bools)] // one for each part that can be in scope
    fn new(below: bool, norm: bool, first: bool, last: bool) -> Self {
        let input = below || norm;
        let hidden = input || first;
        Self { output: hidden || last, hidden, latent: hidden, input, stream: below }
    }

    /// The same where the maps behind latents are not among what makes their cotangents needed.
    fn with_latents(self, wanted: bool) -> Self {
        Self { latent: self.input || wanted, ..self }
    }
}

impl BlockNeeds {
    /// Whether the block's vjp runs at all.
    pub(crate) fn any(self) -> bool {
        self.mixer.output || self.mlp.output || self.per_layer.output
    }
}

impl Needs {
    /// What a scope needs of a model.
    #[must_use]
    pub fn of(description: &Description, scope: &InScope) -> Self {
        let mut wanted: Vec<BTreeSet<&str>> = vec![BTreeSet::new(); description.layers()];
        let (mut embeddings, mut by_token, mut final_norm) = (false, false, false);
        for parameter in &scope.parameters {
            match (parameter.location, parameter.layer) {
                (Location::Block, Some(layer)) => drop(wanted[layer].insert(&parameter.module)),
                (Location::Embedding, _) => embeddings |= !scope.head_only(),
                (Location::PerLayerInputs, _) => by_token = true,
                (Location::FinalNorm, _) => final_norm = true,
                _ => {}
            }
        }
        by_token |= embeddings && description.per_layer.is_some();
        let mut below = embeddings;
        let mut blocks = Vec::with_capacity(wanted.len());
        for (layer, wanted) in wanted.iter().enumerate() {
            let needs = block_needs(description, layer, wanted, (below, by_token));
            below |= needs.any();
            blocks.push(needs);
        }
        Self { embeddings, by_token, final_norm: final_norm || below, blocks }
    }

    /// The lowest block whose vjp runs.
    pub(crate) fn lowest(&self) -> Option<usize> {
        self.blocks.iter().position(|needs| needs.any())
    }
}

/// The needs of one block: `wanted` are its modules in scope; `below` says whether a cotangent is needed below it, `by_token` whether that of
/// what it reads of each token is.
fn block_needs(
    description: &Description,
    layer: usize,
    wanted: &BTreeSet<&str>,
    (below, by_token): (bool, bool),
) -> BlockNeeds {
    let names = &description.names;
    let norm = |name: Option<&str>| name.is_some_and(|name| wanted.contains(name));
    let maps = |reads: Reads| {
        !wanted.is_empty() && description.maps_of(layer, reads).any(|name| wanted.contains(whole(&name)))
    };
    // between what a mixer's first maps read and what its last one reads
    let inside =
        names.query_key_norms.into_iter().flatten().chain(names.sinks).chain(DeltaKind::NAMES).chain(LatentKind::NORMS);
    let inside = inside.filter(|name| *name != DeltaKind::NAMES[4]).any(|name| wanted.contains(name));
    let mixer = LayerNeeds::new(
        below,
        norm(names.attention_norm),
        maps(Reads::MixerInput) || maps(Reads::QueryLatent) || maps(Reads::KeyLatent) || inside,
        maps(Reads::AttentionOutput) || norm(names.after_attention),
    );
    let mixer = match &description.latent {
        None => mixer,
        Some(_) => mixer
            .with_latents(maps(Reads::MixerInput) || LatentKind::NORMS.into_iter().any(|name| wanted.contains(name))),
    };
    // beside attention the feed-forward layer is not below it
    let below = if description.parallel { below } else { mixer.output };
    // an adapter of all experts is under the path of their list, or of what wraps it
    let fused = description.experts_of(layer).is_some_and(|experts| {
        let wraps = |module: &str| module.is_empty() || module.starts_with(".base_layer");
        wanted.iter().any(|module| module.strip_prefix(experts.list).is_some_and(wraps))
    });
    // beside a feed-forward layer for all rows, experts have norms of their own
    let ([behind_mlp, before, behind], [gain, factors]) = (ExpertsKind::NORMS, ExpertsKind::ROUTER);
    let any = |names: &[&str]| names.iter().any(|name| wanted.contains(name));
    let first = maps(Reads::MlpInput) || fused || any(&[factors]);
    let last = maps(Reads::MlpHidden) || norm(names.after_mlp) || any(&[behind_mlp, behind]);
    // side by side, both may read one norm
    let read = if description.parallel { names.mlp_norm.or(names.attention_norm) } else { names.mlp_norm };
    let mlp = LayerNeeds::new(below, norm(read) || any(&[before, gain]), first, last);
    let per_layer = match description.per_layer {
        None => LayerNeeds::default(),
        Some(_) => LayerNeeds::new(
            mixer.output || mlp.output,
            false,
            maps(Reads::BlockOutput) || by_token,
            maps(Reads::PerLayerInput) || norm(Some(PerLayerKind::NORM)),
        ),
    };
    BlockNeeds { mixer, mlp, per_layer }
}
