//! `cargo bench`: every concurrency level a Criterion benchmark, then the recommendation.

use std::process::ExitCode;

use llm_concurrency::commands;

fn main() -> ExitCode {
    commands::exit(commands::bench())
}
