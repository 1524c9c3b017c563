//! The command line: clap definitions and nothing else.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::client::{ConfigError, Endpoint};
use crate::settings::{Levels, Overrides};
use crate::simulator::FaultRate;

/// Finds how many parallel requests an LLM endpoint serves best, and writes that number into your config.yaml.
#[derive(Debug, Parser)]
#[command(name = "llm-concurrency", version, after_help = EXIT_CODES)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

const EXIT_CODES: &str = "Exit codes of `run` and `recommend`: 0 done; 1 error; 2 usage; 3 nothing that may be written into \
the config; 4 regression; 130 interrupted.";

/// The doors.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Measure all levels, print the recommendation, write the results
    Run(RunArgs),
    /// Decide from what is on disk, and write the number into config.yaml
    Recommend(RecommendArgs),
    /// Make the HTML report of a results file, or of two to compare
    Report(ReportArgs),
    /// Send one request and say what works, or what is wrong and how to mend it
    Check(TargetArgs),
    /// Write test-data/test_snippets.json
    GenerateTestData(GenerateArgs),
    /// Run the simulated LLM server alone
    Simulate(SimulateArgs),
}

/// Options of `run`.
#[derive(Args, Debug)]
pub struct RunArgs {
    /// Fewer levels and requests; the result is provisional
    #[arg(long)]
    pub quick: bool,
    /// What to write.
    #[command(flatten)]
    pub write: WriteArgs,
    /// Leave out listed levels below
    #[arg(long, value_name = "N")]
    pub min_concurrency: Option<usize>,
    /// Leave out listed levels above
    #[arg(long, value_name = "N")]
    pub max_concurrency: Option<usize>,
    /// Requests per level (at least 10 x the level are sent)
    #[arg(long, value_name = "N")]
    pub total_requests: Option<usize>,
    /// Levels such as 1,2,5, or auto
    #[arg(long, visible_alias = "custom-levels", value_name = "LEVELS")]
    pub levels: Option<Levels>,
    /// What to compare with.
    #[command(flatten)]
    pub against: BaselineArgs,
    /// What to measure.
    #[command(flatten)]
    pub target: TargetArgs,
    /// Seed of everything random on our side
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// Show nothing of a level while it runs
    #[arg(long)]
    pub quiet: bool,
    /// Serve Prometheus metrics of the run at http://ADDRESS/metrics
    #[arg(long, value_name = "ADDRESS", num_args = 0..=1, default_missing_value = "127.0.0.1:9464")]
    pub metrics_addr: Option<SocketAddr>,
    /// Read the server's own /metrics once a second (vLLM, llama.cpp, SGLang), to show its queue in the report
    #[arg(long)]
    pub server_metrics: bool,
    /// Stop before more requests than this are sent
    #[arg(long, value_name = "N")]
    pub max_requests: Option<u64>,
    /// Stop before more output tokens than this are made
    #[arg(long, value_name = "N")]
    pub max_output_tokens: Option<u64>,
    /// Stop after this many minutes
    #[arg(long, value_name = "MINUTES")]
    pub max_minutes: Option<f64>,
    /// Stop before more than this is spent (needs prices in the config)
    #[arg(long, value_name = "USD")]
    pub max_cost_usd: Option<f64>,
}

/// What `--update-config` writes unless told otherwise.
pub const DEFAULT_KEY: &str = "llm.max_concurrent_requests";

impl RunArgs {
    /// The settings given as flags.
    ///
    /// # Errors
    /// If the endpoint is no URL.
    pub fn overrides(&self) -> Result<Overrides, ConfigError> {
        Ok(Overrides {
            levels: self.levels.clone(),
            min_concurrency: self.min_concurrency,
            max_concurrency: self.max_concurrency,
            total_requests: self.total_requests,
            seed: self.seed,
            quick: self.quick.then_some(true),
            quiet: self.quiet.then_some(true),
            server_metrics: self.server_metrics.then_some(true),
            metrics_addr: self.metrics_addr,
            max_requests: self.max_requests,
            max_output_tokens: self.max_output_tokens,
            max_minutes: self.max_minutes,
            max_cost_usd: self.max_cost_usd,
            ..self.target.overrides()?
        })
    }
}

/// The endpoint: all of `check`, a part of `run`.
#[derive(Args, Debug)]
pub struct TargetArgs {
    // Not parsed by clap, which would repeat it in its message, and it may hold a password.
    /// Base URL such as http://localhost:8000/v1, or simulator
    #[arg(long, value_name = "URL")]
    pub llm_endpoint: Option<String>,
    /// The model, as the server knows it
    #[arg(long, value_name = "NAME")]
    pub llm_model: Option<String>,
    /// The config file [default: $LLM_CONFIG, else config.yaml]
    #[arg(long, value_name = "PATH")]
    pub config: Option<PathBuf>,
}

impl TargetArgs {
    /// The settings given as flags.
    ///
    /// # Errors
    /// If the endpoint is no URL.
    pub fn overrides(&self) -> Result<Overrides, ConfigError> {
        let wrong = |message| ConfigError::Value { what: "--llm-endpoint".to_owned(), message };
        let endpoint: Option<Endpoint> = self.llm_endpoint.as_deref().map(str::parse).transpose().map_err(wrong)?;
        Ok(Overrides { endpoint, model: self.llm_model.clone(), ..Overrides::default() })
    }
}

/// What is written into the config file.
#[derive(Args, Debug)]
pub struct WriteArgs {
    /// Write the recommended number into the config file
    #[arg(long)]
    pub update_config: bool,
    /// With --update-config: write a provisional result too
    #[arg(long)]
    pub allow_provisional: bool,
    /// The key --update-config writes
    #[arg(long, value_name = "KEY", default_value = DEFAULT_KEY)]
    pub config_key: String,
}

/// The bin `recommend`.
#[derive(Debug, Parser)]
#[command(name = "recommend", version, about = "Decides from what is on disk, and writes the number into config.yaml", after_help = EXIT_CODES)]
pub struct RecommendCli {
    /// Its options.
    #[command(flatten)]
    pub args: RecommendArgs,
}

/// Options of `recommend`.
#[derive(Args, Debug)]
pub struct RecommendArgs {
    /// What to write.
    #[command(flatten)]
    pub write: WriteArgs,
    /// Show the change as a diff and write nothing
    #[arg(long)]
    pub dry_run: bool,
    /// The config file [default: $LLM_CONFIG, else config.yaml]
    #[arg(long, value_name = "PATH")]
    pub config: Option<PathBuf>,
    /// Decide from this results file instead of target/criterion
    #[arg(long, value_name = "FILE", conflicts_with = "criterion_dir")]
    pub results: Option<PathBuf>,
    /// What to compare with.
    #[command(flatten)]
    pub against: BaselineArgs,
    /// Print one JSON object on stdout instead of the table
    #[arg(long)]
    pub json: bool,
    /// Criterion's folder [default: as Criterion finds it]
    #[arg(long, value_name = "DIR")]
    pub criterion_dir: Option<PathBuf>,
}

/// An earlier run.
#[derive(Args, Debug)]
pub struct BaselineArgs {
    /// Compare with this results file of an earlier run
    #[arg(long, value_name = "FILE")]
    pub baseline: Option<PathBuf>,
    /// Exit with 4 where throughput fell by more than this, noise allowed for; with 3 where that cannot be told
    #[arg(long, value_name = "PERCENT", requires = "baseline", value_parser = percentage)]
    pub fail_on_regression: Option<f64>,
}

fn percentage(text: &str) -> Result<f64, String> {
    let percent = text.trim_end_matches('%').trim_end().parse::<f64>().ok();
    percent.filter(|percent| (0.0..100.0).contains(percent)).ok_or_else(|| "a number from 0 to below 100".to_owned())
}

/// Options of `report`.
#[derive(Args, Debug)]
pub struct ReportArgs {
    /// A results file; a second one is compared with it
    #[arg(required = true, num_args = 1..=2, value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// Where to write [default: results/concurrency_report_TIME.html; stdout for csv and jsonl]
    #[arg(long, value_name = "PATH")]
    pub output: Option<PathBuf>,
    /// What to write
    #[arg(long, value_enum, default_value_t)]
    pub format: ReportFormat,
}

/// What `report` writes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum ReportFormat {
    /// A page for a browser
    #[default]
    Html,
    /// One line per level, with a header
    Csv,
    /// One JSON object per level
    Jsonl,
}

/// Options of `generate-test-data`.
#[derive(Args, Debug)]
pub struct GenerateArgs {
    /// How many snippets
    #[arg(long, value_name = "N", default_value_t = crate::prompts::DEFAULT_COUNT)]
    pub count: usize,
    /// The same seed gives the same file, to the byte
    #[arg(long, value_name = "N", default_value_t = crate::prompts::DEFAULT_SEED)]
    pub seed: u64,
    /// Where to write
    #[arg(long, value_name = "PATH", default_value = crate::prompts::DEFAULT_PATH)]
    pub output: PathBuf,
}

/// Options of `simulate`.
#[derive(Args, Debug)]
pub struct SimulateArgs {
    /// The port on 127.0.0.1; 0 takes a free one
    #[arg(long, value_name = "PORT", default_value_t = 8000)]
    pub port: u16,
    /// Print the true throughput of every level (from the same engine in virtual time) instead of serving
    #[arg(long)]
    pub explain: bool,
    /// The config file with the section `simulator` [default: $LLM_CONFIG, else config.yaml]
    #[arg(long, value_name = "PATH")]
    pub config: Option<PathBuf>,
    /// Write the server's own record at the end: a JSON line for each request, with the times of its arrival, its
    /// first token and its end
    #[arg(long, value_name = "FILE")]
    pub log: Option<PathBuf>,
    /// Sequences that decode together
    #[arg(long, value_name = "N")]
    pub slots: Option<usize>,
    /// Requests that may wait; one more is refused with 503
    #[arg(long, value_name = "N")]
    pub queue_limit: Option<usize>,
    /// Requests let through per minute; one more is refused with 429
    #[arg(long, value_name = "N")]
    pub rpm: Option<f64>,
    /// Let something go wrong with a share of the requests, such as stall=0.1 (may be given several times)
    #[arg(long = "fault", value_name = "NAME=RATE")]
    pub faults: Vec<FaultRate>,
}
