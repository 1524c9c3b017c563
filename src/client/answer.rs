//! An answer as it is read: its content, its timing, and the limits on its size.

use std::time::Duration;

use bytes::Bytes;
use reqwest::Response;
use reqwest::header::{self, HeaderMap};
use serde_json::Value;
use serde_json::value::RawValue;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, timeout};

use super::failure::{Failed, Failure, chain};
use super::kind::Wire;
use super::outcome::{Reply, TokenCounts};
use super::quota::exceeded;
use super::sse::{LineTooLong, SseParser};
use super::transport::within;

/// Longest stream accepted, bytes. An answer of 100,000 tokens is about 25 MiB.
const LONGEST_STREAM: usize = 32 << 20;
/// Longest non-streamed answer accepted, bytes.
const LONGEST_BODY: usize = 4 << 20;
/// Longest line, or data of one event, in a stream, bytes.
const LONGEST_LINE: usize = 1 << 20;
/// What each request in flight may buffer of its answer, bytes. Only a few may exceed it at a time, so that endless
/// answers cannot exhaust memory at any level; the others stop reading, which leaves the data with the server.
pub(super) const SMALL_ANSWER: usize = 64 << 10;
/// Maximum number of gaps between chunks that are kept per answer.
const MOST_GAPS: usize = 16 << 10;
/// The stream should end right after `[DONE]`; this is how long we wait for it.
const AFTER_DONE: Duration = Duration::from_millis(50);

/// An answer, both while it is read and afterwards.
pub(crate) struct Answer {
    pub reply: Reply,
    /// The text of the answer, if it is to be kept.
    pub text: Option<String>,
    pub finish_reason: Option<String>,
    pub sent: Instant,
    wire: &'static Wire,
    last_content: Option<Instant>,
    done: bool,
    failed: Option<Failed>,
}

impl Answer {
    pub fn new(wire: &'static Wire, keep_text: bool) -> Self {
        Answer {
            reply: Reply::default(),
            text: keep_text.then(String::new),
            finish_reason: None,
            sent: Instant::now(),
            wire,
            last_content: None,
            done: false,
            failed: None,
        }
    }

    /// Reads the body of a successful response.
    pub async fn read(&mut self, response: &mut Response, idle: Option<f64>, places: &Semaphore) -> Result<(), Failed> {
        let is_stream = is_event_stream(response.headers());
        // Drop the headers: they keep an 8 KiB read buffer per stream from being reused.
        *response.headers_mut() = HeaderMap::new();
        *response.extensions_mut() = hyper::http::Extensions::new();
        let incoming = Incoming { response, idle, places, place: None };
        if is_stream {
            self.read_stream(incoming).await?;
        } else {
            self.read_whole(incoming).await?;
        }
        self.conclude()
    }

    async fn read_stream(&mut self, mut incoming: Incoming<'_>) -> Result<(), Failed> {
        let mut parser = SseParser::new(LONGEST_LINE);
        let mut bytes = 0;
        let too_long = |error: LineTooLong| Failed::malformed(error.to_string());
        while !self.done && self.failed.is_none() {
            let chunk = incoming.chunk(&mut self.reply.cut).await?;
            let now = Instant::now();
            let Some(chunk) = chunk else {
                parser.finish(|data| self.event(data, now)).map_err(too_long)?;
                break;
            };
            bytes += chunk.len();
            check_size(bytes, LONGEST_STREAM)?;
            parser.feed(&chunk, |data| self.event(data, now)).map_err(too_long)?;
            incoming.hold(parser.held()).await;
        }
        if self.done {
            // Reading to the end of the body returns the connection to the pool.
            let _ = timeout(AFTER_DONE, async { while let Ok(Some(_)) = incoming.response.chunk().await {} }).await;
        } else if self.finish_reason.is_none() && self.failed.is_none() {
            self.reply.cut = true;
            return Err(Failed::malformed(format!("the stream ended without {}", self.wire.end)));
        }
        Ok(())
    }

    async fn read_whole(&mut self, mut incoming: Incoming<'_>) -> Result<(), Failed> {
        let mut whole = Vec::new();
        while let Some(chunk) = incoming.chunk(&mut self.reply.cut).await? {
            check_size(whole.len() + chunk.len(), LONGEST_BODY)?;
            whole.extend_from_slice(&chunk);
            incoming.hold(whole.len()).await;
        }
        self.take(&whole);
        Ok(())
    }

    /// Handles one event of a stream, which arrived at `now`.
    fn event(&mut self, data: &[u8], now: Instant) {
        if self.done || self.failed.is_some() {
            return;
        }
        if data.trim_ascii() == b"[DONE]" {
            self.done = true;
        } else if self.take(data) {
            let reply = &mut self.reply;
            match self.last_content.replace(now) {
                None => reply.ttft = Some(now - self.sent),
                Some(before) if reply.gaps_us.len() < MOST_GAPS => {
                    reply.gaps_us.push(u32::try_from((now - before).as_micros()).unwrap_or(u32::MAX));
                }
                Some(_) => {}
            }
        }
    }

    /// Handles a chunk or a whole body; returns true if it has content.
    fn take(&mut self, data: &[u8]) -> bool {
        let chunk = match (self.wire.read)(data) {
            Ok(chunk) if !chunk.is_error => chunk,
            Ok(_) => {
                self.failed = Some(self.with_quota(Failed::inside(data), data));
                return false;
            }
            Err(error) => {
                self.failed = Some(Failed::not_json(data, &error));
                return false;
            }
        };
        if let Some(text) = &mut self.text {
            text.push_str(&chunk.text);
        }
        self.finish_reason = chunk.finish_reason.or(self.finish_reason.take());
        if let Some(usage) = chunk.usage {
            self.reply.tokens = self.reply.tokens.updated(counts(usage));
        }
        self.done |= chunk.is_last;
        self.reply.chunks += u32::from(chunk.has_content);
        chunk.has_content
    }

    /// Returns `failed` unchanged; for a 429 also records which quota was exhausted.
    pub fn with_quota(&mut self, failed: Failed, body: &[u8]) -> Failed {
        let limit = &mut self.reply.rate_limit;
        if failed.kind == Failure::RateLimited
            && let Some(quota) = exceeded(body, limit.unwrap_or_default())
        {
            limit.get_or_insert_default().exceeded = Some(quota);
        }
        failed
    }

    /// The verdict once the body has been read.
    fn conclude(&mut self) -> Result<(), Failed> {
        if let Some(failed) = self.failed.take() {
            return Err(failed);
        }
        let reply = &self.reply;
        // If the first token ends the answer, an answer without content is valid; a broken
        // server reports no token count.
        let ended_at_once =
            self.wire.limit_key.is_some() && self.finish_reason.is_some() && reply.tokens.output >= Some(1);
        if reply.chunks == 0 && !ended_at_once {
            return Err(Failed::new(Failure::EmptyOutput, format!("the answer holds no {}", self.wire.content)));
        }
        Ok(())
    }
}

/// The rest of a response after its headers, as it arrives.
struct Incoming<'a> {
    response: &'a mut Response,
    idle: Option<f64>,
    /// Permits for the few answers that may buffer more than [`SMALL_ANSWER`] at a time.
    places: &'a Semaphore,
    place: Option<SemaphorePermit<'a>>,
}

impl Incoming<'_> {
    async fn chunk(&mut self, cut: &mut bool) -> Result<Option<Bytes>, Failed> {
        let chunk = within(self.idle, "no further data", "llm.idle_timeout", self.response.chunk()).await?;
        *cut = chunk.is_err();
        chunk.map_err(|error| Failed::malformed(format!("the answer was cut short: {}", chain(&error))))
    }

    /// Called when this answer buffers `bytes`; above the threshold, waits for a permit before
    /// reading on. With it the answer may grow to its limit, so no two answers deadlock.
    async fn hold(&mut self, bytes: usize) {
        if bytes <= SMALL_ANSWER {
            self.place = None;
        } else if self.place.is_none() {
            // The semaphore is never closed.
            self.place = self.places.acquire().await.ok();
        }
    }
}

fn check_size(bytes: usize, limit: usize) -> Result<(), Failed> {
    if bytes <= limit {
        return Ok(());
    }
    Err(Failed::malformed(format!("the answer is larger than {} MiB", limit >> 20)))
}

pub(super) async fn read_up_to(response: &mut Response, limit: usize, body: &mut Vec<u8>) {
    while let Ok(Some(chunk)) = response.chunk().await {
        body.extend_from_slice(&chunk[..chunk.len().min(limit - body.len())]);
        if body.len() == limit {
            break;
        }
    }
}

fn is_event_stream(headers: &HeaderMap) -> bool {
    const KIND: &[u8] = b"text/event-stream";
    let kind = headers.get(header::CONTENT_TYPE).map_or(&b""[..], |value| value.as_bytes().trim_ascii_start());
    kind.get(..KIND.len()).is_some_and(|start| start.eq_ignore_ascii_case(KIND))
}

/// The token counts in `usage`, under the names that any request kind uses. Some servers write
/// them as `5.0` or `"5"`. An invalid count is treated as unknown; the answer is still good.
fn counts(usage: &RawValue) -> TokenCounts {
    let usage: Value = serde_json::from_str(usage.get()).unwrap_or_default();
    let count = |of: &Value, name: &str| {
        let number = match of.get(name)? {
            Value::Number(number) => number.as_f64(),
            Value::String(text) => text.trim().parse().ok(),
            _ => None,
        };
        number.filter(|n| n.fract() == 0.0 && (0.0..=f64::from(u32::MAX)).contains(n)).map(|n| n as u32)
    };
    let total = |name| count(&usage, name);
    let detail = |of, name| count(&usage[of], name);
    // Anthropic excludes tokens read from or written to the cache from `input_tokens`.
    let beside = ["cache_read_input_tokens", "cache_creation_input_tokens"].map(total);
    let input =
        total("input_tokens").map(|input| beside.iter().flatten().fold(input, |n, &more| n.saturating_add(more)));
    let either = |chat, responses, name| detail(chat, name).or_else(|| detail(responses, name));
    TokenCounts {
        input: total("prompt_tokens").or(input),
        output: total("completion_tokens").or_else(|| total("output_tokens")),
        cached: either("prompt_tokens_details", "input_tokens_details", "cached_tokens").or(beside[0]),
        reasoning: either("completion_tokens_details", "output_tokens_details", "reasoning_tokens"),
    }
}
