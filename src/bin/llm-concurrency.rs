//! The command-line program.

use std::process::ExitCode;

use clap::Parser;
use llm_concurrency::cli::{Cli, Command};
use llm_concurrency::commands;

/// Many requests a second are many small pieces of memory: this one hands them out sooner than the system's, and lets
/// thousands of streams take less of it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

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
