//! One line for each request of a measurement.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read as _, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread::JoinHandle;

use super::ResultsError;
use crate::client::outcome::RequestOutcome;
use crate::figures::{Stage, Step};
use crate::files;

/// Some ten million requests.
pub(super) const MOST_OF_SIDECAR: u64 = 4 << 30;
/// A line of a sidecar has a few hundred bytes.
const LONGEST_LINE: u64 = 1 << 20;

pub fn sidecar_name(step: Step) -> String {
    let level = step.level;
    match step.stage {
        Stage::Sweep => format!("level-{level}.jsonl"),
        Stage::Visit => VISITS.to_owned(),
    }
}

/// Written line by line, so that a program that was killed may leave a part of one.
pub(super) const VISITS: &str = "visits.jsonl";

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
            Ok(_) if path.ends_with(VISITS) && !text.ends_with(b"\n") => None,
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
/// Batches that may wait for the disk, about 4 MB. If it is slower than that, the load waits for it, which shows in the lag
/// of its timers.
const WAITING_BATCHES: usize = 64;

impl SidecarWriter {
    /// Adds to `path`, line by line, so that what was written stays if the program is killed.
    pub fn open(path: PathBuf) -> Result<Self, ResultsError> {
        let failed = |cause: io::Error| ResultsError::Write { path: path.clone(), cause };
        let file = files::append_to(&path).map_err(failed)?;
        let (batches, incoming) = mpsc::sync_channel(WAITING_BATCHES);
        let write = move || write_lines(file, &incoming);
        let thread = std::thread::Builder::new().name("sidecar".to_owned()).spawn(write).map_err(failed)?;
        Ok(SidecarWriter { batch: Vec::with_capacity(BATCH), batches, thread, path })
    }

    /// Takes a request's record.
    pub fn push(&mut self, outcome: RequestOutcome) {
        self.batch.push(outcome);
        if self.batch.len() == BATCH {
            self.flush();
        }
    }

    /// Hands over what has come so far.
    pub fn flush(&mut self) {
        let batch = std::mem::replace(&mut self.batch, Vec::with_capacity(BATCH));
        // If the writer has failed, `finish` says so.
        let _ = self.batches.send(batch);
    }

    /// Waits until all is on disk.
    pub fn finish(self) -> Result<(), ResultsError> {
        let SidecarWriter { batch, batches, thread, path } = self;
        let _ = batches.send(batch);
        drop(batches);
        let result = thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        result.map_err(|cause| ResultsError::Write { path, cause })
    }
}

fn write_lines(mut file: File, batches: &mpsc::Receiver<Vec<RequestOutcome>>) -> io::Result<()> {
    let mut lines = Vec::new();
    for batch in batches {
        lines.clear();
        for outcome in &batch {
            serde_json::to_writer(&mut lines, outcome)?;
            lines.push(b'\n');
        }
        file.write_all(&lines)?;
    }
    file.sync_data()
}
