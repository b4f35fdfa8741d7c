//! `tanglescope demo`: `analyze` on a small model and pairs that the program carries (made by examples/make_demo.rs).
use crate::analyze;
use crate::cli::{Cli, Command, Demo};
use crate::error::{Error, Result};
use clap::Parser;
use std::path::Path;

/// Files of the model folder, and the data.
const FILES: &[(&str, &[u8])] = &[
    ("model/config.json", include_bytes!("../demo/config.json")),
    ("model/model.safetensors", include_bytes!("../demo/model.safetensors")),
    ("model/tokenizer.json", include_bytes!("../demo/tokenizer.json")),
    ("model/tokenizer_config.json", include_bytes!("../demo/tokenizer_config.json")),
    ("pairs.jsonl", include_bytes!("../demo/pairs.jsonl")),
];

/// Runs the command.
pub fn run(args: &Demo) -> Result<()> {
    let temporary;
    let folder = if let Some(out) = &args.out {
        out.as_path()
    } else {
        temporary = tempfile::tempdir().map_err(|e| Error::output(&std::env::temp_dir(), e))?;
        temporary.path()
    };
    for (name, bytes) in FILES {
        let path = folder.join(name);
        let parent = path.parent().unwrap_or(Path::new("."));
        let written = std::fs::create_dir_all(parent).and_then(|()| std::fs::write(&path, bytes));
        written.map_err(|e| Error::output(&path, e))?;
    }
    let place = |name: &str| folder.join(name).display().to_string();
    let (model, data, out) = (place("model"), place("pairs.jsonl"), place("results"));
    let mut command =
        vec!["tanglescope", "analyze", "--model", &model, "--data", &data, "--scope", "full", "--out", &out];
    if let Some(device) = &args.device {
        command.extend(["--device", device]);
    }
    println!("$ {}\n", command.join(" "));
    let Command::Analyze(analyze) = Cli::parse_from(&command).command else { unreachable!("the command is analyze") };
    if args.dry.dry_run {
        return analyze::dry_run(&analyze);
    }
    let summary = analyze::run(&analyze)?;
    print!("\n{summary}");
    println!("\nThe model has random weights, so these numbers show what a run looks like, not what tuning does.");
    if args.out.is_none() {
        println!("The results were in a temporary folder; `demo --out FOLDER` keeps them.");
    }
    Ok(())
}
