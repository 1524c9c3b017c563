//! `cargo bench`: every concurrency level a Criterion benchmark, then the recommendation.

use std::process::ExitCode;

use llm_concurrency::commands;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    commands::exit(commands::bench())
}
