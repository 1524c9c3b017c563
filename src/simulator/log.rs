//! The server's own record of what it was asked and what it answered.

use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use serde::Serialize;

use super::faults::Fault;

/// The status of a request that got no answer (nginx's number for a client that left before one).
pub(super) const CLIENT_CLOSED_REQUEST: u16 = 499;

/// How a request ended, as the server saw it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RequestEnd {
    /// The whole answer was handed to the connection.
    Completed,
    /// Slots and queue were full (503).
    Refused,
    /// More requests or tokens than a limit per minute allows (429).
    RateLimited,
    /// The request could not be understood (4xx).
    BadRequest,
    /// The fault that was meant for it has ended it.
    Faulted,
    /// The client left, or the server was shut down, before the answer was complete.
    #[default]
    Cancelled,
}

/// What the server knows about one request to a generating route. Times are in seconds since the server's start.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct RequestRecord {
    /// Number of the request in order of arrival, from 0. The answer's id ends with it.
    pub id: u64,
    /// Path of the request.
    pub path: &'static str,
    /// HTTP status of the answer; 499 if there was none, because the client left or its connection was reset.
    pub status: u16,
    /// When the head of the request had been read.
    pub arrived_s: f64,
    /// When the first token was handed to the connection (streams) or came from the engine.
    pub first_token_s: Option<f64>,
    /// When the end of the answer was handed to the connection; `None` if cancelled.
    pub finished_s: Option<f64>,
    /// Tokens of the prompt; 0 if it was not read.
    pub prompt_tokens: u32,
    /// Of these, tokens that came from the prefix cache.
    pub cached_tokens: u32,
    /// Tokens generated for the answer.
    pub output_tokens: u32,
    /// What went wrong on purpose.
    pub fault: Option<Fault>,
    /// How it ended.
    pub outcome: RequestEnd,
}

/// The records of all requests that have ended, and how many there are inside.
pub(super) struct RequestLog {
    start: Instant,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    ended: Vec<RequestRecord>,
    arrived: u64,
    in_flight: usize,
    peak_in_flight: usize,
}

impl RequestLog {
    pub(super) fn new() -> Self {
        Self { start: Instant::now(), inner: Mutex::default() }
    }

    pub(super) fn arrive(self: &Arc<Self>, path: &'static str) -> OpenRequest {
        let arrived_s = self.now_s();
        let mut inner = self.inner.lock();
        let id = inner.arrived;
        inner.arrived += 1;
        inner.in_flight += 1;
        inner.peak_in_flight = inner.peak_in_flight.max(inner.in_flight);
        let record = RequestRecord { id, path, status: CLIENT_CLOSED_REQUEST, arrived_s, ..RequestRecord::default() };
        OpenRequest { record, log: Arc::clone(self), logged: false }
    }

    pub(super) fn records(&self) -> Vec<RequestRecord> {
        let mut records = self.inner.lock().ended.clone();
        records.sort_by_key(|record| record.id);
        records
    }

    pub(super) fn peak_in_flight(&self) -> usize {
        self.inner.lock().peak_in_flight
    }

    fn now_s(&self) -> f64 {
        self.start.elapsed().as_secs_f64()
    }
}

/// A request that is inside the server. Dropping it records it as cancelled.
pub(super) struct OpenRequest {
    pub(super) record: RequestRecord,
    log: Arc<RequestLog>,
    logged: bool,
}

impl OpenRequest {
    pub(super) fn token(&mut self) {
        self.record.output_tokens += 1;
        if self.record.first_token_s.is_none() {
            self.record.first_token_s = Some(self.log.now_s());
        }
    }

    /// Puts the request into the log. To be called before the end of the answer is handed out, so that a
    /// client which has the whole answer finds it in the log, and is no longer counted as inside when it
    /// sends its next request.
    pub(super) fn finish(&mut self, status: u16, outcome: RequestEnd) {
        let finished_s = Some(self.log.now_s());
        self.record = RequestRecord { status, outcome, finished_s, ..self.record.clone() };
        self.put_into_log();
    }

    fn put_into_log(&mut self) {
        if !std::mem::replace(&mut self.logged, true) {
            let mut inner = self.log.inner.lock();
            inner.in_flight -= 1;
            inner.ended.push(self.record.clone());
        }
    }
}

impl Drop for OpenRequest {
    fn drop(&mut self) {
        self.put_into_log();
    }
}
