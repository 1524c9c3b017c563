//! The command-line program.

use std::process::ExitCode;

use clap::Parser;
use llm_concurrency::cli::{Cli, Command};
use llm_concurrency::commands;

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Run(args) => commands::run(&args),
        Command::Recommend(args) => commands::decide(&args),
        Command::Report(args) => commands::report(&args),
        Command::Check(args) => commands::check(&args),
        Command::GenerateTestData(args) => commands::generate(&args),
        Command::Simulate(args) => commands::simulate(&args),
    };
    commands::exit(result)
}
