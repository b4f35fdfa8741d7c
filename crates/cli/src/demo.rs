//! `tanglescope demo`: the paper's experiment in miniature, on a small model and pairs that the program carries (made by
//! examples/make_demo.rs): supervised fine-tuning, training on preferences, and the entanglement of every checkpoint.
use crate::cli::Demo;
use crate::console::{Console, print_json, print_line, tell};
use crate::error::{Error, Result};
use crate::options::device;
use std::path::{Path, PathBuf};
use std::time::Instant;
use tanglescope::{
    DataOptions, DeviceName, InterferenceOptions, Measured, ModelOptions, Objective, ObjectiveChoice, RecipeName,
    ReferenceModel, ReportOptions, RowOptions, Schedule, Scope, SweepOptions, TokensOptions, TrainOptions,
};
use tanglescope_analytics::Comparison;

/// Files of the model folder.
const MODEL: [(&str, &[u8]); 4] = [
    ("config.json", include_bytes!("../../tanglescope/demo/config.json")),
    ("model.safetensors", include_bytes!("../../tanglescope/demo/model.safetensors")),
    ("tokenizer.json", include_bytes!("../../tanglescope/demo/tokenizer.json")),
    ("tokenizer_config.json", include_bytes!("../../tanglescope/demo/tokenizer_config.json")),
];

/// Pairs whose responses differ in one token and then share nothing, a few tokens, or many.
const SETS: [(&str, &str); 3] = [
    ("single", include_str!("../../tanglescope/demo/single.jsonl")),
    ("short", include_str!("../../tanglescope/demo/short.jsonl")),
    ("long", include_str!("../../tanglescope/demo/long.jsonl")),
];

/// Pairs of each set that are trained on; the others are held out, and analysed.
const TRAINED_ON: usize = 128;

/// Objectives beside DPO, on the long set.
const OBJECTIVES: [&str; 7] = ["ipo", "simpo", "cpo", "dpop", "normalised", "sparse_hard", "sparse:lam=0.05"];

/// Steps between checkpoints of a run on preferences, and of the whole run.
const SAVE_EVERY: usize = 6;
const STEPS: usize = 18;

/// Tells a line of the story: on standard output, or where that is for programs on standard error.
macro_rules! say {
    ($json:expr, $($part:tt)*) => {
        if $json {
            tell!($($part)*);
        } else {
            print_line(&format!($($part)*))?;
        }
    };
}

/// Runs the command.
pub fn run(args: &Demo, json: bool) -> Result<()> {
    let temporary;
    let folder = if let Some(out) = &args.out {
        out.as_path()
    } else {
        temporary = tempfile::tempdir().map_err(|e| failed(&std::env::temp_dir(), e))?;
        temporary.path()
    };
    let demo = Experiment { folder, device: device(args.device.as_deref())?, json };
    if !args.dry.dry_run {
        demo.write_files()?;
    }
    tell!("device: {}", tanglescope::device_in_use(demo.device.as_ref())?);
    say!(json, "A model of a million parameters, and three sets of pairs (Yuan et al., arXiv 2410.13828, section 4):");
    for (name, rows) in SETS {
        say!(json, "  {name:<7} {}", rows.lines().next().unwrap_or_default());
    }
    let runs: Vec<(&str, &str)> = SETS
        .iter()
        .map(|(set, _)| (*set, "dpo"))
        .chain(OBJECTIVES.iter().map(|objective| ("long", *objective)))
        .collect();
    if args.dry.dry_run {
        say!(
            json,
            "\n{} fine-tunings, then {} runs on preferences, each with its checkpoints analysed:",
            SETS.len(),
            runs.len()
        );
        for (set, objective) in &runs {
            say!(json, "  {STEPS} steps of 16 pairs on {objective}, {set}");
        }
        say!(json, "nothing was computed, and nothing is left");
        if json {
            let runs: Vec<_> = runs.iter().map(|(set, objective)| serde_json::json!([set, objective])).collect();
            print_json(&serde_json::json!({"steps": STEPS, "pairs_per_step": 16, "runs": runs}))?;
        }
        return Ok(());
    }
    for (set, _) in SETS {
        demo.fine_tune(set)?;
    }
    for (number, (set, objective)) in runs.iter().enumerate() {
        demo.run(set, objective, &format!("{} of {}", number + 1, runs.len()))?;
    }
    demo.say(&runs)?;
    demo.tokens()?;
    demo.between()?;
    let report =
        args.out.as_ref().map_or_else(|| PathBuf::from("tanglescope-demo.html"), |out| out.join("report.html"));
    demo.page(&report)?;
    say!(json, "\nAll of it to look at: {}", report.display());
    if args.out.is_none() {
        say!(json, "The rest of the results was in a temporary folder; `demo --out FOLDER` keeps it.");
    }
    if json {
        print_json(&serde_json::json!({"report": report, "out": args.out}))?;
    }
    Ok(())
}

fn failed(path: &Path, problem: impl std::fmt::Display) -> Error {
    Error::Failed(format!("{}: {problem}", path.display()))
}

/// The folder of a demo, and where it runs.
struct Experiment<'a> {
    folder: &'a Path,
    device: Option<DeviceName>,
    /// Whether standard output is for programs.
    json: bool,
}

impl Experiment<'_> {
    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn write_files(&self) -> Result<()> {
        let write = |path: PathBuf, bytes: &[u8]| {
            let parent = path.parent().unwrap_or(Path::new("."));
            let written = std::fs::create_dir_all(parent).and_then(|()| std::fs::write(&path, bytes));
            written.map_err(|e| failed(&path, e))
        };
        for (name, bytes) in MODEL {
            write(self.folder.join("model").join(name), bytes)?;
        }
        for (set, rows) in SETS {
            let at = rows.match_indices('\n').nth(TRAINED_ON - 1).map_or(rows.len(), |(at, _)| at + 1);
            let (train, held_out) = rows.split_at(at);
            write(self.folder.join(format!("{set}-train.jsonl")), train.as_bytes())?;
            write(self.folder.join(format!("{set}-held-out.jsonl")), held_out.as_bytes())?;
        }
        Ok(())
    }

    /// All parameters, on the demo's device.
    fn measured(&self) -> Measured {
        Measured { scope: Scope::Full, device: self.device.clone(), ..Measured::default() }
    }

    fn model(&self, folder: PathBuf) -> ModelOptions {
        ModelOptions { measured: self.measured(), ..ModelOptions::new(folder) }
    }

    /// Shows the command of a call, and returns its words for the manifest.
    fn shown(&self, words: &[&str]) -> Result<Vec<String>> {
        let device = self.device.as_ref().map(|device| ["--device".to_owned(), device.to_string()]);
        let words = ["tanglescope"].iter().chain(words).map(|word| (*word).to_owned());
        let words: Vec<String> = words.chain(device.into_iter().flatten()).collect();
        say!(self.json, "\n$ {}", words.join(" "));
        Ok(words)
    }

    /// The checkpoint that training on preferences starts from: the model tuned on a set's chosen responses.
    fn fine_tuned(&self, set: &str) -> PathBuf {
        self.path(&format!("runs/sft-{set}/checkpoint-32"))
    }

    fn fine_tune(&self, set: &str) -> Result<()> {
        let (model, data) = (self.path("model"), self.path(&format!("{set}-train.jsonl")));
        let out = self.path(&format!("runs/sft-{set}"));
        let options = TrainOptions {
            learning_rate: 5e-4,
            batch_size: 16,
            max_steps: Some(32),
            save_every: Some(32),
            ..TrainOptions::new(self.model(model), as_they_are(data), out, objective("sft"))
        };
        self.train(options, &[])
    }

    /// Trains, and shows the command that does the same.
    fn train(&self, options: TrainOptions, more: &[&str]) -> Result<()> {
        let text = |path: &Path| path.display().to_string();
        let (model, data, out) = (text(&options.model.model), text(&options.data.data), text(&options.out));
        let (objective, rate) = (options.objective.to_string(), options.learning_rate.to_string());
        let (batch, steps) = (options.batch_size.to_string(), options.max_steps.unwrap_or_default().to_string());
        let every = options.save_every.unwrap_or_default().to_string();
        let words =
            ["train", "--model", &model, "--data", &data, "--out", &out, "--objective", &objective, "--scope", "full"];
        let apart = ["--tokenize", "apart"];
        let rest = ["--learning-rate", &rate, "--batch-size", &batch, "--max-steps", &steps, "--save-every", &every];
        let command = self.shown(&[words.as_slice(), &apart, &rest, more].concat())?;
        tanglescope::train(&TrainOptions { command, ..options }, &Console::quiet())?;
        Ok(())
    }

    /// Trains on an objective, and analyses the held-out pairs at every checkpoint.
    fn run(&self, set: &str, name_of: &str, number: &str) -> Result<()> {
        let start = Instant::now();
        let (model, data) = (self.fine_tuned(set), self.path(&format!("{set}-train.jsonl")));
        let held_out = self.path(&format!("{set}-held-out.jsonl"));
        let out = self.path(&format!("runs/{}", name(set, name_of)));
        let of_masks = name_of.starts_with("sparse:");
        let options = TrainOptions {
            eval_data: Some(held_out.clone()),
            learning_rate: 1e-4,
            schedule: Schedule::Constant,
            warmup_steps: Some(2),
            batch_size: 16,
            max_steps: Some(STEPS),
            save_every: Some(SAVE_EVERY),
            predict_every: SAVE_EVERY,
            gram_every: 3,
            mask_learning_rate: if of_masks { 10.0 } else { 1.0 },
            ..TrainOptions::new(self.model(model), as_they_are(data), out.clone(), objective(name_of))
        };
        let (held, every) = (held_out.display().to_string(), SAVE_EVERY.to_string());
        let more = ["--eval-data", &held, "--schedule", "constant", "--warmup-steps", "2"];
        let rest = ["--predict-every", &every, "--gram-every", "3"];
        let masks: &[&str] = if of_masks { &["--mask-learning-rate", "10"] } else { &[] };
        self.train(options, &[more.as_slice(), &rest, masks].concat())?;
        self.sweep(set, &out, &held_out)?;
        say!(self.json, "run {number}: trained and analysed in {:.0} s", start.elapsed().as_secs_f64());
        Ok(())
    }

    /// Analyses the held-out pairs of a set at every checkpoint of a run.
    fn sweep(&self, set: &str, run: &Path, held_out: &Path) -> Result<()> {
        let swept = self.path("sweep");
        let (folder, data) = (run.display().to_string(), format!("{set}={}", held_out.display()));
        let out = swept.display().to_string();
        let words = ["sweep", &folder, "--data", &data, "--out", &out, "--scope", "full", "--objective", "all"];
        let words = [words.as_slice(), &["--tokenize", "apart"]].concat();
        let options = SweepOptions {
            data: vec![(set.to_owned(), held_out.to_owned())],
            rows: as_they_are(held_out).rows,
            measured: self.measured(),
            objectives: vec![ObjectiveChoice::All],
            command: self.shown(&words)?,
            ..SweepOptions::new(&[run.to_owned()], &[], swept)?
        };
        crate::commands::complete(&tanglescope::sweep(&options, &Console::quiet())?)
    }

    /// Which tokens entangle the held-out pairs of the long set, at the end of training with DPO.
    fn tokens(&self) -> Result<()> {
        let (model, data) = (self.path(&format!("runs/dpo-long/checkpoint-{STEPS}")), self.path("long-held-out.jsonl"));
        let out = self.path("tokens");
        let [m, d, o] = [&model, &data, &out].map(|path| path.display().to_string());
        let words = ["tokens", "--model", &m, "--data", &d, "--out", &o, "--scope", "full", "--tokenize", "apart"];
        let command = self.shown(&words)?;
        let mut options = TokensOptions::new(self.model(model), as_they_are(data), out);
        options.to.command = command;
        tanglescope::tokens(&options, &Console::quiet())?;
        Ok(())
    }

    /// What the held-out pairs of the long set do to each other at the end of training with DPO: beside the records of that checkpoint.
    fn between(&self) -> Result<()> {
        let run = self.path("runs/dpo-long");
        let [model, start] = [STEPS, 0].map(|step| run.join(format!("checkpoint-{step}")));
        let data = self.path("long-held-out.jsonl");
        let out = self.path(&format!("sweep/run=dpo-long/step={STEPS}/dataset=long"));
        let [m, d, o, r] = [&model, &data, &out, &start].map(|path| path.display().to_string());
        let words = ["interference", "--model", &m, "--data", &d, "--out", &o, "--scope", "full", "--objective", "all"];
        let command = self.shown(&[words.as_slice(), &["--reference", &r, "--tokenize", "apart"]].concat())?;
        let mut options = InterferenceOptions::new(self.model(model), as_they_are(data), out);
        options.measures.objectives = vec![ObjectiveChoice::All];
        options.measures.reference = Some(ReferenceModel::Folder(start));
        options.to.command = command;
        tanglescope::interference(&options, &Console::quiet())?;
        Ok(())
    }

    /// Everything on one page.
    fn page(&self, out: &Path) -> Result<()> {
        let folders = ["sweep", "tokens"].map(|name| self.path(name));
        let [swept, tokens] = folders.each_ref().map(|path| path.display().to_string());
        let words = ["tanglescope", "report", &swept, &tokens, "--out", &out.display().to_string()].map(str::to_owned);
        say!(self.json, "\n$ {}", words.join(" "));
        let options = ReportOptions { command: words.to_vec(), ..ReportOptions::new(&folders, out) };
        tanglescope::report(&options, &Console::quiet())?;
        Ok(())
    }

    /// What training did to the held-out pairs, run by run, beside what the paper saw.
    fn say(&self, runs: &[(&str, &str)]) -> Result<()> {
        let leaves = tanglescope_records::find(&[self.folder.join("sweep")]).map_err(tanglescope::Error::from)?;
        let mut found = Vec::new();
        for (set, objective) in runs {
            let run = name(set, objective);
            let at = |step: usize| {
                let leaf = leaves.iter().find(|leaf| leaf.run == run && leaf.step == Some(step as u64));
                leaf.unwrap_or_else(|| unreachable!("{run} was swept at {step}"))
            };
            let of = Comparison::of(at(0), at(STEPS)).map_err(tanglescope::Error::from)?;
            found.push((run, of));
        }
        say!(self.json, "\nHeld-out pairs, from the first checkpoint to the last");
        say!(
            self.json,
            "{:<22}{:^21}{:^23}{:^23}{:>12}",
            "",
            "median cosine",
            "log pi(chosen)",
            "log pi(rejected)",
            "chosen fell"
        );
        for (run, of) in &found {
            let arrow = |[a, b]: [f64; 2], digits: usize| format!("{a:.digits$} -> {b:.digits$}");
            say!(
                self.json,
                "{run:<22}{:^21}{:^23}{:^23}{:>10.0} %",
                arrow(of.cosine, 3),
                arrow(of.chosen, 2),
                arrow(of.rejected, 2),
                100.0 * of.chosen_fell
            );
        }
        let of = |run: &str| &found.iter().find(|(name, _)| name == run).unwrap_or_else(|| unreachable!("{run} ran")).1;
        let [single, short, long] = ["single", "short", "long"].map(|set| of(&name(set, "dpo")));
        let fell = |of: &Comparison| of.chosen[1] < of.chosen[0];
        say!(self.json, "\nWhat the paper saw, and whether it is so here");
        let say = |what: &str, is: bool| -> Result<()> {
            say!(self.json, "  {:<4} {what}", if is { "yes" } else { "no" });
            Ok(())
        };
        say("the gradients of single-token pairs point apart: cosine below 0", single.cosine[0] < 0.0)?;
        say("they are the less apart the longer the shared suffix", {
            single.cosine[0] < short.cosine[0] && short.cosine[0] < long.cosine[0]
        })?;
        say("DPO on long suffixes lowers the chosen responses too", fell(long))?;
        let kept: Vec<&str> = OBJECTIVES.into_iter().filter(|o| !fell(of(&name("long", o)))).collect();
        let lost: Vec<&str> = OBJECTIVES.into_iter().filter(|o| fell(of(&name("long", o)))).collect();
        say!(self.json, "  there, chosen responses do not fall under {}", kept.join(", "));
        say!(self.json, "  and they fall under {}", lost.join(", "));
        Ok(())
    }
}

/// Rows whose tokens are those of their texts: EOS would give all responses an ending in common.
fn as_they_are(data: impl Into<PathBuf>) -> DataOptions {
    let rows = RowOptions { recipe: RecipeName::Apart.recipe(), ..RowOptions::default() };
    DataOptions { rows, ..DataOptions::new(data) }
}

/// An objective of the catalogue.
fn objective(name: &str) -> Objective {
    name.parse().unwrap_or_else(|_| unreachable!("{name} is in the catalogue"))
}

/// Folder of a run.
fn name(set: &str, objective: &str) -> String {
    format!("{}-{set}", objective.split(':').next().unwrap_or(objective))
}
