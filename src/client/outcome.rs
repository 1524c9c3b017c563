//! What happened to one request: the record every figure is derived from.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Why a request did not succeed. A short answer is a success; no answer at all is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Failure {
    /// No connection, or it was lost before any byte of the answer came back.
    Connect,
    /// The request's time was over.
    Timeout,
    /// HTTP 429.
    RateLimited,
    /// Any other HTTP 4xx, and a redirect (never followed: the key must not travel).
    ClientError,
    /// HTTP 5xx.
    ServerError,
    /// An answer that is not the protocol, or a stream cut short.
    Malformed,
    /// HTTP 2xx without content (for embeddings: without a vector), unless the answer has a reason to end and a token
    /// count: then the first token ended it.
    EmptyOutput,
}

impl Failure {
    /// All kinds, in their order.
    pub const ALL: [Failure; 7] = [
        Failure::Connect,
        Failure::Timeout,
        Failure::RateLimited,
        Failure::ClientError,
        Failure::ServerError,
        Failure::Malformed,
        Failure::EmptyOutput,
    ];

    /// The name used in every file and message.
    pub fn name(self) -> &'static str {
        match self {
            Failure::Connect => "Connect",
            Failure::Timeout => "Timeout",
            Failure::RateLimited => "RateLimited",
            Failure::ClientError => "ClientError",
            Failure::ServerError => "ServerError",
            Failure::Malformed => "Malformed",
            Failure::EmptyOutput => "EmptyOutput",
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A failure with its reason in words, already short and free of secrets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failed {
    /// The kind.
    pub kind: Failure,
    /// What the server or the network said.
    pub message: String,
}

/// Token counts as the server reported them; `None` where it did not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TokenCounts {
    /// Tokens of the prompt.
    pub input: Option<u32>,
    /// Tokens of the answer.
    pub output: Option<u32>,
    /// Tokens of the prompt that came from the server's prefix cache.
    pub cached: Option<u32>,
}

/// What a server says of its quotas: the headers `x-ratelimit-…`, and which of them a 429 was for. `None` where it does
/// not say it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RateLimit {
    /// Requests that the quota allows, mostly per minute.
    pub limit_requests: Option<u64>,
    /// Requests that are left of it.
    pub remaining_requests: Option<u64>,
    /// Seconds until it is full again.
    pub reset_s: Option<f64>,
    /// Tokens that the quota allows, mostly per minute.
    pub limit_tokens: Option<u64>,
    /// Tokens that are left of it.
    pub remaining_tokens: Option<u64>,
    /// Seconds until it is full again.
    pub reset_tokens_s: Option<f64>,
    /// The quota that was used up.
    pub exceeded: Option<Quota>,
}

impl RateLimit {
    /// What is known after `later` has been said, too.
    pub fn updated(self, later: RateLimit) -> Self {
        RateLimit {
            limit_requests: later.limit_requests.or(self.limit_requests),
            remaining_requests: later.remaining_requests.or(self.remaining_requests),
            reset_s: later.reset_s.or(self.reset_s),
            limit_tokens: later.limit_tokens.or(self.limit_tokens),
            remaining_tokens: later.remaining_tokens.or(self.remaining_tokens),
            reset_tokens_s: later.reset_tokens_s.or(self.reset_tokens_s),
            exceeded: later.exceeded.or(self.exceeded),
        }
    }
}

/// A quota as a 429 names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quota {
    /// What it counts.
    pub counts: Counted,
    /// How much of it is granted.
    pub limit: Option<u64>,
    /// In which time.
    pub per: Option<Period>,
}

/// What a quota counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Counted {
    /// Requests.
    Requests,
    /// Tokens of prompts, answers or both.
    Tokens,
}

/// The time that a quota is granted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Period {
    /// A second.
    Second,
    /// A minute.
    Minute,
    /// An hour.
    Hour,
    /// A day.
    Day,
}

impl Period {
    /// Behind an amount.
    pub fn words(self) -> &'static str {
        match self {
            Period::Second => " a second",
            Period::Minute => " a minute",
            Period::Hour => " an hour",
            Period::Day => " a day",
        }
    }
}

/// What one exchange with the server came to, before the closed loop gives it a place in time.
#[derive(Clone, Debug, Default)]
pub struct Reply {
    /// HTTP status, if the server answered.
    pub status: Option<u16>,
    /// Time to the first non-empty content. Streaming only.
    pub ttft: Option<Duration>,
    /// Gaps between content chunks after the first, in microseconds.
    pub gaps_us: Vec<u32>,
    /// Content chunks received.
    pub chunks: u32,
    /// Tokens, as reported.
    pub tokens: TokenCounts,
    /// `None` for a success.
    pub failure: Option<Failed>,
    /// How long the server asked to wait (`Retry-After`).
    pub retry_after: Option<Duration>,
    /// What the server said of its quotas, if anything.
    pub rate_limit: Option<RateLimit>,
    /// How often the request was sent again because a reused connection had died unseen.
    pub resent: u32,
    /// Whether the connection was lost in mid-answer.
    pub cut: bool,
}

impl Reply {
    /// A reply that is nothing but a failure.
    pub fn failed(kind: Failure, message: impl Into<String>) -> Self {
        Reply { failure: Some(Failed { kind, message: message.into() }), ..Reply::default() }
    }
}

/// Where in a level's life a request was issued.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Before the measured window: fills the pipeline, counted nowhere but in the record.
    Warmup,
    /// Inside the measured window: the cohort.
    Measured,
}

/// One request, one line of the sidecar. Times in seconds since the level began.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RequestOutcome {
    /// Order of issue within the level, from 0.
    pub seq: u64,
    /// Phase of its **issue**.
    pub phase: Phase,
    /// Window in which it **completed**; null before and after the measured window.
    pub sample: Option<u32>,
    /// When it might be sent (permit held).
    pub start_s: f64,
    /// When its last byte came; null if the run was interrupted first.
    pub end_s: Option<f64>,
    /// `end_s - start_s`.
    pub latency_s: Option<f64>,
    /// Time to first token; null without streaming or content.
    pub ttft_s: Option<f64>,
    /// Content chunks received.
    pub chunks: u32,
    /// Tokens of the answer, as the server reported them.
    pub output_tokens: Option<u32>,
    /// Tokens of the prompt, as the server reported them.
    pub input_tokens: Option<u32>,
    /// Prompt tokens served from the server's prefix cache.
    pub cached_tokens: Option<u32>,
    /// HTTP status.
    pub status: Option<u16>,
    /// Null for a success.
    pub failure: Option<Failure>,
    /// Why it failed, short and redacted.
    pub error: Option<String>,
    /// How often it was sent again (stale connections).
    pub resent: u32,
    /// Whether the connection was lost in mid-answer.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cut: bool,
    /// How long its permit was held back after it had failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held_s: Option<f64>,
    /// Size label of the prompt (`small`, `medium`, `large`, or that of the prompts file); null where not known.
    pub prompt_size: Option<Arc<str>>,
}

impl RequestOutcome {
    /// Whether an answer came and was good.
    pub fn is_success(&self) -> bool {
        self.failure.is_none() && self.end_s.is_some()
    }

    /// Seconds of this request's life inside `window` (0 while its end is unknown).
    pub fn overlap_s(&self, window: [f64; 2]) -> f64 {
        self.end_s.map_or(0.0, |end| overlap([self.start_s, end], window))
    }

    /// Seconds inside `window` in which its permit was held back after it had failed.
    pub fn held_back_s(&self, window: [f64; 2]) -> f64 {
        self.end_s.zip(self.held_s).map_or(0.0, |(end, held)| overlap([end, end + held], window))
    }

    /// Share of this request's life inside `window`, between 0 and 1.
    ///
    /// An instantaneous request (latency 0) counts whole if it ended inside.
    pub fn share(&self, window: [f64; 2]) -> f64 {
        match (self.end_s, self.latency_s) {
            (Some(_), Some(latency)) if latency > 0.0 => self.overlap_s(window) / latency,
            (Some(end), _) if window[0] < end && end <= window[1] => 1.0,
            _ => 0.0,
        }
    }

    /// Time per output token after the first, `(latency - TTFT) / (output tokens - 1)`, in seconds.
    pub fn tpot_s(&self) -> Option<f64> {
        let tokens = self.output_tokens.filter(|&n| n > 1)?;
        Some((self.latency_s? - self.ttft_s?) / f64::from(tokens - 1))
    }
}

fn overlap([from, to]: [f64; 2], window: [f64; 2]) -> f64 {
    (to.min(window[1]) - from.max(window[0])).max(0.0)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A success of the cohort.
    pub(crate) fn outcome(start: f64, end: f64) -> RequestOutcome {
        RequestOutcome {
            seq: 0,
            phase: Phase::Measured,
            sample: None,
            start_s: start,
            end_s: Some(end),
            latency_s: Some(end - start),
            ttft_s: None,
            chunks: 0,
            output_tokens: None,
            input_tokens: None,
            cached_tokens: None,
            status: Some(200),
            failure: None,
            error: None,
            resent: 0,
            cut: false,
            held_s: None,
            prompt_size: None,
        }
    }

    #[test]
    fn share_is_the_part_of_the_life_inside_the_window() {
        let window = [1.0, 3.0];
        for (start, end, share) in [
            (1.0, 3.0, 1.0),
            (0.0, 2.0, 0.5),
            (2.5, 4.5, 0.25),
            (0.0, 4.0, 0.5),
            (3.0, 4.0, 0.0),
            (0.0, 1.0, 0.0),
            (2.0, 2.0, 1.0),
        ] {
            assert_eq!(outcome(start, end).share(window), share, "{start}..{end}");
        }
    }

    #[test]
    fn a_request_without_an_end_is_no_success_and_has_no_share() {
        let cut = RequestOutcome { end_s: None, latency_s: None, ..outcome(1.0, 2.0) };
        assert!(!cut.is_success());
        assert_eq!(cut.share([0.0, 9.0]), 0.0);
    }

    #[test]
    fn tpot_needs_two_tokens_and_leaves_the_first_out() {
        let mut o = outcome(0.0, 1.5);
        o.ttft_s = Some(0.5);
        o.output_tokens = Some(11);
        assert_eq!(o.tpot_s(), Some(0.1));
        o.output_tokens = Some(1);
        assert_eq!(o.tpot_s(), None);
    }
}
