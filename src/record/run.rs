//! The folder of a run, its manifest, and the run in progress.

use std::collections::BTreeMap;
use std::fs::{File, TryLockError};
use std::io;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use super::sidecar::{SidecarWriter, read_sidecar, sidecar_name};
use super::{Identity, Places, ResultsError, ResultsFile, read_json, to_json, write_atomic};
use crate::client::{RequestSettings, SIMULATOR};
use crate::decide::{Policy, Raced};
use crate::figures::{LevelSummary, Limits, Measurement, Requests, Stage, null_as_default};
use crate::files;
use crate::settings::Settings;

/// Maximum size of a manifest, in bytes. Enough for a hundred measurements, each with a histogram.
const MOST_OF_MANIFEST: u64 = 128 << 20;

/// Minimum interval between two saves of the run during a race.
const SAVE_EVERY: Duration = Duration::from_secs(1);

/// General information on a run. In a results file, nearly everything may be missing.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct About {
    /// Start time in RFC 3339, UTC.
    pub started_at: Option<String>,
    /// See [`Identity::fingerprint`].
    pub fingerprint: Option<String>,
    /// The endpoint without its secrets.
    pub endpoint: Option<String>,
    pub model: Option<String>,
    #[serde(deserialize_with = "null_as_default")]
    pub settings: RunSettings,
    #[serde(deserialize_with = "null_as_default")]
    pub environment: Environment,
}

impl About {
    /// Whether the embedded simulator was measured.
    pub fn simulated(&self) -> bool {
        self.endpoint.as_deref() == Some(SIMULATOR)
    }

    /// Endpoint and model, if these settings are for others.
    pub fn elsewhere(&self, settings: &Settings) -> Option<(String, String)> {
        let (endpoint, model) = (settings.endpoint.redacted(), settings.config.llm.model.clone());
        let measured = (self.endpoint.clone().unwrap_or(endpoint.clone()), self.model.clone().unwrap_or(model.clone()));
        (measured != (endpoint, model)).then_some(measured)
    }
}

/// Settings that are recorded with a run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RunSettings {
    /// The number in the config; null if there is none or if it belongs to another server.
    pub max_concurrent_requests: Option<usize>,
    /// The levels that the run was meant to measure, and those that its search added.
    #[serde(deserialize_with = "null_as_default")]
    pub levels: Vec<usize>,
    /// Minimum number of requests per level.
    pub total_requests: Option<usize>,
    /// Minimum number of completions before the measured window.
    pub warmup_requests: Option<usize>,
    /// Request timeout in seconds.
    pub request_timeout_s: Option<f64>,
    pub seed: Option<u64>,
    #[serde(deserialize_with = "null_as_default")]
    pub quick: bool,
    /// Whether the server lists the model; null if it lists no models.
    pub model_is_listed: Option<bool>,
    #[serde(deserialize_with = "if_readable")]
    pub request: Option<RequestSettings>,
    #[serde(deserialize_with = "if_readable")]
    pub policy: Option<Policy>,
}

/// Yields `None` if a section cannot be read: another version may have had other keys, and the rest is still useful.
fn if_readable<'de, D: Deserializer<'de>, T: serde::de::DeserializeOwned>(from: D) -> Result<Option<T>, D::Error> {
    Ok(serde_json::from_value(Value::deserialize(from)?).ok())
}

/// The machine and the program version of a run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Environment {
    /// Version of this program.
    pub version: Option<String>,
    pub os: Option<String>,
    /// Processor architecture.
    pub arch: Option<String>,
    /// Number of processors available.
    pub cpus: Option<usize>,
}

impl Environment {
    /// The environment of the current process.
    pub fn here() -> Self {
        Environment {
            version: Some(env!("CARGO_PKG_VERSION").to_owned()),
            os: Some(std::env::consts::OS.to_owned()),
            arch: Some(std::env::consts::ARCH.to_owned()),
            cpus: Some(std::thread::available_parallelism().map_or(1, usize::from)),
        }
    }
}

/// A run's id, which is also the name of its folder. Checked to be a plain name, whatever file it is read from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct RunId(String);

impl TryFrom<String> for RunId {
    type Error = String;

    fn try_from(id: String) -> Result<Self, String> {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
        if !id.is_empty() && id.chars().all(is_plain) {
            return Ok(RunId(id));
        }
        Err(format!("run_id {id:?} is not made of letters, digits, `-` and `_`"))
    }
}

impl RunId {
    /// The run's results file, which is named after the timestamp at the start of the id.
    pub fn results_file(&self, places: &Places) -> PathBuf {
        let stamp = self.0.split('-').next().unwrap_or_default();
        places.results.join(format!("concurrency_results_{stamp}.json"))
    }
}

impl Deref for RunId {
    type Target = String;

    fn deref(&self) -> &String {
        &self.0
    }
}

/// `run.json`: the measurements of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Sorts chronologically.
    pub run_id: RunId,
    #[serde(flatten)]
    pub about: About,
    /// The identity that the fingerprint is a hash of.
    pub identity: Identity,
    /// The measurements that have ended, in the order in which they were made.
    pub levels: Vec<Measurement>,
    /// The result of the race.
    pub raced: Option<Raced>,
}

/// The file that records the individual requests of a measurement.
#[derive(Clone, Debug, PartialEq)]
pub struct RequestsFile {
    pub path: PathBuf,
    pub level: usize,
    /// Start and end of the measured window, in seconds since the measurement began.
    pub window_s: Option<[f64; 2]>,
    /// The visit whose requests are meant; `None`: all requests in the file.
    pub visit: Option<u32>,
    /// Number of initial requests that are left out.
    left_out: u64,
    /// Estimated number of requests, used to reserve memory.
    expected: u64,
}

impl RequestsFile {
    pub(super) fn of(folder: &Path, measurement: &Measurement) -> Self {
        let Measurement { concurrency: level, window_s, .. } = *measurement;
        let path = folder.join(sidecar_name(measurement.step()));
        let visit = (measurement.stage == Stage::Visit).then_some(measurement.round);
        let left_out = measurement.left_out.map_or(0, |left_out| left_out.requests);
        let completed: u64 = measurement.samples.iter().map(|sample| sample.completed).sum();
        // Includes an allowance for the warm-up and for the requests in flight at the end.
        let expected = left_out + completed + 2 * level as u64;
        RequestsFile { path, level, window_s, visit, left_out, expected }
    }

    /// The data of the file that the figures need, keyed by visit. Requests without a visit number are under 0.
    pub fn read(&self) -> Result<BTreeMap<u32, Requests>, ResultsError> {
        let mut visits = BTreeMap::new();
        for outcome in read_sidecar(&self.path)? {
            let outcome = outcome?.leaving_out(self.left_out);
            let visit = outcome.visit.unwrap_or_default();
            visits.entry(visit).or_insert_with(|| Requests::with_room_for(self.expected)).push(&outcome);
        }
        Ok(visits)
    }
}

impl Manifest {
    pub(super) fn read(path: &Path) -> Result<Self, ResultsError> {
        read_json(path, MOST_OF_MANIFEST, "run manifest")
    }

    /// The limits `now`, except for those that belong to the run: the request timeout and the end of its warm-up.
    pub fn limits(&self, now: Limits) -> Limits {
        let request_timeout_s = self.about.settings.request_timeout_s.unwrap_or(now.request_timeout_s);
        Limits { request_timeout_s, warm_from_s: self.raced.map_or(0.0, |raced| raced.warm_from_s), ..now }
    }

    /// The levels that were measured in full.
    pub fn in_full(&self) -> impl Iterator<Item = usize> {
        self.levels.iter().filter(|of| of.stage == Stage::Sweep).map(|of| of.concurrency)
    }

    /// Time from the start of the run to the end of its last measurement.
    pub fn measured_until(&self) -> Duration {
        let ends_s = self.levels.iter().filter_map(|of| Some(of.began_s + of.window_s?[1]));
        Duration::try_from_secs_f64(ends_s.fold(0.0, f64::max)).unwrap_or_default()
    }

    /// The files with the run's requests, in the order of the measurements. `folder` is the run's folder.
    pub fn requests(&self, folder: &Path) -> Vec<RequestsFile> {
        self.levels.iter().map(|measurement| RequestsFile::of(folder, measurement)).collect()
    }
}

/// A run in progress: its folder, its manifest, and its results file.
#[derive(Debug)]
pub struct Run {
    folder: PathBuf,
    /// Rewritten after each measurement.
    pub results_file: PathBuf,
    pub manifest: Manifest,
    /// The figures so far, in ascending order of level.
    pub summaries: Vec<LevelSummary>,
    saved: Option<Instant>,
    /// The run's folder, locked for as long as the run is in progress.
    lock: Option<File>,
}

impl Run {
    /// A new run. Nothing is written before [`Run::begin`].
    pub fn new(places: &Places, identity: Identity, settings: RunSettings) -> Self {
        let now = SystemTime::now();
        let started_at = humantime::format_rfc3339_seconds(now).to_string();
        let stamp: String = started_at.chars().filter(char::is_ascii_alphanumeric).collect();
        let manifest = Manifest {
            run_id: RunId(format!("{stamp}-{:04x}", rand::random::<u16>())),
            about: About {
                started_at: Some(started_at),
                fingerprint: Some(identity.fingerprint()),
                endpoint: Some(identity.endpoint.clone()),
                model: Some(identity.model.clone()),
                settings,
                environment: Environment::here(),
            },
            identity,
            levels: Vec::new(),
            raced: None,
        };
        Run::of(places, manifest)
    }

    pub(super) fn of(places: &Places, manifest: Manifest) -> Self {
        let (folder, summaries) = (places.runs.join(manifest.run_id.as_str()), Vec::new());
        let results_file = manifest.run_id.results_file(places);
        Run { folder, results_file, manifest, summaries, saved: None, lock: None }
    }

    /// Resumes in the existing folder and, if it is this run's, the existing results file.
    pub(super) fn take_up(&mut self) -> Result<(), ResultsError> {
        let written = ResultsFile::read(&self.results_file).ok().and_then(|file| file.run_id);
        self.saved = written.filter(|run_id| *run_id == self.manifest.run_id).map(|_| Instant::now());
        self.hold()
    }

    /// Locks the folder. An error if another process holds the lock. Has no effect where folders cannot be locked.
    fn hold(&mut self) -> Result<(), ResultsError> {
        let folder = File::open(&self.folder).map_err(|cause| self.unwritable(cause))?;
        if matches!(folder.try_lock(), Err(TryLockError::WouldBlock)) {
            return Err(ResultsError::StillRunning { run_id: self.manifest.run_id.to_string() });
        }
        self.lock = Some(folder);
        Ok(())
    }

    fn unwritable(&self, cause: io::Error) -> ResultsError {
        ResultsError::Write { path: self.folder.clone(), cause }
    }

    /// Ensures, before anything is sent, that the run has its own folder and that its files can be written.
    pub fn begin(&mut self) -> Result<(), ResultsError> {
        let results = self.results_file.parent().unwrap_or(Path::new("."));
        let runs = self.folder.parent().unwrap_or(Path::new("."));
        for folder in [runs, results] {
            std::fs::create_dir_all(folder)
                .and_then(|()| files::temporary_with(folder, b"\n"))
                .map_err(|cause| ResultsError::Write { path: folder.to_owned(), cause })?;
            remove_left_behind(folder);
        }
        let earlier = std::fs::read_dir(runs).into_iter().flatten().flatten();
        earlier.for_each(|run| remove_left_behind(&run.path()));
        if self.lock.is_some() {
            return Ok(());
        }
        std::fs::create_dir(&self.folder).map_err(|cause| self.unwritable(cause))?;
        self.hold()
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Opens a sidecar in the run's folder. [`sidecar_name`](super::sidecar_name) gives the name for a measurement.
    pub fn sidecar(&self, name: &str) -> Result<SidecarWriter, ResultsError> {
        SidecarWriter::open(self.folder.join(name))
    }

    /// Records the figures of a level after a measurement that is already in the manifest and has its sidecar in place.
    pub fn level_ended(&mut self, level: usize, summary: LevelSummary) -> Result<(), ResultsError> {
        // Visits come in quick succession, so not each of them is saved at once.
        let is_visit = self.manifest.levels.last().is_some_and(|of| of.stage == Stage::Visit);
        let can_wait = is_visit && self.saved.is_some_and(|at| at.elapsed() < SAVE_EVERY);
        let planned = &mut self.manifest.about.settings.levels;
        // An adaptive search adds levels as it goes.
        if let Err(at) = planned.binary_search(&level) {
            planned.insert(at, level);
        }
        self.set_summary(summary);
        if can_wait { Ok(()) } else { self.save() }
    }

    /// Sets or replaces the figures of a level.
    pub fn set_summary(&mut self, summary: LevelSummary) {
        match self.summaries.binary_search_by_key(&summary.concurrency, |summary| summary.concurrency) {
            Ok(at) => self.summaries[at] = summary,
            Err(at) => self.summaries.insert(at, summary),
        }
    }

    /// Writes the manifest and the results file as they are so far.
    pub fn save(&mut self) -> Result<(), ResultsError> {
        write_atomic(&self.folder.join("run.json"), &to_json(&self.manifest))?;
        if self.saved.replace(Instant::now()).is_some() {
            return self.write_results(None);
        }
        // Another run may have started in the same second.
        self.results_file = write_new(&self.results_file, &self.results(None))?;
        Ok(())
    }

    /// Writes the results file. The recommendation is stored without the figures that the levels already have.
    pub fn write_results(&self, recommendation: Option<Value>) -> Result<(), ResultsError> {
        write_atomic(&self.results_file, &self.results(recommendation))
    }

    fn results(&self, recommendation: Option<Value>) -> Vec<u8> {
        to_json(&ResultsFile::new(&self.manifest, self.summaries.clone(), recommendation))
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        // Removes the folder only if it is empty, because nothing was measured.
        let _ = std::fs::remove_dir(&self.folder);
    }
}

/// Writes a new file at `path` or, if that exists, under its name with the first free number. Returns its path.
fn write_new(path: &Path, bytes: &[u8]) -> Result<PathBuf, ResultsError> {
    let failed = |cause: io::Error| ResultsError::Write { path: path.to_owned(), cause };
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let numbered = (2_u32..).map(|n| path.with_file_name(format!("{stem}_{n}.json")));
    let mut file = files::temporary_with(path.parent().unwrap_or(Path::new(".")), bytes).map_err(failed)?;
    for free in std::iter::once(path.to_owned()).chain(numbered) {
        match file.persist_noclobber(&free) {
            Ok(_) => return Ok(free),
            Err(taken) if taken.error.kind() == io::ErrorKind::AlreadyExists => file = taken.file,
            Err(error) => return Err(failed(error.error)),
        }
    }
    Err(failed(io::ErrorKind::AlreadyExists.into()))
}

/// Age up to which a file may not be locked yet.
const YOUNG: Duration = Duration::from_secs(60);

/// Removes incomplete files that killed processes have left behind.
fn remove_left_behind(folder: &Path) {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    for entry in entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(files::TEMPORARY)) {
        if is_left_behind(&entry.path()).unwrap_or(false) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

fn is_left_behind(path: &Path) -> io::Result<bool> {
    let file = files::open(path, u64::MAX)?;
    let age = file.metadata()?.modified()?.elapsed().unwrap_or_default();
    Ok(age > YOUNG && file.try_lock().is_ok())
}
