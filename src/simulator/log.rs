//! The server's own log of its requests and answers.

use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use serde::Serialize;

use super::faults::Fault;

/// Status of a request that got no answer (nginx's code for a client that closed the connection first).
pub(super) const CLIENT_CLOSED_REQUEST: u16 = 499;

/// How a request ended, as the server saw it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RequestEnd {
    /// The whole answer was handed to the connection.
    Completed,
    /// All slots and the queue were full (503).
    Refused,
    /// The request exceeded the limit on requests or on tokens per minute (429).
    RateLimited,
    /// The request could not be read or understood (400).
    BadRequest,
    /// The injected fault ended the request.
    Faulted,
    /// The client left or the server was shut down before the answer was complete.
    #[default]
    Cancelled,
}

/// Record of one request to a generating route. Times are in seconds since the server started.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct RequestRecord {
    /// Sequence number in order of arrival, from 0. The answer's id ends with it.
    pub id: u64,
    /// Path of the route.
    pub path: &'static str,
    /// HTTP status of the answer; 499 if there was none because the client left or the connection was reset.
    pub status: u16,
    /// Time at which the head of the request had been read.
    pub arrived_s: f64,
    /// Time at which the engine produced the first token; `None` without one. A stream sends it at once.
    pub first_token_s: Option<f64>,
    /// Time just before the end of the answer was handed to the connection; `None` if cancelled.
    pub finished_s: Option<f64>,
    /// Number of prompt tokens; 0 if the prompt was not read or exceeded a limit.
    pub prompt_tokens: u32,
    /// Number of those tokens that came from the prefix cache.
    pub cached_tokens: u32,
    /// Number of tokens generated for the answer.
    pub output_tokens: u32,
    /// The fault that was injected, if any.
    pub fault: Option<Fault>,
    /// How the request ended.
    pub outcome: RequestEnd,
}

/// Records of all requests that have ended, and the number of those in flight.
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

/// A request in flight in the server. If it is dropped before it is finished, it is logged as cancelled.
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

    /// Logs the request. Must be called before the end of the answer is sent: a client that has the whole
    /// answer then finds the request in the log, and it no longer counts as in flight when the client sends
    /// its next one.
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
