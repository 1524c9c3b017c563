//! Reads and writes everything on disk: Criterion's JSON, run folders with their sidecars and manifest, results files.

mod estimates;
mod identity;
mod measured;
mod nights;
mod places;
mod results;
mod resumed;
mod run;
mod sidecar;

use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

pub use estimates::{GROUP, criterion_id};
pub use identity::Identity;
pub use measured::{Basis, load_measured};
pub use nights::Night;
pub use places::Places;
pub use results::{ResultsFile, SCHEMA};
pub use resumed::Resumed;
pub use run::{About, Environment, Manifest, RequestsFile, Run, RunId, RunSettings};
pub use sidecar::{SidecarWriter, read_sidecar, sidecar_name};

use crate::client::redact;
use crate::files;

/// Errors with the files. Each message states what is wrong and, where something can be done, what to do.
#[derive(Debug, Error)]
pub enum ResultsError {
    #[error("cannot read {path}: {cause}")]
    Read { path: PathBuf, cause: io::Error },
    #[error(
        "cannot write {path}: {cause}\n\nFree some space, make the folder writable, or name another one (CARGO_TARGET_DIR, or --output for a report). What was measured before is still in target/concurrency."
    )]
    Write { path: PathBuf, cause: io::Error },
    #[error("{path} is not a {what}: {message}")]
    Format { path: PathBuf, what: &'static str, message: String },
    #[error(
        "no measurements found in {criterion}\n\nRun `cargo bench` (or `llm-concurrency run`) first, name the folder with --criterion-dir, or a results file with --results."
    )]
    Nothing { criterion: PathBuf },
    /// The last run ended before any usable measurement.
    #[error(
        "the last run ({run_id}) was cut off before any level was complete, so there is nothing to decide from\n\nRun `cargo bench` (or `llm-concurrency run`) again."
    )]
    CutOff { run_id: String },
    #[error(
        "{path} was measured with other settings than those that now hold:\n{differences}\nSet them as they were (LLM_ENDPOINT, LLM_MODEL, config.yaml), or measure again with `llm-concurrency run`."
    )]
    OtherThanMeasured {
        path: PathBuf,
        /// One line per difference.
        differences: String,
    },
    #[error(
        "the last run ({run_id}) is complete: there is nothing left to resume\n\nLeave out --resume to measure again."
    )]
    NothingLeft { run_id: String },
    #[error("the last run ({run_id}) is still running in another process")]
    StillRunning { run_id: String },
    /// The run measured something other than what the settings now specify.
    #[error(
        "the measurements (run {run_id}) do not match the settings:\n{differences}\nThe two are never mixed. Run `cargo bench` again, or set the endpoint and model as they were (LLM_ENDPOINT, LLM_MODEL, config.yaml), or name a results file with --results."
    )]
    OtherTarget {
        run_id: String,
        /// One line per difference.
        differences: String,
    },
}

/// Maximum size of a JSON file, in bytes. A results file of a thousand levels has a tenth of it.
const MOST_OF_JSON: u64 = 16 << 20;

/// Like [`files::replace`], with an error that states what to do.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<(), ResultsError> {
    files::replace(path, bytes).map_err(|cause| ResultsError::Write { path: path.to_owned(), cause })
}

pub fn to_json(value: &impl Serialize) -> Vec<u8> {
    let mut bytes = serde_json::to_vec_pretty(value).expect("our own types have only string keys");
    bytes.push(b'\n');
    bytes
}

fn read_json<T: DeserializeOwned>(path: &Path, most: u64, what: &'static str) -> Result<T, ResultsError> {
    let text =
        files::read_to_string(path, most).map_err(|cause| ResultsError::Read { path: path.to_owned(), cause })?;
    // Strips from the values any characters that would act on a terminal.
    let read = serde_json::from_str(&text).and_then(|value| serde_json::from_value(redact::value_in_lines(value)));
    read.map_err(|error| {
        // Only an error from parsing the text itself has a line number.
        let error = serde_json::from_str::<T>(&text).err().unwrap_or(error);
        ResultsError::Format { path: path.to_owned(), what, message: redact::one_line(&error.to_string()) }
    })
}
