//! `tanglescope analyze`: every pair's entanglement.
use crate::analysis::{Analysis, Beyond, Probe, ReferenceLogps, done, work};
use crate::cli::Analyze;
use crate::device::OnDevice;
use crate::dry_run;
use crate::error::{Error, Result};
use crate::objectives::{Asked, Reference};
use crate::options::{ModelOptions, Placement, limits, read_data, reading, tokenizer, whole_groups};
use crate::progress::Progress;
use tanglescope_analytics::Summary;
use tanglescope_data::{Form, Reading};
use tanglescope_gram::Group;
use tanglescope_kernels::Kernels;
use tanglescope_model::architectures::Description;
use tanglescope_objectives::GroupObjective;

/// Runs the command, and returns what it found.
pub fn run(args: &Analyze) -> Result<Summary> {
    let options = ModelOptions::new(&args.model)?;
    let asked = Asked::new(&args.found.objective, args.reference.as_deref(), &options)?;
    options.announce();
    options.device.run(Work { args, options: &options, asked: &asked })
}

/// Says what the command would do.
pub fn dry_run(args: &Analyze) -> Result<()> {
    let options = ModelOptions::new(&args.model)?;
    let asked = Asked::new(&args.found.objective, args.reference.as_deref(), &options)?;
    options.announce();
    let outline = options.outline()?;
    let scope = outline.in_scope(&options.scope)?;
    let limits = limits(&outline.description);
    let data = read_data(&args.data.data, &options.folder, &reading(&args.data.rows)?, limits)?;
    let groups = whole_groups(&outline.description, &data)?;
    let rows = Placement::of(&options, &outline).rows_per_batch(&options, &outline);
    dry_run::report(&options, &outline, &scope, &groups, rows);
    if matches!(asked.reference, Reference::Base | Reference::Folder(_)) {
        println!("and a forward pass of the reference over the same rows");
    }
    println!("nothing was computed, and nothing written to {}", args.out.display());
    Ok(())
}

/// What is asked for beside pairs of the best and the worst response.
fn beyond(args: &Analyze, options: &ModelOptions, model: &Description, asked: &Asked) -> Result<Beyond> {
    let objective = |name: &String| -> Result<GroupObjective> {
        let objective: GroupObjective = name.parse().map_err(|e| Error::option("--group-objective", e))?;
        if objective.needs_reference() && asked.reference == Reference::None {
            return Err(Error::no_reference("--group-objective", name));
        }
        Ok(objective)
    };
    let probes = match &args.probe {
        None => Vec::new(),
        Some(path) => {
            let reading = reading(&args.data.rows)?;
            let form = Form { chosen_only: true, ..reading.form };
            let reading = Reading { form, limit: None, split: None, ..reading };
            let data = read_data(path, &options.folder, &reading, limits(model))?;
            let probe = |pair: tanglescope_data::Pair| Probe {
                row: pair.row,
                id: pair.id,
                group: Group::of(model, pair.tokens.prompt, vec![pair.tokens.chosen]),
            };
            data.pairs.all()?.into_iter().map(probe).collect()
        }
    };
    let objectives = args.group_objective.iter().map(objective).collect::<Result<_>>()?;
    Ok(Beyond { all_pairs: args.all_pairs, objectives, mean: args.found.mean_gradients, probes })
}

struct Work<'a> {
    args: &'a Analyze,
    options: &'a ModelOptions,
    asked: &'a Asked,
}

impl OnDevice for Work<'_> {
    type Output = Summary;

    fn run<B: Kernels>(self, device: &B::Device) -> Result<Summary> {
        let Self { args, options, asked } = self;
        let mut model = options.load::<B>(options.dtype, device)?;
        let scope = model.in_scope(&options.scope)?;
        let limits = limits(&model.description);
        let data = read_data(&args.data.data, &options.folder, &reading(&args.data.rows)?, limits)?;
        let reference = asked.reference.load(options, &model)?;
        let tokenizer = tokenizer(&options.folder)?;
        let before = done(&args.out, &data)?;
        let beyond = beyond(args, options, &model.description, asked)?;
        if before.pairs > 0 {
            eprintln!("{}: {} of {} pairs are there already", args.out.display(), before.pairs, data.pairs.len());
        }
        let mut progress = Progress::new(work(&data)?, before, false);
        let (asked, memo) = (asked, ReferenceLogps::default());
        let tokenizer = tokenizer.as_ref();
        let analysis = Analysis { options, asked, reference: &reference, memo: &memo, tokenizer, beyond: &beyond };
        let summary = analysis.write(&mut model, &scope, &data, &args.out, &mut progress)?;
        progress.finish();
        Ok(summary)
    }
}
