//! The command-line program.

use clap::Parser;
use llm_concurrency::cli::Cli;
use llm_concurrency::commands;

/// Many requests a second are many small pieces of memory: this one hands them out sooner than the system's, and lets
/// thousands of streams take less of it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    commands::exit(Cli::parse().run())
}
