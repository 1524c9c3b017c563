//! The basis of a decision: the measurements that Criterion's files still hold.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::path::{Path, PathBuf};

use super::estimates::{self, is_in_criterion};
use super::{About, Identity, Manifest, Places, RequestsFile, ResultsError, ResultsFile, Run, RunId};
use crate::client::SIMULATOR;
use crate::decide::verify::Verified;
use crate::decide::{Note, Policy, Raced};
use crate::figures::{self, LevelState, LevelSummary, Limits, Measurement, Requests, Stage};
use crate::settings::SIMULATED_MODEL;

/// The measurements to decide from, and what a page shows beside the decision.
#[derive(Clone, Debug, Default)]
pub struct Basis {
    pub levels: Vec<LevelSummary>,
    /// Notes on where the levels come from and what was left out.
    pub notes: Vec<Note>,
    pub quick: bool,
    pub simulated: bool,
    /// Whether the server's list of models lacks the requested one.
    pub unlisted_model: bool,
    /// Whether planned levels are missing, or there are only Criterion's estimates, which cannot be checked.
    pub incomplete: bool,
    /// The result of the race among these levels, and its policy.
    pub raced: Option<(Raced, Policy)>,
    /// The newest run with a usable measurement.
    pub run_id: Option<RunId>,
    pub about: About,
    /// The records of the individual requests.
    pub requests: Vec<RequestsFile>,
    pub verified: Option<Verified>,
}

impl Basis {
    fn of(run_id: Option<RunId>, mut about: About, levels: Vec<LevelSummary>, raced: Option<Raced>) -> Self {
        if about.simulated() {
            // Earlier versions recorded the name of a model that was never asked.
            about.model = Some(SIMULATED_MODEL.to_owned());
        }
        Basis {
            quick: about.settings.quick,
            simulated: about.simulated(),
            unlisted_model: about.settings.model_is_listed == Some(false),
            raced: raced.zip(about.settings.policy.clone()),
            levels,
            run_id,
            about,
            ..Basis::default()
        }
    }

    /// What a run measured itself.
    pub fn of_run(run: &Run) -> Self {
        let Manifest { run_id, about, raced, .. } = &run.manifest;
        let requests = run.manifest.requests(run.folder());
        Basis { requests, ..Basis::of(Some(run_id.clone()), about.clone(), run.summaries.clone(), *raced) }
    }

    /// All of a results file but the requests, whose records lie elsewhere.
    pub fn of_file(file: ResultsFile) -> Self {
        let basis = Basis::of(file.run_id, file.about, file.levels, file.raced);
        let About { endpoint, model, started_at, .. } = basis.about.clone();
        let is_described = [&endpoint, &model, &started_at].into_iter().any(Option::is_some);
        let notes = is_described.then_some(Note::Source { endpoint, model, started_at });
        Basis { notes: notes.into_iter().collect(), verified: file.verified, ..basis }
    }
}

/// Joins Criterion's estimates with the sidecars of the runs that produced them.
///
/// For each level that the newest run planned, it takes the newest record with the same fingerprint whose times equal
/// those in Criterion's `new/sample.json`, together with that run's visits to the level. The `limits` may differ from
/// those of the run, except for the request timeout, which is the run's. The results of `own`, a run that is still in
/// memory, are not read again. An error if there are no measurements, or if the newest run's identity is not `now`.
pub fn load_measured(
    places: &Places,
    now: &Identity,
    limits: Limits,
    own: Option<&Run>,
) -> Result<Basis, ResultsError> {
    let (manifests, mut notes) = read_manifests(&places.runs);
    let Some(newest) = manifests.first() else { return estimates_only(places, now, notes) };
    let Some(newest) = manifests.iter().find(|m| m.levels.iter().any(is_usable)) else {
        return Err(ResultsError::CutOff { run_id: newest.run_id.to_string() });
    };
    let fingerprint = Some(now.fingerprint());
    if newest.about.fingerprint != fingerprint {
        return Err(ResultsError::OtherTarget {
            run_id: newest.run_id.to_string(),
            differences: newest.identity.differences(now),
        });
    }
    let same: Vec<_> = manifests.iter().filter(|m| m.about.fingerprint == fingerprint).collect();
    let (run_id, about) = (Some(newest.run_id.clone()), newest.about.clone());
    let mut measured = Basis { quick: false, unlisted_model: false, ..Basis::of(run_id, about, Vec::new(), None) };
    let mut runs: Vec<&str> = Vec::new();
    let mut used: Vec<&Measurement> = Vec::new();
    let mut left_out: Vec<usize> = Vec::new();
    let mut read = BTreeMap::new();
    // A race that has decided needed no more levels than it visited.
    let decided = newest.raced.is_some_and(|raced| raced.decided);
    let is_needed = |level: &&usize| !decided || newest.levels.iter().any(|of| of.concurrency == **level);
    for &level in newest.about.settings.levels.iter().filter(is_needed) {
        let Some((manifest, records)) = newest_records(places, &same, level) else {
            left_out.push(level);
            continue;
        };
        let folder = places.runs.join(manifest.run_id.as_str());
        let own = own.filter(|own| own.manifest.run_id == manifest.run_id).map(|own| &own.summaries);
        let own = own.and_then(|summaries| summaries.iter().find(|of| of.concurrency == level)).cloned();
        let summary = own.map_or_else(|| summary_of(&folder, manifest, &records, limits, &mut read), Ok);
        measured.levels.push(match summary {
            Ok(summary) => {
                notes.extend(cross_check(places, &summary, &records));
                used.extend(records);
                summary
            }
            Err(error) => {
                notes.push(Note::NoRecordOf { level, error: error.to_string() });
                estimate_only(places, level)?
            }
        });
        measured.quick |= manifest.about.settings.quick;
        measured.unlisted_model |= manifest.about.settings.model_is_listed == Some(false);
        runs.push(&manifest.run_id);
    }
    runs.sort_unstable();
    runs.dedup();
    if measured.levels.is_empty() {
        return Err(ResultsError::Nothing { criterion: places.criterion.clone() });
    }
    if !left_out.is_empty() {
        measured.incomplete = true;
        notes.push(Note::LeftOut { levels: left_out });
    }
    measured.raced =
        newest.raced.zip(newest.about.settings.policy.clone()).filter(|_| runs == [newest.run_id.as_str()]);
    if runs.len() > 1 {
        notes.push(Note::SeveralRuns { runs: runs.into_iter().map(str::to_owned).collect() });
    }
    // The records are in the order in which they were made.
    let made = same.iter().rev().flat_map(|manifest| manifest.levels.iter().map(move |record| (manifest, record)));
    let made = made.filter(|(_, record)| used.iter().any(|one| std::ptr::eq(*one, *record)));
    measured.requests =
        made.map(|(manifest, record)| RequestsFile::of(&places.runs.join(manifest.run_id.as_str()), record)).collect();
    measured.notes = notes;
    Ok(measured)
}

/// The manifests of all runs, newest first. One that cannot be read is left out, with a note.
pub(super) fn read_manifests(runs: &Path) -> (Vec<Manifest>, Vec<Note>) {
    let mut notes = Vec::new();
    let mut manifests: Vec<Manifest> = Vec::new();
    for entry in std::fs::read_dir(runs).into_iter().flatten().flatten() {
        let path = entry.path().join("run.json");
        if !path.exists() {
            continue;
        }
        match Manifest::read(&path) {
            Ok(manifest) => manifests.push(manifest),
            Err(error) => notes.push(Note::Unreadable { error: error.to_string() }),
        }
    }
    manifests.sort_by(|a, b| b.run_id.cmp(&a.run_id));
    (manifests, notes)
}

fn is_usable(record: &Measurement) -> bool {
    record.state != LevelState::Cut
}

/// Whether this is a visit without a sample in Criterion's files.
fn is_unnamed(record: &Measurement) -> bool {
    record.stage == Stage::Visit && record.sample_ns.is_empty()
}

/// The newest measurement of a level that Criterion's files still hold, with that run's visits to the level.
fn newest_records<'a>(
    places: &Places,
    newest_first: &[&'a Manifest],
    level: usize,
) -> Option<(&'a Manifest, Vec<&'a Measurement>)> {
    newest_first.iter().find_map(|manifest| {
        let (visits, named): (Vec<_>, Vec<_>) = manifest
            .levels
            .iter()
            .filter(|record| record.concurrency == level && is_usable(record))
            .filter(|record| is_unnamed(record) || is_in_criterion(places, record))
            .partition(|record| is_unnamed(record));
        // Criterion never got a sample of this level, because its visits had too few requests.
        let untold = named.is_empty() && !manifest.levels.iter().any(|of| of.concurrency == level && !is_unnamed(of));
        if untold && !visits.is_empty() {
            return Some((*manifest, visits));
        }
        (!named.is_empty()).then(|| (*manifest, [named, visits].concat()))
    })
}

/// The figures of a level from its measurements, which are all from one run.
fn summary_of(
    folder: &Path,
    manifest: &Manifest,
    records: &[&Measurement],
    limits: Limits,
    read: &mut BTreeMap<PathBuf, BTreeMap<u32, Requests>>,
) -> Result<LevelSummary, ResultsError> {
    let requests = requests_of(folder, records, read)?;
    let measured: Vec<_> = records.iter().copied().zip(&requests).collect();
    Ok(figures::summarize(&measured, manifest.limits(limits)))
}

/// The requests of each of these measurements of one run. All levels share the sidecar of visits, which is read once.
pub(super) fn requests_of(
    folder: &Path,
    records: &[&Measurement],
    read: &mut BTreeMap<PathBuf, BTreeMap<u32, Requests>>,
) -> Result<Vec<Requests>, ResultsError> {
    let mut requests = Vec::new();
    for record in records {
        let file = RequestsFile::of(folder, record);
        let visits = match read.entry(file.path.clone()) {
            Entry::Occupied(read) => read.into_mut(),
            Entry::Vacant(unread) => unread.insert(file.read()?),
        };
        // Each measurement is requested only once, so its requests can be moved out.
        requests.push(visits.remove(&file.visit.unwrap_or_default()).unwrap_or_default());
    }
    Ok(requests)
}

/// Relative difference above which Criterion's throughput and the suite's are reported as different.
const CROSS_CHECK: f64 = 0.05;

/// A note if Criterion's throughput and the suite's differ.
fn cross_check(places: &Places, summary: &LevelSummary, of_level: &[&Measurement]) -> Option<Note> {
    // Criterion also counts measurements that were set aside, and requests that ended in a visit but began before it.
    let is_visited = of_level.iter().any(|record| record.stage == Stage::Visit);
    if is_visited || summary.state != Some(LevelState::Complete) || summary.outage.is_some() {
        return None;
    }
    let [mean_ns, ..] = estimates::mean_ns(places, summary.concurrency).ok()?;
    let (level, records) = (summary.concurrency, summary.throughput_rps?.estimate);
    let criterion = level as f64 * 1e9 / mean_ns;
    ((criterion / records - 1.0).abs() > CROSS_CHECK).then_some(Note::CriterionDiffers { level, criterion, records })
}

/// Summary of a level without a sidecar: Criterion's throughput, which cannot be checked.
fn estimate_only(places: &Places, level: usize) -> Result<LevelSummary, ResultsError> {
    let throughput_rps = Some(estimates::throughput(places, level)?);
    Ok(LevelSummary { concurrency: level, throughput_rps, ..LevelSummary::default() })
}

/// The basis if there is no run folder: Criterion's throughput for each of its levels.
fn estimates_only(places: &Places, now: &Identity, mut notes: Vec<Note>) -> Result<Basis, ResultsError> {
    let levels = estimates::levels(places).into_iter();
    let levels: Vec<_> = levels.filter_map(|level| estimate_only(places, level).ok()).collect();
    if levels.is_empty() {
        return Err(ResultsError::Nothing { criterion: places.criterion.clone() });
    }
    notes.push(Note::NoRecords { folder: places.runs.clone() });
    Ok(Basis { levels, notes, simulated: now.endpoint == SIMULATOR, incomplete: true, ..Basis::default() })
}
