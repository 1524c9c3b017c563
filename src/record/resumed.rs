//! Resumes a run that was cut off.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader};
use std::path::Path;

use serde_json::json;

use super::identity::differences;
use super::measured::{read_manifests, requests_of};
use super::sidecar::{MOST_OF_SIDECAR, VISITS, sidecar_name};
use super::{Identity, Places, ResultsError, Run, RunSettings};
use crate::figures::{LevelState, Measurement, Requests, Stage};
use crate::files;

/// A run with what it has measured so far, which is nothing for a new one.
pub struct Resumed {
    pub run: Run,
    /// The requests of each measurement in the manifest.
    pub requests: Vec<Requests>,
    /// The highest visit number that is in use.
    pub visits: u32,
    /// Number of requests on record.
    pub sent: u64,
}

impl From<Run> for Resumed {
    fn from(run: Run) -> Self {
        Resumed { run, requests: Vec::new(), visits: 0, sent: 0 }
    }
}

impl Resumed {
    /// The latest run, as far as it is on disk. Incomplete measurements are put aside, to be repeated. An error if
    /// there is none, or if it has finished, is still running, or measured something other than `now` with `settings`.
    pub fn latest(places: &Places, now: &Identity, settings: &RunSettings) -> Result<Self, ResultsError> {
        let newest = read_manifests(&places.runs).0.into_iter().next();
        let mut manifest = newest.ok_or_else(|| ResultsError::Nothing { criterion: places.criterion.clone() })?;
        let run_id = manifest.run_id.to_string();
        let mut differ = manifest.identity.differences(now);
        let asked = |of: &RunSettings| {
            let of = of.clone();
            json!(RunSettings { levels: Vec::new(), max_concurrent_requests: None, model_is_listed: None, ..of })
        };
        differ += &differences("", &asked(&manifest.about.settings), &asked(settings));
        if !differ.is_empty() {
            return Err(ResultsError::OtherTarget { run_id, differences: differ });
        }
        manifest.levels.retain(|of| of.state != LevelState::Cut);
        let measured: BTreeSet<usize> = manifest.levels.iter().map(|of| of.concurrency).collect();
        let is_over = manifest.raced.take().is_some_and(|raced| raced.decided);
        if is_over && settings.levels.iter().all(|level| measured.contains(level)) {
            return Err(ResultsError::NothingLeft { run_id });
        }
        manifest.about.settings.levels =
            measured.iter().chain(&settings.levels).copied().collect::<BTreeSet<_>>().into_iter().collect();
        let mut run = Run::of(places, manifest);
        run.take_up()?;
        put_cut_ones_aside(run.folder(), &run.manifest.levels)?;
        let mut read = BTreeMap::new();
        let records: Vec<&Measurement> = run.manifest.levels.iter().collect();
        let requests = requests_of(run.folder(), &records, &mut read)?;
        let visits = run.manifest.levels.iter().filter(|of| of.stage == Stage::Visit).map(|of| of.round);
        let unnamed = read.get(&run.folder().join(VISITS)).and_then(|visits| visits.keys().next_back().copied());
        let visits = visits.chain(unnamed).max().unwrap_or_default();
        let sent = lines_in(run.folder());
        Ok(Resumed { run, requests, visits, sent })
    }
}

/// Renames the sidecars of incomplete measurements, so that each starts a new file but its requests stay on record.
fn put_cut_ones_aside(folder: &Path, kept: &[Measurement]) -> Result<(), ResultsError> {
    let is_cut = |name: &str| {
        let level = name.strip_prefix("level-").and_then(|rest| rest.strip_suffix(".jsonl"));
        level.is_some() && kept.iter().all(|of| sidecar_name(of.step()) != name)
    };
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if is_cut(&name) {
            let free = (1..).map(|n| folder.join(format!("cut-{n}-{name}"))).find(|path| !path.exists());
            let moved = free.map_or(Ok(()), |free| std::fs::rename(entry.path(), free));
            moved.map_err(|cause| ResultsError::Write { path: entry.path(), cause })?;
        }
    }
    Ok(())
}

/// Number of requests on record, one per line.
fn lines_in(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let records = entries.filter(|path| path.extension().is_some_and(|extension| extension == "jsonl"));
    let files = records.filter_map(|path| files::open(&path, MOST_OF_SIDECAR).ok());
    files.map(|file| BufReader::new(file).split(b'\n').count() as u64).sum()
}
