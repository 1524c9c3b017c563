//! `generate-test-data`: writes the built-in prompts to a file.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;

use super::print;
use crate::prompts;
use crate::report::words;

#[derive(Args, Debug)]
pub(crate) struct Generate {
    /// Number of snippets
    #[arg(long, value_name = "N", default_value_t = prompts::DEFAULT_COUNT)]
    count: usize,
    /// The same seed gives the same file, byte for byte
    #[arg(long, value_name = "N", default_value_t = prompts::DEFAULT_SEED)]
    seed: u64,
    /// Where to write
    #[arg(long, value_name = "PATH", default_value = prompts::DEFAULT_PATH)]
    output: PathBuf,
}

impl Generate {
    pub(crate) fn run(self) -> Result<ExitCode> {
        let Generate { count, seed, output } = self;
        prompts::save(&output, &prompts::generate(seed, count))?;
        let snippets = words::count(count as u64, "snippet");
        print(format!("wrote {snippets} (seed {seed}) to {}\n", output.display()))?;
        Ok(ExitCode::SUCCESS)
    }
}
