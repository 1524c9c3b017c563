//! The server's own record of what it was asked and what it answered.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use serde::Serialize;

use super::faults::Fault;

/// The status that stands in the log when there was no answer (nginx's number for a client that left before one).
pub(super) const CLIENT_CLOSED_REQUEST: u16 = 499;

/// How a request ended, as the server saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RequestEnd {
    /// The whole answer was handed to the connection.
    Completed,
    /// Slots and queue were full (503).
    Refused,
    /// More requests than the limit per minute allows (429).
    RateLimited,
    /// The request could not be understood (4xx).
    BadRequest,
    /// The fault that was meant for it has ended it.
    Faulted,
    /// The client left, or the server was shut down, before the answer was complete.
    Cancelled,
}

impl RequestEnd {
    /// All of them.
    pub(super) const ALL: [RequestEnd; 6] = [
        RequestEnd::Completed,
        RequestEnd::Refused,
        RequestEnd::RateLimited,
        RequestEnd::BadRequest,
        RequestEnd::Faulted,
        RequestEnd::Cancelled,
    ];

    /// The name used in the log and in `/metrics`.
    pub fn name(self) -> &'static str {
        match self {
            RequestEnd::Completed => "completed",
            RequestEnd::Refused => "refused",
            RequestEnd::RateLimited => "rate_limited",
            RequestEnd::BadRequest => "bad_request",
            RequestEnd::Faulted => "faulted",
            RequestEnd::Cancelled => "cancelled",
        }
    }
}

/// What the server knows about one request to a generating route.
///
/// Times are in seconds since the server's start.
#[derive(Clone, Debug, PartialEq, Serialize)]
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
    /// An empty log whose times count from now.
    pub(super) fn new() -> Self {
        Self { start: Instant::now(), inner: Mutex::default() }
    }

    /// Notes that a request came in.
    pub(super) fn arrive(self: &Arc<Self>, path: &'static str) -> OpenRequest {
        let arrived_s = self.now_s();
        let mut inner = self.lock();
        let id = inner.arrived;
        inner.arrived += 1;
        inner.in_flight += 1;
        inner.peak_in_flight = inner.peak_in_flight.max(inner.in_flight);
        drop(inner);
        OpenRequest {
            id,
            log: Arc::clone(self),
            record: Some(RequestRecord {
                id,
                path,
                status: CLIENT_CLOSED_REQUEST,
                arrived_s,
                first_token_s: None,
                finished_s: None,
                prompt_tokens: 0,
                cached_tokens: 0,
                output_tokens: 0,
                fault: None,
                outcome: RequestEnd::Cancelled,
            }),
        }
    }

    /// The requests that have ended, in order of arrival.
    pub(super) fn records(&self) -> Vec<RequestRecord> {
        let mut records = self.lock().ended.clone();
        records.sort_by_key(|record| record.id);
        records
    }

    /// The most requests that were ever inside at once.
    pub(super) fn peak_in_flight(&self) -> usize {
        self.lock().peak_in_flight
    }

    /// The requests that are inside now.
    #[cfg(test)]
    pub(super) fn in_flight(&self) -> usize {
        self.lock().in_flight
    }

    fn end(&self, record: RequestRecord) {
        let mut inner = self.lock();
        inner.in_flight -= 1;
        inner.ended.push(record);
    }

    fn now_s(&self) -> f64 {
        self.start.elapsed().as_secs_f64()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("no thread panics while it holds the log")
    }
}

/// A request that is inside the server. Dropping it records it as cancelled.
pub(super) struct OpenRequest {
    id: u64,
    log: Arc<RequestLog>,
    /// `None` once it is in the log.
    record: Option<RequestRecord>,
}

impl OpenRequest {
    /// Number of the request in order of arrival.
    pub(super) fn id(&self) -> u64 {
        self.id
    }

    /// Notes what will go wrong on purpose.
    pub(super) fn fault(&mut self, fault: Option<Fault>) {
        if let Some(record) = &mut self.record {
            record.fault = fault;
        }
    }

    /// Notes the size of the prompt, in tokens.
    pub(super) fn prompt(&mut self, tokens: u32, cached: u32) {
        if let Some(record) = &mut self.record {
            (record.prompt_tokens, record.cached_tokens) = (tokens, cached);
        }
    }

    /// Notes that the head of the answer is on its way.
    pub(super) fn answering(&mut self, status: u16) {
        if let Some(record) = &mut self.record {
            record.status = status;
        }
    }

    /// Notes a token.
    pub(super) fn token(&mut self) {
        if let Some(record) = &mut self.record {
            record.output_tokens += 1;
            if record.first_token_s.is_none() {
                record.first_token_s = Some(self.log.now_s());
            }
        }
    }

    /// Puts the request into the log. To be called before the end of the answer is handed out, so that a
    /// client which has the whole answer finds it in the log, and is no longer counted as inside when it
    /// sends its next request.
    pub(super) fn finish(&mut self, status: u16, outcome: RequestEnd) {
        let finished_s = self.log.now_s();
        if let Some(mut record) = self.record.take() {
            record.status = status;
            record.finished_s = Some(finished_s);
            record.outcome = outcome;
            self.log.end(record);
        }
    }
}

impl Drop for OpenRequest {
    fn drop(&mut self) {
        if let Some(record) = self.record.take() {
            self.log.end(record);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_in_order_of_arrival_and_the_peak_is_kept() {
        let log = Arc::new(RequestLog::new());
        let mut first = log.arrive("/a");
        let mut second = log.arrive("/b");
        second.token();
        second.token();
        second.finish(200, RequestEnd::Completed);
        first.finish(503, RequestEnd::Refused);
        drop((first, second));
        drop(log.arrive("/c"));
        let records = log.records();
        let paths: Vec<_> = records.iter().map(|record| record.path).collect();
        assert_eq!(paths, ["/a", "/b", "/c"]);
        assert_eq!(log.peak_in_flight(), 2);
        assert_eq!(records[0].first_token_s, None);
        assert_eq!(records[1].output_tokens, 2);
        assert!(records[1].finished_s >= records[1].first_token_s);
        assert_eq!(records[2].status, CLIENT_CLOSED_REQUEST);
        assert_eq!(records[2].outcome, RequestEnd::Cancelled);
        assert_eq!(records[2].finished_s, None);
    }
}
