//! The folder of a run, its manifest, and the run in the making.

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

/// Of up to a hundred measurements, each with a histogram.
const MOST_OF_MANIFEST: u64 = 128 << 20;

/// So often at most, the run is saved in mid-race.
const SAVE_EVERY: Duration = Duration::from_secs(1);

/// A run as a whole. In a results file nearly everything may be missing.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct About {
    /// RFC 3339, UTC.
    pub started_at: Option<String>,
    /// [`Identity::fingerprint`].
    pub fingerprint: Option<String>,
    /// Without its secrets.
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
}

/// Settings as recorded with a run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RunSettings {
    /// The number that the config held; null where that is another server's.
    pub max_concurrent_requests: Option<usize>,
    /// The levels this run was to measure.
    #[serde(deserialize_with = "null_as_default")]
    pub levels: Vec<usize>,
    /// Requests per level, at least.
    pub total_requests: Option<usize>,
    /// Completions before the window, at least.
    pub warmup_requests: Option<usize>,
    /// Seconds until a request counts as timed out.
    pub request_timeout_s: Option<f64>,
    pub seed: Option<u64>,
    #[serde(deserialize_with = "null_as_default")]
    pub quick: bool,
    /// Whether the server lists the model; null where it lists none.
    pub model_is_listed: Option<bool>,
    #[serde(deserialize_with = "if_readable")]
    pub request: Option<RequestSettings>,
    #[serde(deserialize_with = "if_readable")]
    pub policy: Option<Policy>,
}

/// Another version may have had other keys, without which the rest of the file is worth as much.
fn if_readable<'de, D: Deserializer<'de>, T: serde::de::DeserializeOwned>(from: D) -> Result<Option<T>, D::Error> {
    Ok(serde_json::from_value(Value::deserialize(from)?).ok())
}

/// Where and with what a run was made.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Environment {
    /// Of this program.
    pub version: Option<String>,
    pub os: Option<String>,
    /// Processor architecture.
    pub arch: Option<String>,
    /// Processors available.
    pub cpus: Option<usize>,
}

impl Environment {
    /// This machine.
    pub fn here() -> Self {
        Environment {
            version: Some(env!("CARGO_PKG_VERSION").to_owned()),
            os: Some(std::env::consts::OS.to_owned()),
            arch: Some(std::env::consts::ARCH.to_owned()),
            cpus: Some(std::thread::available_parallelism().map_or(1, usize::from)),
        }
    }
}

/// A run's id, which names its folder: a plain name, whoever wrote the file that it is read from.
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
    /// The run's results file is named by the time that the id begins with.
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

/// `run.json`: what a run measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Sorts by time.
    pub run_id: RunId,
    #[serde(flatten)]
    pub about: About,
    /// What the fingerprint hashes.
    pub identity: Identity,
    /// Those that ended, in the order in which they were made.
    pub levels: Vec<Measurement>,
    /// What the race came to.
    pub raced: Option<Raced>,
}

/// Where the single requests of one measurement are recorded.
#[derive(Clone, Debug, PartialEq)]
pub struct RequestsFile {
    pub path: PathBuf,
    pub level: usize,
    /// The measured window, seconds since the level began.
    pub window_s: Option<[f64; 2]>,
    /// Which of the file's requests are meant; all of them without one.
    pub visit: Option<u32>,
    /// So many of the first do not count.
    left_out: u64,
    /// About as many are in it, of a measurement that is none among visits.
    expected: u64,
}

impl RequestsFile {
    pub(super) fn of(folder: &Path, measurement: &Measurement) -> Self {
        let Measurement { concurrency: level, window_s, .. } = *measurement;
        let path = folder.join(sidecar_name(measurement.step()));
        let visit = (measurement.stage == Stage::Visit).then_some(measurement.round);
        let left_out = measurement.left_out.map_or(0, |left_out| left_out.requests);
        let completed: u64 = measurement.samples.iter().map(|sample| sample.completed).sum();
        // With the warm-up, and those that were in flight at the end.
        let expected = left_out + completed + 2 * level as u64;
        RequestsFile { path, level, window_s, visit, left_out, expected }
    }

    /// What the figures need of all of the file: by visit, all in visit 0 where the loop made only one.
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

    /// Those of now, but for what belongs to the run.
    pub fn limits(&self, now: Limits) -> Limits {
        let request_timeout_s = self.about.settings.request_timeout_s.unwrap_or(now.request_timeout_s);
        Limits { request_timeout_s, warm_from_s: self.raced.map_or(0.0, |raced| raced.warm_from_s), ..now }
    }

    /// Levels that were measured in full.
    pub fn in_full(&self) -> impl Iterator<Item = usize> {
        self.levels.iter().filter(|of| of.stage == Stage::Sweep).map(|of| of.concurrency)
    }

    /// How long after its begin the last measurement ended.
    pub fn measured_until(&self) -> Duration {
        let ends_s = self.levels.iter().filter_map(|of| Some(of.began_s + of.window_s?[1]));
        Duration::try_from_secs_f64(ends_s.fold(0.0, f64::max)).unwrap_or_default()
    }

    /// The records of its requests, in the order in which they were made. `folder` is the run's.
    pub fn requests(&self, folder: &Path) -> Vec<RequestsFile> {
        self.levels.iter().map(|measurement| RequestsFile::of(folder, measurement)).collect()
    }
}

/// A run in the making: its folder, its manifest, and its results file.
#[derive(Debug)]
pub struct Run {
    folder: PathBuf,
    /// Rewritten after each measurement.
    pub results_file: PathBuf,
    pub manifest: Manifest,
    /// The figures so far, ascending by level.
    pub summaries: Vec<LevelSummary>,
    saved: Option<Instant>,
    /// Its folder, held for as long as the run goes on.
    lock: Option<File>,
}

impl Run {
    /// A new run. Nothing is written before it begins.
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

    /// Goes on in the folder and the results file that it has.
    pub(super) fn take_up(&mut self) -> Result<(), ResultsError> {
        let written = ResultsFile::read(&self.results_file).ok().and_then(|file| file.run_id);
        self.saved = written.filter(|run_id| *run_id == self.manifest.run_id).map(|_| Instant::now());
        self.hold()
    }

    /// An error if another process has it. Where folders cannot be locked, nobody is kept out.
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

    /// Sees to it, before anything is sent, that the run has a folder of its own and that its files can be written.
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

    /// Opens a record of requests in its folder: that of a measurement by [`sidecar_name`](super::sidecar_name).
    pub fn sidecar(&self, name: &str) -> Result<SidecarWriter, ResultsError> {
        SidecarWriter::open(self.folder.join(name))
    }

    /// A measurement has ended, is in the manifest, and its sidecar is in place: records the figures of its level.
    pub fn level_ended(&mut self, level: usize, summary: LevelSummary) -> Result<(), ResultsError> {
        // Visits follow each other quickly.
        let is_visit = self.manifest.levels.last().is_some_and(|of| of.stage == Stage::Visit);
        let can_wait = is_visit && self.saved.is_some_and(|at| at.elapsed() < SAVE_EVERY);
        let planned = &mut self.manifest.about.settings.levels;
        // An adaptive search finds its levels on the way.
        if let Err(at) = planned.binary_search(&level) {
            planned.insert(at, level);
        }
        self.set_summary(summary);
        if can_wait { Ok(()) } else { self.save() }
    }

    /// The figures of a level are these now.
    pub fn set_summary(&mut self, summary: LevelSummary) {
        match self.summaries.binary_search_by_key(&summary.concurrency, |summary| summary.concurrency) {
            Ok(at) => self.summaries[at] = summary,
            Err(at) => self.summaries.insert(at, summary),
        }
    }

    /// Writes what there is so far.
    pub fn save(&mut self) -> Result<(), ResultsError> {
        write_atomic(&self.folder.join("run.json"), &to_json(&self.manifest))?;
        if self.saved.replace(Instant::now()).is_some() {
            return self.write_results(None);
        }
        // Another run may have begun in the same second.
        self.results_file = write_new(&self.results_file, &self.results(None))?;
        Ok(())
    }

    /// Writes the results file as far as it goes. The recommendation is left without the figures that stand beside it.
    pub fn write_results(&self, recommendation: Option<Value>) -> Result<(), ResultsError> {
        write_atomic(&self.results_file, &self.results(recommendation))
    }

    fn results(&self, recommendation: Option<Value>) -> Vec<u8> {
        to_json(&ResultsFile::new(&self.manifest, self.summaries.clone(), recommendation))
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        // Where nothing was measured, not even an empty folder is left.
        let _ = std::fs::remove_dir(&self.folder);
    }
}

/// Writes a file where there is none: at `path`, or where its name with the next number leads. Returns where.
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

/// A file as young as this may not be locked yet.
const YOUNG: Duration = Duration::from_secs(60);

/// Removes what processes that were killed have left half-written.
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
