//! What happened to one request: the record every figure is derived from.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use super::failure::{Failed, Failure, STATUS};
pub use super::quota::{Counted, Period, Quota, RateLimit};

/// Token counts as the server reported them; `None` where it did not.
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
    /// With what a later chunk of the same answer says. Some state the prompt's at the start only, and 0 at the end.
    pub(super) fn updated(self, later: TokenCounts) -> Self {
        TokenCounts {
            input: self.input.max(later.input),
            output: later.output.or(self.output),
            cached: self.cached.max(later.cached),
            reasoning: later.reasoning.or(self.reasoning),
        }
    }
}

/// What one exchange with the server came to, before the closed loop gives it a place in time.
#[derive(Clone, Debug, Default)]
pub struct Reply {
    /// Of HTTP; `None` if the server did not answer.
    pub status: Option<u16>,
    /// Time to the first non-empty content. Streaming only.
    pub ttft: Option<Duration>,
    /// Gaps between content chunks after the first, in microseconds.
    pub gaps_us: Vec<u32>,
    /// Chunks with content.
    pub chunks: u32,
    pub tokens: TokenCounts,
    pub failure: Option<Failed>,
    pub retry_after: Option<Duration>,
    pub rate_limit: Option<RateLimit>,
    /// How often the request was sent again because a reused connection had died unseen.
    pub resent: u32,
    /// Whether the connection was lost in mid-answer.
    pub cut: bool,
}

impl Reply {
    /// A reply that is nothing but a failure.
    pub fn failed(kind: Failure, message: impl Into<String>) -> Self {
        Reply { failure: Some(Failed::new(kind, message)), ..Reply::default() }
    }
}

/// Where in a level's life a request was issued.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Before the measured window: fills the pipeline, counted nowhere but in the record.
    #[default]
    Warmup,
    /// Inside the measured window: the cohort.
    Measured,
}

/// One request, one line of the sidecar. Times in seconds since the level began.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RequestOutcome {
    /// Order of issue within the level, from 0.
    pub seq: u64,
    /// The visit in which it was issued, from 1, where a loop makes several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub visit: Option<u32>,
    /// Of its **issue**.
    pub phase: Phase,
    /// Window in which it **completed**; null before and after the measured window, and where the level had changed by
    /// then.
    pub sample: Option<u32>,
    /// When it arrived, where requests arrive by themselves (an open loop).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub due_s: Option<f64>,
    /// When it might be sent (permit held).
    pub start_s: f64,
    /// When its last byte came; null if the run was interrupted first.
    pub end_s: Option<f64>,
    /// `end_s - start_s`.
    pub latency_s: Option<f64>,
    /// Null without streaming or content.
    pub ttft_s: Option<f64>,
    pub chunks: u32,
    pub output_tokens: Option<u32>,
    pub input_tokens: Option<u32>,
    pub cached_tokens: Option<u32>,
    /// Of the output tokens.
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
    /// How long its permit was held back after it had failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held_s: Option<f64>,
    /// Label of the prompt (`small`, `medium`, `large`, or that of the prompts file).
    pub prompt_size: Option<Arc<str>>,
}

impl RequestOutcome {
    /// Whether an answer came and was good.
    pub fn is_success(&self) -> bool {
        self.failure.is_none() && self.end_s.is_some()
    }

    /// As it counts where so many of the first requests are left out.
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

    /// A success of the cohort.
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
