//! `report`: one or two results files as a page, CSV, JSON lines or Markdown.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, ValueEnum};

use super::{page, print};
use crate::decide::{Recommendation, recommend};
use crate::record::{Places, ResultsFile, write_atomic};
use crate::report::export;
use crate::report::html::{self, Missing};

#[derive(Args, Debug)]
pub(crate) struct Report {
    /// A results file; a second one is compared with it
    #[arg(required = true, num_args = 1..=2, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Where to write [default: results/concurrency_report_TIME.html; stdout for csv, jsonl and md]
    #[arg(long, value_name = "PATH")]
    output: Option<PathBuf>,
    /// What to write
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Format {
    /// A page for a browser
    #[default]
    Html,
    /// One line per level, with a header
    Csv,
    /// One JSON object per level
    Jsonl,
    /// The answer and the table in Markdown, for a pull request
    Md,
}

impl Report {
    pub(crate) fn run(self) -> Result<ExitCode> {
        let places = Places::find(None);
        let read = |file: &PathBuf| Ok(run_of(ResultsFile::read(file)?, &places));
        let mut runs: Vec<html::Run> = self.files.iter().map(read).collect::<Result<_>>()?;
        match runs.as_mut_slice() {
            [before, after] => (before.label, after.label) = ("A".to_owned(), "B".to_owned()),
            // Two runs are compared with each other, a single one with the number in its config at the time.
            alone => alone.iter_mut().for_each(|run| run.present = run.about.settings.max_concurrent_requests),
        }
        let text = match self.format {
            Format::Html => html::page(&runs)?,
            Format::Csv => export::csv(&runs),
            Format::Jsonl => export::json_lines(&runs),
            Format::Md => export::markdown(&runs),
        };
        if self.output.is_none() && self.format != Format::Html {
            print(text)?;
            return Ok(ExitCode::SUCCESS);
        }
        let output = self.output.unwrap_or_else(|| {
            let stems: Vec<String> = self.files.iter().map(|file| page::stamp_of(file)).collect();
            places.results.join(format!("concurrency_report_{}.html", stems.join("_and_")))
        });
        write_atomic(&output, text.as_bytes())?;
        print(format!("{}\n", output.display()))?;
        Ok(ExitCode::SUCCESS)
    }
}

/// A results file with its recorded decision; without one, decides now.
pub(super) fn run_of(file: ResultsFile, places: &Places) -> html::Run {
    let (recorded_policy, recorded) = (file.about.settings.policy.clone(), file.recorded());
    let missing =
        [recorded_policy.is_none().then_some(Missing::Policy), recorded.is_none().then_some(Missing::Decision)];
    let policy = recorded_policy.unwrap_or_default();
    let recommendation = recorded.unwrap_or_else(|| recommend(&file.levels, &policy));
    let recommendation = Recommendation { simulated: file.about.simulated(), ..recommendation };
    let mut run = page::without_config(recommendation, policy, page::basis(file, places));
    run.missing.extend(missing.into_iter().flatten());
    run
}
