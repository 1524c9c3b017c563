//! `report`: a page of one results file or of two, or its levels as CSV or JSON.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, ValueEnum};

use super::{page, print};
use crate::decide::{Recommendation, recommend};
use crate::record::{Places, ResultsFile, write_atomic};
use crate::report::{export, html};

#[derive(Args, Debug)]
pub(crate) struct Report {
    /// A results file; a second one is compared with it
    #[arg(required = true, num_args = 1..=2, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Where to write [default: results/concurrency_report_TIME.html; stdout for csv and jsonl]
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
}

impl Report {
    pub(crate) fn run(self) -> Result<ExitCode> {
        let places = Places::find(None);
        let files: Vec<ResultsFile> =
            self.files.iter().map(|file| ResultsFile::read(file)).collect::<Result<_, _>>()?;
        let mut runs: Vec<html::Run> = files.iter().map(|file| run_of(file, &places)).collect();
        if let [before, after] = runs.as_mut_slice() {
            (before.label, after.label) = ("A".to_owned(), "B".to_owned());
        }
        let text = match self.format {
            Format::Html => html::page(&runs)?,
            Format::Csv => export::csv(&runs),
            Format::Jsonl => export::json_lines(&runs),
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

/// A results file with the decision that it records, else with one made now.
fn run_of(file: &ResultsFile, places: &Places) -> html::Run {
    let policy = file.about.settings.policy.clone();
    let mut missing = Vec::new();
    if policy.is_none() {
        missing.push("The policy it was decided by: the gates shown are the defaults".to_owned());
    }
    let policy = policy.unwrap_or_default();
    let recommendation = file.recorded().unwrap_or_else(|| {
        missing.push("A decision: the one shown was made for this report".to_owned());
        recommend(&file.levels, &policy)
    });
    let recommendation = Recommendation { simulated: file.about.simulated(), ..recommendation };
    let mut run = page::without_config(
        recommendation,
        policy,
        page::about(file.run_id.as_ref(), &file.about),
        &file.requests(places),
    );
    run.missing.extend(missing);
    run
}
