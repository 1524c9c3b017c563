//! Decides from what is on disk; the same as `llm-concurrency recommend`.

use std::process::ExitCode;

use clap::Parser;
use llm_concurrency::cli::RecommendCli;
use llm_concurrency::commands;

fn main() -> ExitCode {
    commands::exit(commands::decide(&RecommendCli::parse().args))
}
