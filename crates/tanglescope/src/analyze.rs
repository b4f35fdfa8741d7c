//! `tanglescope analyze`: every pair's entanglement.
use crate::analysis::{Analysis, ReferenceLogps, done, rows};
use crate::cli::Analyze;
use crate::device::OnDevice;
use crate::dry_run;
use crate::error::Result;
use crate::objectives::{Asked, Reference};
use crate::options::{ModelOptions, Placement, group, limits, read_data, reading, tokenizer};
use crate::progress::{Amount, Progress};
use tanglescope_analytics::Summary;
use tanglescope_gram::Group;
use tanglescope_kernels::Kernels;

/// Runs the command, and returns what it found.
pub fn run(args: &Analyze) -> Result<Summary> {
    let options = ModelOptions::new(&args.model)?;
    let asked = Asked::new(&args.objective, args.reference.as_deref(), &options)?;
    options.announce();
    options.device.run(Work { args, options: &options, asked: &asked })
}

/// Says what the command would do.
pub fn dry_run(args: &Analyze) -> Result<()> {
    let options = ModelOptions::new(&args.model)?;
    let asked = Asked::new(&args.objective, args.reference.as_deref(), &options)?;
    options.announce();
    let outline = options.outline()?;
    let scope = outline.in_scope(&options.scope)?;
    let limits = limits(&outline.description);
    let data = read_data(&args.data.data, &options.folder, &reading(&args.data.rows)?, limits)?;
    let groups: Vec<Group> = data.pairs.into_iter().map(|pair| group(&outline.description, pair.tokens)).collect();
    let rows = Placement::of(&options, &outline).rows_per_batch(&options, &outline);
    dry_run::report(&options, &outline, &scope, &groups, rows);
    if matches!(asked.reference, Reference::Base | Reference::Folder(_)) {
        println!("and a forward pass of the reference over the same rows");
    }
    println!("nothing was computed, and nothing written to {}", args.out.display());
    Ok(())
}

struct Work<'a> {
    args: &'a Analyze,
    options: &'a ModelOptions,
    asked: &'a Asked,
}

impl OnDevice for Work<'_> {
    type Output = Result<Summary>;

    fn run<B: Kernels>(self, device: &B::Device) -> Result<Summary> {
        let Self { args, options, asked } = self;
        let mut model = options.load::<B>(options.dtype, device)?;
        let scope = model.in_scope(&options.scope)?;
        let limits = limits(&model.description);
        let data = read_data(&args.data.data, &options.folder, &reading(&args.data.rows)?, limits)?;
        let reference = asked.reference.load(options, &model)?;
        let tokenizer = tokenizer(&options.folder)?;
        let before = done(&args.out, &data);
        if before.pairs > 0 {
            eprintln!("{}: {} of {} pairs are there already", args.out.display(), before.pairs, data.pairs.len());
        }
        let mut progress = Progress::new(Amount { pairs: data.pairs.len(), rows: rows(&data.pairs) }, before, false);
        let (asked, memo) = (asked, ReferenceLogps::default());
        let tokenizer = tokenizer.as_ref();
        let analysis = Analysis { options, asked, reference: &reference, memo: &memo, tokenizer };
        let summary = analysis.write(&mut model, &scope, &data, &args.out, &mut progress)?;
        progress.finish();
        Ok(summary)
    }
}
