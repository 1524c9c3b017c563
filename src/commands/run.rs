//! `run`: measures, decides and writes the result, all in one command.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;

use super::against::AgainstArgs;
use super::baseline::BaselineArgs;
use super::write::WriteArgs;
use super::{ConfigFile, Verbose, decision, print};
use crate::figures::EarlyEnd;
use crate::measure::sweep::{self, CriterionArgs};
use crate::record::Places;
use crate::report::text;
use crate::settings::{Flags, Settings};

#[derive(Args, Debug)]
pub(crate) struct Run {
    #[command(flatten)]
    config: ConfigFile,
    #[command(flatten)]
    verbose: Verbose,
    #[command(flatten)]
    settings: Flags<Settings>,
    #[command(flatten)]
    write: WriteArgs,
    #[command(flatten)]
    baseline: BaselineArgs,
    #[command(flatten)]
    against: AgainstArgs,
    /// Resume the last run where it was cut off; what it has sent counts against the budget
    #[arg(long, help_heading = "What is measured")]
    resume: bool,
}

impl Run {
    pub(crate) fn run(self) -> Result<ExitCode> {
        let settings = Settings::load(self.config.config.as_deref(), self.settings.given)?;
        let (args, places) = (CriterionArgs::measure_all(), Places::find(None));
        if self.against.is_given() {
            return self.against.run(&settings, &places);
        }
        if self.write.update_config {
            self.write.check_possible(&settings)?;
        }
        let baseline = self.baseline.read(&settings)?;
        let swept = sweep::run(&settings, &args, &places, baseline.as_ref(), self.resume)?;
        let recommendation = decision::conclude(&settings, &args, &places, &swept, self.verbose.verbose)?;
        if swept.stopped.is_some() {
            eprintln!("`llm-concurrency run --resume`, with the same settings, continues from here.");
        }
        if swept.stopped == Some(EarlyEnd::Interrupted) {
            return Ok(ExitCode::from(sweep::INTERRUPTED));
        }
        let objective = settings.config.policy.objective;
        let comparison = baseline.as_ref().map(|baseline| baseline.compare(&recommendation, objective));
        if let Some((baseline, comparison)) = baseline.zip(comparison.as_ref()) {
            print(format!("\n{}", text::comparison(comparison, baseline.threshold, false)))?;
        }
        let (written, code) = self.write.write(&recommendation, comparison.as_ref(), &settings, None, false)?;
        eprint!("{}", written.text);
        Ok(code)
    }
}
