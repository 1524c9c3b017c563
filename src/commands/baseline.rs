//! The options for comparing with an earlier run.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use super::decision::decide_from;
use crate::decide::compare::Baseline;
use crate::record::{Basis, ResultsFile};
use crate::report::words;
use crate::settings::Settings;

#[derive(Args, Debug)]
#[command(next_help_heading = "Comparison")]
pub(super) struct BaselineArgs {
    /// Compare with this results file of an earlier run
    #[arg(long, value_name = "FILE")]
    baseline: Option<PathBuf>,
    /// Exit with 4 if throughput fell by more than this beyond the noise; with 3 if the data are inconclusive
    #[arg(long, value_name = "PERCENT", requires = "baseline", value_parser = percentage)]
    fail_on_regression: Option<f64>,
}

fn percentage(text: &str) -> Result<f64, String> {
    let percent = text.trim_end_matches('%').trim_end().parse::<f64>().ok();
    percent
        .filter(|percent| (0.0..100.0).contains(percent))
        .ok_or_else(|| "expected a number from 0 to below 100".to_owned())
}

impl BaselineArgs {
    pub(super) fn read(&self, settings: &Settings) -> Result<Option<Baseline>> {
        let Some(file) = &self.baseline else { return Ok(None) };
        let measured = Basis::of_file(ResultsFile::read(file)?);
        let title = words::baseline(&file.display().to_string(), measured.simulated, &measured.notes);
        let threshold = self.fail_on_regression.map(|percent| percent / 100.0);
        Ok(Some(Baseline { title, decided: decide_from(&measured, settings), threshold }))
    }
}
