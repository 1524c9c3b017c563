//! The command-line program.

use clap::Parser;
use llm_concurrency::cli::Cli;
use llm_concurrency::commands;

/// Many requests per second mean many small allocations. mimalloc is faster at them than the
/// system's allocator, and thousands of streams take less memory with it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    commands::exit(Cli::parse().run())
}
