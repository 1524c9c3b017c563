//! The page of a run: what it tells beside the decision, and where it is written.

use std::path::Path;

use serde_json::json;

use crate::decide::{Policy, Recommendation};
use crate::record::{self, RequestsFile, RunId, read_sidecar, write_atomic};
use crate::report::html::{self, About};
use crate::report::requests::{Curves, Measurement};
use crate::settings::{SIMULATED_MODEL, Settings};

pub(super) fn about(run_id: Option<&RunId>, run: &record::About) -> About {
    About {
        run_id: run_id.map(|id| id.to_string()),
        started_at: run.started_at.clone(),
        endpoint: run.endpoint.clone(),
        // Earlier versions recorded the name of a model that was never asked.
        model: if run.simulated() { Some(SIMULATED_MODEL.to_owned()) } else { run.model.clone() },
        settings: json!(run.settings),
        environment: json!(run.environment),
    }
}

/// `settings` are those of now, with the policy and the number that the config holds.
pub(super) fn of(
    recommendation: Recommendation,
    settings: &Settings,
    about: About,
    requests: &[RequestsFile],
) -> html::Run {
    let policy = settings.config.policy.clone();
    // A simulated run has nothing to say about the number of a real server.
    let is_comparable = !recommendation.simulated || settings.config_is_simulated;
    let present = is_comparable.then_some(settings.config.llm.max_concurrent_requests);
    html::Run { present, ..without_config(recommendation, policy, about, requests) }
}

pub(super) fn without_config(
    recommendation: Recommendation,
    policy: Policy,
    about: About,
    requests: &[RequestsFile],
) -> html::Run {
    let (curves, missing) = curves(requests);
    html::Run { label: String::new(), recommendation, policy, about, present: None, curves, missing }
}

/// The single requests, thinned, and which of them cannot be read.
fn curves(files: &[RequestsFile]) -> (Option<Curves>, Vec<String>) {
    let mut missing = Vec::new();
    let mut measurements = Vec::new();
    for file in files {
        let mut measurement = Measurement::new(file.level, file.window_s);
        let read = read_sidecar(&file.path).and_then(|mut lines| {
            lines.try_for_each(|outcome| {
                let outcome = outcome?;
                if file.visit.is_none() || outcome.visit == file.visit {
                    measurement.add(outcome);
                }
                Ok(())
            })
        });
        match read {
            Ok(()) => measurements.push(measurement),
            Err(error) => missing.push(format!("The requests of level {}: {error}", file.level)),
        }
    }
    (Curves::of(measurements), missing)
}

/// `concurrency_results_X.json` to `X`.
pub(super) fn stamp_of(results: &Path) -> String {
    let stem = results.file_stem().map_or_else(String::new, |stem| stem.to_string_lossy().into_owned());
    stem.strip_prefix("concurrency_results_").map(str::to_owned).unwrap_or(stem)
}

pub(super) fn name(results: &Path) -> String {
    format!("concurrency_report_{}.html", stamp_of(results))
}

/// Writes it beside something else that was asked for, which does not fail with it. Returns what to say.
pub(super) fn write(path: &Path, runs: &[html::Run]) -> String {
    let page = html::page(runs).map_err(anyhow::Error::from);
    match page.and_then(|page| Ok(write_atomic(path, page.as_bytes())?)) {
        Ok(()) => format!("Report: {}", path.display()),
        Err(error) => format!("no report: {error:#}"),
    }
}
