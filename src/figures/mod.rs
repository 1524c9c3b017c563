//! Outcomes of one level to its [`LevelSummary`]: the one place where figures are computed.

pub mod reasons;
pub mod usl;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize};
use statrs::distribution::{Binomial, ContinuousCDF, DiscreteCDF, StudentsT};

use crate::client::outcome::{Failure, Phase, RateLimit, RequestOutcome};
use crate::figures::reasons::{EarlyEnd, Reason, Reasons};

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

/// A time of one request, as whole microseconds in four bytes: a run may be of millions. More than 71 minutes count as
/// that.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Micros(u32);

impl Micros {
    fn of(seconds: f64) -> Self {
        Micros((seconds * 1e6).round() as u32)
    }

    fn seconds(self) -> f64 {
        f64::from(self.0) / 1e6
    }
}

impl Distribution {
    /// Of `values`; `None` if there are none.
    fn of(mut values: Vec<Micros>) -> Option<Self> {
        values.sort_unstable();
        Self::of_sorted(&values)
    }

    /// Of ascending values.
    fn of_sorted(values: &[Micros]) -> Option<Self> {
        if values.is_empty() {
            return None;
        }
        let sum: u64 = values.iter().map(|value| u64::from(value.0)).sum();
        let mean = sum as f64 / 1e6 / values.len() as f64;
        let at = |p| quantile(values.len() as u64, p, |rank| values[rank as usize].seconds());
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

/// The part of a level's cohort whose prompts carry the same size label.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SizeSummary {
    /// The label: `small`, `medium`, `large`, or that of the prompts file.
    pub size: String,
    /// Requests with such a prompt.
    pub requests: u64,
    /// Successes among them.
    pub succeeded: u64,
    /// Latency of the successes.
    pub latency_s: Option<Distribution>,
    /// Mean output tokens of a success.
    pub mean_output_tokens: Option<f64>,
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
    #[serde(deserialize_with = "null_as_default")]
    pub failures: BTreeMap<String, u64>,
    /// The most frequent reason of its failures.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub main_failure: Option<Reason>,
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
    /// Throughput as consecutive tenths of the cohort give it, each alone; what the intervals are made from. Ten per
    /// measurement, one measurement after the other.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_default")]
    pub blocks_rps: Vec<f64>,
    /// Latency of the cohort's successes.
    pub latency_s: Option<Distribution>,
    /// The same with every timeout counted as `request_timeout`: what the latency gates look at.
    pub gate_latency_s: Option<Distribution>,
    /// The 95 % interval of that P95; null where there are too few requests for one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p95_interval_s: Option<[f64; 2]>,
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
    /// Mean tokens of a success's prompt.
    pub mean_input_tokens: Option<f64>,
    /// Successes without content: their first token was the one that ends an answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ended_at_once: Option<u64>,
    /// The cohort by the size of the prompts, where there is more than one.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_default")]
    pub by_size: Vec<SizeSummary>,
    /// Requests in flight, averaged over the measured window: was the level reached?
    pub mean_in_flight: Option<f64>,
    /// Permits held back after failures, averaged over the measured window; null without any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mean_held: Option<f64>,
    /// Measurements of the level in which the server was gone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outage: Option<Outage>,
    /// The first measurement beside the confirm rounds; null without such rounds: then drift was not checked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drift: Option<Drift>,
    /// What the measuring cost this client.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client: Option<ClientLoad>,
    /// What the server said of its own load meanwhile, where it was asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server: Option<ServerLoad>,
    /// What the server said last of its quota.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate_limit: Option<RateLimit>,
    /// Whether the level ended as planned.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<LevelState>,
    /// Why it did not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<EarlyEnd>,
    /// Keys of a results file that this version does not know.
    #[serde(flatten)]
    pub unknown: BTreeMap<String, serde_json::Value>,
}

fn null_as_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(deserializer: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

impl LevelSummary {
    /// With every figure that cannot be (not finite, negative, a rate above 1) made unknown. Files from elsewhere
    /// may hold such.
    pub fn without_impossible(mut self) -> Self {
        fn keep(figure: &mut Option<f64>) {
            *figure = figure.filter(|&f| f.is_finite() && f >= 0.0);
        }
        let requests = self.requests.unwrap_or(u64::MAX);
        self.succeeded = self.succeeded.filter(|&n| n <= requests);
        self.failures.retain(|_, n| *n <= requests);
        let rates = [&mut self.error_rate, &mut self.timeout_rate];
        rates.into_iter().for_each(|rate| *rate = rate.filter(|r| (0.0..=1.0).contains(r)));
        self.throughput_rps = self.throughput_rps.filter(|t| t.estimate.is_finite() && t.estimate >= 0.0);
        if let Some(throughput) = &mut self.throughput_rps {
            keep(&mut throughput.lower);
            keep(&mut throughput.upper);
        }
        let figures = [
            &mut self.duration_s,
            &mut self.output_tps,
            &mut self.mean_output_tokens,
            &mut self.mean_input_tokens,
            &mut self.mean_in_flight,
            &mut self.mean_held,
        ];
        figures.into_iter().for_each(keep);
        let times =
            [&mut self.latency_s, &mut self.gate_latency_s, &mut self.ttft_s, &mut self.itl_s, &mut self.tpot_s];
        let of_sizes = self.by_size.iter_mut().map(|size| {
            keep(&mut size.mean_output_tokens);
            &mut size.latency_s
        });
        for time in times.into_iter().chain(of_sizes).flatten() {
            let Distribution { mean, p50, p90, p95, p99, max } = time;
            [mean, p50, p90, p95, p99, max].into_iter().for_each(keep);
        }
        if let Some(samples) = &mut self.samples {
            samples.retain(|s| s.duration_s.is_finite() && s.duration_s > 0.0 && s.succeeded <= s.completed);
        }
        let can_be = |e: &Estimate| [Some(e.estimate), e.lower, e.upper].iter().flatten().all(|f| *f >= 0.0);
        self.drift = self.drift.filter(|drift| can_be(&drift.first) && can_be(&drift.confirmed));
        self.blocks_rps.retain(|rate| rate.is_finite() && *rate >= 0.0);
        self.p95_interval_s = self.p95_interval_s.filter(|[low, high]| *low >= 0.0 && low <= high && high.is_finite());
        if let Some(client) = &mut self.client {
            keep(&mut client.cpu);
            keep(&mut client.timer_lag_p95_s);
        }
        if let Some(server) = &mut self.server {
            [&mut server.running, &mut server.waiting, &mut server.kv_cache].into_iter().for_each(keep);
        }
        self
    }
}

/// How many requests of a measurement found no server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Reach {
    /// Requests that came to an end, those of the warm-up included: it may be where the server is gone.
    pub requests: u64,
    /// Those whose connection was refused, reset or cut, and those that a gateway answered without a server (502).
    pub lost: u64,
    /// Those that got a 503: of a server that is starting where connections were lost too, else of one that is full.
    pub unavailable: u64,
}

impl Reach {
    /// Counts a request.
    pub fn add(&mut self, outcome: &RequestOutcome) {
        if outcome.end_s.is_none() {
            return;
        }
        let lost = outcome.failure == Some(Failure::Connect) || outcome.cut || outcome.status == Some(502);
        self.requests += 1;
        self.lost += u64::from(lost);
        self.unavailable += u64::from(outcome.status == Some(503));
    }

    /// Whether more than `limit` of the requests were lost, and not by chance.
    pub fn is_outage(&self, limit: f64) -> bool {
        self.lost > 0 && wilson(self.found_none(), self.requests).is_some_and(|[low, _]| low >= limit)
    }

    fn found_none(&self) -> u64 {
        if self.lost > 0 { (self.lost + self.unavailable).min(self.requests) } else { 0 }
    }
}

/// Measurements of a level in which the server was gone. They are set aside if it was there in another one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Outage {
    /// Requests in them that found no server,
    pub lost: u64,
    /// of so many.
    pub requests: u64,
    /// How many such measurements there are,
    pub measurements: u64,
    /// of so many.
    pub of: u64,
    /// How many measurements there are since the latest of them.
    pub since: u64,
}

impl Outage {
    /// Whether its measurements do not count, since there are others.
    pub fn is_set_aside(&self) -> bool {
        self.measurements < self.of
    }
}

/// Of a level's measurements those that count: without those in which more than `limit` of the requests found no server,
/// unless that is all of them.
pub fn without_outages<T: Copy>(
    measurements: &[T],
    reach: impl Fn(T) -> Reach,
    limit: f64,
) -> (Vec<T>, Option<Outage>) {
    let gone = |&measurement: &T| reach(measurement).is_outage(limit);
    let (out, there): (Vec<T>, Vec<T>) = measurements.iter().partition(|measurement| gone(measurement));
    if out.is_empty() {
        return (there, None);
    }
    let sum = |of: fn(&Reach) -> u64| out.iter().map(|&measurement| of(&reach(measurement))).sum();
    let outage = Outage {
        lost: sum(Reach::found_none),
        requests: sum(|reach| reach.requests),
        measurements: out.len() as u64,
        of: measurements.len() as u64,
        since: measurements.iter().rev().take_while(|measurement| !gone(measurement)).count() as u64,
    };
    (if there.is_empty() { out } else { there }, Some(outage))
}

/// A level's throughput when it was first measured and in its confirm rounds, each with its 99 % interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Drift {
    /// At first.
    pub first: Estimate,
    /// In all confirm rounds together.
    pub confirmed: Estimate,
}

/// A change of throughput above this, and beyond both 99 % intervals, is drift.
const DRIFTED: f64 = 0.10;

impl Drift {
    /// Of the first measurement and the confirm rounds; `None` if one of them has no interval.
    pub fn between(first: &LevelSummary, confirmed: &LevelSummary) -> Option<Self> {
        let of = |summary: &LevelSummary| {
            let figure = with_interval(summary.throughput_rps?.estimate, &summary.blocks_rps, 0.99);
            figure.lower.is_some().then_some(figure)
        };
        Some(Drift { first: of(first)?, confirmed: of(confirmed)? })
    }

    /// The change relative to the first figure, if it is drift.
    pub fn change(&self) -> Option<f64> {
        let Drift { first, confirmed } = self;
        let apart = first.upper? < confirmed.lower? || confirmed.upper? < first.lower?;
        let change = confirmed.estimate / first.estimate - 1.0;
        (apart && change.is_finite() && change.abs() > DRIFTED).then_some(change)
    }
}

/// What measuring a level cost this client. Unknown is `None`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ClientLoad {
    /// CPU seconds of the load thread per second of the measured window.
    pub cpu: Option<f64>,
    /// How late its timers were, 95th percentile, seconds; their own rounding is taken off.
    pub timer_lag_p95_s: Option<f64>,
}

impl ClientLoad {
    /// Of two measurements the worse.
    fn worse(self, other: ClientLoad) -> Self {
        let max = |a: Option<f64>, b: Option<f64>| a.into_iter().chain(b).max_by(f64::total_cmp);
        ClientLoad { cpu: max(self.cpu, other.cpu), timer_lag_p95_s: max(self.timer_lag_p95_s, other.timer_lag_p95_s) }
    }
}

/// What the server said of its load, on average. Unknown is `None`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ServerLoad {
    /// How often it was asked.
    pub looks: u64,
    /// Requests that it worked on.
    pub running: Option<f64>,
    /// Requests that waited in its queue.
    pub waiting: Option<f64>,
    /// Share of its KV cache in use.
    pub kv_cache: Option<f64>,
}

impl ServerLoad {
    /// The mean of both, each by how often it was looked at.
    pub fn with(self, other: ServerLoad) -> Self {
        let (own, more) = (self.looks as f64, other.looks as f64);
        let mean = |a: Option<f64>, b: Option<f64>| match (a, b) {
            (Some(a), Some(b)) => Some((a * own + b * more) / (own + more)),
            (a, b) => a.or(b),
        };
        ServerLoad {
            looks: self.looks + other.looks,
            running: mean(self.running, other.running),
            waiting: mean(self.waiting, other.waiting),
            kv_cache: mean(self.kv_cache, other.kv_cache),
        }
    }
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
    /// What it cost this client.
    pub client: Option<ClientLoad>,
    /// What the server said last of its quota.
    pub rate_limit: Option<RateLimit>,
    /// What it said of its load.
    pub server: Option<ServerLoad>,
}

/// Derives the figures of a level from its outcomes.
///
/// n, error rate and percentiles are those of the cohort (issued inside the window, drained to their end); rates
/// are taken over all requests by the share of their life inside the window.
pub fn summarize(facts: &LevelFacts, outcomes: impl IntoIterator<Item = RequestOutcome>) -> LevelSummary {
    let mut pool = Pool::new(facts.concurrency);
    pool.add(facts, outcomes);
    pool.finish()
}

/// Adds up one level's measurements, each with a window of its own, to one summary.
///
/// Of each request it keeps no more than 14 bytes.
#[derive(Debug, Default)]
pub struct Pool {
    concurrency: usize,
    duration_s: f64,
    samples: Vec<Sample>,
    itl_us: BTreeMap<u64, u64>,
    blocks_rps: Vec<f64>,
    succeeded: u64,
    failures: BTreeMap<Failure, u64>,
    reasons: Reasons,
    successes_share: f64,
    tokens_share: f64,
    tokens_missing: bool,
    tokens: u64,
    input_tokens: Option<u64>,
    ended_at_once: u64,
    in_flight_s: f64,
    held_back_s: f64,
    cohort: Cohort,
    /// What timeouts count for in the latency gates.
    timeouts: Vec<Micros>,
    ttft: Vec<Micros>,
    tpot: Vec<Micros>,
    sizes: Vec<SizePool>,
    client: Option<ClientLoad>,
    rate_limit: Option<RateLimit>,
    server: Option<ServerLoad>,
}

/// The requests of the cohort: how long each held its permit, which is its latency and, after a failure, how long it was
/// held back; and what else tells them apart.
#[derive(Debug, Default)]
struct Cohort {
    held: Vec<Micros>,
    marks: Vec<Mark>,
}

/// Whether a request succeeded, and its place in [`Pool::sizes`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Mark(i16);

impl Mark {
    /// Failures have negative numbers. What lies beyond the first 32,767 sizes counts with the last of them.
    fn of(success: bool, size: usize) -> Self {
        let size = i16::try_from(size).unwrap_or(i16::MAX);
        Mark(if success { size } else { !size })
    }

    fn is_success(self) -> bool {
        self.0 >= 0
    }
}

impl Cohort {
    fn len(&self) -> usize {
        self.held.len()
    }

    fn push(&mut self, (held, mark): (Micros, Mark)) {
        self.held.push(held);
        self.marks.push(mark);
    }

    fn range(&self, range: Range<usize>) -> impl Iterator<Item = (Micros, Mark)> + Clone {
        self.held[range.clone()].iter().copied().zip(self.marks[range].iter().copied())
    }

    /// Latencies of the successes that carry `mark`, or of all.
    fn latencies(&self, mark: Option<Mark>) -> Vec<Micros> {
        let wanted = |found: Mark| mark.map_or(found.is_success(), |mark| mark == found);
        self.range(0..self.len()).filter(|&(_, mark)| wanted(mark)).map(|(held, _)| held).collect()
    }
}

/// Puts requests that come in order of their ends into that of their issue. Only those wait here that an earlier one has
/// let pass.
#[derive(Debug, Default)]
struct InOrder {
    next: u64,
    waiting: BTreeMap<u64, Vec<Option<(Micros, Mark)>>>,
}

impl InOrder {
    /// Takes the next request, which is `None` if it does not belong to the cohort.
    fn push(&mut self, seq: u64, request: Option<(Micros, Mark)>, cohort: &mut Cohort) {
        if seq != self.next {
            return self.waiting.entry(seq).or_default().push(request);
        }
        request.into_iter().for_each(|request| cohort.push(request));
        self.next += 1;
        while let Some(passed) = self.waiting.remove(&self.next) {
            passed.into_iter().flatten().for_each(|request| cohort.push(request));
            self.next += 1;
        }
    }

    /// The rest, where numbers are missing.
    fn finish(self, cohort: &mut Cohort) {
        self.waiting.into_values().flatten().flatten().for_each(|request| cohort.push(request));
    }
}

/// The part of the cohort whose prompts have one size; without a label those whose size is not known.
#[derive(Debug, Default)]
struct SizePool {
    label: Option<Arc<str>>,
    requests: u64,
    succeeded: u64,
    /// Successes with a token count, and their tokens.
    counted: u64,
    tokens: u64,
}

impl SizePool {
    fn finish(self, latencies: Vec<Micros>) -> Option<SizeSummary> {
        let known = self.succeeded > 0 && self.counted == self.succeeded;
        Some(SizeSummary {
            size: self.label?.to_string(),
            requests: self.requests,
            succeeded: self.succeeded,
            latency_s: Distribution::of(latencies),
            mean_output_tokens: known.then(|| self.tokens as f64 / self.succeeded as f64),
        })
    }
}

/// The usual labels from small to large, then others by name.
fn by_size(sizes: Vec<SizePool>, cohort: &Cohort) -> Vec<SizeSummary> {
    let finish = |(at, size): (usize, SizePool)| size.finish(cohort.latencies(Some(Mark::of(true, at))));
    let mut all: Vec<SizeSummary> = sizes.into_iter().enumerate().filter_map(finish).collect();
    if all.len() < 2 {
        return Vec::new();
    }
    let usual = ["small", "medium", "large"];
    let place = |label: &str| usual.iter().position(|&usual| usual == label).unwrap_or(usual.len());
    all.sort_by(|a, b| place(&a.size).cmp(&place(&b.size)).then_with(|| a.size.cmp(&b.size)));
    all
}

impl Pool {
    /// An empty pool for a level.
    pub fn new(concurrency: usize) -> Self {
        Pool { concurrency, input_tokens: Some(0), ..Pool::default() }
    }

    /// Adds one measurement.
    pub fn add(&mut self, facts: &LevelFacts, outcomes: impl IntoIterator<Item = RequestOutcome>) {
        let mut in_order = InOrder::default();
        let from = self.cohort.len();
        self.make_room(facts);
        for outcome in outcomes {
            self.add_rates(&outcome, facts);
            let of_cohort = outcome.phase == Phase::Measured;
            let request = of_cohort.then(|| self.add_to_cohort(&outcome, facts));
            in_order.push(outcome.seq, request, &mut self.cohort);
        }
        in_order.finish(&mut self.cohort);
        self.blocks_rps.extend(blocks(self.concurrency, &self.cohort, from));
        self.duration_s += facts.window_s[1] - facts.window_s[0];
        self.samples.extend_from_slice(&facts.samples);
        for &(us, count) in &facts.itl_us {
            *self.itl_us.entry(us).or_default() += count;
        }
        self.client = self.client.into_iter().chain(facts.client).reduce(ClientLoad::worse);
        self.rate_limit = self.rate_limit.into_iter().chain(facts.rate_limit).reduce(RateLimit::updated);
        self.server = self.server.into_iter().chain(facts.server).reduce(ServerLoad::with);
    }

    /// Room for a measurement's requests, so that no column is copied as it grows. It is no more than a wish.
    fn make_room(&mut self, facts: &LevelFacts) {
        let completed: usize =
            facts.samples.iter().fold(0, |sum: usize, sample| sum.saturating_add(sample.completed as usize));
        let requests = completed.saturating_add(self.concurrency);
        let columns = [&mut self.cohort.held, &mut self.ttft, &mut self.tpot];
        columns.into_iter().for_each(|column| drop(column.try_reserve_exact(requests)));
        drop(self.cohort.marks.try_reserve_exact(requests));
    }

    fn add_rates(&mut self, outcome: &RequestOutcome, facts: &LevelFacts) {
        self.in_flight_s += outcome.overlap_s(facts.window_s);
        self.held_back_s += outcome.held_back_s(facts.window_s);
        if !outcome.is_success() {
            return;
        }
        let share = outcome.share(facts.window_s);
        self.successes_share += share;
        match outcome.output_tokens {
            Some(tokens) => self.tokens_share += share * f64::from(tokens),
            None => self.tokens_missing |= share > 0.0,
        }
    }

    fn add_to_cohort(&mut self, outcome: &RequestOutcome, facts: &LevelFacts) -> (Micros, Mark) {
        let success = outcome.is_success();
        let size = self.size_of(outcome);
        let pool = &mut self.sizes[size];
        pool.requests += 1;
        if let Some(failure) = outcome.failure {
            *self.failures.entry(failure).or_default() += 1;
            self.reasons.add(failure, outcome.error.as_deref().unwrap_or_default());
            if failure == Failure::Timeout {
                self.timeouts.push(Micros::of(facts.request_timeout_s));
            }
        }
        if success {
            let tokens = u64::from(outcome.output_tokens.unwrap_or_default());
            pool.succeeded += 1;
            pool.counted += u64::from(outcome.output_tokens.is_some());
            pool.tokens += tokens;
            self.succeeded += 1;
            self.tokens += tokens;
            let input = outcome.input_tokens.map(u64::from);
            self.input_tokens = self.input_tokens.zip(input).map(|(sum, more)| sum + more);
            self.ended_at_once += u64::from(outcome.chunks == 0 && tokens > 0);
            self.ttft.extend(outcome.ttft_s.map(Micros::of));
            self.tpot.extend(outcome.tpot_s().map(Micros::of));
        }
        let held_s = outcome.latency_s.unwrap_or_default() + outcome.held_s.unwrap_or_default();
        (Micros::of(held_s), Mark::of(success, size))
    }

    fn size_of(&mut self, outcome: &RequestOutcome) -> usize {
        let label = &outcome.prompt_size;
        let known = self.sizes.iter().position(|size| size.label == *label);
        known.unwrap_or_else(|| {
            self.sizes.push(SizePool { label: label.clone(), ..SizePool::default() });
            self.sizes.len() - 1
        })
    }

    /// The figures of all that was added.
    pub fn finish(self) -> LevelSummary {
        let per_second = |amount: f64| (self.duration_s > 0.0).then(|| amount / self.duration_s);
        let requests = self.cohort.len() as u64;
        let rate = |count: u64| (requests > 0).then(|| count as f64 / requests as f64);
        let timeout_rate = rate(self.timeouts.len() as u64);
        let has_tokens = !self.tokens_missing && self.succeeded > 0;
        let itl: Vec<_> = self.itl_us.iter().map(|(&us, &count)| (us as f64 / 1e6, count)).collect();
        // One column after the other, each given up when it is done with: together they would take much memory.
        let (ttft_s, tpot_s) = (Distribution::of(self.ttft), Distribution::of(self.tpot));
        let by_size = by_size(self.sizes, &self.cohort);
        let mut latencies = self.cohort.latencies(None);
        drop(self.cohort);
        latencies.sort_unstable();
        let latency_s = Distribution::of_sorted(&latencies);
        latencies.extend(self.timeouts);
        latencies.sort_unstable();
        LevelSummary {
            concurrency: self.concurrency,
            requests: Some(requests),
            succeeded: Some(self.succeeded),
            failures: self.failures.iter().map(|(kind, &count)| (kind.name().to_owned(), count)).collect(),
            main_failure: self.reasons.most_frequent(),
            error_rate: rate(self.failures.values().sum()),
            timeout_rate,
            duration_s: Some(self.duration_s),
            throughput_rps: per_second(self.successes_share).map(|rps| with_interval(rps, &self.blocks_rps, 0.95)),
            samples: Some(self.samples),
            blocks_rps: self.blocks_rps,
            latency_s,
            p95_interval_s: p95_interval(&latencies),
            gate_latency_s: Distribution::of_sorted(&latencies),
            ttft_s,
            itl_s: Distribution::of_binned(&itl),
            tpot_s,
            output_tps: per_second(self.tokens_share).filter(|_| has_tokens),
            mean_output_tokens: has_tokens.then(|| self.tokens as f64 / self.succeeded as f64),
            mean_input_tokens: self
                .input_tokens
                .filter(|_| self.succeeded > 0)
                .map(|sum| sum as f64 / self.succeeded as f64),
            ended_at_once: Some(self.ended_at_once).filter(|&count| count > 0),
            by_size,
            mean_in_flight: per_second(self.in_flight_s),
            mean_held: per_second(self.held_back_s).filter(|&held| held > 0.0),
            client: self.client,
            rate_limit: self.rate_limit,
            server: self.server,
            ..LevelSummary::default()
        }
    }
}

/// Blocks per measurement.
pub const BLOCKS: usize = 10;

/// Throughput by consecutive blocks of the cohort, in order of issue.
///
/// A closed loop holds `level` permits all the time, so a block's throughput is `level` x successes / time its
/// permits were held (Little's law). Blocks of requests are independent where their latencies are, while windows of
/// time share the requests that cross their border; and blocks that follow each other show a server that changes
/// its speed.
fn blocks(level: usize, cohort: &Cohort, from: usize) -> Vec<f64> {
    let n = cohort.len() - from;
    if n < BLOCKS {
        return Vec::new();
    }
    let block = |at: usize| {
        let block = cohort.range(from + at * n / BLOCKS..from + (at + 1) * n / BLOCKS);
        let held: f64 = block.clone().map(|(held, _)| held.seconds()).sum();
        let succeeded = block.filter(|(_, mark)| mark.is_success()).count();
        if held > 0.0 { level as f64 * succeeded as f64 / held } else { 0.0 }
    };
    (0..BLOCKS).map(block).collect()
}

/// Puts an interval around `rps`: Student's t on the blocks, as a share of their mean.
fn with_interval(rps: f64, blocks: &[f64], confidence: f64) -> Estimate {
    let half = relative_half_width(blocks, confidence).map(|half| rps * half);
    Estimate { estimate: rps, lower: half.map(|h| (rps - h).max(0.0)), upper: half.map(|h| rps + h) }
}

/// Half-width of the Student t interval of the mean, relative to the mean; `None` for fewer than two values.
fn relative_half_width(values: &[f64], confidence: f64) -> Option<f64> {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    if values.len() < 2 || mean <= 0.0 {
        return None;
    }
    let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1.0);
    let t = StudentsT::new(0.0, 1.0, n - 1.0).ok()?.inverse_cdf((1.0 + confidence) / 2.0);
    Some(t * (variance / n).sqrt() / mean)
}

/// The 95 % interval of the 95th percentile, from order statistics: between two of the sorted values, whose ranks the
/// binomial distribution gives whatever the distribution of the values (Conover, "Practical Nonparametric Statistics",
/// 3rd ed., 3.2). `None` if there are too few values to bound it from above, which takes 72.
fn p95_interval(sorted: &[Micros]) -> Option<[f64; 2]> {
    let below = Binomial::new(0.95, sorted.len() as u64).ok()?;
    // Ranks from 1: the value at `low` lies above the percentile in at most 2.5 % of all cases, that at `high` below it.
    let (low, high) = (below.inverse_cdf(0.025) as usize, below.inverse_cdf(0.975) as usize + 1);
    (low > 0 && high <= sorted.len()).then(|| [sorted[low - 1].seconds(), sorted[high - 1].seconds()])
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::client::outcome::tests::outcome;

    fn assert_near(got: Option<f64>, want: f64) {
        let got = got.unwrap_or(f64::NAN);
        assert!((got - want).abs() <= 1e-12 * want.abs().max(1.0), "got {got}, want {want}");
    }

    /// `[float(np.quantile([0.3, 0.1, 0.7, 0.2, 1.5, 0.9, 0.4], p)) for p in (.5, .9, .95, .99, 1)]`, numpy 2.
    #[test]
    fn quantiles_are_those_of_numpy() {
        let distribution = Distribution::of([0.3, 0.1, 0.7, 0.2, 1.5, 0.9, 0.4].map(Micros::of).into()).unwrap();
        assert_near(distribution.p50, 0.4);
        assert_near(distribution.p90, 1.14);
        assert_near(distribution.p95, 1.319_999_999_999_999_6);
        assert_near(distribution.p99, 1.464);
        assert_eq!(distribution.max, Some(1.5));
        // np.mean of the same
        assert_near(distribution.mean, 4.1 / 7.0);

        // np.quantile(np.arange(1, 101) / 100, p): with n = 100 P99 lies between the two largest.
        let hundred = Distribution::of((1..=100).map(|n| Micros::of(f64::from(n) / 100.0)).collect()).unwrap();
        assert_near(hundred.p50, 0.505);
        assert_near(hundred.p90, 0.901);
        assert_near(hundred.p95, 0.950_5);
        assert_near(hundred.p99, 0.990_1);
    }

    #[test]
    fn a_quantile_of_one_value_is_that_value_and_of_none_unknown() {
        assert_eq!(quantile(1, 0.95, |_| 7.0), Some(7.0));
        assert_eq!(quantile(0, 0.95, |_| 7.0), None);
        assert_eq!(Distribution::of(Vec::new()), None);
        assert_eq!(Distribution::of_binned(&[]), None);
        assert_eq!(Distribution::of_binned(&[(0.1, 0)]), None);
        // Ends, and what lies beyond them: np.quantile([1, 2, 3], [0, 1])
        let values = [1.0, 2.0, 3.0];
        for (p, want) in [(-1.0, 1.0), (0.0, 1.0), (1.0, 3.0), (2.0, 3.0)] {
            assert_eq!(quantile(3, p, |rank| values[rank as usize]), Some(want));
        }
    }

    #[test]
    fn the_cohort_is_told_apart_by_the_size_of_the_prompts() {
        let sized = |size: &str, latency, tokens| RequestOutcome {
            prompt_size: Some(size.into()),
            ..request(Phase::Measured, 10.0, 10.0 + latency, Some(tokens))
        };
        let facts = LevelFacts { concurrency: 2, window_s: [10.0, 20.0], ..LevelFacts::default() };
        let mut outcomes = vec![
            sized("large", 5.0, 40),
            sized("huge", 9.0, 90),
            sized("small", 1.0, 10),
            sized("medium", 2.0, 5),
            sized("small", 3.0, 20),
        ];
        outcomes.push(RequestOutcome { failure: Some(Failure::ServerError), ..sized("large", 0.1, 0) });
        outcomes.push(RequestOutcome { phase: Phase::Warmup, ..sized("small", 100.0, 1000) });
        outcomes.push(RequestOutcome { output_tokens: None, ..sized("medium", 4.0, 0) });
        let by_size = summarize(&facts, outcomes).by_size;
        let figures: Vec<_> = by_size
            .iter()
            .map(|part| {
                let latency = part.latency_s.unwrap();
                (part.size.as_str(), part.requests, part.succeeded, latency.p50, part.mean_output_tokens)
            })
            .collect();
        let expected = [
            ("small", 2, 2, Some(2.0), Some(15.0)),
            // One of them came without a count.
            ("medium", 2, 2, Some(3.0), None),
            ("large", 2, 1, Some(5.0), Some(40.0)),
            ("huge", 1, 1, Some(9.0), Some(90.0)),
        ];
        assert_eq!(figures, expected);
        let one_size = vec![sized("small", 1.0, 10), sized("small", 2.0, 10)];
        assert_eq!(summarize(&facts, one_size).by_size, Vec::new());
    }

    /// `np.quantile([1]*4 + [2]*3 + [5]*2 + [50], p)`, and the same without bins.
    #[test]
    fn binned_is_the_same_as_unbinned() {
        let bins = [(1.0, 4), (2.0, 3), (5.0, 2), (50.0, 1)];
        let binned = Distribution::of_binned(&bins).unwrap();
        assert_near(binned.p50, 2.0);
        assert_near(binned.p90, 9.5);
        assert_near(binned.p95, 29.75);
        assert_near(binned.p99, 45.95);
        let values =
            bins.iter().flat_map(|&(value, count)| std::iter::repeat_n(Micros::of(value), count as usize)).collect();
        assert_eq!(Distribution::of(values), Some(binned));
    }

    /// `scipy.stats.t.ppf(.975, n - 1) * np.std(x, ddof=1) / np.sqrt(n)`, scipy 1, by the mean of x.
    #[test]
    fn the_half_width_is_that_of_student_t() {
        let rates = [9.8, 10.1, 10.4, 9.9, 10.3, 10.0, 9.7, 10.6, 10.2, 10.0];
        assert_near(relative_half_width(&rates, 0.95), 0.199_503_509_310_250_15 / 10.1);
        let two = relative_half_width(&[8.0, 12.0], 0.95).unwrap();
        assert!((two - 2.541_240_947).abs() < 1e-6, "{two}");
        assert_eq!(relative_half_width(&[8.0], 0.95), None);
        assert_eq!(relative_half_width(&[0.0, 0.0], 0.95), None);
    }

    #[test]
    fn an_interval_lies_around_the_figure_and_not_below_zero() {
        let around = with_interval(20.0, &[8.0, 12.0], 0.95);
        assert_eq!(around.lower, Some(0.0));
        assert!((around.upper.unwrap() - (20.0 + 20.0 * 2.541_240_947)).abs() < 1e-5, "{around:?}");
        assert_eq!(with_interval(10.0, &[8.0], 0.95), Estimate { estimate: 10.0, lower: None, upper: None });
    }

    /// Table I of Newcombe (1998), "Two-sided confidence intervals for the single proportion", method 3, to the four
    /// digits printed there; then 0, 5 and 50 of 100 by `scipy.stats.binomtest(k, n).proportion_ci(method='wilson')`.
    #[test]
    fn wilson_is_as_published() {
        for (k, n, low, high) in [
            (81, 263, 0.2553, 0.3662),
            (15, 148, 0.0624, 0.1605),
            (0, 20, 0.0, 0.1611),
            (1, 29, 0.0061, 0.1718),
            (29, 29, 0.8830, 1.0),
        ] {
            let got = wilson(k, n).unwrap();
            assert!((got[0] - low).abs() < 5.1e-5 && (got[1] - high).abs() < 5.1e-5, "{k}/{n}: {got:?}");
        }
        for (k, n, low, high) in [
            (0, 100, 0.0, 0.036_993_498_206_985_68),
            (5, 100, 0.021_543_679_154_367_973, 0.111_750_469_231_919_14),
            (50, 100, 0.403_831_530_365_995_6, 0.596_168_469_634_004_4),
        ] {
            let got = wilson(k, n).unwrap();
            assert!((got[0] - low).abs() < 1e-12 && (got[1] - high).abs() < 1e-12, "{k}/{n}: {got:?}");
        }
        assert_eq!(wilson(0, 0), None);
    }

    /// Ranks by `scipy.stats.binom.ppf([.025, .975], n, .95) + [0, 1]`: 64 and 72 of 72, 90 and 100 of 100, 371 and 389
    /// of 400. Of 71 the upper one would be the 72nd.
    #[test]
    fn the_interval_of_p95_lies_between_order_statistics() {
        let first = |n: u32| p95_interval(&(1..=n).map(|n| Micros::of(n.into())).collect::<Vec<_>>());
        assert_eq!(first(71), None);
        for (n, low, high) in [(72, 64.0, 72.0), (100, 90.0, 100.0), (400, 371.0, 389.0)] {
            assert_eq!(first(n), Some([low, high]), "{n}");
        }
        assert_eq!(first(0), None);
    }

    #[test]
    fn drift_is_a_change_of_a_tenth_beyond_both_intervals() {
        let figure = |rps, lower, upper| Estimate { estimate: rps, lower: Some(lower), upper: Some(upper) };
        let change = |first, confirmed| Drift { first, confirmed }.change();
        let first = figure(100.0, 95.0, 105.0);
        assert_near(change(first, figure(80.0, 76.0, 84.0)), -0.2);
        assert_near(change(first, figure(120.0, 116.0, 124.0)), 0.2);
        // Within the noise, or small.
        assert_eq!(change(first, figure(80.0, 60.0, 100.0)), None);
        assert_eq!(change(first, figure(91.0, 90.0, 92.0)), None);
        assert_eq!(change(figure(0.0, 0.0, 0.0), figure(80.0, 76.0, 84.0)), None);

        let measured = |blocks: &[f64]| LevelSummary {
            throughput_rps: Some(with_interval(10.0, blocks, 0.95)),
            blocks_rps: blocks.to_vec(),
            ..LevelSummary::default()
        };
        let blocks = [9.8, 10.1, 10.4, 9.9, 10.3, 10.0, 9.7, 10.6, 10.2, 10.0];
        let drift = Drift::between(&measured(&blocks), &measured(&blocks)).unwrap();
        // scipy.stats.t.ppf(.995, 9) / scipy.stats.t.ppf(.975, 9) times the half-width above
        let half = 10.0 * 0.199_503_509_310_250_15 / 10.1 * (3.249_835_541_592_143 / 2.262_157_162_798_204_6);
        assert!((drift.first.upper.unwrap() - 10.0 - half).abs() < 1e-9, "{drift:?}");
        assert_eq!(Drift::between(&measured(&blocks), &measured(&[])), None);
    }

    // ---- summarize ----

    fn request(phase: Phase, start_s: f64, end_s: f64, tokens: Option<u32>) -> RequestOutcome {
        RequestOutcome { phase, output_tokens: tokens, ..outcome(start_s, end_s) }
    }

    fn failed(start_s: f64, end_s: f64, failure: Failure) -> RequestOutcome {
        RequestOutcome { failure: Some(failure), ..request(Phase::Measured, start_s, end_s, None) }
    }

    fn facts() -> LevelFacts {
        LevelFacts { concurrency: 2, window_s: [10.0, 20.0], request_timeout_s: 30.0, ..LevelFacts::default() }
    }

    /// Half of the first request's life and three quarters of the last one's lie outside the window of 10 s.
    #[test]
    fn rates_count_shares_of_life_and_percentiles_the_cohort() {
        let outcomes = [
            request(Phase::Warmup, 8.0, 12.0, Some(40)),
            request(Phase::Measured, 12.0, 16.0, Some(20)),
            request(Phase::Measured, 19.0, 23.0, Some(80)),
            request(Phase::Warmup, 1.0, 9.0, Some(1000)),
        ];
        let summary = summarize(&facts(), outcomes);
        assert_eq!((summary.requests, summary.succeeded, summary.duration_s), (Some(2), Some(2), Some(10.0)));
        assert_near(summary.throughput_rps.map(|t| t.estimate), (0.5 + 1.0 + 0.25) / 10.0);
        assert_near(summary.output_tps, (0.5 * 40.0 + 20.0 + 0.25 * 80.0) / 10.0);
        assert_near(summary.mean_in_flight, (2.0 + 4.0 + 1.0) / 10.0);
        // The cohort alone: the two issued inside.
        assert_eq!(summary.mean_output_tokens, Some(50.0));
        assert_eq!(summary.latency_s.unwrap().mean, Some(4.0));
        assert_eq!(summary.error_rate, Some(0.0));
        assert_eq!(summary.ttft_s, None);
        assert_eq!(summary.itl_s, None);
    }

    #[test]
    fn failures_are_counted_by_kind_and_timeouts_weigh_on_the_gate() {
        let outcomes = [
            request(Phase::Measured, 10.0, 11.0, Some(5)),
            request(Phase::Measured, 10.0, 11.0, Some(5)),
            failed(10.0, 19.0, Failure::Timeout),
            failed(10.0, 10.1, Failure::RateLimited),
            failed(10.0, 10.1, Failure::RateLimited),
        ];
        let summary = summarize(&facts(), outcomes);
        let kinds: BTreeMap<String, u64> = [("RateLimited".to_owned(), 2), ("Timeout".to_owned(), 1)].into();
        assert_eq!(summary.failures, kinds);
        assert_near(summary.error_rate, 0.6);
        assert_near(summary.timeout_rate, 0.2);
        assert_eq!(summary.latency_s.unwrap().max, Some(1.0));
        let gate = summary.gate_latency_s.unwrap();
        assert_eq!((gate.p50, gate.max), (Some(1.0), Some(30.0)));
        // In flight counts all, successes or not: 1 + 1 + 9 + 0.1 + 0.1 seconds in 10.
        assert_near(summary.mean_in_flight, 1.12);
        assert_near(summary.throughput_rps.map(|t| t.estimate), 0.2);
    }

    /// Two permits for ten seconds: one is held back for six of them, of which four lie inside the window.
    #[test]
    fn permits_held_back_are_no_requests_in_flight() {
        let refused = RequestOutcome { held_s: Some(6.0), ..failed(15.9, 16.0, Failure::RateLimited) };
        let summary = summarize(&facts(), [request(Phase::Measured, 10.0, 20.0, None), refused]);
        assert_near(summary.mean_in_flight, 1.01);
        assert_near(summary.mean_held, 0.4);
        assert_eq!(summarize(&facts(), [request(Phase::Measured, 10.0, 20.0, None)]).mean_held, None);
    }

    #[test]
    fn what_found_no_server_is_told_from_what_a_full_one_refused() {
        let cut = RequestOutcome { cut: true, ..failed(10.0, 11.0, Failure::Malformed) };
        let answered = |status, failure| RequestOutcome { status: Some(status), ..failed(10.0, 11.0, failure) };
        let (full, gateway) = (answered(503, Failure::ServerError), answered(502, Failure::ServerError));
        let garbage = answered(200, Failure::Malformed);
        let refused = answered(0, Failure::Connect);
        let reach = |outcomes: &[&RequestOutcome]| {
            let mut reach = Reach { requests: 50, ..Reach::default() };
            outcomes.iter().for_each(|outcome| reach.add(outcome));
            reach
        };
        let is_outage = |outcomes: &[&RequestOutcome]| reach(outcomes).is_outage(0.05);
        assert!(is_outage(&[&cut; 10]) && is_outage(&[&gateway; 10]) && is_outage(&[&refused; 10]));
        assert!(!is_outage(&[&full; 50]) && !is_outage(&[&garbage; 50]));
        // Starting takes a while, and says so.
        assert!(is_outage(&[&[&refused][..], &[&full; 9]].concat()));
        // 4 of 54 may be chance.
        assert!(!is_outage(&[&refused; 4]));
        // It may be gone in the warm-up, of which all must have failed for the level to be given up.
        let warmup = RequestOutcome { phase: Phase::Warmup, ..refused.clone() };
        assert!(is_outage(&[&warmup; 10]));
        let given_up = RequestOutcome { end_s: None, ..refused.clone() };
        assert_eq!(reach(&[&given_up]), reach(&[]));
    }

    #[test]
    fn disturbed_measurements_are_set_aside_if_there_are_others() {
        let (there, gone) =
            (Reach { requests: 100, ..Reach::default() }, Reach { requests: 56, lost: 24, unavailable: 0 });
        let kept = |measurements: &[Reach]| {
            let numbered: Vec<usize> = (0..measurements.len()).collect();
            without_outages(&numbered, |at| measurements[at], 0.05)
        };
        let outage = |measurements, of, since| {
            Some(Outage { lost: 24 * measurements, requests: 56 * measurements, measurements, of, since })
        };
        assert_eq!(kept(&[there, there]), (vec![0, 1], None));
        assert_eq!(kept(&[gone]), (vec![0], outage(1, 1, 0)));
        assert_eq!(kept(&[gone, there]), (vec![1], outage(1, 2, 1)));
        assert_eq!(kept(&[there, gone, gone]), (vec![0], outage(2, 3, 0)));
        assert!(!outage(2, 2, 0).unwrap().is_set_aside() && outage(2, 3, 0).unwrap().is_set_aside());
    }

    #[test]
    fn token_figures_are_unknown_if_one_answer_came_without() {
        let with = request(Phase::Measured, 11.0, 12.0, Some(5));
        let without = request(Phase::Measured, 11.0, 12.0, None);
        let summary = summarize(&facts(), [with.clone(), without]);
        assert_eq!((summary.output_tps, summary.mean_output_tokens), (None, None));
        // One that played no part in the window does not spoil it.
        let outside = request(Phase::Warmup, 0.0, 9.0, None);
        assert_eq!(summarize(&facts(), [with, outside]).mean_output_tokens, Some(5.0));
    }

    #[test]
    fn of_nothing_all_is_unknown() {
        let summary = summarize(&facts(), []);
        assert_eq!(summary.requests, Some(0));
        assert_eq!((summary.error_rate, summary.timeout_rate, summary.latency_s), (None, None, None));
        let empty = LevelFacts { window_s: [0.0, 0.0], ..facts() };
        assert_eq!(summarize(&empty, []).throughput_rps, None);
    }

    /// Two permits; a request holds one for 1 s, in the second half of the cohort for 2 s: 2 and 1 per second.
    #[test]
    fn blocks_follow_a_server_that_slows_down() {
        let cohort = (0..20_u64).map(|seq| {
            let latency = if seq < 10 { 1.0 } else { 2.0 };
            RequestOutcome { seq, ..request(Phase::Measured, 10.0, 10.0 + latency, None) }
        });
        let summary = summarize(&facts(), cohort);
        assert_eq!(summary.blocks_rps, [2.0, 2.0, 2.0, 2.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0]);
    }

    #[test]
    fn times_between_tokens() {
        let mut outcome = request(Phase::Measured, 10.0, 12.0, Some(11));
        outcome.ttft_s = Some(0.5);
        let facts = LevelFacts { itl_us: vec![(1_000, 3), (3_000, 1)], ..facts() };
        let summary = summarize(&facts, [outcome]);
        assert_eq!(summary.ttft_s.unwrap().p50, Some(0.5));
        assert_near(summary.tpot_s.unwrap().mean, 0.15);
        assert_near(summary.itl_s.unwrap().mean, 0.0015);
    }

    /// What a level cost the client is judged by its worst measurement, a quota by what was said last.
    #[test]
    fn measurements_of_a_level_are_pooled() {
        let quota = |remaining| Some(RateLimit { remaining_requests: Some(remaining), ..RateLimit::default() });
        let cost = |cpu, lag| Some(ClientLoad { cpu, timer_lag_p95_s: Some(lag) });
        let mut pool = Pool::new(2);
        let load = |looks, running| Some(ServerLoad { looks, running: Some(running), ..ServerLoad::default() });
        let first =
            LevelFacts { client: cost(Some(0.4), 0.001), rate_limit: quota(5), server: load(1, 8.0), ..facts() };
        let second = LevelFacts {
            client: cost(None, 0.003),
            server: load(3, 6.0),
            window_s: [0.0, 5.0],
            rate_limit: quota(3),
            ..facts()
        };
        pool.add(&first, [request(Phase::Measured, 11.0, 13.0, Some(5))]);
        pool.add(&second, [request(Phase::Measured, 1.0, 2.0, Some(7)), request(Phase::Measured, 2.0, 3.0, None)]);
        pool.add(&LevelFacts { window_s: [0.0, 0.0], ..facts() }, []);
        let summary = pool.finish();
        assert_eq!((summary.requests, summary.duration_s), (Some(3), Some(15.0)));
        assert_near(summary.throughput_rps.map(|t| t.estimate), 0.2);
        assert_eq!(summary.client, cost(Some(0.4), 0.003));
        assert_eq!(summary.server, load(4, 6.5));
        assert_eq!(summary.rate_limit, quota(3));
    }

    #[test]
    fn json_goes_round_with_unknown_keys_and_null_parts() {
        let text = json!({
            "concurrency": 4, "requests": null, "failures": null, "notes": null, "samples": null, "blocks_rps": null,
            "throughput_rps": {"estimate": 3.5, "lower": null}, "latency_s": {"p95": 1.5, "p75": 1.0},
            "gpu_watts": 300, "host": {"name": "a"},
        });
        let summary: LevelSummary = serde_json::from_value(text).unwrap();
        assert_eq!(summary.throughput_rps, Some(Estimate { estimate: 3.5, lower: None, upper: None }));
        assert_eq!(summary.latency_s.unwrap().p95, Some(1.5));
        assert_eq!((summary.requests, summary.samples.is_none(), summary.failures.len()), (None, true, 0));
        assert_eq!(summary.unknown["gpu_watts"], 300);
        assert_eq!(summary.unknown["host"]["name"], "a");
        let written = serde_json::to_value(&summary).unwrap();
        assert_eq!(written["gpu_watts"], 300);
        assert_eq!(serde_json::from_value::<LevelSummary>(written).unwrap(), summary);

        let full = summarize(&facts(), [request(Phase::Measured, 10.0, 11.0, Some(5))]);
        let written = serde_json::to_string(&full).unwrap();
        assert_eq!(serde_json::from_str::<LevelSummary>(&written).unwrap(), full);
    }

    #[test]
    fn impossible_figures_become_unknown() {
        let strange = LevelSummary {
            error_rate: Some(1.5),
            timeout_rate: Some(f64::NAN),
            throughput_rps: Some(Estimate { estimate: f64::INFINITY, lower: None, upper: None }),
            latency_s: Some(Distribution { p95: Some(-1.0), p99: Some(2.0), ..Distribution::default() }),
            samples: Some(vec![Sample { duration_s: f64::NAN, completed: 1, succeeded: 1 }]),
            output_tps: Some(f64::NEG_INFINITY),
            blocks_rps: vec![1.0, f64::NAN, -1.0],
            ..LevelSummary::default()
        };
        let kept = strange.without_impossible();
        assert_eq!((kept.error_rate, kept.timeout_rate, kept.output_tps), (None, None, None));
        assert_eq!(kept.throughput_rps, None);
        assert_eq!(kept.latency_s.map(|l| (l.p95, l.p99)), Some((None, Some(2.0))));
        assert_eq!((kept.samples, kept.blocks_rps), (Some(Vec::new()), vec![1.0]));

        let sane = summarize(&facts(), [request(Phase::Measured, 10.0, 11.0, Some(5))]);
        assert_eq!(sane.clone().without_impossible(), sane);
    }
}
