//! `recommend`, as a binary and as a subcommand: decides from the measurements on disk.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use serde_json::json;

use super::baseline::BaselineArgs;
use super::decision::{decide_from, printed};
use super::write::WriteArgs;
use super::{ConfigFile, Verbose, page, print};
use crate::prompts;
use crate::record::{Identity, Places, ResultsFile, load_measured};
use crate::report::{html, text, words};
use crate::settings::{Overrides, Settings};

#[derive(Args, Debug)]
pub struct Recommend {
    #[command(flatten)]
    config: ConfigFile,
    #[command(flatten)]
    verbose: Verbose,
    /// Print one JSON object on stdout instead of the table
    #[arg(long)]
    json: bool,
    /// Decide from this results file instead of target/criterion
    #[arg(long, value_name = "FILE", conflicts_with = "criterion_dir")]
    results: Option<PathBuf>,
    /// Criterion's folder [default: as Criterion finds it]
    #[arg(long, value_name = "DIR")]
    criterion_dir: Option<PathBuf>,
    #[command(flatten)]
    write: WriteArgs,
    /// Show the change as a diff and write nothing
    #[arg(long, help_heading = "The config file")]
    dry_run: bool,
    #[command(flatten)]
    baseline: BaselineArgs,
}

impl Recommend {
    pub fn run(self) -> Result<ExitCode> {
        let settings = Settings::load(self.config.config.as_deref(), Overrides::default())?;
        let places = Places::find(self.criterion_dir.as_deref());
        let measured = match &self.results {
            Some(file) => page::basis(ResultsFile::read(file)?, &places),
            None => {
                let now = Identity::of(&settings, &prompts::of_run(&settings)?);
                load_measured(&places, &now, settings.limits(), None)?
            }
        };
        let recommendation = decide_from(&measured, &settings);
        // Anybody's results may be looked at. Without `--results` only those of these settings are read.
        let writes = self.results.is_some() && (self.write.update_config || self.dry_run);
        let elsewhere = measured.about.elsewhere(&settings).filter(|_| writes);
        let (baseline, objective) = (self.baseline.read(&settings)?, settings.config.policy.objective);
        let comparison = baseline.as_ref().map(|baseline| baseline.compare(&recommendation, objective));
        if !self.json {
            print(printed(&recommendation, &settings, self.verbose.verbose))?;
            if let Some((baseline, comparison)) = baseline.zip(comparison.as_ref()) {
                print(format!("\n{}", text::comparison(comparison, baseline.threshold, true)))?;
            }
        }
        if !self.dry_run {
            let report = match (&self.results, &measured.run_id) {
                (Some(file), _) => page::name(file),
                (None, Some(run_id)) => page::name(&run_id.results_file(&places)),
                (None, None) => page::name(Path::new("criterion")),
            };
            let run = page::of(recommendation.clone(), &settings, measured);
            eprintln!("{}", page::write(&places.results.join(report), html::page(&[run])));
        }
        let (written, code) =
            self.write.write(&recommendation, comparison.as_ref(), &settings, elsewhere, self.dry_run)?;
        if self.json {
            let mut value = words::with_words(&recommendation);
            if let Some(comparison) = comparison {
                value["comparison"] = json!(comparison);
            }
            value["previous"] = json!(written.previous);
            value["patched"] = json!(written.patched);
            print(format!("{value}\n"))?;
            eprint!("{}", written.text);
        } else {
            print(written.text)?;
        }
        Ok(code)
    }
}
