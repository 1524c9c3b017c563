//! Writes the recommended number into the config file, if that is allowed.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::json;

use super::{NO_LONGER, NOTHING_TO_WRITE};
use crate::client::Endpoint;
use crate::decide::compare::Comparison;
use crate::decide::{Recommendation, Status};
use crate::monitor::terminal_width;
use crate::patch;
use crate::report::text;
use crate::report::words::{self, WhyNot};
use crate::settings::{Config, Settings};

const DEFAULT_KEY: &str = "llm.max_concurrent_requests";

#[derive(Args, Debug)]
#[command(next_help_heading = "The config file")]
pub(super) struct WriteArgs {
    /// Write the recommended number into the config file
    #[arg(long)]
    pub(super) update_config: bool,
    /// With --update-config: write a provisional result too
    #[arg(long)]
    allow_provisional: bool,
    /// The key that --update-config writes
    #[arg(long, value_name = "KEY", default_value = DEFAULT_KEY)]
    config_key: String,
}

#[derive(Default)]
pub(super) struct Written {
    /// The number that was in the file before, if any.
    pub(super) previous: Option<u64>,
    pub(super) patched: bool,
    /// Text to print.
    pub(super) text: String,
}

impl WriteArgs {
    /// Checks, before anything is sent, whether a number could be written at the end.
    pub(super) fn check_possible(&self, settings: &Settings) -> Result<()> {
        if settings.endpoint == Endpoint::Simulator && !settings.config_is_simulated {
            let why = words::why_not(&WhyNot::OtherEndpoint, &settings.path);
            bail!("--update-config: {why}\n\nNothing was measured.");
        }
        // Any number will do for the check; the present one makes sense in an error message.
        let number = settings.config.llm.max_concurrent_requests as u64;
        let patch = self.patch(&settings.path, number).and_then(|patch| Ok(patch.check_writable()?));
        patch.context("--update-config would not be able to write the result")
    }

    /// Writes the number if requested and allowed, and returns the exit code. `elsewhere` is the endpoint and model of
    /// results that are not for these settings.
    pub(super) fn write(
        &self,
        recommendation: &Recommendation,
        comparison: Option<&Comparison>,
        settings: &Settings,
        elsewhere: Option<(String, String)>,
        dry_run: bool,
    ) -> Result<(Written, ExitCode)> {
        let (path, is_asked) = (&settings.path, self.update_config || dry_run);
        let previous = patch::plan(path, &self.config_key, 1).ok().and_then(|patch| patch.previous());
        let mut written = Written { previous, ..Written::default() };
        let Some((code, why)) = self.reason_against(recommendation, comparison, settings, elsewhere) else {
            if let Some(level) = recommendation.recommended_concurrency.filter(|_| is_asked) {
                (written.patched, written.text) = self.apply(recommendation.status, level, path, dry_run)?;
            }
            return Ok((written, ExitCode::SUCCESS));
        };
        if code == NOTHING_TO_WRITE && !matches!(why, WhyNot::MaybeRegression) && !self.update_config {
            let why = words::why_not(&why, path);
            let told = format!("There is no result that may be written (exit code {NOTHING_TO_WRITE}): {why}");
            eprint!("{}", text::fitted(&told, terminal_width()));
        }
        if is_asked {
            written.text = words::left_as_it_was(path, &why);
        }
        Ok((written, ExitCode::from(code)))
    }

    /// Returns whether the file was changed, and the text to print.
    fn apply(&self, status: Status, level: usize, path: &Path, dry_run: bool) -> Result<(bool, String)> {
        let key = &self.config_key;
        let patch = self.patch(path, level as u64)?;
        if patch.is_noop() {
            return Ok((false, words::already_written(path, key, level)));
        }
        if dry_run {
            return Ok((false, patch.diff()));
        }
        let text = words::written(path, key, level, patch.previous(), status);
        patch.apply()?;
        Ok((true, text))
    }

    /// The exit code and the reason if the result may not be written.
    fn reason_against(
        &self,
        recommendation: &Recommendation,
        comparison: Option<&Comparison>,
        settings: &Settings,
        elsewhere: Option<(String, String)>,
    ) -> Option<(u8, WhyNot)> {
        if comparison.is_some_and(|comparison| !comparison.regressions.is_empty()) {
            return Some((NO_LONGER, WhyNot::Regression));
        }
        let why = if comparison.is_some_and(|comparison| !comparison.doubts.is_empty()) {
            WhyNot::MaybeRegression
        } else if !recommendation.status.may_patch() || recommendation.recommended_concurrency.is_none() {
            WhyNot::Status(recommendation.status)
        } else if recommendation.simulated && !settings.config_is_simulated {
            WhyNot::OtherEndpoint
        } else if let Some((endpoint, model)) = elsewhere {
            WhyNot::Elsewhere { endpoint, model }
        } else if recommendation.provisional && !self.allow_provisional {
            WhyNot::Provisional
        } else {
            return None;
        };
        Some((NOTHING_TO_WRITE, why))
    }

    /// A patch that leaves a config file which can still be parsed.
    fn patch(&self, path: &Path, value: u64) -> Result<patch::Patch> {
        let key = self.config_key.as_str();
        let mut names = key.split('.');
        let (section, name) = (names.next().unwrap_or_default(), names.next().unwrap_or_default());
        let ours = json!(Config::default());
        let is_setting = if section == "llm" { ours[section].get(name).is_some() } else { ours.get(section).is_some() };
        if key != DEFAULT_KEY && is_setting {
            bail!("--config-key {key}: that is a setting of the measurement, not a place for its answer");
        }
        let patch = patch::plan(path, key, value)?;
        Config::parse(patch.after(), path)
            .with_context(|| format!("--config-key {key} would produce a file that cannot be read"))?;
        Ok(patch)
    }
}
