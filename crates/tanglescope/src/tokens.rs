//! `tanglescope tokens`: the inner products of the gradients of single response tokens.
use crate::analysis::{identity, lock, open};
use crate::cli::Tokens;
use crate::device::OnDevice;
use crate::dry_run;
use crate::error::{Error, Result};
use crate::manifest::{Identity, Manifest, Plan};
use crate::options::{ModelOptions, Placement, group, groups, limits, read_data, reading, tokenizer};
use crate::output::write_whole;
use crate::progress::{Amount, Progress};
use polars_core::prelude::DataFrame;
use std::ops::Range;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use tanglescope_analytics::Table;
use tanglescope_analytics::tokens::{self, Array, PositionProducts, PositionRow, Shares, TokenBlock};
use tanglescope_data::{Pair, TextTokens};
use tanglescope_gram::{Group, TokenMatrix, position_matrix, token_matrices, token_rows};
use tanglescope_kernels::Kernels;
use tanglescope_model::{Decoder, InScope};
use tanglescope_objectives::contrast;

/// Pairs of a part: a matrix has as many entries as the square of a pair's response tokens.
const PAIRS_PER_PART: usize = 8;

/// Runs the command.
pub fn run(args: &Tokens) -> Result<Shares> {
    let options = ModelOptions::new(&args.model)?;
    options.announce();
    options.device.run(Work { args, options: &options, quiet: false })
}

/// Runs the command as a part of another, which says what is done.
pub fn quietly(args: &Tokens) -> Result<()> {
    let options = ModelOptions::new(&args.model)?;
    options.device.run(Work { args, options: &options, quiet: true }).map(|_| ())
}

/// Says what the command would do.
pub fn dry_run(args: &Tokens) -> Result<()> {
    let options = ModelOptions::new(&args.model)?;
    options.announce();
    let outline = options.outline()?;
    let scope = outline.in_scope(&options.scope)?;
    let data = read_data(&args.data.data, &options.folder, &reading(&args.data.rows)?, limits(&outline.description))?;
    let groups = groups(&outline.description, &data)?;
    let most = Placement::of(&options, &outline).backward_rows(&options, &outline);
    let count = |f: &dyn Fn(&Group) -> usize| groups.iter().map(f).sum::<usize>();
    let tokens = |g: &Group| g.responses.iter().map(Vec::len).sum::<usize>();
    println!("entries         {} inner products", count(&|g| tokens(g).pow(2)));
    let large = groups.iter().filter(|g| token_rows(g) > most).count();
    println!("                {large} of {} pairs are put together from several passes", groups.len());
    dry_run::report_tokens(&options, &outline, &scope, &groups, most);
    println!("nothing was computed, and nothing written to {}", args.out.display());
    Ok(())
}

struct Work<'a> {
    args: &'a Tokens,
    options: &'a ModelOptions,
    quiet: bool,
}

impl OnDevice for Work<'_> {
    type Output = Shares;

    fn run<B: Kernels>(self, device: &B::Device) -> Result<Shares> {
        let Self { args, options, quiet } = self;
        let mut model = options.load::<B>(options.dtype, device)?;
        let scope = model.in_scope(&options.scope)?;
        let data = read_data(&args.data.data, &options.folder, &reading(&args.data.rows)?, limits(&model.description))?;
        let tokenizer = tokenizer(&options.folder)?;
        let out = &args.out;
        std::fs::create_dir_all(out).map_err(|e| Error::output(out, format!("cannot be made: {e}")))?;
        let _lock = lock(out)?;
        let outline = options.outline()?;
        let placement = Placement::of(options, &outline);
        let hashes = [model.content_hash.as_str(), &data.content_hash];
        let mut identity = identity(options, hashes, model.adapter_hash.as_deref(), None, false);
        if let Some(there) = Manifest::read(out)? {
            // of what an analysis measures beside, a matrix depends on nothing
            let Identity { reference, contrast, probes, .. } = there.identity;
            identity = Identity { reference, contrast, probes, ..identity };
        }
        let forward_rows_per_batch = placement.rows_per_batch(options, &outline);
        let backward_rows_per_pass = Some(placement.backward_rows(options, &outline));
        let plan = Plan {
            rows_per_part: PAIRS_PER_PART,
            forward_rows_per_batch,
            backward_rows_per_pass,
            rates: model.rates.into(),
        };
        let mut manifest = open(out, options, &data, identity, plan, &[])?;
        model.rates = manifest.plan.rates.into();
        // a folder of `analyze` has no such number yet
        if manifest.plan.backward_rows_per_pass.is_none() {
            manifest.plan.backward_rows_per_pass = backward_rows_per_pass;
            manifest.write(out)?;
        }
        let most = manifest.plan.backward_rows_per_pass.unwrap_or(1);

        let (matrices, positions) = (Table::create(out, "tokens.parquet")?, Table::create(out, "positions.parquet")?);
        let products = args.positions.then(|| Table::create(out, "position_products.parquet")).transpose()?;
        let windows: Vec<Range<usize>> = data.pairs.parts(PAIRS_PER_PART).collect();
        // positions.parquet is written last, so its part says that both are there
        let is_done = |part: usize| matrices.has(part) && positions.has(part);
        let amount = |window: &[Pair]| Amount {
            pairs: window.len(),
            rows: window.iter().map(|pair| token_rows(&group(&model.description, pair.tokens.clone()))).sum(),
        };
        let mut before = Amount::default();
        let mut all = Amount::default();
        for (part, window) in windows.iter().enumerate() {
            let of_part = amount(&data.pairs.get(window.clone())?);
            all.add(of_part);
            if is_done(part) {
                before.add(of_part);
            }
        }
        if before.pairs > 0 {
            eprintln!("{}: {} of {} pairs are there already", out.display(), before.pairs, data.pairs.len());
        }
        let progress = Mutex::new(Progress::new(all, before, quiet));
        let mut shares = Shares::default();
        for (part, window) in windows.iter().enumerate() {
            let window = &data.pairs.get(window.clone())?;
            if !is_done(part) {
                let groups: Vec<Group> =
                    window.iter().map(|pair| group(&model.description, pair.tokens.clone())).collect();
                let lent: Vec<&Group> = groups.iter().collect();
                let found = token_matrices(&model, &scope, &lent, (most, placement.at_once), |done| {
                    let rows = done.iter().map(|&g| token_rows(&groups[g])).sum();
                    let mut progress = progress.lock().unwrap_or_else(PoisonError::into_inner);
                    progress.add(Amount { pairs: done.len(), rows });
                });
                if let Some((pair, _)) = window.iter().zip(&found).find(|(_, m)| !m.inner.iter().all(|x| x.is_finite()))
                {
                    return Err(Error::overflow(pair.row, "an inner product"));
                }
                matrices.write(part, tokens::matrices(&blocks(window, &found)))?;
                positions.write(part, tokens::positions(&rows(window, &found, tokenizer.as_ref())))?;
            }
            if let Some(products) = products.as_ref().filter(|products| !products.has(part)) {
                let of = |pair: &Pair| position_products(&model, &scope, pair);
                products.write(part, tokens::position_products(&window.iter().map(of).collect::<Vec<_>>()))?;
            }
            let of_part = matrices.read(part)?;
            if args.npy {
                write_arrays(&out.join("npy"), &of_part)?;
            }
            shares.add(&of_part, &positions.read(part)?)?;
        }
        progress.into_inner().unwrap_or_else(PoisonError::into_inner).finish();
        Ok(shares)
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
    let length = u16::try_from(header.len()).unwrap_or(u16::MAX).to_le_bytes();
    let magic = *b"\x93NUMPY\x01\x00";
    [&magic[..], &length, header.as_bytes()]
        .concat()
        .into_iter()
        .chain(values.iter().flat_map(|x| x.to_le_bytes()))
        .collect()
}

/// Writes the matrices of a part that are not there yet as NumPy arrays.
fn write_arrays(folder: &Path, matrices: &DataFrame) -> Result<()> {
    std::fs::create_dir_all(folder).map_err(|e| Error::output(folder, format!("cannot be made: {e}")))?;
    for array in tokens::arrays(matrices)? {
        let path = folder.join(format!("{}-{}.npy", array.pair, array.block));
        if path.is_file() {
            continue;
        }
        write_whole(&path, &npy(&array))?;
    }
    Ok(())
}

/// The matrices of some pairs: chosen against rejected, and each against itself.
fn blocks(window: &[Pair], found: &[TokenMatrix]) -> Vec<TokenBlock> {
    let of = |(pair, matrix): (&Pair, &TokenMatrix)| {
        let block = |name, a, b| TokenBlock { pair: pair.row, block: name, inner: matrix.block(a, b) };
        [block("wl", 0, 1), block("ww", 0, 0), block("ll", 1, 1)]
    };
    window.iter().zip(found).flat_map(of).collect()
}

/// What is known of each response token.
fn rows(window: &[Pair], found: &[TokenMatrix], tokenizer: Option<&TextTokens>) -> Vec<PositionRow> {
    let mut out = Vec::new();
    for (pair, matrix) in window.iter().zip(found) {
        let responses = [&pair.tokens.chosen, &pair.tokens.rejected];
        let masks = contrast(responses[0], responses[1]);
        for (k, branch) in ["w", "l"].into_iter().enumerate() {
            for (position, &token) in responses[k].iter().enumerate() {
                out.push(PositionRow {
                    pair: pair.row,
                    branch,
                    position: u32::try_from(position).unwrap_or(u32::MAX),
                    token,
                    text: tokenizer.and_then(|tokenizer| tokenizer.text(token)),
                    logp: matrix.token_logps[k][position],
                    shared: !masks[k][position],
                });
            }
        }
    }
    out
}
