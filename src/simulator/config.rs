//! Settings of the simulated server and their validation.

use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

use super::SimulatorError;
use super::faults::Faults;
use super::lengths::OutputTokens;

/// The settings of the simulated server: the section `simulator` of `config.yaml`, all keys optional.
///
/// With the defaults, throughput rises up to 20 parallel requests and is flat above that. From 46 parallel
/// requests on, the server refuses some.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SimulatorConfig {
    /// Maximum number of sequences that decode together. 1 or more.
    pub slots: usize,
    /// Maximum number of requests that wait while all slots are taken. Any further one gets a 503. 0 or more.
    pub queue_limit: usize,
    /// Fixed part of a step's duration, in milliseconds. 0.001 to 60,000.
    pub base_step_ms: f64,
    /// Time that each sequence in the batch adds to a step, in milliseconds. 0 to 60,000.
    pub per_sequence_ms: f64,
    /// Time that each prompt token adds to the step in which its request is admitted, in milliseconds. 0 to 60,000.
    pub prefill_ms_per_token: f64,
    /// Distribution of the answer lengths, in tokens. A request's `max_tokens` caps its answer.
    pub output_tokens: OutputTokens,
    /// Seed of the answer lengths and the faults: the same seed and the same prompt give the same length.
    pub seed: u64,
    /// Rate limit in requests per minute; a request above it gets a 429. 0.001 to 1e9; `None`: no limit.
    pub requests_per_minute: Option<f64>,
    /// Rate limit in tokens per minute. Each request counts with its prompt tokens plus its `max_tokens`, and a tenth
    /// of a minute's tokens may be used in one burst. 0.001 to 1e9; `None`: no limit.
    pub tokens_per_minute: Option<f64>,
    /// Burst that `requests_per_minute` allows, in requests. 1 or more; `None`: a tenth of a minute's requests.
    pub burst: Option<u32>,
    /// `Retry-After` of a 429, in whole seconds; `None`: the time until the limit allows the request.
    pub retry_after_s: Option<u32>,
    /// Whether leading 256-character blocks of a prompt that were seen before skip prefill. They are reported as
    /// `cached_tokens`.
    pub prefix_cache: bool,
    /// Injected faults. [`explain`](super::explain()) ignores them, and the rate limits as well.
    pub faults: Faults,
}

impl Default for SimulatorConfig {
    fn default() -> Self {
        Self {
            slots: 20,
            queue_limit: 25,
            base_step_ms: 3.6,
            per_sequence_ms: 0.12,
            prefill_ms_per_token: 0.001,
            output_tokens: OutputTokens::LogNormal { median: 50.0, sigma: 0.35 },
            seed: 42,
            requests_per_minute: None,
            tokens_per_minute: None,
            burst: None,
            retry_after_s: None,
            prefix_cache: false,
            faults: Faults::default(),
        }
    }
}

impl SimulatorConfig {
    /// Checks that every setting is within its range.
    ///
    /// # Errors
    ///
    /// [`SimulatorError::Config`] with the first key that is out of range, its value and the allowed range.
    pub fn validate(&self) -> Result<(), SimulatorError> {
        require(self.slots >= 1, "slots", self.slots, "1 or more")?;
        require_within("base_step_ms", self.base_step_ms, 0.001..=60_000.0, " (milliseconds)")?;
        require_within("per_sequence_ms", self.per_sequence_ms, 0.0..=60_000.0, " (milliseconds)")?;
        require_within("prefill_ms_per_token", self.prefill_ms_per_token, 0.0..=60_000.0, " (milliseconds)")?;
        match self.output_tokens {
            OutputTokens::Fixed { tokens } => require(tokens >= 1, "output_tokens.tokens", tokens, "1 or more")?,
            OutputTokens::Uniform { min, max } => {
                require(min >= 1, "output_tokens.min", min, "1 or more")?;
                require(max >= min, "output_tokens.max", max, "at least output_tokens.min")?;
            }
            OutputTokens::LogNormal { median, sigma } => {
                require_within("output_tokens.median", median, 1.0..=1e6, " (tokens)")?;
                require_within("output_tokens.sigma", sigma, 0.0..=3.0, " (standard deviation of the logarithm)")?;
            }
        }
        for (key, limit) in
            [("requests_per_minute", self.requests_per_minute), ("tokens_per_minute", self.tokens_per_minute)]
        {
            require_within(key, limit.unwrap_or(1.0), 0.001..=1e9, ", or null for no limit")?;
        }
        require(self.burst != Some(0), "burst", 0, "1 or more, or null for a tenth of requests_per_minute")?;
        self.faults.validate()
    }
}

pub(super) fn require_within(
    key: &str,
    value: f64,
    range: RangeInclusive<f64>,
    what: &str,
) -> Result<(), SimulatorError> {
    let possible = format!("a number from {} to {}{what}", range.start(), range.end());
    require(range.contains(&value), key, value, &possible)
}

pub(super) fn require(met: bool, key: &str, value: impl ToString, range: &str) -> Result<(), SimulatorError> {
    if met {
        return Ok(());
    }
    Err(SimulatorError::Config { key: key.to_owned(), value: value.to_string(), range: range.to_owned() })
}
