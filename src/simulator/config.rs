//! The settings of the simulated server.

use serde::{Deserialize, Serialize};

use super::SimulatorError;
use super::faults::Faults;
use super::lengths::OutputTokens;

/// Longest time that one of the step's parts may be set to, in milliseconds.
const LONGEST_MS: f64 = 60_000.0;

/// The settings of the simulated server: the section `simulator` of `config.yaml`, all keys optional.
///
/// The defaults are a server whose throughput rises up to 20 requests in parallel, stays flat above, and
/// which refuses requests at 46 and more.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SimulatorConfig {
    /// Sequences that decode together, at most. 1 or more.
    pub slots: usize,
    /// Requests that may wait while all slots are taken. One more is answered with 503. 0 or more.
    pub queue_limit: usize,
    /// Duration of a step without its sequences, in milliseconds. 0.001 to 60,000.
    pub base_step_ms: f64,
    /// What each sequence of the batch adds to a step, in milliseconds. 0 to 60,000.
    pub per_sequence_ms: f64,
    /// What each prompt token adds to the step at which its request is admitted, in milliseconds. 0 to 60,000.
    pub prefill_ms_per_token: f64,
    /// Lengths of the answers, in tokens. A request's `max_tokens` cuts them.
    pub output_tokens: OutputTokens,
    /// Seed of the lengths: the same seed and the same prompt give the same length. Also of the faults.
    pub seed: u64,
    /// Requests that are let through per minute; one more is answered with 429. More than 0; `None`: no limit.
    pub requests_per_minute: Option<f64>,
    /// Tokens that are let through per minute, by each request's prompt and `max_tokens`, a tenth of them at once; `None`:
    /// no limit.
    pub tokens_per_minute: Option<f64>,
    /// Requests that may come at once before `requests_per_minute` bites; `None`: a tenth of a minute's. 1 or more.
    pub burst: Option<u32>,
    /// What a 429 asks for in `Retry-After`, in whole seconds; `None`: the time until the limit lets one through.
    pub retry_after_s: Option<u32>,
    /// Whether leading blocks of 256 characters of a prompt that were seen before need no prefill. They are reported
    /// as `cached_tokens`. [`explain`](super::explain()) leaves the cache out of account.
    pub prefix_cache: bool,
    /// What goes wrong on purpose. [`explain`](super::explain()) leaves it out of account, and the limit too.
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
    /// Checks that a server can run with these settings.
    ///
    /// # Errors
    ///
    /// [`SimulatorError::Config`] names the first key that is out of range, its value and the range.
    pub fn validate(&self) -> Result<(), SimulatorError> {
        require(self.slots >= 1, "slots", self.slots, "1 or more")?;
        let base = self.base_step_ms;
        let range = "a number from 0.001 to 60000 (milliseconds)";
        require((0.001..=LONGEST_MS).contains(&base), "base_step_ms", base, range)?;
        let parts = [("per_sequence_ms", self.per_sequence_ms), ("prefill_ms_per_token", self.prefill_ms_per_token)];
        for (key, value) in parts {
            let range = "a number from 0 to 60000 (milliseconds)";
            require((0.0..=LONGEST_MS).contains(&value), key, value, range)?;
        }
        validate_output_tokens(&self.output_tokens)?;
        let limits = [("requests_per_minute", self.requests_per_minute), ("tokens_per_minute", self.tokens_per_minute)];
        for (key, limit) in limits.iter().filter_map(|(key, limit)| Some((key, (*limit)?))) {
            let range = "a number from 0.001 to 1000000000, or null for no limit";
            require((0.001..=1e9).contains(&limit), key, limit, range)?;
        }
        require(self.burst != Some(0), "burst", 0, "1 or more, or null for a tenth of requests_per_minute")?;
        self.faults.validate()
    }

    /// `burst`, or what stands for it.
    pub(super) fn burst(&self) -> u32 {
        self.burst.unwrap_or_else(|| (self.requests_per_minute.unwrap_or_default() / 10.0).max(1.0) as u32)
    }
}

fn validate_output_tokens(output_tokens: &OutputTokens) -> Result<(), SimulatorError> {
    match *output_tokens {
        OutputTokens::Fixed { tokens } => require(tokens >= 1, "output_tokens.tokens", tokens, "1 or more"),
        OutputTokens::Uniform { min, max } => {
            require(min >= 1, "output_tokens.min", min, "1 or more")?;
            let range = "at least output_tokens.min";
            require(max >= min, "output_tokens.max", max, range)
        }
        OutputTokens::LogNormal { median, sigma } => {
            let range = "a number from 1 to 1000000 (tokens)";
            let possible = (1.0..=1e6).contains(&median);
            require(possible, "output_tokens.median", median, range)?;
            let range = "a number from 0 to 3 (standard deviation of the logarithm)";
            require((0.0..=3.0).contains(&sigma), "output_tokens.sigma", sigma, range)
        }
    }
}

pub(super) fn require(
    possible: bool,
    key: &str,
    value: impl ToString,
    range: &'static str,
) -> Result<(), SimulatorError> {
    if possible {
        return Ok(());
    }
    Err(SimulatorError::Config { key: key.to_owned(), value: value.to_string(), range })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<SimulatorConfig, serde_json::Error> {
        serde_json::from_str(text)
    }

    #[test]
    fn the_defaults_are_possible_and_every_key_is_optional() {
        SimulatorConfig::default().validate().unwrap();
        assert_eq!(parse("{}").unwrap(), SimulatorConfig::default());
    }

    #[test]
    fn each_distribution_is_written_with_its_own_keys() {
        let cases = [
            (r#"{"distribution":"fixed","tokens":8}"#, OutputTokens::Fixed { tokens: 8 }),
            (r#"{"distribution":"uniform","min":2,"max":9}"#, OutputTokens::Uniform { min: 2, max: 9 }),
            (
                r#"{"distribution":"log_normal","median":100,"sigma":0.5}"#,
                OutputTokens::LogNormal { median: 100.0, sigma: 0.5 },
            ),
        ];
        for (text, expected) in cases {
            let config = parse(&format!(r#"{{"output_tokens":{text}}}"#)).unwrap();
            assert_eq!(config.output_tokens, expected);
            let again = parse(&serde_json::to_string(&config).unwrap()).unwrap();
            assert_eq!(again, config);
        }
    }

    #[test]
    fn unknown_keys_are_refused() {
        assert!(parse(r#"{"slot": 3}"#).is_err());
        let misplaced = r#"{"output_tokens":{"distribution":"fixed","tokens":8,"sigma":1}}"#;
        assert!(parse(misplaced).is_err());
    }

    #[test]
    fn an_impossible_value_is_named_with_its_key_and_the_mend() {
        let cases = [
            (r#"{"slots":0}"#, "simulator.slots is 0; set it to 1 or more"),
            (
                r#"{"base_step_ms":0}"#,
                "simulator.base_step_ms is 0; set it to a number from 0.001 to 60000 (milliseconds)",
            ),
            (
                r#"{"per_sequence_ms":-1.5}"#,
                "simulator.per_sequence_ms is -1.5; set it to a number from 0 to 60000 (milliseconds)",
            ),
            (
                r#"{"output_tokens":{"distribution":"uniform","min":5,"max":4}}"#,
                "simulator.output_tokens.max is 4; set it to at least output_tokens.min",
            ),
            (
                r#"{"output_tokens":{"distribution":"log_normal","median":0.5,"sigma":1}}"#,
                "simulator.output_tokens.median is 0.5; set it to a number from 1 to 1000000 (tokens)",
            ),
        ];
        for (text, message) in cases {
            let error = parse(text).unwrap().validate().unwrap_err();
            assert_eq!(error.to_string(), message);
        }
        let nan = SimulatorConfig { prefill_ms_per_token: f64::NAN, ..SimulatorConfig::default() };
        assert!(nan.validate().is_err());
    }
}
