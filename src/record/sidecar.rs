//! One line for each request of a measurement.

use std::io::{self, BufRead, BufReader, Read as _, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread::JoinHandle;

use tempfile::NamedTempFile;

use super::ResultsError;
use crate::client::outcome::RequestOutcome;
use crate::figures::{Requests, Stage, Step};
use crate::files;

/// Some ten million requests.
const MOST_OF_SIDECAR: u64 = 4 << 30;
/// A line of a sidecar has a few hundred bytes.
const LONGEST_LINE: u64 = 1 << 20;

pub(super) fn sidecar_name(step: Step) -> String {
    let level = step.level;
    match step.stage {
        Stage::Confirm => format!("confirm-{}-level-{level}.jsonl", step.round),
        Stage::Sweep | Stage::Auto => format!("level-{level}.jsonl"),
    }
}

/// What the figures need of a sidecar, with room for the requests that are expected.
pub(super) fn read_requests(path: &Path, expected: u64) -> Result<Requests, ResultsError> {
    let mut requests = Requests::with_room_for(expected);
    read_sidecar(path)?.try_for_each(|outcome| {
        requests.push(&outcome?);
        Ok(())
    })?;
    Ok(requests)
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
