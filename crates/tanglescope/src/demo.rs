//! `tanglescope demo`: the paper's experiment in miniature, on a small model and pairs that the program carries (made by
//! examples/make_demo.rs): supervised fine-tuning, training on preferences, and the entanglement of every checkpoint.
use crate::cli::{Cli, Command, Demo};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::{report, sweep, tokens, train};
use clap::Parser;
use std::path::{Path, PathBuf};
use std::time::Instant;
use tanglescope_analytics::Comparison;
use tanglescope_report::Origin;

/// Files of the model folder.
const MODEL: [(&str, &[u8]); 4] = [
    ("config.json", include_bytes!("../demo/config.json")),
    ("model.safetensors", include_bytes!("../demo/model.safetensors")),
    ("tokenizer.json", include_bytes!("../demo/tokenizer.json")),
    ("tokenizer_config.json", include_bytes!("../demo/tokenizer_config.json")),
];

/// Pairs whose responses differ in one token and then share nothing, a few tokens, or many.
const SETS: [(&str, &str); 3] = [
    ("single", include_str!("../demo/single.jsonl")),
    ("short", include_str!("../demo/short.jsonl")),
    ("long", include_str!("../demo/long.jsonl")),
];

/// Pairs of each set that are trained on; the others are held out, and analysed.
const TRAINED_ON: usize = 128;

/// Objectives beside DPO, on the long set.
const OBJECTIVES: [&str; 7] = ["ipo", "simpo", "cpo", "dpop", "normalised", "sparse_hard", "sparse:lam=0.05"];

/// Steps between checkpoints of a run on preferences, and of the whole run.
const SAVE_EVERY: usize = 6;
const STEPS: usize = 18;

/// Runs the command.
pub fn run(args: &Demo) -> Result<()> {
    let temporary;
    let folder = if let Some(out) = &args.out {
        out.as_path()
    } else {
        temporary = tempfile::tempdir().map_err(|e| Error::output(&std::env::temp_dir(), e))?;
        temporary.path()
    };
    let demo = Experiment { folder, device: args.device.as_deref() };
    if !args.dry.dry_run {
        demo.write_files()?;
    }
    eprintln!("device: {}", Device::choose(args.device.as_deref())?);
    println!("A model of a million parameters, and three sets of pairs (Yuan et al., arXiv 2410.13828, section 4):");
    for (name, rows) in SETS {
        println!("  {name:<7} {}", rows.lines().next().unwrap_or_default());
    }
    let runs: Vec<(&str, &str)> = SETS
        .iter()
        .map(|(set, _)| (*set, "dpo"))
        .chain(OBJECTIVES.iter().map(|objective| ("long", *objective)))
        .collect();
    if args.dry.dry_run {
        println!(
            "\n{} fine-tunings, then {} runs on preferences, each with its checkpoints analysed:",
            SETS.len(),
            runs.len()
        );
        for (set, objective) in &runs {
            println!("  {STEPS} steps of 16 pairs on {objective}, {set}");
        }
        println!("nothing was computed, and nothing is left");
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
    let report =
        args.out.as_ref().map_or_else(|| PathBuf::from("tanglescope-demo.html"), |out| out.join("report.html"));
    demo.page(&report)?;
    println!("\nAll of it to look at: {}", report.display());
    if args.out.is_none() {
        println!("The rest of the results was in a temporary folder; `demo --out FOLDER` keeps it.");
    }
    Ok(())
}

/// The folder of a demo, and where it runs.
struct Experiment<'a> {
    folder: &'a Path,
    device: Option<&'a str>,
}

impl Experiment<'_> {
    fn path(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }

    fn write_files(&self) -> Result<()> {
        let write = |path: PathBuf, bytes: &[u8]| {
            let parent = path.parent().unwrap_or(Path::new("."));
            let written = std::fs::create_dir_all(parent).and_then(|()| std::fs::write(&path, bytes));
            written.map_err(|e| Error::output(&path, e))
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

    /// Runs a command as if it were written.
    fn command(&self, words: &[&str], quiet: bool) -> Result<()> {
        let device = self.device.map_or_else(Vec::new, |device| vec!["--device", device]);
        let words = ["tanglescope"].into_iter().chain(words.iter().copied()).chain(device);
        let words: Vec<&str> = words.collect();
        if !quiet {
            println!("\n$ {}", words.join(" "));
        }
        match Cli::parse_from(words).command {
            Command::Sweep(args) => sweep::quietly(&args),
            Command::Train(args) => train::quietly(&args),
            Command::Tokens(args) => tokens::quietly(&args),
            _ => unreachable!("the demo trains, sweeps and looks at tokens"),
        }
    }

    /// The checkpoint that training on preferences starts from: the model tuned on a set's chosen responses.
    fn fine_tuned(&self, set: &str) -> String {
        self.path(&format!("runs/sft-{set}/checkpoint-32"))
    }

    fn fine_tune(&self, set: &str) -> Result<()> {
        let (model, data) = (self.path("model"), self.path(&format!("{set}-train.jsonl")));
        let out = self.path(&format!("runs/sft-{set}"));
        let words =
            ["train", "--model", &model, "--data", &data, "--out", &out, "--objective", "sft", "--scope", "full"];
        let rest = ["--learning-rate", "5e-4", "--batch-size", "16", "--max-steps", "32", "--save-every", "32"];
        self.command(&[words.as_slice(), &rest].concat(), false)
    }

    /// Trains on an objective, and analyses the held-out pairs at every checkpoint.
    fn run(&self, set: &str, objective: &str, number: &str) -> Result<()> {
        let start = Instant::now();
        let (model, data) = (self.fine_tuned(set), self.path(&format!("{set}-train.jsonl")));
        let held_out = self.path(&format!("{set}-held-out.jsonl"));
        let name = name(set, objective);
        let (out, steps) = (self.path(&format!("runs/{name}")), STEPS.to_string());
        let every = SAVE_EVERY.to_string();
        let words =
            ["train", "--model", &model, "--data", &data, "--out", &out, "--objective", objective, "--scope", "full"];
        let rest =
            ["--eval-data", &held_out, "--learning-rate", "1e-4", "--schedule", "constant", "--warmup-steps", "2"];
        let steps = ["--batch-size", "16", "--max-steps", &steps, "--save-every", &every, "--predict-every", &every];
        let masks: &[&str] = if objective.starts_with("sparse:") { &["--mask-learning-rate", "10"] } else { &[] };
        self.command(&[words.as_slice(), &rest, &steps, &["--gram-every", "3"], masks].concat(), false)?;
        let (swept, data) = (self.path("sweep"), format!("{set}={held_out}"));
        let words = ["sweep", &out, "--data", &data, "--out", &swept, "--scope", "full", "--objective", "all"];
        self.command(&words, false)?;
        println!("run {number}: trained and analysed in {:.0} s", start.elapsed().as_secs_f64());
        Ok(())
    }

    /// Which tokens entangle the held-out pairs of the long set, at the end of training with DPO.
    fn tokens(&self) -> Result<()> {
        let (model, data) = (self.path(&format!("runs/dpo-long/checkpoint-{STEPS}")), self.path("long-held-out.jsonl"));
        let out = self.path("tokens");
        self.command(&["tokens", "--model", &model, "--data", &data, "--out", &out, "--scope", "full"], false)
    }

    /// Everything on one page.
    fn page(&self, out: &Path) -> Result<()> {
        let (swept, tokens) = (self.path("sweep"), self.path("tokens"));
        let words = ["tanglescope", "report", &swept, &tokens, "--out", &out.display().to_string()].map(str::to_owned);
        println!("\n$ {}", words.join(" "));
        let Command::Report(args) = Cli::parse_from(&words).command else { unreachable!("it is a report") };
        report::write(&args, Origin { version: env!("CARGO_PKG_VERSION").to_owned(), command: words.to_vec() })
    }

    /// What training did to the held-out pairs, run by run, beside what the paper saw.
    fn say(&self, runs: &[(&str, &str)]) -> Result<()> {
        let leaves = tanglescope_analytics::find(&[self.folder.join("sweep")])?;
        let mut found = Vec::new();
        for (set, objective) in runs {
            let run = name(set, objective);
            let at = |step: usize| {
                let leaf = leaves.iter().find(|leaf| leaf.run == run && leaf.step == Some(step as u64));
                leaf.unwrap_or_else(|| unreachable!("{run} was swept at {step}"))
            };
            let of = Comparison::of(at(0), at(STEPS))?;
            found.push((run, of));
        }
        println!("\nHeld-out pairs, from the first checkpoint to the last");
        println!(
            "{:<22}{:^21}{:^23}{:^23}{:>12}",
            "", "median cosine", "log pi(chosen)", "log pi(rejected)", "chosen fell"
        );
        for (run, of) in &found {
            let arrow = |[a, b]: [f64; 2], digits: usize| format!("{a:.digits$} -> {b:.digits$}");
            println!(
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
        println!("\nWhat the paper saw, and whether it is so here");
        let say = |what: &str, is: bool| println!("  {:<4} {what}", if is { "yes" } else { "no" });
        say("the gradients of single-token pairs point apart: cosine below 0", single.cosine[0] < 0.0);
        say("they are the less apart the longer the shared suffix", {
            single.cosine[0] < short.cosine[0] && short.cosine[0] < long.cosine[0]
        });
        say("DPO on long suffixes lowers the chosen responses too", fell(long));
        let kept: Vec<&str> = OBJECTIVES.into_iter().filter(|o| !fell(of(&name("long", o)))).collect();
        let lost: Vec<&str> = OBJECTIVES.into_iter().filter(|o| fell(of(&name("long", o)))).collect();
        println!("  there, chosen responses do not fall under {}", kept.join(", "));
        println!("  and they fall under {}", lost.join(", "));
        Ok(())
    }
}

/// Folder of a run.
fn name(set: &str, objective: &str) -> String {
    format!("{}-{set}", objective.split(':').next().unwrap_or(objective))
}
