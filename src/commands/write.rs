//! The number into the config file, where that may be done.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Args;

use super::{NOTHING_TO_WRITE, REGRESSED};
use crate::client::Endpoint;
use crate::decide::compare::Comparison;
use crate::decide::{Recommendation, Status};
use crate::patch;
use crate::settings::{Config, Settings};

const DEFAULT_KEY: &str = "llm.max_concurrent_requests";

#[derive(Args, Debug)]
pub(super) struct WriteArgs {
    /// Write the recommended number into the config file
    #[arg(long)]
    pub(super) update_config: bool,
    /// With --update-config: write a provisional result too
    #[arg(long)]
    allow_provisional: bool,
    /// The key --update-config writes
    #[arg(long, value_name = "KEY", default_value = DEFAULT_KEY)]
    config_key: String,
}

#[derive(Default)]
pub(super) struct Written {
    /// The number that stood there before, where it can be told.
    pub(super) previous: Option<u64>,
    pub(super) patched: bool,
    /// What to say of it.
    pub(super) text: String,
}

impl WriteArgs {
    /// Finds out before anything is sent whether a number could be written at the end.
    pub(super) fn check_possible(&self, settings: &Settings) -> Result<()> {
        if settings.endpoint == Endpoint::Simulator && !settings.config_is_simulated {
            bail!("--update-config: {}\n\nNothing was measured.", foreign_simulation(settings));
        }
        // Any number will do to find out; the one that stands there is named in what is said.
        let number = settings.config.llm.max_concurrent_requests as u64;
        let patch = self.patch(&settings.path, number).and_then(|patch| Ok(patch.check_writable()?));
        patch.context("--update-config could not write in the end")
    }

    /// Writes it if that was asked for and nothing speaks against it, and gives the exit code.
    pub(super) fn write(
        &self,
        recommendation: &Recommendation,
        comparison: Option<&Comparison>,
        settings: &Settings,
        dry_run: bool,
    ) -> Result<(Written, ExitCode)> {
        let (path, key) = (&settings.path, &self.config_key);
        let asked = self.update_config || dry_run;
        let regressed = comparison.is_some_and(|comparison| !comparison.regressions.is_empty());
        let doubtful = comparison.is_some_and(|comparison| !comparison.doubts.is_empty());
        let refused = if regressed {
            Some((REGRESSED, "there is a regression against the baseline".to_owned()))
        } else if doubtful {
            let reason = "it cannot be told whether there is a regression against the baseline";
            Some((NOTHING_TO_WRITE, reason.to_owned()))
        } else {
            let reason = self.reason_against(recommendation, settings);
            if let Some(reason) = reason.as_ref().filter(|_| !self.update_config) {
                eprintln!("Nothing that may be written (exit code {NOTHING_TO_WRITE}): {reason}");
            }
            reason.map(|reason| (NOTHING_TO_WRITE, reason))
        };
        let left = |text| Written { previous: previous(path, key), patched: false, text };
        if let Some((code, reason)) = refused {
            let text = format!("{} is left as it was: {reason}\n", path.display());
            return Ok((left(if asked { text } else { String::new() }), ExitCode::from(code)));
        }
        let level = recommendation.recommended_concurrency.filter(|_| asked);
        let written =
            level.map_or_else(|| Ok(left(String::new())), |level| self.apply(recommendation, level, path, dry_run));
        Ok((written?, ExitCode::SUCCESS))
    }

    fn apply(&self, recommendation: &Recommendation, level: usize, path: &Path, dry_run: bool) -> Result<Written> {
        let key = &self.config_key;
        let patch = self.patch(path, level as u64)?;
        let previous = patch.previous();
        if patch.is_noop() {
            let text = format!("{}: {key} is {level} already, nothing to do\n", path.display());
            return Ok(Written { previous, patched: false, text });
        }
        if dry_run {
            return Ok(Written { previous, patched: false, text: patch.diff() });
        }
        patch.apply()?;
        let from = previous.map_or_else(|| "not set".to_owned(), |n| n.to_string());
        let mut text = format!("{}: {key} is now {level} (was {from})\n", path.display());
        if recommendation.status == Status::NotSaturated {
            text.push_str("warning: throughput was still rising at the highest level tested\n");
        }
        Ok(Written { previous, patched: true, text })
    }

    /// Why the result may not be written.
    fn reason_against(&self, recommendation: &Recommendation, settings: &Settings) -> Option<String> {
        if !recommendation.status.may_patch() || recommendation.recommended_concurrency.is_none() {
            return Some(format!("status {}", recommendation.status.name()));
        }
        if recommendation.simulated && !settings.config_is_simulated {
            return Some(foreign_simulation(settings));
        }
        (recommendation.provisional && !self.allow_provisional)
            .then(|| "the result is provisional (see the notes); --allow-provisional writes it all the same".to_owned())
    }

    /// A patch after which we can still read the file.
    fn patch(&self, path: &Path, value: u64) -> Result<patch::Patch> {
        let key = self.config_key.as_str();
        let section = key.split('.').next().unwrap_or_default();
        if key != DEFAULT_KEY && ["benchmark", "policy", "simulator"].contains(&section) {
            bail!("--config-key {key}: the section `{section}` holds the settings of the measurement, not its answer");
        }
        let patch = patch::plan(path, key, value)?;
        Config::parse(patch.after(), path)
            .with_context(|| format!("--config-key {key} would make a file that cannot be read"))?;
        Ok(patch)
    }
}

fn foreign_simulation(settings: &Settings) -> String {
    format!(
        "the embedded simulator was measured, and the llm.endpoint that stands in {} is another",
        settings.path.display()
    )
}

fn previous(path: &Path, key: &str) -> Option<u64> {
    patch::plan(path, key, 1).ok()?.previous()
}
