//! Outcomes of one level to its [`LevelSummary`]: the one place where figures are computed.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use statrs::distribution::{ContinuousCDF, StudentsT};

use crate::outcome::{Failure, Phase, RequestOutcome};

/// A figure with its 95 % confidence interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// The figure itself.
    pub estimate: f64,
    /// Lower end of the interval; null where it was not computed.
    #[serde(default)]
    pub lower: Option<f64>,
    /// Upper end of the interval.
    #[serde(default)]
    pub upper: Option<f64>,
}

/// One window of the closed loop, as recorded.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// Its length, seconds.
    pub duration_s: f64,
    /// Requests that completed in it.
    pub completed: u64,
    /// Successes among them.
    pub succeeded: u64,
}

/// Mean and percentiles of a time, in seconds. Percentiles are Hyndman-Fan type 7.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Distribution {
    /// Arithmetic mean.
    pub mean: Option<f64>,
    /// Median.
    pub p50: Option<f64>,
    /// 90th percentile.
    pub p90: Option<f64>,
    /// 95th percentile.
    pub p95: Option<f64>,
    /// 99th percentile; with fewer than 400 values it is little more than the largest.
    pub p99: Option<f64>,
    /// The largest.
    pub max: Option<f64>,
}

impl Distribution {
    /// Of `values`; `None` if there are none.
    pub fn of(mut values: Vec<f64>) -> Option<Self> {
        if values.is_empty() {
            return None;
        }
        values.sort_unstable_by(f64::total_cmp);
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        let at = |p| quantile(values.len() as u64, p, |rank| values[rank as usize]);
        Some(Distribution { mean: Some(mean), p50: at(0.5), p90: at(0.9), p95: at(0.95), p99: at(0.99), max: at(1.0) })
    }

    /// Of values binned as ascending `(value, count)`; `None` if there are none.
    pub fn of_binned(bins: &[(f64, u64)]) -> Option<Self> {
        let n: u64 = bins.iter().map(|bin| bin.1).sum();
        if n == 0 {
            return None;
        }
        let mean = bins.iter().map(|&(value, count)| value * count as f64).sum::<f64>() / n as f64;
        let nth = |rank: u64| {
            let mut seen = 0;
            let bin = bins.iter().find(|bin| {
                seen += bin.1;
                rank < seen
            });
            bin.map_or(f64::NAN, |bin| bin.0)
        };
        let at = |p| quantile(n, p, nth);
        Some(Distribution { mean: Some(mean), p50: at(0.5), p90: at(0.9), p95: at(0.95), p99: at(0.99), max: at(1.0) })
    }
}

/// Quantile of `n` ascending values, of which `nth` gives the one at a rank (from 0).
///
/// Hyndman and Fan (1996), "Sample Quantiles in Statistical Packages", type 7: linear interpolation at rank
/// `(n - 1) p`. It is numpy's default and the only definition used in this project. `None` for no values.
pub fn quantile(n: u64, p: f64, nth: impl Fn(u64) -> f64) -> Option<f64> {
    let last = n.checked_sub(1)?;
    let rank = p.clamp(0.0, 1.0) * last as f64;
    let below = rank.floor() as u64;
    let (low, high) = (nth(below), nth((below + 1).min(last)));
    Some(low + (rank - below as f64) * (high - low))
}

/// What one level came to. Unknown is `None`, never 0.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LevelSummary {
    /// The level: requests kept in flight.
    pub concurrency: usize,
    /// Size of the cohort: requests issued inside the measured window.
    pub requests: Option<u64>,
    /// Successes in the cohort.
    pub succeeded: Option<u64>,
    /// Failures in the cohort by kind; kinds that did not occur are left out.
    pub failures: BTreeMap<String, u64>,
    /// Failures / requests.
    pub error_rate: Option<f64>,
    /// Timeouts / requests.
    pub timeout_rate: Option<f64>,
    /// Length of the measured window, seconds.
    pub duration_s: Option<f64>,
    /// Successes per second over the measured window, each by the share of its life inside it.
    pub throughput_rps: Option<Estimate>,
    /// The windows, one per Criterion sample.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub samples: Option<Vec<Sample>>,
    /// Latency of the cohort's successes.
    pub latency_s: Option<Distribution>,
    /// The same with every timeout counted as `request_timeout`: what the latency gates look at.
    pub gate_latency_s: Option<Distribution>,
    /// Time to first token of the cohort's successes.
    pub ttft_s: Option<Distribution>,
    /// Gaps between content chunks.
    pub itl_s: Option<Distribution>,
    /// Time per output token after the first.
    pub tpot_s: Option<Distribution>,
    /// Output tokens per second over the measured window, by the same shares.
    pub output_tps: Option<f64>,
    /// Mean output tokens of a success.
    pub mean_output_tokens: Option<f64>,
    /// Requests in flight, averaged over the measured window: was the level reached?
    pub mean_in_flight: Option<f64>,
    /// Whether the level ended as planned.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<LevelState>,
    /// Why it did not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What is worth knowing about these figures.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// Keys of a results file that this version does not know.
    #[serde(flatten)]
    pub unknown: BTreeMap<String, serde_json::Value>,
}

/// How a level ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LevelState {
    /// Measured in full.
    Complete,
    /// Interrupted: not usable.
    Cut,
    /// It had clearly failed, so the rest was cut short: a result (it fails), but a small one.
    Hopeless,
}

/// What `summarize` needs beside the outcomes.
#[derive(Clone, Debug, Default)]
pub struct LevelFacts {
    /// The level.
    pub concurrency: usize,
    /// The measured window, seconds since the level began.
    pub window_s: [f64; 2],
    /// The windows in it.
    pub samples: Vec<Sample>,
    /// Histogram of gaps between chunks: ascending `(microseconds, count)`.
    pub itl_us: Vec<(u64, u64)>,
    /// What a timeout counts for in the latency gates, seconds.
    pub request_timeout_s: f64,
}

/// Derives the figures of a level from its outcomes.
///
/// n, error rate and percentiles are those of the cohort (issued inside the window, drained to their end); rates
/// are taken over all requests by the share of their life inside the window.
pub fn summarize(facts: &LevelFacts, outcomes: impl IntoIterator<Item = RequestOutcome>) -> LevelSummary {
    let mut tally = Tally::default();
    for outcome in outcomes {
        tally.add(&outcome, facts);
    }
    tally.finish(facts)
}

#[derive(Default)]
struct Tally {
    cohort: u64,
    succeeded: u64,
    failures: BTreeMap<Failure, u64>,
    successes_share: f64,
    tokens_share: f64,
    tokens_missing: bool,
    tokens: u64,
    in_flight_s: f64,
    latency: Vec<f64>,
    ttft: Vec<f64>,
    tpot: Vec<f64>,
}

impl Tally {
    fn add(&mut self, outcome: &RequestOutcome, facts: &LevelFacts) {
        self.in_flight_s += outcome.overlap_s(facts.window_s);
        if outcome.is_success() {
            let share = outcome.share(facts.window_s);
            self.successes_share += share;
            match outcome.output_tokens {
                Some(tokens) => self.tokens_share += share * f64::from(tokens),
                None => self.tokens_missing |= share > 0.0,
            }
        }
        if outcome.phase == Phase::Measured {
            self.add_to_cohort(outcome);
        }
    }

    fn add_to_cohort(&mut self, outcome: &RequestOutcome) {
        self.cohort += 1;
        if let Some(failure) = outcome.failure {
            *self.failures.entry(failure).or_default() += 1;
        }
        if !outcome.is_success() {
            return;
        }
        self.succeeded += 1;
        self.tokens += u64::from(outcome.output_tokens.unwrap_or_default());
        self.latency.extend(outcome.latency_s);
        self.ttft.extend(outcome.ttft_s);
        self.tpot.extend(outcome.tpot_s());
    }

    fn finish(self, facts: &LevelFacts) -> LevelSummary {
        let duration = facts.window_s[1] - facts.window_s[0];
        let per_second = |amount: f64| (duration > 0.0).then(|| amount / duration);
        let rate = |count: u64| (self.cohort > 0).then(|| count as f64 / self.cohort as f64);
        let timeouts = self.failures.get(&Failure::Timeout).copied().unwrap_or_default();
        let failed = self.failures.values().sum();
        let has_tokens = !self.tokens_missing && self.succeeded > 0;
        let mut with_timeouts = self.latency.clone();
        with_timeouts.extend((0..timeouts).map(|_| facts.request_timeout_s));
        let itl: Vec<_> = facts.itl_us.iter().map(|&(us, count)| (us as f64 / 1e6, count)).collect();
        LevelSummary {
            concurrency: facts.concurrency,
            requests: Some(self.cohort),
            succeeded: Some(self.succeeded),
            failures: self.failures.iter().map(|(kind, &count)| (kind.name().to_owned(), count)).collect(),
            error_rate: rate(failed),
            timeout_rate: rate(timeouts),
            duration_s: Some(duration),
            throughput_rps: per_second(self.successes_share).map(|rps| with_interval(rps, &facts.samples)),
            samples: Some(facts.samples.clone()),
            latency_s: Distribution::of(self.latency),
            gate_latency_s: Distribution::of(with_timeouts),
            ttft_s: Distribution::of(self.ttft),
            itl_s: Distribution::of_binned(&itl),
            tpot_s: Distribution::of(self.tpot),
            output_tps: per_second(self.tokens_share).filter(|_| has_tokens),
            mean_output_tokens: has_tokens.then(|| self.tokens as f64 / self.succeeded as f64),
            mean_in_flight: per_second(self.in_flight_s),
            ..LevelSummary::default()
        }
    }
}

/// Puts a 95 % interval around `rps`: Student's t on the windows' rates, centred on the share-of-life figure.
fn with_interval(rps: f64, samples: &[Sample]) -> Estimate {
    let rates: Vec<f64> =
        samples.iter().filter(|s| s.duration_s > 0.0).map(|s| s.succeeded as f64 / s.duration_s).collect();
    let half = half_width(&rates);
    Estimate { estimate: rps, lower: half.map(|h| (rps - h).max(0.0)), upper: half.map(|h| rps + h) }
}

/// Half-width of the 95 % Student t interval of the mean; `None` for fewer than two values.
fn half_width(values: &[f64]) -> Option<f64> {
    let n = values.len() as f64;
    if values.len() < 2 {
        return None;
    }
    let mean = values.iter().sum::<f64>() / n;
    let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1.0);
    let t = StudentsT::new(0.0, 1.0, n - 1.0).ok()?.inverse_cdf(0.975);
    Some(t * (variance / n).sqrt())
}

/// Wilson's 95 % score interval of a proportion (Wilson 1927).
pub fn wilson(successes: u64, n: u64) -> Option<[f64; 2]> {
    const Z: f64 = 1.959_963_984_540_054;
    if n == 0 {
        return None;
    }
    let (n, p) = (n as f64, successes as f64 / n as f64);
    let denominator = 1.0 + Z * Z / n;
    let centre = (p + Z * Z / (2.0 * n)) / denominator;
    let half = Z / denominator * (p * (1.0 - p) / n + Z * Z / (4.0 * n * n)).sqrt();
    Some([(centre - half).max(0.0), (centre + half).min(1.0)])
}
