//! What a saved adapter changes of the embedding and of the output matrix: LoRA on either, and rows of single tokens.
use super::SavedAdapter;
use super::targets::{Targets, is_end_of};
use crate::architectures::{Description, Wrapper};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::scope::{InScope, Parameter, ParameterKind, Scope};
use crate::tables::{TableChanges, TableLora, TokenRows};
use std::collections::{BTreeMap, BTreeSet};
use tanglescope_checkpoint::Layout;
use tanglescope_kernels::{DType, Kernels};

/// An adapter's changes of the embedding and of the output matrix, without their values.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TablesOutline {
    /// Low-rank change of the embedding.
    pub embedding: Option<LowRank>,
    /// Of the output matrix.
    pub head: Option<LowRank>,
    /// Rows of the embedding, and of the output matrix where that is tied to it.
    pub embedding_tokens: Option<OwnTokens>,
    /// Rows of the output matrix alone.
    pub head_tokens: Option<OwnTokens>,
}

/// A low-rank change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LowRank {
    /// Path of the module.
    pub module: String,
    /// The same as the adapter spells it.
    pub path: String,
    /// Names of A and B.
    pub names: [String; 2],
    /// r.
    pub rank: usize,
}

/// Rows that stand for those of single tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnTokens {
    /// Path of the module.
    pub module: String,
    /// Name of the parameter.
    pub name: String,
    /// Which tokens.
    pub tokens: Vec<u32>,
    /// Whether they stand for rows of the output matrix too.
    pub of_head: bool,
}

impl TablesOutline {
    /// Refuses a scope that has a table some of whose rows are the adapter's.
    pub(crate) fn refuse_replaced(&self, chosen: &InScope, scope: &Scope) -> Result<()> {
        let own = [&self.embedding_tokens, &self.head_tokens].into_iter().flatten();
        // a checkpoint of the bare base has names without its prefix
        let is_of = |p: &Parameter, module: &str| p.layer.is_none() && is_end_of(&p.module, module);
        let replaced =
            |module: &str| chosen.parameters.iter().find(|p| is_of(p, module) && p.kind == ParameterKind::Base);
        match own.clone().find_map(|own| replaced(&own.module)) {
            None => Ok(()),
            Some(Parameter { name, .. }) => {
                let problem = format!(
                    "has `{name}`, some of whose rows the adapter's stand for (`trainable_token_indices`), which is not supported; \
                     expected lora, trainable, or a pattern without it"
                );
                Err(Error::Scope { scope: scope.to_string(), problem })
            }
        }
    }
}

/// Tokens with rows of their own, by the module's name or its end; those of the embedding are under no name where that is all.
pub(super) type TokenIndices = BTreeMap<String, Vec<u32>>;

/// `trainable_token_indices` as PEFT has them: of the embedding, or by module.
#[derive(serde::Deserialize)]
#[serde(untagged)]
enum Indices {
    OfEmbedding(Vec<u32>),
    ByModule(BTreeMap<String, Vec<u32>>),
}

pub(super) fn token_indices(config: &Config) -> Result<TokenIndices> {
    let key = "trainable_token_indices";
    let indices = match config.get::<Indices>(key)? {
        None => BTreeMap::new(),
        Some(Indices::OfEmbedding(tokens)) => [(String::new(), tokens)].into(),
        Some(Indices::ByModule(of)) => of,
    };
    for tokens in indices.values() {
        let mut seen = BTreeSet::new();
        if let Some(twice) = tokens.iter().find(|token| !seen.insert(**token)) {
            return Err(config.refuse(key, format!("has token {twice} twice; expected each once")));
        }
    }
    Ok(indices)
}

/// Paths inside a module under which PEFT keeps the plain tensors of what it wraps, or does not wrap.
const WRAPPED: [&str; 3] = ["base_layer.", "token_adapter.base_layer.", ""];

/// Rows of a table of tokens' own.
const TOKENS: &str = "token_adapter.trainable_tokens_delta";

impl SavedAdapter {
    /// A module's path as this adapter spells it, by a tensor that it has of it.
    fn spelled_with(&self, module: &str, tensor: &str) -> Option<String> {
        let stored = |module: &String| self.weights.has(&format!("base_model.model.{module}.{tensor}"));
        Wrapper::spellings(module).into_iter().find(stored)
    }

    fn low_rank(&self, module: &str, tensors: [&str; 2]) -> Option<LowRank> {
        let path = self.spelled_with(module, tensors[0])?;
        let chosen = !matches!(self.targets, Targets::All) && self.targets_by_name(&path, None);
        let names = tensors.map(|tensor| format!("{path}.{tensor}"));
        chosen.then(|| LowRank { module: module.to_owned(), names, rank: self.rank(&path), path })
    }

    /// The rows that it has for tokens of a module, whose indices are under the module's name or its end.
    fn own_tokens(&self, module: &str, is_embedding: bool) -> Option<OwnTokens> {
        let named = |name: &String| (is_embedding && name.is_empty()) || (!name.is_empty() && is_end_of(name, module));
        let (_, tokens) = self.token_indices.iter().find(|(name, _)| named(name))?;
        let path = self.spelled_with(module, TOKENS).unwrap_or_else(|| module.to_owned());
        let name = format!("{path}.{TOKENS}");
        Some(OwnTokens { module: module.to_owned(), name, tokens: tokens.clone(), of_head: !is_embedding })
    }

    /// What it changes of the embedding and of the output matrix.
    pub fn tables_outline(&self, of: &Description) -> TablesOutline {
        let (embedding, head) = (&*of.names.embedding, &*of.names.head);
        let (mut embedding_tokens, mut head_tokens) = (self.own_tokens(embedding, true), self.own_tokens(head, false));
        if let (Some(own), true) = (&mut embedding_tokens, of.tied) {
            // PEFT ties the rows where the tables are tied, but for tokens that differ
            own.of_head = head_tokens.as_ref().is_none_or(|of_head| of_head.tokens == own.tokens);
            head_tokens = head_tokens.filter(|_| !own.of_head);
        }
        TablesOutline {
            embedding: self.low_rank(embedding, ["lora_embedding_A", "lora_embedding_B"]),
            head: self.low_rank(head, ["lora_A.weight", "lora_B.weight"]),
            embedding_tokens,
            head_tokens,
        }
    }

    /// The same with values.
    pub fn tables<B: Kernels>(
        &mut self,
        of: &Description,
        dtype: DType,
        device: &B::Device,
    ) -> Result<TableChanges<B>> {
        let outline = self.tables_outline(of);
        let refuse = |key: &str, problem: String| Err(Error::key(&self.config_path, key, problem));
        let low_rank = [&outline.embedding, &outline.head].into_iter().flatten().next();
        if let (Some(LowRank { module, .. }), true) = (low_rank, self.magnitudes) {
            return refuse(
                "use_dora",
                format!("DoRA on `{module}` is not supported, only on the linear maps of blocks"),
            );
        }
        if outline.embedding.is_some() && of.tied && self.ensure_weight_tying {
            let problem =
                "true with LoRA on the embedding is not supported: it ties the change of the output matrix to it";
            return refuse("ensure_weight_tying", problem.to_owned());
        }
        let both = |low: &Option<LowRank>, own: &Option<OwnTokens>| low.is_some() && own.is_some();
        if both(&outline.embedding, &outline.embedding_tokens) || both(&outline.head, &outline.head_tokens) {
            let problem = "tokens of a table that LoRA changes too are not supported".to_owned();
            return refuse("trainable_token_indices", problem);
        }
        let own = [&outline.embedding_tokens, &outline.head_tokens].into_iter().flatten();
        for token in own.clone().flat_map(|own| &own.tokens) {
            if *token as usize >= of.vocabulary {
                let problem = format!("has token {token}; the model has {}", of.vocabulary);
                return refuse("trainable_token_indices", problem);
            }
        }
        let known: Vec<&str> = own.map(|own| own.module.as_str()).chain([&*of.names.head]).collect();
        let unknown = |name: &&String| !name.is_empty() && !known.iter().any(|module| is_end_of(name, module));
        if let Some(name) = self.token_indices.keys().find(unknown) {
            let problem = format!("`{name}` is neither the embedding nor the output matrix of this model");
            return refuse("trainable_token_indices", problem);
        }
        let (vocabulary, hidden) = (of.vocabulary, of.hidden);
        let mut changes = TableChanges::default();
        let mut low_rank = |of: Option<LowRank>, shape: [usize; 2], layouts: [Layout; 2]| {
            let Some(LowRank { names, rank, path, .. }) = of else { return Ok(None) };
            let scale = self.scale_of(&path);
            let [a, b] = [0, 1].map(|at| format!("base_model.model.{}", names[at]));
            let a = self.weights.take::<B>(&a, &[rank, shape[0]], layouts[0], dtype, device)?;
            let b = self.weights.take::<B>(&b, &[shape[1], rank], layouts[1], dtype, device)?;
            // they are more than right factors of products, which may be as narrow as they are stored
            let (a, b) = (B::cast(a, dtype), B::cast(b, dtype));
            Ok::<_, Error>(Some(TableLora { names, a, b, scale }))
        };
        changes.embedding =
            low_rank(outline.embedding, [vocabulary, hidden], [Layout::Transposed, Layout::Transposed])?;
        changes.head = low_rank(outline.head, [hidden, vocabulary], [Layout::Transposed, Layout::Same])?;
        let mut own = |of: Option<OwnTokens>| {
            let Some(OwnTokens { name, tokens, of_head, .. }) = of else { return Ok(None) };
            let stored = format!("base_model.model.{name}");
            let rows = self.weights.take::<B>(&stored, &[tokens.len(), hidden], Layout::Same, dtype, device)?;
            Ok::<_, Error>(Some(TokenRows { name, tokens, rows: B::cast(rows, dtype), of_head }))
        };
        changes.embedding_tokens = own(outline.embedding_tokens)?;
        changes.head_tokens = own(outline.head_tokens)?;
        Ok(changes)
    }

    /// A tensor of the base that it has too, of a module that it wraps or (`save_embedding_layers`) does not: PEFT puts it into the base.
    pub fn wrapped(&self, parameter: &str) -> Option<String> {
        let (module, tensor) = parameter.rsplit_once('.')?;
        let names = Wrapper::spellings(module)
            .into_iter()
            .flat_map(|module| WRAPPED.map(|inside| format!("base_model.model.{module}.{inside}{tensor}")));
        names.into_iter().find(|name| self.weights.has(name))
    }

    /// Whether it has tensors that stand for the base's.
    pub fn replaces_base(&self) -> bool {
        self.weights.names().any(|name| !name.contains(".lora_") && !name.contains(TOKENS))
    }

    /// α/r or α/√r of a module.
    pub(super) fn scale_of(&self, module: &str) -> f64 {
        let alpha = self.alpha_pattern.iter().find(|(p, _)| p.matches(module)).map_or(self.lora_alpha, |(_, v)| *v);
        let width = self.rank(module) as f64;
        if self.use_rslora { alpha / width.sqrt() } else { alpha / width }
    }
}
