//! Sidecars: files with one line for each request of a measurement.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read as _, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread::JoinHandle;

use super::ResultsError;
use crate::client::outcome::RequestOutcome;
use crate::figures::{Stage, Step};
use crate::files;

/// Maximum size of a sidecar, in bytes. Enough for some ten million requests.
pub(super) const MOST_OF_SIDECAR: u64 = 4 << 30;
/// Maximum length of a line, in bytes. The usual length is a few hundred bytes.
const LONGEST_LINE: u64 = 1 << 20;

pub fn sidecar_name(step: Step) -> String {
    let level = step.level;
    match step.stage {
        Stage::Sweep => format!("level-{level}.jsonl"),
        Stage::Visit => VISITS.to_owned(),
    }
}

/// The sidecar that all visits share. If the program is killed, its last line may be incomplete; readers drop it.
pub(super) const VISITS: &str = "visits.jsonl";

/// Reads a sidecar lazily, line by line.
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

/// Writes a sidecar on its own thread, so that a slow disk does not delay the load.
#[derive(Debug)]
pub struct SidecarWriter {
    batch: Vec<RequestOutcome>,
    batches: mpsc::SyncSender<Vec<RequestOutcome>>,
    thread: JoinHandle<io::Result<()>>,
    path: PathBuf,
}

const BATCH: usize = 256;
/// Maximum number of batches that wait for the disk, about 4 MB. If the disk falls further behind, the channel exerts
/// backpressure on the load, which shows as lag of its timers.
const WAITING_BATCHES: usize = 64;

impl SidecarWriter {
    /// Opens `path` for appending. Whatever has been written stays if the program is killed.
    pub fn open(path: PathBuf) -> Result<Self, ResultsError> {
        let failed = |cause: io::Error| ResultsError::Write { path: path.clone(), cause };
        let file = files::append_to(&path).map_err(failed)?;
        let (batches, incoming) = mpsc::sync_channel(WAITING_BATCHES);
        let write = move || write_lines(file, &incoming);
        let thread = std::thread::Builder::new().name("sidecar".to_owned()).spawn(write).map_err(failed)?;
        Ok(SidecarWriter { batch: Vec::with_capacity(BATCH), batches, thread, path })
    }

    /// Adds the record of a request.
    pub fn push(&mut self, outcome: RequestOutcome) {
        self.batch.push(outcome);
        if self.batch.len() == BATCH {
            self.flush();
        }
    }

    /// Hands the records added so far to the thread.
    pub fn flush(&mut self) {
        let batch = std::mem::replace(&mut self.batch, Vec::with_capacity(BATCH));
        // If the writer has failed, `finish` returns the error.
        let _ = self.batches.send(batch);
    }

    /// Waits until everything is on disk.
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
