//! The command line and its commands. The options of each command are defined with it, in `commands`.

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::commands::{check, generate, init, recheck, recommend, report, run, simulate, verify};

const EXIT_CODES: &str = "Exit codes of `run` and `recommend`: 0 done; 1 error; 2 wrong usage; 3 no result that may be written into \
the config; 4 regression; 130 interrupted. `verify`: 4 not even the lowest rate is carried; 3 not known whether it is. \
`recheck`: 4 the number no longer holds; 3 not known whether it does.";

const EXAMPLES: &str = "Examples:
  llm-concurrency run --llm-endpoint http://localhost:8000/v1 --llm-model my-model
  llm-concurrency recommend --update-config
  llm-concurrency report results/concurrency_results_A.json results/concurrency_results_B.json

";

/// Finds how many parallel requests an LLM endpoint serves best, and writes that number into your config.yaml.
#[derive(Debug, Parser)]
#[command(name = "llm-concurrency", version, after_help = format!("{EXAMPLES}{EXIT_CODES}"))]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Measure all levels, print the recommendation, write the results
    Run(run::Run),
    /// Find what traffic the number carries, with requests that arrive at a given rate whether or not others have ended
    Verify(verify::Verify),
    /// Check whether the number of a results file still holds: a few requests at its level and at one on either side
    Recheck(recheck::Recheck),
    /// Decide from what is on disk, and write the number into config.yaml
    Recommend(recommend::Recommend),
    /// Write the HTML report of a results file, or of two to compare
    Report(report::Report),
    /// Send a typical prompt and the longest, and say whether they work or how to fix what does not
    Check(check::Check),
    /// Write a commented config.yaml for an endpoint, once one request to it has worked
    Init(init::Init),
    /// Write test-data/test_snippets.json
    GenerateTestData(generate::Generate),
    /// Run the simulated LLM server on its own
    Simulate(simulate::Simulate),
}

impl Cli {
    pub fn run(self) -> Result<ExitCode> {
        match self.command {
            Command::Run(command) => command.run(),
            Command::Verify(command) => command.run(),
            Command::Recheck(command) => command.run(),
            Command::Recommend(command) => command.run(),
            Command::Report(command) => command.run(),
            Command::Check(command) => command.run(),
            Command::Init(command) => command.run(),
            Command::GenerateTestData(command) => command.run(),
            Command::Simulate(command) => command.run(),
        }
    }
}

/// The command line of the binary `recommend`.
#[derive(Debug, Parser)]
#[command(name = "recommend", version, about = "Decides from what is on disk, and writes the number into config.yaml", after_help = EXIT_CODES)]
pub struct RecommendCli {
    #[command(flatten)]
    pub command: recommend::Recommend,
}
