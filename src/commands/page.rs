//! The HTML page of a run: the data that it shows besides the decision, and its file.

use std::path::Path;

use crate::decide::{Policy, Recommendation};
use crate::record::{Basis, Places, RequestsFile, ResultsFile, write_atomic};
use crate::report::html::{self, Missing, ReportError};
use crate::report::requests::{Curves, Part};
use crate::settings::Settings;

/// The basis from a results file, with the requests of its run if they are still on disk.
pub(super) fn basis(file: ResultsFile, places: &Places) -> Basis {
    let requests = file.requests(places);
    Basis { requests, ..Basis::of_file(file) }
}

/// `settings` are the current ones: they provide the policy and the number in the config.
pub(super) fn of(recommendation: Recommendation, settings: &Settings, basis: Basis) -> html::Run {
    let present = settings.present(recommendation.simulated);
    html::Run { present, ..without_config(recommendation, settings.config.policy.clone(), basis) }
}

pub(super) fn without_config(recommendation: Recommendation, policy: Policy, basis: Basis) -> html::Run {
    let Basis { run_id, about, requests, verified, .. } = basis;
    let (curves, missing) = curves(&requests);
    html::Run { label: String::new(), recommendation, policy, run_id, about, present: None, curves, verified, missing }
}

/// The individual requests, thinned out, and the levels whose requests cannot be read.
fn curves(files: &[RequestsFile]) -> (Option<Curves>, Vec<Missing>) {
    let (mut missing, mut loops) = (Vec::new(), Vec::new());
    for of_loop in files.chunk_by(|one, next| one.path == next.path) {
        match of_loop[0].read() {
            Ok(mut visits) => {
                let part = |file: &RequestsFile| {
                    let requests = visits.remove(&file.visit.unwrap_or_default()).unwrap_or_default();
                    Part { level: file.level, window_s: file.window_s, requests }
                };
                loops.push(of_loop.iter().map(part).collect());
            }
            Err(error) => missing.push(Missing::Requests { level: of_loop[0].level, error: error.to_string() }),
        }
    }
    (Curves::of(&loops), missing)
}

/// `concurrency_results_X.json` to `X`.
pub(super) fn stamp_of(results: &Path) -> String {
    let stem = results.file_stem().unwrap_or_default().to_string_lossy();
    stem.strip_prefix("concurrency_results_").unwrap_or(&stem).to_owned()
}

pub(super) fn name(results: &Path) -> String {
    format!("concurrency_report_{}.html", stamp_of(results))
}

/// Writes the page, and returns the line to print about it. A run does not fail because of its page.
pub(super) fn write(path: &Path, page: Result<String, ReportError>) -> String {
    match page.map_err(anyhow::Error::from).and_then(|page| Ok(write_atomic(path, page.as_bytes())?)) {
        Ok(()) => format!("Report: {}", path.display()),
        Err(error) => format!("no report: {error:#}"),
    }
}
