//! The command line as it is written.
#![allow(missing_docs)] // of groups of options that are flattened, which say what they are themselves
use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;
use std::str::FromStr;
use tanglescope::{AssistantLast, Eos, ImplicitPrompt, Join, Mapping, NaiveDate, RecipeName, Truncate};

/// Measures gradient entanglement in preference-tuned language models.
#[derive(Debug, Parser)]
#[command(name = "tanglescope", version, about, max_term_width = 110)]
pub struct Cli {
    /// Print the command's output as JSON
    #[arg(long, global = true)]
    pub json: bool,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Entanglement of every preference pair: log-probabilities and inner products of their gradients
    Analyze(Analyze),
    /// Analyse every checkpoint of one or more runs on one or more data sets
    Sweep(Sweep),
    /// Inner products of the gradients of single response tokens: which tokens entangle a pair
    Tokens(Tokens),
    /// Inner products of the gradients of different pairs: what a step on one does to another
    Interference(Interference),
    /// What a folder is: architecture, size and stored types, adapter, steps; what can be measured, what is refused and why, what a pair takes
    Inspect(Inspect),
    /// What will be measured: the text and the tokens of every row, where responses begin, what is cut or left out
    Rows(Rows),
    /// Summarise records: medians, intervals, regimes, layers, correlations of entanglement with pair properties
    Summarize(Summarize),
    /// Write a report of records, pair by pair and token by token: one HTML page that works offline, or Markdown
    Report(Report),
    /// Train on any objective: LoRA or all parameters, with every step's entanglement recorded
    Train(Box<Train>),
    /// Check a model and data: gradients against differences in f64, the working precision against f64
    Verify(Verify),
    /// List the objectives: keys with defaults, formula, source
    Objectives,
    /// List the devices of this machine: memory, number types, what they offer
    Devices(Devices),
    /// Measure a device: its rates, each kernel against the roofline that those give, and the whole pass
    Bench(Bench),
    /// The paper's experiment in miniature: train a small model on many objectives, and see whose probabilities fall
    Demo(Demo),
    /// Print a completion script for a shell
    Completions(Completions),
    /// Write manual pages of these commands
    Man(Man),
}

/// Options of `completions`.
#[derive(Args, Clone, Debug)]
pub struct Completions {
    /// Which shell
    #[arg(value_enum)]
    pub shell: clap_complete::Shell,
}

/// Options of `man`.
#[derive(Args, Clone, Debug)]
pub struct Man {
    /// Folder for the pages
    #[arg(long, value_name = "FOLDER")]
    pub out: PathBuf,
}

/// Which model, and what of it.
#[derive(Args, Clone, Debug)]
pub struct ModelArgs {
    /// Folder of a Hugging Face model: config.json, safetensors, tokenizer.json
    #[arg(long, value_name = "FOLDER")]
    pub model: PathBuf,
    /// Folder of a PEFT LoRA adapter
    #[arg(long, value_name = "FOLDER")]
    pub adapter: Option<PathBuf>,
    #[command(flatten)]
    pub measured: Measured,
}

/// GiB of a number, or of a number with a unit.
fn gibibytes(text: &str) -> Result<f64, String> {
    const UNITS: [(&str, f64); 7] = [
        ("gib", 1.0),
        ("gb", 1e9 / (1u64 << 30) as f64),
        ("mib", 1.0 / 1024.0),
        ("mb", 1e6 / (1u64 << 30) as f64),
        ("tib", 1024.0),
        ("tb", 1e12 / (1u64 << 30) as f64),
        ("g", 1.0),
    ];
    let lower = text.trim().to_lowercase();
    let unit = UNITS.iter().find_map(|(unit, gib)| Some((lower.strip_suffix(unit)?, *gib)));
    let (number, gib) = unit.unwrap_or((&lower, 1.0));
    let expected = || "expected a number of GiB, or a number with GiB, GB, MiB or MB".to_owned();
    number.trim().parse::<f64>().map(|number| number * gib).map_err(|_| expected())
}

/// What of a model is measured, in which precision, and where.
#[derive(Args, Clone, Debug)]
pub struct Measured {
    /// Parameters: lora (A and B), trainable (with `modules_to_save`), full (all of the base), head (the logits part of
    /// the output matrix), or a regular expression over names
    #[arg(long, default_value = "lora")]
    pub scope: String,
    /// Rank of the fresh adapter that scope `lora` uses where none is given
    #[arg(long, default_value_t = 16, value_name = "R")]
    pub lora_r: usize,
    /// α of the fresh adapter: its factor is α/r [default: twice the rank]
    #[arg(long, value_name = "ALPHA")]
    pub lora_alpha: Option<f64>,
    /// Modules of the fresh adapter, separated by commas [default: the projections of attention]
    #[arg(long, value_delimiter = ',', value_name = "MODULES")]
    pub lora_targets: Vec<String>,
    /// Seed of the fresh adapter
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Whether the gradient of the embedding's row of `pad_token_id` leaves out its places in a sequence, as torch's embedding does
    /// (trainer), or is the function's derivative (exact)
    #[arg(long, value_enum, default_value_t = Derivative::Trainer)]
    pub padding_row: Derivative,
    /// Whether gradients of a DoRA adapter leave out the norms of its columns, as PEFT does (trainer), or go through them (exact)
    #[arg(long, value_enum, default_value_t = Derivative::Trainer)]
    pub dora_norm: Derivative,
    /// Precision
    #[arg(long, value_enum, default_value_t = Precision::F32)]
    pub dtype: Precision,
    /// Let products of f32 round their factors to tf32 (11 significant bits), several times as fast on CUDA devices of compute capability 8.0 and later
    #[arg(long)]
    pub tf32: bool,
    /// cpu, cuda, vulkan, one by number (cuda:1), or several that share the work (cuda:0,1 or cuda:all) [default: the best present]
    #[arg(long)]
    pub device: Option<String>,
    /// Memory limit in GiB for weights and activations together; beyond it, activations are recomputed, weights are copied to the GPU
    /// block by block, and on the CPU read from the model's files when they are used [default: what is free]
    #[arg(long, value_name = "GIB", allow_negative_numbers = true, value_parser = gibibytes)]
    pub memory: Option<f64>,
}

/// Which derivative is taken where trainers take one that is not the function's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Derivative {
    /// The trainers'.
    Trainer,
    /// The function's.
    Exact,
}

/// Which rows, and how they become tokens.
#[derive(Args, Clone, Debug)]
pub struct DataArgs {
    /// Preference data: JSONL, JSON, CSV, parquet or arrow, a file or a folder of files, or org/name or org/name@revision on the hub
    #[arg(long, value_name = "DATA")]
    pub data: PathBuf,
    #[command(flatten)]
    pub rows: RowArgs,
}

/// How rows become tokens.
#[derive(Args, Clone, Debug)]
pub struct RowArgs {
    /// Split to use where a data set has several [default: train]
    #[arg(long, value_name = "NAME")]
    pub split: Option<String>,
    /// Where the usual columns are: prompt=info.post,chosen=…,rejected=… [default: recognised by their names]
    #[arg(long, value_name = "NAME=COLUMN,…", value_parser = Mapping::parse)]
    pub columns: Option<Mapping>,
    /// Only the first N rows
    #[arg(long, value_name = "N")]
    pub limit: Option<usize>,
    /// What to do with a row that cannot be used
    #[arg(long, value_enum, default_value_t = OnBadRow::Stop)]
    pub on_bad_row: OnBadRow,
    #[command(flatten)]
    pub tokens: TokenArgs,
}

/// How texts become tokens. `tanglescope rows` shows what comes of it.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Tokens of texts")]
pub struct TokenArgs {
    /// Whose tokens: trl (1.10 and later), trl-0.29, trl-0.24 (0.13 to 0.24), openrlhf, llama-factory, official (the
    /// published script, with its slip), or apart (prompt and response by themselves, nothing added, nothing cut)
    #[arg(long, value_parser = one_of::<RecipeName>(RecipeName::NAMES), default_value = "trl", hide_possible_values = true)]
    pub tokenize: RecipeName,
    /// Render plain-text rows with the chat template, as a user and an assistant turn [default: only with llama-factory]
    #[arg(long)]
    pub chat: bool,
    /// Whether prompt and response are tokenised together, and where the response begins [default: the recipe's]
    #[arg(long, value_parser = one_of::<Join>(Join::NAMES))]
    pub join: Option<Join>,
    /// What ends a response: EOS's text or id after plain text that lacks it, its text after a space, its id always, none
    /// [default: the recipe's]
    #[arg(long, value_parser = one_of::<Eos>(Eos::NAMES))]
    pub eos: Option<Eos>,
    /// The same as --eos id
    #[arg(long, conflicts_with = "eos")]
    pub append_eos: bool,
    /// Whether plain text gets the special tokens that the tokenizer puts around one [default: the recipe's]
    #[arg(long, value_name = "true|false")]
    pub add_special_tokens: Option<bool>,
    /// Where plain texts without a prompt are split: after what they share, or after the last shared "\n\nAssistant:"
    /// [default: the recipe's]
    #[arg(long, value_parser = one_of::<ImplicitPrompt>(ImplicitPrompt::NAMES))]
    pub implicit_prompt: Option<ImplicitPrompt>,
    /// What follows a prompt that ends with the assistant: a new turn, the rest of that turn, or what closes it, scored with the
    /// response [default: the recipe's]
    #[arg(long, value_parser = one_of::<AssistantLast>(AssistantLast::NAMES))]
    pub assistant_last: Option<AssistantLast>,
    /// Most tokens of prompt and response together, of rows of ids as well, or none [default: the recipe's, for texts]
    #[arg(long, alias = "max-tokens", value_name = "TOKENS|none", value_parser = most_tokens)]
    pub max_length: Option<Most>,
    /// Most tokens of a prompt, which loses the others on the left, or none [default: the recipe's, for texts]
    #[arg(long, value_name = "TOKENS|none", value_parser = most_tokens)]
    pub max_prompt_length: Option<Most>,
    /// What is cut of a row that is too long: the ends of its responses, the beginning of its prompt, both in proportion, or
    /// nothing: it is a bad row [default: the recipe's]
    #[arg(long, value_parser = one_of::<Truncate>(Truncate::NAMES))]
    pub truncate: Option<Truncate>,
    /// The same as --truncate prompt
    #[arg(long, conflicts_with = "truncate")]
    pub truncate_prompt: bool,
    /// The day that chat templates write [default: today]
    #[arg(long, value_name = "YYYY-MM-DD")]
    pub date: Option<NaiveDate>,
}

/// A limit, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Most(pub Option<usize>);

fn most_tokens(text: &str) -> Result<Most, String> {
    match text {
        "none" => Ok(Most(None)),
        number => match number.parse() {
            Ok(most) if most > 0 => Ok(Most(Some(most))),
            _ => Err("expected a number of tokens from 1, or none".to_owned()),
        },
    }
}

/// One of some names, as the type that they are of.
fn one_of<T: FromStr<Err = String> + Clone + Send + Sync + 'static>(
    names: &'static [&'static str],
) -> impl TypedValueParser<Value = T> {
    PossibleValuesParser::new(names.iter().copied()).try_map(|name| name.parse::<T>())
}

/// Number type of weights and activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Precision {
    /// 32 bits.
    F32,
    /// 64 bits, on the CPU.
    F64,
    /// 16 bits with the range of f32, on devices that have it; sums stay in f32.
    Bf16,
    /// 16 bits, on devices that have it; sums stay in f32.
    F16,
}

/// In which metric inner products are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Metric {
    /// ⟨u, v⟩.
    Gradient,
    /// Σ u·v/(√v̂ + ε), beside the plain one.
    Adam,
}

/// What to do with a row that cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OnBadRow {
    /// End with an error that names it.
    Stop,
    /// Go on, and record it in the manifest.
    Skip,
}

/// What is found of every pair beside its Gram.
#[derive(Args, Clone, Debug)]
pub struct PairMeasures {
    /// What one step on a loss would do to every pair: name:key=value,… (repeatable; see `tanglescope objectives`), or all
    #[arg(long, value_name = "NAME[:K=V,…]")]
    pub objective: Vec<String>,
    /// Metric that inner products are taken in: gradient, in which plain descent moves, or adam, in which the model is really trained (its
    /// columns begin with adam_); of a sweep each checkpoint has to have its optimizer's state
    #[arg(long, value_enum, default_value_t = Metric::Gradient, value_name = "NAME")]
    pub metric: Metric,
    /// Also compute the Gram of the gradients averaged over all pairs; needs a second pass and two accumulators the size of
    /// the parameters in scope
    #[arg(long)]
    pub mean_gradients: bool,
}

/// Options of `analyze`.
#[derive(Args, Clone, Debug)]
pub struct Analyze {
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub data: DataArgs,
    /// Folder for the results; an unfinished run in it goes on where it stopped
    #[arg(long, value_name = "FOLDER")]
    pub out: PathBuf,
    #[command(flatten)]
    pub measures: AnalysisMeasures,
    /// Do only the I-th of N parts of the work; the parts may run at once, anywhere, and into one folder
    #[arg(long, value_name = "I/N")]
    pub shard: Option<String>,
    #[command(flatten)]
    pub dry: DryRun,
}

/// What is found of every pair of one model: with its reference, and the state of its optimizer.
#[derive(Args, Clone, Debug)]
pub struct ModelMeasures {
    #[command(flatten)]
    pub found: PairMeasures,
    /// Reference model of objectives that use one: a model folder, base (the model without its adapter), or self (the
    /// policy is its own reference, as at the start of training) [default: base under a saved adapter, self under a fresh one, else none]
    #[arg(long, value_name = "FOLDER|base|self")]
    pub reference: Option<String>,
    /// State of the optimizer for --metric adam: optimizer.safetensors of `train`, optimizer.pt of Hugging Face trainers, or the folder of a
    /// checkpoint that has one [default: the folder of the adapter, or of the model]
    #[arg(long, value_name = "FILE|FOLDER")]
    pub optimizer: Option<PathBuf>,
}

/// What `analyze` finds of every pair.
#[derive(Args, Clone, Debug)]
pub struct AnalysisMeasures {
    #[command(flatten)]
    pub of_pairs: ModelMeasures,
    /// Of rows with more than two responses, every pair of a better and a worse one, not only the best and the worst
    #[arg(long)]
    pub all_pairs: bool,
    /// What one step on a loss over groups would do to every response (repeatable): grpo, dr_grpo, rloo, plackett_luce,
    /// listnet, tpo, tpo_l
    #[arg(long, value_name = "NAME[:K=V,…]")]
    pub group_objective: Vec<String>,
    /// File of probe texts (rows of `prompt` and `completion`): predicts how a step on each pair changes their log-probability
    #[arg(long, value_name = "FILE")]
    pub probe: Option<PathBuf>,
}

/// Options of `interference`.
#[derive(Args, Clone, Debug)]
pub struct Interference {
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub data: DataArgs,
    /// Folder for the results, which may be where an analysis of the same is; an unfinished run in it goes on where it stopped
    #[arg(long, value_name = "FOLDER")]
    pub out: PathBuf,
    #[command(flatten)]
    pub measures: CoupleMeasures,
    /// Do only the I-th of N parts of the work; the parts may run at once, anywhere, and into one folder
    #[arg(long, value_name = "I/N")]
    pub shard: Option<String>,
    #[command(flatten)]
    pub dry: DryRun,
}

/// What `interference` finds of every pair, and of every two.
#[derive(Args, Clone, Debug)]
pub struct CoupleMeasures {
    #[command(flatten)]
    pub of_pairs: ModelMeasures,
    #[command(flatten)]
    pub between: BetweenMeasures,
}

/// What `interference` finds of every two pairs.
#[derive(Args, Clone, Debug)]
pub struct BetweenMeasures {
    /// Only the pairs of these rows of the data, by number from 0
    #[arg(long, value_name = "ROW,…", value_delimiter = ',')]
    pub pairs: Option<Vec<u64>>,
    /// A second data set, read as --data is: how every pair of the first meets every pair of the second, which is what training on one
    /// does to the other
    #[arg(long, value_name = "FILE|FOLDER|HUB")]
    pub against: Option<PathBuf>,
    /// Also by transformer block
    #[arg(long)]
    pub by_layer: bool,
    /// Predict steps on batches of so many pairs, drawn as the first epoch of `train` draws them with --seed
    #[arg(long, value_name = "N", conflicts_with = "batches", value_parser = clap::value_parser!(u32).range(1..))]
    pub batch_size: Option<u32>,
    /// Predict steps on given batches: a file with a list of rows a line, or the folder of a run of `train`
    #[arg(long, value_name = "FILE|RUN")]
    pub batches: Option<PathBuf>,
    /// Number type that gradients are kept in until they meet; bf16 takes half the room of f32, and its products are off by 0.4 % of a
    /// gradient's entries [default: as --dtype]
    #[arg(long, value_enum, value_name = "TYPE")]
    pub keep: Option<Precision>,
}

/// Options of `rows`.
#[derive(Args, Clone, Debug)]
pub struct Rows {
    /// Folder of a Hugging Face model: config.json, tokenizer.json
    #[arg(long, value_name = "FOLDER")]
    pub model: PathBuf,
    /// Folder of a PEFT adapter, whose own tokenizer and chat template are used where it has them
    #[arg(long, value_name = "FOLDER")]
    pub adapter: Option<PathBuf>,
    #[command(flatten)]
    pub data: DataArgs,
    /// How many rows are printed
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub show: usize,
    /// JSONL file for the token ids of all rows, which every command reads as data
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
}

/// Options of `sweep`.
#[derive(Args, Clone, Debug)]
pub struct Sweep {
    /// Runs: folders of checkpoints as trainers leave them (`checkpoint-N`, `global_stepN_hf`, `global_step_N`, `step_N`, `epoch_N`), or
    /// single checkpoints; adapters and whole models. NAME=FOLDER gives a run another name than its folder's
    #[arg(required = true, value_name = "RUN")]
    pub runs: Vec<String>,
    /// Preference data: JSONL, JSON, CSV, parquet or arrow, a file or a folder of files, or org/name or org/name@revision on the hub
    /// (repeatable); NAME=DATA gives it another name than the file's
    #[arg(long, required = true, value_name = "DATA")]
    pub data: Vec<String>,
    /// Folder for the results, in run=…/step=…/dataset=… folders; what is there already is not done again
    #[arg(long, value_name = "FOLDER")]
    pub out: PathBuf,
    /// Branches and tags of a hub repository (RUN is org/name) that are its steps, such as 'step*': each is fetched when it is measured
    #[arg(long, value_name = "PATTERN")]
    pub revisions: Option<String>,
    /// Fetched revisions that stay in the cache, the last ones; 0 gives each back once it is measured [default: all]
    #[arg(long, value_name = "N", requires = "revisions")]
    pub keep: Option<usize>,
    /// Model that training started from: the one under the adapters, or the reference of whole models [default: the one that the run's manifest.json or the adapter names]
    #[arg(long, value_name = "FOLDER")]
    pub model: Option<PathBuf>,
    #[command(flatten)]
    pub measured: Measured,
    #[command(flatten)]
    pub rows: RowArgs,
    /// Only N rows of each data set, drawn with the seed; manifest.json lists them with their ids [default: all]
    #[arg(long, value_name = "N")]
    pub pairs: Option<usize>,
    #[command(flatten)]
    pub found: PairMeasures,
    /// Reference model of objectives that use one: a model folder, base (the model without its adapter), start (the model
    /// that the run was trained from), or self (each checkpoint is its own) [default: base under adapters, start for runs
    /// of `train`, else none]
    #[arg(long, value_name = "FOLDER|base|start|self")]
    pub reference: Option<String>,
    /// Do only the I-th of N parts of the work; the parts may run at once, anywhere, and into one folder
    #[arg(long, value_name = "I/N")]
    pub shard: Option<String>,
    #[command(flatten)]
    pub dry: DryRun,
}

/// What `summarize` has a row for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SummaryBy {
    /// Each model and data set.
    Run,
    /// Each metric: count, mean, quartiles, median with its 95 % interval.
    Metric,
    /// Each objective and regime: the share of pairs with its 95 % interval.
    Regime,
    /// Each objective and what it would do: loss, coefficients, predicted changes, band slack.
    Objective,
    /// Each layer: the cosine of its part of the gradients, and its share of wl.
    Layer,
    /// Each module of each layer.
    Module,
    /// Each expert of a block with experts: rows that went to it of chosen and rejected responses, and its share of wl.
    Expert,
    /// The Gram of the mean gradients over all pairs, where the run recorded it.
    Mean,
    /// Each measure of entanglement and property of the pairs: Spearman's correlation with its 95 % interval.
    Relation,
    /// Each measure of entanglement and tenth of the pairs by a property: lengths, edit distance, shared prefix, log-probability.
    Bin,
    /// The pairs that are farthest from the others.
    Outlier,
    /// Each response token, of analyze and tokens in one folder: what one step on each objective does to it.
    Token,
}

/// Formats of tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TableFormat {
    /// For reading.
    Table,
    /// Comma-separated values.
    Csv,
    /// A list of objects.
    Json,
    /// Markdown.
    Md,
    /// Parquet; needs --out.
    Parquet,
}

/// Other programs whose output is reproduced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Compat {
    /// The published repository's analysis/grad_plot.py: Step, `InnerProduct`, Correlation, `Grad_W_Norm`, `Grad_L_Norm`,
    /// `Grad_Condition`, the last with its slip (the norm of w used twice)
    Official,
}

/// Options of `summarize`.
#[derive(Args, Clone, Debug)]
pub struct Summarize {
    /// Folders of records, of `analyze` or `sweep`
    #[arg(required = true, value_name = "DIR")]
    pub folders: Vec<PathBuf>,
    /// What each row of the table stands for
    #[arg(long, value_enum, default_value_t = SummaryBy::Run)]
    pub by: SummaryBy,
    /// Compare pair by pair with other records: differences (these records minus DIR), rises, falls, sign test.
    /// Records are matched by data set and, where a data set has several, by step
    #[arg(long, value_name = "DIR", conflicts_with = "by")]
    pub against: Option<PathBuf>,
    /// Reproduce the columns of another program
    #[arg(long, value_enum, conflicts_with_all = ["by", "against"])]
    pub compat: Option<Compat>,
    /// How to print
    #[arg(long, value_enum, default_value_t = TableFormat::Table)]
    pub format: TableFormat,
    /// File to write instead of printing
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
}

/// Formats of a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ReportFormat {
    /// One HTML file with everything in it.
    Html,
    /// Markdown, with figures as SVG in a folder beside it.
    Md,
}

/// Options of `report`.
#[derive(Args, Clone, Debug)]
pub struct Report {
    /// Folders of records: of `analyze`, `interference` or `sweep`, with those of `tokens` and of training runs where there are some. The first is shown first
    #[arg(required = true, value_name = "DIR")]
    pub folders: Vec<PathBuf>,
    /// Output file
    #[arg(long, value_name = "FILE", required_unless_present = "watch")]
    pub out: Option<PathBuf>,
    /// Show the page on this machine alone while records are written, until Ctrl-C; at port 8600 where none is given, at any that is free where it is 0
    #[arg(
        long,
        value_name = "PORT",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "8600",
        conflicts_with_all = ["out", "format"]
    )]
    pub watch: Option<u16>,
    /// What it is
    #[arg(long, value_enum, default_value_t = ReportFormat::Html)]
    pub format: ReportFormat,
}

/// Options of `tokens`.
#[derive(Args, Clone, Debug)]
pub struct Tokens {
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub data: DataArgs,
    /// Folder for the results, which may be that of an analysis of the same model and data; an unfinished run in it resumes
    #[arg(long, value_name = "FOLDER")]
    pub out: PathBuf,
    /// Also write the matrices as NumPy arrays: npy/PAIR-wl.npy, -ww.npy, -ll.npy
    #[arg(long)]
    pub npy: bool,
    /// Also decompose wl by the positions at which parameters are used, prompt included; needs only the pass of the Gram
    #[arg(long)]
    pub positions: bool,
    /// Do only the I-th of N parts of the work; the parts may run at once, anywhere, and into one folder
    #[arg(long, value_name = "I/N")]
    pub shard: Option<String>,
    #[command(flatten)]
    pub dry: DryRun,
}

/// How the learning rate moves after the warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ScheduleName {
    /// It stays.
    Constant,
    /// In a straight line to 0.
    Linear,
    /// Along half a cosine to 0.
    Cosine,
}

/// Options of `train`.
#[derive(Args, Clone, Debug)]
pub struct Train {
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub data: DataArgs,
    /// Folder of the run; an unfinished run in it goes on from its last checkpoint
    #[arg(long, value_name = "FOLDER")]
    pub out: PathBuf,
    /// TOML file with any of these options, named without the leading dashes; the command line overrides it
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The loss: name:key=value,… (see `tanglescope objectives`)
    #[arg(long, value_name = "NAME[:K=V,…]")]
    pub objective: String,
    /// Reference model of objectives that use one: self (the model as training starts), base (without its adapter), or a
    /// model folder
    #[arg(long, value_name = "FOLDER|base|self", default_value = "self")]
    pub reference: String,
    /// Number of training epochs
    #[arg(long, default_value_t = 1.0, value_name = "N", allow_negative_numbers = true)]
    pub epochs: f64,
    /// Number of optimizer steps; overrides --epochs
    #[arg(long, value_name = "N")]
    pub max_steps: Option<usize>,
    /// Pairs of a batch
    #[arg(long, default_value_t = 8, value_name = "PAIRS")]
    pub batch_size: usize,
    /// Batches per optimizer step (gradient accumulation)
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub accumulate: usize,
    /// Largest learning rate
    #[arg(long, default_value_t = 1e-5, value_name = "RATE", allow_negative_numbers = true)]
    pub learning_rate: f64,
    /// How the learning rate moves after the warm-up
    #[arg(long, value_enum, default_value_t = ScheduleName::Linear)]
    pub schedule: ScheduleName,
    /// Steps over which the learning rate rises from 0 [default: a tenth of the run]
    #[arg(long, value_name = "N")]
    pub warmup_steps: Option<usize>,
    /// AdamW's decay of the first moment
    #[arg(long, default_value_t = 0.9, value_name = "BETA1")]
    pub adam_beta1: f32,
    /// AdamW's decay of the second moment
    #[arg(long, default_value_t = 0.999, value_name = "BETA2")]
    pub adam_beta2: f32,
    /// AdamW's ε
    #[arg(long, default_value_t = 1e-8, value_name = "EPSILON")]
    pub adam_epsilon: f32,
    /// AdamW's weight decay, on matrices
    #[arg(long, default_value_t = 0.0, value_name = "DECAY")]
    pub weight_decay: f32,
    /// Maximum gradient norm; larger gradients are scaled down to it; 0 disables clipping
    #[arg(long, default_value_t = 1.0, value_name = "LENGTH")]
    pub max_grad_norm: f64,
    /// Learning rate of the masks of objective `sparse`
    #[arg(long, default_value_t = 1.0, value_name = "RATE")]
    pub mask_learning_rate: f64,
    /// Pairs that are held out, for evaluation
    #[arg(long, value_name = "FILE")]
    pub eval_data: Option<PathBuf>,
    /// Share of the pairs that is held out, chosen by the seed
    #[arg(long, value_name = "SHARE", conflicts_with = "eval_data", allow_negative_numbers = true)]
    pub eval_fraction: Option<f64>,
    /// Steps between evaluations of the pairs that are held out [default: a tenth of the run]
    #[arg(long, value_name = "STEPS")]
    pub eval_every: Option<usize>,
    /// Steps between checkpoints; the first and the last step have one in any case [default: a tenth of the run]
    #[arg(long, value_name = "STEPS")]
    pub save_every: Option<usize>,
    /// Steps between records of every pair's inner products; 0 for none
    #[arg(long, default_value_t = 1, value_name = "STEPS")]
    pub gram_every: usize,
    /// Steps between predictions of what a step does to the log-probabilities of its pairs and of pairs held out, beside what
    /// it does; 0 for none
    #[arg(long, default_value_t = 0, value_name = "STEPS")]
    pub predict_every: usize,
    #[command(flatten)]
    pub dry: DryRun,
}

/// Options of `verify`.
#[derive(Args, Clone, Debug)]
pub struct Verify {
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub data: DataArgs,
    /// Pairs to check
    #[arg(long, default_value_t = 2)]
    pub pairs: usize,
    /// Losses whose real steps are checked against what the Gram says they do; the policy is its own reference
    #[arg(long, value_name = "NAME[:K=V,…]", default_values_t = ["dpo", "simpo", "cpo", "normalised"].map(str::to_owned))]
    pub objective: Vec<String>,
    #[command(flatten)]
    pub dry: DryRun,
}

/// Whether to work at all.
#[derive(Args, Clone, Copy, Debug)]
pub struct DryRun {
    /// Only say what would be done: groups, tokens, operations, memory, and the time that the device's measured rates
    /// predict
    #[arg(long)]
    pub dry_run: bool,
}

/// How a table is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For reading.
    Table,
    /// For programs.
    Json,
}

/// Options of `inspect`.
#[derive(Args, Clone, Debug)]
pub struct Inspect {
    /// A folder of a model, an adapter or a run, or org/name or org/name@revision on the hub
    pub path: PathBuf,
}

/// Options of `devices`.
#[derive(Args, Clone, Copy, Debug)]
pub struct Devices {
    /// How to print
    #[arg(long, value_enum, default_value_t = Format::Table)]
    pub format: Format,
}

/// Shapes of known models, for measurements with made-up weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ShapeName {
    /// The model that `demo` carries.
    Demo,
    /// SmolLM2-135M.
    #[value(name = "smollm2-135m")]
    SmolLm2,
    /// Llama-3.2-1B.
    #[value(name = "llama-3.2-1b")]
    Llama1b,
    /// Llama-3-8B.
    #[value(name = "llama-3-8b")]
    Llama8b,
}

/// Options of `bench`.
#[derive(Args, Clone, Debug)]
pub struct Bench {
    /// Folder of a Hugging Face model whose weights are used
    #[arg(long, value_name = "FOLDER", conflicts_with = "shape")]
    pub model: Option<PathBuf>,
    /// A known shape with made-up weights
    #[arg(long, value_enum, default_value_t = ShapeName::SmolLm2)]
    pub shape: ShapeName,
    /// Number of transformer blocks, for a known shape [default: as many as the shape has]
    #[arg(long, value_name = "N")]
    pub layers: Option<usize>,
    /// Parameters, as for `analyze`
    #[arg(long, default_value = "lora")]
    pub scope: String,
    /// Rank of the adapter
    #[arg(long, default_value_t = 16, value_name = "R")]
    pub lora_r: usize,
    /// Modules of the adapter, separated by commas [default: the projections of attention]
    #[arg(long, value_delimiter = ',', value_name = "MODULES")]
    pub lora_targets: Vec<String>,
    /// Whether the gradient of the embedding's row of `pad_token_id` leaves out its places in a sequence, as torch's embedding does
    /// (trainer), or is the function's derivative (exact)
    #[arg(long, value_enum, default_value_t = Derivative::Trainer)]
    pub padding_row: Derivative,
    /// Precision
    #[arg(long, value_enum, default_value_t = Precision::F32)]
    pub dtype: Precision,
    /// Let products of f32 round their factors to tf32 (11 significant bits), several times as fast on CUDA devices of compute capability 8.0 and later
    #[arg(long)]
    pub tf32: bool,
    /// cpu, cuda, cuda:N, vulkan or vulkan:N [default: the best present]
    #[arg(long)]
    pub device: Option<String>,
    /// GiB, as for `analyze`
    #[arg(long, value_name = "GIB", allow_negative_numbers = true, value_parser = gibibytes)]
    pub memory: Option<f64>,
    /// Tokens of each prompt
    #[arg(long, default_value_t = 200, value_name = "TOKENS")]
    pub prompt: usize,
    /// Tokens of each response
    #[arg(long, default_value_t = 100, value_name = "TOKENS")]
    pub response: usize,
    /// Pairs of a pass
    #[arg(long, default_value_t = 4)]
    pub pairs: usize,
    /// Times that the pass is run after once to warm up
    #[arg(long, default_value_t = 3)]
    pub repeats: usize,
    /// How to print
    #[arg(long, value_enum, default_value_t = Format::Table)]
    pub format: Format,
    /// Measure the rates of the device and its kernels, but not the pass
    #[arg(long, conflicts_with = "pass_only")]
    pub kernels_only: bool,
    /// Measure the rates of the device and the pass, but not each kernel
    #[arg(long)]
    pub pass_only: bool,
    #[command(flatten)]
    pub dry: DryRun,
}

/// Options of `demo`.
#[derive(Args, Clone, Debug)]
pub struct Demo {
    /// Folder for the results and the demo's model [default: a temporary one]
    #[arg(long, value_name = "FOLDER")]
    pub out: Option<PathBuf>,
    /// cpu, cuda, cuda:N, vulkan or vulkan:N [default: the best present]
    #[arg(long)]
    pub device: Option<String>,
    #[command(flatten)]
    pub dry: DryRun,
}
