//! `simulate`: runs the simulated server alone, or prints its true throughput.

use std::fs::File;
use std::io::{self, BufWriter, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, anyhow};
use clap::Args;

use super::{ConfigFile, print};
use crate::client::ConfigError;
use crate::measure::sweep;
use crate::prompts::{self, Prompt};
use crate::report::words;
use crate::settings::{Overrides, Settings};
use crate::simulator::{self, FaultRate, RequestEnd, Simulator, SimulatorConfig};

/// Requests per level in virtual time; enough to make chance negligible.
const EXPLAIN_REQUESTS: usize = 20_000;

#[derive(Args, Debug)]
pub(crate) struct Simulate {
    /// The port on 127.0.0.1; 0 picks a free one
    #[arg(long, value_name = "PORT", default_value_t = 8000)]
    port: u16,
    /// Print the true throughput of every level (from the same engine in virtual time) instead of serving
    #[arg(long)]
    explain: bool,
    // Only its section `simulator`, unless `explain` is set.
    #[command(flatten)]
    config: ConfigFile,
    /// Write the server's own record at the end: a JSON line for each request, with the times of its arrival, its
    /// first token and its end
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
    /// Sequences that decode together
    #[arg(long, value_name = "N")]
    slots: Option<usize>,
    /// Requests that may wait; any more are refused with 503
    #[arg(long, value_name = "N")]
    queue_limit: Option<usize>,
    /// Requests let through per minute; any more are refused with 429
    #[arg(long, value_name = "N")]
    rpm: Option<f64>,
    /// Inject a fault into a share of the requests, such as stall=0.1 (repeatable)
    #[arg(long = "fault", value_name = "NAME=RATE")]
    faults: Vec<FaultRate>,
}

impl Simulate {
    pub(crate) fn run(self) -> Result<ExitCode> {
        let file = self.config.config.as_deref();
        let settings = match Settings::load(file, Overrides::of(["--llm-endpoint=simulator"])) {
            // The simulator needs no config file, unless one was named explicitly.
            Err(ConfigError::NotFound(_)) if file.is_none() => None,
            settings => Some(settings?),
        };
        let mut config = settings.as_ref().map_or_else(SimulatorConfig::default, |s| s.config.simulator.clone());
        config.slots = self.slots.unwrap_or(config.slots);
        config.queue_limit = self.queue_limit.unwrap_or(config.queue_limit);
        config.requests_per_minute = self.rpm.or(config.requests_per_minute);
        self.faults.iter().for_each(|&fault| config.faults.set(fault));
        config.validate()?;
        if self.explain {
            let settings =
                settings.context("--explain needs a config file: it explains the prompts and levels set there")?;
            print(format!("{}\n", explain(&config, &settings)?))?;
            return Ok(ExitCode::SUCCESS);
        }
        // Create the file now, so that an unwritable path fails at once.
        let record = self.log.as_deref().map(|path| Ok((path, File::create(path)?))).transpose();
        let record = record.map_err(|error: io::Error| anyhow!("cannot write --log: {error}"))?;
        let simulator = Simulator::start(config, self.port)?;
        print(format!("simulated LLM server at {} (any model; Ctrl-C stops it)\n", simulator.base_url()))?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(sweep::signal());
        let log = simulator.log();
        if let Some((path, file)) = record {
            write_lines(file, &log).with_context(|| format!("cannot write {}", path.display()))?;
        }
        let completed = log.iter().filter(|r| r.outcome == RequestEnd::Completed).count();
        let requests = words::count(log.len() as u64, "request");
        eprintln!("\n{requests}, {completed} completed, at most {} at once", simulator.peak_in_flight());
        Ok(ExitCode::SUCCESS)
    }
}

fn write_lines(file: File, records: &[impl serde::Serialize]) -> Result<()> {
    let mut lines = BufWriter::new(file);
    for record in records {
        serde_json::to_writer(&mut lines, record)?;
        lines.write_all(b"\n")?;
    }
    lines.flush()?;
    Ok(())
}

fn explain(simulator: &SimulatorConfig, settings: &Settings) -> Result<simulator::Explanation> {
    let benchmark = &settings.config.benchmark;
    let prompts = prompts::of_run(settings)?;
    let texts: Vec<String> = prompts.iter().map(Prompt::joined).collect();
    let usual = benchmark.request.max_tokens;
    let limits = prompts.iter().map(|prompt| prompt.max_tokens.unwrap_or(usual));
    let each: Vec<(&str, u32)> = texts.iter().map(String::as_str).zip(limits).collect();
    Ok(simulator::explain_each(simulator, &benchmark.levels(), &each, EXPLAIN_REQUESTS)?)
}
