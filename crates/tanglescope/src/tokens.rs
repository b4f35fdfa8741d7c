//! The inner products of the gradients of single response tokens.
use crate::crew::Member;
use crate::data::{group, groups, read, reading};
use crate::error::{Error, Result};
use crate::estimate::{Estimate, Planned};
use crate::listener::{Amount, Listener, advance, begin};
use crate::loaded::{LoadedModel, OnCrew};
use crate::measure::{alone_in, identity, open, stage};
use crate::model::Model;
use crate::options::{DataOptions, Destination, ModelOptions, TokenMeasures};
use crate::placement::Placement;
use crate::rates;
use crate::records::{Folder, make_folder};
use crate::shard::Shard;
use crate::token_rows::TokenRows;
use polars_core::prelude::DataFrame;
use std::ops::Range;
use std::path::{Path, PathBuf};
use tanglescope_analytics::Shares;
use tanglescope_data::{Dataset, Pair, TextTokens};
use tanglescope_gram::{Group, TokenMatrix, position_matrix, token_matrices, token_rows};
use tanglescope_kernels::{Kernels, as_index};
use tanglescope_model::{Decoder, InScope};
use tanglescope_objectives::contrast;
use tanglescope_records::manifest::{self, AnalysisIdentity, AnalysisManifest, BatchPlan, Beside};
use tanglescope_records::tables::tokens::{self as rows, Array, PositionProducts, PositionRow, TokenMatrixRows};
use tanglescope_records::{Table, tables, write_whole};

/// Pairs of a part: a matrix has as many entries as the square of a pair's response tokens.
const PAIRS_PER_PART: usize = 8;

/// Options of [`tokens`].
#[derive(Clone, Debug)]
pub struct TokensOptions {
    /// The model.
    pub model: ModelOptions,
    /// The data.
    pub data: DataOptions,
    /// What is measured.
    pub measures: TokenMeasures,
    /// Where the results go, which may be where an analysis of the same is.
    pub to: Destination,
}

/// What the matrices of a data set would take.
#[derive(Clone, Debug)]
pub struct TokensEstimate {
    /// Inner products.
    pub entries: usize,
    /// Pairs whose matrix is put together from several passes.
    pub in_parts: usize,
    /// The passes.
    pub passes: Estimate,
}

impl TokensOptions {
    /// A model on data, with all defaults.
    #[must_use]
    pub fn new(model: ModelOptions, data: DataOptions, out: impl Into<PathBuf>) -> Self {
        Self { model, data, measures: TokenMeasures::default(), to: Destination::new(out) }
    }

    /// What the call would do, without loading the model.
    ///
    /// # Errors
    /// As [`tokens`] before it computes.
    pub fn estimate(&self, listener: &dyn Listener) -> Result<TokensEstimate> {
        let model = Model::new(&self.model)?;
        model.announce(listener);
        let planned = Planned::new(&model)?;
        let description = &planned.outline.description;
        let data =
            read(&self.data.data, &model.tokenizer_folders(), &reading(&self.data.rows)?, description, listener)?;
        let groups = groups(description, &data)?;
        let most = planned.placement.backward_rows(&model, &planned.outline);
        let response_tokens = |g: &Group| g.responses.iter().map(Vec::len).sum::<usize>();
        Ok(TokensEstimate {
            entries: groups.iter().map(|g| response_tokens(g).pow(2)).sum(),
            in_parts: groups.iter().filter(|g| token_rows(g) > most).count(),
            passes: planned.tokens(&groups, most),
        })
    }
}

/// What [`tokens`] found.
#[derive(Clone, Debug)]
pub struct TokenProducts {
    /// Mean cosines by whether both responses have the tokens.
    pub shares: Shares,
    /// All of it.
    pub records: Folder,
}

/// Measures the token-level matrix of every pair: one cotangent a response token.
///
/// # Errors
/// As [`analyze`](crate::analyze()).
pub fn tokens(options: &TokensOptions, listener: &dyn Listener) -> Result<TokenProducts> {
    let TokensOptions { model, data, measures, to } = options;
    let mut model = LoadedModel::load(model, listener)?;
    let rows = model.rows(data, listener)?;
    model.tokens(&rows, *measures, to, listener)
}

impl LoadedModel {
    /// Measures the token-level matrix of every pair of some rows into a folder, as [`tokens`] does.
    ///
    /// # Errors
    /// As there.
    pub fn tokens(
        &mut self,
        rows: &TokenRows,
        measures: TokenMeasures,
        to: &Destination,
        listener: &dyn Listener,
    ) -> Result<TokenProducts> {
        let shares = self.share(&TokensOnModel { rows, measures, to }, listener)?;
        Ok(TokenProducts { shares, records: Folder::new(&to.out) })
    }
}

struct TokensOnModel<'a> {
    rows: &'a TokenRows,
    measures: TokenMeasures,
    to: &'a Destination,
}

impl OnCrew for TokensOnModel<'_> {
    type Output = Shares;

    fn run<B: Kernels>(&self, asked: &Model, member: &Member<'_>, model: &mut Decoder<B>) -> Result<Option<Shares>> {
        self.rows.check(&model.description)?;
        let scope = model.in_scope(&asked.scope)?;
        alone_in(member, self.to, || self.parts(asked, member, model, &scope))
    }
}

impl TokensOnModel<'_> {
    /// The parts that are not there yet, and what all of them amount to.
    fn parts<B: Kernels>(
        &self,
        asked: &Model,
        member: &Member<'_>,
        model: &mut Decoder<B>,
        scope: &InScope,
    ) -> Result<Option<Shares>> {
        let (Self { rows: TokenRows { data, tokenizer, .. }, measures, to }, listener) = (self, member.listener);
        let Destination { out, shard, .. } = to;
        let (most, at_once) = self.plan(asked, model, data)?;
        let tables = Tables::create(to, *measures)?;
        let windows: Vec<Range<usize>> = data.pairs.parts(PAIRS_PER_PART).collect();
        let own = shard.range(windows.len());
        let amount = |window: &[Pair]| Amount {
            pairs: window.len(),
            rows: window.iter().map(|pair| token_rows(&group(&model.description, pair.tokens.clone()))).sum(),
        };
        let amounts = || {
            let (mut before, mut all) = (Amount::default(), Amount::default());
            for part in own.clone() {
                let of_part = amount(&data.pairs.get(windows[part].clone())?);
                all.add(of_part);
                if tables.has(part) {
                    before.add(of_part);
                }
            }
            Ok((before, all))
        };
        let (before, all) = member.agree(&stage(to, "tokens before"), amounts)?;
        begin(listener, out, all, before);
        let missing = || Ok(own.clone().filter(|&part| !tables.has(part) || tables.products_missing(part)).collect());
        member.each(&stage(to, "token parts"), missing, |part| {
            let window = &data.pairs.get(windows[part].clone())?;
            if !tables.has(part) {
                let groups: Vec<Group> =
                    window.iter().map(|pair| group(&model.description, pair.tokens.clone())).collect();
                let found = token_matrices(model, scope, &groups.iter().collect::<Vec<_>>(), (most, at_once), |done| {
                    let rows = done.iter().map(|&g| token_rows(&groups[g])).sum();
                    advance(listener, Amount { pairs: done.len(), rows });
                });
                tables.write(part, window, &found, tokenizer.as_ref())?;
            }
            if let Some(products) = tables.products.as_ref().filter(|products| !products.has(part)) {
                let of = |pair: &Pair| position_products(model, scope, pair);
                products.write(part, rows::position_products(&window.iter().map(of).collect::<Vec<_>>()))?;
            }
            if measures.npy {
                write_arrays(&out.join("npy"), &tables.matrices.read(part)?)?;
            }
            Ok(())
        })?;
        let shares = member.once(&stage(to, "shares"), || {
            let mut shares = Shares::default();
            for part in own.clone() {
                let of_part = tables.matrices.read(part)?;
                if measures.npy {
                    write_arrays(&out.join("npy"), &of_part)?;
                }
                shares.add(&of_part, &tables.positions.read(part)?)?;
            }
            Ok(shares)
        })?;
        listener.end();
        Ok(shares)
    }

    /// Backward rows of a pass, and passes that run side by side: as the folder's manifest says, which is written where there is
    /// none.
    fn plan<B: Kernels>(&self, asked: &Model, model: &mut Decoder<B>, data: &Dataset) -> Result<(usize, usize)> {
        let Self { to, .. } = self;
        let Destination { out, .. } = to;
        let outline = asked.outline()?;
        let placement = Placement::of_loaded(asked, &outline, model);
        let hashes = [Some(&model.content_hash), model.adapter_hash.as_ref()];
        let mut identity = identity(asked, data, hashes, None, Beside::default())?;
        if let Some(there) = manifest::read::<AnalysisManifest>(out)? {
            // token matrices do not depend on the reference, on what objectives ask for, on probes, or on a metric
            let AnalysisIdentity { reference, beside, probes, metric, .. } = there.identity;
            identity = AnalysisIdentity { reference, beside, probes, metric, ..identity };
        }
        let backward_rows_per_pass = Some(placement.backward_rows(asked, &outline));
        let plan = BatchPlan {
            rows_per_part: PAIRS_PER_PART,
            forward_rows_per_batch: placement.rows_per_batch(asked, &outline),
            backward_rows_per_pass,
            rates: rates::stored(model.rates),
        };
        let mut manifest = open(to, (asked, &model.quantised), data, identity, plan, &[])?;
        model.rates = rates::read(manifest.plan.rates);
        let _turn = Shard::turn(out)?;
        if let Some(there) = manifest::read::<AnalysisManifest>(out)? {
            manifest = there;
        }
        // a folder of `analyze` has no such number yet
        if manifest.plan.backward_rows_per_pass.is_none() {
            manifest.plan.backward_rows_per_pass = backward_rows_per_pass;
            manifest::write(out, &manifest)?;
        }
        Ok((manifest.plan.backward_rows_per_pass.unwrap_or(1), placement.at_once))
    }
}

/// The tables of a folder of matrices.
struct Tables {
    matrices: Table,
    positions: Table,
    products: Option<Table>,
}

impl Tables {
    fn create(to: &Destination, measures: TokenMeasures) -> Result<Self> {
        let table = |name| Table::create(&to.out, name);
        Ok(Self {
            matrices: table(tables::TOKENS)?,
            positions: table(tables::POSITIONS)?,
            products: measures.positions.then(|| table(tables::POSITION_PRODUCTS)).transpose()?,
        })
    }

    fn has(&self, part: usize) -> bool {
        self.matrices.has(part) && self.positions.has(part)
    }

    fn products_missing(&self, part: usize) -> bool {
        self.products.as_ref().is_some_and(|products| !products.has(part))
    }

    /// Writes a part; positions.parquet is written last, so its part says that both are there.
    fn write(&self, part: usize, window: &[Pair], found: &[TokenMatrix], tokenizer: Option<&TextTokens>) -> Result<()> {
        if let Some((pair, _)) = window.iter().zip(found).find(|(_, m)| !m.inner.iter().all(|x| x.is_finite())) {
            return Err(Error::overflow(pair.row, "an inner product"));
        }
        self.matrices.write(part, rows::matrices(&matrices(window, found)))?;
        Ok(self.positions.write(part, rows::positions(&positions(window, found, tokenizer)))?)
    }
}

/// A pair's wl by the positions at which parameters are used.
fn position_products<B: Kernels>(model: &Decoder<B>, scope: &InScope, pair: &Pair) -> PositionProducts {
    let (inner, lengths) = position_matrix(model, scope, &group(&model.description, pair.tokens.clone()));
    let all = lengths.iter().sum::<usize>();
    let row = |row: usize| inner[row * all + lengths[0]..(row + 1) * all].to_vec();
    PositionProducts { pair: pair.row, inner: (0..lengths[0]).map(row).collect() }
}

/// A matrix as NumPy stores it (format 1.0: magic, length of the header, header padded to 64 bytes, numbers row by row).
fn npy(array: &Array) -> Vec<u8> {
    let Array { columns, values, .. } = array;
    let shape = format!("({}, {columns})", values.len() / columns.max(&1));
    let header = format!("{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}");
    let padded = (10 + header.len() + 1).next_multiple_of(64) - 11;
    let header = format!("{header:<padded$}\n");
    let length =
        u16::try_from(header.len()).unwrap_or_else(|_| unreachable!("a header of two numbers is short")).to_le_bytes();
    let magic = *b"\x93NUMPY\x01\x00";
    [&magic[..], &length, header.as_bytes()]
        .concat()
        .into_iter()
        .chain(values.iter().flat_map(|x| x.to_le_bytes()))
        .collect()
}

/// Writes the matrices of a part that are not there yet as NumPy arrays.
fn write_arrays(folder: &Path, matrices: &DataFrame) -> Result<()> {
    make_folder(folder)?;
    for array in rows::arrays(matrices)? {
        let path = folder.join(format!("{}-{}.npy", array.pair, array.block));
        if path.is_file() {
            continue;
        }
        write_whole(&path, &npy(&array))?;
    }
    Ok(())
}

/// The matrices of some pairs: chosen against rejected, and each against itself.
fn matrices(window: &[Pair], found: &[TokenMatrix]) -> Vec<TokenMatrixRows> {
    let of = |(pair, matrix): (&Pair, &TokenMatrix)| {
        let block = |name, a, b| TokenMatrixRows { pair: pair.row, block: name, inner: matrix.block(a, b) };
        [block("wl", 0, 1), block("ww", 0, 0), block("ll", 1, 1)]
    };
    window.iter().zip(found).flat_map(of).collect()
}

/// What is known of each response token.
fn positions(window: &[Pair], found: &[TokenMatrix], tokenizer: Option<&TextTokens>) -> Vec<PositionRow> {
    let mut out = Vec::new();
    for (pair, matrix) in window.iter().zip(found) {
        let responses = [&pair.tokens.chosen, &pair.tokens.rejected];
        let masks = contrast(responses[0], responses[1]);
        for (k, branch) in ["w", "l"].into_iter().enumerate() {
            for (position, &token) in responses[k].iter().enumerate() {
                out.push(PositionRow {
                    pair: pair.row,
                    branch,
                    position: as_index(position),
                    token,
                    text: tokenizer.and_then(|tokenizer| tokenizer.text(token)),
                    logp: matrix.token_logps[k][position],
                    shared: !masks[k][position],
                    weight: pair.weights.as_ref().filter(|_| pair.misfit.is_none()).map(|of| of[k][position]),
                });
            }
        }
    }
    out
}
