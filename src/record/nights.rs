//! `recheck.jsonl`: one line per recheck, so that the evidence of several nights accumulates.

use std::io::Write as _;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{Places, ResultsError, RunId};
use crate::decide::recheck::{Holds, LevelRates};
use crate::files;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Night {
    /// Start time in RFC 3339, UTC.
    pub started_at: Option<String>,
    pub fingerprint: String,
    pub concurrency: usize,
    /// The run that found the number. A newer run starts a new record.
    pub run_id: Option<RunId>,
    pub verdict: Holds,
    #[serde(alias = "looks")]
    pub levels: Vec<LevelRates>,
}

/// Maximum size of the file, in bytes. Enough for a line per night over about a hundred years.
const MOST_OF_NIGHTS: u64 = 64 << 20;

impl Night {
    fn path(places: &Places) -> PathBuf {
        places.results.join("recheck.jsonl")
    }

    /// Earlier nights for the same number, oldest first.
    pub fn earlier(&self, places: &Places) -> Result<Vec<Night>, ResultsError> {
        let path = Night::path(places);
        if !path.exists() {
            return Ok(Vec::new());
        }
        let read = files::read_to_string(&path, MOST_OF_NIGHTS);
        let text = read.map_err(|cause| ResultsError::Read { path: path.clone(), cause })?;
        let wrong = |line: usize, error: serde_json::Error| ResultsError::Format {
            path: path.clone(),
            what: "record of rechecks",
            message: format!("line {line}: {error}"),
        };
        let nights = (1..).zip(text.lines()).filter(|(_, line)| !line.trim().is_empty());
        let nights = nights.map(|(at, line)| serde_json::from_str::<Night>(line).map_err(|error| wrong(at, error)));
        let of_number = |night: &Night| {
            (&night.fingerprint, night.concurrency, &night.run_id)
                == (&self.fingerprint, self.concurrency, &self.run_id)
        };
        nights.filter(|night| night.as_ref().map_or(true, of_number)).collect()
    }

    /// Appends the night in a single write, so that its line is written as a whole or not at all.
    pub fn save(&self, places: &Places) -> Result<PathBuf, ResultsError> {
        let path = Night::path(places);
        let mut line = serde_json::to_vec(self).expect("our own types have only string keys");
        line.push(b'\n');
        let written = files::append_to(&path).and_then(|mut file| file.write_all(&line));
        written.map_err(|cause| ResultsError::Write { path: path.clone(), cause })?;
        Ok(path)
    }
}
