//! How long the answer to a prompt is.

use serde::{Deserialize, Serialize};

/// Characters at the end of a prompt that decide the length of its answer.
const DECIDING_CHARS: usize = 256;

/// The distribution from which the lengths of answers are drawn, in tokens.
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
    /// Every length between the two bounds, both included, is equally likely.
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

/// How long one answer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct OutputLength {
    /// Tokens of the answer, 1 or more.
    pub(super) tokens: u32,
    /// Whether the request's `max_tokens` cut the answer short.
    pub(super) cut: bool,
}

/// Draws the length of an answer as a pure function of the seed and the **end** of the prompt.
///
/// A real model's answer length depends on the task. So it does here: the same task gets the same length
/// at every concurrency level and in every run, and levels are compared on equal work (common random
/// numbers). Only the last 256 characters count, because a client that wants to defeat a prefix cache
/// makes its prompts unique by a short prefix, which does not change the task. A prompt shorter than that
/// counts whole, so there a prefix does change the length.
///
/// The random bits come from FNV-1a and SplitMix64 instead of a library's generator, so that a seed
/// means the same lengths in every later version.
#[derive(Clone, Debug)]
pub(super) struct OutputLengths {
    seed: u64,
    distribution: OutputTokens,
}

impl OutputLengths {
    pub(super) fn new(seed: u64, distribution: OutputTokens) -> Self {
        Self { seed, distribution }
    }

    /// The length of the answer to `prompt`: what is drawn, at most `max_tokens`, at least 1.
    pub(super) fn of(&self, prompt: &str, max_tokens: Option<u32>) -> OutputLength {
        let drawn = self.draw(prompt).max(1);
        let limit = max_tokens.unwrap_or(u32::MAX).max(1);
        OutputLength { tokens: drawn.min(limit), cut: drawn > limit }
    }

    fn draw(&self, prompt: &str) -> u32 {
        let key = fnv1a(self.seed, tail(prompt).as_bytes());
        match self.distribution {
            OutputTokens::Fixed { tokens } => tokens,
            OutputTokens::Uniform { min, max } => {
                let values = f64::from(max - min) + 1.0;
                min + (unit(key, 1) * values) as u32
            }
            OutputTokens::LogNormal { median, sigma } => (median * (sigma * standard_normal(key)).exp()).round() as u32,
        }
    }
}

/// The usual rule of thumb for English text and code.
pub(super) const CHARS_PER_TOKEN: usize = 4;

/// Tokens of a prompt.
pub(super) fn prompt_tokens(prompt: &str) -> u32 {
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
    // The upper 53 bits: what an f64 holds exactly.
    (z >> 11) as f64 / (1u64 << 53) as f64
}

/// One standard normal number for `key` (Box and Muller 1958).
fn standard_normal(key: u64) -> f64 {
    // 1 - u lies in (0, 1], so that the logarithm is finite.
    let radius = (-2.0 * (1.0 - unit(key, 1)).ln()).sqrt();
    radius * (std::f64::consts::TAU * unit(key, 2)).cos()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draws(distribution: OutputTokens, count: usize) -> Vec<f64> {
        let lengths = OutputLengths::new(7, distribution);
        let mut drawn: Vec<f64> =
            (0..count).map(|i| f64::from(lengths.of(&format!("fn task_{i}() {{}}"), None).tokens)).collect();
        drawn.sort_by(f64::total_cmp);
        drawn
    }

    fn mean(values: &[f64]) -> f64 {
        values.iter().sum::<f64>() / values.len() as f64
    }

    #[test]
    fn log_normal_has_the_median_and_mean_of_its_definition() {
        let (median, sigma) = (200.0_f64, 0.5_f64);
        let drawn = draws(OutputTokens::LogNormal { median, sigma }, 40_000);
        let expected_mean = median * (sigma * sigma / 2.0).exp();
        assert!((drawn[20_000] / median - 1.0).abs() < 0.02);
        assert!((mean(&drawn) / expected_mean - 1.0).abs() < 0.02);
        // One standard deviation above the median lie 15.87 %.
        let above = drawn.iter().filter(|&&x| x > median * sigma.exp()).count();
        assert!((above as f64 / 40_000.0 - 0.1587).abs() < 0.01);
    }

    #[test]
    fn uniform_reaches_both_bounds_and_nothing_else() {
        let drawn = draws(OutputTokens::Uniform { min: 3, max: 12 }, 20_000);
        assert_eq!((drawn[0], drawn[19_999]), (3.0, 12.0));
        assert!((mean(&drawn) - 7.5).abs() < 0.1);
    }

    #[test]
    fn fixed_is_fixed_and_max_tokens_cuts() {
        let lengths = OutputLengths::new(1, OutputTokens::Fixed { tokens: 10 });
        let (tokens, cut) = (10, false);
        assert_eq!(lengths.of("a", None), OutputLength { tokens, cut });
        assert_eq!(lengths.of("b", Some(10)), OutputLength { tokens, cut });
        let (tokens, cut) = (4, true);
        assert_eq!(lengths.of("b", Some(4)), OutputLength { tokens, cut });
    }

    #[test]
    fn same_seed_same_lengths_other_seed_other_lengths() {
        let distribution = OutputTokens::Uniform { min: 1, max: 1000 };
        let all = |seed| {
            let lengths = OutputLengths::new(seed, distribution.clone());
            let of = |i| lengths.of(&format!("task {i}"), None).tokens;
            (0..50).map(of).collect::<Vec<_>>()
        };
        assert_eq!(all(42), all(42));
        assert_ne!(all(42), all(43));
    }

    #[test]
    fn a_prefix_before_the_last_256_characters_does_not_count() {
        let distribution = OutputTokens::Uniform { min: 1, max: 1000 };
        let lengths = OutputLengths::new(42, distribution);
        // Two bytes per character: the limit is in characters.
        let task = "ä".repeat(DECIDING_CHARS);
        let plain = lengths.of(&task, None);
        assert_eq!(plain, lengths.of(&format!("[run 7, request 12] {task}"), None));
        assert_ne!(plain, lengths.of(&format!("{task}!"), None));
        assert_eq!(lengths.of("", None), lengths.of("", None));
    }

    #[test]
    fn a_length_is_never_zero() {
        let (median, sigma) = (1.0, 3.0);
        assert!(draws(OutputTokens::LogNormal { median, sigma }, 1000)[0] >= 1.0);
    }

    #[test]
    fn prompt_tokens_count_characters_and_round_up() {
        assert_eq!(prompt_tokens(""), 0);
        assert_eq!(prompt_tokens("abcd"), 1);
        assert_eq!(prompt_tokens("äöüßa"), 2);
    }
}
