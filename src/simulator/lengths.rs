//! Decides how long the answer to a prompt is.

use serde::{Deserialize, Serialize};

use super::SimulatorConfig;

/// Number of characters at the end of a prompt that determine the length of its answer.
const DECIDING_CHARS: usize = 256;

/// Distribution of the answer lengths, in tokens.
///
/// In `config.yaml`: `output_tokens: {distribution: log_normal, median: 48, sigma: 0.3}`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "distribution", rename_all = "snake_case", deny_unknown_fields)]
pub enum OutputTokens {
    /// Every answer has the same length.
    Fixed {
        /// Tokens per answer, 1 or more.
        tokens: u32,
    },
    /// Every length from `min` to `max`, inclusive, is equally likely.
    Uniform {
        /// Shortest answer in tokens, 1 or more.
        min: u32,
        /// Longest answer in tokens, `min` or more.
        max: u32,
    },
    /// The logarithm of the length is normally distributed: many short answers and a long tail.
    LogNormal {
        /// Median length in tokens, 1 or more.
        median: f64,
        /// Standard deviation of the natural logarithm of the length, 0 to 3.
        sigma: f64,
    },
}

/// Length of one answer.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutputLength {
    /// Number of tokens, 1 or more.
    pub tokens: u32,
    /// Whether `max_tokens` truncated the answer.
    pub cut: bool,
}

impl SimulatorConfig {
    /// The length of the answer to `prompt`: a draw from the distribution, at most `max_tokens`, at least 1.
    ///
    /// The draw is a pure function of the seed and the **end** of the prompt. As with a real model, the length depends
    /// on the task: the same task gets the same length at every concurrency level and in every run, so levels are
    /// compared on equal work (common random numbers). Only the last 256 characters count, because a client that
    /// bypasses prefix caches makes its prompts unique with a short prefix, which does not change the task. A shorter
    /// prompt counts as a whole, so there a prefix does change the length.
    ///
    /// The random bits come from FNV-1a and SplitMix64 rather than a library's generator, so that a seed gives the
    /// same lengths in every future version.
    #[doc(hidden)]
    pub fn answer_length(&self, prompt: &str, max_tokens: Option<u32>) -> OutputLength {
        let key = fnv1a(self.seed, tail(prompt).as_bytes());
        let drawn = match self.output_tokens {
            OutputTokens::Fixed { tokens } => tokens,
            OutputTokens::Uniform { min, max } => min + (unit(key, 1) * (f64::from(max - min) + 1.0)) as u32,
            OutputTokens::LogNormal { median, sigma } => (median * (sigma * standard_normal(key)).exp()).round() as u32,
        };
        let (drawn, limit) = (drawn.max(1), max_tokens.unwrap_or(u32::MAX).max(1));
        OutputLength { tokens: drawn.min(limit), cut: drawn > limit }
    }
}

/// Characters per token, the usual rule of thumb for English text and code.
pub(super) const CHARS_PER_TOKEN: usize = 4;

#[doc(hidden)]
pub fn prompt_tokens(prompt: &str) -> u32 {
    u32::try_from(prompt.chars().count().div_ceil(CHARS_PER_TOKEN)).unwrap_or(u32::MAX)
}

/// The last [`DECIDING_CHARS`] characters, or all if there are fewer.
fn tail(prompt: &str) -> &str {
    let start = prompt.char_indices().rev().nth(DECIDING_CHARS - 1);
    &prompt[start.map_or(0, |(index, _)| index)..]
}

/// FNV-1a (Fowler, Noll, Vo), 64 bits, over the seed and then the bytes.
pub(super) fn fnv1a(seed: u64, bytes: &[u8]) -> u64 {
    seed.to_le_bytes()
        .iter()
        .chain(bytes)
        .fold(0xcbf2_9ce4_8422_2325, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3))
}

/// The `n`-th number in [0, 1) of the SplitMix64 sequence that starts at `key` (Steele, Lea, Flood 2014).
pub(super) fn unit(key: u64, n: u64) -> f64 {
    let mut z = key.wrapping_add(n.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^= z >> 31;
    // Uses the upper 53 bits, which an f64 holds exactly.
    (z >> 11) as f64 / (1u64 << 53) as f64
}

/// One standard normal number for `key` (Box and Muller 1958).
fn standard_normal(key: u64) -> f64 {
    // 1 - u is in (0, 1], so the logarithm is finite.
    let radius = (-2.0 * (1.0 - unit(key, 1)).ln()).sqrt();
    radius * (std::f64::consts::TAU * unit(key, 2)).cos()
}
