//! All that is on disk: Criterion's JSON (read), the run folder with its sidecars and manifest, results files.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::io::{self, BufRead, BufReader, Read as _, Write};
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tempfile::NamedTempFile;
use thiserror::Error;

use crate::client::outcome::{RateLimit, RequestOutcome};
use crate::client::redact;
use crate::client::{Endpoint, RequestSettings, SIMULATOR};
use crate::decide::{JudgedLevel, Note, Policy, Recommendation};
use crate::figures::reasons::EarlyEnd;
use crate::figures::{self, ClientLoad, Drift, LevelFacts, LevelState, LevelSummary, Pool, Reach, Sample, ServerLoad};
use crate::files;
use crate::measure::search::{Stage, Step};
use crate::prompts::Prompt;
use crate::report::words;
use crate::settings::Settings;

/// The schema of results files.
pub const SCHEMA: &str = "llm-concurrency/results/v1";
/// Criterion's group of the sweep.
pub const GROUP: &str = "concurrency";
/// Criterion's group of a measurement: each confirm round has one of its own, since Criterion takes an id once.
pub fn criterion_group(step: Step) -> String {
    match step.stage {
        Stage::Confirm => format!("confirm-{}", step.round),
        Stage::Sweep | Stage::Auto => GROUP.to_owned(),
    }
}

/// Criterion's id of a measurement, which is also the path of its folder.
pub fn criterion_id(step: Step) -> String {
    let group = criterion_group(step);
    match step.stage {
        Stage::Confirm => format!("{group}/{}", step.level),
        Stage::Sweep | Stage::Auto => format!("{group}/level/{}", step.level),
    }
}

/// Criterion's figure and ours should be closer than this.
const CROSS_CHECK: f64 = 0.05;

/// What is wrong with the files, and what to do.
#[derive(Debug, Error)]
pub enum ResultsError {
    /// A file cannot be read.
    #[error("cannot read {path}: {cause}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: io::Error,
    },
    /// A file cannot be written.
    #[error(
        "cannot write {path}: {cause}\n\nMake room there, or the folder writable, or name another one (CARGO_TARGET_DIR). What was measured before is still in target/concurrency."
    )]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: io::Error,
    },
    /// A file is not what it should be.
    #[error("{path} is not a {what}: {message}")]
    Format {
        /// The file.
        path: PathBuf,
        /// What was expected.
        what: &'static str,
        /// What is wrong.
        message: String,
    },
    /// Nothing has been measured.
    #[error(
        "no measurements found in {criterion}\n\nRun `cargo bench` (or `llm-concurrency run`) first, name the folder with --criterion-dir, or a results file with --results."
    )]
    Nothing {
        /// Criterion's folder.
        criterion: PathBuf,
    },
    /// The last run ended before it had anything to show.
    #[error(
        "the last run ({run_id}) was cut off before any level was complete, so there is nothing to decide from\n\nRun `cargo bench` (or `llm-concurrency run`) again."
    )]
    CutOff {
        /// That run.
        run_id: String,
    },
    /// Measured against something else than the settings now say.
    #[error(
        "the measurements (run {run_id}) do not fit the settings:\n{differences}\nThey are not mixed. Run `cargo bench` again, or set the endpoint and model as they were (LLM_ENDPOINT, LLM_MODEL, config.yaml), or name a results file with --results."
    )]
    OtherTarget {
        /// The newest run.
        run_id: String,
        /// One line per difference.
        differences: String,
    },
}

// ---- places ----

/// Where files are.
#[derive(Clone, Debug)]
pub struct Places {
    /// Criterion's folder.
    pub criterion: PathBuf,
    /// Run folders: `concurrency` beside Criterion's folder, whose index lists all below its own.
    pub runs: PathBuf,
    /// Results files and reports.
    pub results: PathBuf,
}

impl Places {
    /// As Criterion finds its folder, unless one is given.
    pub fn find(criterion: Option<&Path>) -> Self {
        let criterion = criterion.map(Path::to_owned).unwrap_or_else(criterion_folder);
        let target = criterion.parent().unwrap_or(Path::new("")).to_owned();
        Places { runs: target.join("concurrency"), results: PathBuf::from("results"), criterion }
    }
}

/// `$CRITERION_HOME`, `$CARGO_TARGET_DIR/criterion`, cargo's target folder, `target/criterion`: Criterion's own order.
fn criterion_folder() -> PathBuf {
    if let Some(home) = std::env::var_os("CRITERION_HOME") {
        return home.into();
    }
    let target = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from).or_else(cargo_target);
    target.unwrap_or_else(|| "target".into()).join("criterion")
}

fn cargo_target() -> Option<PathBuf> {
    let cargo = std::env::var_os("CARGO")?;
    let output = Command::new(cargo).args(["metadata", "--format-version", "1", "--no-deps"]).output().ok()?;
    let metadata: Value = serde_json::from_slice(&output.stdout).ok()?;
    Some(metadata["target_directory"].as_str()?.into())
}

/// [`files::replace`], with an error that says what to do.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<(), ResultsError> {
    files::replace(path, bytes).map_err(|cause| ResultsError::Write { path: path.to_owned(), cause })
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

fn to_json(value: &impl Serialize) -> Vec<u8> {
    let mut bytes = serde_json::to_vec_pretty(value).expect("our own types have only string keys");
    bytes.push(b'\n');
    bytes
}

/// A results file of a thousand levels has a tenth of it.
const MOST_OF_JSON: u64 = 16 << 20;
/// Of up to a hundred measurements, each with a histogram.
const MOST_OF_MANIFEST: u64 = 128 << 20;
/// Some ten million requests.
const MOST_OF_SIDECAR: u64 = 4 << 30;
/// A line of a sidecar has a few hundred bytes.
const LONGEST_LINE: u64 = 1 << 20;

fn read_json<T: DeserializeOwned>(path: &Path, most: u64, what: &'static str) -> Result<T, ResultsError> {
    let text =
        files::read_to_string(path, most).map_err(|cause| ResultsError::Read { path: path.to_owned(), cause })?;
    let broken = |error: serde_json::Error| ResultsError::Format {
        path: path.to_owned(),
        what,
        message: redact::one_line(&error.to_string()),
    };
    // Only the text itself tells the line of a mistake; only the values can be rid of what would act on a terminal.
    serde_json::from_str::<T>(&text).map_err(broken)?;
    serde_json::from_str(&text).and_then(|value| serde_json::from_value(redact::value_in_lines(value))).map_err(broken)
}

fn read_manifest(path: &Path) -> Result<Manifest, ResultsError> {
    read_json(path, MOST_OF_MANIFEST, "run manifest")
}

// ---- identity ----

/// What must be the same for two measurements to be comparable. Holds no secrets.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Identity {
    /// The redacted endpoint, or `simulator`.
    pub endpoint: String,
    /// The simulator's settings, if it is the endpoint.
    pub simulator: Option<Value>,
    /// The model.
    pub model: String,
    /// What is sent.
    pub request: Value,
    /// Hash of the prompts.
    pub prompts: String,
}

impl Identity {
    /// Of these settings with these prompts.
    pub fn of(settings: &Settings, prompts: &[Prompt]) -> Self {
        let Settings { config, endpoint, .. } = settings;
        let simulator = (*endpoint == Endpoint::Simulator).then(|| json!(config.simulator));
        let mut texts = Sha256::new();
        for prompt in prompts {
            texts.update(prompt.text.as_bytes());
            texts.update([0]);
        }
        // The prompts count by what they say, not by where their file lies.
        let request = RequestSettings { prompts: None, ..config.benchmark.request.clone() };
        Identity {
            endpoint: endpoint.redacted(),
            simulator,
            model: config.llm.model.clone(),
            request: json!(request),
            prompts: hex(&texts.finalize()[..8]),
        }
    }

    /// 16 hexadecimal digits that are the same if and (very nearly) only if all parts are.
    pub fn fingerprint(&self) -> String {
        hex(&Sha256::digest(json!(self).to_string())[..8])
    }

    /// How `self` (measured) differs from `now`, a line each.
    fn differences(&self, now: &Identity) -> String {
        let mut lines = String::new();
        let mut compare = |what: &str, then: &dyn Display, now: &dyn Display| {
            let (then, now) = (then.to_string(), now.to_string());
            if then != now {
                lines.push_str(&format!("  {what}: measured with {then}, now {now}\n"));
            }
        };
        compare("endpoint", &self.endpoint, &now.endpoint);
        compare("model", &self.model, &now.model);
        compare("prompts (hash)", &self.prompts, &now.prompts);
        let mut compare_keys = |section: &str, then: &Value, now: &Value| {
            let keys = [then, now].into_iter().filter_map(Value::as_object).flat_map(|object| object.keys());
            for key in keys.collect::<BTreeSet<_>>() {
                compare(&format!("{section}.{key}"), &then[key], &now[key]);
            }
        };
        compare_keys("benchmark.request", &self.request, &now.request);
        if let (Some(then), Some(now)) = (&self.simulator, &now.simulator) {
            compare_keys("simulator", then, now);
        }
        lines
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

// ---- the run folder ----

/// Settings as recorded with a run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RunSettings {
    /// The levels this run was to measure.
    pub levels: Vec<usize>,
    /// Requests per level, at least.
    pub total_requests: usize,
    /// Completions before the window, at least.
    pub warmup_requests: usize,
    /// Seconds until a request counts as timed out.
    pub request_timeout_s: f64,
    /// Seed.
    pub seed: u64,
    /// Whether it was a quick run.
    pub quick: bool,
    /// Whether the server lists the model; null where it lists none.
    pub model_is_listed: Option<bool>,
    /// What was sent.
    pub request: Value,
    /// How the level is chosen.
    pub policy: Policy,
}

/// Where and with what a run was made.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Environment {
    /// Version of this program.
    pub version: String,
    /// Operating system.
    pub os: String,
    /// Processor architecture.
    pub arch: String,
    /// Processors available.
    pub cpus: usize,
}

impl Environment {
    /// This machine.
    pub fn here() -> Self {
        Environment {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            os: std::env::consts::OS.to_owned(),
            arch: std::env::consts::ARCH.to_owned(),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
        }
    }
}

/// One level in the manifest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LevelRecord {
    /// The level.
    pub concurrency: usize,
    /// Which part of the run.
    pub stage: Stage,
    /// The confirm round, from 1; 0 outside of them.
    #[serde(default)]
    pub round: u32,
    /// Criterion's id.
    pub criterion_id: String,
    /// The times handed to Criterion, nanoseconds per wave: the key that joins this record to Criterion's files.
    pub sample_ns: Vec<f64>,
    /// The measured window, seconds since the level began.
    pub window_s: Option<[f64; 2]>,
    /// The windows in it.
    pub samples: Vec<Sample>,
    /// Gaps between content chunks: ascending `[microseconds, count]`.
    pub itl_histogram: Vec<(u64, u64)>,
    /// How it ended.
    pub state: LevelState,
    /// Why it was not complete.
    pub reason: Option<EarlyEnd>,
    /// What it cost this client.
    #[serde(default)]
    pub client: Option<ClientLoad>,
    /// What the server said last of its quota.
    #[serde(default)]
    pub rate_limit: Option<RateLimit>,
    /// What the server said of its load in the measured window, where it was asked.
    #[serde(default)]
    pub server: Option<ServerLoad>,
    /// How many of its requests found no server.
    #[serde(default)]
    pub reach: Reach,
}

impl LevelRecord {
    /// Which measurement of the run it is.
    pub fn step(&self) -> Step {
        Step { level: self.concurrency, stage: self.stage, round: self.round }
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
    /// RFC 3339, UTC.
    pub started_at: String,
    /// [`Identity::fingerprint`].
    pub fingerprint: String,
    /// What the fingerprint hashes.
    pub identity: Identity,
    /// The redacted endpoint.
    pub endpoint: String,
    /// The model.
    pub model: String,
    /// Settings.
    pub settings: RunSettings,
    /// Machine and versions.
    pub environment: Environment,
    /// The levels that ended.
    pub levels: Vec<LevelRecord>,
}

/// Where the single requests of one measurement are recorded.
#[derive(Clone, Debug, PartialEq)]
pub struct RequestsFile {
    /// The sidecar.
    pub path: PathBuf,
    /// The level.
    pub level: usize,
    /// The measured window, seconds since the level began.
    pub window_s: Option<[f64; 2]>,
}

impl RequestsFile {
    fn of(folder: &Path, record: &LevelRecord) -> Self {
        let path = folder.join(sidecar_name(record.step()));
        RequestsFile { path, level: record.concurrency, window_s: record.window_s }
    }
}

impl Manifest {
    /// The records of its requests, in the order in which they were made. `folder` is the run's.
    pub fn requests(&self, folder: &Path) -> Vec<RequestsFile> {
        self.levels.iter().map(|record| RequestsFile::of(folder, record)).collect()
    }
}

/// A run in the making: its folder, its manifest, and its results file.
#[derive(Debug)]
pub struct Run {
    folder: PathBuf,
    /// The results file, rewritten after each level.
    pub results_file: PathBuf,
    /// The manifest so far.
    pub manifest: Manifest,
    /// The figures so far.
    pub summaries: Vec<LevelSummary>,
}

impl Run {
    /// A new run. Nothing is written before it begins.
    pub fn new(places: &Places, identity: Identity, settings: RunSettings) -> Self {
        let now = SystemTime::now();
        let started_at = humantime::format_rfc3339_seconds(now).to_string();
        let stamp: String = started_at.chars().filter(char::is_ascii_alphanumeric).collect();
        let run_id = format!("{stamp}-{:04x}", rand::random::<u16>());
        Run {
            folder: places.runs.join(&run_id),
            results_file: places.results.join(format!("concurrency_results_{stamp}.json")),
            manifest: Manifest {
                run_id: RunId(run_id),
                started_at,
                fingerprint: identity.fingerprint(),
                endpoint: identity.endpoint.clone(),
                model: identity.model.clone(),
                identity,
                settings,
                environment: Environment::here(),
                levels: Vec::new(),
            },
            summaries: Vec::new(),
        }
    }

    /// Sees to it, before anything is sent, that the run has a folder of its own and that its files can be written.
    ///
    /// # Errors
    /// If they cannot.
    pub fn begin(&self) -> Result<(), ResultsError> {
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
        std::fs::create_dir(&self.folder).map_err(|cause| ResultsError::Write { path: self.folder.clone(), cause })
    }

    /// The run's folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Opens the sidecar of a measurement.
    pub fn sidecar(&self, step: Step) -> Result<SidecarWriter, ResultsError> {
        SidecarWriter::create(self.folder.join(sidecar_name(step)))
    }

    /// Opens the record of what is sent before the first measurement.
    pub fn preflight_sidecar(&self) -> Result<SidecarWriter, ResultsError> {
        SidecarWriter::create(self.folder.join("preflight.jsonl"))
    }

    /// A measurement has ended and its sidecar is in place: records it, and pools it with the level's earlier ones.
    pub fn level_ended(&mut self, record: LevelRecord) -> Result<&LevelSummary, ResultsError> {
        let level = record.concurrency;
        let planned = &mut self.manifest.settings.levels;
        // An adaptive search finds its levels on the way.
        if let Err(at) = planned.binary_search(&level) {
            planned.insert(at, level);
        }
        self.manifest.levels.push(record);
        write_atomic(&self.folder.join("run.json"), &to_json(&self.manifest))?;
        let of_level: Vec<_> = self.manifest.levels.iter().filter(|r| r.concurrency == level).collect();
        let usable: Vec<_> = of_level.iter().copied().filter(|record| is_usable(record)).collect();
        let records = if usable.is_empty() { of_level } else { usable };
        let summary = summarize_level(&self.folder, &self.manifest.settings, &records)?;
        let at = match self.summaries.binary_search_by_key(&level, |summary| summary.concurrency) {
            Ok(at) => {
                self.summaries[at] = summary;
                at
            }
            Err(at) => {
                self.summaries.insert(at, summary);
                at
            }
        };
        if self.manifest.levels.len() == 1 {
            // Another run may have begun in the same second.
            self.results_file = write_new(&self.results_file, &self.results(None))?;
        } else {
            self.write_results(None)?;
        }
        Ok(&self.summaries[at])
    }

    /// Writes the results file as far as it goes.
    pub fn write_results(&self, recommendation: Option<&Recommendation>) -> Result<(), ResultsError> {
        write_atomic(&self.results_file, &self.results(recommendation))
    }

    fn results(&self, recommendation: Option<&Recommendation>) -> Vec<u8> {
        to_json(&ResultsFile {
            levels: self.summaries.clone(),
            recommendation: recommendation.map(without_figures),
            ..ResultsFile::of(&self.manifest)
        })
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        // Where nothing was measured, not even an empty folder is left.
        let _ = std::fs::remove_dir(&self.folder);
    }
}

fn sidecar_name(step: Step) -> String {
    let level = step.level;
    match step.stage {
        Stage::Confirm => format!("confirm-{}-level-{level}.jsonl", step.round),
        Stage::Sweep | Stage::Auto => format!("level-{level}.jsonl"),
    }
}

/// The figures stand beside it already.
fn without_figures(recommendation: &Recommendation) -> Value {
    let mut value = words::with_words(recommendation);
    for level in value["levels"].as_array_mut().into_iter().flatten().filter_map(Value::as_object_mut) {
        level.retain(|key, _| {
            matches!(
                key.as_str(),
                "concurrency" | "verdict" | "gate" | "causes" | "why" | "error_rate_interval" | "uncertain"
            )
        });
    }
    value
}

/// Pools the measurements of one level, the first of them and its confirm rounds.
fn summarize_level(
    folder: &Path,
    settings: &RunSettings,
    records: &[&LevelRecord],
) -> Result<LevelSummary, ResultsError> {
    let pooled = |records: &[&LevelRecord]| {
        let mut pool = Pool::new(records.first().map_or(0, |record| record.concurrency));
        records.iter().try_for_each(|record| add_record(&mut pool, folder, settings, record))?;
        Ok(pool.finish())
    };
    let (records, outage) = figures::without_outages(records, |record| record.reach, settings.policy.max_error_rate);
    let mut summary = pooled(&records)?;
    summary.outage = outage;
    if let [first, confirmed @ ..] = records.as_slice()
        && !confirmed.is_empty()
    {
        summary.drift = Drift::between(&pooled(&[*first])?, &pooled(confirmed)?);
    }
    // One that was given up is enough to doubt the level.
    let doubted = records.iter().find(|record| record.state != LevelState::Complete).or(records.first());
    summary.state = doubted.map(|record| record.state);
    summary.reason = doubted.and_then(|record| record.reason.clone());
    Ok(summary)
}

/// Adds the requests of a measurement as they are read, so that they are never in memory together.
fn add_record(
    pool: &mut Pool,
    folder: &Path,
    settings: &RunSettings,
    record: &LevelRecord,
) -> Result<(), ResultsError> {
    let facts = LevelFacts {
        concurrency: record.concurrency,
        window_s: record.window_s.unwrap_or_default(),
        samples: record.samples.clone(),
        itl_us: record.itl_histogram.clone(),
        request_timeout_s: settings.request_timeout_s,
        client: record.client,
        rate_limit: record.rate_limit,
        server: record.server,
    };
    let mut read = Ok(());
    let path = folder.join(sidecar_name(record.step()));
    let outcomes = read_sidecar(&path)?;
    pool.add(&facts, outcomes.map_while(|line| line.map_err(|error| read = Err(error)).ok()));
    read
}

/// Reads a sidecar line by line.
pub fn read_sidecar(path: &Path) -> Result<impl Iterator<Item = Result<RequestOutcome, ResultsError>>, ResultsError> {
    let path = path.to_owned();
    let unreadable = |path: &Path, cause| ResultsError::Read { path: path.to_owned(), cause };
    let file = files::open(&path, MOST_OF_SIDECAR).map_err(|cause| unreadable(&path, cause))?;
    let (mut reader, mut text, mut line) = (BufReader::new(file), Vec::new(), 0);
    Ok(std::iter::from_fn(move || {
        text.clear();
        line += 1;
        match reader.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut text) {
            Ok(0) => None,
            Ok(_) => Some(serde_json::from_slice(&text).map_err(|error| ResultsError::Format {
                path: path.clone(),
                what: "sidecar",
                message: format!("line {line}: {error}"),
            })),
            Err(cause) => Some(Err(unreadable(&path, cause))),
        }
    }))
}

/// Writes a sidecar on a thread of its own, so that a slow disk does not hold up the load.
#[derive(Debug)]
pub struct SidecarWriter {
    batch: Vec<RequestOutcome>,
    batches: mpsc::SyncSender<Vec<RequestOutcome>>,
    thread: JoinHandle<io::Result<()>>,
    path: PathBuf,
}

const BATCH: usize = 256;
/// Batches that may wait for the disk, about 20 MB. If it is slower than that, the load waits for it, which shows in the
/// lag of its timers.
const WAITING_BATCHES: usize = 256;

impl SidecarWriter {
    /// Writes to `path`, under another name until all is there.
    ///
    /// # Errors
    /// If its folder cannot be made or written.
    pub fn create(path: PathBuf) -> Result<Self, ResultsError> {
        let failed = |cause: io::Error| ResultsError::Write { path: path.clone(), cause };
        let folder = path.parent().unwrap_or(Path::new(".")).to_owned();
        std::fs::create_dir_all(&folder).map_err(failed)?;
        let file = files::temporary_in(&folder).map_err(failed)?;
        let (batches, incoming) = mpsc::sync_channel(WAITING_BATCHES);
        let target = path.clone();
        let thread = std::thread::Builder::new()
            .name("sidecar".to_owned())
            .spawn(move || write_sidecar(file, &incoming, &target))
            .map_err(failed)?;
        Ok(SidecarWriter { batch: Vec::with_capacity(BATCH), batches, thread, path })
    }

    /// Takes a request's record.
    pub fn push(&mut self, outcome: RequestOutcome) {
        self.batch.push(outcome);
        if self.batch.len() == BATCH {
            let full = std::mem::replace(&mut self.batch, Vec::with_capacity(BATCH));
            // If the writer has failed, `finish` says so.
            let _ = self.batches.send(full);
        }
    }

    /// Waits until all is on disk under its name.
    pub fn finish(self) -> Result<(), ResultsError> {
        let SidecarWriter { batch, batches, thread, path } = self;
        let _ = batches.send(batch);
        drop(batches);
        let result = thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        result.map_err(|cause| ResultsError::Write { path, cause })
    }
}

fn write_sidecar(file: NamedTempFile, batches: &mpsc::Receiver<Vec<RequestOutcome>>, path: &Path) -> io::Result<()> {
    let mut file = file;
    let mut lines = Vec::new();
    for batch in batches {
        lines.clear();
        for outcome in &batch {
            serde_json::to_writer(&mut lines, outcome)?;
            lines.push(b'\n');
        }
        file.write_all(&lines)?;
    }
    file.as_file().sync_data()?;
    file.persist(path).map_err(|error| error.error)?;
    Ok(())
}

// ---- reading for a decision ----

/// What can be decided from.
#[derive(Clone, Debug, Default)]
pub struct Measured {
    /// The levels.
    pub levels: Vec<LevelSummary>,
    /// Where they come from and what was left out.
    pub notes: Vec<Note>,
    /// Whether some of it comes from a quick run.
    pub quick: bool,
    /// Whether the embedded simulator was measured.
    pub simulated: bool,
    /// Whether the server lists models, and not the one that was asked for.
    pub unlisted_model: bool,
    /// Whether levels that were to be measured are missing, or checks of all of them.
    pub incomplete: bool,
    /// The run that was made last.
    pub newest: Option<Manifest>,
    /// The records of the single requests.
    pub requests: Vec<RequestsFile>,
}

/// Joins Criterion's estimates with the sidecars of the runs that made them.
///
/// Of each level that the newest run planned it takes the newest record with the same fingerprint whose times equal
/// those in Criterion's `new/sample.json`, and with it that run's confirm rounds of the level.
///
/// # Errors
/// If there is nothing, or the newest run was made against something else than `now`.
pub fn load_measured(places: &Places, now: &Identity) -> Result<Measured, ResultsError> {
    let (manifests, mut notes) = read_manifests(&places.runs);
    let Some(newest) = manifests.first() else { return estimates_only(places, notes) };
    let Some(newest) = manifests.iter().find(|m| m.levels.iter().any(is_usable)) else {
        return Err(ResultsError::CutOff { run_id: newest.run_id.to_string() });
    };
    let fingerprint = now.fingerprint();
    if newest.fingerprint != fingerprint {
        return Err(ResultsError::OtherTarget {
            run_id: newest.run_id.to_string(),
            differences: newest.identity.differences(now),
        });
    }
    let same: Vec<_> = manifests.iter().filter(|m| m.fingerprint == fingerprint).collect();
    let mut measured = Measured::default();
    let mut runs: Vec<&str> = Vec::new();
    let mut used: Vec<&LevelRecord> = Vec::new();
    let mut left_out: Vec<usize> = Vec::new();
    for &level in &newest.settings.levels {
        match newest_records(places, &same, level) {
            Some((manifest, records)) => {
                let folder = places.runs.join(manifest.run_id.as_str());
                let summary = match summarize_level(&folder, &manifest.settings, &records) {
                    Ok(summary) => {
                        notes.extend(cross_check(places, &summary, &records));
                        used.extend(records);
                        summary
                    }
                    // Without its sidecar a level has Criterion's throughput, and nothing to check it with.
                    Err(error) => {
                        notes.push(Note::NoRecordOf { level, error: error.to_string() });
                        estimates(places, level)?
                    }
                };
                measured.levels.push(summary);
                measured.quick |= manifest.settings.quick;
                measured.unlisted_model |= manifest.settings.model_is_listed == Some(false);
                runs.push(&manifest.run_id);
            }
            None => left_out.push(level),
        }
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
    if runs.len() > 1 {
        notes.push(Note::SeveralRuns { runs: runs.into_iter().map(str::to_owned).collect() });
    }
    // In the order in which they were made: of one run the confirm rounds come after all first measurements.
    let made = same.iter().rev().flat_map(|manifest| manifest.levels.iter().map(move |record| (manifest, record)));
    let made = made.filter(|(_, record)| used.iter().any(|one| std::ptr::eq(*one, *record)));
    measured.requests =
        made.map(|(manifest, record)| RequestsFile::of(&places.runs.join(manifest.run_id.as_str()), record)).collect();
    measured.notes = notes;
    measured.newest = Some(newest.clone());
    Ok(measured)
}

/// Newest first; a manifest that cannot be read is named and left out.
fn read_manifests(runs: &Path) -> (Vec<Manifest>, Vec<Note>) {
    let mut notes = Vec::new();
    let mut manifests: Vec<Manifest> = Vec::new();
    for entry in std::fs::read_dir(runs).into_iter().flatten().flatten() {
        let path = entry.path().join("run.json");
        if !path.exists() {
            continue;
        }
        match read_manifest(&path) {
            Ok(manifest) => manifests.push(manifest),
            Err(error) => notes.push(Note::Unreadable { error: error.to_string() }),
        }
    }
    manifests.sort_by(|a, b| b.run_id.cmp(&a.run_id));
    (manifests, notes)
}

fn is_usable(record: &LevelRecord) -> bool {
    record.state != LevelState::Cut
}

/// The newest measurement of a level that Criterion's files still hold, and the confirm rounds of the same run that they
/// hold as well.
fn newest_records<'a>(
    places: &Places,
    newest_first: &[&'a Manifest],
    level: usize,
) -> Option<(&'a Manifest, Vec<&'a LevelRecord>)> {
    newest_first.iter().find_map(|manifest| {
        let (confirmed, first): (Vec<_>, Vec<_>) = manifest
            .levels
            .iter()
            .filter(|record| record.concurrency == level && is_usable(record) && is_in_criterion(places, record))
            .partition(|record| record.stage == Stage::Confirm);
        (!first.is_empty()).then(|| (*manifest, [first, confirmed].concat()))
    })
}

fn is_in_criterion(places: &Places, record: &LevelRecord) -> bool {
    let sample = criterion_file(places, record.step(), "sample.json");
    read_json::<CriterionSample>(&sample, MOST_OF_JSON, "Criterion sample")
        .is_ok_and(|sample| sample.times == record.sample_ns)
}

fn criterion_file(places: &Places, step: Step, name: &str) -> PathBuf {
    places.criterion.join(criterion_id(step)).join("new").join(name)
}

/// The first measurement of a level.
fn first_of(level: usize) -> Step {
    Step { level, stage: Stage::Sweep, round: 0 }
}

#[derive(Deserialize)]
struct CriterionSample {
    times: Vec<f64>,
}

#[derive(Deserialize)]
struct CriterionEstimates {
    mean: CriterionMean,
}

#[derive(Deserialize)]
struct CriterionMean {
    point_estimate: f64,
    confidence_interval: CriterionInterval,
}

#[derive(Deserialize)]
struct CriterionInterval {
    lower_bound: f64,
    upper_bound: f64,
}

impl CriterionMean {
    /// Nanoseconds per wave of `level` successes, as successes per second.
    fn throughput(&self, level: usize) -> figures::Estimate {
        let per_second = |ns: f64| level as f64 * 1e9 / ns;
        let interval = &self.confidence_interval;
        figures::Estimate {
            estimate: per_second(self.point_estimate),
            lower: Some(per_second(interval.upper_bound)),
            upper: Some(per_second(interval.lower_bound)),
        }
    }
}

fn criterion_mean(places: &Places, step: Step) -> Result<CriterionMean, ResultsError> {
    let file: CriterionEstimates =
        read_json(&criterion_file(places, step, "estimates.json"), MOST_OF_JSON, "Criterion estimates file")?;
    Ok(file.mean)
}

/// A level of which Criterion's throughput is all that is known.
fn estimates(places: &Places, level: usize) -> Result<LevelSummary, ResultsError> {
    let throughput = criterion_mean(places, first_of(level))?.throughput(level);
    Ok(LevelSummary { concurrency: level, throughput_rps: Some(throughput), ..LevelSummary::default() })
}

/// Says where Criterion's figure and ours differ.
fn cross_check(places: &Places, summary: &LevelSummary, of_level: &[&LevelRecord]) -> Option<Note> {
    // Criterion knows of no measurement that is set aside.
    if summary.state != Some(LevelState::Complete) || summary.outage.is_some() {
        return None;
    }
    let records = summary.throughput_rps?.estimate;
    let means: Vec<f64> = of_level
        .iter()
        .map(|record| Some(criterion_mean(places, record.step()).ok()?.point_estimate))
        .collect::<Option<_>>()?;
    let ns = means.iter().sum::<f64>() / means.len() as f64;
    let level = summary.concurrency;
    let criterion = level as f64 * 1e9 / ns;
    let differs = (criterion / records - 1.0).abs() > CROSS_CHECK;
    differs.then_some(Note::CriterionDiffers { level, criterion, records })
}

/// Without any run folder that is all there is, for every level.
fn estimates_only(places: &Places, mut notes: Vec<Note>) -> Result<Measured, ResultsError> {
    let folder = places.criterion.join(GROUP).join("level");
    let entries = std::fs::read_dir(&folder).into_iter().flatten().flatten();
    let mut found: Vec<usize> = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    found.sort_unstable();
    let levels: Vec<_> = found.into_iter().filter_map(|level| estimates(places, level).ok()).collect();
    if levels.is_empty() {
        return Err(ResultsError::Nothing { criterion: places.criterion.clone() });
    }
    notes.push(Note::NoRecords { folder: places.runs.clone() });
    Ok(Measured { levels, notes, incomplete: true, ..Measured::default() })
}

// ---- results files ----

/// A results file. Nearly everything may be missing; unknown keys are kept apart.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ResultsFile {
    /// [`SCHEMA`].
    pub schema: String,
    /// The run.
    pub run_id: Option<RunId>,
    /// When it began, RFC 3339.
    pub started_at: Option<String>,
    /// [`Identity::fingerprint`].
    pub fingerprint: Option<String>,
    /// The redacted endpoint.
    pub endpoint: Option<String>,
    /// The model.
    pub model: Option<String>,
    /// Settings.
    pub settings: Value,
    /// Machine and versions.
    pub environment: Value,
    /// The levels.
    pub levels: Vec<LevelSummary>,
    /// The recommendation, without the figures.
    pub recommendation: Option<Value>,
    /// Keys this version does not know.
    #[serde(flatten)]
    pub unknown: BTreeMap<String, Value>,
}

impl ResultsFile {
    /// What a run's manifest says of the run as a whole; without levels.
    pub fn of(manifest: &Manifest) -> Self {
        ResultsFile {
            schema: SCHEMA.to_owned(),
            run_id: Some(manifest.run_id.clone()),
            started_at: Some(manifest.started_at.clone()),
            fingerprint: Some(manifest.fingerprint.clone()),
            endpoint: Some(manifest.endpoint.clone()),
            model: Some(manifest.model.clone()),
            settings: json!(manifest.settings),
            environment: json!(manifest.environment),
            ..ResultsFile::default()
        }
    }

    /// Reads a results file.
    ///
    /// # Errors
    /// If it cannot be read, is not JSON, has another schema, or a figure that cannot be.
    pub fn read(path: &Path) -> Result<Self, ResultsError> {
        let file: ResultsFile = read_json(path, MOST_OF_JSON, "results file")?;
        let wrong =
            |message: String| Err(ResultsError::Format { path: path.to_owned(), what: "results file", message });
        if !file.schema.is_empty() && file.schema != SCHEMA {
            return wrong(format!("its schema is `{}`, this version reads `{SCHEMA}`", file.schema));
        }
        if file.levels.is_empty() {
            return wrong("it holds no levels".to_owned());
        }
        let mut seen = BTreeSet::new();
        for level in file.levels.iter().map(|level| level.concurrency) {
            if level == 0 {
                return wrong("a level has no `concurrency` (or 0); levels start at 1".to_owned());
            }
            if !seen.insert(level) {
                return wrong(format!("level {level} is there twice"));
            }
        }
        for level in &file.levels {
            let (is, can_be) = (json!(level), json!(level.clone().without_impossible()));
            if let Some((name, value)) = difference("", &is, &can_be) {
                return wrong(format!("level {}: `{name}` cannot be {value}", level.concurrency));
            }
        }
        Ok(file)
    }

    /// The recommendation as it was recorded, with the figures of the levels beside it; `None` if there is none that
    /// this version can read.
    pub fn recorded(&self) -> Option<Recommendation> {
        let mut value = self.recommendation.clone()?;
        for level in value.get_mut("levels")?.as_array_mut()? {
            let concurrency = level["concurrency"].as_u64()?;
            let figures = self.levels.iter().find(|summary| summary.concurrency as u64 == concurrency);
            let mut whole = json!(figures.cloned().unwrap_or_default());
            whole.as_object_mut()?.append(level.as_object_mut()?);
            *level = whole;
        }
        let recorded = Recommendation::recorded(value)?;
        let judged = |summary: &LevelSummary| {
            recorded.levels.iter().any(|level: &JudgedLevel| level.summary.concurrency == summary.concurrency)
        };
        self.levels.iter().all(judged).then_some(recorded)
    }

    /// The policy it was decided by, where the file tells.
    pub fn policy(&self) -> Option<Policy> {
        serde_json::from_value(self.settings.get("policy")?.clone()).ok()
    }

    /// The records of the run's requests, if its folder is still there.
    pub fn requests(&self, places: &Places) -> Vec<RequestsFile> {
        let Some(run_id) = &self.run_id else { return Vec::new() };
        let folder = places.runs.join(run_id.as_str());
        read_manifest(&folder.join("run.json")).map(|manifest| manifest.requests(&folder)).unwrap_or_default()
    }

    /// Whether the embedded simulator was measured.
    pub fn simulated(&self) -> bool {
        self.endpoint.as_deref() == Some(SIMULATOR)
    }

    /// Whether the server lists models, and not the one that was asked for.
    pub fn unlisted_model(&self) -> bool {
        self.settings["model_is_listed"] == false
    }

    /// Whether it came from a quick run.
    pub fn quick(&self) -> bool {
        self.settings["quick"].as_bool().unwrap_or(false)
    }
}

/// The first value, and its path, in which the second is another.
fn difference<'a>(path: &str, one: &'a Value, other: &Value) -> Option<(String, &'a Value)> {
    let name = |key: &str| if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
    match (one, other) {
        (Value::Object(values), Value::Object(_)) => {
            values.iter().find_map(|(key, value)| difference(&name(key), value, &other[key]))
        }
        (Value::Array(values), Value::Array(_)) => {
            let mut numbered = values.iter().enumerate();
            numbered.find_map(|(at, value)| difference(&format!("{path}[{at}]"), value, &other[at]))
        }
        _ => (one != other).then(|| (path.to_owned(), one)),
    }
}
