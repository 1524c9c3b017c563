//! What happened to one request: the record from which every figure is derived.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use super::failure::{Failed, Failure, STATUS};
pub use super::quota::{Counted, Period, Quota, RateLimit};

/// Token counts as reported by the server; `None` where it does not report them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TokenCounts {
    /// Tokens of the prompt.
    pub input: Option<u32>,
    /// Tokens of the answer.
    pub output: Option<u32>,
    /// Tokens of the prompt that came from the server's prefix cache.
    pub cached: Option<u32>,
    /// Tokens of the answer that were spent on reasoning.
    pub reasoning: Option<u32>,
}

impl TokenCounts {
    /// Merges in a later chunk's counts. Some servers send the prompt's only at the start, and 0 at the end.
    pub(super) fn updated(self, later: TokenCounts) -> Self {
        TokenCounts {
            input: self.input.max(later.input),
            output: later.output.or(self.output),
            cached: self.cached.max(later.cached),
            reasoning: later.reasoning.or(self.reasoning),
        }
    }
}

/// The result of one exchange with the server, before the closed loop adds the times.
#[derive(Clone, Debug, Default)]
pub struct Reply {
    /// HTTP status; `None` if there was no response.
    pub status: Option<u16>,
    /// Time to the first non-empty content. Streaming only.
    pub ttft: Option<Duration>,
    /// Gaps between successive content chunks, in microseconds.
    pub gaps_us: Vec<u32>,
    /// Number of chunks with content.
    pub chunks: u32,
    pub tokens: TokenCounts,
    pub failure: Option<Failed>,
    pub retry_after: Option<Duration>,
    pub rate_limit: Option<RateLimit>,
    /// How often the request was resent because a reused connection turned out to be dead.
    pub resent: u32,
    /// Whether the connection was lost in the middle of the answer.
    pub cut: bool,
}

impl Reply {
    /// A reply that consists of a failure only.
    pub fn failed(kind: Failure, message: impl Into<String>) -> Self {
        Reply { failure: Some(Failed::new(kind, message)), ..Reply::default() }
    }
}

/// The stage of a level at which a request was issued.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Outside the measured window, mostly before it. Not in the cohort; rates count its share inside the window.
    #[default]
    Warmup,
    /// Inside the measured window: part of the cohort.
    Measured,
}

/// One request, stored as one line of the sidecar. Times are in seconds since the level began.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RequestOutcome {
    /// Position in the order of issue within the level, from 0.
    pub seq: u64,
    /// The visit in which it was issued, from 1; null unless the loop makes several visits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub visit: Option<u32>,
    /// Phase at the time of **issue**.
    pub phase: Phase,
    /// Window in which it **completed**; null outside the measured window, and if the level had changed by then.
    pub sample: Option<u32>,
    /// When the request arrived; open loop only, where requests arrive on their own schedule.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub due_s: Option<f64>,
    /// When it was allowed to be sent (permit acquired).
    pub start_s: f64,
    /// When its last byte arrived; null if the run was interrupted first.
    pub end_s: Option<f64>,
    /// `end_s - start_s`.
    pub latency_s: Option<f64>,
    /// Null without streaming or without content.
    pub ttft_s: Option<f64>,
    pub chunks: u32,
    pub output_tokens: Option<u32>,
    pub input_tokens: Option<u32>,
    pub cached_tokens: Option<u32>,
    /// Included in the output tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reasoning_tokens: Option<u32>,
    pub status: Option<u16>,
    /// Null for a success.
    pub failure: Option<Failure>,
    /// Short and redacted.
    pub error: Option<String>,
    pub resent: u32,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cut: bool,
    /// How long its permit was held back after it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held_s: Option<f64>,
    /// Label of the prompt (`small`, `medium`, `large`, or the one in the prompts file).
    pub prompt_size: Option<Arc<str>>,
}

impl RequestOutcome {
    /// Whether a complete answer arrived without a failure.
    pub fn is_success(&self) -> bool {
        self.failure.is_none() && self.end_s.is_some()
    }

    /// This outcome with the first `first` requests excluded: they count as warm-up.
    pub fn leaving_out(self, first: u64) -> Self {
        if self.seq < first { RequestOutcome { phase: Phase::Warmup, sample: None, ..self } } else { self }
    }

    /// Time per output token after the first, `(latency - TTFT) / (output tokens - 1)`, in seconds.
    pub fn tpot_s(&self) -> Option<f64> {
        let tokens = self.output_tokens.filter(|&n| n > 1)?;
        Some((self.latency_s? - self.ttft_s?) / f64::from(tokens - 1))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A successful request of the cohort.
    pub(crate) fn outcome(start: f64, end: f64) -> RequestOutcome {
        RequestOutcome {
            phase: Phase::Measured,
            start_s: start,
            end_s: Some(end),
            latency_s: Some(end - start),
            status: Some(200),
            ..RequestOutcome::default()
        }
    }

    #[test]
    fn tpot_needs_two_tokens_and_leaves_the_first_out() {
        let of = |tokens| RequestOutcome { ttft_s: Some(0.5), output_tokens: Some(tokens), ..outcome(0.0, 1.5) };
        assert_eq!((of(11).tpot_s(), of(1).tpot_s()), (Some(0.1), None));
    }
}
