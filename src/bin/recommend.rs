//! Decides from the measurements on disk; the same as `llm-concurrency recommend`.

use clap::Parser;
use llm_concurrency::cli::RecommendCli;
use llm_concurrency::commands;

fn main() -> std::process::ExitCode {
    commands::exit(RecommendCli::parse().command.run())
}
